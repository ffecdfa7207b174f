"""Each loss against a version that is slow and obvious."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvit.distillation.discrepancy import logit_discrepancy
from qvit.distillation.divergence import soft_divergence
from qvit.distillation.features import feature_distance
from qvit.distillation.heads import head_distance, patch_weights, structural_similarity
from qvit.distillation.objective import losses
from qvit.errors import UsageError
from qvit.models.student import Attended, Seen
from qvit.models.watching import FloatTeacher
from tests.distillation.students import quick, simulated_student, small_vit
from tests.support import images_for


def seen(blocks=2, prefix=1, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=generator)

    def attended():
        q, k, output = (draw(2, 3, 7 + prefix, 4) for _ in range(3))
        return Attended(q, k, output)

    return Seen(
        draw(2, 5),
        tuple(attended() for _ in range(blocks)),
        tuple(draw(2, 8, 6) for _ in range(blocks)),
        prefix,
    )


def obvious_divergence(teacher, student, tau):
    total = 0.0
    for t, s in zip(teacher.double(), student.double(), strict=True):
        p, q = torch.softmax(t / tau, 0), torch.softmax(s / tau, 0)
        total += sum(float(a * (math.log(a) - math.log(b))) for a, b in zip(p, q, strict=True))
    return tau**2 * total / len(teacher)


@pytest.mark.parametrize("tau", [1.0, 5.0, 20.0])
def test_divergence(tau):
    teacher, student = 3 * torch.randn(4, 6), 3 * torch.randn(4, 6)
    expected = obvious_divergence(teacher, student, tau)
    assert float(soft_divergence(teacher, student, tau)) == pytest.approx(expected, rel=1e-5)
    mean = float(soft_divergence(teacher, student, tau, over_classes=True))
    assert mean == pytest.approx(expected / 6, rel=1e-5)


@given(st.floats(-50, 50), st.floats(0.1, 30))
@settings(deadline=None)
def test_divergence_is_not_negative_and_ignores_what_all_logits_share(shift, tau):
    teacher, student = torch.randn(3, 5), torch.randn(3, 5)
    found = soft_divergence(teacher, student, tau)
    assert found >= -1e-5
    assert torch.allclose(found, soft_divergence(teacher + shift, student, tau), atol=1e-3)
    assert abs(float(soft_divergence(teacher, teacher, tau))) < 1e-4


def obvious_heads(teacher, student, focus, share):
    """One map after the other, moments as sums."""
    scores = []
    for t_block, s_block in zip(teacher.attention, student.attention, strict=True):
        t = t_block.output[:, :, teacher.prefix :].double()
        q = s_block.output[:, :, student.prefix :].double()
        for image in range(t.shape[0]):
            salience = [float(t[image, :, n].abs().mean()) for n in range(t.shape[2])]
            best = sorted(range(t.shape[2]), key=lambda n: -salience[n])
            chosen = set(best[: max(1, round(share * t.shape[2]))])
            w = [focus if n in chosen else 1.0 for n in range(t.shape[2])]
            w = [value / sum(w) for value in w]
            for head in range(t.shape[1]):
                for channel in range(t.shape[3]):
                    a, b = t[image, head, :, channel].tolist(), q[image, head, :, channel].tolist()
                    ma = sum(x * y for x, y in zip(w, a, strict=True))
                    mb = sum(x * y for x, y in zip(w, b, strict=True))
                    va = sum(x * (y - ma) ** 2 for x, y in zip(w, a, strict=True))
                    vb = sum(x * (y - mb) ** 2 for x, y in zip(w, b, strict=True))
                    c = sum(x * (y - ma) * (z - mb) for x, y, z in zip(w, a, b, strict=True))
                    scores.append((2 * c + 0.0009) / (va + vb + 0.0009))
    return 1 - sum(scores) / len(scores)


@pytest.mark.parametrize(("focus", "share"), [(1.0, 0.1), (2.0, 0.3), (5.0, 0.01)])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_head_distance(prefix, focus, share):
    teacher, student = seen(prefix=prefix), seen(prefix=prefix, scale=0.7, seed=1)
    found = float(head_distance(teacher, student, focus, share))
    assert found == pytest.approx(obvious_heads(teacher, student, focus, share), abs=1e-5)
    assert float(head_distance(teacher, teacher, focus, share)) == pytest.approx(0, abs=1e-6)


def test_prefix_tokens_do_not_count():
    teacher, student = seen(prefix=2), seen(prefix=2, seed=1)
    before = head_distance(teacher, student)
    for block in (*teacher.attention, *student.attention):
        block.output[:, :, :2] = 1e4
    assert head_distance(teacher, student) == before


def test_the_mean_of_a_map_does_not_count():
    """Luminance is left out."""
    teacher, student = seen(), seen(seed=1)
    before = float(head_distance(teacher, student))
    for block in student.attention:
        block.output.add_(3.0)
    assert float(head_distance(teacher, student)) == pytest.approx(before, abs=1e-4)


def test_patches_that_matter_have_the_factor():
    target = torch.ones(1, 2, 10, 3)
    target[0, :, 4] = 9.0
    weights = patch_weights(target, 2.0, 0.1)
    assert weights.sum() == pytest.approx(1)
    assert weights[0, 4] == pytest.approx(2 / 11)
    assert weights[0, 0] == pytest.approx(1 / 11)


@torch.no_grad()
def test_heads_are_compared_in_the_basis_of_the_teacher():
    """At 8 bits a student has nearly its teacher's heads, although its V is rotated."""
    vit = small_vit()
    images = images_for(vit)
    teacher, student = FloatTeacher(vit)(images), simulated_student(vit, 3)(images)
    rotated = simulated_student(vit, 8)
    folded = [a.value_basis for a in rotated.vit.modules() if hasattr(a, "value_basis")]
    assert not any(basis is None for basis in folded)
    for attention in rotated.vit.modules():
        if hasattr(attention, "value_signs"):
            attention.value_signs = None
    close = float(head_distance(teacher, simulated_student(vit, 8)(images)))
    assert close < 0.01
    assert float(head_distance(teacher, rotated(images))) > 0.3
    assert close < float(head_distance(teacher, student))


def test_features_and_discrepancy():
    teacher, student = seen(), seen(seed=1)
    expected = [
        float(((s - t) ** 2).sum() / (t**2).sum())
        for s, t in zip(student.features, teacher.features, strict=True)
    ]
    found = float(feature_distance(teacher.features, student.features))
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    difference = (teacher.logits - student.logits).abs().sum() / 10
    assert float(logit_discrepancy(teacher.logits, student.logits)) == pytest.approx(
        float(difference), rel=1e-6
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: soft_divergence(t, s, 3.0),
        lambda s, t: logit_discrepancy(t, s),
        lambda s, t: feature_distance([t], [s]),
        lambda s, t: structural_similarity(t.view(1, 1, 5, 4), s.view(1, 1, 5, 4)).mean(),
        lambda s, t: structural_similarity(
            t.view(1, 1, 5, 4), s.view(1, 1, 5, 4), patch_weights(t.view(1, 1, 5, 4), 2.0, 0.2)
        ).mean(),
    ],
    ids=["divergence", "discrepancy", "features", "heads", "weighted heads"],
)
def test_gradients(loss):
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


def test_only_terms_with_a_weight_are_there():
    found = losses(seen(), seen(seed=1), torch.tensor([0, 1]), quick(classes=0.5, features=2.0))
    assert list(found) == ["kl", "classes", "features"]


@pytest.mark.parametrize("labels", [None, torch.tensor([-1, -1])])
def test_cross_entropy_needs_labels(labels):
    with pytest.raises(UsageError, match=r"distillation\.classes needs images"):
        losses(seen(), seen(), labels, quick(classes=1.0))


def test_networks_without_attention_have_no_heads_to_compare():
    bare = Seen(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"distillation\.heads=0"):
        losses(bare, bare, None, quick(heads=1.0))
