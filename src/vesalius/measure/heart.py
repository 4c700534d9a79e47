"""The heart in numbers: volumes, ejection fraction and mass of the left ventricle, and its width on a chest film.

Three ways to a volume, after Lang et al., JASE 2015, 28:1 (American and European guideline for chamber
quantification) and Schulz-Menger et al., JCMR 2020, 22:19 (cardiac magnetic resonance):

* **Short axis**: areas of the slices times their distance (disc summation), from a stack of label maps.
* **Discs**: the modified Simpson rule for apical views. The long axis runs from the middle of the base to the apex;
  20 discs of equal height stand on it. One view takes them as circles, two views (four and two chambers) as ellipses
  on the longer of the two axes.
* **Area and length**: 8 A^2 / (3 pi L), from one view.

Volumes are in ml where there is a spacing and in voxels (cubed pixels) where there is none. A mask without a voxel of
the ventricle has no volume: NaN, not 0, since an ejection fraction of 100 % from an empty mask would be an invention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.measure.arguments import checked_spacing
from vesalius.measure.boxes import checked_labels
from vesalius.measure.compiled import in_threads
from vesalius.measure.long_axis import DISCS, LongAxis, Point, long_axis
from vesalius.measure.quantities import Quantity
from vesalius.measure.weights import FloatArray, ratio

# Density of myocardium, g/ml (Lang et al. 2015).
DENSITY = 1.05

_ASE = "Lang et al., JASE 2015, 28:1"
_CMR = "Schulz-Menger et al., JCMR 2020, 22:19"

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("end_diastolic_volume", "ml", "Volume of the left ventricle when it is full. NaN without a mask.", _ASE),
    Quantity("end_systolic_volume", "ml", "Volume of the left ventricle when it is emptied. NaN without a mask.", _ASE),
    Quantity("stroke_volume", "ml", "What one beat moves: end-diastolic minus end-systolic volume.", _ASE),
    Quantity("ejection_fraction", "percent", "Stroke volume in percent of the end-diastolic volume.", _ASE),
    Quantity("myocardial_mass", "g", "Volume of the muscle at the end of diastole times 1.05 g/ml.", _CMR),
    Quantity("heart_rate", "1/min", "Beats per minute, given, or from the period of the volume curve of a clip."),
    Quantity("cardiac_output", "l/min", "Stroke volume times heart rate.", _CMR),
    Quantity("long_axis_diastole", "mm", "Base to apex at the end of diastole, the longer of two views.", _ASE),
    Quantity("long_axis_systole", "mm", "Base to apex at the end of systole, the longer of two views.", _ASE),
    Quantity(
        "long_axis_difference",
        "percent",
        "By how much the long axes of the two views differ at the end of diastole, in percent of the longer: above 10 "
        "% one view is foreshortened. NaN with one view.",
        _ASE,
    ),
    Quantity("frame_diastole", "1", "Number of the frame (from 0) with the largest volume."),
    Quantity("frame_systole", "1", "Number of the frame (from 0) with the smallest volume."),
    Quantity("heart_width", "mm", "Horizontal distance of the outermost points of the heart on a chest film."),
    Quantity("thorax_width", "mm", "Widest horizontal distance of the outer borders of the lungs on one row."),
    Quantity(
        "cardiothoracic_ratio",
        "1",
        "Width of the heart over inner width of the thorax. NaN without a heart or a lung on either side.",
        "Danzer, American Journal of the Medical Sciences 1919, 157:513",
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cardiothoracic:
    """The cardiothoracic ratio and where it was measured; points are (y, x) in index units, pixel edges included.

    Parameters
    ----------
    values
        ``heart_width``, ``thorax_width``, ``cardiothoracic_ratio``.
    heart
        Outermost point of the heart on the left and on the right of the picture, each on its own row; None without.
    thorax
        Ends of the line across the thorax; None where there is none.
    """

    values: dict[str, float]
    heart: tuple[Point, Point] | None
    thorax: tuple[Point, Point] | None


def short_axis_function(
    diastole: NDArray[Any],
    systole: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    cavity: int = 1,
    myocardium: int | None = None,
    heart_rate: float | None = None,
) -> dict[str, float]:
    """Volumes, ejection fraction and mass from stacks of short-axis label maps, by disc summation.

    Parameters
    ----------
    diastole, systole
        Label maps ``(Z, Y, X)`` at the end of diastole and of systole; they may differ in shape.
    spacing
        mm between slice centres (thickness plus gap), rows and columns.
    cavity, myocardium
        Label values of the blood of the left ventricle and of its muscle; None for no mass.
    heart_rate
        Beats per minute, for the cardiac output.

    Returns
    -------
    ``end_diastolic_volume``, ``end_systolic_volume``, ``stroke_volume``, ``ejection_fraction``, and where asked for
    ``myocardial_mass`` (NaN without spacing), ``heart_rate`` and ``cardiac_output``.
    """
    maps = [checked_labels(diastole, name="diastole"), checked_labels(systole, name="systole")]
    if any(one.ndim != 3 for one in maps):
        raise ValueError(f"stacks must have axes (Z, Y, X), got shapes {maps[0].shape} and {maps[1].shape}")
    unit = float(np.prod(checked_spacing(spacing, 3))) / (1000.0 if spacing is not None else 1.0)
    volumes = [_or_nan(np.count_nonzero(one == cavity) * unit) for one in maps]
    found = ejection(*volumes, heart_rate=heart_rate, physical=spacing is not None)
    if myocardium is not None:
        muscle = _or_nan(np.count_nonzero(maps[0] == myocardium) * unit)
        found["myocardial_mass"] = muscle * DENSITY if spacing is not None else float("nan")
    return found


def ejection(
    diastolic: float, systolic: float, *, heart_rate: float | None = None, physical: bool = True
) -> dict[str, float]:
    """Stroke volume and ejection fraction of two volumes in ml, and with a heart rate (1/min) the output in l/min."""
    stroke = diastolic - systolic
    found = {
        "end_diastolic_volume": float(diastolic),
        "end_systolic_volume": float(systolic),
        "stroke_volume": float(stroke),
        "ejection_fraction": 100 * float(ratio(stroke, diastolic)),
    }
    if heart_rate is not None:
        output = stroke * heart_rate / 1000 if physical else float("nan")
        found |= {"heart_rate": float(heart_rate), "cardiac_output": float(output)}
    return found


def disc_volume(view: LongAxis | None, other: LongAxis | None = None, *, physical: bool = True) -> float:
    """Volume by the method of discs from one view, or from two with the same number of discs; NaN without a view.

    In ml for axes in mm; with ``physical=False`` in cubed pixels.
    """
    if view is None:
        return float("nan")
    across, length = view.diameters, view.length
    if other is not None:
        if len(other.diameters) != len(across):
            raise ValueError(f"both views need the same discs, got {len(across)} and {len(other.diameters)}")
        across, length = other.diameters, max(length, other.length)
    volume = np.pi / 4 * float(view.diameters @ across) * length / len(across)
    return volume / (1000 if physical else 1)


def area_length_volume(view: LongAxis | None, *, physical: bool = True) -> float:
    """Volume by area and length, ``8 A^2 / (3 pi L)``, from one view; NaN without one. Units as `disc_volume`."""
    if view is None:
        return float("nan")
    return 8 * view.area**2 / (3 * np.pi * view.length) / (1000 if physical else 1)


def apical_function(
    four: tuple[NDArray[Any], NDArray[Any]],
    two: tuple[NDArray[Any], NDArray[Any]] | None = None,
    spacing: Sequence[float] | None = None,
    *,
    two_spacing: Sequence[float] | None = None,
    discs: int = DISCS,
    heart_rate: float | None = None,
) -> dict[str, float]:
    """Volumes and ejection fraction from apical views by the method of discs, biplane or from one view.

    Parameters
    ----------
    four, two
        Masks ``(Y, X)`` of the left ventricle at the end of diastole and of systole, in the four- and the two-chamber
        view; None for one view only.
    spacing, two_spacing
        mm per row and column of the first and of the second view; the second is that of the first if None.
    discs, heart_rate
        As in `long_axis` and `short_axis_function`.

    Returns
    -------
    The keys of `ejection`, ``long_axis_diastole``, ``long_axis_systole`` and ``long_axis_difference``.
    """
    if spacing is None and two_spacing is not None:
        raise ValueError("two_spacing without spacing: give both views a pixel size, or neither")
    first = [long_axis(mask, spacing, discs=discs) for mask in four]
    second = None
    if two is not None:
        second = [long_axis(mask, two_spacing if two_spacing is not None else spacing, discs=discs) for mask in two]
    volumes, lengths = [], []
    for k in range(2):
        view, other = first[k], second[k] if second else None
        # A view that is missing at one time makes the volume of that time undefined.
        known = view is not None and (second is None or other is not None)
        volumes.append(disc_volume(view, other, physical=spacing is not None) if known else float("nan"))
        lengths.append([axis.length for axis in (view, other) if axis is not None])
    longest = [max(known, default=float("nan")) for known in lengths]
    found = ejection(*volumes, heart_rate=heart_rate, physical=spacing is not None)
    found["long_axis_diastole"], found["long_axis_systole"] = longest
    apart = 100 * (1 - min(lengths[0]) / longest[0]) if len(lengths[0]) == 2 else float("nan")
    return found | {"long_axis_difference": apart}


def volume_curve(
    masks: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    method: str = "discs",
    apex: Point | None = None,
    workers: int | None = None,
) -> FloatArray:
    """Volume in every frame of a clip, ``(T,)``, in ml (cubed pixels without spacing); NaN in frames without a mask.

    Parameters
    ----------
    masks
        ``(T, Y, X)`` of the left ventricle in one apical view.
    spacing
        mm per row and column.
    method
        ``"discs"`` (one view) or ``"area"`` (area and length).
    apex
        As in `long_axis`, for all frames.
    """
    frames = checked_labels(masks, name="masks")
    if frames.ndim != 3:
        raise ValueError(f"a clip must have axes (T, Y, X), got shape {frames.shape}")
    if method not in ("discs", "area"):
        raise ValueError(f"method must be discs or area, got {method!r}")
    volume = disc_volume if method == "discs" else area_length_volume

    def one(frame: NDArray[Any]) -> float:
        return volume(long_axis(frame, spacing, apex=apex), physical=spacing is not None)

    return np.array(in_threads(one, list(frames), workers=workers), dtype=np.float64)


def clip_function(
    curve: ArrayLike, *, fps: float | None = None, median: int = 1, physical: bool = True
) -> dict[str, float]:
    """Ejection fraction from the volumes of a clip: diastole ends at the largest, systole at the smallest.

    Parameters
    ----------
    curve
        ``(T,)`` volumes from `volume_curve`; NaN frames are passed over.
    fps
        Frames per second; None for no heart rate.
    median
        Odd number of frames: each volume is replaced by the median of that many around it first.
    physical
        Whether the volumes are in ml.

    Returns
    -------
    The keys of `ejection`, ``frame_diastole``, ``frame_systole``, and with `fps` the heart rate and cardiac output (NaN
    where the clip shows no period).
    """
    volumes = np.asarray(curve, dtype=np.float64)
    if volumes.ndim != 1:
        raise ValueError(f"a curve must have axes (T,), got shape {volumes.shape}")
    if median < 1 or median % 2 == 0:
        raise ValueError(f"median must be an odd number of frames, got {median}")
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be positive, got {fps}")
    half = median // 2
    known = ~np.isnan(volumes)
    near = [volumes[max(0, k - half) : k + half + 1] for k in range(len(volumes))]
    smooth = np.array([np.nanmedian(near[k]) if known[k] else np.nan for k in range(len(volumes))])
    if not known.any():
        full = emptied = float("nan")
        frames = (float("nan"), float("nan"))
    else:
        frames = (float(np.nanargmax(smooth)), float(np.nanargmin(smooth)))
        full, emptied = float(np.nanmax(smooth)), float(np.nanmin(smooth))
    rate = None if fps is None else _beats(smooth, fps)
    found = ejection(full, emptied, heart_rate=rate, physical=physical)
    return found | {"frame_diastole": frames[0], "frame_systole": frames[1]}


def cardiothoracic_ratio(
    heart: NDArray[Any], lungs: NDArray[Any], spacing: Sequence[float] | None = None
) -> Cardiothoracic:
    """Widest width of the heart over the widest inner width of the thorax on a chest film.

    The heart is measured between its outermost points, which may lie on different rows (the greatest extents to the
    right and to the left of the midline added up); the thorax on the row where the outer borders of the lungs are
    farthest apart, among the rows with lung on both sides of the middle of the heart.

    Parameters
    ----------
    heart, lungs
        Masks ``(Y, X)`` on an upright film.
    spacing
        mm per row and column; the ratio needs none.
    """
    mine, theirs = checked_labels(heart, name="heart") != 0, checked_labels(lungs, name="lungs") != 0
    if mine.ndim != 2 or mine.shape != theirs.shape:
        raise ValueError(f"heart and lungs must both have axes (Y, X), got shapes {mine.shape} and {theirs.shape}")
    step = checked_spacing(spacing, 2)[1]
    columns = np.flatnonzero(mine.any(axis=0))
    ends = thorax = None
    widths = [float("nan")] * 2
    if len(columns):
        left, right = int(columns[0]), int(columns[-1])
        rows = [float(np.flatnonzero(mine[:, column]).mean()) for column in (left, right)]
        ends = ((rows[0], left - 0.5), (rows[1], right + 0.5))
        widths[0] = (right - left + 1) * step
        first = theirs.argmax(axis=1)
        last = theirs.shape[1] - 1 - theirs[:, ::-1].argmax(axis=1)
        both = theirs.any(axis=1) & (2 * first < left + right) & (2 * last > left + right)
        if both.any():
            wide = np.where(both, last - first + 1, 0)
            row = int(wide.argmax())
            thorax = ((float(row), first[row] - 0.5), (float(row), last[row] + 0.5))
            widths[1] = int(wide[row]) * step
    values = {
        "heart_width": float(widths[0]),
        "thorax_width": float(widths[1]),
        "cardiothoracic_ratio": float(widths[0] / widths[1]),
    }
    return Cardiothoracic(values, ends, thorax)


def _or_nan(volume: float) -> float:
    return float(volume) if volume else float("nan")


def _beats(curve: FloatArray, fps: float) -> float:
    """Beats per minute from the lag at which the curve is most like itself; NaN where nothing repeats."""
    known = np.flatnonzero(~np.isnan(curve))
    if len(known) < 6:
        return float("nan")
    place = np.arange(known[0], known[-1] + 1)
    filled = np.interp(place, known, curve[known])
    filled = filled - np.polyval(np.polyfit(place, filled, 1), place)
    lags = np.arange(1, 2 * len(filled) // 3)
    alike = np.zeros(len(lags) + 1)
    alike[0] = 1
    for lag in lags.tolist():
        one, two = filled[:-lag] - filled[:-lag].mean(), filled[lag:] - filled[lag:].mean()
        alike[lag] = float(ratio(one @ two, np.sqrt((one @ one) * (two @ two))))
    below = np.flatnonzero(alike < 0)
    if not len(below) or np.isnan(alike).any():
        return float("nan")
    rest = np.arange(below[0], len(alike) - 1)
    peaks = rest[(alike[rest] >= alike[rest - 1]) & (alike[rest] > alike[rest + 1])]
    peaks = peaks[alike[peaks] >= 0.5]
    if not len(peaks):
        return float("nan")
    # The first peak nearly as high as the highest: later ones are two beats, lower ones a notch within the beat.
    best = int(peaks[np.flatnonzero(alike[peaks] >= 0.9 * alike[peaks].max())[0]])
    left, top, right = alike[best - 1 : best + 2].tolist()
    bend = left - 2 * top + right
    return 60.0 * fps / (best + (0.5 * (left - right) / bend if bend else 0.0))
