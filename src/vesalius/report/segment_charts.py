"""Charts of a segmentation: spread of the scores by structure, and agreement of volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vesalius.measure.calibration import Reliability
from vesalius.report import words
from vesalius.report.cases import Floats
from vesalius.report.charts import reliability_chart
from vesalius.report.figures import Figure
from vesalius.report.measure_charts import spread_chart
from vesalius.report.segment_words import name_of
from vesalius.report.svg import Drawing, Scale, short

WIDTH, HEIGHT = 380.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 46.0
# More structures than this make a chart longer than a screen; the weakest are drawn.
MOST_STRUCTURES = 24
# Charts of volumes: so many structures, the ones whose volume is most wrong.
MOST_VOLUMES = 4
FEWEST_CASES = 3
# Of a normal distribution, 95 % lie within so many standard deviations (Bland and Altman, Lancet 1986).
Z = 1.96


def spread_figures(table: pd.DataFrame, structures: Sequence[str]) -> list[Figure]:
    """Dice, surface Dice and HD95 of every case, by structure; for single objects their own scores first."""
    out = []
    for metric in ("pq", "ap50", "dice", "nsd", "hd95_mm", "hd95_px"):
        if metric not in table.columns or not np.isfinite(table[metric].to_numpy(dtype=np.float64)).any():
            continue
        groups = {name: _values(table, name, metric) for name in structures}
        groups = {name: values for name, values in groups.items() if values.size}
        shown = _weakest(groups, metric)
        endless = sum(int(np.isinf(values).sum()) for values in groups.values())
        left = len(groups) - len(shown)
        said = ", ".join(f"{name} {np.median(values):.2f}" for name, values in list(shown.items())[:8])
        unit = metric.rpartition("_")[2] if metric.startswith("hd95") else ""
        title = f"{name_of(metric)}{f' ({unit})' if unit else ''}"
        chart = spread_chart(shown, x_name=title, label=f"{title} by structure; medians: {said}")
        caption = "One row per structure: its cases above, quartiles, median and range below."
        caption += f" {words.count(endless, 'case')} at infinity (one mask empty) not drawn." if endless else ""
        caption += f" The {len(shown)} weakest of {len(groups)} structures." if left else ""
        out.append(Figure(title, chart, caption))
    return out


def _values(table: pd.DataFrame, name: str, metric: str) -> Floats:
    values = table.loc[table["label"] == name, metric].to_numpy(dtype=np.float64)
    return np.asarray(values[~np.isnan(values)])


def _weakest(groups: Mapping[str, Floats], metric: str) -> dict[str, Floats]:
    if len(groups) <= MOST_STRUCTURES:
        return dict(groups)
    way = -1 if metric.startswith("hd95") else 1
    kept = sorted(groups, key=lambda name: way * float(np.median(groups[name])))[:MOST_STRUCTURES]
    return {name: values for name, values in groups.items() if name in kept}


def volume_figures(table: pd.DataFrame, structures: Sequence[str]) -> list[Figure]:
    """Model against reference, and their difference against their mean (Bland and Altman), by structure."""
    kinds = [("volume", unit) for unit in ("ml", "px")] + [("area", unit) for unit in ("mm2", "px")]
    out: list[Figure] = []
    for kind, unit in kinds:
        names = (f"{kind}_true_{unit}", f"{kind}_pred_{unit}")
        if not set(names) <= set(table.columns):
            continue
        found = {}
        for name in structures:
            part = table.loc[(table["label"] == name) & (table["outcome"] != "absent"), ["case_id", *names]].dropna()
            if len(part) >= FEWEST_CASES:
                found[name] = part
        for name in _most_wrong(found, names):
            part = found[name]
            true, said = (part[column].to_numpy(dtype=np.float64) for column in names)
            cases = part["case_id"].astype(str).tolist()
            out += [scatter_figure(name, true, said, cases, kind, _shown(unit)),
                    bland_altman_figure(name, true, said, cases, kind, _shown(unit))]  # fmt: skip
    return out


def _shown(unit: str) -> str:
    return {"mm2": "mm²", "px": "voxels"}.get(unit, unit)


def _most_wrong(found: Mapping[str, pd.DataFrame], names: tuple[str, str]) -> list[str]:
    def error(name: str) -> float:
        true, said = (found[name][column].to_numpy(dtype=np.float64) for column in names)
        return -float(np.abs(said - true).sum() / max(true.sum(), 1e-12))

    return sorted(found, key=error)[:MOST_VOLUMES]


def scatter_figure(name: str, true: Floats, said: Floats, cases: Sequence[str], kind: str, unit: str) -> Figure:
    """Volumes of the model against those of the reference; on the line they are equal."""
    top = float(max(true.max(), said.max())) * 1.05 or 1.0
    label = f"{kind.capitalize()} of {name}, model against reference, of {len(true)} cases"
    drawing = Drawing(WIDTH, HEIGHT, label, "scatter")
    x, y = Scale(0, top, LEFT, WIDTH - RIGHT), Scale(0, top, HEIGHT - BOTTOM, TOP)
    drawing.axes(x, y, x_name=f"reference ({unit})", y_name=f"model ({unit})")
    drawing.line(x(0), y(0), x(top), y(top), "chance")
    for a, b, case in zip(true.tolist(), said.tolist(), cases, strict=True):
        drawing.dot(x(a), y(b), "dot s0 pale", radius=3.2, tip=f"{case}: {short(a)} and {short(b)} {unit}")
    return Figure(f"{name}: {kind}", drawing.markup(), "On the dashed line model and reference agree.")


def bland_altman_figure(name: str, true: Floats, said: Floats, cases: Sequence[str], kind: str, unit: str) -> Figure:
    """Difference against mean with the bias and the 95 % limits of agreement (Bland and Altman, Lancet 1986)."""
    mean, gap = (true + said) / 2, said - true
    bias, low, high = agreement_limits(gap)
    edge = max(float(np.abs(gap).max()), abs(low), abs(high)) * 1.12 or 1.0
    label = f"Bland-Altman plot of {name}: bias {short(bias)} {unit}, limits {short(low)} to {short(high)} {unit}"
    drawing = Drawing(WIDTH, HEIGHT, label, "bland-altman")
    x = Scale(0, float(mean.max()) * 1.05 or 1.0, LEFT, WIDTH - RIGHT)
    y = Scale(-edge, edge, HEIGHT - BOTTOM, TOP)
    drawing.axes(x, y, x_name=f"mean of both ({unit})", y_name=f"model − reference ({unit})")
    drawing.line(x.start, y(0), x.stop, y(0), "chance")
    for value, line in ((bias, "median"), (low, "threshold"), (high, "threshold")):
        drawing.line(x.start, y(value), x.stop, y(value), line)
    for a, b, case in zip(mean.tolist(), gap.tolist(), cases, strict=True):
        drawing.dot(x(a), y(b), "dot s0 pale", radius=3.2, tip=f"{case}: {short(b)} {unit}")
    caption = (
        f"Bias {_signed(bias)} {unit} (full line); 95 % of differences between {_signed(low)} and {_signed(high)} "
        f"{unit} (dashed), if they are normal. Of {len(gap)} cases."
    )
    return Figure(f"{name}: difference of {kind}s", drawing.markup(), caption)


def agreement_limits(gap: Floats) -> tuple[float, float, float]:
    """Mean difference and the 95 % limits of agreement, mean plus and minus 1.96 sample standard deviations."""
    bias = float(gap.mean())
    spread = Z * float(gap.std(ddof=1)) if len(gap) > 1 else 0.0
    return bias, bias - spread, bias + spread


def _signed(value: float) -> str:
    return short(value).replace("-", "−")


def calibration_figure(calibration: Mapping[str, Any]) -> Figure | None:
    """Reliability of the voxel probabilities, from the bins of ``metrics.json``."""
    bins = [one for one in calibration.get("reliability") or [] if int(one.get("cases") or 0) > 0]
    if not bins:
        return None

    def column(key: str) -> Floats:
        return np.array([np.nan if one.get(key) is None else float(one[key]) for one in bins])

    edges = np.append(column("from"), column("to")[-1])
    curve = Reliability(edges, column("cases"), column("confidence"), column("share"), column("low"), column("high"))
    worst = float(np.nanmax(np.abs(curve.confidence - curve.share)))
    chart = reliability_chart(
        curve, x_name="stated probability", y_name="share of voxels in which it came true",
        label=f"Reliability of voxel probabilities; largest gap {worst:.2f}",
    )  # fmt: skip
    return Figure("Can the probabilities be believed?", chart, "On the dashed line they are right. Below: voxels.")
