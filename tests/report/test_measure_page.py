"""The page and the pictures of `vesalius measure`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image as Raster
from report_material import Page

from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.core.image import Image, Unit
from vesalius.phantoms.smear import make_smear
from vesalius.report.measure_charts import histogram_chart, spread_chart
from vesalius.report.measure_numbers import digits_of, measured, shown, statistics_grid, unit_shown
from vesalius.report.measure_page import PICTURE_BUDGET, MeasurePicture, MeasureTable, write_measure_page
from vesalius.report.measure_pictures import (
    OUTLINES,
    contour_picture,
    density_picture,
    montage,
    ripley_chart,
    vessel_graph_picture,
)
from vesalius.report.measure_plots import ripley_words
from vesalius.report.pictures import png, png_size

EMPTY = pd.DataFrame(columns=["column", "quantity", "unit", "meaning", "source"])
DICTIONARY = pd.DataFrame(
    [
        ["volume_mesh_mm3", "volume_mesh", "mm3", "Volume inside the mesh.", "IBSI 1"],
        ["sphericity", "sphericity", "1", "1 for a ball.", "IBSI 1"],
        ["dice", "dice", "1", "Overlap.", "Dice 1945"],
        ["hd95_mm", "hd95", "mm", "95th percentile of surface distances.", ""],
    ],
    columns=EMPTY.columns,
)


def organs(rows: int, *, structures: Sequence[str] = ("liver", "spleen"), seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "case": [f"case_{k // len(structures):05d}" for k in range(rows)],
            "structure": [structures[k % len(structures)] for k in range(rows)],
            "volume_mesh_mm3": draw.lognormal(12, 0.4, rows),
            "sphericity": draw.uniform(0.4, 0.9, rows),
        }
    )


def write(folder: Path, tables: Sequence[MeasureTable], **changes: Any) -> tuple[Page, str]:
    options: dict[str, Any] = {
        "title": "Organs", "summary": {}, "pictures": (), "dictionary": DICTIONARY, "problems": (), "notes": (),
    }  # fmt: skip
    path = write_measure_page(folder / "index.html", tables=tables, **(options | changes))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.complaints == []
    anchors = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(anchors) == len(set(anchors))
    assert {link["href"] for link in page.all("a")} <= {f"#{anchor}" for anchor in anchors}
    return page, text


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Raster.open(io.BytesIO(picture)).convert("RGB"))


class Tables(HTMLParser):
    """Every table of a page as rows of texts, the heading first."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[list[list[str]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append([])
        elif tag == "tr":
            self.found[-1].append([])
        elif tag in ("td", "th"):
            self.found[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][-1][-1] += data


def cells_of(text: str) -> list[list[str]]:
    """Rows of the first table of a page, without its heading."""
    return Tables(text).found[0][1:]


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_loads_nothing_and_says_everything(tmp_path: Path) -> None:
    page, text = write(
        tmp_path,
        [MeasureTable("Organs", "One row per organ.", organs(200), ["volume_mesh_mm3"])],
        summary={"answer": "100 cases; median volume 163 ml.", "cases": 12034, "seconds": 3.14159},
        pictures=[
            MeasurePicture("Outlines", "Two cases.", png(np.zeros((8, 8), np.uint8)), "Black square"),
            MeasurePicture("Outlines", "", png(np.zeros((8, 8), np.uint8)), ""),
            MeasurePicture("Graph", "", vessel_graph_picture([], [], [], shape=(9, 9)), ""),
        ],
        problems=["case_1: no spacing"],
        notes=["Cells at the frame were left out."],
        next_steps="vesalius measure --help",
    )
    assert not page.all("script")
    assert not page.all("link")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert len(page.all("img")) == 2
    assert all(attrs.get("aria-label") and attrs.get("role") == "img" for attrs in page.all("svg", "chart"))
    said = (
        *("100 cases; median volume 163 ml.", "12 034", "3.14", "case_1: no spacing", "left out", "Volume mesh (mm³)"),
        *("Volume inside the mesh.", "vesalius measure --help", "liver", "spleen"),
    )
    # `Page.text` joins words with plain spaces, also where a thin one stood.
    assert [words for words in said if words not in page.text] == []
    details = [k for k, (tag, _) in enumerate(page.tags) if tag == "details"]
    assert details, "the dictionary is folded"
    assert all("open" not in page.tags[k][1] for k in details)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    nasty = '<b>liver</b> & "x" <script>alert(1)</script>'
    frame = organs(70, structures=(nasty, "ok")).assign(dice=0.5)
    for rows in (70, 6):
        page, text = write(
            tmp_path,
            [MeasureTable(nasty, nasty, frame.head(rows), ["volume_mesh_mm3", "dice"])],
            title=nasty,
            summary={"answer": nasty, nasty: nasty},
            pictures=[MeasurePicture(nasty, nasty, png(np.zeros((4, 4), np.uint8)), nasty)],
            dictionary=pd.DataFrame([["dice", nasty, nasty, nasty, nasty]], columns=EMPTY.columns),
            problems=[nasty],
            notes=[nasty],
            next_steps=nasty,
        )
        assert not page.all("script")
        assert not page.all("b")
        assert "<script" not in text
        assert nasty in page.text


def test_few_rows_are_shown_and_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    frame = organs(3)
    frame.loc[1, "sphericity"] = np.nan
    frame["nothing"] = [None, None, None]
    _, text = write(tmp_path, [MeasureTable("Organs", "", frame, ["sphericity"])])
    rows = cells_of(text)
    assert rows[1][:3] == ["case_00000", "spleen", "–"]
    assert rows[0][2] == f"{frame.sphericity[0]:.3f}", "the highlighted column comes first"
    assert rows[0][-1] == "–"
    assert "nan" not in text.lower().replace("nannte", "")


def test_many_rows_become_the_statistics_that_pandas_finds(tmp_path: Path) -> None:
    frame = organs(400)
    frame.loc[:9, "sphericity"] = np.nan
    frame.loc[10, "sphericity"] = np.inf
    _, text = write(tmp_path, [MeasureTable("Organs", "", frame, ["sphericity"])])
    table = {row[1]: row for row in cells_of(text)}
    finite = frame.replace(np.inf, np.nan)
    for name in ("liver", "spleen"):
        expected = finite.loc[finite.structure == name, "sphericity"].describe()
        low, high = (f"{expected[q]:.3f}" for q in ("25%", "75%"))
        assert table[name][2:] == [
            f"{expected['count']:.0f}", f"{expected['mean']:.3f}", f"{expected['std']:.3f}", f"{expected['50%']:.3f}",
            f"{low} to {high}", f"{expected['min']:.3f}", f"{expected['max']:.3f}",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame(columns=["case", "area_px2"]),
        pd.DataFrame({"case": ["a"], "area_px2": [3]}),
        pd.DataFrame({"area_px2": [np.nan] * 80}),
        pd.DataFrame({"area_px2": [np.inf, -np.inf, 1.0] * 30}),
        pd.DataFrame({"area_px2": [7] * 80, "case": [None] * 80, "structure": [None] * 80}),
        pd.DataFrame({"case": ["a"] * 90, "structure": ["x"] * 90}),
        pd.DataFrame({"case": ["a", "a"], "volume mm": [1, 2], "flag": [True, False], "Volume mm": [3, 4]}),
        pd.DataFrame({"label": pd.array([1, None], dtype="Int64"), "area_px2": pd.array([None, 4], dtype="Int64")}),
        pd.DataFrame({"case": ["a"], **{f"texture_{k}": [k * 1e-6] for k in range(100)}}),
    ],
)
@pytest.mark.parametrize("dictionary", [EMPTY, pd.DataFrame(), DICTIONARY])
def test_odd_tables_make_a_page(tmp_path: Path, frame: pd.DataFrame, dictionary: pd.DataFrame) -> None:
    page, text = write(tmp_path, [MeasureTable("T", "", frame, ["area_px2", "not there"])], dictionary=dictionary)
    assert ">nan<" not in text
    assert "None" not in page.text.replace("None was found", "")


def test_no_table_at_all_and_a_wrong_dictionary(tmp_path: Path) -> None:
    page, _ = write(tmp_path, [], dictionary=EMPTY)
    assert "Nothing was measured." in page.text
    with pytest.raises(ValueError, match="column 'column'"):
        write(tmp_path, [], dictionary=pd.DataFrame({"name": ["x"]}))


def test_a_sentence_is_made_where_none_is_given(tmp_path: Path) -> None:
    frame = pd.DataFrame({"case": ["a"] * 5 + ["b"] * 5, "area_px2": range(10)})
    page, _ = write(tmp_path, [MeasureTable("Cells", "", frame, ["area_px2"])])
    assert "2 cases, 10 rows in “Cells”; median area 4.50 px² (quartiles 2.25 to 6.75)." in page.text


def test_ten_thousand_cells_stay_a_small_page(tmp_path: Path) -> None:
    frame = organs(10_000, structures=[f"organ {k}" for k in range(40)])
    for k in range(40):
        frame[f"feature_{k}"] = np.random.default_rng(k).normal(size=len(frame))
    sheet = np.random.default_rng(0).integers(0, 255, (500, 500), dtype=np.uint8)
    pictures = [MeasurePicture("Noise", "", png(sheet), "Noise") for _ in range(20)]
    table = MeasureTable("Organs", "", frame, ["volume_mesh_mm3", "sphericity", "feature_0"])
    page, text = write(tmp_path, [table] * 2, pictures=pictures)
    assert len(text.encode()) < 2_500_000
    kept = len(page.all("img"))
    assert 0 < kept < 20
    assert kept * len(pictures[0].png) * 4 / 3 <= PICTURE_BUDGET
    assert f"{20 - kept} pictures were left out" in page.text


def test_agreement_names_the_worst_cases(tmp_path: Path) -> None:
    frame = organs(40)
    frame["dice"] = np.linspace(0.5, 0.97, 40)
    frame["hd95_mm"] = np.linspace(30, 1, 40)
    frame.loc[4, "dice"] = 0.01
    frame.loc[6, ["dice", "hd95_mm"]] = np.nan
    frame.loc[8, "hd95_mm"] = np.inf
    _, text = write(tmp_path, [MeasureTable("Organs", "", frame, ["dice"])])
    means, worst = Tables(text).found[:2]
    assert means[0] == ["Structure", "n", "Dice", "HD95 (mm)"]
    liver = frame[frame.structure == "liver"].replace(np.inf, np.nan)
    assert means[1][2].split()[0] == f"{liver.dice.mean():.3f}"
    assert means[1][3].split()[0] == f"{liver.hd95_mm.mean():.1f}"
    assert means[1][3].endswith("to ∞")
    assert [row[0] for row in worst[1:3]] == ["case_00002", "case_00000"]
    lowest = [float(row[2]) for row in worst[1:]]
    assert lowest == sorted(lowest)
    assert "undefined in 1 row" in text
    assert "infinite in 1 row" in text
    assert "Agreement" not in write(tmp_path, [MeasureTable("Organs", "", organs(5), [])])[0].text


def test_the_same_input_gives_the_same_page(tmp_path: Path) -> None:
    table = MeasureTable("Organs", "", organs(300), ["sphericity"])
    assert write(tmp_path, [table])[1] == write(tmp_path, [table])[1]


# -------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (np.nan, 2, "–"), (None, 2, "–"), (pd.NA, 0, "–"), (np.inf, 1, "∞"), (-np.inf, 1, "−∞"), (0, 3, "0.000"),
        (12034, 0, "12\u202f034"), (-3.14159, 2, "−3.14"), (0.99996, 3, "0.99996"), (1.0, 3, "1.000"),
        (0.0004, 2, "0.0004"), (1.234e-7, 3, "1.23 × 10⁻⁷"), (4.5e12, 0, "4.5 × 10¹²"), (0.25, 0, "0.25"),
    ],
)  # fmt: skip
def test_numbers_as_shown(value: Any, digits: int, text: str) -> None:
    assert shown(value, digits) == text


@given(st.floats(-1e300, 1e300), st.integers(0, 5))
def test_no_number_becomes_zero_or_another(value: float, digits: int) -> None:
    text = shown(value, digits).replace("\u202f", "").replace("−", "-")
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    head, _, power = text.partition(" × 10")
    read = float(f"{head}e{power.translate(raised)}") if power else float(text)
    assert (read == 0) == (value == 0)
    assert abs(read - value) <= max(0.5 * 10.0**-digits, abs(value) * 0.05) * 1.001


def test_units_and_digits() -> None:
    assert [unit_shown(u) for u in ("mm3", "px-2", "percent", "1", "count", "HU2", "deg", "ml")] == [
        "mm³", "px⁻²", "%", "", "", "HU²", "°", "ml",
    ]  # fmt: skip
    assert digits_of(np.array([1.0, 200.0])) == 0
    assert digits_of(np.array([0.7123, 0.8])) == 3
    assert digits_of(np.array([14.32])) == 1
    assert digits_of(np.array([np.nan])) == 0
    frame = pd.DataFrame({"hd95_mm": [1.5], "volume_fraction_percent": [2.0], "cell": [3], "patient_id": [1]})
    found = measured(frame, [], EMPTY)
    assert [m.heading for m in found.measures] == ["HD95 (mm)", "Volume fraction (%)"]
    assert set(found.identifiers) == {"cell", "patient_id"}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(width=32), max_size=40))
def test_any_column_has_statistics_and_charts(values: list[float]) -> None:
    column = np.array(values, dtype=float)
    table = measured(pd.DataFrame({"x_mm": column}), ["x_mm"], EMPTY)
    assert len(statistics_grid(table, table.highlights, most_rows=9).rows) == len(table.highlights)
    for chart in (histogram_chart(column, x_name="x", label="l"), spread_chart({"a": column}, x_name="x", label="l")):
        assert Page(chart).complaints == []
        assert "nan" not in chart


# ------------------------------------------------------------------------------------------------------- the outlines


def colour(place: int) -> np.ndarray:
    return np.array([int(OUTLINES[place][k : k + 2], 16) for k in (1, 3, 5)])


def test_the_border_of_a_label_has_its_colour_and_the_inside_is_untouched() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 16:48] = 1
    image = Image(Grid((64, 64)), np.full((1, 64, 64), 90, np.uint8))
    shown_picture = pixels_of(contour_picture(image, labels, {1: "liver"}, side=256, legend=False))
    plain = pixels_of(contour_picture(image, labels * 0, {}, side=256, legend=False))
    assert shown_picture.shape == (256, 256, 3)
    # Label pixel 16 covers pixels 64 to 67 of the picture; the line lies on the inner side.
    for y, x in ((64, 128), (191, 128), (128, 64), (128, 191)):
        assert np.abs(shown_picture[y, x].astype(int) - colour(0)).max() <= 2, (y, x)
    inside, outside = slice(72, 184), slice(0, 60)
    assert np.array_equal(shown_picture[inside, inside], plain[inside, inside])
    assert np.array_equal(shown_picture[outside], plain[outside])


def test_touching_objects_keep_separate_outlines_in_different_colours() -> None:
    labels = np.zeros((40, 40), np.uint16)
    labels[10:30, 8:20], labels[10:30, 20:32] = 1, 8  # 1 and 8 would share a colour of seven
    labels[2:6, 2:6], labels[34:38, 2:38:6] = 3, np.arange(10, 16, dtype=np.uint16)
    picture = pixels_of(contour_picture(None, labels, {}, side=200, legend=False)).astype(int)
    row = picture[100]
    left, right = row[98], row[101]  # the border lies between the pixels 99 and 100
    assert np.abs(left - colour(0)).max() < 20
    assert np.abs(left - right).max() > 60
    same = pixels_of(contour_picture(None, labels, dict.fromkeys(range(1, 16), "cell"), side=200)).astype(int)[100]
    assert np.abs(same[98] - same[101]).max() <= 2
    assert same[99].sum() < same[98].sum() * 0.6, "a dark line parts two outlines of one colour"


def test_pixels_have_their_true_shape() -> None:
    labels = np.ones((10, 30), np.uint8)
    assert png_size(contour_picture(None, labels, {}, side=300, spacing=(3, 1), legend=False)) == (300, 300)
    assert png_size(contour_picture(None, labels, {}, side=300, legend=False)) == (300, 100)
    image = Image(Grid((10, 30), spacing=(1.5, 1.0)), np.zeros((1, 10, 30), np.uint8))
    assert png_size(contour_picture(image, labels, {}, side=300, legend=False)) == (300, 150)
    volume = np.zeros((5, 20, 40), np.uint8)
    volume[2, 5:15, 5:15] = 1
    assert png_size(contour_picture(None, volume, {}, side=120, spacing=(4, 1, 0.5), legend=False)) == (120, 120)
    assert png_size(contour_picture(None, volume, {}, side=120, views=True, legend=False)) == (360, 120)


@pytest.mark.parametrize("way", ["axial", "feet first", "coronal", "sagittal"])
def test_a_volume_is_turned_alike_however_it_is_stored(way: str) -> None:
    from vesalius.phantoms.ct import ORIENTATIONS

    body = np.zeros((12, 16, 20), np.int16)
    body[7:10, 3:8, 4:15] = 1  # z to the head, y to the back, x to the left
    axes = np.array(ORIENTATIONS["axial"]), np.array(ORIENTATIONS[way])
    # Voxel axes of the stored array in terms of (z, y, x) of the body, and their signs.
    order = [int(np.argmax(np.abs(axes[0] @ row))) for row in axes[1]]
    flips = [k for k, row in enumerate(axes[1]) if row.sum() < 0]
    stored = np.flip(body.transpose(order), flips)
    shape = stored.shape
    grid = Grid(shape, affine=affine_from_axes((0, 0, 0), ORIENTATIONS[way], (1, 1, 1)))
    image = Image(grid, (stored[None] * 300).astype(np.int16), unit=Unit.HU)
    got = pixels_of(contour_picture(image, stored, {1: "box"}, side=100, views=True, legend=False)).astype(int)
    red = np.abs(got - colour(0)).max(axis=2) < 8
    assert red[:, :100].any()
    rows, columns = np.nonzero(red[:, 100:200])
    assert rows.mean() < 50, "the coronal plane has the head up"
    rows, columns = np.nonzero(red[:, :100])
    assert rows.mean() < 50, "the front of the patient is at the top of the axial plane"
    assert columns.mean() < 50, "and the right side of the patient at the left"


def test_the_chosen_slice_and_the_fullest() -> None:
    volume = np.zeros((6, 24, 24), np.uint8)
    volume[1, 4:8, 4:8] = 1
    volume[4, 2:22, 2:22] = 2
    full = pixels_of(contour_picture(None, volume, {1: "a", 2: "b"}, side=96, legend=False)).astype(int)
    assert (np.abs(full - colour(1)).max(axis=2) < 4).any()
    chosen = pixels_of(contour_picture(None, volume, {1: "a", 2: "b"}, side=96, slice_index=1, legend=False)).astype(
        int
    )
    assert (np.abs(chosen - colour(0)).max(axis=2) < 4).any()
    assert not (np.abs(chosen - colour(1)).max(axis=2) < 4).any()


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (np.zeros(4, np.uint8), {}, "axes"),
        (np.zeros((0, 4), np.uint8), {}, "empty"),
        (np.zeros((4, 4)), {}, "whole numbers"),
        (np.zeros((4, 4), np.uint8), {"spacing": (1, 0)}, "positive"),
        (np.zeros((4, 4), np.uint8), {"spacing": (1, 1, 1)}, "2 positive"),
        (np.zeros((4, 4), np.uint8), {"slice_index": 0}, "slice"),
        (np.zeros((3, 4, 4), np.uint8), {"slice_index": 3}, "slice 3"),
        (np.zeros((4, 4), np.uint8), {"side": 2}, "at least 16"),
        (np.zeros((4, 5), np.uint8), {"image": Image(Grid((4, 4)), np.zeros((1, 4, 4)))}, "must be equal"),
    ],
)
def test_outlines_refuse_what_does_not_fit(labels: np.ndarray, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contour_picture(more.pop("image", None), labels, {}, **more)


def test_odd_images_have_outlines() -> None:
    labels = np.eye(12, dtype=bool)
    for pixels, unit in (
        (np.full((1, 12, 12), np.nan, np.float32), Unit.INTENSITY),
        (np.full((1, 12, 12), 7, np.int16), Unit.HU),
        (np.full((3, 12, 12), 40_000, np.uint16), Unit.RED_GREEN_BLUE),
        (np.zeros((5, 12, 12), np.float64), Unit.INTENSITY),
    ):
        image = Image(Grid((12, 12)), pixels, unit=unit)
        names = {1: "Läsion 病变 with a name that is much too long for a strip of this width"}
        assert png_size(contour_picture(image, labels, names, side=48))[0] == 48
    huge = np.zeros((8, 8), np.uint64)
    huge[2:5, 2:5] = 2**40
    assert contour_picture(None, huge, {}) == contour_picture(None, huge, {})


def test_a_smear_is_drawn_fast_and_the_same_each_time() -> None:
    phantom = make_smear(seed=1, index=0, size=128)
    image, labels = phantom.case.images["image"], phantom.layers["instances"]
    kinds = {k + 1: cell["kind"] for k, cell in enumerate(phantom.truth["cells"])}
    one = contour_picture(image, labels, kinds, side=160)
    assert one == contour_picture(image, labels, kinds, side=160)
    sheet = montage([one] * 5, 3, names=list("abcde"))
    assert png_size(sheet)[0] == 3 * 160 + 2 * 4
    small = montage([one] * 5, 3, most_bytes=20_000)
    assert len(small) <= 20_000
    with pytest.raises(ValueError, match="names"):
        montage([one], 3, names=["a", "b"])


# ---------------------------------------------------------------------------------------------- graphs, maps, patterns


def test_a_vessel_graph_shows_forks_ends_and_narrowings() -> None:
    line = np.stack([np.full(30, 20.0), np.linspace(5, 50, 30)], axis=1)
    up = np.stack([np.linspace(20, 2, 20), np.linspace(50, 60, 20)], axis=1)
    down = up * (-1, 1) + (40, 0)
    lines = [(line, np.full(30, 2.0)), (up, np.full(20, 1.0)), (down, np.linspace(1.5, 0.5, 20))]
    nodes = [line[0], line[-1], up[-1], down[-1]]
    svg = vessel_graph_picture(
        lines, nodes, [1, 3, 1, 1], shape=(40, 80), spacing=(0.5, 0.5), narrowings=[(line[9], 62.4)]
    )
    assert isinstance(svg, Markup)
    page = Page(svg)
    assert page.complaints == []
    assert page.all("svg")[0]["aria-label"].startswith("Vessel graph of 3 branches, 1 fork, 3 ends and 1 narrowing;")
    assert len(page.all("polygon", "fork")) == 2, "one fork, one in the key"
    assert len(page.all("circle", "tip")) == 4
    assert "62 %" in page.text
    assert "calibre, mm" in page.text
    classes = {attrs["class"] for attrs in page.all("polyline", "vessel")}
    assert {"vessel v0", "vessel v7"} <= classes
    widths = [float(attrs["stroke-width"]) for attrs in page.all("polyline", "vessel")]
    assert max(widths) > min(widths)


def test_a_volume_of_vessels_is_seen_along_its_shortest_side() -> None:
    points = np.stack([np.linspace(0, 40, 20), np.full(20, 3.0), np.linspace(0, 10, 20)], axis=1)
    page = Page(vessel_graph_picture([(points, np.ones(20))], points[[0, -1]], [1, 1], shape=(41, 8, 12)))
    places = np.array([p.split(",") for p in page.all("polyline")[0]["points"].split()], dtype=float)
    assert np.ptp(places[:, 1]) > 3 * np.ptp(places[:, 0]) > 0
    assert places[0, 1] > places[-1, 1], "z points up"
    for bad in ([(points[:, :2], np.ones(20))], [(points, np.ones(3))]):
        with pytest.raises(ValueError, match="a branch needs"):
            vessel_graph_picture(bad, [], [], shape=(41, 8, 12))
    with pytest.raises(ValueError, match="degrees"):
        vessel_graph_picture([], [[1, 2, 3]], [], shape=(4, 4, 4))


def test_density_is_bright_where_there_is_much() -> None:
    field = np.zeros((40, 40))
    field[10, 30] = np.nan
    field[30, 10] = 5.0
    picture = pixels_of(density_picture(field, unit="mm-2", points=np.array([[0, 0]]), side=80)).astype(int)
    assert picture[61, 21].sum() > 600
    assert picture[70, 70].sum() < 10
    assert picture[21, 61].tolist() == [110, 110, 110]
    assert png_size(density_picture(np.full((5, 10), np.nan), spacing=(2, 1), side=100))[1] == 100
    with pytest.raises(ValueError, match="axes"):
        density_picture(np.zeros((2, 2, 2)))


def test_ripley_says_what_the_curve_says() -> None:
    r = np.arange(50.0)
    low, high = -0.5 - 0.02 * r, 0.5 + 0.02 * r
    assert "clustered" in ripley_words(r, np.where((r > 5) & (r < 20), 3.0, 0.0), low, high)
    assert "between 6 and 19 px" in ripley_words(r, np.where((r > 5) & (r < 20), 3.0, 0.0), low, high)
    assert "regular" in ripley_words(r, np.where(r < 9, -4.0, 0.0), low, high)
    assert "inside" in ripley_words(r, r * 0, low, high)
    for curve in (r * 0, np.full(50, np.nan), np.where(r == 0, np.nan, r)):
        page = Page(ripley_chart(r, curve, low, high, unit="mm"))
        assert page.complaints == []
        assert "nan" not in str(page.tags)
    with pytest.raises(ValueError, match="distances"):
        ripley_chart(r, r[:3])
