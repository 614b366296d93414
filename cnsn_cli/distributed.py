"""Several processes that train one network together, started by torchrun.

Each process takes an equal share of every batch. `training` and `evaluation` share and sum tensors here, and
`main` lets only one process print. With a single process these functions do nothing. This module does not
know what is trained, nor what is in the files that the first process writes.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from cnsn_cli.errors import DeviceError, ProcessError

if TYPE_CHECKING:
    from torch import Tensor, nn

P = ParamSpec("P")
T = TypeVar("T")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(
    seconds=20
)  # the wait for an answer in a step; torchrun may need 30 more to end a process
PATIENCE = timedelta(minutes=30)  # the wait for a process that reads or writes files

LOST = ("gloo", "nccl", "timeout", "timed out", "connection")  # words in errors about a lost process

_meeting: "_Meeting | None" = None
_told: bool | None = None  # after an error: whether this process reports it for all


class _Meeting:
    """Where the processes meet: a key-value store in torchrun's process, which outlives the others."""

    joined = 0

    def __init__(self, store: Any) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        _Meeting.joined += 1
        self.store = PrefixStore(f"cnsn{_Meeting.joined}", store)
        self.waits = 0


def launched() -> bool:
    """Whether torchrun, or another launcher that sets the same variables, has started several processes."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """The number of this process. Only the first process, 0, prints and writes files."""
    return int(os.environ["RANK"]) if launched() else 0


def is_first() -> bool:
    return rank() == 0


def size() -> int:
    """The number of processes that work together."""
    return int(os.environ["WORLD_SIZE"]) if _meeting else 1


@contextmanager
def only_first_prints() -> Iterator[None]:
    """Silences every process but the first."""
    with ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def speaks() -> bool:
    """Whether this process reports an error: the process that met it first does."""
    return is_first() if _told is None else _told


@contextmanager
def joined() -> Iterator[None]:
    """Inside this context, the process works together with the other processes.

    Raises ProcessError if one of them ends or hangs, DeviceError if there are too few GPUs.
    """
    global _told
    if not launched():
        yield
        return
    _join()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            signal.signal(
                signal.SIGTERM, signal.SIG_IGN
            )  # torchrun sends it now, before the error is printed
            _told = _is_first_to_tell()
        if _is_of_connection(error):
            raise ProcessError(
                f"one of the {size()} processes has ended or does not answer: "
                "start all of them again, with train --resume"
            ) from error
        raise
    finally:
        leave()


def _join() -> None:
    global _meeting
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if devices:
        if local >= devices:
            raise DeviceError(f"{devices} GPUs are too few for {local + 1} processes: each needs its own")
        torch.cuda.set_device(local)
    store, *place = next(rendezvous("env://"))
    _meeting = _Meeting(store)
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    dist.init_process_group(
        backend, store=_meeting.store, rank=place[0], world_size=place[1], timeout=TIMEOUT
    )


def leave() -> None:
    """Stop working together: from here on this process works alone."""
    global _meeting
    if _meeting:
        import torch.distributed as dist

        dist.destroy_process_group()
        _meeting = None


def end(code: str | int | None) -> NoReturn:
    """End this process at once with exit code `code`.

    Python's own exit can abort in the threads of torch.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _is_first_to_tell() -> bool:
    try:
        return _meeting is not None and bool(_meeting.store.add("told", 1) == 1)
    except RuntimeError:  # the store is gone
        return is_first()


def _is_of_connection(error: BaseException) -> bool:
    """Whether another process was lost. torch raises plain RuntimeErrors with the words of its libraries."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in text for word in LOST)
    )


def wait_for_all() -> None:
    """Wait until every process calls this, at most PATIENCE, because a process may read or write for long."""
    if _meeting:
        _meeting.waits += 1
        names = [f"wait{_meeting.waits} {number}" for number in range(size())]
        _meeting.store.set(names[rank()], "")
        _meeting.store.wait(names, PATIENCE)


def first_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """A decorator for functions that touch the folder of a run: only the first process calls them.

    The other processes wait until the call is done, and get None.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        result = function(*args, **kwargs) if is_first() else None
        wait_for_all()
        return result

    return call


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first process runs the context before the others: it may have to download what they read."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def share(batch: "Tensor") -> "Tensor":
    """This process's part of a batch (n, ...); n must be a multiple of the number of processes."""
    return batch.chunk(size())[rank()] if _meeting else batch


def total(tensor: "Tensor") -> "Tensor":
    """The sum of `tensor` over all processes."""
    if _meeting:
        import torch.distributed as dist

        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: "Tensor") -> "Tensor":
    """The mean of `tensor` over all processes."""
    return total(tensor) / size() if _meeting else tensor


def gather(tensor: "Tensor") -> "Tensor":
    """The tensors of all processes, stacked in the order of the processes: (processes, ...)."""
    import torch

    if not _meeting:
        return tensor[None]
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def largest(*numbers: int) -> list[int]:
    """The largest value of each number over all processes, so that all processes decide alike."""
    import torch

    if not _meeting:
        return list(numbers)
    import torch.distributed as dist

    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def parallel(network: "nn.Module") -> "nn.Module":
    """A module that runs `network`, and whose backward pass averages the gradients over all processes.

    BN normalises each process's share by itself; the running statistics of the first process are kept.
    """
    if not _meeting:
        return network
    from torch.nn.parallel import DistributedDataParallel

    wait_for_all()
    return DistributedDataParallel(network)


def copy_buffers(network: "nn.Module") -> None:
    """Copy the buffers of the first process to all others."""
    if _meeting:
        import torch.distributed as dist

        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
