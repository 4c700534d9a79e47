"""Something a person should know about a data set."""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = ("note", "warning", "error")


@dataclass(frozen=True)
class Problem:
    """One line about the data, kept with the manifest and shown by every verb that reads it.

    Parameters
    ----------
    severity
        ``note``: what was assumed. ``warning``: the result may be worse than it looks unless something is done.
        ``error``: the data contradict themselves; a result on them means nothing.
    path
        The file or folder it is about, relative to the root; "" for the whole set.
    text
        What was found and what to do about it.
    """

    severity: str
    path: str
    text: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity {self.severity!r} is unknown; choose one of {', '.join(SEVERITIES)}")
        object.__setattr__(self, "text", " ".join(self.text.split()))

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text
