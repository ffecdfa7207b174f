"""The command line: what it prints where, and the verbs end to end on a tiny model."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file

import qvit
from qvit.cli import run
from qvit.cli.session import outline, tabulate
from qvit.demo import dataset
from tests.hub import serve, write_repository


def test_help_names_every_verb_and_exit_code(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("quantize", "eval", "bench", "info", "models", "doctor", "130"):
        assert word in text
    assert run([]) == 2


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"qvit {qvit.__version__}\n"


def test_quantize_info_and_replay(tiny_model, tmp_path, capsys):
    """A folder is written, described, and written again to the same bytes from its own recipe."""
    first, again = tmp_path / "first", tmp_path / "again"
    assert (
        run(["quantize", str(tiny_model), "--w", "4", "--a", "8", "-o", str(first), "--json"]) == 0
    )
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["path"] == str(first)
    assert summary["bytes"] == (first / "model.safetensors").stat().st_size
    assert "vit_tiny_patch16_224" in err.splitlines()[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]

    recipe = str(first / "recipe.yaml")
    assert run(["quantize", str(tiny_model), "--recipe", recipe, "-o", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == summary["sha256"]
    written = [(folder / "model.safetensors").read_bytes() for folder in (first, again)]
    assert written[0] == written[1]

    assert run(["info", str(first), "--json"]) == 0
    described = capsys.readouterr().out
    assert "W4A8" in json.dumps(json.loads(described)) or "w4a8" in described
    assert run(["info", str(first)]) == 0
    assert "apache-2.0" in capsys.readouterr().out


def test_settings_reach_the_recipe(tiny_model, tmp_path, capsys):
    arguments = ["quantize", str(tiny_model), "--w", "4", "--a", "4", "--dry-run", "--json"]
    settings = ["--set", "weights.group=32", "--set", "transforms.fc2=16"]
    assert run([*arguments, *settings, "--seed", "7", "--budget", "quick"]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["weights"]["bits"] == 4
    assert recipe["weights"]["group"] == 32
    assert recipe["weights"]["rounding"] == "gptq"
    assert (recipe["synthesis"]["method"], recipe["synthesis"]["images"]) == ("leaves", 32)
    assert (recipe["transforms"]["fc2"], recipe["seed"], recipe["budget"]) == (16, 7, "quick")


def test_real_images_take_the_place_of_synthetic_ones(tiny_model, tmp_path, capsys):
    """They need neither labels nor folders of classes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.png").write_bytes(dataset.encode(i))
    arguments = ["quantize", str(tiny_model), "--w", "4", "--calib-data", str(photos)]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["reads_images"], plan["images"]["images"]) == (True, 3)
    out = tmp_path / "out"
    assert run([*arguments, "-o", str(out), "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"]["images_read"] == 3
    assert "budget: custom" in (out / "recipe.yaml").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    beside = [*arguments, "--calib-leaves", "2", "-o", str(out), "--overwrite", "-q", "--json"]
    assert run(beside) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert (images["images"], images["images_read"]) == (5, 3)
    assert "on 3 images" in (out / "README.md").read_text()


def test_dry_run_writes_nothing(tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["quantize", str(tiny_model), "-o", str(out), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert list(tmp_path.iterdir()) == []


def test_overwrite(tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["quantize", str(tiny_model), "-o", str(out), "-q"]
    assert run(arguments) == 0
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run(arguments) != 0
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert run([*arguments, "--w", "4", "--overwrite"]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_eval_finds_the_float_model_and_remembers_its_answers(
    tiny_model, tiny_images, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "folder"
    assert run(["quantize", str(tiny_model), "--w", "8", "--a", "8", "-o", str(folder), "-q"]) == 0
    arguments = ["eval", str(folder), "--data", str(tiny_images), "--json"]
    capsys.readouterr()
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30
    assert 0 <= found["top1"] <= found["top5"] <= 100
    assert found["top1_interval"][0] <= found["top1"] <= found["top1_interval"][1]
    # random weights on noise: the classes mean nothing, but 8 bits must repeat the float model
    assert found["agreement"] > 80
    assert 0 <= found["kl"] < 0.01
    least, most = found["drop_interval"]
    assert least <= found["drop"] <= most

    # the second time the float model is not even loaded
    monkeypatch.setattr("qvit.zoo.load", lambda *_, **__: pytest.fail("the float model was loaded"))
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_eval_without_the_float_model(tiny_model, tiny_images, tmp_path, capsys):
    """A float file that went away or changed is no error: its fields are null, and it is said."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tiny_model / "model.safetensors").read_bytes())
    folder = tmp_path / "folder"
    model = ["quantize", str(tiny_model), "--weights", str(weights)]
    assert run([*model, "-o", str(folder), "-q"]) == 0
    arguments = ["eval", str(folder), "--data", str(tiny_images), "--json"]
    capsys.readouterr()

    weights.write_bytes(b"something else")
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["float"]["top1"], found["agreement"], found["kl"]) == (None, None, None)
    assert "changed" in err
    weights.unlink()
    assert run(arguments) == 0
    assert "--float-weights" in capsys.readouterr().err

    named = ["--float-weights", str(tiny_model / "model.safetensors")]
    assert run([*arguments, *named]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"] > 80


def test_eval_of_a_float_model(tiny_model, tiny_images, capsys):
    arguments = ["eval", str(tiny_model), "--data", str(tiny_images), "--limit", "12", "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["scheme"], found["float"]["top1"]) == (12, None, None)


def test_gates(tiny_copy, tiny_images, capsys):
    arguments = ["eval", str(tiny_copy), "--data", str(tiny_images), "--json"]
    assert run([*arguments, "--min-top1", "0", "--max-drop", "100"]) == 0
    capsys.readouterr()
    assert run([*arguments, "--min-top1", "100.1"]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 30
    assert "--min-top1 100.1" in err
    assert run([*arguments, "--max-drop", "-101"]) == 5


def test_models_and_doctor(capsys):
    assert run(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {"deit_t", "deit_s", "vit_t", "swin_t"} <= {row["alias"] for row in rows}
    assert run(["models"]) == 0
    assert "deit_small_patch16_224.fb_in1k" in capsys.readouterr().out

    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["int8"]["backends"] == {"cpu": "exact", "reference": "exact"}
    assert found["packages"]["torch"]


def test_json_is_alone_on_stdout(start_qvit, tiny_model, tmp_path):
    """In a real process: whatever libraries print, stdout holds one JSON object."""
    out = tmp_path / "out"
    with start_qvit(["quantize", tiny_model, "-o", out, "--json"]) as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["path"] == str(out)


def test_alias_to_folder_through_a_hub(start_qvit, child_environment, tmp_path):
    """`qvit quantize deit_t`: alias, tag, download, low-bit folder."""
    name = "deit_tiny_patch16_224.fb_in1k"
    state = write_repository(tmp_path / "hub", name)
    out = tmp_path / "out"
    with serve(tmp_path / "hub") as hub:
        environment = child_environment | hub.environment(tmp_path / "cache")
        environment["PYTHONPATH"] = child_environment["PYTHONPATH"]
        arguments = ["quantize", "deit_t", "--w", "4", "--a", "4", "-o", out, "--json"]
        arguments += [
            "--set",
            "weights.rounding=nearest",
            "--set",
            "synthesis=none",
        ]  # 14 s and not 43
        with start_qvit(arguments, env=environment) as process:
            stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["model"], summary["scheme"]) == (name, "W4A4")
    assert f"deit_t = {name}" in stderr
    assert f"/timm/{name}/resolve/main/model.safetensors" in [path for _, path in hub.requests]
    weights = json.loads((out / "run.json").read_text())["source"]["weights"]
    assert weights["path"].startswith(str(tmp_path / "cache"))
    # the float parts are the served ones, the codes replace the rest
    stored = load_file(out / "model.safetensors")
    served = {key for key, value in stored.items() if torch.equal(value, state.get(key, value + 1))}
    assert len(served) > 10
    assert (
        json.loads((out / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"
    )


def test_reader_that_goes_away(start_qvit):
    """`qvit --help | head -1`: no traceback."""
    with start_qvit(["--help"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


def test_tables_and_outlines():
    rows = [{"a": "x", "b": 1.5}, {"a": "long", "b": None}]
    assert tabulate(rows, {"a": "name", "b": "ms"}).splitlines() == [
        "name    ms",
        "----  ----",
        "x     1.50",
        "long     -",
    ]
    text = outline({"a": 1, "none": None, "b": {"c": True}, "d": [{"e": 1, "f": 2.5}], "g": [1, 2]})
    assert text.splitlines() == ["a: 1", "b:", "  c: yes", "d:", "  - e 1, f 2.50", "g: 1, 2"]
