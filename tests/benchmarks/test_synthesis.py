"""The table of images says how far of the way from noise to real images each method goes."""

import pytest

from benchmarks import synthesis
from qvit.recipe import METHODS, Synthesis


def cell(name, distance, entropy):
    measures = {
        "head_distance": distance,
        "patch_entropy": entropy,
        "confidence": 0.5,
        "total_variation": 0.1,
    }
    return {
        "cell": f"synthesis-vit_t-{name}",
        "iterations": 7,
        "measures": measures,
        "seconds": 3.0,
    }


def test_shares_of_the_way():
    found = [cell("noise", 0.5, -2.0), cell("real", 0.4, -1.0), cell("mimiq", 0.45, -2.5)]
    row = synthesis.table(found).splitlines()[-1]
    cells = [part.strip() for part in row.split("|")]
    assert cells[1:7] == ["mimiq", "7", "0.450", "50 %", "-2.500", "-50 %"]


@pytest.mark.parametrize("row", synthesis.ROWS, ids=lambda row: row[0])
def test_rows_are_settings_that_exist(row):
    _, method, changes = row
    assert method in METHODS
    settings = Synthesis.preset(method, **{"images": synthesis.COUNT, **changes})
    assert settings.batch <= 32
    assert settings.iterations in (0, 1000, 2000)  # the published ones


def test_cells_are_one_a_row_and_the_real_images():
    names = [name for name, _ in synthesis.cells()]
    assert len(set(names)) == len(names) == len(synthesis.ROWS) + 1
