import copy
import json
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvit.deployment import QuantViT, checkpoint, storage
from qvit.deployment.bit_packing import pack_bits
from qvit.errors import InputError, UsageError
from qvit_kernels import registration
from tests.support import images_for


@pytest.fixture
def folder(tiny_quantized: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(tiny_quantized, tmp_path / "copy")


def edit_config(folder: Path, change) -> None:
    path = folder / checkpoint.CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, change) -> None:
    path = folder / storage.WEIGHTS
    state = load_file(path)
    change(state)
    save_file(state, path)


def refusal(folder: Path) -> str:
    """Both readers give the same message."""
    with pytest.raises(InputError) as error:
        checkpoint.load(folder)
    with pytest.raises(InputError) as described:
        checkpoint.describe(folder)
    assert str(described.value) == str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_folder_holds_what_it_promises(tiny_quantized):
    names = {p.name for p in tiny_quantized.iterdir()}
    assert names >= {"model.safetensors", "config.json", "recipe.yaml", "run.json", "README.md"}
    dtypes = {str(t.dtype) for t in load_file(tiny_quantized / "model.safetensors").values()}
    assert dtypes == {"torch.uint8", "torch.float32"}
    config = json.loads((tiny_quantized / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["quantization_config"]["format_version"] == 3
    assert "QuantViT.from_pretrained" in (tiny_quantized / "README.md").read_text()


def test_description_needs_no_weights(tiny_quantized):
    found = checkpoint.describe(tiny_quantized)
    assert found["scheme"] == "W4A4"
    assert found["license"] == "apache-2.0"
    rows = {name: row for row in found["bits"] for name in row["modules"]}
    assert rows["blocks.*.attn.qkv"]["weight_bits"] == 4
    assert rows["blocks.*.attn.proj"]["input_bits"] == 4
    assert rows["blocks.*.attn"]["softmax_bits"] == 8


def test_unknown_format_version_names_both(folder):
    edit_config(folder, lambda c: c["quantization_config"].update(format_version=7))
    assert "format version 7" in (message := refusal(folder))
    assert "reads version 3" in message


def test_foreign_folder_is_refused(folder):
    edit_config(folder, lambda c: c.pop("quantization_config"))
    assert "does not describe a model quantized by qvit" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"has no {name}" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_broken_configuration(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(folder)


def test_configuration_of_another_shape(folder):
    edit_config(folder, lambda c: c["quantization_config"]["model"].pop("depth"))
    assert "depth" in refusal(folder)


def test_missing_tensor_is_named(folder):
    edit_weights(folder, lambda s: s.pop("blocks.0.attn.qkv.bias"))
    assert "lacks blocks.0.attn.qkv.bias" in refusal(folder)


def test_unexpected_tensor_is_named(folder):
    edit_weights(folder, lambda s: s.update(extra=torch.zeros(1)))
    assert "has unexpected extra" in refusal(folder)


def test_wrong_shape_is_named(folder):
    edit_weights(folder, lambda s: s.update({"head.bias": torch.zeros(9)}))
    assert "head.bias is torch.float32 [9]" in refusal(folder)


def test_wrong_dtype_is_named(folder):
    edit_weights(folder, lambda s: s.update({"head.bias": s["head.bias"].half()}))
    assert "head.bias is F16 [6]" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated or corrupt" in refusal(folder)


def test_missing_folder_names_the_command(tmp_path):
    with pytest.raises(InputError, match="qvit quantize MODEL"):
        checkpoint.describe(tmp_path / "absent")


def test_model_loads_without_the_float_weights(tiny_quantized, tmp_path):
    alone = shutil.copytree(tiny_quantized, tmp_path / "alone")
    for name in ("run.json", "recipe.yaml", "README.md"):
        (alone / name).unlink()
    models = [QuantViT.from_pretrained(f) for f in (tiny_quantized, alone)]
    images = images_for(models[0].vit)
    assert torch.equal(models[0](images), models[1](images))


def test_model_behaves(tiny_quantized):
    model = QuantViT.from_pretrained(tiny_quantized)
    images = images_for(model.vit)
    logits = model(images)
    assert logits.shape == (3, 6)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert model.forward_features(images).shape == (3, 17, 64)
    assert model.scheme == "W4A4"
    assert model.num_classes == 6
    # each image alone gives what it gives in a batch
    assert torch.equal(torch.cat([model(i[None]) for i in images]), logits)


def test_transform_belongs_to_the_model(tiny_quantized):
    from PIL import Image

    model = QuantViT.from_pretrained(tiny_quantized)
    image = model.transform()(Image.new("RGB", (50, 40), (255, 0, 0)))
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image[:, 16, 16], torch.tensor([1.0, -1.0, -1.0]))
    assert model(image[None]).shape == (1, 6)


def test_model_refuses_what_it_cannot_do(tiny_quantized):
    model = QuantViT.from_pretrained(tiny_quantized)
    with pytest.raises(ValueError, match=r"must be \[B, 3, 32, 32\], got \[1, 3, 64, 64\]"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(TypeError, match="normalised floats"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(UsageError, match="cannot be trained"):
        model.train()
    with pytest.raises(UsageError, match="unknown backend"):
        QuantViT.from_pretrained(tiny_quantized, backend="gpu")


def test_backends_agree_and_are_what_was_asked_for(tiny_quantized, monkeypatch):
    ran = set()
    for implementations in registration.IMPLEMENTATIONS.values():
        for name, function in list(implementations.items()):
            spy = lambda *a, name=name, function=function: ran.add(name) or function(*a)  # noqa: E731
            monkeypatch.setitem(implementations, name, spy)
    models = {b: QuantViT.from_pretrained(tiny_quantized, backend=b) for b in ("cpu", "reference")}
    images = images_for(models["cpu"].vit)
    logits = {}
    for name, model in models.items():
        ran.clear()
        logits[name] = model(images)
        assert ran == {name}
    torch.testing.assert_close(logits["cpu"], logits["reference"], rtol=1e-4, atol=1e-4)


def linear_named(config, name):
    groups = config["quantization_config"]["tensors"]["linears"]
    return next(g["scheme"] for g in groups if any(t.endswith(name) for t in g["targets"]))


NOT_EXECUTABLE = {
    "static input": lambda c: linear_named(c, "fc1")["input"].update(mode="static"),
    "affine input": lambda c: linear_named(c, "fc1")["input"].update(symmetric=False),
    "input per tensor": lambda c: linear_named(c, "fc1")["input"].update(granularity="tensor"),
    "prefix of patches": lambda c: linear_named(c, "fc1")["input"].update(prefix=2),
    "prefix of the head": lambda c: linear_named(c, "head")["input"].update(prefix=1),
    "prefix of Q": lambda c: attention_of(c)["qkv"].update(prefix=1),
    "40 bits": lambda c: linear_named(c, "fc1")["input"].update(bits=40),
    "group that does not divide": lambda c: linear_named(c, "fc2")["input"].update(group=7),
    "bits of heads of fc1": lambda c: linear_named(c, "fc1")["weight"].update(rows=[4, 3]),
    "bits of three heads": lambda c: linear_named(c, "attn.proj")["weight"].update(
        columns=[4, 3, 4]
    ),
    "9 bits of a head": lambda c: linear_named(c, "attn.proj")["weight"].update(
        bits=9, columns=[4, 9]
    ),
    "words of heads": lambda c: linear_named(c, "attn.proj")["weight"].update(columns=["4", "3"]),
    "rows of proj": lambda c: linear_named(c, "attn.proj")["weight"].update(rows=[4, 3]),
    "bits of heads of an input": lambda c: linear_named(c, "attn.proj")["input"].update(
        columns=[4, 3]
    ),
    "groups of two heads": lambda c: linear_named(c, "attn.proj")["weight"].update(
        columns=[4, 3], group=64
    ),
    "block that does not divide": lambda c: linear_named(c, "fc1").update(transform=7),
    "transformed proj": lambda c: linear_named(c, "proj").update(transform=16),
    "one softmax bit": lambda c: attention_of(c).update(softmax_bits=1),
    "affine qkv": lambda c: attention_of(c)["qkv"].update(symmetric=False),
    "pooling": lambda c: c["quantization_config"]["model"].update(global_pool="foo"),
    "gelu": lambda c: c["quantization_config"]["model"].update(gelu="quick"),
    "residual": lambda c: c["quantization_config"]["tensors"].update(residual="load"),
    "depth": lambda c: c["quantization_config"]["model"].update(depth=3),
    "boundless depth": lambda c: c["quantization_config"]["model"].update(depth=10**12),
    "no patch": lambda c: c["quantization_config"]["model"].update(patch_size=[]),
    "zero std": lambda c: c["quantization_config"]["model"].update(std=[0.0, 0.0, 0.0]),
    "negative epsilon": lambda c: c["quantization_config"]["model"].update(norm_eps=-5.0),
    "mean of no pixels": lambda c: c["quantization_config"]["model"].update(mean=[9.0, 9.0, 9.0]),
    "other classes": lambda c: c.update(num_classes=7),
}


def attention_of(config):
    return config["quantization_config"]["tensors"]["attentions"][0]["scheme"]


@pytest.mark.parametrize("change", NOT_EXECUTABLE)
def test_scheme_that_would_not_be_executed_is_refused(folder, change):
    edit_config(folder, NOT_EXECUTABLE[change])
    assert "does not describe a model" in refusal(folder)


def test_tokens_of_8_bits_before_the_patches_are_what_the_folder_says(folder):
    def give_prefix(config):
        groups = config["quantization_config"]["tensors"]["linears"]
        shared = next(g for g in groups if any("fc1" in t for t in g["targets"]))  # with qkv
        shared["scheme"]["input"].update(prefix=1)

    edit_config(folder, give_prefix)
    model, _ = checkpoint.load(folder)
    for name, count in (("mlp.fc1", 1), ("attn.qkv", 1), ("mlp.fc2", 0)):
        assert model.get_submodule(f"blocks.0.{name}").scheme.input.prefix == count
    rows = [row for row in checkpoint.describe(folder)["bits"] if "input_bits" in row]
    told = {name: row["input_prefix"] for row in rows for name in row["modules"]}
    assert (told["blocks.*.mlp.fc1"], told["blocks.*.mlp.fc2"], told["head"]) == (1, 0, 0)


def test_codes_of_other_bits_are_refused_by_their_number(folder):
    edit_config(folder, lambda c: linear_named(c, "fc1")["weight"].update(bits=3))
    assert "weight_packed is torch.uint8 [6144], and config.json asks for" in refusal(folder)


BROKEN_PREPROCESSING = {
    "no object": lambda c: c.update(pretrained_cfg="x"),
    "size": lambda c: c["pretrained_cfg"].update(input_size="x"),
    "mean": lambda c: c["pretrained_cfg"].update(mean=5),
    "interpolation": lambda c: c["pretrained_cfg"].update(interpolation="sharp"),
    "crop": lambda c: c["pretrained_cfg"].update(crop_pct="x"),
}


@pytest.mark.parametrize("change", BROKEN_PREPROCESSING)
def test_broken_preprocessing_is_refused(folder, change):
    edit_config(folder, BROKEN_PREPROCESSING[change])
    assert "pretrained_cfg" in refusal(folder)


@pytest.mark.parametrize("source", [5, {"weights": "x"}, {"weights": {"path": 3}}])
def test_damaged_provenance_is_refused_where_it_is_read(folder, source):
    (folder / "run.json").write_text(json.dumps({"source": source}))
    with pytest.raises(InputError, match=r"run\.json does not say where"):
        checkpoint.describe(folder)
    QuantViT.from_pretrained(folder)


def test_damaged_configuration_costs_no_memory(folder):
    edit_config(folder, lambda c: c["quantization_config"]["model"].update(num_heads=10**7))
    start = time.perf_counter()
    refusal(folder)
    assert time.perf_counter() - start < 5


def test_values_that_are_not_finite_are_refused(folder):
    edit_weights(folder, lambda s: s["blocks.0.mlp.fc1.weight_scale"].fill_(float("nan")))
    with pytest.raises(InputError, match="weight_scale is not finite"):
        checkpoint.load(folder)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_model_compiles_whole_and_exports(tiny_quantized, backend):
    model = QuantViT.from_pretrained(tiny_quantized, backend=backend)
    images = images_for(model.vit)
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), expected)
    exported = torch.export.export(model, (images,)).module()
    assert torch.equal(exported(images), expected)


def test_logits_can_feed_a_trained_head(tiny_quantized):
    model = QuantViT.from_pretrained(tiny_quantized)
    probe = torch.nn.Linear(6, 2)
    probe(model(images_for(model.vit))).sum().backward()
    assert probe.weight.grad is not None


def test_copies_and_threads(tiny_quantized):
    model = QuantViT.from_pretrained(tiny_quantized)
    images = images_for(model.vit)
    expected = model(images)
    assert torch.equal(copy.deepcopy(model)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)  # noqa: S301 - our own
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(r, expected) for r in pool.map(model, [images] * 8))


@pytest.mark.parametrize("value", [0, -16])
def test_multipliers_that_leave_eight_bits_are_refused(folder, value):
    """Those of 4-bit weights take five bits, which hold -16 to 15."""
    multiplier = torch.ones(256, 4, dtype=torch.int8)
    multiplier[3, 1] = value
    edit_weights(
        folder,
        lambda s: s.update({"blocks.0.mlp.fc1.weight_multiplier_packed": pack_bits(multiplier, 5)}),
    )
    with pytest.raises(InputError, match="multipliers beyond 1 to 15"):
        checkpoint.load(folder)
