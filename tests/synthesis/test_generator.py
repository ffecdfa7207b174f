"""The conditional generator: its shapes, what it is told, and that training it moves every term."""

import pytest
import torch

from qvit.models.config import ViTConfig
from qvit.synthesis.acq import draw_images, draw_pairs, generator_terms
from qvit.synthesis.centres import attention_centres, attention_map
from qvit.synthesis.generator import Condition, ImageGenerator, block_shapes, draw_condition
from qvit.synthesis.loop import look
from qvit.synthesis.noise import pixel_bounds
from qvit.synthesis.objective import View
from tests.synthesis.settings import convolutional, small, teacher

CPU = torch.device("cpu")
NETWORKS = {"vit": teacher, "cnn": convolutional}


def maker_of(network, seed=0, **changes):
    settings = small("acq", width=16, latent=8, batch=4, **changes)
    torch.manual_seed(seed)
    return ImageGenerator(network.config, settings), settings


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), [(64, 8, 8), (64, 16, 16), (32, 32, 32), (16, 64, 64)]),
        ((224, 224), [(64, 7, 7), (64, 14, 14), (32, 28, 28), (16, 56, 56), (16, 112, 112), (16, 224, 224)]),
        ((35, 24), [(64, 18, 12), (64, 35, 24)]),
        ((5, 9), [(64, 5, 9)]),
    ],
)  # fmt: skip
def test_blocks_double_up_to_the_image(size, expected):
    assert block_shapes(size, 64) == expected


@pytest.mark.parametrize("condition", ["none", "label", "centre"])
def test_images_are_pixels_and_follow_what_the_generator_is_told(condition):
    network = teacher()
    maker, settings = maker_of(network, condition=condition)
    draw = draw_pairs(network, settings, 3, torch.Generator().manual_seed(1))
    maker.eval()
    images = maker(draw.first, draw.condition)
    low, high = pixel_bounds(network.config, CPU)
    assert images.shape == (3, 3, 64, 64)
    assert (images >= low).all()
    assert (images <= high).all()
    told = draw.condition
    elsewhere = Condition(told.labels, 1 - told.centres)
    otherwise = Condition((told.labels + 1) % 24, told.centres)
    assert not torch.equal(maker(draw.second, told), images)
    assert torch.equal(maker(draw.first, elsewhere), images) == (condition != "centre")
    assert torch.equal(maker(draw.first, otherwise), images) == (condition == "none")


def test_in_eval_mode_each_image_is_made_by_itself():
    network = teacher()
    maker, settings = maker_of(network)
    draw = draw_pairs(network, settings, 4, torch.Generator().manual_seed(1))
    maker(draw.first, draw.condition)
    maker.eval()
    whole = maker(draw.first, draw.condition)
    one = maker(draw.first[1:2], Condition(draw.condition.labels[1:2], draw.condition.centres[1:2]))
    assert torch.allclose(whole[1:2], one, atol=1e-5)


def test_conditions_are_drawn_where_the_map_has_places():
    config = teacher().config
    drawn = draw_condition(500, config, torch.Generator().manual_seed(0), CPU)
    assert drawn.centres.min() >= 0.2
    assert drawn.centres.max() <= 0.8
    assert drawn.centres.std() == pytest.approx(0.6 / 12**0.5, rel=0.1)
    assert set(drawn.labels.tolist()) == set(range(24))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("condition", ["none", "label", "centre"])
def test_terms_are_those_of_the_condition_and_the_network(kind, condition):
    network = NETWORKS[kind]()
    maker, settings = maker_of(network, condition=condition)
    draw = draw_pairs(network, settings, 2, torch.Generator().manual_seed(1))
    expected = {"statistics" if kind == "cnn" else "attention", "classes"}
    expected |= {"pairs"} if condition != "none" else set()
    expected |= {"centres"} if condition == "centre" else set()
    expected |= {"consistency"} if condition == "centre" and kind == "cnn" else set()
    terms = generator_terms(network, maker, draw, settings)
    assert set(terms) == expected
    for name, value in terms.items():
        gradients = torch.autograd.grad(
            value, list(maker.parameters()), retain_graph=True, allow_unused=True
        )
        assert sum(g.abs().sum() for g in gradients if g is not None) > 0, name


TERMS = ("statistics", "attention", "classes", "centres", "pairs", "consistency")


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", TERMS)
def test_every_term_moves(kind, name):
    """One term at a time: alone, a short training on one draw brings each clearly down, chance of draws aside."""
    network = NETWORKS[kind]().requires_grad_(False)  # as in training; it is shared
    weights = dict.fromkeys(TERMS, 0.0) | {name: 1.0, "smoothness": 1e-9}
    maker, settings = maker_of(network, **weights)
    optimiser = torch.optim.Adam(maker.parameters(), lr=1e-2, betas=(0.5, 0.999))
    draw, seen = draw_pairs(network, settings, 4, torch.Generator().manual_seed(2)), []
    for _ in range(40):
        terms = generator_terms(network, maker, draw, settings)
        if name not in terms:
            absent = {("vit", "statistics"), ("vit", "consistency"), ("cnn", "attention")}
            assert (kind, name) in absent
            return
        optimiser.zero_grad()
        terms[name].backward()
        optimiser.step()
        seen.append(terms[name].item())
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5]), seen


def test_what_is_drawn_depends_on_its_generator_only():
    for network in (teacher(), convolutional()):
        maker, settings = maker_of(network)
        maker.eval()
        drawn = [
            draw_images(network, maker, settings, 2, torch.Generator().manual_seed(s))
            for s in (3, 3, 4)
        ]
        assert torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(drawn[0][1], drawn[1][1])
        assert not torch.equal(drawn[0][0], drawn[2][0])


def test_unconditional_images_have_the_class_that_is_seen():
    network = convolutional()
    maker, settings = maker_of(network, condition="none")
    maker.eval()
    images, labels = draw_images(network, maker, settings, 5, torch.Generator().manual_seed(3))
    assert torch.equal(labels, network(images).argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_attention_goes_where_the_generator_is_told(kind, tmp_path):
    """After a few hundred steps the centres of fresh images follow theirs."""
    from qvit.synthesis.training import trained_generator

    network = NETWORKS[kind]()
    settings = small("acq", width=32, batch=16, iterations=400)
    maker = trained_generator(network, settings, 0, tmp_path, "a run")
    draw = draw_pairs(network, settings, 64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        images = maker(draw.first, draw.condition)
        outcome = look(network, View(images, None), None, "float32")
    centres = attention_centres(attention_map(outcome, network.config))
    assert isinstance(network.config, ViTConfig) == (kind == "vit")
    both = torch.stack([centres.flatten(), draw.condition.centres.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5
