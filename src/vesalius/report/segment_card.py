"""The model card of a segmentation, in the words and the order of `report.card`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vesalius.core.labels import Labels
from vesalius.report import segment_words, words
from vesalius.report.card import _licences, _load, _origin, _trained_on, _two, plain
from vesalius.report.segment_tables import single_steps
from vesalius.report.study import knows_patients

# A table of more columns is wider than a page of text.
MOST_COLUMNS = 6


def segment_card(
    *,
    metrics: Mapping[str, Any],
    card: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    evidence: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The content of ``card.md``; arguments as `report.card.model_card`.

    `metrics` is the content of ``metrics.json`` of a segmentation, `evidence` the steps of post-processing tried.
    """
    metrics = words.marked(metrics, card)
    labels = segment_words.known_labels(metrics.get("labels") or card.get("labels"))
    known = knows_patients(card, metrics)
    out = [f"# {plain(card.get('name') or 'Model')}", ""]
    out += [plain(segment_words.answer(metrics, labels, patients_known=known)), ""]
    alarms = words.warnings(metrics, patients_known=known)
    if alarms:
        out += [line for head, text in alarms for line in (f"> **{plain(head)}.** {plain(text)}", ">")][:-1]
        out.append("")
    out += _purpose(card, labels)
    out += _trained_on(card.get("data") or {})
    out += _validated(metrics)
    out += _post(evidence)
    limits = segment_words.limits(metrics, patients_known=known, labels=labels)
    out += ["## What may not be concluded", "", *(f"* {plain(line)}" for line in limits), ""]
    out += _licences(card)
    out += _load(card)
    out += _origin(provenance or {}, plan, notes)
    return "\n".join(out).rstrip() + "\n"


def _purpose(card: Mapping[str, Any], labels: Labels | None) -> list[str]:
    what = found = "structures"
    facts = []
    if labels is not None:
        what = found = words.listed(labels.structures)
        if labels.instances:
            found = "single objects" if what == "object" else f"single objects ({what})"
        kind = "One number per object of" if labels.instances else "Values of its masks:"
        values = labels.structures if labels.multilabel else labels.names
        numbered = ", ".join(f"{k} {name}" for k, name in enumerate(values, 1 if labels.multilabel else 0))
        facts.append(f"{kind} {plain(what if labels.instances else numbered)}")
        if labels.multilabel:
            facts.append("Structures may overlap: one mask each.")
    purpose = card.get("purpose") or f"Research: masks of {found} in images like those it was trained on."
    for key, name in (("input", "Input"), ("model", "Architecture"), ("parameters", "Weights")):
        if card.get(key):
            value = words.count(card[key], "number") if key == "parameters" else card[key]
            facts.append(f"{name}: {plain(value)}")
    return ["## What it is for", "", plain(purpose), "", *(f"* {fact}" for fact in facts), ""]


def _validated(metrics: Mapping[str, Any]) -> list[str]:
    patients = metrics.get("patients")
    of = f" of {words.count(patients, 'patient')}" if patients else ""
    split = words.SPLITS.get(str(metrics.get("split") or "test"), str(metrics.get("split")))
    out = ["## How it was validated", "",
           f"On the {plain(split)} part: {words.count(metrics.get('cases') or 0, 'case')}{of}. Intervals come from "
           f"drawing patients again and again. {plain(segment_words.tolerance(metrics))}".rstrip(), ""]  # fmt: skip
    numbers = segment_words.numbers_of(metrics.get("metrics") or {})
    if numbers:
        out += ["| number | value | interval |", "|---|--:|---|"]
        out += [f"| {plain(segment_words.name_of(k))} | {' | '.join(_two(data))} |" for k, data in numbers.items()]
        out.append("")
    per_class = {str(k): segment_words.numbers_of(v) for k, v in (metrics.get("per_class") or {}).items()}
    keys = list(segment_words.in_order({key: data for found in per_class.values() for key, data in found.items()}))
    if len(per_class) > 1 and keys:
        keys = keys[:MOST_COLUMNS]
        out += ["| structure | " + " | ".join(plain(segment_words.name_of(k)) for k in keys) + " |",
                "|---|" + "---|" * len(keys)]  # fmt: skip
        for name, found in per_class.items():
            cells = (plain(words.show(found.get(k, words.Interval(None)))) for k in keys)
            out.append(f"| {plain(name)} | " + " | ".join(cells) + " |")
        out.append("")
    return [*out, *(f"* {plain(line)}" for line in segment_words.empty_rule(metrics)), ""]


def _post(evidence: pd.DataFrame | None) -> list[str]:
    steps = single_steps(evidence)
    if "chosen" not in steps.columns:
        return []
    taken = steps.loc[steps["chosen"].astype(bool)]
    lines = [f"* {plain(row.get('name', ''))} ({plain(row.get('label', ''))}): {plain(row.get('reason', ''))}"
             for _, row in taken.iterrows()]  # fmt: skip
    return ["## Post-processing", "", *(lines or ["* None: nothing that was tried helped by evidence."]), ""]
