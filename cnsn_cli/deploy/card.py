"""Model cards: a description of a file for people who find it on a hub, and fields for the hub's programs.

Python users, `cnsn card` and `push` call this module. It reads the metadata of a file, and no weights. The
fields are those of https://huggingface.co/docs/hub/model-cards, which other hubs read too.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from cnsn_cli.data.origin import HUB, hub_name, is_hub, may_be_name
from cnsn_cli.errors import OutputError
from cnsn_cli.files.hub import path_of
from cnsn_cli.files.metadata import Metadata, ModelRecord, metadata_in, read_metadata
from cnsn_cli.files.tensor_file import TensorFile
from cnsn_cli.files.writer import check_output, filling, replacing, write_text

PAPER = "https://doi.org/10.2991/jrnal.k.210521.012"
LISTED = 20  # class names in the card
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def card(path: str | Path, license_name: str = "unknown") -> str:
    """The card, in Markdown, of a network or a detached model: what it is, what it costs, how it is used.

    Arguments:
        path: A file that `cnsn train` or `cnsn detach` wrote.
        license_name: The license as hubs spell it, such as `apache-2.0`.

    Raises CheckpointError for the file.
    """
    return card_of(metadata_in(path_of(path)), license_name)


def write_folder(path: Path, folder: Path, license_name: str, force: bool = False) -> None:
    """Write a folder that is ready for upload: a copy of the file, its card, and its facts for programs.

    Raises CheckpointError for the file, OutputError if the folder cannot be written.
    """
    with TensorFile(path) as file:
        _write_folder(file, folder, license_name, force)


def _write_folder(file: TensorFile, folder: Path, license_name: str, force: bool) -> None:
    metadata = read_metadata(file.path, file.header)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give the name of a folder")
    if not folder.parent.is_dir():
        raise OutputError(f"no folder {folder.parent}: create it first")
    if (folder / WEIGHTS).exists() and (folder / WEIGHTS).samefile(file.path):
        raise OutputError(f"{folder / WEIGHTS} is the file itself: give another folder")
    texts = {CONFIG: json.dumps(config(metadata), indent=2) + "\n", CARD: card_of(metadata, license_name)}
    with filling(folder) as written:
        for name in (WEIGHTS, *texts):
            check_output(folder / name, force)
        with replacing(folder / WEIGHTS, force, metadata_in) as target:
            file.copy_to(target)
        written.append(folder / WEIGHTS)
        for name, text in texts.items():
            write_text(folder / name, text, force)
            written.append(folder / name)


def config(metadata: Metadata) -> dict[str, Any]:
    """The facts of a file for programs. Keys are the names that hubs use, if there are any."""
    task = metadata.task
    labels = {str(number): name for number, name in enumerate(task.class_names)}
    return {
        "library_name": "cnsn",
        "architectures": [metadata.arch],
        "provider": metadata.provider,
        "models": [model.model_dump(exclude_none=True) for model in metadata.models],
        "torch_dtype": metadata.dtype,
        "num_channels": task.in_channels,
        "image_size": task.image_size,
        "image_mean": task.mean,
        "image_std": task.std,
        "crop_pct": task.crop_pct,
        "id2label": labels,
        "label2id": {name: int(number) for number, name in labels.items()},
        "parent": metadata.parent,
    }


def training_command(metadata: Metadata) -> str | None:
    """The command that trains such a network, with every hyper-parameter; None if it is not known.

    Of the path of images, only the last part is shown.
    """
    cuts = _cuts(metadata)
    if metadata.data is None or metadata.base_frozen or metadata.started_from == "file" or cuts is None:
        return None
    task = metadata.task
    words = ["cnsn", "train", "--arch", metadata.arch, *cuts, "--data", _shown(metadata.data)]
    words += _columns(metadata)
    words += ["--image-size", str(task.image_size)]
    words += ["--pretrained"] * (metadata.started_from == "published")
    words += ["--in-channels", str(task.in_channels), "--precision", metadata.precision]
    for key, value in metadata.recipe.items():
        words += _flag(key.replace("_", "-"), value)
    return shlex.join(words)


def _shown(data: str) -> str:
    """The name of a data set on the Hub, or the last part of a path."""
    if may_be_name(data):
        return data
    last = Path(hub_name(data)).name
    return f"{HUB}{last}" if is_hub(data) else last


def _columns(metadata: Metadata) -> list[str]:
    """The options that say where a table has its images and classes, and which table has the test images."""
    test_data = metadata.test_data and Path(metadata.test_data).name
    named = {**metadata.origin.columns(), "test_data": test_data}
    return [word for name, value in named.items() if value for word in _flag(name.replace("_", "-"), value)]


def _cuts(metadata: Metadata) -> list[str] | None:
    """The option that names the sub-models; None for a model of a network that had narrow ones too."""
    if metadata.trained_alone:
        return ["--drop", str(metadata.models[0].drops)]
    exits = metadata.exits if metadata.kind == "network" else metadata.parent_exits
    return None if exits is None else ["--exits", ",".join(map(str, exits))]


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def card_of(metadata: Metadata, license_name: str, name: str = WEIGHTS) -> str:
    """Like `card`, from the metadata of a file, which readers of the card load under `name`."""
    import yaml

    fields = yaml.safe_dump(_fields(metadata, license_name), sort_keys=False)
    title = f"# {_title(metadata)}"
    return "\n\n".join(
        [
            f"---\n{fields}---",
            title,
            _opening(metadata),
            _table(metadata),
            _usage(metadata, name),
            _origin(metadata),
        ]
    )


def _title(metadata: Metadata) -> str:
    name = f"{metadata.models[0].name} of " if metadata.kind == "detached" else ""
    return _inert(f"{name}{metadata.arch}")


def _fields(metadata: Metadata, license_name: str) -> dict[str, Any]:
    """The YAML fields at the top. `datasets` holds the name of a data set, or of the folder of images."""
    data = [hub_name(_shown(metadata.data))] if metadata.data else []
    results = [
        _result(model, name) for name in data for model in metadata.models if model.accuracy is not None
    ]
    fields = {
        "license": license_name,
        "library_name": "cnsn",
        "pipeline_tag": "image-classification",
        "tags": ["cnsn", "image-classification", metadata.arch.partition(":")[0]],
        "datasets": data,
        "metrics": ["accuracy"],
        "macs": {model.name: model.macs for model in metadata.models},
    }
    return fields | ({"model-index": [{"name": _title(metadata), "results": results}]} if results else {})


def _result(model: ModelRecord, data: str) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data},
        "metrics": [{"type": "accuracy", "value": model.accuracy, "name": f"accuracy of {model.name}"}],
    }


def _opening(metadata: Metadata) -> str:
    task = metadata.task
    kind = "grey" if task.in_channels == 1 else "RGB"
    size = f"{task.image_size} x {task.image_size}"
    names = ", ".join(map(_code, task.class_names[:LISTED]))
    names += f", and {task.num_classes - LISTED} more" if task.num_classes > LISTED else ""
    text = f"An image classifier of {size} {kind} images into {task.num_classes} classes: {names}."
    drops = metadata.models[0].drops
    if drops:
        origin = "a larger network" if metadata.trained_alone else "the network that it was detached from"
        text += (
            f"\n\nIt is a sub-model: one step-down convolution stands for the first {drops} conv layers of "
            f"{origin} ([Fuengfusin & Tamukoh 2021]({PAPER}))."
        )
    elif metadata.parent and metadata.models[0].name != "base":
        text += "\n\nIt is a narrow sub-model: it has the leading channels of a larger network's layers."
    return text


def _table(metadata: Metadata) -> str:
    """The table of costs and accuracy, one row for each model, and a note on the images of the accuracy."""
    narrow = metadata.narrow is not None
    columns = ["model", "conv layers left out", *["channels kept"] * narrow, "MACs", "parameters", "bytes"]
    rows = [f"| {' | '.join([*columns, 'accuracy'])} |", "|---" * (len(columns) + 1) + "|"]
    for model in metadata.models:
        accuracy = "unknown" if model.accuracy is None else f"{model.accuracy:.2%}"
        kept = f"{model.width:g} | " if narrow else ""
        figures = f"{model.macs:,} | {model.parameters:,} | {model.bytes:,} | {accuracy}"
        rows.append(f"| {model.name} | {model.drops} | {kept}{figures} |")
    text = "\n".join(rows)
    if metadata.selection:
        images = "test images" if metadata.selection.images == "test" else "training images held out"
        text += f"\n\nAccuracy is on the {images}, which chose the epoch too: expect less for new images."
    return text


def _usage(metadata: Metadata, name: str) -> str:
    model = "model" if metadata.kind == "detached" else "model.base"
    return f"""## Use

```python
import cnsn_cli
from PIL import Image

model = cnsn_cli.load("{name}")
logits = {model}(model.preprocess(Image.open("picture.png"))[None])
print(model.task.class_names[logits.argmax()])
```"""


def _origin(metadata: Metadata) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in metadata.versions.items())
    lines = [f"- made with {_inert(versions)}", f"- weights in {metadata.dtype}"]
    if metadata.parent:
        lines.append(f"- SHA-256 of the header of its parent: {_code(metadata.parent)}")
    command = training_command(metadata)
    trained = f"\n\n```sh\n{_inert(command)}\n```" if command else ""
    return "## Where it comes from\n\n" + "\n".join(lines) + trained + "\n"


def _code(text: str) -> str:
    """Inline code in Markdown; backticks in `text`, such as the name of a class, become apostrophes."""
    return f"`{_inert(text).replace('`', chr(39))}`"


def _inert(text: str) -> str:
    """`text` as one line: every character that is not printable becomes a space."""
    return "".join(c if c.isprintable() else " " for c in text)
