"""Hard constraints on problems whose answers are known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvit.search.hdx import HardConstraints, correction


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_gradient_that_descends_already_is_kept():
    assert not correction(vector(1, 2), vector(1, 0)[None], vector(0.5)).any()


def test_one_constraint_is_met_with_equality():
    g, c = vector(-3, 1), vector(2, 1)
    m = correction(g, c[None], vector(0.25))
    assert torch.allclose((g + m) @ c, vector(0.25))
    assert torch.allclose(m, (0.25 - g @ c) / (c @ c) * c)


def test_a_second_constraint_that_the_first_corrects_costs_nothing():
    g, slopes = vector(-1, 0), torch.stack([vector(1, 0), vector(2, 0)])
    m = correction(g, slopes, vector(1e-3, 1e-3))
    assert torch.allclose(g + m, vector(1e-3, 0))


numbers = st.floats(-3, 3).map(lambda v: round(v, 3))


@given(
    st.lists(numbers, min_size=4, max_size=4),
    st.lists(st.lists(st.floats(0.1, 3), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(0, 1000),
)
def test_no_smaller_correction_does(g, slopes, seed):
    g, slopes = vector(*g), torch.tensor(slopes, dtype=torch.float64)
    margins = torch.full((len(slopes),), 1e-2, dtype=torch.float64)
    m = correction(g, slopes, margins)
    assert (slopes @ (g + m) >= margins - 1e-6).all()
    torch.manual_seed(seed)  # others that do, found by walking from somewhere into what is allowed
    other = m + 0.3 * torch.randn(200, 4, dtype=torch.float64)
    allowed = ((g + other) @ slopes.T >= margins).all(1)
    assert (other[allowed].norm(dim=1) >= m.norm() - 1e-6).all()


def test_slopes_that_contradict_each_other():
    with pytest.raises(ValueError, match="oppose"):
        correction(vector(0, 0), torch.stack([vector(1, 0), vector(-1, 0)]), vector(1, 1))


def test_margins_grow_while_violated_and_start_anew():
    constraints = HardConstraints(2, margin=0.1, growth=0.5)
    slopes = torch.eye(2, dtype=torch.float64)
    for _ in range(2):
        constraints.steer(vector(0, 0), [1.0, -1.0], slopes)
    assert constraints.margins.tolist() == pytest.approx([0.1 * 1.5**2, 0.1])
    constraints.steer(vector(0, 0), [0.0, -1.0], slopes)
    assert constraints.margins.tolist() == [0.1, 0.1]


def descend(target, normals, bounds, steps=1500, lr=2e-3):
    """Minimises |x - target|^2 subject to <normal, x> <= bound, from the origin."""
    x = torch.zeros_like(target)
    constraints = HardConstraints(len(bounds))
    for _ in range(steps):
        violations = (normals @ x / bounds - 1).tolist()
        x = x - lr * constraints.steer(2 * (x - target), violations, normals / bounds[:, None])
    return x


@pytest.mark.parametrize(
    ("normals", "bounds", "answer"),
    [
        ([[1, 1, 0]], [2], (1.5, 0.5, 1)),  # the projection on a plane
        ([[1, 0, 0], [0, 0, 1]], [1, 0.5], (1, 2, 0.5)),  # two of one variable each
        ([[1, 0, 0], [1, 1, 0]], [1, 2], (1, 1, 1)),  # a corner
        ([[1, 0, 0], [1, 1, 1]], [10, 3], (2, 1, 0)),  # one that is never met
        ([[1, 1, 1]], [100], (3, 2, 1)),  # none that matters
    ],
)
def test_descent_ends_at_the_answer(normals, bounds, answer):
    normals, bounds = torch.tensor(normals, dtype=torch.float64), vector(*bounds)
    found = descend(vector(3, 2, 1), normals, bounds)
    assert torch.allclose(found, vector(*answer), atol=0.02)
    # beyond a bound by no more than the one free step that crossed it
    assert (normals @ found <= bounds + 2e-3 * 2 * 4).all()
