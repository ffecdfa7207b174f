"""A report of a real run, end to end: what is in it, what it refuses, and what it says without real images."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from qvit.cli import run
from qvit.report.gathering import sample
from qvit.report.observation import spread
from qvit.synthesis import shards


def synthesize(out, *extra, model="demo_vit"):
    small = ["-n", "5", "--batch", "3", "--iterations", "4", "--precision", "float32"]
    assert run(["synthesize", str(model), "-o", str(out), "-q", *small, *extra]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("run") / "images", "--method", "psaq")


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    """The JSON of a report with real images, and where it was written."""
    out = tmp_path_factory.mktemp("report")
    from qvit.report import write_report

    return write_report(folder, out=out, real="demo", progress=False), out


def section(html, name):
    return re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL).group()


def test_every_section_is_there(found):
    data, out = found
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    names = [
        "images",
        "measures",
        "attention",
        "progress",
        "classes",
        "activations",
        "privacy",
        "run",
    ]
    assert re.findall(r'<section id="(\w+)"', html) == names
    assert re.findall(r"^## (.+)$", markdown, re.MULTILINE) == re.findall(
        r"<h2[^>]*>(.+?)</h2>", html
    )
    assert json.loads(json.dumps(data)) == data
    assert set(data["sections"]) == {
        "images",
        "measures",
        "progress",
        "classes",
        "activations",
        "privacy",
    }
    pictures = {path.name for path in out.iterdir()} - {"report.html", "report.md"}
    assert (
        pictures
        == set(re.findall(r"\]\(([^)]+)\)", markdown))
        == {
            "grid.png",
            "attention-block4.png",
            "attention-block6.png",
        }
    )


def test_grid_shows_the_images_themselves(folder, found):
    _, out = found
    grid = np.asarray(Image.open(out / "grid.png")).astype(int)
    images = np.concatenate([batch.numpy() for batch, _ in shards.open_images(folder)])
    first = np.rint((images[0] * 0.5 + 0.5).clip(0, 1) * 255).transpose(1, 2, 0)
    # stored in half precision: a pixel may be off by the rounding of one step
    assert np.abs(grid[:64, :64] - first).max() <= 1


def test_real_images_are_shown_beside(found):
    data, out = found
    html = (out / "report.html").read_text()
    attention = section(html, "attention")
    assert attention.count('class="row synthetic') == attention.count('class="row real') == 2 * 3
    assert set(data["sections"]["activations"]) == {"synthetic_real", "noise_real"}
    assert set(data["sections"]["measures"]) == {"noise", "synthetic", "real"}
    assert "of the gap closed" in section(html, "measures")
    assert "read for this report only" in section(html, "privacy")


def test_overlap_of_real_images_with_themselves_is_whole(tmp_path):
    """The folder of real images is compared with the same images."""
    out = synthesize_given(tmp_path)
    assert run(["report", str(out), "--images", "demo:5", "-q"]) == 0
    html = (out / "report.html").read_text()
    assert "overlap with those of real images by 100\u202f% on average" in html
    assert "synthesized" not in html
    assert "given" in html


def synthesize_given(tmp_path):
    out = tmp_path / "given"
    arguments = ["synthesize", "demo_vit", "--method", "folder", "--images", "demo:5", "-n", "5"]
    assert run([*arguments, "-o", str(out), "-q"]) == 0
    return out


def test_progress_is_the_log(folder, found):
    """The traces of the report are the lines of the log, averaged over batches."""
    data, _ = found
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = data["sections"]["progress"]["losses"]
    assert list(losses) == ["loss", "attention", "classes", "smoothness"]
    first = [line["loss"] for line in lines if line.get("iteration") == 0 and "loss" in line]
    assert len(first) == 2
    assert losses["loss"][0] == [0, pytest.approx(sum(first) / 2)]
    ends = [line for line in lines if line.get("event") == "finished"]
    measured = data["sections"]["progress"]["measures"]["head_distance"]
    assert [iteration for iteration, _ in measured] == [0, 1, 2, 3, 4]
    assert measured[0][1] == pytest.approx(sum(e["before"]["head_distance"] for e in ends) / 2)
    assert measured[-1] == [4, pytest.approx(sum(e["after"]["head_distance"] for e in ends) / 2)]


def test_measures_are_those_that_the_run_logged(folder, found):
    """Of every batch for itself: entropy depends on how many images are looked at together."""
    data, _ = found
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line.get("event") == "finished"]
    for name in ("head_distance", "patch_entropy"):
        logged = sum(line["images"] * line["after"][name] for line in ends) / 5
        assert data["sections"]["measures"]["synthetic"][name] == pytest.approx(logged, abs=1e-4)


def test_classes_are_counted(folder, found):
    data, out = found
    classes = data["sections"]["classes"]
    assert sum(classes["seen"].values()) == sum(classes["asked_for"].values()) == 5
    wanted = [label for _, labels in shards.open_images(folder) for label in labels.tolist()]
    assert {int(k): v for k, v in classes["asked_for"].items()} == {
        i: wanted.count(i) for i in wanted
    }
    assert "zigzag" in section((out / "report.html").read_text(), "classes")


def test_without_real_images(folder, tmp_path, capsys):
    assert run(["report", str(folder), "-o", str(tmp_path / "new"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    html = (tmp_path / "new" / "report.html").read_text()
    assert data["report"] == str(tmp_path / "new" / "report.html")
    assert 'class="row real' not in html
    assert html.count("--images PATH") == 3
    assert set(data["sections"]["activations"]) == {"synthetic_noise"}
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_method_without_iterations(tmp_path):
    out = tmp_path / "noise"
    assert (
        run(["synthesize", "demo_vit", "--method", "noise", "-n", "3", "-o", str(out), "-q"]) == 0
    )
    assert run(["report", str(out), "-q"]) == 0
    html = (out / "report.html").read_text()
    assert 'id="progress"' not in html
    assert 'id="measures"' in html
    assert "asked for" not in html


def test_measures_that_were_not_finite_are_left_out(folder, tmp_path):
    """Of one batch before, of the other afterwards: nothing that both have is left of that measure at its ends."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("event") == "finished":
            line["before" if line["batch"] else "after"]["patch_entropy"] = None
        elif line.get("event") == "measured":
            line["patch_entropy"] = None
    (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["report", str(copy), "-q"]) == 0
    progress = section((copy / "report.html").read_text(), "progress")
    assert "Inter-head distance" in progress
    assert "Patch-similarity entropy" not in progress


def test_sample_is_spread_and_keeps_labels(folder):
    images = shards.open_images(folder)
    whole = [
        (image, label)
        for batch, labels in images
        for image, label in zip(batch, labels, strict=True)
    ]
    pixels, wanted = sample(images, 2)
    assert spread(5, 2) == [0, 2]
    assert [int(whole[i][1]) for i in (0, 2)] == wanted
    assert all((pixels[k] == whole[i][0]).all() for k, i in enumerate((0, 2)))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 4, ["nowhere", "qvit synthesize"]),
        (["{folder}", "--limit", "0"], 2, ["--limit 0"]),
        (["{folder}", "--images", "nowhere"], 4, ["nowhere"]),
        (["{folder}", "--weights", "nowhere.safetensors"], 4, ["nowhere.safetensors"]),
        (["{folder}", "-o", "{folder}/manifest.json"], 2, ["is a file"]),
    ],
    ids=["no folder", "limit", "images", "weights", "out"],
)
def test_bad_input(folder, capsys, arguments, code, words):
    assert run(["report", *(a.format(folder=folder) for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert not (folder / "report.html").exists()


def test_other_weights_are_refused(tiny_model, tmp_path, capsys):
    out = synthesize(tmp_path / "out", "--method", "mimiq", model=tiny_model)
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_model / "model.safetensors")
    state["norm.bias"] += 1
    save_file(state, tmp_path / "other.safetensors")
    assert run(["report", str(out), "--weights", str(tmp_path / "other.safetensors")]) == 4
    assert "other weights" in capsys.readouterr().err


def test_folder_that_is_not_complete(tmp_path, capsys):
    out = tmp_path / "out"
    small = ["-n", "4", "--batch", "2", "--method", "noise", "-o", str(out), "--shard", "0/2", "-q"]
    assert run(["synthesize", "demo_vit", *small]) == 0
    assert run(["report", str(out)]) == 4
    assert "not complete" in capsys.readouterr().err


def test_damaged_shard(tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        run(["synthesize", "demo_vit", "--method", "noise", "-n", "2", "-o", str(out), "-q"]) == 0
    )
    shard = out / "shards" / "000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert run(["report", str(out)]) == 4
    assert "000000.safetensors" in capsys.readouterr().err


def test_a_generators_training_is_shown(tmp_path):
    from qvit.report import write_report

    run_folder = synthesize(
        tmp_path / "images", "--method", "acq", "--set", "synthesis.width=16", "--set", "synthesis.latent=8"
    )  # fmt: skip
    data = write_report(run_folder, out=tmp_path / "report", progress=False)
    assert {"loss", "centres", "pairs"} <= set(data["sections"]["progress"]["losses"])


def test_images_of_a_cnn_are_refused_with_the_reason(tmp_path, capsys):
    run_folder = synthesize(tmp_path / "images", "--method", "bns", model="demo_resnet")
    capsys.readouterr()
    assert run(["report", str(run_folder)]) == 2
    assert "a ResNet, and the report is about attention" in capsys.readouterr().err
