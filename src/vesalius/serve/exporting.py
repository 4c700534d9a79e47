"""`vesalius export`: a bundle leaves as one file that has shown, on real cases, that it gives the bundle's answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vesalius.core.errors import AcceptanceError, UsageError
from vesalius.core.files import sha256, write_json
from vesalius.core.progress import Progress
from vesalius.data.manifest import Manifest
from vesalius.data.truth import open_case_image
from vesalius.deploy import mobile_runner
from vesalius.deploy.accept import Trial, accept
from vesalius.deploy.artefact import MOBILE, Artefact
from vesalius.deploy.mobile import mobile_contract, write_executorch, write_litert
from vesalius.deploy.one_file import write_runner
from vesalius.deploy.onnx_out import write_onnx
from vesalius.deploy.openvino_out import write_openvino
from vesalius.io.open import open_image
from vesalius.predict.bundle import Bundle, find_bundle
from vesalius.train.run import RunFolder

KINDS = {
    "onnx": (".onnx", write_onnx),
    "openvino": (".xml", write_openvino),
    "litert": (".tflite", write_litert),
    "executorch": (".pte", write_executorch),
}
CASES = {"classify": 50, "segment": 5}
MOBILE_CASES = 100
"""Images that a classifier for mobile devices is tried on; its libraries are less tried than others."""
RUNNER, MOBILE_RUNNER = "run.py", "run_mobile.py"


def record_of(artefact: Path) -> Path:
    """Where the acceptance record of a file lies."""
    return artefact.with_name(f"{artefact.name}.accepted.json")


def export_model(
    model: str | Path,
    *,
    to: str,
    out: str | Path | None,
    manifest: Manifest | None,
    cases: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the file, its runner and its record; a file that is not accepted is taken away again."""
    if to not in KINDS:
        raise UsageError(f"--to {to}: this version exports {', '.join(KINDS)}")
    suffix, write = KINDS[to]
    folder = find_bundle(model)
    bundle = Bundle.load(folder)
    if bundle.graphs and to in MOBILE:
        raise UsageError(f"--to {to}: an int8 bundle becomes onnx or openvino; export the run it was made from")
    path = Path(out) if out is not None else folder.parent / "export" / f"model{suffix}"
    if path.suffix != suffix:
        raise UsageError(f"--out {path}: {to} writes a file that ends with {suffix}")
    if to in MOBILE:
        mobile_contract(bundle, to)  # refuses other models before anything is read or written
    trials = trials_of(bundle, folder, manifest, cases or _most(bundle, to))
    record_of(path).unlink(missing_ok=True)
    progress.say(f"exporting to {path}")
    write(bundle, path)
    artefact = Artefact(path)
    try:
        record = accept(artefact, bundle, trials)
    except AcceptanceError:
        for file in artefact.files:
            file.unlink(missing_ok=True)
        raise
    write_json(record_of(path), record)
    if to in MOBILE:
        shutil.copyfile(mobile_runner.__file__, path.with_name(MOBILE_RUNNER))
    if to == "onnx" or to in MOBILE:
        write_runner(artefact.contract, path.with_name(RUNNER))
    return {"path": str(path), "record": str(record_of(path)), **record}


def _most(bundle: Bundle, kind: str) -> int:
    """Cases to try unless the person says how many."""
    return MOBILE_CASES if kind in MOBILE and bundle.task == "classify" else CASES[bundle.task]


def check_model(
    model: str | Path, artefact: str | Path, *, manifest: Manifest | None, cases: int | None, progress: Progress
) -> dict[str, Any]:
    """Accept a file that is already there, once more.

    Raises
    ------
    AcceptanceError
        If it is not the file of its record, or does not give the bundle's answers.
    """
    folder = find_bundle(model)
    known = record_of(Path(artefact))
    if known.is_file():
        _same_files(Path(artefact), known)
    bundle, made = Bundle.load(folder), Artefact(artefact)
    progress.say(f"checking {made.path}")
    record = accept(made, bundle, trials_of(bundle, folder, manifest, cases or _most(bundle, made.kind)))
    return {"path": str(made.path), "record": str(known) if known.is_file() else None, **record}


def _same_files(path: Path, record: Path) -> None:
    """Compare checksums before a library loads the file: it may not stand one that was changed."""
    digests = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    for name in {path.name, *digests}:
        file = path.with_name(name)
        if not file.is_file() or sha256(file) != digests.get(name):
            raise AcceptanceError(
                f"{file}: is not the file that was accepted (its checksum differs from {record.name}); export it again"
            )


def trials_of(bundle: Bundle, folder: Path, manifest: Manifest | None, count: int | None) -> list[Trial]:
    """Real cases: those of `manifest`, else the test cases of the run that the bundle lies in.

    Raises
    ------
    UsageError
        If there are none.
    """
    if manifest is None:
        run = RunFolder(folder.parent)
        if not run.cohort.exists():
            raise UsageError(f"{folder}: no run lies around this bundle; give --data with cases to accept the file on")
        manifest = Manifest.from_parquet(run.cohort)
        cases = manifest.cases
        part = cases[cases["split"] == "test"]
        part = part if len(part) else cases[cases["split"] == "val"]
    else:
        part = manifest.cases
    most = CASES[bundle.task] if count is None else count
    # Spread over the list, which is often sorted by class or site.
    step = max(1, len(part) // max(most, 1))
    part = part.iloc[::step].head(most)
    if part.empty:
        raise UsageError(f"{manifest.root}: holds no case to accept the file on; give --data")
    return [_trial(manifest, bundle, str(row.case_id), str(row.path)) for row in part.itertuples()]


def _trial(manifest: Manifest, bundle: Bundle, case: str, path: str) -> Trial:
    file = manifest.root / path
    if bundle.task == "segment":
        single = int(bundle.preprocess["channels"]) == 1 or file.suffix.lower() == ".png"
        alone = file if single and file.is_file() else None
        return Trial(case, alone, lambda: open_case_image(manifest, case))
    return Trial(case, file if file.is_file() else None, lambda: open_image(file))
