"""The events of a training run, and the lines of metrics.jsonl. No other module knows their format.

The trainer makes the events, `recorder` writes a line for each epoch, `resume_state` and `plot` read the
lines. This module does not import torch, because `plot` works without torch.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from cnsn_cli.choices import Selection

if TYPE_CHECKING:
    from cnsn_cli.evaluation.accuracy import ModelResult
    from cnsn_cli.training.meter import Meter


@dataclass(frozen=True)
class Pull:
    """The gradients of a sub-model and of the base-model in the parameters that both use.

    `scale` is the weight that the recipe gives to the gradient of the sub-model. `norm` (sub-model) and
    `base_norm` (base-model) are Euclidean norms without this weight. `cosine`, -1 to 1, compares directions.
    """

    name: str
    scale: float
    norm: float
    base_norm: float
    cosine: float


@dataclass(frozen=True)
class Step:
    """Event: `step` of the `steps` in this epoch are done. `meter.results()` waits for the device."""

    epoch: int
    step: int
    steps: int
    meter: "Meter"


@dataclass(frozen=True)
class Epoch:
    """Event: an epoch is over.

    `train` are the results on training images during the epoch, `results` the results on the held-out images
    after it. `pulls` are measured in the last step, one for each sub-model. `phases` are the seconds of each
    phase since the epoch before, or since `train` or `resume` was called.
    """

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: "list[ModelResult]"
    results: "list[ModelResult]"
    pulls: list[Pull]
    phases: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """All numbers but the epoch's own, by names such as `lr` and `results/accuracy/submodel0`.

        The first part of a name is the field of the line in metrics.jsonl; `_` stands for spaces.
        """
        found = {"lr": self.lr, "seconds": self.seconds, "images_per_second": self.images_per_second}
        for part in ("train", "results", "pulls"):
            for values in map(asdict, getattr(self, part)):
                model = values.pop("name")
                found |= {f"{part}/{quantity}/{model}": value for quantity, value in values.items()}
        return found | {f"phases/{name.replace(' ', '_')}": value for name, value in self.phases.items()}


class Result(BaseModel):
    """A ModelResult, as a line holds it."""

    name: str
    accuracy: float
    loss: float


class Line(BaseModel):
    """A line of metrics.jsonl: an Epoch. `selection` says which images its `results` were measured on.

    Older lines have no `phases`.
    """

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: list[Result]
    results: list[Result]
    pulls: list[Pull]
    selection: Selection
    phases: dict[str, float] = {}

    @property
    def mean_accuracy(self) -> float:
        """The mean over all models. The best epoch is the epoch with the highest mean."""
        return sum(result.accuracy for result in self.results) / len(self.results)

    def to_json(self) -> str:
        """The line, with the line break at its end."""
        return json.dumps(self.model_dump()) + "\n"


def line_of(epoch: Epoch, selection: Selection) -> Line:
    return Line(**asdict(epoch), selection=selection)


def parse_lines(text: str) -> list[Line]:
    """The lines of metrics.jsonl. Raises pydantic's ValidationError."""
    return [Line.model_validate_json(line) for line in text.splitlines()]
