"""The last line of `make demo`: one table from what the verbs wrote with --json.

python -m qvit.demo quantize.json eval.json bench.json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEADS = ("", "top-1 %", "weights kB", "batch 1, ms", "batch 8, ms", "images/s")


def tabulate(
    quantized: Mapping[str, Any], accuracy: Mapping[str, Any], speed: Mapping[str, Any]
) -> str:
    """What was gained and lost: a line a variant that was timed."""
    scheme = quantized["scheme"]
    known = {
        "fp32": (accuracy["float"]["top1"], quantized["fp32_bytes"]),
        "bf16": (None, quantized["fp32_bytes"] // 2),
        "qvit": (accuracy["top1"], quantized["bytes"]),
    }
    lines: list[Sequence[str]] = [_HEADS]
    for variant in dict.fromkeys(row["variant"] for row in speed["rows"]):
        timed = {row["batch"]: row for row in speed["rows"] if row["variant"] == variant}
        kind = variant.partition("-")[0]
        top1, size = known[kind]
        lines.append(
            (
                f"qvit {scheme}" if kind == "qvit" else variant,
                "-" if top1 is None else f"{top1:.1f}",
                f"{size / 1000:,.0f}",
                *(f"{timed[batch]['latency_ms']['p50']:.2f}" for batch in (1, 8)),
                f"{timed[8]['images_per_s']:,.0f}",
            )
        )
    return _align(lines)


def _align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )


def main(paths: Sequence[str]) -> None:
    """Print the table of the three files, and where its figures come from."""
    if len(paths) != 3:
        raise SystemExit(
            "expected three files: python -m qvit.demo quantize.json eval.json bench.json"
        )
    quantized, accuracy, speed = (
        json.loads(Path(path).read_text(encoding="utf-8")) for path in paths
    )
    low, high = accuracy["top1_interval"]
    machine = speed["machine"]
    sys.stdout.write(
        f"\ndemo_vit, quantized to {quantized['scheme']} from its weights alone, no images\n\n"
        f"{tabulate(quantized, accuracy, speed)}\n\n"
        f"accuracy on {accuracy['images']} freshly drawn images (95 % interval {low:.1f} to {high:.1f}); the"
        f" same answer as fp32 on {accuracy['agreement']:.1f} %\n"
        f"times on {machine['cpu']}, {machine['threads']} threads; images/s at batch 8.\n"
        "A model this small is mostly overhead: `make bench` times one of a real size.\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
