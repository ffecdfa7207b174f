import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit.errors import UsageError
from qvit.models.plan import name_scheme, plan_scheme
from qvit.models.timm_import import read_config
from qvit.quant.schemes import Granularity, ModelScheme
from qvit.recipe import Recipe
from tests.support import STATISTICS, timm_vit


def scheme(recipe: Recipe, **changes) -> ModelScheme:
    return plan_scheme(read_config(timm_vit(**changes), STATISTICS), recipe)


def test_everything_is_quantized():
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    plan = scheme(recipe)
    assert len(plan.linears) == 2 + 4 * 2
    ends = {"patch_embed.proj", "head"}
    bits = {n: (s.weight.bits, s.input.bits) for n, s in plan.linears.items()}
    assert {bits.pop(name) for name in ends} == {(8, 8)}
    assert set(bits.values()) == {(4, 4)}


def test_groups_of_proj_are_whole_heads():
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    for heads, head_dim, expected in ((6, 64, 128), (3, 64, 64), (4, 80, 80), (2, 16, 32)):
        plan = scheme(recipe, embed_dim=heads * head_dim, num_heads=heads, depth=1)
        assert plan.linears["blocks.0.attn.proj"].input.group == expected


def test_what_layer_norms_hand_on_may_have_groups():
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4)
    plan = scheme(recipe.override(["activations.norm_group=64"]), embed_dim=128, num_heads=2)
    grouped = {name for name, linear in plan.linears.items() if linear.input.group == 64}
    blocks = {f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "mlp.fc1")}
    assert grouped == {"head", *blocks}


def planned(shape: str, *settings: str) -> ModelScheme:
    recipe = Recipe.preset("qvit", weight_bits=3, activation_bits=3).override(settings)
    return plan_scheme(read_config(timm_vit(shape), STATISTICS), recipe)


@pytest.mark.parametrize(("shape", "count"), [
    ("plain", 1), ("distilled", 2), ("registers", 5), ("average pooling, no class token", 0),
])  # fmt: skip
def test_tokens_before_the_patches_have_8_bits_in_blocks(shape, count):
    plan = planned(shape)
    found = {name: linear.input.prefix for name, linear in plan.linears.items()}
    assert all(found.pop(name, 0) == 0 for name in ("patch_embed.proj", "head", "head_dist"))
    assert len(found) == 8
    assert set(found.values()) == {count}
    assert ModelScheme.from_dict(plan.to_dict()) == plan


def test_what_has_8_bits_has_no_prefix_of_8_bits():
    plan = planned("plain", "layers.blocks.*.mlp.fc1=A8", "layers.head=A3")
    assert plan.linears["blocks.0.mlp.fc1"].input.prefix == 0
    assert plan.linears["blocks.0.mlp.fc2"].input.prefix == 1
    assert plan.linears["head"].input.prefix == 0  # it reads one token, which the bits are for


def test_a_scheme_without_the_field_has_no_prefix():
    plan = planned("plain", "activations.prefix_bits=0")
    values = plan.to_dict()
    for entry in values["linears"]:
        del entry["scheme"]["input"]["prefix"], entry["scheme"]["weight"]["prefix"]
    for entry in values["attentions"]:
        del entry["scheme"]["qkv"]["prefix"]
    assert ModelScheme.from_dict(values) == plan


def test_a_model_without_classifier_takes_the_default_of_any():
    recipe = Recipe.preset("qvit", weight_bits=3, activation_bits=3)
    plan = scheme(recipe, num_classes=0)
    assert "head" not in plan.linears
    assert plan.linears["patch_embed.proj"].weight.bits == 8


def test_w8a8_has_groups_in_proj_and_fc2_and_transforms_that_cost_nothing_or_little():
    plan = scheme(Recipe.preset("qvit", weight_bits=8, activation_bits=8))
    for name, linear in plan.linears.items():
        normed = name.endswith((".qkv", ".fc1", "head"))
        assert linear.transform == (64 if normed else 0)
        assert linear.weight.granularity is Granularity.CHANNEL
        if name.endswith((".proj", ".fc2")) and name != "patch_embed.proj":
            assert linear.input.granularity is Granularity.GROUP
            assert linear.input.group in (64, 128)
        elif name != "patch_embed.proj":
            assert linear.input.granularity is Granularity.TOKEN
    assert all(a.rotate_qk and a.rotate_v for a in plan.attentions.values())


MIXED = Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
    [
        "layers.blocks.*.mlp.fc2=W6A8",
        "layers.blocks.0.attn.qkv=W3A5",
        "layers.blocks.1.attn=A4",
        "layers.head=W8A8",
        "layers.patch_embed.proj=W2A8",
    ]
)


def test_layers_have_their_bits_and_the_groups_of_their_width():
    plan = scheme(MIXED)
    bits = {n: (s.weight.bits, s.input.bits) for n, s in plan.linears.items()}
    assert bits.pop("blocks.0.mlp.fc2") == bits.pop("blocks.1.mlp.fc2") == (6, 8)
    assert bits.pop("blocks.0.attn.qkv") == (3, 5)
    assert bits.pop("head") == (8, 8)
    assert bits.pop("patch_embed.proj") == (2, 8)
    assert set(bits.values()) == {(4, 4)}
    uniform = scheme(Recipe.preset("qvit", weight_bits=8, activation_bits=8)).linears
    for name in ("blocks.0.mlp.fc2", "head"):
        assert plan.linears[name].input == uniform[name].input
        assert plan.linears[name].weight == uniform[name].weight or name != "head"
        assert not plan.linears[name].weight.group
    assert plan.linears["blocks.0.attn.qkv"].weight.group == 16
    assert plan.linears["blocks.0.attn.proj"].input.group == 64
    assert [a.qkv.bits for a in plan.attentions.values()] == [8, 4]
    assert [a.softmax_bits for a in plan.attentions.values()] == [8, 4]


def test_a_mixed_scheme_is_named_by_its_means():
    config = read_config(timm_vit(), STATISTICS)
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4)
    assert name_scheme(config, plan_scheme(config, recipe)) == "W4A4"
    recipe = recipe.override(["layers.blocks.*.mlp.fc2=W8A8"])
    weights = {name: n * k for name, (n, k) in config.linears().items()}
    share = 2 * weights["blocks.0.mlp.fc2"] / sum(weights.values())
    columns = {n: k for n, (_, k) in config.linears().items() if n != "patch_embed.proj"}
    of_inputs = 2 * columns["blocks.0.mlp.fc2"] / sum(columns.values())
    expected = f"W{4 + 4 * share:.1f}A{4 + 4 * of_inputs:.1f} mixed"
    assert name_scheme(config, plan_scheme(config, recipe)) == expected
    assert expected.startswith("W5")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "W4A4"),
        (["layers.head=W8A8", "layers.patch_embed.proj=W8"], "W4A4"),
        (["layers.blocks.*.*.*=W8A6"], "W8A6"),
        (["layers.blocks.*.attn=A8"], "W4A4"),
        (["layers.blocks.0.attn=A8"], "W4A4 mixed"),
    ],
)
def test_a_scheme_is_named_after_its_blocks(settings, name):
    config = read_config(timm_vit(), STATISTICS)
    recipe = Recipe.preset("plain", weight_bits=4, activation_bits=4).override(settings)
    assert name_scheme(config, plan_scheme(config, recipe)) == name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "blocks.*.fc2=W4",
            r"matches no layer of this model; the nearest are blocks\.\*\.mlp\.fc2",
        ),
        ("blocks.2.mlp.fc2=W4", r"the nearest are .*blocks\.1\.mlp\.fc2"),
        ("zzz=W4", r"matches no layer of this model; it has patch_embed\.proj, blocks\.\*\.attn"),
        ("blocks.*.attn=W4A4", "attention products have no weights"),
        ("patch_embed.proj=A4", "pixels are 8 bits"),
    ],
)
def test_bits_that_no_layer_can_have(setting, message):
    with pytest.raises(UsageError, match=message):
        scheme(Recipe().override([f"layers.{setting}"]))


@given(
    heads=st.integers(1, 6),
    head_dim=st.sampled_from([8, 20, 32, 48, 64]),
    hidden=st.sampled_from([1.0, 1.5, 4.0]),
    group=st.sampled_from([0, 16, 60, 64, 128]),
    weight_group=st.sampled_from([0, 16, 64, 100]),
)
def test_groups_and_blocks_fit_every_width(heads, head_dim, hidden, group, weight_group):
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        [
            f"activations.norm_group={group}",
            f"activations.proj_group={group}",
            f"activations.fc2_group={group}",
            f"weights.group={weight_group}",
        ]
    )
    model = timm_vit(embed_dim=heads * head_dim, num_heads=heads, mlp_ratio=hidden, depth=1)
    config = read_config(model, STATISTICS)
    plan = plan_scheme(config, recipe)
    for name, (_, width) in config.linears().items():
        linear = plan.linears[name]
        for size in (linear.input.group, linear.weight.group, linear.transform):
            assert size == 0 or width % size == 0
    proj = plan.linears["blocks.0.attn.proj"].input.group
    assert proj % head_dim == 0
    assert ModelScheme.from_dict(plan.to_dict()) == plan


def heads(*settings: str, preset: str = "qvit", bits: int = 4) -> ModelScheme:
    recipe = Recipe.preset(preset, weight_bits=bits, activation_bits=4).override(
        [f"layers.blocks.{setting}" for setting in settings]
    )
    return plan_scheme(read_config(timm_vit("three heads"), STATISTICS), recipe)


def test_bits_of_heads_are_slices_of_rows_in_qkv_and_of_columns_in_proj():
    plan = heads("*.attn.qkv=W4,4,3,4,4,3,2,4,4", "0.attn.proj=W4,3,2A6")
    qkv, proj = (plan.linears[f"blocks.0.attn.{name}"] for name in ("qkv", "proj"))
    assert (qkv.weight.bits, qkv.weight.rows) == (4, (4, 4, 3, 4, 4, 3, 2, 4, 4))
    assert (proj.weight.bits, proj.weight.columns, proj.input.bits) == (4, (4, 3, 2), 6)
    assert qkv.container_bits == proj.container_bits == 4
    assert plan.linears["blocks.1.attn.proj"].weight.slices == (4,)
    assert ModelScheme.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_heads_that_are_alike_leave_no_trace():
    assert heads("*.attn.qkv=W3,3,3,3,3,3,3,3,3") == heads("*.attn.qkv=W3")
    assert "rows" not in str(heads().to_dict())


def test_groups_of_heads():
    """Those of rows are as the slice alone has them; those of columns lie within a head, here of 32 channels."""
    qkv, proj = "blocks.0.attn.qkv", "blocks.0.attn.proj"
    wide = heads("*.attn.qkv=W8,8,8,8,8,8,8,8,3", "*.attn.proj=W8,8,3").linears
    assert (wide[qkv].weight.group, wide[qkv].container_bits) == (16, 8)
    assert (wide[proj].weight.group, wide[proj].container_bits) == (16, 8)
    wider = heads("*.attn.qkv=W8,8,8,8,8,8,8,8,5", "*.attn.proj=W8,8,5").linears
    assert (wider[qkv].weight.group, wider[proj].weight.group) == (0, 32)
    plain = heads("0.attn.qkv=W4,4,4,4,4,4,4,4,3", "0.attn.proj=W4,4,3", preset="plain").linears
    assert (plain[qkv].weight.group, plain[proj].weight.group) == (0, 32)
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    recipe = recipe.override(["layers.blocks.0.attn.proj=W4,3", "weights.group=48"])
    found = scheme(recipe, embed_dim=96, num_heads=2, attn_drop_rate=0.0)
    assert found.linears[proj].weight.group == 48
    recipe = recipe.override(["weights.group=32"])
    found = scheme(recipe, embed_dim=160, num_heads=2)
    assert found.linears[proj].weight.group == 16  # heads of 80


def test_heads_count_in_the_name_by_their_mean():
    config = read_config(timm_vit("three heads"), STATISTICS)
    settings = "*.attn.proj=W4,4,2"
    share = 2 * 96 * 96 / sum(n * k for n, k in config.linears().values())
    found = name_scheme(config, heads(settings, preset="plain"))
    assert found == f"W{4 - 2 / 3 * share:.1f}A4 mixed"
    assert name_scheme(config, heads("*.*.*=W4", preset="plain")) == "W4A4"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "0.attn.qkv=W4,3,4",
            "W4,3,4, of 3 heads' weights, and expected are 9, those of Q, K and V of 3 heads",
        ),
        ("*.attn.proj=W4,3A4", "W4,3A4, of 2 heads' weights, and expected are 3, those of 3 heads"),
        ("0.mlp.fc1=W4,3,4", "heads are those of attn.qkv and attn.proj: give one number"),
        ("0.attn=W4,3,4", "attention products have no weights"),
    ],
)
def test_bits_of_heads_that_do_not_fit(setting, message):
    with pytest.raises(UsageError, match=message):
        heads(setting)
