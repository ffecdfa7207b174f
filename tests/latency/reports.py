"""Reports as `bench` makes them, written by hand: what verdicts and comparisons are computed from."""

from qvit.kept import BEST_FLOAT, LATENCY, SCHEMA_VERSIONS
from qvit.latency.steps import sum_by_kind
from qvit.timing import STEADY_SPREAD


def ratio(value, spread=0.01):
    if spread is None:
        return {"ratio": value, "low": None, "high": None, "spread": None, "steady": False}
    low, high = value * (1 - spread / 2), value * (1 + spread / 2)
    return {
        "ratio": value,
        "low": low,
        "high": high,
        "spread": spread,
        "steady": spread <= STEADY_SPREAD,
    }


def row(variant, batch, ms, speedup=None, spread=0.01, **changes):
    vs = {} if speedup is None else {BEST_FLOAT: ratio(speedup, spread)}
    times = dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "max"), ms)
    return {
        "model": "x",
        "resolved_name": "vit_x",
        "variant": variant,
        "storage_bits": 4.25 if variant.startswith("qvit") else 32,
        "compute_dtype": "int8" if variant.startswith("qvit") else "fp32",
        "mode": "eager",
        "batch": batch,
        "img_size": 32,
        "latency_ms": times | {"std": 0.0, "ci95": [ms, ms]},
        "device_ms": None,
        "images_per_s": 1000 * batch / ms,
        "iters": 10,
        "warmup": 3,
        "rounds_ms": [ms] * 8,
        "raw_samples": None,
        "speedup_vs": vs,
        "weights_mb": 1.0,
        "launch_count": 1,
        "peak_mem_mb": None,
        "load_s": None,
        "first_call_s": None,
        "agree_top1_with_float": None,
    } | changes


def layer(name, ms, floor, bound="operations", batch=1, variant="qvit-w4a4-cpu", reason=None):
    return {
        "variant": variant,
        "batch": batch,
        "name": name,
        "kind": "linear",
        "ms": ms,
        "fastest_ms": ms,
        "share": None,
        "pass_ms": 1.0,
        "kernel": "vnni",
        "bits": 4,
        "input_bits": 4,
        "computes_in": "int8",
        "bytes": 1000,
        "operations": 1000,
        "floor_ms": floor,
        "bound": bound,
        "fallback_reason": reason,
    }


def report(rows, layers=(), **changes):
    whole = sum(each["ms"] or 0.0 for each in layers) or 1.0
    layers = [each | {"share": each["ms"] and each["ms"] / whole} for each in layers]
    return {
        "schema_version": SCHEMA_VERSIONS[LATENCY],
        "created": "2026-01-01T00:00:00+00:00",
        "command": "qvit bench x",
        "commit": None,
        "versions": {"qvit": "0.1.0", "torch": "2"},
        "gpu": None,
        "model": "x",
        "resolved_name": "vit_x",
        "scheme": "W4A4",
        "folder": "x",
        "float_weights": True,
        "device": "cpu",
        "input_size": [3, 32, 32],
        "param_count": 5.7,
        "rounds": 8,
        "rates": {
            "copies": [[65536, 1e10]],
            "operations": {"int8": 1e11, "float": 1e10},
            "created": "now",
        },
        "rows": rows,
        "layers": layers,
        "kinds": sum_by_kind(layers),
        "left_out": [],
        "warnings": [],
        "verdict": [],
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 2,
            "cpu_features": [],
            "gpu": None,
            "torch": "2",
        },
    } | changes
