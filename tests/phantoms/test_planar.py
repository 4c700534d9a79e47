"""Vessels and smears: graphs, counts and areas against the map and against independent measurements."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import euler_number, regionprops
from skimage.morphology import skeletonize

from vesalius.phantoms.smear import STRUCTURES, make_smear
from vesalius.phantoms.vessels import make_vessels

dimensions = pytest.mark.parametrize(("dims", "size"), [(2, 160), (3, 56)])


@dimensions
def test_the_graph_is_a_tree_with_the_length_of_its_edges(dims, size):
    truth = make_vessels(seed=3, index=0, dims=dims, size=size, spacing_mm=0.5).truth
    nodes, edges = truth["nodes_px"], truth["edges"]
    assert len(edges) == len(nodes) - 1 == len(truth["radii_px"])
    steps = [np.sqrt(sum((nodes[a][i] - nodes[b][i]) ** 2 for i in range(dims))) for a, b in edges]
    assert truth["length_px"] == pytest.approx(sum(steps))
    assert truth["length_mm"] == pytest.approx(sum(steps) / 2)
    # In a tree that only divides in two, ends are two more than divisions.
    assert truth["ends"] == truth["bifurcations"] + 2
    assert truth["bifurcations"] >= 2


@dimensions
def test_radii_follow_murray(dims, size):
    truth = make_vessels(seed=3, index=1, dims=dims, size=size).truth
    for number, (_, end) in enumerate(truth["edges"]):
        daughters = [truth["radii_px"][k] for k, (start, _) in enumerate(truth["edges"]) if start == end]
        assert len(daughters) in (0, 2)
        if daughters:
            assert sum(r**3 for r in daughters) == pytest.approx(truth["radii_px"][number] ** 3)


@dimensions
def test_the_mask_is_one_piece_without_holes(dims, size):
    for index in range(4):
        mask = make_vessels(seed=5, index=index, dims=dims, size=size).mask
        assert ndimage.label(mask, np.ones((3,) * dims))[1] == 1
        # A hole in the plane would be two vessels that touch.
        if dims == 2:
            assert ndimage.label(mask == 0)[1] == 1


@pytest.mark.parametrize("size", [56, 96])
def test_a_volume_has_no_tunnels_and_the_mask_differs_from_its_cover_in_hardly_a_voxel(size):
    # The first of size 96 has a bridge between two daughters before it is mended.
    for seed, index in ((0, 3), (0, 1), (1, 0)):
        one = make_vessels(seed=seed, index=index, dims=3, size=size)
        assert euler_number(one.mask, connectivity=3) == 1
        assert np.count_nonzero(one.mask != (one.layers["cover"] >= 0.5)) <= 2


def test_the_skeleton_of_the_mask_has_about_the_length_and_the_ends_that_are_told():
    for index in range(4):
        one = make_vessels(seed=7, index=index, size=256)
        bone = skeletonize(one.mask > 0)
        around = ndimage.convolve(bone.astype(int), np.ones((3, 3), dtype=int), mode="constant") - bone
        assert abs(int((bone & (around == 1)).sum()) - one.truth["ends"]) <= 2
        straight = ndimage.convolve(bone.astype(int), [[0, 1, 0], [1, 0, 1], [0, 1, 0]], mode="constant")
        diagonal = ndimage.convolve(bone.astype(int), [[1, 0, 1], [0, 0, 0], [1, 0, 1]], mode="constant")
        # A staircase is walked on its diagonals: those count only between pixels without a common neighbour.
        length = (straight[bone].sum() + np.sqrt(2) * (diagonal[bone] * (straight[bone] < 2)).sum()) / 2
        assert length == pytest.approx(one.truth["length_px"], rel=0.12)


@dimensions
def test_a_cross_section_is_as_wide_as_the_trunk(dims, size):
    one = make_vessels(seed=1, index=2, dims=dims, size=size)
    truth = one.truth
    a, b = (truth["nodes_px"][node] for node in truth["edges"][0])
    column = int((a[-1] + b[-1]) / 2)
    area = one.layers["cover"][..., column].sum()
    radius = truth["radii_px"][0]
    if truth["narrowing"] is None or truth["narrowing"]["edge"] != 0:
        # Other vessels may cross this column; the trunk leaves along it alone near the start.
        assert area == pytest.approx(2 * radius if dims == 2 else np.pi * radius**2, rel=0.08)


def test_a_narrowing_belongs_to_its_class_and_thins_the_mask_there():
    for index in range(6):
        one = make_vessels(seed=2, index=index, size=200)
        spot = one.truth["narrowing"]
        assert (spot is not None) == (one.label == "narrowed")
        if spot:
            radius = one.truth["radii_px"][spot["edge"]]
            middle = np.rint(spot["centre_px"]).astype(int)
            depth = ndimage.distance_transform_edt(one.mask)[
                middle[0] - 1 : middle[0] + 2, middle[1] - 1 : middle[1] + 2
            ]
            assert depth.max() < 0.75 * radius + 0.8


@pytest.mark.parametrize("index", range(4))
def test_cells_are_counted_exactly_and_have_the_area_of_their_ellipse(index):
    one = make_smear(seed=11, index=index, size=256)
    instances, cells = one.layers["instances"], one.truth["cells"]
    assert set(np.unique(instances)) == set(range(len(cells) + 1))
    assert one.truth["counts"] == {name: one.box_names.count(name) for name in STRUCTURES[1:]}
    assert sum(one.truth["counts"].values()) == len(cells) > 20
    areas = np.bincount(instances.ravel())[1:]
    told = np.array([cell["area_px"] for cell in cells])
    assert told == pytest.approx([np.pi * cell["axes_px"][0] * cell["axes_px"][1] for cell in cells])
    assert areas.sum() == pytest.approx(told.sum(), rel=0.01)
    large = told > 200
    assert np.abs(areas[large] / told[large] - 1).max() < 0.04
    for region, box, cell in zip(regionprops(instances), one.boxes, cells, strict=True):
        assert region.bbox == tuple(box)
        assert region.centroid == pytest.approx(cell["centre_px"], abs=0.5)


def test_each_cell_is_one_piece_of_its_kind_and_cells_do_not_touch():
    one = make_smear(seed=1, index=0)
    instances = one.layers["instances"]
    assert ndimage.label(instances > 0)[1] == len(one.boxes)
    for number, name in enumerate(one.box_names, start=1):
        assert set(one.mask[instances == number].tolist()) == {STRUCTURES.index(name)}


def test_the_class_is_the_number_of_white_cells():
    for index in range(10):
        one = make_smear(seed=3, index=index, size=160)
        assert (one.truth["counts"]["WBC"] >= 3) == (one.label == "leukocytosis")


def test_red_cells_absorb_blue_and_green_more_than_red():
    one = make_smear(seed=3, index=0)
    red, green, _ = one.case.image().pixels.astype(float)
    cells = one.mask == STRUCTURES.index("RBC")
    assert (red[cells] - green[cells]).mean() > (red[one.mask == 0] - green[one.mask == 0]).mean() + 20
