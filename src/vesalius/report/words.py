"""Numbers and findings in plain words: what the study report and the model card both say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from vesalius.core.labels import Labels

# Below this many cases the usual intervals are wider than most differences a reader would act on: with 100 cases and
# an accuracy of 0.9, the 95 % interval is 12 points wide.
SMALL_TEST = 100
SMALL_CLASS = 20

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision (PPV)",
    "recall": "recall",
    "f1": "F1",
    "ppv": "precision (PPV)",
    "npv": "NPV",
    "kappa": "kappa",
    "brier": "Brier score",
    "ece": "calibration error",
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "surface Dice",
    "map50": "mAP at IoU 0.5",
    "map50_95": "mAP at IoU 0.5 to 0.95",
}

MEANINGS = {
    "auroc": "How often a case with the finding gets a higher score than one without. 0.5 is guessing, 1 is perfect.",
    "auprc": "Precision averaged over all thresholds. Guessing reaches the share of cases with the finding.",
    "accuracy": "Share of cases with the right answer. Compare it with always naming the commonest class.",
    "subset_accuracy": "Share of cases with every finding answered rightly.",
    "balanced_accuracy": "Accuracy with every class counting the same.",
    "sensitivity": "Of the cases with the finding, the share the model found.",
    "specificity": "Of the cases without the finding, the share the model left alone.",
    "precision": "Of the alarms, the share that was right. It changes with how common the finding is.",
    "recall": "Of the cases with the finding, the share the model found.",
    "f1": "Balance of precision and recall.",
    "kappa": "Agreement beyond chance. 0 is chance, 1 is full agreement.",
    "brier": "Mean squared error of the probabilities. Smaller is better.",
    "ece": "How far the probabilities are from what came true. Smaller is better.",
    "dice": "Overlap with the reference outline. 1 is identical.",
}

# Of more than two classes these are means, each class against the rest.
MEANS_OVER_CLASSES = frozenset(
    {"auroc", "auprc", "sensitivity", "specificity", "precision", "recall", "f1", "dice", "iou"}
)

# Where smaller is better, a reader must be told so next to the number.
SMALLER_IS_BETTER = frozenset({"brier", "ece", "hd95_mm", "hd95_px", "assd_mm", "assd_px", "loss"})


SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Interval:
    """A number with its interval, unit and the reason for its absence."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = "1"
    level: float = 0.95
    why: str = ""

    def ends(self) -> tuple[float | None, float | None, float | None]:
        """Value, low and high."""
        return self.value, self.low, self.high


def interval(data: Any) -> Interval:
    """From the mapping of ``metrics.json``, a bare number or None; what is not finite counts as absent."""
    if isinstance(data, Mapping):
        why = data.get("why") or data.get("note") or data.get("reason") or ""
        return Interval(
            _finite(data.get("value")),
            _finite(data.get("low")),
            _finite(data.get("high")),
            str(data.get("unit") or "1"),
            _finite(data.get("level")) or 0.95,
            str(why),
        )
    return Interval(_finite(data))


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, (str, Mapping)):
        return None
    number = float(value)
    return number if isfinite(number) else None


def is_number(data: Any) -> bool:
    """Whether `data` is a metric (a mapping with a value, or a number) and not a count or a text."""
    return (isinstance(data, Mapping) and "value" in data) or (isinstance(data, float))


def decimals(data: Interval) -> int:
    """Digits after the point that the interval deserves: two, or three when it is narrower than 0.03."""
    value, low, high = data.ends()
    if value is None:
        return 2
    if data.unit not in ("1", ""):
        return 2 if abs(value) < 10 else 1
    narrow = low is not None and high is not None and high - low < 0.03
    digits = 3 if narrow or abs(value) < 0.1 else 2
    # 0.9996 must not be shown as a perfect 1.00.
    while digits < 5 and value not in (0, 1) and round(value, digits) in (0.0, 1.0):
        digits += 1
    return digits


def show(data: Interval, *, words: bool = False) -> str:
    """``0.97 (0.96–0.98)``, or with `words` ``0.97 (95 % interval 0.96 to 0.98)``; says so where there is no number."""
    if data.value is None:
        return data.why or "no number"
    digits = decimals(data)
    unit = f" {unit_name(data.unit)}" if unit_name(data.unit) else ""
    text = f"{data.value:.{digits}f}"
    if data.low is None or data.high is None:
        return text + unit
    low, high = f"{data.low:.{digits}f}", f"{data.high:.{digits}f}"
    if words:
        return f"{text}{unit} ({data.level * 100:g} % interval {low} to {high})"
    # A dash between negative numbers cannot be read.
    between = "–" if data.low >= 0 else " to "
    return f"{text}{unit} ({low}{between}{high})"


def unit_name(unit: str) -> str:
    """The unit as it is written after a number; a share (``1``) has none."""
    return "" if unit == "1" else {"percent": "%"}.get(unit, unit)


def metric_name(key: str) -> str:
    """A metric's name as people write it."""
    return NAMES.get(key, key.replace("_", " "))


def count(number: Any, one: str, many: str = "") -> str:
    """``1 case``, ``12 cases``, ``12 034 cases`` (with a narrow no-break space)."""
    whole = int(number)
    return f"{whole:,}".replace(",", "\u202f") + f" {one if whole == 1 else many or one + 's'}"


def percent(share: float) -> str:
    """``48 %``; a share that is neither none nor all never becomes 0 or 100."""
    shown = f"{share * 100:.0f}"
    if shown in ("0", "100") and share not in (0, 1):
        shown = "< 1" if shown == "0" else "> 99"
    return f"{shown}\u00a0%"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; long lists end in a number."""
    if len(names) > 6:
        return ", ".join(names[:5]) + f" and {len(names) - 5} more"
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# --------------------------------------------------------------------------------------------------------- findings


def answer(metrics: Mapping[str, Any], labels: Labels | None, *, patients_known: bool = True) -> str:
    """The study in one sentence, with the main number and its interval."""
    numbers = metrics.get("metrics") or {}
    key = main_metric(numbers)
    on = f"On {count(metrics.get('cases', 0), 'case')}"
    if patients_known and metrics.get("patients"):
        on += f" of {count(metrics['patients'], 'patient')}"
    if metrics.get("external"):
        on += f" from “{metrics['external']}”"
    seen = leaks(metrics)
    split = str(metrics.get("split") or "test")
    if seen:
        on += ", some of which it may have seen in training,"
    elif split == "test":
        on += " it had never seen,"
    elif split == "val":
        on += " that were also used to choose it,"
    else:
        on += f" of the part “{split}”,"
    with_number = f" with {metric_name(key)} {show(interval(numbers[key]), words=True)}" if key else ""
    if labels is None:
        return f"{on} the model worked{with_number}." if key else f"{on} no number could be computed."
    if labels.binary:
        yes, no = labels.names[labels.positive], labels.names[1 - labels.positive]
        return f"{on} the model told {yes} from {no}{with_number}."
    if labels.multilabel:
        what = labels.names[0] if len(labels) == 1 else f"{len(labels)} findings ({listed(labels.names)})"
        return f"{on} the model looked for {what}{_mean(with_number, labels)}."
    right = numbers.get("accuracy")
    first = f" and was right with accuracy {show(interval(right), words=True)}" if right and key != "accuracy" else ""
    return f"{on} the model told {len(labels)} classes apart{_mean(with_number, labels)}{first}."


def _mean(with_number: str, labels: Labels) -> str:
    """The AUROC of several classes is a mean and must be called one."""
    return with_number.replace(" with AUROC", " with a mean AUROC") if len(labels) > 1 else with_number


def main_metric(numbers: Mapping[str, Any]) -> str:
    """The number that the sentence quotes; empty if there is none."""
    for key in ("auroc", "dice", "map50", "ap50", "frame_accuracy", "balanced_accuracy", "accuracy"):
        if key in numbers and interval(numbers[key]).value is not None:
            return key
    return next((key for key, data in numbers.items() if interval(data).value is not None), "")


def leaks(metrics: Mapping[str, Any]) -> bool:
    """Whether something of the test cases may have been seen in training.

    Where the run says whether overlap was allowed, that decides: what was found and not allowed has been taken out
    before training, or there would be no report.
    """
    found = metrics.get("leakage") or {}
    if found.get("allowed") is not None:
        return bool(found["allowed"])
    return any(int(found.get(key) or 0) > 0 for key in ACROSS)


def marked(metrics: Mapping[str, Any], card: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics with the leakage that a person allowed (``card["leakage_allowed"]``) written into them."""
    if not card.get("leakage_allowed"):
        return metrics
    return {**metrics, "leakage": {**(metrics.get("leakage") or {}), "allowed": True}}


ACROSS = ("patients_shared", "near_duplicates", "exact_duplicates")
# What the leakage check counts, in the words of the page.
LEAKAGE = {
    "patients_shared": "Patients in more than one part",
    "exact_duplicates": "Equal images in different parts",
    "near_duplicates": "Nearly equal images in different parts",
    "duplicates_within": "Surplus equal images within a part",
    "label_conflicts": "Equal images with different labels",
    "not_comparable": "Images too small or empty to compare",
    "allowed": "Overlap allowed by the user",
}


def leakage_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The counts of the leakage check; its lists of single cases are left to ``metrics.json``."""
    facts = []
    across = any(int(found.get(key) or 0) for key in ACROSS)
    for key, value in found.items():
        if key == "allowed" and value is False:
            facts.append(("Overlap left", "none; what was found was taken out before training" if across else "none"))
        elif key in LEAKAGE or not isinstance(value, (Mapping, list, tuple)):
            facts.append((LEAKAGE.get(key, key.replace("_", " ")), "not recorded" if value is None else as_text(value)))
    return facts or [("Leakage check", "not recorded")]


def warnings(
    metrics: Mapping[str, Any], *, patients_known: bool, class_cases: Mapping[str, int] | None = None
) -> list[tuple[str, str]]:
    """(headline, what it means and what to do) of everything that makes the numbers weaker than they look."""
    out = []
    found = metrics.get("leakage") or {}
    if leaks(metrics):
        parts = [
            count(found.get(key) or 0, one)
            for key, one in (
                ("patients_shared", "shared patient"),
                ("exact_duplicates", "exact duplicate"),
                ("near_duplicates", "near duplicate"),
            )
            if int(found.get(key) or 0) > 0
        ]
        what = f": {listed(parts)}" if parts else ""
        out.append(
            (
                "Training, validation and test overlap",
                f"The leakage check found an overlap{what}. The numbers on this page are "
                "probably too good. Split again by patient, without duplicates, before anyone relies on them.",
            )
        )
    if not patients_known:
        out.append(
            (
                "Nobody knows which images belong to the same person",
                "The data hold no patient identifier, so every case was counted as a patient of its own. If people "
                "appear several times, the intervals are too narrow, and the same person may stand in training and "
                "test. Give a patient column or pattern if you have one.",
            )
        )
    people = int(metrics.get("patients") or metrics.get("cases") or 0)
    if people < SMALL_TEST:
        out.append(
            (
                "The test set is small",
                f"Only {count(people, 'patient' if patients_known else 'case')} stand behind these numbers. Read the "
                "intervals, not the single values, and test on more cases before you decide anything.",
            )
        )
    few = [f"{name} ({n})" for name, n in (class_cases or {}).items() if n < SMALL_CLASS]
    if few:
        out.append(
            (
                "Some classes have very few test cases",
                f"Fewer than {SMALL_CLASS} test cases: {listed(few)}. What is said "
                "about these classes rests on single cases.",
            )
        )
    if str(metrics.get("split") or "test") == "val":
        out.append(
            (
                "These are not test cases",
                "The validation cases were used to choose the model, which flatters it. Use a "
                "test set that nothing was chosen on.",
            )
        )
    return out


def limits(metrics: Mapping[str, Any], *, patients_known: bool, labels: Labels | None) -> list[str]:
    """What may not be concluded from the study; one sentence each."""
    out = [
        "Not for diagnosis: before the model touches care, validate it on your own patients, scanners and workflow, "
        "and follow the law on medical devices where you are.",
        "How it performs on other scanners, sites and populations is unknown. These numbers hold for cases like the "
        "ones tested here.",
        "Probabilities are calibrated for how common each class is in the validation data. Where it is rarer or "
        "commoner, they and the predictive values are wrong until they are calibrated again.",
        "The model finds patterns that go together with the labels. It does not show what causes them, and it may use "
        "something in the picture that is not the disease.",
        "It only knows the classes it was trained on"
        + (f" ({listed(labels.names)})" if labels else "")
        + ". Shown anything else, it still answers with one of them.",
        "The labels were taken as they are. If they came from a report or a single reader, agreeing with them is not "
        "the same as being right.",
    ]
    tested = list(dict.fromkeys(name for name, _, _ in flat_subgroups(metrics.get("subgroups") or {})))
    if tested:
        out.append(
            f"Subgroups were compared only by {listed(tested)}; differences between any others were "
            "not tested. A difference that was not found may still exist where the groups are small."
        )
    else:
        out.append("No subgroups (age, sex, site, scanner) were tested: the data did not say who the patients are.")
    if not patients_known:
        out.append(
            "Without patient identifiers, independence of training and test cases could not be checked by person."
        )
    if leaks(metrics):
        out.append("The parts of the data overlap, so no number here says how the model does on new patients.")
    return out


def decision(data: Mapping[str, Any], labels: Labels) -> str:
    """How probabilities became answers, from ``metrics.json`` (`evaluate.decision.Decision`); empty if unknown."""
    if not data:
        return ""
    limits_by_class = {str(k): interval(v).value for k, v in (data.get("thresholds") or {}).items()}
    given = [f"{name} from {value:.3g}" for name, value in limits_by_class.items() if value is not None]
    chosen = str(data.get("chosen_on") or "fixed")
    if not given:
        if labels.multilabel:
            return "Every finding with a probability of at least 0.5 is called."
        return "A case is called by its most probable class."
    where = (
        "fixed before any data were seen" if chosen == "fixed" else f"chosen on the {SPLITS.get(chosen, chosen)} cases"
    )
    rule = str(data.get("rule") or "").replace("_", " ")
    return f"Called {listed(given)} on; {where}{f' by the rule “{rule}”' if rule else ''}."


def flat_subgroups(subgroups: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(covariate, group, numbers) from the forms that ``metrics.json`` allows.

    ``{covariate: {"groups": {group: numbers}}}`` as `evaluate.subgroup` writes it, ``{covariate: {group: numbers}}`` or
    ``{"covariate=group": numbers}``. Covariates that were excluded are not groups (`excluded_subgroups`).
    """
    out: list[tuple[str, str, Mapping[str, Any]]] = []
    for covariate, content in subgroups.items():
        if not isinstance(content, Mapping) or "excluded" in content:
            continue
        if isinstance(content.get("groups"), Mapping):
            out += [(str(covariate), str(group), numbers) for group, numbers in content["groups"].items()]
            continue
        inner = [v for v in content.values() if isinstance(v, Mapping)]
        nested = inner and all("value" not in v for v in inner) and len(inner) == len(content)
        if nested and not {"metrics"} >= set(content):
            out += [(str(covariate), str(group), numbers) for group, numbers in content.items()]
        else:
            name, _, group = str(covariate).partition("=")
            out.append((name, group, content))
    return out


def excluded_subgroups(subgroups: Mapping[str, Any]) -> list[str]:
    """``site: has one value only`` for every covariate that could not be tested."""
    return [
        f"{name}: {content['excluded']}"
        for name, content in subgroups.items()
        if isinstance(content, Mapping) and "excluded" in content
    ]


def numbers_of(content: Mapping[str, Any]) -> dict[str, Interval]:
    """The metrics among the entries of a class or a subgroup, also where they stand under ``metrics``."""
    inner = content.get("metrics") if isinstance(content.get("metrics"), Mapping) else content
    return {str(key): interval(data) for key, data in (inner or {}).items() if is_number(data) or data is None}


def as_text(value: Any) -> str:
    """A setting as a person writes it: ``yes``, ``0.001``, ``224, 224``, or JSON for what is nested."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and not any(isinstance(v, (list, tuple, Mapping)) for v in value):
        return ", ".join(as_text(v) for v in value) or "none"
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
