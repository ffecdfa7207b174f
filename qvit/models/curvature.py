"""What quantizing a single tensor does to a model's answers, by their curvature: a few backward passes for all widths.

An error e in a tensor changes the output distribution by KL(p || p_e) = e^T F e / 2 to second order, F the Fisher
matrix: the mean of g g^T over labels drawn from p, g the gradient of the log-probability of such a label. So half the
mean of (g . e)^2 over images and labels is the divergence that e causes alone, and since g does not depend on e, that
may be the error of every width in turn. First-order differences of a quantized model's loss tell little: of the six
weights that mattered in a small model, five had a slope of the wrong sign.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.simulated import Simulated
from qvit.models.switching import SwitchableModel, Widths
from qvit.models.vit import Attention, PatchEmbed
from qvit.quant.schemes import Scheme
from qvit_kernels import reference
from qvit_kernels.reference import Quantized, Weight

Key = tuple[str, str]  # a layer and "W", its weights, or "A", its input or an attention's operands


@dataclass(slots=True)
class _Heard:
    """A tensor of a forward pass: the errors [B, ...] that a number of bits causes in it, and its gradient for each
    backward pass.
    """

    key: Key
    error: Callable[[int], Tensor]
    gradients: list[Tensor] = field(default_factory=list)


class Curvature(Simulated):
    """Simulates a model and sums, over images and backward passes, (g . e)^2 / 2 of every tensor and width.

    model: At as many bits as there are, for gradients near the float model's. found: The sums, by layer and kind, then
    bits; they grow when `settle` is called after the backward passes of a forward one.
    """

    def __init__(self, model: SwitchableModel, bits: Iterable[int]) -> None:
        self._widths: Mapping[str, Widths] = model.widths
        self._names = {module: name for name, module in model.vit.named_modules()}
        self._bits = tuple(bits)
        self._heard: list[_Heard] = []
        self.found: dict[Key, dict[int, float]] = {}

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """See Simulated."""
        found = super().embed(images, embed)
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        patches = reference.unfold_patches(codes, embed.patch).float() * embed.unit
        return self._hear_weight(found, patches, embed.proj)

    def product(self, x: Quantized, dense: Dense) -> Tensor:
        """See Simulated."""
        return self._hear_weight(super().product(x, dense), x.values().detach(), dense)

    def quantize(self, x: Tensor, to: Dense) -> Quantized:
        """See Simulated."""
        name = self._names[to]
        schemes = self._widths[name].schemes
        inputs = {b: schemes[b].input for b in self._bits}
        turned = self._hear_rows(reference.block_transform(x, to.transform), inputs, name)
        return _quantize(turned, to.scheme.input)

    def qkv(self, h: Quantized, attn: Attention) -> tuple[Quantized, Quantized, Quantized]:
        """See Execution."""
        q, k, v = reference.split_heads(self.product(h, attn.qkv), attn.heads)
        if attn.norm is not None:
            q, k = reference.normalize_heads(q, k, attn.norm, attn.rotation)
        key = self._names[attn], "A"
        heard = [self._hear(x, key, partial(_head_error, x.detach())) for x in (q, k, v)]
        q, k, v = (reference.quantize_heads(x, attn.scheme.qkv.bits) for x in heard)
        return q, k, v

    def attend(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Tensor:
        """See Simulated. What the bits of the softmax numerators do is seen in what comes out."""
        found = super().attend(q, k, v, attn)
        held = [Quantized(x.codes.detach(), x.scale.detach()) for x in (q, k, v)]
        error = partial(self._softmax_error, held, found.detach(), attn.softmax_scale)
        return self._hear(found, (self._names[attn], "A"), error)

    @torch.no_grad()
    def settle(self) -> None:
        """Add what the backward passes since the last call have told, and forget the gradients."""
        for heard in self._heard:
            gradients = torch.stack(heard.gradients).flatten(2)  # [passes, B, values]
            widths = self.found.setdefault(heard.key, {})
            for bits in self._bits:
                error = heard.error(bits).flatten(1)
                each = torch.einsum("lbn,bn->lb", gradients, error).double()
                widths[bits] = widths.get(bits, 0.0) + 0.5 * float(each.square().sum())
            heard.gradients.clear()
        self._heard.clear()

    def _hear(self, x: Tensor, key: Key, error: Callable[[int], Tensor]) -> Tensor:
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        heard = _Heard(key, error)
        x.register_hook(heard.gradients.append)
        self._heard.append(heard)
        return x

    def _hear_weight(self, out: Tensor, x: Tensor, dense: Dense) -> Tensor:
        return self._hear(out, (self._names[dense], "W"), partial(self._weight_error, x, dense))

    def _hear_rows(self, x: Tensor, schemes: Mapping[int, Scheme], name: str) -> Tensor:
        return self._hear(x, (name, "A"), partial(_row_error, x.detach(), schemes))

    def _weight_error(self, x: Tensor, dense: Dense, bits: int) -> Tensor:
        """Of what a Linear puts out for x."""
        grid = self._widths[self._names[dense]].grids[bits]
        steps = grid.scale.unsqueeze(-1)
        steps = steps if grid.multiplier is None else steps * grid.multiplier
        grouped = dense.weight.unflatten(-1, (steps.shape[-1], -1))
        codes = reference.quantize(grouped, steps.unsqueeze(-1), *reference.code_range(bits))
        weight = Weight(codes.flatten(-2), grid.scale, grid.multiplier)
        return x @ (weight.integers() * grid.scale.unsqueeze(-1) - dense.weight).T

    @staticmethod
    def _softmax_error(held: list[Quantized], out: Tensor, scale: float, bits: int) -> Tensor:
        return reference.attention(*held, softmax_scale=scale, softmax_bits=bits) - out


def _head_error(x: Tensor, bits: int) -> Tensor:
    return reference.quantize_heads(x, bits).values() - x


def _row_error(x: Tensor, schemes: Mapping[int, Scheme], bits: int) -> Tensor:
    return _quantize(x, schemes[bits]).values() - x


def _quantize(x: Tensor, scheme: Scheme) -> Quantized:
    return reference.quantize_rows(x, scheme.bits, scheme.group, prefix=scheme.prefix)


def measure_curvature(
    model: SwitchableModel,
    images: Tensor,
    *,
    batch: int,
    labels: int,
    generator: torch.Generator,
) -> dict[Key, dict[int, float]]:
    """The divergence that each width of each tensor causes alone, in nats, a mean over images [N, C, H, W].

    model: It has to have taken as many bits as there are. labels: Drawn for every image, from the model's own
    probabilities; each costs a backward pass, and the memory of the gradients of a batch.
    """
    widths = next(iter(model.widths.values())).schemes
    run = Curvature(model, widths)
    for some in images.split(batch):
        logs = model.vit(some, run).log_softmax(-1)
        drawn = torch.multinomial(
            logs.detach().exp(), labels, replacement=True, generator=generator
        )
        for place in range(labels):
            told = logs.gather(1, drawn[:, place : place + 1]).sum()
            told.backward(retain_graph=place + 1 < labels)
        run.settle()
    count = labels * len(images)
    return {key: {b: v / count for b, v in found.items()} for key, found in run.found.items()}
