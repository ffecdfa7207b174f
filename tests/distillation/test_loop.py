import json
import random
import signal
import socket
import time
from multiprocessing import get_context

import pytest
import torch

from qvit.distillation import Pool, distil
from qvit.distillation.loop import agreement
from qvit.distillation.pool import Order
from qvit.distillation.progress import LOG, STATE, read_log
from qvit.distillation.trainer import Trainer
from qvit.errors import InputError, UsageError
from qvit.models.watching import FloatTeacher
from tests.distillation.runs import (
    STATIC,
    TOGETHER,
    FailingTeacher,
    run_static,
    run_together,
    run_vit,
)
from tests.distillation.students import (
    TinyStudent,
    TinyTeacher,
    quick,
    simulated_student,
    small_vit,
    static_student,
    tiny_pool,
)
from tests.support import images_for


def train(folder=None, student=None, pool=None, seed=0, **changes):
    student = student or TinyStudent()
    found = distil(
        TinyTeacher(),
        student,
        pool or tiny_pool(),
        quick(**{"lr": 0.1, **changes}),
        seed=seed,
        folder=folder,
        progress=False,
        save_seconds=0.0,
    )
    return student, found


def bits(folder):
    state = torch.load(folder / STATE, weights_only=True)
    tensors = [*state["trainer"]["student"].values()]
    for entry in state["trainer"]["optimiser"]["state"].values():
        tensors += [v for v in entry.values() if isinstance(v, torch.Tensor)]
    return [t.numpy().tobytes() for t in tensors], (folder / LOG).read_bytes()


def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    pool = tiny_pool(200)
    _, found = train(tmp_path, TinyStudent(2), pool, epochs=20, batch=10, lr=0.01)
    assert found["after"]["kl"] < 0.7 * found["before"]["kl"]
    assert found["steps"] == 20 * 18
    assert (found["images"], found["held_out"], found["epochs"]) == (180, 20, 20)
    lines = read_log(tmp_path)
    steps = [line for line in lines if "step" in line]
    assert len(steps) == 360
    assert {"loss", "kl", "lr", "changed"} <= steps[0].keys()
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(21))
    assert lines[-1]["kl"] == found["after"]["kl"]


def test_the_last_step_counts_and_not_the_best():
    """A rate that grows harmful leaves the student where it ended."""
    student, found = train(student=TinyStudent(2), lr=3.0, epochs=6)
    pool = tiny_pool()
    held_out = pool.split(0.1, 0)[1]
    assert agreement(TinyTeacher(), student, pool, held_out, 4) == found["after"]


def test_held_out_images_are_never_trained_on():
    train_on, held_out = tiny_pool().split(0.25, 7)
    assert len(held_out) == 5
    assert not set(train_on.tolist()) & set(held_out.tolist())
    order = Order(train_on, 4, 7)
    seen = {int(p) for step in range(30) for p in order.at(step)}
    assert seen <= set(train_on.tolist())
    first = [order.at(i).tolist() for i in range(order.steps_per_epoch)]
    assert len({p for some in first for p in some}) == 12  # an epoch shows no image twice
    assert first != [order.at(3 + i).tolist() for i in range(3)]


def test_two_calls_in_a_row_do_nothing_more(tmp_path):
    student, found = train(tmp_path)
    again, repeated = train(tmp_path)
    assert {**repeated, "seconds": 0} == {**found, "seconds": 0}
    for name, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_patience_ends_a_run_early(tmp_path):
    _, found = train(tmp_path, lr=1e-12, patience=2, epochs=50)
    assert found["stopped_early"]
    assert found["epochs"] == 2
    _, repeated = train(tmp_path, lr=1e-12, patience=2, epochs=50)
    assert repeated["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 0.2}, "settings"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"pool": tiny_pool(16)}, "images"),
        ({"student": TinyStudent(3)}, None),
    ],
)
def test_the_folder_of_another_run_is_refused(changes, told, tmp_path):
    train(tmp_path)
    if told is None:
        with torch.no_grad():
            changes["student"].first.bias.add_(1)
        told = "student"
    with pytest.raises(UsageError, match=told):
        train(tmp_path, **changes)


def test_a_damaged_state_is_named(tmp_path):
    train(tmp_path)
    (tmp_path / STATE).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"state\.pt is damaged"):
        train(tmp_path)


def test_a_log_that_lost_lines_is_named(tmp_path):
    train(tmp_path)
    (tmp_path / LOG).write_bytes(b"")
    with pytest.raises(InputError, match="shorter than the state"):
        train(tmp_path)


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match="none to train on"):
        train(pool=tiny_pool(1))
    with pytest.raises(InputError, match="no images to learn from"):
        Pool.gather([])


def test_augmentation_needs_the_normalisation():
    with pytest.raises(UsageError, match="normalisation"):
        train(augment=True)


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_in_the_same_bits(kills, tmp_path):
    context, moments = get_context("forkserver"), random.Random(kills)
    context.set_forkserver_preload(["tests.distillation.runs"])
    whole = context.Process(target=run_vit, args=(tmp_path / "whole",))
    whole.start()
    whole.join()
    killed, folder = 0, tmp_path / "disturbed"
    for attempt in range(60):
        out = tmp_path / f"disturbed{attempt}" if killed == 0 else folder
        folder = out
        process = context.Process(target=run_vit, args=(out,))
        process.start()
        if killed < kills:
            before, deadline = stamp(out), time.monotonic() + 60
            while process.is_alive() and stamp(out) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(moments.uniform(0.0, 0.1))
            process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0 and killed:
            break
    assert killed
    assert bits(folder) == bits(tmp_path / "whole")


def stamp(folder):
    path = folder / STATE
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder in which two processes have trained."""
    folder, context = tmp_path_factory.mktemp("together"), get_context("spawn")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    workers = [
        context.Process(target=run_together, args=(rank, 2, port, folder)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return folder


def test_two_processes_train_one_student(together, tmp_path):
    """Their averaged gradients are those of the whole batch, so the student is that of one process but for rounding."""
    for name in TOGETHER:
        # one that broke off after some steps and went on ends in the same bits
        assert bits(together / f"{name}-broken") == bits(together / name)
        first, second = (
            torch.load(together / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        assert all(torch.equal(first[n], second[n]) for n in first)
    for rank in (0, 1):
        assert "put it where all of them can read it" in (together / f"told{rank}").read_text()
    alone = TinyStudent()
    distil(
        TinyTeacher(), alone, tiny_pool(), TOGETHER["plain"],
        seed=0, folder=tmp_path / "alone", progress=False,
    )  # fmt: skip
    shared = torch.load(together / "plain0.pt", weights_only=True)
    for name, value in alone.state_dict().items():
        assert torch.allclose(shared[name], value, atol=1e-4), name
    theirs = [line["loss"] for line in read_log(together / "plain") if "step" in line]
    ours = [line["loss"] for line in read_log(tmp_path / "alone") if "step" in line]
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("kind", STATIC)
def test_static_ranges_of_two_processes_are_those_of_one(kind, together, tmp_path):
    """Steps of learned ranges are as long as on the whole batch, and ranges that follow see all of it."""
    first, second = (
        torch.load(together / f"{kind}{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert first["found"] == second["found"]
    assert all(torch.equal(first["after"][n], second["after"][n]) for n in first["after"])
    alone = run_static(kind, tmp_path)

    def ends(names):
        """Of the run alone its beginning and end, and the end of the one that was shared."""
        states = alone["before"], alone["after"], first["after"]
        return [torch.cat([state[name].flatten() for name in names]) for state in states]

    learned = "scale", "zero_point", "low", "high"
    moved = [n for n, value in alone["after"].items() if value.is_floating_point()]
    for names in (
        [n for n in moved if n.endswith(learned)],
        [n for n in moved if n.endswith(("weight", "bias", "token"))],
    ):
        begin, end, shared = ends(names)
        assert (end - begin).norm() > 0
        assert (shared - end).norm() < 0.02 * (end - begin).norm()


def test_a_batch_that_processes_cannot_share_is_refused():
    from qvit.distillation import Processes

    with pytest.raises(UsageError, match="not divided by 3 processes"):
        distil(
            TinyTeacher(), TinyStudent(), tiny_pool(), quick(),
            seed=0, processes=Processes(0, 3), progress=False,
        )  # fmt: skip


class BrokenTeacher(TinyTeacher):
    """One of its answers is no number."""

    def __init__(self):
        super().__init__()
        self.answers = 0

    def __call__(self, images):
        self.answers += 1
        seen = super().__call__(images)
        return seen._replace(logits=seen.logits * float("nan")) if self.answers == 3 else seen


def test_a_log_with_a_skipped_step_is_still_json(tmp_path):
    found = distil(
        BrokenTeacher(), TinyStudent(), tiny_pool(), quick(),
        seed=0, folder=tmp_path, progress=False,
    )  # fmt: skip
    assert found["skipped"] == 1

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / LOG).read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    assert [(line["loss"], line["kl"], line["skipped"]) for line in skipped] == [(None, None, 1.0)]


def test_a_cap_that_is_hit_between_two_lines_of_the_log_is_in_it(tmp_path, monkeypatch):
    """A long run logs every so many steps: the count of those at the cap misses none, and outlives a break."""

    def inundated(name, teacher=None):
        return distil(
            teacher or TinyTeacher(), TinyStudent(), tiny_pool(),
            quick("ait", lr=1e-2, inundation=0.02, inundation_cap=512.0), seed=0,
            folder=tmp_path / name, progress=False, save_seconds=0.0,
        )  # fmt: skip

    def lines(name):
        return [line for line in read_log(tmp_path / name) if "step" in line]

    inundated("every")
    expected = sum(line["capped"] > 0 for line in lines("every"))
    assert 0 < sum(line["capped"] > 0 for line in lines("every")[1:-1]) < 10
    monkeypatch.setattr("qvit.distillation.loop._LINES", 1)
    assert inundated("few")["capped"] == expected
    assert [line["step"] for line in lines("few")] == [0, 11]
    assert lines("few")[-1]["capped_steps"] == expected
    with pytest.raises(InterruptedError):
        inundated("broken", FailingTeacher(8))
    assert inundated("broken")["capped"] == expected
    assert bits(tmp_path / "broken") == bits(tmp_path / "few")


# The simulated student computes without autocast; static quantizers read what bfloat16 products rounded.
@pytest.mark.parametrize(("make", "alike"), [(static_student, 0.7), (simulated_student, 0.99)])
def test_a_step_in_bfloat16_is_about_one_in_float32(make, alike):
    vit = small_vit()
    images = images_for(vit, 16)
    found, moves = {}, {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        student = make(vit)
        before = [p.detach().clone() for p in student.parameters()]
        settings = quick("mimiq", precision=precision)
        found[precision] = Trainer(FloatTeacher(vit), student, settings, steps=1).step(images)
        after = [p.detach() for p in student.parameters()]
        assert all(p.dtype == torch.float32 for p in after)
        moves[precision] = torch.cat(
            [(p - b).flatten() for p, b in zip(after, before, strict=True)]
        )
    for term in ("kl", "heads"):
        assert found["bfloat16"][term] == pytest.approx(found["float32"][term], rel=0.1)
    assert not torch.equal(moves["float32"], moves["bfloat16"])
    assert torch.cosine_similarity(moves["float32"], moves["bfloat16"], 0) > alike
