import pytest
import torch

from qvit.synthesis.augmentation import Placement
from qvit.synthesis.loop import look, optimise
from qvit.synthesis.mimiq import HeadSimilarity
from qvit.synthesis.noise import draw_noise
from qvit.synthesis.objective import View
from qvit.synthesis.psaq import PatchSimilarity
from qvit.synthesis.sardfq import SemanticRegions
from qvit.synthesis.sparse import Patches, drop_steps
from tests.synthesis.settings import batch_of, small, teacher

CPU = torch.device("cpu")


def test_steps_are_the_published_ones():
    assert drop_steps(50, 4) == [50, 100, 200, 300]
    settings = small("psaq", iterations=4000, rounds=1, sparse=0.3)
    assert Patches(2, teacher().config, settings, CPU).steps == {50, 100, 200, 300}


def test_the_least_attended_patches_go_and_stay_gone():
    vit, settings = teacher(), small("psaq", sparse=0.3)
    images = draw_noise(batch_of(settings))
    patches = Patches(2, vit.config, settings, CPU)
    assert patches.chosen(Placement()) is None
    gone = torch.zeros(2, 64, dtype=torch.bool)
    left = 64
    with torch.no_grad():
        for _ in range(4):
            record = look(
                vit, View(images, Placement()), patches.chosen(Placement()), "float32"
            ).records[-1]
            attention = record.attention_to_patches().mean(1)
            before = patches.left.flatten(1).clone()
            patches.drop(record)
            left -= round(0.3 * left)
            now = patches.left.flatten(1)
            assert now.sum(1).tolist() == [left, left]
            assert not (now & gone).any()
            gone |= ~now
            for b in range(2):
                kept = now[b][before[b]]
                assert attention[b][kept].min() >= attention[b][~kept].max()
    chosen = patches.chosen(Placement(8, 0, False))
    assert chosen.shape == (2, left)
    expected = patches.left.roll(1, 1).flatten(1)
    assert torch.equal(torch.zeros_like(expected).scatter(1, chosen, value=True), expected)
    assert patches.chosen(None) is None  # a view that has other patches


@pytest.mark.parametrize("method", [PatchSimilarity, HeadSimilarity, SemanticRegions])
def test_every_method_leaves_dropped_patches_blank(method):
    name = {PatchSimilarity: "psaq", HeadSimilarity: "mimiq", SemanticRegions: "sardfq"}[method]
    settings = small(name, iterations=10, sparse=0.3)
    batch = batch_of(settings)
    found = optimise(
        teacher(), method(batch, CPU), draw_noise(batch), settings, every=5, sample=lambda *_: None
    )
    flat = found.view(2, 3, 8, 8, 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 64, -1)
    blank = (flat == 0).all(-1)
    assert blank.sum(1).tolist() == [49, 49]  # 64, 45, 31, 22, 15 are left
    assert (flat[~blank].std(-1) > 0.05).all()


def test_fewer_tokens_are_seen():
    settings = small("psaq", iterations=10, sparse=0.3)
    batch = batch_of(settings)
    objective, sizes = PatchSimilarity(batch, CPU), []
    terms = objective.terms
    objective.terms = lambda pixels, outcomes: (
        sizes.append(outcomes[0].records[0].q.shape[2]) or terms(pixels, outcomes)
    )
    optimise(teacher(), objective, draw_noise(batch), settings, every=5, sample=lambda *_: None)
    assert sizes[0] == 65
    assert sizes[-1] < 20
    assert sizes == sorted(sizes, reverse=True)
