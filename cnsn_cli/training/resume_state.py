"""The state of a training run between two steps: everything that a resumed run needs to give equal results.

The state holds the weights and their average, the optimizer's momentum, torch's random generators (for
dropout), the number of steps done, and the losses and accuracies so far. It need not hold the order and the
augmentation of the samples, which follow from the seed and the number of the epoch. `recorder` and `bundle`
write states, `run` reads and restores them. This module does not know when a state is saved.

The text of metrics.jsonl grows with every epoch, and the header of a file has a limit: the text is a tensor
of bytes. Older states hold this text in their header.
"""

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from cnsn_cli import distributed
from cnsn_cli.device import emulates_bf16
from cnsn_cli.errors import CheckpointError, one_line
from cnsn_cli.exits import read_exit
from cnsn_cli.files.agreement import check_tensors
from cnsn_cli.files.checkpoint import digest, file_content, read_tensors
from cnsn_cli.files.metadata import Count, first_problem
from cnsn_cli.files.tensor_file import TensorFile, check_json
from cnsn_cli.files.writer import NewFile, replace_together
from cnsn_cli.network.memory_format import for_file
from cnsn_cli.training.data_record import DataRecord
from cnsn_cli.training.metrics import Line, Pull, parse_lines
from cnsn_cli.training.request import Request
from cnsn_cli.training.trainer import Trainer

KEY = "cnsn-state"
CPU = torch.device("cpu")
NETWORK, AVERAGE = "network.", "average."
RANDOM, RANDOM_CUDA, LOSSES, CORRECT = "random", "random.cuda", "losses", "correct"
METRICS = "metrics"


class State(BaseModel):
    """The part of a state that is not tensors.

    `epoch` epochs of `request` are done, and `step` steps of the next epoch; these steps took `seconds`.
    `environment` is where they were done. `metrics` is the text of metrics.jsonl, with a line for each epoch.
    `pulls` were measured in the newest epoch whose steps are all done. `data` describes the data,
    `started_in` is the working folder of the start, and `id` is what trackers know the run by; older states
    have none of the three. `drawn` names parameters that started at random, although others were pretrained.
    `sha256` holds a digest for each tensor.
    """

    model_config = ConfigDict(extra="forbid")

    epoch: Count
    step: Count
    request: Request
    environment: dict[str, str]
    metrics: str
    seconds: float = Field(ge=0)
    pulls: list[Pull]
    data: DataRecord | None = None
    started_in: str | None = None
    drawn: tuple[str, ...] = ()
    id: str | None = None
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> "State":
        try:
            epochs = self.epochs()
        except ValidationError as error:
            raise ValueError(f"a line of metrics: {first_problem(error)}") from error
        numbers = [epoch.epoch for epoch in epochs]
        if len(epochs) != self.epoch or numbers != list(range(1, len(epochs) + 1)):
            raise ValueError(f"metrics are not those of {self.epoch} epochs")
        models = ["base", *(f"submodel{number}" for number in range(len(self.request.exits)))]
        if self.request.budgets:  # a search evaluates its candidates at the end
            models = ["base"]
        if (
            self.request.drop is not None and read_exit(self.request.drop).drops
        ):  # `@0.5` alone is a base-model
            models = ["submodel0"]
        for epoch in epochs:
            if [result.name for result in epoch.results] != models:
                raise ValueError(f"metrics of epoch {epoch.epoch} are not those of {', '.join(models)}")
        return self

    def epochs(self) -> list[Line]:
        """The lines of `metrics`."""
        return parse_lines(self.metrics)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that must stay the same for results that are the same bit for bit.

    `instructions` are those that torch uses on the CPU; older states do not have them.
    """
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability() + " bf16" * (not emulates_bf16(CPU)),
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.size()),
    }


def state_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The part of a state that is tensors: those of `trainer`, and those that differ between processes.

    All processes call it. The next step changes the tensors.
    """
    return _without_memory(trainer) | trainer.optimizer.memory()


def _without_memory(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {NETWORK + name: tensor for name, tensor in trainer.network.state_dict().items()}
    if trainer.average:
        tensors |= {AVERAGE + name: tensor for name, tensor in trainer.average.network.state_dict().items()}
    own = {LOSSES: trainer.meter.losses, CORRECT: trainer.meter.correct, RANDOM: torch.get_rng_state()}
    if trainer.device.type == "cuda":
        own[RANDOM_CUDA] = torch.cuda.get_rng_state(trainer.device)
    return tensors | {name: distributed.gather(tensor) for name, tensor in own.items()}


def write_state(path: Path, tensors: Mapping[str, Tensor], state: State) -> None:
    """Write `tensors` and `state` into one file, with digests of both. Raises OutputError."""
    replace_together([state_file(path, tensors, state)])


def state_file(path: Path, tensors: Mapping[str, Tensor], state: State) -> NewFile:
    """The file that `write_state` writes."""
    held = {name: for_file(tensor) for name, tensor in tensors.items()} | {METRICS: _bytes(state.metrics)}
    sha256 = {name: digest(tensor) for name, tensor in held.items()}
    text = state.model_copy(update={"sha256": sha256}).model_dump_json(exclude={"metrics"})
    return NewFile(path, file_content(held, KEY, f"{text_digest(text)} {text}"), read_state)


def _bytes(text: str) -> Tensor:
    data = bytearray(text.encode())
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class OpenState(NamedTuple):
    """The file of a state while it is open, and the State in it."""

    file: TensorFile
    state: State


@contextmanager
def open_state(path: Path) -> Iterator[OpenState]:
    """Open the file that `write_state` wrote. Raises CheckpointError."""
    with TensorFile(path) as file:
        yield OpenState(file, _read_state(file))


def read_state(path: Path) -> State:
    """The State in a file that `write_state` wrote. Raises CheckpointError."""
    with open_state(path) as opened:
        return opened.state


def _read_state(file: TensorFile) -> State:
    path, sealed = file.path, file.header.metadata.get(KEY)
    metrics = file.read(METRICS) if METRICS in file.header.entries else None
    if sealed is None:
        raise CheckpointError(f"{path} is not the state of a training run")
    seal, _, text = sealed.partition(" ")
    try:
        if seal != text_digest(text):
            raise CheckpointError(f"{path} is damaged: its metadata have changed since they were saved")
        return _parsed(text, metrics)
    except ValidationError as error:
        raise CheckpointError(f"{path} is broken: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # ValueError: half a character, no JSON
        raise CheckpointError(f"{path} is broken: {error}") from error


def _parsed(text: str, metrics: bytearray | None) -> State:
    """The State in `text`, whose metrics are in a tensor of their own if this is no older state."""
    check_json(text)
    if metrics is None:
        return State.model_validate_json(text)
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), dict):
        raise ValueError("its metadata have no digests")
    if hashlib.sha256(metrics).hexdigest() != content["sha256"].get(METRICS):
        raise ValueError(f"tensor {METRICS!r} is not as it was saved")
    lines = metrics.decode()
    for line in lines.splitlines():
        check_json(line)
    return State.model_validate({**content, "metrics": lines})


def restore(saved: OpenState, trainer: Trainer) -> None:
    """Bring `trainer`, made for the same request, into the saved state. Raises CheckpointError."""
    (file, state), expected = saved, _without_memory(trainer)
    path, header = file.path, file.header
    expected |= trainer.optimizer.expected(header.entries)
    if METRICS in header.entries:
        expected[METRICS] = _bytes(state.metrics)
    check_tensors(path, header, expected)
    tensors = read_tensors(file, state.sha256)
    try:
        trainer.network.load_state_dict(_part(tensors, NETWORK))
        if trainer.average:
            trainer.average.network.load_state_dict(_part(tensors, AVERAGE))
        trainer.optimizer.remember(tensors)
        _restore_progress(trainer, tensors, state)
        own = distributed.rank()
        torch.set_rng_state(tensors[RANDOM][own].clone())  # from a view torch would read the wrong bytes
        if RANDOM_CUDA in tensors:
            torch.cuda.set_rng_state(tensors[RANDOM_CUDA][own].clone(), trainer.device)
    except (RuntimeError, KeyError, TypeError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path} is broken: its tensors do not fit its metadata: {reason}") from error


def _restore_progress(trainer: Trainer, tensors: dict[str, Tensor], state: State) -> None:
    if state.step > trainer.steps_per_epoch:
        raise KeyError(f"step {state.step} of {trainer.steps_per_epoch}")
    trainer.epoch, trainer.step, trainer.pulls = state.epoch, state.step, state.pulls
    meter = trainer.meter
    meter.batches = state.step * trainer.recipe.accumulate
    meter.start = time.perf_counter() - state.seconds
    own = (tensors[name][distributed.rank()] for name in (LOSSES, CORRECT))
    for mine, theirs in zip((meter.losses, meter.correct), own, strict=True):
        mine.copy_(theirs)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """A text such as `torch 2.10 -> 2.11, threads 2 -> 4`; empty if `old` and `new` are equal."""
    names = sorted(old.keys() | new.keys())
    return ", ".join(f"{n} {old.get(n)} -> {new.get(n)}" for n in names if old.get(n) != new.get(n))
