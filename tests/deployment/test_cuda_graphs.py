"""CUDA graphs of passes: the order of streams, on stand-ins, and what only a card can show."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvit.deployment import QuantViT
from qvit.deployment.cuda_graphs import GraphRecorder
from tests.support import images_for


class Event:
    def __init__(self):
        self.recorded = []

    def record(self, stream):
        self.recorded.append(stream)


class Stream:
    def __init__(self):
        self.awaited = []

    def wait_event(self, event):
        self.awaited.append(event.recorded[-1])


def test_a_stream_waits_for_the_last_replay_of_another(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    recorder = GraphRecorder(torch.device("cuda", 0))
    first, second = Stream(), Stream()
    for stream in (first, first, second, second, first):
        current.append(stream)
        recorder.enter()
        recorder.leave()
    assert second.awaited == [first]
    assert first.awaited == [second]


@pytest.fixture
def model(tiny_quantized):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip(
            "the interpreter cannot be recorded: TRITON_INTERPRET=0 python -m pytest -m cuda"
        )
    return QuantViT.from_pretrained(tiny_quantized, device="cuda")


@pytest.fixture
def images(model):
    return images_for(model.vit, 8).to(model.device)


@pytest.mark.cuda
def test_replays_equal_passes(model, images):
    expected = {count: model(images[:count]) for count in (1, 3, 8)}
    model.warmup((1, 8))
    assert model._recorded
    for count in (8, 1, 3, 8, 1):
        assert torch.equal(model(images[:count]), expected[count])
    assert torch.equal(model(images[:1].half()), model(images[:1].half().float()))


@pytest.mark.cuda
def test_a_replay_waits_for_nothing_and_allocates_its_logits_only(model, images):
    model.warmup([8])
    model(images)
    torch.cuda.synchronize()

    def allocations():
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    before = allocations()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept = [model(images) for _ in range(5)]
        model(images[:3])  # not recorded: launched one by one, and no waiting either
    finally:
        torch.cuda.set_sync_debug_mode("default")
    del kept
    kept = [model(images) for _ in range(5)]
    assert allocations() - before >= 10
    before = allocations()
    kept += [model(images) for _ in range(5)]
    assert allocations() - before == 5


@pytest.mark.cuda
def test_a_replay_is_one_launch_from_the_host(model, images):
    from torch.profiler import ProfilerActivity, profile

    model.warmup([8])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        model(images)
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in seen.key_averages()}
    assert calls.get("cudaGraphLaunch") == 1
    assert calls.get("cudaLaunchKernel", 0) + calls.get("cudaMemcpyAsync", 0) <= 2
    assert not calls.get("cuLaunchKernel", 0) + calls.get("cuLaunchKernelEx", 0)


@pytest.mark.cuda
def test_streams_and_threads_do_not_meet_in_the_buffers(model, images):
    batches = [images[i % 4 : i % 4 + 1 + 3 * (i % 2)] for i in range(64)]
    expected = [model(batch) for batch in batches]
    model.warmup((1, 4))
    torch.cuda.synchronize()

    def predict(batch):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = model(batch)
        torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predict, batches))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.cuda
def test_a_graph_of_the_users_own_records_the_model(model, images):
    from qvit_kernels.split_memory import own_split_memory

    expected = model(images)
    model.warmup([8])
    graph = torch.cuda.CUDAGraph()
    with own_split_memory(), torch.cuda.graph(graph):
        found = model(images)
    graph.replay()
    assert torch.equal(found, expected)


@pytest.mark.cuda
def test_graphs_of_one_model_share_their_memory(model, images):
    model.warmup([8])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    model.warmup((1, 2, 4))
    torch.cuda.empty_cache()
    assert (
        torch.cuda.memory_reserved() - before <= 2 * 2**20
    )  # a segment of the allocator for odd pieces
