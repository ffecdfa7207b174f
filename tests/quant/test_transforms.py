import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.quant.transforms import (
    fitting_block,
    fold_input,
    fold_output,
    random_signs,
    unfold_input,
)
from qvit_kernels.reference import BlockTransform, block_transform


@pytest.mark.parametrize(
    ("width", "wanted", "block"),
    [
        (192, 64, 64),
        (768, 32, 32),
        (100, 64, 50),
        (1152, 128, 128),
        (720, 64, 48),
        (7, 64, 7),
        (64, 0, 0),
    ],
)
def test_block_fits_and_prefers_hadamard(width, wanted, block):
    assert fitting_block(width, wanted) == block


@given(width=st.integers(1, 400), wanted=st.integers(1, 128))
def test_block_always_divides(width, wanted):
    block = fitting_block(width, wanted)
    assert 1 <= block <= wanted
    assert width % block == 0


@given(width=st.sampled_from([32, 48, 50, 96, 100]), wanted=st.sampled_from([16, 32, 64]))
def test_folding_undoes_the_transform(width, wanted):
    generator = torch.Generator().manual_seed(width)
    transform = BlockTransform(random_signs(width, generator), fitting_block(width, wanted))
    x, weight = torch.randn(5, width), torch.randn(7, width)
    folded = block_transform(x, transform) @ fold_input(weight, transform).T
    torch.testing.assert_close(folded, x @ weight.T, rtol=1e-4, atol=1e-4)
    back = unfold_input(fold_input(weight, transform).double(), transform)
    torch.testing.assert_close(back.float(), weight, rtol=1e-5, atol=1e-6)


def test_output_folding_transforms_the_product():
    generator = torch.Generator().manual_seed(0)
    transform = BlockTransform(random_signs(32, generator), 16)
    x, weight, bias = torch.randn(5, 20), torch.randn(32, 20), torch.randn(32)
    folded_weight, folded_bias = fold_output(weight, bias, transform)
    torch.testing.assert_close(
        x @ folded_weight.T + folded_bias,
        block_transform(x @ weight.T + bias, transform),
        rtol=1e-4,
        atol=1e-5,
    )
