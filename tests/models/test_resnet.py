"""ResNet-32 is the one of the CIFAR experiments."""

import pytest
import torch

from hpcopt.errors import UsageError
from hpcopt.models import build, count_parameters
from hpcopt.models.resnet import PreActivationBlock


def resnet(input_shape=(3, 32, 32), outputs=100, **options):
    return build("resnet32", options, input_shape, outputs, seed=0)


def test_it_has_the_published_number_of_parameters_for_cifar_100():
    assert count_parameters(resnet()) == 472_820


def test_it_has_32_layers_and_three_projections():
    names = [name for name, p in resnet().named_parameters() if p.ndim > 1]
    assert sum("projection" in name for name in names) == 3
    assert len(names) - 3 == 32


def test_stages_halve_the_image_and_double_the_filters():
    model, x, shapes = resnet().eval(), torch.zeros(1, 3, 32, 32), []
    for layer in model:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[:16] == [(16, 32, 32)] * 6 + [(32, 16, 16)] * 5 + [(64, 8, 8)] * 5


def test_a_block_is_its_formula():
    block = PreActivationBlock(2, 4, 2, head=True).eval()
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    active = block.norm1(x).relu()
    expected = block.projection(active) + block.conv2(block.norm2(block.conv1(active)).relu())
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (3, 4, 3, 3)
    plain = PreActivationBlock(2, 2, 1, head=False).eval()
    torch.nn.init.zeros_(plain.conv2.weight)
    assert torch.equal(plain(x), x)


def test_weights_have_variance_one_over_fan_in_and_no_outliers():
    weight = resnet()[-7].conv1.weight
    std = (64 * 9) ** -0.5
    assert float(weight.std().detach()) == pytest.approx(std, rel=0.02)
    assert float(weight.abs().max().detach()) <= 2 * std / 0.8796


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (3, 64, 48), (8, 8)])
def test_other_images_fit_as_well(shape):
    assert resnet(shape, 7, width=4)(torch.rand(2, *shape)).shape == (2, 7)


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match="takes images"):
        resnet((20,))
    with pytest.raises(UsageError, match=r"model\.width = 0"):
        resnet(width=0)
