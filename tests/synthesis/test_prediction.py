import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from qvit import synthesis, zoo
from qvit.errors import UsageError
from qvit.recipe import Synthesis
from qvit.synthesis import prediction
from qvit.synthesis.prediction import check_memory, fastest_precision, predict
from tests.synthesis.settings import demo, small, teacher

PEAK = """
import resource, sys, tempfile
from pathlib import Path
from tests.synthesis.settings import demo, work
from qvit.recipe import Synthesis
settings = Synthesis.preset(sys.argv[1], images=96, batch=96, iterations=1, rounds=1, precision=sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    work(Path(folder) / "run", settings, 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("mimiq", "float32"),
        pytest.param("psaq", "bfloat16", marks=pytest.mark.slow),
        pytest.param("sardfq", "float32", marks=pytest.mark.slow),
    ],
)
def test_memory_is_within_a_third(method, precision, child_environment):
    """A batch of 96 small images, so that what is estimated outweighs Python and torch themselves."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, method, precision],
        env=child_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(done.stdout.split()[-1])
    settings = Synthesis.preset(
        method, images=96, batch=96, iterations=1, rounds=1, precision=precision
    )
    found = predict(teacher().config, settings).memory_bytes
    assert 0.67 * peak < found < 1.5 * peak, (found / 1e9, peak / 1e9)


def test_work_is_shared_and_grows_with_what_is_asked(monkeypatch):
    monkeypatch.setattr(prediction, "_measured_rate", lambda _: 1e11)
    config = teacher().config
    one = predict(config, small("psaq", images=64, batch=8, iterations=100))
    assert one.batches == 8
    assert predict(config, small("psaq", images=64, batch=8, iterations=100), shares=2).seconds == (
        pytest.approx(one.seconds / 2)
    )
    twice = predict(config, small("psaq", images=128, batch=8, iterations=100))
    assert twice.seconds == pytest.approx(2 * one.seconds)
    assert twice.memory_bytes == one.memory_bytes
    wider = predict(config, small("psaq", images=64, batch=16, iterations=100))
    assert wider.memory_bytes > one.memory_bytes
    assert predict(config, small("noise", images=64, batch=8)).iteration_seconds == 0


def test_time_is_of_the_right_order(tmp_path):
    settings = small("psaq", images=16, batch=16, iterations=20)
    said = predict(teacher().config, settings).seconds
    taken = synthesis.synthesize(demo(), settings, tmp_path / "run", seed=0, progress=False)[
        "seconds"
    ]
    assert taken / 8 < said < taken * 8  # other work on the machine comes and goes


def test_a_dry_run_says_it_without_weights(monkeypatch):
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("loaded weights"))
    plan = synthesis.estimate(demo(), small("mimiq", images=9, batch=4))
    assert (plan["images"], plan["batches"], plan["iterations"]) == (9, 3, 4)
    assert plan["reads_images"] is False
    assert min(plan["estimated_seconds"], plan["estimated_memory_bytes"]) > 0
    disk = plan["estimated_disk_bytes"]
    assert 9 * 3 * 64 * 64 * 2 <= disk < 9 * 3 * 64 * 64 * 2 + 1e5


def test_a_batch_beyond_memory_is_refused_with_one_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "usable_memory", lambda: 4_000_000_000)
    settings = small("mimiq", images=5000, batch=5000)
    with pytest.raises(
        UsageError,
        match=r"needs about .* GB .* 4\.0 GB of this machine's may be used; try --batch (\d+)",
    ) as told:
        synthesis.synthesize(demo(), settings, tmp_path / "run", seed=0, progress=False)
    assert not (tmp_path / "run").exists()
    fitting = int(str(told.value).split()[-1])
    assert 100 < fitting < 5000
    check_memory(predict(teacher().config, small("mimiq", images=5000, batch=fitting)), settings)
    monkeypatch.setattr(prediction, "usable_memory", lambda: 100_000_000)
    with pytest.raises(UsageError, match="more memory"):
        check_memory(predict(teacher().config, settings), settings)
    monkeypatch.setattr(prediction, "usable_memory", lambda: None)
    check_memory(predict(teacher().config, settings), settings)


def test_the_batch_that_is_named_is_smaller_than_the_images_there_are(monkeypatch):
    """Asked for more images at a time than in all, what has to fit is all of them."""
    monkeypatch.setattr(prediction, "usable_memory", lambda: 4_000_000_000)
    settings = small("mimiq", images=5000, batch=100_000)
    with pytest.raises(UsageError, match=r"a batch of 5000 images .* try --batch (\d+)") as told:
        synthesis.estimate(demo(), settings)
    fitting = int(str(told.value).split()[-1])
    assert 100 < fitting < 5000


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    settings = small("mimiq", images=5000, batch=200)
    one = predict(teacher().config, settings).memory_bytes
    monkeypatch.setattr(prediction, "usable_memory", lambda: 3 * one)
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    synthesis.estimate(demo(), settings)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=r"in each of 4 processes.*try --batch \d+, or fewer"):
        synthesis.estimate(demo(), settings)


def test_a_card_has_its_own_memory(monkeypatch):
    settings = small("mimiq", images=5000, batch=5000)
    monkeypatch.setattr(prediction, "usable_memory", lambda: 4_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    synthesis.estimate(demo(), settings, device="cuda")  # more than main memory
    card.total_memory = 4_000_000_000
    with pytest.raises(UsageError, match=r"this card has 4\.0 GB"):
        synthesis.estimate(demo(), settings, device="cuda")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["avx2", "avx512f", "avx512_bf16"], "bfloat16"),
        (["avx2", "amx_bf16"], "bfloat16"),
        (["asimddp", "bf16"], "bfloat16"),
        (["avx2", "avx512f"], "float32"),
        ([], "float32"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_native(features, expected, monkeypatch):
    monkeypatch.setattr(prediction, "describe_cpu", lambda: {"features": features})
    assert fastest_precision("cpu") == expected


def test_an_estimate_for_a_card_says_that_it_is_none():
    settings = Synthesis.preset("psaq")
    assert synthesis.estimate(demo(), settings)["estimated_on"] == "cpu"
    assert (
        "not measured on this card"
        in synthesis.estimate(demo(), settings, device="cuda")["estimated_on"]
    )
