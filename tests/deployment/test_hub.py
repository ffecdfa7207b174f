"""A quantized model from a hub: a repository is such a folder."""

import shutil
import subprocess
import sys

from qvit.deployment import QuantViT
from tests.hub import serve
from tests.support import images_for

CODE = """
import sys, torch
from qvit import QuantViT, RequirementError
model = QuantViT.from_pretrained("org/tiny-w4a4")
torch.save(model(torch.load(sys.argv[1])), sys.argv[2])
try:
    QuantViT.from_pretrained("org/absent")
except RequirementError as error:
    print(error)
"""


def test_quantized_model_from_a_hub(tiny_quantized, tmp_path, child_environment):
    import torch

    shutil.copytree(tiny_quantized, tmp_path / "hub" / "org" / "tiny-w4a4")
    model = QuantViT.from_pretrained(tiny_quantized)
    images = images_for(model.vit)
    torch.save(images, tmp_path / "images")
    with serve(tmp_path / "hub") as hub:
        environment = child_environment | hub.environment(tmp_path / "cache")
        done = subprocess.run(
            [sys.executable, "-c", CODE, tmp_path / "images", tmp_path / "logits"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert torch.equal(torch.load(tmp_path / "logits"), model(images))
    assert "no such repository" in done.stdout
    assert "--no-pretrained" not in done.stdout
