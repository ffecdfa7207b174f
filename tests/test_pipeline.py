import json
import pickle
from dataclasses import replace

import pytest
import torch

from qvit import evaluation, pipeline, synthesis, zoo
from qvit.data import open_images
from qvit.deployment import QuantViT, checkpoint
from qvit.errors import UsageError
from qvit.models.timm_import import read_model
from qvit.recipe import Recipe, load_recipe
from tests.divergence import divergence
from tests.executions import SideBySide, both
from tests.support import images_for

W4A4 = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
NEAREST = W4A4.without_images()


def test_summary_says_what_was_written(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    summary = pipeline.quantize(source, W4A4, tmp_path / "out", progress=False)
    weights = tmp_path / "out" / "model.safetensors"
    assert summary["bytes"] == weights.stat().st_size
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["sha256"]["model.safetensors"] == summary["sha256"]
    assert run["source"]["weights"]["path"] == str(tiny_model / "model.safetensors")
    assert run["images_read"] == 0
    assert set(run["seconds"]) == {"load", "fold", "ranges", "images", "rounding", "pack"}
    assert run["images"] | {"fingerprint": ""} == {"path": None, "images": 60, "fingerprint": ""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_plan_knows_the_bytes(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    plan = pipeline.plan(source, W4A4)
    pipeline.quantize(source, W4A4, tmp_path / "out", progress=False)
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert plan["tensor_bytes"] == len(data) - 8 - header
    assert plan["bytes"] == len(data)


def test_written_recipe_replays_to_the_same_bytes(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    recipe = W4A4.override(["seed=5", "weights.group=32"])
    first = pipeline.quantize(source, recipe, tmp_path / "a", progress=False)
    replayed = load_recipe(str(tmp_path / "a" / "recipe.yaml"))
    second = pipeline.quantize(source, replayed, tmp_path / "b", progress=False)
    other = pipeline.quantize(source, W4A4, tmp_path / "c", progress=False)
    assert first["sha256"] == second["sha256"] != other["sha256"]


def test_layers_with_bits_of_their_own(tmp_path):
    """A trained model whose layers differ is written, described and run as one."""
    settings = [
        "layers.blocks.*.mlp.fc2=W6A8",
        "layers.blocks.[0-2].attn.qkv=W3A5",
        "layers.blocks.5.attn=A6",
        "layers.head=W8",
    ]
    out = tmp_path / "out"
    source = zoo.resolve("demo_vit")
    summary = pipeline.quantize(source, NEAREST.override(settings), out, progress=False)
    assert summary["scheme"].endswith(" mixed")
    held = checkpoint.describe(out)
    assert held["scheme"] == summary["scheme"]
    bits = {row["modules"][0]: row for row in held["bits"]}
    assert bits["blocks.0-2.attn.qkv"]["weight_bits"] == 3
    assert bits["blocks.0-2.attn.qkv"]["weight_bits_in_memory"] == 4
    assert bits["blocks.*.mlp.fc2"]["input_group"] == 128  # as its neighbours of 4 bits
    assert bits["blocks.5.attn"]["softmax_bits"] == 6
    card = (out / "README.md").read_text()
    assert "- `blocks.*.mlp.fc2`: W6A8" in card
    assert "head_dist" not in card  # the recipe has bits for it, and this model none of it
    images = open_images("demo:48", QuantViT.from_pretrained(out).data_config)
    expected = evaluation.predict(zoo.load(source), images, progress=False)
    for backend in ("cpu", "reference"):
        model = QuantViT.from_pretrained(out, backend=backend)
        found = evaluation.compare(evaluation.predict(model, images, progress=False), expected)
        assert (found.agreement or 0) > 90, backend
    explained = str(QuantViT.from_pretrained(out).explain())
    assert explained.startswith(summary["scheme"])
    assert "blocks.0-2.attn.qkv" in explained


def test_heads_with_bits_of_their_own(tmp_path):
    """A trained model whose heads differ: stored in their bits, computed with, and the same numbers when read back."""
    bits = {"qkv": "W4,3,4,4,3,2,4,4,5,4,4,3", "proj": "W4,2,3,4A5"}
    settings = [f"layers.blocks.*.attn.{name}={text}" for name, text in bits.items()]
    source, out = zoo.resolve("demo_vit"), tmp_path / "out"
    recipe = NEAREST.override(settings)
    summary = pipeline.quantize(source, recipe, out, progress=False)
    assert summary["bytes"] == pipeline.plan(source, recipe)["bytes"]
    assert summary["bytes"] < pipeline.plan(source, W4A4)["bytes"]
    rows = {row["modules"][0]: row for row in checkpoint.describe(out)["bits"]}
    qkv, proj = rows["blocks.*.attn.qkv"], rows["blocks.*.attn.proj"]
    assert qkv["head_bits"] == [4, 3, 4, 4, 3, 2, 4, 4, 5, 4, 4, 3]
    assert (qkv["weight_bits"], qkv["weight_bits_in_memory"]) == (44 / 12, 8)
    assert (proj["weight_bits"], proj["weight_bits_in_memory"]) == (13 / 4, 4)
    model = QuantViT.from_pretrained(out)
    assert "3.67" in str(model.explain())
    vit = read_model(zoo.load(source), source.pretrained_cfg)
    simulated, integer = both(vit, recipe)
    held = pickle.loads(pickle.dumps(model)).vit  # noqa: S301 - its own
    assert all(torch.equal(v, held.state_dict()[k]) for k, v in integer.state_dict().items())
    images = images_for(vit, 8)
    pair = SideBySide(simulated, held)
    with torch.inference_mode():
        expected = simulated(images, pair)
    assert pair.compared == 1 + 6 * 9 + 2
    assert divergence(expected, model(images)) < 0.02


def test_bits_of_heads_that_it_has_not_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "fetch", lambda *_, **__: pytest.fail("fetched the weights first"))
    recipe = NEAREST.override(["layers.blocks.0.attn.proj=W4,3,4"])
    with pytest.raises(UsageError, match="of 3 heads' weights, and expected are 4"):
        pipeline.quantize(zoo.resolve("demo_vit"), recipe, tmp_path / "out", progress=False)


def test_existing_folder_is_refused_before_the_work(tiny_model, tiny_quantized, monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("loaded the weights first"))
    source = zoo.resolve(str(tiny_model))
    for refuse in (pipeline.quantize, pipeline.plan):
        with pytest.raises(UsageError, match="--overwrite"):
            refuse(source, W4A4, tiny_quantized)


def test_eight_bits_classify_as_the_float_model(tmp_path):
    """On a model that was really trained, and images that it was trained for."""
    source = zoo.resolve("demo_vit")
    recipe = Recipe.preset("qvit", weight_bits=8, activation_bits=8)
    pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    model = QuantViT.from_pretrained(tmp_path / "out")
    images = open_images("demo:240", model.data_config)
    predictions, expected = (
        evaluation.predict(m, images, progress=False) for m in (model, zoo.load(source))
    )
    found = evaluation.compare(predictions, expected)
    assert found.float_top1 is not None
    assert found.agreement is not None
    assert found.agreement >= 98
    assert found.top1 >= found.float_top1 - 1 >= 85


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "weights.range=minmax",
        "weights.group=32",
        "transforms.norm=16",
        "transforms.fc2=16",
    ],
)
def test_recipe_fields_reach_the_weights(tiny_model, tmp_path, setting):
    source = zoo.resolve(str(tiny_model))
    digests = [
        pipeline.quantize(source, recipe, tmp_path / str(i), progress=False)["sha256"]
        for i, recipe in enumerate((W4A4, W4A4.override([setting])))
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "setting",
    [
        "residual=bfloat16",
        "activations.bits=8",
        "activations.proj_group=32",
        "activations.fc2_group=0",
        "attention.bits=4",
        "attention.softmax_bits=4",
    ],
)
def test_recipe_fields_reach_the_logits(tiny_model, tmp_path, setting):
    source = zoo.resolve(str(tiny_model))
    logits = []
    for i, recipe in enumerate((W4A4, W4A4.override([setting]))):
        pipeline.quantize(source, recipe, tmp_path / str(i), progress=False)
        model = QuantViT.from_pretrained(tmp_path / str(i))
        logits.append(model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)))
    assert not torch.equal(*logits)


def test_files_are_readable_as_any_new_file(tiny_quantized, tmp_path):
    (tmp_path / "new").write_text("")
    expected = (tmp_path / "new").stat().st_mode & 0o777
    for path in tiny_quantized.iterdir():
        if path.is_file():
            assert path.stat().st_mode & 0o777 == expected, path.name


def test_float_models_and_other_folders_are_never_overwritten(tiny_model, tmp_path):
    import shutil

    victim = shutil.copytree(tiny_model, tmp_path / "victim")
    before = (victim / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="is not replaced"):
        pipeline.quantize(zoo.resolve(str(victim)), W4A4, victim, overwrite=True, progress=False)
    assert (victim / "model.safetensors").read_bytes() == before


def test_links_are_followed_not_replaced(tiny_model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    pipeline.quantize(zoo.resolve(str(tiny_model)), W4A4, tmp_path / "link", progress=False)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


def test_images_lie_beside_the_model_and_change_nothing_in_it(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    recipe = NEAREST.override(
        ["synthesis=psaq", "synthesis.images=3", "synthesis.iterations=2", "synthesis.batch=2"]
    )
    plain = pipeline.quantize(source, NEAREST, tmp_path / "plain", progress=False)
    found = pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    assert found["sha256"] == plain["sha256"]
    assert len(synthesis.open_images(tmp_path / "out-images")) == found["images"]["images"] == 3
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["images"]["fingerprint"] == found["images"]["fingerprint"]
    assert run["images_read"] == 0
    again = load_recipe(str(tmp_path / "out" / "recipe.yaml"))
    replayed = pipeline.quantize(source, again, tmp_path / "out", overwrite=True, progress=False)
    assert replayed["images"]["made"] == 0
    assert pipeline.plan(source, recipe)["images"]["batches"] == 2


def test_weights_are_rounded_for_the_images(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    noise = NEAREST.override(["synthesis=noise", "synthesis.images=8", "synthesis.batch=4"])
    plain = pipeline.quantize(source, noise, tmp_path / "plain", progress=False)
    recipe = noise.override(["weights.rounding=gptq"])
    found = pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    assert "rounding" in found["seconds"]
    assert found["bytes"] == plain["bytes"]
    assert found["sha256"] != plain["sha256"]
    damped = recipe.override(["weights.damping=0.5"])
    other = pipeline.quantize(source, damped, tmp_path / "damped", progress=False)
    assert other["sha256"] != found["sha256"]


def test_rounding_is_learned_for_the_images(tiny_model, tmp_path):
    source, out = zoo.resolve(str(tiny_model)), tmp_path / "out"
    noise = NEAREST.override(["synthesis=noise", "synthesis.images=8", "synthesis.batch=4"])
    settings = ["steps=5", "batch=4", "lr=0.3"]
    recipe = noise.override(
        ["weights.rounding=learned", *(f"weights.reconstruction.{s}" for s in settings)]
    )
    blocks = pipeline.plan(source, recipe)["rounding"]["blocks"]
    assert pipeline.plan(source, recipe)["rounding"]["steps"] == 5 * blocks
    assert "rounding" not in pipeline.plan(source, noise)
    plain = pipeline.quantize(source, noise, tmp_path / "plain", progress=False)
    found = pipeline.quantize(source, recipe, out, progress=False)
    assert len(found["rounding"]) == blocks
    assert found["bytes"] == plain["bytes"]
    assert found["sha256"] != plain["sha256"]
    assert pipeline.rounding_beside(out).is_dir()
    run = json.loads((out / "run.json").read_text())
    assert run["rounding"] == found["rounding"]
    assert all(0 < block["changed"] < 1 for block in run["rounding"])
    again = load_recipe(str(out / "recipe.yaml"))
    assert again == recipe
    replayed = pipeline.quantize(source, again, out, overwrite=True, progress=False)
    assert replayed["sha256"] == found["sha256"]


def test_weights_are_rounded_for_the_users_images(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    images = synthesis.calibration_images("demo:24", source.pretrained_cfg, most=8)
    assert (images.images, images.labelled) == (8, False)
    recipe = replace(W4A4, synthesis=images)
    assert pipeline.plan(source, recipe)["reads_images"] is True
    assert pipeline.plan(source, W4A4)["reads_images"] is False
    found = pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    free = pipeline.quantize(source, W4A4, tmp_path / "free", progress=False)
    assert found["sha256"] != free["sha256"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["images_read"] == run["images"]["images"] == 8
    assert "on 8 images" in (tmp_path / "out" / "README.md").read_text()
    assert "without any data" in (tmp_path / "free" / "README.md").read_text()
    # nobody's pictures are left lying about
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "out"]


TRAINED = NEAREST.override(
    [
        "synthesis=noise", "synthesis.images=8", "synthesis.batch=4", "distillation=mimiq",
        "distillation.epochs=2", "distillation.batch=4",
    ]
)  # fmt: skip


def test_a_trained_model_is_packed_and_says_so(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    plain = pipeline.quantize(source, NEAREST, tmp_path / "plain", progress=False)
    found = pipeline.quantize(source, TRAINED, tmp_path / "out", progress=False)
    assert found["sha256"] != plain["sha256"]
    expected = pipeline.plan(source, TRAINED)["training"]
    assert found["training"]["steps"] == expected["steps"] == 2
    assert found["training"]["held_out"] == expected["held_out"] == 1
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["training"]["after"] == found["training"]["after"]
    assert set(run["seconds"]) == {"load", "fold", "ranges", "images", "training", "pack"}
    assert "training | mimiq" in (tmp_path / "out" / "README.md").read_text()
    assert "training" not in (tmp_path / "plain" / "README.md").read_text()
    QuantViT.from_pretrained(tmp_path / "out")(torch.zeros(1, 3, 32, 32))
    again = load_recipe(str(tmp_path / "out" / "recipe.yaml"))
    repeated = pipeline.quantize(source, again, tmp_path / "out", overwrite=True, progress=False)
    assert repeated["sha256"] == found["sha256"]


def test_a_model_may_come_out_of_a_game(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    recipe = Recipe.preset("paper-psaq-v2", weight_bits=4, activation_bits=4, budget="0.01")
    recipe = recipe.override(
        [
            "static=none", "synthesis.batch=2", "synthesis.images=2", "synthesis.iterations=1",
            "game=2", "game.sample_steps=1", "game.student_steps=1",
        ]
    )  # fmt: skip
    found = pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    assert found["training"]["student_steps"] == pipeline.plan(source, recipe)["training"]["steps"]
    assert not (tmp_path / "out-images").exists()


def test_images_may_be_made_anew_for_the_student(tiny_model, tmp_path):
    source = zoo.resolve(str(tiny_model))
    recipe = Recipe.preset("paper-maskaq", weight_bits=4, activation_bits=4, budget="0.01")
    recipe = recipe.override(
        [
            "static=none", "synthesis.batch=4", "synthesis.images=4", "synthesis.iterations=1",
            "distillation.epochs=2", "distillation.renew=1", "distillation.batch=2",
        ]
    )  # fmt: skip
    found = pipeline.quantize(source, recipe, tmp_path / "out", progress=False)
    assert len(found["training"]["spans"]) == 2
    assert not (tmp_path / "out-images").exists()
