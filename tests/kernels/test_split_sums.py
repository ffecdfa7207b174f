"""Products whose sums some programs share: the same bits, memory left at zero, and when it is done at all."""

import pytest
import torch

from qvit_kernels import composed, gemm_plans, split_memory, tiles
from qvit_kernels.tiles import Tile, choose
from tests.kernels.products import KINDS, Product, check_linear, product, run


@pytest.fixture(autouse=True)
def fresh_memory(monkeypatch):
    """Also: whatever a launch leaves behind must be zero."""
    memory = {}
    monkeypatch.setattr(split_memory, "_of_process", memory)
    yield memory
    for parts in memory.values():
        assert all(not part.any() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 16, 17, 63, 197])
@pytest.mark.parametrize("splits", [2, 3, 6])
def test_any_number_of_parts(kind, m, splits, fresh_memory):
    operands = product(kind, m, 72, 384, width=0 if kind == "w8a8" else 32)
    check_linear(operands, torch.randn(72), Tile(16, 64, 64, 4, 3, splits))
    assert fresh_memory


@pytest.mark.parametrize("kind", KINDS)
def test_packed_codes_without_multipliers(kind):
    check_linear(product(kind, 17, 40, 512), None, Tile(32, 64, 128, 4, 2, 4))


def test_static_scale():
    check_linear(product("w8a8", 17, 40, 256, static=True), None, Tile(32, 64, 64, 4, 2, 2))


@pytest.mark.parametrize("value", [-128, 127])
def test_largest_sums(value):
    """The whole sum has more bits than fp32, its parts have not: they must not be rounded one by one."""
    x, scale, w, w_scale, _ = product("w8a8", 5, 24, 3072)
    check_linear(
        Product(x.fill_(value), scale, w.fill_(127), w_scale), None, Tile(16, 64, 64, 4, 3, 8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_is_added_once(dtype):
    operands = product("w4a8", 33, 96, 384, width=32)
    residual, bias = torch.randn(33, 96).to(dtype), torch.randn(96)
    tile = Tile(16, 64, 64, 4, 3, 3)
    planned = gemm_plans.plan_linear(*operands.surrounded(), bias, residual, tile=tile)
    assert torch.equal(run(planned), composed.linear_residual(*operands, bias, residual))


def test_gelu_is_that_of_the_sum():
    operands, tile = product("w8a8", 17, 64, 256), Tile(16, 64, 64, 4, 3, 4)
    y = run(gemm_plans.plan_linear(*operands, None, approximate="none", tile=tile))
    whole = run(
        gemm_plans.plan_linear(*operands, None, approximate="none", tile=Tile(16, 64, 64, 4, 3))
    )
    assert torch.equal(y, whole)


def test_launches_follow_each_other_in_one_memory(fresh_memory):
    """The second finds zeros; a larger one gets more; a third, smaller, takes what there is."""
    sizes = []
    for m in (17, 80, 17):
        check_linear(product("w8a8", m, 72, 256), None, Tile(16, 64, 64, 4, 3, 2))
        ((sums, _),) = fresh_memory.values()
        sizes.append(sums.numel())
    assert sizes == [2 * 2 * 16 * 64, 5 * 2 * 16 * 64, 5 * 2 * 16 * 64]


def test_a_capture_has_memory_of_its_own(fresh_memory):
    operands = product("w8a8", 17, 72, 256)
    with split_memory.own_split_memory():
        check_linear(operands, None, Tile(16, 64, 64, 4, 3, 2))
    assert not fresh_memory


def test_a_captured_stream_without_memory_of_its_own_does_not_split(monkeypatch):
    """Two graphs may be replayed side by side."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda = torch.device("cuda", 0)
    assert not split_memory.may_split(cuda)
    with split_memory.own_split_memory():
        assert split_memory.may_split(cuda)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert split_memory.may_split(cuda)


@pytest.mark.parametrize(("groups", "k", "splits"), [(3, 384, 3), (1, 384, 4), (1, 96, 3)])
def test_parts_that_are_no_whole_steps_or_would_reorder_floats_are_refused(groups, k, splits):
    operands = product("w8a8", 17, 64, k, groups=groups)
    with pytest.raises(ValueError, match="cannot share"):
        gemm_plans.plan_linear(*operands, None, tile=Tile(16, 64, 64, 4, 3, splits))


def test_rule_splits_long_sums_of_few_tiles():
    """fc2 of DeiT-S and DeiT-B for one image; not what fills the card, not what is short, not unasked."""
    small = choose("linear-w8a8", 197, 384, 1536, 90, may_split=True)
    assert (small.block_m, small.block_n, small.splits) == (64, 64, 4)
    assert choose("linear-w4a8", 197, 768, 3072, 90, may_split=True).splits == 2
    assert choose("linear-w8a8", 197, 384, 1536, 90).splits == 1
    assert choose("linear-w8a8", 197, 384, 384, 90, may_split=True).splits == 1
    assert choose("linear-w8a8", 12608, 384, 1536, 90, may_split=True).splits == 1
    for m in (0, 1, 17, 63, 197, 394):
        for k in (100, 1024, 1536, 3072, 4096):
            tile = choose("linear-w8a8", m, 384, k, 90, may_split=True)
            assert tiles.divides(tile, k, may_split=True)
            assert tile.block_m < 2 * max(m, 16)


def test_ops_split_by_themselves(fresh_memory):
    """By the rule, for the card that the interpreter stands for."""
    check_linear(product("w8a8", 17, 24, 1536), torch.randn(24))
    assert fresh_memory
