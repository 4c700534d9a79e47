"""Pictures, the model card and the page of `vesalius inspect`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Raster
from report_material import Page, estimate, metrics_of

from vesalius.core.geometry import Grid
from vesalius.core.image import Clip, Image, Unit
from vesalius.core.labels import Labels
from vesalius.data.problem import Problem
from vesalius.report.card import model_card
from vesalius.report.inspect_page import write_inspect_page
from vesalius.report.pictures import contact_sheet, panels, png, png_size, thumbnail, window


def test_window_ignores_one_hot_pixel_and_survives_the_odd() -> None:
    pixels = np.tile(np.arange(100, dtype=np.int16), (100, 1))
    pixels[0, 0] = 30_000
    assert np.ptp(window(pixels)) == 255
    assert abs(int(window(pixels)[50, 50]) - 128) < 8
    assert set(np.unique(window(np.full((4, 4), 7)))) == {128}
    broken = np.array([[np.nan, 1.0], [2.0, np.inf]])
    assert window(broken)[0, 0] == 0
    assert window(np.full((2, 2), np.nan)).max() == 0


def test_a_single_bright_pixel_of_a_label_like_image_stays_visible() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[3, 3] = 200
    assert window(pixels)[3, 3] == 255


def test_flat_gray_colour_and_tiny_images() -> None:
    gray = Image(Grid((60, 30)), np.arange(1800, dtype=np.int16).reshape(1, 60, 30))
    assert panels(gray, side=120).shape == (120, 60)
    colour = Image(Grid((8, 8)), np.zeros((3, 8, 8), np.uint8) + np.array([200, 10, 30], np.uint8)[:, None, None])
    shown = panels(colour, side=64)
    assert shown.shape == (64, 64, 3)
    assert shown[5, 5].tolist() == [200, 10, 30]
    tiny = Image(Grid((2, 2)), np.array([[[0, 255], [255, 0]]], np.uint8))
    assert set(np.unique(panels(tiny, side=10))) == {0, 255}, "tiny images are enlarged without inventing grays"
    tall = Image(Grid((10, 10), spacing=(2.0, 1.0)), np.zeros((1, 10, 10), np.uint8))
    assert panels(tall, side=40).shape == (40, 20)


def test_volume_shows_three_slices_with_the_head_up() -> None:
    volume = np.zeros((1, 10, 20, 20), np.float32)
    volume[0, 7:] = 100.0  # the upper part, towards the head
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [0, 1, 0], [2, 0, 0]]
    shown = panels(Image(Grid((10, 20, 20), affine), volume), side=60)
    assert shown.shape == (60, 180)
    coronal = shown[:, 60:120]
    assert coronal[5:15].mean() > 200
    assert coronal[45:55].mean() < 50
    stored_from_the_head = affine.copy()
    stored_from_the_head[2, 0] = -2
    other = panels(Image(Grid((10, 20, 20), stored_from_the_head), volume[:, ::-1]), side=60)
    # The middle of an even number of slices is another one after turning; the orientation must be the same.
    assert other[5:15, 60:120].mean() > 200
    assert other[45:55, 60:120].mean() < 50


def test_sagittal_storage_is_turned() -> None:
    axial = np.random.default_rng(0).random((1, 9, 11, 13)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    turned = np.eye(4)
    turned[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, 1, 0]]  # axes stored as (x, z, y)
    one = panels(Image(Grid((9, 11, 13), affine), axial), side=40)
    other = panels(Image(Grid((13, 9, 11), turned), axial.transpose(0, 3, 1, 2)), side=40)
    assert np.array_equal(one, other)


def test_volume_without_place_and_clip_and_colour_volume() -> None:
    assert panels(Image(Grid((4, 5, 6)), np.zeros((1, 4, 5, 6), np.int16)), side=30).shape == (30, 90)
    colour = Image(Grid((4, 5, 6)), np.zeros((3, 4, 5, 6), np.uint8), Unit.RED_GREEN_BLUE)
    assert panels(colour, side=30).shape == (30, 90, 3)
    clip = Clip(7, (1, 10, 10), 25.0, lambda start, stop: np.full((stop - start, 1, 10, 10), start, np.uint8))
    assert panels(clip, side=20).shape == (20, 80)
    with Raster.open(io.BytesIO(thumbnail(clip))) as raster:
        assert raster.format == "PNG"


def test_contact_sheet_places_and_mixes() -> None:
    gray = png(np.full((10, 20), 50, np.uint8))
    colour = png(np.full((10, 20, 3), 90, np.uint8))
    sheet = contact_sheet([gray] * 3 + [colour], columns=3, gap=2)
    assert png_size(sheet) == (3 * 20 + 2 * 2, 2 * 10 + 2)
    pixels = np.asarray(Raster.open(io.BytesIO(sheet)))
    assert pixels[0, 0].tolist() == [50, 50, 50]
    assert pixels[12, 0].tolist() == [90, 90, 90]
    assert pixels[0, 20].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_card_says_what_it_must() -> None:
    metrics = metrics_of(
        subgroups={"sex": {"groups": {"F": {"cases": 5, "note": "not enough cases: 5"}}}},
        operating_points={"youden": {"threshold": 0.4321, "sensitivity": estimate(0.9123, 0.8612, 0.9534)}},
        leakage={"patients_shared": 2, "allowed": True},
    )
    data = {"patient_source": "none", "published": True, "counts": {"cases": 5856, "patients": 5856}}
    text = model_card(metrics=metrics, card={"name": "Lungs", "bundle": "runs/x/bundle", "data": data})
    for words in ("# Lungs", "0.97 | 0.95 to 0.98", "not enough cases: 5", "0.4321", "## What may not be concluded",
                  "Not for diagnosis", "other scanners", "how common each class is", "what causes them",
                  "published benchmark", "Without patient identifiers", "overlap, so no number", "* Data: unknown",
                  'vesalius.predict("runs/x/bundle"', "temperature: 1.37"):  # fmt: skip
        assert words in text, words
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 3
    compile(code, "card", "exec")


def test_card_of_a_sound_study_does_not_cry_wolf() -> None:
    text = model_card(metrics=metrics_of(), card={"data": {"licence": "CC BY 4.0", "patient_source": "dicom"}})
    assert "> **" not in text
    assert "* Data: CC BY 4.0" in text
    assert "published benchmark" not in text


def test_card_escapes_names_from_data() -> None:
    labels = Labels(("a|b", "<img src=x>"))
    text = model_card(metrics=metrics_of(labels), card={"name": "x\n# y"})
    assert "<img" not in text.replace("\\<img", "")
    assert "\n# y" not in text
    row = next(line for line in text.splitlines() if line.startswith("| a\\|b"))
    assert row.replace("\\|", "").count("|") == 3


def test_inspect_page(tmp_path: Path) -> None:
    counts = {"cases": 30, "patients": 20, "classes": {"<b>": 20, "ok": 10}, "splits": {"train": 30},
              "split_classes": {"train": {"<b>": 20, "ok": 10}}, "split_patients": {"train": 20}}  # fmt: skip
    path = write_inspect_page(
        tmp_path / "data.html",
        summary={"name": "Films", "patient_source": "none", "cases": 30},
        counts=counts,
        problems=[Problem("note", "", "a note"), Problem("error", "x.png", "is empty; take it out")],
        duplicates=[("a.png", "<i>.png")],
        geometry=pd.DataFrame({"shape": ["28 × 28"], "cases": [30]}),
        montage={"<b>": contact_sheet([np.zeros((5, 5), np.uint8)])},
        next_steps="vesalius plan films",
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.complaints == []
    assert not page.all("script")
    for words in ("30 cases of an unknown number of patients in 2 classes; the commonest, <b>, makes up 67 %",
                  "28 × 28", "<i>.png", "x.png: is empty", "1 contradiction in the data",
                  "vesalius plan films"):  # fmt: skip
        assert words in page.text
    assert page.text.index("error: x.png") < page.text.index("note: a note")
    assert page.all("img")[0]["alt"]


def test_inspect_page_of_nothing(tmp_path: Path) -> None:
    page = Page(write_inspect_page(tmp_path / "p.html", summary={}).read_text(encoding="utf-8"))
    assert page.complaints == []
    for words in ("Nothing was counted", "No pictures were made", "No two images", "None was found", "in pixels"):
        assert words in page.text
    assert page.all("div", "band") == []
    table = Page(
        write_inspect_page(
            tmp_path / "q.html", summary={"cases": 2}, counts=pd.DataFrame({"class": ["a"], "cases": [2]}),
            duplicates=[f"group {k}" for k in range(150)],
        ).read_text()
    )  # fmt: skip
    assert "The first 100 of 150" in table.text
