"""Training of a run's generator: once, from the seed alone, in steps that an interruption cannot lose.

generator.safetensors in the run's folder holds the state; while it is being trained, optimiser and random numbers
too, so that the same command goes on where it stopped and ends with the same bits.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qvit.errors import InputError, QvitError
from qvit.models.networks import Network
from qvit.recipe import Synthesis
from qvit.synthesis.acq import draw_pairs, generator_terms
from qvit.synthesis.generator import ImageGenerator
from qvit.synthesis.loop import NotFiniteError, learning_rate
from qvit.synthesis.seeds import derive_seed, generator_for
from qvit.synthesis.shards import write_whole

logger = logging.getLogger("qvit")

STATE, LOG = "generator.safetensors", "generator.jsonl"
_STAGE = "generator"
_SAVES = 20  # states written on the way
_SAMPLES = 100  # lines of losses in the log

# how many steps are done, and the last losses
StepDone = Callable[[int, Mapping[str, float]], None]


def trained_generator(
    network: Network,
    settings: Synthesis,
    seed: int,
    folder: Path,
    fingerprint: str,
    step_done: StepDone | None = None,
) -> ImageGenerator:
    """The generator of a run, in eval mode: read from its folder, and trained first as far as it is not.

    Args:
        network: The float teacher; its parameters are left alone.
        settings: Conditions, weights of the terms, and the schedule.
        seed: Of everything random.
        folder: The run's, which exists.
        fingerprint: The run's.
        step_done: Called after every step.

    Raises:
        InputError: The folder has a state that is damaged, or another run's.
        QvitError: The loss is not finite under any of the seeds.
    """
    network.requires_grad_(False)
    training = _read(network, settings, seed, folder / STATE, fingerprint)
    while True:
        try:
            training.run(folder, fingerprint, step_done)
            return training.maker.eval().requires_grad_(False)
        except NotFiniteError as error:
            attempt = training.attempt + 1
            if attempt > settings.retries:
                raise QvitError(
                    f"the generator has no finite loss under any of {attempt} seeds; lower the learning rate with "
                    "--set synthesis.lr=..."
                ) from error
            logger.warning("generator: %s; trying another seed", error)
            training = _Training(network, settings, seed, attempt)


class _Training:
    """One attempt: the generator, its optimiser, its random numbers, and how many steps are done."""

    def __init__(self, network: Network, settings: Synthesis, seed: int, attempt: int) -> None:
        self.network, self.settings, self.attempt, self.done = network, settings, attempt, 0
        self.lines: list[dict[str, Any]] = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, _STAGE, 0, attempt))
            maker = ImageGenerator(network.config, settings)
        self.maker = maker.to(next(network.parameters()).device).train()
        self.random = generator_for(seed, _STAGE, 1, attempt)
        betas = settings.beta1, settings.beta2
        self.optimiser = torch.optim.Adam(self.maker.parameters(), lr=settings.lr, betas=betas)

    def run(self, folder: Path, fingerprint: str, step_done: StepDone | None) -> None:
        """All steps that are left."""
        steps = self.settings.iterations
        if self.done == steps:
            return
        every, save_every = max(1, steps // _SAMPLES), max(1, steps // _SAVES)
        spent = self.lines[-1]["seconds"] if self.lines else 0.0
        start, shown = time.perf_counter() - spent, {}
        while self.done < steps:
            losses = self._step()
            if self.done % every == 0 or self.done == steps - 1:
                shown = {name: float(f"{value.item():.6g}") for name, value in losses.items()}
                seconds = round(time.perf_counter() - start, 3)
                self.lines.append({"iteration": self.done, "seconds": seconds, **shown})
            self.done += 1
            if self.done % save_every == 0 or self.done == steps:
                self._write(folder, fingerprint)
            if step_done is not None:
                step_done(self.done, shown)

    def _step(self) -> dict[str, Tensor]:
        settings = self.settings
        self.optimiser.param_groups[0]["lr"] = learning_rate(self.done, settings)
        draw = draw_pairs(self.network, settings, settings.batch, self.random)
        terms = generator_terms(self.network, self.maker, draw, settings)
        total = torch.stack([getattr(settings, name) * v for name, v in terms.items()]).sum()
        if not math.isfinite(total.item()):
            raise NotFiniteError(self.done)
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        return {"loss": total.detach()} | {name: v.detach() for name, v in terms.items()}

    def _write(self, folder: Path, fingerprint: str) -> None:
        """The log first, so that a finished generator never lacks one."""
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_whole(folder / LOG, text.encode())
        tensors = dict(self.maker.state_dict())
        if self.done < self.settings.iterations:
            tensors = {f"maker.{name}": value for name, value in tensors.items()}
            for number, moments in self.optimiser.state_dict()["state"].items():
                tensors |= {f"moments.{number}.{name}": value for name, value in moments.items()}
            tensors["random"] = self.random.get_state()
        facts = {
            "attempt": self.attempt, "done": self.done, "fingerprint": fingerprint,
            "lines": self.lines if self.done < self.settings.iterations else [],
        }  # fmt: skip
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_whole(folder / STATE, save(tensors, {"qvit": json.dumps(facts, sort_keys=True)}))

    def read(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up what `_write` wrote."""
        self.done, self.lines = facts["done"], list(facts["lines"])
        if self.done == self.settings.iterations:
            self.maker.load_state_dict(dict(tensors))
            return
        parts: dict[str, dict[str, Tensor]] = {"maker": {}, "moments": {}, "random": {}}
        for name, value in tensors.items():
            room, _, rest = name.partition(".")
            parts[room][rest] = value
        self.maker.load_state_dict(parts["maker"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["moments"].items():
            number, _, kind = name.partition(".")
            state.setdefault(int(number), {})[kind] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.random.set_state(parts["random"][""])


def _read(
    network: Network, settings: Synthesis, seed: int, path: Path, fingerprint: str
) -> _Training:
    """What the folder has of it, or the beginning."""
    if not path.exists():
        return _Training(network, settings, seed, 0)
    again = f"remove {path} and run the command again"
    try:
        data = (
            path.read_bytes()
        )  # in Python, which the guard sees; native readers are closed while it is in force
        tensors, facts = load(data), _facts(data)
        if facts["fingerprint"] == fingerprint:
            training = _Training(network, settings, seed, facts["attempt"])
            training.read(facts, tensors)
            return training
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error}); {again}") from error
    raise InputError(f"{path} belongs to another run; {again}")


def _facts(data: bytes) -> dict[str, Any]:
    """What `_write` put beside the tensors of a file: JSON in the header, whose length is in its first 8 bytes."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["qvit"])
