"""Which file a cell of a table means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vesalius.data.listing import Listing, stem_of
from vesalius.data.tables import PATH_NAMES, usual_column

_LOOKED_AT = 200


@dataclass(frozen=True)
class Match:
    """A column and the file of each of its rows, "" where none was found."""

    column: str
    paths: list[str]

    @property
    def share(self) -> float:
        """Part of the rows with a file."""
        return sum(map(bool, self.paths)) / max(len(self.paths), 1)


def match_paths(table: pd.DataFrame, listing: Listing, where: str) -> Match | None:
    """The column whose cells name most files of `listing`, None if no column names any.

    Columns with a usual name come first, so that among equals they win.

    Parameters
    ----------
    where
        The table, relative to the root of the listing: its cells may be relative to its folder.
    """
    usual = usual_column(table.columns, PATH_NAMES)
    best: Match | None = None
    for column in [*usual, *(name for name in table.columns if name not in usual)]:
        cells = [str(cell) for cell in table[column].tolist()]
        if column not in usual and not any(locate(cell, listing, where) for cell in cells[:_LOOKED_AT]):
            continue
        match = Match(str(column), locate_all(cells, listing, where))
        if match.share == 1:
            return match
        if match.share > (best.share if best is not None else 0):
            best = match
    return best


def locate_all(cells: Sequence[str], listing: Listing, where: str) -> list[str]:
    """`locate` for every cell."""
    return [locate(cell, listing, where) for cell in cells]


def locate(cell: str, listing: Listing, where: str) -> str:
    """The file or folder that a cell means, "" if there is none or several could be meant.

    Tried in turn: relative to the table, relative to the root, absolute, and the file name alone (with or without
    suffix) where only one file has it.
    """
    text = cell.replace("\\", "/").removeprefix("./")
    base, mark, item = text.partition("#")
    base = base.rstrip("/")
    if text in listing.known:  # also a name that really holds "#"
        return text
    if not base:
        return ""
    below = where.rpartition("/")[0]
    for candidate in (f"{below}/{base}", base) if below else (base,):
        if candidate in listing.known or candidate in listing.dicom_folders:
            return candidate + mark + item
    if base.startswith("/"):
        inside = base.removeprefix(f"{listing.root}/")
        if inside in listing.known or (inside == base and Path(base).exists()):
            return inside + mark + item
    name = base.rpartition("/")[2]
    # The last one: "IMG.dcm" may be the stem of IMG.dcm.png.
    found = (listing.by_name.get(name, ()), listing.by_stem.get(stem_of(name), ()), listing.by_stem.get(name, ()))
    for candidates in found:
        fitting = [path for path in candidates if f"/{path}".endswith(f"/{base}")] or candidates
        if len(fitting) == 1:
            return fitting[0]
    return ""
