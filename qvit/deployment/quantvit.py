"""QuantViT: a quantized Vision Transformer that computes in integers."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qvit import zoo
from qvit.data import DataConfig
from qvit.deployment import checkpoint, cpu_preparation
from qvit.deployment.cuda_graphs import GraphRecorder
from qvit.deployment.explanation import Explanation, MachineRates
from qvit.deployment.listening import listen, time_layers
from qvit.deployment.placement import require_device
from qvit.deployment.provenance import architecture_of
from qvit.deployment.recorded_passes import RecordedPasses
from qvit.errors import QvitError, UsageError
from qvit.models.adaptation import drop_head, resize
from qvit.models.integer import Integer
from qvit.models.timm_export import write_model
from qvit.models.unfolding import unfold
from qvit.models.vit import ViT
from qvit_kernels import backends, ops


class QuantViT(nn.Module):
    """Images to logits, in integers; loads without float weights and without network.

    A module like any other: it moves (`.to(device)`), copies, pickles, has a `state_dict`, takes batches of any size
    (none at all, too), and may be called by several threads at once. Two things differ. It cannot be trained. And its
    scales, norms and residual stream have the precision they were quantized with, or its integers would be others:
    `.half()`, `.bfloat16()` and `.to(dtype)` change what comes out (`dtype`) and nothing inside.

    Attributes:
        config: config.json of the checkpoint, as nested values; it follows `set_input_size` and `reset_classifier`.
        backend: "auto", "triton", "cpu" or "reference"; "auto" follows QVIT_BACKEND, then the device.
        dtype: Of logits and features. Images may have any float dtype, whatever this one is.
    """

    def __init__(self, vit: ViT, config: dict[str, Any], *, backend: str = "auto") -> None:
        super().__init__()
        if backend not in ops.BACKENDS:
            raise UsageError(f"unknown backend {backend!r}; use one of {', '.join(ops.BACKENDS)}")
        self.vit = vit
        self.config = config
        self.backend = backend
        self.dtype = torch.float32
        self._recorded = RecordedPasses()
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        img_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
    ) -> Self:
        """Load a folder that `qvit quantize` wrote, or such a repository on the hub (`org/name`).

        Args:
            path: The folder or the repository.
            device: Where it shall compute.
            backend: See the class.
            img_size: Of the images, where it is not the one it was quantized for; see `set_input_size`.
            num_classes: 0 for features in place of logits; see `reset_classifier`.

        Raises:
            InputError: Something is wrong with the folder; the message names it.
            RequirementError: The device is not there, or a download failed.
            UsageError: An image size or number of classes that cannot be.
        """
        require_device(device if isinstance(device, str) else str(torch.device(device)))
        # even under a caller's: writes to weights made in it go unnoticed, so the compiled CPU path refuses them
        with torch.inference_mode(False):
            vit, config = checkpoint.load(checkpoint.locate(path))
            model = cls(vit, config, backend=backend)
            if img_size is not None:
                model.set_input_size(img_size)
            if num_classes is not None:
                model.reset_classifier(num_classes)
            return model.to(device)

    @property
    def data_config(self) -> DataConfig:
        """The preprocessing that belongs to the weights."""
        return DataConfig.from_pretrained_cfg(self.config["pretrained_cfg"])

    def transform(self) -> Callable[..., Any]:
        """The evaluation transform: PIL image to float tensor [3, H, W]."""
        return self.data_config.transform()

    @property
    def scheme(self) -> str:
        """The scheme's short name, such as W4A8."""
        return self.config["quantization_config"]["scheme"]

    @property
    def num_classes(self) -> int:
        """Length of the logits; 0 for a model without head."""
        return self.vit.config.num_classes

    @property
    def num_features(self) -> int:
        """Width of tokens and pooled features."""
        return self.vit.config.embed_dim

    @property
    def device(self) -> torch.device:
        """Where the integers are, and images have to be."""
        return self.vit.patch_embed.gain.device

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, float [B, 3, H, W], to logits [B, num_classes] (pooled features [B, D] without a head).

        Pixels are clamped to the 8-bit range, so that infinities and NaN give finite logits that mean nothing.
        Raises TypeError for images of another dtype, ValueError for another shape or device, before anything is
        computed.
        """
        self._check(images)
        if not torch.compiler.is_compiling() and self._recorded:
            logits = self._recorded.replay(images, self._place, self.dtype)
            if logits is not None:
                return logits
        with torch.no_grad():  # not inference_mode: its tensors could not enter a trained head
            return self._logits(images).to(self.dtype)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised images, float [B, 3, H, W], to tokens after the final norm, [B, T, D]; raises as `forward`."""
        self._check(images)
        with torch.no_grad():
            stream = self._stream(images)
            if stream is None:
                return self.vit.forward_features(images, self._execution).to(self.dtype)
            return self.vit.finish(stream).to(self.dtype)

    def warmup(self, batch_sizes: Sequence[int] = (1, 8)) -> None:
        """Pay now what the first passes of these batch sizes would pay, and on a GPU record those passes.

        With backend "triton" on a CUDA device the pass of each batch size becomes a CUDA graph, which `forward` replays
        from then on for batches of exactly this size; other sizes, and `forward_features`, run as before. A replay
        launches nothing from Python, allocates nothing but the logits that it returns, which no later call changes, and
        never waits for the device. All graphs of a model share one memory, and a lock: threads may call at once, on
        streams of their own, and their replays follow each other on the device.

        On a CPU with AVX512-VNNI and a C++ compiler the compiled path is built (about three seconds, once on a
        machine), which every QuantViT of the process then takes; the integers are the same. A RuntimeWarning says why
        where it cannot be. Then each size runs once.

        Moving the model, another dtype, image size or head, and loading a state_dict give the graphs up: warm up again.
        Under another backend they wait. Copies, pickles and state_dicts carry none; under torch.compile and within a
        CUDA graph of your own none is used. The compiled path of a CPU notices changes of the model; hooks of the ViT
        or a block, traces and dispatch modes get the operations one by one.

        Raises UsageError for batch sizes that are none, QvitError where a pass cannot be recorded: the message says
        why, and the model works as before.
        """
        batch_sizes = _checked_batch_sizes(batch_sizes)
        if self._on_cpu and not self.records_graphs:
            cpu_preparation.prepare(self.vit)
        for batch_size in batch_sizes:
            images = self._blank(batch_size)
            if not self.records_graphs:
                self(images)
                continue
            run = partial(self.vit, run=self._execution)
            weights = (*self.vit.parameters(), *self.vit.buffers())
            try:
                self._recorded.record(
                    lambda: GraphRecorder(self.device), run, images, self._place, weights
                )
            except Exception as error:  # torch, CUDA and Triton have no kind of error in common
                reason = (str(error).splitlines() or [""])[0]
                raise QvitError(
                    f"batch size {batch_size} was not recorded as a CUDA graph: {type(error).__name__}: {reason}. The "
                    "model works without it, with a launch from Python for every kernel. Out of memory: record fewer "
                    "or smaller batch sizes. Anything else: model.explain() shows which steps have no kernel here"
                ) from error

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size, (height, width), from now on, as timm's method of this name.

        Position embeddings are resampled bicubically by timm, which loses detail: set the size once. No weight
        changes. Raises UsageError for a size that is none, or smaller than a patch.
        """
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        if not _is_size(size):
            raise UsageError(
                f"img_size must be a positive number of pixels or (height, width), got {img_size!r}"
            )
        self._recorded.drop()
        try:
            resize(self.vit, (size[0], size[1]))
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.config = checkpoint.adapt_config(self.config, self.vit.config)

    def reset_classifier(self, num_classes: int) -> None:
        """With 0, end in pooled features [B, num_features] from now on, in the basis of the float model.

        Any other number raises UsageError, unless it is what the model has: a new classifier would have to be trained.
        """
        if num_classes == self.num_classes:
            return
        if num_classes != 0:
            raise UsageError(
                f"a classifier of {num_classes} classes would have to be trained, and this one has "
                f"{self.num_classes}; reset_classifier(0) gives features for a head of your own"
            )
        self._recorded.drop()
        drop_head(self.vit)
        self.config = checkpoint.adapt_config(self.config, self.vit.config)

    def explain(self, batch_size: int = 1, *, rates: MachineRates | None = None) -> Explanation:
        """What one pass consists of: for each operation bits, backend, kernel, tile, bytes, operations, and why it
        was not computed faster, where it was not. `print(model.explain())` shows a table.

        It runs the model once on `batch_size` black images, where it is, and notes what really happens. Where the
        compiled path of a CPU takes the blocks as one program, it says so, and runs their operations one by one.

        Args:
            batch_size: Images of the pass, one at least.
            rates: What this machine was measured to reach; with them every row has a floor in seconds.

        Raises UsageError for a batch size that is none.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise UsageError(f"batch_size must be a whole number from 1 on, got {batch_size!r}")
        images = self._blank(batch_size)
        return Explanation(
            scheme=self.scheme,
            device=str(self.device),
            images=tuple(images.shape),
            layers=listen(self.vit, images, self._backend, rates),
            one_program=self._on_cpu and cpu_preparation.covers(self.vit),
        )

    def time_layers(self, images: Tensor) -> dict[str, float]:
        """Seconds that the parts of one pass over images [B, C, H, W] take: a name of `explain()`'s layers -> its time.

        Where the compiled path of a CPU takes the model as one program, the program's own clock is read; a head that is
        more than a norm and a Linear of the first token is not in it. Elsewhere the operations of the model are taken,
        and timed, one by one.
        The first pass pays what first passes pay.
        """
        self._check(images)
        seconds = cpu_preparation.layer_seconds(self.vit, images) if self._on_cpu else None
        return seconds or time_layers(self.vit, images, self._backend)

    def dequantize(self) -> nn.Module:
        """timm's float model with the values that the integers stand for: fp32, in eval mode, on the same device.

        Every transform is undone but the rotations inside attention heads, which no result shows; LayerScale is
        multiplied into the weights. What differs from this model is what quantizing activations did.

        Raises InputError where timm cannot build the architecture that config.json names.
        """
        source = architecture_of(self.config, self.config["architecture"])
        with torch.device("meta"):  # its random weights would only be thrown away
            model = zoo.build(source)
        write_model(unfold(self.vit), model)
        return model.eval()

    def train(self, mode: bool = True) -> Self:
        """A QuantViT is always in eval mode: `train(False)` does nothing, `train()` raises UsageError and says why."""
        if mode:
            raise UsageError(
                "a QuantViT holds integers, which have no gradient, and cannot be trained. To train a head on its "
                "features, call train() on that head alone; to train a low-bit model, quantize again with a recipe "
                "that distils (`qvit quantize --recipe`); dequantize() gives a float model that trains"
            )
        return super().train(False)

    @property
    def _backend(self) -> str | None:
        """As the operations take it: None follows the present choice."""
        return None if self.backend == "auto" else self.backend

    @property
    def _place(self) -> tuple[torch.device, str]:
        """The device, and the backend that computes there now."""
        return self.device, backends.resolve(self.device, self._backend)

    @property
    def records_graphs(self) -> bool:
        """Whether `warmup` makes passes CUDA graphs: the reference waits for the device, and a processor has none."""
        device, backend = self._place
        return device.type == "cuda" and backend == "triton"

    def _blank(self, batch_size: int) -> Tensor:
        shape = (batch_size, self.vit.config.in_chans, *self.vit.config.image_size)
        # fp32 whatever torch's default is: a recorded pass copies images into such memory
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    @property
    def _on_cpu(self) -> bool:
        device, backend = self._place
        return device.type == "cpu" and backend == "cpu"

    def _stream(self, images: Tensor) -> Tensor | None:
        """What the compiled path leaves of images behind the last block, fp32 [B, T, D]; None where it takes none."""
        return cpu_preparation.features(self.vit, images) if self._on_cpu else None

    def _logits(self, images: Tensor) -> Tensor:
        """Logits fp32 [B, num_classes], by the compiled path as far as it goes."""
        found = cpu_preparation.logits(self.vit, images) if self._on_cpu else None
        if found is not None:
            return found
        stream = self._stream(images)
        if stream is not None:
            return self.vit.classify(stream, self._execution)
        return self.vit(images, self._execution)

    @property
    def _execution(self) -> Integer:
        return Integer(self._backend)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device; of a dtype only take note: scales in half precision would not be the checkpoint's."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        self._recorded.drop()
        # A tensor of the present dtype tells a conversion from a move, which leaves it as it is.
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        return super()._apply(keep_dtype, recurse)

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        """As torch's; with assign=True other memory takes the weights' place."""
        self._recorded.drop()
        super()._load_from_state_dict(*arguments, **named)

    def _check(self, images: Tensor) -> None:
        config = self.vit.config
        height, width = config.image_size
        expected = f"[B, {config.in_chans}, {height}, {width}]"
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be a tensor, got {type(images).__name__}; model.transform() makes one"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images must be normalised floats, got {images.dtype}; model.transform() makes such tensors"
            )
        shape = list(images.shape)
        if len(shape) == 3:
            raise ValueError(f"images must be {expected}, got {shape}; images[None] makes a batch")
        if len(shape) != 4 or shape[1] != config.in_chans:
            raise ValueError(
                f"images must be {expected}, got {shape}; model.transform() makes such images of RGB ones"
            )
        if tuple(shape[2:]) != config.image_size:
            raise ValueError(
                f"images must be {expected}, got {shape}; model.transform() makes them so, and "
                f"from_pretrained(..., img_size=({shape[2]}, {shape[3]})) makes a model that takes these"
            )
        if images.device != self.device:
            raise ValueError(
                f"images are on {images.device}, the model is on {self.device}; move them with "
                "images.to(model.device), or the model with model.to(images.device)"
            )


def _checked_batch_sizes(batch_sizes: object) -> list[int]:
    """Raises UsageError for what are no batch sizes."""
    given = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    if not given or not all(type(size) is int and size > 0 for size in given):
        raise UsageError(
            f"batch_sizes must be whole numbers from 1 on, such as (1, 8), got {batch_sizes!r}"
        )
    return list(dict.fromkeys(given))


def _is_size(size: object) -> bool:
    """Whether something is a height and a width."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        return False
    return all(type(length) is int and length > 0 for length in size)
