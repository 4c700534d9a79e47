"""Names of the classes, with what a viewer and a DICOM writer need to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Colours that stay apart for people with red-green blindness (Okabe and Ito, 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


@dataclass(frozen=True)
class Concept:
    """A coded concept, as DICOM writes it (PS3.3 8.8)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Labels:
    """The classes of a question, in the order of the model's outputs.

    Parameters
    ----------
    names
        At least two names; for one yes/no question the second is the "yes" (the positive class).
    multilabel
        True when several classes may hold at once; then one name is allowed.
    positive
        For two exclusive classes: index of the class whose presence is the question. Sensitivity is measured on it.
    regions
        For masks whose structures overlap (multilabel): the values of the label map that each name joins, for example
        BraTS ``((1, 2, 3), (1, 3), (3,))`` for whole tumour, tumour core and enhancing tumour. Else empty: the index
        of a name is its value in the label map and the first name is the background.
    ignore
        Value of the label map that says nobody knows; such voxels are neither trained nor judged on.
    instances
        The label map numbers single objects (of the one class beside the background) instead of naming classes.
    """

    names: tuple[str, ...]
    multilabel: bool = False
    positive: int = 1
    colours: tuple[str, ...] = ()
    concepts: tuple[Concept | None, ...] = ()
    regions: tuple[tuple[int, ...], ...] = ()
    ignore: int | None = None
    instances: bool = False

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        object.__setattr__(self, "names", names)
        least = 1 if self.multilabel else 2
        if len(names) < least:
            raise ValueError(f"a question needs at least {least} classes, got {list(names)}")
        if len(set(names)) != len(names):
            raise ValueError(f"class names must differ, got {list(names)}")
        if not 0 <= self.positive < max(len(names), 2):
            raise ValueError(f"positive class {self.positive} is not one of {len(names)} classes")
        if not self.colours:
            colours = tuple(PALETTE[index % len(PALETTE)] for index in range(len(names)))
            object.__setattr__(self, "colours", colours)
        if not self.concepts:
            object.__setattr__(self, "concepts", (None,) * len(names))
        if len(self.colours) != len(names) or len(self.concepts) != len(names):
            raise ValueError(f"give one colour and one concept per class ({len(names)})")
        regions = tuple(tuple(int(value) for value in region) for region in self.regions)
        object.__setattr__(self, "regions", regions)
        if regions and (len(regions) != len(names) or not self.multilabel or not all(regions)):
            raise ValueError(f"give the values of each of {len(names)} multilabel regions, got {list(regions)}")
        if self.ignore is not None and (self.ignore in range(len(names)) if not regions else False):
            raise ValueError(f"the ignored value {self.ignore} is the class {names[self.ignore]!r}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def binary(self) -> bool:
        """Two exclusive classes."""
        return len(self.names) == 2 and not self.multilabel

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of what a mask shows: all but the background, or every region."""
        return self.names if self.multilabel else self.names[1:]

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        concepts = [
            None if c is None else {"value": c.value, "scheme": c.scheme, "meaning": c.meaning} for c in self.concepts
        ]
        data = {
            "names": list(self.names),
            "multilabel": self.multilabel,
            "positive": self.positive,
            "colours": list(self.colours),
            "concepts": concepts,
        }
        if self.regions:
            data["regions"] = [list(region) for region in self.regions]
        if self.ignore is not None:
            data["ignore"] = self.ignore
        if self.instances:
            data["instances"] = True
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Labels:
        """The inverse of `to_json`."""
        concepts: Sequence[Any] = data.get("concepts", ())
        return cls(
            names=tuple(data["names"]),
            multilabel=bool(data.get("multilabel", False)),
            positive=int(data.get("positive", 1)),
            colours=tuple(data.get("colours", ())),
            concepts=tuple(None if c is None else Concept(**c) for c in concepts),
            regions=tuple(tuple(region) for region in data.get("regions", ())),
            ignore=data.get("ignore"),
            instances=bool(data.get("instances", False)),
        )
