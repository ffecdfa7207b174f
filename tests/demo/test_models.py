"""The packaged models: small, really trained, found by name without a network, and worth quantizing."""

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.demo.naive import quantize_naively
from qvit import evaluation, zoo
from qvit.cli import run
from qvit.data import DataConfig, open_images
from qvit.demo.__main__ import main as print_table
from qvit.demo.objects import CLASSES
from qvit.demo.packaged import MODELS
from qvit.demo.scenes import render
from tests.conftest import ROOT

BAND = (
    88,
    97,
)  # percent; below, a model has learned too little, above, methods cannot be told apart
UNSEEN_SEED = 77
COUNT = 504  # 21 of each class


@pytest.fixture(scope="module")
def fresh():
    """Images of a series that neither training nor the recorded figures used."""
    scenes = [render(UNSEEN_SEED, index) for index in range(COUNT)]
    images = torch.stack([torch.from_numpy(scene.image) for scene in scenes])
    images = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    return images, torch.tensor([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def recorded():
    return json.loads((ROOT / "benchmarks" / "results" / "demo-models.json").read_text())


def top1(model, fresh):
    images, labels = fresh
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in images.split(126)])
    return 100 * float((logits.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_on_fresh_images_is_the_recorded_one(name, fresh, recorded):
    expected = recorded[name]["float32_top1"]
    assert recorded[name]["fresh_images"] == 5000
    assert BAND[0] <= expected <= BAND[1]
    found = top1(zoo.load(zoo.resolve(name)), fresh)
    error = math.sqrt(expected * (100 - expected) * (1 / COUNT + 1 / 5000))
    assert abs(found - expected) <= 3 * error


@pytest.mark.parametrize("name", MODELS)
def test_naive_four_bits_lose_more_than_ten_points(name, fresh):
    model = zoo.load(zoo.resolve(name))
    sample = fresh[0][:32]
    expected = top1(model, fresh)
    assert top1(quantize_naively(model, sample, bits=8), fresh) >= expected - 2
    assert top1(quantize_naively(model, sample, bits=4), fresh) < expected - 10
    assert top1(model, fresh) == expected  # the original is left as it was


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_small_and_half_precision(name):
    path = MODELS[name] / "model.safetensors"
    assert path.stat().st_size <= 2_000_000
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds <= {torch.float16, torch.int64}
    assert {p.dtype for p in zoo.load(zoo.resolve(name)).parameters()} == {torch.float32}


def test_names_are_listed_and_suggested():
    rows = {row["alias"]: row for row in zoo.catalogue()}
    assert rows["demo_vit"]["quantizable"]
    assert not rows["demo_resnet"]["quantizable"]
    assert rows["demo_vit"]["input_size"] == [3, 64, 64]
    assert rows["demo_vit"]["license"] == "apache-2.0"
    source = zoo.resolve("demo_vit")
    assert (source.timm_name, source.num_classes) == (rows["demo_vit"]["timm_name"], len(CLASSES))
    with pytest.raises(Exception, match="Did you mean demo_vit"):
        zoo.resolve("demo_wit")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("bits", "most_lost"), [(8, 1.5), (4, 8.0)])
def test_quantized_and_evaluated_without_data_or_network(bits, most_lost, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["quantize", "demo_vit", "--w", str(bits), "--a", str(bits), "-o", str(folder)]
    assert run([*arguments, "-q"]) == 0
    capsys.readouterr()
    assert run(["eval", str(folder), "--data", f"demo:{COUNT}", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == COUNT
    assert found["float"]["top1"] >= BAND[0] - 4  # of 504 images
    assert found["float"]["top1"] - found["top1"] <= most_lost


def test_a_folder_from_another_installation_finds_the_packaged_weights(tmp_path, capsys):
    folder = tmp_path / "out"
    assert run(["quantize", "demo_vit", "-o", str(folder), "-q"]) == 0
    report = json.loads((folder / "run.json").read_text())
    report["source"]["weights"]["path"] = "/elsewhere/qvit/demo/weights/demo_vit/model.safetensors"
    (folder / "run.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert run(["eval", str(folder), "--data", "demo:48", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["float"]["top1"] > 80


def test_float_models_are_evaluated_by_name(capsys):
    assert run(["eval", "demo_resnet", "--data", "demo:240", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 80


def test_a_convolutional_model_is_refused_with_the_reason(tmp_path, capsys):
    assert run(["quantize", "demo_resnet", "-o", str(tmp_path / "out")]) == 2
    assert "not a plain VisionTransformer" in capsys.readouterr().err


def test_evaluation_of_rendered_images_agrees_with_arrays(fresh):
    """The path through image files, Pillow and timm's transform, against the arrays themselves."""
    source = zoo.resolve("demo_vit")
    model = zoo.load(source)
    dataset = open_images("demo:48", DataConfig.from_pretrained_cfg(source.pretrained_cfg))
    predicted = evaluation.predict(model, dataset, progress=False)
    scenes = [render(2, int(dataset.path(i).partition("/")[2])) for i in range(48)]
    images = torch.stack([torch.from_numpy(scene.image) for scene in scenes])
    with torch.inference_mode():
        logits = model((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    torch.testing.assert_close(predicted.logits, logits, rtol=1e-3, atol=1e-3)


def test_table_holds_the_figures(tmp_path, capsys):
    def row(variant, batch, p50):
        return {
            "variant": variant,
            "batch": batch,
            "latency_ms": {"p50": p50},
            "images_per_s": batch / p50,
        }

    contents = {
        "quantize": {"scheme": "W4A4", "bytes": 512_000, "fp32_bytes": 3_300_000},
        "eval": {
            "top1": 89.25, "top1_interval": [87.0, 91.0], "images": 1000, "agreement": 95.5,
            "float": {"top1": 92.5},
        },
        "bench": {
            "machine": {"cpu": "some processor", "threads": 2},
            "rows": [
                *(row("fp32", batch, 2.0 * batch) for batch in (1, 8)),
                *(row("bf16", batch, 1.5 * batch) for batch in (1, 8)),
                *(row("qvit-w4a4-cpu", batch, 1.25 * batch) for batch in (1, 8)),
            ],
        },
    }  # fmt: skip
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    print_table([str(path) for path in paths])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fp32", "92.5", "3,300", "2.00", "16.00", "0"] in lines
    assert ["bf16", "-", "1,650", "1.50", "12.00", "1"] in lines
    assert ["qvit", "W4A4", "89.2", "512", "1.25", "10.00", "1"] in lines


def test_table_without_its_files_says_what_it_expects():
    with pytest.raises(SystemExit, match=r"quantize\.json eval\.json bench\.json"):
        print_table([])


@pytest.mark.slow
def test_training_repeats_to_the_same_bytes(tmp_path, child_environment):
    """A few steps of each model, twice: the schedule's thousands only take longer."""
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        script = [str(ROOT / "benchmarks" / "train_demo.py"), "--steps", "6", "--images", "192"]
        places = ["--fresh", "48", "--out", str(folder), "--result", str(folder / "result.json")]
        subprocess.run([sys.executable, *script, *places], env=child_environment, check=True)
        written.append([(folder / name / "model.safetensors").read_bytes() for name in MODELS])
    assert written[0] == written[1]


def test_models_lie_in_the_package():
    for folder in MODELS.values():
        assert folder.is_relative_to(Path(zoo.__file__).parent.parent / "demo")
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
