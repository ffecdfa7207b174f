"""Names and local folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import get_pretrained_cfg, is_model_pretrained

from qvit import zoo
from qvit.demo.packaged import MODELS
from qvit.errors import InputError, RequirementError, UsageError
from tests.samples import write_model_folder

VIT_T = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
# The smallest plain Vision Transformer of timm's registry: 64 wide, 6 blocks, 160 pixels.
SMALL = "test_vit"


# Names


@pytest.mark.parametrize("alias", zoo.aliases())
def test_every_alias_is_pinned_to_weights_that_timm_offers(alias: str) -> None:
    source = zoo.resolve(alias)
    assert source.timm_name == zoo.aliases()[alias]
    assert source.tag
    assert is_model_pretrained(source.timm_name)
    assert source.pretrained_cfg["hf_hub_id"] == f"timm/{source.timm_name}"


def test_a_name_without_tag_takes_timms_default_and_says_which() -> None:
    source = zoo.resolve("vit_base_patch16_224")
    assert source.timm_name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert source.name == "vit_base_patch16_224"


def test_preprocessing_and_licence_travel_with_the_name() -> None:
    source = zoo.resolve("vit_t")
    assert source.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert source.license == "apache-2.0"
    assert source.num_classes == 1000


@pytest.mark.parametrize(
    ("name", "non_commercial"),
    [
        ("vit_base_patch16_224.mae", True),  # cc-by-nc-4.0
        ("aimv2_large_patch14_224.apple_pt", False),  # apple-ascl, which allows it
        ("vit_t", False),
    ],
)
def test_non_commercial_licences_are_recognised(name: str, non_commercial: bool) -> None:
    assert zoo.resolve(name).non_commercial is non_commercial


def test_random_weights_have_no_licence() -> None:
    assert zoo.resolve("vit_base_patch16_224.mae", pretrained=False).license is None


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("deit_sm", UsageError, ["Unknown model 'deit_sm'", "deit_s", "qvit models"]),
        ("vit_tiny_patch16_225", UsageError, ["vit_tiny_patch16_224"]),
        ("vit_tiny_patch16_224.augreg", UsageError, ["no weights with the tag", VIT_T]),
        # known to timm only as a deprecated spelling of another name
        ("vit_tiny_patch16_224_in21k", UsageError, ["Unknown model"]),
        ("google/vit-base", UsageError, ["hf-hub:google/vit-base", "local-dir:google/vit-base"]),
        ("", UsageError, ["empty"]),
        ("hf-hub:", UsageError, ["hf-hub:org/repo"]),
        ("weights.safetensors", UsageError, ["--weights weights.safetensors"]),
        ("./absent", InputError, ["./absent does not exist"]),
        ("local-dir:absent", InputError, ["absent does not exist"]),
        ("vit_huge_patch14_gap_224.in1k_ijepa", RequirementError, ["--weights", "fbaipublic"]),
        (SMALL, None, []),
    ],
)
def test_names_that_cannot_be_used_say_what_can(
    name: str, error: type[Exception] | None, parts: list[str]
) -> None:
    if error is None:  # a name that timm has, to prove that this test can tell
        assert zoo.resolve(name).architecture == name
        return
    with pytest.raises(error) as caught:
        zoo.resolve(name)
    for part in parts:
        assert part in str(caught.value)


def test_an_architecture_without_weights_needs_a_file_or_random_ones() -> None:
    name = next(
        n for n in timm.list_models("vit_*") if not is_model_pretrained(n) and get_pretrained_cfg(n)
    )
    with pytest.raises(RequirementError, match="--no-pretrained"):
        zoo.resolve(name)
    assert zoo.resolve(name, pretrained=False).architecture == name


def test_the_size_a_model_was_built_with_wins_over_its_tags(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL, img_size=64)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 224, 224]
    config["model_args"]["img_size"] = [64, 32]
    (folder / "config.json").write_text(json.dumps(config))
    assert zoo.resolve(str(folder)).pretrained_cfg["input_size"] == (3, 64, 32)
    config["model_args"]["in_chans"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert zoo.resolve(str(folder)).pretrained_cfg["input_size"] == (1, 64, 32)


def test_a_file_and_random_weights_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--no-pretrained"):
        zoo.resolve(SMALL, weights="weights.safetensors", pretrained=False)


def test_the_catalogue_tells_plain_vision_transformers_from_others() -> None:
    rows = {row["alias"]: row for row in zoo.catalogue()}
    assert set(rows) == {*zoo.aliases(), *MODELS}
    assert rows["vit_t"] == {
        "alias": "vit_t",
        "timm_name": VIT_T,
        "params_millions": pytest.approx(5.717416),
        "input_size": [3, 224, 224],
        "license": "apache-2.0",
        "quantizable": True,
    }
    assert rows["dinov2_s_reg"]["quantizable"]
    assert rows["deit_s_distilled"]["quantizable"]
    assert [alias for alias, row in rows.items() if not row["quantizable"]] == [
        "demo_resnet",
        "swin_t",
        "swin_s",
        "swin_b",
    ]


# Random weights


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    source = zoo.resolve(SMALL, pretrained=False)
    before = torch.random.get_rng_state()
    first, again, other = (zoo.load(source, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


# Folders in timm's format


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_loads_with_its_arguments(tmp_path: Path, prefix: str) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL, img_size=64, global_pool="avg")
    source = zoo.resolve(f"{prefix}{folder}")
    assert source.architecture == SMALL
    assert source.num_classes == 4
    assert zoo.fetch(source) == folder / "model.safetensors"
    loaded = zoo.load(source).state_dict()
    stored = load_file(folder / "model.safetensors")
    assert loaded.keys() == stored.keys()
    assert "fc_norm.weight" in loaded  # global_pool="avg" has one
    assert all(torch.equal(loaded[k], stored[k]) for k in stored)


def test_a_weight_file_replaces_the_weights_of_a_folder(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL, img_size=64)
    state = load_file(folder / "model.safetensors")
    tuned = state | {"head.weight": torch.ones(9, 64), "head.bias": torch.ones(9)}
    save_file(tuned, tmp_path / "tuned.safetensors")
    source = zoo.resolve(str(folder), weights=tmp_path / "tuned.safetensors")
    assert source.num_classes == 9
    assert torch.equal(zoo.load(source).state_dict()["head.bias"], torch.ones(9))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"architecture": "vit_unheard_of"}, "'vit_unheard_of', which this timm does not have"),
        ({"architecture": None}, "not a timm configuration"),
        ({"quantization_config": {"quant_method": "qvit"}}, "quantized already"),
        ({"pretrained_cfg": None}, "not laid out as timm writes it"),
        ({"pretrained_cfg": {"future": 1}}, "does not know: future"),
    ],
)
def test_configurations_that_cannot_be_used_are_refused(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=part):
        zoo.resolve(str(folder))


def test_model_arguments_that_timm_refuses_are_named(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["colour"] = "blue"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"colour.*Check model_args"):
        zoo.load(zoo.resolve(str(folder)))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not"):
        zoo.resolve(str(tmp_path))


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        zoo.resolve(str(tmp_path))
    folder = write_model_folder(tmp_path / "mine", SMALL)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has none of model\.safetensors"):
        zoo.resolve(str(folder))
    assert zoo.load(zoo.resolve(str(folder), pretrained=False))


def test_an_alias_wins_over_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_folder(tmp_path / "mine", SMALL)
    shutil.move(folder, tmp_path / "vit_t")
    monkeypatch.chdir(tmp_path)
    assert zoo.resolve("vit_t").timm_name == VIT_T
    assert zoo.resolve("./vit_t").architecture == SMALL
