"""`vesalius export --to web`: a folder that answers in a browser, kept only if it gave the bundle's answers there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vesalius.core.errors import AcceptanceError, UsageError
from vesalius.core.files import write_json
from vesalius.core.progress import Progress
from vesalius.data.manifest import Manifest
from vesalius.deploy.web_check import accept_web
from vesalius.deploy.web_out import CONTRACT, NAMES, RECORD, WebFolder, write_web
from vesalius.deploy.web_runtime import runtime_files
from vesalius.predict.bundle import Bundle, find_bundle
from vesalius.serve.exporting import trials_of

CASES = {"classify": 10, "segment": 3}


def export_web(
    model: str | Path,
    *,
    out: str | Path | None,
    manifest: Manifest | None,
    cases: int | None,
    runtime: str | Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the folder and its record; what is not accepted never arrives at `out`.

    Raises
    ------
    UsageError
        For a folder that holds something else.
    AcceptanceError
        If the page does not give the bundle's answers (exit code 6).
    """
    inside = find_bundle(model)
    bundle = Bundle.load(inside)
    goal = Path(out) if out is not None else inside.parent / "export" / "web"
    _usable(goal)
    trials = trials_of(bundle, inside, manifest, CASES[bundle.task] if cases is None else cases)
    files = runtime_files(runtime, progress)
    progress.say(f"exporting to {goal}")
    whole = goal.resolve()
    part = whole.with_name(f".{whole.name}.{os.getpid()}.part") / whole.name
    try:
        write_web(bundle, part, files)
        record = accept_web(WebFolder(part), bundle, trials)
        goal.mkdir(parents=True, exist_ok=True)
        (goal / RECORD).unlink(missing_ok=True)
        for name in NAMES:
            (part / name).replace(goal / name)
        write_json(goal / RECORD, record)
    except AcceptanceError as error:
        raise AcceptanceError(str(error).replace(f"{part.parent.name}/", "")) from error
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)
    return {"path": str(goal), "record": str(goal / RECORD), **record}


def check_web_folder(
    model: str | Path, folder: str | Path, *, manifest: Manifest | None, cases: int | None, progress: Progress
) -> dict[str, Any]:
    """Accept a folder that is already there, once more.

    Raises
    ------
    AcceptanceError
        If its files are not those of its record, or it does not give the bundle's answers.
    """
    inside = find_bundle(model)
    bundle, folder = Bundle.load(inside), Path(folder)
    known = folder / RECORD
    if known.is_file():
        digests = json.loads(known.read_text(encoding="utf-8"))["sha256"]
        made = WebFolder.digests(folder)
        wrong = next((name for name in NAMES if digests.get(name) != made[name]), None)
        if wrong is not None:
            raise AcceptanceError(
                f"{folder / wrong}: is not the file that was accepted (its checksum differs from {RECORD}); "
                "export it again"
            )
    progress.say(f"checking {folder}")
    trials = trials_of(bundle, inside, manifest, CASES[bundle.task] if cases is None else cases)
    record = accept_web(WebFolder(folder), bundle, trials)
    return {"path": str(folder), "record": str(known) if known.is_file() else None, **record}


def _usable(goal: Path) -> None:
    """A new or empty folder, or one of an earlier export."""
    if goal.exists() and not goal.is_dir():
        raise UsageError(f"--out {goal}: is a file; web writes a folder")
    if goal.is_dir() and any(goal.iterdir()) and not all((goal / name).is_file() for name in (RECORD, CONTRACT)):
        raise UsageError(f"--out {goal}: holds other files; name a new folder")
