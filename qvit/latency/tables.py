"""A report as rows for a spreadsheet, under timm's names where timm has one."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from qvit.kept import BEST_FLOAT
from qvit.latency.variants import FLOAT

# timm's benchmark.py writes these, so that the file drops into sheets that are there already.
_TIMM: tuple[str, ...] = (
    "model",
    "infer_samples_per_sec",
    "infer_step_time",
    "infer_batch_size",
    "infer_img_size",
    "param_count",
)
_OWN: tuple[str, ...] = (
    "variant", "storage_bits", "compute_dtype", "mode", "device", "mean", "ci95_low", "ci95_high", "std", "min", "p50",
    "p90", "p95", "p99", "max", "device_p50", "images_per_s", "iters", "warmup",
    *(f"speedup_vs_{name}" for name in (BEST_FLOAT, *FLOAT)), "speedup_low", "speedup_high", "speedup_steady",
    "weights_mb", "peak_mem_mb", "load_s", "first_call_s", "launch_count", "agree_top1_with_float",
)  # fmt: skip


def to_csv(found: Mapping[str, Any]) -> str:
    """One line a row, times in ms; what was not measured is empty. `speedup_low` and `speedup_high` are the interval of
    the speed-up over the fastest float model, `speedup_steady` whether another run may be expected within 5 %.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, (*_TIMM, *_OWN), restval="", lineterminator="\n")
    writer.writeheader()
    for row in found["rows"]:
        writer.writerow({k: _cell(v) for k, v in _flatten(found, row).items()})
    return text.getvalue()


def _flatten(found: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    times, ratio = row["latency_ms"], row["speedup_vs"].get(BEST_FLOAT, {})
    low, high = times["ci95"] or (None, None)
    return {
        "model": found["resolved_name"],  # timm's name, as in timm's sheets
        "infer_samples_per_sec": 1000
        * row["batch"]
        / times["mean"],  # timm's, too, is from the mean
        "infer_step_time": times["mean"],
        "infer_batch_size": row["batch"],
        "infer_img_size": row["img_size"],
        "param_count": found["param_count"],
        "device": found["device"],
        **{name: times[name] for name in ("mean", "std", "min", "p50", "p90", "p95", "p99", "max")},
        "ci95_low": low,
        "ci95_high": high,
        "device_p50": None if row["device_ms"] is None else row["device_ms"]["p50"],
        **{f"speedup_vs_{name}": vs["ratio"] for name, vs in row["speedup_vs"].items()},
        "speedup_low": ratio.get("low"),
        "speedup_high": ratio.get("high"),
        "speedup_steady": ratio.get("steady"),
        **{name: row[name] for name in _OWN if name in row},
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
