"""What is trained: a network with sub-models, one sub-model alone, or sub-models on a finished base-model."""

from pathlib import Path

import torch

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.choices import Precision
from cnsn_cli.errors import CheckpointError, RecipeError
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.files.checkpoint import load, versions
from cnsn_cli.files.metadata import FORMAT, Metadata, ModelRecord, read_metadata
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.initial_weights import Start
from cnsn_cli.training.recipe import Recipe


def build_network(
    arch: str | Architecture,
    exits: tuple[int, ...],
    task: Task,
    recipe: Recipe,
    drop: int | None = None,
    start: Start | None = None,
) -> Cnsn | Model:
    """A network with weights drawn with the seed of the recipe, or those that it shall `start` from.

    With `drop` it is the sub-model at that detach point by itself, which shares nothing. Raises
    CheckpointError where weights to start from do not fit.
    """
    torch.manual_seed(recipe.seed)
    cuts = exits if drop is None else (drop,)
    backbone = registry.find(arch).build(task)
    if start:
        start.fill(backbone, task.num_classes)
    network = Cnsn(backbone, cuts, task, recipe.bn, recipe.step_down)
    return network if drop is None else network.model("submodel0")


def load_base(path: Path, arch: str) -> Model:
    """The base-model of a whole network or of a detached file; raises CheckpointError where there is none."""
    metadata = read_metadata(path, read_header(path))
    if metadata.arch != arch:
        raise CheckpointError(f"{path} holds {metadata.arch}, not {arch}: leave out --arch")
    base = load(path).models()[0]
    if base.drops or metadata.folded:
        kind = "a base-model with folded BN" if metadata.folded else f"{base.name} alone"
        raise CheckpointError(f"{path} holds {kind}: --freeze-base takes a whole network or its base-model")
    return base


def build_around(base: Model, arch: Architecture, exits: tuple[int, ...], recipe: Recipe) -> Cnsn:
    """A network whose base-model is `base`, frozen; only its sub-models are new, and are to be trained."""
    if not exits:
        raise RecipeError("--freeze-base trains sub-models only: give --exits")
    if recipe.bn == "shared":
        raise RecipeError('bn = "shared" changes the BN statistics of a frozen base-model: use "private"')
    network = build_network(arch, exits, base.task, recipe)
    assert isinstance(network, Cnsn)
    network.load_state_dict(base.state_dict(), strict=False)
    network.freeze_base()
    return network


def describe(
    network: Cnsn | Model,
    arch: str | Architecture,
    data: str,
    recipe: Recipe,
    precision: Precision = "fp32",
) -> Metadata:
    """All that can be said of a network before it is trained."""
    architecture = registry.find(arch)
    models = [
        ModelRecord(first_unit=model.first_unit, **vars(cost))
        for model, cost in zip(network.models(), model_costs(network), strict=True)
    ]
    return Metadata(
        format=FORMAT,
        kind="network" if isinstance(network, Cnsn) else "detached",
        arch=architecture.text,
        provider=architecture.provider,
        task=network.task,
        bn=recipe.bn,
        step_down=recipe.step_down,
        base_frozen=isinstance(network, Cnsn) and network.base_frozen,
        precision=precision,
        models=models,
        data=data,
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
    )
