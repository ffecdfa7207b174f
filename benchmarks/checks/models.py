"""A whole model on the `triton` backend beside the reference: every step on the reference's inputs, then end to end.

End to end a low-bit ViT is chaotic: one unit in the last place of a LayerNorm changes the classes of images. So the
logits are held against what such a unit does to the reference itself: at most 1.5 times that divergence.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.kernels import SCHEMES
from benchmarks.checks import agreement
from benchmarks.checks.recording_fall_backs import recording
from qvit import pipeline, zoo
from qvit.demo.scenes import render
from qvit.deployment import checkpoint
from qvit.models.integer import Integer
from qvit.recipe import Recipe
from qvit_kernels.packing import pack_int4
from qvit_kernels.reference import Quantized

_MODEL = "demo_vit"
_SERIES = 3  # of rendered pictures
_LARGEST_RATIO = 1.5
_ULPS = 3  # disturbed runs; the largest divergence of them is the yardstick
_BATCH = 128
_EXACT = (
    "tokens",
    "qkv",
    "residual",
    "head",
    "logits",
)  # steps without exp, GELU or the sums of a LayerNorm
# Below it a KL in nats is rounding of the softmax, as where nothing differs at all.
_NOTHING = 1e-7


def render_pictures(count: int) -> Tensor:
    """Rendered pictures, normalised as the model in the package wants them: fp32 [count, 3, 64, 64]."""
    pixels = torch.stack([torch.from_numpy(render(_SERIES, i).image) for i in range(count)])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def examine(
    scheme: str, images: Tensor, scratch: Path, device: torch.device, depth: int | None = None
) -> dict[str, Any]:
    """Quantize demo_vit and compare the backends on it. depth: only so many of its blocks."""
    weight_bits, activation_bits = SCHEMES[scheme]
    recipe = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    pipeline.quantize(zoo.resolve(_MODEL), recipe, scratch / "model", progress=False)
    vit, _ = checkpoint.load(scratch / "model")
    vit = vit.to(device)
    if depth is not None:
        vit.blocks = vit.blocks[:depth]
    beside = _SideBySide()
    with torch.no_grad():
        expected = _logits(vit, images, device, beside)
        with recording() as composed_ops:
            found = _logits(vit, images, device, Integer("triton"))
        disturbed = [
            _logits(_disturbed(vit, seed), images, device, Integer("reference"))
            for seed in range(_ULPS)
        ]
    ours = _divergence(found, expected)
    yardstick = max(_divergence(other, expected) for other in disturbed)
    fault = beside.fault()
    if composed_ops:
        fault = f"was computed by the reference: {', '.join(sorted(set(composed_ops)))}"
    elif not torch.isfinite(found).all():
        fault = "logits are not finite"
    elif ours > _LARGEST_RATIO * yardstick + _NOTHING:
        fault = f"KL {ours:.2e} to the reference, and one ulp makes {yardstick:.2e}"
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return {
        "images": len(images),
        "steps": beside.steps,
        "codes": beside.codes,
        "off": beside.off,
        "kl": ours,
        "kl_of_one_ulp": yardstick,
        "same_class": float(same),
        "fault": fault,
    }


def _logits(vit: nn.Module, images: Tensor, device: torch.device, execution: Any) -> Tensor:
    return torch.cat([vit(part.to(device), execution).cpu() for part in images.split(_BATCH)])


def _divergence(found: Tensor, expected: Tensor) -> float:
    """Mean KL from the expected distribution, in nats."""
    logs = expected.double().log_softmax(-1)
    return float((logs.exp() * (logs - found.double().log_softmax(-1))).sum(-1).mean())


def _disturbed(vit: nn.Module, seed: int) -> nn.Module:
    """The model with every LayerNorm parameter one unit in the last place off, up or down at random."""
    other = copy.deepcopy(vit)
    generator = torch.Generator().manual_seed(seed)
    for module in other.modules():
        if isinstance(module, nn.LayerNorm):
            for parameter in (module.weight, module.bias):
                up = torch.rand(parameter.shape, generator=generator).to(parameter.device) < 0.5
                ends = torch.where(up, torch.inf, -torch.inf)
                parameter.copy_(torch.nextafter(parameter, ends))
    return other


def _stored_like(found: Any, expected: Any) -> Any:
    """The expected codes packed where the found ones are: on a CPU the reference leaves 4-bit activations unpacked."""
    if isinstance(found, Quantized) and found.codes.dtype != expected.codes.dtype:
        return Quantized(pack_int4(expected.codes), expected.scale)
    return expected


class _SideBySide:
    """Runs every step on the reference and, on the same inputs, on the kernels; goes on with the reference's result.

    Attributes:
        steps, codes, off: How many were compared, and how many codes differ.
    """

    def __init__(self) -> None:
        self._reference, self._kernels = Integer("reference"), Integer("triton")
        self.steps = self.codes = self.off = 0
        self._faults: list[str] = []

    def __getattr__(self, step: str) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            expected = getattr(self._reference, step)(*arguments, **named)
            found = getattr(self._kernels, step)(*arguments, **named)
            expected = _stored_like(found, expected)
            result = agreement.compare(found, expected)
            self.steps += 1
            self.codes += result.codes
            self.off += result.off
            fault = result.fault(exact=step in _EXACT, softmax=step == "attention")
            if fault:
                self._faults.append(f"{step}: {fault}")
            return expected

        return run

    def fault(self) -> str | None:
        """The first fault of a step, or none."""
        return self._faults[0] if self._faults else None
