"""The compiled CPU path of a whole model: what the operations compute, for whoever calls it and however often."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvit import machine
from qvit.deployment import QuantViT, cpu_preparation
from qvit.deployment.compiled_vit import CompiledViT
from qvit.errors import UsageError
from qvit.models.integer import Integer
from qvit.recipe import Recipe
from tests.executions import both
from tests.support import SHAPES, float_vit, images_for

# What the compiled path leaves to the operations, and the words it says so in.
REFUSED = {
    "odd widths": "heads have 20 channels",
    "pre-norm, no patch bias": "a norm before the first block",
    "three heads": "transforms of 48",
}
SCHEMES = {
    "W8A8": Recipe.preset("qvit", weight_bits=8),
    "W4A8": Recipe.preset("qvit", weight_bits=4),
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
}


@pytest.fixture
def model(tiny_quantized, compiled_path) -> QuantViT:
    return QuantViT.from_pretrained(tiny_quantized)


@pytest.fixture
def made(monkeypatch):
    """Every program that is made."""
    programs = []
    initialize = CompiledViT.__init__

    def counting(self, *arguments):
        initialize(self, *arguments)
        programs.append(self)

    monkeypatch.setattr(CompiledViT, "__init__", counting)
    return programs


@pytest.fixture
def threads():
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(model: QuantViT, count: int) -> torch.Tensor:
    return torch.randn(count, 3, *model.vit.config.image_size)


def by_operations(vit, x):
    """Logits and the stream behind the last block, operation by operation, on the same path."""
    run = Integer("cpu")
    stream = vit.begin(x, run)
    for block in vit.blocks:
        stream = block(stream, run)
    return vit(x, run), stream


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_computes_what_the_operations_do(shape, scheme, compiled_path):
    vit = both(float_vit(shape), SCHEMES[scheme])[1]
    x = images_for(vit, 3)
    if shape in REFUSED and not (
        shape == "three heads" and scheme == "W8A8"
    ):  # which has no transforms
        with pytest.raises(ValueError, match=REFUSED[shape]):
            CompiledViT(vit, 1)
        return
    with torch.no_grad():
        logits, stream = by_operations(vit, x)
        program = CompiledViT(vit, 1)
        assert torch.equal(program.features(x), stream)
        got = program.logits(x)
    # the norm before the head is torch's in the one and ours in the other, an ulp apart
    assert got is None or torch.allclose(got, logits, rtol=0, atol=0.02 * logits.abs().max())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_and_batches_do_not_change_the_result(model, count, threads):
    x = images(model, 5)
    threads(1)
    expected = model(x)
    threads(count)
    for size in (1, 2, 3, 5):
        assert torch.equal(torch.cat([model(part) for part in x.split(size)]), expected)


def test_callers_at_a_time_have_memory_of_their_own(model):
    cases = [images(model, 1 + i % 3) for i in range(12)]
    expected = [model(x) for x in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, known in zip(pool.map(model, cases * 4), expected * 4, strict=True):
            assert torch.equal(got, known)


def test_after_warmup_nothing_is_left_to_do(model, made):
    model.warmup((1, 3))
    assert len(made) == 1
    for size in (1, 3, 2):
        model(images(model, size))
    model.forward_features(images(model, 2))
    assert len(made) == 1


def test_copies_and_pickles_know_nothing_of_it(model, made):
    x = images(model, 2)
    before = set(model.state_dict())
    model.warmup()
    expected = model(x)
    assert set(model.state_dict()) == before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
        assert torch.equal(other(x), expected)
    assert len(made) == 3  # each has a program of its own


def test_a_program_goes_with_its_model(model, made):
    model.warmup()
    assert model.vit in cpu_preparation._idle
    count = len(cpu_preparation._idle)
    vit = model.vit
    del model
    other = copy.deepcopy(vit)
    cpu_preparation.logits(other, torch.randn(1, 3, *other.config.image_size))
    assert len(cpu_preparation._idle) == count + 1
    del other
    assert len(cpu_preparation._idle) == count


CHANGES = {
    "a weight is written to": lambda vit: vit.blocks[0].mlp.fc1.codes.zero_(),
    "a bias is replaced": lambda vit: setattr(vit.blocks[1].mlp.fc2, "bias", torch.ones(64)),
    "positions are written to": lambda vit: vit.pos_embed.mul_(2),
    "a head is written to": lambda vit: vit.head.weight_scale.mul_(2),
    "a norm is replaced": lambda vit: setattr(vit, "norm", torch.nn.LayerNorm(64, eps=0.5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_noticed(model, change):
    x = images(model, 2)
    before = model(x)
    with torch.no_grad():
        CHANGES[change](model.vit)
        after = model(x)
        assert not torch.equal(after, before)
        assert torch.allclose(
            after, by_operations(model.vit, x)[0], rtol=0, atol=0.02 * after.abs().max()
        )


def test_other_sizes_and_no_head(model):
    model(images(model, 1))
    model.set_input_size(48)
    x = images(model, 2)
    assert torch.allclose(model(x), by_operations(model.vit, x)[0], atol=0.05)
    model.reset_classifier(0)
    assert torch.equal(model(x), by_operations(model.vit, x)[0])


def test_images_of_any_float_layout(model):
    x = images(model, 2)
    expected = model(x)
    assert torch.equal(model(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(model(x.bfloat16()), model(x.bfloat16().float()))
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert model(images(model, 0)).shape == (0, model.num_classes)


def test_weights_of_inference_mode_are_left_to_the_operations(tiny_quantized, compiled_path):
    with torch.inference_mode():
        model = QuantViT.from_pretrained(tiny_quantized)
        with pytest.raises(ValueError, match="inference_mode"):
            CompiledViT(model.vit, 1)
        x = images(model, 1)
        before = model(x)
        model.vit.blocks[0].mlp.fc1.codes.zero_()
        assert not torch.equal(model(x), before)


def test_warmup_says_why_it_goes_on_without(tiny_quantized, monkeypatch):
    monkeypatch.setattr(machine, "find_compiler", lambda: None)
    model = QuantViT.from_pretrained(tiny_quantized)
    with pytest.warns(RuntimeWarning, match="without the compiled CPU path: it "):
        model.warmup()
    assert model(images(model, 1)).isfinite().all()


@pytest.mark.parametrize("sizes", [(0,), (1, -2), ("1",), (True,)])
def test_warmup_refuses_sizes_that_are_none(model, sizes):
    with pytest.raises(UsageError, match="batch_sizes must be whole numbers from 1 on"):
        model.warmup(sizes)


def test_another_backend_is_not_compiled(model, made):
    model.backend = "reference"
    model.warmup()
    assert not made


def test_each_step_can_be_timed(model):
    steps = CompiledViT(model.vit, 1).time(images(model, 2))
    assert [name for name, _ in steps[:4]] == ["pixels", "patch_embed", "norm1", "qkv"]
    assert len(steps) == 2 + 8 * len(model.vit.blocks)
    assert all(seconds > 0 for _, seconds in steps)
