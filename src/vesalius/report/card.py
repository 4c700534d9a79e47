"""The model card that travels inside a bundle: what the model is for, what it was tested on, where it must not be used.

The sections follow Mitchell et al., "Model cards for model reporting" (FAT* 2019), in the words of a clinic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vesalius.core.labels import Labels
from vesalius.report import words
from vesalius.report.figures import operating_points
from vesalius.report.study import PATIENT_SOURCES, known_labels, knows_patients, use_lines

# Words that start a block or a link of Markdown, or a tag of HTML.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def model_card(
    *,
    metrics: Mapping[str, Any],
    card: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The content of ``card.md``.

    Parameters
    ----------
    metrics
        The content of ``metrics.json``.
    card
        What is known beyond the numbers; every key may be absent: ``name``; ``purpose``; ``labels``
        (`Labels.to_json`); ``model`` (its architecture) and ``parameters`` (their number); ``input`` (a line on the
        images it takes); ``bundle`` (folder, for the lines that load it); ``licence`` of the weights;
        ``operating_points``; ``leakage_allowed``; ``data`` with ``name``, ``source``, ``licence``, ``counts``
        (`data.Manifest.counts`), ``patient_source``, ``split_source``, ``published`` (a benchmark that its user cannot
        correct), ``duplicates``, ``problems``, ``covariates`` ``{column: text or {value: cases}}``.
    provenance
        The content of ``provenance.json``.
    plan
        ``{section: {key: {"value", "because"}}}``; decisions about the input are quoted.
    notes
        Lines that the run left behind.
    """
    provenance = provenance or {}
    metrics = words.marked(metrics, card)
    labels = known_labels(metrics, card)
    patients_known = knows_patients(card, metrics)
    out = [f"# {plain(card.get('name') or 'Model')}", ""]
    out += [plain(words.answer(metrics, labels, patients_known=patients_known)), ""]
    alarms = words.warnings(metrics, patients_known=patients_known, class_cases=_class_cases(metrics))
    if alarms:
        out += [line for head, text in alarms for line in (f"> **{plain(head)}.** {plain(text)}", ">")][:-1]
        out.append("")
    out += _purpose(card, labels)
    out += _trained_on(card.get("data") or {})
    out += _validated(metrics)
    out += _operating(metrics, card, labels)
    out += _calibration(metrics)
    out += _limits(metrics, card, labels, patients_known=patients_known)
    out += _licences(card)
    out += _load(card)
    out += _origin(provenance, plan, notes)
    return "\n".join(out).rstrip() + "\n"


def plain(text: Any) -> str:
    """Text from data, without the power to become a heading, a table cell, a link or a tag."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _class_cases(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Test cases of each class, where the metrics say so."""
    sizes = metrics.get("classes") or {}
    return {str(k): int(v["cases"]) for k, v in sizes.items() if isinstance(v, Mapping) and v.get("cases") is not None}


def _purpose(card: Mapping[str, Any], labels: Labels | None) -> list[str]:
    out = ["## What it is for", "", plain(card.get("purpose") or _default_purpose(labels)), ""]
    facts = []
    if labels is not None:
        facts.append(f"Classes, in the order of its outputs: {plain(', '.join(labels.names))}")
        if labels.binary:
            facts.append(f"The question it answers with yes: {plain(labels.names[labels.positive])}")
        if labels.multilabel:
            facts.append("Several classes may hold at once.")
    for key, name in (("input", "Input"), ("model", "Architecture"), ("parameters", "Weights")):
        if card.get(key):
            value = words.count(card[key], "number") if key == "parameters" else card[key]
            facts.append(f"{name}: {plain(value)}")
    return [*out, *(f"* {fact}" for fact in facts), ""]


def _default_purpose(labels: Labels | None) -> str:
    if labels is None:
        return "Research on medical images."
    what = " or ".join(labels.names) if labels.binary else words.listed(labels.names)
    return f"Research: a probability for each of {what}, from an image like those it was trained on."


def _trained_on(data: Mapping[str, Any]) -> list[str]:
    out = ["## What it was trained on", ""]
    facts = [f"{name}: {plain(data[key])}" for key, name in (("name", "Data"), ("source", "Source")) if data.get(key)]
    counts = data.get("counts") or {}
    if counts.get("cases"):
        people = f" of {words.count(counts['patients'], 'patient')}" if counts.get("patients") else ""
        facts.append(f"All parts together: {words.count(counts['cases'], 'case')}{people}")
    for split, number in (counts.get("splits") or {}).items():
        number_of_people = (counts.get("split_patients") or {}).get(split)
        of = f" of {words.count(number_of_people, 'patient')}" if number_of_people else ""
        facts.append(f"For {words.SPLITS.get(split, split)}: {words.count(number, 'case')}{of}")
    known_from = str(data.get("patient_source") or "")
    if known_from:
        facts.append(f"Patients are known from {plain(PATIENT_SOURCES.get(known_from, known_from))}")
    for column, content in (data.get("covariates") or {}).items():
        parts = [f"{k} {v}" for k, v in content.items()] if isinstance(content, Mapping) else [str(content)]
        facts.append(f"{plain(column)}: {plain(', '.join(parts))}")
    if not data.get("covariates"):
        facts.append("Age, sex, site and scanner of the patients: not known")
    out += [f"* {fact}" for fact in facts]
    by_split = counts.get("split_classes") or {}
    if by_split:
        splits = list(by_split)
        out += [
            "",
            "| class | " + " | ".join(plain(words.SPLITS.get(s, s)) for s in splits) + " |",
            "|---|" + "--:|" * len(splits),
        ]
        for name in dict.fromkeys(c for per in by_split.values() for c in per):
            out.append(f"| {plain(name)} | " + " | ".join(str(by_split[s].get(name, "")) for s in splits) + " |")
    return [*out, ""]


def _validated(metrics: Mapping[str, Any]) -> list[str]:
    cases, patients = metrics.get("cases", 0), metrics.get("patients")
    of = f" of {words.count(patients, 'patient')}" if patients else ""
    split = words.SPLITS.get(str(metrics.get("split") or "test"), str(metrics.get("split")))
    out = [
        "## How it was validated",
        "",
        f"On the {plain(split)} part: {words.count(cases, 'case')}{of}. Intervals come "
        "from drawing patients again and again.",
        "",
    ]
    numbers = words.numbers_of(metrics.get("metrics") or {})
    if numbers:
        out += ["| number | value | interval |", "|---|--:|---|"]
        out += [f"| {plain(words.metric_name(key))} | {' | '.join(_two(data))} |" for key, data in numbers.items()]
        out.append("")
    per_class = {str(k): words.numbers_of(v) for k, v in (metrics.get("per_class") or {}).items()}
    keys = list(dict.fromkeys(key for data in per_class.values() for key in data))
    if per_class and keys:
        out += [
            "| class | " + " | ".join(plain(words.metric_name(k)) for k in keys) + " |",
            "|---|" + "---|" * len(keys),
        ]
        for name, data in per_class.items():
            cells = (plain(words.show(data.get(k, words.Interval(None)))) for k in keys)
            out.append(f"| {plain(name)} | " + " | ".join(cells) + " |")
        out.append("")
    return [*out, *_subgroups(metrics.get("subgroups") or {})]


def _two(data: words.Interval) -> tuple[str, str]:
    """Value and interval as two cells."""
    if data.value is None:
        return plain(words.show(data)), "none"
    digits = words.decimals(data)
    value = f"{data.value:.{digits}f} {words.unit_name(data.unit)}".strip()
    if data.low is None or data.high is None:
        return value, "none"
    return value, f"{data.low:.{digits}f} to {data.high:.{digits}f} ({data.level * 100:g} %)"


def _subgroups(subgroups: Mapping[str, Any]) -> list[str]:
    found = words.flat_subgroups(subgroups)
    if not found:
        return []
    out = ["Subgroups:", ""]
    for covariate, group, content in found:
        numbers = {k: v for k, v in words.numbers_of(content).items() if v.value is not None}
        key = words.main_metric({k: v.value for k, v in numbers.items()})
        said = f"{words.metric_name(key)} {words.show(numbers[key])}" if key else ""
        said = said or str(content.get("why") or content.get("note") or "not enough cases")
        cases = f" ({words.count(content['cases'], 'case')})" if content.get("cases") is not None else ""
        out.append(f"* {plain(covariate)} {plain(group)}{cases}: {plain(said)}")
    return [*out, ""]


def _operating(metrics: Mapping[str, Any], card: Mapping[str, Any], labels: Labels | None) -> list[str]:
    points = operating_points(metrics.get("operating_points") or card.get("operating_points"))
    said = words.decision(metrics.get("decision") or {}, labels) if labels is not None else ""
    if not points and not said:
        return []
    out = ["## Operating points", "", *([plain(said), ""] if said else [])]
    for point in points:
        numbers = ", ".join(f"{words.metric_name(k)} {words.show(v)}" for k, v in point.numbers.items())
        at = "no threshold" if point.threshold is None else f"threshold {point.threshold:.4g}"
        warning = f" Warning: {point.warning}." if point.warning else ""
        out.append(f"* {plain(point.name)}: {at}: {plain(numbers)}.{plain(warning) and ' ' + plain(warning)}")
    return [*out, ""]


def _calibration(metrics: Mapping[str, Any]) -> list[str]:
    found = metrics.get("calibration") or {}
    facts = [
        f"{words.metric_name(str(k))}: {words.as_text(v)}"
        for k, v in found.items()
        if isinstance(v, (str, int, float)) and not isinstance(v, bool)
    ]
    error = words.interval((metrics.get("metrics") or {}).get("ece"))
    if error.value is not None:
        facts.append(f"calibration error on these cases: {words.show(error)}")
    if not facts:
        return ["## Calibration", "", "Nothing is known about how far its probabilities can be believed.", ""]
    return ["## Calibration", "", *(f"* {plain(fact)}" for fact in facts), ""]


def _limits(
    metrics: Mapping[str, Any], card: Mapping[str, Any], labels: Labels | None, *, patients_known: bool
) -> list[str]:
    found = words.limits(metrics, patients_known=patients_known, labels=labels)
    data = card.get("data") or {}
    if data.get("published"):
        found.append(
            "The data are a published benchmark: its images were often shrunk, cropped and relabelled, and "
            "numbers on it say little about pictures as they come from a scanner."
        )
    return ["## What may not be concluded", "", *(f"* {plain(line)}" for line in found), ""]


def _licences(card: Mapping[str, Any]) -> list[str]:
    of_data = (card.get("data") or {}).get("licence") or "unknown; ask the owner before you share the model"
    out = ["## Licences", "", f"* Data: {plain(of_data)}"]
    out.append(f"* Weights: {plain(card.get('licence') or 'not stated; they may inherit limits from the data')}")
    return [*out, ""]


def _load(card: Mapping[str, Any]) -> list[str]:
    shell, python = use_lines(str(card.get("bundle") or "bundle"))
    return [
        "## How to use it",
        "",
        "```python",
        *[line for line in python.splitlines() if line],
        "```",
        "",
        "```sh",
        shell,
        "```",
        "",
    ]


def _origin(provenance: Mapping[str, Any], plan: Mapping[str, Any] | None, notes: Sequence[str]) -> list[str]:
    facts = [
        f"{name}: {plain(words.as_text(provenance[key]))}"
        for key, name in (("created", "Made"), ("seed", "Seed"), ("data_hash", "Hash of the data"))
        if provenance.get(key) is not None
    ]
    version = (provenance.get("versions") or {}).get("vesalius")
    if version:
        facts.append(f"Vesalius {plain(version)}")
    if plan:
        facts.append("Every decision with its reason: `plan.yaml` in this folder")
    facts += [plain(note) for note in notes]
    return ["## Where it came from", "", *(f"* {fact}" for fact in facts), ""] if facts else []
