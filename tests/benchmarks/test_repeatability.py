"""Two reports of one model: which ratios are compared, and what breaks a report's word."""

import json

import pytest

from benchmarks.repeatability import describe, main, pair_ratios
from tests.latency.reports import ratio, report, row


def make(steady, unsteady):
    """A report with one ratio that its interval calls steady, and one that it does not."""
    rows = [row("fp32", 1, 2.0), row("qvit-w8a8-cpu", 1, 1.0), row("qvit-w8a8-cpu", 8, 1.0)]
    rows[1]["speedup_vs"] = {"fp32": ratio(steady, 0.02)}
    rows[2]["speedup_vs"] = {"fp32": ratio(unsteady, 0.2), "best_float": ratio(1.0, None)}
    return report(rows)


def test_only_what_was_called_steady_has_to_agree(tmp_path, capsys):
    names = [str(tmp_path / name) for name in ("first.json", "second.json")]
    for name, found in zip(names, (make(2.0, 2.0), make(2.09, 4.0)), strict=True):
        (tmp_path / name).write_text(json.dumps(found))
    assert main(names) == 0
    said = capsys.readouterr().out
    assert "1 ratios called steady by both: 1 within 5 %" in said
    assert "2 ratios called unsteady by at least one: 1 within 5 %" in said
    assert "batch 8: 2.000 and 4.000, 100.0 % apart" in said
    (tmp_path / "second.json").write_text(json.dumps(make(1.9, 2.0)))  # 5.3 % either way round
    assert main(names) == main(names[::-1]) == 1
    assert "BROKEN qvit-w8a8-cpu over fp32, batch 1" in capsys.readouterr().out


def test_steady_in_one_report_alone_is_no_promise():
    second = make(3.0, 2.0)
    second["rows"][1]["speedup_vs"]["fp32"] = ratio(3.0, 0.3)
    pairs = pair_ratios(make(2.0, 2.0), second)
    assert not any(pair.broken for pair in pairs)
    assert "0 ratios called steady by both" in describe(pairs)


def test_ratios_of_one_report_alone_are_passed_over():
    second = make(2.0, 2.0)
    second["rows"].pop()
    assert [(p.variant, p.batch) for p in pair_ratios(make(2.0, 2.0), second)] == [
        ("qvit-w8a8-cpu", 1)
    ]


def test_reports_of_different_things_are_refused():
    with pytest.raises(ValueError, match="differ in resolved_name"):
        pair_ratios(make(2.0, 2.0), make(2.0, 2.0) | {"resolved_name": "vit_y"})


def test_where_nothing_is_steady_nothing_is_shown(tmp_path, capsys):
    found = make(2.0, 2.0)
    found["rows"][1]["speedup_vs"]["fp32"] = ratio(2.0, 0.3)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(found))
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "nothing is called steady by both" in capsys.readouterr().out
    (tmp_path / "b.json").write_text(json.dumps(found | {"device": "cuda"}))
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "differ in device" in capsys.readouterr().err


def test_nothing_in_common_is_no_agreement(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(report([row("fp32", 1, 1.0)])))
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert main(["one"]) == 2
