import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvit.errors import InputError, UsageError
from qvit.recipe import METHODS, Bits, Recipe, Synthesis, load_recipe, preset_names
from qvit.recipe.bits import read_bits

BITS = st.integers(2, 8)


@given(name=st.sampled_from(preset_names()), w=BITS, a=BITS, seed=st.integers(0, 2**40))
def test_yaml_round_trip(name, w, a, seed):
    recipe = Recipe.preset(name, weight_bits=w, activation_bits=a).override([f"seed={seed}"])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.scheme == f"W{w}A{a}"


@pytest.mark.parametrize(("w", "a"), [(3, 3), (3, 8), (2, 4), (8, 3)])
def test_few_bits_have_finer_scales_and_ends_of_eight_bits(w, a):
    few = Recipe.preset("qvit", weight_bits=w, activation_bits=a)
    assert few.layer_bits("head") == few.layer_bits("head_dist") == ((8,), 8)
    assert few.layer_bits("patch_embed.proj")[0] == (8,)
    assert few.layer_bits("blocks.0.mlp.fc1") == ((w,), a)
    assert few.weights.group == (16 if w <= 4 else 0)
    groups = few.activations
    sizes = (64, 64, 64) if a < 8 else (0, 128, 128)
    assert (groups.norm_group, groups.proj_group, groups.fc2_group) == sizes
    assert groups.prefix_bits == (8 if a <= 3 else 0)
    four = Recipe.preset("qvit", weight_bits=4, activation_bits=4)
    assert four.layers == few.layers
    assert not Recipe.preset("qvit").layers
    assert (four.weights.group, four.activations.norm_group) == (16, 0)
    assert four.activations.prefix_bits == 0


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 16])
def test_impossible_bits(bits):
    for name in ("weight_bits", "activation_bits"):
        with pytest.raises(UsageError, match="2 to 8 bits"):
            Recipe.preset("qvit", **{name: bits})


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match="did you mean qvit"):
        Recipe.preset("qvi")
    with pytest.raises(UsageError, match=r"did you mean weights\.group"):
        Recipe().override(["weights.gruop=64"])
    with pytest.raises(UsageError, match=r"no field weights\.bit; did you mean bits"):
        Recipe.from_yaml("weights: {bit: 4}")
    with pytest.raises(UsageError, match="recipe field layers: expected dict"):
        Recipe.from_yaml("layers: [W4A4]")
    with pytest.raises(UsageError, match=r"layers\.head = 4: expected bits"):
        Recipe.from_yaml("layers: {head: 4}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "expected key=value"),
        ("weights=4", "no such recipe field"),
        ("weights.bits=four", "expected int"),
        ("weights.bits=true", "expected int"),
        ("transforms.qk=1", "expected bool"),
        ("weights.range=best", "expected one of mse, minmax"),
        ("residual=int8", "expected one of float32"),
        ("weights.group=-1", "expected 0"),
        ("activations.prefix_bits=4", "expected 8, or 0 for those of the other tokens"),
        ("layers.head=8", "expected bits such as W4A8"),
        ("layers.head=W9", "2 to 8 bits"),
        ("layers.head=A1", "2 to 8 bits"),
        ("layers.head=", "expected bits such as W4A8"),
        ("layers=W4", "no such recipe field"),
        ("weights.group=32", "more than 4 bits have one scale per output channel"),
        ("budget=huge", "expected one of quick"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UsageError, match=message):
        Recipe().override([setting])


def test_settings_change_one_field():
    recipe = Recipe().override(["activations.fc2_group=64", "transforms.v=true"])
    assert recipe.activations.fc2_group == 64
    assert recipe.transforms.v
    assert recipe.override(["activations.fc2_group=0", "transforms.v=false"]) == Recipe()


def test_layers_have_bits_of_their_own():
    """The later of two patterns holds, for weights and activations apart."""
    recipe = Recipe.preset("qvit", weight_bits=4, activation_bits=4).override(
        ["layers.blocks.*.mlp.fc2=W6A8", "layers.blocks.[0-1].*.fc2=w3", "layers.head = A5"]
    )
    assert recipe.layer_bits("blocks.0.mlp.fc2") == ((3,), 8)
    assert recipe.layer_bits("blocks.7.mlp.fc2") == ((6,), 8)
    assert recipe.layer_bits("head") == ((4,), 5)
    assert recipe.layer_bits("blocks.0.mlp.fc1") == ((4,), 4)
    assert recipe.scheme == "W4A4 mixed"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert list(Recipe.from_yaml(recipe.to_yaml()).layers) == list(recipe.layers)


def test_a_pattern_that_is_set_again_has_its_way():
    recipe = Recipe().override(["layers.head=W4", "layers.*=W5", "layers.head=W6"])
    assert recipe.layer_bits("head") == ((6,), 8)
    assert recipe.override(["layers.head=none"]).layer_bits("head") == ((5,), 8)


def test_a_pattern_matches_part_by_part():
    recipe = Recipe().override(["layers.blocks.*.attn=A4"])
    assert recipe.attention_bits("blocks.3.attn") == (4, 4)
    assert recipe.layer_bits("blocks.3.attn.qkv") == ((8,), 8)


def test_groups_need_one_layer_that_takes_them():
    few = Recipe().override(["layers.head=W4", "weights.group=32"])
    assert few.weights.group == 32
    with pytest.raises(UsageError, match="more than 4 bits have one scale"):
        few.override(["layers.head=W5"])


@pytest.mark.parametrize("text", ["[1]", "{", "just words"])
def test_not_a_recipe(text):
    with pytest.raises(UsageError, match="recipe"):
        Recipe.from_yaml(text)


def test_recipe_file_with_bits_replaced(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(Recipe.preset("qvit", weight_bits=4, activation_bits=4).to_yaml())
    recipe = load_recipe(str(path), 3, 6)
    assert recipe.scheme == "W3A6"
    assert recipe.attention.bits == recipe.attention.softmax_bits == 8
    assert recipe.transforms.norm == 64
    assert load_recipe(str(path)).scheme == "W4A4"


def test_attention_that_went_with_the_activations_goes_on_doing_so(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(Recipe.preset("plain", weight_bits=4, activation_bits=4).to_yaml())
    recipe = load_recipe(str(path), None, 6)
    assert recipe.attention.bits == recipe.attention.softmax_bits == 6


def test_missing_recipe_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot use the recipe .*absent\.yaml"):
        load_recipe(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("text", ["{", "weights: {bits: 33}", "[1]"])
def test_broken_recipe_file_is_bad_input(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_recipe(str(path))


@pytest.mark.parametrize("setting", ["seed=[1", "seed=-1", f"seed={10**22}"])
def test_impossible_settings(setting):
    with pytest.raises(UsageError, match="seed"):
        Recipe().override([setting])


def test_zero_bits_are_not_the_default():
    for bits in ((0, None), (None, 0)):
        with pytest.raises(UsageError, match="2 to 8 bits"):
            load_recipe("qvit", *bits)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+1e-4", "0.0001", "1.0e-4", ".1e-3"])
def test_numbers_may_be_written_with_an_exponent(text):
    """YAML 1.1 takes some of these for text."""
    recipe = Recipe().override(["synthesis=psaq", f"synthesis.lr={text}"])
    assert recipe.synthesis == Synthesis.preset("psaq", lr=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_images_in_a_recipe_survive_yaml(method):
    recipe = Recipe().override([f"synthesis={method}", "synthesis.images=7", "synthesis.lr=1"])
    assert recipe.synthesis == Synthesis.preset(method, images=7, lr=1.0)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.override(["synthesis=none"]) == Recipe()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["synthesis=psa"], "did you mean psaq"),
        (["synthesis.batch=8"], "turn that on with --set synthesis=METHOD"),
        (["synthesis=psaq", "synthesis.iteratons=8"], r"did you mean synthesis\.iterations"),
        (["synthesis=psaq", "synthesis.images=0"], "expected 1 or more"),
        (["synthesis=psaq", "synthesis.images=-4"], "expected 1 or more"),
        (["synthesis=psaq", "synthesis.batch=0"], "expected 1 or more"),
        (["synthesis=psaq", "synthesis.iterations=0"], "psaq needs at least 1"),
        (["synthesis=noise", "synthesis.iterations=5"], "nothing is optimised"),
        (["synthesis=noise", "synthesis.sparse=0.3"], "nothing that could drop patches"),
        (["synthesis=psaq", "synthesis.lr=.nan"], "lr = nan"),
        (["synthesis=psaq", "synthesis.lr=fast"], "expected float"),
        (["synthesis=psaq", "synthesis.smoothness_low=9000"], "exchange them"),
        (["synthesis=psaq", "synthesis.data=pictures"], "reads no images"),
        (["synthesis=psaq", "synthesis.rounds=2000"], "rounds = 2000"),
        (["synthesis=psaq", "synthesis.precision=int8"], "expected one of float32"),
    ],
)
def test_bad_settings_of_images(settings, message):
    with pytest.raises(UsageError, match=message):
        Recipe().override(settings)


def test_presets_take_changes_by_name_only():
    assert Synthesis.preset("mimiq", batch=4).batch == 4
    with pytest.raises(UsageError, match="did you mean batch"):
        Synthesis.preset("mimiq", bach=4)


def test_heads_have_bits_of_their_own():
    recipe = Recipe().override(
        ["layers.blocks.0.attn.proj=W4,3,2A5", "layers.blocks.1.*.proj = w4,4,4"]
    )
    assert recipe.layer_bits("blocks.0.attn.proj") == ((4, 3, 2), 5)
    assert recipe.layer_bits("blocks.1.attn.proj") == ((4, 4, 4), 8)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    again = Recipe().override([f"layers.{name}={text}" for name, text in recipe.layers.items()])
    assert again == recipe
    spaced = recipe.override(["layers.blocks.0.attn.proj=W4,3,2 A5"])
    assert spaced.layer_bits("blocks.0.attn.proj") == ((4, 3, 2), 5)


@given(
    st.lists(st.integers(2, 8), max_size=6)
    .map(tuple)
    .filter(lambda b: len(b) < 2 or len(set(b)) > 1),
    st.integers(2, 8) | st.none(),
)
def test_what_is_written_of_bits_is_read_again(weights, activations):
    bits = Bits(weights or None, activations)
    if weights or activations:
        assert read_bits("head", str(bits)) == bits


@pytest.mark.parametrize("text", ["W4,", "W,4", "W4,,3", "W4,9", "W4 3", "W4,1A4", "A4,4", "4,3"])
def test_bits_of_heads_that_are_none(text):
    with pytest.raises(UsageError, match=r"layers\.blocks\.0\.attn\.proj"):
        Recipe().override([f"layers.blocks.0.attn.proj={text}"])


def test_groups_are_for_what_the_fewest_bits_of_heads_leave():
    few = Recipe().override(["layers.blocks.0.attn.proj=W8,4", "weights.group=32"])
    assert few.weights.group == 32
