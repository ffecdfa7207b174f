"""`qvit quantize --bits auto`: budgets that hold on the file, and refusals before any work."""

import json
import re
from functools import partial
from pathlib import Path

import pytest

from qvit import machine, zoo
from qvit.cli import run
from qvit.cli.quantities import read_quantity
from qvit.errors import UsageError
from qvit.models.timm_import import read_shape
from qvit.search import stopwatch
from qvit.search.allocation import Space
from qvit.search.latency import Place, latency_table
from qvit.search.start import preset_starts
from qvit.search.trained import Training, train_bits

SETTLED = [
    word
    for name in ("blocks.*.*.*", "head", "patch_embed.proj")
    for word in ("--set", f"layers.{name}=W4")
]


def test_budgets_hold_on_what_is_written(tiny_model, tmp_path, capsys):
    command = ["quantize", str(tiny_model), "--bits", "auto", "-q", "--json"]
    budgets = ["--max-size", "1MB", "--max-bitops", "1T"]
    assert run([*command, *budgets, "--dry-run"]) == 0
    possible = json.loads(capsys.readouterr().out)["search"]["budgets"]
    limits = {n: (3 * b["smallest"] + b["largest"]) / 4 for n, b in possible.items()}
    budgets = ["--max-size", f"{limits['size']:.0f}", "--max-bitops", f"{limits['bitops']:.0f}"]
    out = tmp_path / "out"
    settings = ["--set", "layers.head=W8A8", "--set", "synthesis.images=8"]
    assert run([*command, *budgets, *settings, "-o", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    size = (out / "model.safetensors").stat().st_size
    assert 0.9 * limits["size"] < size == found["search"]["size"]["found"] <= limits["size"]
    assert 0.9 < found["search"]["bitops"]["found"] / limits["bitops"] <= 1
    assert found["search"]["kl"] <= found["search"]["kl_uniform"]
    assert next(iter(found["seconds"])) == "search"
    assert found["seconds"]["search"] > 0
    assert run(["info", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["bits"]
    head = next(row for row in rows if "head" in row["modules"])
    assert (head["weight_bits"], head["input_bits"]) == (8, 8)
    assert len({row["weight_bits"] for row in rows if "weight_bits" in row}) > 2


def test_size_alone_leaves_activations_at_eight_bits(tiny_model, capsys):
    command = ["quantize", str(tiny_model), "--bits", "auto", "--max-size", "1MB", "-q"]
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["activations"]["bits"] == 8
    assert plan["search"]["choices"] == 10  # the weights of ten Linears


def test_heads_have_bits_of_their_own(tiny_model, tmp_path, capsys):
    command = ["quantize", str(tiny_model), "--bits", "heads", "--max-size", "1MB", "-q", "--json"]
    assert run([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["search"]
    # two blocks of two heads: 3 * 2 slices of qkv and 2 of proj in place of two Linears
    assert plan["choices"] == 10 + 2 * (3 * 2 - 1 + 2 - 1)
    size = plan["budgets"]["size"]
    limit = (3 * size["smallest"] + size["largest"]) / 4
    command[5] = f"{limit:.0f}"
    out = tmp_path / "out"
    assert run([*command, "--set", "synthesis.images=8", "-o", str(out)]) == 0
    capsys.readouterr()
    assert (out / "model.safetensors").stat().st_size <= limit
    assert run(["info", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["bits"]
    assert any(row.get("head_bits") for row in rows)
    assert run([*command, "--bit-search", "qvit", "--dry-run"]) == 0
    trained = json.loads(capsys.readouterr().out)["search"]
    assert (trained["method"], trained["choices"]) == ("qvit", plan["choices"])


def test_a_budget_for_few_bits_begins_with_the_recipe_of_few_bits(tiny_model, capsys):
    command = ["quantize", str(tiny_model), "--bits", "auto", "-q", "--json", "--dry-run"]
    assert run([*command, "--max-bitops", "1T"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recipe"]["weights"]["bits"] == 4
    assert plan["recipe"]["activations"]["norm_group"] == 0
    assert plan["recipe"]["activations"]["prefix_bits"] == 0
    least = plan["search"]["budgets"]["bitops"]["smallest"]
    assert run([*command, "--max-bitops", f"{1.2 * least:.0f}"]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["weights"]["bits"] == 3
    assert recipe["activations"]["norm_group"] == 64
    assert recipe["activations"]["prefix_bits"] == 8
    assert run([*command, "--max-bitops", f"{1.2 * least:.0f}", "--w", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["activations"]["norm_group"] == 0


def test_a_dry_run_tells_limits_and_nothing_of_bits_that_are_not_found_yet(
    tiny_model, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    command = ["quantize", str(tiny_model), "--bits", "auto", "--max-size", "1MB", "-q"]
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["search"]["budgets"]["size"]["limit"] == 1e6
    assert Path(plan["out"]) == Path("out") / f"{tiny_model.name}-auto"
    assert not {"scheme", "bytes", "tensor_bytes"} & plan.keys()
    assert plan["fp32_bytes"] > 0
    assert plan["search"]["estimated_seconds"] >= 0


def test_an_impossible_budget_is_refused_before_the_weights_are_read(
    tiny_model, capsys, monkeypatch
):
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("loaded the weights first"))
    command = ["quantize", str(tiny_model), "--bits", "auto", "-q"]
    assert run([*command, "--max-size", "1kB"]) == 2
    assert "a budget of 1,000 B cannot be met: the smallest" in capsys.readouterr().err
    assert run([*command, "--max-bitops", "1k"]) == 2
    assert "a budget of 1,000 BitOps cannot be met" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [False, True], ids=["float model", "labels"])
def test_bits_that_are_trained(tiny_model, tiny_images, tmp_path, capsys, monkeypatch, labelled):
    monkeypatch.setattr("qvit.search.run.Training", partial(Training, steps=3, batch=4))
    begun = []
    monkeypatch.setattr(
        "qvit.search.run.train_bits",
        lambda *args, **options: begun.append((args[2], args[4])) or train_bits(*args, **options),
    )
    monkeypatch.setattr("qvit.search.sample._LEAVES", 8)
    command = ["quantize", str(tiny_model), "--bits", "auto", "--bit-search", "qvit", "-q"]
    command += ["--json", "--max-bitops", "30M"]
    if labelled:
        command += ["--calib-data", str(tiny_images), "--set", "synthesis.labelled=true"]
    else:
        command += ["--set", "synthesis.images=8"]
    assert run([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["search"]
    assert (plan["method"], plan["steps"]) == ("qvit", 3)
    assert plan["objective"] == ("labels" if labelled else "float model")
    assert plan["images"] == (len(list(tiny_images.rglob("*.*"))) if labelled else 8)
    out = tmp_path / "out"
    assert run([*command, "-o", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)["search"]
    assert found["method"] == "qvit"
    assert found["bitops"]["found"] <= 30e6
    [(sample, training)] = begun
    assert (sample.labels is not None) == labelled
    assert training.penalty == (0.1 if labelled else None)  # as published, or HDX's rule
    assert run(["info", str(out), "--json"]) == 0


def test_labels_of_other_classes_are_refused_before_the_weights_are_read(
    tiny_model, capsys, monkeypatch
):
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("loaded the weights first"))
    command = ["quantize", str(tiny_model), "--bits", "auto", "--bit-search", "qvit", "-q"]
    command += ["--max-bitops", "30M", "--calib-data", "demo:8"]
    assert run([*command, "--set", "synthesis.labelled=true"]) != 0
    assert "24 classes" in capsys.readouterr().err


def test_latency_of_a_card_that_is_not_here(tiny_model, tmp_path, capsys):
    pytest.importorskip("triton")
    command = ["quantize", str(tiny_model), "--bits", "auto", "-q", "--json"]
    budgets = ["--max-size", "1MB", "--max-latency", "1s", "--on", "nvidia-h200", "--batch", "64"]
    assert run([*command, *budgets, "--dry-run"]) == 0
    possible = json.loads(capsys.readouterr().out)["search"]["budgets"]
    assert possible["latency"]["known"] == "modelled"
    assert (possible["latency"]["on"], possible["latency"]["batch"]) == ("nvidia-h200", 64)
    middle = (possible["latency"]["smallest"] + possible["latency"]["largest"]) / 2
    budgets[3] = f"{1e6 * middle:.3f}us"
    out = tmp_path / "out"
    settings = ["--set", "synthesis=none", "--set", "weights.rounding=nearest"]
    assert run([*command, *budgets, *settings, "-o", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)["search"]
    assert found["latency"]["found"] <= middle * (1 + 1e-6)
    assert (out / "model.safetensors").stat().st_size == found["size"]["found"] <= 1e6


def test_a_dry_run_measures_nothing(tiny_model, tmp_path, capsys, monkeypatch):
    """What was measured before it tells."""
    monkeypatch.setattr(machine, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(stopwatch, "_time_layers", lambda *_: pytest.fail("measured something"))
    command = ["quantize", str(tiny_model), "--bits", "auto", "--max-latency", "1s", "--dry-run"]
    assert run([*command, "--json"]) == 0
    told = capsys.readouterr()
    (budget,) = json.loads(told.out)["search"]["budgets"].values()
    assert budget == {"limit": 1.0, "known": "not measured yet", "on": "here", "batch": 1}
    assert "a dry run does not" in told.err
    assert not list(tmp_path.iterdir())
    command += ["--max-size", "1MB", "--json"]
    assert run([*command, "-q"]) == 0
    plan = json.loads(capsys.readouterr().out)["search"]
    assert plan["choices"] == 10 + 9 + 2  # weights, inputs but pixels, attentions
    assert plan["budgets"].keys() == {"size", "latency"}
    assert plan["budgets"]["size"]["smallest"] > 0
    assert run([*command, "-q", "--max-bitops", "1k"]) == 2
    assert "a budget of 1,000 BitOps cannot be met" in capsys.readouterr().err

    monkeypatch.setattr(stopwatch, "_time_layers", lambda *_: {"head": 0.5})
    config = read_shape(zoo.resolve(str(tiny_model)))
    for recipe in preset_starts("qvit", ["latency"]):
        latency_table(config, Space.of(config, recipe), Place())
    monkeypatch.setattr(stopwatch, "_time_layers", lambda *_: pytest.fail("measured something"))
    assert run([*command, "-q"]) == 0
    budget = json.loads(capsys.readouterr().out)["search"]["budgets"]["latency"]
    assert (budget["known"], budget["smallest"]) == ("measured", 0.5)


def test_amounts_are_told_with_their_units(tiny_model, capsys):
    pytest.importorskip("triton")
    command = ["quantize", str(tiny_model), "--bits", "auto", "--max-latency", "1s", "--dry-run"]
    command += ["--on", "nvidia-h200", "--w", "4"]
    assert run([*command, "--max-size", "64000"]) == 0
    told = capsys.readouterr()
    assert "limit: 1,000.000 ms\n" in told.out
    assert "limit: 64,000 B\n" in told.out
    (smallest,) = re.findall(r"smallest: (0\.0\d\d) ms\n", told.out)
    (largest,) = re.findall(r"largest: (0\.0\d\d) ms\n", told.out)
    assert 0 < float(smallest) <= float(largest)
    assert told.err.count("binds nothing") == 1
    assert "a latency of 1,000.000 ms binds nothing: the most that any bits cost is" in told.err
    command[5] = f"{smallest}ms"  # as it is told, it can be met
    assert run(command) == 0
    assert "binds nothing" not in capsys.readouterr().err
    command[5] = f"{float(smallest) - 0.001:.3f}ms"
    assert run(command) == 2
    assert f"the smallest that is possible is {smallest} ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "auto"], "--bits auto needs a budget"),
        (["--bits", "heads"], "--bits heads needs a budget"),
        (["--max-size", "8MB"], "add --bits auto"),
        (["--bit-search", "qvit"], "--bit-search says how bits are searched; add --bits auto"),
        (["--bits", "auto", "--max-size", "much"], "--max-size much: expected a number of B"),
        (
            ["--bits", "auto", "--max-latency", "6"],
            "--max-latency 6: expected a time with its unit",
        ),
        (["--bits", "auto", "--max-size", "8MB", "--on", "nvidia-h200"], "--on says where"),
        (["--bits", "auto", "--max-latency", "1ms", "--on", "abacus"], "latency is modelled for"),
        (
            ["--bits", "auto", "--max-size", "8MB", "--dry-run", *SETTLED],
            "no bits are left to find",
        ),
        (["--bits", "auto", "--max-size", "8MB", *SETTLED], "no bits are left to find"),
    ],
)
def test_half_a_request_is_refused(tiny_model, arguments, message, capsys):
    assert run(["quantize", str(tiny_model), "-q", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8MB", "B", 8e6),
        ("1.5 MiB", "B", 1.5 * 2**20),
        ("800k", "B", 8e5),
        ("76G", "BitOps", 76e9),
        (".5T", "BitOps", 5e11),
        ("0.6ms", "s", 6e-4),
        ("350 us", "s", 3.5e-4),
        ("12", "B", 12),
    ],
)
def test_quantities(text, unit, value):
    assert read_quantity("--max", text, unit) == value


@pytest.mark.parametrize(
    "text", ["", "MB", "-3MB", "0", "8 apples", "8MBB", "1e3", "nan", "8BitOps"]
)
def test_what_is_no_quantity(text):
    with pytest.raises(UsageError, match=r"--max .*: expected a number of B, such as 8MB"):
        read_quantity("--max", text, "B")
