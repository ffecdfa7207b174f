"""The compiled CPU path of a whole model: what the operations compute, for whoever calls it and however often."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from qvit import machine
from qvit.deployment import QuantViT, cpu_preparation
from qvit.deployment.compiled_vit import CompiledViT
from qvit.errors import UsageError
from qvit.models.integer import Integer
from qvit.quant.schemes import Granularity
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
    "W3A3": Recipe.preset("qvit", weight_bits=3, activation_bits=3),
    "mixed": Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        [
            "layers.patch_embed.proj=W8",
            "layers.blocks.*.mlp.fc2=W6A8",
            "layers.blocks.0.attn.qkv=W3A5",
            "layers.blocks.0.attn=A6",
        ]
    ),
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
    if shape in REFUSED:
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
    model.warmup()
    assert len(made) == 1
    assert len(cpu_preparation._idle[model.vit].programs) == 1


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


OTHER_MEMORY = {
    "replaced": lambda p: setattr(p, "data", p.data.clone()),
    "shared": lambda p: p.share_memory_(),
}


@pytest.mark.parametrize("how", OTHER_MEMORY)
def test_other_memory_of_a_parameter_is_noticed(model, how):
    program = CompiledViT(model.vit, 1)
    assert program.fits(model.vit, 1)
    OTHER_MEMORY[how](model.vit.blocks[0].norm1.weight)  # which torch counts as no write
    assert not program.fits(model.vit, 1)


def test_memory_that_a_program_reads_outlives_its_parameter(model):
    weight = model.vit.blocks[0].norm1.weight
    program, held = CompiledViT(model.vit, 1), StorageWeakRef(weight.untyped_storage())
    weight.data = weight.data.clone()
    assert not held.expired()
    del program
    assert held.expired()


MISFITS = {
    "half precision": lambda vit: vit.blocks[0].norm1.half(),
    "one value for all": lambda vit: setattr(vit.head, "bias", torch.ones(1).expand(6)),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_parameters_of_another_kind_are_refused(model, misfit):
    model(images(model, 1))
    MISFITS[misfit](model.vit)
    with pytest.raises(ValueError, match=r"its .* is not contiguous memory of the processor"):
        CompiledViT(model.vit, 1)


def test_many_heads(compiled_path):
    vit = both(float_vit("plain", embed_dim=86 * 16, num_heads=86, depth=1), SCHEMES["W8A8"])[1]
    x = images_for(vit, 1)
    with torch.no_grad():
        assert torch.equal(CompiledViT(vit, 1).features(x), by_operations(vit, x)[1])


def test_blocks_may_group_their_inputs_differently(compiled_path):
    vit = both(float_vit(), SCHEMES["W8A8"])[1]
    for dense in (vit.blocks[0].mlp.fc1, *vit.blocks[1].linears()):
        dense.scheme = replace(
            dense.scheme,
            input=replace(dense.scheme.input, granularity=Granularity.GROUP, group=32),
        )
    x = images_for(vit, 2)
    with torch.no_grad():
        assert torch.equal(CompiledViT(vit, 1).features(x), by_operations(vit, x)[1])


def test_defaults_of_torch_do_not_matter(model):
    x = images(model, 2)
    expected, tokens = model(x), model.forward_features(x)
    before = torch.get_default_dtype()
    for dtype, device in ((torch.float64, "cpu"), (torch.bfloat16, "cpu"), (before, "meta")):
        fresh = copy.deepcopy(model)  # whose program is made under the same defaults
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                assert torch.equal(fresh(x), expected)
                assert torch.equal(fresh.forward_features(x), tokens)
                assert fresh._blank(1).dtype == torch.float32
        finally:
            torch.set_default_dtype(before)


def test_a_compiler_sees_the_operations(model):
    x = images(model, 2)
    model.warmup()
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), by_operations(model.vit, x)[0])


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every size it sees
def test_hooks_and_traces_see_the_blocks(model):
    x, y = images(model, 2), images(model, 2)
    model.warmup()
    seen = []
    with model.vit.blocks[1].register_forward_hook(lambda *_: seen.append(1)):
        model(x)
    assert seen == [1]
    counted = FlopCounterMode(display=False)
    with counted, torch.no_grad():
        assert torch.equal(model(x), by_operations(model.vit, x)[0])
    traced = torch.jit.trace(model, x, check_trace=False)
    assert torch.equal(traced(y), by_operations(model.vit, y)[0])


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


@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize("layer", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1"])
def test_a_nan_in_a_parameter_shows(model, layer, place):
    """Each is one value of many: a maximum must not lose it."""
    model.vit.blocks[0].get_submodule(layer).bias[place] = float("nan")
    x = images(model, 2)
    assert model.vit(x, Integer("reference")).isnan().all()
    assert model(x).isnan().all()
    assert model.forward_features(x).isnan().all()


def test_weights_of_inference_mode_are_left_to_the_operations(tiny_quantized, compiled_path):
    with torch.inference_mode():
        model = copy.deepcopy(QuantViT.from_pretrained(tiny_quantized))
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
    assert [name for name, _ in steps[-3:]] == ["fc2", "norm", "head"]
    assert len(steps) == 2 + 8 * len(model.vit.blocks) + 2
    assert all(seconds > 0 for _, seconds in steps)


def test_a_head_of_more_parts_is_not_timed(compiled_path):
    vit = both(float_vit("distilled"), SCHEMES["W8A8"])[1]
    steps = CompiledViT(vit, 1).time(images_for(vit, 2))
    assert steps[-1][0] == "fc2"


def test_a_model_loaded_under_inference_mode_has_a_program(tiny_quantized, compiled_path):
    with torch.inference_mode():
        model = QuantViT.from_pretrained(tiny_quantized)
        model.warmup((1,))
        assert model.explain().one_program
