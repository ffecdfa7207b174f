"""`qvit search`: the folder it writes, recipes that replay, and refusals before any work."""

import json
import xml.etree.ElementTree as ET

import pytest

from qvit import zoo
from qvit.cli import run
from qvit.recipe import load_recipe

CARD = ["--on", "nvidia-h200"]
SETTLED = [
    word
    for name, bits in (
        ("blocks.*.*.*", "W4A4"),
        ("blocks.*.attn", "A4"),
        ("head", "W4A4"),
        ("patch_embed.proj", "W4"),
    )
    for word in ("--set", f"layers.{name}={bits}")
]


@pytest.fixture(scope="module")
def searched(tiny_model, tmp_path_factory):
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("search") / "out"
    assert run(["search", str(tiny_model), "--max-kl", "0.05", *CARD, "-q", "-o", str(out)]) == 0
    return out, json.loads((out / "search.json").read_text())


def test_every_cost_has_its_points_and_a_recipe_for_each(searched):
    out, found = searched
    assert {point["limited"] for point in found["points"]} == {"size", "bitops", "latency"}
    assert found["latency"] == {"known": "modelled", "on": "nvidia-h200", "batch": 1}
    for point in found["points"]:
        recipe = load_recipe(str(out / f"{point['recipe']}.yaml"))
        assert point["layers"].items() <= recipe.layers.items()
        assert min(point["size"], point["bitops"], point["latency"], point["kl"]) > 0
    cheapest = {p["limited"]: p for p in found["points"] if p["recipe"].endswith("-cheapest")}
    assert cheapest
    assert all(point["kl"] <= 0.05 for point in cheapest.values())


def test_few_bits_have_the_grids_of_the_recipe_of_few_bits(searched):
    out, found = searched
    recipes = [load_recipe(str(out / f"{point['recipe']}.yaml")) for point in found["points"]]
    assert {recipe.activations.norm_group for recipe in recipes} == {0, 64}


def test_a_limit_of_size_has_the_presets_that_auto_has_under_it(searched):
    """Activations of eight bits, which are settled and take nothing of a file."""
    out, found = searched
    for point in found["points"]:
        settled = [("A" not in bits) for bits in point["layers"].values()]
        assert all(settled) if point["limited"] == "size" else not any(settled[1:])
        recipe = load_recipe(str(out / f"{point['recipe']}.yaml"))
        assert (recipe.activations.bits == 8) == (point["limited"] == "size")


@pytest.mark.parametrize(
    ("arguments", "grids", "of_size"),
    [
        ([], [(16, 4), (16, 3)], [(16, 8)]),
        (["--w", "4"], [(16, 4)], [(16, 4)]),
        (["--a", "3"], [(16, 3)], [(16, 3)]),
        (["--recipe", "FILE"], [(8, 4)], [(8, 4)]),
    ],
)
def test_a_recipe_that_is_named_is_the_only_one(
    tiny_model, tmp_path, monkeypatch, arguments, grids, of_size
):
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe("qvit", 4, 4).override(["weights.group=8"]).to_yaml())
    asked = {}
    monkeypatch.setattr(
        "qvit.search.run.plan_frontier", lambda source, recipes, place: asked.update(recipes) or {}
    )
    arguments = [str(path) if word == "FILE" else word for word in arguments]
    assert run(["search", str(tiny_model), "--dry-run", "-q", *arguments]) == 0
    known = {
        cost: [(recipe.weights.group, recipe.activations.bits) for recipe in recipes]
        for cost, recipes in asked.items()
    }
    assert known == {"size": of_size, "bitops": grids, "latency": grids}


def test_the_picture_is_one(searched):
    out, found = searched
    root = ET.parse(out / "frontier.svg").getroot()
    assert root.tag.endswith("svg")
    dots = [e for e in root.iter() if e.get("class", "").startswith("dot")]
    assert len(dots) == len(found["points"])


def test_a_folder_is_not_replaced_unasked(searched, tiny_model, capsys):
    out, _ = searched
    assert run(["search", str(tiny_model), *CARD, "-q", "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_take(tiny_model, capsys, monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("loaded the weights"))
    assert run(["search", str(tiny_model), "--dry-run", "--json", "-q"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["points"] == 18
    assert plan["choices"] > 10
    assert plan["estimated_seconds"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drop", "-1"], "--max-kl -1.0: expected nats above 0"),
        (["--max-kl", "-1"], "--max-kl -1.0: expected nats above 0"),
        (["--on", "abacus"], "latency is modelled for"),
        (SETTLED, "no bits are left to find"),
        (["--dry-run", *SETTLED], "no bits are left to find"),
        (["--recipe", "paper-psaq"], "layers belongs to qvit's own quantizers"),
        (["--recipe", "paper-psaq", "--dry-run"], "layers belongs to qvit's own quantizers"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_model, arguments, message, capsys):
    assert run(["search", str(tiny_model), "-q", *arguments]) == 2
    assert message in capsys.readouterr().err
