"""Images that a quantized model learned from: the very ones, wherever they are, and never a user's own."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from qvit import zoo
from qvit.cli import run
from qvit.deployment.provenance import read_architecture
from qvit.recipe import Synthesis
from qvit.report.pictures import to_pixels
from qvit.report.records import read_folder
from qvit.report.sections.samples import show_samples
from qvit.report.writing import write_report
from qvit.synthesis import open_images, synthesize


def change(folder, synthesis=None, **changes):
    """Another recipe in a folder, as if the model had been made with it."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["synthesis"] = None if synthesis is None else dataclasses.asdict(synthesis)
    recipe["weights"] |= changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def record(folder, **images):
    found = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(found | {"images": images}))


def shown(folder):
    return show_samples(read_folder(folder))


def test_leaves_are_drawn_again_as_they_were(tiny_copy, tiny_model, tmp_path):
    samples = read_folder(tiny_copy).samples
    images = dataclasses.replace(samples.settings, images=20, batch=20)
    source = zoo.resolve(f"local-dir:{tiny_model}")
    synthesize(source, images, tmp_path / "images", seed=samples.seed, progress=False)
    first, _ = next(iter(open_images(tmp_path / "images")))
    cfg = read_architecture(tiny_copy).pretrained_cfg
    theirs = to_pixels(first[:8], cfg["mean"], cfg["std"]).astype(int)
    assert samples.pixels.shape == (8, 32, 32, 3)
    assert np.abs(theirs - samples.pixels).max() <= 1  # the shards are float16
    section = shown(tiny_copy)
    assert section.data["shown"] == 8
    assert section.data["method"] == "leaves"
    assert f"rounded for {samples.settings.images} synthetic images" in section.lead


def test_optimised_images_are_found_beside_the_model(tiny_copy, tiny_model, tmp_path):
    """Those of this very run, also where both folders were moved."""
    images = Synthesis.preset("mimiq", images=4, batch=2, iterations=1)
    change(tiny_copy, images)
    source = zoo.resolve(f"local-dir:{tiny_model}")
    made = synthesize(source, images, tmp_path / "elsewhere", seed=0, progress=False)
    record(tiny_copy, path=str(tmp_path / "elsewhere"), images=4, fingerprint=made["fingerprint"])
    section = shown(tiny_copy)
    assert section.data["shown"] == 4
    assert "method mimiq" in section.lead
    assert dict(section.data["settings"])["iterations"] == "1"
    (tmp_path / "elsewhere").rename(tmp_path / f"{tiny_copy.name}-images")
    assert shown(tiny_copy).data["shown"] == 4
    record(tiny_copy, path="gone", images=4, fingerprint="of another run")
    section = shown(tiny_copy)
    assert section.data["shown"] == 0
    assert "no longer beside the model" in section.blocks[1].text


@pytest.mark.parametrize(
    ("synthesis", "words"),
    [
        (Synthesis.preset("noise", images=4), "Noise looks like noise"),
        (Synthesis.preset("mimiq", images=4), "made while the model was trained"),
        (
            Synthesis.preset("folder", images=6, leaves=2, data="somewhere", labelled=False),
            "not shown",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.method,
)
def test_what_is_not_shown_is_told(tiny_copy, synthesis, words):
    change(tiny_copy, synthesis)
    found = json.loads((tiny_copy / "run.json").read_text())
    found.pop("images")
    (tiny_copy / "run.json").write_text(json.dumps(found))
    section = shown(tiny_copy)
    assert words in section.blocks[1].text
    assert "somewhere" not in str(section)
    if synthesis.method == "folder":
        assert "rounded for 4 images that were given and 2 dead leaves" in section.lead


def test_a_model_that_learned_from_nothing_has_no_such_section(tiny_copy):
    change(tiny_copy, rounding="nearest")
    assert read_folder(tiny_copy).samples is None
    change(tiny_copy, Synthesis.preset("leaves", images=4), rounding="nearest")
    assert read_folder(tiny_copy).samples is None
    (tiny_copy / "recipe.yaml").unlink()
    assert read_folder(tiny_copy).samples is None


def test_pictures_are_on_the_page_and_beside_it(tiny_copy, tmp_path, capsys):
    assert run(["report", str(tiny_copy), "-o", str(tmp_path / "page"), "-q", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == [str(tmp_path / "page" / "images.png")]
    assert found["sections"]["synthesis"]["seed"] == 0
    assert (tmp_path / "page" / "images.png").read_bytes().startswith(b"\x89PNG")
    assert "(images.png)" in (tmp_path / "page" / "report.md").read_text()
    html = (tmp_path / "page" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 8


def test_a_model_of_one_channel(tiny_copy):
    """Grey pictures are drawn as three equal channels."""
    from qvit.report.samples import _as_pixels

    source = read_architecture(tiny_copy)
    grey = dataclasses.replace(
        source, pretrained_cfg=source.pretrained_cfg | {"mean": (0.5,), "std": (0.5,)}
    )
    pixels = _as_pixels(torch.zeros(1, 1, 4, 4), grey)
    assert pixels.shape == (1, 4, 4, 3)
    assert set(pixels.flatten().tolist()) == {128}


def test_a_broken_recipe_is_named(tiny_copy):
    from qvit.errors import InputError

    (tiny_copy / "recipe.yaml").write_text("weights: [")
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        write_report(tiny_copy, progress=False)
