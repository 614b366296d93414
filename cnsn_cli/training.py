"""The training loop. It takes a network, data and a recipe, and yields what happens; it never prints."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cnsn_cli.augmentation import EpochPlan, plan_epoch
from cnsn_cli.device import Precision
from cnsn_cli.errors import TrainingError
from cnsn_cli.evaluation import ModelResult, evaluate
from cnsn_cli.images import normalise
from cnsn_cli.loss import multi_model_loss
from cnsn_cli.network import Cnsn
from cnsn_cli.recipe import Recipe
from cnsn_cli.split import Split

REPORT_EVERY = 0.5  # seconds between two Steps; each one waits for the device


@dataclass(frozen=True)
class Step:
    """Where training stands inside an epoch: `step` of `steps` are done, losses and accuracies so far."""

    epoch: int
    step: int
    steps: int
    results: list[ModelResult]
    images_per_second: float


@dataclass(frozen=True)
class Epoch:
    """An epoch that is over: `train` as seen while training, `results` on the held-out images."""

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: list[ModelResult]
    results: list[ModelResult]

    @property
    def mean_accuracy(self) -> float:
        """Over all models; the best epoch is the one where it is highest."""
        return sum(result.accuracy for result in self.results) / len(self.results)


class Trainer:
    """Trains `network` on `train`, and evaluates it on `held_out` after each epoch.

    The network must lie on the device that is to do the work. With `precision="bf16"` convs and linear
    layers of a training step compute in bf16, weights and statistics stay in fp32; `compiled` hands the
    forward pass to torch.compile. Evaluation is always in fp32 and eager.
    """

    def __init__(
        self,
        network: Cnsn,
        train: Split,
        held_out: Split,
        recipe: Recipe,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        if len(train) < recipe.batch_size:
            raise TrainingError(
                f"a batch of {recipe.batch_size} is more than the {len(train)} training images: "
                "lower --batch-size"
            )
        self.device = next(network.parameters()).device
        self.network = network
        self.forward = _compiled(network) if compiled else network
        self.precision: Precision = precision
        self.train = train.to(self.device)
        self.held_out = held_out.to(self.device)
        self.recipe = recipe
        self.steps_per_epoch = len(train) // recipe.batch_size  # the last partial batch is dropped
        self.optimizer = sgd(network, recipe.lr, recipe.momentum, recipe.weight_decay)
        self.epoch = 0  # how many are done

    def run(self) -> Iterator[Step | Epoch]:
        """Train all epochs behind `self.epoch`.

        Raises TrainingError, before the Step or Epoch, where a loss is not finite.
        """
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Step | Epoch]:
        recipe, steps = self.recipe, self.steps_per_epoch
        plan = plan_epoch(len(self.train), recipe.seed, epoch, recipe.crop_padding, recipe.flip, self.device)
        meter = Meter(self.network, recipe.batch_size)
        self.network.train()
        batches = list(torch.split(plan.order[: steps * recipe.batch_size], recipe.batch_size))
        for step, pixels in enumerate(self.train.batches(batches), 1):
            lr = recipe.learning_rate((epoch - 1) * steps + step - 1, steps)
            meter.add(*self._step(pixels, batches[step - 1], plan, lr))
            if meter.is_due() and step < steps:
                yield Step(epoch, step, steps, _finite(meter.results(), epoch, lr), meter.images_per_second())
        train, speed = _finite(meter.results(), epoch, lr), meter.images_per_second()
        results = _finite(evaluate(self.network, self.held_out), epoch, lr)
        self.epoch = epoch
        yield Epoch(epoch, lr, meter.seconds(), speed, train, results)

    def _step(self, pixels: Tensor, indices: Tensor, plan: EpochPlan, lr: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = normalise(plan.augment(pixels, indices), self.network.task)
        labels = self.train.labels[indices]
        return train_step(self.forward, self.optimizer, images, labels, self.precision)


def _compiled(network: Cnsn) -> Callable[[Tensor], list[Tensor]]:
    forward: Callable[[Tensor], list[Tensor]] = torch.compile(network)

    def run(images: Tensor) -> list[Tensor]:
        try:
            return forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has many ways to fail
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile fails here ({reason}): give --no-compile") from error

    return run


def sgd(network: Cnsn, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """The optimizer of the paper, in one kernel where torch has it."""
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.SGD(network.parameters(), lr, momentum, weight_decay=weight_decay, fused=fused)


def train_step(
    forward: Callable[[Tensor], list[Tensor]],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """One step on normalised images (N, C, H, W) and labels (N,); `forward` is a network, maybe compiled.

    Returns the loss and the number of correct answers of each model, both (models,), on the device.
    """
    optimizer.zero_grad()  # before the forward pass, so that old gradients do not lie beside its activations
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = forward(images)
        loss, losses = multi_model_loss(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return losses, (torch.stack(logits).detach().argmax(2) == labels).sum(1)


class Meter:
    """Losses and accuracies of an epoch so far. They stay on the device until somebody asks."""

    def __init__(self, network: Cnsn, batch_size: int) -> None:
        self.names = [model.name for model in network.models()]
        self.batch_size = batch_size
        self.batches = 0
        self.losses = self.correct = torch.zeros(len(self.names), device=next(network.parameters()).device)
        self.start = self.reported = time.perf_counter()

    def add(self, losses: Tensor, correct: Tensor) -> None:
        self.batches += 1
        self.losses = self.losses + losses
        self.correct = self.correct + correct

    def is_due(self) -> bool:
        """True once every REPORT_EVERY seconds."""
        due = time.perf_counter() - self.reported >= REPORT_EVERY
        if due:
            self.reported = time.perf_counter()
        return due

    def results(self) -> list[ModelResult]:
        losses = (self.losses / self.batches).tolist()
        accuracies = (self.correct / (self.batches * self.batch_size)).tolist()
        return [ModelResult(*row) for row in zip(self.names, accuracies, losses, strict=True)]

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def images_per_second(self) -> float:
        return self.batches * self.batch_size / self.seconds()


def _finite(results: list[ModelResult], epoch: int, lr: float) -> list[ModelResult]:
    for result in results:
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"the loss of {result.name} became {result.loss} in epoch {epoch} at a learning rate of "
                f"{lr:g}: lower --lr or lengthen --warmup-epochs"
            )
    return results
