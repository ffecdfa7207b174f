"""timm's ResNets as networks of the project: what they compute, what they are, and who is refused."""

import copy

import pytest
import timm
import torch

from qvit import zoo
from qvit.errors import UsageError
from qvit.models.networks import read_network, read_network_config
from qvit.models.resnet import ResNet, read_resnet, read_resnet_config
from qvit.models.vit import ViT

STATISTICS = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def demo():
    source = zoo.resolve("demo_resnet")
    return zoo.load(source), source.pretrained_cfg


def test_it_computes_what_timm_computes():
    model, cfg = demo()
    images = torch.randn(3, 3, 64, 64)
    network = read_resnet(copy.deepcopy(model), cfg)
    with torch.no_grad():
        assert torch.equal(network(images), model(images))
        stages = network.stages(images)
        assert torch.equal(stages[-1], model.forward_features(images))
    assert [s.shape[1] for s in stages] == [16, 32, 64, 128]
    assert len(list(network.norms())) == 22
    assert network.config.num_classes == 24
    assert network.config.embed_dim == 128


def test_it_stays_in_eval_mode():
    network = read_resnet(*demo())
    network.train()
    assert not any(m.training for m in network.modules())


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1.814), ("resnet50", 4.089)])
def test_operations_are_those_of_the_literature(name, giga):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = read_resnet_config(model, {**STATISTICS, "input_size": (3, 224, 224)})
    assert config.operations == pytest.approx(giga * 1e9, rel=0.02)
    assert config.activations > 1e6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilenetv2_050", "not a plain ResNet"),
        ("seresnet18", "channel attention"),
        ("resnet50_gn", "is a GroupNorm"),
        ("swin_tiny_patch4_window7_224", "not a plain VisionTransformer"),
    ],
)
def test_other_networks_are_refused_by_name(name, reason):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UsageError, match=reason) as caught:
        read_network_config(model, {**STATISTICS, "architecture": name})
    assert name in str(caught.value)
    assert "resnet18" in str(caught.value)


def test_a_name_leads_to_its_kind():
    assert isinstance(read_network(*demo()), ResNet)
    source = zoo.resolve("demo_vit")
    assert isinstance(read_network(zoo.load(source), source.pretrained_cfg), ViT)
