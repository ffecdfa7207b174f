import pytest
import torch

from qvit.models.floating import Float
from qvit.synthesis.entropy import patch_similarity_entropy
from qvit.synthesis.losses import inter_head_distance
from qvit.synthesis.measures import measure, summarise
from qvit.synthesis.recording import Recording
from tests.support import float_vit, images_for


@pytest.mark.parametrize("count", [5, 70])
def test_measures_are_averages_over_images(count):
    vit = float_vit()
    images = images_for(vit, count)
    found = measure(vit, images)
    with torch.no_grad():
        logits = vit(images, Float())
        assert found["confidence"] == pytest.approx(
            logits.softmax(-1).amax(-1).mean().item(), rel=1e-4
        )
        assert found["classes"] == torch.bincount(logits.argmax(-1), minlength=7).tolist()
        run = Recording(vit.config)
        vit(images, run)
        distances = [inter_head_distance(r.scores()).item() for r in run.records]
        assert found["head_distances"] == pytest.approx(distances, abs=1e-5)
        if count <= 32:  # beyond, entropies are those of 32 images at a time
            entropies = [patch_similarity_entropy(r.features()).item() for r in run.records]
            assert found["patch_entropies"] == pytest.approx(entropies, abs=1e-5)
    assert found["head_distance"] == pytest.approx(sum(distances) / 2, abs=1e-5)
    squares = [(images[..., 1:] - images[..., :-1]), (images[..., 1:, :] - images[..., :-1, :])]
    squares += [
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    ]
    rms = torch.cat([s.flatten() for s in squares]).square().mean().sqrt().item()
    assert found["total_variation"] == pytest.approx(rms, rel=1e-5)
    assert set(summarise(found)) < set(found)


def test_a_model_without_classes_has_no_confidence():
    vit = float_vit("no head")
    found = measure(vit, images_for(vit))
    assert found["confidence"] == 0
    assert found["classes"] == []
