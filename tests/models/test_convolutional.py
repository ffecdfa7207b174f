"""The convolutional student against its definition: ranges, codes, ends, gradients, state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qvit import zoo
from qvit.models.convolutional import (
    ConvolutionalScheme,
    ConvolutionalStudent,
    QuantizedLayer,
    see_resnet,
)
from qvit.models.resnet import read_resnet
from qvit_kernels.reference import steps_of


@pytest.fixture(scope="module")
def teacher():
    source = zoo.resolve("demo_resnet")
    return read_resnet(zoo.load(source), source.pretrained_cfg)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def student_of(teacher, images, **how):
    student = ConvolutionalStudent(teacher, ConvolutionalScheme(**how))
    student.calibrate(images)
    return student


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_layer_is_integers_times_scales(bits, weight_range):
    torch.manual_seed(bits)
    layer = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    how = ConvolutionalScheme(weight_range=weight_range)
    quantized = QuantizedLayer(copy.deepcopy(layer), (bits, bits), how)
    x = torch.randn(2, 6, 9, 9).relu()
    quantized.observing = True
    assert torch.equal(quantized(x), layer(x))
    quantized.observing = False
    top = 2 ** (bits - 1) - 1
    low = -(2 ** (bits - 1)) if bits < 8 else -127
    codes = quantized.codes(layer.weight.detach()[None])[0]
    assert torch.equal(codes, codes.round())
    assert low <= codes.min() <= codes.max() <= top
    scale = layer.weight.detach().flatten(1).abs().amax(1) * quantized.clip[:, 0] / steps_of(bits)
    step = x.max() / (2**bits - 1)
    steps = (x / step).round().clamp(0, 2**bits - 1)
    whole = F.conv2d(steps.double(), codes.double(), stride=2, padding=1)
    expected = whole * (step.double() * scale.double()).view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    assert torch.allclose(quantized(x).double(), expected, atol=1e-4)


def test_mse_ranges_lose_less_than_the_largest_weight(teacher, images):
    errors = {}
    for method in ("minmax", "mse"):
        student = student_of(teacher, images, weight_range=method)
        errors[method] = sum(
            (layer.quantized_weight() - layer.layer.weight).square().sum().item()
            for layer in student._layers()
        )
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_more_bits_are_nearer_to_the_teacher(teacher, images):
    with torch.no_grad():
        wanted = see_resnet(teacher, images).logits
        found = [
            student_of(teacher, images, weight_bits=b, activation_bits=b)(images).logits
            for b in (3, 4, 6, 8)
        ]
    distances = [(f - wanted).square().mean().item() for f in found]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02 * wanted.square().mean().item()


def test_ends_have_their_own_bits(teacher, images):
    bits = [
        (w.weight_scheme.bits, w.input.scheme.bits) for w in student_of(teacher, images)._layers()
    ]
    assert bits[0] == bits[-1] == (8, 8)
    assert set(bits[1:-1]) == {(4, 4)}
    assert {w.weight_scheme.bits for w in student_of(teacher, images, end_bits=0)._layers()} == {4}


def test_it_answers_like_any_student(teacher, images):
    student = student_of(teacher, images, learned=True)
    seen = student(images)
    assert [f.shape[1] for f in seen.features] == [16, 32, 64, 128]
    assert seen.attention == ()
    seen.logits.square().mean().backward()
    named = dict(student.named_parameters())
    for weight in student.integer_weights():
        assert named[weight.name] is weight.parameter
        assert weight.parameter.grad.abs().sum() > 0
        candidates = torch.stack([weight.parameter, weight.parameter * 1.5]).detach()
        codes = weight.codes(candidates)
        assert codes.shape == candidates.shape
        # a min-max range follows its weights: the same picture, half as large again
        assert (codes[0] != codes[1]).float().mean() < 1e-3
    assert named["network.body.layer2.0.conv1.input.scale"].grad.abs() > 0
    assert named["network.body.layer2.0.conv1.input.zero_point"].grad.abs() > 0
    assert len(student.integer_weights()) == 23


def test_the_teacher_is_left_alone(teacher, images):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_of(teacher, images)
    student.train()
    student(images).logits.sum().backward()
    torch.optim.SGD(student.parameters(), lr=1.0).step()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_state_is_read_back(teacher, images):
    student = student_of(teacher, images, weight_range="mse", learned=True)
    again = ConvolutionalStudent(teacher, ConvolutionalScheme(weight_range="mse", learned=True))
    again.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images).logits, student(images).logits)


def test_without_ranges_it_says_what_to_do(teacher, images):
    with pytest.raises(RuntimeError, match="call calibrate"):
        ConvolutionalStudent(teacher)(images)
