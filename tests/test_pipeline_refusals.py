"""What the pipeline refuses before any work: recipes, images and processes that it can do nothing good with."""

import re
from dataclasses import replace

import pytest

from qvit import pipeline, zoo
from qvit.errors import UsageError
from qvit.recipe import Recipe

W4A4 = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
NEAREST = W4A4.without_images()
TRAINED = NEAREST.override(["synthesis=noise", "synthesis.images=8", "distillation=mimiq"])


@pytest.mark.parametrize("rounding", ["gptq", "learned"])
def test_rounding_that_has_no_images_is_refused(tiny_model, tmp_path, rounding):
    with pytest.raises(UsageError, match="--set synthesis=METHOD"):
        NEAREST.override([f"weights.rounding={rounding}"])
    played = Recipe.preset(
        "paper-psaq-v2", weight_bits=4, activation_bits=4, budget="0.01"
    ).override(["static=none", f"weights.rounding={rounding}"])
    with pytest.raises(UsageError, match=r"set weights\.rounding=nearest"):
        pipeline.plan(zoo.resolve(str(tiny_model)), played)


def test_images_that_nobody_named_are_refused(tiny_model, tmp_path):
    recipe = W4A4.override(["synthesis=folder"])
    for refuse in (pipeline.quantize, pipeline.plan):
        with pytest.raises(UsageError, match="--calib-data"):
            refuse(zoo.resolve(str(tiny_model)), recipe, tmp_path / "out")


_LAUNCHED = ("WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")


@pytest.mark.parametrize("variables", [_LAUNCHED[:1], _LAUNCHED[1:]], ids=["torchrun", "srun"])
def test_one_of_several_processes_is_refused_what_they_would_all_do(
    variables, tiny_model, tmp_path, monkeypatch
):
    """Before anything is written: two that train in one folder would spoil each other's state."""
    source, out = zoo.resolve(str(tiny_model)), tmp_path / "out"
    for name in _LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(zoo, "fetch", None)  # weights are not asked for
    for recipe in (TRAINED, W4A4):
        for refuse in (pipeline.quantize, pipeline.plan):
            with pytest.raises(UsageError, match="and 2 were started: each") as told:
                refuse(source, recipe, out)
            assert "without torchrun" in str(told.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(variables[-1], "1")
    pipeline.plan(source, TRAINED, out)


def test_a_batch_script_of_a_job_of_several_tasks_is_one_process(tiny_model, monkeypatch):
    for name in _LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    pipeline.plan(zoo.resolve(str(tiny_model)), TRAINED)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UsageError, match="and 4 were started"):
        pipeline.plan(zoo.resolve(str(tiny_model)), TRAINED)


def test_quantizers_that_are_only_simulated_are_refused(tiny_model, tmp_path):
    recipe = Recipe.preset("paper-mimiq", weight_bits=4, activation_bits=8, budget="0.05")
    options = f"--recipe paper-mimiq --model {re.escape(str(tiny_model))} --w 4 --a 8"
    instead = (
        rf"--set static=none .*python benchmarks/publications\.py {options} --budget 0\.05 runs"
    )
    for refuse in (pipeline.quantize, pipeline.plan):
        with pytest.raises(UsageError, match=instead):
            refuse(zoo.resolve(str(tiny_model)), recipe, tmp_path / "out")
    other = recipe.override(["synthesis.iterations=7"])  # of no budget
    with pytest.raises(UsageError, match=f"{options} runs"):
        pipeline.plan(zoo.resolve(str(tiny_model)), other)
    with pytest.raises(UsageError, match=r"to qvit's own quantizers$"):
        pipeline.plan(zoo.resolve(str(tiny_model)), replace(recipe, name="mine"))
    assert not (tmp_path / "out").exists()
