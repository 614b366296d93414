"""What cnsn raises. Each message is one line: the value, the limit, and the valid choices or the remedy.

CnsnError
├── ArchitectureError   an architecture that is unknown, broken, or cannot take the image size
├── DetachPointError    exits that are no legal detach points
├── RecipeError         a hyper-parameter that is unknown or out of range
├── DataError           a data set that is missing, empty or unreadable
├── CheckpointError     a file that is missing, broken, or not ours
├── BudgetError         limits that no model keeps
├── DeviceError         a device that this machine lacks
├── ExportError         a network that cannot be exported, or an export that is not the same network
├── ExtraError          an optional library that is not installed
├── OutputError         a file or folder that would be overwritten, or cannot be written
├── ProcessError        several processes that cannot go on together
└── TrainingError       a training run that cannot go on
"""


class CnsnError(Exception):
    """The root of everything that cnsn raises on purpose."""


class ArchitectureError(CnsnError):
    """An architecture that is unknown, broken, or cannot take the image size."""


class DetachPointError(CnsnError):
    """Exits that are no legal detach points of the architecture."""


class RecipeError(CnsnError):
    """A hyper-parameter that is unknown or out of range."""


class DataError(CnsnError):
    """A data set that is missing, empty or unreadable."""


class CheckpointError(CnsnError):
    """A file that is missing, broken, or not one of ours."""


class BudgetError(CnsnError):
    """Limits that no model keeps."""


class DeviceError(CnsnError):
    """A device that this machine lacks."""


class ExportError(CnsnError):
    """A network that cannot be exported, or an export that is not the same network."""


class ExtraError(CnsnError):
    """An optional library that is not installed."""


class OutputError(CnsnError):
    """A file or folder that would be overwritten, or cannot be written."""


class ProcessError(CnsnError):
    """Several processes that cannot go on together."""


class TrainingError(CnsnError):
    """A training run that cannot go on."""


def one_line(error: Exception) -> str:
    """What somebody else's error says, as part of a message of ours."""
    return " ".join(str(error).split()) or type(error).__name__
