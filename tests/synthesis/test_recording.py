"""What is recorded is what the model computed, for every kind of prefix."""

import dataclasses

import pytest
import torch

from qvit.models.floating import Float
from qvit.synthesis.recording import BlockRecord, Recording
from tests.support import float_vit, images_for, timm_vit

SHAPES = ["plain", "average pooling, no class token", "registers", "distilled", "QK-norm"]


def watch(timm_model, images):
    """Attention of timm's own blocks, from their own layers: q, k, and softmax(qk)v, [B, H, T, d]."""
    seen = []

    def note(module, arguments, _):
        (x,) = arguments[:1]
        batch, count, _ = x.shape
        qkv = module.qkv(x).reshape(batch, count, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = module.q_norm(q), module.k_norm(k)
        seen.append((q, k, (q @ k.transpose(-1, -2) * module.scale).softmax(-1) @ v))

    for block in timm_model.blocks:
        block.attn.register_forward_hook(note)
    timm_model(images)
    return seen


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_records_are_those_of_timm(shape):
    vit = float_vit(shape)
    images = images_for(vit)
    run = Recording(vit.config)
    logits = vit(images, run)
    assert torch.equal(logits, vit(images, Float()))
    seen = watch(timm_vit(shape), images)
    assert len(run.records) == len(seen) == vit.config.depth
    first = vit.config.num_prefix_tokens
    patches = vit.config.num_patches
    for record, (q, k, output) in zip(run.records, seen, strict=True):
        scores = (q @ k.transpose(-1, -2))[:, :, first:, first:]
        assert scores.shape[-2:] == (patches, patches)
        assert torch.allclose(record.scores(), scores, atol=1e-4)
        assert torch.allclose(record.features(), output.mean(1)[:, first:], atol=1e-5)
        whole = (q @ k.transpose(-1, -2) * record.softmax_scale).softmax(-1)
        assert torch.allclose(record.maps(), whole, atol=1e-5)
        wanted = whole[:, :, 0, first:] if first else whole.mean(2)
        assert torch.allclose(record.attention_to_patches(), wanted, atol=1e-5)


@torch.no_grad()
def test_registers_alone_are_not_taken_for_the_class_token():
    """As in timm's vit_*_reg4_gap: four tokens before the patches, none of which anything is read from."""
    config = dataclasses.replace(float_vit("registers").config, class_token=False)
    q, k = torch.randn(2, 2, config.num_heads, config.num_prefix_tokens + 9, 8)
    run = Recording(config)
    assert run.prefix == config.reg_tokens > 0
    record = BlockRecord(q, k, q, run.prefix, run.class_token, 0.3)
    weights = (q @ k.transpose(-1, -2) * 0.3).softmax(-1)
    wanted = weights[:, :, run.prefix :, run.prefix :].mean(2)
    torch.testing.assert_close(record.attention_to_patches(), wanted)


def test_everything_recorded_is_differentiable():
    vit = float_vit("registers").requires_grad_(False)
    images = images_for(vit).requires_grad_()
    for name in ("scores", "features", "maps", "attention_to_patches"):
        run = Recording(vit.config)
        vit(images, run)
        (gradient,) = torch.autograd.grad(getattr(run.records[0], name)().square().sum(), images)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("shape", ["plain", "registers", "average pooling, no class token"])
@torch.no_grad()
def test_kept_patches_are_computed_on_alone(shape):
    """All patches in another order change nothing in sum; some of them are what a shorter sequence would be."""
    vit = float_vit(shape)
    images = images_for(vit, 2)
    every = torch.arange(vit.config.num_patches).expand(2, -1)
    assert torch.allclose(vit(images, Float(), every.flip(1)), vit(images, Float()), atol=1e-5)
    kept = torch.tensor([[0, 3, 5], [1, 2, 15]])
    run = Recording(vit.config)
    some = vit(images, run, kept)
    assert run.records[0].scores().shape[-2:] == (3, 3)
    blanked = images.clone()
    shown = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, kept, value=True).view(2, 1, 4, 4)
    hidden = ~shown.repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images)
    blanked[hidden] = 7.0
    assert torch.equal(vit(blanked, Float(), kept), some)
    assert not torch.allclose(vit(blanked, Float()), vit(images, Float()))
