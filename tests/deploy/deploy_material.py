"""Ways of cutting an image, files of one, and machines without Vesalius, for several tests of exported models."""

import sys

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence

from vesalius.core.errors import MissingExtra
from vesalius.serve import elsewhere

CUTS = {
    "stretch": {},
    "pad": {"fit": "pad"},
    "crop": {"fit": "crop"},
    "place": {"fit": "place"},
    "square": {"crop": "center_square"},
    "foreground": {"crop": "foreground"},
    "threshold": {"crop": "foreground", "threshold": 100.0, "fit": "pad"},
}


def dicom(path, values, *, light="MONOCHROME2", syntax="1.2.840.10008.1.2.1", stored=12, **more):
    """One secondary capture ``(Y, X)`` or ``(Y, X, 3)`` with nested sequences of undefined length."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "OT"
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = "p", "1.2.4", "1.2.5"
    inner = pydicom.Dataset()
    inner.CodeValue = "T-1"
    inner.is_undefined_length_sequence_item = True
    made.ProcedureCodeSequence = Sequence([inner])
    made["ProcedureCodeSequence"].is_undefined_length = True
    known = pydicom.Dataset()
    known.CodeValue = "T-2"
    made.RequestedProcedureCodeSequence = Sequence([known, known])
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1 if values.ndim == 2 else 3, light
    bits = 8 * values.dtype.itemsize
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, min(bits, stored), min(bits, stored) - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3:
        made.PlanarConfiguration = more.pop("planar", 0)
        values = values.transpose(2, 0, 1) if made.PlanarConfiguration else values
    for key, value in more.items():
        setattr(made, key, value)
    made.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    made.save_as(path, enforce_file_format=True)
    return path


def python_of(kind):
    """A Python that makes and runs a kind of file for mobile devices; the test is skipped where there is none."""
    if not elsewhere.wanted(kind):
        return sys.executable
    try:
        return str(elsewhere.interpreter(kind))
    except MissingExtra as error:
        return pytest.skip(str(error))


ALONE = """
import builtins, runpy, sys
real = builtins.__import__
def guarded(name, *rest, **more):
    if name.split(".")[0] in ("vesalius", "nibabel", "pydicom", "PIL"):
        raise ImportError(f"{name} is not on this machine")
    return real(name, *rest, **more)
builtins.__import__ = guarded
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv.pop(0))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""``python -c ALONE FOLDER PROGRAM ...``: as on a machine that has no Vesalius and no reader of images."""
