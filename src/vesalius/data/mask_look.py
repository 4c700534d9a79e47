"""A look at the masks of a data set that does not say what their values mean: classes, colours or single objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.errors import DataError, VesaliusError
from vesalius.core.geometry import Grid
from vesalius.core.labels import Labels
from vesalius.data.listing import split_suffix
from vesalius.data.mask_values import MaskValues, whole_values
from vesalius.data.problem import Problem
from vesalius.data.truth_files import open_mask

TWO = Labels(("background", "foreground"))
_OBJECTS = Labels(("background", "object"), instances=True)
# All masks are looked at while their files hold less than this; of more only some, at least `_FEWEST`.
_MOST_BYTES = 48 << 20
_FEWEST = 12
_MOST_VALUES = 1024
_MOST_COLOURS = 64
_MANY_MAXIMA = 8
_BACKGROUND = 0x000000


@dataclass
class Look:
    """What was seen: values (or colours) with their pixels, per mask."""

    files: list[str] = field(default_factory=list)
    values: list[dict[int, int]] = field(default_factory=list)
    coloured: bool = False
    lossy: bool = False
    whole: bool = True

    @property
    def seen(self) -> list[int]:
        """All values, ascending."""
        return sorted(set().union(*self.values)) if self.values else []


def look_at(root: Path, paths: Sequence[str]) -> Look:
    """Open the masks, or some of them; those that cannot be read or hold no label values say nothing."""
    look = Look()
    for path in _some_of(root, paths):
        try:
            # Outlines and annotations need an image and name their classes themselves; masks do not use the grid.
            mask = open_mask(root / path, Grid((1, 1)), TWO)
            if mask.overlap:
                continue
            pixels = mask.pixels[0] if mask.coloured else whole_values(mask.pixels[0], mask.path)
        except VesaliusError:
            continue  # opening the truth names the file; here it only says nothing
        if mask.coloured and not look.coloured:
            # Gray values so far were colours, of masks that show nothing.
            look.values = [{value * 0x010101: count for value, count in one.items()} for one in look.values]
            look.coloured = True
        found, counts = np.unique(pixels, return_counts=True)
        scale = 0x010101 if look.coloured and not mask.coloured else 1
        look.values.append(dict(zip((found.astype(np.int64) * scale).tolist(), counts.tolist(), strict=True)))
        look.files.append(path)
        look.lossy |= split_suffix(path)[1] in (".jpg", ".jpeg", ".jfif")
    look.whole = len(look.files) == len(paths)
    return look


def _some_of(root: Path, paths: Sequence[str]) -> Sequence[str]:
    sizes: dict[str, int] = {}
    for path in paths:
        file = root / path.partition("#")[0]
        if file.is_file():
            sizes[str(file)] = file.stat().st_size
    total = sum(sizes.values())
    if total <= _MOST_BYTES or len(paths) <= _FEWEST:
        return paths
    count = max(_FEWEST, int(len(paths) * _MOST_BYTES / total))
    return [paths[at] for at in np.linspace(0, len(paths) - 1, count).astype(int).tolist()]


@dataclass(frozen=True)
class Settled:
    """The labels of a data set and what the values of its masks mean."""

    labels: Labels
    values: MaskValues = field(default_factory=MaskValues)
    problems: tuple[Problem, ...] = ()


def settle(root: Path, paths: Sequence[str], names: Mapping[int, str] | None = None) -> Settled:
    """Labels for masks that lie beside images.

    Parameters
    ----------
    names
        Names of values (or colours 0xRRGGBB) from a file beside the masks, if there is one.

    Raises
    ------
    DataError
        If the masks are pictures rather than masks, or hold values that the names do not know.
    """
    look = look_at(root, paths)
    seen = look.seen
    if names:
        return _with_names(look, names, root)
    if not seen or seen == [0]:
        text = "show nothing" if seen else "cannot be read"
        problem = Problem("warning", "", f"the {len(look.files) or len(paths)} masks that were looked at {text}")
        return Settled(TWO, problems=(problem,) if seen else ())
    if look.coloured:
        return _colours(look, root)
    if look.lossy and len(seen) > 2:
        return _lossy(look, root)
    if len(seen) <= 2:
        return _two(look)
    if _single_objects(look):
        high = max(max(values) for values in look.values)
        text = (
            f"the masks number single objects (up to {high} in the {len(look.files)} that were looked at), so there is "
            "one class 'object' and touching objects stay apart; a labels.json with names makes them classes"
        )
        return Settled(_OBJECTS, problems=(Problem("note", "", text),))
    return _several(look, root)


def doubled(
    root: Path, paths: Sequence[str], labels: Labels, values: MaskValues
) -> tuple[MaskValues, tuple[Problem, ...]]:
    """What two classes mean in pictures that hold 255 (or another value) where the description says 1."""
    pictures = [path for path in paths if split_suffix(path)[1] in (".png", ".bmp", ".tif", ".tiff")]
    if values or not labels.binary or labels.ignore is not None or not pictures:
        return values, ()
    seen = look_at(root, pictures[:_FEWEST]).seen
    if len(seen) != 2 or seen[0] != 0 or seen[1] == 1:
        return values, ()
    text = f"the masks hold {seen[1]} where the description says 1; it is taken as {labels.names[1]!r}"
    return MaskValues({0: 0, 1: 1, seen[1]: 1}), (Problem("note", "", text),)


def _two(look: Look) -> Settled:
    low, high = (0, look.seen[0]) if len(look.seen) == 1 else look.seen
    if (low, high) == (0, 1):
        return Settled(TWO)
    text = f"the masks hold the values {low} and {high}, which are taken as background and foreground"
    return Settled(TWO, MaskValues({low: 0, high: 1}), (Problem("note", "", text),))


def _lossy(look: Look, root: Path) -> Settled:
    """JPEG spreads 0 and 255; anything in between is no mask."""
    counts: Counter[int] = Counter()
    for values in look.values:
        counts.update(values)
    between = sum(count for value, count in counts.items() if 64 <= value < 192)
    if max(counts) <= 128 or between > 0.05 * counts.total():
        raise DataError(
            f"{root}: the masks are JPEG pictures with {len(counts)} different values, first {look.files[0]}; expected "
            "label values without loss; export the masks as PNG"
        )
    text = (
        "the masks are JPEG pictures, whose compression changes values; 128 and more is taken as foreground; export "
        "them as PNG"
    )
    return Settled(TWO, MaskValues(bright=1), (Problem("warning", "", text),))


def _single_objects(look: Look) -> bool:
    """Numbers that differ per mask and are used up one after the other are objects, not classes.

    In maps of many organs the highest value differs as well, but then values in between are absent.
    """
    shown = [sorted(set(values) - {0}) for values in look.values]
    shown = [values for values in shown if values]
    highest = [values[-1] for values in shown]
    if not highest or len(set(highest)) <= min(len(highest) / 2, _MANY_MAXIMA) or max(highest) <= 10:
        return False
    dense = sum(len(values) >= 0.9 * values[-1] for values in shown)
    return 2 * dense > len(shown) or max(highest) >= _MOST_VALUES


def _several(look: Look, root: Path) -> Settled:
    seen = look.seen
    if len(seen) > _MOST_VALUES or (len(seen) > 64 and seen[-1] > 2 * len(seen) and not look.whole):
        raise DataError(
            f"{root}: the masks hold {len(seen)} different values up to {seen[-1]}, first {look.files[0]}; expected "
            "label values; correct the masks or add a labels.json with their names"
        )
    said = f"masks hold the values {seen[:8]}{' and more' if len(seen) > 8 else ''}"
    if seen[-1] + 1 <= 2 * len(seen):
        names = ("background", *(f"label {value}" for value in range(1, seen[-1] + 1)))
        values = MaskValues()
    else:
        rest = [value for value in seen if value]
        names = ("background", *(f"label {value}" for value in rest))
        values = MaskValues({0: 0, **{value: index for index, value in enumerate(rest, 1)}})
        said += f", counted as classes 0 to {len(rest)}"
    text = (
        f"{said}; their meaning is not written anywhere, so they are called 'label {min(v for v in seen if v)}' and so "
        "on; a dataset.json or labels.json beside them can name them"
    )
    return Settled(Labels(names), values, (Problem("note", "", text),))


def _colours(look: Look, root: Path) -> Settled:
    seen = look.seen
    if look.lossy or len(seen) > _MOST_COLOURS:
        raise DataError(
            f"{root}: the masks have {len(seen)} colours, first {look.files[0]}, and look like pictures; expected one "
            "colour per class; export label values as PNG"
        )
    back = _BACKGROUND
    said = "black is the background"
    if back not in seen:
        area: Counter[int] = Counter()
        for values in look.values:
            area.update(values)
        back = area.most_common(1)[0][0]
        said = f"no pixel is black, so the most frequent colour #{back:06x} is the background"
    rest = [colour for colour in seen if colour != back]
    names = ("background", *(f"#{colour:06x}" for colour in rest))
    shades = (f"#{back:06x}", *names[1:])
    text = (
        f"each of {len(rest)} colours in the masks is a class ({', '.join(names[1:7])}); {said}; a labels.json such as "
        f'{{"tumour": "{names[-1]}"}} can name them'
    )
    meaning = MaskValues(colours={colour: index for index, colour in enumerate([back, *rest])})
    return Settled(Labels(names, colours=shades), meaning, (Problem("note", "", text),))


def _with_names(look: Look, names: Mapping[int, str], root: Path) -> Settled:
    """Names that stand beside the masks; values that are far apart are counted through."""
    known = dict(names)
    zero = _BACKGROUND
    if zero not in known:
        known[zero] = "background" if "background" not in known.values() else "unlabelled"
    # Values have an order of their own, colours that of the file.
    order = [zero, *(value for value in (known if look.coloured else sorted(known)) if value != zero)]
    labels = [known[value] for value in order]
    strange = [value for value in look.seen if value not in known]
    # Two named classes and two values: programs that draw masks write 255 for 1.
    if not look.coloured and len(order) == 2 and len(strange) == 1 and set(look.seen) <= {0, strange[0]}:
        text = f"the masks hold {strange[0]}, which is taken as {labels[1]!r}"
        return Settled(Labels(tuple(labels)), MaskValues({0: 0, strange[0]: 1}), (Problem("note", "", text),))
    if strange:
        shown = ", ".join(f"#{value:06x}" if look.coloured else str(value) for value in strange[:5])
        first = next(file for file, values in zip(look.files, look.values, strict=True) if strange[0] in values)
        raise DataError(
            f"{root}: the masks hold the values {shown}, which have no name, first {first}; expected those of the "
            f"named classes ({', '.join(labels[:6])}); name them or correct the masks"
        )
    place = {value: index for index, value in enumerate(order)}
    if look.coloured:
        shades = tuple(f"#{value:06x}" for value in order)
        return Settled(Labels(tuple(labels), colours=shades), MaskValues(colours=place))
    if all(value == index for value, index in place.items()):
        return Settled(Labels(tuple(labels)))
    text = f"the values {order[:8]} of the masks are counted as classes 0 to {len(order) - 1}"
    return Settled(Labels(tuple(labels)), MaskValues(place), (Problem("note", "", text),))


def names_beside(root: Path, known: frozenset[str]) -> tuple[dict[int, str], str] | None:
    """Names of values or colours from ``labels.json``, ``classes.json`` or ``dataset.json``, and where they stand.

    ``{"background": 0, "tumour": 1}``, ``{"0": "background"}``, ``["background", "tumour"]``, and for colours
    ``{"tumour": "#ff0000"}`` or ``{"tumour": [255, 0, 0]}``; all of it also under the key ``labels``.

    Raises
    ------
    DataError
        If such a file holds something else.
    """
    for where in ("labels.json", "classes.json", "dataset.json"):
        if where not in known:
            continue
        try:
            data: Any = json.loads((root / where).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{root / where}: not readable as JSON ({error}); copy or correct it") from error
        given = data.get("labels", data) if isinstance(data, Mapping) else data
        if where == "dataset.json" and not (isinstance(data, Mapping) and "labels" in data):
            continue
        names = _named(given, root / where)
        if names:
            return names, where
    return None


def _named(given: Any, where: Path) -> dict[int, str]:
    pairs = (
        list(enumerate(given)) if isinstance(given, list) else list(given.items()) if isinstance(given, dict) else []
    )
    out: dict[int, str] = {}
    for key, content in pairs:
        if isinstance(key, int) or str(key).isdecimal():
            value, name = int(key), str(content)
        else:
            value, name = _value_of(content), str(key)
        if value < 0 or value in out or name in out.values():
            raise DataError(
                f"{where}: maps {key!r} to {content!r}; expected one whole number or colour per name, each once, for "
                'example {"background": 0, "tumour": 1} or {"tumour": "#ff0000"}'
            )
        out[value] = name
    return out


def _value_of(content: Any) -> int:
    """A value, or a colour as 0xRRGGBB; -1 for neither."""
    if isinstance(content, bool):
        return -1
    if isinstance(content, int):
        return content
    if isinstance(content, str) and content.isdecimal():
        return int(content)
    if isinstance(content, str) and len(content) == 7 and content[0] == "#":
        try:
            return int(content[1:], 16)
        except ValueError:
            return -1
    if isinstance(content, list) and len(content) == 3 and all(isinstance(v, int) and 0 <= v < 256 for v in content):
        return (content[0] << 16) | (content[1] << 8) | int(content[2])
    return -1
