"""Seeds of units of work: a batch draws the same numbers whoever computes it, and whatever came before it."""

import hashlib

import torch

SYNTHESIS = "synthesis"  # the stage that makes images, batch by batch


def derive_seed(seed: int, stage: str, batch: int, attempt: int = 0) -> int:
    """A seed from 0 to 2^63 - 1 for one attempt at one batch, as unlike its neighbours as a hash makes it."""
    text = f"qvit:{seed}:{stage}:{batch}:{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, stage: str, batch: int, attempt: int = 0) -> torch.Generator:
    """A generator on the CPU, so that every device gets the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, stage, batch, attempt))
