"""The state of a training run after an epoch: all that it takes to go on as if nothing had happened.

The order of the samples and their augmentation follow from the recipe's seed and the number of the epoch, so
the state holds weights and their average, the optimizer's momentum, torch's random generator (for dropout),
and the metrics.
"""

import platform
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cnsn_cli.checkpoint import read_tensors, write_tensors
from cnsn_cli.errors import CheckpointError
from cnsn_cli.recipe import Recipe
from cnsn_cli.tensorfile import read_header
from cnsn_cli.training import Trainer

KEY = "cnsn-state"
NETWORK, MOMENTUM, AVERAGE, RANDOM = "network.", "momentum.", "average.", "random"


class Request(BaseModel):
    """What was asked of `cnsn train`, with all defaults filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    exits: tuple[int, ...]
    drop: int | None
    freeze_base: str | None
    data: str
    data_dir: str
    image_size: int | None
    in_channels: int
    device: str
    precision: Literal["fp32", "bf16"]
    compiled: bool
    recipe: Recipe


class State(BaseModel):
    """`epoch` epochs of `request` are done, in `environment`; `metrics` are their lines of metrics.jsonl."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    request: Request
    environment: dict[str, str]
    metrics: str


def environment(device: torch.device) -> dict[str, str]:
    """What has to stay the same for results to stay the same, bit for bit."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
    }


def save_state(path: Path, trainer: Trainer, state: State) -> None:
    """Write the state of `trainer` after an epoch. Raises OutputError."""
    tensors = {NETWORK + name: tensor for name, tensor in trainer.network.state_dict().items()}
    if trainer.average:
        tensors |= {AVERAGE + name: tensor for name, tensor in trainer.average.network.state_dict().items()}
    for name, parameter in trainer.network.named_parameters():
        momentum = trainer.optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[MOMENTUM + name] = momentum
    tensors[RANDOM] = torch.get_rng_state()
    write_tensors(path, tensors, KEY, state.model_dump_json())


def read_state(path: Path) -> State:
    """What `save_state` wrote beside the tensors. Raises CheckpointError."""
    text = read_header(path).metadata.get(KEY)
    if text is None:
        raise CheckpointError(f"{path} is no state of a training run")
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{path} is broken: {where}: {problem['msg']}") from error


def restore(path: Path, trainer: Trainer) -> None:
    """Put `trainer`, made for the same request, where the state says. Raises CheckpointError."""
    tensors = read_tensors(path)
    try:
        trainer.network.load_state_dict(_part(tensors, NETWORK))
        if trainer.average:
            trainer.average.network.load_state_dict(_part(tensors, AVERAGE))
        for name, parameter in trainer.network.named_parameters():
            if MOMENTUM + name in tensors:
                # In the memory format of the parameter, as the optimizer made it.
                buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensors[MOMENTUM + name])
                trainer.optimizer.state[parameter]["momentum_buffer"] = buffer
        torch.set_rng_state(tensors[RANDOM])
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit what it says of itself: {reason}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def differences(old: dict[str, str], new: dict[str, str]) -> str:
    """`torch 2.10 -> 2.11, threads 2 -> 4`, or nothing."""
    names = sorted(old.keys() | new.keys())
    return ", ".join(f"{n} {old.get(n)} -> {new.get(n)}" for n in names if old.get(n) != new.get(n))
