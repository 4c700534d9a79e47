"""PNG, JPEG, BMP and JPEG 2000 against pillow and imagecodecs: depth, alpha, palette, orientation, damage, limits."""

from __future__ import annotations

import io
import os
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture
from PIL import ImageOps
from refusals import read_or_refused

from vesalius.core.errors import LimitError, UnreadableFile, UsageError
from vesalius.core.image import Act, Unit
from vesalius.io.limits import read_limits
from vesalius.io.open import open_image
from vesalius.io.raster import read_raster
from vesalius.io.raster_out import write_jpeg, write_png

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 9)),
)


def scene(rows=24, columns=40, dtype=np.uint8, samples=0):
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[:rows, :columns]
    gray = 20 + 3 * x + 2 * y + 30 * np.sin(x / 5)
    many = np.stack([gray, 200 - gray, gray / 2 + y, 255 - x - y][: samples or 1], axis=-1).clip(0, 255)
    values = (many * (257 if dtype == np.uint16 else 1)).astype(dtype)
    return values if samples else values[..., 0]


def note_of(image, text):
    return any(text in note.text for note in image.record)


@MANY
@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16]), shapes))
def test_png_comes_back_and_others_agree(tmp_path, pixels):
    path = write_png(tmp_path / "a.png", pixels)
    back = open_image(path)
    whole = pixels if pixels.ndim == 3 else pixels[None]
    assert back.pixels.dtype == pixels.dtype
    assert np.array_equal(back.pixels, whole)
    assert back.unit is (Unit.RED_GREEN_BLUE if len(whole) == 3 else Unit.INTENSITY)
    assert back.grid.spacing_mm is None
    assert write_png(tmp_path / "b.png", pixels).read_bytes() == path.read_bytes()
    if pixels.dtype == np.uint8 or len(whole) == 1:  # pillow cuts 16-bit colours
        theirs = np.asarray(Picture.open(path)).astype(pixels.dtype)
        assert np.array_equal(theirs.reshape(whole.shape[1:] if len(whole) == 1 else theirs.shape),
                              whole[0] if len(whole) == 1 else np.moveaxis(whole, 0, -1))  # fmt: skip


@MANY
@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16]), st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))),
    st.sampled_from([2, 4]),
)
def test_png_by_imagecodecs_with_alpha(tmp_path, pixels, samples):
    stored = pixels[..., -samples:].copy()
    top = np.iinfo(stored.dtype).max
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(stored))
    mine = open_image(tmp_path / "a.png")
    colours, alpha = stored[..., :-1].astype(float), stored[..., -1:].astype(float)
    assert mine.pixels.dtype == stored.dtype
    assert np.abs(np.moveaxis(mine.pixels, 0, -1) - colours * alpha / top).max() <= 0.5
    assert note_of(mine, "alpha channel dropped" if (alpha == top).all() else "blended onto black")


@pytest.mark.parametrize("samples", [0, 3])
def test_jpeg_is_what_pillow_decodes(tmp_path, samples):
    pixels = scene(samples=samples)
    stored = np.moveaxis(pixels, -1, 0) if samples else pixels
    path = write_jpeg(tmp_path / "a.jpg", stored, quality=95)
    mine = open_image(path)
    theirs = np.asarray(Picture.open(path))
    assert np.array_equal(mine.pixels, np.moveaxis(theirs, -1, 0) if samples else theirs[None])
    assert np.abs(mine.pixels.astype(int) - stored).max() <= 6
    assert write_jpeg(tmp_path / "b.jpg", stored, quality=95).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("write", "pixels"),
    [
        (write_png, np.zeros((4, 4), np.float32)),
        (write_png, np.zeros((2, 4, 4), np.uint8)),
        (write_png, np.zeros((0, 4), np.uint8)),
        (write_jpeg, np.zeros((4, 4), np.uint16)),
        (write_jpeg, np.zeros((1, 70000), np.uint8)),
    ],
)
def test_pictures_that_cannot_be_written(tmp_path, write, pixels):
    with pytest.raises(UsageError, match=r"a\.out"):
        write(tmp_path / "a.out", pixels)
    assert list(tmp_path.iterdir()) == []


def test_other_byte_order_and_strides_are_written_right(tmp_path):
    pixels = scene(dtype=np.uint16)
    assert np.array_equal(open_image(write_png(tmp_path / "a.png", pixels.astype(">u2"))).pixels[0], pixels)
    assert np.array_equal(open_image(write_png(tmp_path / "b.png", pixels[::-2, ::3])).pixels[0], pixels[::-2, ::3])


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "JPEG2000", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_the_camera(tmp_path, suffix, orientation):
    picture = Picture.fromarray(scene(samples=3))
    exif = Picture.Exif()
    exif[274] = orientation
    path = tmp_path / "a"
    if suffix == "JPEG2000":
        pytest.skip("pillow writes no EXIF into JPEG 2000")
    picture.save(path, suffix, exif=exif)
    theirs = np.asarray(ImageOps.exif_transpose(Picture.open(path)))
    mine = open_image(path)
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), theirs)
    assert any(note.act is Act.REPAIRED for note in mine.record) is (orientation > 1)
    assert mine.pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_in_a_16_bit_png(tmp_path, orientation):
    stored = scene(dtype=np.uint16)
    exif = Picture.Exif()
    exif[274] = orientation
    Picture.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(open_image(tmp_path / "a.png").pixels[0], stored if orientation == 1 else np.rot90(stored, 3))


def exif_with(kind, count, value):
    """One directory with one entry, the orientation."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 274, kind, count, value, 0)


@pytest.mark.parametrize(
    ("exif", "broken"),
    [
        (exif_with(3, 1, b"\x63\0\0\0"), False),  # 99 turns nothing
        (exif_with(3, 1, b"\0\0\0\0"), False),
        (exif_with(2, 3, b"up\0\0"), True),
        (b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage", True),
        (b"Exif\0\0nothing of the kind", True),
    ],
)
@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
@pytest.mark.filterwarnings("error")
def test_broken_exif_is_no_reason_to_refuse(tmp_path, exif, broken, suffix):
    Picture.fromarray(scene()).save(tmp_path / "plain", suffix)
    Picture.fromarray(scene()).save(tmp_path / "a", suffix, exif=exif)
    mine = read_raster(tmp_path / "a")
    assert np.array_equal(mine.pixels[0], np.asarray(Picture.open(tmp_path / "plain")))
    assert note_of(mine, "EXIF") is broken


def palette_picture(colours, transparency=None):
    picture = Picture.fromarray((scene() % len(colours)).astype(np.uint8)).convert("L")
    picture.putpalette([value for colour in colours for value in colour])
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


@pytest.mark.parametrize("suffix", ["PNG", "BMP"])
def test_palette(tmp_path, suffix):
    colours = [(0, 0, 0), (255, 0, 0), (0, 200, 10)]
    picture = palette_picture(colours)
    picture.save(tmp_path / "a", suffix)
    index = scene() % 3
    mine = open_image(tmp_path / "a")
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), np.array(colours)[index])
    assert mine.channels == ("red", "green", "blue")
    assert np.array_equal(read_raster(tmp_path / "a", palette="indices").pixels[0], index)


def test_palette_of_grays_and_transparent_palette(tmp_path):
    palette_picture([(9, 9, 9), (90, 90, 90), (255, 255, 255)]).save(tmp_path / "gray.png")
    assert np.array_equal(open_image(tmp_path / "gray.png").pixels, np.array([9, 90, 255])[scene() % 3][None])
    palette_picture([(9, 9, 9), (255, 0, 0), (0, 0, 255)]).save(tmp_path / "t.png", transparency=1)
    mine = open_image(tmp_path / "t.png")
    expected = np.array([(9, 9, 9), (0, 0, 0), (0, 0, 255)])[scene() % 3]
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), expected)


@pytest.mark.parametrize(("dtype", "key"), [(np.uint8, 80), (np.uint16, 80 * 257)])
def test_transparent_gray_value(tmp_path, dtype, key):
    stored = scene(dtype=dtype)
    stored[3:5] = key
    Picture.fromarray(stored).save(tmp_path / "a.png", transparency=key)
    mine = open_image(tmp_path / "a.png")
    assert mine.pixels.dtype == dtype
    assert np.array_equal(mine.pixels[0], np.where(stored == key, 0, stored))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_stretched(tmp_path, bits):
    values = (scene() % (1 << bits)).astype(np.uint8)
    digits = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(values.shape[0], -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")))
    mine = open_image(tmp_path / "a.png")
    assert np.array_equal(mine.pixels[0], values * (255 // ((1 << bits) - 1)))
    assert note_of(mine, "fewer than 8 bits")
    assert np.array_equal(mine.pixels[0], np.asarray(Picture.open(tmp_path / "a.png").convert("L")))


def test_cmyk_jpeg(tmp_path):
    Picture.fromarray(scene(samples=4), "CMYK").save(tmp_path / "a.jpg", quality=100)
    mine = open_image(tmp_path / "a.jpg")
    inks = np.asarray(Picture.open(tmp_path / "a.jpg")).astype(float) / 255
    expected = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
    assert np.abs(np.moveaxis(mine.pixels, 0, -1) - expected).max() <= 1.5
    assert note_of(mine, "CMYK")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("samples", [0, 3])
def test_jpeg_2000_keeps_its_values(tmp_path, bits, samples):
    stored = scene(64, 48, np.uint16 if bits > 8 else np.uint8, samples) >> (16 - bits if bits > 8 else 0)
    data = imagecodecs.jpeg2k_encode(stored, level=0, bitspersample=bits, codecformat="jp2", reversible=True)
    (tmp_path / "a.jp2").write_bytes(data)
    mine = open_image(tmp_path / "a.jp2")
    assert mine.pixels.dtype == stored.dtype
    assert np.array_equal(mine.pixels, np.moveaxis(stored, -1, 0) if samples else stored[None])


def test_animations_are_refused_and_the_first_of_a_camera_pair_is_used(tmp_path):
    frames = [Picture.fromarray(scene() + step) for step in (0, 40)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableFile, match="animation of 2 frames"):
        open_image(tmp_path / "a.png")
    frames[0].save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=frames[1:])
    mine = open_image(tmp_path / "a.mpo")
    assert np.array_equal(mine.pixels[0], np.asarray(Picture.open(tmp_path / "a.mpo")))
    assert note_of(mine, "first of 2 pictures")


def png(*chunks):
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
             for name, body in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_bomb_is_refused_before_anything_is_decoded(tmp_path, depth, monkeypatch):
    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(imagecodecs, "png_decode", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    header = struct.pack(">IIBBBBB", 10**5, 10**5, depth, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9999)), (b"IEND", b"")))
    with pytest.raises(LimitError, match=r"a\.png"):
        open_image(tmp_path / "a.png")
    header = struct.pack(">IIBBBBB", 100, 100, depth, 0, 0, 0, 0)
    (tmp_path / "b.png").write_bytes(png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9999)), (b"IEND", b"")))
    with read_limits(max_pixels=9999), pytest.raises(LimitError, match=r"b\.png.*100 x 100"):
        open_image(tmp_path / "b.png")


def encoded(kind):
    buffer = io.BytesIO()
    if kind == "PNG16":
        return imagecodecs.png_encode(scene(dtype=np.uint16))
    Picture.fromarray(scene(samples=3)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "PNG16", "JPEG", "BMP", "JPEG2000", "TIFF"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.9999))
def test_a_cut_file_is_refused_or_whole(tmp_path, kind, part):
    whole = encoded(kind)
    (tmp_path / "whole").write_bytes(whole)
    expected = open_image(tmp_path / "whole").pixels
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * part)])
    image = read_or_refused(open_image, tmp_path / "cut")
    assert image is None or np.array_equal(image.pixels, expected)


@pytest.mark.parametrize("kind", ["PNG", "PNG16", "JPEG", "BMP", "JPEG2000", "TIFF"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=5))
def test_damage_never_raises_anything_else(tmp_path, kind, changes):
    raw = bytearray(encoded(kind))
    for part, value in changes:
        raw[int(part * len(raw))] = value
    (tmp_path / "damaged").write_bytes(raw)
    read_or_refused(read_raster, tmp_path / "damaged")


def test_damage_of_png_pixels_is_found(tmp_path):
    for kind in ("PNG", "PNG16"):
        raw = bytearray(encoded(kind))
        raw[-30] ^= 0x10
        (tmp_path / "a.png").write_bytes(raw)
        with pytest.raises(UnreadableFile, match=r"a\.png"):
            open_image(tmp_path / "a.png")


def test_content_decides_and_names_may_be_anything(tmp_path):
    odd = tmp_path / "Röntgen bild #1 日本.dcm"
    odd.write_bytes(encoded("PNG"))
    assert np.array_equal(np.moveaxis(open_image(odd).pixels, 0, -1), scene(samples=3))
    for name, content in (("empty.png", b""), ("text.png", b"not a picture"), ("a.webp", b"RIFF\x10\0\0\0WEBPVP8 ")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFile, match=name):
            open_image(tmp_path / name)
        with pytest.raises(UnreadableFile, match=name):
            read_raster(tmp_path / name)


def test_nothing_or_nonsense_as_a_path(tmp_path):
    for path in (tmp_path / "none.png", tmp_path / ("x" * 300), f"{tmp_path}/a.png#1"):
        with pytest.raises(UsageError, match="no such file"):
            open_image(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFile, match=r"pipe: neither a file nor a folder"):
        open_image(tmp_path / "pipe")
