"""The convolutional student against its definition: ranges, codes, ends, gradients, state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qvit import zoo
from qvit.models.convolutional import (
    ConvolutionalStudent,
    ResNetTeacher,
    StaticLayer,
    see_resnet,
)
from qvit.models.resnet import read_resnet
from qvit.quant.static_activations import activation_quantizer
from qvit.quant.static_weights import WeightQuantizer
from qvit.recipe import Activations, Recipe, Static, Weights


@pytest.fixture(scope="module")
def teacher():
    source = zoo.resolve("demo_resnet")
    return read_resnet(zoo.load(source), source.pretrained_cfg)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def recipe_of(bits=4, weight_range="minmax", activations="minmax", ends=8):
    return Recipe(
        weights=Weights(bits=bits, range=weight_range),
        activations=Activations(bits=bits),
        static=Static(activations=activations, ends=ends),
    )


def student_of(teacher, images, **changes):
    student = ConvolutionalStudent(teacher, recipe_of(**changes))
    student.calibrate(images)
    return student


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_layer_is_integers_times_scales(bits, weight_range):
    torch.manual_seed(bits)
    layer = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 6, 9, 9).relu()
    static = StaticLayer(
        copy.deepcopy(layer),
        WeightQuantizer(bits, weight_range, 5),
        activation_quantizer(bits, Static(activations="minmax")),
    )
    static.input.observing = True
    static(x)
    static.input.observing = False
    codes = static.quantizer.codes(layer.weight.detach()[None])[0]
    assert torch.equal(codes, codes.round())
    assert -(2 ** (bits - 1)) <= codes.min() <= codes.max() <= 2 ** (bits - 1) - 1
    scale = layer.weight.detach().flatten(1).abs().amax(1) / (2 ** (bits - 1) - 127 / 256)
    scale = scale if weight_range == "minmax" else static.quantizer.scale
    step = x.max() / (2**bits - 1)
    steps = (x / step).round().clamp(0, 2**bits - 1)
    whole = F.conv2d(steps.double(), codes.double(), stride=2, padding=1)
    expected = whole * (step.double() * scale.double()).view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    assert torch.allclose(static(x).double(), expected, atol=1e-4)


def test_more_bits_are_nearer_to_the_teacher(teacher, images):
    wanted = ResNetTeacher(teacher)(images).logits
    assert not wanted.requires_grad
    with torch.no_grad():
        found = [student_of(teacher, images, bits=b)(images).logits for b in (3, 4, 6, 8)]
    distances = [(f - wanted).square().mean().item() for f in found]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02 * wanted.square().mean().item()


def test_ends_have_their_own_bits_and_the_image_comes_as_it_is(teacher, images):
    for ends, first in ((8, 8), (0, 4)):
        layers = [layer for _, layer in student_of(teacher, images, ends=ends).layers()]
        assert layers[0].input is None
        assert layers[0].quantizer.bits == first
        assert (layers[-1].quantizer.bits, layers[-1].input.bits) == (first, first)
        assert {(w.quantizer.bits, w.input.bits) for w in layers[1:-1]} == {(4, 4)}


@pytest.mark.parametrize("activations", ["lsq", "ema", "minmax", "percentile", "mse"])
def test_it_answers_like_any_student(teacher, images, activations):
    student = student_of(teacher, images, activations=activations)
    seen = student(images)
    assert [f.shape[1] for f in seen.features] == [16, 32, 64, 128]
    assert seen.attention == ()
    seen.logits.square().mean().backward()
    named = dict(student.named_parameters())
    for weight in student.integer_weights():
        assert named[weight.name] is weight.parameter
        assert weight.parameter.grad.abs().sum() > 0
        candidates = torch.stack([weight.parameter, weight.parameter * 2]).detach()
        codes = weight.codes(candidates)
        assert codes.shape == candidates.shape
        # a min-max range follows its weights: the same picture, twice as large
        assert torch.equal(codes[0], codes[1])
    if activations == "lsq":
        assert named["network.body.layer2.0.conv1.input.scale"].grad.abs() > 0
        assert named["network.body.layer2.0.conv1.input.zero_point"].grad.abs() > 0
    assert len(student.integer_weights()) == 23


def test_training_moves_the_student_towards_its_teacher_and_nothing_else(teacher, images):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_of(teacher, images, activations="lsq").train()
    wanted = ResNetTeacher(teacher)(images).logits
    optimiser = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = (student(images).logits - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    moved = student.network.state_dict()
    assert torch.equal(moved["body.bn1.running_var"], before["body.bn1.running_var"])
    assert not torch.equal(moved["body.bn1.weight"], before["body.bn1.weight"])


@pytest.mark.parametrize("activations", ["lsq", "ema", "mse"])
def test_a_state_is_read_back(teacher, images, activations):
    changes = {"weight_range": "mse", "activations": activations}
    student = student_of(teacher, images, **changes)
    again = ConvolutionalStudent(teacher, recipe_of(**changes))
    again.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images).logits, student(images).logits)
        assert not torch.equal(see_resnet(teacher, images).logits, student(images).logits)


def test_what_is_missing_is_said(teacher, images):
    with pytest.raises(RuntimeError, match="calibrate the student"):
        ConvolutionalStudent(teacher, recipe_of())(images)
    with pytest.raises(ValueError, match="section `static`"):
        ConvolutionalStudent(teacher, Recipe())
