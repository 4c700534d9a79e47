"""The classes of masks as a dataset.json lists them: Medical Segmentation Decathlon and nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.data.mask_values import MaskValues
from vesalius.data.problem import Problem

_MOST_LABELS = 1 << 16
_IGNORE = "ignore"


def mask_labels(given: Any, where: str) -> tuple[Labels, MaskValues, list[Problem]]:
    """Classes of a mask from ``{"0": "background", ...}`` or ``{"background": 0, "tumour": [1, 2], ...}``.

    Lists of values make overlapping regions, and the label ``ignore`` names what is not judged, as in nnU-Net
    (documentation/region_based_training.md and ignore_label.md of version 2). A few numbers that are skipped get a name
    of their own, so that the index of a name is the value in the file; where most are skipped the values are counted
    through, and the second result says how.

    Raises
    ------
    DataError
        If it is neither.
    """
    regions: dict[str, tuple[int, ...]] = {}
    for key, value in dict(given if isinstance(given, Mapping) else {}).items():
        number, name = (key, value) if str(key).isdecimal() else (value, key)
        joined = list(number) if isinstance(number, Sequence) and not isinstance(number, str) else [number]
        whole = all(str(one).isdecimal() and int(one) < _MOST_LABELS for one in joined)
        if not joined or not whole or str(name) in regions:
            raise DataError(
                f"{where}: `labels` maps {key!r} to {value!r}; expected one whole number per name, each once, or a "
                "list of them for a region"
            )
        regions[str(name)] = tuple(int(one) for one in joined)
    if not regions:
        raise DataError(f"{where}: `labels` is {given!r}; expected for example {{'background': 0, 'tumour': 1}}")
    ignore = regions.pop(_IGNORE, None)
    if ignore is not None and len(ignore) > 1:
        raise DataError(f"{where}: `labels` maps 'ignore' to {list(ignore)}; expected one whole number")
    hidden = ignore[0] if ignore is not None else None
    problems = [Problem("note", where, f"voxels of the value {hidden} are ignored")] if hidden is not None else []
    if any(len(values) > 1 for values in regions.values()):
        return _regions(regions, hidden, where, problems)
    return _classes({values[0]: name for name, values in regions.items()}, regions, hidden, where, problems)


def _regions(
    regions: Mapping[str, tuple[int, ...]], ignore: int | None, where: str, problems: list[Problem]
) -> tuple[Labels, MaskValues, list[Problem]]:
    shown = {name: values for name, values in regions.items() if values != (0,)}
    if any(0 in values for values in shown.values()):
        raise DataError(f"{where}: a region of `labels` joins the value 0, which is the background; leave it out")
    said = "; ".join(f"{name!r} joins {list(values)}" for name, values in shown.items())
    problems.append(Problem("note", where, f"the labels are regions that may overlap: {said}"))
    labels = Labels(tuple(shown), multilabel=True, regions=tuple(shown.values()), ignore=ignore)
    return labels, MaskValues(), problems


def _classes(
    values: dict[int, str],
    regions: Mapping[str, tuple[int, ...]],
    ignore: int | None,
    where: str,
    problems: list[Problem],
) -> tuple[Labels, MaskValues, list[Problem]]:
    if len(values) < len(regions) or ignore in values:
        raise DataError(f"{where}: `labels` gives one value two names ({dict(regions)}); expected each once")
    values.setdefault(0, "background")
    top = max(values)
    gaps = [number for number in range(top + 1) if number not in values]
    if len(gaps) > len(values) or (ignore is not None and ignore <= top):
        order = sorted(values)
        meaning = {value: index for index, value in enumerate(order)}
        text = f"the values {order[:8]} of the masks are counted as classes 0 to {len(order) - 1}"
        problems.append(Problem("note", where, text))
        hidden = None
        if ignore is not None:
            hidden = meaning[ignore] = len(order)
        return Labels(tuple(values[value] for value in order), ignore=hidden), MaskValues(meaning), problems
    if gaps:
        problems.append(Problem("note", where, f"`labels` skips the values {gaps[:5]}; they are called 'unused'"))
    names = tuple(values.get(number, f"unused {number}") for number in range(max(top, 1) + 1))
    if ignore is not None and ignore < len(names):  # only the background is named, and the ignored value is 1
        return Labels((values[0], "unused"), ignore=2), MaskValues({0: 0, ignore: 2}), problems
    return Labels(names, ignore=ignore), MaskValues(), problems
