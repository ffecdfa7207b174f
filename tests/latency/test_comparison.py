"""Two reports: drift is taken out, slower layers are named, and bounds are held."""

import pytest

from qvit.errors import InputError
from qvit.latency import check_earlier, compare_reports, find_missed_gate
from tests.latency.reports import layer, report, row

OWN = "qvit-w4a4-cpu"
NAMES = ("norm1", "attn.qkv", "attn", "attn.proj", "mlp.fc1", "mlp.fc2")


def layers(slow=None, times=1.0):
    return [
        layer(f"blocks.{i}.{name}", (1 + n) * times * (1.2 if name == slow else 1.0), 0.5)
        for i in range(3)
        for n, name in enumerate(NAMES)
    ]


def make(ours=1.0, theirs=2.0, **kinds):
    rows = [
        row("fp32", 1, theirs),
        row("fp32-compile", 1, theirs / 2),
        row(OWN, 1, ours, speedup=theirs / 2 / ours),
    ]
    return report(rows, layers(**kinds))


def test_a_slower_machine_is_not_a_slower_model():
    found = compare_reports(make(2.0, 4.0, times=2.0), make())
    assert found["drift"] == {"1": pytest.approx(2.0)}
    assert [each["slower"] for each in found["rows"]] == pytest.approx([0.0, 0.0, 0.0])
    assert [each["raw"] for each in found["rows"]] == pytest.approx([1.0, 1.0, 1.0])
    assert found["slower_layers"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_a_fifth_slower_is_named(name):
    found = compare_reports(make(slow=name, times=1.7), make())
    assert found["slower_layers"] == [f"blocks.*.{name}"]
    assert found["layers"][0]["slower"] == pytest.approx(0.2)


def spread(report, times, variant=None):
    """Rounds of other lengths: all variants', or one's alone."""
    for each in report["rows"]:
        if variant in (None, each["variant"]):
            each["rounds_ms"] = [a * b for a, b in zip(each["rounds_ms"], times, strict=True)]
    return report


ROUNDS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7)


def test_a_drift_that_rounds_share_widens_no_interval():
    found = compare_reports(spread(make(1.05), ROUNDS), spread(make(), ROUNDS[::-1]))
    own = found["rows"][-1]
    assert [own[k] for k in ("slower", "low", "high")] == pytest.approx([0.05] * 3)


def test_chance_of_both_reports_is_in_the_interval():
    """Mann and Whitney: of 8 rounds and 8, the 13th smallest and largest of 64 quotients."""
    quotients = sorted(1.05 * a / b for a in ROUNDS for b in ROUNDS)
    found = compare_reports(spread(make(1.05), ROUNDS, OWN), spread(make(), ROUNDS, OWN))
    own = found["rows"][-1]
    assert own["low"] == pytest.approx(quotients[12] - 1)
    assert own["high"] == pytest.approx(quotients[-13] - 1)
    assert own["slower"] == pytest.approx(0.05)
    assert own["raw"] == pytest.approx(0.05)


def test_without_floats_in_common_no_drift_is_known():
    before = report([row(OWN, 1, 1.0)])
    found = compare_reports(report([row(OWN, 1, 2.0), row("fp32", 1, 1.0)]), before)
    assert found["drift"] == {"1": None}
    assert [found["rows"][0][k] for k in ("slower", "raw")] == pytest.approx([1.0, 1.0])


def test_a_batch_size_of_one_report_alone_has_no_drift():
    now = make()
    now["rows"].append(row(OWN, 8, 1.0))
    assert set(compare_reports(now, make())["drift"]) == {"1"}


def gate(now, before, bound):
    now["against"] = compare_reports(now, before)
    return find_missed_gate(now, fail_slower=bound)


def test_gates():
    missed = gate(make(1.05, slow="mlp.fc1"), make(), 0.03)
    assert "5.0 % slower than before (95 % interval 5.0 to 5.0)" in str(missed)
    assert "blocks.*.mlp.fc1" in str(missed)
    assert gate(make(1.05), make(), 0.06) is None
    assert find_missed_gate(make(ours=0.5), min_speedup=1.9) is None
    assert "below --min-speedup 2.1" in str(find_missed_gate(make(ours=0.5), min_speedup=2.1))
    # the ratio decides, not the upper end of its interval
    assert find_missed_gate(report([row(OWN, 1, 1.0, speedup=2.0, spread=0.2)]), min_speedup=2.1)
    alone = report([row(OWN, 1, 1.0)])
    assert "was not timed so" in str(find_missed_gate(alone, min_speedup=1.0))


def test_a_gate_goes_by_what_is_beyond_the_drift():
    """A machine half as fast, and a model that is not slower; one as fast, and a model that is."""
    assert gate(make(2.0, 4.0), make(), 0.03) is None
    assert gate(make(1.0, 1.0), make(), 0.03) is not None


def test_a_gate_goes_by_the_interval():
    """7 % slower on the median, and 3 % not out of the question."""
    noisy = [1 + 0.04 * i for i in range(8)]
    own = spread(make(1.05), noisy, OWN)
    assert gate(own, spread(make(), noisy, OWN), 0.03) is None
    assert own["against"]["rows"][-1]["slower"] > 0.03
    few = make(1.05), make()
    for each in (*few[0]["rows"], *few[1]["rows"]):
        each["rounds_ms"] = each["rounds_ms"][:3]
    assert "too few rounds for an interval" in str(gate(*few, 0.03))


def test_layers_in_the_message_are_those_of_the_row_that_fails():
    now, before = make(1.05), make()
    for each, times in ((now, 1.5), (before, 1.0)):
        more = [layer(f"blocks.{i}.{n}", 1.0, 0.5, batch=8) for i in range(3) for n in NAMES[:3]]
        each["layers"] += more
        each["kinds"] = report([], each["layers"])["kinds"]
        (norm,) = (k for k in each["kinds"] if (k["batch"], k["name"]) == (8, "blocks.*.norm1"))
        norm["fastest_ms"] *= times
    missed = gate(now, before, 0.03)
    assert now["against"]["slower_layers"] == ["blocks.*.norm1"]
    assert "at batch 1" in str(missed)
    assert "layers" not in str(missed)


def test_a_bound_that_nothing_was_held_against_is_missed():
    other = report([row("qvit-w4a8-cpu", 1, 1.0)])
    assert "in common" in str(gate(make(), other, 0.03))
    more = make()
    more["rows"].append(row(OWN, 8, 1.0))
    assert f"no {OWN} at batch 8" in str(gate(more, make(), 0.03))
    assert gate(make(), more, 0.03) is None
    floats = report([row("fp32", 1, 1.0), row("fp32-compile", 1, 1.0)])
    assert "none was timed" in str(find_missed_gate(floats, min_speedup=1.0))


def test_other_machines():
    other = make()
    other["machine"] = other["machine"] | {"torch": "3"}
    assert compare_reports(make(), make())["same_machine"]
    assert not compare_reports(make(), other)["same_machine"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema version 1"),
        ({"resolved_name": "vit_y"}, "of model vit_y, and this one will be of vit_x"),
        ({"scheme": "W4A8"}, "of scheme W4A8"),
        ({"device": "cuda"}, "of device cuda"),
        ({"rows": [{"variant": "fp32"}]}, "broken"),
        ({"rows": [row(OWN, 1, 1.0, rounds_ms=[])]}, "broken"),
        ({"kinds": None}, "broken"),
    ],
)
def test_earlier_reports_that_do_not_fit(changes, message):
    wanted = {"model": "vit_x", "scheme": "W4A4", "device": "cpu"}
    check_earlier(make(), **wanted)
    with pytest.raises(InputError, match=message):
        check_earlier(make() | changes, **wanted)
    for nothing in ({}, {"schema_version": 3}, [], {"schema_version": 3, "rows": []}):
        with pytest.raises(InputError):
            check_earlier(nothing, **wanted)
