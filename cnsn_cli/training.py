"""The training loop. It takes a network, data and a recipe, and yields what happens; it never prints."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnsn_cli.augmentation import EpochPlan, plan_epoch
from cnsn_cli.averaging import Average
from cnsn_cli.balance import Pull, measure, undo_in_step_downs
from cnsn_cli.device import Precision
from cnsn_cli.errors import TrainingError
from cnsn_cli.evaluation import ModelResult, evaluate
from cnsn_cli.loss import Distillation, multi_model_loss
from cnsn_cli.network import Cnsn, Model
from cnsn_cli.recalibration import recalibrate
from cnsn_cli.recipe import Recipe
from cnsn_cli.split import Split

REPORT_EVERY = 0.5  # seconds between two Steps; each one waits for the device
RECALIBRATION_BATCHES = 50  # for averaged weights, after every epoch
Forward = Callable[[Tensor], list[Tensor]]
Loss = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]


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
    """An epoch that is over: `train` as seen while training, `results` on the held-out images.

    `pulls` are those of the last step, one a sub-model.
    """

    epoch: int
    lr: float
    seconds: float
    images_per_second: float
    train: list[ModelResult]
    results: list[ModelResult]
    pulls: list[Pull]

    @property
    def mean_accuracy(self) -> float:
        """Over all models; the best epoch is the one where it is highest."""
        return sum(result.accuracy for result in self.results) / len(self.results)


class Trainer:
    """Trains `network` on `train`, and evaluates it on `held_out` after each epoch.

    The network must lie on the device that is to do the work. With `precision="bf16"` convs and linear
    layers of a training step compute in bf16, weights and statistics stay in fp32; `compiled` hands the
    forward pass to torch.compile. Evaluation is always in fp32 and eager. Raises TrainingError for too few
    images, RecipeError for a recipe that does not fit the network.
    """

    def __init__(
        self,
        network: Cnsn | Model,
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
        self.forward = _compiled(network) if compiled else _eager(network)
        self.precision: Precision = precision
        self.train = train.to(self.device)
        self.held_out = held_out.to(self.device)
        self.recipe = recipe
        self.steps_per_epoch = len(train) // recipe.batch_size  # the last partial batch is dropped
        self.optimizer = sgd(network, recipe)
        self.frozen = isinstance(network, Cnsn) and network.base_frozen
        self.average = Average(network, recipe.ema) if recipe.ema else None
        self.pulls: list[Pull] = []
        self.epoch = 0  # how many are done
        self._scales(0)  # where the recipe gives a wrong number of them, say it now

    @property
    def trained(self) -> Cnsn | Model:
        """The network to evaluate and keep: that of averaged weights, where the recipe wants one."""
        return self.average.network if self.average else self.network

    def run(self) -> Iterator[Step | Epoch]:
        """Train all epochs behind `self.epoch`.

        Raises TrainingError, before the Step or Epoch, where a loss is not finite.
        """
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Step | Epoch]:
        recipe, steps = self.recipe, self.steps_per_epoch
        plan = plan_epoch(len(self.train), recipe, epoch, self.device)
        meter = Meter(self.network, recipe.batch_size)
        self.network.train()
        batches = list(torch.split(plan.order[: steps * recipe.batch_size], recipe.batch_size))
        for step, pixels in enumerate(self.train.batches(batches), 1):
            done = (epoch - 1) * steps + step - 1
            lr = self._set_learning_rate(done)
            meter.add(*self._step(pixels, batches[step - 1], plan, done))
            if meter.is_due() and step < steps:
                yield Step(epoch, step, steps, _finite(meter.results(), epoch, lr), meter.images_per_second())
        train, speed = _finite(meter.results(), epoch, lr), meter.images_per_second()
        if self.average:
            learning = self.trained.models()[self.frozen :]  # all, or all but a frozen base-model
            recalibrate(learning, self.train, RECALIBRATION_BATCHES)
        results = _finite(evaluate(self.trained, self.held_out), epoch, lr)
        self.epoch = epoch
        yield Epoch(epoch, lr, meter.seconds(), speed, train, results, self.pulls)

    def _set_learning_rate(self, done: int) -> float:
        lr = self.recipe.learning_rate(done, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _step(self, pixels: Tensor, indices: Tensor, plan: EpochPlan, done: int) -> tuple[Tensor, Tensor]:
        images, targets = plan.prepare(pixels, self.train.labels[indices], indices, self.network.task)
        scales = self._scales(done)
        is_last = (done + 1) % self.steps_per_epoch == 0
        forward = _eager(self.network) if is_last else self.forward  # a compiled graph cannot be kept
        self.optimizer.zero_grad()  # before the forward pass: no old gradients beside its activations
        total, losses, correct = forward_pass(forward, images, targets, self._loss(scales), self.precision)
        if is_last:
            self.pulls = measure(self.network, losses, scales)
        total.backward()  # type: ignore[no-untyped-call]
        undo_in_step_downs(self.network, scales)
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, done + 1)
        return losses.detach(), correct

    def _scales(self, done: int) -> list[float]:
        last = self.steps_per_epoch * self.recipe.epochs - 1
        return self.recipe.gradient_scales(len(self.network.models()) - 1, done / max(1, last))

    def _loss(self, scales: list[float]) -> Loss:
        recipe = self.recipe
        distillation = None
        if recipe.distill != "none":
            distillation = Distillation(recipe.distill, recipe.distill_weight, recipe.temperature)
        return partial(
            multi_model_loss,
            label_smoothing=recipe.label_smoothing,
            distillation=distillation,
            scales=scales,
        )


def _eager(network: Cnsn | Model) -> Forward:
    def run(images: Tensor) -> list[Tensor]:
        logits = network(images)
        return [logits] if isinstance(logits, Tensor) else logits

    return run


def _compiled(network: Cnsn | Model) -> Forward:
    forward = _eager(torch.compile(network))  # type: ignore[arg-type]

    def run(images: Tensor) -> list[Tensor]:
        try:
            return forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has many ways to fail
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile fails here ({reason}): give --no-compile") from error

    return run


def sgd(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """The optimizer of the paper, in one kernel where torch has it."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not recipe.decay_norms:  # biases and BN have one axis, weights of convs and linear layers more
        groups = [
            {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
            {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def forward_pass(
    forward: Forward,
    images: Tensor,
    targets: Tensor,
    loss: Loss = multi_model_loss,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images (N, C, H, W) and targets, labels (N,) or probabilities (N, classes), to losses.

    Returns the loss to minimise, and of each model the loss and the number of correct answers (models,); all
    stay on the device.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = forward(images)
        total, losses = loss(logits, targets)
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return total, losses, (torch.stack(logits).detach().argmax(2) == labels).sum(1)


class Meter:
    """Losses and accuracies of an epoch so far. They stay on the device until somebody asks."""

    def __init__(self, network: Cnsn | Model, batch_size: int) -> None:
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
