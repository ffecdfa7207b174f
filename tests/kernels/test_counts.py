"""Work of launches: what the counted tables say of launches that they hold, and of ones that they do not."""

import pytest
import torch

from benchmarks.distil_counts import TABLE, distil, launches
from qvit_kernels import counts, tiles
from qvit_kernels.counts import extent_of, kind_of, work_of

pytest.importorskip("triton")

DEIT = "deit_s-b64-W8A8-linear_gelu_quantize-1536x384"


@pytest.fixture(scope="module")
def planned():
    return launches(90)


def test_instructions_of_a_counted_launch_are_those_of_its_row(planned):
    launch = planned[f"gemm_int8/{DEIT}/sm_90"]
    programs = 12 * 99
    steps = 3  # of 128 columns, of 384
    expected = programs * launch.warps * (2082 - 81 + steps * 81)  # of benchmarks/results/static
    found = work_of(launch, 90)
    assert found.programs == programs
    assert found.macs == programs * 128 * 128 * 384
    assert found.instructions == pytest.approx(expected, rel=0.1)
    assert found.bytes > 12608 * (384 + 1536)


def test_unpacking_costs_instructions(planned):
    def instructions(scheme: str) -> float:
        name = f"deit_s-b64-{scheme}-linear_residual-384x1536"
        (launch,) = (la for key, la in planned.items() if f"/{name}/" in key)
        return work_of(launch, 90).instructions

    assert min(instructions("W4A4"), instructions("W4A8")) > instructions("W8A8")


def test_a_kind_that_was_not_counted_is_near_one_that_was(planned):
    launch = planned[f"gemm_int8/{DEIT}/sm_90"]
    per_mac, per_value = counts._counted(90).nearest(
        ("gelu_quantize_kernel", "w8a8", "", "", "hadamard0", "256x256x64", "8")
    )
    own = counts._counted(90).nearest(kind_of(launch))
    assert 0.3 < per_mac / own[0] < 5
    assert 0.3 < per_value / own[1] < 3
    with pytest.raises(LookupError, match="no launch of"):
        counts._counted(90).nearest(("unheard_of",))
    with pytest.raises(LookupError, match=r"capability 7\.5"):
        work_of(launch, 75)


def test_planning_is_for_a_card_as_long_as_it_is_asked_for():
    device = torch.device("meta")
    with tiles.planning_for(90):
        with tiles.planning_for(89):
            assert tiles.card_of(device) == (89, None)
        assert tiles.card_of(device) == (90, None)
    assert tiles.card_of(device) == (80, None)


def test_extents_count_padding(planned):
    launch = planned["gemm_int8/deit_s-b1-W8A8-linear-1000x384/sm_90"]
    own = launch.arguments
    extent = extent_of(launch)
    assert extent.values >= own["M"] * own["N"]
    assert extent.macs == extent.values * 384


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_what_is_kept_is_what_the_table_says(capability):
    assert TABLE.is_file()
    kept = {"/".join(kind): list(pair) for kind, pair in counts._counted(capability)._known.items()}
    assert kept == distil(capability)
