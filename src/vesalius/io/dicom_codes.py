"""Coded concepts for the names that people give to structures (PS3.16 CID 7150, 7151).

The concepts are those of the standard's own context groups of segmentation property types, as pydicom lists them. A
name is looked up by its words, in any order, without side and plural: ``kidney_left``, ``Left Kidney`` and
``kidneys (L)`` are all the kidney, with the left side as modifier. Names with a lesion word, such as ``liver tumour``,
are that lesion, in the region that the other words name. Whatever is not known is `Tissue`; nothing is guessed from
parts of words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from vesalius.core.labels import Concept

# Context groups of property types with the category (CID 7150) of their members; the first one that has a name wins.
_GROUPS = (
    ("CID7194", codes.SCT.MorphologicallyAbnormalStructure),
    ("CID7191", codes.SCT.Tissue),
    ("CID7192", codes.SCT.AnatomicalStructure),
    ("CID8135", codes.SCT.AnatomicalStructure),
    ("CID7193", codes.SCT.PhysicalObject),
    ("CID7197", codes.SCT.BodySubstance),
)
# Members of these groups that are no finding, or too general to be meant by a name.
_NOT_MEANT = frozenset({"normal", "background", "wall", "table", "floor", "chair", "coin", "line"})
# Concepts outside of the groups that data sets often have: words of the name to the keyword in pydicom's SNOMED CT.
_MORE = {
    "peripheral zone": "PeripheralZoneOfTheProstate",
    "transition zone": "TransitionZoneOfTheProstate",
    "optic disc": "OpticDiscStructure",
    "optic disk": "OpticDiscStructure",
}
# Words that mean a concept whose own meaning says it otherwise.
_SYNONYMS = {
    "tumor": "neoplasm", "tumors": "neoplasm", "tumour": "neoplasm", "tumours": "neoplasm", "cancer": "neoplasm",
    "carcinoma": "neoplasm", "metastases": "metastasis", "oedema": "edema", "haemorrhage": "hemorrhage",
    "bleeding": "hemorrhage", "nuclei": "nucleus", "vessel": "blood vessel", "vessels": "blood vessel",
    "vertebrae": "vertebra", "oesophagus": "esophagus", "gall": "gallbladder", "grey": "gray", "cells": "cell",
    "caudate": "caudate nucleus", "pallidum": "globus pallidus", "accumbens": "nucleus accumbens",
    "bronchi": "bronchus", "adrenal": "adrenal gland", "parotid": "parotid gland",
    "submandibular": "submandibular gland", "testes": "testis", "ovaries": "ovary", "arteries": "artery",
    "femora": "femur", "lesions": "lesion",
}  # fmt: skip
_SIDES = {"left": "Left", "l": "Left", "lt": "Left", "right": "Right", "r": "Right", "rt": "Right"}
_FILL = frozenset({"of", "the", "and", "in", "structure"})
_NEGATIONS = frozenset({"no", "non", "not", "without", "minus", "free", "normal", "healthy"})


@dataclass(frozen=True)
class Coding:
    """What a segment is, in codes.

    Parameters
    ----------
    category, kind
        Segmented Property Category and Type.
    side
        Left or right, as the modifier of `region` where there is one, else of `kind`.
    region
        Anatomic Region of a lesion.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None


def coding_of(name: str, concept: Concept | None = None) -> Coding:
    """Codes of a structure by its `name`, or those of `concept`, whose category is looked up by its code."""
    if concept is not None:
        known = {(code.value, code.scheme_designator): category for code, category in _table().values()}
        category = known.get((concept.value, concept.scheme), codes.SCT.Tissue)
        return Coding(category, Code(concept.value, concept.scheme, concept.meaning))
    words = _words(name)
    sides = {_SIDES[word] for word in words if word in _SIDES}
    side = getattr(codes.SCT, sides.pop()) if len(sides) == 1 else None
    bare = words - _SIDES.keys()
    for key, beside in ((words, None), (bare, side)):
        found = _table().get(frozenset(key))
        if found is not None:
            return Coding(found[1], found[0], beside)
    return _lesion(bare, side) or Coding(codes.SCT.Tissue, codes.SCT.Tissue, None)


def _lesion(words: frozenset[str], side: Code | None) -> Coding | None:
    """The lesion with the most words among `words`, and the structure that the others name."""
    if words & _NEGATIONS:
        return None
    morphology = _GROUPS[0][1]
    found = [(key, code) for key, (code, category) in _table().items() if category == morphology and key <= words]
    if not found:
        return None
    key, code = max(found, key=lambda one: (len(one[0]), sorted(one[0])))
    region = _table().get(frozenset(words - key))
    if region is None or region[1] == morphology:
        return Coding(morphology, code)
    return Coding(morphology, code, side, region[0])


@lru_cache(maxsize=1)
def _table() -> dict[frozenset[str], tuple[Code, Code]]:
    """Words of a meaning to its code and the category."""
    table: dict[frozenset[str], tuple[Code, Code]] = {}
    for name, category in _GROUPS:
        group: Any = getattr(codes, name)
        for keyword in group.dir():
            code: Code = getattr(group, keyword)
            if code.meaning.lower() not in _NOT_MEANT:
                table.setdefault(_words(code.meaning), (code, category))
    for meaning, keyword in _MORE.items():
        table.setdefault(_words(meaning), (getattr(codes.SCT, keyword), codes.SCT.AnatomicalStructure))
    return table


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # LeftKidney
    found: set[str] = set()
    for word in re.findall(r"[a-z0-9]+", spaced.lower()):
        for part in _SYNONYMS.get(word, word).split():
            found.add(
                part[:-1] if len(part) > 3 and part.endswith("s") and not part.endswith(("ss", "us", "is")) else part
            )
    # "gall bladder" is one word in the meaning of the concept.
    return frozenset(found - _FILL - ({"bladder"} if "gallbladder" in found else set()))
