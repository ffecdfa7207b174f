"""One benchmark from request to report."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qvit.deployment.placement import require_device, resolve_backend
from qvit.errors import RequirementError
from qvit.kept import LATENCY, SCHEMA_VERSIONS
from qvit.latency.agreement import answer, draw_for, find_agreement
from qvit.latency.circumstances import describe_run, find_warnings, warn_of_variation
from qvit.latency.floats import FloatModels, Runner, compile_all
from qvit.latency.footprint import Nursery
from qvit.latency.launches import count_launches
from qvit.latency.measuring import measure_calls, speedups
from qvit.latency.quantized import Quantized, open_folder
from qvit.latency.rates import find_rates
from qvit.latency.request import Request, Subject
from qvit.latency.steps import sum_by_kind, time_steps
from qvit.latency.variants import VARIANTS
from qvit.latency.verdict import judge

# A variant that nobody named is left out where a pass takes longer than this, and so many times as long as fp32's.
_SLOW_SECONDS, _SLOW_TIMES = 0.5, 3.0
_NO_ANSWERS = (
    "the float model's weights are not at hand, so that nobody asked whether answers agree with it"
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A variant that runs here: what it is, and how it is called for a batch size."""

    storage_bits: float
    compute_dtype: str
    mode: str
    runners: dict[int, Runner]
    own: Quantized | None = None


def bench(
    subject: Subject,
    request: Request,
    *,
    progress: bool = True,
    after_round: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Time a model and its rivals in turns, and say why; `after_round` is called between rounds, outside all times.

    Returns the report, plain values. `rows`, one a variant and batch size: `model` (as it was asked for),
    `resolved_name` (timm's, with its tag), `variant`, `storage_bits`, `compute_dtype`, `mode`, `batch`, `img_size`,
    `iters` (calls counted), `warmup` (calls before the first round), `latency_ms` {mean, std, min, p50, p90, p95,
    p99, max, ci95}, `device_ms` (the same by the device's clock; None on a CPU, where it is the same),
    `images_per_s`, `rounds_ms` (each round's median), `raw_samples` (every call's time by round, where asked for),
    `speedup_vs` {float variant or "best_float": {ratio, low, high, spread, steady}}, `peak_mem_mb`, `weights_mb`,
    `load_s`, `first_call_s` (with compilers' caches on the disk filled), `launch_count`, `agree_top1_with_float`.
    `layers`, and `kinds` (those of all blocks together): see steps.py. `verdict`, `warnings`: sentences. `left_out`:
    variants with `reason` and `command`. What cannot be measured is None.

    Raises:
        InputError: The folder is no quantized model.
        UsageError: A backend is unknown.
        RequirementError: The device or a backend is missing, or nothing that was asked for can run.
    """
    require_device(request.device)
    backends = []
    if subject.folder is not None:
        backends = list(dict.fromkeys(resolve_backend(b, request.device) for b in request.backends))
    with _on(request.device):
        return _bench(subject, request, backends, _Progress(progress, request, after_round))


def _bench(
    subject: Subject, request: Request, backends: Sequence[str], bar: "_Progress"
) -> dict[str, Any]:
    warnings = find_warnings(request.device)
    source = subject.source
    size = tuple(source.pretrained_cfg["input_size"])
    generator = torch.Generator().manual_seed(request.seed)
    images = {
        b: torch.randn(b, *size, generator=generator).to(request.device) for b in request.batches
    }
    compilations = len(VARIANTS) * len(request.batches)
    with (
        tempfile.TemporaryDirectory(prefix="qvit-bench-") as work,
        torch.inference_mode(),
        compile_all(compilations),
    ):
        floats = FloatModels(source, request.device, request.seed, Path(work))
        with bar:
            bar.say("rates of this machine")
            rates = find_rates(request.device)  # before compilers have warmed and filled it
            entries, left_out = _build(request, floats, images, bar)
            for backend in backends:
                own = _open(subject, request, backend, bar)
                entries[own.name] = _as_entry(own, request.batches)
                warnings += own.remarks
            if not entries:
                reasons = "; ".join(f"{item['variant']}: {item['reason']}" for item in left_out)
                raise RequirementError(f"nothing that was asked for can run here: {reasons}")
            rows, layers = [], []
            for batch in request.batches:
                rows += _time(entries, batch, images[batch], request, bar)
            rows = [
                {"model": subject.name, "resolved_name": source.timm_name, **row} for row in rows
            ]
            for entry in entries.values():
                if entry.own is not None:
                    for batch in request.batches:
                        layers += time_steps(entry.own, images[batch], rates, bar.say)
            warnings += _add_answers(rows, entries, subject, request, bar)
            if request.footprint:
                warnings += _add_footprints(rows, subject, request, Path(work), bar)
            warnings += warn_of_variation(rows)
    found = {
        "schema_version": SCHEMA_VERSIONS[LATENCY],
        **describe_run(request.device),
        "model": subject.name,
        "resolved_name": source.timm_name,
        "scheme": _scheme(entries),
        "folder": None if subject.folder is None else str(subject.folder),
        "float_weights": subject.weights is not None,
        "device": request.device,
        "input_size": list(size),
        "param_count": _parameters(source),
        "rounds": min((len(row["rounds_ms"]) for row in rows), default=0),
        "rates": rates.to_dict(),
        "rows": rows,
        "layers": layers,
        "kinds": sum_by_kind(layers),
        "left_out": left_out,
        "warnings": warnings,
    }
    return found | {"verdict": judge(found)}


def _on(device: str) -> AbstractContextManager[object]:
    """Events, synchronisation and memory statistics are those of torch's current card: make it the one asked for."""
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.device(torch.device(device).index or 0)


def _build(
    request: Request,
    floats: FloatModels,
    images: Mapping[int, Tensor],
    bar: "_Progress",
) -> tuple[dict[str, _Entry], list[dict[str, Any]]]:
    entries: dict[str, _Entry] = {}
    left_out: list[dict[str, Any]] = []
    fp32_seconds = None
    for name in request.variants:
        variant = VARIANTS[name]
        missing = variant.find_missing(request.device)
        if missing is not None:
            left_out.append({"variant": name, "reason": missing.reason, "command": missing.command})
            continue
        bar.say(f"preparing {name}")
        limit = None
        if not request.chosen and name != "fp32" and fp32_seconds is not None:
            limit = max(_SLOW_SECONDS, _SLOW_TIMES * fp32_seconds)
        runners: dict[int, Runner] = {}
        for batch in sorted(request.batches):
            try:
                with _quiet_libraries():
                    runner = variant.build(floats, images[batch])
                    seconds = _try(runner, images[batch], request.device)
                if name == "fp32" and fp32_seconds is None:
                    fp32_seconds = seconds
                if limit is not None and seconds > limit:
                    raise _TooSlowError(seconds, batch, fp32_seconds or 0.0)
            except Exception as error:  # noqa: BLE001 - whatever a library dislikes, the others can still be timed
                first = batch if runners else None
                left_out.append({"variant": name, **_reason(error, name, first)})
                break
            runners[batch] = runner
            limit = None  # the smallest batch has told
        if not runners:
            continue
        entries[name] = _Entry(variant.storage_bits, variant.compute_dtype, variant.mode, runners)
    return entries, left_out


def _open(subject: Subject, request: Request, backend: str, bar: "_Progress") -> Quantized:
    assert subject.folder is not None
    bar.say(f"loading the {backend} backend")
    return open_folder(subject.folder, backend, request.device, request.batches)


def _as_entry(own: Quantized, batches: Sequence[int]) -> _Entry:
    runners = dict.fromkeys(batches, own.runner)
    return _Entry(own.storage_bits, own.compute_dtype, own.mode, runners, own)


class _TooSlowError(Exception):
    """A variant takes so long that measuring it would take minutes, and tell nothing."""

    def __init__(self, seconds: float, batch: int, fp32: float) -> None:
        times = f", {seconds / fp32:.1f} times what fp32 takes" if fp32 else ""
        super().__init__(f"too slow here: a pass of batch {batch} takes {seconds:.1f} s{times}")


def _reason(error: Exception, name: str, batch: int | None) -> dict[str, Any]:
    """batch: The first that failed, where smaller ones did not."""
    if isinstance(error, _TooSlowError):
        return {"reason": str(error), "command": f"qvit bench ... --baseline {name}"}
    first_line = (str(error).splitlines() or [""])[0]
    where = "" if batch is None else f" from batch {batch} on"
    return {"reason": f"failed{where}: {type(error).__name__}: {first_line}", "command": None}


def _try(runner: Runner, images: Tensor, device: str) -> float:
    """Call a few times; the seconds of the last call, which compiles nothing any more."""
    from qvit import timing

    return (
        timing.measure(
            {"it": runner.bind(images)}, rounds=1, warmup=1, device=device, turn_seconds=0.0
        )["it"].median
        / 1000
    )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Compilers and exporters warn about their own internals, and draw bars where the report may be piped; none of it
    is about the user's model.
    """
    import io
    import logging
    import warnings

    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "onnxruntime", "nncf", "root", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _time(
    entries: Mapping[str, _Entry], batch: int, images: Tensor, request: Request, bar: "_Progress"
) -> list[dict[str, Any]]:
    """Rows of one batch size."""
    entries = {name: entry for name, entry in entries.items() if batch in entry.runners}
    calls = {name: entry.runners[batch].bind(images) for name, entry in entries.items()}
    if not calls:
        return []
    bar.begin(batch)
    taken = measure_calls(calls, request.rounds, request.device, bar.advance)
    compared = speedups(taken, entries)
    rows = []
    for name, entry in entries.items():
        runner, watch = entry.runners[batch], taken[name]
        rows.append(
            {
                "variant": name,
                "storage_bits": entry.storage_bits,
                "compute_dtype": entry.compute_dtype,
                "mode": entry.mode,
                "batch": batch,
                "img_size": images.shape[-1],
                **watch.to_dict(batch, samples=request.samples),
                "speedup_vs": compared[name],
                "weights_mb": None if runner.weight_bytes is None else runner.weight_bytes / 1e6,
                "launch_count": count_launches(
                    runner, calls[name], entry.own, request.device, entry.mode
                ),
                "peak_mem_mb": None,
                "load_s": None,
                "first_call_s": None,
                "agree_top1_with_float": None,
            }
        )
    return rows


def _add_answers(
    rows: list[dict[str, Any]],
    entries: Mapping[str, _Entry],
    subject: Subject,
    request: Request,
    bar: "_Progress",
) -> list[str]:
    """Fill in the agreement; without the float weights there is nothing to agree with, and a warning says so."""
    if not request.agreement or subject.source.num_classes == 0:
        return []
    if subject.weights is None:
        return [] if subject.folder is None else [_NO_ANSWERS]
    bar.say("agreement with the float model")
    batch = min(request.batches)  # the one that every variant has
    pictures = draw_for(subject.source, request.agreement)
    reference = answer(
        FloatModels(subject.source, "cpu", 0, Path()).eager("float32"), pictures, 1, "cpu"
    )
    for name, entry in entries.items():
        if name == "onnxruntime-static" or name == "openvino-int8":
            continue  # calibrated on noise, see rivals.py
        share = find_agreement(
            reference, answer(entry.runners[batch], pictures, batch, request.device)
        )
        for row in rows:
            if row["variant"] == name:
                row["agree_top1_with_float"] = share
    return []


def _add_footprints(
    rows: list[dict[str, Any]], subject: Subject, request: Request, work: Path, bar: "_Progress"
) -> list[str]:
    """Fill in memory, loading and the first call, each from a process of its own; returns warnings about what could
    not be measured.
    """
    warnings = []
    with Nursery() as nursery:
        for row in rows:
            bar.say(f"memory of {row['variant']}, batch {row['batch']}")
            job = {
                "variant": row["variant"],
                "batch": row["batch"],
                "subject": subject.to_dict(),
                "device": request.device,
                "seed": request.seed,
                "work": str(work),
                "threads": torch.get_num_threads(),
            }
            found, failure = nursery.measure(job)
            row |= found
            if failure is not None:
                warnings.append(
                    f"memory, loading and first call of {row['variant']} at batch {row['batch']} were not measured: "
                    f"{failure}"
                )
    return warnings


def _scheme(entries: Mapping[str, _Entry]) -> str | None:
    return next((e.own.model.scheme for e in entries.values() if e.own is not None), None)


def _parameters(source: Any) -> float:
    """Millions, as timm counts them."""
    from qvit import zoo

    with torch.device("meta"):
        return round(sum(p.numel() for p in zoo.build(source).parameters()) / 1e6, 2)


class _Progress:
    """One bar for all of it: a step a round, and what is being done."""

    def __init__(
        self, shown: bool, request: Request, after_round: Callable[[], object] | None
    ) -> None:
        self._after_round = after_round
        self._left = len(request.batches)
        self._before = 0
        # a card's times are taken twice
        self._turns = 2 if request.device.startswith("cuda") else 1
        # disable=None: silent where stderr is no terminal
        self._bar = tqdm(unit="round", leave=False, disable=None if shown else True)

    def begin(self, batch: int) -> None:
        """The rounds of a batch size come now."""
        self.say(f"batch {batch}")
        self._before = self._bar.n
        self._left -= 1

    def advance(self, rounds: int) -> None:
        """One more round of so many; later batch sizes are taken to have as many."""
        self._bar.total = self._before + self._turns * rounds * (1 + self._left)
        self._bar.update()
        if self._after_round is not None:
            self._after_round()

    def say(self, text: str) -> None:
        """Show what is being done."""
        self._bar.set_description(text)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
