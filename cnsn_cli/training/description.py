"""What the files of a run say about its network before it is trained: costs, architecture, recipe.

`recorder` fills in accuracies and digests later. This module knows no weights and no files.
"""

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.narrowing import narrowed
from cnsn_cli.choices import Precision
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.files.checkpoint import versions
from cnsn_cli.files.metadata import BlockRecord, Metadata, ModelRecord, NarrowRecord, new_metadata
from cnsn_cli.network.memory_format import narrow_parts
from cnsn_cli.network.model import Model
from cnsn_cli.network.network import Cnsn
from cnsn_cli.phases import phase
from cnsn_cli.stages import stage
from cnsn_cli.training.recipe import Recipe


def describe(
    network: Cnsn | Model, arch: Architecture, data: str, recipe: Recipe, precision: Precision = "fp32"
) -> Metadata:
    """The metadata of a network that is not trained yet: no accuracies, no selection."""
    with stage("counting MACs"), phase("building"):
        costs = model_costs(network)
    models = [
        ModelRecord(first_unit=model.first_unit, **vars(cost))
        for model, cost in zip(network.models(), costs, strict=True)
    ]
    return new_metadata(
        narrow=_narrow_records(network, arch) or None,
        kind="network" if isinstance(network, Cnsn) else "detached",
        arch=arch.text,
        provider=arch.provider,
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


def _narrow_records(network: Cnsn | Model, arch: Architecture) -> dict[str, NarrowRecord]:
    """What files say about each width; the digests follow when a file is made."""
    return {
        f"{narrow.width:g}": NarrowRecord(
            arch=narrowed(arch, narrow.width).text,
            blocks={block.name: BlockRecord(shape=block.shape) for block in narrow.blocks if block.is_saved},
        )
        for narrow in narrow_parts(network)
    }
