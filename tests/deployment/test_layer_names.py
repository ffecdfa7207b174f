from qvit.deployment.layer_names import shorten

KNOWN = [f"blocks.{i}.{name}" for i in range(12) for name in ("attn.qkv", "mlp.fc2")] + ["head"]


def test_all_blocks_are_a_star():
    assert shorten(KNOWN, KNOWN) == ["blocks.*.attn.qkv", "blocks.*.mlp.fc2", "head"]


def test_some_blocks_are_named():
    names = [f"blocks.{i}.mlp.fc2" for i in (0, 1, 2, 5, 10, 11)]
    assert shorten(["head", *names], KNOWN) == ["head", "blocks.0-2,5,10-11.mlp.fc2"]
