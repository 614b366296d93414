"""The network that a run trains: a base-model with sub-models, or one sub-model alone.

The base-model may be finished and stay as it is. `setup` calls this module, which knows a recipe and first
weights, but no command line and no run folder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.narrowing import check_blocks, narrow_backbones, narrowed
from cnsn_cli.data.split import Split
from cnsn_cli.errors import CheckpointError, RecipeError
from cnsn_cli.exits import Exit, read_exit, read_exits, widths
from cnsn_cli.files.checkpoint import open_network
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.stages import stage
from cnsn_cli.task import Task
from cnsn_cli.training.initial_weights import Start
from cnsn_cli.training.recipe import Recipe
from cnsn_cli.training.step_down_fit import fit_step_downs


def build_network(
    arch: Architecture,
    exits: Iterable[int | str | Exit],
    task: Task,
    recipe: Recipe,
    drop: int | str | None = None,
    start: Start | None = None,
    fit_on: Split | None = None,
) -> Cnsn | Model:
    """A network with weights drawn with the seed of the recipe, or with the weights of `start`.

    With `drop` it is only that sub-model, which shares no layers. With `fit_on`, step-down convs are fitted
    to the features of the base-model on these images. Raises CheckpointError if the weights of `start` do
    not fit.
    """
    cuts = read_exits(exits if drop is None else [drop])
    if narrow_widths := widths(cuts):
        with stage("checking the widths"):
            check_blocks(arch, narrow_widths, task)
    if drop is not None:
        arch, cuts = trained_architecture(arch, drop), tuple(Exit(cut.drops) for cut in cuts if cut.drops)
    torch.manual_seed(recipe.seed)
    backbone = arch.build(task)
    if start:
        start.fill(backbone, task.num_classes)
    narrow = narrow_backbones(arch, backbone, cuts, task)
    network = Cnsn(backbone, cuts, task, recipe.bn, recipe.step_down, narrow)
    if fit_on is not None:
        fit_step_downs(network, fit_on)
    return network if drop is None or not cuts else network.model("submodel0")


def trained_architecture(arch: Architecture, drop: int | str | None) -> Architecture:
    """The architecture of the network that a run trains: a narrow sub-model alone has one of its own.

    `drop="7@0.5"` of vgg16 is `drop=7` of vgg16:width=0.5, and `drop="@0.5"` its base-model.
    """
    width = 1.0 if drop is None else read_exit(drop).width
    return arch if width == 1 else narrowed(arch, width)


def load_base(path: Path, arch: Architecture) -> Model:
    """The base-model in the file of a whole network or of a base-model. Raises CheckpointError for others."""
    with stage(f"opening {path.name}"):
        network, metadata, _ = open_network(path, arch)
    if metadata.arch != arch.text:
        raise CheckpointError(f"{path} holds {metadata.arch}, not {arch.text}: leave out --arch")
    base = network.models()[0]
    if base.drops or metadata.folded:
        kind = "a base-model with folded BN" if metadata.folded else f"{base.name} alone"
        raise CheckpointError(f"{path} holds {kind}: --freeze-base takes a whole network or its base-model")
    return base


def build_around(
    base: Model,
    arch: Architecture,
    exits: Sequence[int | str | Exit],
    recipe: Recipe,
    fit_on: Split | None = None,
) -> Cnsn:
    """A network whose base-model is `base` and frozen, with new sub-models to train.

    `fit_on` is that of `build_network`. Raises RecipeError.
    """
    if not exits:
        raise RecipeError("--freeze-base trains sub-models only: give --exits")
    if recipe.bn == "shared":
        raise RecipeError('bn = "shared" changes the BN statistics of a frozen base-model: use "private"')
    network = build_network(arch, exits, base.task, recipe)
    assert isinstance(network, Cnsn)
    network.load_state_dict(base.state_dict(), strict=False)
    if fit_on is not None:
        fit_step_downs(network, fit_on)
    network.freeze_base()
    return network
