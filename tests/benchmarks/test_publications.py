"""Every publication's recipe through its own script, at counts that show nothing but that it works."""

import json
from functools import partial

import pytest
from click.testing import CliRunner

from benchmarks import cells, publications
from benchmarks.sources import DEMO
from qvit.distillation.trainer import Trainer
from qvit.errors import UsageError
from qvit.recipe import PUBLICATIONS, Recipe
from qvit.recipe import publications as counts
from qvit.recipe.game import Game, game_images

RESNET = "demo_resnet"
STEPS = {"psaq": 0, "psaq-v2": 2, "mimiq": 2, "maskaq": 2, "ait": 2, "acq": 2}


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    least = {"images": 4, "iterations": 2, "epochs": 2, "renew": 1, "rounds": 1}
    monkeypatch.setattr(counts, "_LEAST", least)
    monkeypatch.setattr(counts, "Game", partial(Game, sample_steps=1, student_steps=2))
    monkeypatch.setattr(counts, "game_images", partial(game_images, batch=4))
    monkeypatch.setattr(publications, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(publications, "_EVALUATED", 8)
    monkeypatch.setattr(cells, "circumstances", dict)


def run(folder, *recipes, model=DEMO, budget="1e-6"):
    chosen = [word for name in recipes for word in ("--recipe", f"paper-{name}")]
    arguments = [*chosen, "--model", model, "--budget", budget, "--out", str(folder)]
    return CliRunner().invoke(publications.main, arguments)


@pytest.mark.parametrize(("model", "recipes"), [(DEMO, tuple(STEPS)), (RESNET, ("ait", "acq"))])
def test_every_recipe_runs_as_published(model, recipes, tmp_path):
    told = run(tmp_path, *recipes, model=model)
    assert told.exit_code == 0, told.output
    rows = [line for line in told.output.splitlines() if line.startswith("| paper-")]
    assert len(rows) == len(recipes)
    for recipe, row in zip(recipes, rows, strict=True):
        path = tmp_path / f"{model}-paper-{recipe}-w4a4-1e-6-test-seed0.json"
        cell = json.loads(path.read_text())
        settings = Recipe.from_dict(cell["settings"])
        published = Recipe.preset(
            f"paper-{recipe}", weight_bits=4, activation_bits=4, budget="1e-6"
        )
        assert settings == published
        assert settings.static is not None
        assert str(tmp_path) not in path.read_text()  # no folder of a machine
        assert cell["counts"]["steps"] == STEPS[recipe]
        assert cell["counts"]["iterations"] == 2
        assert cell["counts"]["images"] == (8 if recipe == "maskaq" else 4)  # anew each epoch
        assert cell["result"]["images"] == len(cell["each"]["right"]) == 8
        made_first = recipe not in ("psaq-v2", "maskaq")
        assert (cell["calibrated"] is not None) == (cell["images"] is not None) == made_first
        assert (recipe in ("psaq-v2", "acq")) == ("our reconstruction" in row)
        if recipe != "psaq" and made_first:
            assert cell["trained"]["held_out"] == 0
            assert cell["calibrated"]["kl"] != cell["result"]["kl"]


def test_a_run_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    assert run(tmp_path, "psaq").exit_code == 0
    first = run(tmp_path, "psaq", "mimiq")
    held = {path: (path.stat().st_mtime_ns, path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(held) == 2

    # stopped behind the last step, before the cell was written: nothing is made again
    cell = tmp_path / f"{DEMO}-paper-mimiq-w4a4-1e-6-test-seed0.json"
    was = json.loads(cell.read_text())
    cell.unlink()
    monkeypatch.setattr(Trainer, "step", lambda *_, **__: pytest.fail("a step was taken again"))
    assert run(tmp_path, "psaq", "mimiq").exit_code == 0
    again = json.loads(cell.read_text())
    assert again["images"]["made"] == 0
    for name in ("result", "each", "calibrated", "counts", "settings"):
        assert again[name] == was[name]

    cell.write_text(held[cell][1])
    monkeypatch.setattr(publications, "measure", lambda *_: pytest.fail("measured again"))
    assert run(tmp_path, "psaq", "mimiq").stdout == first.stdout
    psaq = tmp_path / f"{DEMO}-paper-psaq-w4a4-1e-6-test-seed0.json"
    assert psaq.stat().st_mtime_ns == held[psaq][0]


@pytest.mark.parametrize("recipe", ["psaq", "mimiq", "maskaq"])
def test_what_is_about_attention_is_refused_where_there_is_none(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(publications, "follow", lambda *_: pytest.fail("something was begun"))
    told = run(tmp_path / "cells", "ait", recipe, model=RESNET)
    assert told.exit_code == 1
    assert f"paper-{recipe} is about attention, which {RESNET} has none of" in told.output
    assert "use paper-psaq-v2, paper-ait, paper-acq, or a ViT" in told.output
    assert not (tmp_path / "cells").exists()


def test_all_that_fit_a_model(tmp_path):
    for model, wanted in ((DEMO, list(PUBLICATIONS)), (RESNET, ["psaq-v2", "ait", "acq"])):
        found = [name for name, _ in publications.planned(model, (), (4, 8), "quick", (0, 1))]
        assert len(found) == 2 * len(wanted)
        assert all(
            name.endswith(("w4a8-quick-test-seed0", "w4a8-quick-test-seed1")) for name in found
        )
        assert all(last in name for last, name in zip(wanted, found, strict=False))


def test_impossible_budgets(tmp_path):
    with pytest.raises(UsageError, match="one of quick, standard, full, or a share"):
        publications.planned(DEMO, ("paper-psaq",), (4, 4), "huge", (0,))
    assert "expected one of quick" in run(tmp_path, "psaq", budget="2").output
