"""Operands of integer products, and launches whose surroundings are watched."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.guarded_memory import is_unbroken, surround
from qvit_kernels import composed, gemm_plans
from qvit_kernels.launching import Launch
from qvit_kernels.packing import pack_int4
from qvit_kernels.tiles import Tile
from tests.kernels.operands import random

KINDS = ("w8a8", "w4a8", "w4a4")
ROWS = (0, 1, 16, 17, 63, 197, 394)
WIDTHS = (24, 96, 192)
_READ = 0x7F  # around operands: the worst int8 to read by mistake, and as a float 3e38 or NaN


@dataclass(frozen=True)
class Product:
    """The operands that every op with a matrix product starts with."""

    x: Tensor
    x_scale: Tensor
    w: Tensor
    w_scale: Tensor
    multiplier: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.x, self.x_scale, self.w, self.w_scale, self.multiplier))

    def surrounded(self) -> "Product":
        """The same values between bytes that must not be read."""
        return Product(*(None if t is None else surround(t, _READ) for t in self))


def product(
    kind: str,
    rows: int | tuple[int, ...],
    n: int,
    k: int,
    *,
    groups: int = 1,
    static: bool = False,
    width: int = 0,
) -> Product:
    """Random operands. groups: of x's scales; width: columns that share a weight multiplier, 0 for none."""
    lead = (rows,) if isinstance(rows, int) else rows
    x, x_scale = random.rows(*lead, k, bits=4 if kind == "w4a4" else 8, groups=groups)
    if static:
        x_scale = random.scales(1, groups)
    weight = random.weight(n, k, bits=8 if kind == "w8a8" else 4, group=width)
    return Product(pack_int4(x) if kind == "w4a4" else x, x_scale, *weight)


def run(planned: tuple[Launch, Any]) -> Any:
    """Run a launch with its results between canaries; the results, once nothing else was written."""
    launch, results = planned
    single = isinstance(results, Tensor)
    outputs = [results] if single else list(results)
    arguments = dict(launch.arguments)
    watched = []
    for output in outputs:
        (name,) = [name for name, value in arguments.items() if value is output]
        watched.append(arguments.__setitem__(name, surround(output)) or arguments[name])
    replace(launch, arguments=arguments).run()
    for tensor in watched:
        if tensor.numel():
            assert is_unbroken(tensor), "written outside a result"
    return watched[0] if single else tuple(watched)


def share_off(codes: Tensor, expected: Tensor) -> float:
    """Share of codes that differ; fails where one differs by more than a step."""
    difference = (codes.int() - expected.int()).abs()
    assert difference.max() <= 1
    return (difference != 0).float().mean().item()


def check_linear(operands: Product, bias: Tensor | None = None, tile: Tile | None = None) -> None:
    """The kernel gives what the reference gives, bit by bit, and touches nothing else."""
    assert gemm_plans.supports(*operands) is None
    y = run(gemm_plans.plan_linear(*operands.surrounded(), bias, tile=tile))
    assert torch.equal(y, composed.linear(*operands, bias))
