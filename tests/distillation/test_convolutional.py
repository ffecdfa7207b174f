"""A ResNet is trained like any student: gradient inundation and followed ranges reach its convolutions."""

import pytest
import timm
import torch

from qvit.distillation import Trainer
from qvit.models.convolutional import ConvolutionalStudent, ResNetTeacher
from qvit.models.resnet import read_resnet
from qvit.recipe import Activations, Distillation, Recipe, Static, Weights
from tests.synthesis.settings import convolutional


def trained(steps, activations="minmax", network=None, **changes):
    network = network or convolutional()
    recipe = Recipe(
        weights=Weights(bits=4, range="minmax"),
        activations=Activations(bits=4),
        static=Static(activations=activations, ends=8),
    )
    student = ConvolutionalStudent(network, recipe)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    student.calibrate(images)
    settings = Distillation.preset("ait", **changes)
    trainer = Trainer(ResNetTeacher(network), student, settings, steps)
    return student, [trainer.step(images, measure=True) for _ in range(steps)]


def test_inundation_changes_enough_integers_of_every_convolution():
    _, plain = trained(2, inundation=0.0, lr=1e-4)
    _, lifted = trained(2, inundation=0.01, lr=1e-4, inundation_cap=2.0**20, drops=0)
    assert plain[-1]["changed"] < 0.005
    for found in lifted:
        assert found["capped"] == 0
        assert found["least_changed"] >= 0.01
        assert found["alpha"] > 10


@pytest.mark.parametrize("track", [0.0, 1.0])
def test_followed_ranges_move_while_they_are_tracked(track):
    student, _ = trained(2, "ema", track=track, lr=1e-4)
    seen = [float(v) for n, v in student.named_buffers() if n.endswith("input.seen")]
    assert seen == [1.0 + 2 * track] * 22


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_resnets_are_trained_like_the_small_one(name):
    torch.manual_seed(0)
    statistics = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = timm.create_model(name, num_classes=10, zero_init_last=False)
    network = read_resnet(model.eval(), statistics)
    student, found = trained(2, network=network, lr=0.1, inundation=1e-3, drops=0)
    assert len(student.integer_weights()) == {"resnet18": 21, "resnet50": 54}[name]
    for step in found:
        assert step["capped"] == 0
        assert step["least_changed"] >= 1e-3
