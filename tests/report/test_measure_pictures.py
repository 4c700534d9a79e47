"""Pictures, charts and rankings of `vesalius measure` against what scikit-image, numpy and pandas find."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Raster
from report_material import Page
from skimage.segmentation import find_boundaries

from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.report.measure_agreement import agreement, direction
from vesalius.report.measure_charts import histogram_chart, use_log
from vesalius.report.measure_numbers import (
    inside_sentence,
    measured,
    named,
    quantile_shown,
    shown,
    statistics,
    turned_grid,
)
from vesalius.report.measure_page import MeasurePicture, MeasureTable, write_measure_page
from vesalius.report.measure_pictures import (
    OUTLINES,
    contour_picture,
    density_picture,
    montage,
    ripley_chart,
    vessel_graph_picture,
)
from vesalius.report.pictures import png, png_size

NOTHING = pd.DataFrame(columns=["table", "column", "quantity", "unit", "meaning", "source"])


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Raster.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def colour(place: int) -> np.ndarray:
    return np.array([int(OUTLINES[place][k : k + 2], 16) for k in (1, 3, 5)])


# ------------------------------------------------------------------------------------------------------------ outlines


def test_outlines_lie_where_scikit_image_finds_the_inner_boundary() -> None:
    rows, columns = np.mgrid[:40, :40]
    labels = ((rows - 18) ** 2 + (columns - 22) ** 2 < 12**2).astype(np.uint8)
    image = Image(Grid((40, 40)), np.full((1, 40, 40), 128, np.uint8))
    picture = pixels_of(contour_picture(image, labels, {1: "ball"}, side=320, legend=False))
    assert picture.shape == (320, 320, 3)
    # Of each pixel of the labels the 8 x 8 block of the picture: coloured somewhere if and only if on the boundary.
    near = np.abs(picture - colour(0)).sum(axis=-1) < 30
    blocks = near.reshape(40, 8, 40, 8).any(axis=(1, 3))
    boundary = find_boundaries(labels, connectivity=1, mode="inner", background=0)
    assert (blocks >= boundary).all()
    assert not blocks[labels == 0].any(), "the line is inside the label"
    deep = labels.astype(bool) & ~find_boundaries(labels, connectivity=2, mode="thick")
    deep[1:-1, 1:-1] &= ~(boundary[:-2, 1:-1] | boundary[2:, 1:-1] | boundary[1:-1, :-2] | boundary[1:-1, 2:])
    assert not blocks[deep].any()


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_labels_of_any_whole_type_give_the_same_picture(kind: Any) -> None:
    labels = np.zeros((30, 20), kind)
    labels[5:15, 5:12] = 1
    assert contour_picture(None, labels, {1: "a"}) == contour_picture(None, labels.astype(np.int32), {1: "a"})


def test_labels_beyond_a_table_and_below_zero_are_drawn() -> None:
    labels = np.zeros((32, 32), np.int64)
    labels[4:12, 4:12], labels[20:28, 20:28] = 2**40, -3
    picture = pixels_of(contour_picture(None, labels, {}, side=320, legend=False))
    drawn = (picture.max(axis=-1) - picture.min(axis=-1)) > 60
    assert drawn[40:120, 40:120].any()
    assert drawn[200:280, 200:280].any()
    assert not drawn[130:190].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 30), st.integers(5, 30), st.floats(0.2, 5), st.floats(0.2, 5))
def test_the_shape_of_a_picture_is_that_of_the_body(rows: int, columns: int, down: float, across: float) -> None:
    labels = np.ones((rows, columns), np.uint8)
    width, height = png_size(contour_picture(None, labels, {}, side=200, spacing=(down, across), legend=False))
    tall, wide = rows * down, columns * across
    scale = 200 / max(tall, wide)
    if down == across:
        # Square pixels are enlarged by whole factors.
        scale = 200 // max(rows, columns) / down
    assert abs(height - max(tall * scale, 1)) <= 0.51
    assert abs(width - max(wide * scale, 1)) <= 0.51


def test_three_views_stand_side_by_side_and_pictures_repeat_to_the_byte() -> None:
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[2:5, 4:12, 6:9] = 2
    one = contour_picture(None, labels, {2: "cyst"}, side=64, spacing=(3, 1, 1), views=True, legend=False)
    assert png_size(one) == (192, 64)
    assert one == contour_picture(None, labels, {2: "cyst"}, side=64, spacing=(3, 1, 1), views=True, legend=False)
    assert pixels_of(contour_picture(None, np.zeros((4, 5, 6), int), {}, legend=False)).std(axis=(0, 1)).max() == 0


def test_a_sheet_keeps_to_its_bytes_and_to_its_names() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 120, 120, 3), dtype=np.uint8)
    tiles = [png(one) for one in noise]
    assert len(montage(tiles, 3, names=["<b>"] * 6, most_bytes=20_000)) <= 20_000
    assert png_size(montage(tiles, 3))[0] == 3 * 120 + 2 * 4
    with pytest.raises(ValueError, match="2 names for 6 pictures"):
        montage(tiles, names=["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        montage([])


# -------------------------------------------------------------------------------------------------------- vessel graph


def narrowing_of(page: Page) -> tuple[float, float]:
    """Centre of the ring drawn on the vessel; the key's ring is smaller."""
    rings = [one for one in page.all("circle", "narrowing") if float(one["r"] or 0) > 10]
    assert len(rings) == 1
    return float(rings[0]["cx"] or "nan"), float(rings[0]["cy"] or "nan")


def test_narrowings_lie_where_they_are_in_two_dimensions() -> None:
    line = np.stack([np.full(50, 10.0), np.arange(5.0, 55.0)], axis=1)
    page = Page(
        vessel_graph_picture([(line, np.ones(50))], [], [], shape=(30, 60), spacing=(2, 1), narrowings=[((10, 44), 50)])
    )
    # 60 mm wide and 60 mm high in 480 units.
    assert narrowing_of(page) == pytest.approx((44.5 * 8, 10.5 * 2 * 8), abs=0.01)


@pytest.mark.parametrize(("thin", "place"), [(0, (2, 14, 28)), (1, (14, 2, 28)), (2, (14, 28, 2))])
def test_narrowings_lie_where_they_are_in_three_dimensions(thin: int, place: tuple[int, int, int]) -> None:
    shape = [40, 40, 40]
    way = np.linspace(0, 1, 60)
    wide = [axis for axis in range(3) if axis != thin]
    points = np.zeros((60, 3))
    points[:, wide[0]], points[:, wide[1]], points[:, thin] = 2 + 35 * way, 36 * way**2, 2
    picture = vessel_graph_picture([(points, np.ones(60))], [], [], shape=shape, narrowings=[(place, 71)])
    x, y = narrowing_of(Page(picture))
    down, across = place[wide[0]] + 0.5, place[wide[1]] + 0.5
    # The first axis of the array (z) points up wherever it is seen.
    assert (x, y) == pytest.approx((across * 12, (40 - down if wide[0] == 0 else down) * 12), abs=0.01)
    assert "71 %" in Page(picture).text


def test_a_graph_escapes_its_words_and_refuses_what_does_not_fit() -> None:
    line = np.array([[1.0, 1.0], [5.0, 5.0]])
    picture = vessel_graph_picture([(line, [1, np.nan])], [], [], shape=(9, 9), label="<b>\"'&")
    page = Page(picture)
    assert page.complaints == []
    assert page.all("svg")[0]["aria-label"] == "<b>\"'&"
    assert not page.all("b")
    assert "nan" not in picture
    assert Page(vessel_graph_picture([], [], [], shape=(9, 9))).complaints == []
    for shape, spacing in (((9,), None), ((9, 9), (1, 1, 1))):
        with pytest.raises(ValueError, match="as many steps"):
            vessel_graph_picture([], [], [], shape=shape, spacing=spacing)


def test_ripley_and_density_escape_and_show_their_units() -> None:
    r = np.arange(20.0)
    page = Page(ripley_chart(r, r * 0.1, -0.5 - r * 0, 0.5 + r * 0, unit="um", label="<i>x</i>"))
    assert page.all("svg")[0]["aria-label"] == "<i>x</i>"
    assert not page.all("i")
    assert "distance r (µm)" in page.text
    assert len(page.all("polygon", "envelope")) == 1
    bar = png_size(density_picture(np.eye(20), side=100))[0] - 100
    assert png_size(density_picture(np.eye(20), spacing=(1, 2), side=100)) == (100 + bar, 50)


# ---------------------------------------------------------------------------------------------------- charts, numbers


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60), st.booleans())
def test_the_bars_of_a_histogram_hold_every_finite_value(values: list[float], odd: bool) -> None:
    column = np.array([*values, *([np.nan, np.inf, -np.inf] if odd else [])])
    page = Page(histogram_chart(column, x_name="x", label="l"))
    tips = [text for text in page.texts if ": " in text]
    assert sum(int(text.rpartition(": ")[2]) for text in tips) == len(values)


def test_a_wide_range_is_logarithmic_and_five_digits_fit_beside_the_axis() -> None:
    assert use_log(np.array([1.0, 101.0]))
    assert not use_log(np.array([0.0, 1e6]))
    assert not use_log(np.array([np.nan]))
    page = Page(histogram_chart(np.repeat(np.arange(4.0), 20_000), x_name="x", label="l"))
    ends = [float(one["x"] or 0) for one in page.all("text", "tick") if one["text-anchor"] == "end"]
    assert min(ends) - 5 * 7 > 13, "five digits of 12 px must not reach the name of the axis"


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf]), max_size=30))
def test_statistics_are_those_of_pandas(values: list[float]) -> None:
    one = statistics(np.array(values, dtype=float))
    series = pd.Series(values, dtype=float).replace([np.inf], np.nan).dropna()
    assert one.n == len(series)
    found = (one.mean, one.sd, one.median, one.low_quartile, one.high_quartile, one.least, one.most)
    said = (series.mean(), series.std(), *series.quantile([0.5, 0.25, 0.75]), series.min(), series.max())
    np.testing.assert_allclose(found, said, rtol=1e-9, atol=1e-6)


def test_digits_of_counts_small_numbers_and_names() -> None:
    counts = np.array([1.0, 2.0, 5.0, 8.0])
    assert [quantile_shown(v, counts) for v in (3.0, 3.5, np.nan)] == ["3", "3.50", "–"]
    assert shown(0.000403, 5) == "0.000403", "as many digits as its neighbours in the column"
    found = measured(pd.DataFrame({"euler_number": [1, -1], "case_number": [1, 2]}), [], NOTHING)
    assert [m.heading for m in found.measures] == ["Euler number"]
    assert [inside_sentence(named(n)) for n in ("clark_evans", "hd95", "volume_mesh", "iou")] == [
        "Clark Evans", "HD95", "volume mesh", "IoU",
    ]  # fmt: skip


def test_rows_without_a_name_are_numbered() -> None:
    grid = turned_grid(measured(pd.DataFrame({"a_mm": [1.0, 2.5]}), [], NOTHING), most_rows=9)
    assert grid.head == ["Measure", "row 1", "row 2"]
    assert grid.rows == [["A (mm)", "1", "2.50"]]


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_worst_are_the_lowest_dice_and_the_highest_distance() -> None:
    frame = pd.DataFrame({"case_id": list("abcdef"), "x": [3.0, 9.0, 1.0, np.nan, np.inf, 4.0]})
    for column, order in (
        ("dice", "ca"), ("hausdorff_distance_95", "eb"), ("assd", "eb"), ("surface_dice_at_1", "ca"),
        ("lesion_sensitivity", "ca"), ("panoptic_quality", "ca"),
    ):  # fmt: skip
        found = agreement(measured(frame.rename(columns={"x": column}), [column], NOTHING), "reference")
        assert found is not None
        assert found.worst is not None
        assert [row[0] for row in found.worst.rows][:2] == list(order), column
        assert "d" not in [row[0] for row in found.worst.rows], "undefined is not worst"
    assert direction("volume") == direction("area") == direction("mean") == 0


def write(folder: Path, tables: list[MeasureTable], **more: Any) -> tuple[Page, str]:
    content: dict[str, Any] = {
        "title": "t", "summary": {}, "pictures": [], "dictionary": NOTHING, "problems": [], "notes": [], **more
    }  # fmt: skip
    path = write_measure_page(folder / "index.html", tables=tables, **content)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_units_come_from_the_dictionary_of_the_same_table(tmp_path: Path) -> None:
    rows = [
        ["one", "length", "length", "mm", "Of one.", ""], ["two", "length", "length", "um", "Of two.", ""],
        ["one", "surface_dice_at_0_5", "surface_dice_at_0_5", "1", "Share.", ""],
    ]  # fmt: skip
    dictionary = pd.DataFrame(rows, columns=NOTHING.columns)
    tables = [
        MeasureTable(name, "", pd.DataFrame({"case_id": ["a"], "length": [1.25]}), ["length"])
        for name in ("one", "two")
    ]
    tables[0].frame["surface_dice_at_0_5"] = 0.5
    page, _ = write(tmp_path, tables, dictionary=dictionary)
    assert page.complaints == []
    assert "Length (mm)" in page.text
    assert "Length (µm)" in page.text
    assert "Surface Dice at 0.5 mm" in page.text


def test_every_picture_is_described_and_markup_in_words_stays_words(tmp_path: Path) -> None:
    bad = '<b>"x"</b>'
    frame = pd.DataFrame({"case_id": [bad], "name": [bad], "volume_mm3": [np.nan]})
    pictures = [
        MeasurePicture(bad, bad, contour_picture(None, np.eye(20, dtype=np.uint8), {1: bad}), bad),
        MeasurePicture("graph", bad, vessel_graph_picture([], [], [], shape=(9, 9), label=bad), bad),
    ]
    table = MeasureTable(bad, bad, frame, ["volume_mm3"])
    page, text = write(tmp_path, [table], pictures=pictures, problems=[bad], notes=[bad], title=bad, next_steps=bad)
    assert page.complaints == []
    assert "<b>" not in text
    assert not page.all("script")
    assert not any(word in text for word in ("http:", "https:", "//cdn", "@import", "url("))
    assert [one["alt"] for one in page.all("img")] == [bad]
    assert all(one.get("aria-label") or one.get("aria-hidden") for one in page.all("svg"))
    assert "–" in page.text
    assert "nan" not in page.text.lower()
