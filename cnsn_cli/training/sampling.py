"""Which candidates of a search train in a step: the smallest, and some that are drawn.

With the base-model, which trains in every step, this is the sandwich rule (Yu & Huang 2019): the largest, the
smallest, and some between. `setup` makes a Sampler, and the trainer asks it. It knows no network.
"""

from typing import NamedTuple

import numpy as np

DRAWN = 2  # candidates beside the smallest


class Sampler(NamedTuple):
    """`macs` are those of each candidate, which has the numbers 1, 2, ... in its network."""

    macs: tuple[int, ...]
    seed: int

    def numbers(self, step: int) -> set[int]:
        """The candidates that train in step 0, 1, 2, ... of the training, the same ones in every run."""
        smallest = self.macs.index(min(self.macs)) + 1
        others = [number for number in range(1, len(self.macs) + 1) if number != smallest]
        draw = np.random.default_rng((self.seed, step))
        return {smallest, *map(int, draw.choice(others, min(DRAWN, len(others)), replace=False))}
