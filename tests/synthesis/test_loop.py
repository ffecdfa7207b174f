import math
from types import SimpleNamespace

import pytest
import torch

from qvit.models.floating import Float
from qvit.recipe import Synthesis
from qvit.synthesis.loop import NotFiniteError, learning_rate, look, optimise
from qvit.synthesis.noise import draw_noise, pixel_bounds
from qvit.synthesis.objective import View
from qvit.synthesis.psaq import PatchSimilarity
from tests.synthesis.settings import batch_of, small, teacher

CPU = torch.device("cpu")


def test_rates_of_psaq_are_two_rounds_of_warm_up_and_cosine():
    settings = Synthesis.preset("psaq")
    published = []
    for _ in range(2):
        for step in range(500):
            if step < 100:
                published.append(0.2 * (step + 1) / 100)
            else:
                published.append(0.5 * (1 + math.cos(math.pi * (step - 100) / 400)) * 0.2)
    assert [learning_rate(i, settings) for i in range(1000)] == pytest.approx(published)


def test_rates_of_mimiq_are_those_of_torch():
    settings = Synthesis.preset("mimiq", iterations=50)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=1e-3)
    for iteration in range(50):
        assert learning_rate(iteration, settings) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_rounds_that_do_not_divide_leave_the_rest_to_the_last():
    settings = Synthesis.preset("psaq", iterations=7, warmup=0.0)
    rates = [learning_rate(i, settings) for i in range(7)]
    assert [i for i, rate in enumerate(rates) if rate == 0.2] == [0, 3]
    assert all(rate > 0 for rate in rates)


class Towards:
    """Pixels towards a constant; the loss is nothing but the distance."""

    labels = torch.zeros(2, dtype=torch.long)

    def __init__(self, value, poison_at=None):
        self.value, self.poison_at, self.steps = value, poison_at, []

    def views(self, pixels, progress):
        self.steps.append(progress)
        return [View(pixels, None)]

    def terms(self, pixels, outcomes):
        distance = (pixels - self.value).square().mean()
        if len(self.steps) - 1 == self.poison_at:
            distance = distance * float("nan")
        return {"attention": distance, "classes": 0 * distance}


def run(objective, **changes):
    settings = small("mimiq", lr=0.1, **changes)
    samples = []
    start = draw_noise(batch_of(settings))
    found = optimise(
        teacher(), objective, start, settings, every=4, sample=lambda i, d: samples.append((i, d))
    )
    return found, samples, start


def test_pixels_go_where_the_loss_leads_and_stay_pixels():
    found, samples, start = run(Towards(0.25), iterations=90)
    assert (found - 0.25).abs().max() < 0.1
    assert [i for i, _ in samples] == [*range(0, 90, 4), 89]
    losses = [losses["loss"] for _, losses in samples]
    assert losses[-1] < 0.01 * losses[0]
    assert set(samples[0][1]) == {"loss", "attention", "classes"}
    assert start.abs().max() > 1  # noise is left as it was
    found, _, _ = run(Towards(9.0), iterations=60)
    low, high = pixel_bounds(teacher().config, CPU)
    assert torch.equal(found, high.expand_as(found))
    assert (low == -1).all()


def test_weights_of_terms_are_those_of_the_settings():
    _, (first, *_), _ = run(Towards(0.0), iterations=1, attention=3.0)
    assert first[1]["loss"] == pytest.approx(3 * first[1]["attention"])


def test_a_loss_that_is_not_finite_is_an_error_that_says_when():
    with pytest.raises(NotFiniteError) as caught:
        run(Towards(0.0, poison_at=3), iterations=9)
    assert caught.value.iteration == 3


def test_only_pixels_have_gradients():
    vit = teacher()
    run(Towards(0.0), iterations=1)
    assert not any(p.requires_grad or p.grad is not None for p in vit.parameters())


def test_bfloat16_is_near_float32_and_not_it():
    images = draw_noise(batch_of(small("mimiq")))
    view = View(images, None)
    with torch.no_grad():
        wide, narrow = (look(teacher(), view, None, p) for p in ("float32", "bfloat16"))
        assert torch.equal(wide.logits, teacher()(images, Float()))
    assert narrow.records[0].q.dtype == torch.bfloat16
    assert narrow.logits.dtype == torch.float32
    assert not torch.equal(wide.logits, narrow.logits)
    assert (wide.logits - narrow.logits).abs().max() < 0.1 * wide.logits.abs().max()


def test_both_precisions_lead_to_the_same_kind_of_image():
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = small("psaq", iterations=24, rounds=1, precision=precision)
        batch = batch_of(settings)
        losses = []
        optimise(
            teacher(), PatchSimilarity(batch, CPU), draw_noise(batch), settings,
            every=1, sample=lambda _, d, losses=losses: losses.append(d["loss"]),
        )  # fmt: skip
        found[precision] = SimpleNamespace(first=losses[0], last=losses[-1])
    assert found["bfloat16"].first == pytest.approx(found["float32"].first, rel=0.02)
    assert found["bfloat16"].last < 0.5 * found["bfloat16"].first
    assert found["bfloat16"].last == pytest.approx(found["float32"].last, rel=0.2)
