"""First weights of step-down convs that imitate the layers they replace.

    images --> the base-model's first units ----------------> features at the cut
       |                                                            ^  as close as a conv can come,
       +--> the step-down's earlier convs, as drawn --> its last conv  in the mean of the squares

`building` calls this module before a run whose base-model is pretrained. It does not know how the weights are
trained then.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnsn_cli.data.pixels import normalise
from cnsn_cli.data.split import Split
from cnsn_cli.network.joint_pass import Private
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.step_down import last_layers
from cnsn_cli.stages import stage

IMAGES = 500  # training images, at even distances
BATCH = 50
MOST_ROWS = 200_000  # places in feature maps; of larger maps, places at even distances
RIDGE = 1e-3  # of the mean square of the inputs: keeps weights small that the images do not determine


@torch.no_grad()
def fit_step_downs(network: Cnsn, train: Split) -> None:
    """Solve the last conv of each step-down for the base-model's features at its cut, by least squares.

    BN after this conv begins as the identity, so that the fit stays what it is. A narrow sub-model is fitted
    to the leading channels of the features.
    """
    privates = [cast(Private, private) for private in network.submodels]
    fits = [(private.first_unit, _Fit(private.step_down)) for private in privates if private.step_down]
    if not fits:
        return
    chosen = torch.arange(len(train))[:: -(-len(train) // IMAGES)]
    training = network.training
    network.eval()
    with stage("fitting the step-down convs"):
        # Batches of nearly one size: BN needs more than one image.
        for pixels in train.batches(list(chosen.tensor_split(-(-len(chosen) // BATCH)))):
            images = normalise(pixels, network.task)
            for number, features in _features(network, images, {first for first, _ in fits}):
                for fit in (fit for first, fit in fits if first == number):
                    fit.add(images, features)
    for _, fit in fits:
        fit.solve()
    network.train(training)


def _features(network: Cnsn, images: Tensor, cuts: set[int]) -> Iterator[tuple[int, Tensor]]:
    """The base-model's features (n, c, h, w) that enter each unit in `cuts`."""
    features = images.clone()  # the first unit of a plug-in may change its input in place
    for number, unit in enumerate(network.base.units):
        if number in cuts:
            yield number, features.clone()
        if number >= max(cuts):
            return
        features = unit(features)


class _Sums(NamedTuple):
    """Sums over places: `squares` (i, i) of inputs with each other, `products` (i, o) with targets."""

    squares: Tensor
    products: Tensor
    rows: int


class _Fit:
    """The last conv of `step_down`, and the BN after it."""

    def __init__(self, step_down: nn.Module) -> None:
        self.step_down = step_down
        self.conv, self.norm = last_layers(step_down)
        self.sums: _Sums | None = None

    def add(self, images: Tensor, features: Tensor) -> None:
        """Add images and the features that they should become. Earlier BN normalises as in training."""
        seen: list[Tensor] = []
        hook = self.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self.step_down.train()(images)
        hook.remove()
        inputs = _places(seen[0], self.conv)
        targets = features[:, : self.conv.out_channels].flatten(2).transpose(1, 2).flatten(0, 1)
        every = -(-len(inputs) * (IMAGES // BATCH) // MOST_ROWS)
        inputs, targets = inputs[::every], targets[::every]
        before = self.sums or _Sums(torch.zeros(()), torch.zeros(()), 0)
        squares, products = (inputs.T @ inputs).cpu().double(), (inputs.T @ targets).cpu().double()
        self.sums = _Sums(before.squares + squares, before.products + products, before.rows + len(inputs))

    def solve(self) -> None:
        """Write the solution into the conv, and its mean and deviation into BN."""
        assert self.sums is not None
        squares, products = self.sums.squares / self.sums.rows, self.sums.products / self.sums.rows
        ridge = torch.full((len(squares),), RIDGE * squares.diagonal().mean().item(), dtype=torch.float64)
        ridge[-1] = 0  # the bias
        weights = torch.linalg.solve(squares + ridge.diag(), products)  # (i, o)
        mean = squares[-1] @ weights
        variance = ((squares @ weights * weights).sum(0) - mean**2).clamp(min=0)
        for tensor, values in (
            (self.conv.weight, weights[:-1].T.reshape(self.conv.weight.shape)),
            (self.conv.bias, weights[-1]),
            (self.norm.running_mean, mean),
            (self.norm.running_var, variance),
            (self.norm.weight, (variance + self.norm.eps).sqrt()),
            (self.norm.bias, mean),
        ):
            cast(Tensor, tensor).copy_(values)


def _places(inputs: Tensor, conv: nn.Conv2d) -> Tensor:
    """What the conv sees at each place of its output, and a 1 for its bias: (n * h * w, c * k * k + 1)."""
    kernel, padding = cast(tuple[int, int], conv.kernel_size), cast(tuple[int, int], conv.padding)
    windows = F.unfold(inputs, kernel, padding=padding, stride=cast(tuple[int, int], conv.stride))
    rows = windows.transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
