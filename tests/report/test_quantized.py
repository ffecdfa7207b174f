"""The page of a quantized folder: what it holds, what it lacks, and that it is one file."""

import json
import re

import pytest

from qvit.cli import run
from qvit.errors import InputError
from qvit.latency import compare_reports
from qvit.report import describe_latency, write_report
from qvit.report import latency as latency_page
from qvit.report.wording import megabytes, milliseconds, shortly
from tests.latency.reports import layer, ratio, report, row


def latency():
    return report(
        [
            row("fp32", 1, 9.0),
            row("bf16-compile", 1, 4.0, peak_mem_mb=100.0),
            row("openvino-int8", 1, 2.5, speedup=1.6),
            row("qvit-w4a4-cpu", 1, 2.0, speedup=2.0, spread=0.2, peak_mem_mb=50.0),
        ],
        [
            layer("blocks.0.mlp.fc1", 1.0, 0.5, reason="no VNNI"),
            layer("blocks.1.mlp.fc1", 0.5, 0.5),
        ],
        verdict=["It takes 2 ms.", "Arithmetic holds it up."],
        warnings=["the machine was busy"],
        left_out=[
            {"variant": "torchao-int8", "reason": "not installed", "command": "pip install torchao"}
        ],
    )


def sections(folder):
    return re.findall(r'<section id="(\w+)"', (folder / "report.html").read_text())


def test_nothing_measured_yet(tiny_copy, capsys):
    assert run(["report", str(tiny_copy), "-q", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "quantized"
    assert sections(tiny_copy) == ["synthesis", "bits", "provenance", "missing"]
    text = (tiny_copy / "report.md").read_text()
    for command in ("qvit eval tiny-w4a4", "qvit bench tiny-w4a4", "qvit sense tiny-w4a4"):
        assert command in text


def test_everything_measured(tiny_copy, tiny_images, capsys):
    (tiny_copy / "bench.json").write_text(json.dumps(latency()))
    assert run(["sense", str(tiny_copy), "--images", "2", "-q"]) == 0
    assert run(["report", str(tiny_copy), "--data", str(tiny_images), "-q", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") :])
    assert found["summary"]["A pass"] == "2.00\u202fms"
    assert found["summary"]["Speed"] == "2.00x"
    assert sections(tiny_copy) == [
        "accuracy", "latency", "why", "layers", "sensitivity", "synthesis", "bits", "provenance", "machine",
    ]  # fmt: skip
    html, text = (tiny_copy / "report.html").read_text(), (tiny_copy / "report.md").read_text()
    assert html.count("<svg") >= 4
    for words in (
        "pip install torchao",
        "Arithmetic holds it up",
        "The machine was busy",
        "no VNNI",
        "that of the fastest float model; another run may find more or less",
        "2.00 *",
    ):
        assert words in html, words
        assert words.replace("*", "\\*") in text or words in text, words
    assert not re.search(r"(src|href)=\"(?!#|data:)", html)
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", html)
    assert (tiny_copy / "eval.json").is_file()


@pytest.mark.parametrize("between", [[0.5, 3.0], None])
def test_points_lost_have_their_interval_where_it_was_kept(tiny_copy, between):
    found = {
        "top1": 80.0, "top5": 95.0, "top1_interval": [78.0, 82.0], "images": 100, "skipped": 0,
        "float": {"top1": 81.5}, "drop": 1.5, "agreement": 90.0, "kl": 0.1, "data": "somewhere",
    }  # fmt: skip
    if between is not None:
        found["drop_interval"] = between
    (tiny_copy / "eval.json").write_text(json.dumps(found))
    write_report(tiny_copy, progress=False)
    text = (tiny_copy / "report.md").read_text()
    assert "1.50 points lost" in text
    assert ("1.50 points lost (95 % interval 0.50 to 3.00)" in text) == (between is not None)


def test_a_latency_page_of_its_own():
    found = describe_latency(latency())
    assert re.findall(r'<section id="(\w+)"', found["html"]) == [
        "latency",
        "why",
        "layers",
        "machine",
    ]
    assert "| 1 | qvit-w4a4-cpu | 2.00 | 2.00 * |" in found["md"]


def test_what_changed_since_an_earlier_report_is_on_the_page():
    now = latency()
    now["against"] = compare_reports(now, latency())
    now["against"]["layers"][0] |= {"slower": 0.2}
    now["against"]["slower_layers"] = ["blocks.*.mlp.fc1"]
    found = describe_latency(now)
    assert '<section id="against"' in found["html"]
    assert "Slower by more than a tenth: blocks.\\*.mlp.fc1." in found["md"]
    assert "| 1 | qvit-w4a4-cpu | +0.0 | +0.0 to +0.0 | +0.0 |" in found["md"]
    assert "| +20.0 |" in found["md"]


def test_speedups_over_every_float_model_are_on_the_page():
    found = latency()
    found["rows"][-1]["speedup_vs"] |= {"fp32": ratio(4.5, 0.02)}
    text = describe_latency(found)["md"]
    assert "| 1 | qvit-w4a4-cpu | 4.50 (4.46 to 4.54) |" in text
    found["rows"][-1]["speedup_vs"] |= {"fp32": ratio(4.5, 0.04)}
    assert "4.50 (4.41 to 4.59) " in describe_latency(found)["md"]
    assert "4.59) |" not in describe_latency(found)["md"]  # but a star


def test_a_report_of_few_rounds_has_no_intervals():
    found = latency()
    for each in found["rows"]:
        each["latency_ms"]["ci95"] = None
        each["speedup_vs"] = {} if not each["speedup_vs"] else {"best_float": ratio(2.0, None)}
    text = describe_latency(found)["md"]
    assert "2.00 \\*" in text or "2.00 *" in text
    assert "too few rounds" in text


def test_records_of_another_schema_are_refused(tiny_copy):
    (tiny_copy / "bench.json").write_text(json.dumps(latency() | {"schema_version": 1}))
    with pytest.raises(InputError, match=r"bench\.json has schema version 1"):
        write_report(tiny_copy, progress=False)


def test_broken_records_are_named(tiny_copy):
    (tiny_copy / "bench.json").write_text("{")
    with pytest.raises(InputError, match=r"bench\.json cannot be read"):
        write_report(tiny_copy, progress=False)
    (tiny_copy / "bench.json").write_text("{}")
    with pytest.raises(InputError, match="no result of `qvit bench`"):
        write_report(tiny_copy, progress=False)


def test_options_that_do_not_fit(tiny_copy, tmp_path):
    assert run(["report", str(tiny_copy), "--images", "demo", "-q"]) == 2
    assert run(["report", str(tmp_path), "--data", "demo", "-q"]) == 2


def test_numbers_have_three_digits_that_count():
    assert [shortly(v) for v in (None, 0, 0.001234, 1.239, 12.34, 123.4, 12345.6)] == [
        "-", "0", "0.00123", "1.24", "12.3", "123", "12346",
    ]  # fmt: skip
    assert milliseconds(7.153) == "7.15\u202fms"
    assert megabytes(5_712_345) == "5.71\u202fMB"


def test_a_slower_model_is_not_called_fast():
    found = latency()
    found["rows"][-1]["speedup_vs"]["best_float"] = ratio(0.25)
    key = next(key for key in latency_page.list_keys(found) if key.label == "Time")
    assert (key.value, key.detail) == ("4.00x", "that of the fastest float model")
