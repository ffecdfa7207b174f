"""The game of PSAQ-ViT V2: who moves when, what the adversary seeks, and that a killed game goes on."""

import pytest
import torch

from qvit.distillation.adversary import Adversary
from qvit.distillation.game import Rules, play, prior_of, teacher_of
from qvit.distillation.progress import read_log
from qvit.errors import UsageError
from qvit.models.convolutional import ConvolutionalStudent
from qvit.models.static import with_static_quantizers
from qvit.models.vit_students import StaticStudent
from qvit.recipe import Activations, Attention, Distillation, Recipe, Static, Weights
from qvit.recipe.game import Game, game_images
from qvit.synthesis.loop import Descent, look
from qvit.synthesis.noise import draw_noise
from tests.synthesis.settings import batch_of, convolutional, teacher

CPU = torch.device("cpu")
KINDS = {"vit": teacher, "cnn": convolutional}


def student_of(network, bits=4):
    recipe = Recipe(
        weights=Weights(bits=bits, range="minmax"),
        activations=Activations(bits=bits),
        attention=Attention(bits=bits, softmax_bits=bits),
        static=Static(activations="minmax", ends=8),
    )
    if network is convolutional():
        return ConvolutionalStudent(network, recipe)
    return StaticStudent(with_static_quantizers(network, recipe))


def rules_of(**turns):
    turns = {"rounds": 3, "sample_steps": 2, "student_steps": 3, "refresh_every": 2} | turns
    return Rules(
        Game(**turns),
        game_images(batch=4, iterations=3, lr=0.05),
        Distillation.preset("psaq-v2", batch=3, lr=1e-3),
    )


def prepared(network, rules=None, **turns):
    """An adversary and its descent on noise, with a calibrated student."""
    rules = rules or rules_of(**turns)
    batch = batch_of(rules.images, 4, network=network)
    pixels = draw_noise(batch).clamp(-1, 1)
    student = student_of(network)
    student.calibrate(pixels)
    adversary = Adversary(prior_of(network)(batch, CPU), student, rules.game)
    return adversary, pixels, rules


@pytest.mark.parametrize("kind", KINDS)
def test_the_discrepancy_is_its_definition(kind):
    network = KINDS[kind]()
    adversary, pixels, _ = prepared(network, confidence=0.0)
    (view,) = adversary.views(pixels, 0.0)
    outcome = look(network, view, None, "float32")
    found = adversary.terms(pixels, [outcome])
    ours, theirs = adversary.student(view.images).logits, network_logits(network, view.images)
    slow = sum(
        abs(ours[b, c].item() - theirs[b, c].item()) for b in range(4) for c in range(24)
    ) / (4 * 24)
    assert found["discrepancy"].item() == pytest.approx(-slow, rel=1e-5)
    assert "classes" not in found
    assert ("statistics" if kind == "cnn" else "attention") in found
    assert adversary.mean == adversary.first == pytest.approx(slow, rel=1e-5)


def network_logits(network, images):
    with torch.no_grad():
        return teacher_of(network)(images).logits


def test_the_factor_keeps_the_product():
    adversary, _, _ = prepared(teacher(), decay=0.5, largest=4.0)
    assert adversary.factor == 1.0
    for value in (8.0, 4.0, 4.0):
        adversary._follow(value)
    assert adversary.mean == pytest.approx(5.0)
    assert adversary.factor == pytest.approx(8 / 5)
    for _ in range(20):
        adversary._follow(0.01)
    assert adversary.factor == 4.0


def test_images_in_which_the_teacher_sees_nothing_are_not_led_on():
    adversary, pixels, _ = prepared(teacher(), confidence=1.0)
    marked = pixels.clone().requires_grad_()
    (view,) = adversary.views(marked, 0.0)
    found = adversary.terms(marked, [look(teacher(), view, None, "float32")])
    assert found["discrepancy"] < 0
    (gradient,) = torch.autograd.grad(found["discrepancy"], marked)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_seek_what_the_student_gets_wrong(kind):
    """Sample steps alone, the student still: the discrepancy grows."""
    network = KINDS[kind]()
    rules = Rules(
        Game(confidence=0.0),
        game_images(
            batch=4, iterations=20, lr=0.05, attention=1e-9, statistics=1e-9, smoothness=0.0, shift=0, flip=0.0
        ),
        Distillation.preset("psaq-v2"),
    )  # fmt: skip
    adversary, pixels, _ = prepared(network, rules)
    before = {name: value.clone() for name, value in adversary.student.state_dict().items()}
    descent = Descent(network, adversary, pixels, rules.images)
    seen = [descent.step(i, 0.05)["discrepancy"].item() / -adversary.factor for i in range(20)]
    assert seen[-1] > 1.3 * seen[0]
    after = adversary.student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in adversary.student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_both_move_in_every_round(kind, tmp_path):
    network = KINDS[kind]()
    student = student_of(network)
    before = [w.parameter.detach().clone() for w in student.integer_weights()]
    rules = Rules(
        rules_of(student_steps=16).game,
        game_images(batch=8, iterations=10, lr=0.05),
        Distillation.preset("psaq-v2", batch=8, lr=1e-3),
    )
    found = play(network, student, rules, seed=1, folder=tmp_path, progress=False)
    assert found["rounds"] == 3
    assert found["sample_steps"] == 6
    assert found["student_steps"] == 48
    assert found["images"] == 8 + 2  # a quarter anew, once
    lowered, raised = (sum(e[name] for e in found["trace"]) for name in ("lowered", "raised"))
    assert lowered < 0.95 * raised
    assert all(entry["images_discrepancy"] < 0 for entry in found["trace"])
    terms = {
        e["images_attention" if kind == "vit" else "images_statistics"] for e in found["trace"]
    }
    assert len(terms) == 3
    after = [w.parameter for w in student.integer_weights()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert read_log(tmp_path) == found["trace"]
    terms = {"student_loss", "student_logits", "student_lr", "student_changed"}
    for entry in found["trace"]:
        assert {name for name in entry if name.startswith("student_")} == terms
        assert entry["student_loss"] > 0
        assert 0 < entry["student_changed"] < 1


def test_a_game_needs_no_labels(monkeypatch):
    from qvit.distillation import trainer

    seen, step = [], trainer.Trainer.step

    def watched(self, images, labels=None, **options):
        seen.append((labels, images.clone()))
        return step(self, images, labels, **options)

    monkeypatch.setattr(trainer.Trainer, "step", watched)
    play(teacher(), student_of(teacher()), rules_of(), seed=1, progress=False)
    assert all(labels is None for labels, _ in seen)
    # between the turns of one round the images stand still, between rounds they move
    pixels = [{tuple(image.flatten()[:8].tolist()) for image in images} for _, images in seen]
    rounds = [set.union(*pixels[i : i + 3]) for i in (0, 3, 6)]
    assert all(len(each) <= 4 for each in rounds)
    assert not rounds[0] & rounds[1]
    assert not rounds[1] & rounds[2]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_game_ends_in_the_same_bits(kind, tmp_path, monkeypatch):
    network, rules = KINDS[kind](), rules_of(rounds=4)
    whole = student_of(network)
    traces = [
        play(
            network,
            whole,
            rules,
            seed=2,
            folder=tmp_path / "whole",
            progress=False,
            save_seconds=0.0,
        )["trace"]
    ]
    from qvit.distillation import game

    turn = game._Play.turn
    for last in (1, 2):

        def killed(self, last=last):
            if self.round == last:
                self.descent.step(0, 0.1)  # what was begun and not saved is lost
                raise KilledError
            return turn(self)

        monkeypatch.setattr(game._Play, "turn", killed)
        with pytest.raises(KilledError):
            play(
                network,
                student_of(network),
                rules,
                seed=2,
                folder=tmp_path / "cut",
                progress=False,
                save_seconds=0.0,
            )
    monkeypatch.setattr(game._Play, "turn", turn)
    again = student_of(network)
    traces.append(
        play(
            network, again, rules, seed=2, folder=tmp_path / "cut", progress=False, save_seconds=0.0
        )["trace"]
    )
    assert traces[0] == traces[1]
    ours, theirs = whole.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UsageError, match="networks"):
        play(network, again, rules, seed=2, folder=tmp_path / "cut", progress=False)
    with pytest.raises(UsageError, match="seed: 2 there, 3 now"):
        play(
            network, again, rules, seed=3, folder=tmp_path / "cut", progress=False, save_seconds=0.0
        )


def test_refreshed_images_take_turns():
    from qvit.distillation.game import _Play

    rules = rules_of(refresh=0.5)
    game = _Play(teacher(), student_of(teacher()), rules, 5, None)
    game.begin()
    stays = {1: [2, 3], 2: [0, 1], 3: [2, 3]}
    for number, kept in stays.items():
        before = game.descent.pixels.detach().clone()
        game.round = 2 * number
        game._refresh()
        same = [i for i in range(4) if torch.equal(before[i], game.descent.pixels[i])]
        assert same == kept


def test_settings_that_make_no_game_are_refused():
    with pytest.raises(UsageError, match="play no game"):
        game_images(discrepancy=0.0)
    with pytest.raises(UsageError, match=r"game.rounds"):
        Game(rounds=0)
