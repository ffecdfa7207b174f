"""`bench`: what is measured, what is left out and why, and the shape of the report."""

import csv
import io
import json
import shutil
import sys

import pytest
import torch

from qvit import machine
from qvit.cli import run
from qvit.deployment import placement
from qvit.errors import InputError, RequirementError, UsageError
from qvit.latency import Request, Subject, bench, rates, steps, variants
from qvit.latency import bench as bench_function
from qvit.latency.footprint import take
from qvit.latency.variants import FLOAT, RIVALS
from qvit_kernels import compiled_library

BENCH = sys.modules[bench_function.__module__]
QUICK = {"rounds": 2, "footprint": False, "agreement": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Turns of a few calls, rates that nobody measures, and a compiler that leaves models as they are."""
    monkeypatch.setattr("qvit.timing.TURN_SECONDS", 0.005)
    monkeypatch.setattr(steps, "_SECONDS", 0.01)
    known = rates.Rates(
        copies=((1000, 1e10),), operations={"int8": 1e10, "float": 1e9}, created="x"
    )
    monkeypatch.setattr(BENCH, "find_rates", lambda device: known)
    monkeypatch.setattr(machine, "find_compiler", lambda: "c++")
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda images: model(images))


def measure(folder, **settings):
    return bench(Subject.of_folder(folder), Request(**(QUICK | settings)), progress=False)


def test_report_of_a_folder(tiny_quantized, tmp_path, capsys):
    files = {kind: tmp_path / "out" / f"bench.{kind}" for kind in ("json", "csv", "md", "html")}
    arguments = [
        "bench",
        tiny_quantized,
        "--batch",
        "1,3",
        "--baseline",
        "fp32,fp32-compile",
        "--rounds",
        "2",
    ]
    outputs = [
        "-o",
        files["json"],
        *(a for k in ("csv", "md", "html") for a in (f"--{k}", files[k])),
    ]
    backends = ["--backend", "cpu,reference", "--no-footprint", "--agreement", "8", "--samples"]
    assert run([str(a) for a in (*arguments, *outputs, *backends, "--json")]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["fp32", "fp32-compile", "qvit-w4a4-cpu", "qvit-w4a4-reference"]
    assert [(row["variant"], row["batch"]) for row in found["rows"]] == [
        (name, batch) for batch in (1, 3) for name in names
    ]
    for row in found["rows"]:
        times = row["latency_ms"]
        assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
        assert times["ci95"][0] <= times["mean"] <= times["ci95"][1]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / times["p50"])
        assert row["device_ms"] is None
        assert row["agree_top1_with_float"] is not None
        assert len(row["rounds_ms"]) == 2
        assert [len(turn) for turn in row["raw_samples"]] == [row["iters"] // 2] * 2
        samples = [sample for turn in row["raw_samples"] for sample in turn]
        assert sum(samples) / len(samples) == pytest.approx(times["mean"], abs=1e-4)
        assert (row["model"], row["warmup"]) == (tiny_quantized.name, 3)
        assert row["resolved_name"].startswith("vit_tiny_patch16_224")
    assert found["rows"][0]["agree_top1_with_float"] == 100.0
    own = found["rows"][2]
    assert set(own["speedup_vs"]) == {"fp32", "fp32-compile", "best_float"}
    assert own["speedup_vs"]["best_float"]["low"] is None  # of two rounds
    assert 4 < own["storage_bits"] < 5
    assert own["compute_dtype"] in ("int8", "float")
    assert found["rows"][0]["launch_count"] > 20
    assert found["rows"][1]["launch_count"] is None
    assert {layer["variant"] for layer in found["layers"]} == set(names[2:])
    assert found["verdict"]
    assert {
        "created",
        "command",
        "commit",
        "versions",
        "machine",
        "rates",
        "left_out",
        "warnings",
    } <= found.keys()
    check_files(files, found)


def check_files(files, found):
    """The same report as JSON, CSV, Markdown and HTML."""
    assert json.loads(files["json"].read_text()) == found
    (first, *_) = csv.DictReader(io.StringIO(files["csv"].read_text()))
    timm = (
        "infer_samples_per_sec",
        "infer_step_time",
        "infer_batch_size",
        "infer_img_size",
        "param_count",
    )
    assert all(float(first[name]) > 0 for name in timm)
    assert "qvit-w4a4-cpu" in files["md"].read_text()
    assert "<svg" in files["html"].read_text()


def test_the_report_is_kept_in_the_folder_and_compared(tiny_copy, tmp_path, capsys):
    common = ["bench", str(tiny_copy), "--batch", "2", "--rounds", "2", "--no-footprint"]
    common += ["--baseline", "fp32,fp32-compile", "--agreement", "0"]
    assert run([*common, "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "W4A4" in lines[0]
    kept = tiny_copy / "bench.json"
    assert kept.is_file()
    before = tmp_path / "before.json"
    kept.rename(before)
    assert run([*common, "-q", "--against", str(before), "--fail-slower", "100000%"]) == 0
    assert "against the earlier report" in capsys.readouterr().out
    report = json.loads(before.read_text())
    for row in report["rows"]:
        if row["variant"].startswith("qvit"):
            row["rounds_ms"] = [ms / 1000 for ms in row["rounds_ms"]]
    before.write_text(json.dumps(report))
    assert run([*common, "-q", "--against", str(before), "--fail-slower", "3%"]) == 5
    assert "more than --fail-slower 3%" in capsys.readouterr().err
    assert run([*common, "-q", "--min-speedup", "1000"]) == 5


def test_no_speedup_without_a_compiled_float_model(tiny_quantized):
    found = measure(tiny_quantized, baselines=("fp32", "bf16"), batches=(1,))
    assert all(row["speedup_vs"] == {} for row in found["rows"])
    assert any("No speed-up is stated" in sentence for sentence in found["verdict"])


def test_the_environment_chooses_the_backend(tiny_quantized, monkeypatch):
    from qvit_kernels import backends

    monkeypatch.setattr(backends._Process, "name", None)
    monkeypatch.setenv("QVIT_BACKEND", "reference")
    found = measure(tiny_quantized, baselines=("none",), batches=(1,))
    assert [row["variant"] for row in found["rows"]] == ["qvit-w4a4-reference"]


def test_without_extras_everything_that_torch_can_run_is_timed(tiny_quantized, monkeypatch):
    """And what is left out comes with the command that adds it."""
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(BENCH, "_SLOW_SECONDS", 1e9)
    found = measure(tiny_quantized, batches=(1,))
    assert [row["variant"] for row in found["rows"]] == [*FLOAT, "qvit-w4a4-cpu"]
    left = {item["variant"]: item for item in found["left_out"]}
    assert set(left) == set(RIVALS)
    assert left["torchao-int8"]["command"] == "pip install torchao"
    assert left["openvino-int8"]["command"] == "pip install openvino nncf"
    assert "cuda only" in left["tensorrt-fp16"]["reason"]


def test_compiled_variants_need_a_compiler(tiny_quantized, monkeypatch):
    monkeypatch.setattr(machine, "find_compiler", lambda: None)
    found = measure(tiny_quantized, baselines=("fp32", "bf16-compile"), batches=(1,))
    assert [row["variant"] for row in found["rows"]] == ["fp32", "qvit-w4a4-cpu"]
    (entry,) = found["left_out"]
    assert "compiler" in entry["reason"]
    assert all(row["speedup_vs"] == {} for row in found["rows"])


def test_compiled_variant_that_fails_is_left_out(tiny_quantized, monkeypatch):
    def break_down(model, **_):
        def call(images):
            raise RuntimeError("cannot compile\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", break_down)
    found = measure(tiny_quantized, baselines=("fp32", "fp32-compile"), batches=(1, 2))
    assert [row["variant"] for row in found["rows"]] == ["fp32", "qvit-w4a4-cpu"] * 2
    assert [entry["reason"] for entry in found["left_out"]] == [
        "failed: RuntimeError: cannot compile"
    ]


def test_what_libraries_print_does_not_get_into_the_report(tiny_copy, monkeypatch, capsys):
    """With --json stdout is one object, whatever a converter draws there."""

    def chatter(model, **_):
        sys.stdout.write("compiling: 100 %\n")
        return model

    monkeypatch.setattr(torch, "compile", chatter)
    arguments = ["--batch", "1", "--baseline", "fp32-compile", "--rounds", "1", "--no-footprint"]
    assert run(["bench", str(tiny_copy), *arguments, "--agreement", "0", "--json", "-q"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


def test_a_batch_size_that_fails_leaves_the_smaller_ones(tiny_quantized, monkeypatch):
    def lose_memory(model, **_):
        def call(images):
            if len(images) > 1:
                raise MemoryError("no more")
            return model(images)

        return call

    monkeypatch.setattr(torch, "compile", lose_memory)
    found = measure(tiny_quantized, baselines=("fp32", "fp32-compile"), batches=(1, 2))
    names = ["fp32", "fp32-compile", "qvit-w4a4-cpu"]
    assert [row["variant"] for row in found["rows"]] == [*names, names[0], names[2]]
    assert [item["reason"] for item in found["left_out"]] == [
        "failed from batch 2 on: MemoryError: no more"
    ]
    assert any("No speed-up is stated at batch 2" in sentence for sentence in found["verdict"])


def test_an_unknown_backend_is_refused_before_anything_is_built(tiny_quantized, monkeypatch):
    monkeypatch.setattr(BENCH, "_build", lambda *_: pytest.fail("built"))
    with pytest.raises(UsageError, match="nonsense"):
        measure(tiny_quantized, backends=("cpu", "nonsense"))


def test_a_folder_runs_as_one_program_where_it_can(tiny_quantized, compiled_path):
    """Loaded within the report's inference_mode it did not, and nothing said so."""
    found = measure(tiny_quantized, baselines=("none",), batches=(1, 3))
    assert [row["mode"] for row in found["rows"]] == ["program", "program"]
    assert not any("compiled CPU path" in sentence for sentence in found["warnings"])


def without_compiler(*_):
    raise compiled_library.CompiledLibraryError("it needs a C++ compiler")


def test_warnings_and_failures_of_footprints_are_told(tiny_quantized, monkeypatch):
    class Failing(BENCH.Nursery):
        def __enter__(self):
            return self

        def measure(self, job):
            return {"peak_mem_mb": None, "load_s": None, "first_call_s": None}, "KilledError: 9"

    monkeypatch.setattr(BENCH, "Nursery", Failing)
    monkeypatch.setattr(BENCH, "find_warnings", lambda device: ["the machine was busy"])
    monkeypatch.setattr(BENCH, "warn_of_variation", lambda rows: ["the times vary"])
    monkeypatch.setattr(compiled_library, "load", without_compiler)
    found = measure(tiny_quantized, baselines=("none",), batches=(1,), footprint=True)
    assert found["warnings"] == [
        "the machine was busy",
        "qvit-w4a4-cpu: this model runs without the compiled CPU path: it needs a C++ compiler",
        "memory, loading and first call of qvit-w4a4-cpu at batch 1 were not measured: KilledError: 9",
        "the times vary",
    ]


def test_what_nobody_named_is_left_out_where_it_is_slow(tiny_quantized, monkeypatch):
    monkeypatch.setattr(
        BENCH, "_try", lambda runner, images, device: 60.0 if runner.weight_bytes < 300_000 else 1.0
    )
    found = measure(tiny_quantized, baselines=("float",), batches=(1,))
    slow = {item["variant"]: item for item in found["left_out"]}
    assert set(slow) == {"fp16", "bf16", "fp16-compile", "bf16-compile"}
    assert "takes 60.0 s, 60.0 times what fp32 takes" in slow["bf16"]["reason"]
    assert slow["bf16"]["command"].endswith("--baseline bf16")
    named = measure(tiny_quantized, baselines=("fp32", "bf16"), batches=(1,))
    assert named["left_out"] == []


def test_float_variants_have_the_folders_architecture(tiny_quantized, monkeypatch):
    from qvit.latency import floats

    built = []
    load = floats.zoo.load

    def remember(source, **settings):
        built.append(load(source, **settings))
        return built[-1]

    monkeypatch.setattr(floats.zoo, "load", remember)
    measure(tiny_quantized, baselines=("fp32", "bf16"), batches=(1,))
    assert [next(model.parameters()).dtype for model in built] == [torch.float32, torch.bfloat16]
    for model in built:
        assert (len(model.blocks), model.embed_dim, model.num_classes) == (2, 64, 6)


def test_a_float_model_alone(tiny_model):
    subject = Subject(model=f"local-dir:{tiny_model}")
    found = bench(subject, Request(baselines=("fp32", "fp32-compile"), **QUICK), progress=False)
    assert (found["scheme"], found["folder"], found["layers"]) == (None, None, [])
    assert {row["model"] for row in found["rows"]} == {f"local-dir:{tiny_model}"}
    assert all(row["raw_samples"] is None for row in found["rows"])
    assert all(row["agree_top1_with_float"] is None for row in found["rows"])


@pytest.mark.parametrize("variant", ["fp32", "qvit-w4a4-cpu"])
def test_a_footprint(tiny_quantized, tmp_path, variant):
    job = {
        "variant": variant, "batch": 2, "subject": Subject.of_folder(tiny_quantized).to_dict(),
        "device": "cpu", "seed": 0, "work": str(tmp_path), "threads": 1,
    }  # fmt: skip
    grad = torch.is_grad_enabled()
    try:
        found = take(job)
    finally:
        torch.set_grad_enabled(grad)
    assert found["peak_mem_mb"] >= 0
    assert found["load_s"] > 0
    assert found["first_call_s"] > 0


@pytest.mark.slow
def test_footprints_in_processes_of_their_own(tiny_quantized, monkeypatch):
    monkeypatch.undo()
    found = bench(
        Subject.of_folder(tiny_quantized),
        Request(baselines=("fp32", "bf16-compile"), batches=(1,), rounds=1, agreement=0),
        progress=False,
    )
    for row in found["rows"]:
        assert row["first_call_s"] > 0, row
        assert row["load_s"] > 0
        assert row["peak_mem_mb"] > 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baselines": ("int4",)}, "int4"),
        ({"baselines": ("all", "fp32")}, "--baseline all"),
        ({"baselines": ()}, "no baseline"),
        ({"batches": (0,)}, "batch"),
        ({"rounds": 0}, "--rounds"),
        ({"backends": ()}, "no backend"),
        ({"agreement": -1}, "--agreement"),
    ],
)
def test_requests_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Request(**settings)


def test_what_is_named_twice_is_timed_once():
    found = Request(batches=(8, 1, 8), backends=("cpu", "auto", "cpu"))
    assert (found.batches, found.backends) == ((8, 1), ("cpu", "auto"))


def test_folders_and_devices_are_checked(tmp_path, tiny_model):
    with pytest.raises(InputError):
        Subject.of_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="quantization_config"):
        measure(tiny_model, baselines=("none",))
    with pytest.raises(UsageError, match="cpu or cuda"):
        placement.require_device("tpu")
    with pytest.raises(UsageError, match="nonsense"):
        placement.resolve_backend("nonsense", "cpu")
    with pytest.raises(RequirementError, match="CPU tensors only"):
        placement.resolve_backend("cpu", "cuda")


def test_without_the_float_weights_the_report_says_that_nothing_was_agreed(
    tiny_quantized, tmp_path
):
    folder = tmp_path / "moved"
    shutil.copytree(tiny_quantized, folder)
    told = json.loads((folder / "run.json").read_text())
    told["source"]["weights"] = None
    (folder / "run.json").write_text(json.dumps(told))
    found = measure(folder, baselines=("none",), batches=(1,), agreement=8)
    assert found["rows"][0]["agree_top1_with_float"] is None
    assert any("not at hand" in warning for warning in found["warnings"])


def test_somebody_else_can_measure_after_each_round(tiny_quantized):
    rounds = []
    found = bench(
        Subject.of_folder(tiny_quantized),
        Request(**QUICK | {"baselines": ("fp32",), "batches": (1, 2), "rounds": 3}),
        progress=False,
        after_round=lambda: rounds.append(1),
    )
    assert len(rounds) == 2 * found["rounds"] == 6
