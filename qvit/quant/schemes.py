"""Schemes: small frozen values that say how one tensor is quantized, and how the tensors of a model are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from qvit_kernels.reference import code_range


class Granularity(StrEnum):
    """Which values share a scale. Shapes are those of a scale for a tensor [B, T, K] or a weight [N, K]."""

    TENSOR = "tensor"  # []
    CHANNEL = "channel"  # [N], output channels of a weight; [K] of an activation
    TOKEN = "token"  # [B, T, 1]
    HEAD = "head"  # [B, H, T, 1]: per token and head
    GROUP = "group"  # [B, T, K / group] or [N, K / group]


class Mode(StrEnum):
    """When a scale is decided."""

    DYNAMIC = "dynamic"  # from the tensor itself, each time
    STATIC = "static"  # once, from calibration or a known range
    LEARNED = "learned"  # static, then trained with the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How one tensor becomes integers. `prefix`: so many tokens, the first of every image, have 8 bits, not `bits`.

    rows, columns: Bits of equal slices of a weight's rows, or of its columns, where they differ (see quant.slices);
    `bits` is the most of them then.
    """

    bits: int
    granularity: Granularity
    mode: Mode = Mode.DYNAMIC
    symmetric: bool = True
    group: int = 0
    prefix: int = 0
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.granularity is Granularity.GROUP) != (self.group > 0):
            raise ValueError(
                f"granularity {self.granularity} with group = {self.group}: a group size belongs to "
                "granularity 'group', and to no other"
            )
        if self.mode is not Mode.DYNAMIC and self.granularity is Granularity.TOKEN:
            raise ValueError("a scale per token cannot be static: other images have other tokens")
        if self.mode is Mode.DYNAMIC and self.granularity is Granularity.CHANNEL:
            raise ValueError(
                "a scale per channel cannot be dynamic: it would mix the tokens of a batch"
            )
        if self.prefix and (self.mode is not Mode.DYNAMIC or self.prefix < 0 or self.bits == 8):
            raise ValueError(
                f"prefix = {self.prefix} at {self.bits} bits, {self.mode}: 8 bits for the first tokens belong to "
                "dynamic scales of fewer bits"
            )
        if self.rows or self.columns:
            self._check_slices()

    def _check_slices(self) -> None:
        if self.rows and self.columns:
            raise ValueError("a weight has slices of its rows or of its columns, not of both")
        if self.mode is Mode.DYNAMIC or max(self.slices) != self.bits or len(set(self.slices)) == 1:
            raise ValueError(
                f"slices of {self.slices} bits in a tensor of {self.bits}, {self.mode}: they belong to static scales, "
                "differ, and the most is that of the tensor"
            )
        if self.columns and not self.group:
            raise ValueError("slices of columns need groups: rows have one scale for all of them")

    @property
    def slices(self) -> tuple[int, ...]:
        """Bits of each slice; of all where they are alike."""
        return self.rows or self.columns or (self.bits,)

    @property
    def mean_bits(self) -> float:
        """Of a value: as many as it takes in a file."""
        return sum(self.slices) / len(self.slices) if len(self.slices) > 1 else self.bits

    @property
    def codes(self) -> tuple[int, int]:
        """Smallest and largest code: (-8, 7) for symmetric 4 bits, (0, 15) for affine."""
        return code_range(self.bits) if self.symmetric else (0, 2**self.bits - 1)

    @property
    def largest(self) -> int:
        """No code is larger in magnitude, those of the prefix among them."""
        return 127 if self.prefix else max(map(abs, self.codes))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScheme:
    """One Linear: its weight, its input, and the block size of the transform on that input (0: none)."""

    weight: Scheme
    input: Scheme
    transform: int = 0

    @property
    def container_bits(self) -> int:
        """Bits that a weight takes in memory, where kernels read it: two of up to 4 bits share a byte."""
        return 4 if self.weight.bits <= 4 else 8

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict`. Raises TypeError, ValueError or KeyError for anything else."""
        schemes = {name: _scheme(values[name]) for name in ("weight", "input")}
        return cls(**{**values, **schemes})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionScheme:
    """One attention: Q, K and V, the softmax numerators, and whether heads are rotated."""

    qkv: Scheme
    softmax_bits: int
    rotate_qk: bool
    rotate_v: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScheme:
    """The schemes of a whole model, by timm's module names, and the dtype of its residual stream."""

    linears: Mapping[str, LinearScheme]
    attentions: Mapping[str, AttentionScheme]
    residual: str

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values for config.json; modules with one scheme share an entry."""
        return {
            "linears": _grouped(self.linears),
            "attentions": _grouped(self.attentions),
            "residual": self.residual,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises TypeError, ValueError or KeyError for anything else."""
        return cls(
            linears={
                n: LinearScheme.from_dict(v["scheme"])
                for v in values["linears"]
                for n in v["targets"]
            },
            attentions={
                n: _attention(v["scheme"]) for v in values["attentions"] for n in v["targets"]
            },
            residual=values["residual"],
        )


def _grouped(schemes: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[Any, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    return [{"targets": n, "scheme": _plain(s)} for s, n in groups.items()]


def _plain(scheme: Any) -> dict[str, Any]:
    """Without slices where there are none: what has none is written as before there were any."""
    return dataclasses.asdict(
        scheme, dict_factory=lambda items: {name: value for name, value in items if value != ()}
    )


def _scheme(values: Mapping[str, Any]) -> Scheme:
    return Scheme(
        **{
            **values,
            "granularity": Granularity(values["granularity"]),
            "mode": Mode(values["mode"]),
            "rows": tuple(values.get("rows", ())),
            "columns": tuple(values.get("columns", ())),
        }
    )


def _attention(values: Mapping[str, Any]) -> AttentionScheme:
    return AttentionScheme(**{**values, "qkv": _scheme(values["qkv"])})
