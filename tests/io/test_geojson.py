"""GeoJSON for QuPath: valid by RFC 7946, and the areas of the outlines."""

from __future__ import annotations

import json
import time
import uuid

import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import UsageError
from vesalius.io.geojson_out import Outline, write_geojson
from vesalius.measure.contours import contours


def area(ring):
    """Shoelace area of [x, y] pairs, positive counter-clockwise."""
    x, y = np.array(ring).T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def outlines_of(labels):
    rings = contours(labels)
    for label in np.unique(labels[labels > 0]):
        mine = [k for k, ring in enumerate(rings) if ring.label == label]
        place = {k: n for n, k in enumerate(mine)}
        yield Outline(
            [rings[k].points for k in mine],
            [place.get(rings[k].parent, -1) for k in mine],
            identity=int(label),
            classification="Tumour",
            colour=(200, 0, 10),
            measurements={"area": float((labels == label).sum()), "undefined": float("nan")},
        )


def noisy_labels(seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 70)), 2)
    return np.digitize(noise, np.quantile(noise, [0.4, 0.6, 0.8]))


def test_every_ring_is_closed_and_turns_as_the_rfc_says(tmp_path):
    labels = noisy_labels()
    data = json.loads(write_geojson(outlines_of(labels), tmp_path / "a.geojson", decimals=3).read_text())
    assert data["type"] == "FeatureCollection"
    assert len(data["features"]) == 3
    seen_holes = 0
    for label, feature in enumerate(data["features"], start=1):
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
        geometry = feature["geometry"]
        assert geometry["type"] == "MultiPolygon"
        total = 0.0
        for polygon in geometry["coordinates"]:
            for k, ring in enumerate(polygon):
                assert ring[0] == ring[-1]
                assert len(ring) >= 4
                assert (area(ring) > 0) == (k == 0)
                total += area(ring)
                seen_holes += k > 0
        signed = sum(-ring.area if ring.hole else ring.area for ring in contours(labels, label))
        assert total == pytest.approx(signed, rel=1e-3)
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"] == {"name": "Tumour", "color": [200, 0, 10]}
        assert properties["measurements"] == {"area": float((labels == label).sum())}
        assert properties["isLocked"] is False
    assert seen_holes > 0


def test_coordinates_are_full_resolution_from_the_corner_of_the_first_pixel(tmp_path):
    square = np.array([[-0.5, -0.5], [-0.5, 1.5], [2.5, 1.5], [2.5, -0.5]])  # pixels (0..2, 0..1), edges and all
    one = Outline([square], name="box", nucleus=square[:3])
    path = write_geojson([one], tmp_path / "a.geojson", kind="cell", downsample=4, origin=(100, 200), locked=True)
    (feature,) = json.loads(path.read_text())["features"]
    ring = feature["geometry"]["coordinates"][0]
    assert feature["geometry"]["type"] == "Polygon"
    assert sorted(map(tuple, ring[:-1])) == [(200, 100), (200, 112), (208, 100), (208, 112)]
    assert len(feature["nucleusGeometry"]["coordinates"][0]) == 4
    assert feature["properties"] == {"objectType": "cell", "isLocked": True, "name": "box"}


def test_identities_are_stable_and_differ_between_slides(tmp_path):
    ring = [np.array([[0, 0], [0, 1], [1, 1.0]])]
    own = str(uuid.UUID(int=7))

    def ids(**words):
        path = write_geojson([Outline(ring, identity=5), Outline(ring, identity=own), Outline(ring)],
                             tmp_path / "a.geojson", **words)  # fmt: skip
        return [feature["id"] for feature in json.loads(path.read_text())["features"]]

    assert ids(namespace="slide 1") == ids(namespace="slide 1")
    assert len(set(ids())) == 3
    assert ids()[1] == own
    assert ids(namespace="slide 1")[0] != ids(namespace="slide 2")[0]


def test_bad_input_leaves_no_file(tmp_path):
    ring = np.array([[0, 0], [0, 1], [1, 1.0]])
    for outline, words, message in (
        (Outline([ring[:2]]), {}, "ring is"),
        (Outline([ring * np.nan]), {}, "ring is"),
        (Outline([]), {}, "no outer ring"),
        (Outline([ring], [0]), {}, "parents"),
        (Outline([ring]), {"kind": "dot"}, "objects are"),
        (Outline([ring]), {"downsample": 0}, "downsample"),
    ):
        with pytest.raises(UsageError, match=message):
            write_geojson([outline], tmp_path / "a.geojson", **words)
    assert not list(tmp_path.iterdir())
    assert json.loads(write_geojson([], tmp_path / "none.geojson").read_text())["features"] == []


def test_ten_thousand_cells_take_seconds(tmp_path):
    y, x = np.mgrid[:1000, :1000]
    labels = np.where((y % 10 - 5) ** 2 + (x % 10 - 5) ** 2 < 14, y // 10 * 100 + x // 10 + 1, 0)
    rings = contours(labels)
    start = time.perf_counter()
    path = write_geojson((Outline([ring.points], identity=ring.label) for ring in rings), tmp_path / "a.geojson")
    assert time.perf_counter() - start < 10
    assert len(rings) == 10_000
    assert path.stat().st_size < 400 * 10_000
