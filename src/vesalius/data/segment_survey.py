"""What a set of images with masks is like: the numbers that a segmentation plan is made from.

Only cases that are not for the test are looked at, and at most a few dozen of them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.progress import Progress, Silent
from vesalius.core.randomness import generator
from vesalius.data.cases import joined, mask_values
from vesalius.data.manifest import Manifest
from vesalius.data.truth import open_case_image, open_truth
from vesalius.transforms.conform import pose_of

MOST_CASES = 48
MOST_VALUES = 600_000_000
_DRAWN = 20_000


@dataclass(frozen=True)
class SegmentFingerprint:
    """Facts about images and masks; axes in the turned order (z, y, x) or (y, x).

    Parameters
    ----------
    cases, looked
        All cases, and those that were opened.
    dims, channels
        The usual ones.
    shapes
        ``(N, dims)``: sides of the images that were opened, inside their borders of padding.
    spacings
        ``(N, dims)`` mm; None where any image has no physical size.
    unit, modality, dtype
        The usual ones.
    colour
        Channels differ and are colours.
    foreground
        ``(C, 4)``: mean, standard deviation, 0.5th and 99.5th percentile of the values inside structures.
    lowest
        A value that 99.9 % of the values inside structures exceed (first channel).
    values
        ``(C, 2)``: 0.5th and 99.5th percentile over whole images.
    volumes
        ``(N, V)``: voxels of every value of the mask per opened case.
    objects
        Median equivalent diameter of single objects in pixels, and their number per image; zeros without objects.
    failed
        Reasons of cases that could not be opened.
    """

    cases: int
    looked: int
    dims: int
    channels: int
    shapes: NDArray[np.int64]
    spacings: NDArray[np.float64] | None
    unit: str
    modality: str
    dtype: str
    colour: bool
    foreground: NDArray[np.float64]
    lowest: float
    values: NDArray[np.float64]
    volumes: NDArray[np.int64]
    objects: tuple[float, float]
    failed: tuple[str, ...]

    @property
    def hounsfield(self) -> bool:
        """Values are HU: the files say so, or the description calls them CT."""
        return self.unit == "HU" or self.modality.upper().split("_")[0] == "CT"

    @property
    def shape(self) -> tuple[int, ...]:
        """Median sides."""
        return tuple(round(side) for side in np.median(self.shapes, axis=0))

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Median spacing, mm."""
        return None if self.spacings is None else tuple(float(s) for s in np.median(self.spacings, axis=0))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        out: dict[str, Any] = {}
        for name, value in vars(self).items():
            out[name] = value.tolist() if isinstance(value, np.ndarray) else value
        return dict(json.loads(json.dumps(out)))


@dataclass
class _Seen:
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    kind: tuple[int, int, str, str, str]
    inside: NDArray[np.float32]
    drawn: NDArray[np.float32]
    counts: NDArray[np.int64]
    diameters: NDArray[np.float64]
    colour: bool


def survey_segments(manifest: Manifest, *, seed: int = 0, progress: Progress | None = None) -> SegmentFingerprint:
    """Open up to 48 cases that are not for the test, drawn at random.

    Raises
    ------
    DataError
        If none of them can be read; or if images of two and three dimensions are mixed.
    """
    progress = progress or Silent()
    cases = manifest.cases
    usable = cases.loc[cases["split"] != "test", "case_id"].tolist() or cases["case_id"].tolist()
    order = generator(seed, "survey").permutation(len(usable))[:MOST_CASES]
    seen: list[_Seen] = []
    failed: list[str] = []
    values = 0
    progress.start("survey", len(order), "cases")
    for place in np.sort(order):
        progress.advance()
        if values > MOST_VALUES and len(seen) >= 4:
            continue
        try:
            found = _look(manifest, usable[int(place)], seed)
        except DataError as error:
            failed.append(" ".join(str(error).split()))
            continue
        values += int(np.prod(found.shape))
        seen.append(found)
    progress.stop()
    if not seen:
        raise DataError(f"{manifest.root}: none of {len(order)} cases can be read; the first: {failed[0]}")
    return _summed(manifest, seen, failed)


def _look(manifest: Manifest, case: str, seed: int) -> _Seen:
    if manifest.labels is None:
        raise DataError(f"{manifest.root}: no classes of masks are known")
    image = open_case_image(manifest, case)
    truth = joined(open_truth(manifest, case, image), image.grid.ndim)
    pose = pose_of(image.grid)
    spacing = image.grid.spacing_mm
    draw = generator(seed, f"survey.{case}")
    flat = image.pixels.reshape(image.pixels.shape[0], -1)
    everywhere = draw.integers(0, flat.shape[1], min(_DRAWN, flat.shape[1]))
    ignored = manifest.labels.ignore
    inside = np.flatnonzero((truth != 0) & (truth != (-1 if ignored is None else ignored)))
    if len(inside) > _DRAWN:
        inside = inside[draw.integers(0, len(inside), _DRAWN)]
    values = mask_values(manifest.labels)
    diameters = np.empty(0)
    if manifest.labels.instances:
        areas = np.bincount(truth.reshape(-1).astype(np.int64))[1:]
        areas = areas[areas > 0]
        diameters = 2 * np.sqrt(areas / np.pi) if image.grid.ndim == 2 else np.cbrt(6 * areas / np.pi)
        counts = np.array([int((truth == 0).sum()), int((truth > 0).sum())])
    else:
        tally = np.bincount(truth.reshape(-1).astype(np.int64), minlength=max(values) + 1)
        counts = tally[np.asarray(values)]
    turned = tuple(image.grid.shape[axis] for axis in pose.axes)
    pixels = flat[:, everywhere].astype(np.float32)
    colour = len(pixels) == 3 and str(image.pixels.dtype) == "uint8" and image.grid.ndim == 2
    return _Seen(
        turned,
        None if spacing is None else tuple(spacing[axis] for axis in pose.axes),
        (
            image.grid.ndim,
            image.pixels.shape[0],
            str(image.unit),
            str(image.meta.get("modality", "")) or _said_modality(manifest, case),
            str(image.pixels.dtype),
        ),
        flat[:, inside].astype(np.float32),
        pixels,
        counts,
        diameters,
        colour,
    )


def _said_modality(manifest: Manifest, case: str) -> str:
    """What the description of the data says, for files that say nothing."""
    if "modality" not in manifest.frame:
        return ""
    found = manifest.cases.loc[manifest.cases["case_id"] == case, "modality"].dropna()
    return str(found.iloc[0]) if len(found) else ""


def _summed(manifest: Manifest, seen: list[_Seen], failed: list[str]) -> SegmentFingerprint:
    kinds = Counter(one.kind[0] for one in seen)
    dims = kinds.most_common(1)[0][0]
    seen = [one for one in seen if one.kind[0] == dims]
    channels = Counter(one.kind[1] for one in seen).most_common(1)[0][0]
    seen = [one for one in seen if one.kind[1] == channels]
    inside = np.concatenate([one.inside for one in seen], axis=1)
    drawn = np.concatenate([one.drawn for one in seen], axis=1)
    inside = inside if inside.shape[1] else drawn
    spread = [inside.mean(axis=1), inside.std(axis=1), *np.percentile(inside, (0.5, 99.5), axis=1)]
    spacings = [one.spacing for one in seen]
    diameters = np.concatenate([one.diameters for one in seen])
    usual = [Counter(one.kind[k] for one in seen).most_common(1)[0][0] for k in (2, 3, 4)]
    return SegmentFingerprint(
        cases=len(manifest),
        looked=len(seen),
        dims=dims,
        channels=channels,
        shapes=np.array([one.shape for one in seen], dtype=np.int64),
        spacings=None if any(s is None for s in spacings) else np.array(spacings, dtype=np.float64),
        unit=str(usual[0]),
        modality=str(usual[1]),
        dtype=str(usual[2]),
        colour=sum(one.colour for one in seen) * 2 > len(seen),
        foreground=np.stack(spread, axis=1).astype(np.float64),
        lowest=float(np.percentile(inside[0], 0.1)),
        values=np.percentile(drawn, (0.5, 99.5), axis=1).T.astype(np.float64),
        volumes=np.array([one.counts for one in seen], dtype=np.int64),
        objects=((float(np.median(diameters)), float(len(diameters) / len(seen))) if len(diameters) else (0.0, 0.0)),
        failed=tuple(failed),
    )
