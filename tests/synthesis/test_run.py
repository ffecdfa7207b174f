"""Whole runs: the same bytes whoever makes them and however often they are stopped."""

import json
import resource
from pathlib import Path

import pytest
import torch

from qvit import synthesis, zoo
from qvit.errors import InputError, QvitError, UsageError
from qvit.recipe import Synthesis
from qvit.synthesis import run as runs
from qvit.synthesis.seeds import derive_seed
from tests.synthesis.settings import demo, small

METHODS = ("noise", "leaves", "psaq", "mimiq", "sardfq", "folder")


def make(out, method="psaq", *, seed=5, source=None, changes=None, **options):
    settings = changes if isinstance(changes, Synthesis) else small(method, **(changes or {}))
    return synthesis.synthesize(
        source or demo(), settings, out, seed=seed, progress=False, **options
    )


def contents(folder: Path):
    """Everything of a run that must not depend on how it came about; logs hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


def losses(folder: Path):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    make(out)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method(method, tmp_path):
    changes = {"data": "demo"} if method == "folder" else {}
    found = make(tmp_path / "run", method, changes=changes)
    assert found["complete"]
    assert (found["images"], found["batches"], found["made"], found["retried"]) == (5, 3, 3, 0)
    assert found["images_read"] == (5 if method == "folder" else 0)
    images = synthesis.open_images(tmp_path / "run")
    assert len(images) == 5
    parts = list(images)
    assert [tuple(p.shape) for p, _ in parts] == [(2, 3, 64, 64), (2, 3, 64, 64), (1, 3, 64, 64)]
    for pixels, labels in parts:
        assert pixels.dtype == torch.float32
        assert pixels.isfinite().all()
        if method == "sardfq":
            assert labels.shape == (len(pixels), 24)
            assert torch.allclose(labels.sum(-1), torch.ones(len(pixels)))
        else:
            assert labels.dtype == torch.int64
            assert labels.min() >= 0
            assert labels.max() < 24
    lines = list(images.log())
    finished = [line for line in lines if line.get("event") == "finished"]
    assert [line["batch"] for line in finished] == [0, 1, 2]
    assert all(line["after"]["head_distance"] > 0 for line in finished)
    sampled = [line for line in lines if "loss" in line]
    steps = 4 if method in ("psaq", "mimiq", "sardfq") else 0
    assert [line["iteration"] for line in sampled] == [*range(steps)] * 3
    assert all({"loss", "attention", "classes", "seconds"} <= set(line) for line in sampled)
    measured = [line for line in lines if line.get("event") == "measured"]
    assert [line["iteration"] for line in measured] == [*range(1, steps)] * 3
    assert all(line["head_distance"] > 0 for line in measured)
    privacy = images.manifest["privacy"]
    assert privacy["data_free"] == (method != "folder")
    assert privacy["images_read"] == found["images_read"]
    if method != "folder":
        assert images.manifest["model"]["weights_sha256"] in privacy["inputs"][0]


def test_users_images_arrive_as_they_are(tmp_path, tiny_model, tiny_images):
    from qvit.data import DataConfig, open_images

    source = zoo.resolve(str(tiny_model))
    make(tmp_path / "run", "real", source=source, changes={"data": str(tiny_images), "images": 12})
    expected = open_images(
        tiny_images, DataConfig.from_pretrained_cfg(source.pretrained_cfg), limit=12
    )
    found = list(synthesis.open_images(tmp_path / "run"))
    pixels, labels = (torch.cat(part) for part in zip(*found, strict=True))
    assert labels.tolist() == expected.labels == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    stored = torch.stack([expected.read(i) for i in range(12)])
    assert torch.equal(pixels, stored.to(torch.float16).float())


def test_the_same_seed_gives_the_same_bytes(undisturbed, tmp_path):
    make(tmp_path / "again")
    make(tmp_path / "other", seed=6)
    assert contents(tmp_path / "again") == contents(undisturbed)
    assert losses(tmp_path / "again") == losses(undisturbed)
    ours, theirs = contents(undisturbed), contents(tmp_path / "other")
    assert all(ours[name] != theirs[name] for name in ours)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shares_make_the_same_bytes_in_any_order(order, undisturbed, tmp_path):
    found = [make(tmp_path / "run", shard=(index, 3)) for index in order]
    assert [f["complete"] for f in found] == [False, False, True]
    assert [f["made"] for f in found] == [1, 1, 1]
    assert contents(tmp_path / "run") == contents(undisturbed)
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_a_part_is_not_opened(tmp_path):
    make(tmp_path / "run", shard=(0, 2))
    with pytest.raises(InputError, match="not complete"):
        synthesis.open_images(tmp_path / "run")
    with pytest.raises(InputError, match="holds no images"):
        synthesis.open_images(tmp_path)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_impossible_shares(shard, tmp_path):
    with pytest.raises(UsageError, match="counted from 0"):
        make(tmp_path / "run", shard=shard)


def test_a_finished_run_is_left_alone(undisturbed, tmp_path, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.safetensors")}
    monkeypatch.setattr(runs, "optimise", lambda *_, **__: pytest.fail("worked again"))
    found = make(undisturbed)
    assert (found["made"], found["found"], found["complete"]) == (0, 3, True)
    assert found["measures"] is None
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.safetensors")} == before
    with pytest.raises(UsageError, match="--resume auto"):
        make(undisturbed, resume="never")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 6}, "seed: 5 there, 6 now"),
        ({"changes": {"lr": 0.3}}, "settings"),
        ({"changes": {"images": 4}}, "settings"),
        ({"method": "mimiq"}, "settings"),
    ],
)
def test_another_runs_folder_is_refused(options, named, undisturbed):
    before = contents(undisturbed)
    with pytest.raises(UsageError, match=f"holds another run.*{named}"):
        make(undisturbed, **options)
    assert contents(undisturbed) == before


def test_the_number_of_threads_is_part_of_a_run(undisturbed):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UsageError, match=f"threads: {threads} there, {threads + 1} now"):
            make(undisturbed)
    finally:
        torch.set_num_threads(threads)


def test_other_weights_are_another_run(tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "model")
    make(tmp_path / "run", source=zoo.resolve(str(copy)))
    state = load_file(copy / "model.safetensors")
    state["head.bias"] += 1
    save_file(state, copy / "model.safetensors")
    with pytest.raises(UsageError, match="weights_sha256"):
        make(tmp_path / "run", source=zoo.resolve(str(copy)))


def test_folders_of_something_else_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="holds something else"):
        make(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        make(tmp_path / "mine.txt")
    with pytest.raises(UsageError, match="is a file"):
        make(tmp_path / "mine.txt" / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_shard_of_another_run_is_noticed(tmp_path, monkeypatch):
    """Before any work is done on the batches that are still missing."""
    make(tmp_path / "other", seed=8)
    make(tmp_path / "run", shard=(1, 3))
    monkeypatch.setattr(runs, "optimise", lambda *_, **__: pytest.fail("worked before it looked"))
    shards = tmp_path / "run" / "shards"
    stray, own = shards / "000001.safetensors", (shards / "000001.safetensors").read_bytes()
    stray.write_bytes((tmp_path / "other" / "shards" / "000001.safetensors").read_bytes())
    with pytest.raises(InputError, match="belongs to another run"):
        make(tmp_path / "run")
    stray.write_bytes(b"no shard")
    with pytest.raises(InputError, match="is damaged"):
        make(tmp_path / "run")
    stray.write_bytes(own)
    (tmp_path / "run" / "logs" / "000002.jsonl").write_text("{}")
    (shards / "000002.safetensors").write_bytes(own)
    with pytest.raises(InputError, match="holds batch 1; remove it"):
        make(tmp_path / "run")


def test_a_batch_without_its_log_is_made_again(undisturbed, tmp_path):
    make(tmp_path / "run", shard=(1, 3))
    (tmp_path / "run" / "logs" / "000001.jsonl").unlink()
    found = make(tmp_path / "run")
    assert (found["made"], found["complete"]) == (3, True)
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_a_changed_shard_is_noticed_when_read(tmp_path):
    make(tmp_path / "run")
    path = tmp_path / "run" / "shards" / "000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="not what the manifest says"):
        list(synthesis.open_images(tmp_path / "run"))
    assert make(tmp_path / "run")["made"] == 1
    assert sum(len(images) for images, _ in synthesis.open_images(tmp_path / "run")) == len(
        synthesis.open_images(tmp_path / "run")
    )


def test_a_method_without_any_weight_is_refused():
    with pytest.raises(UsageError, match="nothing to optimise"):
        Synthesis.preset("psaq", attention=0, classes=0, smoothness=0)


def test_a_batch_without_finite_loss_is_tried_with_another_seed(tmp_path, monkeypatch, caplog):
    """The second batch fails twice, and is then what its third seed makes it."""
    optimise = runs.optimise
    doomed = {derive_seed(5, "synthesis", 1, attempt) for attempt in (0, 1)}

    def failing(vit, objective, start, settings, **options):
        if objective.batch.generator.initial_seed() in doomed:
            objective.terms = lambda *_: {"classes": torch.tensor(float("nan"), requires_grad=True)}
        return optimise(vit, objective, start, settings, **options)

    monkeypatch.setattr(runs, "optimise", failing)
    found = make(tmp_path / "run")
    assert found["retried"] == 2
    assert "batch 1: the loss is not finite at iteration 0" in caplog.text
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["retried"] == 2
    assert [shard["attempt"] for shard in manifest["shards"]] == [0, 2, 0]
    events = [line for line in losses(tmp_path / "run") if line.get("event") == "retried"]
    assert [(e["batch"], e["attempt"], e["iteration"]) for e in events] == [(1, 0, 0), (1, 1, 0)]


def test_a_batch_that_is_never_finite_gives_up(tmp_path, tiny_model):
    """A classifier whose logits are beyond float32: no seed helps."""
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "model")
    state = load_file(copy / "model.safetensors")
    state["head.weight"] = 3e38 * state["head.weight"].sign()
    save_file(state, copy / "model.safetensors")
    source = zoo.resolve(str(copy))
    with pytest.raises(QvitError, match="under any of 2 seeds; lower the learning rate"):
        make(tmp_path / "run", source=source, changes={"retries": 1})
    assert list((tmp_path / "run" / "shards").iterdir()) == []


def test_models_that_cannot_be_inverted(tmp_path, tiny_model):
    with pytest.raises(UsageError, match="not a plain VisionTransformer"):
        make(tmp_path / "run", source=zoo.resolve("demo_resnet"))
    headless = zoo.resolve(str(tiny_model), pretrained=False)
    headless.model_args["num_classes"] = 0
    for method in ("psaq", "sardfq"):
        with pytest.raises(UsageError, match="has no classes"):
            make(tmp_path / "run", method, source=headless)
    found = make(tmp_path / "run", "psaq", source=headless, changes={"classes": 0.0})
    assert found["complete"]
    assert all((labels == -1).all() for _, labels in synthesis.open_images(tmp_path / "run"))


def test_too_few_images_are_said_before_anything_is_written(tmp_path, tiny_model, tiny_images):
    with pytest.raises(InputError, match="has 30 images, and 31 are wanted"):
        make(
            tmp_path / "run",
            "real",
            source=zoo.resolve(str(tiny_model)),
            changes={"data": str(tiny_images), "images": 31},
        )
    with pytest.raises(UsageError, match=r"say which with --set synthesis\.data"):
        make(tmp_path / "run", "folder")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing_half_written(undisturbed, tmp_path):
    """A limit on the size of files stands for the disk: the first shard does not fit, the log before it does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            make(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "run" / "shards").iterdir()) == []
    assert make(tmp_path / "run")["complete"]
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_seeds_of_batches_are_unlike_each_other():
    seeds = {
        derive_seed(s, stage, b, a)
        for s in (0, 1)
        for stage in ("x", "y")
        for b in range(50)
        for a in (0, 1)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "synthesis", 3) == derive_seed(0, "synthesis", 3, 0)


def test_cost_of_an_image_does_not_grow_with_their_number(tmp_path):
    """64 batches: those at the end take as long as those at the beginning."""
    settings = Synthesis.preset("psaq", images=64, batch=1, iterations=1, rounds=1)
    make(tmp_path / "run", changes=settings)
    finished = [
        line
        for line in synthesis.open_images(tmp_path / "run").log()
        if line.get("event") == "finished"
    ]
    seconds = [line["seconds"] for line in finished]
    first, last = sorted(seconds[2:32])[15], sorted(seconds[32:])[16]
    assert len(seconds) == 64
    assert last < 2 * first


def test_a_manifest_of_another_version_is_not_misread(undisturbed, tmp_path):
    import shutil

    shutil.copytree(undisturbed, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(UsageError, match="format_version 99"):
        make(tmp_path / "run")
    with pytest.raises(InputError, match="format_version 99"):
        synthesis.open_images(tmp_path / "run")


def test_a_batch_that_is_made_again_is_logged_again(undisturbed, tmp_path):
    import shutil

    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "shards" / "000001.safetensors").unlink()
    assert make(tmp_path / "run")["made"] == 1
    parts = [(tmp_path / "run" / "logs" / f"00000{n}.jsonl").read_bytes() for n in range(3)]
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == b"".join(parts)
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_a_log_is_json_whatever_was_measured(tmp_path, monkeypatch):
    plain = runs.summarise
    monkeypatch.setattr(
        runs, "summarise", lambda found: plain(found) | {"patch_entropy": float("nan")}
    )
    make(tmp_path / "run", "noise")
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[0])["after"]["patch_entropy"] is None


def test_a_running_batch_can_be_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_NOTE_SECONDS", 0.0)
    seen, optimise = [], runs.optimise

    def watched(*args, step_done, **options):
        def look(*state):
            step_done(*state)
            log = tmp_path / "run" / "logs" / "000000.jsonl"
            seen.append(len(log.read_text().splitlines()))

        return optimise(*args, step_done=look, **options)

    monkeypatch.setattr(runs, "optimise", watched)
    make(tmp_path / "run", changes={"images": 2})
    assert seen == sorted(seen)
    assert seen[0] >= 1
    assert seen[-1] > seen[0]
