"""Float models under measurement, by alias; the ViT-Tiny's weights are a file beside the tree."""

from functools import lru_cache

from benchmarks.classes import SHARED
from qvit import zoo
from qvit.models.timm_import import read_model
from qvit.models.vit import ViT
from qvit.zoo import Source

VIT_TINY, DEMO = "vit_t", "demo_vit"
_WEIGHTS = SHARED / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"


def source(name: str = VIT_TINY) -> Source:
    """A model with its weights."""
    return zoo.resolve(name, weights=_WEIGHTS if name == VIT_TINY else None)


@lru_cache(maxsize=1)
def float_vit(name: str = VIT_TINY) -> ViT:
    """The same, read; to be left as it is."""
    found = source(name)
    return read_model(zoo.load(found), found.pretrained_cfg)
