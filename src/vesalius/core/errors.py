"""What can go wrong, one class per kind of trouble, each with its exit code.

A message is one line that names the file, what was found, what was expected and what to do next. The command line
prints ``str(error)`` and leaves with ``error.exit_code``; nothing else decides exit codes.
"""

from __future__ import annotations

from pathlib import Path


class VesaliusError(Exception):
    """Base of every error that a person is meant to read."""

    exit_code = 1


class UsageError(VesaliusError):
    """A wrong option, path or name on the command line or in a call."""

    exit_code = 2


class PlanError(UsageError):
    """A plan with an unknown key, a wrong value or two keys that contradict each other."""


class MissingExtra(UsageError):
    """An optional library is not installed; the message holds the command that installs it."""


class DataError(VesaliusError):
    """The data are unreadable or contradict themselves."""

    exit_code = 3


class FileError(DataError):
    """One file that cannot be used.

    Parameters
    ----------
    path
        The file; its path starts the message.
    found, expected, do
        What was found in it, what was expected instead, and the next action of the person who reads the line.
    """

    def __init__(self, path: str | Path, *, found: str, expected: str = "", do: str = "") -> None:
        self.path = str(path)
        self.found = found
        self.expected = expected
        self.do = do
        line = f"{path}: {found}"
        if expected:
            line += f"; expected {expected}"
        if do:
            line += f"; {do}"
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # Keyword-only arguments do not survive the default pickling between worker processes.
        return _rebuild_file_error, (type(self), self.path, self.found, self.expected, self.do)


def _rebuild_file_error(kind: type[FileError], path: str, found: str, expected: str, do: str) -> FileError:
    return kind(path, found=found, expected=expected, do=do)


class UnreadableFile(FileError):
    """Broken, truncated or in a format that is not read."""


class GeometryError(FileError):
    """Slices or headers that do not describe one consistent grid."""


class LimitError(FileError):
    """Larger than the limits that guard against decompression bombs."""


class LeakageError(VesaliusError):
    """The same patient or the same image stands in two splits."""

    exit_code = 4


class ResourceError(VesaliusError):
    """The stated memory, disk or time is not enough."""

    exit_code = 5


class AcceptanceError(VesaliusError):
    """An artefact did not reproduce what it was made from, or its checksum is wrong."""

    exit_code = 6


class Interrupted(VesaliusError):
    """Stopped by ctrl-C or SIGTERM; the state has been saved."""

    exit_code = 130
