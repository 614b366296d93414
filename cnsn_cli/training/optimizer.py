"""The optimizer, for the settings of a recipe: SGD, AdamW, or Muon beside AdamW.

    parameters --> groups with one weight decay and one share of the learning rate --> optimizers of torch

`step` makes it, sets its learning rate before each step, and calls it after the backward pass; `resume_state`
saves its memory. This module does not know the schedule of the learning rate.
"""

from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cnsn_cli.errors import RecipeError
from cnsn_cli.network.memory_format import copy_like
from cnsn_cli.training.muon import Muon, matrices
from cnsn_cli.training.recipe import Recipe

Groups = list[dict[str, Any]]

# What torch remembers of a parameter, and its name in the state of a run.
MEMORIES = {"momentum_buffer": "momentum", "exp_avg": "average_gradient", "exp_avg_sq": "average_square",
            "step": "steps"}  # fmt: skip
REMEMBERED = {torch.optim.SGD: 1, torch.optim.AdamW: 2, Muon: 1}  # tensors of the shape of a parameter


class Optimizer:
    """Trains the parameters of `network` that require gradients.

    `drawn` names parameters that start at random, although others are pretrained. Raises RecipeError if Muon
    has nothing to train.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, drawn: Collection[str] = ()) -> None:
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.clip_norm = recipe.clip_norm
        self.parts = _parts(network, _groups(self.parameters, recipe, drawn), recipe)
        self.part_of = {parameter: part for part in self.parts for parameter in _trained_by(part)}

    def set_learning_rate(self, lr: float) -> None:
        """Let the next step have the learning rate `lr`; pretrained weights get their share of it."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"].fill_(lr * group["share"])

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Change the parameters, after limiting the norm of all gradients together if the recipe does."""
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        for part in self.parts:
            part.step()

    def start_with_zeros(self) -> None:
        """Give SGD its momenta now: one kernel takes those of all parameters that have gradients, or none."""
        for parameter, part in self.part_of.items():
            if isinstance(part, torch.optim.SGD) and part.defaults["momentum"]:
                part.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @property
    def memory_bytes(self) -> int:
        """The bytes of `memory` after a step, without the counters of steps."""
        return sum(p.nbytes * REMEMBERED[type(part)] for p, part in self.part_of.items())

    def memory(self) -> dict[str, Tensor]:
        """What torch remembers, by names such as `momentum.head.weight`. A step changes the tensors."""
        return {
            f"{MEMORIES[key]}.{name}": tensor
            for name, parameter in self.parameters.items()
            for key, tensor in self.part_of[parameter].state[parameter].items()
            if tensor is not None  # SGD without momentum
        }

    def expected(self, names: Container[str]) -> dict[str, Tensor]:
        """Those of `names` that a memory can have, each with a tensor of the right shape."""
        return {
            f"{prefix}.{name}": torch.zeros(()) if key == "step" else parameter
            for key, prefix in MEMORIES.items()
            for name, parameter in self.parameters.items()
            if f"{prefix}.{name}" in names
        }

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Go on with a `memory`."""
        for name, parameter in self.parameters.items():
            state = self.part_of[parameter].state[parameter]
            for key, prefix in MEMORIES.items():
                if (values := memory.get(f"{prefix}.{name}")) is None:
                    continue
                if state.get(key) is not None:  # a captured step reads this tensor
                    state[key].copy_(values)
                elif key == "step":
                    state[key] = values.to(parameter.device)
                else:
                    state[key] = copy_like(parameter, values)


def _trained_by(part: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in part.param_groups for parameter in group["params"]]


def _parts(network: nn.Module, groups: Groups, recipe: Recipe) -> list[torch.optim.Optimizer]:
    if recipe.optimizer == "adamw":
        return [_adamw(groups, recipe)]
    if recipe.optimizer == "sgd":
        return [_sgd(groups, recipe)]
    weights = matrices(network)
    if not weights:
        raise RecipeError(
            "optimizer = muon trains the weights of convs and linear layers between the first and the last "
            "one, and there are none to train: give --optimizer sgd or adamw"
        )
    inner, others = _only(groups, weights), _only(groups, set(network.parameters()) - weights)
    return [Muon(inner, recipe.momentum, recipe.nesterov), _adamw(others, recipe)]


def _sgd(groups: Groups, recipe: Recipe) -> torch.optim.SGD:
    """The optimizer of the paper; on CPU and CUDA torch computes its step in one kernel."""
    fused = _device(groups) in ("cpu", "cuda")
    return torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def _adamw(groups: Groups, recipe: Recipe) -> torch.optim.AdamW:
    device = _device(groups)
    fused, capturable = device in ("cpu", "cuda"), device == "cuda"
    return torch.optim.AdamW(groups, recipe.lr, recipe.betas, fused=fused, capturable=capturable)


def _device(groups: Groups) -> str:
    return str(groups[0]["lr"].device.type)


def _only(groups: Groups, parameters: set[nn.Parameter]) -> Groups:
    """Those of `parameters` in each group, in order, with a learning rate of their own."""
    chosen = [{**group, "params": [p for p in group["params"] if p in parameters]} for group in groups]
    return [{**group, "lr": group["lr"].clone()} for group in chosen if group["params"]]


def _groups(parameters: Mapping[str, nn.Parameter], recipe: Recipe, drawn: Collection[str]) -> Groups:
    """Parameters in groups: those of one have the same weight decay and `share` of the learning rate.

    Each group has its rate in a tensor (): a captured step reads it again.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = recipe.decay_norms or parameter.dim() > 1  # biases and BN have one axis, weights have more
        is_new = "step_down." in name or name in drawn
        groups.setdefault((decays, 1.0 if is_new else recipe.pretrained_lr), []).append(parameter)
    return [
        {
            "params": members,
            "lr": torch.tensor(recipe.lr * share, device=members[0].device),
            "share": share,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (decays, share), members in groups.items()
    ]
