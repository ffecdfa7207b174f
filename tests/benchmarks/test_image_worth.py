"""What an image is worth: the numbers of a pass, and the error that rounding leaves in a Linear's output."""

import math

import pytest
import torch

from benchmarks.image_worth import STATISTICS, distance, table
from benchmarks.looking import Looking, class_share, entropy, find_moments, look, output_error
from qvit import zoo
from qvit.models.floating import Float
from qvit.models.timm_import import read_model


@pytest.fixture(scope="module")
def vit():
    """The demo ViT, float."""
    source = zoo.resolve("demo_vit")
    return read_model(zoo.load(source), source.pretrained_cfg)


@pytest.fixture(scope="module")
def images():
    """Three images of noise."""
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_entropy_and_share_of_a_known_attention():
    alike = torch.full((1, 1, 4, 4), 0.25)
    assert entropy(alike) == pytest.approx(math.log(4))
    sharp = torch.eye(4)[None, None]
    assert entropy(sharp) == 0.0
    to_class = torch.tensor([[0.0, 0.5, 0.5], [0.9, 0.1, 0.0], [0.7, 0.0, 0.3]])
    assert class_share(to_class[None, None]) == pytest.approx(
        0.8
    )  # not from the class token, nor to patches


def test_looking_changes_nothing_and_norms_are_the_streams(vit, images):
    found = look(vit, images)
    with torch.no_grad():
        x = Float().tokens(images, vit)
        x = vit.blocks[0](x, Float())
        listening = Looking(vit, lambda to, x: None)
        assert torch.equal(vit(images, listening), vit(images, Float()))
    assert found["class_norm"][0] == pytest.approx(float(x[:, 0].norm(dim=-1).mean()), rel=1e-5)
    assert found["patch_norm"][0] == pytest.approx(float(x[:, 1:].norm(dim=-1).mean()), rel=1e-5)
    assert {name: len(values) for name, values in found.items()} == {
        "range": 4 * 6,
        "patch_norm": 6,
        "class_norm": 6,
        "attention_entropy": 6,
        "class_share": 6,
    }


def test_error_by_moments_is_the_mean_squared_error_of_the_output(vit, images):
    dense = vit.blocks[2].mlp.fc2
    moments = find_moments(vit, images)
    assert vit.head not in moments
    assert len(moments) == 4 * 6
    change = 0.01 * torch.randn(dense.weight.shape, generator=torch.Generator().manual_seed(1))
    heard = []

    class Listening(Float):
        def gelu(self, h, mlp):
            heard.append(super().gelu(h, mlp))
            return heard[-1]

    with torch.no_grad():
        vit(images, Listening())
    direct = (heard[2] @ change.T).square().sum(-1).mean()
    assert output_error(change, moments[dense]) == pytest.approx(float(direct), rel=1e-4)


def test_twice_too_large_is_as_far_as_twice_too_small():
    assert distance([2.0, 0.5], [1.0, 1.0]) == pytest.approx(2.0)
    assert distance([3.0, 5.0], [3.0, 5.0]) == pytest.approx(1.0)


def test_table_has_a_row_a_kind_over_its_seeds():
    def cell(kind, seed, factor):
        places = {name: [1.0, 2.0] for name in STATISTICS}
        seen = {name: [factor * v for v in values] for name, values in places.items()}
        rounding = {"W4A4, damping 0.3": {"errors": [0.5, 0.5], "kl": 0.1 * factor}}
        told = {"confidence": 0.5, "total_variation": 0.2, "statistics": seen, "references": places}
        return {"kind": kind, "seed": seed, **told, "rounding": rounding}

    lines = table([cell("noise", 0, 2.0), cell("noise", 1, 0.5), cell("real", 0, 1.0)]).splitlines()
    seen = "0.50 | 0.20 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00"
    assert lines[2] == f"| real | {seen} | - | - | 0.50 | 0.100 | - | - |"
    assert lines[3].startswith("| noise | 0.50 | 0.20 | 2.00 |")
    assert lines[3].endswith("| - | - | 0.50 | 0.200, 0.050 | - | - |")
    assert len(lines) == 4
