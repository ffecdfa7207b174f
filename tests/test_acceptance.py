"""What the project promises of a real model on real images. Needs ../shared; `make acceptance` runs it.

The development images (odd classes) measure agreement between executions; the validation images only hold the
bounds on accuracy. Figures with their circumstances lie in benchmarks/results.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.searching.limits import limits_of_uniform, starts_of
from qvit import pipeline, zoo
from qvit.data import DataConfig
from qvit.deployment import QuantViT
from qvit.evaluation import divergences
from qvit.evaluation.assessment import Images, assess_folder
from qvit.models.floating import Float
from qvit.models.integer import Integer
from qvit.models.simulated import Simulated
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.recipe import Recipe
from qvit.search.run import allocate
from qvit_kernels import ops
from tests.divergence import Nudged, divergence
from tests.executions import SideBySide, both

pytestmark = pytest.mark.slow

WEIGHTS = "models/vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
SCHEMES = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}


@pytest.fixture(scope="module")
def vit(shared: Path) -> ViT:
    source = zoo.resolve("vit_t", weights=shared / WEIGHTS)
    return read_model(zoo.load(source), source.pretrained_cfg)


@pytest.fixture(scope="module")
def images(shared: Path) -> Tensor:
    """100 development images: every tenth class, counted from the first odd one."""
    transform = DataConfig.from_pretrained_cfg(zoo.resolve("vit_t").pretrained_cfg).transform()
    synsets = (shared / "imagenet" / "synsets.txt").read_text().split()
    files = [next((shared / "imagenet" / "train" / s).iterdir()) for s in synsets[1::10]]
    return torch.stack([transform(Image.open(f).convert("RGB")) for f in files])


def recipe(scheme: str) -> Recipe:
    weight_bits, activation_bits = (SCHEMES | {"W3A3": (3, 3)})[scheme]
    return Recipe.preset("qvit", weight_bits=weight_bits, activation_bits=activation_bits)


def logits_of(model: ViT, run, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch, run) for batch in images.split(20)])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_equal_simulation_step_by_step(vit, images, scheme, backend):
    simulated, integer = both(vit, recipe(scheme))
    pair = SideBySide(simulated, integer)
    with torch.inference_mode(), ops.use_backend(backend):
        simulated(images[:8], pair)
    assert pair.compared == 1 + 12 * 9 + 2


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_backends_diverge_no_more_than_one_ulp_does(vit, images, scheme, backend):
    simulated, integer = both(vit, recipe(scheme))
    expected = logits_of(simulated, Simulated(), images)
    with ops.use_backend(backend):
        found = logits_of(integer, Integer(), images)
    allowed = 1.5 * divergence(expected, logits_of(simulated, Nudged(), images))
    assert allowed > 0
    assert divergence(expected, found) <= allowed
    if scheme == "W8A8":
        same = (expected.argmax(1) == found.argmax(1)).float().mean()
        assert same >= 0.98


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fused_kernels_run_the_real_model_in_the_interpreter(vit, images, scheme):
    """Two images: one takes a minute. What one ulp does to an image is measured on many."""
    simulated, integer = both(vit, recipe(scheme))
    expected = logits_of(simulated, Simulated(), images[:40])
    nudged = logits_of(simulated, Nudged(), images[:40])
    found = logits_of(integer, Integer("triton"), images[:2])
    each = [divergence(a[None], b[None]) for a, b in zip(expected, nudged, strict=True)]
    for i in range(2):
        assert divergence(expected[i : i + 1], found[i : i + 1]) <= 1.5 * max(each)


# The goals are 0.3, 1.0, 3.0 and 15; in another torch's arithmetic a few images fall otherwise (one is 0.08).
@pytest.mark.parametrize(
    ("scheme", "points"), [("W8A8", 0.4), ("W4A8", 1.3), ("W4A4", 3.0), ("W3A3", 15.0)]
)
def test_accuracy_on_the_validation_images(shared, tmp_path, scheme, points):
    source = zoo.resolve("vit_t", weights=shared / WEIGHTS)
    pipeline.quantize(source, recipe(scheme), tmp_path / "model", progress=False)
    images = Images(
        data=str(shared / "imagenet" / "val"), class_map=str(shared / "imagenet" / "synsets.txt")
    )
    found = assess_folder(tmp_path / "model", images, progress=False)
    assert found["images"] == 1300
    assert found["float"]["top1"] - found["top1"] <= points


def test_found_bits_are_far_nearer_to_the_float_model_than_uniform_ones(
    shared, vit, images, tmp_path
):
    """At the bytes and BitOps of W3A3: KL 0.23 instead of 0.80 on a thousand images."""
    source = zoo.resolve("vit_t", weights=shared / WEIGHTS)
    limits = limits_of_uniform(vit.config, 3, 3)
    found, search = allocate(source, starts_of(0, limits), limits, progress=False)
    expected = logits_of(vit, Float(), images)
    kls = []
    for name, bits in (("found", found), ("uniform", recipe("W3A3"))):
        written = pipeline.quantize(source, bits, tmp_path / name, progress=False)
        assert written["bytes"] <= limits["size"]
        model = QuantViT.from_pretrained(tmp_path / name)
        with torch.inference_mode():
            logits = torch.cat([model(some) for some in images.split(20)])
        kls.append(float(divergences(expected, logits).mean()))
    assert search["bitops"]["found"] <= limits["bitops"]
    assert kls[0] < 0.5 * kls[1]


def test_real_model_within_size_memory_and_time(shared, tmp_path, child_environment):
    out = tmp_path / "vit_t-w4a4"
    command = ["quantize", "vit_t", "--weights", str(shared / WEIGHTS), "--w", "4", "--a", "4"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "qvit", *command, "-o", str(out), "-q"],
        check=True,
        env=child_environment,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert seconds < 120
    assert peak < 2 * 2**30
    size = (out / "model.safetensors").stat().st_size
    assert size <= 0.16 * (shared / WEIGHTS).stat().st_size
    assert QuantViT.from_pretrained(out).scheme == "W4A4"
