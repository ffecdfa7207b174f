"""The form of the main loop for each architecture and epilogue."""

import pytest

from qvit_kernels.accumulators import Form, choose_form
from qvit_kernels.tiles import Tile

LARGE = Tile(128, 128, 128, 8, 3)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("w4", [False, True])
@pytest.mark.parametrize("groups", [False, True])
def test_elementwise_epilogues_leave_the_order_alone(capability, w4, groups):
    form = choose_form(capability, LARGE, w4=w4, over_rows=False, groups=groups)
    assert form == Form(swap=w4, rows=False, spread=False)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("w4", [False, True])
def test_few_rows_are_not_computed_twice(capability, w4):
    """64 rows are four times 16: eight warps along M would be two for each row."""
    assert not choose_form(
        capability, Tile(64, 64, 64, 8, 2), w4=w4, over_rows=True, groups=False
    ).rows


@pytest.mark.parametrize(
    ("capability", "w4", "groups", "form"),
    [
        (80, False, False, Form(False, True, True)),
        (120, True, False, Form(True, True, True)),
        (89, True, True, Form(True, False, False)),
        (86, False, True, Form(False, True, True)),
        (90, False, False, Form(False, False, True)),
        (90, True, False, Form(False, False, True)),
    ],
)
def test_epilogues_over_rows(capability, w4, groups, form):
    assert choose_form(capability, LARGE, w4=w4, over_rows=True, groups=groups) == form


@pytest.mark.parametrize("capability", [80, 86, 89, 120])
def test_32_columns_are_not_halved(capability):
    """A product of 16 columns is none of int8, and does not compile."""
    tile = Tile(128, 128, 32, 8, 3)
    form = choose_form(capability, tile, w4=False, over_rows=True, groups=False)
    assert form == Form(swap=False, rows=False, spread=False)


@pytest.mark.parametrize(
    ("version", "spread"), [("3.6.0", True), ("3.8.0", False), ("3.10.1", False)]
)
def test_tensor_memory_holds_whole_rows(version, spread, monkeypatch):
    """Triton makes tcgen05 of int8 products from 3.8 on."""
    from qvit_kernels import accumulators

    monkeypatch.setattr(accumulators.triton, "__version__", version)
    accumulators._has_tcgen05.cache_clear()
    try:
        form = choose_form(100, LARGE, w4=False, over_rows=True, groups=False)
    finally:
        accumulators._has_tcgen05.cache_clear()
    assert form == Form(swap=False, rows=spread, spread=spread)
