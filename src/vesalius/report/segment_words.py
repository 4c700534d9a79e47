"""Segmentations in plain words: names and meanings of their numbers, the answer, the rules and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vesalius.core.labels import Labels
from vesalius.report import words
from vesalius.report.words import Interval

NAMES = {
    "dice": "Dice",
    "dice_pooled": "Dice, pooled",
    "iou": "IoU",
    "nsd": "Surface Dice",
    "hd95_mm": "HD95",
    "hd95_px": "HD95",
    "assd_mm": "Mean surface distance",
    "assd_px": "Mean surface distance",
    "volume_error_ml": "Volume error",
    "volume_error_px": "Volume error",
    "volume_error_percent": "Volume error",
    "area_error_mm2": "Area error",
    "area_error_px": "Area error",
    "area_error_percent": "Area error",
    "ap50": "AP at IoU 0.5",
    "ap50_95": "AP at IoU 0.5 to 0.95",
    "pq": "Panoptic quality",
    "rq": "Recognition quality",
    "sq": "Segmentation quality",
    "aji": "AJI",
    "count_error": "Count error",
    "lesion_sensitivity": "Lesions found",
    "lesion_false_per_case": "False lesions per case",
}
MEANINGS = {
    "dice": "Overlap with the reference. 1 is identical, 0 is apart.",
    "dice_pooled": "Dice of all cases together, as if they were one: large structures weigh more.",
    "iou": "Shared volume over the volume of both together. Always below Dice.",
    "nsd": "Share of both surfaces that lie within the tolerance of each other.",
    "hd95": "95 % of either surface lie within this distance of the other. Smaller is better.",
    "assd": "How far the two surfaces are apart on average. Smaller is better.",
    "volume_error": "Model minus reference. Positive is too large.",
    "area_error": "Model minus reference. Positive is too large.",
    "absolute": "Size of the error, whichever way it goes. Smaller is better.",
    "ap50": "Right objects over right, missed and invented ones, at an IoU of at least 0.5.",
    "ap50_95": "The same, averaged over ten stricter and stricter thresholds.",
    "pq": "Objects found times how well they are outlined.",
    "rq": "F1 of the objects.",
    "sq": "Mean IoU of the objects that were found.",
    "aji": "Overlap of objects, with missed and invented ones counted against it.",
    "count_error": "Objects counted minus objects there are.",
    "lesion_sensitivity": "Share of the lesions that the mask touches.",
    "lesion_false_per_case": "Parts of the mask that touch no lesion. Smaller is better.",
}
# What a reader looks for first; the rest stands in the table of structures.
FIRST = (
    *("dice", "pq", "ap50", "nsd", "hd95_mm", "hd95_px", "assd_mm", "assd_px", "lesion_sensitivity"),
    *("lesion_false_per_case", "absolute_volume_error_percent", "absolute_area_error_percent", "dice_pooled"),
    *("rq", "sq"),
)
ABSOLUTE = "absolute_"
OUTCOMES = {
    "found": "in both",
    "missed": "missed",
    "invented": "invented",
    "absent": "rightly empty",
}


def name_of(key: str) -> str:
    """A metric's name as people write it, with a capital letter."""
    if key.startswith(ABSOLUTE):
        return f"{NAMES.get(key.removeprefix(ABSOLUTE), key)} (size)"
    return NAMES.get(key) or key.replace("_", " ").capitalize()


def meaning_of(key: str) -> str:
    """One line on what a number says; empty if unknown."""
    if key.startswith(ABSOLUTE):
        return MEANINGS["absolute"]
    return MEANINGS.get(key) or next((text for name, text in MEANINGS.items() if key.startswith(f"{name}_")), "")


def in_order(numbers: Mapping[str, Interval]) -> dict[str, Interval]:
    """What readers look for first comes first."""
    keys = [key for key in FIRST if key in numbers]
    return {key: numbers[key] for key in [*keys, *(key for key in numbers if key not in keys)]}


def numbers_of(content: Mapping[str, Any]) -> dict[str, Interval]:
    """Metrics in order; those whose name ends in a unit keep it."""
    found = {str(key): words.interval(value) for key, value in content.items()}
    return in_order({key: _united(key, data) for key, data in found.items()})


def _united(key: str, data: Interval) -> Interval:
    if data.unit not in ("", "1"):
        return data
    unit = next((unit for unit in ("mm", "px", "ml", "mm2", "percent") if key.endswith(f"_{unit}")), data.unit)
    return replace(data, unit=unit)


def known_labels(data: Any) -> Labels | None:
    """The structures, where the metrics or the card carry them."""
    if isinstance(data, Labels):
        return data
    return Labels.from_json(data) if isinstance(data, Mapping) and data.get("names") else None


# ---------------------------------------------------------------------------------------------------------- sentences


def answer(metrics: Mapping[str, Any], labels: Labels | None, *, patients_known: bool = True) -> str:
    """The study in one sentence, with the main number and its interval, and the weakest structure."""
    on = f"On {words.count(metrics.get('cases') or 0, 'case')}"
    if patients_known and metrics.get("patients"):
        on += f" of {words.count(metrics['patients'], 'patient')}"
    if metrics.get("external"):
        on += f" from “{metrics['external']}”"
    split = str(metrics.get("split") or "test")
    if words.leaks(metrics):
        on += ", some of which it may have seen in training,"
    elif split in ("test", "val"):
        on += " it had never seen," if split == "test" else " that were also used to choose it,"
    else:
        on += f" of the part “{split}”,"
    numbers = numbers_of(metrics.get("metrics") or {})
    key = main_metric(numbers, labels)
    names = labels.structures if labels is not None else tuple(metrics.get("per_class") or ())
    what = words.listed(names) if names else "its structures"
    did = "found single objects" if labels is not None and labels.instances else "outlined"
    what = f"({what})" if labels is not None and labels.instances else what
    if not key:
        return f"{on} no overlap could be computed: no case has a mask with a score."
    with_number = f"with {'a mean ' if len(names) > 1 else ''}{name_of(key)} of {words.show(numbers[key], words=True)}"
    return f"{on} the model {did} {what} {with_number}.{_weakest(metrics, key, names)}"


def main_metric(numbers: Mapping[str, Interval], labels: Labels | None = None) -> str:
    """The overlap that the sentence quotes; empty if there is none."""
    first = ("pq", "ap50", "dice") if labels is not None and labels.instances else ("dice", "iou")
    return next((key for key in first if key in numbers and numbers[key].value is not None), "")


def _weakest(metrics: Mapping[str, Any], key: str, names: Sequence[str]) -> str:
    found = {name: words.interval(data.get(key)).value for name, data in (metrics.get("per_class") or {}).items()}
    known = {name: value for name, value in found.items() if value is not None}
    if len(names) < 2 or len(known) < 2:
        return ""
    lowest = min(known, key=lambda name: known[name])
    return f" It did worst on {lowest} ({name_of(key)} {known[lowest]:.2f})."


def lead(metrics: Mapping[str, Any], *, patients_known: bool, structures: int) -> str:
    """How the numbers were made, under the heading of the key numbers."""
    settings = metrics.get("intervals") or {}
    level = words.interval(settings.get("level")).value
    mean = f"Each is the mean over {structures} structures, each the mean over its cases. " if structures > 1 else ""
    if level is None:
        return mean + "No intervals were computed, so nobody can say how far chance may have moved these numbers."
    unit = "patients" if patients_known else "cases"
    return (
        f"{mean}Under each number: its {level * 100:g} % interval, from drawing {unit} again and again. A repeat of "
        "the study on other cases of the same kind would usually end up inside it."
    )


def empty_rule(metrics: Mapping[str, Any]) -> list[str]:
    """What happens where a mask is empty, and how often it happened."""
    out = [
        "Structure in neither mask: a correct rejection. Dice 0/0 has no value and the case drops out of the means, "
        "instead of raising them with a 1.",
        "Structure in one mask only (missed or invented): Dice and surface Dice are 0 and count. The distance to "
        "nothing is infinite; it is left out of the mean distances, so read these together with the counts.",
    ]
    found = metrics.get("empty") or {}
    for name, counts in found.items():
        missed, invented = int(counts.get("missed") or 0), int(counts.get("invented") or 0)
        if missed or invented:
            parts = [f"missed in {missed}"] * bool(missed) + [f"invented in {invented}"] * bool(invented)
            out.append(f"{name}: {' and '.join(parts)} of {sum(int(n) for n in counts.values())} cases.")
    return out


def tolerance(metrics: Mapping[str, Any]) -> str:
    """The tolerances of the surface Dice in one sentence; empty if unknown."""
    said: dict[str, list[str]] = {}
    for name, entries in (metrics.get("tolerances") or {}).items():
        text = " or ".join(_span(entry) for entry in entries)
        said.setdefault(text, []).append(str(name))
    if not said:
        return ""
    if len(said) == 1:
        return f"The tolerance of the surface Dice is {next(iter(said))}."
    parts = [f"{text} for {words.listed(names)}" for text, names in said.items()]
    return f"The tolerance of the surface Dice is {'; '.join(parts)}."


def _span(entry: Mapping[str, Any]) -> str:
    low, high, unit = float(entry["low"]), float(entry["high"]), str(entry.get("unit") or "mm")
    return f"{low:.3g} {unit}" if low == high else f"{low:.3g} to {high:.3g} {unit} (by the voxel size of the case)"


def limits(metrics: Mapping[str, Any], *, patients_known: bool, labels: Labels | None) -> list[str]:
    """What may not be concluded from the study; one sentence each."""
    names = f" ({words.listed(labels.structures)})" if labels is not None and labels.structures else ""
    out = [
        "Not for diagnosis or planning: before a mask touches care, validate the model on your own patients, scanners "
        "and workflow, let a person check every mask, and follow the law on medical devices where you are.",
        "How it performs on other scanners, protocols, sites and populations is unknown. These numbers hold for cases "
        "like the ones tested here.",
        f"It only knows the structures it was trained on{names}. Shown anything else, it still calls it one of them "
        "or background.",
        "The reference outlines were taken as they are. Two readers rarely draw the same line: a Dice above their "
        "agreement with each other says nothing more.",
        "Dice depends on size: the same error of one voxel costs a small structure much more than a large one. "
        "Compare structures by distances, not by Dice.",
        "Volume errors of single patients can be large where the mean error is near zero.",
    ]
    tested = list(dict.fromkeys(name for name, _, _ in words.flat_subgroups(metrics.get("subgroups") or {})))
    if tested:
        out.append(f"Subgroups were compared only by {words.listed(tested)}; differences between others were not "
                   "tested, and small groups cannot show one.")  # fmt: skip
    else:
        out.append("No subgroups (age, sex, site, scanner) were tested: the data did not say who the patients are.")
    if not patients_known:
        out.append("Without patient identifiers, independence of training and test could not be checked by person.")
    if words.leaks(metrics):
        out.append("The parts of the data overlap, so no number here says how the model does on new patients.")
    return out


def verdict(row: Mapping[str, Any], metric: str = "Dice") -> str:
    """One line on a case of `evaluate.segment_study.case_scores`."""
    score = words.interval(row.get("score")).value
    parts = [] if score is None else [f"{metric} {score:.2f}"]
    for kind in ("missed", "invented"):
        names = list(row.get(kind) or ())
        parts += [f"{kind} {words.listed(names)}"] if names else []
    return "; ".join(parts) or "rightly empty"


def is_finite(value: Any) -> bool:
    """Whether `value` is a number that is neither NaN nor infinite."""
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))
