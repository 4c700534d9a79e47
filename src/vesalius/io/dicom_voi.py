"""Values to grey levels for display, as the file asks: window or VOI LUT (PS3.3 C.11.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.image import Image, Unit


def apply_voi(
    image: Image, *, index: int = 0, center: float | None = None, width: float | None = None
) -> NDArray[np.float32]:
    """Grey levels in [0, 1] of `image`, same shape as its pixels; for the eye only, never for a model or a measurement.

    Parameters
    ----------
    image
        With ``window_center``, ``window_width`` and ``voi_function``, or ``voi_lut``, in its meta. Without any of them
        the range from the lowest to the highest value is shown.
    index
        Which of several windows of the file.
    center, width
        A window of one's own instead, in units of the pixels.

    Raises
    ------
    UsageError
        For a colour or label image, an index out of range, or a width that is not positive.
    """
    if image.unit in (Unit.RED_GREEN_BLUE, Unit.LABEL):
        raise UsageError(f"{image.source or 'image'}: a {image.unit} image has no window; show it as it is")
    values = image.pixels.astype(np.float64)
    own = center is not None or width is not None
    if not own and "voi_lut" in image.meta:
        return _table(values, image.meta)
    if own and (center is None or width is None):
        raise UsageError("give both center and width of a window")
    centres, widths = _listed(image.meta.get("window_center")), _listed(image.meta.get("window_width"))
    if own:
        return _windowed(
            values, float(center or 0.0), float(width or 0.0), str(image.meta.get("voi_function", "LINEAR"))
        )
    if not centres:
        low, high = float(values.min()), float(values.max())
        spread: NDArray[np.float32] = ((values - low) / max(high - low, 1e-12)).astype(np.float32)
        return spread
    if not 0 <= index < min(len(centres), len(widths)):
        raise UsageError(f"{image.source or 'image'}: window {index} does not exist; it has {len(centres)}")
    return _windowed(values, centres[index], widths[index], str(image.meta.get("voi_function", "LINEAR")))


def _windowed(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float32]:
    least = 1.0 if function == "LINEAR" else 0.0
    if width < least or (width == 0 and function != "LINEAR"):
        raise UsageError(
            f"window width {width:g} is too small for the {function} function; it must be more than {least:g}"
        )
    if function == "SIGMOID":  # C.11.2.1.3.1
        grey = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    elif function == "LINEAR_EXACT":  # C.11.2.1.3.2
        grey = (values - centre) / width + 0.5
    elif width == 1:  # C.11.2.1.2.1: a window of one is a threshold
        grey = np.where(values <= centre - 0.5, 0.0, 1.0)
    else:
        grey = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.clip(grey, 0.0, 1.0).astype(np.float32)


def _table(values: NDArray[np.float64], meta: Any) -> NDArray[np.float32]:
    entries = np.asarray(meta["voi_lut"], dtype=np.float64)
    turned = "voi_lut_turned" in meta
    stored = meta["voi_lut_turned"] - values if turned else values
    place = np.clip(np.rint(stored).astype(np.int64) - int(meta["voi_lut_first"]), 0, len(entries) - 1)
    grey = entries[place] / ((1 << int(meta["voi_lut_bits"])) - 1)
    return np.clip(1 - grey if turned else grey, 0.0, 1.0).astype(np.float32)


def _listed(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(item) for item in value] if isinstance(value, (list, tuple)) else [float(value)]
