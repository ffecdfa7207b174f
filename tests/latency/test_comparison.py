"""Two reports: drift is taken out, slower layers are named, and bounds are held."""

import pytest

from qvit.errors import InputError
from qvit.latency import compare_reports, find_missed_gate
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


def test_gates():
    before, slower = make(), make(ours=1.05, slow="mlp.fc1")
    slower["against"] = compare_reports(slower, before)
    missed = find_missed_gate(slower, fail_slower=0.03)
    assert missed is not None
    assert "5.0 % slower" in str(missed)
    assert "blocks.*.mlp.fc1" in str(missed)
    assert find_missed_gate(slower, fail_slower=0.06) is None
    assert find_missed_gate(make(ours=0.5), min_speedup=1.9) is None
    assert "below --min-speedup 2.1" in str(find_missed_gate(make(ours=0.5), min_speedup=2.1))
    alone = report([row(OWN, 1, 1.0)])
    assert "none was timed" in str(find_missed_gate(alone, min_speedup=1.0))


def test_other_machines_and_schemas():
    other = make()
    other["machine"] = other["machine"] | {"torch": "3"}
    assert compare_reports(make(), make())["same_machine"]
    assert not compare_reports(make(), other)["same_machine"]
    with pytest.raises(InputError, match="schema version 1"):
        compare_reports(make(), make() | {"schema_version": 1})
