"""What a training run tells of, and metrics.jsonl: written and read here alone.

The trainer makes the events, the recorder writes a line an epoch, `resume_state` and `plot` read them. This
module does not import torch, because `plot` does not.
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

    `scale` is the weight that the recipe gives the sub-model's; `norm` and `base_norm` are Euclidean, without
    it; `cosine` lies between -1 and 1.
    """

    name: str
    scale: float
    norm: float
    base_norm: float
    cosine: float


@dataclass(frozen=True)
class Step:
    """`step` of `steps` in this epoch are done. Asking `meter` for results waits for the device."""

    epoch: int
    step: int
    steps: int
    meter: "Meter"


@dataclass(frozen=True)
class Epoch:
    """An epoch that is over: `train` as seen while training, `results` on the held-out images.

    `pulls` are those of the last step, one a sub-model.
    """

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: "list[ModelResult]"
    results: "list[ModelResult]"
    pulls: list[Pull]


class Result(BaseModel):
    """A ModelResult in a line."""

    name: str
    accuracy: float
    loss: float


class Line(BaseModel):
    """A line of metrics.jsonl: an Epoch, and which images its `results` are of."""

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: list[Result]
    results: list[Result]
    pulls: list[Pull]
    selection: Selection

    @property
    def mean_accuracy(self) -> float:
        """Over all models; the best epoch is the one where it is highest."""
        return sum(result.accuracy for result in self.results) / len(self.results)

    def to_json(self) -> str:
        """The line with its end."""
        return json.dumps(self.model_dump()) + "\n"


def line_of(epoch: Epoch, selection: Selection) -> Line:
    return Line(**asdict(epoch), selection=selection)


def parse(text: str) -> list[Line]:
    """The lines of metrics.jsonl. Raises pydantic's ValidationError."""
    return [Line.model_validate_json(line) for line in text.splitlines()]
