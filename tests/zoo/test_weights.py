"""Weight files: what loads, and what is refused."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from qvit import zoo
from qvit.errors import InputError
from tests.samples import write_model_folder

VIT_T = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
# The smallest plain Vision Transformer of timm's registry: 64 wide, 6 blocks, 160 pixels.
SMALL = "test_vit"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model = timm.create_model(SMALL)
    return {k: v + torch.randn_like(v) * 0.05 for k, v in model.state_dict().items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write anything as a weight file and return its path."""

    def write(content: Any, name: str = "weights.safetensors", **options: Any) -> Path:
        path = tmp_path / name
        if name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path, **options)
        return path

    return write


def load(weights: Path, name: str = SMALL) -> torch.nn.Module:
    return zoo.load(zoo.resolve(name, weights=weights))


def test_the_real_vit_tiny_equals_timms(shared: Path) -> None:
    path = shared / "models" / f"{VIT_T}.safetensors"
    model = load(path, "vit_t")
    reference = timm.create_model("vit_tiny_patch16_224").eval()
    reference.load_state_dict(load_file(path))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(images), reference(images))
    assert not model.training


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: s, id="plain"),
        pytest.param(lambda s: {"model": s, "epoch": 3}, id="deit"),
        pytest.param(lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}, id="ddp"),
        pytest.param(
            lambda s: {
                "state_dict": {k: v * 0 for k, v in s.items()},
                "state_dict_ema": s,
                "args": argparse.Namespace(lr=0.1),
            },
            id="timm-ema",
        ),
        pytest.param(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, id="compiled"),
    ],
)
def test_checkpoints_of_training_scripts_load(
    state: dict[str, torch.Tensor], save: Callable[..., Path], wrap: Any
) -> None:
    loaded = load(save(wrap(state), "weights.pth")).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".pth.tar", ".ckpt"])
def test_every_kind_of_weight_file_loads(
    state: dict[str, torch.Tensor], save: Callable[..., Path], suffix: str
) -> None:
    loaded = load(save(state, f"weights{suffix}")).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_fine_tuned_head_sets_the_number_of_classes(
    state: dict[str, torch.Tensor], save: Callable[..., Path], name: str
) -> None:
    tuned = state | {"head.weight": state["head.weight"][:7].clone(), "head.bias": torch.ones(7)}
    source = zoo.resolve(SMALL, weights=save(tuned, name))
    assert source.num_classes == source.pretrained_cfg["num_classes"] == 7
    model = zoo.load(source)
    assert torch.equal(model.state_dict()["head.bias"], torch.ones(7))


def test_half_precision_is_converted(
    state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    halved = {k: v.to(torch.bfloat16) for k, v in state.items()}
    loaded = load(save(halved)).state_dict()
    assert all(v.dtype == torch.float32 for v in loaded.values())
    assert all(torch.equal(loaded[k], halved[k].float()) for k in halved)


def test_an_original_dinov2_file_goes_through_timms_filter(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    """Its authors keep a mask token, and the class token's position in pos_embed."""
    folder = write_model_folder(
        tmp_path / "small", "vit_small_patch14_reg4_dinov2", img_size=28, depth=1
    )
    state = load_file(folder / "model.safetensors")
    original = dict(state)
    class_position = torch.randn(1, 1, 384)
    original["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    original["cls_token"] = state["cls_token"] - class_position
    original["register_tokens"] = original.pop("reg_token")
    original["mask_token"] = torch.zeros(1, 384)
    loaded = load(save(original), str(folder)).state_dict()
    assert torch.allclose(loaded["cls_token"], state["cls_token"], atol=1e-6)
    assert all(torch.equal(loaded[k], state[k]) for k in state if k != "cls_token")


def test_deit3s_names_of_the_layer_scale_are_translated(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    folder = write_model_folder(tmp_path / "deit3", "deit3_small_patch16_224", img_size=32, depth=1)
    state = load_file(folder / "model.safetensors")
    original = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in state.items()
    }
    assert original.keys() != state.keys()
    loaded = load(save({"model": original}, "deit3.pth"), str(folder)).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def corrupt(path: Path, name: str, data: bytes) -> Path:
    other = path.with_name(name)
    other.write_bytes(data)
    return other


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused_when_resolved(
    state: dict[str, torch.Tensor], save: Callable[..., Path], name: str, kept: float
) -> None:
    data = save(state, name).read_bytes()
    path = corrupt(save(state, name), f"short-{name}", data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=f"short-{name}"):
        zoo.resolve(SMALL, weights=path)


@pytest.mark.parametrize("name", ["noise.safetensors", "noise.pth", "noise.bin"])
def test_noise_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for seed in range(100):  # the unpickler raises something else on nearly each
        path.write_bytes(np.random.default_rng(seed).bytes(300))
        with pytest.raises(InputError, match=name):
            zoo.resolve(SMALL, weights=path)


class Payload:
    """What a malicious checkpoint does when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    path = save({"model": state, "extra": Payload(tmp_path / "ran")}, "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth .*would run code .*safetensors"):
        zoo.resolve(SMALL, weights=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (torch.ones(3), "no state dict"),
        ([torch.ones(3)], "no state dict"),
        ({}, "no tensors"),
        ({"teacher": {"a": torch.ones(3)}, "student": {}}, "not tensors: teacher, student"),
    ],
)
def test_files_without_a_state_dict_are_refused(
    save: Callable[..., Path], content: Any, part: str
) -> None:
    with pytest.raises(InputError, match=part):
        zoo.resolve(SMALL, weights=save(content, "odd.pth"))


def test_a_wrong_path_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"absent\.pth does not exist"):
        zoo.resolve(SMALL, weights=tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a folder"):
        zoo.resolve(SMALL, weights=tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected one of \.safetensors"):
        zoo.resolve(SMALL, weights=tmp_path / "weights.npz")


def test_keys_and_shapes_that_do_not_fit_are_named(
    state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    wrong = dict(state)
    del wrong["norm.weight"], wrong["norm.bias"]
    wrong["fc_norm.weight"] = torch.ones(64)
    wrong["blocks.0.mlp.fc1.bias"] = torch.ones(5)
    with pytest.raises(InputError) as caught:
        load(save(wrong))
    message = str(caught.value)
    assert "missing: norm.weight [64], norm.bias [64]" in message
    assert "not in the model: fc_norm.weight [64]" in message
    assert "blocks.0.mlp.fc1.bias is [5] in the file and [192] in the model" in message
    assert "global_pool" in message


def test_long_lists_of_keys_are_cut(
    state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=r"missing: .* and \d+ more"):
        load(save({k: v for k, v in state.items() if not k.startswith("blocks.")}))


def test_integers_in_place_of_floats_are_refused(
    state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    wrong = state | {"head.weight": torch.ones_like(state["head.weight"], dtype=torch.int8)}
    with pytest.raises(InputError, match=r"head.weight is torch.int8"):
        load(save(wrong))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    state: dict[str, torch.Tensor], save: Callable[..., Path], value: float
) -> None:
    wrong = state | {"blocks.1.attn.qkv.bias": torch.full((192,), value)}
    with pytest.raises(InputError, match=r"NaN or infinite values in blocks\.1\.attn\.qkv\.bias"):
        load(save(wrong))


def test_weights_of_another_image_size_are_not_interpolated(
    state: dict[str, torch.Tensor], save: Callable[..., Path]
) -> None:
    other = timm.create_model(SMALL, img_size=192).state_dict()
    with pytest.raises(InputError, match="another image size"):
        load(save(other))
