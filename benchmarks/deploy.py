"""Exports and lighter forms of finished runs, in one table: ``python benchmarks/deploy.py RUN... [--only int8,onnx]``.

Each run is exported to every kind of file and accepted on its own test cases, then made lighter in every way; what was
there already is not made again without ``--force``. For a table that means something let nothing else run. The numbers
are those of the acceptance records (largest difference of a probability, or smallest Dice of a structure) and of
``compressed/variants.json`` (metric and its paired difference, time and size beside the original in the same minute).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

EXPORTS = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "litert": "model.tflite",
    "executorch": "model.pte",
    "web": "web",
}
LIGHTER = ("int8", "student", "pruned")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--only", help=f"some of {','.join((*EXPORTS, *LIGHTER))}")
    parser.add_argument("--budget", help="wall time of student and pruned, each (default: that of the run)")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench/deploy.json"))
    asked = parser.parse_args()
    wanted = asked.only.split(",") if asked.only else [*EXPORTS, *LIGHTER]
    rows: list[dict[str, Any]] = []
    for run in asked.runs:
        rows += [exported(run, kind, asked.force) for kind in wanted if kind in EXPORTS]
        rows += [lighter(run, kind, asked.budget, asked.force) for kind in wanted if kind in LIGHTER]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    show(rows)


def verb(*words: object) -> dict[str, Any]:
    """What a command says with ``--json``; its last line of errors where it failed."""
    command = [sys.executable, "-m", "vesalius.cli.main", *map(str, words), "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1], "code": done.returncode}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def exported(run: Path, kind: str, force: bool) -> dict[str, Any]:
    """One kind of file of a run."""
    record = run / "export" / f"{EXPORTS[kind]}.accepted.json"
    record = run / "export" / "web" / "accepted.json" if kind == "web" else record
    if record.is_file() and not force:
        found = json.loads(record.read_text(encoding="utf-8"))
    else:
        found = verb("export", run, "--to", kind)
    row = {"run": run.name, "kind": kind, "error": found.get("error")}
    keys = ("task", "measure", "worst", "tolerance", "latency_ms", "bytes")
    return row | {key: found.get(key) for key in keys} | {"cases": len(found.get("cases") or [])}


def lighter(run: Path, kind: str, budget: str | None, force: bool) -> dict[str, Any]:
    """One lighter form of a run."""
    path = run / "compressed" / "variants.json"
    known = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.is_file() else []
    if force or not any(one["name"] == kind for one in known):
        more = ["--budget", budget] if budget and kind != "int8" else []
        found = verb("compress", run, "--to", kind, *more, *(["--force"] if force else []))
        if "error" in found:
            return {"run": run.name, "kind": kind, "error": found["error"]}
    record = json.loads(path.read_text(encoding="utf-8"))
    whole, small = record["variants"][0], next(one for one in record["variants"] if one["name"] == kind)
    metrics = small["comparison"]["metrics"]
    shown = {
        name: {key: metrics[name][key] for key in ("first", "second", "difference")}
        for name in ("accuracy", "auroc", "dice", "nsd")
        if name in metrics
    }
    costs = ("latency_ms", "batch_ms", "bytes", "operations", "parameters", "memory_bytes")
    ratios = {key: small[key] / whole[key] for key in costs if whole.get(key) and small.get(key)}
    return {"run": run.name, "kind": kind, "error": None, "metrics": shown, "ratios": ratios,
            "original": {key: whole[key] for key in costs}, "lighter": {key: small[key] for key in costs}}  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """Two tables as Markdown."""
    table("run | file | cases | compared | worst | allowed | ms a case | MB", EXPORTS, rows, _export_cells)
    print()
    table(
        "run | form | metric: as trained, lighter, difference | time | in batches | size | operations | memory",
        LIGHTER,
        rows,
        _lighter_cells,
    )


def table(head: str, kinds: Collection[str], rows: list[dict[str, Any]], cells: Callable[..., list[str]]) -> None:
    """The rows of these kinds; of what failed the reason."""
    columns = head.count("|") + 1
    print(f"| {head} |\n|{'---|' * columns}")
    for row in rows:
        if row["kind"] in kinds:
            found = [row["error"], *[""] * (columns - 3)] if row["error"] else cells(row)
            print(f"| {' | '.join([row['run'], row['kind'], *found])} |")


def _export_cells(row: dict[str, Any]) -> list[str]:
    return [str(row["cases"]), row["measure"], f"{row['worst']:.2g}", str(row["tolerance"]),
            f"{row['latency_ms']:.1f}", f"{row['bytes'] / 1e6:.2f}"]  # fmt: skip


def _lighter_cells(row: dict[str, Any]) -> list[str]:
    told = "; ".join(
        f"{name}: {one['first']:.4f}, {one['second']:.4f}, {one['difference']['value']:+.4f} "
        f"({one['difference']['low']:+.4f} to {one['difference']['high']:+.4f})"
        for name, one in row["metrics"].items()
    )
    names = ("latency_ms", "batch_ms", "bytes", "operations", "memory_bytes")
    return [told, *(f"{row['ratios'][name]:.2f}x" if name in row["ratios"] else "" for name in names)]


if __name__ == "__main__":
    main()
