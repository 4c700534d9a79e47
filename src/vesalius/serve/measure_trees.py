"""Vessels."""

from __future__ import annotations

from typing import Any

from vesalius.serve.measure_loading import Loaded
from vesalius.serve.measure_tables import CaseTables
from vesalius.serve.measure_wishes import Wishes


def vessels(loaded: Loaded, wishes: Wishes, found: CaseTables) -> None:
    """x."""


def measured_vessels(loaded: Loaded) -> Any:
    """x."""
