"""Formats are known by their content, whatever their name."""

from __future__ import annotations

import gzip
import zipfile

import nibabel as nib
import numpy as np
import pytest
import tifffile
from dicom_writing import image_dataset, save
from PIL import Image as Picture

from vesalius.core.errors import UnreadableFile
from vesalius.io.sniff import Kind, dicom_start, sniff


def test_formats_by_content_under_a_wrong_name(tmp_path):
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    picture = Picture.new("L", (8, 8))
    made = {
        Kind.PNG: lambda file: picture.save(file, "PNG"),
        Kind.JPEG: lambda file: picture.save(file, "JPEG"),
        Kind.JPEG2000: lambda file: picture.save(file, "JPEG2000"),
        Kind.BMP: lambda file: picture.save(file, "BMP"),
        Kind.GIF: lambda file: picture.save(file, "GIF"),
        Kind.TIFF: lambda file: tifffile.imwrite(file, np.zeros((8, 8), np.uint8)),
        Kind.NPY: lambda file: np.save(file.open("wb"), np.zeros(3)),
        Kind.NPZ: lambda file: np.savez(file.open("wb"), a=np.zeros(3)),
        Kind.DICOM: lambda file: save(image_dataset(np.zeros((4, 4), np.uint8)), file),
        Kind.TEXT: lambda file: file.write_text("Grüße, ein Text\n"),
        Kind.EMPTY: lambda file: file.touch(),
        Kind.UNKNOWN: lambda file: file.write_bytes(bytes(range(200, 256)) * 20),
        Kind.VIDEO: lambda file: file.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 64),
        Kind.GZIP: lambda file: file.write_bytes(gzip.compress(b"something else")),
    }
    for kind, write in made.items():
        file = tmp_path / f"{kind.name}.xyz"
        write(file)
        assert sniff(file) is kind
    volume = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for suffix, kind in ((".nrrd", Kind.NRRD), (".mha", Kind.METAIMAGE), (".nii", Kind.NIFTI), (".nii.gz", Kind.NIFTI)):
        sitk.WriteImage(volume, str(tmp_path / f"v{suffix}"))
        assert sniff(tmp_path / f"v{suffix}") is kind
        (tmp_path / f"v{suffix}").rename(tmp_path / "renamed.jpg")
        assert sniff(tmp_path / "renamed.jpg") is kind


def test_nifti_two_and_pairs(tmp_path):
    nib.save(nib.Nifti2Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "b.img")
    assert sniff(tmp_path / "a.nii") is Kind.NIFTI
    assert sniff(tmp_path / "b.hdr") is Kind.NIFTI


def test_zip_that_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("a.txt", "x")
    assert sniff(tmp_path / "a") is Kind.ZIP


def test_folders(tmp_path):
    assert sniff(tmp_path) is Kind.FOLDER
    (tmp_path / "notes.txt").write_text("x")
    assert sniff(tmp_path) is Kind.FOLDER
    save(image_dataset(np.zeros((4, 4), np.uint8)), tmp_path / "deep" / "er" / "IM1")
    assert sniff(tmp_path) is Kind.DICOM_FOLDER


def test_nothing_there(tmp_path):
    with pytest.raises(UnreadableFile, match="no such file"):
        sniff(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("head", "start"),
    [
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x12\x00DA\x08\x00", 0),  # explicit little endian
        (b"\x00\x08\x00\x05CS\x00\x0aISO_IR 100\x00\x08\x00\x12DA\x00\x08", 0),  # explicit big endian
        (b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100\x08\x00\x12\x00\x08\x00\x00\x00", 0),  # implicit
        (b" \x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x12\x00DA\x08\x00", 1),  # a stray pad byte
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x02\x00\x12\x00DA\x08\x00", None),  # tags that fall
        (b"\x08\x00\x05\x00 just some bytes that start alike", None),
        (b"\x00" * 64, None),
        (b"", None),
    ],
)
def test_start_without_a_preamble(head, start):
    assert dicom_start(head) == start


@pytest.mark.realdata
def test_real_files_without_preamble(real_data):
    folder = real_data / "dicom" / "pydicom-files"
    for file in sorted(folder.glob("*.dcm")):
        assert sniff(file) is Kind.DICOM, file
    assert sniff(folder / "README.txt") is Kind.TEXT
