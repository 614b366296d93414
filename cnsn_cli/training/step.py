"""One training step, as a function of tensors.

    pixels, indices --> augmented images --> joint forward pass --> losses --> backward pass
                                                                                    |
                         meter, average of the weights <-- optimizer <-- gradients <+

The trainer writes what changes from step to step into tensors (`set`), then calls the step. The step reads
and changes tensors in place, and decides nothing from their values: the same code runs eagerly, and can be
captured on CUDA and replayed. It does not know epochs and schedules.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.choices import Precision
from cnsn_cli.network.loss import Distillation, multi_model_loss
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training.augmentation import EpochPlan
from cnsn_cli.training.capture import Captured
from cnsn_cli.training.compiling import Forward, compiled, compiling, eager
from cnsn_cli.training.ema import Average
from cnsn_cli.training.gradient_balance import measure, step_down_parameters, undo_in_step_downs
from cnsn_cli.training.meter import Meter
from cnsn_cli.training.metrics import Pull
from cnsn_cli.training.optimizer import Optimizer
from cnsn_cli.training.recipe import Recipe

Loss = Callable[[list[Tensor], Tensor], tuple[Tensor, Tensor]]


class TrainingStep:
    """A step of `network` on images with `labels` (N,), which are on its device.

    `indices` (n,) and `pixels` uint8 (n, C, H, W) are the samples of the next step: this process's share of
    each of its batches, one after the other. `scales` (sub-models,) are weights of losses. `drawn` names
    parameters that start at random, although others are pretrained. Each step also updates `average` and
    `meter`, which measures only the base-model if the others are `sampled`: if they change between steps.
    """

    def __init__(
        self,
        network: Cnsn | Model,
        labels: Tensor,
        recipe: Recipe,
        precision: Precision = "fp32",
        capture: bool = False,
        drawn: Collection[str] = (),
        sampled: bool = False,
    ) -> None:
        device, share = labels.device, recipe.batch_size // distributed.size()
        self.network, self.labels, self.recipe, self.precision = network, labels, recipe, precision
        self.share, images = share, share * recipe.accumulate
        self.indices = torch.zeros(images, dtype=torch.int64, device=device)
        self.pixels = torch.zeros(images, *network.task.image_shape, dtype=torch.uint8, device=device)
        self.plan: EpochPlan | None = None
        self.step_downs = step_down_parameters(network)
        self.scales = torch.ones(1 if sampled else len(self.step_downs), device=device)
        self.together = distributed.parallel(network)
        self.eager = eager(self.together)
        self.capture = capture
        self.compile(False)
        self.loss = _loss(recipe)
        self.optimizer = Optimizer(network, recipe, drawn)
        if sampled:
            self.optimizer.start_with_zeros()
        self.average = Average(network, recipe.ema) if recipe.ema else None
        names = [model.name for model in network.models()]
        self.meter = Meter(names[:1] if sampled else names, recipe.batch_size, device)

    def compile(self, wanted: bool = True) -> None:
        """From now on steps are compiled, or not. A captured step is captured again."""
        self.forward = compiled(self.together) if wanted else self.eager
        alone = distributed.size() == 1
        self.once = Captured(self._do) if self.capture and alone else self._do
        self.compiling = iter([compiling()] if wanted else [])

    def begin(self, plan: EpochPlan) -> None:
        """Begin an epoch. A captured step goes on to read the tensors of the first plan."""
        if self.plan is None:
            self.plan = plan
        else:
            self.plan.become(plan)

    def set(
        self, indices: Tensor, pixels: Tensor, lr: float, scales: Sequence[float], steps_done: int
    ) -> None:
        """Write what the next step takes into its tensors."""
        self.indices.copy_(indices)
        self.pixels.copy_(pixels)
        self.optimizer.set_learning_rate(lr)
        if self.recipe.scales_gradients:
            for tensor, scale in zip(self.scales, scales, strict=True):
                tensor.fill_(scale)
        if self.average:
            self.average.set(steps_done + 1)

    def __call__(self) -> None:
        """Do a step: with a compiled forward pass if there is one, and as one graph if it is captured."""
        self.once()

    @property
    def is_compiled(self) -> bool:
        return self.forward is not self.eager

    @property
    def is_captured(self) -> bool:
        return isinstance(self.once, Captured) and self.once.graph is not None

    @property
    def why_not_captured(self) -> str:
        """Why a step that was to be captured is not; empty if it is, or if it is not known yet."""
        if isinstance(self.once, Captured):
            return self.once.why_not
        return "several processes share each step" if self.capture else ""

    def measured(self) -> list[Pull]:
        """Do the same step eagerly, and measure in its last batch how sub-models pull at the shared units."""
        *earlier, last = self._batches()
        self.optimizer.zero_grad()
        for batch in earlier:
            self._backward(*self._forward(self.eager, *batch))
        total, losses, correct = self._forward(self.eager, *last)
        pulls = measure(self.network, losses, self.scales.tolist())  # keeps the graph, torch.compile cannot
        self._backward(total, losses, correct)
        self._update()
        return pulls

    def _do(self) -> None:
        with next(self.compiling, nullcontext()):
            self.optimizer.zero_grad()  # before a forward pass, in which old gradients would take memory
            for batch in self._batches():
                self._backward(*self._forward(self.forward, *batch))
            self._update()

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """The pixels and the indices of each batch."""
        parts = (torch.split(tensor, self.share) for tensor in (self.pixels, self.indices))
        return list(zip(*parts, strict=True))

    def _forward(self, forward: Forward, pixels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.plan is not None  # an epoch has begun
        images, targets = self.plan.prepare(pixels, self.labels[indices], indices, self.network.task)
        return forward_pass(forward, images, targets, partial(self.loss, scales=self.scales), self.precision)

    def _backward(self, total: Tensor, losses: Tensor, correct: Tensor) -> None:
        """Add the gradients of a batch to those of the batches before."""
        mean = total / self.recipe.accumulate if self.recipe.accumulate > 1 else total
        mean.backward()  # type: ignore[no-untyped-call]
        measured = len(self.meter.names)
        self.meter.add(losses.detach()[:measured], correct[:measured])

    def _update(self) -> None:
        if self.recipe.scales_gradients:
            undo_in_step_downs(self.step_downs, self.scales)
        self.optimizer.step()
        if self.average:
            self.average.update()


def _loss(recipe: Recipe) -> Callable[..., tuple[Tensor, Tensor]]:
    distillation = None
    if recipe.distill != "none":
        distillation = Distillation(recipe.distill, recipe.distill_weight, recipe.temperature)
    return partial(multi_model_loss, label_smoothing=recipe.label_smoothing, distillation=distillation)


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
    # On CUDA torch computes losses in fp32 by itself, on the CPU it would not.
    logits = [scores.to(torch.promote_types(scores.dtype, torch.float32)) for scores in logits]
    total, losses = loss(logits, targets)
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return total, losses, (torch.stack(logits).detach().argmax(2) == labels).sum(1)
