"""The two containers of a Linear: float weights that can be simulated, and the integers that are computed with."""

from typing import Any

import torch
from torch import Tensor, nn

from qvit.quant.ranges import Grid
from qvit.quant.schemes import LinearScheme
from qvit.quant.slices import Limits, code_limits, quantize_weight
from qvit_kernels import packing
from qvit_kernels.reference import BlockTransform, Weight


class Dense(nn.Module):
    """A Linear in float. weight: fp32 [N, K]; bias: fp32 [N].

    With a scheme it is ready to be simulated: the weight then has the transforms of its input and output folded
    in, `weight_scale` (fp32 [N]) and, with weight groups, `weight_multiplier` (whole numbers in fp32 [N, G]) give its
    steps, and `signs` (fp32 [K]) are those of the transform that its input goes through where it is made.
    """

    scheme: Any  # LinearScheme, or None before folding
    weight_scale: nn.Parameter | None
    weight_multiplier: Tensor | None
    signs: Tensor | None

    def __init__(
        self, out_features: int, in_features: int, scheme: LinearScheme | None = None
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.weight_scale = None if scheme is None else nn.Parameter(torch.ones(out_features))
        multiplier = None if scheme is None else _multiplier(scheme, out_features, in_features)
        self.register_buffer("weight_multiplier", multiplier)
        self.register_buffer("signs", _signs(scheme, in_features))

    @property
    def transform(self) -> BlockTransform | None:
        """The transform that the input arrives with."""
        return _transform(self.signs, self.scheme)

    def quantized_weight(self) -> Weight:
        """Codes [N, K] as whole-numbered floats, differentiable, and their two levels of scales."""
        assert self.weight_scale is not None
        return Weight(self.codes_of(self.weight), self.weight_scale, self.weight_multiplier)

    def grid(self) -> Grid:
        """Scales and multipliers of the weight."""
        assert self.weight_scale is not None
        return Grid(self.weight_scale, self.weight_multiplier)

    @torch.no_grad()
    def take_grid(self, grid: Grid) -> None:
        """Have other scales and, where it has any, multipliers."""
        assert self.weight_scale is not None
        assert (self.weight_multiplier is None) == (grid.multiplier is None)
        self.weight_scale.copy_(grid.scale)
        if self.weight_multiplier is not None and grid.multiplier is not None:
            self.weight_multiplier.copy_(grid.multiplier)

    def steps(self) -> Tensor:
        """The step of every group of columns, fp32 [N, G]; G is 1 without groups."""
        return self.grid().steps()

    def limits(self) -> Limits:
        """The smallest and the largest code: numbers, or what broadcasts to the weight by groups, [N, G, K / G]."""
        assert self.scheme is not None
        return code_limits(self.scheme.weight, self.steps())

    def hold(self) -> None:
        """The grid stays as it is: it is a parameter."""

    @torch.no_grad()
    def grow(self, factor: Tensor) -> None:
        """Multiply the scales, by fp32 [N]."""
        assert self.weight_scale is not None
        self.weight_scale.mul_(factor)

    def codes_of(self, weight: Tensor) -> Tensor:
        """Codes that weights [..., N, K] have on this grid, as whole-numbered floats, differentiable."""
        assert self.scheme is not None
        return quantize_weight(weight, self.steps(), self.scheme.weight)


class IntegerDense(nn.Module):
    """A Linear in integers. Exactly one of `weight` (int8 [N, K]) and `weight_packed` (uint8 [N, ceil(K/2)],
    two 4-bit codes a byte) exists; weight_scale: fp32 [N]; weight_multiplier: int8 [N, G], with weight groups;
    bias: fp32 [N]; signs: fp32 [K].

    Packed codes are multiplied where they are read. `weight` holds their products, where slices with groups lie beside
    others of too many bits to be packed.
    """

    weight_scale: Tensor
    weight_multiplier: Tensor | None
    bias: Tensor
    signs: Tensor | None

    def __init__(self, out_features: int, in_features: int, scheme: LinearScheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features, self.in_features = out_features, in_features
        if scheme.container_bits == 4:
            shape = (out_features, (in_features + 1) // 2)
            self.register_buffer("weight_packed", torch.zeros(shape, dtype=torch.uint8))
        else:
            self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features))
        multiplier = _multiplier(scheme, out_features, in_features)
        stored = None if multiplier is None else multiplier.to(torch.int8)
        self.register_buffer("weight_multiplier", stored)
        self.register_buffer("bias", torch.zeros(out_features))
        self.register_buffer("signs", _signs(scheme, in_features))

    @property
    def transform(self) -> BlockTransform | None:
        """The transform that the input arrives with."""
        return _transform(self.signs, self.scheme)

    @property
    def codes(self) -> Tensor:
        """The weight as kernels read it: int8 [N, K] or packed uint8 [N, ceil(K/2)]."""
        return self.weight_packed if self.scheme.container_bits == 4 else self.weight  # pyright: ignore[reportReturnType]

    def codes_unpacked(self) -> Tensor:
        """The codes of the weight, int8 [N, K]."""
        if self.scheme.container_bits == 4:
            return packing.unpack_int4(self.codes, self.in_features)
        if self.weight_multiplier is None:
            return self.codes
        grouped = self.codes.unflatten(1, (self.weight_multiplier.shape[1], -1))
        return grouped.div(self.weight_multiplier.unsqueeze(-1), rounding_mode="trunc").flatten(1)

    @torch.no_grad()
    def store(self, codes: Tensor, multiplier: Tensor | None = None) -> None:
        """Take codes int8 [N, K] for the weight and, with weight groups, their multipliers [N, G]."""
        if self.weight_multiplier is not None:
            assert multiplier is not None
            self.weight_multiplier.copy_(multiplier)
        if self.scheme.container_bits == 4:
            self.codes.copy_(packing.pack_int4(codes))
        else:
            self.codes.copy_(Weight(codes, self.weight_scale, multiplier).integers())

    @property
    def stored(self) -> Weight:
        """What the integer operations take: stored codes and their scales."""
        packed = self.scheme.container_bits == 4
        return Weight(self.codes, self.weight_scale, self.weight_multiplier if packed else None)

    def values(self) -> Tensor:
        """What the stored weight stands for, fp64 [N, K]: no product of code, multiplier and scale is rounded in it."""
        codes = self.codes_unpacked().double()
        integers = Weight(codes, self.weight_scale, self.weight_multiplier).integers()
        return integers * self.weight_scale.double().unsqueeze(-1)

    @torch.no_grad()
    def take(self, source: Dense) -> None:
        """Quantize and store the weights of a simulated Linear."""
        codes, scale, multiplier = source.quantized_weight()
        self.store(codes.to(torch.int8), multiplier)
        self.weight_scale.copy_(scale)
        self.bias.copy_(source.bias)
        if self.signs is not None and source.signs is not None:
            self.signs.copy_(source.signs)


def _multiplier(scheme: LinearScheme, out_features: int, in_features: int) -> Tensor | None:
    group = scheme.weight.group
    return torch.ones(out_features, in_features // group) if group else None


def _signs(scheme: LinearScheme | None, in_features: int) -> Tensor | None:
    return torch.ones(in_features) if scheme is not None and scheme.transform else None


def _transform(signs: Tensor | None, scheme: LinearScheme | None) -> BlockTransform | None:
    return None if signs is None or scheme is None else BlockTransform(signs, scheme.transform)
