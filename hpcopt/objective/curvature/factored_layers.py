"""Layers whose block of the curvature is close to a Kronecker product, and the second moments that are its factors.

The gradient of a linear layer's weights is sum_t g_t a_t^T over the positions t of a sample (one for a vector), with
the inputs a_t, a constant 1 at their end where there is a bias, and the gradients g_t at the outputs. Its covariance is
estimated by A (x) G, A the mean of a a^T over samples and positions, G the mean over samples of sum_t g_t g_t^T. For
convolutions a_t is the patch that output position t sees (Grosse and Martens 2016, arXiv 1602.01407). A layer that is
called more than once in a forward pass has the positions of all calls.

Shapes: b samples, T positions, a inputs of a layer (with the constant), o outputs of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional

from hpcopt.objective.parameters import FlatParameters

PATCH_NUMBERS = 2**24
"""Most numbers of the patches of a convolution's inputs that are written out at a time."""

MOST_ORDER = 8192
"""Largest order of A or G: its square has 268 MB in float32, on every rank."""

POSITIONS = 64
"""About so many output positions of an image are enough for A: neighbouring patches overlap and tell the same."""


@dataclass(frozen=True)
class FactoredLayer:
    """A module and which of the model's trainable tensors are its weight and its bias."""

    module: nn.Linear | nn.Conv2d
    weight: int
    bias: int | None

    @property
    def width(self) -> int:
        """Inputs without the constant."""
        return self.module.weight[0].numel()

    @property
    def inputs(self) -> int:
        """The order of A."""
        return self.width + (self.bias is not None)

    @property
    def outputs(self) -> int:
        """The order of G."""
        return len(self.module.weight)

    def rows(self, x: torch.Tensor, key: int | None = None) -> Iterator[torch.Tensor]:
        """The inputs a_t (rows, a), without the constant, in pieces.

        Args:
            x: what the module was given.
            key: draws where the positions of large images lie, on a square lattice; None for all positions.
        """
        if isinstance(self.module, nn.Linear):
            yield x.reshape(-1, self.width)
            return
        x = x.unsqueeze(0) if x.ndim == 3 else x
        height, width = padding_of(self.module) or (0, 0)
        x = functional.pad(x, (width, width, height, height))
        spacing, stride = 1, self.module.stride
        if key is not None:
            spacing = self._spacing(x)
            x = x[..., stride[0] * (key % spacing) :, stride[1] * (key // spacing % spacing) :]
        steps = (stride[0] * spacing, stride[1] * spacing)
        for part in x.split(max(1, PATCH_NUMBERS // max(1, self.width * x[0, 0].numel() // spacing**2))):
            patches = functional.unfold(part, self.module.kernel_size, self.module.dilation, 0, steps)
            yield patches.transpose(0, 1).reshape(self.width, -1).T

    def gradients(self, g: torch.Tensor) -> torch.Tensor:
        """The gradients g_t (rows, o)."""
        if isinstance(self.module, nn.Linear):
            return g.reshape(-1, self.outputs)
        g = g.unsqueeze(0) if g.ndim == 3 else g
        return g.transpose(0, 1).reshape(self.outputs, -1).T

    def _spacing(self, padded: torch.Tensor) -> int:
        """Of the lattice, in output positions."""
        m, sizes = self.module, []
        assert isinstance(m, nn.Conv2d)
        for length, kernel, dilation, stride in zip(
            padded.shape[-2:], m.kernel_size, m.dilation, m.stride, strict=True
        ):
            sizes.append((length - dilation * (kernel - 1) - 1) // stride + 1)
        return max(1, min(math.isqrt(sizes[0] * sizes[1] // POSITIONS), *sizes))


class Moments:
    """Sums over rows of a a^T and of g g^T for some layers, and how many rows of each there were.

    Args:
        layers: of a model.
        like: a tensor of their precision and place.
        key: draws the positions of patches, the same for all samples.
    """

    def __init__(self, layers: Sequence[FactoredLayer], like: torch.Tensor, key: int) -> None:
        self._layers, self._key = layers, key
        self.inputs = [like.new_zeros(layer.inputs, layer.inputs) for layer in layers]
        self.outputs = [like.new_zeros(layer.outputs, layer.outputs) for layer in layers]
        self.rows, self.positions = [0] * len(layers), [0] * len(layers)

    def add_inputs(self, number: int, x: torch.Tensor) -> None:
        """The inputs of one call of layer ``number``."""
        layer, total = self._layers[number], self.inputs[number]
        for rows in layer.rows(x.to(total.dtype), self._key):
            width = layer.width
            total[:width, :width].addmm_(rows.T, rows)
            if layer.bias is not None:
                sums = rows.sum(0)
                total[width, :width] += sums
                total[:width, width] += sums
                total[width, width] += len(rows)
            self.rows[number] += len(rows)

    def add_gradients(self, number: int, g: torch.Tensor) -> None:
        """The gradients at the outputs of one call of layer ``number``."""
        rows = self._layers[number].gradients(g.to(self.outputs[number].dtype))
        self.outputs[number].addmm_(rows.T, rows)
        self.positions[number] += len(rows)


def candidates(module: nn.Module, parameters: FlatParameters) -> list[FactoredLayer]:
    """The linear and plain convolution layers of ``module`` whose trainable weight is theirs alone, and not too wide.

    Subclasses may use their weight otherwise, and grouped or oddly padded convolutions see other patches: no such.
    """
    owners = Counter(id(p) for m in module.modules() for p in m._parameters.values() if p is not None)
    numbers = {id(tensor): index for index, tensor in enumerate(parameters.tensors)}
    found = []
    for m in module.modules():
        if type(m) is nn.Linear or (type(m) is nn.Conv2d and is_plain(m)):
            weight, bias = m._parameters.get("weight"), m._parameters.get("bias")
            alone = all(p is None or owners[id(p)] == 1 for p in (weight, bias))
            if alone and id(weight) in numbers:
                found.append(FactoredLayer(m, numbers[id(weight)], numbers.get(id(bias))))
    return [layer for layer in found if max(layer.inputs, layer.outputs) <= MOST_ORDER]


@contextmanager
def traced(
    layers: Sequence[FactoredLayer], note: Callable[[int, torch.Tensor], None]
) -> Iterator[list[tuple[int, Any]]]:
    """Tells ``note`` the number and the inputs of every call of a layer; gives its number and the edge at its outputs.

    An edge of the graph, not the tensor of the outputs: an activation in place would change what that stands for.
    """
    edges: list[tuple[int, Any]] = []

    def noted(number: int) -> Callable[..., None]:
        """A hook that notes what the layer ``number`` is given, and the edge of its outputs."""

        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], outputs: torch.Tensor) -> None:
            if outputs.requires_grad:
                note(number, (given[0] if given else named["input"]).detach())
                edges.append((number, get_gradient_edge(outputs)))

        return hook

    handles = [layer.module.register_forward_hook(noted(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield edges
    finally:
        for handle in handles:
            handle.remove()


def explains_gradient(module: nn.Module, x: torch.Tensor, layers: Sequence[FactoredLayer]) -> list[bool]:
    """For each layer, whether the gradient of its weight is the sum of g a^T over what was seen of its calls.

    It is not where the weight is also used by a function, or the module by something that goes around its calls.

    Args:
        module: the model, as in training.
        x: a few samples.
        layers: of the model.
    """
    seen: list[tuple[int, torch.Tensor]] = []
    with torch.enable_grad(), traced(layers, lambda number, given: seen.append((number, given.clone()))) as edges:
        outputs = module(x)
    weights = [layer.module.weight for layer in layers]
    u = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype, device=outputs.device).view(outputs.shape)
    found = torch.autograd.grad(outputs, [edge for _, edge in edges] + weights, u, allow_unused=True)
    sums = [torch.zeros_like(weight).flatten(1) for weight in weights]
    for (number, given), g in zip(seen, found, strict=False):
        if g is not None:
            a = torch.cat(list(layers[number].rows(given)))
            sums[number] += layers[number].gradients(g).T @ a
    return [
        gradient is not None and _is_close(total, gradient.flatten(1))
        for total, gradient in zip(sums, found[len(edges) :], strict=True)
    ]


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((found - expected).norm()) <= 1e-2 * float(expected.norm())


def is_plain(m: nn.Conv2d) -> bool:
    """Whether all outputs of a convolution see all channels, padded by zeros alike on both sides."""
    return m.groups == 1 and m.padding_mode == "zeros" and padding_of(m) is not None


def padding_of(m: nn.Conv2d) -> tuple[int, ...] | None:
    """Zeros added on both sides of height and width; None where the two sides differ."""
    if not isinstance(m.padding, str):
        return tuple(m.padding)
    if m.padding == "valid":
        return (0, 0)
    spans = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
    return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)
