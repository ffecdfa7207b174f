"""Launches that are compiled and counted without a GPU beside those of whole models: one function a kernel file."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from qvit_kernels.launching import Launch
from qvit_kernels.storage import empty_values

# What an int8 product of at least 64 rows must become; of fewer, mma.sync on every card.
_LARGE = {80: "IMMA", 86: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "UTCIMMA", 120: "IMMA"}


@dataclass(frozen=True, slots=True)
class Case:
    """One launch, compiled for every target.

    Attributes:
        name: Shape and options; unique for its kernel.
        launch: Makes the launch for a capability (80, 90, ...), by the kernel's own planning.
        sample: Whether `--sample` takes it.
    """

    name: str
    launch: Callable[[int], Launch]
    sample: bool = False


def signature_of(launch: Launch) -> Hashable:
    """What Triton makes a binary of: launches that agree in it are one. Tensors count as aligned to 16 bytes."""
    specific = []
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            specific.append(value)
        elif isinstance(value, Tensor):
            specific.append(value.dtype)
        elif isinstance(value, int) and not parameter.do_not_specialize:
            specific.append((value == 1, value % 16 == 0, value >= 2**31))
    options = tuple(sorted(launch.options.items()))
    return launch.kernel.fn.__name__, launch.warps, launch.stages, options, tuple(specific)


def kernel_file(launch: Launch) -> str:
    """The kernel file that a launch is counted for."""
    files = {
        "quantize_rows_kernel": "ln_quant",
        "attention_kernel": "attention_int8",
        "quantize_pixels_kernel": "pixels",
    }
    of_product = "gemm_int4" if launch.arguments.get("W4") else "gemm_int8"
    return files.get(launch.kernel.fn.__name__, of_product)


def expected_opcode(launch: Launch, capability: int, triton_version: tuple[int, int]) -> str:
    """The matrix instruction that a launch must contain; "" for none. Triton has tcgen05 for int8 from 3.8 on."""
    tile = launch.arguments
    rows = tile.get("BLOCK_M") or tile.get("BN" if tile.get("SWAP") else "BM")
    if rows is None:
        return ""
    if rows < 64 or launch.warps % 4 or (capability == 100 and triton_version < (3, 8)):
        return "IMMA"
    return _LARGE[capability]


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory, for a launch that is only compiled."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _ln_quant(module: Any) -> Iterator[Case]:
    many, few = 64 * 197, 197
    shapes = [(many, k, block, 8, 0) for k in (192, 384, 768) for block in (0, 64)]
    shapes += [(many, 384, 64, 4, 0), (few, 384, 64, 8, 0), (many, 1536, 32, 4, 128)]
    for rows, k, block, bits, group in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            x, vector = on_meta(rows, k, dtype=dtype), on_meta(k)
            signs = vector if block else None
            launch, _ = module.plan(x, vector, vector, 1e-6, signs, block, bits, group, bits == 4)
            yield Case(
                f"{rows}x{k}-{str(dtype)[6:]}-hadamard{block}-bits{bits}-group{group}",
                lambda _, launch=launch: launch,
                sample=(rows, k, block, bits, dtype) == (many, 384, 64, 8, torch.float32),
            )


def _pixels(module: Any) -> Iterator[Case]:
    gain = on_meta(3)
    for size, patch in ((224, 16), (224, 14), (64, 8), (224, 32)):
        for dtype in (torch.float32, torch.bfloat16):
            images = on_meta(64, 3, size, size, dtype=dtype)
            launch, _ = module.plan(images, gain, gain, patch, patch)
            yield Case(
                f"{size}-by-{patch}-{str(dtype)[6:]}",
                lambda _, launch=launch: launch,
                sample=(patch, dtype) == (16, torch.float32),
            )


def _operands(
    m: int, n: int, k: int, *, w4: bool = False, a4: bool = False, groups: int = 1, width: int = 0
) -> tuple[Any, ...]:
    """x, its scale, w, its scale, its multipliers for each `width` columns, bias: the first arguments of a product."""
    return (
        on_meta(m, k // 2, dtype=torch.uint8) if a4 else on_meta(m, k, dtype=torch.int8),
        on_meta(m, groups),
        on_meta(n, k // 2, dtype=torch.uint8) if w4 else on_meta(n, k, dtype=torch.int8),
        on_meta(n),
        on_meta(n, k // width, dtype=torch.int8) if width else None,
        on_meta(n),
    )


def _products(plans: Any, schemes: dict[str, dict[str, Any]]) -> Iterator[Case]:
    """fc2, fc1, qkv and the head of DeiT-S, for each scheme of weights and activations."""
    for scheme, options in schemes.items():
        for m in (12608, 197):
            fc1 = _operands(m, 1536, 384, **options)
            fc2 = _operands(m, 384, 1536, groups=12, **options)
            qkv = _operands(m, 1152, 384, **options)
            qkv = (qkv[0].view(m // 197, 197, -1), qkv[1].view(m // 197, 197, 1), *qkv[2:])
            residual, signs = on_meta(m, 384), on_meta(1536)
            bits, packed = (4, True) if options.get("a4") else (8, False)
            yield Case(
                f"{scheme}-fc2-{m}",
                lambda c, a=fc2, r=residual: plans.plan_linear(*a, r, capability=c)[0],
            )
            yield Case(
                f"{scheme}-fc1-{m}",
                lambda c, a=fc1, s=signs, b=bits, p=packed: plans.plan_gelu_quantize(
                    *a, "none", s, 32, b, 128, p, capability=c
                )[0],
                sample=m == 12608 and scheme in ("w8a8", "w4a8-groups16"),
            )
            static = on_meta(1, 1)
            yield Case(
                f"{scheme}-fc1-static-{m}",
                lambda c, a=fc1, s=signs, b=bits, p=packed, t=static: plans.plan_gelu_quantize(
                    *a, "none", s, 32, b, 0, p, t, capability=c
                )[0],
            )
            qkv = (*qkv, 6, bits, [], 0.0, None, 0)
            yield Case(f"{scheme}-qkv-{m}", lambda c, a=qkv: plans.plan_qkv(*a, capability=c)[0])
        head = _operands(16, 1000, 384, **options)
        if not options.get("a4"):  # packed rows come in blocks of 64
            narrow = _operands(12608, 384, 96, **options)
            yield Case(
                f"{scheme}-k96-12608",
                lambda c, a=narrow: plans.plan_linear(*a, capability=c)[0],
            )
        yield Case(f"{scheme}-head-16", lambda c, a=head: plans.plan_linear(*a, capability=c)[0])


def _gemm_int8(plans: Any) -> Iterator[Case]:
    return _products(plans, {"w8a8": {}})


def _gemm_int4(plans: Any) -> Iterator[Case]:
    return _products(
        plans,
        {
            "w4a8": {"w4": True},
            "w4a8-groups16": {"w4": True, "width": 16},
            "w4a8-groups32": {"w4": True, "width": 32},
            "w4a4-groups16": {"w4": True, "a4": True, "width": 16},
            "w4a4-groups32": {"w4": True, "a4": True, "width": 32},
        },
    )


def _attention_int8(module: Any) -> Iterator[Case]:
    widths = ((6, 64), (12, 32), (12, 80), (12, 96), (12, 128))
    for tokens in (16, 49, 197, 201, 257, 577, 1370):
        for heads, width in widths if tokens == 197 else widths[:1]:
            shape = (8, heads, tokens, width)
            q, k = (on_meta(*shape, dtype=torch.int8) for _ in range(2))
            v = empty_values(shape, q.device)
            scales = [on_meta(*shape[:3], 1) for _ in range(3)]
            operands = (q, scales[0], k, scales[1], v, scales[2])
            group = 2 * width if width <= 64 else 0
            yield Case(
                f"{tokens}x{width}-group{group}",
                lambda c, a=operands, g=group, w=width: module.plan(
                    *a, None, None, w**-0.5, 8, 8, g, False, capability=c
                )[0][0],
                sample=(tokens, width) == (197, 64),
            )
    yield _attention_with_pairs(module)


def _attention_with_pairs(module: Any) -> Case:
    """Windows of 49 tokens, with a bias for each head and a mask for each of 64 windows, to packed codes."""
    q, k = (on_meta(128, 4, 49, 32, dtype=torch.int8) for _ in range(2))
    scale, bias = on_meta(128, 4, 49, 1), on_meta(1, 4, 49, 49)
    mask = on_meta(64, 1, 49, 49, dtype=torch.bool)
    operands = (q, scale, k, scale, empty_values((128, 4, 49, 32), q.device), scale, bias, mask)
    return Case(
        "49x32-group128-bias-mask-packed",
        lambda c: module.plan(*operands, 32**-0.5, 8, 4, 128, True, capability=c)[0][0],
    )


# By kernel file: the module that plans its launches, and what makes cases of it.
FAMILIES: dict[str, tuple[str, Callable[[Any], Iterator[Case]]]] = {
    "ln_quant": ("ln_quant", _ln_quant),
    "pixels": ("pixels", _pixels),
    "gemm_int8": ("gemm_plans", _gemm_int8),
    "gemm_int4": ("gemm_plans", _gemm_int4),
    "attention_int8": ("attention_int8", _attention_int8),
}


def cases_of(kernel: str) -> list[Case]:
    """All cases of a kernel file of qvit_kernels."""
    module, cases = FAMILIES[kernel]
    return list(cases(import_module(f"qvit_kernels.{module}")))
