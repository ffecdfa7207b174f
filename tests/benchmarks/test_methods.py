"""Two methods through the whole harness, at a budget that shows nothing but that it works."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import cells, methods
from benchmarks.comparison import images, together
from benchmarks.comparison.budgets import BUDGETS
from benchmarks.comparison.orders import RESNET_ORDERS, VIT_ORDERS, orders_table
from benchmarks.comparison.rows import RECONSTRUCTION, recipe_of, rows, training_of
from benchmarks.comparison.table import table
from qvit.distillation.game import Rules


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(cells, "circumstances", dict)


def planned():
    wanted = ("noise-none-static-w4a4", "mimiq-kl-static-w4a4")
    return methods.planned("demo_vit", "smoke", (0,), only=wanted)


def test_two_methods_through_the_harness(tmp_path):
    found = cells.measure(planned(), tmp_path / "cells")
    noise, mimiq = found
    assert noise["distillation"] is None
    assert noise["images"]["method"] == "noise"
    assert mimiq["trained"]["steps"] == 2
    assert mimiq["images"]["iterations"] == 2
    assert len(noise["softmax_reach"]) == 6
    assert noise["softmax_reach"] != mimiq["softmax_reach"]
    for cell in found:
        assert all(0 < reach < 1.2 for reach in cell["softmax_reach"])
        assert cell["result"]["images"] == 8
        each = cell["each"]
        assert 100 * each["right"].count("1") / 8 == cell["result"]["top1"]
        assert sum(each["kl"]) / 8 == pytest.approx(cell["result"]["kl"], rel=1e-3)
        assert 0 <= cell["result"]["agreement"] <= 100
        assert cell["budget"]["name"] == "smoke"
    lines = table(found).splitlines()
    assert lines[2].startswith("| noise | 4 | none | static | w4a4 | 0 |")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert cells.measure(planned(), tmp_path / "cells") == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before


@pytest.mark.parametrize("quantizer", ["static", "dynamic"])
def test_rounding_that_is_learned_through_the_harness(quantizer, tmp_path):
    wanted = (f"noise-reconstruction-{quantizer}",)
    (found,) = cells.measure(
        methods.planned("demo_vit", "smoke", (0,), only=wanted), tmp_path / "cells"
    )
    assert found["distillation"]["steps"] == 2
    assert len(found["trained"]["blocks"]) == 6
    assert (found["static"] is None) == (quantizer == "dynamic")
    assert f"| noise | 4 | reconstruction | {quantizer} | w4a4 | 0 |" in table([found])


def test_a_method_keeps_its_surroundings_and_changes_its_term():
    """What tells MimiQ's and PSAQ-ViT's terms from all that is around them."""
    for name, like, term in (
        ("psaq-classes", "psaq", "psaq"),
        ("psaq-heads", "psaq", "mimiq"),
        ("mimiq-classes", "mimiq", "mimiq"),
        ("mimiq-entropy", "mimiq", "psaq"),
    ):
        found, model = (images.settings_of(n, BUDGETS["demo"]) for n in (name, like))
        assert found.method == term
        assert (found.attention > 0) == (not name.endswith("classes"))
        for field in ("lr", "beta1", "rounds", "smoothness", "shift", "flip", "colour_jitter"):
            assert getattr(found, field) == getattr(model, field), (name, field)


def test_a_budget_without_iterations_has_the_published_ones():
    published = BUDGETS["demo-published"]
    assert images.settings_of("mimiq", published).iterations == 2000
    assert images.settings_of("psaq", published).iterations == 1000
    assert images.settings_of("noise", published).iterations == 0


@pytest.mark.parametrize(("method", "iterations"), [("psaq-v2", 500), ("maskaq", 2000)])
def test_so_it_has_where_images_are_made_for_the_student(method, iterations, monkeypatch):
    """PSAQ-ViT V2's are half of PSAQ-ViT's: the other half is in the game."""

    def made(*arguments, **_):
        rules = next((a for a in arguments if isinstance(a, Rules)), None)
        asked.append(arguments[3] if rules is None else rules.images)
        played.append(rules and rules.game.rounds * rules.game.sample_steps)
        return {"images": 1}

    asked, played = [], []
    monkeypatch.setattr(together, "play", made)
    monkeypatch.setattr(together, "distil_renewed", made)
    tested = methods.subject("demo_vit")
    facts, _ = together.train_together(
        tested, None, method, BUDGETS["demo-published"], "cell", seed=0
    )
    assert asked[0].iterations == facts["settings"]["iterations"] == iterations
    assert played[0] == (500 if method == "psaq-v2" else None)


def test_what_is_stored_is_shown_and_nothing_measured(tmp_path, monkeypatch):
    (cell,) = cells.measure(
        methods.planned("demo_vit", "smoke", (0,), only=("noise-none-static-w4a4",)), tmp_path
    )
    monkeypatch.setattr(methods, "measure", lambda *_: pytest.fail("measured"))
    arguments = [
        "--budget",
        "smoke",
        "--seed",
        "0",
        "--seed",
        "1",
        "--out",
        str(tmp_path),
        "--stored",
    ]
    told = CliRunner().invoke(methods.main, arguments)
    assert told.exit_code == 0
    assert told.output.strip() == table([cell]).strip()


def judged(images, training, seed, kls, right):
    return {
        "model": "demo_vit", "seed": seed, "split": "test",
        "row": {"images": images, "training": training, "quantizer": "static", "scheme": "w4a4"},
        "result": {"kl": sum(kls) / len(kls), "top1": 100 * right.count("1") / len(right)},
        "each": {"kl": kls, "right": right},
    }  # fmt: skip


def test_an_order_is_judged_image_by_image():
    """Images differ by far more than methods: the difference of every image is the same, and so is its interval."""
    spread = [0.1, 2.0, 5.0, 0.4]
    better = [judged("psaq", "none", seed, spread, "1101") for seed in (0, 1)]
    worse = [judged("noise", "none", seed, [kl + 0.25 for kl in spread], "1000") for seed in (0, 1)]
    del better[1]["each"]  # a cell of before: its seed counts in all but the intervals
    worse.append(judged("noise", "none", 2, spread, "1101"))  # a seed of one row only
    (line,) = orders_table([*better, *worse]).splitlines()[2:]
    assert line.startswith("| PSAQ-ViT above noise | psaq, none | noise, none | static | w4a4 ")
    assert "| 0.250, 0.250 | 0.250 (0.250 to 0.250) | 50.0, 50.0 | 50.0 (0.0 to 100.0) |" in line
    assert not orders_table(better)


def test_every_order_is_of_rows_that_are_measured():
    for convolutional, orders in ((False, VIT_ORDERS), (True, RESNET_ORDERS)):
        known = {
            (row.images, row.training)
            for row in rows(convolutional)
            if (row.quantizer, row.scheme) == ("static", "w4a4")
        }
        assert all(known >= {order.better, order.worse} for order in orders)


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = CliRunner().invoke(methods.main, ["--device", "cuda", "--out", str(tmp_path)])
    assert told.exit_code == 1
    assert "torch sees no CUDA device" in told.output


@pytest.mark.cuda
def test_every_kind_of_training_on_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "SCRATCH", tmp_path / "scratch")
    wanted = (
        "mimiq-mimiq-static", "mimiq-ait-static", "mimiq-kl-dynamic", "psaq-v2-own-static", "maskaq-own-static",
        "noise-reconstruction-static", "noise-reconstruction-dynamic",
    )  # fmt: skip
    planned = methods.planned("demo_vit", "smoke", (0,), only=wanted, device="cuda")
    found = cells.measure(planned, tmp_path / "cells")
    assert len(found) == len(wanted)
    assert all(cell["device"] == "cuda" and cell["trained"] for cell in found)


@pytest.mark.slow
def test_images_that_are_made_for_the_student(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "SCRATCH", tmp_path / "scratch")
    wanted = ("psaq-v2-own-static", "maskaq-own-static")
    found = cells.measure(
        methods.planned("demo_vit", "smoke", (0,), only=wanted), tmp_path / "cells"
    )
    assert [cell["images"]["method"] for cell in found] == ["psaq-v2", "maskaq"]
    assert all(cell["trained"] for cell in found)


def test_seeds_are_put_together():
    def cell(seed, top1):
        result = {"top1": top1, "top1_interval": [top1 - 1, top1 + 1], "agreement": 50.0, "kl": 0.5}
        return {
            "model": "demo_vit", "seed": seed, "split": "test", "seconds": 1.0,
            "row": {"images": "psaq", "training": "kl", "quantizer": "static", "scheme": "w4a4"},
            "images": {"images": 32, "seconds": 3.0}, "result": {**result, "float": {"top1": 90.0}},
        }  # fmt: skip

    text = table([json.loads(json.dumps(cell(seed, 70.0 + seed))) for seed in (0, 1, 2)])
    assert (
        "| 0, 1, 2 | 71.00 +- 1.00 | 69.0 to 73.0 | 50.00 +- 0.00 | 0.5000 +- 0.0000 | 4 |" in text
    )


@pytest.mark.parametrize("convolutional", [False, True])
def test_every_row_has_a_recipe_and_a_training(convolutional):
    every = list(rows(convolutional))
    assert len({row.name for row in every}) == len(every)
    for row in every:
        recipe = recipe_of(row, 0)
        assert (recipe.static is None) == (row.quantizer == "dynamic")
        training = training_of(row, BUDGETS["demo"], 64)
        assert (training is None) == (row.training in ("none", "own", RECONSTRUCTION))
        if training is not None:
            assert 45 <= training.epochs * (58 // training.batch) <= 75
