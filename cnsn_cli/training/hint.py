"""A hint at the end of a run whose models learnt nothing. `run` asks for it; this module prints nothing."""

import math
from collections.abc import Sequence

import torch

from cnsn_cli.data.datasets import Dataset
from cnsn_cli.evaluation.accuracy import ModelResult
from cnsn_cli.training.metrics import Result
from cnsn_cli.training.recipe import Recipe


def learnt_nothing(results: Sequence[ModelResult | Result], dataset: Dataset, recipe: Recipe) -> str | None:
    """What to try if models are no better on the test images than one answer for all of them; else None.

    A model near that accuracy has learnt nothing either if its loss is not below that of equal shares for all
    classes. Near is within two standard errors of an accuracy.
    """
    images = len(dataset.test.labels)
    count, number = torch.bincount(dataset.test.labels.cpu()).max(0)
    chance = count.item() / images
    near = chance + 2 * math.sqrt(chance * (1 - chance) / images)
    guess = math.log(dataset.task.num_classes)
    weak = [r for r in results if r.accuracy <= chance or (r.accuracy <= near and r.loss >= guess)]
    if not weak or chance == 1:
        return None
    listed = ", ".join(f"{r.name} ({r.accuracy:.2%}, loss {r.loss:.3f})" for r in weak)
    return (
        f"{listed} learnt nothing: the answer {dataset.task.class_names[number]!r} for every test image is "
        f"right for {chance:.2%} of them; lower --lr ({recipe.lr:g}), give more --epochs ({recipe.epochs}), "
        "or check that the images are in the folders of their classes"
    )
