"""Chest films: findings change the place, not the histogram."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vesalius.phantoms.chest import make_chest


@pytest.fixture(scope="module")
def films():
    made = [make_chest(seed=21, index=i, size=64) for i in range(700)]
    return np.stack([one.case.image().pixels[0] for one in made]), np.array([one.case.target for one in made]), made


def simple_features(films):
    flat = films.reshape(len(films), -1) / 255
    histogram = np.stack([np.histogram(one, 24, (0, 1))[0] / one.size for one in flat])
    return np.concatenate([flat.mean(1)[:, None], flat.std(1)[:, None], histogram], axis=1)


def test_mean_deviation_and_histogram_do_not_tell_the_class(films):
    pixels, truth, _ = films
    features = simple_features(pixels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(features[:450], truth[:450])
    assert roc_auc_score(truth[450:], model.decision_function(features[450:])) < 0.65


def test_the_finding_is_brighter_than_the_mirrored_place(films):
    # The question can be answered from the pixels: at its place an opacity is brighter than the other lung.
    pixels, truth, made = films
    gaps = []
    for film, one in zip(pixels[truth == 1].astype(float), [m for m in made if m.case.target == 1], strict=True):
        seen = one.layers["finding"] & np.isin(one.mask, (1, 2))
        mirrored = seen[:, ::-1] & np.isin(one.mask, (1, 2)) & ~one.layers["finding"]
        if seen.sum() > 8 and mirrored.sum() > 8:
            gaps.append(film[seen].mean() - film[mirrored].mean())
    assert len(gaps) > 150
    assert np.mean(np.array(gaps) > 0) > 0.8


def test_boxes_hold_the_findings_and_normal_films_have_none(films):
    for one in films[2][:80]:
        assert bool(len(one.boxes)) == (one.label == "opacity") == bool(one.layers["finding"].any())
        for (y0, x0, y1, x1), finding in zip(one.boxes, one.truth["findings"], strict=True):
            y, x = finding["centre_px"]
            assert y0 <= y + 0.5 <= y1
            assert x0 <= x + 0.5 <= x1
            assert (y1 - y0) <= 2 * finding["radii_px"][0] + 1e-9
            assert (x1 - x0) <= 2 * finding["radii_px"][1] + 1e-9


def test_contrast_follows_severity_on_the_same_film():
    index = next(i for i in range(9) if make_chest(seed=3, index=i, size=48).label == "opacity")
    weak, strong = (make_chest(seed=3, index=index, size=48, severity=s).truth["findings"] for s in (0.5, 1.0))
    assert [one["contrast"] * 2 for one in weak] == pytest.approx([one["contrast"] for one in strong])


def test_three_classes_and_twelve_bits():
    made = [make_chest(seed=8, index=i, size=48, classes=3, bits=12) for i in range(6)]
    assert sorted({one.label for one in made}) == ["nodule", "normal", "opacity"]
    for one in made:
        image = one.case.image()
        assert image.pixels.dtype == np.uint16
        assert 255 < image.pixels.max() <= 4095
        assert image.grid.spacing_mm == pytest.approx((400 / 48, 400 / 48))
