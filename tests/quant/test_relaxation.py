import math

import pytest
import torch

from qvit.quant.relaxation import Relaxation
from qvit_kernels.reference import code_range


def relaxed(bits=4, groups=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(5, 8, generator=generator)
    weight[0, 0], weight[1, 7] = 40.0, -40.0  # beyond any grid
    steps = torch.rand(5, groups, generator=generator) * 0.3 + 0.2
    steps[2] *= -1
    wide = steps.repeat_interleave(8 // groups, 1)
    return Relaxation(weight.to(dtype), steps.to(dtype), code_range(bits)), weight, wide


def slowly(weight, step, low, high, logit):
    """One weight by the paper's formula: clip(floor(w / s) + h(V))."""
    h = min(1.0, max(0.0, 1.2 / (1 + math.exp(-logit)) - 0.1))
    return min(high, max(low, math.floor(weight / step) + h)), h


@pytest.mark.parametrize(("bits", "groups"), [(2, 1), (3, 2), (4, 4), (8, 1)])
def test_codes_are_those_of_the_formula(bits, groups):
    found, weight, steps = relaxed(bits, groups)
    with torch.no_grad():
        found.logits += torch.randn(5, 8)
    low, high = code_range(bits)
    codes, pressure = found().detach(), found.pressure(3.0).detach()
    for n in range(5):
        for k in range(8):
            logit = found.logits[n, k].item()
            code, h = slowly(float(weight[n, k]), float(steps[n, k]), low, high, logit)
            beyond = not low <= float(weight[n, k] / steps[n, k]) < high
            if not beyond:  # a weight that is cut off has its last code, and may come back by one
                assert float(codes[n, k]) == pytest.approx(code, abs=1e-5)
            assert float(pressure[n, k]) == pytest.approx(1 - abs(2 * h - 1) ** 3, abs=1e-5)
            assert low <= float(codes[n, k]) <= high


def test_it_begins_at_the_float_weights_and_would_end_at_the_nearest():
    found, weight, steps = relaxed()
    exact = (weight / steps).clamp(*code_range(4))
    torch.testing.assert_close(found(), exact, rtol=0, atol=2e-5)
    assert torch.equal(found.decided(), exact.round())


def test_a_decided_rounding_is_under_no_pressure_and_half_a_code_under_all_of_it():
    found, _, _ = relaxed()
    with torch.no_grad():
        found.logits[0], found.logits[1], found.logits[2] = -9.0, 9.0, 0.0
    pressure = found.pressure(2.0)
    assert torch.equal(pressure[:2], torch.zeros(2, 8))
    assert torch.equal(pressure[2], torch.ones(8))
    assert torch.equal(found.decided()[0], found.below[0])
    assert torch.equal(found.decided()[1], found.below[1] + 1)


def test_gradients():
    found, _, _ = relaxed(dtype=torch.float64)
    logits = found.logits.detach().clamp(-2, 2).requires_grad_()  # away from both ends

    def loss(logits):
        parts = {"logits": logits}
        codes = torch.func.functional_call(found, parts)
        stretched = torch.sigmoid(logits) * 1.2 - 0.1
        return codes.square() + (1 - (2 * stretched - 1).abs().pow(3))

    def ours(logits):
        codes = torch.func.functional_call(found, {"logits": logits})
        share = codes - found.below
        return codes.square() + (1 - (2 * share - 1).abs().pow(3))

    assert torch.autograd.gradcheck(ours, (logits,))
    torch.testing.assert_close(ours(logits), loss(logits))
