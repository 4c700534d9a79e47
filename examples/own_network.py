"""Register a network of your own and train it: python own_network.py SCANS RUN [KEY=VALUE...]."""

from __future__ import annotations

import sys

from torch import Tensor, nn

import vesalius
from vesalius.core.plan import parse_settings
from vesalius.models.blocks import ConvNormAct, start_weights
from vesalius.models.encoders import Encoder
from vesalius.models.factory import ModelCard, Shape, encoder


class Wide(Encoder):
    """Two levels: large kernels that see far, then one reduction. The same code for images and volumes."""

    def __init__(self, dims: int, inputs: int, width: int) -> None:
        super().__init__()
        self.dims, self.channels, self.strides = dims, (width, 2 * width), (2, 4)
        self.near = nn.Sequential(ConvNormAct(dims, inputs, width, kernel=7, stride=2), ConvNormAct(dims, width, width))
        self.far = ConvNormAct(dims, width, 2 * width, kernel=5, stride=2)
        start_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        near = self.near(x)
        return [near, self.far(near)]


@encoder(ModelCard("wide", "Large kernels on two levels.", "This example"))
def build_wide(shape: Shape) -> Encoder:
    return Wide(shape.dims, shape.inputs, width=shape.width or 16)


scans, run, *settings = sys.argv[1:]
done = vesalius.train(scans, out=run, settings={"model.name": "wide", **parse_settings(settings)})
print(f"accuracy {done.metrics['metrics']['accuracy']['value']:.3f}; report: {done.report}")
