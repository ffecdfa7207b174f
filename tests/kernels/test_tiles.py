"""The choice of a tile: by rule, and by a card's table."""

import json
import warnings

import pytest

from qvit_kernels import tiles
from qvit_kernels.tiles import Tile, choose

CAPABILITIES = (80, 86, 89, 90, 100, 120)
KINDS = ("linear-w8a8", "gelu-w4a8", "qkv-w4a4")
ENTRY = {"block_m": 64, "block_n": 64, "block_k": 64, "warps": 4, "stages": 2}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kernel", KINDS)
@pytest.mark.parametrize("m", [0, 1, 17, 197, 1576, 12608])
@pytest.mark.parametrize("k", [32, 48, 192, 384, 3072])
def test_rule_keeps_its_promises(kernel, m, k, capability):
    tile = choose(kernel, m, 384, k, capability, unit_n=64)
    assert tile.block_n % 64 == 0
    assert tile.block_m < 2 * max(m, 16)
    assert tile.block_k >= (32 if kernel.endswith("w8a8") else 64)
    # what one stage holds of both operands, as bytes: three fit in 99 KB on sm_86, sm_89 and sm_120
    assert tile.stages * (tile.block_m + tile.block_n) * tile.block_k <= 99 * 1024


@pytest.mark.parametrize("unit_k", [64, 128, 192, 384])
def test_tiles_make_up_a_group_of_x(unit_k):
    assert unit_k % choose("linear-w8a8", 197, 384, 1152, 80, unit_k=unit_k).block_k == 0


def test_small_products_have_small_tiles():
    assert choose("linear-w8a8", 197, 192, 192, 90).block_m == 16
    assert choose("linear-w8a8", 12608, 768, 768, 90) == Tile(128, 128, 128, 8, 3)


@pytest.mark.parametrize("capability", [80, 86, 89])
def test_gelu_beside_packed_codes_has_a_thread_for_32_sums(capability):
    """Of 64 rows by 128 columns 4 warps spill: 64 sums a thread beside what unpacks both operands."""
    rows = 64 * 142  # as many tiles of 64 rows as the largest of these cards has processors
    small, large = (
        choose("gelu-w4a4", m, 128, 384, capability, unit_n=128) for m in (rows, 2 * rows)
    )
    assert (small.block_m, small.warps) == (64, 8)
    assert (large.block_m, large.warps) == (128, 8)
    assert choose("gelu-w4a8", rows, 128, 384, capability, unit_n=128).warps == 4


@pytest.mark.parametrize("name", ["block_m", "block_n", "block_k", "warps", "stages", "splits"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64"])
def test_tile_refuses_what_is_no_size(name, value):
    with pytest.raises(ValueError, match=name):
        Tile(**ENTRY | {name: value})


def test_tile_refuses_odd_blocks():
    with pytest.raises(ValueError, match="block_n must be a power of two, got 96"):
        Tile(**ENTRY | {"block_n": 96})


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the table of the card "NVIDIA Test 9"."""
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles._table.cache_clear()
    yield (tmp_path / "nvidia-test-9.json").write_text
    tiles._table.cache_clear()


def table(*rows: tuple[int, int]) -> str:
    measured = [{"m": m, "tile": ENTRY | {"block_m": block}} for m, block in rows]
    return json.dumps({"card": "NVIDIA Test 9", "tiles": {"gelu-w8a8": {"1536x384": measured}}})


def tuned(m: int, n: int = 1536, **units) -> Tile:
    return choose("gelu-w8a8", m, n, 384, 90, card="NVIDIA Test 9", **units)


def test_nearest_rows_win(write):
    write(table((197, 16), (12608, 128)))
    assert tuned(1) == Tile(16, 64, 64, 4, 2)
    assert tuned(1500).block_m == 16  # 7.6 times 197, an eighth of 12608
    assert tuned(1600).block_m == 128
    assert tuned(0).block_m == 16


def test_rule_serves_what_was_not_measured(write):
    by_rule = choose("gelu-w8a8", 12608, 768, 384, 90)
    write(table((197, 16)))
    assert tuned(12608, n=768) == by_rule
    assert tuned(12608, unit_n=128).block_n == 128  # the measured tile cannot hold such a group
    assert choose("gelu-w8a8", 197, 1536, 384, 90, card="another") == choose(
        "gelu-w8a8", 197, 1536, 384, 90
    )


def test_table_is_read_once(write):
    write(table((197, 16)))
    assert tuned(197).block_m == 16
    write(table((197, 64)))
    assert tuned(197).block_m == 16


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"tiles": {"gelu-w8a8": {"1536": []}}}),
        json.dumps({"tiles": {"gelu-w8a8": {"1536x384": [{"m": 1, "tile": {"block_m": 3}}]}}}),
        json.dumps({"tiles": {"gelu-w8a8": {"1536x384": [{"m": 0, "tile": ENTRY}]}}}),
        "\xff",
    ],
)
def test_malformed_tables_are_named_and_left_out(write, text):
    write(text, encoding="latin-1")
    expected = choose("gelu-w8a8", 197, 1536, 384, 90)
    with pytest.warns(UserWarning, match=r"nvidia-test-9\.json: not a table of tiles"):
        assert tuned(197) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        assert tuned(197) == expected


@pytest.mark.parametrize(
    ("kernel", "m", "capability", "stages"),
    [
        ("gelu-w4a8", 4160, 120, 2),
        ("gelu-w4a4", 197, 120, 2),
        ("gelu-w4a8", 12608, 120, 3),
        ("gelu-w4a8", 4160, 89, 3),
        ("gelu-w8a8", 4160, 120, 3),
    ],
)
def test_small_packed_tiles_that_would_spill_have_two_stages(kernel, m, capability, stages):
    assert tiles.choose(kernel, m, 256, 128, capability, unit_n=128).stages == stages
