"""`sense`: layers exchanged between two models, what each brings, and which are suggested."""

import json

import pytest
import torch

from qvit import zoo
from qvit.cli import run
from qvit.errors import InputError, UsageError
from qvit.models.timm_import import read_model
from qvit.recipe import Recipe
from qvit.sensitivity import Request, measure_sensitivity
from qvit.sensitivity.measuring import suggest
from qvit.sensitivity.mixtures import Mixtures, block_of, streams_of


@pytest.fixture(scope="module")
def source(tiny_model):
    return zoo.resolve(f"local-dir:{tiny_model}")


@pytest.fixture(scope="module")
def mixtures(source):
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    return Mixtures(vit, Recipe.preset("qvit", weight_bits=3, activation_bits=3))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_all_layers_exchanged_are_the_other_model(mixtures, images):
    low = mixtures.logits_of(mixtures.low, (), images)
    wide = mixtures.logits_of(mixtures.wide, (), images)
    assert not torch.equal(low, wide)
    assert torch.equal(mixtures.logits_of(mixtures.wide, mixtures.names, images), low)
    assert torch.equal(mixtures.logits_of(mixtures.low, mixtures.names, images), wide)
    assert torch.equal(mixtures.logits_of(mixtures.wide, (), images), wide)  # all is back


def test_layers_with_bits_of_their_own_are_widened_too(source):
    """And attention, which is no Linear, is the same in both."""
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        ["layers.blocks.*.mlp.fc2=W3A4", "layers.blocks.0.attn=A3"]
    )
    mixtures = Mixtures(vit, recipe)
    for model, bits in ((mixtures.low, (3, 4)), (mixtures.wide, (8, 8))):
        scheme = model.blocks[1].mlp.fc2.scheme
        assert (scheme.weight.bits, scheme.input.bits) == bits
    low, wide = (m.blocks[0].attn.scheme for m in (mixtures.low, mixtures.wide))
    assert low == wide


@torch.no_grad()
def test_blocks_before_a_layer_need_not_be_computed_again(mixtures, images):
    streams = streams_of(mixtures.wide, images)
    for name in mixtures.names[1:]:
        block = block_of(name)
        first = len(mixtures.wide.blocks) if block is None else block
        expected = mixtures.logits_of(mixtures.wide, (name,), images)
        assert torch.equal(mixtures.logits(mixtures.wide, (name,), streams, first), expected), name


def test_a_report(source):
    found = measure_sensitivity(
        source, Recipe.preset("plain", weight_bits=3, activation_bits=3), Request(images=4, batch=3), progress=False
    )  # fmt: skip
    assert [layer["name"] for layer in found["layers"]] == list(
        read_model(zoo.load(source), source.pretrained_cfg).config.linears()
    )
    assert all(layer["kl_alone"] > 0 for layer in found["layers"])
    assert found["kl"] > found["kl_wide"] > 0
    assert found["kl"] > max(layer["kl_alone"] for layer in found["layers"]) / 2
    assert found["images"] == 4
    if found["exclude"]:
        assert found["kl_excluded"] < found["kl"]


def test_a_layer_that_is_spoilt_is_found(source, monkeypatch):
    """One bit-width for all, but the steps of one layer ten times too wide: it must come out first."""
    from qvit.sensitivity import mixtures

    simulate, calls = mixtures._simulate, []

    def spoil(vit, recipe):
        model = simulate(vit, recipe)
        if not calls:  # the low one is made first
            model.blocks[1].mlp.fc1.weight_scale.mul_(10)
        calls.append(recipe)
        return model

    monkeypatch.setattr(mixtures, "_simulate", spoil)
    recipe = Recipe.preset("plain", weight_bits=6, activation_bits=8)
    found = measure_sensitivity(source, recipe, Request(images=4), progress=False)
    worst = max(found["layers"], key=lambda layer: layer["kl_alone"])
    assert worst["name"] == "blocks.1.mlp.fc1"
    assert found["exclude"] == ["blocks.1.mlp.fc1"]
    assert found["kl_excluded"] < 0.5 * found["kl"]
    assert worst["kl_gain"] > 0.5 * found["kl"]


def test_suggestions():
    even = [(f"blocks.{i}.attn.qkv", 1.0) for i in range(30)]
    assert suggest(even) == []
    assert suggest([*even, ("head", 3.0)]) == ["head"]
    assert suggest([*even[:20], *((f"{i}", 3.0 + i) for i in range(5))]) == ["4", "3"]


def test_verb_for_a_model_and_a_folder(tiny_model, tiny_copy, tmp_path, capsys):
    out = tmp_path / "out" / "sense.json"
    common = ["--images", "3", "-q", "--json"]
    assert (
        run(["sense", f"local-dir:{tiny_model}", "--w", "3", "--a", "4", "-o", str(out), *common])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["scheme"] == "W3A4 mixed"  # the recipe's ends have 8 bits
    assert json.loads(out.read_text()) == found
    assert "<svg" in out.with_suffix(".html").read_text()
    assert run(["sense", str(tiny_copy), *common]) == 0
    assert json.loads(capsys.readouterr().out)["scheme"] == "W4A4"
    assert (tiny_copy / "sense.json").is_file()


def test_what_is_refused(tiny_quantized, tmp_path):
    import shutil

    from qvit.sensitivity import recipe_of

    with pytest.raises(UsageError, match="--images 0"):
        Request(images=0)
    assert run(["sense", str(tiny_quantized), "--w", "4", "-q"]) == 2
    for out in (tmp_path / "sense.html", tmp_path, "/proc/sense.json"):
        assert run(["sense", str(tiny_quantized), "-o", str(out), "-q"]) == 2
    copy = tmp_path / "copy"
    shutil.copytree(tiny_quantized, copy)
    (copy / "recipe.yaml").unlink()
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        recipe_of(copy)
