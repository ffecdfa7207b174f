"""The tuner: tries tiles for the matrix products of each model, batch and scheme, and writes the card's table.

The table is what `qvit_kernels.tiles` reads. A row for every measured M, also where the rule's own tile won: the
nearest measured M decides for all others. A tile whose result differs from that of the rule's tile is dropped.
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.cases.kernels import BATCHES, MODELS, SCHEMES, TINY, Case
from benchmarks.cells import write_whole
from benchmarks.checks import agreement
from benchmarks.gpu.compiling_ahead import Ahead, compiling_ahead, worker_count
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.session import DONE, UNFINISHED, Session, Work
from benchmarks.gpu.timing import capture, first_line, time_candidates
from qvit.timing import measure
from qvit_kernels import tiles
from qvit_kernels.tiles import Tile

SUITE = "gpu-tune"
_KERNELS = ("fc1", "qkv", "fc2", "proj")
_FINALISTS = 3
_ROUNDS = 5
_NOISE = 1.02  # a tile that gains less than two runs of one kernel differ by has gained nothing
_DEPTHS = (
    (64, 4),
    (128, 3),
)  # columns a step, and stages that about as many bytes are in flight for
_MOST_ROWS_TO_SPLIT = 1024  # beyond, tiles fill any card
_LARGEST_ACCUMULATOR, _SMALLEST_ACCUMULATOR = (
    128,
    8,
)  # sums a thread holds: more spill, fewer are all overhead


class UnfitError(ValueError):
    """A tile that cannot hold what an op needs held together: a head, a group."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question that an op put to `tiles.choose`, and the answer that it would have had."""

    kernel: str
    m: int
    n: int
    k: int
    own: Tile


def candidates(case: Case) -> list[Tile]:
    """Every tile that is worth a try; for a product that adds to the residual, few rows also in parts."""
    found = []
    for m, n, warps in itertools.product((16, 32, 64, 128), (64, 128, 256), (4, 8)):
        if _SMALLEST_ACCUMULATOR <= m * n // (32 * warps) <= _LARGEST_ACCUMULATOR:
            found += [Tile(m, n, k, warps, stages) for k, stages in _DEPTHS]
    if case.kernel in ("fc2", "proj") and case.rows <= _MOST_ROWS_TO_SPLIT:
        blocks = itertools.product((16, 32, 64), _DEPTHS, (2, 3, 4, 8))
        found += [Tile(m, 64, k, 4, stages, splits) for m, (k, stages), splits in blocks]
    return found


@contextmanager
def forced(tile: Tile | None) -> Iterator[list[Asked]]:
    """Every product in this block takes `tile` (None: its own); yields what was asked."""
    asked: list[Asked] = []
    original = tiles.choose

    def choose(kernel: str, m: int, n: int, k: int, capability: int, **options: Any) -> Tile:
        own = original(kernel, m, n, k, capability, **options)
        asked.append(Asked(kernel, m, n, k, own))
        if tile is None:
            return own
        unit_k = options.get("unit_k", 0)
        if tile.block_n < options.get("unit_n", 1) or (unit_k and unit_k % tile.block_k):
            raise UnfitError(f"{tile} does not hold whole groups or heads")
        if not tiles.divides(tile, k, may_split=options.get("may_split", False)):
            raise UnfitError(f"{tile} does not divide {k} columns")
        return tile

    with mock.patch.object(tiles, "choose", choose):
        yield asked


def compile_tile(case: Case, tile: Tile, device: str) -> None:
    """Run a case once with a tile: what a process of `compiling_ahead` does."""
    with forced(tile):
        case.make(torch.device(device))("triton")


def run(session: Session) -> int:
    """Tune what is not tuned yet; with everything tuned, write the table. Exit code."""
    session.require_green_check()
    ledger = session.open(SUITE)
    with compiling_ahead(worker_count(session.device.type)) as ahead:
        left = session.run(ledger, cells(session, ahead))
    written = write_table(ledger, session, finished=not left)
    if not left:
        session.close(ledger, {"tables": [path.name for path in written]})
    print(table(ledger))
    print("written:", *written)
    return UNFINISHED if left else DONE


def cells(session: Session, ahead: Ahead) -> Iterator[tuple[str, Work]]:
    """One a case: large and small batches first, between them the nearest M decides meanwhile."""
    models, batches = (TINY, (1,)) if session.dry else (MODELS, BATCHES)
    for batch in sorted(batches, key=lambda b: (b not in (1, 64), b)):
        for model, kernel, scheme in itertools.product(models, _KERNELS, SCHEMES):
            case = Case(kernel, model, batch, scheme)
            yield case.name, lambda case=case: tune(case, session, ahead)


def tune(
    case: Case, session: Session, ahead: Ahead, tried: list[Tile] | None = None
) -> dict[str, Any]:
    """The fastest tile of a case. tried: others than `candidates`."""
    tried = tried or (_DRY_TILES if session.dry else candidates(case))
    device = session.device
    call = case.make(device)
    with forced(None) as asked:
        expected = call("triton")
    question, own = asked[0], asked[0].own
    calls: dict[Tile, Callable[[], object]] = {own: _forcing(call, own)}
    dropped: dict[str, int] = {}
    for future in ahead(compile_tile, [(case, tile, str(device)) for tile in tried]):
        future.exception()  # waits; a tile that fails there fails below, with its reason
    for tile in tried:
        reason = _try(call, tile, expected)
        if reason is None:
            calls[tile] = _forcing(call, tile)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    times = _rank(calls, own, session)
    winner = min(times, key=lambda tile: times[tile])
    if times[own] <= _NOISE * times[winner]:
        winner = own
    return {
        "asked": {key: value for key, value in asdict(question).items() if key != "own"},
        "tile": asdict(winner),
        "us": round(1000 * times[winner], 3),
        "rule": asdict(own),
        "rule_us": round(1000 * times[own], 3),
        "tried": len(calls),
        "dropped": dropped,
    }


_DRY_TILES = [Tile(16, 64, 64, 4, 3), Tile(16, 64, 32, 4, 3)]


def _forcing(call: Callable[[str], object], tile: Tile) -> Callable[[], object]:
    def run_forced() -> object:
        with forced(tile):
            return call("triton")

    return run_forced


def _try(call: Callable[[str], object], tile: Tile, expected: object) -> str | None:
    """None where the tile gives the result of the rule's tile; else why not."""
    try:
        found = _forcing(call, tile)()
        fault = agreement.compare(found, expected).fault(exact=False)
    except Exception as error:  # noqa: BLE001 - out of registers or shared memory, refused by the compiler: no tile
        return first_line(error)[:80]
    return fault and "a wrong result"


def _rank(
    calls: dict[Tile, Callable[[], object]], own: Tile, session: Session
) -> dict[Tile, float]:
    """ms by tile: of the fastest few in a quick pass, and of the rule's, timed in turns."""
    if session.dry:
        found, _ = time_candidates(_named(calls), session.device, dry=True)
        return {tile: found[str(tile)].best.median for tile in calls}
    graphs, counts = {}, {}
    for tile, call in calls.items():
        graphs[tile], counts[tile] = capture(call)
    quick = {tile: _quick_ms(graphs[tile]) / counts[tile] for tile in graphs}
    chosen = {*sorted(quick, key=lambda tile: quick[tile])[:_FINALISTS], own}
    finalists = {tile: graphs[tile] for tile in chosen}
    timings = measure(_named(finalists), rounds=_ROUNDS, warmup=1, device="cuda")
    return {tile: timings[str(tile)].median / counts[tile] for tile in finalists}


def _named(calls: dict[Tile, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    return {str(tile): call for tile, call in calls.items()}


def _quick_ms(replay: Callable[[], object]) -> float:
    samples = []
    for _ in range(5):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        replay()
        ended.record()
        torch.cuda.synchronize()
        samples.append(begun.elapsed_time(ended))
    return statistics.median(samples)


def tuned_table(ledger: Ledger, card: str) -> dict[str, Any]:
    """The table of `qvit_kernels.tiles` from the tuned cells."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in ledger.cells.values():
        if "asked" not in cell:
            continue
        asked = cell["asked"]
        rows = found.setdefault(asked["kernel"], {}).setdefault(f"{asked['n']}x{asked['k']}", [])
        if all(row["m"] != asked["m"] for row in rows):
            rows.append({"m": asked["m"], "tile": cell["tile"], "us": cell["us"]})
    for rows in itertools.chain.from_iterable(shapes.values() for shapes in found.values()):
        rows.sort(key=lambda row: row["m"])
    return {"card": card, "tiles": found}


def write_table(ledger: Ledger, session: Session, *, finished: bool) -> list[Path]:
    """Write the table beside the results and, finished on a real card, where the kernels look for it; the paths.

    Not before: a table in the tree changes what the kernels do, so it takes a new gpu-check, and ends this tuning.
    """
    card = "dry-run" if session.dry else torch.cuda.get_device_name(session.device)
    text = json.dumps(tuned_table(ledger, card), indent=1) + "\n"
    paths = [session.folder / f"tuned-{session.card}.json"]
    if finished and not session.dry:
        paths.append(tiles.TABLES / f"{session.card}.json")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return paths


_WORTH_SHOWING = 1.05  # the rule's time over that of the best tile


def table(ledger: Ledger) -> str:
    """A row a case that gains, and how many there are."""
    lines = ["| case | tile | us | rule's tile | its us |", "| --- " * 5 + "|"]
    tuned = {name: cell for name, cell in ledger.cells.items() if "asked" in cell}
    for name, cell in ledger.cells.items():
        if "error" in cell:
            lines.append(f"| {name} | failed: {cell['error'][:80]} |")
        elif cell["rule_us"] >= _WORTH_SHOWING * cell["us"]:
            times = f"{cell['us']:.1f} | {_short(cell['rule'])} | {cell['rule_us']:.1f}"
            lines.append(f"| {name} | {_short(cell['tile'])} | {times} |")
    gains = [cell["rule_us"] / cell["us"] for cell in tuned.values()]
    if gains:
        lines.append(
            f"{len(tuned)} cases tuned: the rule's tile takes {statistics.median(gains):.2f} times the best one's time "
            f"in the median, {max(gains):.2f} times at most"
        )
    if ledger.identity["dry"]:
        lines.append("dry run: the interpreter on a CPU; these are no speeds")
    return "\n".join(lines)


def _short(tile: dict[str, int]) -> str:
    shape = "x".join(str(tile[key]) for key in ("block_m", "block_n", "block_k"))
    return f"{shape} w{tile['warps']} s{tile['stages']}"
