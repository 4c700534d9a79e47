"""Grey-level texture against the reference values of IBSI 1, scikit-image, and matrices counted one pair at a time."""

import csv
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import graycomatrix, graycoprops

from vesalius.measure import texture
from vesalius.measure.texture import GLCM, METHODS, cooccurrence, fixed_bins, fixed_width, roughness

DRAW = np.random.default_rng(5)


@pytest.fixture(scope="module")
def ibsi(real_data):
    import nibabel

    folder = real_data / "ibsi"
    image, mask = (
        np.asarray(nibabel.load(folder / f"ibsi1_phantom_{name}.nii.gz").dataobj).T.astype(np.int64)
        for name in ("image", "mask")
    )
    with open(folder / "ibsi1_digital_phantom_reference.csv", encoding="utf-8") as lines:
        known = {row[2]: row[0] for row in csv.reader(lines, delimiter=";")}
    return image, mask, known


@pytest.mark.realdata
@pytest.mark.parametrize("method", METHODS)
def test_every_reference_value_of_ibsi(ibsi, method):
    image, mask, known = ibsi
    found = cooccurrence(image, mask, method=method)
    # The reference has three significant digits.
    wrong = {
        one.ibsi: (found[one.name][0], known[f"{one.ibsi}_{method}"])
        for one in GLCM
        if float(f"{found[one.name][0]:.3g}") != float(known[f"{one.ibsi}_{method}"])
    }
    assert wrong == {}
    assert len(GLCM) == 25


@pytest.mark.parametrize("distance", [1, 2])
def test_scikit_image_on_a_rectangle(distance):
    levels = DRAW.integers(1, 9, (17, 23))
    label = np.zeros((30, 40), dtype=np.uint16)
    grey = np.zeros(label.shape, dtype=np.int64)
    label[5:22, 9:32], grey[5:22, 9:32] = 700, levels
    found = cooccurrence(grey, label, method="2D_avg", distance=distance)
    reach = [distance, distance * np.sqrt(2)]
    matrices = [
        graycomatrix(levels.astype(np.uint8), [reach[k % 2]], [k * np.pi / 4], levels=9, symmetric=True, normed=True)
        for k in range(4)
    ]
    pairs = {
        "contrast": "contrast",
        "dissimilarity": "dissimilarity",
        "homogeneity": "inverse_difference_moment",
        "ASM": "energy",
        "correlation": "correlation",
    }
    for theirs, ours in pairs.items():
        expected = np.mean([graycoprops(matrix, theirs)[0, 0] for matrix in matrices])
        assert found[f"glcm_{ours}"] == pytest.approx([expected], rel=1e-12), theirs
    flat = [matrix[matrix > 0] for matrix in matrices]
    assert found["glcm_joint_entropy"][0] == pytest.approx(np.mean([-np.sum(p * np.log2(p)) for p in flat]))


def counted(levels, label, value, method):
    """Normalised symmetric matrices of a label, from a loop over its pixels."""
    steps = [s for s in product((-1, 0, 1), repeat=3) if s > (0, 0, 0) and (method.startswith("3D") or s[0] == 0)]
    places = [tuple(place) for place in np.argwhere((label == value) & (levels > 0))]
    held, top, found = set(places), int(levels.max()) + 1, {}
    for place in places:
        for step in steps:
            other = tuple(a + b for a, b in zip(place, step, strict=True))
            if other in held:
                key = (place[0] if method.startswith("2D") else 0, step if method.endswith("avg") else 0)
                matrix = found.setdefault(key, np.zeros((top, top)))
                matrix[levels[place], levels[other]] += 1
                matrix[levels[other], levels[place]] += 1
    return [matrix / matrix.sum() for matrix in found.values()]


def by_definition(p):
    """Some features written as in the manual."""
    i, j = np.indices(p.shape)
    mean = np.sum(i * p)
    spread = np.sum((i - mean) ** 2 * p)
    marginal = p.sum(1)
    own = -np.sum(marginal[marginal > 0] * np.log2(marginal[marginal > 0]))
    joint = shannon_of(p)
    return {
        "joint_variance": spread,
        "sum_variance": np.sum((i + j - 2 * mean) ** 2 * p),
        "cluster_shade": np.sum((i + j - 2 * mean) ** 3 * p),
        "difference_average": np.sum(np.abs(i - j) * p),
        "correlation": (np.sum(i * j * p) - mean**2) / spread if spread > 1e-12 else np.nan,
        "information_correlation_1": (joint - shannon_of(np.outer(marginal, marginal))) / own
        if own > 1e-12
        else np.nan,
        "information_correlation_2": np.sqrt(1 - np.exp(-2 * max(shannon_of(np.outer(marginal, marginal)) - joint, 0))),
        "inverse_variance": np.sum(np.where(i == j, 0, p / np.maximum((i - j) ** 2, 1))),
    }


def shannon_of(p):
    return -np.sum(p[p > 0] * np.log2(p[p > 0]))


@pytest.mark.parametrize("method", METHODS)
def test_matrices_counted_one_pair_at_a_time(method):
    levels = DRAW.integers(0, 6, (4, 7, 8))
    label = DRAW.choice([0, 3, 4, 70000], (4, 7, 8)).astype(np.int32)
    found = cooccurrence(levels, label, method=method)
    for row, value in enumerate((3, 4, 70000)):
        table = [by_definition(p) for p in counted(levels, label, value, method)]
        for name in table[0]:
            expected = np.nanmean([one[name] for one in table])
            assert found[f"glcm_{name}"][row] == pytest.approx(expected, abs=1e-7), (name, value)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 0, 2)]), st.integers(0, 2))
def test_three_dimensional_features_ignore_flips_and_permutations(seed, order, axis):
    draw = np.random.default_rng(seed)
    levels, label = draw.integers(0, 5, (4, 5, 6)), draw.integers(0, 3, (4, 5, 6))
    first = cooccurrence(levels, label)
    second = cooccurrence(np.flip(levels, axis).transpose(order), np.flip(label, axis).transpose(order))
    for name, column in first.items():
        np.testing.assert_allclose(column, second[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_labels_without_a_pair_and_of_one_level():
    label = np.array([[1, 0, 2, 2], [0, 0, 2, 2], [3, 3, 0, 0]])
    grey = np.array([[4, 9, 5, 5], [9, 9, 5, 5], [0, 7, 9, 9]])
    found = cooccurrence(grey, label)
    assert all(np.isnan(column[0]) and np.isnan(column[2]) for column in found.values())
    assert found["glcm_joint_entropy"][1] == 0
    assert found["glcm_energy"][1] == 1
    assert found["glcm_contrast"][1] == 0
    assert found["glcm_joint_average"][1] == 5
    assert np.isnan(found["glcm_correlation"][1])
    assert np.isnan(found["glcm_information_correlation_1"][1])
    assert all(len(column) == 0 for column in cooccurrence(grey, np.zeros_like(label)).values())


def test_the_number_of_levels_only_changes_the_normalised_features():
    grey, label = DRAW.integers(1, 9, (12, 12)), np.ones((12, 12), dtype=np.uint8)
    first, second = cooccurrence(grey, label), cooccurrence(grey, label, level_count=64)
    assert {name for name in first if first[name][0] != second[name][0]} == {
        "glcm_inverse_difference_normalised",
        "glcm_inverse_difference_moment_normalised",
    }


def test_levels_of_equal_width():
    image = np.array([[0.0, 63.9, 64, 255, np.nan, 400, -5]])
    label = np.array([[1, 1, 1, 1, 1, 2, 2]])
    assert fixed_bins(image, label, 4, value_range=(0, 256)).tolist() == [[1, 1, 2, 4, 0, 4, 1]]
    assert fixed_width(image, label, 64, lowest=0).tolist() == [[1, 1, 2, 4, 0, 7, 1]]
    assert fixed_bins(image, label, 4).tolist() == [[1, 2, 2, 4, 0, 4, 1]]
    assert fixed_bins(np.full((2, 2), 7), np.ones((2, 2), int)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int64])
def test_roughness_counted_one_pixel_at_a_time(kind):
    image, label = DRAW.integers(0, 200, (9, 10)).astype(kind), DRAW.integers(0, 3, (9, 10))
    found = roughness(image, label)
    for row, value in enumerate((1, 2)):
        held = {tuple(place): float(image[tuple(place)]) for place in np.argwhere(label == value)}
        slopes, spreads = [], []
        for (y, x), here in held.items():
            parts = []
            for after, before in (((y + 1, x), (y - 1, x)), ((y, x + 1), (y, x - 1))):
                ends = [held.get(after, here), held.get(before, here)]
                span = (after in held) + (before in held)
                parts.append((ends[0] - ends[1]) / span if span else 0.0)
            slopes.append(np.hypot(*parts))
            near = [held[p] for p in product((y - 1, y, y + 1), (x - 1, x, x + 1)) if p in held]
            spreads.append(np.std(near))
        assert found["gradient_mean"][row] == pytest.approx(np.mean(slopes))
        assert found["local_sd_mean"][row] == pytest.approx(np.mean(spreads), abs=1e-9)


def test_a_plane_has_its_slope_everywhere():
    z, y, x = np.indices((5, 6, 7))
    image = 2.0 * z - 3 * y + 6 * x
    assert roughness(image, np.ones(image.shape, int))["gradient_mean"] == pytest.approx([7])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cooccurrence(np.ones((3, 3), int), np.ones((3, 4), int)), "differ"),
        (lambda: cooccurrence(np.ones((3, 3), int), np.ones((3, 3), int), method="4D"), "method must be one of"),
        (lambda: cooccurrence(np.full((3, 3), 5000), np.ones((3, 3), int)), "4096"),
        (lambda: cooccurrence(np.full((3, 3), -1), np.ones((3, 3), int)), "negative"),
        (lambda: cooccurrence(np.ones((3, 3), int), np.ones((3, 3), int), distance=0), "distance"),
        (lambda: fixed_bins(np.ones((3, 3)), np.ones((3, 3), int), 0), "bins"),
        (lambda: fixed_bins(np.ones((3, 3)), np.ones((3, 3), int), value_range=(3, 3)), "rising"),
        (lambda: fixed_width(np.full((3, 3), 1e6), np.ones((3, 3), int), 1, lowest=0), "4096"),
        (lambda: roughness(np.ones((3, 3), complex), np.ones((3, 3), int)), "real"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_feature_is_described_once():
    names = [one.name for one in texture.QUANTITIES]
    assert len(set(names)) == len(names)
    assert all(one.meaning.endswith(".") for one in texture.QUANTITIES)
