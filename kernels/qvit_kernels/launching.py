"""A kernel launch as a value: what `fused` runs on a card, and what can be compiled and counted without one."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        kernel: The `triton.jit` function.
        grid: Programs along each axis.
        arguments: By parameter name: tensors, numbers, None, and the values of constexpr parameters.
        warps, stages: As Triton's `num_warps` and `num_stages`.
        options: Further launch options.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Launch it on the current stream; nothing for an empty grid."""
        if 0 in self.grid:
            return
        # No fusion of products and sums into fma: the arithmetic is that of `reference`, two roundings.
        self.kernel[self.grid](
            **self.arguments,
            **self.options,
            num_warps=self.warps,
            num_stages=self.stages,
            enable_fp_fusion=False,
        )
