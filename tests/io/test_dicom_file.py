"""One file: photometric interpretations, syntaxes, multi-frame, segmentation, dose, PET, display, and broken files."""

from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pydicom
import pytest
from dicom_writing import image_dataset, ramp, save
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from vesalius.core.errors import DataError, GeometryError, LimitError, UnreadableFile, UsageError
from vesalius.core.image import Act, Unit
from vesalius.io.dicom_pixels import stream_size
from vesalius.io.dicom_voi import apply_voi
from vesalius.io.limits import ReadLimits, read_limits
from vesalius.io.open import open_image

# GDCM's own RLE encoder aborts the process on odd sizes.
ENCODER = {uid.RLELossless: "pydicom"}


def item(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def write(tmp_path, pixels, **elements):
    return save(image_dataset(pixels, **elements), tmp_path / "image.dcm")


def scene(dtype=np.uint16, rows=33, columns=47):
    """A smooth picture of odd size, which every encoder takes."""
    y, x = np.mgrid[:rows, :columns]
    return (500 + 400 * np.sin(y / 7) * np.cos(x / 9) + 3 * x).astype(dtype)


def test_monochrome1_is_turned_round_with_its_window(tmp_path):
    stored = scene()
    facts = {"Modality": "DX", "BitsStored": 12, "HighBit": 11, "WindowCenter": "800", "WindowWidth": "600"}
    bright = open_image(write(tmp_path, stored, **facts))
    turned = open_image(write(tmp_path, stored, **facts, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(turned.pixels, 4095 - bright.pixels.astype(int))
    assert turned.pixels.dtype == np.uint16
    assert any(note.act is Act.REPAIRED for note in turned.record)
    # What the eye sees is the negative: apply_voi of the stored values, turned round in grey.
    assert np.allclose(apply_voi(turned), 1 - apply_voi(bright), atol=1e-6)


def test_signed_monochrome1_stays_in_range(tmp_path):
    stored = np.array([[-2048, 0, 2047]], np.int16)
    image = open_image(
        write(tmp_path, stored, Modality="DX", BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    )
    assert np.array_equal(image.pixels[0], [[2047, -1, -2048]])


def test_hounsfield_in_monochrome1_keep_their_meaning(tmp_path):
    image = open_image(
        write(tmp_path, scene(), RescaleSlope="1", RescaleIntercept="-1024", PhotometricInterpretation="MONOCHROME1")
    )
    assert image.unit is Unit.HU
    assert np.array_equal(image.pixels[0], scene().astype(int) - 1024)


def test_palette_becomes_rgb(tmp_path):
    index = np.array([[0, 1], [2, 3]], np.uint8)
    colours = {"Red": [0, 10, 20, 30], "Green": [255, 200, 100, 0], "Blue": [7, 7, 8, 9]}
    elements = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "OT"}
    for name, values in colours.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = bytes(values)
    image = open_image(write(tmp_path, index, **elements))
    assert image.channels == ("red", "green", "blue")
    assert image.unit is Unit.RED_GREEN_BLUE
    for channel, values in zip(image.pixels, colours.values(), strict=True):
        assert np.array_equal(channel, np.array(values)[index])


def test_planar_configuration_one(tmp_path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    dataset = image_dataset(pixels, Modality="OT", PlanarConfiguration=1)
    dataset.PixelData = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert np.array_equal(image.pixels, np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32])
def test_native_types_stay(tmp_path, dtype):
    stored = scene(dtype)
    image = open_image(write(tmp_path, stored, Modality="MR"))
    assert image.pixels.dtype == dtype
    assert np.array_equal(image.pixels[0], stored)


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_syntaxes(tmp_path, syntax, dtype):
    stored = scene(dtype)
    dataset = image_dataset(stored, Modality="MR")
    if syntax.is_compressed and not syntax.is_deflated:
        dataset.compress(syntax, generate_instance_uid=False, encoding_plugin=ENCODER.get(syntax, ""))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.is_implicit_VR = syntax == uid.ImplicitVRLittleEndian  # pydicom 3 takes the encoding from the syntax
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert np.array_equal(image.pixels[0], stored)
    assert image.pixels.dtype == dtype


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_lossy_jpeg_is_near(tmp_path, syntax):
    import imagecodecs
    from pydicom.encaps import encapsulate

    bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
    stored = scene(np.uint16) if bits == 12 else (scene(np.uint16) // 8).astype(np.uint8)
    dataset = image_dataset(stored, Modality="MR", BitsStored=bits, HighBit=bits - 1)
    stream = imagecodecs.jpeg8_encode(stored, level=98, bitspersample=bits)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert np.abs(image.pixels[0].astype(int) - stored).max() <= (16 if bits == 12 else 6)


def test_htj2k(tmp_path):
    import imagecodecs
    from pydicom.encaps import encapsulate

    stored = scene()
    stream = imagecodecs.htj2k_encode(stored, reversible=True) if hasattr(imagecodecs, "htj2k_encode") else None
    if not stream:
        pytest.skip("no encoder of HTJ2K here")
    dataset = image_dataset(stored, Modality="MR")
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert np.array_equal(image.pixels[0], stored)


def test_ybr_full_is_converted(tmp_path):
    # PS3.3 C.7.6.3.1.2: pure red (255, 0, 0) is Y 76.2, Cb 85.0, Cr 255 rounded.
    pixels = np.tile(np.array([76, 85, 255], np.uint8), (4, 4, 1))
    image = open_image(write(tmp_path, pixels, Modality="US", PhotometricInterpretation="YBR_FULL"))
    assert np.abs(image.pixels[:, 0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_bits_above_those_stored_are_not_believed(tmp_path):
    stored = np.array([[5, 6], [7, 8]], np.uint16)
    image = open_image(write(tmp_path, stored | 0x8000, Modality="MR", BitsStored=12, HighBit=11))
    assert np.array_equal(image.pixels[0], stored)


def test_modality_table(tmp_path):
    stored = np.array([[0, 10], [11, 20]], np.uint16)
    table = item(LUTDescriptor=[3, 10, 16], ModalityLUTType="US")
    table.add_new("LUTData", "US", [100, 300, 900])
    image = open_image(write(tmp_path, stored, Modality="OT", ModalityLUTSequence=Items([table])))
    assert np.array_equal(image.pixels[0], [[100, 100], [300, 900]])


def test_float_pixel_data(tmp_path):
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    dataset = image_dataset(values.view(np.uint32), Modality="MR", PixelData=None)
    dataset.FloatPixelData = values.tobytes()
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels[0], values)


def enhanced(volume, tops, **elements):
    """An enhanced multi-frame data set; one dict of extra groups per frame may be given as `extra`."""
    extra = elements.pop("extra", [{}] * len(tops))
    frames = []
    for top, more in zip(tops, extra, strict=True):
        frame = item(PlanePositionSequence=Items([item(ImagePositionPatient=list(top))]))
        for keyword, value in more.items():
            setattr(frame, keyword, value)
        frames.append(frame)
    shared = item(
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelMeasuresSequence=Items([item(PixelSpacing=[0.5, 0.75], SliceThickness=2)]),
    )
    return image_dataset(
        volume,
        SharedFunctionalGroupsSequence=Items([shared]),
        PerFrameFunctionalGroupsSequence=Items(frames),
        **elements,
    )


def test_enhanced_frames_are_ordered_by_position(tmp_path):
    volume, order = ramp(), [3, 0, 4, 1, 2]
    tops = [(1.0, 2.0, 2.0 * place) for place in order]
    image = open_image(
        save(enhanced(volume[order], tops, Modality="MR", SOPClassUID=uid.EnhancedMRImageStorage), tmp_path / "a.dcm")
    )
    assert np.array_equal(image.pixels[0], volume)
    assert image.grid.spacing_mm == pytest.approx((2, 0.5, 0.75))
    assert np.allclose(image.grid.to_patient([4, 1, 1]), (1.75, 2.5, 8))


def test_enhanced_echoes_become_channels(tmp_path):
    volume = ramp(6)
    tops = [(0.0, 0.0, 2.0 * (frame // 2)) for frame in range(6)]
    extra = [{"MREchoSequence": Items([item(EffectiveEchoTime=[30.0, 5.0][frame % 2])])} for frame in range(6)]
    image = open_image(
        save(
            enhanced(volume, tops, Modality="MR", SOPClassUID=uid.EnhancedMRImageStorage, extra=extra),
            tmp_path / "a.dcm",
        )
    )
    assert image.channels == ("echo time 5.0", "echo time 30.0")
    assert np.array_equal(image.pixels[0], volume[1::2])
    assert np.array_equal(image.pixels[1], volume[0::2])


def test_enhanced_frames_that_nothing_tells_apart_are_refused(tmp_path):
    dataset = enhanced(ramp(4), [(0, 0, 0), (0, 0, 0), (0, 0, 2), (0, 0, 2)], SOPClassUID=uid.EnhancedMRImageStorage)
    with pytest.raises(GeometryError, match="2 frames at each position"):
        open_image(save(dataset, tmp_path / "a.dcm"))


def test_frames_without_geometry_have_none(tmp_path):
    image = open_image(write(tmp_path, ramp(3), Modality="US", PixelSpacing=[0.2, 0.2]))
    assert image.pixels.shape == (1, 3, 6, 7)
    assert image.grid.spacing_mm is None
    assert "counts frames" in image.record[-1].text


def test_projection_has_a_pixel_size_and_no_place(tmp_path):
    image = open_image(write(tmp_path, scene(), Modality="DX", ImagerPixelSpacing=[0.14, 0.15]))
    assert image.pixels.ndim == 3
    assert image.grid.affine is None
    assert image.grid.spacing_mm == (0.14, 0.15)
    assert "detector plane" in image.record[-1].text


def segmentation(masks, **elements):
    """A binary SEG: masks {segment: {z: (Y, X) of 0 and 1}}."""
    frames, groups = [], []
    for number, slices in masks.items():
        for z, mask in slices.items():
            frames.append(mask)
            groups.append({"SegmentIdentificationSequence": Items([item(ReferencedSegmentNumber=number)]), "z": z})
    tops = [(0.0, 0.0, float(group.pop("z"))) for group in groups]
    bits = np.stack(frames).astype(np.uint8)
    dataset = enhanced(bits, tops, extra=groups, Modality="SEG", SOPClassUID=uid.SegmentationStorage, **elements)
    dataset.SegmentationType = "BINARY"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset.SegmentSequence = Items([item(SegmentNumber=number, SegmentLabel=f"organ {number}") for number in masks])
    return dataset


def test_segments_become_one_map_with_empty_slices_filled(tmp_path):
    left, right = np.zeros((5, 7), np.uint8), np.zeros((5, 7), np.uint8)
    left[:, :3], right[:, 4:] = 1, 1
    dataset = segmentation({1: {0: left, 2: left, 8: left}, 4: {2: right}})
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert image.unit is Unit.LABEL
    assert image.pixels.shape == (1, 5, 5, 7)
    expected = np.zeros((5, 5, 7))
    expected[[0, 1, 4]] = left
    expected[1] += 4 * right
    assert np.array_equal(image.pixels[0], expected)
    assert list(image.meta["segments"]) == ["1: organ 1", "4: organ 4"]


def test_overlapping_segments_become_channels(tmp_path):
    left, right = np.zeros((5, 7), np.uint8), np.zeros((5, 7), np.uint8)
    left[:, :4], right[:, 3:] = 1, 1
    image = open_image(save(segmentation({1: {0: left, 2: left}, 2: {0: right, 2: right}}), tmp_path / "a.dcm"))
    assert image.channels == ("organ 1", "organ 2")
    assert np.array_equal(image.pixels[1, 0], right)
    assert "overlap in 10 voxels" in image.record[-1].text


def dose(tmp_path, offsets, **elements):
    facts = {
        "Modality": "RTDOSE",
        "SOPClassUID": uid.RTDoseStorage,
        "DoseGridScaling": "0.01",
        "DoseUnits": "GY",
        "ImagePositionPatient": [1, 2, 3],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [2, 2.5],
        "GridFrameOffsetVector": offsets,
        **elements,
    }
    return write(tmp_path, ramp(3, dtype=np.uint32), **facts)


def test_dose_in_gray_on_its_grid(tmp_path):
    image = open_image(dose(tmp_path, [0, 4, 8]))
    assert image.unit is Unit.DOSE_GY
    assert image.pixels.dtype == np.float32
    assert np.allclose(image.pixels[0], ramp(3) * 0.01)
    assert np.allclose(image.grid.to_patient([2, 1, 1]), (3.5, 4, 11))


def test_dose_offsets_may_be_places_or_fall(tmp_path):
    absolute = open_image(dose(tmp_path, [3, 7, 11]))
    assert np.allclose(absolute.grid.to_patient([2, 0, 0]), (1, 2, 11))
    falling = open_image(dose(tmp_path, [0, -4, -8]))
    assert np.allclose(falling.grid.to_patient([0, 0, 0]), (1, 2, -5))
    assert np.allclose(falling.pixels[0], ramp(3)[::-1] * 0.01)
    with pytest.raises(GeometryError, match="starts at 50"):
        open_image(dose(tmp_path, [50, 54, 58]))


def test_parametric_map_in_real_world_values(tmp_path):
    mapping = item(
        RealWorldValueSlope=0.25,
        RealWorldValueIntercept=-3.0,
        RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=4095,
        LUTExplanation="ADC",
        LUTLabel="ADC",
        MeasurementUnitsCodeSequence=Items(
            [item(CodeValue="um2/s", CodingSchemeDesignator="UCUM", CodeMeaning="um2/s")]
        ),
    )
    extra = [{"RealWorldValueMappingSequence": Items([mapping])}] * 3
    dataset = enhanced(
        ramp(3, dtype=np.uint16),
        [(0, 0, 2.0 * z) for z in range(3)],
        extra=extra,
        Modality="MR",
        SOPClassUID=uid.ParametricMapStorage,
    )
    image = open_image(save(dataset, tmp_path / "a.dcm"))
    assert image.pixels.dtype == np.float32
    assert np.allclose(image.pixels[0], ramp(3) * 0.25 - 3)
    assert image.meta["unit_code"] == "um2/s"
    assert image.grid.spacing_mm == pytest.approx((2, 0.5, 0.75))


def test_nuclear_reconstruction_has_the_places_of_its_frames(tmp_path):
    detector = item(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    image = open_image(
        write(
            tmp_path,
            ramp(4),
            Modality="NM",
            SOPClassUID=uid.NuclearMedicineImageStorage,
            ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
            SpacingBetweenSlices="-4",
            DetectorInformationSequence=Items([detector]),
            PixelSpacing=[2, 2],
        )
    )
    assert np.array_equal(image.pixels[0], ramp(4)[::-1])
    assert np.allclose(image.grid.to_patient([3, 1, 1]), (3, 4, 3))
    assert image.grid.spacing_mm == pytest.approx((4, 2, 2))


def test_ultrasound_region_gives_a_pixel_size(tmp_path):
    region = item(
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        RegionSpatialFormat=1,
        PhysicalDeltaX=0.05,
        PhysicalDeltaY=0.025,
    )
    image = open_image(write(tmp_path, scene(), Modality="US", SequenceOfUltrasoundRegions=Items([region])))
    assert image.grid.spacing_mm == pytest.approx((0.25, 0.5))


def test_values_beyond_bits_stored_are_refused_not_wrapped(tmp_path):
    stored = np.full((8, 8), 60000, np.uint16)
    dataset = image_dataset(stored, RescaleSlope="1", RescaleIntercept="-1024")
    dataset.compress(uid.RLELossless, generate_instance_uid=False, encoding_plugin="pydicom")
    dataset.BitsStored, dataset.HighBit = 12, 11
    with pytest.raises(UnreadableFile, match="beyond what Bits Stored allows"):
        open_image(save(dataset, tmp_path / "a.dcm"))


def test_body_weight_suv(tmp_path):
    drug = item(RadionuclideTotalDose="370000000", RadionuclideHalfLife="6586.2", RadiopharmaceuticalStartTime="090000")
    facts = {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "PatientWeight": "70",
        "RescaleSlope": "2",
        "RescaleIntercept": "0",
        "SeriesDate": "20200101",
        "SeriesTime": "100000",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "100001",
        "RadiopharmaceuticalInformationSequence": Items([drug]),
    }
    image = open_image(write(tmp_path, scene(), **facts))
    assert image.unit is Unit.SUV
    left_after_an_hour = 370e6 * 0.5 ** (3600 / 6586.2)
    assert np.allclose(image.pixels[0], scene() * 2.0 * 70e3 / left_after_an_hour, rtol=1e-6)
    unknown = open_image(write(tmp_path, scene(), **{**facts, "PatientWeight": None}))
    assert unknown.unit is Unit.INTENSITY
    assert np.allclose(unknown.pixels[0], scene() * 2.0)
    assert "no Patient Weight" in unknown.record[0].text


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(tmp_path, function):
    from pydicom.pixels.processing import apply_windowing

    path = write(
        tmp_path,
        scene(),
        Modality="MR",
        WindowCenter=["700", "400"],
        WindowWidth=["300", "50"],
        VOILUTFunction=function,
    )
    image, dataset = open_image(path), pydicom.dcmread(path)
    for index in range(2):
        theirs = apply_windowing(dataset.pixel_array, dataset, index=index) / 65535.0
        assert np.allclose(apply_voi(image, index=index)[0], theirs, atol=1e-6)
    with pytest.raises(UsageError, match="window 2 does not exist"):
        apply_voi(image, index=2)


def test_what_is_no_image_is_named(tmp_path):
    report = image_dataset(scene(), SOPClassUID=uid.BasicTextSRStorage)
    with pytest.raises(UnreadableFile, match="a structured report"):
        open_image(save(report, tmp_path / "sr.dcm"))
    empty = image_dataset(scene(), PixelData=None)
    with pytest.raises(UnreadableFile, match="without pixel data"):
        open_image(save(empty, tmp_path / "empty.dcm"))


@pytest.mark.parametrize(
    "syntax", ["native", uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.DeflatedExplicitVRLittleEndian]
)
def test_truncated_files_are_refused_never_guessed(tmp_path, syntax):
    noise = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    dataset = image_dataset(noise, Modality="MR")
    if syntax != "native":
        if not syntax.is_deflated:
            dataset.compress(syntax, generate_instance_uid=False, encoding_plugin=ENCODER.get(syntax, ""))
        dataset.file_meta.TransferSyntaxUID = syntax
    whole = save(dataset, tmp_path / "a.dcm").read_bytes()
    for part in np.linspace(0.02, 0.99, 40):
        (tmp_path / "b.dcm").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / "b.dcm")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings(r"ignore::UserWarning:pydicom\..*")  # one for every damaged value
def test_damaged_files_never_raise_a_foreign_error(tmp_path):
    random = np.random.default_rng(1)
    dataset = image_dataset(
        scene(),
        Modality="MR",
        WindowCenter="40",
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[1, 1],
    )
    dataset.compress(uid.RLELossless, generate_instance_uid=False, encoding_plugin="pydicom")
    whole = np.frombuffer(save(dataset, tmp_path / "a.dcm").read_bytes(), np.uint8)
    for _ in range(150):
        broken = whole.copy()
        broken[random.integers(132, 900, 4)] = random.integers(0, 256, 4)
        (tmp_path / "b.dcm").write_bytes(broken.tobytes())
        with contextlib.suppress(DataError, UsageError):  # any other error fails the test
            assert open_image(tmp_path / "b.dcm").pixels.size


def test_code_stream_of_another_size_is_refused_before_decoding(tmp_path):
    dataset = image_dataset(scene(), Modality="MR")
    dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    dataset.Rows = 30
    with pytest.raises(UnreadableFile, match="33 rows and 47 columns; expected 30 and 47"):
        open_image(save(dataset, tmp_path / "a.dcm"))


def test_stream_size_of_jpeg():
    from PIL import Image as Picture

    for kind in ("JPEG", "JPEG2000"):
        buffer = io.BytesIO()
        Picture.new("L", (31, 17)).save(buffer, kind)
        assert stream_size(buffer.getvalue()) == (17, 31)


def test_bombs_are_refused(tmp_path):
    dataset = image_dataset(np.zeros((4, 4), np.uint16), Modality="MR", Rows=60000, Columns=60000)
    with pytest.raises(LimitError, match="3600000000 values"):
        open_image(save(dataset, tmp_path / "a.dcm"))
    deflated = image_dataset(np.zeros((2000, 2000), np.uint16), Modality="MR")
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = save(deflated, tmp_path / "b.dcm")
    assert path.stat().st_size < 20000
    with pytest.raises(LimitError, match="deflated data set"):
        open_image(path, limits=ReadLimits(max_file_bytes=100_000))
    with read_limits(max_file_bytes=1000), pytest.raises(LimitError, match="a file of"):
        open_image(path)


def test_doors_say_what_a_file_is(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        open_image(tmp_path / "nothing.dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="a folder without DICOM files"):
        open_image(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UnreadableFile, match=r"content of kind zip.*unpack it first"):
        open_image(tmp_path / "a.zip")
    with pytest.raises(UsageError, match="there is no read limit max_pixel"), read_limits(max_pixel=1):
        pass
