"""Each method's terms on the views it shows, from what the network computed."""

import math

import pytest
import torch

from benchmarks.published_psaq import published_loss
from qvit.synthesis.loop import look, optimise
from qvit.synthesis.losses import (
    class_distance,
    inter_head_distance,
    prior_map_distance,
    total_variation,
)
from qvit.synthesis.measures import measure
from qvit.synthesis.mimiq import HeadSimilarity
from qvit.synthesis.noise import draw_noise
from qvit.synthesis.objective import Outcome
from qvit.synthesis.psaq import PatchSimilarity
from qvit.synthesis.sardfq import SemanticRegions
from tests.synthesis.settings import batch_of, demo, small, teacher

CPU = torch.device("cpu")
METHODS = {"psaq": PatchSimilarity, "mimiq": HeadSimilarity, "sardfq": SemanticRegions}


def prepared(method, count=3, progress=0.0, **changes):
    settings = small(method, **changes)
    batch = batch_of(settings, count)
    pixels = draw_noise(batch)
    objective = METHODS[method](batch, CPU)
    outcomes = [
        look(teacher(), view, None, "float32") for view in objective.views(pixels, progress)
    ]
    return settings, pixels, objective, outcomes


def test_psaq_is_the_published_loss():
    """Of the algorithm as published, on timm's model, every tensor of it in memory."""
    from qvit import zoo

    settings, pixels, objective, (outcome,) = prepared("psaq", 4)
    terms = objective.terms(pixels, [outcome])
    ours = sum(getattr(settings, name) * value for name, value in terms.items())
    with torch.no_grad():
        theirs = published_loss(
            zoo.load(demo()), outcome.view.images, objective.labels, objective.smoothness
        )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert abs(ours.item()) > 1


def test_mimiq_sums_its_terms_over_blocks():
    _, pixels, objective, (outcome,) = prepared("mimiq")
    terms = objective.terms(pixels, [outcome])
    blocks = [inter_head_distance(record.scores()) for record in outcome.records]
    assert len(blocks) == 6
    assert terms["attention"].item() == pytest.approx(sum(blocks).item() / 6, rel=1e-6)
    assert terms["classes"] == class_distance(outcome.logits, objective.labels)
    expected = total_variation(pixels, 1 / math.sqrt(2))
    assert terms["smoothness"].item() == pytest.approx(expected.item())


def test_mimiq_shows_varied_images_that_calm_down():
    _, pixels, objective, (outcome,) = prepared("mimiq", colour_jitter=0.0, shift=0)
    early = outcome.view.images - pixels
    late = objective.views(pixels, 0.999)[0].images - pixels
    assert early.std() > 0.2
    assert late.std() < 0.01
    assert early.flatten(2).std(-1).max() < 1e-6  # one number a channel


def test_rolls_double_in_the_second_half():
    reach = {}
    for progress in (0.49, 0.5):
        objective = METHODS["psaq"](batch_of(small("psaq", shift=56)), CPU)
        pixels = torch.zeros(2, 3, 64, 64)
        placements = [objective.views(pixels, progress)[0].placement for _ in range(200)]
        assert all(p.rows == p.columns for p in placements)
        reach[progress] = max(abs(p.rows) for p in placements)
    assert reach == {0.49: 16, 0.5: 32}


def test_sardfq_regions_lie_apart_and_are_their_images_pixels():
    _, pixels, objective, outcomes = prepared("sardfq", 12)
    assert 12 < len(objective.regions) < 48
    for one in objective.regions:
        assert one.top >= 0
        assert one.top + one.height <= 64
        assert min(one.height, one.width) >= 16
        for other in objective.regions:
            if other is not one and other.image == one.image:
                apart = (
                    one.top + one.height <= other.top
                    or other.top + other.height <= one.top
                    or one.left + one.width <= other.left
                    or other.left + other.width <= one.left
                )
                assert apart
    marked = torch.zeros_like(pixels).requires_grad_()
    enlarged = objective.views(marked, 0.0)[1].images
    assert enlarged.shape[1:] == (3, 64, 64)
    first = objective.regions[0]
    (gradient,) = torch.autograd.grad(enlarged[0].sum(), marked)
    moved = gradient[first.image, 0] != 0
    assert moved[first.top : first.top + first.height, first.left : first.left + first.width].all()
    assert moved.sum() == first.height * first.width
    assert (gradient.abs().amax((1, 2, 3)) > 0).sum() == 1
    assert len(outcomes) == 2


def test_sardfq_wants_the_classes_of_all_regions():
    _, _, objective, _ = prepared("sardfq", 8)
    for image, soft in enumerate(objective.labels):
        wanted = {r.label for r in objective.regions if r.image == image}
        likely = set((soft > 20 * soft.median()).nonzero().flatten().tolist())
        assert likely == wanted or (not wanted and len(likely) == 1)
    for row, region in enumerate(objective.regions):
        assert objective.targets[1][row].argmax() == region.label


def test_sardfq_leads_the_second_half_of_the_blocks_to_its_maps():
    _, pixels, objective, outcomes = prepared("sardfq", 4)
    found = objective.terms(pixels, outcomes)
    total = 0.0
    views = [4, len(objective.regions)]
    for outcome, maps, count in zip(outcomes, objective.maps, views, strict=True):
        for block in (3, 4, 5):
            attention = outcome.records[block].attention_to_patches()
            distance = prior_map_distance(attention, maps[block])
            total += count / sum(views) * (block + 1) / 6 * distance.item()
    assert found["attention"].item() == pytest.approx(total, rel=1e-5)
    soft = [
        class_distance(o.logits, t).item() for o, t in zip(outcomes, objective.targets, strict=True)
    ]
    mean = sum(n * value for n, value in zip(views, soft, strict=True)) / sum(views)
    assert found["classes"].item() == pytest.approx(mean, rel=1e-5)


def test_sardfq_without_regions_shows_whole_images_only():
    _, pixels, objective, outcomes = prepared("sardfq", regions=0)
    assert len(outcomes) == 1
    assert set(objective.terms(pixels, outcomes)) == {"attention", "classes", "smoothness"}


@pytest.mark.parametrize("method", METHODS)
def test_terms_of_no_weight_are_not_computed(method):
    _, pixels, objective, outcomes = prepared(method, attention=0.0, smoothness=0.0)
    assert set(objective.terms(pixels, outcomes)) == {"classes"}
    blind = [Outcome(o.view, o.logits, (), None) for o in outcomes]
    assert set(objective.terms(pixels, blind)) == {"classes"}


@pytest.mark.parametrize(
    ("method", "name", "better"),
    [("psaq", "patch_entropy", 1), ("mimiq", "head_distance", -1)],
)
def test_a_method_moves_the_measure_it_is_about(method, name, better):
    settings = small(method, iterations=40, attention=10.0, classes=0.0, colour_jitter=0.0)
    batch = batch_of(settings, 4)
    start = draw_noise(batch)
    found = optimise(
        teacher(), METHODS[method](batch, CPU), start, settings, every=30, sample=lambda *_: None
    )
    before, after = measure(teacher(), start)[name], measure(teacher(), found)[name]
    assert better * (after - before) > 0.03
