"""Several processes that train one network together, as torchrun starts them.

Each takes an equal share of every batch. Where there is one process, all this does nothing.
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
TIMEOUT = timedelta(seconds=20)  # for an answer in a step; torchrun may take 30 more to end a process
PATIENCE = timedelta(minutes=30)  # for a process that reads or writes while the others wait

LOST = ("gloo", "nccl", "timeout", "timed out", "connection")

_meeting: "_Meeting | None" = None
_told: bool | None = None  # whether this process speaks for all


class _Meeting:
    """Where processes meet: a store of keys that outlives any of them, in the process of torchrun."""

    joined = 0

    def __init__(self, store: Any) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        _Meeting.joined += 1
        self.store = PrefixStore(f"cnsn{_Meeting.joined}", store)
        self.waits = 0


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started several processes."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """The number of this process; the first one, 0, is the only one that prints and writes."""
    return int(os.environ["RANK"]) if launched() else 0


def is_first() -> bool:
    return rank() == 0


def size() -> int:
    """How many processes work together."""
    return int(os.environ["WORLD_SIZE"]) if _meeting else 1


@contextmanager
def quiet() -> Iterator[None]:
    """All but the first process print nothing."""
    with ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def speaks() -> bool:
    """Whether this process is the one to say what went wrong: that to which it happened first."""
    return is_first() if _told is None else _told


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the other processes.

    Raises ProcessError where one of them ends or hangs, DeviceError where there are too few GPUs.
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
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it now; there is a word to say
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
            raise DeviceError(f"{devices} GPUs are too few for {local + 1} processes: one each")
        torch.cuda.set_device(local)
    store, *place = next(rendezvous("env://"))
    _meeting = _Meeting(store)
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    dist.init_process_group(
        backend, store=_meeting.store, rank=place[0], world_size=place[1], timeout=TIMEOUT
    )


def leave() -> None:
    """From here on this process works alone."""
    global _meeting
    if _meeting:
        import torch.distributed as dist

        dist.destroy_process_group()
        _meeting = None


def end(code: str | int | None) -> NoReturn:
    """End this process without Python's tidying up, in which threads of torch can abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _is_first_to_tell() -> bool:
    try:
        return _meeting is not None and bool(_meeting.store.add("told", 1) == 1)
    except RuntimeError:  # the store is gone
        return is_first()


def _is_of_connection(error: BaseException) -> bool:
    """torch raises plain RuntimeErrors with the words of the library that was to carry the message."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in text for word in LOST)
    )


def wait_for_all() -> None:
    """Until every process is here, however long one of them reads or writes."""
    if _meeting:
        _meeting.waits += 1
        names = [f"wait{_meeting.waits} {number}" for number in range(size())]
        _meeting.store.set(names[rank()], "")
        _meeting.store.wait(names, PATIENCE)


def first_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """A decorator for what touches the folder of a run: the first process alone does it.

    The others wait until it is done, and get None.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        result = function(*args, **kwargs) if is_first() else None
        wait_for_all()
        return result

    return call


@contextmanager
def first_ahead() -> Iterator[None]:
    """The first process alone, and then the others: it may have to fetch what they read."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def share(batch: "Tensor") -> "Tensor":
    """The part of a batch (n, ...) that is for this process; n must be a multiple of the processes."""
    return batch.chunk(size())[rank()] if _meeting else batch


def total(tensor: "Tensor") -> "Tensor":
    """The sum over all processes."""
    if _meeting:
        import torch.distributed as dist

        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: "Tensor") -> "Tensor":
    """The mean over all processes."""
    return total(tensor) / size() if _meeting else tensor


def gather(tensor: "Tensor") -> "Tensor":
    """The tensors of all processes, in their order: (processes, ...)."""
    import torch

    if not _meeting:
        return tensor[None]
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def largest(*numbers: int) -> list[int]:
    """Of each number the largest over all processes, so that all decide alike."""
    import torch

    if not _meeting:
        return list(numbers)
    import torch.distributed as dist

    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def distributed(network: "nn.Module") -> "nn.Module":
    """What runs forward in place of `network`, so that its gradients are the means over all processes.

    BN normalises what one process sees; the running statistics are those of the first process.
    """
    if not _meeting:
        return network
    from torch.nn.parallel import DistributedDataParallel

    wait_for_all()
    return DistributedDataParallel(network)


def copy_buffers(network: "nn.Module") -> None:
    """Give every process the buffers of the first."""
    if _meeting:
        import torch.distributed as dist

        for buffer in network.buffers():
            dist.broadcast(buffer, 0)
