"""Replays of a QuantViT beside its plain passes: the same bits in any order, on two streams, without waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.cases.kernels import model_config
from benchmarks.cases.models import random_vit
from qvit.deployment import QuantViT

_SIZES = (1, 8)
_ORDER = (8, 1, 1, 3, 8, 8, 1, 3)  # 3 is not recorded


def examine(scheme: str, form: str, device: torch.device, *, dry: bool) -> dict[str, Any]:
    """A DeiT-T with random weights; in a dry run one block of the tiny model, which nothing is recorded of."""
    name, depth = ("tiny", 1) if dry else ("deit_t", None)
    vit = random_vit(name, scheme, device, depth=depth, form=form)
    model = QuantViT(vit, {}, backend="triton")
    images = torch.randn(max(_ORDER), 3, *model_config(name).image_size, device=device)
    expected = {count: model(images[:count]) for count in set(_ORDER)}
    model.warmup(_SIZES)
    model(images)
    found = []
    with _watching(device) as watched:
        found += [(count, model(images[:count])) for count in _ORDER]
    wrong = sum(not torch.equal(logits, expected[count]) for count, logits in found)
    wrong += sum(not torch.equal(a, expected[n]) for n, a in _on_two_streams(model, images, device))
    fault = f"{wrong} replays differ from the pass" if wrong else watched.get("fault")
    return {"replays": len(found), "fault": fault}


@contextmanager
def _watching(device: torch.device) -> Iterator[dict[str, str]]:
    """Whatever waits for the device in this block is a fault."""
    found: dict[str, str] = {}
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield found
    except RuntimeError as error:
        found["fault"] = f"waits for the device: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _on_two_streams(
    model: QuantViT, images: torch.Tensor, device: torch.device
) -> list[tuple[int, torch.Tensor]]:
    if device.type != "cuda":
        return []
    found = []
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    for i, count in enumerate(_ORDER * 8):
        with torch.cuda.stream(streams[i % 2]):
            found.append((count, model(images[:count])))
    torch.cuda.synchronize(device)
    return found
