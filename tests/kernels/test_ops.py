"""The typed surface: registration, argument checks, choice of the backend."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvit_kernels import backends, notices, ops
from qvit_kernels.ops import BackendError, Quantized, Weight, use_backend
from qvit_kernels.registration import SCHEMAS
from tests.kernels import operands
from tests.kernels.operands import CALLS, STATIC_CALLS, codes, rows, tensors, transform, weight

EVERY_CALL = CALLS | {f"{name}, static": call for name, call in STATIC_CALLS.items()}


class Recorder(TorchDispatchMode):
    """Keeps the `qvit` ops that ran, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "qvit":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def test_every_op_has_a_call_here():
    assert set(CALLS) == set(SCHEMAS)


def test_every_op_that_quantizes_rows_takes_a_static_scale():
    assert set(STATIC_CALLS) == {name for name in SCHEMAS if "static_scale" in SCHEMAS[name]}


@pytest.mark.parametrize("name", EVERY_CALL)
def test_a_function_is_one_op(name):
    with Recorder() as recorder:
        EVERY_CALL[name]()
    op = name.partition(",")[0]
    assert [str(func) for func, _ in recorder.calls] == [f"qvit.{op}.default"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", EVERY_CALL)
def test_registration(name, backend):
    """torch's own checks: schema against behaviour, fake tensors against real ones, autograd keys."""
    with Recorder() as recorder:
        EVERY_CALL[name]()
    ((func, args),) = recorder.calls
    with use_backend(backend):
        torch.library.opcheck(func, args)


@pytest.mark.parametrize("name", EVERY_CALL)
def test_fake_results_have_the_layout_of_real_ones(name):
    with Recorder() as recorder:
        EVERY_CALL[name]()
    ((func, args),) = recorder.calls
    real = tensors(func(*args))

    def to_meta(x):
        if isinstance(x, list):
            return [to_meta(item) for item in x]
        return x.to("meta") if isinstance(x, torch.Tensor) else x

    fake = func(*[to_meta(arg) for arg in args])
    fake = [fake] if isinstance(fake, torch.Tensor) else fake
    layout = [(t.shape, t.dtype, t.stride()) for t in real]
    assert [(t.shape, t.dtype, t.stride()) for t in fake] == layout


class Block(torch.nn.Module):
    """A transformer block out of all ops but the pixels."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        for name, (n, k) in {
            "qkv": (3 * width, width),
            "proj": (width, width),
            "fc1": (4 * width, width),
            "fc2": (width, 4 * width),
        }.items():
            made = weight(n, k, packed=name == "fc2")
            self.register_buffer(name, made.codes)
            self.register_buffer(name + "_scale", made.scale)
        self.register_buffer("signs", transform(4 * width, 16).signs)
        self.register_buffer("proj_input", torch.full((1, width // 16), 0.01))
        self.norm = torch.nn.Parameter(torch.rand(width))

    def weight(self, name):
        return Weight(getattr(self, name), getattr(self, name + "_scale"))

    def forward(self, x):
        zero = torch.zeros_like(self.norm)
        a = ops.layernorm_quantize(x, self.norm, zero, 1e-6, None, 8)
        q, k, v = ops.linear_qkv(a, self.weight("qkv"), None, self.heads, 8)
        o = ops.attention(q, k, v, 0.25, 8, 8, 16, static_scale=self.proj_input)
        x = ops.linear_residual(o, self.weight("proj"), None, x)
        a = ops.layernorm_quantize(x, self.norm, zero, 1e-6, None, 8)
        turn = ops.BlockTransform(self.signs, 16)
        h = ops.linear_gelu_quantize(a, self.weight("fc1"), None, "tanh", turn, 4, 32)
        return ops.linear_residual(h, self.weight("fc2"), None, x)


@torch.no_grad()
def test_compile_without_graph_breaks():
    block, x = Block(), torch.randn(2, 5, 32)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), block(x))


@torch.no_grad()
def test_export_keeps_the_ops_and_a_dynamic_batch():
    block, x = Block(), torch.randn(2, 5, 32)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: batch},))
    targets = [str(n.target) for n in program.graph.nodes if "qvit" in str(n.target)]
    assert len(targets) == 7
    more = torch.randn(5, 5, 32)
    assert torch.equal(program.module()(more), block(more))


def test_parameters_that_require_grad_are_accepted():
    x = torch.randn(2, 5, 32, requires_grad=True)
    block = Block()
    assert block.norm.requires_grad
    assert torch.equal(block(x), block(x.detach()))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_does_not_reach_the_integers(backend):
    block, x = Block(), torch.randn(2, 5, 32)
    with torch.no_grad(), use_backend(backend):
        expected = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(block(x), expected)


X, W = Quantized(codes(2, 8), torch.ones(2, 1)), Weight(codes(4, 8), torch.ones(4))
HEADS = Quantized(codes(1, 2, 3, 8), torch.ones(1, 2, 3, 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.linear(X._replace(codes=X.codes.int()), W, None), TypeError,
         r"x\.codes must be torch\.int8, got torch\.int32"),
        (lambda: ops.linear(X, W._replace(codes=W.codes.float()), None), TypeError,
         r"weight\.codes must be torch\.int8, or torch\.uint8 .* got torch\.float32"),
        (lambda: ops.linear(X, weight(4, 7), None), ValueError,
         r"weight\.codes must be \[N, 8\] for x of 8 columns, got \(4, 7\)"),
        (lambda: ops.linear(X, weight(4, 7, packed=True)._replace(codes=torch.zeros(4, 5, dtype=torch.uint8)), None),
         ValueError, r"packed weight\.codes must be \[N, 4\] for x of 8 columns, got \(4, 5\)"),
        (lambda: ops.linear(X._replace(scale=torch.ones(3, 1)), W, None), ValueError,
         r"x\.scale must be \(2, 'G'\) or \(1, G\), got \(3, 1\)"),
        (lambda: ops.linear(X._replace(scale=torch.ones(2, 1).half()), W, None), TypeError,
         r"x\.scale must be torch\.float32, got torch\.float16"),
        (lambda: ops.linear(X, W._replace(scale=torch.ones(5)), None), ValueError,
         r"weight\.scale must have shape \(4,\), got \(5,\)"),
        (lambda: ops.linear(X._replace(scale=torch.ones(2, 3)), W, None), ValueError,
         r"groups of x\.scale must divide 8 columns, got 3"),
        (lambda: ops.linear(X, W._replace(multiplier=torch.ones(4, 2)), None), TypeError,
         r"weight\.multiplier must be torch\.int8, got torch\.float32"),
        (lambda: ops.linear(X, W._replace(multiplier=codes(3, 2)), None), ValueError,
         r"weight\.multiplier must be \(4, G\), got \(3, 2\)"),
        (lambda: ops.linear(X, W._replace(multiplier=codes(4, 3)), None), ValueError,
         r"groups of weight\.multiplier must divide 8 columns, got 3"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), None, 5, packed=True), ValueError,
         r"packed codes have at most 4 bits, in rows of an even length, got 5 bits, 8 values"),
        (lambda: ops.quantize_rows(torch.ones(2, 7), None, 4, packed=True), ValueError,
         r"got 4 bits, 7 values"),
        (lambda: ops.attention(HEADS, HEADS, HEADS, 1.0, 8, 8, bias=torch.ones(1, 2, 3, 4)), ValueError,
         r"bias must be \[b, 1 or 2, 3, 3\] with b a divisor of 1, got \(1, 2, 3, 4\)"),
        (lambda: ops.attention(HEADS, HEADS, HEADS, 1.0, 8, 8, mask=torch.ones(1, 1, 3, 3)), TypeError,
         r"mask must be torch\.bool, got torch\.float32"),
        (lambda: ops.linear(X, W, torch.ones(3)), ValueError, r"bias must have shape \(4,\), got \(3,\)"),
        (lambda: ops.linear(X, W, torch.ones(4).double()), TypeError, r"bias must be torch\.float32"),
        (lambda: ops.linear(rows(1, 2**17), weight(1, 2**17), None), ValueError,
         r"at most 131071 columns for an int32 sum, got 131072"),
        (lambda: ops.linear_residual(X, W, None, torch.ones(2, 5)), ValueError,
         r"residual must have the shape of the product, \(2, 4\), got \(2, 5\)"),
        (lambda: ops.linear_residual(X, W, None, torch.ones(2, 4).double()), TypeError,
         r"residual must be torch\.float32 or torch\.bfloat16 or torch\.float16, got torch\.float64"),
        (lambda: ops.linear_gelu_quantize(X, W, None, "quick", None, 8), ValueError,
         r"approximate must be 'none' or 'tanh', got 'quick'"),
        (lambda: ops.linear_gelu_quantize(X, W, None, "none", None, 9), ValueError,
         r"bits must be 2 to 8, got 9"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), None, 8, 3), ValueError,
         r"group must be 0 or divide the row, got 3 for 8 values"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), None, 8, 4, static_scale=torch.ones(2, 2)), ValueError,
         r"static_scale must be \(1, 2\) for groups of 4, got \(2, 2\)"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), None, 8, static_scale=torch.ones(1, 1).half()), TypeError,
         r"static_scale must be torch\.float32, got torch\.float16"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), transform(8, 3), 8), ValueError,
         r"transform\.block must divide the row, got 3 for 8 values"),
        (lambda: ops.quantize_rows(torch.ones(2, 8), transform(9, 3), 8), ValueError,
         r"transform\.signs must have shape \(8,\), got \(9,\)"),
        (lambda: ops.quantize_rows(torch.ones(2, 0), None, 8), ValueError,
         r"x must have a last axis that is not empty, got \(2, 0\)"),
        (lambda: ops.layernorm_quantize(torch.ones(2, 8), torch.ones(7), torch.ones(8), 0.0, None, 8),
         ValueError, r"weight must have shape \(8,\), got \(7,\)"),
        (lambda: ops.linear_qkv(X, weight(12, 8), None, 2, 8), ValueError,
         r"x must be \[B, T, K\], got \(2, 8\)"),
        (lambda: ops.linear_qkv(rows(1, 2, 8), weight(13, 8), None, 2, 8), ValueError,
         r"3 \* heads \* d, got 13 rows for 2 heads"),
        (lambda: ops.linear_qkv(rows(1, 2, 8), weight(24, 8), None, 2, 8, operands.norm(5)), ValueError,
         r"qk_norm\.q_weight must have shape \(4,\), got \(5,\)"),
        (lambda: ops.linear_qkv(rows(1, 2, 8), weight(24, 8), None, 2, 8, None, transform(4, 4)), ValueError,
         r"qk_transform needs qk_norm"),
        (lambda: ops.attention(HEADS, HEADS, HEADS._replace(codes=codes(1, 2, 4, 8)), 1.0, 8, 8), ValueError,
         r"\[B, H, T, d\] alike, got v \(1, 2, 4, 8\), q \(1, 2, 3, 8\)"),
        (lambda: ops.attention(HEADS, HEADS._replace(scale=torch.ones(1, 1)), HEADS, 1.0, 8, 8), ValueError,
         r"k\.scale must be \[B, H, T, 1\], got \(1, 1\)"),
        (lambda: ops.attention(HEADS, HEADS, HEADS, 1.0, 1, 8), ValueError,
         r"softmax_bits must be 2 to 8, got 1"),
        (lambda: ops.quantize_pixels(torch.ones(3, 8, 8), torch.ones(3), torch.ones(3), (4, 4)), ValueError,
         r"images must be \[B, C, H, W\], got \(3, 8, 8\)"),
        (lambda: ops.quantize_pixels(torch.ones(1, 3, 8, 9), torch.ones(3), torch.ones(3), (4, 10)), ValueError,
         r"patch must fit in the image, got 4x10 for \(1, 3, 8, 9\)"),
        (lambda: ops.quantize_pixels(torch.ones(1, 3, 8, 8, dtype=torch.uint8), torch.ones(3), torch.ones(3), (4, 4)),
         TypeError, r"images must be torch\.float32 .* got torch\.uint8"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture
def unchosen(monkeypatch):
    """As in a process that has not yet asked for a backend."""
    monkeypatch.setattr(backends._Process, "name", None)
    monkeypatch.setattr(notices, "_given", set())
    monkeypatch.delenv("QVIT_BACKEND", raising=False)
    return monkeypatch


def test_auto_is_the_default_and_means_cpu_for_cpu_tensors(unchosen):
    assert ops.backend() == "auto"
    assert backends.resolve(torch.device("cpu")) == "cpu"


def test_environment_chooses_the_default(unchosen):
    unchosen.setenv("QVIT_BACKEND", "reference")
    assert ops.backend() == "reference"


def test_unknown_name_in_the_environment_is_an_error(unchosen):
    unchosen.setenv("QVIT_BACKEND", "cuda")
    choices = "QVIT_BACKEND must be one of auto, triton, cpu, reference, got 'cuda'"
    with pytest.raises(ValueError, match=choices):
        CALLS["linear"]()


def test_backend_of_a_block_and_of_the_process(unchosen):
    with use_backend("reference"):
        with use_backend("cpu"):
            assert ops.backend() == "cpu"
        assert ops.backend() == "reference"
    assert ops.backend() == "auto"
    ops.set_backend("cpu")
    assert ops.backend() == "cpu"
    for choose in (ops.set_backend, lambda name: use_backend(name).__enter__()):
        with pytest.raises(ValueError, match=r"backend must be one of .* got 'gpu'"):
            choose("gpu")
    assert ops.backend() == "cpu"


def test_backend_of_a_block_is_the_threads_own(unchosen):
    with ThreadPoolExecutor(1) as pool, use_backend("reference"):
        assert pool.submit(ops.backend).result() == "auto"
        assert ops.backend() == "reference"


def test_the_chosen_backend_computes(unchosen):
    called = []
    name = "quantize_rows"
    for key in ("cpu", "reference"):
        unchosen.setitem(
            backends_table(name), key, lambda *args, key=key: called.append(key) or (args[0],) * 2
        )
    x = torch.ones(1, 4)
    for choice in ("auto", "cpu", "reference"):
        with use_backend(choice):
            ops.quantize_rows(x, None, 8)
    assert called == ["cpu", "cpu", "reference"]


def backends_table(name):
    from qvit_kernels import registration

    return registration.IMPLEMENTATIONS[name]


def test_triton_on_a_processor_needs_the_interpreter(unchosen):
    unchosen.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"), pytest.raises(BackendError, match="TRITON_INTERPRET=1"):
        CALLS["linear"]()
    unchosen.setenv("TRITON_INTERPRET", "1")
    assert backends.resolve(torch.device("cpu"), "triton") == "triton"
    assert backends.resolve(torch.device("cpu")) == "cpu"  # by default never


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 0), "triton"), ((9, 0), "triton"), ((10, 0), "triton"), ((12, 0), "triton")],
)
def test_cards_that_have_the_kernels(unchosen, capability, expected):
    unchosen.setattr(backends, "_capability", lambda index: capability)
    unchosen.setattr(backends, "_has_triton", lambda: True)
    assert backends.resolve(torch.device("cuda", 0)) == expected


@pytest.mark.parametrize(
    ("capability", "triton", "reason"),
    [
        ((7, 5), True, "7.5 is older than 8.0"),
        ((10, 3), True, "10.3 has next to no int8 tensor cores"),
        ((9, 0), False, "triton is not installed"),
    ],
)
def test_cuda_tensors_fall_back_loudly_and_once(unchosen, capability, triton, reason):
    unchosen.setattr(backends, "_capability", lambda index: capability)
    unchosen.setattr(backends, "_has_triton", lambda: triton)
    cuda = torch.device("cuda", 0)
    with pytest.warns(RuntimeWarning, match=reason):
        assert backends.resolve(cuda) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve(cuda) == "reference"
    with use_backend("triton"), pytest.raises(BackendError, match=reason):
        backends.resolve(cuda)
    with use_backend("cpu"), pytest.raises(BackendError, match=r"CPU tensors only, got .*cuda:0"):
        backends.resolve(cuda)


def test_import_loads_neither_triton_nor_qvit_and_touches_no_gpu():
    code = (
        "import sys, qvit_kernels; assert 'torch' not in sys.modules; import qvit_kernels.ops, torch;"
        "assert not torch.cuda.is_initialized();"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'triton', 'qvit', 'timm', 'numpy.testing'}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]"
