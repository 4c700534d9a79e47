"""How long work reports itself, without printing: only the command line owns the screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What long work calls. `vesalius.cli` draws it; a library user may pass his own."""

    def start(self, what: str, total: int | None, unit: str = "") -> None:
        """A stage begins; `total` steps of `unit`, None when unknown."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is a short text such as the loss."""

    def stop(self, summary: str = "") -> None:
        """The stage has ended."""

    def say(self, text: str) -> None:
        """One line that stays on the screen."""

    def warn(self, text: str) -> None:
        """A warning; it says what to do."""


class Silent:
    """The default: says nothing, keeps warnings for whoever asks."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def start(self, what: str, total: int | None, unit: str = "") -> None:
        """Ignored."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def stop(self, summary: str = "") -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""

    def warn(self, text: str) -> None:
        """Kept in `warnings`."""
        self.warnings.append(text)


def track(
    items: Iterable[T], progress: Progress, what: str, *, total: int | None = None, unit: str = ""
) -> Iterator[T]:
    """Iterate over `items` and report each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    progress.start(what, total, unit)
    for item in items:
        yield item
        progress.advance()
    progress.stop()
