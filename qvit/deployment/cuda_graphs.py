"""CUDA graphs of whole passes: one a batch size, in one pool of memory for all of a model.

Within a graph nothing is launched from Python and nothing is allocated; activations lie where the capture put them. The
pool is shared because the graphs of a model never run at once: what one holds between its kernels, another may use.
They may run in any order, since nothing is to outlast a replay: images are copied in and logits out each time.
"""

import threading

import torch
from torch import Tensor

from qvit.deployment.recorded_passes import Recording, Run
from qvit_kernels.split_memory import own_split_memory

# torch allows one at a time in a process.
_one_capture = threading.Lock()


class GraphRecorder:
    """Records passes of one model on one device, and keeps replays of different streams in order.

    It is the only place that deals with graphs, streams and events of torch.cuda.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._finished = torch.cuda.Event()
        self._last: torch.cuda.Stream | None = None

    def record(self, run: Run, images: Tensor) -> Recording:
        """Capture `run` for images of this shape, [B, C, H, W]; raises what torch.cuda raises.

        The pass runs once before, on the stream of the capture: kernels are compiled and loaded then, which no capture
        allows. Tensors are made outside of inference mode, where they could not be written to later.
        """
        with torch.cuda.device(self._device), torch.inference_mode(False), torch.no_grad():
            caller, stream = torch.cuda.current_stream(), torch.cuda.Stream()
            stream.wait_stream(caller)
            with own_split_memory(), torch.cuda.stream(stream):
                run(images)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may allocate meanwhile
            with (
                _one_capture,
                own_split_memory(),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                held = torch.empty_like(images)  # in the pool, which outlives every replay
                logits = run(held)
            caller.wait_stream(stream)
        return Recording(held, logits, graph.replay)

    def may_replay(self) -> bool:
        """See Recorder."""
        return not torch.cuda.is_current_stream_capturing()

    def enter(self) -> None:
        """See Recorder: the caller's stream waits for the last replay, where that was on another one."""
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and stream != self._last:
            stream.wait_event(self._finished)

    def leave(self) -> None:
        """See Recorder."""
        self._last = torch.cuda.current_stream(self._device)
        self._finished.record(self._last)

    def close(self) -> None:
        """See Recorder."""
        self._finished.synchronize()
