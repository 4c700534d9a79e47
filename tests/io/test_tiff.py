"""TIFF against tifffile and pillow: depth, pages, colours, alpha, palettes, inverted and packed bits."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture
from refusals import read_or_refused

from vesalius.core.errors import LimitError, UnreadableFile
from vesalius.core.image import Unit
from vesalius.io.limits import read_limits
from vesalius.io.open import open_image
from vesalius.io.raster import read_raster

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sides = st.integers(1, 9)


def ramp(*shape, dtype=np.uint8):
    return (np.arange(np.prod(shape)) * 7 % 251).astype(dtype).reshape(shape)


def note_of(image, text):
    return any(text in note.text for note in image.record)


@MANY
@given(
    hnp.arrays(st.sampled_from(["u1", "u2", "i2", "u4", "f4", "f8"]), st.tuples(sides, sides)),
    st.sampled_from([None, "zlib", "lzw", "packbits"]),
    st.sampled_from(["<", ">"]),
    st.booleans(),
)
def test_gray(tmp_path, values, compression, order, big):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, compression=compression, byteorder=order, bigtiff=big)
    mine = open_image(path)
    assert mine.pixels.dtype == values.dtype
    assert np.array_equal(mine.pixels[0], values, equal_nan=values.dtype.kind == "f")
    assert mine.grid.spacing_mm is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_rgb(tmp_path, dtype, planar, compression):
    if compression == "jpeg" and (dtype == np.uint16 or planar == "separate"):
        pytest.skip("no such JPEG")
    values = ramp(16, 24, 3, dtype=dtype) * (257 if dtype == np.uint16 else 1)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, compression=compression)
    mine = open_image(path)
    theirs = tifffile.imread(path)
    theirs = theirs if planar == "contig" else np.moveaxis(theirs, 0, -1)
    assert mine.pixels.dtype == dtype
    assert mine.unit is Unit.RED_GREEN_BLUE
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), theirs)
    if compression != "jpeg":
        assert np.array_equal(theirs, values)


@pytest.mark.parametrize("shape", [(5, 8, 9), (2, 8, 9), (3, 8, 9)])
@pytest.mark.parametrize("writer", ["tifffile", "pillow", "imagej"])
def test_pages_are_slices(tmp_path, shape, writer):
    values, path = ramp(*shape), tmp_path / "a.tif"
    if writer == "pillow":
        pages = [Picture.fromarray(page) for page in values]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    elif writer == "imagej":
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0})
    else:
        tifffile.imwrite(path, values, photometric="minisblack")
    mine = open_image(path)
    assert mine.pixels.shape == (1, *shape)
    assert np.array_equal(mine.pixels[0], values)
    assert mine.grid.spacing_mm is None
    assert note_of(mine, f"{shape[0]} pages taken as slices")


def test_coloured_pages(tmp_path):
    values = ramp(5, 8, 9, 3)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    mine = open_image(tmp_path / "a.tif")
    assert mine.pixels.shape == (3, 5, 8, 9)
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), values)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda out: [out.write(ramp(8, 9)), out.write(ramp(4, 5))], "2 pictures of different kinds"),
        (lambda out: out.write(ramp(8, 9).astype(np.complex64)), "complex64"),
        (lambda out: out.write(ramp(8, 9, 3), photometric="cielab"), "CIELAB"),
        (lambda out: [out.write(ramp(64, 64), subifds=1, tile=(16, 16)),
                      out.write(ramp(32, 32), subfiletype=1, tile=(16, 16))], "pyramid of 2 levels"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, write, found):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        write(out)
    with pytest.raises(UnreadableFile, match=found) as caught:
        open_image(tmp_path / "a.tif")
    assert str(caught.value).startswith(str(tmp_path / "a.tif"))


def test_time_points_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp(2, 3, 8, 9), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(UnreadableFile, match="axes TZYX"):
        open_image(tmp_path / "a.tif")


def test_a_thumbnail_does_not_count(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(ramp(40, 30))
        out.write(ramp(4, 3), subfiletype=1)
    assert np.array_equal(open_image(tmp_path / "a.tif").pixels[0], ramp(40, 30))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(tmp_path, dtype):
    values = ramp(8, 9, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    mine = open_image(tmp_path / "a.tif")
    assert np.array_equal(mine.pixels[0], np.iinfo(dtype).max - values)
    if dtype == np.uint8:
        assert np.array_equal(mine.pixels[0], np.asarray(Picture.open(tmp_path / "a.tif")))


def test_white_is_zero_of_signed_numbers_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp(8, 9, dtype=np.int16), photometric="miniswhite")
    with pytest.raises(UnreadableFile, match="white as 0"):
        open_image(tmp_path / "a.tif")


def packed(path, values, bits, photometric="minisblack", **tags):
    """Rows of packed bits, written as bytes and then declared to be what they are."""
    whole = values.astype(">u2").view(np.uint8).reshape(*values.shape, 2)
    rows = np.packbits(np.unpackbits(whole, axis=-1)[..., 16 - bits :].reshape(values.shape[0], -1), axis=1)
    start = "minisblack" if photometric == "palette" else photometric
    tifffile.imwrite(path, rows, photometric=start, metadata=None, **tags)
    with tifffile.TiffFile(path, mode="r+b") as file:
        stored = file.pages[0].tags
        stored["ImageWidth"].overwrite(values.shape[1])
        stored["BitsPerSample"].overwrite(bits)
        if photometric == "palette":
            stored["PhotometricInterpretation"].overwrite(3)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_are_stretched(tmp_path, bits, photometric):
    values, top = ramp(8, 16) % (1 << bits), (1 << bits) - 1
    path = packed(tmp_path / "a.tif", values, bits, photometric)
    mine = open_image(path)
    bright = top - values if photometric == "miniswhite" else values
    assert np.array_equal(mine.pixels[0], bright * (255 // top))
    assert np.array_equal(mine.pixels[0], np.asarray(Picture.open(path).convert("L")))
    assert note_of(mine, "fewer than 8 bits")


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palette(tmp_path, bits):
    index = ramp(8, 16) % min(1 << bits, 7)
    colours = np.zeros((3, 1 << bits), np.uint16)
    colours[:, : index.max() + 1] = np.arange(3)[:, None] * 9000 + np.arange(index.max() + 1) * 4000
    if bits == 8:
        tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=colours)
    else:
        extra = [(320, "H", colours.size, tuple(int(v) for v in colours.ravel()), True)]
        packed(tmp_path / "a.tif", index, bits, "palette", extratags=extra)
    mine = open_image(tmp_path / "a.tif")
    theirs = np.asarray(Picture.open(tmp_path / "a.tif").convert("RGB"))
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), (colours >> 8).T[index])
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), theirs)
    assert np.array_equal(read_raster(tmp_path / "a.tif", palette="indices").pixels[0], index)


def test_palette_of_grays_is_gray(tmp_path):
    colours = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 3, axis=0)[:, ::-1]
    tifffile.imwrite(tmp_path / "a.tif", ramp(8, 9), photometric="palette", colormap=np.ascontiguousarray(colours))
    assert np.array_equal(open_image(tmp_path / "a.tif").pixels, 255 - ramp(1, 8, 9))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [2, 4])
def test_alpha(tmp_path, dtype, samples):
    top = np.iinfo(dtype).max
    values = ramp(8, 9, samples, dtype=dtype) * (top // 255)
    colours, alpha = values[..., :-1].astype(float), values[..., -1:].astype(float)
    meaning = {"photometric": "rgb" if samples == 4 else "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", values, extrasamples=["unassalpha"], **meaning)
    mine = open_image(tmp_path / "a.tif")
    assert mine.pixels.dtype == dtype
    assert np.abs(np.moveaxis(mine.pixels, 0, -1) - colours * alpha / top).max() <= 0.5
    # Associated alpha has been multiplied in already (TIFF 6.0, page 69): its colours are those on black.
    tifffile.imwrite(tmp_path / "b.tif", values, extrasamples=["assocalpha"], **meaning)
    mine = open_image(tmp_path / "b.tif")
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), colours)
    assert note_of(mine, "black")


def test_an_unexplained_fourth_sample_is_left_out_of_rgb(tmp_path):
    values = ramp(8, 9, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    mine = open_image(tmp_path / "a.tif")
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), values[..., :3])
    assert mine.unit is Unit.RED_GREEN_BLUE
    assert note_of(mine, "left out")


def test_cmyk(tmp_path):
    values = ramp(8, 9, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="separated")
    mine = np.moveaxis(open_image(tmp_path / "a.tif").pixels, 0, -1)
    theirs = np.asarray(Picture.open(tmp_path / "a.tif").convert("RGB"))
    assert np.abs(mine.astype(int) - theirs).max() <= 1


def test_twelve_bits_stay(tmp_path):
    values = ramp(8, 16, dtype=np.uint16) * 16
    packed(tmp_path / "a.tif", values, 12)
    mine = open_image(tmp_path / "a.tif")
    assert mine.pixels.dtype == np.uint16
    assert np.array_equal(mine.pixels[0], values)


def test_limits_hold_before_decoding(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp(8, 9))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[0].tags["ImageWidth"].overwrite(10**5)
        file.pages[0].tags["ImageLength"].overwrite(10**5)
    with pytest.raises(LimitError, match="100000 x 100000"):
        open_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", ramp(5, 8, 9), compression="zlib")
    with read_limits(max_pixels=359), pytest.raises(LimitError, match=r"b\.tif.*5 x 8 x 9"):
        open_image(tmp_path / "b.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.9999), changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=5))
def test_cuts_and_damage(tmp_path, compression, part, changes):
    tifffile.imwrite(tmp_path / "a.tif", ramp(3, 16, 16), compression=compression, photometric="minisblack")
    whole = bytearray((tmp_path / "a.tif").read_bytes())
    expected = open_image(tmp_path / "a.tif").pixels
    (tmp_path / "cut.tif").write_bytes(whole[: int(part * len(whole))])
    image = read_or_refused(open_image, tmp_path / "cut.tif")
    assert image is None or np.array_equal(image.pixels, expected)
    for place, value in changes:
        whole[int(place * len(whole))] = value
    (tmp_path / "damaged.tif").write_bytes(whole)
    with read_limits(max_pixels=10**7):
        read_or_refused(read_raster, tmp_path / "damaged.tif")
