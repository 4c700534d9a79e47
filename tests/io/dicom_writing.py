"""Tiny DICOM files for tests, written by pydicom: an implementation that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES = "1.2.826.0.1.3680043.8.498.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def image_dataset(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """A data set with `pixels` (Y, X), (F, Y, X) or (Y, X, 3) and the given elements by keyword (None: absent)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(elements), pixels.tobytes().hex()[:64]])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = SERIES
    dataset.StudyInstanceUID = SERIES + ".1"
    dataset.Modality, dataset.PatientID = "CT", "P1"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    rows = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.Rows, dataset.Columns = (int(side) for side in rows)
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = pixels.shape[0]
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    volume: np.ndarray,
    positions: Sequence[Sequence[float]],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (0.5, 0.75),
    names: Sequence[str] | None = None,
    **elements: Any,
) -> list[Path]:
    """One file per slice of `volume` (Z, Y, X), its first pixel at `positions[z]`."""
    names = names or [f"{index:03d}.dcm" for index in range(len(volume))]
    paths = []
    for index, (pixels, position, name) in enumerate(zip(volume, positions, names, strict=True)):
        facts = {
            "ImagePositionPatient": [float(f"{value:.10g}") for value in position],
            "ImageOrientationPatient": [float(f"{value:.10g}") for value in orientation],
            "PixelSpacing": list(spacing),
            "SliceThickness": 2.0,
            "InstanceNumber": index + 1,
            **elements,
        }
        paths.append(save(image_dataset(pixels, **facts), folder / name))
    return paths


def ramp(count: int = 5, rows: int = 6, columns: int = 7, dtype: Any = np.int16) -> np.ndarray:
    """A volume in which every voxel is different."""
    return np.arange(count * rows * columns, dtype=dtype).reshape(count, rows, columns)
