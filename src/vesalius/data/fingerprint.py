"""What a data set is like, in numbers that a plan can be made from.

A `FingerprintBuilder` is fed in the same decoding pass as signatures and store, before anybody knows the split. It
therefore keeps a few numbers per image; `build` then uses the intensities of training images only, because a plan must
not know anything of the test images.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vesalius.core.errors import DataError
from vesalius.core.image import Image, Unit
from vesalius.data.intensity import ImageValues, Intensity, intensity, joined, values_of
from vesalius.data.naming import SPLITS
from vesalius.data.signature import Signatures

SCHEMA = 1

_CHUNK_BYTES = 32 << 20
_FIXED_COLUMNS = ("case_id", "patient_id", "path", "role", "label", "split")


@dataclass(frozen=True)
class Range:
    """Smallest, middle and largest of something, per axis."""

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """What can be said of the images alone, without the table they belong to.

    Parameters
    ----------
    dims
        2 or 3; 0 if the set mixes both.
    images
        Images that were looked at.
    shape, spacing_mm
        Over all images, axes (z, y, x); spacing is None where any image has no physical size. For a set that mixes
        dimensions both are those of the more frequent kind.
    one_shape
        Whether all images have the same shape.
    aspect
        Width over height: smallest, median, largest.
    channels, dtypes, units
        How many images have so many channels, such a type, such a unit.
    equal_channels
        Every image of several channels repeats one: colour files that hold grey pictures.
    modality, modality_because
        A DICOM modality or a guess (``CT``, ``RGB``, ``?``), and what it was guessed from.
    blank
        Part of the images in which all pixels are equal.
    """

    dims: int
    images: int
    shape: Range
    one_shape: bool
    spacing_mm: Range | None
    aspect: Range
    channels: dict[str, int]
    equal_channels: bool
    dtypes: dict[str, int]
    units: dict[str, int]
    modality: str
    modality_because: str
    blank: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Geometry):
    """A data set in numbers.

    Parameters
    ----------
    cases, patients
        How many there are; `known_patients` is False where each case counts as its own patient.
    splits, classes
        Cases per split, and per split (``"all"`` for everything) and class. A case of several classes counts in each.
    task, multilabel
        The question, and whether several classes may hold at once.
    imbalance
        Cases of the largest class for each of the smallest, in training: infinite where a class has none there; None
        without classes.
    intensity
        Of training images; None if there were none.
    covariates
        Other columns with the part of cases that has a value.
    data_hash
        See `data_hash`; "" if no signatures were given.
    """

    cases: int
    patients: int
    known_patients: bool
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    task: str
    multilabel: bool
    imbalance: float | None
    intensity: Intensity | None
    covariates: dict[str, float] = field(default_factory=dict)
    data_hash: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it stands in the run folder; an infinite imbalance becomes None (JSON has no infinity)."""
        data = {"schema": SCHEMA, **asdict(self)}
        return data | {"imbalance": None if self.imbalance == float("inf") else self.imbalance}


def data_hash(frame: pd.DataFrame, signatures: Signatures) -> str:
    """Hexadecimal hash of what a run learns from: case, patient, split, role, label and pixels of every row.

    It does not depend on the order of rows, on file names or on the container the pixels came in.

    Raises
    ------
    ValueError
        If frame and signatures have different lengths.
    """
    if len(frame) != len(signatures):
        raise ValueError(f"{len(frame)} rows but {len(signatures)} signatures; give one signature per image")
    columns = [
        frame[name].fillna("").astype(str) if name in frame else [""] * len(frame)
        for name in ("case_id", "patient_id", "split", "role", "label")
    ]
    rows = sorted(
        "\x1f".join([*texts, f"{high:016x}{low:016x}"])
        for *texts, (high, low) in zip(*columns, signatures.hashes.tolist(), strict=True)
    )
    return hashlib.blake2b("\x1e".join(rows).encode(), digest_size=16).hexdigest()


class FingerprintBuilder:
    """Collects what images are like while they are decoded for something else.

    Images are numbered in the order of `add`; builders of parts are joined with `merge` in the order of the parts.

    Parameters
    ----------
    seed
        Of the pixels that are drawn for percentiles.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed
        self._facts: list[_Fact] = []
        self._values: dict[str, list[ImageValues]] = {}

    def __len__(self) -> int:
        return sum(fact.count for fact in self._facts)

    def add(self, image: Image) -> None:
        """One image."""
        self._add(image.pixels[None], image.grid.spacing_mm, str(image.unit), str(image.meta.get("modality", "")))

    def add_stack(self, batch: NDArray[Any]) -> None:
        """Images of one size without physical geometry: ``(N, C, Y, X)`` or ``(N, C, Z, Y, X)``.

        Raises
        ------
        ValueError
            If the axes are others.
        """
        if batch.ndim not in (4, 5) or 0 in batch.shape[1:]:
            raise ValueError(f"images must have axes (N, C, Y, X) or (N, C, Z, Y, X), got shape {batch.shape}")
        step = max(1, _CHUNK_BYTES // max(1, 8 * int(np.prod(batch.shape[1:]))))
        for start in range(0, len(batch), step):
            self._add(batch[start : start + step], None, str(Unit.INTENSITY), "")

    def _add(self, batch: NDArray[Any], spacing: tuple[float, ...] | None, unit: str, modality: str) -> None:
        first, count = len(self), len(batch)
        flat = batch.reshape(count, -1)
        repeated = (
            (batch == batch[:, :1]).reshape(count, -1).all(axis=1) if batch.shape[1] > 1 else np.zeros(count, bool)
        )
        fact = _Fact(
            count,
            tuple(batch.shape[2:]),
            spacing,
            batch.shape[1],
            str(batch.dtype),
            unit,
            modality,
            int((flat == flat[:, :1]).all(axis=1).sum()),
            int(repeated.sum()),
        )
        if self._facts and self._facts[-1].like(fact):
            self._facts[-1] = self._facts[-1].plus(fact)
        else:
            self._facts.append(fact)
        values = values_of(batch, first, self._seed)
        self._values.setdefault(values.kind, []).append(values)

    def state(self) -> dict[str, Any]:
        """Everything collected so far as plain JSON data, for `merge`."""
        stream = io.BytesIO()
        arrays: dict[str, Any] = {
            f"{name}|{kind}": array
            for kind, parts in self._values.items()
            for name, array in zip(("rows", "stats", "drawn"), joined(parts), strict=True)
        }
        np.savez_compressed(stream, **arrays)
        return {
            "schema": SCHEMA,
            "facts": [asdict(fact) for fact in self._facts],
            "values": base64.b64encode(stream.getvalue()).decode(),
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Append the images of another builder, given by its `state` or `summary`.

        Raises
        ------
        DataError
            If it was written by another version.
        """
        state = state.get("state", state)
        if state.get("schema") != SCHEMA:
            raise DataError(
                f"fingerprint of schema {state.get('schema')!r} is not known to this version (it reads "
                f"{SCHEMA}); prepare the data again with --force"
            )
        first = len(self)
        for fact in state["facts"]:
            spacing = fact["spacing"]
            self._facts.append(
                _Fact(**{**fact, "shape": tuple(fact["shape"]), "spacing": None if spacing is None else tuple(spacing)})
            )
        with np.load(io.BytesIO(base64.b64decode(state["values"])), allow_pickle=False) as arrays:
            for kind in {name.split("|", 1)[1] for name in arrays.files}:
                part = ImageValues(
                    kind, arrays[f"rows|{kind}"] + first, arrays[f"stats|{kind}"], arrays[f"drawn|{kind}"]
                )
                self._values.setdefault(kind, []).append(part)

    def summary(self) -> dict[str, Any]:
        """What can be said without a split, as plain data, and the `state` to make a fingerprint from later."""
        return {**asdict(self._geometry()), "state": self.state()} if self._facts else {"state": self.state()}

    def build(
        self,
        frame: pd.DataFrame,
        *,
        task: str = "classify",
        multilabel: bool = False,
        known_patients: bool = True,
        signatures: Signatures | None = None,
    ) -> Fingerprint:
        """The fingerprint of the images added so far and of the table they belong to.

        Parameters
        ----------
        frame
            One row per image, in the order in which they were added: ``case_id``, ``patient_id``, ``label`` ("a|b" for
            several), ``split`` and covariates. If no row has a split, intensities come from all images.

        Raises
        ------
        ValueError
            If no image was added, or their number is not that of the rows.
        """
        if not self._facts or len(frame) != len(self):
            raise ValueError(
                f"{len(frame)} rows but {len(self)} images in the fingerprint; give one row per added image"
            )
        cases = frame.drop_duplicates("case_id")
        classes = class_counts(cases)
        split = frame["split"].fillna("").to_numpy(dtype=object)
        training = split == "train" if (split != "").any() else np.ones(len(frame), dtype=bool)
        return Fingerprint(
            cases=len(cases),
            patients=int(cases["patient_id"].nunique()),
            known_patients=known_patients,
            splits={name: n for name in (*SPLITS, "") if (n := int((cases["split"].fillna("") == name).sum()))},
            classes=classes,
            task=task,
            multilabel=multilabel,
            imbalance=imbalance(classes),
            **vars(self._geometry()),
            intensity=intensity((part for parts in self._values.values() for part in parts), training),
            covariates=_covariates(cases),
            data_hash="" if signatures is None else data_hash(frame, signatures),
        )

    def _geometry(self) -> Geometry:
        shapes, spacings = _tally(self._facts, "shape"), _tally(self._facts, "spacing")
        dims = Counter[int]()
        for shape, count in shapes.items():
            dims[len(shape)] += count
        usual = max(sorted(dims), key=lambda n: dims[n])
        main = Counter({shape: n for shape, n in shapes.items() if len(shape) == usual})
        aspects: Counter[tuple[float, ...]] = Counter()
        for shape, count in main.items():
            aspects[(shape[-1] / shape[-2],)] += count
        known = Counter({s: n for s, n in spacings.items() if s is not None and len(s) == usual})
        coloured = sum(fact.count for fact in self._facts if fact.channels > 1)
        repeated = sum(fact.repeated for fact in self._facts)
        modality, because = self._modality(coloured - repeated)
        return Geometry(
            dims=usual if len(dims) == 1 else 0,
            images=len(self),
            shape=_range(main),
            one_shape=len(shapes) == 1,
            spacing_mm=_range(known) if known and None not in spacings else None,
            aspect=_range(aspects),
            channels={str(k): n for k, n in sorted(_tally(self._facts, "channels").items())},
            equal_channels=coloured > 0 and repeated == coloured,
            dtypes=dict(sorted(_tally(self._facts, "dtype").items())),
            units=dict(sorted(_tally(self._facts, "unit").items())),
            modality=modality,
            modality_because=because,
            blank=sum(fact.blank for fact in self._facts) / len(self),
        )

    def _modality(self, coloured: int) -> tuple[str, str]:
        named = {name: count for name, count in _tally(self._facts, "modality").items() if name}
        if named:
            name = max(sorted(named), key=lambda n: named[n])
            return name, f"the header of {named[name]} of {len(self)} images"
        if set(_tally(self._facts, "unit")) == {str(Unit.HU)}:
            return "CT", "values are in HU"
        if coloured:
            return "RGB", f"{coloured} images have channels that differ"
        return "?", "no file names its modality"


@dataclass(frozen=True)
class _Fact:
    """A run of images that are alike in everything but their pixels."""

    count: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    channels: int
    dtype: str
    unit: str
    modality: str
    blank: int
    repeated: int

    def like(self, other: _Fact) -> bool:
        return replace(self, count=0, blank=0, repeated=0) == replace(other, count=0, blank=0, repeated=0)

    def plus(self, other: _Fact) -> _Fact:
        return replace(
            self,
            count=self.count + other.count,
            blank=self.blank + other.blank,
            repeated=self.repeated + other.repeated,
        )


def _tally(facts: list[_Fact], name: str) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for fact in facts:
        counts[getattr(fact, name)] += fact.count
    return counts


def _range(counts: Counter[tuple[float, ...]]) -> Range:
    """Extremes and weighted median per axis of a table of values."""
    values = np.array(list(counts), dtype=np.float64)
    weights = np.array(list(counts.values()))
    middle = tuple(float(np.median(np.repeat(column, weights))) for column in values.T)
    return Range(tuple(values.min(axis=0).tolist()), middle, tuple(values.max(axis=0).tolist()))


def class_counts(cases: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Cases per split ("all" for everything) and class."""
    if "label" not in cases:
        return {}
    counts: dict[str, dict[str, int]] = {}
    for split, rows in (("all", cases), *((s, cases[cases["split"] == s]) for s in SPLITS)):
        if len(rows):
            names = rows["label"].fillna("").astype(str).str.split("|").explode()
            names = names[names != ""]
            if len(names):
                counts[split] = {str(k): int(v) for k, v in names.value_counts().sort_index().items()}
    return counts


def imbalance(classes: dict[str, dict[str, int]]) -> float | None:
    """Cases of the largest class for each of the smallest, in training if that is known; None without classes."""
    counts = classes.get("train") or classes.get("all")
    if not counts:
        return None
    smallest = min(counts.get(name, 0) for name in classes["all"])
    return max(counts.values()) / smallest if smallest else float("inf")


def _covariates(cases: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(cases[name].notna().mean()) for name in cases.columns if name not in _FIXED_COLUMNS}
