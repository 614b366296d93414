"""The metadata of a file: facts about its models, as one JSON text in the safetensors header.

`training` and `deploy` write them; every command that opens a file reads them. This module reads and checks
the text, and does not know tensors or networks.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnsn_cli import choices
from cnsn_cli.data.origin import Origin
from cnsn_cli.errors import CheckpointError, OutputError
from cnsn_cli.exits import Exit
from cnsn_cli.files.tensor_file import Header, check_json, read_header
from cnsn_cli.task import LARGEST_IMAGE, Task

KEY = "cnsn"  # one key only: safetensors shuffles several, and files would not be reproducible
FORMAT, WITH_WIDTHS = 1, 2  # versions; a network with narrow sub-models has the second one
LONGEST_CLASS_NAME = 255  # characters; the longest name of a folder

Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scalar = None | bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | Finite | Text


class ModelRecord(BaseModel):
    """One model of a file.

    `first_unit` is the number of the first unit that it keeps. `macs`, `operations`, `parameters` and `bytes`
    are as in `ModelCost`. `accuracy` is 0..1, and `loss` a mean cross-entropy; None: unknown. `width` is the
    share of the channels of the network; a file has it only where it is not 1.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Text
    drops: Count
    width: float = Field(1.0, gt=0, le=1)
    first_unit: Count
    macs: Count
    operations: Count
    parameters: Count
    bytes: Count
    accuracy: float | None = Field(None, ge=0, le=1)
    loss: float | None = None

    @property
    def exit(self) -> Exit:
        return Exit(self.drops, self.width)


class BlockRecord(BaseModel):
    """A leading block of a tensor: its shape, and the SHA-256 of its bytes in a file of its own."""

    model_config = ConfigDict(extra="forbid")

    shape: tuple[Count, ...]
    sha256: Text = ""


class NarrowRecord(BaseModel):
    """What a narrow sub-model needs to leave the network: its architecture, and its blocks by name."""

    model_config = ConfigDict(extra="forbid")

    arch: Text
    blocks: dict[Text, BlockRecord]


class BestEpoch(BaseModel):
    """Which images chose the best epoch, and the number of the epoch whose weights the file holds."""

    images: choices.Selection
    epoch: Count


class _Version(BaseModel):
    """The one field that files of every format version have."""

    format: Count | None = None


class Metadata(BaseModel):
    """The metadata of one file.

    kind: `network` (base and sub-models together) or `detached` (one model).
    arch, provider: the architecture string, and the distribution that provides the architecture.
    task, bn, step_down: as for `Cnsn`.
    base_frozen: the base-model was taken from another file and not trained.
    started_from: where the weights of the original network came from, if training started from them.
    folded: BN is part of the convs.
    recalibrated: the number of training batches that BN statistics were recomputed from; 0: as trained.
    precision: the numbers that convs computed with in training.
    dtype: the numbers that weights are stored in.
    data, recipe, selection, versions: how the network was trained.
    image_column, label_column, test_data: as for `Origin`, if `data` is a table.
    sha256: the digest of each tensor.
    parent: the digest of the header of the file that a model was detached from; it commits to all tensors
        of that file. `parent_exits` are the exits of that network; None: it also has narrow sub-models.
    narrow: the narrow networks inside the whole one, by the share of the channels that they have.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: int
    kind: Literal["network", "detached"]
    arch: Text
    provider: Text
    task: Task
    bn: choices.BatchNormMode
    step_down: choices.StepDown = "patch"
    base_frozen: bool = False
    started_from: choices.StartedFrom | None = None
    folded: bool = False
    recalibrated: Count = 0
    precision: choices.Precision = "fp32"
    dtype: choices.WeightType = "float32"
    models: list[ModelRecord] = Field(min_length=1)
    data: Text | None = None
    image_column: Text | None = None
    label_column: Text | None = None
    test_data: Text | None = None
    recipe: dict[Text, Scalar | list[Scalar]] = {}
    selection: BestEpoch | None = None
    versions: dict[Text, Text] = {}
    sha256: dict[Text, Text] = {}
    parent: Text | None = None
    parent_exits: tuple[Count, ...] | None = None
    narrow: dict[Text, NarrowRecord] | None = None

    @property
    def origin(self) -> Origin:
        """The data set that the network was trained on."""
        return Origin(
            self.data,
            image_column=self.image_column,
            label_column=self.label_column,
            test_data=self.test_data,
        )

    @property
    def exits(self) -> tuple[Exit, ...]:
        """The sub-models of this file."""
        return tuple(model.exit for model in self.models if model.drops or model.width != 1)

    @property
    def trained_alone(self) -> bool:
        """Whether this is a sub-model that never was part of a whole network."""
        return self.kind == "detached" and self.parent is None

    def find(self, name: str) -> ModelRecord:
        """The record of a model; a number stands for a sub-model, and so does a word such as `@0.5`.

        Raises CheckpointError with the valid names.
        """
        name = f"submodel{name}" if name.isdecimal() else name
        for model in self.models:
            if name in (model.name, model.exit.word):  # a depth is a number, and numbers count sub-models
                return model
        raise CheckpointError(f"no model {name!r}: choose {', '.join(model.name for model in self.models)}")

    def narrow_of(self, model: ModelRecord) -> NarrowRecord | None:
        """What a model of this network takes of the tensors; None: all channels."""
        return None if model.width == 1 or self.narrow is None else self.narrow[f"{model.width:g}"]

    def detached(self, model: ModelRecord, parent: str) -> "Metadata":
        """The metadata of a file that holds `model` alone, without digests.

        A narrow model is an ordinary model of the narrow architecture there. `parent` is the digest of the
        header of this file.
        """
        narrow = self.narrow_of(model)
        changes: dict[str, Any] = {
            "format": FORMAT,
            "kind": "detached",
            "arch": narrow.arch if narrow else self.arch,
            "models": [model.model_copy(update={"width": 1.0})],
            "narrow": None,
            "parent": parent,
            "sha256": {},
        }
        if self.kind == "network":
            depths = tuple(exit.drops for exit in self.exits)
            changes["parent_exits"] = None if self.narrow else depths
        return self.model_copy(update=changes)

    def with_digests(
        self, sha256: Mapping[str, str], of_block: Callable[[str, tuple[int, ...]], str]
    ) -> "Metadata":
        """With the digest of each tensor, and of each leading block: `of_block(name, shape)`."""
        narrow = {
            width: NarrowRecord(
                arch=record.arch,
                blocks={
                    name: BlockRecord(shape=block.shape, sha256=of_block(name, block.shape))
                    for name, block in record.blocks.items()
                },
            )
            for width, record in (self.narrow or {}).items()
        }
        return self.model_copy(update={"sha256": dict(sha256), "narrow": narrow or None})

    def to_json(self) -> str:
        """The text for a file. It has no width and no `crop_pct` of 1, so that format 1 stays as it was."""
        content = self.model_dump(mode="json", exclude_none=True)
        if self.task.crop_pct == 1:
            del content["task"]["crop_pct"]
        for model in content["models"]:
            if model["width"] == 1:
                del model["width"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"))


def new_metadata(**fields: Any) -> Metadata:
    """The metadata of a new file. Raises OutputError if a field cannot be recorded."""
    try:
        return Metadata(format=WITH_WIDTHS if fields.get("narrow") else FORMAT, **fields)
    except ValidationError as error:
        raise OutputError(f"no file can record this network: {first_problem(error)}") from error


def metadata_in(path: Path) -> Metadata:
    """Like `read_metadata`, of a closed file."""
    return read_metadata(path, read_header(path))


def read_metadata(path: Path, header: Header) -> Metadata:
    """The metadata of a file. Raises CheckpointError if cnsn did not write them, or wrote another version."""
    return parse_metadata(path, header.metadata.get(KEY))


def parse_metadata(path: Path, text: str | None) -> Metadata:
    """The metadata in `text`, which the file `path` holds under KEY. Raises the errors of `read_metadata`."""
    if text is None:
        raise CheckpointError(f"{path} was not written by cnsn: its metadata have no key {KEY!r}")
    try:
        check_json(text)
        version = _Version.model_validate_json(text).format
        if version not in (FORMAT, WITH_WIDTHS):
            raise CheckpointError(
                f"{path} has format {version}, this version reads formats {FORMAT} and {WITH_WIDTHS}: "
                "update cnsn-cli"
            )
        metadata = Metadata.model_validate_json(text, strict=True)
        _check(metadata)
    except ValidationError as error:
        raise CheckpointError(f"{path} has broken metadata: {first_problem(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} has broken metadata: {error}") from error
    return metadata


def first_problem(error: ValidationError) -> str:
    """The first problem and the field that has it: `models.0.macs: Input should be ...`."""
    problem = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _check(metadata: Metadata) -> None:
    task, first = metadata.task, metadata.models[0]
    if max(map(len, task.class_names), default=0) > LONGEST_CLASS_NAME:
        raise ValueError(f"a class has a name of more than {LONGEST_CLASS_NAME} characters")
    if not (task.class_names and 0 < task.image_size <= LARGEST_IMAGE and 0 < task.in_channels <= 64):
        raise ValueError(f"its task has no classes, or images that are not of 1 to {LARGEST_IMAGE} pixels")
    finite = all(math.isfinite(value) for value in (*task.mean, *task.std))
    if not finite or not len(task.mean) == len(task.std) == task.in_channels or min(task.std) <= 0:
        raise ValueError("mean and std do not fit the channels")
    if not 0 < task.crop_pct <= 1:
        raise ValueError(f"its images have {task.crop_pct} of the side of a picture, not a share of 0 to 1")
    names = [model.name for model in metadata.models]
    if metadata.kind == "network" and names != ["base", *(f"submodel{i}" for i in range(len(names) - 1))]:
        raise ValueError(f"a network holds base, submodel0, ..., not {', '.join(names)}")
    if metadata.kind == "network" and metadata.folded:
        raise ValueError("only a detached model can be folded")
    if metadata.kind == "detached" and len(names) != 1:
        raise ValueError(f"a detached file holds 1 model, not {len(names)}")
    if metadata.kind == "detached" and not re.fullmatch(r"base|submodel[0-9]+", names[0]):
        raise ValueError(f"a detached model is base or submodel<number>, not {names[0]!r}")
    if metadata.kind == "network" and first.exit != Exit(0):
        raise ValueError("base must be the whole network")
    if any(model.exit == Exit(0) for model in metadata.models[1:]):
        raise ValueError("a sub-model must leave out conv layers or channels")
    _check_widths(metadata)


def _check_widths(metadata: Metadata) -> None:
    """A file says of its format that it has narrow sub-models, and describes just their widths."""
    narrow = metadata.narrow or {}
    if (metadata.format == WITH_WIDTHS) != bool(narrow) or (narrow and metadata.kind != "network"):
        raise ValueError("a file of format 2, and no other, is a network with narrow sub-models")
    used = {f"{model.width:g}" for model in metadata.models if model.width != 1}
    if used != narrow.keys():
        raise ValueError("its narrow sub-models do not have the widths that it describes")
