"""Pixels on a grid, and frames over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from vesalius.core.geometry import Grid


class Unit(StrEnum):
    """What one step of a pixel value means."""

    INTENSITY = "intensity"
    HU = "HU"
    SUV = "SUV"
    LABEL = "label"
    DOSE_GY = "Gy"
    RED_GREEN_BLUE = "rgb"


class Act(StrEnum):
    """What the door did about something odd in a file."""

    NOTED = "noted"
    REPAIRED = "repaired"
    RESAMPLED = "resampled"


@dataclass(frozen=True)
class Note:
    """One line of the written record that travels with an image."""

    act: Act
    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels on a `Grid`, in their native type.

    Parameters
    ----------
    grid
        Shape and place; ``grid.shape`` equals ``pixels.shape[1:]``.
    pixels
        ``(C, Y, X)`` or ``(C, Z, Y, X)``. 16 bit stays 16 bit; a rescale to HU is the only arithmetic a reader does.
    unit
        Meaning of the values.
    channels
        One name per channel.
    record
        What the reader noted, repaired or resampled.
    meta
        Plain facts from the header (modality, patient_id, study_date, photometric, bits, window_center...), keys in
        snake case, values str, int, float or lists of them.
    source
        The file or folder it came from.
    """

    grid: Grid
    pixels: NDArray[Any]
    unit: Unit = Unit.INTENSITY
    channels: tuple[str, ...] = ()
    record: tuple[Note, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim not in (3, 4):
            raise ValueError(f"pixels must have axes (C, Y, X) or (C, Z, Y, X), got shape {self.pixels.shape}")
        if tuple(self.pixels.shape[1:]) != self.grid.shape:
            raise ValueError(f"pixels have shape {self.pixels.shape[1:]} after the channel, the grid {self.grid.shape}")
        if not self.channels:
            names = tuple(f"channel {index}" for index in range(self.pixels.shape[0]))
            object.__setattr__(self, "channels", names)
        if len(self.channels) != self.pixels.shape[0]:
            raise ValueError(f"{len(self.channels)} channel names for {self.pixels.shape[0]} channels")

    def noted(self, act: Act, text: str) -> Image:
        """The same image with one more line in its record."""
        return replace(self, record=(*self.record, Note(act, text)))


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames over time, decoded when asked for.

    Parameters
    ----------
    frames
        Number of frames T.
    shape
        ``(C, Y, X)`` of one frame.
    fps
        Frames per second; None where the file does not say.
    read
        ``read(start, stop)`` returns frames ``(stop - start, C, Y, X)``.
    """

    frames: int
    shape: tuple[int, int, int]
    fps: float | None
    read: Callable[[int, int], NDArray[Any]]
    grid: Grid | None = None
    record: tuple[Note, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for index in range(self.frames):
            yield self.read(index, index + 1)[0]
