import dataclasses
import math

import pytest
import torch

from qvit.deployment import Explanation, MachineRates, QuantViT
from qvit.deployment.explanation import Layer
from qvit.errors import UsageError
from qvit_kernels import registration
from qvit_kernels.routes import Route
from tests.support import images_for

BLOCK = [
    ("norm1", "layernorm_quantize"),
    ("attn.qkv", "linear_qkv"),
    ("attn", "attention"),
    ("attn.proj", "linear_residual"),
    ("norm2", "layernorm_quantize"),
    ("mlp.fc1", "linear_gelu_quantize"),
    ("mlp.fc2", "linear_residual"),
]


@pytest.fixture
def model(tiny_quantized) -> QuantViT:
    return QuantViT.from_pretrained(tiny_quantized)


def rows_of(explanation):
    return {(layer.name, layer.op): layer for layer in explanation.layers}


def test_every_operation_that_runs_has_a_row(model, monkeypatch):
    found = model.explain()
    ran = []
    for op, implementations in registration.IMPLEMENTATIONS.items():
        for name, function in list(implementations.items()):
            spy = lambda *a, op=op, function=function: ran.append(op) or function(*a)  # noqa: E731
            monkeypatch.setitem(implementations, name, spy)
    model(images_for(model.vit, 1))
    assert [layer.op for layer in found.layers] == ran
    names = [("patch_embed.proj", "quantize_pixels"), ("patch_embed.proj", "linear_embed")]
    names += [
        (f"blocks.{i}.{name}", op) for i in range(model.vit.config.depth) for name, op in BLOCK
    ]
    names += [("norm", "layernorm_quantize"), ("head", "linear")]
    assert [(layer.name, layer.op) for layer in found.layers] == names


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_and_operations_are_those_of_the_shapes(model, batch):
    rows = rows_of(model.explain(batch))
    config = model.vit.config
    tokens, dim, heads = batch * 17, config.embed_dim, config.num_heads
    fc1 = rows["blocks.0.mlp.fc1", "linear_gelu_quantize"]
    assert fc1.operations == 2 * tokens * dim * config.hidden_dim
    dense = model.vit.blocks[0].mlp.fc1
    stored = [dense.codes, dense.weight_scale, dense.weight_multiplier, dense.bias]
    stored.append(model.vit.blocks[0].mlp.fc2.signs)
    groups = config.hidden_dim // dense_group(model)
    moving = tokens * (dim + 4 + config.hidden_dim + 4 * groups)  # codes and scales, in and out
    assert fc1.bytes == moving + sum(t.numel() * t.element_size() for t in stored)
    assert (fc1.weight_bits, fc1.container_bits, fc1.input_bits) == (4, 4, 8)
    attention = rows["blocks.1.attn", "attention"]
    assert attention.operations == 4 * batch * heads * 17 * 17 * config.head_dim
    assert (attention.weight_bits, attention.container_bits, attention.input_bits) == (
        None,
        None,
        8,
    )
    norm = rows["blocks.0.norm1", "layernorm_quantize"]
    assert (norm.operations, norm.input_bits, norm.route.computes_in) == (0, 32, None)


def dense_group(model):
    dense = model.vit.blocks[0].mlp.fc2
    return dense.scheme.input.group or dense.codes.shape[1]


def test_floor_needs_rates_and_is_the_larger_of_two(model):
    plain = model.explain()
    assert plain.floor is None
    assert {layer.floor for layer in plain.layers} == {None}
    rates = MachineRates(bytes_per_second=1e9, operations_per_second=1e10)
    found = model.explain(rates=rates)
    for layer in found.layers:
        assert layer.floor == max(layer.bytes / 1e9, layer.operations / 1e10)
    assert found.floor == sum(layer.floor for layer in found.layers)
    assert dataclasses.replace(found, layers=plain.layers) == plain


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_rates_must_be_measured(rate):
    with pytest.raises(ValueError, match="operations_per_second must be a measured"):
        MachineRates(bytes_per_second=1, operations_per_second=rate)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_batch_size_is_a_number_of_images(model, batch):
    with pytest.raises(UsageError, match="batch_size must be"):
        model.explain(batch)


def test_backends_and_kernels_are_the_real_ones(tiny_quantized):
    slow = QuantViT.from_pretrained(tiny_quantized, backend="reference").explain()
    assert {layer.route.backend for layer in slow.layers} == {"reference"}
    fused = rows_of(QuantViT.from_pretrained(tiny_quantized, backend="triton").explain())
    qkv = fused["blocks.0.attn.qkv", "linear_qkv"]
    assert qkv.route.kernels == ("qkv_kernel",)
    assert qkv.input_bits == 4  # two codes a byte, as the kernels take them
    assert qkv.operations == 2 * 17 * 64 * 192
    assert "warps" in qkv.route.tiles[0]


def test_one_compiled_program_is_called_so(model, compiled_path):
    found = model.explain()
    assert found.one_program
    assert str(found).splitlines()[0].endswith(", one compiled program")
    assert {layer.route.kernels for layer in found.layers} == {("vnni",)}
    with model.vit.blocks[0].register_forward_hook(lambda *_: None):
        assert not model.explain().one_program
    model.backend = "reference"
    assert not model.explain().one_program


def test_explaining_changes_nothing(model):
    images = images_for(model.vit)
    expected = model(images)
    assert model.explain() == model.explain()
    assert torch.equal(model(images), expected)


def layer(name, **changes):
    values = {
        "op": "linear",
        "weight_bits": 3,
        "container_bits": 4,
        "input_bits": 8,
        "bytes": 2500,
        "operations": 3_000_000,
        "floor": None,
        "route": Route("cpu", (), (), "int8", None),
    }
    return Layer(name=name, **(values | changes))


def test_table_merges_blocks_and_gives_reasons():
    slow = Route("reference", (), (), "float", "heads of 160 channels are wider than 128")
    fast = Route("triton", ("linear_kernel",), ("64x64, 4 warps",), "int8", None)
    layers = (
        *(layer(f"blocks.{i}.attn.qkv", op="linear_qkv", route=slow) for i in range(3)),
        *(layer(f"blocks.{i}.mlp.fc2", route=fast) for i in range(2)),
        layer("blocks.2.mlp.fc2", route=fast, bytes=9_000, weight_bits=None, container_bits=None),
    )
    found = Explanation(scheme="W4A8", device="cuda:0", images=(1, 3, 224, 224), layers=layers)
    assert (
        str(found)
        == """\
W4A8 on cuda:0, images 1 x 3 x 224 x 224

layer               times  op          backend    kernel         tile            w bits  in  x bits  computes   kB   Mop
blocks.*.attn.qkv       3  linear_qkv  reference  torch          -                    3   4       8  float     2.5  3.00
blocks.0-1.mlp.fc2      2  linear      triton     linear_kernel  64x64, 4 warps       3   4       8  int8      2.5  3.00
blocks.2.mlp.fc2        1  linear      triton     linear_kernel  64x64, 4 warps       -   -       8  int8      9.0  3.00

in all 0.02 MB, 0.02 Gop
linear_qkv: slow, because heads of 160 channels are wider than 128"""
    )
    timed = str(dataclasses.replace(found, layers=tuple(layer("head", floor=2e-6) for _ in "ab")))
    assert "floor us" in timed
    assert timed.endswith("in all 0.01 MB, 0.01 Gop, floor 4 us")
