"""Training that imitates a teacher, and training that starts from weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vesalius.tasks.imitation import imitation


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_imitation_of_exclusive_classes_is_the_divergence(shape, temperature):
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    p = torch.softmax(theirs.double() / temperature, 1)
    q = torch.softmax(ours.double() / temperature, 1)
    wanted = (p * (p / q).log()).sum(1).mean() * temperature**2
    found = imitation(ours, theirs, temperature=temperature, exclusive=True)
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


def test_imitation_of_overlapping_structures_is_the_divergence_of_each():
    draw = torch.Generator().manual_seed(1)
    ours, theirs = torch.randn((2, 3, 5, 6), generator=draw), torch.randn((2, 3, 5, 6), generator=draw)
    p, q = torch.sigmoid(theirs.double() / 2), torch.sigmoid(ours.double() / 2)
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 4
    assert float(imitation(ours, theirs, temperature=2.0, exclusive=False)) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_nothing_is_lost_where_both_agree_and_gradients_point_there(exclusive):
    theirs = torch.randn((4, 3), generator=torch.Generator().manual_seed(2)) * 3
    assert float(imitation(theirs.clone(), theirs, temperature=2.0, exclusive=exclusive)) == pytest.approx(0, abs=1e-6)
    ours = torch.zeros((4, 3), requires_grad=True)
    for _ in range(400):
        loss = imitation(ours, theirs, temperature=2.0, exclusive=exclusive)
        (slope,) = torch.autograd.grad(loss, ours)
        ours = (ours - 2.0 * slope).detach().requires_grad_()
    same = F.softmax if exclusive else lambda z, _: torch.sigmoid(z)
    np.testing.assert_allclose(same(ours, 1).detach(), same(theirs, 1), atol=0.03)
