"""What `QuantViT.explain` answers: the operations of one pass, what each takes, and how it is computed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qvit.deployment.layer_names import shorten, without_block
from qvit_kernels.routes import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRates:
    """What a machine was measured to reach; without a measurement there is no floor to compare with.

    Attributes:
        bytes_per_second: Of a large copy, read and written bytes together.
        operations_per_second: Of a large int8 matrix product, a multiplication and its addition counted as two.
    """

    bytes_per_second: float
    operations_per_second: float

    def __post_init__(self) -> None:
        for name in ("bytes_per_second", "operations_per_second"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a measured, positive rate, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One operation of a layer.

    Attributes:
        name: The module it belongs to, "blocks.0.attn.qkv".
        op: The operation of qvit_kernels, "linear_qkv".
        weight_bits: Bits of a weight, as many as it takes in the file, a mean where heads differ; None without weights.
        container_bits: Bits that a weight takes in memory, where kernels read it; None likewise.
        input_bits: Bits that a value of its input takes in memory.
        bytes: Of all it reads and writes, each tensor once, as it is stored.
        operations: Multiplications and additions of its matrix products; 0 without any.
        floor: Seconds for its bytes or its operations at the given rates, whichever take longer; None without rates.
            Where everything stays in a cache, bytes may take less.
        route: Which backend and kernels compute it, and why not faster ones.
    """

    name: str
    op: str
    weight_bits: float | None
    container_bits: int | None
    input_bits: int
    bytes: int
    operations: int
    floor: float | None
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The operations of one pass, in order; `str()` is a table of them.

    What torch does between them, position embeddings, the final norm and pooling, is in no row.

    Attributes:
        scheme: Of the model, "W4A8".
        device: Where it was.
        images: Shape of the batch, (B, C, H, W).
        layers: A row for each operation.
        one_program: Whether calls compute the rows up to the last block in one call of the compiled CPU path, and those
            of the head with them where it reads the first token alone.
    """

    scheme: str
    device: str
    images: tuple[int, ...]
    layers: tuple[Layer, ...]
    one_program: bool = False

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def operations(self) -> int:
        """Of all rows."""
        return sum(layer.operations for layer in self.layers)

    @property
    def floor(self) -> float | None:
        """Seconds, of all rows one after the other; None without rates."""
        floors = [layer.floor for layer in self.layers]
        known = [floor for floor in floors if floor is not None]
        return sum(known) if len(known) == len(floors) else None

    def __str__(self) -> str:
        """Equal blocks share a row, which is for one of them."""
        rows = _merged(self.layers)
        columns = _COLUMNS if self.floor is not None else _COLUMNS[:-1]
        cells = [[head for head, _ in columns]]
        cells += [[show(layer, count) for _, show in columns] for layer, count in rows]
        shape = " x ".join(map(str, self.images))
        total = f"in all {self.bytes / 1e6:.2f} MB, {self.operations / 1e9:.2f} Gop"
        total += f", floor {self.floor * 1e6:.0f} us" if self.floor is not None else ""
        how = ", one compiled program" if self.one_program else ""
        head = f"{self.scheme} on {self.device}, images {shape}{how}"
        lines = [head, "", *_aligned(cells), "", total]
        reasons = {(layer.op, layer.route.reason): None for layer, _ in rows if layer.route.reason}
        return "\n".join([*lines, *(f"{op}: slow, because {reason}" for op, reason in reasons)])


_COLUMNS: Sequence[tuple[str, Callable[[Layer, int], str]]] = (
    ("layer", lambda layer, count: layer.name),
    ("times", lambda layer, count: str(count)),
    ("op", lambda layer, count: layer.op),
    ("backend", lambda layer, count: layer.route.backend),
    ("kernel", lambda layer, count: " + ".join(layer.route.kernels) or "torch"),
    ("tile", lambda layer, count: " + ".join(layer.route.tiles) or "-"),
    ("w bits", lambda layer, count: f"{layer.weight_bits:.3g}" if layer.weight_bits else "-"),
    ("in", lambda layer, count: str(layer.container_bits or "-")),
    ("x bits", lambda layer, count: str(layer.input_bits)),
    ("computes", lambda layer, count: layer.route.computes_in or "-"),
    ("kB", lambda layer, count: f"{layer.bytes / 1e3:.1f}"),
    ("Mop", lambda layer, count: f"{layer.operations / 1e6:.2f}"),
    ("floor us", lambda layer, count: "-" if layer.floor is None else f"{layer.floor * 1e6:.1f}"),
)


def _merged(layers: Sequence[Layer]) -> list[tuple[Layer, int]]:
    """Rows of equal blocks as one, under the name blocks.*, with their number."""
    alike: dict[Layer, list[str]] = {}
    for layer in layers:
        alike.setdefault(replace(layer, name=without_block(layer.name)), []).append(layer.name)
    known = [layer.name for layer in layers]
    return [
        (replace(layer, name=shorten(names, known)[0]), len(names))
        for layer, names in alike.items()
    ]


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell: numbers to the right, the rest to the left."""
    columns = []
    for head, *column in zip(*cells, strict=True):
        width = max(map(len, (head, *column)))
        numbers = any(cell.replace(".", "").isdigit() for cell in column)
        columns.append(
            [cell.rjust(width) if numbers else cell.ljust(width) for cell in (head, *column)]
        )
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
