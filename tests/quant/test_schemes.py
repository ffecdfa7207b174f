import pytest

from qvit.quant.schemes import Granularity, Mode, Scheme


@pytest.mark.parametrize(
    ("bits", "symmetric", "codes"),
    [(4, True, (-8, 7)), (8, True, (-127, 127)), (4, False, (0, 15)), (2, True, (-2, 1))],
)
def test_codes_of_a_scheme(bits, symmetric, codes):
    scheme = Scheme(bits=bits, granularity=Granularity.TOKEN, symmetric=symmetric)
    assert scheme.codes == codes


@pytest.mark.parametrize(("bits", "prefix", "largest"), [(8, 0, 127), (3, 0, 4), (3, 1, 127)])
def test_largest_code(bits, prefix, largest):
    assert Scheme(bits=bits, granularity=Granularity.TOKEN, prefix=prefix).largest == largest


@pytest.mark.parametrize(
    "changes",
    [{"bits": 8}, {"prefix": -1}, {"granularity": Granularity.CHANNEL, "mode": Mode.STATIC}],
)
def test_a_prefix_of_8_bits_is_for_dynamic_scales_of_fewer(changes):
    with pytest.raises(ValueError, match="belong to dynamic scales of fewer bits"):
        Scheme(**{"bits": 3, "granularity": Granularity.TOKEN, "prefix": 1, **changes})


def test_group_size_belongs_to_group_granularity():
    with pytest.raises(ValueError, match="belongs to granularity 'group'"):
        Scheme(bits=4, granularity=Granularity.TOKEN, group=64)
    with pytest.raises(ValueError, match="belongs to granularity 'group'"):
        Scheme(bits=4, granularity=Granularity.GROUP)


def test_dynamic_channels_are_refused():
    with pytest.raises(ValueError, match="cannot be dynamic"):
        Scheme(bits=8, granularity=Granularity.CHANNEL)
    Scheme(bits=8, granularity=Granularity.CHANNEL, mode=Mode.STATIC)


def test_static_tokens_are_refused():
    with pytest.raises(ValueError, match="cannot be static"):
        Scheme(bits=8, granularity=Granularity.TOKEN, mode=Mode.STATIC)
