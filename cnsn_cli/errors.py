"""The errors of cnsn. A message is one line: the value, the limit, and the valid choices or the remedy.

Every module raises them, and `main` prints them. This module imports nothing of cnsn.

    CnsnError
    ├── ArgumentError       a value that an argument of a function cannot have
    ├── ArchitectureError   an architecture that is unknown or broken
    │   └── ImageSizeError  images of a size that the architecture cannot take
    ├── DetachPointError    exits that are not legal detach points
    ├── RecipeError         a hyper-parameter that is unknown or out of range
    ├── DataError           a data set that is missing, empty or unreadable
    ├── CheckpointError     a file that is missing, broken, or not written by cnsn
    ├── BudgetError         limits that no model keeps
    ├── DeviceError         a device that this machine does not have
    ├── ExportError         a network that cannot be exported, or an export whose logits differ
    ├── HubError            a repository or file on the Hub that cannot be had or named
    ├── ExtraError          an optional library that is not installed
    ├── TrackerError        a tracker that is unknown or cannot be imported
    ├── OutputError         a file or folder that would be overwritten, or cannot be written
    ├── ProcessError        a process that has ended or does not answer
    └── TrainingError       a training run that cannot continue
"""

import re


class CnsnError(Exception):
    """The root of everything that cnsn raises on purpose."""


class ArgumentError(CnsnError):
    """A value that an argument of a function cannot have."""


class ArchitectureError(CnsnError):
    """An architecture that is unknown or broken."""


class ImageSizeError(ArchitectureError):
    """Images of a size that the architecture cannot take."""


class DetachPointError(CnsnError):
    """Exits that are not legal detach points of the architecture."""


class RecipeError(CnsnError):
    """A hyper-parameter that is unknown or out of range."""


class DataError(CnsnError):
    """A data set that is missing, empty or unreadable."""


class CheckpointError(CnsnError):
    """A file that is missing, broken, or not written by cnsn."""


class BudgetError(CnsnError):
    """Limits that no model keeps."""


class DeviceError(CnsnError):
    """A device that this machine does not have."""


class ExportError(CnsnError):
    """A network that cannot be exported, or an export whose logits differ."""


class HubError(CnsnError):
    """A repository on the Hub that is missing, closed or out of reach, or an address that is wrong."""


class ExtraError(CnsnError):
    """An optional library that is not installed."""


class TrackerError(CnsnError):
    """A tracker that is unknown or cannot be imported."""


class OutputError(CnsnError):
    """A file or folder that would be overwritten, or cannot be written."""


class ProcessError(CnsnError):
    """One of several processes has ended or does not answer."""


class TrainingError(CnsnError):
    """A training run that cannot continue."""


FULL = (
    "out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation", "ALLOC_FAILED",
    "Storage size calculation overflowed",
)  # fmt: skip


def lack(error: BaseException) -> str | None:
    """What the machine lacks, and a remedy, if an error of Python or of a library says so; else None."""
    text = one_line(error)
    if isinstance(error, RecursionError):
        return "something is nested more deeply than Python can follow: simplify the network or the file"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in text for w in FULL)):
        device = "the memory of the GPU" if "CUDA" in text or "MPS" in text else "memory"
        wanted = re.search(r"tried to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
        amount = f", {wanted[1]} more are needed" if wanted else ""
        return f"{device} is full{amount}: use smaller batches, images or networks, or close other programs"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "the system allows no more threads: close other programs, or raise its limit (ulimit -u)"
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return f"{text.split()[0]} cannot be repeated bit for bit on a GPU: leave out --deterministic"
    if isinstance(error, RuntimeError) and text.startswith("CUDA error"):
        return f"the GPU has failed ({text.split('.')[0][:200]}): see nvidia-smi, or give --device cpu"
    return None


def one_line(error: BaseException) -> str:
    """The text of another library's error in one line, for use inside a message of cnsn."""
    return " ".join(str(error).split()) or type(error).__name__


def escaped(name: str) -> str:
    """`name` with each byte that is no UTF-8 spelled out, such as `caf\\xe9`.

    The system lets names be any bytes; in Python, each byte that is no UTF-8 is a character from U+DC80 on.
    """
    return "".join(rf"\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)
