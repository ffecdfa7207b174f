"""How an op is computed: by which backend, in which launches, and why not by the fast ones where it is not."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from qvit_kernels import backends, compiled
from qvit_kernels.integer_matmul import int8_matmul_is_exact, int8_matmul_pays

_WITHOUT_PRODUCTS = ("layernorm_quantize", "quantize_pixels", "quantize_rows")


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one op to its result.

    Attributes:
        backend: Which computes it: "reference" also where "triton" has no kernel for the shapes.
        kernels: Names of the Triton kernels it launches, in order, or "vnni" for the compiled path of a processor; none
            where torch's own kernels compute it. With a reason beside them, what comes after the last falls back.
        tiles: How each of them is cut into programs.
        computes_in: "int8" or "float", which its matrix products are made in, exactly either way; None if it has none.
        reason: Why the fast way was not taken; None where it was, or the slow one was asked for.
    """

    backend: str
    kernels: tuple[str, ...]
    tiles: tuple[str, ...]
    computes_in: str | None
    reason: str | None


def find_route(op: str, arguments: tuple[Any, ...], backend: str | None = None) -> Route:
    """The route of a registered op with these arguments, which are all but the backend. Nothing is computed.

    Raises BackendError where the backend cannot run here.
    """
    device = arguments[0].device
    products = op not in _WITHOUT_PRODUCTS
    name = backends.backend() if backend is None else backend
    chosen = backends.resolve(device, name)
    if chosen == "cpu" and compiled.takes(op, arguments):
        return Route(chosen, (compiled.KERNEL,), (), _dtype("int8", products), None)
    if chosen == "cpu":
        pays = not products or int8_matmul_pays()
        fault = "is slower than its fp32 one" if int8_matmul_is_exact() else "saturates"
        reason = None if pays else f"this processor's int8 product {fault} (no VNNI)"
        return Route(chosen, (), (), _dtype("int8" if pays else "float", products), reason)
    if chosen == "reference":
        reason = backends.no_triton(device) if name == "auto" else None
        return Route(chosen, (), (), _dtype("float", products), reason)
    # not imported before: Triton takes a second, and may not be installed
    fused_plans = import_module("qvit_kernels.fused_plans")
    plan = fused_plans.plan_of(op, arguments)
    described = [fused_plans.describe(launch) for launch in plan.launches]
    kernels, tiles = (
        (tuple(part) for part in zip(*described, strict=True)) if described else ((), ())
    )
    reason = None if plan.rest is None else plan.rest.reason
    if reason and not kernels:
        return Route("reference", (), (), _dtype("float", products), reason)
    return Route(chosen, kernels, tiles, _dtype("int8", products), reason)


def _dtype(name: str, products: bool) -> str | None:
    return name if products else None
