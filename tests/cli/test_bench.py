"""`qvit bench` around the measurement: what is refused before it, and what is written after it."""

import json

import pytest

from qvit import latency
from qvit.cli import run
from tests.latency.reports import ratio, report, row

OWN = "qvit-w4a4-cpu"


def make(folder, ours=1.0, theirs=2.0):
    name = latency.Subject.of_folder(folder).source.timm_name
    floats = [row("fp32", 1, theirs), row("fp32-compile", 1, theirs)]
    return report([*floats, row(OWN, 1, ours, speedup=theirs / ours)], resolved_name=name)


@pytest.fixture
def measured(tiny_copy, monkeypatch):
    """The times that `bench` will find, and how often it was asked."""
    asked = []

    def bench(subject, request, *, progress):
        asked.append(request)
        return make(tiny_copy, **times)

    times = {}
    monkeypatch.setattr(latency, "bench", bench)
    return times, asked


def call(*arguments):
    return run(["bench", *map(str, arguments), "-q"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-speedup", "nan"], "above 0"),
        (["--min-speedup", "-1"], "above 0"),
        (["--fail-slower", "3%"], "--against"),
        (["--against", "before.json", "--fail-slower", "nan"], "3%"),
        (["--against", "before.json", "--fail-slower", "fast"], "3%"),
        (["--backend", ","], "no backend"),
        (["-o", "/proc/x.json"], "-o /proc/x.json"),
        (["--html", "/proc/x/y.html"], "--html"),
        (["--against", "before.json", "-o", "before.json"], "overwrite"),
        (["--against", "before.json", "--md", "before.json"], "overwrite"),
    ],
)
def test_refused_before_anything_is_measured(
    tiny_copy, measured, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tiny_copy.parent)
    (tiny_copy.parent / "before.json").write_text(json.dumps(make(tiny_copy)))
    assert call(tiny_copy, *options) == 2
    assert words in capsys.readouterr().err
    assert not measured[1]


@pytest.mark.parametrize(
    "options", [["--min-speedup", "1"], ["--against", "x.json"], ["--backend", "cpu"]]
)
def test_what_only_a_folder_has_is_refused_for_a_float_model(tiny_model, capsys, options):
    assert call(f"local-dir:{tiny_model}", *options) == 2
    assert f"{options[0]} is about a quantized folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"schema_version": 3, "rows": []}', '{"rows": [], "schema_version": 1}'],
)
def test_an_earlier_report_that_is_none_is_refused_at_once(tiny_copy, measured, tmp_path, text):
    before = tmp_path / "before.json"
    before.write_text(text)
    assert call(tiny_copy, "--against", before) == 4
    assert not measured[1]


def test_a_report_of_another_model_is_refused_at_once(tiny_copy, measured, tmp_path, capsys):
    before = tmp_path / "before.json"
    before.write_text(json.dumps(make(tiny_copy) | {"resolved_name": "vit_y"}))
    assert call(tiny_copy, "--against", before) == 4
    assert "of model vit_y" in capsys.readouterr().err
    assert not measured[1]


def test_a_slower_model_does_not_become_the_measure_of_the_next_one(tiny_copy, measured, capsys):
    times, _ = measured
    assert call(tiny_copy) == 0
    kept = tiny_copy / "bench.json"
    before = kept.read_text()
    times["ours"] = 1.5
    arguments = tiny_copy, "--against", kept, "--fail-slower", "3%"
    for _ in range(2):
        assert call(*arguments) == 5
        assert kept.read_text() == before
    assert call(*arguments, "-o", tiny_copy / "new.json") == 5
    assert json.loads((tiny_copy / "new.json").read_text())["against"]["rows"]
    assert call(tiny_copy) == 0
    assert kept.read_text() != before


def test_what_is_compared_is_in_every_form(tiny_copy, measured, tmp_path, capsys):
    before = tmp_path / "before.json"
    alone = make(tiny_copy)
    before.write_text(json.dumps(alone | {"rows": alone["rows"][-1:]}))
    files = {kind: tmp_path / f"now.{kind}" for kind in ("md", "html", "csv")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    assert call(tiny_copy, "--against", before, *options) == 0
    assert "drift of the machine is not taken out" in capsys.readouterr().out
    assert "Since the earlier report" in files["md"].read_text()
    assert "Since the earlier report" in files["html"].read_text()
    assert not list(tmp_path.glob(".now*"))


def test_a_speedup_that_another_run_may_not_find_has_a_star(
    tiny_copy, measured, monkeypatch, capsys
):
    for spread, shown in ((0.01, "2.00"), (0.1, "2.00 *"), (None, "2.00 *")):
        found = make(tiny_copy)
        found["rows"][-1]["speedup_vs"] = {"best_float": ratio(2.0, spread)}
        monkeypatch.setattr(latency, "bench", lambda *_, found=found, **__: found)
        assert call(tiny_copy) == 0
        (line,) = (text for text in capsys.readouterr().out.splitlines() if OWN in text)
        assert ("2.00 *" in line) == shown.endswith("*")
