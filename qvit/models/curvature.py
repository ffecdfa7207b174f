"""What quantizing a single tensor does to a model's answers, by their curvature: a backward pass for all widths.

An error e in a tensor changes the output distribution by KL(p || p_e) = e^T F e / 2 to second order, F the Fisher
matrix: J^T (diag(p) - p p^T) J, J the Jacobian of the logits. With s = sqrt(p), the matrix in the middle is A A^T for
A = diag(s) (1 - s s^T), so that for random signs z the mean of (g . e)^2 is e^T F e, g = J^T A z: the gradient of the
logits along A z. It does not depend on e, which may be the error of every width in turn.

Signs tell more than labels drawn from p, as the Fisher matrix is usually estimated: where the model is sure, nearly all
labels have next to no gradient, and a rare one decides. And g . e is taken row by row, of a token or of an output of a
weight: rounding one row says nothing of the next, so that the squares of 197 rows add up to what the square of their
sum is in the mean, and differ less from it. Against 64 images with four labels each, binary logarithms of the losses at
3 to 5 bits were off by 0.40 (standard deviation, 16 images of a ViT-Tiny), and by 0.63 with the sum squared.

First-order differences of a quantized model's loss tell little: of the six weights that mattered in a small model, five
had a slope of the wrong sign.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from qvit.models.dense import Dense
from qvit.models.fake_quantized import transformed
from qvit.models.floating import Float
from qvit.models.folding import per_column
from qvit.models.switching import SwitchableModel
from qvit.models.vit import Attention, PatchEmbed
from qvit.quant.ranges import Grid
from qvit.quant.schemes import Scheme
from qvit.quant.slices import quantize_weight
from qvit_kernels import reference

# A layer and "W", its weights, or "A", its input or an attention's operands; of weights, also "W" and the number of a
# head's slice.
Key = tuple[str, str] | tuple[str, str, int]


class Curvature(Float):
    """Computes in float, and in the backward pass sums (g . e)^2 / 2 of every tensor and width, over rows and images.

    bits: The widths. heads: Whether weights of heads are summed by themselves, too. found: The sums, fp64 [widths], by
    layer and kind; every backward pass adds to them.
    """

    def __init__(self, model: SwitchableModel, bits: Sequence[int], *, heads: bool = False) -> None:
        self._model = model
        self._names = {module: name for name, module in model.vit.named_modules()}
        self._bits, self._heads = tuple(bits), heads
        self.found: dict[Key, Tensor] = {}

    def embed(self, images: Tensor, embed: PatchEmbed) -> Tensor:
        """See Float."""
        codes = reference.quantize_pixels(images, embed.gain, embed.offset)
        patches = reference.unfold_patches(codes, embed.patch)
        found = super().product(patches, embed.proj)
        # the bias makes up for what quantized weights do to the mean colour
        return self._hear_weight(found, patches - per_column(embed.offset, embed), embed.proj)

    def product(self, x: Tensor, dense: Dense) -> Tensor:
        """See Float."""
        return self._hear_weight(super().product(x, dense), x, dense)

    def transform(self, x: Tensor, to: Dense) -> Tensor:
        """See Float."""
        found = transformed(x, to.transform)
        name = self._names[to]
        schemes = [self._model.scheme(name, bits).input for bits in self._bits]

        def error(seen: Tensor, place: int) -> Tensor:
            s = schemes[place]
            rows = reference.quantize_rows(seen, s.bits, s.group, prefix=s.prefix)
            return rows.values() - seen

        return self._hear_values(found, (name, "A"), error)

    def qkv(self, h: Tensor, attn: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """See Execution."""

        def error(seen: Tensor, place: int) -> Tensor:
            return reference.quantize_heads(seen, self._bits[place]).values() - seen

        key = self._names[attn], "A"
        q, k, v = (self._hear_values(x, key, error) for x in super().qkv(h, attn))
        return q, k, v

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Execution."""
        return self.transform(super().attention(q, k, v, attn), attn.proj)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Float. What the bits of the softmax numerators do is seen in what comes out."""
        found = super().attend(q, k, v, attn)
        held = q.detach(), k.detach(), v.detach()
        return self._hear(found, partial(self._add_softmax, held, attn))

    @staticmethod
    def _hear(x: Tensor, add: Callable[[Tensor], None]) -> Tensor:
        """x, of whose gradient `add` is told."""
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        x.register_hook(add)
        return x

    def _hear_weight(self, out: Tensor, x: Tensor, dense: Dense) -> Tensor:
        return self._hear(out, partial(self._add_weight, x.detach(), dense))

    def _hear_values(self, x: Tensor, key: Key, error: Callable[[Tensor, int], Tensor]) -> Tensor:
        return self._hear(x, partial(self._add_values, x.detach(), key, error))

    def _add_weight(self, x: Tensor, dense: Dense, gradient: Tensor) -> None:
        """Of a weight [N, K], whose gradient is that of what the Linear puts out, times what it takes."""
        if x.ndim == 2:  # a head's pooled token
            x, gradient = x.unsqueeze(1), gradient.unsqueeze(1)
        moments = gradient.transpose(1, 2) @ x
        name = self._names[dense]
        for place, bits in enumerate(self._bits):
            scheme = self._model.scheme(name, bits)
            error = _weight_error(dense.weight, self._model.grid(name, bits), scheme.weight)
            self._add((name, "W"), place, torch.linalg.vecdot(moments, error))
            parts = self._by_head(name, moments, error) if self._heads else ()
            for head, part in enumerate(parts):
                self._add((name, "W", head), place, part)

    def _by_head(self, name: str, moments: Tensor, error: Tensor) -> Sequence[Tensor]:
        """g . e of each head's slice of a weight, row by row of what is in it."""
        rows, columns = self._model.vit.config.head_slices(name)
        if rows * columns == 1:
            return ()
        parts = [x.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1)) for x in (moments, error)]
        found = torch.linalg.vecdot(*parts)  # [images, rows, N / rows, columns]
        return found.movedim((1, 3), (0, 1)).flatten(0, 1).unbind()

    def _add_values(
        self, x: Tensor, key: Key, error: Callable[[Tensor, int], Tensor], gradient: Tensor
    ) -> None:
        for place in range(len(self._bits)):
            self._add(key, place, torch.linalg.vecdot(error(x, place), gradient))

    def _add_softmax(
        self, held: tuple[Tensor, Tensor, Tensor], attn: Attention, gradient: Tensor
    ) -> None:
        """As reference.attention quantizes numerators, together with V's scales."""
        q, k, v = held
        logits = q @ k.transpose(-1, -2) * attn.softmax_scale
        numerators = (logits - logits.amax(-1, keepdim=True)).exp()
        reach = reference.scale_of(v.abs().amax(-1), 1.0).unsqueeze(-2)
        heads = gradient.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        each_gradient = heads @ v.transpose(-1, -2) / (reach * numerators.sum(-1, keepdim=True))
        weighted = numerators * reach
        top = weighted.amax(-1, keepdim=True)

        def error(seen: Tensor, place: int) -> Tensor:
            largest = reference.softmax_qmax_of(self._bits[place])
            step = reference.scale_of(top, largest)
            return reference.quantize(seen, step, 0, largest) * step - seen

        self._add_values(weighted, (self._names[attn], "A"), error, each_gradient)

    def _add(self, key: Key, place: int, rows: Tensor) -> None:
        """rows: g . e of every row, at the width of that place."""
        if key not in self.found:
            self.found[key] = torch.zeros(len(self._bits), dtype=torch.float64)
        self.found[key][place] += 0.5 * float(rows.square().sum(dtype=torch.float64))


def _weight_error(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    steps = grid.steps()
    codes = quantize_weight(weight, steps, scheme).unflatten(-1, (steps.shape[1], -1))
    return (codes * steps.unsqueeze(-1)).flatten(1) - weight


def measure_curvature(
    model: SwitchableModel,
    images: Tensor,
    bits: Sequence[int],
    *,
    batch: int,
    generator: torch.Generator,
    heads: bool = False,
) -> dict[Key, Tensor]:
    """The divergence that each width of each tensor causes alone, fp64 [widths], nats, a mean over images [N, C, H, W].

    batch: Of the images at a time. generator: Of the signs, one of every image and class. heads: As Curvature's.
    """
    run = Curvature(model, bits, heads=heads)
    for some in images.split(batch):
        logits = model.vit(some, run)
        roots = logits.detach().softmax(-1).sqrt()
        signs = torch.randint(0, 2, roots.shape, generator=generator) * 2.0 - 1.0
        along = roots * (signs - (roots * signs).sum(-1, keepdim=True) * roots)
        (logits * along).sum().backward()
    return {key: found / len(images) for key, found in run.found.items()}
