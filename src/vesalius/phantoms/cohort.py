"""A run of phantoms to be written: which cases, in which split, under which file names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.errors import UsageError
from vesalius.core.files import write_text
from vesalius.core.image import Image, Unit
from vesalius.core.progress import Progress, Silent, track
from vesalius.core.randomness import generator
from vesalius.io.nifti_out import write_nifti
from vesalius.io.raster_out import write_png
from vesalius.phantoms.phantom import Phantom
from vesalius.phantoms.registry import make

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cohort:
    """Cases 0 to ``cases - 1`` of a kind of phantom; iterating makes them one by one.

    Parameters
    ----------
    shares
        Parts of the patients in train, val and test; None for a cohort that is not split. Splits are balanced: runs of
        patients with one of each class stay together.
    options
        Further options of the phantom.
    """

    kind: str
    cases: int
    seed: int
    shares: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise UsageError(f"a cohort has at least one case, got {self.cases}")
        shares = self.shares
        if shares is not None and (len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise UsageError(f"splits are three parts (train, val, test) that add up to 1, got {shares}")

    def __iter__(self) -> Iterator[tuple[Phantom, str]]:
        for index in track(range(self.cases), self.progress, f"making {self.kind} phantoms", unit="cases"):
            yield make(self.kind, seed=self.seed, index=index, **self.options), self.split_of(index)

    def split_of(self, index: int) -> str:
        """``train``, ``val``, ``test``, or "" where there are no splits."""
        return self._splits[index // self._run] if self._splits else ""

    def check(self) -> None:
        """Make the first case and the splits, so that wrong options are named before a file is written."""
        self.first.case.image()
        self.split_of(0)

    @cached_property
    def first(self) -> Phantom:
        """Case 0, for what all cases have in common."""
        return make(self.kind, seed=self.seed, index=0, **self.options)

    @property
    def _run(self) -> int:
        """Cases of as many patients as there are classes."""
        return len(self.first.classes) * int(self.options.get("images_per_patient", 1))

    @cached_property
    def _splits(self) -> list[str]:
        """The split of each run of patients.

        Raises
        ------
        UsageError
            If a split with a share would have no patient.
        """
        if self.shares is None:
            return []
        runs = -(-self.cases // self._run)
        ends = np.rint(np.cumsum(self.shares) * runs).astype(int)
        counts = np.diff(ends, prepend=0)
        empty = [name for name, count, share in zip(SPLITS, counts, self.shares, strict=True) if share and not count]
        if empty:
            raise UsageError(f"{self.cases} cases leave split {empty[0]} empty; ask for more cases")
        names = np.repeat(SPLITS, counts)
        return [str(name) for name in generator(self.seed, "phantom:splits").permutation(names)]


def new_folder(folder: str | Path, *, over: bool = False) -> Path:
    """`folder`, made; refused if it holds files already, unless `over`.

    Raises
    ------
    UsageError
        For a folder that is not empty, since its files would be read as part of the cohort.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not over)):
        raise UsageError(f"{folder}: is not an empty folder; choose another or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_image(phantom: Phantom, folder: Path, stem: str, *, suffix: str = "") -> Path:
    """The image of a phantom as PNG (two dimensions) or ``.nii.gz`` (three), unless `suffix` says which."""
    return write_pixels(phantom.case.image(), folder, stem, suffix=suffix)


def write_mask(phantom: Phantom, folder: Path, stem: str, *, instances: bool = False, suffix: str = "") -> Path:
    """The label map of a phantom, or with `instances` the map of its single objects.

    Raises
    ------
    UsageError
        For a kind that has no such map.
    """
    values = phantom.layers.get("instances") if instances else phantom.mask
    if values is None:
        raise UsageError(f"phantom {phantom.case.case_id} has no map of {'instances' if instances else 'labels'}")
    image = Image(grid=phantom.case.image().grid, pixels=values[None], unit=Unit.LABEL)
    return write_pixels(image, folder, stem, suffix=suffix)


def write_pixels(image: Image, folder: Path, stem: str, *, suffix: str = "") -> Path:
    """`image` as `stem` with `suffix` (``.png`` or ``.nii.gz``) in `folder`."""
    suffix = suffix or (".png" if image.grid.ndim == 2 else ".nii.gz")
    if suffix == ".png":
        return write_png(folder / f"{stem}.png", image.pixels)
    return write_nifti(image, folder / f"{stem}{suffix}")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def flat_cohort(cohort: Cohort, layout: str) -> None:
    """Refuse volumes and kinds without boxes, for layouts of boxes in pictures.

    Raises
    ------
    UsageError
        Naming kinds that can be written.
    """
    if cohort.first.case.image().grid.ndim != 2:
        raise UsageError(f"layout {layout} holds boxes in pictures, but {cohort.kind} is a volume; use chest or smear")


def names_seen(boxes: Sequence[Sequence[str]]) -> list[str]:
    """All names of boxes, sorted.

    Raises
    ------
    UsageError
        If no case has a box.
    """
    names = sorted({name for one in boxes for name in one})
    if not names:
        raise UsageError("no case of this cohort has a box; ask for more cases or another kind")
    return names
