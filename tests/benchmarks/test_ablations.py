"""What a part is held against: the default, or, where it is trained, the same leaves without training."""

import pytest

from benchmarks.ablations import CHANGES, cells, table

LEAVES = "synthesis.images=200"
TRAINED = [change for change in CHANGES[4, 4] if change.startswith(f"{LEAVES} ")]


def cell(change, kl, seed=0, features=()):
    return {
        "model": "vit_t", "bits": [4, 4], "change": change, "seed": seed, "kl": kl,
        "kl_each": [kl, kl], "agreement": 90.0, "machine": {"cpu_features": list(features)},
    }  # fmt: skip


def test_a_part_is_held_against_the_default():
    [line] = table([cell("", 0.15), cell("weights.group=0", 0.19)]).splitlines()[2:]
    assert "| 0.1500, 0.1900 | 0.0400 +- 0.0000 |" in line
    [line] = table([cell("", 0.15), cell(LEAVES, 0.12)]).splitlines()[2:]
    assert (
        "| 0.1200, 0.1500 | 0.0300 +- 0.0000 |" in line
    )  # a change that is no part of the default


@pytest.mark.parametrize("change", TRAINED)
def test_training_is_held_against_as_many_leaves(change):
    lines = table([cell("", 0.15), cell(LEAVES, 0.12), cell(change, 0.11)]).splitlines()[2:]
    assert "| 0.1100, 0.1200 | 0.0100 +- 0.0000 |" in lines[-1]
    assert len(table([cell("", 0.15), cell(change, 0.11)]).splitlines()) == 2


def test_pairs_are_of_one_kind_of_processor():
    other = [cell("", 0.10, features=["avx2", "avx512_vnni"]), cell("weights.group=0", 0.19)]
    assert len(table(other).splitlines()) == 2
    [line] = table([*other, cell("", 0.15)]).splitlines()[2:]
    assert "| 0.1500, 0.1900 |" in line


def test_no_cell_has_the_name_of_another():
    names = [name for name, _ in cells()]
    assert len(names) == len(set(names))
    assert len(TRAINED) >= 6
