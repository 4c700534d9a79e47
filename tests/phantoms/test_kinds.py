"""What all kinds of phantoms promise, and the registry."""

import numpy as np
import pytest
from phantom_cases import SMALL

from vesalius.core.errors import UsageError
from vesalius.phantoms.registry import PHANTOMS, make

kinds = pytest.mark.parametrize("kind", sorted(PHANTOMS))


def pixels(kind, seed, index, **options):
    return make(kind, seed=seed, index=index, **{**SMALL[kind], **options}).case.image().pixels


def test_every_kind_has_a_small_case():
    assert set(SMALL) == set(PHANTOMS)


@kinds
def test_a_case_is_a_function_of_seed_and_index(kind):
    first = pixels(kind, 3, 1)
    pixels(kind, 3, 2)  # nothing is kept from one case to the next
    assert np.array_equal(first, pixels(kind, 3, 1))
    assert not np.array_equal(first, pixels(kind, 4, 1))
    assert not np.array_equal(first, pixels(kind, 3, 2))


@kinds
def test_truth_fits_the_picture(kind):
    phantom = make(kind, seed=5, index=0, **SMALL[kind])
    image = phantom.case.image()
    assert phantom.classes.names[phantom.case.target] == phantom.label
    assert phantom.mask.shape == image.grid.shape
    assert phantom.mask.max() < len(phantom.structures)
    assert phantom.mask.max() > 0
    assert phantom.boxes.shape == (len(phantom.box_names), 2 * image.grid.ndim)
    for layer in phantom.layers.values():
        assert layer.shape == image.grid.shape
    # The picture uses its range: not flat, not saturated everywhere.
    assert image.pixels.std() > 0
    assert (image.pixels == image.pixels.max()).mean() < 0.2


@kinds
def test_classes_are_balanced_but_not_in_a_fixed_order(kind):
    labels = [make(kind, seed=9, index=i, **SMALL[kind]).case.target for i in range(8)]
    runs = np.array(labels).reshape(-1, 2)
    assert (runs.sum(axis=1) == 1).all()
    assert len({tuple(run) for run in runs}) == 2


def test_patients_keep_class_and_person_over_their_pictures():
    for kind in ("chest", "brain"):
        one, two = (make(kind, seed=2, index=i, images_per_patient=2, **SMALL[kind]) for i in (2, 3))
        assert one.case.patient_id == two.case.patient_id
        assert one.case.covariates == two.case.covariates
        assert one.label == two.label
        assert not np.array_equal(one.case.image().pixels, two.case.image().pixels)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make("brains", seed=0, index=0), ["brains", *PHANTOMS]),
        (lambda: make("chest", seed=0, index=0, colour="red"), ["chest", "colour"]),
        (lambda: make("chest", seed=0, index=0, classes=5), ["5", "2 or 3"]),
        (lambda: make("ct", seed=0, index=0, orientation="upwards"), ["upwards", "coronal"]),
        (lambda: make("ct", seed=0, index=0, orientation=np.ones((3, 3))), ["right angles"]),
        (lambda: make("ct", seed=0, index=0, question="age"), ["age", "margin"]),
        (lambda: make("vessels", seed=0, index=0, dims=4), ["4"]),
        (lambda: make("smear", seed=0, index=0, size=20), ["20"]),
        (lambda: make("solid", seed=0, index=0, classes=9), ["9"]),
    ],
)
def test_wrong_wishes_are_refused_with_the_choices(call, words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words)


def test_a_field_of_view_without_room_for_nodules_is_refused():
    def tight(index):
        return make("ct", seed=1, index=index, shape=(8, 12, 12), spacing_mm=(3.0, 3.0, 3.0)).label

    first = make("ct", seed=1, index=0, **SMALL["ct"]).label
    empty, full = (0, 1) if first == "no nodule" else (1, 0)
    assert tight(empty) == "no nodule"
    with pytest.raises(UsageError, match="room"):
        tight(full)
