"""The report of a segmentation: one page, the answer at the top, every case and every decision further down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vesalius.core.labels import Labels
from vesalius.core.quantity import show_seconds
from vesalius.evaluate.segment_ranking import case_scores
from vesalius.report import figures, segment_words, words
from vesalius.report.charts import ForestRow, forest_chart
from vesalius.report.figures import Figure
from vesalius.report.page import write_page
from vesalius.report.pictures import data_uri, png_size
from vesalius.report.segment_charts import calibration_figure, spread_figures, volume_figures
from vesalius.report.segment_pictures import cases_worth_a_picture
from vesalius.report.segment_tables import (
    band_grid,
    cases_grid,
    evidence_grid,
    outcomes_grid,
    single_steps,
    structures_grid,
    subgroups_grid,
)
from vesalius.report.study import (
    PICTURE_BUDGET,
    _calibration,
    _data,
    _plan,
    _provenance,
    _use,
    knows_patients,
)
from vesalius.report.tables import cell_of, heading

MOST_CARDS = 8
MOST_FOREST = 40
MOST_CASES = 3000


def write_segment_report(
    folder: str | Path,
    *,
    metrics: Mapping[str, Any],
    table: pd.DataFrame,
    plan: Mapping[str, Any],
    provenance: Mapping[str, Any],
    history: pd.DataFrame | None = None,
    card: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    evidence: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write ``index.html`` into `folder` and return its path.

    Parameters
    ----------
    metrics
        The content of ``metrics.json`` (`SegmentStudy.to_json`).
    table
        The judged rows, case by structure (`evaluate.segment_table`).
    plan, provenance
        ``{section: {key: {"value", "because"}}}`` and the content of ``provenance.json``.
    history
        ``step, epoch, train_loss, val_dice, lr...``; None where nothing was trained.
    card
        As for `report.card.model_card`.
    pictures
        PNG by case id, of `segment_pictures.case_picture`; `cases_worth_a_picture` says which ones are shown.
    evidence
        One row per step of post-processing that was tried: ``name, label, cases, before, after, difference, low, high,
        chosen, reason``.
    notes, title
        Lines that the run left behind; heading of the page.
    """
    card = card or {}
    metrics = words.marked(metrics, card)
    labels = segment_words.known_labels(metrics.get("labels") or card.get("labels"))
    patients_known = knows_patients(card, metrics)
    gallery, gallery_note = _gallery(table, pictures or {})
    content = {
        "title": title or str(card.get("name") or "Segmentation report"),
        "kind": "Segmentation report",
        **_judged(metrics, table, labels, patients_known=patients_known),
        "gallery": gallery,
        "gallery_note": gallery_note,
        "evidence": evidence_grid(evidence),
        "evidence_lead": _evidence_lead(evidence),
        "training": figures.training_figures(_over_members(history)),
        "timing": _timing(metrics.get("timing") or {}),
        **_data(card.get("data") or {}, metrics, patients_known),
        "notes": [str(note) for note in notes],
        "plan": _plan(plan),
        "limits": segment_words.limits(metrics, patients_known=patients_known, labels=labels),
        **_use(card, provenance),
        "provenance": _provenance(provenance),
    }
    content["sections"] = _sections(content)
    return write_page(Path(folder) / "index.html", "segment.html", **content)


def _over_members(history: pd.DataFrame | None) -> pd.DataFrame | None:
    """The curves of an ensemble as the mean of its members at each step; the number of a member is no curve."""
    if history is None or "member" not in history or "step" not in history:
        return history
    return history.drop(columns="member").groupby("step", as_index=False).mean(numeric_only=True)


def _judged(
    metrics: Mapping[str, Any], table: pd.DataFrame, labels: Labels | None, *, patients_known: bool
) -> dict[str, Any]:
    """Everything on the page that comes from the numbers and the table of cases."""
    structures = list(labels.structures if labels is not None else dict.fromkeys(table["label"]))
    numbers = segment_words.numbers_of(metrics.get("metrics") or {})
    sizes = metrics.get("classes") or {}
    tally = {str(name): int(found["cases"]) for name, found in sizes.items() if found.get("cases") is not None}
    calibration = dict(metrics.get("calibration") or {})
    # The same numbers with their intervals, where they are known.
    calibration["ece"] = calibration.pop("ece_interval", None) or calibration.get("ece")
    measured = (calibration.get("ece") or {}).get("after") is not None or calibration.get("temperature") is not None
    curve = calibration_figure(calibration)
    band = metrics.get("band") or {}
    return {
        "answer": segment_words.answer(metrics, labels, patients_known=patients_known),
        "warnings": _warnings(metrics, tally, patients_known=patients_known),
        "cards": _cards(numbers),
        "numbers_lead": segment_words.lead(metrics, patients_known=patients_known, structures=len(structures)),
        "tolerance": segment_words.tolerance(metrics),
        "empty_rule": segment_words.empty_rule(metrics),
        "forest": _forest(metrics, structures),
        "structures": structures_grid(metrics, labels),
        "outcomes": outcomes_grid(metrics.get("empty") or {}),
        "spread": spread_figures(table, structures),
        "volumes": volume_figures(table, structures),
        "subgroups": subgroups_grid(metrics.get("subgroups") or {}),
        "not_subgroups": words.excluded_subgroups(metrics.get("subgroups") or {}),
        "cases": cases_grid(_first(table), labels),
        "cases_note": _left_out(table),
        "calibration": _calibration(calibration) if measured or curve is not None else [],
        "reliability": curve,
        "band": band_grid(band),
        "band_lead": _band_lead(band),
    }


def _warnings(metrics: Mapping[str, Any], tally: Mapping[str, int], *, patients_known: bool) -> list[tuple[str, str]]:
    """What makes the numbers weaker than they look; on segmentations a class is called a structure."""
    found = words.warnings(metrics, patients_known=patients_known, class_cases=tally)
    return [(head.replace("classes", "structures"), text.replace("classes", "structures")) for head, text in found]


def _cards(numbers: Mapping[str, words.Interval]) -> list[dict[str, Any]]:
    out = []
    shown = [key for key in numbers if key in segment_words.FIRST][:MOST_CARDS]
    for key in shown:
        cell = cell_of(numbers[key])
        out.append({"name": segment_words.name_of(key), "value": cell.value, "range": cell.range,
                    "known": numbers[key].value is not None, "means": segment_words.meaning_of(key)})  # fmt: skip
    return out


def _forest(metrics: Mapping[str, Any], structures: Sequence[str]) -> list[Figure]:
    """Dice (panoptic quality for objects) and HD95, structure by structure; not for a single one."""
    per_class = {str(k): segment_words.numbers_of(v) for k, v in (metrics.get("per_class") or {}).items()}
    shown = [name for name in structures if name in per_class][:MOST_FOREST]
    out = []
    for key in ("dice", "nsd", "hd95_mm", "hd95_px"):
        rows = [ForestRow(name, per_class[name].get(key, words.Interval(None))) for name in shown]
        if len(rows) < 2 or not any(row.interval.value is not None for row in rows):
            continue
        title = f"{segment_words.name_of(key)} of each structure"
        said = "; ".join(f"{row.name} {words.show(row.interval)}" for row in rows[:10])
        # Distances start at zero; overlaps end at one.
        ends = [v for row in rows for v in row.interval.ends() if v is not None]
        chart = forest_chart(rows, label=f"{title}: {said}", low=0.0 if key.startswith("hd95") else None,
                             high=max(ends) * 1.1 if key.startswith("hd95") else None)  # fmt: skip
        out.append(Figure(title, chart))
    return out


def _first(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the worst cases, as many as a page can hold."""
    if table["case_id"].nunique() <= MOST_CASES:
        return table
    kept = case_scores(table)["case_id"].head(MOST_CASES)
    return table.loc[table["case_id"].isin(kept)]


def _left_out(table: pd.DataFrame) -> str:
    count = int(table["case_id"].nunique())
    if count <= MOST_CASES:
        return "Worst first. The numbers of every structure are in cases.parquet."
    return f"The worst {MOST_CASES} of {count} cases; all are in cases.parquet."


def _gallery(table: pd.DataFrame, pictures: Mapping[str, bytes]) -> tuple[list[dict[str, Any]], str]:
    """Cases with their pictures inside the page, as many as its size allows."""
    spent = left_out = 0
    out = []
    for case_id, why in cases_worth_a_picture(table):
        entry = {"case_id": case_id, "words": why, "uri": "", "alt": f"{case_id}: {why}", "width": 144, "height": 0}
        if case_id in pictures:
            uri = data_uri(pictures[case_id])
            if spent + len(uri) <= PICTURE_BUDGET:
                spent += len(uri)
                entry["uri"] = uri
                entry["width"], entry["height"] = png_size(pictures[case_id])
            else:
                left_out += 1
        out.append(entry)
    if not spent:
        return out, "No pictures were made; the cases are named instead."
    return out, f"{words.count(left_out, 'picture')} left out to keep the page small." if left_out else ""


def _timing(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Measured times in units that a person counts in: a volume takes seconds, not thousands of milliseconds."""
    out = []
    for key, value in data.items():
        number = words.interval(value).value
        if number is None:
            continue
        if "_ms" in key:
            shown = f"{number:.3g} ms" if number < 1000 else show_seconds(number / 1000)
            out.append((heading(key.replace("_ms", "")), shown))
        elif key.endswith("_s"):
            out.append((heading(key.removesuffix("_s")) + " time", show_seconds(number)))
        else:
            out.append((heading(key), f"{number:.4g}"))
    return out


def _evidence_lead(evidence: pd.DataFrame | None) -> str:
    steps = single_steps(evidence)
    if steps.empty:
        return "No post-processing was tried; masks are what the network says."
    taken = int(steps["chosen"].astype(bool).sum()) if "chosen" in steps.columns else 0
    what = f"{words.count(taken, 'step')} taken" if taken else "None was taken"
    return (
        f"{words.count(len(steps), 'step')} tried on held-out cases of training. {what}. A step is taken only where "
        "it helps by evidence, since it can also delete what is there."
    )


def _band_lead(band: Mapping[str, Any]) -> str:
    if not band:
        return ""
    level = words.interval(band.get("level")).value
    share = f"{level * 100:g} %" if level is not None else "the stated part"
    return f"Between these distances inside and outside the mask lies {share} of the true border of a new case."


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    every = (
        ("numbers", "Key numbers", True),
        ("structures", "Structures", content["structures"]),
        ("spread", "Case by case", content["spread"]),
        ("volumes", "Volumes", content["volumes"]),
        ("pictures", "Pictures", True),
        ("cases", "All cases", content["cases"]),
        ("subgroups", "Subgroups", True),
        ("trust", "Uncertainty", content["reliability"] or content["calibration"] or content["band"]),
        ("post", "Post-processing", True),
        ("training", "Training", True),
        ("data", "Data", True),
        ("plan", "Decisions", True),
        ("limits", "Limits", True),
        ("use", "Use", True),
    )
    return [(anchor, name) for anchor, name, there in every if there]
