"""Amounts that people type: ``8G`` of memory, ``10m`` of time."""

from __future__ import annotations

import re

from vesalius.core.errors import UsageError

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1.0, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0}


def parse_bytes(text: str | int) -> int:
    """``"8G"``, ``"512MB"`` or ``"1.5 GiB"`` in bytes (binary multiples)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(text).upper())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"memory {text!r} is not an amount; write for example 8G or 512M")
    return int(float(match[1]) * _BYTES[match[2]])


def parse_seconds(text: str | float) -> float:
    """``"90s"``, ``"10m"``, ``"1.5h"`` or ``"1h30m"`` in seconds; a bare number is seconds."""
    plain = str(text).strip().upper()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([SMHD]?)", plain)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([SMHD]?)", "", plain).strip():
        raise UsageError(f"time {text!r} is not an amount; write for example 90s, 10m or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"time {text!r} must be more than zero")
    return seconds


def show_bytes(count: float) -> str:
    """``1.5 GB`` and the like (binary multiples)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def show_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
