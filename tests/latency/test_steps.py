"""Layers and their times: on a clock of our own, and on the real one with a planted slowdown."""

import time

import pytest
import torch

from qvit.deployment import QuantViT, cpu_preparation, listening
from qvit.deployment.explanation import Layer
from qvit.latency import compare_reports, steps
from qvit.latency.quantized import open_folder, stored_bits
from qvit.latency.rates import Rates
from qvit.latency.steps import _describe, sum_by_kind, time_steps
from qvit_kernels.routes import Route
from tests.latency.reports import layer, report, row

RATES = Rates(copies=((1000, 1e10),), operations={"int8": 1e10, "float": 1e9}, created="x")


class LayerClock:
    """A clock that stands still but for what an operation of a layer costs, in seconds."""

    def __init__(self, monkeypatch, costs):
        self.now, self.layer, self.inside = 0.0, "", False
        enter = listening._Named._enter

        def remember(run, module):
            enter(run, module)
            self.layer = run.layer

        def read():
            if self.inside:
                self.now += costs(self.layer)
            self.inside = not self.inside
            return self.now

        monkeypatch.setattr(listening._Named, "_enter", remember)
        monkeypatch.setattr(listening.time, "perf_counter", read)


@pytest.fixture
def by_operations(monkeypatch):
    """No compiled path on any machine: it is one step to all that follows operations."""
    monkeypatch.setattr(cpu_preparation, "prepare", lambda vit: None)


@pytest.fixture
def own(tiny_quantized, by_operations):
    with torch.inference_mode():
        yield open_folder(tiny_quantized, "cpu", "cpu", (2,))


def steps_of(own, seconds=0.0):
    layers = time_steps(own, torch.randn(2, 3, 32, 32), RATES)
    return report([row(own.name, 2, 1.0)], layers)


def test_every_layer_has_its_time_floor_and_kernel(own, monkeypatch):
    LayerClock(monkeypatch, lambda name: 0.003 if name == "head" else 0.001)
    monkeypatch.setattr(steps, "_time_whole", lambda own, images: 0.007)
    found = steps_of(own)["layers"]
    names = [layer.name for layer in own.model.explain(2).layers]
    assert [layer["name"] for layer in found] == list(dict.fromkeys(names))
    by_name = {layer["name"]: layer for layer in found}
    assert by_name["head"]["ms"] == pytest.approx(3.0)
    assert by_name["patch_embed.proj"]["ms"] == pytest.approx(2.0)  # two operations
    assert sum(layer["share"] for layer in found) == pytest.approx(1.0)
    assert {layer["pass_ms"] for layer in found} == {7.0}
    fc1 = by_name["blocks.0.mlp.fc1"]
    assert (fc1["bits"], fc1["kind"]) == (4, "linear_gelu_quantize")
    rate = {"int8": 1e7, "float": 1e6}[fc1["computes_in"]]  # which it is depends on the machine
    assert fc1["floor_ms"] == pytest.approx(max(fc1["bytes"] / 1e7, fc1["operations"] / rate))
    assert fc1["kernel"] == "torch (cpu)"


def test_a_planted_slowdown_of_a_fifth_is_named(own, monkeypatch):
    slow = ""

    def cost(name):
        return 0.001 * (1.2 if name.endswith(slow or "nothing") else 1.0)

    LayerClock(monkeypatch, cost)
    before = steps_of(own)
    for slow in ("mlp.fc1", "attn.qkv", "norm2", ".attn"):
        found = compare_reports(steps_of(own), before)
        assert found["slower_layers"] == [f"blocks.*{slow if slow[0] == '.' else '.' + slow}"]


@pytest.mark.slow
def test_a_planted_slowdown_is_named_on_the_real_clock(tmp_path, by_operations, monkeypatch):
    """fc1 of the demo model made to take a fifth longer by waiting: on a machine that is not overrun."""
    from qvit.cli import run
    from qvit_kernels import cpu

    assert (
        run(["quantize", "demo_vit", "--w", "8", "--a", "8", "-o", str(tmp_path / "m"), "-q"]) == 0
    )
    model = open_folder(tmp_path / "m", "cpu", "cpu", (8,))
    fc1 = cpu.linear_gelu_quantize

    def slower(*arguments):
        begun = time.perf_counter()
        result = fc1(*arguments)
        until = time.perf_counter() + 0.2 * (time.perf_counter() - begun)
        while time.perf_counter() < until:
            pass
        return result

    def measure():
        with torch.inference_mode():
            layers = time_steps(model, torch.randn(8, 3, 64, 64), RATES)
        return report([row(model.name, 8, 1.0)], layers)

    before = measure()
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "linear_gelu_quantize", slower)
        assert compare_reports(measure(), before)["slower_layers"][0] == "blocks.*.mlp.fc1"


def test_program_steps_go_to_their_layers(tiny_quantized, monkeypatch):
    """The clock of the compiled path, which a machine without VNNI has none of."""
    from qvit.deployment.compiled_memory import BLOCK_STEPS, EMBEDDING_STEPS, HEAD_STEPS
    from qvit.deployment.compiled_vit import CompiledViT

    program = CompiledViT.__new__(CompiledViT)
    program._depth, program._logits = 2, object()
    steps = [*EMBEDDING_STEPS, *BLOCK_STEPS * 2, *HEAD_STEPS]
    monkeypatch.setattr(CompiledViT, "time", lambda self, images: [(s, 0.001) for s in steps])
    monkeypatch.setattr(CompiledViT, "threads", 2)
    monkeypatch.setattr(
        cpu_preparation, "_run", lambda vit, images, compute: compute(program, images)
    )
    model = QuantViT.from_pretrained(tiny_quantized, backend="cpu")
    found = model.time_layers(torch.randn(3, 3, 32, 32))
    explained = {layer.name for layer in model.explain().layers}
    assert set(found) == explained
    # three images on two threads: the one with two of them decides; attention is two steps
    assert found["blocks.1.attn"] == pytest.approx(0.004)
    assert found["blocks.1.mlp.fc2"] == pytest.approx(0.002)


def test_kinds_are_sums():
    layers = [layer(f"blocks.{i}.norm1", 1.0, 0.1, reason=r) for i, r in enumerate((None, "why"))]
    (kind,) = sum_by_kind(layers)
    assert (kind["name"], kind["times"], kind["ms"]) == ("blocks.*.norm1", 2, 2.0)
    assert (kind["bytes"], kind["floor_ms"]) == (2000, pytest.approx(0.2))
    assert kind["fallback_reason"] == "why"


def test_blocks_of_other_bits_are_rows_of_their_own():
    layers = [layer(f"blocks.{i}.mlp.fc1", 1.0, 0.1) for i in range(4)]
    layers[0] |= {"bits": 8, "kernel": "torch (cpu)", "ms": 3.0}
    wide, low = sum_by_kind([*layers, layer("head", 1.0, 0.1)])[:2]
    assert (wide["name"], wide["bits"], wide["ms"]) == ("blocks.0.mlp.fc1", 8, 3.0)
    assert (low["name"], low["bits"], low["kernel"], low["ms"]) == (
        "blocks.1-3.mlp.fc1", 4, "vnni", 3.0,
    )  # fmt: skip


def test_a_layer_of_two_operations_has_the_median_the_sum_of_floors_and_the_larger_bound():
    route = Route(backend="cpu", kernels=("vnni",), tiles=(), computes_in="int8", reason=None)
    facts = {"name": "a", "weight_bits": 4, "container_bits": 8, "input_bits": 8, "floor": None}
    layers = [
        Layer(op="quantize", bytes=10_000, operations=0, route=route, **facts),
        Layer(op="linear", bytes=1000, operations=10**6, route=route, **facts),
    ]
    found = _describe("a", layers, [0.001, 0.002, 0.009], RATES)
    assert (found["ms"], found["fastest_ms"], found["kind"]) == (2.0, 1.0, "linear")
    assert found["floor_ms"] == pytest.approx(0.001 + 0.1)
    assert found["bound"] == "operations"


def test_stored_bits_count_multipliers_and_ends_of_eight_bits(own):
    """Multipliers are 8 bits a group of 16 channels or more."""
    sizes = {name: n * k for name, (n, k) in own.model.vit.config.linears().items()}
    ends = (sizes["patch_embed.proj"] + sizes["head"]) / sum(sizes.values())
    uncounted = 4 + 4 * ends
    assert uncounted < stored_bits(own.model.vit) <= uncounted + 0.5
