"""Fixtures of the evaluation tests."""

from __future__ import annotations

import pytest
from evaluate_cases import cohort


@pytest.fixture
def binary():
    return cohort(("NORMAL", "PNEUMONIA"))


@pytest.fixture
def several():
    return cohort(("a", "b", "c"))
