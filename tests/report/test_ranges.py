"""Ranges agree with what a hook on timm's own model sees, and the overlap with its definition."""

import pytest
import torch
from torch import nn

from qvit import zoo
from qvit.models.timm_import import read_model
from qvit.report.ranges import RangeRecorder, measure_overlap


@pytest.fixture(scope="module")
def timm_model(tiny_model):
    source = zoo.resolve(str(tiny_model))
    return zoo.load(source), source.pretrained_cfg


@torch.no_grad()
def test_ranges_are_those_that_hooks_see(timm_model):
    model, cfg = timm_model
    seen = {}

    def note(name):
        def hook(_, inputs):
            seen.setdefault(name, []).append(inputs[0].flatten(0, -2))

        return hook

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    images = torch.randn(5, 3, 32, 32)
    model(images)
    for handle in handles:
        handle.remove()

    vit = read_model(model, cfg)
    run = RangeRecorder(vit)
    for part in (images[:2], images[2:]):
        vit(part, run)
    assert set(run.ranges) == set(seen)
    assert len(seen) == 9
    for name, (low, high) in run.ranges.items():
        values = torch.cat(seen[name])
        torch.testing.assert_close(low, values.amin(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(high, values.amax(0), rtol=1e-4, atol=1e-4)


def slow_overlap(a, b):
    shares = []
    for (low, high), (other_low, other_high) in zip(a, b, strict=True):
        shared = max(0.0, min(high, other_high) - max(low, other_low))
        covered = (high - low) + (other_high - other_low) - shared
        shares.append(
            shared / covered if covered else float((low, high) == (other_low, other_high))
        )
    return sum(shares) / len(shares)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([(0, 1)], [(0, 1)], 1),
        ([(0, 1)], [(2, 3)], 0),
        ([(0, 2)], [(1, 3)], 1 / 3),
        ([(0, 4)], [(1, 2)], 1 / 4),
        ([(0, 1), (5, 5)], [(0, 1), (5, 5)], 1),
        ([(0, 1), (5, 5)], [(0, 1), (6, 6)], 1 / 2),
    ],
)
def test_overlap(a, b, expected):
    def ranges(rows):
        low, high = torch.tensor(rows, dtype=torch.float32).unbind(1)
        return {"head": (low, high)}

    found = measure_overlap(ranges(a), ranges(b))
    assert found["head"] == pytest.approx(expected)
    assert slow_overlap(a, b) == pytest.approx(expected)


def test_overlap_of_many_channels():
    a, b = torch.randn(50, 2).sort(1).values, torch.randn(50, 2).sort(1).values
    found = measure_overlap({"x": (a[:, 0], a[:, 1])}, {"x": (b[:, 0], b[:, 1])})
    assert found["x"] == pytest.approx(slow_overlap(a.tolist(), b.tolist()), abs=1e-6)
