"""Exported models: opening ONNX files, and running them in ONNX Runtime.

`files.model_file` opens files with it, and `deploy` checks its exports with it. It knows no PyTorch models.
"""

import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnsn_cli.data.pixels import normalise
from cnsn_cli.errors import CheckpointError, ExtraError
from cnsn_cli.files.metadata import Metadata
from cnsn_cli.files.onnx_limits import check_limits
from cnsn_cli.files.onnx_texts import onnx_metadata
from cnsn_cli.task import Task

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
PIXELS, NORMALISED = "tensor(uint8)", "tensor(float)"


class OnnxModel:
    """The model in an ONNX file that `cnsn export` wrote, run by ONNX Runtime on the CPU: a Classifier.

    `threads` is the number of threads that compute one answer; 0: one for each core. Raises CheckpointError
    if cnsn did not write the file or it asks for too much, ExtraError if ONNX Runtime is not installed.
    """

    runtime = "ONNX Runtime"

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.path = path
        require_onnx()
        content = _content(path)
        self.metadata: Metadata = onnx_metadata(path, io.BytesIO(content))
        check_limits(path, content)
        self.session = _session(path, content, threads)
        self.name: str = self.metadata.models[0].name
        self.task: Task = self.metadata.task
        self.input: str = _checked_input(path, self.session, self.task)

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> logits (N, classes). Raises CheckpointError if they are no logits."""
        logits = self(self.inputs(pixels))
        expected = (len(pixels), self.task.num_classes)
        if tuple(logits.shape) != expected:
            raise CheckpointError(
                f"{self.path} returns logits {tuple(logits.shape)} for {len(pixels)} images, not {expected}"
            )
        if not logits.isfinite().all():
            raise CheckpointError(f"{self.path} cannot be used: it returns NaN or infinite logits")
        return logits

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W) -> the tensor that the file takes: the same pixels, or float32 images."""
        return pixels if self.input == PIXELS else normalise(pixels, self.task)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The result of `inputs` -> the output of the file, unchecked. Raises CheckpointError if it fails."""
        try:
            (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: inputs.numpy()})
        except Exception as error:  # the errors of ONNX Runtime have no common class
            raise CheckpointError(f"{self.path} does not run: {_first_line(error)}") from error
        return torch.from_numpy(logits)


def require_onnx() -> None:
    """Raises ExtraError, with the remedy, unless all libraries for ONNX are installed.

    ONNX Runtime would send reports to its makers, and leave an identifier for them (`.ses`) in the folder of
    temporary files; it looks whether it may when it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ExtraError(f"ONNX needs {', '.join(missing)}: pip install 'cnsn-cli[onnx]'")


def _content(path: Path) -> bytes:
    """The bytes of a file: read once, checked, then run. (ONNX Runtime takes only names that are UTF-8.)"""
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _session(path: Path, content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and need no log
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} is no ONNX file that can be run: {_first_line(error)}") from error


def _checked_input(path: Path, session: Any, task: Task) -> str:
    """The type of the one input. Raises CheckpointError if the file's shapes do not fit `task`."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    fits = len(inputs) == len(outputs) == 1 and inputs[0].type in (PIXELS, NORMALISED)
    if not (fits and tuple(inputs[0].shape[1:]) == task.image_shape):
        raise CheckpointError(f"{path} does not take the images {task.image_shape} that its metadata state")
    if tuple(outputs[0].shape[1:]) != (task.num_classes,) or outputs[0].type != NORMALISED:
        raise CheckpointError(
            f"{path} does not return logits of the {task.num_classes} classes in its metadata"
        )
    return str(inputs[0].type)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
