"""Every DICOM file of the real data is read as pydicom and SimpleITK read it, or refused with one line."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut

from vesalius.core.errors import DataError, GeometryError, UnreadableFile
from vesalius.core.image import Act, Unit
from vesalius.io.open import list_series, open_image

pytestmark = pytest.mark.realdata

# File name -> why it is refused. Everything else must be read.
REFUSED = {
    "MR_truncated.dcm": "8130 bytes of pixel data; expected 8192",
    "badVR.dcm": "Number of Frames '1A'",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "without a data set",
    "ExplVR_BigEndNoMeta.dcm": "RT ion plan", "ExplVR_LitEndNoMeta.dcm": "RT ion plan",
    "rtplan.dcm": "RT plan", "rtplan_truncated.dcm": "RT plan", "rtstruct.dcm": "RT structure set",
    "mock_data-rt.dcm": "RT structure set", "mock_data-invalid_reference_rt.dcm": "RT structure set",
    "mock_data-non_existent_reference_rt.dcm": "RT structure set",
    "reportsi.dcm": "structured report", "reportsi_with_empty_number_tags.dcm": "structured report",
    "test-SR.dcm": "structured report", "sr.dcm": "structured report", "rwvm.dcm": "real world value mapping",
    "empty_charset_LEI.dcm": "without SOP class", "meta_missing_tsyntax.dcm": "without SOP class",
    "nested_priv_SQ.dcm": "without SOP class", "no_meta_group_length.dcm": "without SOP class",
    "priv_SQ.dcm": "without SOP class",
}  # fmt: skip


def odd_files(real_data):
    folders = ("pydicom-files", "dcmqi", "rtstruct", "burned-in-text")
    files = [path for folder in folders for path in sorted((real_data / "dicom" / folder).rglob("*"))]
    return [path for path in files if path.suffix in (".dcm", ".seg") and "701-ADCb500" not in str(path)]


def theirs_of(path, dataset):
    """Pixels (frames, channels, Y, X) by pydicom alone, after the modality LUT; None where it has no answer."""
    if "TransferSyntaxUID" not in dataset.file_meta or dataset.get("Modality") == "SEG":
        return None
    try:
        stored = dataset.pixel_array
    except (RuntimeError, ValueError, AttributeError):
        return None
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
    frames = int(dataset.get("NumberOfFrames") or 1)
    if dataset.SamplesPerPixel == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.moveaxis(stored.reshape(frames, *stored.shape[-3:]), -1, 1)
    values = apply_modality_lut(stored, dataset).reshape(frames, 1, *stored.shape[-2:])
    if dataset.get("Modality") == "RTDOSE":
        return values * float(dataset.DoseGridScaling)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        return (2**dataset.BitsStored - 1) - values.astype(int)
    if "SharedFunctionalGroupsSequence" in dataset:
        groups = dataset.SharedFunctionalGroupsSequence[0]
        return apply_modality_lut(values, groups.get("PixelValueTransformationSequence", [dataset])[0])
    return values


def test_every_file_is_read_as_pydicom_reads_it_or_refused(real_data):
    compared, refused = 0, []
    for path in odd_files(real_data):
        if path.name in REFUSED:
            with pytest.raises(DataError) as caught:
                open_image(path)
            assert REFUSED[path.name] in str(caught.value), path
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
            refused.append(path.name)
            continue
        image = open_image(path)
        theirs = theirs_of(path, pydicom.dcmread(path, force=True))
        if theirs is None:
            continue
        mine = image.pixels[:, None] if image.pixels.ndim == 3 else image.pixels
        mine = np.moveaxis(mine, 0, 1)
        if path.name == "eCT_Supplemental.dcm":
            theirs = theirs[::-1]  # its frames are stored from top to bottom
        assert mine.shape == theirs.shape, path
        assert np.allclose(mine, theirs, rtol=1e-6, atol=0), path
        compared += 1
    assert sorted(refused) == sorted(REFUSED)
    assert compared > 100


def check_against_itk(path, image):
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    theirs = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(theirs)
    values = np.moveaxis(values, -1, 0) if theirs.GetNumberOfComponentsPerPixel() == 3 else values[None]
    mine = image.pixels if image.pixels.ndim == 4 else image.pixels[:, None]
    values = values.reshape(mine.shape)
    assert np.allclose(values, mine, atol=1e-3, rtol=1e-6), path
    if image.grid.affine is not None:
        depth, rows, columns = values.shape[-3:]
        for z, y, x in ((0, 0, 0), (depth - 1, rows - 1, columns - 1), (0, rows - 1, 0)):
            index = [z, y, x] if image.grid.ndim == 3 else [y, x]
            assert np.allclose(
                theirs.TransformIndexToPhysicalPoint((x, y, z)), image.grid.to_patient(index), atol=2e-3
            ), path
    elif image.grid.spacing is not None:
        assert np.allclose(theirs.GetSpacing()[1::-1], image.grid.spacing, rtol=1e-5), path


@pytest.mark.parametrize("name", [
    "CT_small.dcm", "MR_small.dcm", "693_J2KR.dcm", "693_UNCI.dcm", "MR2_UNCR.dcm", "MR2_J2KR.dcm", "JPEG-LL.dcm",
    "JPEG-lossy.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "bad_sequence.dcm", "explicit_VR-UN.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm", "image_dfl.dcm", "MR_small_bigendian.dcm", "color-pl.dcm", "SC_rgb_rle.dcm",
])  # fmt: skip
def test_single_files_agree_with_simpleitk(real_data, name):
    path = real_data / "dicom" / "pydicom-files" / name
    check_against_itk(path, open_image(path))


@pytest.mark.parametrize("name", ["OBXXXX1A.dcm", "gdcm-US-ALOKA-16.dcm"])
def test_palettes_agree_with_simpleitk(real_data, name):
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    path = real_data / "dicom" / "pydicom-files" / name
    mine = open_image(path).pixels
    theirs = np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0], -1, 0)
    assert np.array_equal(mine if theirs.dtype == mine.dtype else mine >> 8, theirs)


@pytest.mark.parametrize("folder", [
    "t1-series", "brain-study/12-T1post-05670", "brain-study/13_HCropVolume", "brain-study/34909-T1prereg-84610",
    "dcmqi/paramaps/701-ADCb500", "dcmqi/segmentations/ct-3slice", "dcmqi/segmentations/24x38x3/image",
])  # fmt: skip
def test_series_agree_with_simpleitk(real_data, folder):
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    path = real_data / "dicom" / folder
    image = open_image(path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    theirs = reader.Execute()
    values = sitk.GetArrayFromImage(theirs)
    assert image.pixels.shape == (1, *values.shape)
    assert np.array_equal(image.pixels[0], values)
    depth, rows, columns = values.shape
    for z, y, x in (
        (0, 0, 0),
        (depth - 1, 0, 0),
        (depth - 1, rows - 1, columns - 1),
        (0, rows - 1, 0),
        (0, 0, columns - 1),
    ):
        # SimpleITK steps along the exact normal, we from the first position to the last: written digits differ by this.
        assert np.allclose(theirs.TransformIndexToPhysicalPoint((x, y, z)), image.grid.to_patient([z, y, x]), atol=2e-3)


def test_jpeg_twins_agree_with_what_dcmtk_decoded(real_data):
    folder = real_data / "dicom" / "pydicom-files"
    for encoded, decoded in (
        ("+eb+cr", "ebcr"),
        ("+eb+cy+n1", "ebcyn1"),
        ("+eb+cy+n2", "ebcyn2"),
        ("+eb+cy+np", "ebcynp"),
        ("+eb+cy+s2", "ebcys2"),
        ("+eb+cy+s4", "ebcys4"),
    ):
        mine = open_image(folder / f"SC_rgb_dcmtk_{encoded}.dcm").pixels.astype(int)
        theirs = open_image(folder / f"SC_rgb_dcmtk_{decoded}_dcmd.dcm").pixels.astype(int)
        assert np.abs(mine - theirs).max() <= 3, encoded


def test_trees_are_told_apart(real_data):
    brain = list_series(real_data / "dicom" / "brain-study")
    assert sorted((series.description, len(series.files), series.shape) for series in brain) == [
        ("HippoCrop", 32, (51, 35)),
        ("T1post", 22, (512, 512)),
        ("T1pre_reg", 22, (512, 512)),
    ]
    assert {series.patient_id for series in brain} == {"PGBM-002"}
    assert [len(series.files) for series in list_series(real_data / "dicom" / "t1-series")] == [200]


def test_segmentation_lies_on_its_source_image(real_data):
    folder = real_data / "dicom" / "dcmqi" / "segmentations"
    ct, liver = open_image(folder / "ct-3slice"), open_image(folder / "liver.dcm")
    assert liver.unit is Unit.LABEL
    assert liver.grid.same_place(ct.grid, tolerance_mm=1e-3)
    inside = ct.pixels[liver.pixels > 0]
    assert 0 < np.median(inside) < 150  # soft tissue in HU: the mask is on the liver, not on air or bone
    overlaps = open_image(folder / "partial_overlaps.dcm")
    assert overlaps.pixels.shape[0] == 5
    assert overlaps.pixels.sum(axis=0).max() > 1


def test_bits_of_a_segmentation_are_those_pydicom_unpacks(real_data):
    path = real_data / "dicom" / "dcmqi" / "segmentations" / "liver.dcm"
    dataset = pydicom.dcmread(path)
    heights = [
        float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert np.array_equal(open_image(path).pixels[0] > 0, dataset.pixel_array[np.argsort(heights)] > 0)


def test_stray_byte_is_skipped_and_noted(real_data):
    folder = real_data / "dicom" / "pydicom-files"
    bare, whole = open_image(folder / "no_meta.dcm"), open_image(folder / "CT_small.dcm")
    assert np.array_equal(bare.pixels, whole.pixels)
    assert np.allclose(bare.grid.affine, whole.grid.affine)
    assert Act.REPAIRED in {note.act for note in bare.record}


def test_gap_in_a_real_series_is_found(real_data, tmp_path):
    files = sorted((real_data / "dicom" / "brain-study" / "12-T1post-05670").iterdir())
    for index, file in enumerate(files):
        if index != 10:
            (tmp_path / f"{index}").symlink_to(file)
    with pytest.raises(GeometryError, match=r"1 missing slice at .* every 6\.5 mm"):
        open_image(tmp_path)


def test_folder_of_text_is_no_image(real_data):
    with pytest.raises(UnreadableFile, match="content of kind text"):
        open_image(real_data / "dicom" / "pydicom-files" / "README.txt")
