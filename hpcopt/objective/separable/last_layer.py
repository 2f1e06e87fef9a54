"""The linear last layer of a module: its place among the parameters, its weights as a matrix, its rows on a batch.

Shapes: b samples, m columns of the design with that of the bias, t outputs at a position (one, but in a convolution).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpcopt.errors import UsageError
from hpcopt.kernels.tikhonov import MOST_ROWS, compiled_residuals
from hpcopt.objective.losses import target_values
from hpcopt.objective.parameters import FlatParameters
from hpcopt.objective.protocol import Vector
from hpcopt.objective.separable.design import Design, design_of
from hpcopt.objective.separable.protocol import Few, Normal, Rows
from hpcopt.objective.vectors import matmul

ADVICE = (
    "The method solves for a last layer that is linear: end the model with torch.nn.Linear, Conv2d or ConvTranspose2d, "
    "without an activation after it, or use another method."
)


class LastLayer:
    """The ``torch.nn.Linear``, ``Conv2d`` or ``ConvTranspose2d`` at the end of a module.

    Args:
        module: the whole model.
        parameters: the flat vector over its trainable parameters.

    Attributes:
        width: m.
        outputs: t.
        blocks: the columns of each block of the design, int64; that of the bias is the last of each.
        bias: whether there is one.
        others: the parameters of all other layers.
        start: where its own begin, if they are the last of all, as they are in the order of calls.
        positions: of the outputs of one sample; 0 as long as none was seen.

    Raises:
        UsageError: there is none, it is not trainable, or another layer has the same weights.
    """

    def __init__(self, module: torch.nn.Module, parameters: FlatParameters) -> None:
        self._module = module
        self._layer, self._design = _last(module)
        places = {id(tensor): place for tensor, place in zip(parameters.tensors, parameters.slices(), strict=True)}
        own = dict(self._layer.named_parameters())
        names = [id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False)]
        for name, tensor in own.items():
            if id(tensor) not in places or names.count(id(tensor)) > 1:
                fault = "is shared with another layer" if id(tensor) in places else "does not require a gradient"
                raise UsageError(f"the {name} of the model's last layer {fault}, so it cannot be solved for. {ADVICE}")
        self._places = {name: places[id(tensor)] for name, tensor in own.items()}
        self._shape, self.outputs, self.positions = own["weight"].shape, self._design.outputs, 0
        self._seen: tuple[Vector, list[torch.Tensor]] | None = None
        self._made: dict[torch.Size, torch.Size] = {}
        self.bias = "bias" in own
        self.others = [tensor for tensor in parameters.tensors if all(tensor is not each for each in own.values())]
        before = sum(tensor.numel() for tensor in self.others)
        self.start = before if all(place.start >= before for place in self.places) else None
        self.width = self._design.width + self.bias
        last = torch.arange(self._design.width, self.width)
        self.blocks = [torch.cat([columns, last]) for columns in self._design.blocks]

    @property
    def places(self) -> list[slice]:
        """Where its parameters lie in a vector (n,)."""
        return list(self._places.values())

    def weights(self, w: Vector) -> torch.Tensor:
        """W (t, m) in a vector (n,), float64 on the CPU, a copy; its last column is the bias."""
        weight, *bias = self._views(w)
        return torch.cat([weight.reshape(self.outputs, -1), *bias], dim=1).to("cpu", torch.float64)

    def put(self, w: Vector, weights: torch.Tensor) -> None:
        """Write W (t, m) into a vector (n,)."""
        weight, *bias = self._views(w)
        weight.copy_(weights[:, : self._design.width].view(weight.shape))
        for part in bias:
            part.copy_(weights[:, -1:])

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer gets when the module gets ``inputs``, with its graph.

        The layer itself computes nothing but the first outputs of a shape: zeros in their place tell as well whether
        they are what the module puts out.

        Raises:
            UsageError: the layer's outputs are not the module's.
        """
        seen: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        forward, own = self._layer.forward, vars(self._layer)

        def blank(given: torch.Tensor) -> torch.Tensor:
            """Zeros in the layer's shape, which is asked for once."""
            shape = self._made.get(given.shape)
            made: torch.Tensor = forward(given) if shape is None else given.new_zeros(shape)
            self._made[given.shape] = made.shape
            seen.append((given, made, made._version))
            return made

        own["forward"] = blank
        try:
            outputs = self._module(inputs)
        finally:
            del own["forward"]
        if len(seen) != 1 or not _same_numbers(outputs, *seen[0][1:]):
            raise UsageError(f"the last layer {self._layer} does not make the outputs of the model. {ADVICE}")
        if len(inputs):
            self.positions = outputs[0].numel() // self.outputs
        return seen[0][0]

    def outputs_of(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the layer would make of ``features`` with W (t, m)."""
        parts = self._parts(weights.to(features))
        return self._design.outputs_of(features, parts["weight"], parts.get("bias"))

    def loss_and_cotangent(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Half the squared distance from the targets with W (t, m), and ``scale`` times its gradient in features."""
        if (both := self._of_few(features, targets, weights, scale)) is not None:
            return both
        parts, known = self._parts(weights.to(features)), self._design.residuals(features, targets, weights)
        if known is None:
            residual = self._design.outputs_of(features.detach(), parts["weight"], parts.get("bias"))
            residual.sub_(target_values(residual, targets))
            loss = residual.square().sum(dtype=torch.float64) / 2
        else:
            residual, square = known
            residual, loss = residual.to(features.dtype), torch.tensor(square / 2, dtype=torch.float64)
        return loss, self._design.pulled_back(residual.mul_(scale), parts["weight"], features)

    def _of_few(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The same of a few rows of a linear layer in float64 on the processor, where that is compiled."""
        linear = isinstance(self._layer, torch.nn.Linear) and features.is_contiguous() and targets.is_contiguous()
        wide = features.dtype == targets.dtype == torch.float64 and not features.is_cuda
        if not (linear and wide) or features.numel() > MOST_ROWS * self._design.width:
            return None
        return None if (compiled := compiled_residuals()) is None else compiled(features, targets, weights, scale)

    def few(self, features: torch.Tensor, targets: torch.Tensor, scale: float) -> Few | None:
        """Features and targets as rows of a linear layer on the processor."""
        if not isinstance(self._layer, torch.nn.Linear) or features.is_cuda or not targets.is_floating_point():
            return None
        features = features.detach().to(torch.float64)
        return Few(features.reshape(-1, self._design.width), targets.to(torch.float64).reshape(-1, self.outputs), scale)

    def no_rows(self) -> list[Normal]:
        """What ``normal`` says of no sample."""
        zeros, sizes = torch.zeros((), dtype=torch.float64), [columns.shape[0] for columns in self.blocks]
        return [Normal(zeros.new_zeros(m, m), zeros.new_zeros(m, self.outputs), 0.0) for m in sizes]

    def normal(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> list[Normal]:
        """What Gram matrices say of the rows of a batch, scaled, and their residuals with W (t, m), block by block."""
        if (known := self._design.normal(features, targets, weights, scale)) is not None:
            return known
        states = self.no_rows()
        for blocks, design, residual in self.rows(features, targets, weights, scale):
            gram, cross = matmul(design.T, design).cpu(), matmul(design.T, residual).cpu().split(self.outputs, dim=1)
            squares = residual.square().sum(0).view(len(blocks), -1).sum(1).tolist()
            for block, right, square in zip(blocks, cross, squares, strict=True):
                before = states[block]
                states[block] = Normal(before.gram + gram, before.cross + right, before.square + square)
        return states

    def operations(self, samples: float) -> float:
        """Those of ``normal`` for so many samples, a mean maybe, of the size that was seen last."""
        size = list(self._made)[-1][1:]
        if (known := self._design.operations(samples, size)) is not None:
            return known
        sample, targets = torch.zeros(1, *size), torch.zeros(1, self.positions * self.outputs)
        total = 0
        for design, blocks, _ in self._design.rows(sample, targets, [1.0] * self.bias):
            rows, columns = design.shape
            # One half of the Gram matrix, what W makes of the rows, and their products with the residuals.
            total += rows * columns * (columns + 4 * len(blocks) * self.outputs)
        return samples * total

    def rows(
        self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float
    ) -> Iterator[Rows]:
        """The rows of a batch, scaled, and their residuals with ``weights`` (t, m), in float64."""
        features, weights = features.detach().to(torch.float64) * scale, weights.to(features.device)
        own = [weights.T]
        if len(self.blocks) > 1:
            own = [weights[:, columns.to(weights.device)].T for columns in self.blocks]
        shape = len(features), self.positions * self.outputs
        given = targets if targets.is_floating_point() else target_values(features.new_empty(shape), targets)
        wanted = given.reshape(shape).to(torch.float64) * scale
        for design, blocks, there in self._design.rows(features, wanted, [scale] * self.bias):
            # (columns, t times the blocks)
            matrix = own[blocks[0]] if len(blocks) == 1 else torch.cat([own[block] for block in blocks], dim=1)
            yield Rows(blocks, design, matmul(design, matrix).sub_(there))

    def _views(self, w: Vector) -> list[torch.Tensor]:
        """Weight (t, ...) in the order of W and bias (t, 1) in a vector, which is the same one in many steps."""
        if self._seen is None or self._seen[0] is not w:
            weight, *bias = (w[place] for place in self.places)
            self._seen = w, [self._design.ordered(weight.view(self._shape)), *(part[:, None] for part in bias)]
        return self._seen[1]

    def _parts(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight and, where there is one, bias as the layer has them."""
        parts = {"weight": self._design.weight(weights[:, : self._design.width])}
        return parts | ({"bias": weights[:, -1]} if self.bias else {})


def _last(module: torch.nn.Module) -> tuple[torch.nn.Module, Design]:
    with_parameters = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
    design = design_of(with_parameters[-1]) if with_parameters else None
    if design is None:
        last = type(with_parameters[-1]).__name__ if with_parameters else "nothing"
        raise UsageError(f"the last layer of the model {type(module).__name__} with variables is {last}. {ADVICE}")
    return with_parameters[-1], design


def _same_numbers(outputs: torch.Tensor, made: torch.Tensor, version: int) -> bool:
    """Whether the outputs are what a layer has made, at most flattened, and nothing has changed them since."""
    flattened = outputs.numel() == made.numel() and outputs.is_contiguous() and made.is_contiguous()
    alike = flattened or (outputs.shape == made.shape and outputs.stride() == made.stride())
    return alike and outputs.data_ptr() == made.data_ptr() and outputs._version == version
