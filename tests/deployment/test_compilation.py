"""A whole QuantViT under torch.compile and torch.export: one graph, the ops in it, the same logits."""

import io

import pytest
import torch

from benchmarks.cases.kernels import PER_TOKEN
from qvit import pipeline, zoo
from qvit.deployment import QuantViT
from qvit.recipe import Recipe
from tests.support import images_for

# W8A8 of 8-bit codes, and packed codes with multipliers and transforms; one with a scale a token everywhere.
RECIPES = {
    "W8A8": Recipe.preset("qvit", weight_bits=8, activation_bits=8),
    "W4A8, a scale a token": Recipe.preset("qvit", weight_bits=4, activation_bits=8).override(
        list(PER_TOKEN)
    ),
    "W4A4": Recipe.preset("qvit", weight_bits=4, activation_bits=4),
}


# One in every run: each takes half a minute.
SOME = [*(pytest.param(name, marks=pytest.mark.slow) for name in list(RECIPES)[:2]), "W4A4"]


@pytest.fixture(scope="module", params=SOME)
def demo(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "model"
    pipeline.quantize(zoo.resolve("demo_vit"), RECIPES[request.param], folder, progress=False)
    return QuantViT.from_pretrained(folder)


class Counting:
    """A backend of torch.compile that keeps the graphs it was given."""

    def __init__(self, backend):
        torch.compiler.reset()
        self.backend = torch._dynamo.lookup_backend(backend)
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return self.backend(graph, inputs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_graph_breaks(demo, backend):
    counting = Counting(backend)
    images = images_for(demo.vit, 2)
    compiled = torch.compile(demo, fullgraph=True, backend=counting)
    with torch.no_grad():
        assert torch.equal(compiled(images), demo(images))
        assert torch.equal(compiled(images.flip(0)), demo(images.flip(0)))
    assert len(counting.graphs) == 1


def test_compiles_once_for_all_batch_sizes(demo):
    counting = Counting("eager")
    compiled = torch.compile(demo, fullgraph=True, dynamic=True, backend=counting)
    with torch.no_grad():
        for count in (2, 5, 3):
            images = images_for(demo.vit, count)
            assert torch.equal(compiled(images), demo(images))
    assert len(counting.graphs) == 1


def ops_in(program):
    """Nodes of ours, in the graph and in those of regions without gradients."""
    graphs = [
        m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)
    ]
    return [n for graph in graphs for n in graph.nodes if str(n.target).startswith("qvit.")]


def test_features_compile(demo):
    torch.compiler.reset()
    images = images_for(demo.vit, 2)
    with torch.no_grad():
        compiled = torch.compile(demo.forward_features, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images), demo.forward_features(images))


# torch 2.11 reads what it saved from bytes, and warns of itself that those cannot be written to
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_any_batch(demo, strict):
    images = images_for(demo.vit, 2)
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=256)}}
    program = torch.export.export(demo, (images,), dynamic_shapes=batch, strict=strict)
    assert len(ops_in(program)) == 4 + 7 * demo.vit.config.depth
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for count in (1, 2, 7):
        images = images_for(demo.vit, count)
        assert torch.equal(loaded(images), demo(images))


def test_an_exported_program_keeps_its_backend(demo):
    demo.backend = "triton"
    try:
        program = torch.export.export(demo, (images_for(demo.vit, 2),))
    finally:
        demo.backend = "auto"
    assert {node.kwargs.get("backend") for node in ops_in(program)} == {"triton"}


# Inductor of torch 2.11 imports what it calls deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
def test_inductor_gives_the_same_logits(demo):
    torch.compiler.reset()
    compiled = torch.compile(demo, fullgraph=True)
    images = images_for(demo.vit, 2)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), demo(images), rtol=1e-5, atol=1e-5)
