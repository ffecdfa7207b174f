from hypothesis import given
from hypothesis import strategies as st

from qvit.models.plan import plan_scheme
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
    assert {s.weight.bits for s in plan.linears.values()} == {4}
    inputs = {n: s.input.bits for n, s in plan.linears.items()}
    assert inputs.pop("patch_embed.proj") == 8
    assert set(inputs.values()) == {4}


def test_groups_of_proj_are_whole_heads():
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    for heads, head_dim, expected in ((6, 64, 128), (3, 64, 64), (4, 80, 80), (2, 16, 32)):
        plan = scheme(recipe, embed_dim=heads * head_dim, num_heads=heads, depth=1)
        assert plan.linears["blocks.0.attn.proj"].input.group == expected


def test_w8a8_has_no_transforms_and_groups_in_proj_and_fc2():
    plan = scheme(Recipe.preset("qvit", weight_bits=8, activation_bits=8))
    for name, linear in plan.linears.items():
        assert linear.transform == 0
        assert linear.weight.granularity is Granularity.CHANNEL
        if name.endswith((".proj", ".fc2")) and name != "patch_embed.proj":
            assert linear.input.granularity is Granularity.GROUP
            assert linear.input.group in (64, 128)
        elif name != "patch_embed.proj":
            assert linear.input.granularity is Granularity.TOKEN
    assert not any(a.rotate_qk or a.rotate_v for a in plan.attentions.values())


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
