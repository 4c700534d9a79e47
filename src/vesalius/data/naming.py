"""What words in folders and tables mean: splits, classes, and which class is the question."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SPLITS = ("train", "val", "test")

_SPLIT_WORDS = {
    "train": ("train", "training", "tr", "trainset", "train_set"),
    "val": ("val", "valid", "validation", "dev", "tune", "tuning", "valset", "validate", "val_set"),
    "test": ("test", "testing", "ts", "tst", "testset", "holdout", "hold-out", "test_set"),
}
_SPLIT_OF = {word: split for split, words in _SPLIT_WORDS.items() for word in words}

# Words that say "the finding is not there". A name counts as negative when one of its words is in the list, so that
# "no finding", "Non-COVID" and "NORMAL" are negative while "abnormal" (one word) is not.
_NEGATIVE_WORDS = """
    normal healthy benign negative neg no non not none control controls absent absence false without regular clear
    uninfected unaffected asymptomatic background
"""
_POSITIVE_WORDS = """
    pneumonia disease diseased abnormal positive pos malignant yes cancer carcinoma melanoma tumor tumour lesion mass
    sick ill infected true present presence pathology pathological abnormality hyperplasia fracture tuberculosis covid
    haemorrhage hemorrhage finding parasitized case
"""
_NEGATIVE = frozenset(_NEGATIVE_WORDS.split())
_POSITIVE = frozenset(_POSITIVE_WORDS.split())


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key in which "grade 2" comes before "grade 10"."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts)


def canonical_split(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for the usual spellings ("Training", "valid"...), else None."""
    return _SPLIT_OF.get(word.strip().casefold())


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion such as ``, did you mean 'val'?`` or nothing."""
    close = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def suggest_split(word: str) -> str:
    """The split whose spelling is nearest to `word`, as the tail of an error message."""
    close = difflib.get_close_matches(word.casefold(), list(_SPLIT_OF), n=1, cutoff=0.6)
    return f", did you mean {_SPLIT_OF[close[0]]!r}?" if close else ""


def _words(name: str) -> list[str]:
    # "NonCOVID", "no_finding" and "Viral pneumonia" are cut at case changes, digits and separators.
    return [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _says(name: str, vocabulary: frozenset[str], digit: str) -> bool:
    return name.strip() == digit or any(word in vocabulary for word in _words(name))


def order_classes(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Class names in the order of a model's outputs.

    Two classes are ordered so that the finding is second ("normal", "pneumonia"), whatever the alphabet says; more
    than two are sorted naturally.

    Returns
    -------
    tuple
        The names, and whether the words themselves told which of two classes is the finding. When they did not, the
        order is alphabetical and the caller should say so.
    """
    ordered = sorted(set(names), key=lambda name: (natural_key(name), name))
    if len(ordered) != 2:
        return tuple(ordered), True
    negative = [_says(name, _NEGATIVE, "0") for name in ordered]
    if sum(negative) == 1:
        return (tuple(ordered) if negative[0] else (ordered[1], ordered[0])), True
    positive = [_says(name, _POSITIVE, "1") for name in ordered]
    if sum(positive) == 1:
        return (tuple(ordered) if positive[1] else (ordered[1], ordered[0])), True
    return tuple(ordered), False
