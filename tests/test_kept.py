"""Names that those who write them and those who read them share."""

from pathlib import Path

import pytest

from qvit import kept


@pytest.mark.parametrize(
    ("variant", "own", "float_"),
    [
        ("qvit-w4a8-cpu", True, False),
        ("fp32", False, True),
        ("bf16-compile", False, True),
        ("torchao-int8", False, False),
        ("tensorrt-fp16", False, False),
    ],
)
def test_whose_a_variant_is(variant, own, float_):
    assert (kept.is_own(variant), kept.is_float(variant)) == (own, float_)


def test_the_registry_has_the_same_float_variants():
    from qvit.latency.variants import FLOAT, RIVALS

    assert all(map(kept.is_float, FLOAT))
    assert not any(map(kept.is_float, RIVALS))
    assert {kept.compiled_twin(name) for name in FLOAT} < set(FLOAT)
    assert kept.is_own(kept.name_own("W3A4 mixed", "cpu"))
    assert kept.name_own("W3A4 mixed", "cpu") == "qvit-w3a4-mixed-cpu"


def test_what_lies_beside_a_model_is_found_from_either_side():
    model = Path("out/deit_s-w4a4").resolve()
    assert kept.model_beside(kept.images_beside(model)) == model
    assert kept.model_beside(model) is None
    assert kept.training_beside(model).name == "deit_s-w4a4-training"
    assert kept.rounding_beside(model).parent == model.parent
