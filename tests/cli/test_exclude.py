"""`quantize --exclude`: layers kept at 8 bits, by the recipe's own field for bits of single layers."""

import json

from qvit.cli import run


def plan(capsys, model, *options):
    arguments = [
        "quantize",
        f"local-dir:{model}",
        "--w",
        "4",
        "--a",
        "4",
        "--dry-run",
        "--json",
        "-q",
    ]
    assert run([*arguments, *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_excluded_layers_have_eight_bits(capsys, tiny_model):
    found = plan(capsys, tiny_model, "--exclude", "blocks.*.mlp.fc2", "--exclude", "blocks.0.attn")
    usual = plan(capsys, tiny_model)
    excluded = {"blocks.*.mlp.fc2": "W8A8", "blocks.0.attn": "A8"}
    assert found["recipe"]["layers"] == usual["recipe"]["layers"] | excluded
    assert found["tensor_bytes"] > usual["tensor_bytes"]


def test_what_sense_suggests_is_taken(capsys, tiny_model, tmp_path):
    """Whatever a layer is called in its report, `--exclude` knows it: the patch embedding and the head, too."""
    out = tmp_path / "sense.json"
    plain = ["--recipe", "plain", "--w", "4", "--a", "4"]  # whose ends have fewer than 8 bits
    sense = ["sense", f"local-dir:{tiny_model}", "--images", "1", "-q", "-o", str(out)]
    assert run([*sense, *plain]) == 0
    capsys.readouterr()
    names = [layer["name"] for layer in json.loads(out.read_text())["layers"]]
    options = [word for name in names for word in ("--exclude", name)]
    found = plan(capsys, tiny_model, "--recipe", "plain", *options)
    assert set(found["recipe"]["layers"]) == set(names)
    assert {"patch_embed.proj", "head"} < set(names)


def test_a_name_that_is_none_is_refused(capsys, tiny_model):
    arguments = [
        "quantize",
        f"local-dir:{tiny_model}",
        "--exclude",
        "blocks.*.mlp.fc3",
        "--dry-run",
    ]
    assert run(arguments) == 2
    assert "blocks.*.mlp.fc" in capsys.readouterr().err
