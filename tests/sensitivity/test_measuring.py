"""`sense`: layers exchanged between two models, what each brings, and which are suggested."""

import dataclasses
import json

import pytest
import torch

from qvit import zoo
from qvit.cli import run
from qvit.errors import InputError, UsageError
from qvit.models.timm_import import read_model
from qvit.recipe import Recipe, keep_wide
from qvit.sensitivity import Request, measure_sensitivity, measuring
from qvit.sensitivity.measuring import find_outliers
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
    """And so is attention, which has no weights."""
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        ["layers.blocks.*.mlp.fc2=W3A4", "layers.blocks.0.attn=A3"]
    )
    mixtures = Mixtures(vit, recipe)
    for model, bits in ((mixtures.low, (3, 4)), (mixtures.wide, (8, 8))):
        scheme = model.blocks[1].mlp.fc2.scheme
        assert (scheme.weight.bits, scheme.input.bits) == bits
    for model, bits in ((mixtures.low, (3, 3)), (mixtures.wide, (8, 8))):
        scheme = model.blocks[0].attn.scheme
        assert (scheme.qkv.bits, scheme.softmax_bits) == bits
    assert [name for name in mixtures.names if name.endswith(".attn")] == ["blocks.0.attn"]


@torch.no_grad()
def test_attention_products_are_layers_of_their_own(source, images):
    """At 8 bits there is nothing to exchange; below, they are exchanged without the Linears beside them."""
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    assert not [
        n
        for n in Mixtures(vit, Recipe.preset("qvit", weight_bits=4, activation_bits=4)).names
        if n.endswith("attn")
    ]
    recipe = Recipe.preset("plain", weight_bits=3, activation_bits=3)
    mixtures = Mixtures(vit, recipe)
    name = "blocks.1.attn"
    assert {n for n in mixtures.names if n.endswith("attn")} == {"blocks.0.attn", name}
    found = mixtures.logits_of(mixtures.low, (name,), images)
    excluded = dataclasses.replace(recipe, layers=dict([keep_wide(name)]))
    expected = Mixtures(vit, excluded)
    assert torch.equal(found, expected.logits_of(expected.low, (), images))
    assert not torch.equal(found, mixtures.logits_of(mixtures.low, (), images))


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
    linears = read_model(zoo.load(source), source.pretrained_cfg).config.linears()
    attentions = ["blocks.0.attn", "blocks.1.attn"]
    assert [layer["name"] for layer in found["layers"]] == [*linears, *attentions]
    sizes = [layer["weights"] for layer in found["layers"]]
    assert sizes == [*(n * k for n, k in linears.values()), 0, 0]
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
    found = measure_sensitivity(source, recipe, Request(images=16, batch=16), progress=False)
    worst = max(found["layers"], key=lambda layer: layer["kl_alone"])
    assert worst["name"] == "blocks.1.mlp.fc1"
    assert found["exclude"] == ["blocks.1.mlp.fc1"]
    assert found["kl_excluded"] < 0.5 * found["kl"]
    assert worst["kl_gain"] > 0.5 * found["kl"]


def test_outliers():
    even = [(f"blocks.{i}.attn.qkv", 1.0) for i in range(30)]
    assert find_outliers(even) == []
    assert find_outliers([*even, ("head", 3.0)]) == ["head"]
    assert find_outliers([*even[:20], *((f"{i}", 3.0 + i) for i in range(5))]) == ["4", "3"]


@pytest.mark.parametrize(
    ("gains", "kept"),
    [
        ({"a": [1.0, 1.2], "b": [0.5, 0.6]}, ["a", "b"]),
        (
            {"a": [-1.0, -1.2], "b": [0.5, 0.6]},
            ["b"],
        ),  # the worst one alone, and the better for its low bits
        ({"a": [1.0, 1.2], "b": [-0.1, 0.3]}, ["a"]),  # lower by chance
        ({"a": [0.0, 0.0], "b": [-0.1, -0.3]}, []),
        ({"a": [1.0], "b": [1.0]}, []),  # one image says nothing of others
    ],
)
def test_suggestions_lower_the_divergence(gains, kept):
    """Logits of as many images as there are gains; each layer kept takes so much from the divergence."""

    class Answers:
        def divergences(self, logits):
            return logits

    low = torch.full((len(gains["a"]),), 3.0)
    asked = []

    def ask(names):
        asked.append(list(names))
        return low - sum(torch.tensor(gains[name]) for name in names)

    found, logits = measuring._verify(["a", "b"], low, Answers(), ask)
    assert found == kept
    expected = low - sum((torch.tensor(gains[name]) for name in kept), torch.zeros(len(low)))
    assert torch.allclose(logits, expected)
    assert asked[0] == ["a"]


def test_an_outlier_whose_exclusion_harms_is_not_suggested(source, monkeypatch):
    """A layer that stands out alone, while what 8 bits do for it in the low-bit model is worse than its low bits."""
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=8)
    name = "blocks.1.mlp.fc1"
    monkeypatch.setattr(measuring, "find_outliers", lambda divergences: [name])
    assert measure_sensitivity(source, recipe, Request(images=16, batch=16), progress=False)[
        "exclude"
    ] == [name]
    spoil = Mixtures.__init__

    def spoilt(self, vit, recipe):
        spoil(self, vit, recipe)
        self.wide.blocks[1].mlp.fc1.weight_scale.mul_(40)

    monkeypatch.setattr(Mixtures, "__init__", spoilt)
    found = measure_sensitivity(source, recipe, Request(images=16, batch=16), progress=False)
    assert found["exclude"] == []
    assert (found["kl_excluded"], found["agreement_excluded"]) == (found["kl"], found["agreement"])


def test_verb_for_a_model_and_a_folder(tiny_model, tiny_copy, tmp_path, capsys):
    out = tmp_path / "out" / "sense.json"
    common = ["--images", "3", "-q", "--json"]
    assert (
        run(["sense", f"local-dir:{tiny_model}", "--w", "3", "--a", "4", "-o", str(out), *common])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["scheme"] == "W3A4"
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
