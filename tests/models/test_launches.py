"""What a pass on the `triton` backend launches, counted of the real dispatch: no card is asked how fast that is."""

import pytest
import torch

from benchmarks.cases.kernels import PER_TOKEN, model_config
from benchmarks.static.models import SCHEMES
from qvit import zoo
from qvit.models.dense import IntegerDense
from qvit.models.integer import Integer
from qvit.models.plan import plan_scheme
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from tests.dispatch_trace import counted, tracing
from tests.executions import both
from tests.support import float_vit, images_for

BLOCKS = 12

# Launches of a block, seven by default: what shares a scale is in one program. One scale a token takes a launch more
# for fc2's input, which no tile of fc1 holds a row of, and one for proj's, unless a program of attention holds all
# heads (DeiT-T).
BY_DEFAULT = 7
PER_TOKEN_BLOCK = {"deit_t": 8, "deit_s": 9, "deit_b": 9}
# Pixels, patch embedding with tokens and positions; final norm of the class token for the head, head.
AROUND = 4


def random_integer(model, scheme, overrides=()):
    weight_bits, activation_bits = SCHEMES[scheme]
    recipe = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    config = model_config(model)
    return ViT(config, plan_scheme(config, recipe.override(list(overrides))), IntegerDense)


def launched(vit, images, *, execute=False):
    """The trace of a second pass: the first one may ask for memory that stays."""
    run = Integer("triton")
    with tracing(execute=execute):
        vit(images, run)
    with tracing(execute=execute) as trace:
        vit(images, run)
    return trace


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8", "W4A4", "W3A3"])
@pytest.mark.parametrize("model", ["deit_t", "deit_s", "deit_b"])
def test_seven_launches_a_block(model, scheme):
    trace = launched(random_integer(model, scheme), torch.zeros(1, 3, 224, 224))
    assert len(trace.launches) == AROUND + BLOCKS * BY_DEFAULT
    assert trace.launches[:2] == ["quantize_pixels_kernel", "embed_kernel"]
    assert trace.launches[-2:] == ["quantize_rows_kernel", "linear_kernel"]
    assert trace.torch_ops == []
    assert trace.launches[2:9] == [
        "quantize_rows_kernel", "qkv_kernel", "attention_kernel", "linear_kernel",
        "quantize_rows_kernel", "gelu_quantize_kernel", "linear_kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
@pytest.mark.parametrize("model", PER_TOKEN_BLOCK)
def test_launches_with_a_scale_a_token(model, scheme):
    trace = launched(random_integer(model, scheme, PER_TOKEN), torch.zeros(1, 3, 224, 224))
    assert len(trace.launches) == AROUND + BLOCKS * PER_TOKEN_BLOCK[model]
    assert trace.torch_ops == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual", ["float32", "bfloat16"])
def test_torch_kernels_by_dtype(dtype, residual):
    """Images of any of these are read as they are."""
    vit = random_integer("tiny", "W4A4", [f"residual={residual}"])
    assert launched(vit, torch.zeros(2, 3, 32, 32, dtype=dtype)).torch_ops == []
    assert launched(vit, torch.zeros(2, 3, 32, 32).double()).torch_ops == ["_to_copy"]


# Beside ours, by torch: more than one kind of prefix token is joined, tokens are pooled, two heads averaged.
TORCH_KERNELS = {
    "plain": {},
    "no position embedding": {},
    "LayerScale": {},
    "QK-norm": {},
    "registers": {"cat": 1},
    "distilled": {"cat": 1, "add": 1, "div": 1},
    "average pooling, no class token": {"mean": 1},
    "final norm before average pooling": {"native_layer_norm": 1, "mean": 1},
    "pre-norm, no patch bias": {"native_layer_norm": 1},
    "no head": {"native_layer_norm": 1},
}


@pytest.mark.parametrize("shape", TORCH_KERNELS)
def test_torch_kernels_by_shape(shape):
    _, integer = both(float_vit(shape), Recipe.preset("qvit", weight_bits=4, activation_bits=4))
    trace = launched(integer, images_for(integer))
    assert counted(trace.torch_ops) == TORCH_KERNELS[shape]


def demo_vit():
    source = zoo.resolve("demo_vit")
    return read_model(zoo.load(source), source.pretrained_cfg)


@pytest.mark.parametrize("make", [float_vit, pytest.param(demo_vit, marks=pytest.mark.slow)])
def test_a_pass_neither_waits_nor_looks_at_its_data(make):
    """Every kernel runs here. Other images take the same way, launch for launch and byte for byte."""
    vit = make()
    _, integer = both(vit, Recipe.preset("qvit", weight_bits=4, activation_bits=4))
    images = images_for(integer, 1)
    traces = []
    for given in (images, torch.zeros_like(images)):
        with tracing() as trace:
            logits = integer(given, Integer("triton"))
        assert torch.isfinite(logits).all()
        traces.append((trace.launches, trace.torch_ops, trace.allocations))
    assert traces[0] == traces[1]
    launches, torch_ops, _ = traces[0]
    assert len(launches) == AROUND + 7 * integer.config.depth
    assert torch_ops == []


def test_what_a_trace_sees():
    """Copies within views, waiting, and data-dependent shapes; a view and a no-op are none."""
    x = torch.randn(4, 6)
    with tracing() as trace:
        x.view(24).reshape(3, 8)[:, ::2].float().contiguous()
        x.T.reshape(-1)
        x.to(torch.float16)
        (x.sum() > 0).item()
        x.nonzero()
    assert trace.torch_ops == ["clone", "clone", "_to_copy", "sum", "gt", "_local_scalar_dense", "nonzero"]  # fmt: skip
