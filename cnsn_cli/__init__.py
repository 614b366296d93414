"""Train one convolutional network, and take smaller ones out of it.

    import cnsn_cli

    network = cnsn_cli.load("runs/demo/best.safetensors")   # a whole network: .base, .model("submodel1")
    cnsn_cli.detach("runs/demo/best.safetensors", "submodel1", "small.safetensors")
    small = cnsn_cli.load("small.safetensors")
    logits = small(small.preprocess(image)[None])
    cnsn_cli.predict("small.safetensors", "pictures/")      # also: evaluate, bench, plot, card, export

A name is imported when it is first used, because importing torch takes seconds.

The packages build on each other, and a package imports only from lines below its own:

    main                 the command line
    commands             one file for each command: options in, a table or JSON out
    searching            from budgets to the sub-models that are worth training
    training | deploy    from a request to a run folder | from a network to files for devices
    evaluation           accuracy and predictions, costs, latency
    files                the file format
    network              the base-model with its sub-models: one forward pass, one loss
    data | backbones     from files to batches of pixels | architectures, and where they may be cut
    ground               in this folder: exits, task, device, distributed > version, errors, choices, stages,
                         phases, memory
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnsn_cli.version import __version__

if TYPE_CHECKING:
    from cnsn_cli.backbones.backbone import Backbone
    from cnsn_cli.backbones.detach_points import DetachPoint, detach_points
    from cnsn_cli.backbones.plugins import use_plugin
    from cnsn_cli.data.datasets import load_dataset, load_test
    from cnsn_cli.deploy.card import card
    from cnsn_cli.deploy.detach import detach
    from cnsn_cli.deploy.export import export
    from cnsn_cli.deploy.push import push
    from cnsn_cli.errors import CnsnError
    from cnsn_cli.evaluation.accuracy import evaluate
    from cnsn_cli.evaluation.costs import count_macs
    from cnsn_cli.evaluation.latency import bench
    from cnsn_cli.evaluation.prediction import predict
    from cnsn_cli.files.checkpoint import load
    from cnsn_cli.network.loss import multi_model_loss
    from cnsn_cli.network.model import Model
    from cnsn_cli.network.network import Cnsn
    from cnsn_cli.searching.search import search
    from cnsn_cli.task import Task
    from cnsn_cli.training.dry_run import dry_run
    from cnsn_cli.training.metrics import Epoch, Step
    from cnsn_cli.training.plot import plot
    from cnsn_cli.training.recipe import Recipe, load_recipe
    from cnsn_cli.training.run import resume, train
    from cnsn_cli.training.started import Started

_HOMES = {
    "Backbone": "backbones.backbone",
    "Cnsn": "network.network",
    "CnsnError": "errors",
    "DetachPoint": "backbones.detach_points",
    "Epoch": "training.metrics",
    "Model": "network.model",
    "Recipe": "training.recipe",
    "Started": "training.started",
    "Step": "training.metrics",
    "Task": "task",
    "bench": "evaluation.latency",
    "card": "deploy.card",
    "count_macs": "evaluation.costs",
    "detach": "deploy.detach",
    "detach_points": "backbones.detach_points",
    "dry_run": "training.dry_run",
    "evaluate": "evaluation.accuracy",
    "export": "deploy.export",
    "load": "files.checkpoint",
    "load_dataset": "data.datasets",
    "load_recipe": "training.recipe",
    "load_test": "data.datasets",
    "multi_model_loss": "network.loss",
    "plot": "training.plot",
    "predict": "evaluation.prediction",
    "push": "deploy.push",
    "resume": "training.run",
    "search": "searching.search",
    "train": "training.run",
    "use_plugin": "backbones.plugins",
}

__all__ = [
    "Backbone",
    "Cnsn",
    "CnsnError",
    "DetachPoint",
    "Epoch",
    "Model",
    "Recipe",
    "Started",
    "Step",
    "Task",
    "__version__",
    "bench",
    "card",
    "count_macs",
    "detach",
    "detach_points",
    "dry_run",
    "evaluate",
    "export",
    "load",
    "load_dataset",
    "load_recipe",
    "load_test",
    "multi_model_loss",
    "plot",
    "predict",
    "push",
    "resume",
    "search",
    "train",
    "use_plugin",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
