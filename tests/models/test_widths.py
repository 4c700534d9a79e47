"""Networks with narrower layers than their design."""

import pytest
import torch

from vesalius.core.errors import PlanError
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.models.segmenters import SegmenterShape, build_segmenter
from vesalius.models.widths import narrowed, shapes_of, widths_of


def net(width=8):
    return Classifier(build_encoder("lean", Shape(dims=2, inputs=1, size=(28, 28), width=width)), 3)


def test_a_network_of_half_the_width_is_built_from_the_widths_alone():
    # A design of half the width is the reference: the same layers, other shapes.
    small = net(8).eval()
    made = narrowed(net(16), widths_of(small, net(16)))
    assert shapes_of(made) == shapes_of(small)
    made.load_state_dict(small.state_dict())
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(made.eval()(x), small(x))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_segmentation_network_as_well(norm):
    def make(features):
        shape = SegmenterShape(dims=3, inputs=1, outputs=3, patch=(16, 16, 16), strides=((1, 1, 1), (2, 2, 2)),
                               features=features, norm=norm)  # fmt: skip
        return build_segmenter("unet", shape)

    small = make((4, 8)).eval()
    made = narrowed(make((8, 16)), widths_of(small, make((8, 16))))
    made.load_state_dict(small.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(made.eval()(x), small(x))


def test_nothing_differs_from_itself():
    assert widths_of(net(), net()) == {}
    assert narrowed(net(), None) is not None


@pytest.mark.parametrize(
    "widths", [{"body.nothing": [4, 4, 3, 3]}, {"head.linear": [3, 4, 1]}, {"head.linear": [3, 0]}, {"head": [3, 4]}]
)
def test_what_does_not_fit_is_refused(widths):
    with pytest.raises(PlanError, match=r"model\.widths"):
        narrowed(net(), widths)
