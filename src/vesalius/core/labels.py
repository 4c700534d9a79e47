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
    """

    names: tuple[str, ...]
    multilabel: bool = False
    positive: int = 1
    colours: tuple[str, ...] = ()
    concepts: tuple[Concept | None, ...] = ()

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

    def __len__(self) -> int:
        return len(self.names)

    @property
    def binary(self) -> bool:
        """Two exclusive classes."""
        return len(self.names) == 2 and not self.multilabel

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON and YAML."""
        concepts = [
            None if c is None else {"value": c.value, "scheme": c.scheme, "meaning": c.meaning} for c in self.concepts
        ]
        return {
            "names": list(self.names),
            "multilabel": self.multilabel,
            "positive": self.positive,
            "colours": list(self.colours),
            "concepts": concepts,
        }

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
        )
