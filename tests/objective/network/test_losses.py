"""Losses of outputs that are split over ranks are those of the whole outputs, with their Hessian products."""

import math

import pytest
import torch

from hpcopt.layout.block import block
from hpcopt.objective.losses import make_loss
from hpcopt.objective.network.losses import SPLIT_LOSSES, whole_hessian_product
from tests.support.simulated import on_ranks

B, C = 6, 5


@pytest.fixture(params=[1, 2, 3])
def ranks(request):
    return request.param


@pytest.fixture(params=["squared", "cross_entropy"])
def name(request):
    return request.param


def problem(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    outputs, tangents = scale * torch.randn(2, B, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (B,), generator=generator)
    return outputs, tangents, labels, torch.nn.functional.one_hot(labels, C).double()


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_everything_is_that_of_the_whole_outputs(ranks, name, scale):
    outputs, tangents, labels, columns = problem(scale)
    whole, leaf = make_loss(name), outputs.clone().requires_grad_()
    expected = whole.sum(leaf, labels)
    (errors,) = torch.autograd.grad(expected, leaf)
    product = whole.hessian_product(outputs, labels, tangents)

    def run(comm):
        mine = block(C, comm.size, comm.rank).slice
        own, loss = outputs[:, mine].clone(), SPLIT_LOSSES[name](comm)
        part, slopes = loss.sum_and_errors(own, columns[:, mine])
        assert loss.sum(own, columns[:, mine]) == part
        curvature = loss.curvature(own)
        torch.testing.assert_close(slopes, errors[:, mine], rtol=1e-12, atol=1e-13)
        bent = loss.hessian_product(curvature, tangents[:, mine].clone())
        torch.testing.assert_close(bent, product[:, mine], rtol=1e-12, atol=1e-12)
        assert torch.equal(own, outputs[:, mine])
        return part, curvature

    parts, curvatures = zip(*on_ranks(ranks, run), strict=True)
    assert math.fsum(parts) == pytest.approx(float(expected.detach()), rel=1e-13)
    gathered = None if name == "squared" else torch.cat(curvatures, dim=1)
    torch.testing.assert_close(whole_hessian_product(gathered, tangents.clone()), product, rtol=1e-12, atol=1e-12)


def test_a_small_cross_entropy_of_large_scores_keeps_its_digits_in_float32(ranks):
    outputs = torch.full((1, C), 990.0)
    outputs[0, 1] = 1000.0
    target = torch.zeros(1, C)
    target[0, 1] = 1

    def run(comm):
        mine = block(C, comm.size, comm.rank).slice
        return SPLIT_LOSSES["cross_entropy"](comm).sum(outputs[:, mine].clone(), target[:, mine])

    assert sum(on_ranks(ranks, run)) == pytest.approx(math.log1p(4 * math.exp(-10)), rel=1e-3)


def test_one_group_of_outputs_sends_nothing(name):
    def run(comm):
        loss, outputs = SPLIT_LOSSES[name](comm), problem()[0]
        loss.sum_and_errors(outputs, problem()[3])
        loss.hessian_product(loss.curvature(outputs), outputs)
        return comm.ledger.totals().calls

    assert on_ranks(1, run) == [0]
