"""Which DICOM files are read, and how that compares with pydicom and SimpleITK: writes the table as Markdown.

python benchmarks/dicom_coverage.py FOLDER [--out docs/dicom-coverage.md]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 - as everyone writes it
from pydicom.pixels import apply_color_lut, apply_modality_lut

from vesalius.core.errors import VesaliusError
from vesalius.core.files import write_text
from vesalius.core.image import Image
from vesalius.io.open import list_series, open_image, open_series
from vesalius.io.sniff import Kind, sniff

HEAD = ("file", "what", "transfer syntax", "result", "shape", "type", "unit", "geometry", "pixels", "place", "notes")
SERIES_HEAD = ("folder", "series", "result", "shape", "unit", "geometry", "pixels and SimpleITK", "place")


def header(path: Path) -> tuple[str, str]:
    """(what it is, transfer syntax), by pydicom."""
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    except Exception as error:
        return f"unreadable to pydicom ({type(error).__name__})", ""
    sop_class = dataset.get("SOPClassUID")
    meta = getattr(dataset, "file_meta", {})
    syntax = meta.get("TransferSyntaxUID")
    what = getattr(sop_class, "name", "") or "no SOP class"
    return what.replace(" Storage", ""), syntax.name.split("(")[0].strip() if syntax else "not stated"


def geometry(image: Image) -> str:
    """What is known about the place: spacing in mm, with or without a position."""
    if image.grid.spacing_mm is None:
        return "none (pixels)"
    size = " x ".join(f"{step:.4g}" for step in image.grid.spacing_mm)
    return f"{size} mm" + ("" if image.grid.affine is not None else ", no position")


def against_pydicom(path: Path, image: Image) -> str:
    """Whether pydicom, alone, gives the same pixels after its modality LUT."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        stored = dataset.pixel_array
    except Exception:
        return "pydicom cannot"
    if dataset.get("Modality") == "SEG":
        return "labels"
    mine = np.moveaxis(image.pixels if image.pixels.ndim == 4 else image.pixels[:, None], 0, 1)
    frames = int(dataset.get("NumberOfFrames") or 1)
    theirs: Any
    if dataset.PhotometricInterpretation == "PALETTE COLOR" or dataset.SamplesPerPixel == 3:
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)[..., :3]
        theirs = np.moveaxis(stored.reshape(frames, *stored.shape[-3:]), -1, 1)
    else:
        rescale = dataset
        if "SharedFunctionalGroupsSequence" in dataset:
            rescale = dataset.SharedFunctionalGroupsSequence[0].get("PixelValueTransformationSequence", [dataset])[0]
        theirs = apply_modality_lut(stored, rescale).reshape(frames, 1, *stored.shape[-2:])
        if dataset.get("Modality") == "RTDOSE":
            theirs = theirs * float(dataset.DoseGridScaling)
    if mine.shape != theirs.shape:
        return f"differ in shape {theirs.shape}"
    for order in (slice(None), slice(None, None, -1)):
        if np.allclose(mine, theirs[order], rtol=1e-6):
            return "equal" if order.step is None else "equal (slices turned to rise)"
    if dataset.PhotometricInterpretation == "MONOCHROME1" and np.allclose(mine, 2**dataset.BitsStored - 1 - theirs):
        return "equal, turned round"
    return f"differ by up to {np.abs(mine - theirs.astype(float)).max():.4g}"


def against_itk(theirs: Any, image: Image) -> str:
    """Largest distance in mm between the corners as SimpleITK and as we place them."""
    if image.grid.affine is None:
        return "no position"
    sides = image.grid.shape if image.grid.ndim == 3 else (1, *image.grid.shape)
    if tuple(theirs.GetSize()[:3]) != sides[::-1]:
        return f"SimpleITK has size {theirs.GetSize()}"
    worst = 0.0
    for z in (0, sides[0] - 1):
        for y in (0, sides[1] - 1):
            for x in (0, sides[2] - 1):
                index = [z, y, x] if image.grid.ndim == 3 else [y, x]
                point = np.array(theirs.TransformIndexToPhysicalPoint((x, y, z)))
                worst = max(worst, float(np.abs(point - image.grid.to_patient(index)).max()))
    return "equal" if worst < 1e-6 else f"within {worst:.1g} mm"


def row(name: str, path: Path) -> list[str]:
    """One line of the table."""
    what, syntax = header(path)
    try:
        image = open_image(path)
    except VesaliusError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return [name, what, syntax, "refused: " + reason, *[""] * 6, ""]
    try:
        place = against_itk(sitk.ReadImage(str(path)), image)
    except RuntimeError:
        place = "SimpleITK cannot"
    notes = "; ".join(note.text for note in image.record)
    shape = "x".join(map(str, image.pixels.shape))
    kind = [shape, str(image.pixels.dtype), str(image.unit), geometry(image)]
    return [name, what, syntax, "read", *kind, against_pydicom(path, image), place, notes]


def series_rows(folder: Path) -> tuple[list[list[str]], set[Path]]:
    """One line per series of more than one file, and the files that are like the first of their series."""
    rows: list[list[str]] = []
    alike: set[Path] = set()
    for series in list_series(folder):
        if len(series.files) < 2 or not series.has_pixels:
            continue
        parents = {file.parent for file in series.files}
        name = str(next(iter(parents)).relative_to(folder)) if len(parents) == 1 else "several folders"
        what = f"{series} {series.key}"
        try:
            image = open_series(series)
        except VesaliusError as error:
            rows.append([name, what, f"refused: {error}".replace(str(folder) + "/", ""), *[""] * 5])
            continue
        alike |= set(series.files[1:])
        with tempfile.TemporaryDirectory() as alone:
            for index, file in enumerate(series.files):
                (Path(alone) / f"{index:05d}").symlink_to(file)
            try:
                reader = sitk.ImageSeriesReader()
                reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(alone))
                theirs = reader.Execute()
                values = sitk.GetArrayFromImage(theirs)
                same = (
                    "equal" if values.shape == image.grid.shape and np.allclose(values, image.pixels[0]) else "differ"
                )
                place = against_itk(theirs, image)
            except RuntimeError:
                same, place = "SimpleITK cannot", ""
        shape = "x".join(map(str, image.pixels.shape))
        rows.append([name, what, "read", shape, str(image.unit), geometry(image), same, place])
    return rows, alike


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/dicom-coverage.md"))
    given = parser.parse_args()
    series, alike = series_rows(given.folder)
    files = [path for path in sorted(given.folder.rglob("*")) if path.is_file() and sniff(path) is Kind.DICOM]
    rows = [row(str(path.relative_to(given.folder)), path) for path in files if path not in alike]
    counts = Counter("read" if line[3] == "read" else "refused" for line in rows)
    text = f"""# DICOM coverage

Made by `python benchmarks/dicom_coverage.py FOLDER`; do not edit. The folder held {len(files)} DICOM files. Of a series
that is read as a volume the first file stands for all, which leaves {len(rows)} lines: {counts["read"]} read and
{counts["refused"]} refused with a reason. "pixels" compares with pydicom's own decoding and modality LUT, "place"
compares the corners of the grid with SimpleITK. The slices of two positions that SimpleITK stacks on one are copies
of each other, which we leave out with a note.

## Files

{table(HEAD, rows)}

## Series

{table(SERIES_HEAD, series)}
"""
    write_text(given.out, text)
    print(f"{given.out}: {dict(counts)}, {len(series)} series")


if __name__ == "__main__":
    main()
