"""The training loop: it takes a network, data and a recipe, and yields events.

`setup` makes the Trainer, and `run` drives it and hands its events to others. This module prints nothing,
writes nothing, and does not know the run folder.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cnsn_cli import distributed
from cnsn_cli.backbones.meta import blank_images, emptied_like
from cnsn_cli.choices import Precision
from cnsn_cli.data.split import Split
from cnsn_cli.errors import TrainingError, one_line
from cnsn_cli.evaluation.accuracy import evaluate
from cnsn_cli.network.loss import Distillation, multi_model_loss
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.recalibration import recalibrate
from cnsn_cli.stages import stage
from cnsn_cli.training.augmentation import EpochPlan, plan_epoch
from cnsn_cli.training.ema import Average
from cnsn_cli.training.gradient_balance import measure, undo_in_step_downs
from cnsn_cli.training.meter import Meter, finite
from cnsn_cli.training.metrics import Epoch, Pull, Step
from cnsn_cli.training.recipe import Recipe

CHECK_EVERY = 0.5  # seconds between two checks of the losses; each check waits for the device
RECALIBRATION_BATCHES = 50  # for averaged weights, after every epoch
Forward = Callable[[Tensor], list[Tensor]]
Loss = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]


class Trainer:
    """Trains `network` on `train`, and evaluates it on `held_out` after each epoch.

    The network must be on the device to train on. With `precision="bf16"` convs and linear layers compute in
    bf16 in a training step; weights and statistics stay in fp32. `compiled` hands the forward pass to
    torch.compile. Evaluation is always in fp32 and eager. Raises TrainingError if there are too few images,
    and RecipeError if the recipe does not fit the network.
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
        check_shares(recipe.batch_size, len(held_out))
        check_norms(network, recipe.batch_size // distributed.size())
        self.device = next(network.parameters()).device
        self.network = network
        together = distributed.parallel(network)
        self.eager = _eager(together)
        self.forward = _compiled(together) if compiled else self.eager
        self.precision: Precision = precision
        self.train = train.to(self.device)
        self.held_out = held_out.to(self.device)
        self.recipe = recipe
        self.steps_per_epoch = len(train) // recipe.batch_size  # the last partial batch is dropped
        self.optimizer = sgd(network, recipe)
        self.frozen = isinstance(network, Cnsn) and network.base_frozen
        self.average = Average(network, recipe.ema) if recipe.ema else None
        self.pulls: list[Pull] = []
        self.epoch = self.step = 0  # the number of epochs done, and of steps done in the next epoch
        self.meter = Meter(network, recipe.batch_size)
        self._scales()  # raises RecipeError now, not in the first step, if their number is wrong

    @property
    def trained(self) -> Cnsn | Model:
        """The network to evaluate and save: with averaged weights if the recipe wants an average."""
        return self.average.network if self.average else self.network

    def run(self) -> Iterator[Step | Epoch]:
        """Train what is left after `self.epoch` epochs and `self.step` steps, and yield every step and epoch.

        After each event the trainer is consistent and may be saved. Raises TrainingError if a loss is not
        finite, at the latest before the Epoch in which it happened.
        """
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Step | Epoch]:
        recipe, steps = self.recipe, self.steps_per_epoch
        plan = plan_epoch(len(self.train), recipe, epoch, self.device)
        if self.step == 0:
            self.meter = Meter(self.network, recipe.batch_size)
        self.network.train()
        whole = torch.split(plan.order[: steps * recipe.batch_size], recipe.batch_size)[self.step :]
        batches = [distributed.share(batch) for batch in whole]
        checked = time.perf_counter()
        for indices, pixels in zip(batches, self.train.batches(batches), strict=True):
            self.meter.add(*self._step(pixels, indices, plan))
            self.step += 1
            if time.perf_counter() - checked > CHECK_EVERY:
                finite(self.meter.results(), epoch, self._learning_rate())
                checked = time.perf_counter()
            yield Step(epoch, self.step, steps, self.meter)
        yield self._finish(epoch)

    def _finish(self, epoch: int) -> Epoch:
        lr, speed = self._learning_rate(), self.meter.images_per_second()
        self.meter.combine()
        train = finite(self.meter.results(), epoch, lr)
        distributed.copy_buffers(self.network)
        if self.average:
            learning = self.trained.models()[self.frozen :]  # all models, without a frozen base-model
            recalibrate(learning, self.train, RECALIBRATION_BATCHES)
        results = finite(evaluate(self.trained, self.held_out), epoch, lr)
        self.epoch, self.step = epoch, 0
        return Epoch(epoch, lr, self.meter.seconds(), speed, train, results, self.pulls)

    @property
    def _done(self) -> int:
        """The number of steps since the start of the training."""
        return self.epoch * self.steps_per_epoch + self.step

    def _learning_rate(self) -> float:
        """The learning rate of the last step that was done."""
        return self.recipe.learning_rate(self._done - 1, self.steps_per_epoch)

    def _step(self, pixels: Tensor, indices: Tensor, plan: EpochPlan) -> tuple[Tensor, Tensor]:
        images, targets = plan.prepare(pixels, self.train.labels[indices], indices, self.network.task)
        scales = self._scales()
        is_last = self.step + 1 == self.steps_per_epoch
        forward = self.eager if is_last else self.forward  # `measure` keeps the graph, torch.compile cannot
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self._done, self.steps_per_epoch)
        self.optimizer.zero_grad()  # before the forward pass, so that old gradients do not take memory in it
        total, losses, correct = forward_pass(forward, images, targets, self._loss(scales), self.precision)
        if is_last:
            self.pulls = measure(self.network, losses, scales)
        total.backward()  # type: ignore[no-untyped-call]
        undo_in_step_downs(self.network, scales)
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, self._done + 1)
        return losses.detach(), correct

    def _scales(self) -> list[float]:
        last = self.steps_per_epoch * self.recipe.epochs - 1
        return self.recipe.gradient_scales(len(self.network.models()) - 1, self._done / max(1, last))

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


def check_shares(batch_size: int, held_out: int) -> None:
    """Raises TrainingError if several processes cannot share batches or images equally."""
    count = distributed.size()
    if batch_size % count:
        raise TrainingError(
            f"a batch of {batch_size} cannot be shared by {count} processes: give --batch-size a multiple "
            f"of {count}"
        )
    if held_out < count:
        raise TrainingError(f"{held_out} images to evaluate on are too few for {count} processes")


def check_norms(network: Cnsn | Model, images: int) -> None:
    """Raises TrainingError if a BN or similar layer cannot normalise batches of `images` images.

    The forward pass is blank: only shapes count, and nothing changes. Two images stand for larger batches.
    """
    batch = blank_images(network.task.image_shape, network, min(images, 2))
    tensors = {name: emptied_like(tensor, batch) for name, tensor in network.named_parameters()}
    tensors |= {name: emptied_like(buffer, batch).clone() for name, buffer in network.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(network, tensors, (batch,))
    except ValueError as error:
        count = distributed.size()
        remedy = f"give --batch-size at least {2 * count}" if images == 1 else "give a larger --image-size"
        share = "a batch" if count == 1 else f"the share of each of {count} processes"
        raise TrainingError(f"{share} of size {images} is too small ({one_line(error)}): {remedy}") from error
    except Exception:  # layers that cannot run on the meta device may raise anything
        return


def _eager(network: nn.Module) -> Forward:
    def run(images: Tensor) -> list[Tensor]:
        logits = network(images)
        return [logits] if isinstance(logits, Tensor) else logits

    return run


def _compiled(network: nn.Module) -> Forward:
    forward = _eager(torch.compile(network))  # type: ignore[arg-type]
    compiling = iter([stage("compiling the forward pass")])  # the first call compiles

    def run(images: Tensor) -> list[Tensor]:
        try:
            with next(compiling, nullcontext()):
                return forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has many ways to fail
            _eager(network)(images)  # raises what is wrong with the network or the images themselves
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(f"torch.compile fails here ({reason}): give --no-compile") from error

    return run


def sgd(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """The optimizer of the paper, SGD; on CPU and CUDA torch computes its step in one kernel."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not recipe.decay_norms:  # biases and BN have one axis, weights of convs and linear layers have more
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
    """Compute losses from normalised images (N, C, H, W) and targets.

    Targets are labels (N,) or probabilities (N, classes). Returns the loss to minimise, and for each model
    its loss and its number of correct answers (models,); all tensors stay on the device.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = forward(images)
        total, losses = loss(logits, targets)
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return total, losses, (torch.stack(logits).detach().argmax(2) == labels).sum(1)
