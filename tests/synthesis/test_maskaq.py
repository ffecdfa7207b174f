"""MaskAQ's two terms against slow obvious versions, and the student in the loop."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from qvit import synthesis
from qvit.errors import UsageError
from qvit.models.static import with_static_quantizers
from qvit.models.student import Seen, Student
from qvit.models.vit_students import StaticStudent
from qvit.models.watching import WatchedFloat, watch
from qvit.recipe import Activations, Attention, Recipe, Static, Synthesis, Weights
from qvit.synthesis.loop import look, optimise
from qvit.synthesis.maskaq import (
    MaskedAlignment,
    class_scores,
    draw_focus,
    draw_rows,
    masked_difference,
    similarity_entropy,
)
from qvit.synthesis.noise import draw_noise
from tests.synthesis.settings import batch_of, demo, small, teacher

CPU = torch.device("cpu")


@cache
def student() -> Student:
    """The demo ViT at 4 bits, static, as far as calibration brings it."""
    recipe = Recipe(
        weights=Weights(bits=4, range="minmax"),
        activations=Activations(bits=4),
        attention=Attention(bits=4, softmax_bits=4),
        static=Static(activations="minmax"),
    )
    found = StaticStudent(with_static_quantizers(teacher(), recipe))
    found.calibrate(draw_noise(batch_of(small("noise"), 8)))
    return found


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_class_scores_are_means_over_heads():
    q, k = random(2, 3, 6, 4), random(2, 3, 6, 4, seed=1)
    found = class_scores(q, k, 2, True)
    for b in range(2):
        for p in range(4):
            slow = sum(float(q[b, h, 0] @ k[b, h, p + 2]) for h in range(3)) / 3
            assert found[b, p].item() == pytest.approx(slow, abs=1e-5)
    averaged = class_scores(q, k, 2, False)
    assert averaged[0, 0].item() == pytest.approx(
        sum(float(q[0, h, 2:].mean(0) @ k[0, h, 2]) for h in range(3)) / 3, abs=1e-5
    )


def test_what_is_compared_lies_among_the_largest():
    scores = [random(3, 20, seed=s) for s in range(2)]
    mean = sum(scores) / 2
    seen = torch.zeros(3, 20)
    for seed in range(40):
        chosen = draw_focus(scores, 0.5, 0.3, torch.Generator().manual_seed(seed))
        assert chosen.sum(1).tolist() == [7, 7, 7]
        seen += chosen
    for row, counts in zip(mean, seen, strict=True):
        best = set(row.topk(10).indices.tolist())
        assert set(counts.nonzero().flatten().tolist()) == best  # each of them at some time
    assert draw_focus(scores, 0.001, 0.9, torch.Generator()).sum(1).tolist() == [1, 1, 1]


def test_the_difference_is_its_definition():
    ours, theirs = ([random(2, 5, seed=s + t) for s in (0, 2)] for t in (0, 10))
    chosen = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    slow = sum(
        abs(ours[block][b, p] - theirs[block][b, p]) / 4 / 2
        for block in range(2) for b in range(2) for p in range(5) if chosen[b, p]
    )  # fmt: skip
    assert masked_difference(theirs, ours, chosen).item() == pytest.approx(slow.item(), rel=1e-6)


def test_the_entropy_is_its_definition():
    rows = random(2, 4, 6)
    slow = 0.0
    for each in rows:
        cosines = [F.cosine_similarity(a, b, dim=0) for a in each for b in each]
        mean = sum(cosines) / 16
        variance = sum((c - mean) ** 2 for c in cosines) / 16
        slow += 0.5 * math.log(2 * math.pi * math.e * (variance + 1e-8)) / 2
    assert similarity_entropy(rows).item() == pytest.approx(slow, rel=1e-5)


def test_rows_are_head_means_of_drawn_patches():
    q, k = random(2, 3, 8, 4).float(), random(2, 3, 8, 4, seed=1).float()
    found = draw_rows(q, k, 1, torch.Generator().manual_seed(0))
    scores = (q[:, :, 1:] @ k[:, :, 1:].transpose(-1, -2)).mean(1)
    for some, everything in zip(found, scores, strict=True):
        assert torch.allclose(some.sort(0).values, everything.sort(0).values, atol=1e-5)
    assert (
        draw_rows(random(1, 1, 100, 2), random(1, 1, 100, 2), 0, torch.Generator()).shape[1] == 64
    )


def test_gradients_are_right():
    chosen = torch.tensor([[True, False, True]])
    other = [random(1, 3, seed=9)]
    x = random(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: masked_difference(other, [s], chosen), (x,))
    rows = random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(similarity_entropy, (rows,))


class Itself(Student):
    """A student that has learned everything."""

    def forward(self, images) -> Seen:
        return watch(teacher(), images, WatchedFloat())


def test_a_perfect_student_leaves_nothing_to_align():
    settings = small("maskaq")
    batch = batch_of(settings)
    objective = MaskedAlignment(batch, CPU, Itself())
    pixels = draw_noise(batch)
    (view,) = objective.views(pixels, 0.0)
    outcome = look(teacher(), view, None, "float32")
    found = objective.terms(pixels, [outcome])
    assert set(found) == {"attention", "classes", "smoothness", "alignment", "balance"}
    assert found["alignment"].item() == pytest.approx(0, abs=1e-5)
    blocks = [(r.q, r.k) for r in outcome.records]
    assert all(q.shape[1] == 4 for q, _ in blocks)


@pytest.mark.parametrize("term", ["alignment", "balance"])
def test_each_term_moves(term):
    """Alone, and among the others with their published weights it is there."""
    weights = {
        "attention": 0.0,
        "classes": 0.0,
        "smoothness": 1e-9,
        "alignment": 0.0,
        "balance": 0.0,
    }
    changes = weights | {term: 1.0, "attention": 1e-9, "colour_jitter": 0.0, "colour_shift": 0.0}
    settings = small("maskaq", iterations=30, focus_last=0.5, **changes)
    batch, samples = batch_of(settings, 4), []
    optimise(
        teacher(), MaskedAlignment(batch, CPU, student()), draw_noise(batch), settings,
        every=29, sample=lambda _, losses: samples.append(losses),
    )  # fmt: skip
    first, last = samples
    assert last[term] < first[term] - 0.1 * abs(first[term])
    assert all(p.grad is None for p in student().parameters())


def test_whole_runs_know_their_student(tmp_path):
    settings = small("maskaq", images=2)
    with pytest.raises(UsageError, match="none was given"):
        synthesis.synthesize(demo(), settings, tmp_path / "none", seed=1, progress=False)
    for name in ("run", "again"):
        found = synthesis.synthesize(
            demo(), settings, tmp_path / name, seed=1, progress=False, student=student()
        )
    alone = synthesis.synthesize(
        demo(), small("maskaq", images=2, alignment=0.0), tmp_path / "alone", seed=1, progress=False
    )
    run, again = ((tmp_path / n / "shards" / "000000.safetensors") for n in ("run", "again"))
    assert run.read_bytes() == again.read_bytes()
    manifest = synthesis.open_images(tmp_path / "run").manifest
    assert any("a student of this model" in text for text in manifest["privacy"]["inputs"])
    assert manifest["run"]["student_sha256"]
    assert alone["fingerprint"] != found["fingerprint"]
    lines = list(synthesis.open_images(tmp_path / "run").log())
    assert all({"alignment", "balance"} <= set(line) for line in lines if "loss" in line)


def test_dropped_patches_and_a_student_exclude_each_other():
    with pytest.raises(UsageError, match="a student sees all patches"):
        Synthesis.preset("maskaq", sparse=0.3)
