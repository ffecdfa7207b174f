import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.quant.observers import OBSERVERS, observe
from qvit.quant.quantizers import Quantizer
from qvit.quant.schemes import Granularity, Mode, Scheme
from qvit_kernels import reference

TOKENS = Granularity.TOKEN


def scheme(**changes) -> Scheme:
    return Scheme(**{"bits": 4, "granularity": Granularity.TENSOR, "mode": Mode.STATIC, **changes})


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from([Granularity.TENSOR, TOKENS, Granularity.GROUP]),
)
@settings(deadline=None)
def test_error_is_at_most_half_a_step(bits, symmetric, granularity):
    group = 8 if granularity is Granularity.GROUP else 0
    dynamic = Scheme(bits=bits, granularity=granularity, symmetric=symmetric, group=group)
    x = torch.randn(3, 5, 16)
    step = (x.amax() - x.amin()).clamp_min(2 * x.abs().amax()) / (
        dynamic.codes[1] - dynamic.codes[0]
    )
    assert (Quantizer(dynamic)(x) - x).abs().max() <= 0.505 * step


def test_dynamic_rows_are_the_references():
    x = torch.randn(4, 6, 32)
    quantizer = Quantizer(Scheme(bits=8, granularity=TOKENS))
    codes, scale = reference.quantize_rows(x, 8)
    assert torch.equal(quantizer(x), codes * scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("granularity", "scales"),
    [(Granularity.TENSOR, 1), (Granularity.CHANNEL, 16), (Granularity.GROUP, 2)],
)
def test_static_ranges_stay_as_calibrated(granularity, scales, symmetric):
    group = 8 if granularity is Granularity.GROUP else 0
    quantizer = Quantizer(scheme(granularity=granularity, symmetric=symmetric, group=group))
    x = torch.randn(3, 5, 16)
    quantizer.calibrate(x)
    assert quantizer.scale.numel() == scales
    assert quantizer(100 * x).abs().max() <= 2 * x.abs().max()


def test_static_heads_have_one_scale_each_for_any_batch():
    quantizer = Quantizer(scheme(granularity=Granularity.HEAD))
    quantizer.calibrate(torch.randn(4, 3, 10, 8) * torch.tensor([1.0, 10, 100]).view(3, 1, 1))
    assert quantizer.scale.shape == (1, 3, 1, 1)
    assert quantizer.scale[0, 2] > 5 * quantizer.scale[0, 1] > 25 * quantizer.scale[0, 0]
    assert quantizer(torch.randn(2, 3, 7, 8)).shape == (2, 3, 7, 8)


def test_calibrated_state_loads_into_a_new_quantizer():
    first, second = (Quantizer(scheme(mode=Mode.LEARNED, symmetric=False)) for _ in range(2))
    x = torch.randn(4, 16)
    first.calibrate(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_affine_grid_uses_its_codes_for_what_is_there():
    x = torch.rand(4, 100)
    errors = {}
    for symmetric in (True, False):
        quantizer = Quantizer(scheme(symmetric=symmetric))
        quantizer.calibrate(x)
        errors[symmetric] = (quantizer(x) - x).square().mean()
    assert errors[False] < 0.3 * errors[True]
    assert quantizer(torch.zeros(1, 100)).abs().max() == 0


@pytest.mark.parametrize("mode", [Mode.STATIC, Mode.LEARNED])
def test_uncalibrated_is_an_error(mode):
    with pytest.raises(RuntimeError, match="call calibrate"):
        Quantizer(scheme(mode=mode))(torch.randn(2, 2))
    with pytest.raises(ValueError, match="nothing to calibrate"):
        Quantizer(scheme(mode=Mode.DYNAMIC)).calibrate(torch.randn(2, 2))


def test_learned_scale_has_lsqs_gradient():
    quantizer = Quantizer(scheme(mode=Mode.LEARNED))
    x = torch.tensor([[-9.0, -1.3, 0.2, 2.6]])
    quantizer.scale.data = torch.tensor([[1.0]])
    quantizer.zero_point.data = torch.zeros(1, 1)
    quantizer(x).sum().backward()
    # inside the range: rint(x) - x; below it: the smallest code; all by 1 / sqrt(4 * 7)
    expected = (-8 + (-1 + 1.3) + (0 - 0.2) + (3 - 2.6)) / (4 * 7) ** 0.5
    assert quantizer.scale.grad is not None
    torch.testing.assert_close(quantizer.scale.grad, torch.tensor([[expected]]))
    assert quantizer.zero_point.grad is None


def test_learned_zero_point_learns():
    quantizer = Quantizer(scheme(mode=Mode.LEARNED, symmetric=False, bits=2))
    x = torch.rand(64, 8) * 3 + 5
    quantizer.calibrate(torch.rand(64, 8))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    before = (quantizer(x) - x).square().mean()
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean() < 0.2 * before


def test_observers_trade_range_for_resolution():
    x = torch.cat([torch.randn(9_999), torch.tensor([40.0])]).view(1, -1)
    ranges = {o: observe(x, (0, 1), scheme(), o)[1] for o in OBSERVERS}
    assert ranges["minmax"] == 40
    assert ranges["percentile"] < 5
    assert ranges["mse"] < 15
    assert observe(-x, (0, 1), scheme(), "percentile")[0] > -5
    errors = {}
    for name in ("minmax", "mse"):
        quantizer = Quantizer(scheme(), observer=name)
        quantizer.calibrate(x)
        errors[name] = (quantizer(x) - x).square().mean()
    assert errors["mse"] < errors["minmax"]
    with pytest.raises(ValueError, match="expected one of minmax"):
        observe(x, (0, 1), scheme(), "entropy")
