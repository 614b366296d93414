"""Which candidates of a search train in a step, beside the base-model: three, drawn for each step.

The sandwich rule of slimmable networks (Yu & Huang 2019) would train the smallest one in every step, and two
drawn ones. Then the smallest candidate has several times the training of the others, and looks better than it
is: benchmarks/RESULTS.md compares both rules.

`setup` makes a Sampler, and the trainer asks it. It knows no network.
"""

from typing import NamedTuple

import numpy as np

DRAWN = 3  # candidates in a step


class Sampler(NamedTuple):
    """Draws from the `candidates`, which have the numbers 1, 2, ... in their network."""

    candidates: int
    seed: int

    def numbers(self, step: int) -> set[int]:
        """The candidates that train in step 0, 1, 2, ... of the training, the same ones in every run."""
        draw = np.random.default_rng((self.seed, step))
        return {1 + int(i) for i in draw.choice(self.candidates, min(DRAWN, self.candidates), replace=False)}
