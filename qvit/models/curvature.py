"""What quantizing a single tensor does to a model's answers, by their curvature: one backward pass for all widths.

An error e in a tensor changes the output distribution by KL(p || p_e) = e^T F e / 2 to second order, F the Fisher
matrix: the mean of g g^T over labels drawn from p, g the gradient of the log-probability of such a label. So half the
mean of (g . e)^2 over images and labels is the divergence that e causes alone, and since g comes from one backward
pass, e may be that of every width in turn. First-order differences of a quantized model's loss tell little: of the six
weights that mattered in a small model, five had a slope of the wrong sign.
"""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.simulated import Simulated
from qvit.models.switching import SwitchableModel, Widths
from qvit.models.vit import Attention, PatchEmbed
from qvit.quant.schemes import Granularity, Scheme
from qvit_kernels import reference
from qvit_kernels.reference import Quantized, Weight

Key = tuple[str, str]  # a layer and "W", its weights, or "A", its input or an attention's operands


class Curvature(Simulated):
    """Simulates a model and notes, in backward passes, (g . e)^2 / 2 of every tensor and width, summed over images.

    model: At as many bits as there are, for gradients near the float model's. found: What was noted, by layer and kind,
    then bits.
    """

    def __init__(self, model: SwitchableModel, bits: Iterable[int]) -> None:
        self._widths: Mapping[str, Widths] = model.widths
        self._names = {module: name for name, module in model.vit.named_modules()}
        self._bits = tuple(bits)
        self.found: dict[Key, dict[int, float]] = {}

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """See Simulated."""
        found = super().embed(images, embed)
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        patches = reference.unfold_patches(codes, embed.patch).float() * embed.unit
        return self._heard(found, partial(self._note_weight, patches, embed.proj))

    def product(self, x: Quantized, dense: Dense) -> Tensor:
        """See Simulated."""
        found = super().product(x, dense)
        return self._heard(found, partial(self._note_weight, x.values().detach(), dense))

    def quantize(self, x: Tensor, to: Dense) -> Quantized:
        """See Simulated."""
        turned = reference.block_transform(x, to.transform)
        schemes = {b: self._widths[self._names[to]].schemes[b].input for b in self._bits}
        turned = self._heard(turned, partial(self._note_rows, turned.detach(), schemes, to))
        return _quantize(turned, to.scheme.input)

    def qkv(self, h: Quantized, attn: Attention) -> tuple[Quantized, Quantized, Quantized]:
        """See Execution."""
        q, k, v = reference.split_heads(self.product(h, attn.qkv), attn.heads)
        if attn.norm is not None:
            q, k = reference.normalize_heads(q, k, attn.norm, attn.rotation)
        whole = {b: Scheme(bits=b, granularity=Granularity.HEAD) for b in self._bits}
        heard = [
            self._heard(x, partial(self._note_rows, x.detach(), whole, attn)) for x in (q, k, v)
        ]
        q, k, v = (reference.quantize_heads(x, attn.scheme.qkv.bits) for x in heard)
        return q, k, v

    def attend(self, q: Quantized, k: Quantized, v: Quantized, attn: Attention) -> Tensor:
        """See Simulated. What the bits of the softmax numerators do is seen in what comes out."""
        found = super().attend(q, k, v, attn)
        held = [Quantized(x.codes.detach(), x.scale.detach()) for x in (q, k, v)]
        return self._heard(found, partial(self._note_softmax, held, found.detach(), attn))

    def _heard(self, x: Tensor, note: "partial[None]") -> Tensor:
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        x.register_hook(note)
        return x

    @torch.no_grad()
    def _note_weight(self, x: Tensor, dense: Dense, gradient: Tensor) -> None:
        for bits in self._bits:
            grid = self._widths[self._names[dense]].grids[bits]
            steps = grid.scale.unsqueeze(-1)
            steps = steps if grid.multiplier is None else steps * grid.multiplier
            grouped = dense.weight.unflatten(-1, (steps.shape[-1], -1))
            codes = reference.quantize(grouped, steps.unsqueeze(-1), *reference.code_range(bits))
            weight = Weight(codes.flatten(-2), grid.scale, grid.multiplier)
            error = weight.integers() * grid.scale.unsqueeze(-1) - dense.weight
            self._note((self._names[dense], "W"), bits, gradient, x @ error.T)

    @torch.no_grad()
    def _note_rows(
        self, x: Tensor, schemes: Mapping[int, Scheme], layer: Dense | Attention, gradient: Tensor
    ) -> None:
        for bits, scheme in schemes.items():
            error = _quantize(x, scheme).values() - x
            self._note((self._names[layer], "A"), bits, gradient, error)

    @torch.no_grad()
    def _note_softmax(
        self, held: list[Quantized], out: Tensor, attn: Attention, gradient: Tensor
    ) -> None:
        for bits in self._bits:
            found = reference.attention(*held, softmax_scale=attn.softmax_scale, softmax_bits=bits)
            self._note((self._names[attn], "A"), bits, gradient, found - out)

    def _note(self, key: Key, bits: int, gradient: Tensor, error: Tensor) -> None:
        each = (gradient * error).flatten(1).sum(1, dtype=torch.float64)
        widths = self.found.setdefault(key, {})
        widths[bits] = widths.get(bits, 0.0) + 0.5 * float(each.square().sum())


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
    probabilities; each costs a backward pass.
    """
    widths = next(iter(model.widths.values())).schemes
    run = Curvature(model, widths)
    for some in images.split(batch):
        for _ in range(labels):
            logits = model.vit(some, run)
            chance = logits.detach().softmax(-1)
            drawn = torch.multinomial(chance, 1, generator=generator)
            logits.log_softmax(-1).gather(1, drawn).sum().backward()
    count = labels * len(images)
    return {key: {b: v / count for b, v in found.items()} for key, found in run.found.items()}
