"""The training loop: it takes a network, data and a recipe, and yields events.

`setup` makes the Trainer, and `run` drives it and hands its events to others. This module prints nothing,
writes nothing, and does not know the run folder.
"""

import time
from collections.abc import Collection, Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from cnsn_cli import distributed
from cnsn_cli.backbones.meta import blank_images, emptied_like
from cnsn_cli.choices import Precision
from cnsn_cli.data.split import Split
from cnsn_cli.device import fastest_convs
from cnsn_cli.errors import TrainingError, one_line
from cnsn_cli.evaluation.accuracy import ModelResult, evaluate, evaluate_models
from cnsn_cli.memory import keep_freed_memory
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.recalibration import recalibrate
from cnsn_cli.phases import each, phase, taken
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.meter import finite
from cnsn_cli.training.metrics import Epoch, Pull, Step
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.sampling import Sampler
from cnsn_cli.training.step import TrainingStep

CHECK_EVERY = 0.5  # seconds between two checks of the losses; each check waits for the device
RECALIBRATION_BATCHES = 50  # for averaged weights, after every epoch


class Trainer:
    """Trains `network` on `train`, and evaluates it on `held_out` after each epoch.

    The network must be on the device to train on. With `precision="bf16"` convs and linear layers compute in
    bf16 in a training step; weights and statistics stay in fp32. `compiled` hands the forward pass to
    torch.compile, and `capture` makes a step on CUDA one graph. Evaluation is always in fp32 and eager.
    `drawn` names parameters that start at random, although others are pretrained. With a `sampler`, a step
    trains the base-model and some of the sub-models, and only the base-model is evaluated.
    Raises TrainingError if there are too few images, and RecipeError if the recipe does not fit the network.
    """

    def __init__(
        self,
        network: Cnsn | Model,
        train: Split,
        held_out: Split,
        recipe: Recipe,
        precision: Precision = "fp32",
        compiled: bool = False,
        capture: bool = False,
        drawn: Collection[str] = (),
        sampler: Sampler | None = None,
    ) -> None:
        check_images(recipe, len(train))
        check_shares(recipe.batch_size, len(held_out))
        check_norms(network, recipe.batch_size // distributed.size())
        keep_freed_memory()
        self.device = next(network.parameters()).device
        self.network = network
        self.train = train.to(self.device)
        self.held_out = held_out.to(self.device)
        self.recipe, self.drawn = recipe, tuple(drawn)
        self.images_per_step = recipe.batch_size * recipe.accumulate
        self.steps_per_epoch = len(train) // self.images_per_step  # an incomplete step is dropped
        self.sampler = sampler
        sampled = sampler is not None
        self.training_step = TrainingStep(
            network, self.train.labels, recipe, precision, capture, drawn, sampled
        )
        if compiled:
            self.training_step.compile()
        self.optimizer, self.average = self.training_step.optimizer, self.training_step.average
        self.meter = self.training_step.meter
        self.frozen = isinstance(network, Cnsn) and network.base_frozen
        self.pulls: list[Pull] = []
        self.epoch = self.step = 0  # the number of epochs done, and of steps done in the next epoch
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
        self.training_step.begin(plan)
        if self.step == 0:
            self.meter.restart()
        self.network.train()
        whole = torch.split(plan.order[: steps * self.images_per_step], self.images_per_step)[self.step :]
        batches = [self._own(images) for images in whole]
        checked = time.perf_counter()
        read = each("reading", self._shown(epoch).batches(batches))
        for indices, pixels in zip(batches, read, strict=True):
            self._do(indices, pixels)
            if time.perf_counter() - checked > CHECK_EVERY:
                with phase("training"):  # it is the device that is waited for
                    finite(self.meter.results(), epoch, self._learning_rate())
                checked = time.perf_counter()
            yield Step(epoch, self.step, steps, self.meter)
        yield self._finish(epoch)

    def _shown(self, epoch: int) -> Split:
        """The training images as the recipe shows them in an epoch, before they are in batches."""
        if not self.recipe.photo_augmentation:
            return self.train
        from cnsn_cli.training.photos import changed  # imports torchvision, for a third of a second

        return changed(self.train, self.recipe, self.network.task, epoch)

    def _own(self, images: Tensor) -> Tensor:
        """This process's share of each batch of a step, one after the other."""
        return torch.cat([distributed.share(batch) for batch in torch.split(images, self.recipe.batch_size)])

    def _do(self, indices: Tensor, pixels: Tensor) -> None:
        with phase("training"), fastest_convs():
            lr = self.recipe.learning_rate(self._done, self.steps_per_epoch)
            self.training_step.set(indices, pixels, lr, self._scales(), self._done)
            if self.sampler:
                assert isinstance(self.network, Cnsn)
                self.network.choose(self.sampler.numbers(self._done))
                self.training_step()
            elif self.step + 1 == self.steps_per_epoch:
                self.pulls = self.training_step.measured()
            else:
                self.training_step()
        self.step += 1
        self.meter.batches += self.recipe.accumulate

    def _finish(self, epoch: int) -> Epoch:
        lr, speed = self._learning_rate(), self.meter.images_per_second()
        with phase("training"):
            self.meter.combine()
            train = finite(self.meter.results(), epoch, lr)
        with phase("evaluating"):
            results = finite(self._evaluate(), epoch, lr)
        self.epoch, self.step = epoch, 0
        return Epoch(epoch, lr, self.meter.seconds(), speed, train, results, self.pulls, taken())

    def _evaluate(self) -> list[ModelResult]:
        distributed.copy_buffers(self.network)
        if self.average:
            self.recalibrate(RECALIBRATION_BATCHES)
        if self.sampler and isinstance(self.trained, Cnsn):
            return evaluate_models([self.trained.base.eval()], self.held_out)
        return evaluate(self.trained, self.held_out)

    def recalibrate(self, batches: int) -> None:
        """Measure the statistics of the averaged network on so many batches."""
        learning = self.trained.models()[self.frozen :]  # all models, without a frozen base-model
        recalibrate(learning, self.train, batches)

    @property
    def _done(self) -> int:
        """The number of steps since the start of the training."""
        return self.epoch * self.steps_per_epoch + self.step

    def _learning_rate(self) -> float:
        """The learning rate of the last step that was done."""
        return self.recipe.learning_rate(self._done - 1, self.steps_per_epoch)

    def _scales(self) -> list[float]:
        last = self.steps_per_epoch * self.recipe.epochs - 1
        return self.recipe.gradient_scales(len(self.training_step.step_downs), self._done / max(1, last))


def check_images(recipe: Recipe, images: int) -> None:
    """Raises TrainingError if there are too few images for one step."""
    if images < recipe.batch_size:
        raise TrainingError(
            f"a batch of {recipe.batch_size} is more than the {images} training images: lower --batch-size"
        )
    if images < recipe.batch_size * recipe.accumulate:
        raise TrainingError(
            f"a step of {recipe.accumulate} batches of {recipe.batch_size} is more than the {images} "
            "training images: lower --accumulate"
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
