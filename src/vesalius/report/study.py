"""The report of a study: one page that a radiologist reads from the top and an engineer from the bottom."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vesalius.core.labels import Labels
from vesalius.core.quantity import show_seconds
from vesalius.report import figures, words
from vesalius.report.cases import Cases, confusion, groups, read_cases
from vesalius.report.charts import confusion_table
from vesalius.report.page import write_page
from vesalius.report.pictures import data_uri, png_size
from vesalius.report.tables import (
    MOST_CLASSES,
    cell_of,
    counts_grid,
    heading,
    in_order,
    mixups_grid,
    operating_grid,
    per_class_grid,
    subgroups_grid,
)

# A page of 3 MB opens at once on a phone and passes most mail gateways; the rest of the page needs about a third.
PICTURE_BUDGET = 1_900_000
MOST_CARDS = 8
MOST_LINES = 200
PATIENT_SOURCES = {
    "column": "a column of the table",
    "pattern": "a pattern in the file names",
    "dicom": "the DICOM headers",
    "none": "nowhere: every case was counted as a patient",
}
SPLIT_SOURCES = {
    "official": "the split that was published with the data",
    "column": "a column of the table",
    "folder": "the folders of the data",
    "made": "Vesalius, by patient",
    "none": "nobody",
}


def write_study_report(
    folder: str | Path,
    *,
    metrics: Mapping[str, Any],
    table: pd.DataFrame,
    plan: Mapping[str, Any],
    provenance: Mapping[str, Any],
    history: pd.DataFrame | None = None,
    card: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    notes: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write ``index.html`` into `folder` and return its path.

    Parameters
    ----------
    metrics
        The content of ``metrics.json``. Beyond its contract, ``operating_points`` ``{name: {threshold, sensitivity,
        specificity...}}`` and ``labels`` (`Labels.to_json`) are used where they are there; a metric without a value
        carries the reason as ``why``.
    table
        One row per case: ``case_id, patient_id, label, predicted, correct, p.NAME...``.
    plan
        ``{section: {key: {"value": ..., "because": ...}}}``.
    provenance
        The content of ``provenance.json``.
    history
        ``step, epoch, train_loss, val_loss, val_auroc, lr...``; None where nothing was trained.
    card
        What `card.model_card` takes.
    pictures
        PNG by case id; `cases.cases_worth_a_picture` says which ones are shown.
    notes
        Lines that the run left behind.
    title
        Heading of the page.
    """
    card = card or {}
    metrics = words.marked(metrics, card)
    cases = read_cases(table, known_labels(metrics, card))
    patients_known = knows_patients(card, metrics)
    gallery, gallery_note = _gallery(cases, pictures or {})
    content = {
        "title": title or str(card.get("name") or "Study report"),
        "kind": "Study report",
        **_judged(metrics, cases, card, patients_known=patients_known),
        "gallery": gallery,
        "gallery_note": gallery_note,
        "training": figures.training_figures(history),
        "timing": _timing(metrics.get("timing") or {}),
        **_data(card.get("data") or {}, metrics, patients_known),
        "notes": [str(note) for note in notes],
        "plan": _plan(plan),
        "limits": words.limits(metrics, patients_known=patients_known, labels=cases.labels),
        **_use(card, provenance),
        "provenance": _provenance(provenance),
    }
    content["sections"] = _sections(content)
    return write_page(Path(folder) / "index.html", "study.html", **content)


def _judged(
    metrics: Mapping[str, Any], cases: Cases, card: Mapping[str, Any], *, patients_known: bool
) -> dict[str, Any]:
    """Everything on the page that comes from the numbers and the table of cases."""
    labels = cases.labels
    points = figures.operating_points(metrics.get("operating_points") or card.get("operating_points"))
    numbers = in_order({str(key): words.interval(data) for key, data in (metrics.get("metrics") or {}).items()})
    per_class = {str(k): in_order(words.numbers_of(v)) for k, v in (metrics.get("per_class") or {}).items()}
    tally = dict(zip(labels.names, (int(n) for n in cases.truth.sum(axis=0)), strict=True))
    forest = figures.forest_figures(numbers)
    # Two classes have one and the same AUROC.
    forest[1:1] = [] if labels.binary else figures.per_class_forest(per_class)
    decision = metrics.get("decision") or {}
    thresholds = decision.get("thresholds") or {}
    used = words.interval(thresholds.get(labels.names[labels.positive])).value if labels.binary else None
    subgroups = metrics.get("subgroups") or {}
    mistaken = None if labels.multilabel or not len(cases) else confusion(cases)
    return {
        "answer": words.answer(metrics, labels, patients_known=patients_known),
        "warnings": words.warnings(metrics, patients_known=patients_known, class_cases=tally),
        "cards": _cards(numbers, labels),
        "numbers_lead": _lead(metrics, numbers, patients_known),
        "forest": forest,
        "operating": operating_grid(points, lettered=labels.binary),
        # Points of one finding share their warning; the finding is named before the last colon.
        "operating_warnings": list(
            dict.fromkeys(f"{p.name.rpartition(': ')[0] or p.name}: {p.warning}" for p in points if p.warning)
        ),
        "decided": words.decision(decision, labels),
        "figures": figures.case_figures(cases, points, threshold=used),
        "calibration": _calibration(metrics.get("calibration") or {}),
        "confusion": confusion_table(mistaken, labels.names)
        if mistaken is not None and len(labels) <= MOST_CLASSES
        else None,
        "mixups": mixups_grid(mistaken, labels.names) if mistaken is not None and len(labels) > MOST_CLASSES else None,
        "per_class": per_class_grid(per_class, tally),
        "subgroups": subgroups_grid(subgroups),
        "not_subgroups": words.excluded_subgroups(subgroups),
    }


def known_labels(metrics: Mapping[str, Any], card: Mapping[str, Any]) -> Labels | None:
    """The classes, where the metrics or the card carry them."""
    data = metrics.get("labels") or card.get("labels")
    if isinstance(data, Labels):
        return data
    return Labels.from_json(data) if isinstance(data, Mapping) else None


def knows_patients(card: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Whether the data say which images belong to the same person."""
    source = (card.get("data") or {}).get("patient_source", metrics.get("patient_source", "column"))
    return str(source or "none") != "none"


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [
        ("numbers", "Key numbers"),
        ("curves", "Curves"),
        ("classes", "Classes"),
        ("subgroups", "Subgroups"),
        ("pictures", "Cases"),
        ("training", "Training"),
        ("data", "Data"),
        ("plan", "Decisions"),
        ("limits", "Limits"),
        ("use", "Use"),
    ]
    absent = {
        "curves": not content["figures"],
        "classes": not (content["confusion"] or content["mixups"] or content["per_class"]),
    }
    return [(anchor, name) for anchor, name in names if not absent.get(anchor)]


def _cards(numbers: Mapping[str, words.Interval], labels: Labels) -> list[dict[str, Any]]:
    out = []
    for key, data in list(numbers.items())[:MOST_CARDS]:
        means = words.MEANINGS.get(key, "")
        if key == "accuracy" and labels.multilabel:
            means = "Share of single findings answered rightly. Compare it with always saying no."
        if means and not labels.binary and len(labels) > 1 and key in words.MEANS_OVER_CLASSES:
            means = f"Mean over the {len(labels)} classes. {means}"
        cell = cell_of(data)
        out.append(
            {
                "name": heading(key),
                "value": cell.value,
                "range": cell.range,
                "known": data.value is not None,
                "means": means,
            }
        )
    return out


def _lead(metrics: Mapping[str, Any], numbers: Mapping[str, words.Interval], patients_known: bool) -> str:
    levels = sorted({data.level for data in numbers.values() if data.low is not None})
    if not levels:
        return "No intervals were computed, so nobody can say how far chance may have moved these numbers."
    level = " and ".join(f"{level * 100:g} %" for level in levels)
    unit = "patients" if patients_known else "cases"
    return (
        f"Under each number: its {level} interval, from drawing {unit} again and again. A repeat of the study on other "
        "cases of the same kind would usually end up inside it."
    )


def _calibration(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was done to the probabilities; bins are already in the chart."""
    out = []
    for key, value in data.items():
        if isinstance(value, Mapping) and {"before", "after"} <= set(value):
            before, after = words.interval(value["before"]), words.interval(value["after"])
            text = (
                f"{words.show(before)} before, {words.show(after)} after"
                if before.value is not None
                else words.show(after)
            )
            out.append((heading(str(key)), text))
        elif words.is_number(value):
            out.append((heading(str(key)), words.show(words.interval(value))))
        elif value is not None and not isinstance(value, (Mapping, list, tuple)):
            text = words.SPLITS.get(str(value), words.as_text(value))
            out.append((heading(str(key)), text))
    return out


def _gallery(cases: Cases, pictures: Mapping[str, bytes]) -> tuple[list[dict[str, Any]], str]:
    """Groups of cases with their pictures inside the page, as many as its size allows."""
    row_of = {str(case): row for row, case in enumerate(cases.table["case_id"])}
    spent = left_out = 0
    out = []
    for group in groups(cases) if len(cases) else []:
        shown = []
        for case_id in group.case_ids:
            said = case_words(cases, row_of[case_id])
            entry = {
                "case_id": case_id,
                "words": said,
                "uri": "",
                "alt": f"{case_id}: {said}",
                "width": 144,
                "height": 0,
            }
            if case_id in pictures:
                uri = data_uri(pictures[case_id])
                if spent + len(uri) <= PICTURE_BUDGET:
                    spent += len(uri)
                    entry["uri"] = uri
                    entry["width"], entry["height"] = png_size(pictures[case_id])
                else:
                    left_out += 1
            shown.append(entry)
        out.append({"title": group.title, "why": group.why, "pictures": shown})
    note = ""
    if not spent:
        note = "No pictures were made; the cases are named instead."
    elif left_out:
        note = f"{words.count(left_out, 'picture')} left out to keep the page small."
    return out, note


def case_words(cases: Cases, row: int) -> str:
    """What the model said about a case, how sure it was, and what is true."""
    names, p = cases.labels.names, cases.probability[row]
    truth, said = cases.truth[row], cases.decided[row]
    if not cases.labels.multilabel:
        true_name = names[int(truth.argmax())]
        named = names[int(said.argmax())]
        number = f"{named} {p[int(said.argmax())]:.2f}"
        return number if bool((truth == said).all()) else f"{number}; in truth {true_name}"
    missed = [f"missed {names[k]} ({p[k]:.2f})" for k in range(len(names)) if truth[k] and not said[k]]
    alarms = [f"false alarm {names[k]} ({p[k]:.2f})" for k in range(len(names)) if said[k] and not truth[k]]
    right = [f"{names[k]} {p[k]:.2f}" for k in range(len(names)) if truth[k] and said[k]]
    return "; ".join([*missed, *alarms, *right][:4]) or f"rightly nothing (highest {p.max():.2f})"


def _timing(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    out = []
    for key, value in data.items():
        number = words.interval(value).value
        if number is None:
            continue
        if key.endswith("_s"):
            out.append((heading(key[:-2]) + " time", show_seconds(number)))
        elif "_ms" in key:
            out.append((heading(key.replace("_ms", "")), f"{number:.3g} ms"))
        else:
            out.append((heading(key), f"{number:.4g}"))
    return out


def _data(data: Mapping[str, Any], metrics: Mapping[str, Any], patients_known: bool) -> dict[str, Any]:
    """The section about the data; `data` is ``card["data"]``."""
    counts = data.get("counts") or {}
    facts = [(name, str(data[key])) for key, name in (("name", "Data"), ("source", "Source")) if data.get(key)]
    facts.append(("Licence", str(data.get("licence") or "unknown; nobody stated it")))
    if "patient_source" in data or not patients_known:
        source = str(data.get("patient_source") or "none")
        facts.append(("Patients known from", PATIENT_SOURCES.get(source, source)))
    if data.get("split_source"):
        facts.append(("Split made by", SPLIT_SOURCES.get(str(data["split_source"]), str(data["split_source"]))))
    if data.get("duplicates") is not None:
        facts.append(("Duplicates", words.as_text(data["duplicates"])))
    facts += words.leakage_facts(metrics.get("leakage") or {})
    problems = [str(problem) for problem in data.get("problems") or ()]
    if len(problems) > MOST_LINES:
        problems = [*problems[:MOST_LINES], f"and {len(problems) - MOST_LINES} more"]
    return {"counts": counts_grid(counts), "data_facts": facts, "problems": problems}


def _plan(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sections of (key, value, reason); decisions that stand alone are gathered under "general"."""
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for name, content in plan.items():
        if isinstance(content, Mapping) and "value" not in content:
            sections.setdefault(str(name), []).extend(_decision(str(k), v) for k, v in content.items())
        else:
            sections.setdefault("general", []).append(_decision(str(name), content))
    return [{"name": name, "rows": rows} for name, rows in sections.items() if rows]


def _decision(key: str, data: Any) -> tuple[str, str, str]:
    if isinstance(data, Mapping) and "value" in data:
        return key, words.as_text(data["value"]), str(data.get("because") or "")
    return key, words.as_text(data), ""


def _use(card: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    bundle = str(card.get("bundle") or "bundle")
    shell, python = use_lines(bundle)
    return {"command": command_line(provenance.get("command")), "use_shell": shell, "use_python": python}


def use_lines(bundle: str) -> tuple[str, str]:
    """How to use the bundle: one line of shell, three lines of Python."""
    shell = f"vesalius predict {shlex.quote(bundle)} NEW_IMAGES --out answers"
    python = f'import vesalius\n\nanswers = vesalius.predict({json.dumps(bundle)}, "NEW_IMAGES", out="answers")'
    return shell, python


def command_line(command: Any) -> str:
    """The command as it would be typed; the folder of the program is of no use to anyone else."""
    if not command:
        return ""
    if isinstance(command, str):
        return command
    first, *rest = [str(part) for part in command]
    return shlex.join([Path(first).name, *rest])


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    out = []
    for key, value in provenance.items():
        if key in ("command", "schema"):
            continue
        if isinstance(value, Mapping):
            text = ", ".join(f"{name} {words.as_text(v)}" for name, v in value.items())
        else:
            text = words.as_text(value)
        out.append((heading(str(key)), text))
    return out
