"""CT, brain and solids: volumes by formula against sums over voxels, and places in the patient."""

import itertools

import numpy as np
import pytest
from phantom_cases import SMALL

from vesalius.phantoms.brain import STRUCTURES, make_brain
from vesalius.phantoms.ct import ORIENTATIONS, make_ct
from vesalius.phantoms.solid import make_solid


def with_nodules(count, **options):
    cases = (make_ct(seed=17, index=i, **{**SMALL["ct"], **options}) for i in itertools.count())
    return list(itertools.islice((one for one in cases if one.truth["nodules"]), count))


def millilitres(layer, grid):
    return float(layer.sum(dtype=np.float64)) * grid.voxel_mm3 / 1000


def ellipsoid_ml(radii):
    return 4 / 3 * np.pi * np.prod(radii) / 1000


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (40, 96, 96), "spacing_mm": (4.0, 3.6, 3.6)},
        {"shape": (60, 70, 64), "spacing_mm": (6.0, 5.0, 5.5), "orientation": "coronal"},
        {"shape": (52, 52, 52), "spacing_mm": (6.5, 6.5, 6.5), "tilt_degrees": 23.0},
    ],
)
def test_nodule_volumes_are_the_sums_of_their_parts_of_voxels(options):
    for one in with_nodules(3, **options):
        told = sum(nodule["volume_ml"] for nodule in one.truth["nodules"])
        assert told == pytest.approx(sum(ellipsoid_ml(nodule["radii_mm"]) for nodule in one.truth["nodules"]))
        assert millilitres(one.layers["fraction"], one.case.image().grid) == pytest.approx(told, rel=0.01)


def test_spiculated_nodules_have_the_volume_that_the_integral_says():
    cases = [make_ct(seed=6, index=i, question="margin", shape=(64, 90, 90), spacing_mm=(4, 4, 4)) for i in range(2)]
    assert {one.label for one in cases} == {"smooth", "spiculated"}
    for one in cases:
        nodule = one.truth["nodules"][0]
        assert (nodule["volume_ml"] > 1.05 * ellipsoid_ml(nodule["radii_mm"])) == (one.label == "spiculated")
        measured = millilitres(one.layers["fraction"], one.case.image().grid)
        assert measured == pytest.approx(nodule["volume_ml"], rel=0.02)


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_nodules_lie_at_their_centre_in_patient_coordinates_and_are_denser_than_lung(orientation):
    shape = (48, 48, 40) if orientation == "axial" else (48, 48, 48)
    one = with_nodules(1, orientation=orientation, shape=shape)[0]
    image = one.case.image()
    index = np.argwhere(one.layers["fraction"] > 0)
    nearest = [
        min(np.linalg.norm(image.grid.to_patient(index) - nodule["centre_mm"], axis=1))
        for nodule in one.truth["nodules"]
    ]
    assert max(nearest) < np.sqrt(3) / 2 * max(image.grid.spacing_mm)
    for nodule in one.truth["nodules"]:
        centre = np.rint(image.grid.to_index(nodule["centre_mm"])).astype(int)
        assert image.pixels[(0, *centre)] > -500
    lung = image.pixels[0][one.mask == one.structures.index("lung")]
    bone = image.pixels[0][one.mask == one.structures.index("bone")]
    assert -950 < np.median(lung) < -700
    assert np.median(bone) > 150
    assert np.median(image.pixels[0][one.mask == 0]) == pytest.approx(-1000, abs=30)


def test_the_same_patient_shows_the_same_volume_in_every_orientation():
    # Affines differ, physics does not: air in the lungs is counted from three grids of one chest.
    volumes = []
    for orientation in ("axial", "coronal", "sagittal"):
        one = make_ct(seed=4, index=1, shape=(64, 64, 64), spacing_mm=(6, 6, 6), orientation=orientation)
        volumes.append((one.mask == 2).sum() * 0.216)
    assert np.ptp(volumes) < 0.12 * np.mean(volumes)


def test_boxes_hold_the_nodules():
    for one in with_nodules(3):
        grid = one.case.image().grid
        centres = grid.to_index([nodule["centre_mm"] for nodule in one.truth["nodules"]]) + 0.5
        assert len(one.boxes) == len(centres)
        for box, centre in zip(one.boxes, centres, strict=True):
            assert (box[:3] < centre).all()
            assert (centre < box[3:]).all()


def test_brain_volumes_are_those_of_the_ellipsoids_and_of_the_map():
    for index in range(2):
        one = make_brain(seed=12, index=index)
        grid, told = one.case.image().grid, one.truth["volumes_ml"]
        by_formula = sum(ellipsoid_ml(hole["radii_mm"]) for hole in one.truth["ventricles"])
        assert told["ventricles"] == pytest.approx(by_formula)
        assert millilitres(one.layers["ventricles"], grid) == pytest.approx(told["ventricles"], rel=0.01)
        # Folds change the surface, not the volume.
        for name, least in (("head", 1), ("skull", 2), ("intracranial", 3), ("brain", 4), ("white", 5)):
            assert millilitres(one.mask >= least, grid) == pytest.approx(told[name], rel=0.012)


def test_ventricles_are_enlarged_in_that_class_only():
    made = [make_brain(seed=1, index=i, **SMALL["brain"]) for i in range(24)]
    sizes = {name: [one.truth["volumes_ml"]["ventricles"] for one in made if one.label == name]
             for name in ("normal", "enlarged ventricles")}  # fmt: skip
    assert np.median(sizes["normal"]) < 25
    assert np.median(sizes["enlarged ventricles"]) > 35


def test_brain_tissues_have_the_order_of_t1_and_noise_of_air_is_rayleigh():
    one = make_brain(seed=5, index=0, bias=0.0)
    pixels = one.case.image().pixels[0].astype(float)
    median = {name: np.median(pixels[one.mask == STRUCTURES.index(name)]) for name in STRUCTURES}
    order = ["skull", "fluid", "grey matter", "white matter", "scalp"]
    assert sorted(order, key=median.get) == order
    corner = pixels[:3, :8].ravel()
    # Magnitude noise without signal: mean over deviation is sqrt(pi / (4 - pi)) = 1.913.
    assert corner.mean() / corner.std() == pytest.approx(1.913, rel=0.08)


@pytest.mark.parametrize("index", range(6))
def test_solids_have_the_volume_that_is_told(index):
    one = make_solid(seed=2, index=index, classes=3)
    measured = millilitres(one.layers["fraction"], one.case.image().grid)
    assert measured == pytest.approx(one.truth["volume_ml"], rel=0.01)
    assert one.case.image().pixels.shape == (1, 28, 28, 28)
    assert one.case.image().pixels.dtype == np.uint8
    border = np.ones((28, 28, 28), dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert not one.layers["fraction"][border].any()


def test_the_classes_of_solids_differ_in_form_not_in_brightness():
    made = [make_solid(seed=4, index=i) for i in range(80)]
    mean = np.array([one.case.image().pixels.mean() for one in made])
    truth = np.array([one.case.target for one in made])
    gap = abs(mean[truth == 0].mean() - mean[truth == 1].mean())
    assert gap < 0.5 * mean.std()
