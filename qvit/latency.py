"""How fast a quantized folder runs beside its float model: variants in turns, in one process, on
one machine.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvit import machine, timing, zoo
from qvit.deployment.placement import require_device, resolve_backend
from qvit.deployment.provenance import read_architecture
from qvit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from qvit.deployment import QuantViT
    from qvit.zoo import Source

FLOAT_VARIANTS = ("fp32", "bf16", "fp32-compile", "bf16-compile")
DEFAULT_VARIANTS = ("fp32", "bf16", "bf16-compile", "qvit")
COLUMNS = ("p50", "p90", "p99")

Predict = Callable[["torch.Tensor"], object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure.

    `variants`: names of FLOAT_VARIANTS, and "qvit" for the folder itself, once per entry of
    `backends`. `batches`: images a call. `rounds`: turns of each variant at each batch size.
    """

    variants: tuple[str, ...] = DEFAULT_VARIANTS
    backends: tuple[str, ...] = ("auto",)
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 10
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*FLOAT_VARIANTS, "qvit")
        for name in self.variants:
            if name not in known:
                raise UsageError(f"unknown variant {name!r}; known: {', '.join(known)}")
        if not self.variants:
            raise UsageError("no variant to measure; name some, such as --variants fp32,qvit")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes must be 1 or more, got {list(self.batches)}")
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds}: at least 1 is needed")


def compare_folder(folder: Path, request: Request, *, progress: bool = True) -> dict[str, Any]:
    """Times the quantized model in `folder` and the float variants of its architecture.

    The float variants have random weights (seeded): values do not change the time, and the float
    weights need not be at hand.

    Returns:
        `rows`: one a variant and batch size, with `variant`, `batch`, `latency_ms` {`p50`, `p90`,
        `p99`}, `images_per_s` (batch / p50), `calls` (samples behind the percentiles),
        `speedup_over_fp32` (paired by round; None where fp32 was not measured). `left_out`:
        variants that cannot run here, with the reason. `machine`. Also `model`, `scheme`, `device`,
        `input_size`, `rounds`, `schema_version`.

    Raises:
        InputError: the folder is no quantized model.
        RequirementError: the device or a backend is missing.
    """
    from qvit.deployment import QuantViT, checkpoint

    require_device(request.device)
    built: dict[str, Predict] = {}
    scheme = checkpoint.read_config(folder)["quantization_config"]["scheme"]
    wanted = request.backends if "qvit" in request.variants else ()
    for backend in dict.fromkeys(resolve_backend(b, request.device) for b in wanted):
        model = QuantViT.from_pretrained(folder, device=request.device, backend=backend)
        model.warmup(request.batches)
        built[_variant_name(model)] = model
    source = read_architecture(folder)
    result = _compare(source, built, request, progress)
    return {"model": source.timm_name, "scheme": scheme, "folder": str(folder)} | result


def compare_float(source: "Source", request: Request, *, progress: bool = True) -> dict[str, Any]:
    """Times the float variants of an architecture alone; the result is that of `compare_folder`."""
    require_device(request.device)
    variants = tuple(name for name in request.variants if name != "qvit")
    if not variants:
        raise UsageError(
            f"{source.name} is a float model; `qvit` is timed for a folder that `qvit quantize` "
            "wrote"
        )
    request = dataclasses.replace(request, variants=variants)
    source = dataclasses.replace(source, pretrained=False, weights=None)
    result = _compare(source, {}, request, progress)
    return {"model": source.timm_name, "scheme": None, "folder": None} | result


def _variant_name(model: "QuantViT") -> str:
    return f"qvit-{model.scheme.lower().replace(' ', '-')}-{model.backend}"


def _compare(
    source: "Source",
    quantized: dict[str, Predict],
    request: Request,
    progress: bool,
) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    input_size = tuple(source.pretrained_cfg["input_size"])
    total = len(request.batches) * request.rounds
    generator = torch.Generator().manual_seed(request.seed)
    with (
        torch.inference_mode(),
        tqdm(total=total, unit="round", disable=None if progress else True) as bar,
    ):
        floats = _build_floats(source, request, left_out)
        for batch in request.batches:
            images = torch.randn(batch, *input_size, generator=generator).to(request.device)
            calls = _callables(floats, images, left_out) | {
                name: _bind(model, images) for name, model in quantized.items()
            }
            if not calls:
                break
            taken = timing.measure(
                calls, rounds=request.rounds, device=request.device, after_round=bar.update
            )
            rows += [_row(name, batch, taken) for name in taken]
    return {
        "device": request.device,
        "input_size": list(input_size),
        "rounds": request.rounds,
        "rows": rows,
        "left_out": [{"variant": name, "reason": reason} for name, reason in left_out.items()],
        "machine": machine.describe_machine(),
        "schema_version": 1,
    }


def _row(name: str, batch: int, taken: dict[str, timing.Timing]) -> dict[str, Any]:
    ours = taken[name]
    return {
        "variant": name,
        "batch": batch,
        "latency_ms": {column: ours.percentile(float(column[1:])) for column in COLUMNS},
        "images_per_s": batch / ours.median * 1000,
        "calls": len(ours.samples),
        "speedup_over_fp32": ours.speedup_over(taken["fp32"]) if "fp32" in taken else None,
    }


def _build_floats(
    source: "Source", request: Request, left_out: dict[str, str]
) -> dict[str, tuple[Predict, "torch.dtype"]]:
    """The float variants asked for: name -> (model, dtype of its images). Compilation happens at
    the first call.
    """
    import torch

    wanted = [name for name in FLOAT_VARIANTS if name in request.variants]
    if not wanted:
        return {}
    on_cpu = request.device.startswith("cpu")
    if on_cpu and machine.find_compiler() is None:
        for name in [name for name in wanted if name.endswith("-compile")]:
            left_out[name] = "torch.compile needs a C++ compiler on a CPU, and none was found"
            wanted.remove(name)
    built: dict[str, tuple[Predict, torch.dtype]] = {}
    for name in wanted:
        dtype = torch.bfloat16 if name.startswith("bf16") else torch.float32
        model = zoo.load(source, seed=request.seed).to(request.device, dtype).eval()
        built[name] = (
            torch.compile(model, dynamic=False) if name.endswith("-compile") else model,
            dtype,
        )
    return built


def _callables(
    floats: dict[str, tuple[Predict, "torch.dtype"]],
    images: "torch.Tensor",
    left_out: dict[str, str],
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for name, (model, dtype) in list(floats.items()):
        call = _bind(model, images.to(dtype))
        if name.endswith("-compile"):
            try:
                with _quiet_compiler():
                    call()
            except Exception as error:  # noqa: BLE001 - whatever the compiler dislikes, the others can still be timed
                first_line = (str(error).splitlines() or [""])[0]
                left_out[name] = f"torch.compile failed: {type(error).__name__}: {first_line}"
                del floats[name]
                continue
        calls[name] = call
    return calls


def _bind(model: Predict, images: "torch.Tensor") -> Callable[[], object]:
    return lambda: model(images)


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """The compiler warns about its own internals; none of it is about the user's model."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
