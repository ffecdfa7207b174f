"""Sensitivities that are measured choice by choice."""

import pytest
import torch

from benchmarks.searching.rivals import measure_sensitivities


def test_each_choice_is_measured_alone():
    """Costs of 1 / 4^bits, of the second choice ten times as much; one measurement is out of line."""
    asked = []

    def measure(bits):
        asked.append(bits.tolist())
        if bits.tolist() == [8, 3]:
            return 0.0  # fewer bits can only seem better
        return float((torch.tensor([1.0, 10.0]) / 4.0**bits).sum())

    losses = measure_sensitivities(measure, 2)
    assert len(asked) == 1 + 2 * 6
    assert all(bits.count(8) >= 1 for bits in asked)
    whole = measure(torch.tensor([8, 8]))
    assert losses[:, -1].tolist() == [whole, whole]
    assert losses[0].tolist() == pytest.approx([4.0**-b + 10 * 4.0**-8 for b in range(2, 9)])
    assert losses[1, 1] == losses[1, 2] == pytest.approx(4.0**-8 + 10 * 4.0**-4)
    assert losses[1, 0] == pytest.approx(4.0**-8 + 10 * 4.0**-2)
