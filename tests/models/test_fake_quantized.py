"""The execution to train by: the simulated one's values, step by step, and its gradients without those of scales."""

import pytest
import torch

from qvit.models.fake_quantized import FakeQuantized, HeadValues
from qvit.models.simulated import Simulated
from qvit_kernels.reference import TINY, Quantized, Weight, block_transform
from tests.executions import both
from tests.models.test_executions import HEADS, RECIPES
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
            for theirs, ours in zip(expected, found, strict=True):
                assert _near(ours.scale, theirs.scale)
                self._compare(theirs, ours.values)
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
    units = 2 if expected.dtype == torch.bfloat16 else 64
    bound = units * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool(((found - expected).abs() <= bound).all())


def _translated(arguments, step):
    if step == "attention":
        return [*map(_heads, arguments[:3]), *arguments[3:]]
    return [a.values() if isinstance(a, Quantized) else a for a in arguments]


def _heads(x):
    return HeadValues(x.values(), x.scale)


def _compared(shape, recipe):
    simulated, _ = both(float_vit(shape), {**RECIPES, **HEADS}[recipe])
    pair = Beside()
    with torch.no_grad():
        simulated(images_for(simulated), pair)
    return pair.compared


@pytest.mark.parametrize("recipe", [*RECIPES, *HEADS])
def test_every_step_has_the_values_of_the_simulated_one(recipe):
    assert _compared("three heads", recipe) == 1 + 2 * 9 + 2


# blocks that are no power of two, a rotation of Q and K that is not folded, a prefix of several tokens
@pytest.mark.parametrize("recipe", ["W4A4", "W3A3"])
@pytest.mark.parametrize("shape", ["odd widths", "QK-norm", "registers"])
def test_steps_of_other_shapes(shape, recipe):
    assert _compared(shape, recipe) == 1 + 2 * 9 + 2


def test_tokens_of_zeros_have_scales_like_any_other():
    simulated, _ = both(float_vit("three heads"), RECIPES["W4A4"])
    attn = simulated.get_submodule("blocks.0.attn")
    codes, scale = torch.randint(-7, 8, (3, 2, 3, 17, 32)).float(), torch.rand(3, 2, 3, 17, 1)
    codes[2, :, :, 5] = 0
    scale[2, :, :, 5] = TINY
    q, k, v = (Quantized(c, s) for c, s in zip(codes, scale, strict=True))
    expected = Simulated().attend(q, k, v, attn)
    found = FakeQuantized().attend(_heads(q), _heads(k), _heads(v), attn)
    assert _near(found, expected)


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
        gradients = {n: p.grad for n, p in simulated.named_parameters() if p.grad is not None}
        found.append({name: gradient.clone() for name, gradient in gradients.items()})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        if name.endswith("weight_scale"):  # sums of errors of rounding, see the next test
            assert found[1][name].abs().sum() > 0, name
        else:
            assert (found[1][name] - expected).norm() < 0.05 * expected.norm(), name


@pytest.mark.parametrize("recipe", ["W4A4", "W3A3"])
def test_a_linear_learns_weights_scales_and_bias_as_the_simulated_one(recipe):
    simulated, _ = both(float_vit(depth=1), RECIPES[recipe])
    fc2 = simulated.get_submodule("blocks.0.mlp.fc2")
    assert fc2.weight_multiplier is not None
    x = Simulated().quantize(torch.randn(2, 17, fc2.weight.shape[1]), fc2)
    parameters = fc2.weight, fc2.weight_scale, fc2.bias
    sent = torch.randn(2, 17, len(fc2.weight))
    expected = torch.autograd.grad(Simulated().product(x, fc2), parameters, sent)
    found = torch.autograd.grad(FakeQuantized().product(x.values(), fc2), parameters, sent)
    for one, other in zip(found, expected, strict=True):
        assert _near(one, other)


def test_what_is_put_on_a_grid_keeps_its_gradient():
    """It goes back through the transform, and through nothing else."""
    simulated, _ = both(float_vit(depth=1), RECIPES["W3A3"])
    fc2 = simulated.get_submodule("blocks.0.mlp.fc2")
    x = torch.randn(2, 17, fc2.weight.shape[1], requires_grad=True)
    sent = torch.randn_like(x)
    (found,) = torch.autograd.grad(FakeQuantized().quantize(x, fc2), x, sent)
    (expected,) = torch.autograd.grad(block_transform(x, fc2.transform), x, sent)
    assert _near(found, expected)


def test_values_of_a_weight_are_its_integers_times_its_scales():
    weight = Weight(
        torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([0.5]), torch.tensor([[2.0, -3.0]])
    )
    assert weight.values().tolist() == [[1.0, -2.0, -4.5, -6.0]]
    assert weight._replace(multiplier=None).values().tolist() == [[0.5, -1.0, 1.5, 2.0]]
