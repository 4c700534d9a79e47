"""Where a result came from: versions, hardware, command, seed, data."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from vesalius.core.environment import available_cores
from vesalius.core.version import __version__

_WATCHED = ("numpy", "scipy", "pandas", "torch", "lightning-fabric", "pydicom", "SimpleITK", "nibabel", "pillow")


def provenance(*, seed: int, data_hash: str, command: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """The content of ``provenance.json``.

    Nothing here names a person or a folder outside the run except the command as it was typed.
    """
    versions = {"vesalius": __version__, "python": platform.python_version()}
    for package in _WATCHED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "seed": int(seed),
        "data_hash": data_hash,
        "versions": versions,
        "hardware": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": available_cores(),
        },
        **more,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
