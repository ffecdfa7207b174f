"""Reading of SASS, the machine code of NVIDIA GPUs, as `nvdisasm -c` prints it: instructions, loops, matrix products.

Loops are found in the graph of basic blocks and not by looking for branches upwards: ptxas moves the waiting for a
barrier behind the last instruction of a kernel, and from there a branch leads back into the middle of a loop.
"""

import re
from dataclasses import dataclass

# By generation: mma.sync, wgmma, tcgen05.
MATRIX_OPCODES = ("IMMA", "IGMMA", "UTCIMMA")

_LABEL = re.compile(r"^(\.L_x_\d+|\.L_\d+|\$\S+):$")
_LINE = re.compile(r"^/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+)?\s*([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: opcode with its modifiers, operands, and whether a predicate guards it."""

    opcode: str
    operands: str
    guarded: bool

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        found = _TARGET.search(self.operands) if self.name == "BRA" else None
        return found.group(1) if found else None

    @property
    def ends(self) -> bool:
        """Whether the next instruction is never reached from this one."""
        if self.guarded:
            return False
        if self.name == "BRA":  # with a second operand or a modifier it is a condition
            return self.operands.startswith("`(") and self.opcode in ("BRA", "BRA.U")
        return self.name in ("EXIT", "RET", "BRX", "JMP", "JMX")


@dataclass(frozen=True, slots=True)
class Listing:
    """The instructions of a kernel in order, without padding, and the position of each label."""

    instructions: list[Instruction]
    labels: dict[str, int]

    def count(self, *names: str) -> int:
        """Number of instructions with one of these opcodes, whatever their modifiers."""
        return sum(instruction.name in names for instruction in self.instructions)


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions that one round of a loop can pass."""

    instructions: list[Instruction]

    def count(self, *names: str) -> int:
        """As `Listing.count`."""
        return sum(instruction.name in names for instruction in self.instructions)


def read_sass(text: str) -> Listing:
    """The instructions in the output of `nvdisasm -c` for one kernel.

    The padding at the end is left out: NOPs behind a branch to itself.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, text.splitlines()):
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif found := _LINE.match(line):
            guard, opcode, operands = found.groups()
            instructions.append(Instruction(opcode, operands, guard is not None))
    end = len(instructions)
    while end and instructions[end - 1].name == "NOP":
        end -= 1
    if end and labels.get(instructions[end - 1].target or "") == end - 1:
        end -= 1
    return Listing(instructions[:end], {k: v for k, v in labels.items() if v < end})


def main_loop(listing: Listing) -> Loop | None:
    """The innermost loop with matrix products; of several the one with the most of them, None if there is none."""
    bodies = [
        body
        for body in _loops(listing)
        if any(listing.instructions[i].name in MATRIX_OPCODES for i in body)
    ]
    innermost = [body for body in bodies if not any(other < body for other in bodies)]
    loops = [Loop([listing.instructions[i] for i in sorted(body)]) for body in innermost]
    return max(loops, key=lambda loop: loop.count(*MATRIX_OPCODES), default=None)


def _loops(listing: Listing) -> list[frozenset[int]]:
    """Natural loops, each as the set of its instructions' positions; those with one head are one loop."""
    starts, following = _blocks(listing)
    dominators = _dominators(following)
    preceding: list[list[int]] = [[] for _ in starts]
    for block, targets in enumerate(following):
        for target in targets:
            preceding[target].append(block)
    bodies: dict[int, set[int]] = {}
    for block, targets in enumerate(following):
        for head in targets:
            if dominators[block] >> head & 1:  # a branch back to a block that every way here passes
                body = bodies.setdefault(head, {head})
                waiting = [block]
                while waiting:
                    if (found := waiting.pop()) not in body:
                        body.add(found)
                        waiting += preceding[found]
    ends = [*starts[1:], len(listing.instructions)]
    return [
        frozenset(i for block in body for i in range(starts[block], ends[block]))
        for body in bodies.values()
    ]


def _blocks(listing: Listing) -> tuple[list[int], list[list[int]]]:
    """First instruction of each basic block, and the blocks that each can be followed by."""
    code, labels = listing.instructions, listing.labels
    leaders = {0, *labels.values()}
    leaders |= {
        i + 1 for i, instruction in enumerate(code) if instruction.target or instruction.ends
    }
    starts = sorted(i for i in leaders if i < len(code))
    block_at = {start: block for block, start in enumerate(starts)}
    following = []
    for block in range(len(starts)):
        end = starts[block + 1] if block + 1 < len(starts) else len(code)
        last = code[end - 1]
        targets = [block_at[labels[last.target]]] if last.target in labels else []
        if not last.ends and end < len(code):
            targets.append(block_at[end])
        following.append(targets)
    return starts, following


def _dominators(following: list[list[int]]) -> list[int]:
    """For each block the blocks on every way to it from block 0, as bits; no bits for a block out of reach."""
    found = [0] * len(following)
    waiting = [(0, 0)] if following else []
    while waiting:
        block, above = waiting.pop()
        now = above | 1 << block
        if found[block]:
            now = found[block] & now
        if now != found[block]:
            found[block] = now
            waiting += [(target, now) for target in following[block]]
    return found
