"""The execution to train by: the simulated one's values, step by step, and its gradients without those of scales."""

import pytest
import torch

from qvit.models.fake_quantized import FakeQuantized, Values
from qvit.models.simulated import Simulated
from qvit_kernels.reference import Quantized, Weight
from tests.executions import both
from tests.models.test_executions import RECIPES
from tests.support import SHAPES, float_vit, images_for


class Beside:
    """Runs each step in both executions on the simulated one's values, and compares what comes out."""

    def __init__(self):
        self.compared = 0

    def __getattr__(self, step):
        def run(*arguments, **named):
            expected = getattr(Simulated(), step)(*arguments, **named)
            found = getattr(FakeQuantized(), step)(*_translated(arguments, step), **named)
            self._compare(expected, found)
            return expected

        return run

    def _compare(self, expected, found):
        if isinstance(expected, tuple) and not isinstance(expected, Quantized):
            *others, v = found
            assert _near(v.scale, expected[-1].scale)
            for pair in zip(expected, (*others, v.values), strict=True):
                self._compare(*pair)
            return
        self.compared += 1
        if isinstance(expected, Quantized):
            values, steps = expected.values(), expected.scale.abs()
            steps = steps.repeat_interleave(values.shape[-1] // steps.shape[-1], -1)
            off = (found - values).abs() / steps
            assert off.max() < 1.01  # a value that is nearly a tie goes to the neighbouring code
            assert (off > 0.01).float().mean() < 2e-3
        else:
            assert _near(found, expected)


def _near(found, expected):
    bound = 64 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool(((found - expected).abs() <= bound).all())


def _translated(arguments, step):
    found = [a.values() if isinstance(a, Quantized) else a for a in arguments]
    if step == "attention":
        found[2] = Values(found[2], arguments[2].scale)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step_has_the_values_of_the_simulated_one(recipe):
    simulated, _ = both(float_vit("three heads"), RECIPES[recipe])
    pair = Beside()
    with torch.no_grad():
        simulated(images_for(simulated), pair)
    assert pair.compared == 1 + 2 * 9 + 2


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_runs_and_every_gradient_is_finite(shape):
    simulated, _ = both(float_vit(shape), RECIPES["W3A3"])
    images = images_for(simulated).requires_grad_()
    found = simulated(images, FakeQuantized())
    assert found.shape == simulated(images, Simulated()).shape
    found.square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    for name, parameter in simulated.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_eight_bits_have_the_gradients_of_the_simulated_execution():
    """What scales of activations add there is small where steps are."""
    simulated, _ = both(float_vit("LayerScale"), RECIPES["W8A8"])
    images = images_for(simulated)
    found = []
    for run in (Simulated(), FakeQuantized()):
        simulated.zero_grad()
        simulated(images, run).square().sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in simulated.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        if "scale" in name:  # sums of rounding errors, which no two executions share
            continue
        gradient = found[1][name]
        assert (gradient - expected).norm() < 0.05 * expected.norm(), name


def test_what_is_put_on_a_grid_keeps_its_gradient():
    simulated, _ = both(float_vit(depth=1), RECIPES["W3A3"])
    fc2 = simulated.get_submodule("blocks.0.mlp.fc2")
    x = torch.randn(2, 17, fc2.weight.shape[1], requires_grad=True)
    sent = torch.randn_like(x)
    FakeQuantized().quantize(x, fc2).backward(sent)
    transform = fc2.transform
    assert transform is not None
    blocks = sent.unflatten(
        -1, (-1, transform.block)
    )  # back through the transform, which is orthogonal
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad.unflatten(-1, (-1, transform.block)).norm(dim=-1), blocks.norm(dim=-1)
    )


def test_values_of_a_weight_are_its_integers_times_its_scales():
    weight = Weight(
        torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([0.5]), torch.tensor([[2.0, -3.0]])
    )
    assert weight.values().tolist() == [[1.0, -2.0, -4.5, -6.0]]
    assert weight._replace(multiplier=None).values().tolist() == [[0.5, -1.0, 1.5, 2.0]]
