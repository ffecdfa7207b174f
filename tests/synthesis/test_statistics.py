"""BatchNorm statistics against their definition, and the method that matches them."""

import pytest
import torch

from qvit import synthesis, zoo
from qvit.errors import UsageError
from qvit.models.resnet import ResNet
from qvit.recipe import Synthesis
from qvit.synthesis.bns import StatisticsMatching
from qvit.synthesis.loop import look, optimise
from qvit.synthesis.measures import measure
from qvit.synthesis.noise import draw_noise
from qvit.synthesis.objective import View
from qvit.synthesis.prediction import predict
from qvit.synthesis.statistics import NormRecord, record_statistics, statistics_distance
from tests.synthesis.settings import batch_of, convolutional, demo, small

CPU = torch.device("cpu")


def slow_distance(images, network: ResNet):
    """Channel by channel, from the inputs that hooks of its own keep."""
    kept = []
    handles = [
        m.register_forward_hook(lambda m, i, o: kept.append((m, i[0]))) for m in network.norms()
    ]
    network(images)
    for handle in handles:
        handle.remove()
    total = 0.0
    for norm, x in kept:
        means, variances = 0.0, 0.0
        for channel in range(x.shape[1]):
            values = x[:, channel].flatten().double()
            mean = sum(values) / len(values)
            variance = sum((values - mean) ** 2) / len(values)
            means += (mean - norm.running_mean[channel]) ** 2
            variances += (variance - norm.running_var[channel]) ** 2
        total += means**0.5 + variances**0.5
    return total


def test_the_distance_is_its_definition():
    network = convolutional()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, features, records = record_statistics(network, images)
        assert torch.equal(logits, network(images))
        assert torch.equal(features[-1], network.forward_features(images))
        fast, slow = statistics_distance(records), slow_distance(images, network)
    assert fast.item() == pytest.approx(float(slow), rel=1e-5)
    assert fast > 1


def test_recording_leaves_no_trace():
    network = convolutional()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    record_statistics(network, torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(norm._forward_pre_hooks for norm in network.norms())


def test_gradients_are_right():
    torch.manual_seed(0)
    goals = torch.randn(2, 2, 3).double(), torch.rand(2, 2, 3).double()

    def distance(x):
        records = []
        for layer in range(2):
            variance, mean = torch.var_mean(x[layer], (0, 2, 3), correction=0)
            records.append(NormRecord(mean, variance, goals[0][layer, 0], goals[1][layer, 0]))
        return statistics_distance(records)

    x = torch.randn(2, 2, 3, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(distance, x)


def test_a_look_brings_statistics_and_features():
    images = torch.randn(2, 3, 64, 64)
    outcome = look(convolutional(), View(images, None), None, "float32")
    assert len(outcome.statistics) == 22
    assert outcome.features[-1].shape == (2, 128, 2, 2)
    assert outcome.records == ()
    assert torch.equal(outcome.logits, convolutional()(images))


def test_every_term_moves_and_images_come_nearer_to_the_data():
    settings = small("bns", iterations=150)
    batch = batch_of(settings, 8, network=convolutional())
    start, samples = draw_noise(batch), []
    found = optimise(
        convolutional(), StatisticsMatching(batch, CPU), start, settings,
        every=149, sample=lambda _, losses: samples.append(losses),
    )  # fmt: skip
    first, last = samples
    assert last["statistics"] < 0.6 * first["statistics"]
    assert last["classes"] < 0.3 * first["classes"]
    assert last["smoothness"] < 0.9 * first["smoothness"]
    before, after = (measure(convolutional(), images) for images in (start, found))
    assert after["norm_distance"] < 0.6 * before["norm_distance"]
    assert "head_distance" not in after


@pytest.mark.parametrize("method", ["bns", "noise"])
def test_whole_runs_of_a_cnn(method, tmp_path):
    settings = small(method, images=3, batch=2)
    for name in ("run", "again"):
        found = synthesis.synthesize(
            zoo.resolve("demo_resnet"), settings, tmp_path / name, seed=4, progress=False
        )
    images = synthesis.open_images(tmp_path / "run")
    assert len(images) == 3
    assert found["measures"]["after"]["norm_distance"] > 0
    shards = [sorted((tmp_path / name / "shards").iterdir()) for name in ("run", "again")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*shards, strict=True))


@pytest.mark.parametrize("method", ["psaq", "mimiq", "sardfq", "maskaq"])
def test_methods_about_attention_refuse_a_cnn(method):
    with pytest.raises(UsageError, match="it is a ResNet, not a plain VisionTransformer"):
        synthesis.estimate(zoo.resolve("demo_resnet"), Synthesis.preset(method))


def test_statistics_are_not_asked_of_a_vit():
    with pytest.raises(UsageError, match="has no BatchNorm"):
        synthesis.estimate(demo(), Synthesis.preset("bns"))


def test_estimates_grow_with_the_batch():
    config = convolutional().config
    one, four = (predict(config, small("bns", images=8, batch=b)) for b in (1, 4))
    assert four.memory_bytes > one.memory_bytes > 0
    assert four.iteration_seconds > one.iteration_seconds > 0
    assert "estimated_seconds" in synthesis.estimate(
        zoo.resolve("demo_resnet"), Synthesis.preset("bns")
    )
