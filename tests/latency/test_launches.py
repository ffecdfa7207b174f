"""What counts as a piece of work."""

import torch

from qvit.latency.floats import Runner
from qvit.latency.launches import count_launches


def test_views_are_no_work():
    x = torch.randn(4, 4)

    def call():
        return (x.view(2, 8).t() + 1).reshape(-1)[:3].mul(2)

    runner = Runner(lambda x: x, lambda x: x, lambda x: x, None, torch.nn.Identity())
    counted = count_launches(runner, call, None, "cpu", "eager")
    assert counted == 3  # add, the copy that reshape makes, mul
    assert count_launches(runner, call, None, "cpu", "compile") is None
