"""model.safetensors: every Linear at its own width, without gaps; everything else as the model holds it.

NAME.weight_packed                uint8 [ceil(N K b / 8)], codes [N, K] of b bits, b that of config.json; where slices
                                  of its rows or columns have bits of their own, those of one slice after the other,
                                  each from a byte of its own on
NAME.weight_multiplier_packed     uint8, the multipliers [N, G] of weight groups, likewise, see `multiplier_bits`
NAME.weight_scale, bias, signs    fp32, and all norms, tokens and positions

In memory a Linear has the container that kernels read, of 4 or 8 bits: `load` unpacks, one Linear after the other.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from qvit.deployment.bit_packing import pack_bits, packed_bytes, unpack_bits
from qvit.errors import InputError
from qvit.models.dense import IntegerDense
from qvit.models.vit import ViT
from qvit.quant.schemes import Scheme
from qvit.quant.slices import join_slices, multiplier_bits, split_slices
from qvit_kernels.reference import largest_multiplier

WEIGHTS = "model.safetensors"
AGAIN = "quantize the model again with `qvit quantize`, or fetch the folder anew"
_METADATA = {"format": "pt"}
_LARGEST = 127  # code
_DTYPES = {"U8": torch.uint8, "F32": torch.float32}

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def save_weights(model: ViT, folder: Path) -> None:
    """Write model.safetensors. The same model gives the same bytes: nothing of the run is in it."""
    tensors = {name: value.contiguous() for name, value in _plain(model)}
    for name, dense in _linears(model):
        weight = dense.scheme.weight
        tensors[f"{name}.weight_packed"] = _pack(dense.codes_unpacked(), weight, weight.slices)
        if dense.weight_multiplier is not None:
            packed = _pack(dense.weight_multiplier, weight, multiplier_bits(weight))
            tensors[f"{name}.weight_multiplier_packed"] = packed
    # One key only: safetensors writes several in an order that changes from run to run. Written from here,
    # because its own save_file makes a file that only its owner can read.
    data = save(dict(sorted(tensors.items())), metadata=_METADATA)
    (folder / WEIGHTS).write_bytes(data)


def layout(model: nn.Module) -> Layout:
    """Shape and dtype of every tensor that the file of a model, or of a part, holds; it may be on the meta device."""
    found: Layout = {name: (tuple(value.shape), value.dtype) for name, value in _plain(model)}
    for name, dense in _linears(model):
        weight, count = dense.scheme.weight, dense.out_features * dense.in_features
        found[f"{name}.weight_packed"] = (_packed_bytes(count, weight.slices),), torch.uint8
        if dense.weight_multiplier is not None:
            size = _packed_bytes(dense.weight_multiplier.numel(), multiplier_bits(weight))
            found[f"{name}.weight_multiplier_packed"] = (size,), torch.uint8
    return found


def tensor_bytes(model: ViT) -> int:
    """Bytes of the tensors in the file of a model, without its header; it may be on the meta device."""
    return _sum(layout(model))


def file_bytes(model: ViT) -> int:
    """Bytes of the file of a model, header included; it may be on the meta device."""
    return layout_bytes(layout(model))


def layout_bytes(tensors: Layout) -> int:
    """Bytes of a file that holds these tensors, header included."""
    header = json.dumps(_header(tensors), separators=(",", ":"))
    return 8 + -(-len(header) // 8) * 8 + _sum(tensors)


def _sum(tensors: Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())


def layer_bytes(model: ViT) -> dict[str, int]:
    """Bytes of each Linear in the file of a model, and of all else under "". Their sum is at least `file_bytes`: the
    offsets in the header count with as many digits as the largest has in a file of 8 bits.
    """
    tensors = layout(model)
    linears = [name for name, _ in _linears(model)]
    found = dict.fromkeys(["", *linears], 0)
    digits = len(str(sum(m.out_features * m.in_features for _, m in _linears(model)) * 2))
    header = _header(tensors)
    found[""] = 8 + 8 + len(json.dumps({"__metadata__": header.pop("__metadata__")}))
    for name, entry in header.items():
        shown = {name: entry | {"data_offsets": [10**digits, 10**digits]}}
        owner = name.rpartition(".")[0]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        found[owner if owner in found else ""] += size + len(
            json.dumps(shown, separators=(",", ":"))
        )
    return found


def _header(tensors: Layout) -> dict[str, Any]:
    """As safetensors writes it: wide dtypes first, then by name."""
    header: dict[str, Any] = {"__metadata__": _METADATA}
    names = {dtype: name for name, dtype in _DTYPES.items()}
    begin = 0
    for name in sorted(tensors, key=lambda n: (-tensors[n][1].itemsize, n)):
        shape, dtype = tensors[name]
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return header


def check_header(folder: Path, model: ViT) -> None:
    """Compare names, shapes and dtypes in the file's header with those of a model. Raises InputError."""
    path = folder / WEIGHTS
    expected = layout(model)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            found = {
                k: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype()))
                for k, s in slices.items()
            }
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {WEIGHTS}; {AGAIN}") from error
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    _refuse(path, "lacks", sorted(expected.keys() - found.keys()))
    _refuse(path, "has unexpected", sorted(found.keys() - expected.keys()))
    for name, (shape, dtype) in expected.items():
        if found[name] != (shape, dtype):
            raise InputError(
                f"{path}: {name} is {found[name][1]} {list(found[name][0])}, and config.json asks for "
                f"{dtype} {list(shape)}; {AGAIN}"
            )


@torch.no_grad()
def load_weights(folder: Path, model: ViT) -> None:
    """Fill a model from a file whose header fits. Raises InputError for values that cannot be."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            _fill(model, file.get_tensor, path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _fill(model: ViT, read: Callable[[str], Tensor], path: Path) -> None:
    for name, target in _plain(model):
        target.copy_(read(name))
        if not target.isfinite().all():
            raise InputError(f"{path}: {name} is not finite; {AGAIN}")
    for name, dense in _linears(model):
        weight, rows = dense.scheme.weight, dense.out_features
        shape = rows, dense.in_features
        codes = _unpack(read(f"{name}.weight_packed"), shape, weight, weight.slices)
        if codes.amin() < -_LARGEST:  # none that is written, and its negative is no int8
            raise InputError(f"{path}: {name} has codes beyond {_LARGEST}; {AGAIN}")
        multiplier = None
        if dense.weight_multiplier is not None:
            packed, shape = read(f"{name}.weight_multiplier_packed"), dense.weight_multiplier.shape
            multiplier = _unpack(packed, shape, weight, multiplier_bits(weight))
            _check_multiplier(multiplier, weight, f"{path}: {name}")
        dense.store(codes, multiplier)


def _check_multiplier(multiplier: Tensor, weight: Scheme, name: str) -> None:
    """Others' products with codes would not fit 8 bits."""
    for values, bits in zip(split_slices(multiplier, weight), weight.slices, strict=True):
        largest = largest_multiplier(bits)
        if values.abs().amin() < 1 or values.abs().amax() > largest:
            raise InputError(f"{name} has multipliers beyond 1 to {largest}; {AGAIN}")


def _pack(values: Tensor, weight: Scheme, bits: Sequence[int]) -> Tensor:
    """Codes or multipliers, each slice's of so many bits; ones of 0 bits are not stored."""
    parts = zip(split_slices(values, weight), bits, strict=True)
    return torch.cat([pack_bits(part, width) for part, width in parts if width])


def _packed_bytes(count: int, bits: Sequence[int]) -> int:
    """Bytes of so many values in equal slices."""
    return sum(packed_bytes(count // len(bits), width) for width in bits)


def _unpack(packed: Tensor, shape: Sequence[int], weight: Scheme, bits: Sequence[int]) -> Tensor:
    """Inverse of `_pack`, int8 of this shape."""
    count = math.prod(shape) // len(bits)
    stored = packed.split([packed_bytes(count, width) for width in bits])
    pieces = split_slices(torch.empty(shape, dtype=torch.int8, device="meta"), weight)
    found = [
        (unpack_bits(part, width, count) if width else torch.ones(count, dtype=torch.int8)).view(
            piece.shape
        )
        for part, width, piece in zip(stored, bits, pieces, strict=True)
    ]
    return join_slices(found, weight)


def _linears(model: nn.Module) -> Iterator[tuple[str, IntegerDense]]:
    for name, module in model.named_modules():
        if isinstance(module, IntegerDense):
            yield name, module


def _plain(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and values of what is stored as it is: all but codes and multipliers."""
    packed = {
        f"{name}.{part}"
        for name, _ in _linears(model)
        for part in ("weight", "weight_packed", "weight_multiplier")
    }
    for name, value in model.state_dict().items():
        if name not in packed:
            yield name, value


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(f"{path} {what} {shown}; {AGAIN}")


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated or corrupt ({error}); {AGAIN}")
