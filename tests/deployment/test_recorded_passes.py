"""Which calls are replayed, by whom and how: on a recorder that runs the model for real where a card would replay."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvit.deployment import QuantViT, quantvit
from qvit.deployment.recorded_passes import RecordedPasses, Recording
from qvit.errors import QvitError, UsageError
from qvit_kernels import ops
from tests.support import images_for


class EagerRecorder:
    """Recordings that compute in fixed memory, as a CUDA graph does; two at once, or one unordered, are a fault."""

    def __init__(self, device):
        self.device = device
        self.log = []
        self.blocked = False
        self.running = threading.Lock()
        RECORDERS.append(self)

    def record(self, run, images):
        self.log.append(("record", len(images)))
        with torch.inference_mode(False), torch.no_grad():
            held = torch.full_like(images, torch.nan)
            logits = run(images).clone()

        def replay():
            assert self.running.locked()
            self.log.append(("replay", len(held)))
            logits.copy_(run(held))

        return Recording(held, logits, replay)

    def may_replay(self):
        return not self.blocked

    def enter(self):
        assert self.running.acquire(blocking=False), "two replays at once"

    def leave(self):
        self.running.release()

    def close(self):
        self.log.append("close")

    @property
    def replays(self):
        return [entry[1] for entry in self.log if entry[0] == "replay"]


RECORDERS: list[EagerRecorder] = []


@pytest.fixture
def model(tiny_quantized, monkeypatch):
    """On a CPU that can record."""
    RECORDERS.clear()
    monkeypatch.setattr(quantvit, "GraphRecorder", EagerRecorder)
    monkeypatch.setattr(QuantViT, "records_graphs", True)
    return QuantViT.from_pretrained(tiny_quantized)


def test_recorded_batch_sizes_are_replayed_and_others_run(model):
    batches = {count: images_for(model.vit, count) for count in (1, 2, 3, 5)}
    expected = {count: model(images) for count, images in batches.items()}
    model.warmup(batch_sizes=(1, 3))
    (recorder,) = RECORDERS
    assert recorder.log == [("record", 1), ("record", 3)]
    for count in (3, 2, 1, 5, 3):
        assert torch.equal(model(batches[count]), expected[count])
    assert recorder.replays == [3, 1, 3]


def test_more_sizes_join_those_there_are(model):
    model.warmup([1])
    model.warmup((2, 1, 2))
    (recorder,) = RECORDERS
    assert recorder.log == [("record", 1), ("record", 2)]


def test_logits_stay_what_they_were(model):
    model.warmup([2])
    first, second = images_for(model.vit, 2), images_for(model.vit, 2)
    kept = model(first)
    before = kept.clone()
    other = model(second)
    assert torch.equal(kept, before)
    assert not torch.equal(other, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_and_logits_of_other_dtypes(model, dtype):
    model.to(dtype)
    images = images_for(model.vit, 2).to(dtype)
    expected = model(images)
    model.warmup([2])
    found = model(images)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert RECORDERS[0].replays == [2]


def test_gradients_and_inference_mode_leave_no_trace(model):
    images = images_for(model.vit, 1)
    expected = model(images)
    with torch.inference_mode():
        model.warmup([1])
        assert torch.equal(model(images), expected)
    wanting = images.clone().requires_grad_()
    model(wanting)
    found = model(wanting)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    (held,) = model._recorded._held.values()
    assert not held.images.requires_grad  # or each call would hang on the one before
    torch.nn.functional.linear(found, torch.ones(2, 6, requires_grad=True)).sum().backward()


def test_threads_share_one_set(model):
    batches = [images_for(model.vit, 1 + i % 3) for i in range(24)]
    expected = [model(images) for images in batches]
    model.warmup((1, 2))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(model, batches))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sorted(RECORDERS[0].replays) == [1] * 8 + [2] * 8


CHANGES = {
    "device": lambda model: model.to("cpu"),
    "dtype": lambda model: model.half(),
    "image size": lambda model: model.set_input_size(40),
    "head": lambda model: model.reset_classifier(0),
    "weights": lambda model: model.load_state_dict(model.state_dict(), assign=True),
    "weights of a larger module": lambda model: torch.nn.Sequential(model).load_state_dict(
        torch.nn.Sequential(model).state_dict()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_give_recordings_up(model, change):
    model.warmup([2])
    CHANGES[change](model)
    (recorder,) = RECORDERS
    assert recorder.log == [("record", 2), "close"]
    images = images_for(model.vit, 2)
    expected = model(images)
    model.warmup([2])
    assert torch.equal(model(images), expected)
    assert (recorder.replays, RECORDERS[1].replays) == ([], [2])


def test_what_changes_nothing_keeps_them(model):
    model.warmup([1])
    model.reset_classifier(6)
    model.eval()
    model.explain()
    model.forward_features(images_for(model.vit, 1))
    with pytest.raises(UsageError):
        model.set_input_size(0)
    assert RECORDERS[0].log == [("record", 1)]


def test_another_backend_waits(model):
    images = images_for(model.vit, 1)
    model.warmup([1])
    model.backend = "reference"
    model(images)
    model.backend = "auto"
    with ops.use_backend("reference"):
        model(images)
    assert RECORDERS[0].replays == []
    model(images)
    assert RECORDERS[0].replays == [1]


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301 - our own
def test_copies_have_none(model, copying):
    images = images_for(model.vit, 1)
    model.warmup([1])
    before = set(model.state_dict())
    found = copying(model)
    assert not found._recorded
    assert torch.equal(found(images), model(images))
    assert RECORDERS[0].replays == [1]
    found.warmup([1])
    assert len(RECORDERS) == 2
    assert set(found.state_dict()) == before
    assert not any("record" in name for name in before)


def test_a_recording_that_fails_says_why_and_leaves_the_model_working(model, monkeypatch):
    images = images_for(model.vit, 2)
    expected = model(images)
    model.warmup([1])

    def fail(recorder, run, given):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(EagerRecorder, "record", fail)
    message = r"batch size 2 was not recorded.*out of memory\. The model works.*smaller batch sizes"
    with pytest.raises(QvitError, match=message):
        model.warmup((1, 2))
    assert torch.equal(model(images), expected)
    model(images[:1])
    assert RECORDERS[0].replays == [1]


def test_a_first_recording_that_fails_leaves_nothing(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EagerRecorder, "record", lambda *rest: 1 / 0)
        with pytest.raises(QvitError, match="ZeroDivisionError"):
            model.warmup([1])
    assert not model._recorded
    model.warmup([1])
    assert model._recorded


def test_within_another_recording_the_model_runs(model):
    images = images_for(model.vit, 1)
    model.warmup([1])
    RECORDERS[0].blocked = True
    model(images)
    assert RECORDERS[0].replays == []


def test_a_compiler_traces_the_model_and_not_a_replay(model):
    images = images_for(model.vit, 2)
    expected = model(images)
    model.warmup([2])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(images), expected)
    exported = torch.export.export(model, (images,)).module()
    assert torch.equal(exported(images), expected)
    assert RECORDERS[0].replays == []


def test_refused_images_are_refused_before_a_replay(model):
    model.warmup([1])
    with pytest.raises(ValueError, match="images must be"):
        model(torch.zeros(1, 3, 31, 32))
    with pytest.raises(TypeError):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("sizes", [(), (0,), (1, -1), (1.5,), (True,), ("1",), 8, None])
def test_batch_sizes_that_are_none_are_refused(model, sizes):
    with pytest.raises(UsageError, match="batch_sizes must be whole numbers"):
        model.warmup(sizes)
    assert not RECORDERS


def test_weights_keep_the_memory_that_a_recording_reads():
    weight = torch.nn.Parameter(torch.ones(3))
    address = weight.data_ptr()
    passes = RecordedPasses()
    passes.record(
        lambda: EagerRecorder(None), lambda x: x + weight, torch.zeros(2, 3), "here", [weight]
    )
    weight.data = torch.zeros(3)
    assert [held.data_ptr() for held in passes._weights] == [address]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_processor_runs_each_size_once(tiny_quantized, monkeypatch, backend):
    model = QuantViT.from_pretrained(tiny_quantized, backend=backend)
    ran = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: ran.append(len(x)) or forward(x))
    model.warmup((1, 3))
    assert ran == [1, 3]
    assert not model._recorded
