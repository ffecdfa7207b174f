"""The kernels of a DeiT block as cases: shapes, bytes and operations, and how to make the operands.

One case is one op of `qvit_kernels.ops` at one model, batch and scheme, with the groups and transforms that the
default recipe gives that scheme. `bytes` are those that must cross memory if every operand is read once and every
result written once; `operations` count a multiplication and an addition as two.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.cases.operands import Operands
from qvit.models.config import ViTConfig
from qvit.models.plan import plan_scheme
from qvit.quant.schemes import LinearScheme, ModelScheme
from qvit.recipe import Recipe
from qvit_kernels import ops
from qvit_kernels.reference import Quantized, Weight

TOKENS = 197
MODELS = {"deit_t": (192, 3), "deit_s": (384, 6), "deit_b": (768, 12)}  # width, heads
# Timed as a whole only.
LARGE = {"vit_l": (1024, 16)}
_DEPTHS = {"vit_l": 24}
# A model that an interpreter gets through: 5 tokens, of the width that int4 blocks ask for.
TINY = {"tiny": (64, 2)}
BATCHES = (1, 8, 64, 256)
SCHEMES = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
# "product" is fc1 without its epilogue: the integer GEMM with float output, as a rival's is.
KERNELS = ("fc1", "qkv", "attention", "fc2", "proj", "ln_quant", "product")

Call = Callable[[str], object]  # of the backend


# How proj's and fc2's inputs are quantized: in groups of 128 columns, as the default recipe has it, which makes seven
# launches a block; or with a scale a token, which makes eight or nine.
PER_TOKEN = ("activations.proj_group=0", "activations.fc2_group=0")
FORMS = {"default": (), "a scale a token": PER_TOKEN}


def depth_of(model: str) -> int:
    """Blocks of a whole model."""
    return _DEPTHS.get(model, 12)


def model_config(model: str, depth: int | None = None) -> ViTConfig:
    """The shape of a DeiT, of ViT-L, or of the tiny stand-in of a dry run. depth: None for all of its blocks."""
    width, heads = (MODELS | LARGE | TINY)[model]
    size = 32 if model in TINY else 224
    depth = depth_of(model) if depth is None else depth
    return ViTConfig(
        image_size=(size, size),
        patch_size=(16, 16),
        in_chans=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        num_classes=8 if model in TINY else 1000,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        head_dim=width // heads,
        hidden_dim=4 * width,
        class_token=True,
        dist_token=False,
        reg_tokens=0,
        pos_embed=True,
        no_embed_class=False,
        pre_norm=False,
        final_norm=True,
        fc_norm=False,
        global_pool="token",
        pool_include_prefix=False,
        qk_norm=False,
        norm_eps=1e-6,
        gelu="none",
    )


@lru_cache(maxsize=64)
def scheme_of(
    model: str, scheme: str, depth: int | None = None, form: str = "default"
) -> ModelScheme:
    """The default recipe of a scheme in one of FORMS, resolved for a model."""
    weight_bits, activation_bits = SCHEMES[scheme]
    recipe = Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)
    recipe = recipe.override(list(FORMS[form]))
    return plan_scheme(model_config(model, depth), recipe)


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel at a model, batch and scheme."""

    kernel: str
    model: str
    batch: int
    scheme: str

    @property
    def name(self) -> str:
        """Such as fc1-deit_s-b64-W4A8."""
        return f"{self.kernel}-{self.model}-b{self.batch}-{self.scheme}"

    @property
    def tokens(self) -> int:
        """Of an image."""
        return TOKENS if self.model in MODELS else 5

    @property
    def rows(self) -> int:
        """M: tokens of the batch."""
        return self.batch * self.tokens

    @property
    def width(self) -> int:
        """D: channels of the residual stream."""
        return (MODELS | TINY)[self.model][0]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return (MODELS | TINY)[self.model][1]

    @property
    def product(self) -> tuple[int, int]:
        """N and K of the matrix product; (0, 0) for a kernel without weights."""
        d = self.width
        shapes = {"qkv": (3 * d, d), "proj": (d, d), "fc1": (4 * d, d), "fc2": (d, 4 * d)}
        return (shapes | {"product": (4 * d, d)}).get(self.kernel, (0, 0))

    @property
    def residual(self) -> torch.dtype:
        """Of the residual stream."""
        return getattr(torch, scheme_of(self.model, self.scheme).residual)

    @property
    def bytes(self) -> int:
        """Read and written once each."""
        return _BYTES[self.kernel](self)

    @property
    def operations(self) -> int:
        """Integer multiplications and additions of the matrix products."""
        if self.kernel == "attention":
            return 2 * 2 * self.rows * self.tokens * self.width
        n, k = self.product
        return 2 * self.rows * n * k

    def make(self, device: torch.device, seed: int = 0) -> Call:
        """Random operands on a device, and the op on them as a function of the backend."""
        return _CALLS[self.kernel](self, Operands(device, seed))

    def linear(self, name: str) -> LinearScheme:
        """The scheme of a Linear of the block: "attn.qkv", "attn.proj", "mlp.fc1" or "mlp.fc2"."""
        return scheme_of(self.model, self.scheme).linears[f"blocks.0.{name}"]

    @property
    def input(self) -> LinearScheme:
        """The scheme of the Linear that the kernel reads for."""
        names = {"qkv": "attn.qkv", "proj": "attn.proj", "fc2": "mlp.fc2"}
        return self.linear(names.get(self.kernel, "mlp.fc1"))


def block_cases(model: str, batch: int, scheme: str) -> list[Case]:
    """The seven launches of a block, in order."""
    order = ("ln_quant", "qkv", "attention", "proj", "ln_quant", "fc1", "fc2")
    return [Case(kernel, model, batch, scheme) for kernel in order]


def all_cases() -> Iterator[Case]:
    """Every kernel of every model, batch and scheme."""
    for model in MODELS:
        for batch in BATCHES:
            for kernel in KERNELS:
                for scheme in SCHEMES:
                    yield Case(kernel, model, batch, scheme)


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _codes(values: int, bits: int) -> int:
    """int4 codes travel packed."""
    return values // 2 if bits <= 4 else values


def _quantized(rows: int, width: int, bits: int, group: int) -> int:
    return rows * (_codes(width, bits) + 4 * (width // group if group else 1))


def _weights(n: int, k: int, scheme: LinearScheme) -> int:
    """Codes, multipliers, scale and bias."""
    group = scheme.weight.group
    return n * (_codes(k, scheme.weight.bits) + (k // group if group else 0) + 8)


def _read(case: Case) -> int:
    """The operands of a matrix product."""
    n, k = case.product
    scheme = case.input
    return _quantized(case.rows, k, scheme.input.bits, scheme.input.group) + _weights(n, k, scheme)


def _bytes_ln_quant(case: Case) -> int:
    to = case.linear("mlp.fc1")
    vectors = 3 if to.transform else 2
    written = _quantized(case.rows, case.width, to.input.bits, to.input.group)
    return case.residual.itemsize * case.rows * case.width + 4 * vectors * case.width + written


def _bytes_qkv(case: Case) -> int:
    return _read(case) + 3 * case.rows * (case.width + 4 * case.heads)


def _bytes_attention(case: Case) -> int:
    to = case.linear("attn.proj").input
    read = 3 * case.rows * (case.width + 4 * case.heads)
    return read + _quantized(case.rows, case.width, to.bits, to.group)


def _bytes_residual(case: Case) -> int:
    return _read(case) + 2 * case.residual.itemsize * case.rows * case.width


def _bytes_fc1(case: Case) -> int:
    to = case.linear("mlp.fc2")
    signs = 4 * 4 * case.width if to.transform else 0
    written = _quantized(case.rows, 4 * case.width, to.input.bits, to.input.group)
    return _read(case) + signs + written


def _bytes_product(case: Case) -> int:
    return _read(case) + 4 * case.rows * case.product[0]


_BYTES: dict[str, Callable[[Case], int]] = {
    "ln_quant": _bytes_ln_quant,
    "qkv": _bytes_qkv,
    "attention": _bytes_attention,
    "proj": _bytes_residual,
    "fc1": _bytes_fc1,
    "fc2": _bytes_residual,
    "product": _bytes_product,
}


# ---- calls -----------------------------------------------------------------------------------------------------------


def _product_operands(case: Case, make: Operands) -> tuple[Quantized, Weight, Tensor]:
    n, k = case.product
    scheme = case.input
    bits, group = scheme.input.bits, scheme.input.group
    shape = (case.batch, case.tokens, k)
    x = make.rows(*shape, bits=bits, groups=k // group if group else 1, packed=bits <= 4)
    weight = make.weight(n, k, bits=scheme.weight.bits, group=scheme.weight.group)
    return x, weight, make.floats(n)


def _call_ln_quant(case: Case, make: Operands) -> Call:
    to, d = case.linear("mlp.fc1"), case.width
    x = make.floats(case.batch, case.tokens, d, dtype=case.residual)
    weight, bias = make.floats(d), make.floats(d)
    turn, bits = make.transform(d, to.transform), to.input.bits
    return lambda backend: ops.layernorm_quantize(
        x, weight, bias, 1e-6, turn, bits, to.input.group, packed=bits <= 4, backend=backend
    )


def _call_qkv(case: Case, make: Operands) -> Call:
    x, weight, bias = _product_operands(case, make)
    bits = scheme_of(case.model, case.scheme).attentions["blocks.0.attn"].qkv.bits
    return lambda backend: ops.linear_qkv(x, weight, bias, case.heads, bits, backend=backend)


def _call_attention(case: Case, make: Operands) -> Call:
    scheme = scheme_of(case.model, case.scheme).attentions["blocks.0.attn"]
    to, d = case.linear("attn.proj").input, case.width // case.heads
    q, k, v = make.heads(case.batch, case.heads, case.tokens, d, scheme.qkv.bits)
    return lambda backend: ops.attention(
        q, k, v, d**-0.5, scheme.softmax_bits, to.bits, to.group,
        packed=to.bits <= 4, backend=backend,
    )  # fmt: skip


def _call_residual(case: Case, make: Operands) -> Call:
    x, weight, bias = _product_operands(case, make)
    residual = make.floats(case.batch, case.tokens, case.width, dtype=case.residual)
    return lambda backend: ops.linear_residual(x, weight, bias, residual, backend=backend)


def _call_fc1(case: Case, make: Operands) -> Call:
    to, (x, weight, bias) = case.linear("mlp.fc2"), _product_operands(case, make)
    turn, bits = make.transform(4 * case.width, to.transform), to.input.bits
    return lambda backend: ops.linear_gelu_quantize(
        x, weight, bias, "none", turn, bits, to.input.group, packed=bits <= 4, backend=backend
    )


def _call_product(case: Case, make: Operands) -> Call:
    x, weight, bias = _product_operands(case, make)
    return lambda backend: ops.linear(x, weight, bias, backend=backend)


_CALLS: dict[str, Callable[[Case, Operands], Call]] = {
    "ln_quant": _call_ln_quant,
    "qkv": _call_qkv,
    "attention": _call_attention,
    "proj": _call_residual,
    "fc1": _call_fc1,
    "fc2": _call_residual,
    "product": _call_product,
}
