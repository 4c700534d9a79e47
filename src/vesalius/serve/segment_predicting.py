"""Masks of many files: reading, computing and writing overlap, what is done is skipped, failures stop nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import DataError, UsageError
from vesalius.core.files import safe_stem, write_json, write_text
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.core.labels import Labels
from vesalius.core.progress import Progress, Silent
from vesalius.core.version import __version__
from vesalius.data.discover import discover
from vesalius.data.listing import list_files, stem_of
from vesalius.data.truth import open_channels
from vesalius.data.truth_files import CHANNELS, with_channels
from vesalius.io.nifti_out import write_nifti
from vesalius.measure.boundary_band import Band, apply_band
from vesalius.predict.cohort import Outcome, gather
from vesalius.predict.segmenter import Segmented, SegmentPredictor, Wanted
from vesalius.report.measure_pictures import contour_picture
from vesalius.serve.segment_results import write_mask

FORMATS = (
    "json",
    "csv",
    "nifti",
    "png",
    "overlay",
    "dicomseg",
    "rtstruct",
    "mesh",
    "probabilities",
    "uncertainty",
    "disagreement",
    "band",
)
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class SegmentItem:
    """One case to predict: its id and the files of its channels."""

    case_id: str
    sources: tuple[str, ...]

    @property
    def source(self) -> str:
        """For the record: one path, or several joined by ``|``."""
        return "|".join(self.sources)


def gather_cases(inputs: Sequence[str | Path], channels: int) -> list[SegmentItem]:
    """Files, folders and DICOM series as cases; of models with several channels the files of each case together.

    Files named ``CASE_0000``, ``CASE_0001``... are the channels of one case; in folders of a known layout the channels
    are those of the layout; a NIfTI file with a fourth axis of that length is a case by itself; any other files are
    taken as one case if exactly `channels` are given.

    Raises
    ------
    UsageError
        If a path does not exist, or files do not make whole cases.
    DataError
        If nothing that can be opened is found.
    """
    if channels > 1:
        found = _grouped(inputs, channels)
        if found:
            return found
    return [SegmentItem(item.case_id, (item.source,)) for item in gather(inputs)]


def _grouped(inputs: Sequence[str | Path], channels: int) -> list[SegmentItem]:
    items: list[SegmentItem] = []
    loose: list[Path] = []
    for given in inputs:
        path = Path(given)
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; check the path")
        if path.is_dir():
            frame = discover(path)
            for case, rows in frame.frame.groupby("case_id", sort=False):
                roles = rows[rows["role"].str.fullmatch(r"image(_\d+)?")].sort_values("role")
                paths = [str(frame.root / where) for where in roles["path"]]
                members = [with_channels(paths[0], channels)] if len(paths) == 1 else paths
                items.append(SegmentItem(str(case), tuple(members)))
        else:
            loose.append(path)
    named: dict[str, dict[int, str]] = defaultdict(dict)
    rest = []
    for path in [*loose, *(Path(one.sources[0]) for one in items if len(one.sources) == 1)]:
        match = _CHANNEL.search(stem_of(path.name))
        if match:
            named[stem_of(path.name)[: match.start()]][int(match[1])] = str(path)
        elif path in loose and (whole := with_channels(path, channels)) != str(path):
            items.append(SegmentItem(stem_of(path.name), (whole,)))
        elif path in loose:
            rest.append(path)
    items = [one for one in items if len(one.sources) > 1 or not _CHANNEL.search(stem_of(Path(one.sources[0]).name))]
    items += [SegmentItem(case, tuple(parts[k] for k in sorted(parts))) for case, parts in named.items()]
    if len(rest) == channels:
        items.append(SegmentItem(stem_of(rest[0].name), tuple(map(str, rest))))
    else:
        items += [SegmentItem(stem_of(path.name), (str(path),)) for path in rest]
    return items


def predict_segments(
    predictor: SegmentPredictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    formats: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """A mask of every case in `out`, in the formats asked for, with a JSON record that is written last.

    A case is done if its record exists, was made by the same weights from the same files, and holds the formats. Cases
    that cannot be read are listed in ``failed.json`` and in the outcome; the others go on.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise UsageError(f"--format {', '.join(unknown)}: segmentation writes {', '.join(FORMATS)}")
    if "disagreement" in formats and predictor.opinions < 2:
        raise UsageError(
            "--format disagreement: this model is one network with one view, and cannot disagree with itself; "
            "train with --set split.folds=5, or ask for uncertainty"
        )
    out, progress = Path(out), progress or Silent()
    out.mkdir(parents=True, exist_ok=True)
    items = _unique(gather_cases(inputs, predictor.conform.channels))
    outcome, todo = Outcome(), []
    for item in items:
        known = None if force else _done(_record(out, item), item, predictor.bundle.checksum, formats)
        if known is None:
            todo.append(item)
        else:
            outcome.skipped.append(item.case_id)
            outcome.predictions.append(known)
    progress.start("predict", len(items), "cases")
    progress.advance(len(outcome.skipped))
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        waiting: list[tuple[SegmentItem, Future[dict[str, Any]]]] = []
        for item, image in _read_ahead(todo):
            try:
                if isinstance(image, str):
                    raise DataError(image)
                found = predictor.segment(image, item.case_id, _wanted(formats))
            except DataError as error:
                _fail(outcome, item, str(error), progress)
                continue
            _collect(outcome, waiting, progress, keep=1)
            waiting.append((item, writer.submit(write_case, found, item, out, formats, predictor)))
        _collect(outcome, waiting, progress, keep=0)
    progress.stop()
    _overview(out / "predictions.csv", outcome)
    failed = out / "failed.json"
    if outcome.failed:
        write_json(failed, outcome.failed)
    else:
        failed.unlink(missing_ok=True)
    return outcome


def _overview(path: Path, outcome: Outcome) -> None:
    """One row per case and structure: what the records say."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("voxels", "pixels", "volume_ml", "area_mm2", "objects")
    writer.writerow(["case_id", "structure", *names, "source"])
    for entry in sorted(outcome.predictions, key=lambda e: str(e["case_id"])):
        for structure, found in entry["structures"].items():
            values = [found.get(name, "") for name in names]
            writer.writerow([entry["case_id"], structure, *values, entry["source"]])
    write_text(path, text.getvalue())


def _wanted(formats: Sequence[str]) -> Wanted:
    return Wanted(
        probabilities="probabilities" in formats,
        entropy="uncertainty" in formats,
        spread="disagreement" in formats,
    )


def _fail(outcome: Outcome, item: SegmentItem, line: str, progress: Progress) -> None:
    outcome.failed[item.case_id] = line
    progress.warn(line)
    progress.advance()


def _collect(
    outcome: Outcome, waiting: list[tuple[SegmentItem, Future[dict[str, Any]]]], progress: Progress, *, keep: int
) -> None:
    """Take finished writes; at most `keep` volumes wait to be written."""
    while len(waiting) > keep:
        item, future = waiting.pop(0)
        try:
            entry = future.result()
        except DataError as error:
            _fail(outcome, item, str(error), progress)
            continue
        outcome.written.append(item.case_id)
        outcome.predictions.append(entry)
        progress.advance()


def _read_ahead(items: Sequence[SegmentItem]) -> Iterator[tuple[SegmentItem, Image | str]]:
    """The image of each case, or the line that says why not; one more is read while the caller computes."""

    def read(item: SegmentItem) -> Image | str:
        try:
            return open_channels(item.sources)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        ahead: list[tuple[SegmentItem, Future[Image | str]]] = []
        for item in items:
            ahead.append((item, pool.submit(read, item)))
            if len(ahead) > 1:
                first, future = ahead.pop(0)
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _record(out: Path, item: SegmentItem) -> Path:
    return out / f"{safe_stem(item.case_id)}.json"


def _done(path: Path, item: SegmentItem, checksum: str, formats: Sequence[str]) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((path.parent / name).exists() for name in known.get("files", ()))
    same = known.get("model") == checksum and known.get("source") == item.source
    return known if same and whole and set(formats) <= set(known.get("formats", ())) else None


def _unique(items: Sequence[SegmentItem]) -> list[SegmentItem]:
    seen: dict[str, int] = {}
    out = []
    for item in items:
        seen[item.case_id] = seen.get(item.case_id, 0) + 1
        again = seen[item.case_id] > 1
        out.append(replace(item, case_id=f"{item.case_id}-{seen[item.case_id]}") if again else item)
    return out


def write_case(
    found: Segmented, item: SegmentItem, out: Path, formats: Sequence[str], predictor: SegmentPredictor
) -> dict[str, Any]:
    """All files of one case, the JSON record last; returns the record."""
    stem, labels, grid = safe_stem(item.case_id), predictor.labels, found.mask.grid
    files: list[str] = []
    notes: list[str] = []
    flat = grid.ndim == 2
    if not formats or "nifti" in formats or ("png" in formats and flat):
        files.append(_mask_file(found, item, out, stem, formats, labels))
    if "overlay" in formats or ("png" in formats and not flat):
        (out / f"{stem}-overlay.png").write_bytes(overlay(found, labels))
        files.append(f"{stem}-overlay.png")
    if "dicomseg" in formats:
        files.append(_dicom_seg(found, item, out, stem, predictor))
    if set(formats) & {"rtstruct", "mesh"}:
        from vesalius.serve.segment_exports import outlines

        files += outlines(found, item, out, formats, notes)
    if "probabilities" in formats and found.probabilities is not None:
        files.append(_values(out / f"{stem}-probabilities.nii.gz", found.probabilities, grid))
    if "uncertainty" in formats and found.entropy is not None:
        files.append(_values(out / f"{stem}-uncertainty.nii.gz", found.entropy[None], grid))
    if "disagreement" in formats and found.spread is not None:
        files.append(_values(out / f"{stem}-disagreement.nii.gz", found.spread[None], grid))
    if "band" in formats:
        files += _bands(found, out, stem, predictor, notes)
    entry = {
        "schema": 1,
        "case_id": item.case_id,
        "kind": "mask",
        "structures": sizes(found.mask.values, grid, labels),
        "files": files,
        "formats": sorted(set(formats)),
        "source": item.source,
        "model": predictor.bundle.checksum,
    }
    if found.scale != 1.0:
        entry["scale"] = round(found.scale, 4)
    if notes:
        entry["notes"] = notes
    write_json(_record(out, item), entry)
    return entry


def _mask_file(
    found: Segmented, item: SegmentItem, out: Path, stem: str, formats: Sequence[str], labels: Labels
) -> str:
    """The label map: NIfTI with the header of the input, PNG for pictures."""
    first = item.sources[0].removesuffix(f"#{CHANNELS}")
    picture = found.mask.grid.ndim == 2 and not labels.multilabel and "nifti" not in formats
    if picture and not first.endswith((".nii", ".nii.gz")):
        return write_mask(found.mask, out / f"{stem}.png").name
    path = out / f"{stem}.nii.gz"
    top = int(found.mask.values.max(initial=0))
    values = found.mask.values.astype(np.uint8 if top < 256 else np.uint16 if top < 65536 else np.int32)
    like = first if first.endswith((".nii", ".nii.gz")) and found.mask.grid.ndim == 3 else None
    return write_nifti(replace(found.mask, values=values), path, level=1, like=like).name


def overlay(found: Segmented, labels: Labels) -> bytes:
    """The outlines of the mask on its image, as PNG."""
    names = dict(enumerate(labels.structures, 1))
    return contour_picture(found.image, label_map(found.mask.values, found.mask.grid, labels), names=names)


def label_map(values: NDArray[Any], grid: Grid, labels: Labels) -> NDArray[Any]:
    """A label map of layers, the later structure on top; a label map as it is."""
    if values.ndim == grid.ndim:
        return values
    out = np.zeros(grid.shape, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    for number, layer in enumerate(values, 1):
        out[layer != 0] = number
    return out


def _dicom_seg(found: Segmented, item: SegmentItem, out: Path, stem: str, predictor: SegmentPredictor) -> str:
    from vesalius.io.dicom_seg_out import write_dicom_seg

    path = out / f"{stem}.dcm"
    source = dicom_files(item.sources[0])
    write_dicom_seg(
        path,
        found.mask.values,
        found.mask.grid,
        predictor.labels,
        source=source or None,
        image=None if source else found.image,
        algorithm=f"vesalius {predictor.bundle.model['name']} {predictor.bundle.checksum[:12]}",
        version=__version__,
        meta=None if source else {"patient_id": item.case_id},
    )
    return path.name


def dicom_files(source: str) -> list[Path]:
    """The DICOM files behind a source: those of a folder, or the file itself; none for other formats."""
    from vesalius.io.sniff import sniff

    place = Path(source)
    if place.is_dir():
        return [place / name for name in list_files(place).of("dicom")]
    return [place] if place.is_file() and str(sniff(place)) == "dicom" else []


def _values(path: Path, values: NDArray[Any], grid: Grid) -> str:
    """Numbers per voxel, ``(C, *S)``."""
    image = Image(grid, np.asarray(values, dtype=np.float32), unit=Unit.INTENSITY)
    return write_nifti(image, path, level=1).name


def _bands(found: Segmented, out: Path, stem: str, predictor: SegmentPredictor, notes: list[str]) -> list[str]:
    """Per structure: 2 inside the inner surface, 1 between the two surfaces, 0 outside."""
    data = predictor.bundle.inference.get("band")
    if not data:
        notes.append("the model has no boundary band: too few validation cases")
        return []
    band, files = Band.from_json(data), []
    grid, labels = found.mask.grid, predictor.labels
    for number, name in enumerate(labels.structures, 1):
        layered = found.mask.values.ndim > grid.ndim  # layers are counted from 0, values of a map from 1
        mask = (found.mask.values[number - 1] != 0) if layered else found.mask.values == number
        try:
            inner, outer = apply_band(mask, band, grid.spacing_mm, number - 1 if layered else number)
        except ValueError as error:
            notes.append(f"{name}: {error}")
            continue
        zones = outer.astype(np.uint8) + inner.astype(np.uint8)
        path = out / f"{stem}-band-{safe_stem(name)}.nii.gz"
        files.append(write_nifti(replace(found.mask, values=zones), path, level=1).name)
    return files


def sizes(values: NDArray[Any], grid: Grid, labels: Labels) -> dict[str, dict[str, float]]:
    """Voxels and volume (ml; mm2 of flat images) of every structure; the number of single objects."""
    spacing = grid.spacing_mm
    unit = None if spacing is None else float(np.prod(spacing)) / (1000.0 if grid.ndim == 3 else 1.0)
    name_of_unit = "volume_ml" if grid.ndim == 3 else "area_mm2"
    out: dict[str, dict[str, float]] = {}
    if labels.instances:
        counts: Mapping[int, int] = {1: int((values > 0).sum())}
    elif values.ndim > grid.ndim:
        counts = {k: int((layer != 0).sum()) for k, layer in enumerate(values, 1)}
    else:
        counts = dict(enumerate(np.bincount(values.reshape(-1), minlength=len(labels)).tolist()))
    for number, name in enumerate(labels.structures, 1):
        entry: dict[str, float] = {"voxels" if grid.ndim == 3 else "pixels": counts.get(number, 0)}
        if unit is not None:
            entry[name_of_unit] = round(counts.get(number, 0) * unit, 4)
        if labels.instances:
            entry["objects"] = len(np.unique(values[values > 0]))
        out[name] = entry
    return out
