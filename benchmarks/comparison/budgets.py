"""Budgets: how many images, iterations and epochs every method gets, all of them the same."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What a cell may spend.

    Attributes:
        images: Synthetic images; `real-N` has its own count.
        iterations: Steps of their pixels; 0: as many as each method publishes.
        steps: Steps of the student, however many images there are.
        batch: Images of a batch, in synthesis and in training.
        evaluated: Images that the result is measured on, at most.
    """

    images: int
    iterations: int
    steps: int
    batch: int
    evaluated: int


# The publications have 10,000 images, 2000 iterations and 125,000 steps.
BUDGETS = {
    "smoke": Budget(images=4, iterations=2, steps=2, batch=2, evaluated=8),
    "demo": Budget(images=64, iterations=200, steps=60, batch=16, evaluated=500),
    "demo-controls": Budget(images=16, iterations=200, steps=20, batch=16, evaluated=500),
    # a generator's 200 steps are a twentieth of its preset's
    "demo-generators": Budget(images=64, iterations=1000, steps=60, batch=16, evaluated=500),
    "demo-published": Budget(images=16, iterations=0, steps=20, batch=16, evaluated=500),
    # A step of 16 images of the ViT-Tiny's pixels takes 3.8 s of a core without AVX-512.
    "cpu": Budget(images=16, iterations=50, steps=12, batch=8, evaluated=250),
    "gpu": Budget(images=1024, iterations=1000, steps=4000, batch=32, evaluated=1300),
}
