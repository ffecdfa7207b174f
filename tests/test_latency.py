"""`bench`: what is measured, what is left out and why, and the shape of the result."""

import json

import pytest
import torch

from qvit import latency, machine
from qvit.cli import run
from qvit.deployment import placement
from qvit.errors import InputError, RequirementError, UsageError
from qvit.latency import Request, compare_folder


def test_rows_of_a_folder(tiny_quantized, tmp_path, capsys):
    report = tmp_path / "reports" / "bench.json"
    arguments = ["bench", str(tiny_quantized), "--batch", "1,3", "--variants", "fp32,bf16,qvit"]
    backends = ["--backend", "cpu,reference", "--rounds", "2", "-o", str(report)]
    assert run([*arguments, *backends, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    variants = ["fp32", "bf16", "qvit-w4a4-cpu", "qvit-w4a4-reference"]
    assert [(row["variant"], row["batch"]) for row in found["rows"]] == [
        (name, batch) for batch in (1, 3) for name in variants
    ]
    for row in found["rows"]:
        times = row["latency_ms"]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / times["p50"])
        assert row["calls"] >= 2
        assert row["speedup_over_fp32"] > 0
    assert found["rows"][0]["speedup_over_fp32"] == 1.0
    assert (found["scheme"], found["device"]) == ("W4A4", "cpu")
    assert found["input_size"] == [3, 32, 32]
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert {"cpu", "cores", "torch"} <= found["machine"].keys()
    assert json.loads(report.read_text()) == found
    assert [path.name for path in report.parent.iterdir()] == ["bench.json"]


def test_table_for_people(tiny_quantized, capsys):
    arguments = ["bench", str(tiny_quantized), "--batch", "2", "--variants", "fp32,qvit"]
    assert run([*arguments, "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "W4A4" in lines[0]
    assert "p50 ms" in lines[2]
    assert [line.split()[:2] for line in lines[4:]] == [["2", "fp32"], ["2", "qvit-w4a4-cpu"]]


def test_the_environment_chooses_the_backend(tiny_quantized, monkeypatch):
    from qvit_kernels import backends

    monkeypatch.setattr(backends._Process, "name", None)
    monkeypatch.setenv("QVIT_BACKEND", "reference")
    request = Request(variants=("qvit",), batches=(1,), rounds=1)
    found = compare_folder(tiny_quantized, request, progress=False)
    assert [row["variant"] for row in found["rows"]] == ["qvit-w4a4-reference"]
    assert found["rows"][0]["speedup_over_fp32"] is None


def test_compiled_variants_need_a_compiler(tiny_quantized, monkeypatch):
    monkeypatch.setattr(machine, "find_compiler", lambda: None)
    request = Request(variants=("fp32", "bf16-compile"), batches=(1,), rounds=1)
    found = compare_folder(tiny_quantized, request, progress=False)
    assert [row["variant"] for row in found["rows"]] == ["fp32"]
    assert [entry["variant"] for entry in found["left_out"]] == ["bf16-compile"]
    assert "compiler" in found["left_out"][0]["reason"]


def test_compiled_variant_that_fails_is_left_out(tiny_quantized, monkeypatch):
    def break_down(model, **_):
        def call(images):
            raise RuntimeError("cannot compile\nmore lines")

        return call

    monkeypatch.setattr(machine, "find_compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", break_down)
    request = Request(variants=("fp32", "fp32-compile"), batches=(1, 2), rounds=1)
    found = compare_folder(tiny_quantized, request, progress=False)
    assert [row["variant"] for row in found["rows"]] == ["fp32", "fp32"]
    (entry,) = found["left_out"]
    assert entry["reason"] == "torch.compile failed: RuntimeError: cannot compile"


def test_float_variants_have_the_folders_architecture(tiny_quantized, monkeypatch):
    built = []
    load = latency.zoo.load

    def remember(source, **settings):
        built.append(load(source, **settings))
        return built[-1]

    monkeypatch.setattr(latency.zoo, "load", remember)
    request = Request(variants=("fp32", "bf16"), batches=(1,), rounds=1)
    compare_folder(tiny_quantized, request, progress=False)
    assert [next(model.parameters()).dtype for model in built] == [torch.float32, torch.bfloat16]
    for model in built:
        assert (len(model.blocks), model.embed_dim, model.num_classes) == (2, 64, 6)


@pytest.mark.slow
def test_compiled_variant_runs(tiny_quantized):
    if machine.find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    request = Request(variants=("fp32", "bf16-compile"), batches=(1,), rounds=1)
    found = compare_folder(tiny_quantized, request, progress=False)
    assert [row["variant"] for row in found["rows"]] == ["fp32", "bf16-compile"], found["left_out"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ("int4",)}, "int4"),
        ({"variants": ()}, "no variant"),
        ({"batches": (0,)}, "batch"),
        ({"rounds": 0}, "--rounds"),
    ],
)
def test_requests_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Request(**settings)


def test_folders_and_devices_are_checked(tmp_path, tiny_model):
    with pytest.raises(InputError):
        compare_folder(tmp_path / "nothing", Request(), progress=False)
    with pytest.raises(InputError, match="quantization_config"):
        compare_folder(tiny_model, Request(variants=("qvit",)), progress=False)
    with pytest.raises(UsageError, match="cpu or cuda"):
        placement.require_device("tpu")
    with pytest.raises(UsageError, match="nonsense"):
        placement.resolve_backend("nonsense", "cpu")
    with pytest.raises(RequirementError, match="CPU tensors only"):
        placement.resolve_backend("cpu", "cuda")


def test_the_processor_is_described(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n"
    )
    found = machine.describe_cpu(listing)
    assert (found["name"], found["features"]) == ("Some CPU @ 3 GHz", ["avx2", "avx512_vnni"])
    assert found["cores"] >= 1
    assert machine.describe_cpu(tmp_path / "none")["features"] == []


def test_memory_is_what_a_container_or_a_batch_system_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    groups, own = tmp_path / "groups", tmp_path / "own"
    assert machine.usable_memory(groups, own) == 64 << 30
    for room in ("job/step", "memory/job"):
        (groups / room).mkdir(parents=True)
    own.write_text("5:cpu:/job/step\n0::/job/step\n")
    (groups / "job/step/memory.max").write_text("max\n")
    assert machine.usable_memory(groups, own) == 64 << 30
    (groups / "job/memory.max").write_text(f"{8 << 30}\n")  # of the group above
    assert machine.usable_memory(groups, own) == 8 << 30
    own.write_text("4:hugetlb,memory:/host/path\n")  # the first version; the path is the host's
    (groups / "memory/memory.limit_in_bytes").write_text(f"{4 << 30}\n")
    assert machine.usable_memory(groups, own) == 4 << 30


def test_missing_packages_are_reported():
    found = machine.package_versions(("torch", "no-such-distribution"))
    assert found["torch"]
    assert found["no-such-distribution"] is None
