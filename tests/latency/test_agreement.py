"""Agreement: every image is asked once, whatever the batch size, and counts."""

import pytest
import torch

from qvit.latency.agreement import answer, find_agreement
from qvit.latency.floats import Runner


@pytest.mark.parametrize(("images", "batch"), [(5, 1), (5, 5), (5, 2), (5, 128)])
def test_the_last_batch_is_filled_up(images, batch):
    """A model of one batch size that says of each image which class its first pixels name."""
    sizes = []

    def run(prepared):
        sizes.append(len(prepared))
        return prepared.flatten(1)[:, :7]

    pictures = torch.nn.functional.one_hot(torch.arange(images), 12).float().view(-1, 3, 2, 2)
    runner = Runner(lambda x: x, run, lambda out: out, None)
    assert answer(runner, pictures, batch, "cpu").tolist() == list(range(images))
    assert set(sizes) == {batch}


def test_agreement_is_the_share_of_equal_answers():
    assert find_agreement(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 75.0
    assert find_agreement(torch.tensor([1, 2]), torch.tensor([2, 1])) == 0.0
