"""One small case per kind, quick enough to be made often."""

from __future__ import annotations

SMALL: dict[str, dict] = {
    "chest": {"size": 64},
    "ct": {"shape": (30, 48, 48), "spacing_mm": (7.0, 7.0, 7.0)},
    "brain": {"shape": (22, 26, 22), "spacing_mm": (8.0, 8.0, 8.0)},
    "vessels": {"size": 72},
    "smear": {"size": 96},
    "solid": {},
}
