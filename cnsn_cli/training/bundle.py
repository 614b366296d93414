"""What a run writes at one time: the models of its newest epochs, their metrics, and its state.

The files of a bundle belong together, so they are replaced together. A bundle holds copies: the run trains on
while `writer_thread` writes them. `recorder` makes bundles. This module does not know when one is due.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from cnsn_cli.errors import OutputError
from cnsn_cli.files.checkpoint import new_file
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.writer import NewFile, replace_together
from cnsn_cli.training.resume_state import State, state_file
from cnsn_cli.training.run_folder import BEST, LAST, METRICS, STATE


class Models(NamedTuple):
    """A copy of the network after an epoch, and what its file says about it."""

    tensors: dict[str, Tensor]
    metadata: Metadata


@dataclass(frozen=True)
class Bundle:
    """Files for `folder`. `tensors` and `state` are the state of the run.

    `last` is there if epochs have ended since the bundle before, `best` if one of them is the best so far.
    Another thread may set `forgotten` while the files are written.
    """

    folder: Path
    tensors: dict[str, Tensor]
    state: State
    last: Models | None
    best: Models | None
    forgotten: Event = field(default_factory=Event)

    def after(self, older: "Bundle") -> "Bundle":
        """This bundle in place of an `older` one that was not written: it takes over the models it lacks."""
        return replace(self, last=self.last or older.last, best=self.best or older.best)

    def write(self) -> None:
        """Write the files; the state is the last, so a state implies all the rest.

        Raises OutputError, also if the bundle is forgotten before the first file gets its name.
        """
        replace_together(self._unless_forgotten())

    def _unless_forgotten(self) -> Iterator[NewFile]:
        for file in self._files():
            self._check()
            yield file
        self._check()

    def _check(self) -> None:
        if self.forgotten.is_set():
            raise OutputError(f"writing to {self.folder} was interrupted")

    def _files(self) -> Iterator[NewFile]:
        """Each file is made when the one before is on the disk, so that memory holds few of them."""
        for name, models in ((LAST, self.last), (BEST, self.best)):
            if models:
                yield new_file(self.folder / name, *models)
        if self.last:
            yield NewFile(self.folder / METRICS, self.state.metrics.encode())
        yield state_file(self.folder / STATE, self.tensors, self.state)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `tensors` on the CPU, in the form for files."""
    copies = {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _copy(tensor: Tensor) -> Tensor:
    """A copy; from a GPU into pinned memory, which all tensors can enter in one go without waiting."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=tensor.is_cuda)
