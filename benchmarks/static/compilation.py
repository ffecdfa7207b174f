"""Compilation of a launch for any GPU, without one, and the figures of what came out."""

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import create_function_from_signature

from benchmarks.static.sass import MATRIX_OPCODES, Listing, Loop, main_loop, read_sass
from qvit_kernels.launching import Launch


@dataclass(frozen=True, slots=True)
class Figures:
    """What a compiled kernel is made of.

    Attributes:
        instructions: In the whole kernel; loop: in one round of its main loop, 0 without one.
        mma: Mnemonic of its matrix products, with modifiers, "" without one; mma_count: how many there are in the
            main loop, or in the whole kernel where that has none.
        per_unit: Instructions per matrix product (in the main loop if there is one), or, where there is no product, per
            element: instructions of all warps of a program over its elements / 32.
        registers: Of a thread; stack, shared: bytes; local: loads and stores of spilled registers.
    """

    instructions: int
    loop: int
    mma: str
    mma_count: int
    per_unit: float
    registers: int
    stack: int
    local: int
    shared: int


def compile_launch(launch: Launch, capability: int) -> CompiledKernel:
    """What `launch.run()` would compile on a card of this capability (80, 90, ...), by Triton's own specialisation.

    Argument tensors may lie on the meta device; they then count as aligned to 16 bytes.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = launch.options | {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": False,
        "debug": False,
    }
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **options)
    parsed, signature, constants, attributes = launch.kernel._pack_args(
        backend, options, bound, specialization, options
    )
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = compile(source, target=target, options=parsed.__dict__)
    assert isinstance(kernel, CompiledKernel)
    return kernel


def disassemble(kernel: CompiledKernel) -> tuple[Listing, dict[str, int]]:
    """The machine code, and what `cuobjdump -res-usage` says: REG, STACK and more."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        text = _output(knobs.nvidia.nvdisasm.path, "-c", cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
    return read_sass(text), {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}


def figures_of(launch: Launch, capability: int) -> Figures:
    """Compile and count."""
    kernel = compile_launch(launch, capability)
    listing, usage = disassemble(kernel)
    loop = main_loop(listing)
    part: Listing | Loop = loop or listing
    products = [x.opcode for x in part.instructions if x.name in MATRIX_OPCODES]
    if products:
        per_unit = len(part.instructions) / len(products)
    else:
        elements = launch.arguments.get("ROWS", 1) * launch.arguments.get("K", 1)
        per_unit = len(listing.instructions) * 32 * launch.warps / elements
    return Figures(
        instructions=len(listing.instructions),
        loop=len(loop.instructions) if loop else 0,
        mma=max(set(products), key=products.count) if products else "",
        mma_count=len(products),
        per_unit=round(per_unit, 3),
        registers=usage["REG"],
        stack=usage["STACK"],
        local=listing.count("LDL", "STL"),
        shared=kernel.metadata.shared,
    )


def as_row(figures: Figures) -> dict[str, int | float | str]:
    """For the JSON table."""
    return asdict(figures)


def _output(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return done.stdout
