"""`vesalius measure`: tables with units, pictures and a page from masks, their images and a reference."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vesalius.core.environment import available_cores
from vesalius.core.errors import DataError, UsageError
from vesalius.core.files import safe_stem, write_json
from vesalius.core.progress import Progress, Silent
from vesalius.core.provenance import provenance
from vesalius.data.listing import stem_of
from vesalius.serve.measure_cases import find_cases, parse_names
from vesalius.serve.measure_cohort import Gate, measure_cohort
from vesalius.serve.measure_hearts import pair_phases
from vesalius.serve.measure_kinds import Work, decide
from vesalius.serve.measure_report import Study, summarise, write_page
from vesalius.serve.measure_tables import TableStore, dictionary, write_dictionary
from vesalius.serve.measure_wishes import Wishes

_MOST_JSON_ROWS = 200


@dataclass(frozen=True)
class Measured:
    """What `measure` left behind.

    Parameters
    ----------
    tables
        Paths by table and format.
    """

    out: Path
    kind: str
    because: str
    cases: int
    rows: dict[str, int]
    tables: dict[str, dict[str, Path]]
    dictionary: Path
    page: Path | None
    failed: dict[str, str]
    notes: list[str]
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it; the rows themselves where there are few."""
        facts = {
            "out": str(self.out),
            "kind": self.kind,
            "because": self.because,
            "cases": self.cases,
            "failed": self.failed,
            "rows": self.rows,
            "tables": {name: {kind: str(path) for kind, path in paths.items()} for name, paths in self.tables.items()},
            "dictionary": str(self.dictionary),
            "page": None if self.page is None else str(self.page),
            "seconds": round(self.seconds, 2),
            "summary": self.summary,
            "notes": self.notes,
        }
        facts["values"] = {
            name: self.table(name).to_dict("records") for name, rows in self.rows.items() if rows <= _MOST_JSON_ROWS
        }
        return facts

    def table(self, name: str | None = None) -> Any:
        """A table as a data frame; the first one without a name."""
        import pandas as pd

        chosen = name or next(iter(self.tables), None)
        if chosen not in self.tables:
            raise UsageError(f"there is no table {chosen!r} in {self.out}; it has {', '.join(self.tables) or 'none'}")
        paths = self.tables[chosen]
        return pd.read_parquet(paths["parquet"]) if "parquet" in paths else pd.read_csv(paths["csv"])


def measure(
    *masks: str | Path,
    out: str | Path | None = None,
    image: str | Path | None = None,
    reference: str | Path | None = None,
    memory: str | int | None = None,
    workers: int | None = None,
    force: bool = False,
    page: bool = True,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    **wishes: Any,
) -> Measured:
    """Numbers with units from label images: tables, a data dictionary, pictures and a page in `out`.

    Parameters
    ----------
    image, reference
        A file for one mask, or a folder whose files are named like the masks.
    wishes
        The fields of `Wishes`: kind, names, labels, spacing, tolerances, extras, meshes, contours, deviation, formats.

    Raises
    ------
    DataError
        If no case could be measured; single cases that fail are in ``failed``.
    """
    progress, start = progress or Silent(), time.monotonic()
    try:
        wanted = Wishes(**wishes)
    except TypeError as error:
        raise UsageError(f"measure: {error}; see vesalius.serve.measuring.Wishes") from error
    found = find_cases(masks, image, reference)
    names = {**found.names, **parse_names(str(wanted.names) if wanted.names else None)}
    for line in found.problems:
        progress.warn(line)
    kind, because = decide(wanted.kind, found.cases)
    if kind == "heart":
        found.cases = pair_phases(found.cases)
    progress.say(f"kind {kind}: {because}")
    folder = _prepared(Path(out) if out is not None else Path("runs") / f"measure-{_name_of(masks[0])}", force)
    store = TableStore(folder, json.dumps([kind, asdict(wanted), sorted(names.items())], default=list))
    work = Work(kind, wanted, names, folder)
    done = measure_cohort(found.cases, store, Gate(memory), work, workers or available_cores(), progress)
    records = [done.records[case.case_id] for case in found.cases if case.case_id in done.records]
    _write_failed(folder, done.failed)
    if not records:
        first = next(iter(done.failed.values()))
        raise DataError(f"none of {len(found.cases)} cases could be measured; the first: {first}")
    notes = [*found.problems, *(note for record in records for note in record["notes"])]
    study = Study(folder, kind, because, found.cases, store, records, dictionary(records), done.failed, notes)
    told = {"command": command, "kind": kind, "because": because}
    data_hash = store.key_of([case.mask for case in found.cases])
    write_json(folder / "provenance.json", provenance(seed=0, data_hash=data_hash, **told))
    return _finished(study, work, wanted, page, start)


def _finished(study: Study, work: Work, wishes: Wishes, page: bool, start: float) -> Measured:
    """Tables, dictionary and page from the parts."""
    tables = study.store.join(study.records, wishes.formats)
    summary = summarise(study)
    return Measured(
        study.folder,
        study.kind,
        study.because,
        len(study.records),
        {name: sum(int(record["rows"].get(name, 0)) for record in study.records) for name in tables},
        tables,
        write_dictionary(study.folder / "dictionary.csv", study.dictionary),
        write_page(study, work, summary) if page else None,
        dict(study.failed),
        study.notes,
        summary,
        time.monotonic() - start,
    )


def _name_of(mask: str | Path) -> str:
    path = Path(str(mask).split("#", maxsplit=1)[0]).resolve()
    name = stem_of(path.name)
    return safe_stem(f"{path.parent.name}-{name}" if path.is_dir() and name.lower() in _PLAIN_FOLDERS else name)


_PLAIN_FOLDERS = ("labels", "masks", "labelstr", "labelsts", "predictions", "segmentations")
_MINE = ("dictionary.csv", "index.html", "provenance.json", ".parts")


def _prepared(folder: Path, force: bool) -> Path:
    """A folder of ours or an empty one; `force` measures everything again."""
    if folder.is_file():
        raise UsageError(f"--out {folder}: is a file; give a folder")
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in _MINE):
        raise UsageError(f"--out {folder}: holds other files; give a new or empty folder")
    if force:
        for name in ("meshes", "contours", ".parts"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_failed(folder: Path, failed: Mapping[str, str]) -> None:
    path = folder / "failed.json"
    if failed:
        write_json(path, dict(failed))
    else:
        path.unlink(missing_ok=True)
