"""The figures of `qvit bench` beside those of a clock outside it."""

import json
import statistics
import subprocess
import sys

import pytest
from click.testing import CliRunner

from benchmarks import stopwatch
from qvit import pipeline, zoo
from qvit.recipe import Recipe


@pytest.fixture
def demo(tmp_path):
    """The demo ViT at W8A8."""
    recipe = Recipe.preset("qvit", weight_bits=8, activation_bits=8).without_images()
    pipeline.quantize(zoo.resolve("demo_vit"), recipe, tmp_path / "demo", progress=False)
    return tmp_path / "demo"


@pytest.mark.slow
def test_figures_match_an_outside_stopwatch(demo, tmp_path):
    """Within 5 %: the median of three runs, since where memory lies in a process moves its times; five stopwatches side
    by side were up to 7 % apart. Not in this process, whose poisoned memory makes a call 9 % slower.
    """
    runs = []
    for i in range(3):
        out = tmp_path / f"{i}.json"
        command = [sys.executable, stopwatch.__file__, str(demo), "--batch", "4", "--rounds", "60"]
        subprocess.run([*command, "-o", str(out)], check=False)
        runs.append(json.loads(out.read_text())["figures"])
    for name in runs[0]:
        ratio = statistics.median([figures[name]["ratio"] for figures in runs])
        assert ratio == pytest.approx(1.0, abs=stopwatch.ALLOWED), (name, runs)


@pytest.mark.parametrize(("ratio", "code"), [(0.96, 0), (0.94, 1), (1.04, 0), (1.06, 1)])
def test_one_figure_beyond_five_percent_is_a_failure(ratio, code, tmp_path, monkeypatch):
    figures = {
        "fp32_ms": {"report": 1.0, "stopwatch": 1.0, "ratio": 1.0},
        "speedup": {"report": ratio, "stopwatch": 1.0, "ratio": ratio},
    }
    monkeypatch.setattr(stopwatch, "hold_against", lambda *_: {"figures": figures})
    out = tmp_path / "out.json"
    done = CliRunner().invoke(stopwatch.main, [str(tmp_path), "-o", str(out)])
    assert done.exit_code == code
    assert f"speedup: report {ratio:.3f}" in done.output
    assert json.loads(out.read_text())["figures"] == figures
