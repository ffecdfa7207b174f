"""Losses take the level that is measured of each choice: exactly where it is, by a factor elsewhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.search.levels import lift

COUNT = 6


def told(seed: int) -> torch.Tensor:
    """Losses that fall fourfold a bit, of choices that differ by up to ten thousand."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (4 * torch.rand(COUNT, 1, generator=generator, dtype=torch.float64) - 6)
    return scales * 0.25 ** torch.arange(7, dtype=torch.float64)


def measured(true: torch.Tensor, asked: list[list[int]]):
    """Errors that add up, in another unit than losses, on top of what eight bits cause."""

    def error(bits: torch.Tensor) -> float:
        asked.append(bits.tolist())
        few = bits < 8
        return 0.3 + 7.0 * float(true[few, bits[few] - 2].sum())

    return error


@given(st.integers(0, 2**16))
def test_what_is_measured_takes_the_place_of_what_was_told(seed):
    losses, asked = told(seed), []
    generator = torch.Generator().manual_seed(seed)
    factors = 2 ** (torch.rand(COUNT, 3, generator=generator, dtype=torch.float64) - 0.5)
    factors[:, 1] *= losses[:, 1].sum() / (factors[:, 1] * losses[:, 1]).sum()  # which is kept
    true = losses.clone()
    true[:, :3] *= factors
    found = lift(losses, measured(true, asked))
    assert torch.allclose(found[:, :3], true[:, :3], rtol=1e-6)
    assert torch.allclose(found[:, 3:], losses[:, 3:] * factors[:, 2:], rtol=1e-6)
    # each choice alone, at two, three and four bits, and the model of eight
    assert len(asked) == 1 + 3 * COUNT
    assert all(sum(b < 8 for b in bits) == 1 for bits in asked[1:])
    assert {min(bits) for bits in asked[1:]} == {2, 3, 4}


@pytest.mark.parametrize("off", [1e-3, -1.0, 1e3])
def test_noise_lifts_nothing_more_than_four_times(off):
    """As of a choice that no logit hears of, measured below nothing or far above its loss."""
    losses, asked = told(0), []
    losses[2] = losses.min() / 100
    true = losses.clone()
    true[2] *= off
    found = lift(losses, measured(true, asked))
    assert torch.allclose(found[2], losses[2] * (4.0 if off > 1 else 0.25))
    others = [i for i in range(COUNT) if i != 2]
    assert torch.allclose(found[others], losses[others], rtol=1e-2)


def test_a_bit_more_costs_nothing_more():
    losses, asked = told(1), []
    true = losses.clone()
    true[0, 0] *= 0.25
    true[0, 1] *= 3
    found = lift(losses, measured(true, asked))
    assert (found[:, :-1] >= found[:, 1:]).all()


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan")])
def test_where_nothing_is_heard_of_losses_stay(level):
    losses = told(2)
    assert torch.equal(lift(losses, measured(level * losses, [])), losses)
