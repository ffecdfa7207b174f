import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit import zoo
from qvit.distillation.inundation import changed_share, inundate, take_codes
from qvit.distillation.schedule import crossing_share, drops, learning_rate
from qvit.distillation.trainer import Trainer
from qvit.models.networks import read_network
from qvit.models.student import IntegerWeight
from qvit.models.watching import FloatTeacher
from qvit.quant.static_weights import WeightQuantizer
from tests.distillation.students import (
    TinyStudent,
    TinyTeacher,
    quick,
    simulated_student,
    small_vit,
    static_student,
    tiny_pool,
)
from tests.support import images_for


def weight_of(values, bits=4):
    parameter = torch.nn.Parameter(values.clone())
    return IntegerWeight("w", parameter, WeightQuantizer(bits).codes)


def cross(weight, step, share, **options):
    """A step of a weight whose scale has not moved."""
    return inundate(weight, take_codes([weight])[0], step, share, **options)


def crossed(weight, before, delta, alpha):
    """One candidate, the obvious way."""
    codes = weight.codes(torch.stack((before, before + alpha * delta)))
    return float((codes[0] != codes[1]).float().mean())


@given(st.integers(0, 1000), st.floats(1e-9, 1e-2), st.sampled_from([1e-3, 1e-2, 0.1]))
@settings(deadline=None, max_examples=40)
def test_enough_integers_change_or_the_cap_is_hit(seed, length, share):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(16, 40, generator=generator)
    step = length * torch.randn(16, 40, generator=generator)
    weight = weight_of(before)
    found = cross(weight, step, share, cap=128, bisections=5)
    assert found.share == pytest.approx(crossed(weight, before, step, found.alpha), abs=1e-6)
    assert found.plain == pytest.approx(crossed(weight, before, step, 1.0), abs=1e-6)
    assert torch.equal(weight.parameter.detach(), before + found.alpha * step)
    if found.capped:
        assert found.alpha == 128
        assert found.share < share
    else:
        assert found.share >= share
        assert 1 <= found.alpha <= 128


def test_a_step_that_is_long_enough_is_taken_as_it_is():
    before, step = torch.randn(8, 30), torch.randn(8, 30)
    weight = weight_of(before)
    assert cross(weight, step, 0.01, cap=128, bisections=5).alpha == 1.0
    assert torch.equal(weight.parameter, before + step)


def test_bisection_comes_near_the_least_factor():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(64, 64, generator=generator)
    step = 1e-4 * torch.randn(64, 64, generator=generator)
    weight = weight_of(before)
    least = next(
        a
        for a in torch.linspace(1, 4096, 20000).tolist()
        if crossed(weight, before, step, a) >= 0.02
    )
    found = cross(weight, step, 0.02, cap=4096, bisections=12)
    assert found.alpha == pytest.approx(least, rel=0.05)  # it stops within 1 % of the share


def test_a_step_of_nothing_hits_the_cap():
    weight = weight_of(torch.randn(4, 10))
    found = cross(weight, torch.zeros(4, 10), 0.1, cap=100.0, bisections=5)
    assert found.capped
    assert found.alpha == 100


def test_steps_below_the_last_bit_of_a_weight_are_lengthened():
    before = torch.randn(16, 40)
    step = 1e-12 * torch.randn(16, 40)
    assert torch.equal(before + step, before)
    found = cross(weight_of(before), step, 0.05, cap=2.0**50, bisections=5)
    assert found.share >= 0.05


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_with_a_share_that_is_always_reached_steps_are_the_optimisers_own(optimiser, decay):
    pool, students = tiny_pool(), []
    for share in (0.0, 1e-9):
        settings = quick(
            "kl-classes", lr=0.05, optimiser=optimiser, weight_decay=decay, inundation=share
        )
        trainer = Trainer(TinyTeacher(), TinyStudent(), settings, 10)
        found = [trainer.step(*pool.take(torch.arange(8))) for _ in range(2)]
        students.append(trainer.student.state_dict())
    assert found[-1]["alpha"] == 1
    for name in students[0]:
        assert torch.allclose(students[0][name], students[1][name], atol=1e-3), name


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_every_step_of_a_run_crosses_enough(optimiser):
    pool = tiny_pool()
    settings = quick("ait", lr=1e-3, inundation=0.05, inundation_cap=2.0**20, optimiser=optimiser)
    trainer = Trainer(TinyTeacher(), TinyStudent(), settings, 12)
    for step in range(12):
        images, labels = pool.take(torch.arange(4) + step)
        before = take_codes(trainer.student.integer_weights())
        found = trainer.step(images, labels)
        assert found["capped"] == 0
        assert found["least_changed"] >= found["share"]
        measured = changed_share(trainer.student.integer_weights(), before)
        assert found["changed"] == pytest.approx(measured, abs=1e-6)
        assert found["plain_changed"] <= found["changed"]


def integers(student):
    """Of every weight, as they are now, and as no helper of the trainer's counts them."""
    return [w.codes(w.parameter.detach()[None])[0].clone() for w in student.integer_weights()]


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.02])
def test_integers_that_change_with_their_scale_count(share):
    """Scales of qvit's own scheme are trained: a step moves them before the weights are lengthened."""
    vit = small_vit()
    student = simulated_student(vit)
    scales = [p for name, p in student.named_parameters() if name.endswith("weight_scale")]
    settings = quick("kl", lr=0.02, inundation=share, inundation_cap=2.0**20)
    trainer = Trainer(FloatTeacher(vit), student, settings, 4)
    for _ in range(4):
        old, grids = integers(student), [s.detach().clone() for s in scales]
        found = trainer.step(images_for(vit, 4), measure=True)
        assert not any(torch.equal(s, g) for s, g in zip(scales, grids, strict=True))
        moved = [a != b for a, b in zip(integers(student), old, strict=True)]
        total = sum(int(m.sum()) for m in moved) / sum(m.numel() for m in moved)
        assert found["changed"] == pytest.approx(total, abs=1e-6)
        assert found["changed"] > 0
        if share:
            shares = [float(m.float().mean()) for m in moved]
            assert found["capped"] == 0
            assert found["least_changed"] == pytest.approx(min(shares), abs=1e-6)
            assert min(shares) >= found["share"]
            assert found["alpha"] >= 1


def test_only_weights_are_lengthened_and_momentum_is_not():
    pool = tiny_pool()
    trainers = [
        Trainer(TinyTeacher(), TinyStudent(), quick("ait", lr=1e-5, inundation=p), 10)
        for p in (0.0, 0.1)
    ]
    for trainer in trainers:
        trainer.step(*pool.take(torch.arange(8)))
    plain, inundated = (t.student.state_dict() for t in trainers)
    assert torch.equal(plain["first.bias"], inundated["first.bias"])
    assert not torch.equal(plain["first.weight"], inundated["first.weight"])
    buffers = [t.state_dict()["optimiser"]["state"] for t in trainers]
    for key in buffers[0]:
        assert torch.equal(buffers[0][key]["momentum_buffer"], buffers[1][key]["momentum_buffer"])


def test_schedules_keep_their_shape_at_any_length():
    settings = quick("ait", lr=1.0)
    for steps in (8, 100, 4000):
        at = [
            drops(int(steps * share), steps, settings) for share in (0, 0.2, 0.25, 0.5, 0.8, 0.99)
        ]
        assert at == [0, 0, 1, 2, 3, 3]
        assert learning_rate(steps - 1, steps, settings) == pytest.approx(1e-3)
        assert crossing_share(steps - 1, steps, settings) == pytest.approx(1e-7)
    cosine = quick("maskaq", lr=1.0, lr_final=0.01)
    rates = [learning_rate(i, 100, cosine) for i in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.slow
def test_the_search_costs_less_than_half_a_step():
    """Least processor time of several steps in turns, so that a busy machine does not decide."""
    vit = read_network(zoo.load(source := zoo.resolve("demo_vit")), source.pretrained_cfg)
    images, spent, alphas = images_for(vit, 16), {0.0: [], 1e-3: []}, []
    trainers = {
        share: Trainer(FloatTeacher(vit), static_student(vit), quick("ait", inundation=share), 100)
        for share in spent
    }
    for _ in range(4):
        for share, trainer in trainers.items():
            start = time.process_time()
            found = trainer.step(images)
            spent[share].append(time.process_time() - start)
            alphas += [found["alpha"]] if share else []
    assert min(alphas) > 1  # there was something to search for
    assert min(spent[1e-3]) < 1.5 * min(spent[0.0])
