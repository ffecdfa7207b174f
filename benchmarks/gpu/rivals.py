"""What other people's kernels take for the same work, in the same run: libraries that are installed, or none.

Each rival does the product or the step alone, in its own number format, without what our kernels do beside it
(quantization, GELU, residual): that is in their favour.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.cases.kernels import Case
from benchmarks.gpu.timing import first_line

Call = Callable[[], object]
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def rivals_of(case: Case, device: torch.device) -> tuple[dict[str, Call], dict[str, str]]:
    """Name -> call, and name -> why it is left out. The scheme of the case does not matter."""
    found: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    for name, make in _makers(case).items():
        try:
            found[name] = make(case, device)
        except Exception as error:  # noqa: BLE001 - each library refuses shapes and cards in its own way
            left_out[name] = first_line(error)
    return found, left_out


def _makers(case: Case) -> dict[str, Callable[[Case, torch.device], Call]]:
    if case.kernel == "ln_quant":
        return {"layer_norm bf16": _layer_norm}
    if case.kernel == "attention":
        return {f"SDPA {name}": _sdpa(dtype) for name, dtype in _HALF.items()}
    products = {f"mm {name}": _mm(dtype) for name, dtype in _HALF.items()}
    return products | {
        "_int_mm int8": _int_mm,
        "_scaled_mm fp8": _scaled_mm,
        "gemlite int8": _gemlite,
        "torchao int8": _torchao,
    }


def _mm(dtype: torch.dtype) -> Callable[[Case, torch.device], Call]:
    def make(case: Case, device: torch.device) -> Call:
        n, k = case.product
        x = torch.randn(case.rows, k, dtype=dtype, device=device)
        w = torch.randn(n, k, dtype=dtype, device=device)
        return lambda: torch.mm(x, w.t())

    return make


def _int_mm(case: Case, device: torch.device) -> Call:
    n, k = case.product
    x = torch.randint(-127, 128, (case.rows, k), dtype=torch.int8, device=device)
    w = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    return lambda: torch.ops.aten._int_mm.default(x, w.t())


def _scaled_mm(case: Case, device: torch.device) -> Call:
    """One scale a tensor: the fastest that it has."""
    n, k = case.product
    x = torch.randn(case.rows, k, device=device).to(torch.float8_e4m3fn)
    w = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _sdpa(dtype: torch.dtype) -> Callable[[Case, torch.device], Call]:
    def make(case: Case, device: torch.device) -> Call:
        shape = (case.batch, case.heads, case.tokens, case.width // case.heads)
        q, k, v = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    return make


def _layer_norm(case: Case, device: torch.device) -> Call:
    d = case.width
    x = torch.randn(case.rows, d, dtype=torch.bfloat16, device=device)
    weight, bias = (torch.randn(d, dtype=torch.bfloat16, device=device) for _ in range(2))
    return lambda: F.layer_norm(x, (d,), weight, bias, 1e-6)


def _linear(case: Case, device: torch.device) -> nn.Linear:
    n, k = case.product
    return nn.Linear(k, n, bias=False, dtype=torch.bfloat16, device=device)


def _installed(name: str) -> Any:
    if find_spec(name) is None:
        raise ImportError(f"{name} is not installed")
    return import_module(name)


def _gemlite(case: Case, device: torch.device) -> Call:
    """Its A8W8 int8 layer, which quantizes its bf16 input by rows. The class was renamed between releases."""
    _installed("gemlite")
    helper = import_module("gemlite.helper")
    kind = getattr(helper, "A8W8_INT8_dynamic", None) or helper.A8W8_int8_dynamic
    layer = kind(device=str(device)).from_linear(_linear(case, device))
    x = torch.randn(case.rows, case.product[1], dtype=torch.bfloat16, device=device)
    return lambda: layer(x)


def _torchao(case: Case, device: torch.device) -> Call:
    """Its dynamic int8 layer, compiled, as its documentation has it."""
    quantization = import_module(f"{_installed('torchao').__name__}.quantization")
    model = nn.Sequential(_linear(case, device))
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    layer = compiled(model, dry=device.type == "cpu")
    x = torch.randn(case.rows, case.product[1], dtype=torch.bfloat16, device=device)
    return _without_gradient(lambda: layer(x))


def _without_gradient(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def compiled(model: nn.Module, *, dry: bool, mode: str | None = None) -> Any:
    """torch.compile for one shape; whatever was compiled before is forgotten.

    Kept, the ninth shape of one module's code would silently run eager: that is where Dynamo stops. A dry run traces
    and generates no code, which would take a compiler and a minute.
    """
    torch.compiler.reset()
    if dry:
        return torch.compile(model, dynamic=False, backend="eager")
    return torch.compile(model, dynamic=False, mode=mode)


def block_rivals(case: Case, device: torch.device, *, dry: bool) -> dict[str, Call]:
    """timm's own block with random weights in bf16 and fp16, as it is and compiled; its attention is SDPA."""
    from timm.models.vision_transformer import Block

    calls: dict[str, Call] = {}
    for name, dtype in _HALF.items():
        block = Block(case.width, case.heads, qkv_bias=True).to(device, dtype).eval()
        x = torch.randn(case.batch, case.tokens, case.width, dtype=dtype, device=device)
        calls[f"timm block {name}"] = _without_gradient(lambda m=block, x=x: m(x))
        if name == "bf16":
            fast = compiled(block, dry=dry)
            calls[f"timm block {name} compiled"] = _without_gradient(lambda m=fast, x=x: m(x))
    return calls
