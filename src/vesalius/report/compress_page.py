"""The page of a run's lighter models: what each saves, and what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vesalius.report import words
from vesalius.report.figures import Figure
from vesalius.report.page import write_page
from vesalius.report.svg import Drawing, Scale, ticks
from vesalius.report.tables import Cell, Grid

_WIDTH, _HEIGHT = 640.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 24.0, 20.0, 48.0
KINDS = {
    "original": "as trained",
    "int8": "weights and activations in eight bits",
    "pruned": "channels taken out, trained again",
    "student": "a narrower network that imitates the model",
}

RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def write_compress_page(path: str | Path, *, run: str, record: Mapping[str, Any]) -> Path:
    """Write the page of ``variants.json`` (docs/formats.md) and return its path."""
    variants = record["variants"]
    metric = record["metric"]
    name = words.metric_name(metric)
    return write_page(
        path,
        "compress.html",
        title=f"Lighter forms of {run}",
        answer=_answer(variants, metric),
        table=_table(variants, metric),
        differences=[(one["name"], _differences(one)) for one in variants if one.get("comparison")],
        figures=[
            pareto_figure(variants, metric, "latency_ms", "time of one pass, ms", f"{name} against time"),
            pareto_figure(variants, metric, "bytes", "size of the weights, MB", f"{name} against size", scale=1e-6),
        ],
        kinds=[(one["name"], KINDS.get(one["name"], ""), one["bundle"]) for one in variants],
        cases=next((one["comparison"]["cases"] for one in variants if one.get("comparison")), 0),
        patients=next((one["comparison"]["patients"] for one in variants if one.get("comparison")), 0),
        runtime=" and ".join(sorted({RUNTIMES[one["runtime"]] for one in variants})),
        cores=record["cores"],
    )


def _answer(variants: Sequence[Mapping[str, Any]], metric: str) -> str:
    """What the lighter models save and cost, in words."""
    whole = variants[0]
    said = []
    for one in variants[1:]:
        faster, smaller = whole["latency_ms"] / one["latency_ms"], whole["bytes"] / one["bytes"]
        change = one["comparison"]["metrics"][metric]["difference"]
        said.append(
            f"{one['name']}: {faster:.1f} times as fast, {smaller:.1f} times as small, {words.metric_name(metric)} "
            f"{change['value']:+.3f} ({_range(change)})"
        )
    return "; ".join(said) + "." if said else "There is no lighter form yet."


def _range(found: Mapping[str, Any]) -> str:
    if found.get("low") is None or found.get("high") is None:
        return "no interval"
    return f"{found['low']:+.3f} to {found['high']:+.3f}"


def _table(variants: Sequence[Mapping[str, Any]], metric: str) -> Grid:
    head = ("Model", words.metric_name(metric), "Difference", "Learned values", "Weights", "Operations", "One pass",
            "Memory")  # fmt: skip
    rows = []
    for one in variants:
        found = one.get("comparison")
        change = None if found is None else found["metrics"][metric]["difference"]
        batch = f"; {one['batch_ms']:.2f} ms in batches" if one.get("batch_ms") else ""
        rows.append(
            (
                one["name"],
                f"{one['metrics'][metric]:.4f}",
                "" if change is None else Cell(f"{change['value']:+.4f}", _range(change)),
                f"{one['parameters'] / 1e6:.3f} M",
                f"{one['bytes'] / 1e6:.2f} MB",
                f"{one['operations'] / 1e9:.3f} G",
                f"{one['latency_ms']:.2f} ms{batch}",
                f"{one['memory_bytes'] / 1e6:.0f} MB",
            )
        )
    return Grid(head, rows, right=head[3:])


def _differences(one: Mapping[str, Any]) -> Grid:
    """All metrics of one variant beside those of the whole model."""
    head = ("Metric", "As trained", one["name"], "Difference")
    rows = []
    for name, found in one["comparison"]["metrics"].items():
        if found["first"] is None or found["second"] is None:
            continue
        change = found["difference"]
        rows.append(
            (words.metric_name(name), f"{found['first']:.4f}", f"{found['second']:.4f}",
             Cell(f"{change['value']:+.4f}", _range(change)))
        )  # fmt: skip
    return Grid(head, rows, right=head[1:3])


def best_of(variants: Sequence[Mapping[str, Any]], metric: str, cost: str) -> list[int]:
    """Places of the variants that no other one beats in both metric and cost (Pareto), cheapest first."""
    order = sorted(range(len(variants)), key=lambda k: (variants[k][cost], -variants[k]["metrics"][metric]))
    found: list[int] = []
    highest = float("-inf")
    for place in order:
        value = variants[place]["metrics"][metric]
        if value > highest:
            found.append(place)
            highest = value
    return found


def pareto_figure(
    variants: Sequence[Mapping[str, Any]], metric: str, cost: str, cost_name: str, title: str, *, scale: float = 1.0
) -> Figure:
    """A metric against a cost, one mark a variant; the line joins those that no other one beats in both."""
    name = words.metric_name(metric)
    x, y = _scales(variants, metric, cost, scale)
    front = best_of(variants, metric, cost)
    listed = words.listed([str(variants[place]["name"]) for place in front])
    drawing = Drawing(_WIDTH, _HEIGHT, f"{name} against {cost_name}; not beaten by another: {listed}", "pareto")
    drawing.axes(x, y, x_name=cost_name, y_name=name, x_ticks=ticks(x.low, x.high, about=6))
    points = [(x(one[cost] * scale), y(one["metrics"][metric])) for one in variants]
    if len(front) > 1:
        drawing.curve([points[place] for place in front], "curve s0", dash="4 4")
    for place, (one, (a, b)) in enumerate(zip(variants, points, strict=True)):
        words_of = f"{one['name']}: {name} {one['metrics'][metric]:.4f}, {one[cost] * scale:.3g} ({cost_name})"
        if place in front:
            drawing.dot(a, b, "operating", radius=6, tip=words_of)
        else:
            drawing.diamond(a, b, "operating", tip=words_of)
        right = a > _WIDTH - 110
        drawing.text(a + (-10 if right else 10), b + 4, one["name"], kind="name", anchor="end" if right else "start")
    caption = "Dots are not beaten by another model in both; diamonds are."
    return Figure(title, drawing.markup(), caption)


def _scales(variants: Sequence[Mapping[str, Any]], metric: str, cost: str, scale: float) -> tuple[Scale, Scale]:
    most = max(one[cost] for one in variants) * scale
    values = [one["metrics"][metric] for one in variants]
    room = max(0.004, 0.25 * (max(values) - min(values)))
    return (
        Scale(0.0, most * 1.1, _LEFT, _WIDTH - _RIGHT),
        Scale(min(values) - room, max(values) + room, _HEIGHT - _BOTTOM, _TOP),
    )
