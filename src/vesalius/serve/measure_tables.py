"""Tables that grow case by case on disk: an interrupted command goes on, and memory does not grow with the cohort."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from vesalius.core.files import atomic, jsonable, safe_stem, write_text
from vesalius.measure.quantities import Quantity

# Digits of a number in CSV; Parquet keeps all of them.
_CSV_DIGITS = "%.10g"
_GROUP_ROWS = 1 << 16
NAME = Quantity("name", "text", "Name of the label, or its value where no name is known.")
DICTIONARY = ("table", "column", "quantity", "unit", "meaning", "source", "ibsi")


@dataclass
class CaseTables:
    """What was measured on one case: columns by table, and what each column means."""

    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    meanings: dict[tuple[str, str], tuple[Quantity, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(
        self,
        table: str,
        values: Mapping[str, Any],
        known: Mapping[str, Quantity],
        *,
        physical: bool,
        intensity: str = "",
        prefix: str = "",
    ) -> None:
        """Columns of `values` by quantity name; single numbers make a table of one row."""
        columns = self.tables.setdefault(table, {})
        for name, value in values.items():
            quantity = known[name]
            column = prefix + quantity.column(physical=physical, intensity=intensity)
            columns[column] = np.atleast_1d(np.asarray(value))
            unit = quantity.unit_in(physical=physical, intensity=intensity)
            self.meanings[table, column] = (quantity, unit)


class TableStore:
    """Parts of tables in ``.parts`` below a folder, joined at the end."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.parts, self.key = out, out / ".parts", key

    def clear(self) -> None:
        """Forget every part."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def key_of(self, sources: Sequence[str | None]) -> str:
        """Fingerprint of what a case is made from: options, and name, size and time of its files."""
        text = [self.key]
        for source in sources:
            path = Path((source or "").split("#", maxsplit=1)[0])
            known = source and path.exists()
            state = path.stat() if known else None
            text.append(f"{source}:{state.st_size}:{state.st_mtime_ns}" if state else str(source))
        return hashlib.blake2b("\n".join(text).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def known(self, case_id: str, key: str) -> dict[str, Any] | None:
        """The record of a case that is done, or None."""
        path = self.parts / f"{safe_stem(case_id)}.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = record.get("key") == key and all((self.out / name).exists() for name in record["files"])
        return record if whole and all((self.parts / name).exists() for name in record["parts"].values()) else None

    def put(self, case_id: str, key: str, found: CaseTables) -> dict[str, Any]:
        """Write the parts of a case, its record last; returns the record."""
        self.parts.mkdir(parents=True, exist_ok=True)
        stem, parts, counts = safe_stem(case_id), {}, {}
        for name, columns in found.tables.items():
            rows = max((len(column) for column in columns.values()), default=0)
            arrays = {"case_id": pa.array([case_id] * rows, pa.string())}
            arrays |= {column: _as_arrow(values) for column, values in columns.items()}
            part = f"{stem}.{name}.arrow"
            feather.write_feather(pa.table(arrays), str(self.parts / part), compression="uncompressed")
            parts[name], counts[name] = part, rows
        record = {
            "key": key,
            "case_id": case_id,
            "parts": parts,
            "rows": counts,
            "notes": found.notes,
            "files": found.files,
            "meanings": [
                [table, column, one.name, unit, one.meaning, one.source, one.ibsi]
                for (table, column), (one, unit) in found.meanings.items()
            ],
        }
        path = self.parts / f"{stem}.json"
        part_file = path.with_suffix(".json.part")
        part_file.write_text(json.dumps(jsonable(record)), encoding="utf-8")
        part_file.replace(path)
        return record

    def join(self, records: Sequence[Mapping[str, Any]], formats: Sequence[str]) -> dict[str, dict[str, Path]]:
        """One file per table and format, in the order of `records`; returns their paths by table and format."""
        names = list(dict.fromkeys(name for record in records for name in record["parts"]))
        self._forget_tables(names, formats)
        written: dict[str, dict[str, Path]] = {}
        for name in names:
            paths = [self.parts / record["parts"][name] for record in records if name in record["parts"]]
            schema = _common(paths)
            written[name] = {}
            if "parquet" in formats:
                written[name]["parquet"] = _to_parquet(paths, schema, self.out / f"{name}.parquet")
            if "csv" in formats:
                written[name]["csv"] = _to_csv(paths, schema, self.out / f"{name}.csv")
        return written

    def _forget_tables(self, names: Sequence[str], formats: Sequence[str]) -> None:
        """Remove tables that an earlier command left and this one does not write: they would be taken for its own."""
        try:
            earlier = set(pd.read_csv(self.out / "dictionary.csv", usecols=["table"])["table"].astype(str))
        except (OSError, ValueError):
            return
        for name in earlier:
            for form in ("csv", "parquet"):
                if name not in names or form not in formats:
                    (self.out / f"{name}.{form}").unlink(missing_ok=True)

    def frame(self, records: Sequence[Mapping[str, Any]], name: str, most: int) -> tuple[pd.DataFrame, int]:
        """The first rows of a table, at most about `most`, and how many there are."""
        frames, rows = [], 0
        for record in records:
            if name in record["parts"]:
                with pa.memory_map(str(self.parts / record["parts"][name])) as source:
                    part = pa.ipc.open_file(source).read_all()
                    if rows < most:
                        frames.append(part.to_pandas())
                    rows += part.num_rows
        return (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()), rows


def dictionary(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Every column of every table with its unit and meaning, once."""
    rows = list(dict.fromkeys(tuple(row) for record in records for row in record["meanings"]))
    return pd.DataFrame(rows, columns=list(DICTIONARY))


def write_dictionary(path: Path, rows: pd.DataFrame) -> Path:
    """``dictionary.csv``."""
    return write_text(path, rows.to_csv(index=False))


def _as_arrow(values: Any) -> pa.Array:
    """Text as text even where there is none, so that an empty table has the types of a full one."""
    return pa.array(list(values), pa.string()) if values.dtype == object else pa.array(values)


def _common(paths: Sequence[Path]) -> pa.Schema:
    schemas = []
    for path in paths:
        with pa.memory_map(str(path)) as source:
            schemas.append(pa.ipc.open_file(source).schema.remove_metadata())
    return pa.unify_schemas(schemas, promote_options="permissive")


def _aligned(path: Path, schema: pa.Schema) -> pa.Table:
    table = feather.read_table(str(path)).replace_schema_metadata()
    columns = [
        table[one.name].cast(one.type) if one.name in table.column_names else pa.nulls(table.num_rows, one.type)
        for one in schema
    ]
    return pa.table(columns, schema=schema)


def _to_parquet(paths: Sequence[Path], schema: pa.Schema, path: Path) -> Path:
    """Parts joined to row groups of a useful size."""
    waiting: list[pa.Table] = []
    with atomic(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for number, part in enumerate(paths, start=1):
            waiting.append(_aligned(part, schema))
            if number == len(paths) or sum(table.num_rows for table in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
    return path


def _to_csv(paths: Sequence[Path], schema: pa.Schema, path: Path) -> Path:
    with atomic(path) as file:
        for number, part in enumerate(paths):
            text = _aligned(part, schema).to_pandas().to_csv(index=False, header=number == 0, float_format=_CSV_DIGITS)
            file.write(text.encode())
    return path
