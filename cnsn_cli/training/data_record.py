"""What the data of a run are: its state keeps this record, so that a resumed run notices other data.

`setup` makes the record, and `run` compares it with the record in the state. Times of files do not count: a
copied folder is the same data. This module does not know networks.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cnsn_cli import distributed
from cnsn_cli.choices import SplitName
from cnsn_cli.data.datasets import Dataset
from cnsn_cli.data.sources import contents
from cnsn_cli.data.split import MemorySplit, Split
from cnsn_cli.errors import TrainingError
from cnsn_cli.files.checkpoint import digest
from cnsn_cli.files.metadata import Count
from cnsn_cli.task import Task
from cnsn_cli.training.request import Request


class SplitRecord(BaseModel):
    """One split: `counts` are the numbers of images of each class; the other fields are digests.

    `names` is over relative names of files, and their classes if a table has them; `sizes` is over names and
    sizes in bytes. `pixels` is over all images if they are in memory, else empty.
    """

    model_config = ConfigDict(extra="forbid")

    counts: tuple[Count, ...]
    names: str
    sizes: str
    pixels: str


class DataRecord(BaseModel):
    """Classes, format, mean and standard deviation of the images, and a record of each split."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    train: SplitRecord
    test: SplitRecord


@distributed.first_only
def record_data(request: Request, dataset: Dataset) -> DataRecord:
    """The record of `dataset`, which was loaded for `request`."""
    classes = dataset.task.num_classes
    return DataRecord(
        task=dataset.task,
        train=_record("train", dataset.train, classes, request),
        test=_record("test", dataset.test, classes, request),
    )


def _record(name: SplitName, split: Split, classes: int, request: Request) -> SplitRecord:
    parts = list(contents(request.origin, name))
    return SplitRecord(
        counts=tuple(split.labels.bincount(minlength=classes).tolist()),
        names=_digest_of_files(parts, sizes=False),
        sizes=_digest_of_files(parts, sizes=True),
        pixels=digest(split.pixels) if isinstance(split, MemorySplit) else "",
    )


def _digest_of_files(parts: list[tuple[str, str]], sizes: bool) -> str:
    summed = hashlib.sha256()
    for name, path in parts:
        summed.update(os.fsencode(name))
        summed.update(f"\0{_size(path) if sizes else ''}\0".encode())
    return summed.hexdigest()


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else -1  # a broken link


def check_data(folder: Path, before: DataRecord | None, now: DataRecord | None, override: bool) -> None:
    """Raises TrainingError if the run in `folder` began with other data; `override` accepts other images.

    `before` is None in states of older versions, `now` in all processes but the first.
    """
    if before is None or now is None:
        return
    old, new = before.task, now.task
    changes = ", ".join(_changes(before, now))
    if (old.num_classes, old.image_size) != (new.num_classes, new.image_size):
        raise TrainingError(
            f"{folder} cannot go on with other data ({changes}): restore the data, or start another run with "
            "--out"
        )
    if changes and not override:
        raise TrainingError(
            f"{folder} was trained on other data ({changes}): restore the data, or give --override to go on "
            "anyway"
        )


def _changes(before: DataRecord, now: DataRecord) -> Iterator[str]:
    old, new = before.task, now.task
    yield from (f"class {name!r} is new" for name in new.class_names if name not in old.class_names)
    yield from (f"class {name!r} is gone" for name in old.class_names if name not in new.class_names)
    if old.image_size != new.image_size:
        yield f"images of {old.image_size} -> {new.image_size} pixels a side"
    if old.crop_pct != new.crop_pct:
        yield f"crop_pct = {old.crop_pct:g} -> {new.crop_pct:g}"
    other_values = (old.mean, old.std) != (new.mean, new.std)
    yield from _changes_of_split("training", before, before.train, now, now.train, other_values)
    yield from _changes_of_split("test", before, before.test, now, now.test)


def _changes_of_split(
    words: str,
    before: DataRecord,
    old: SplitRecord,
    now: DataRecord,
    new: SplitRecord,
    other_values: bool = False,
) -> Iterator[str]:
    counts = dict(zip(now.task.class_names, new.counts, strict=True))
    changed = [
        f"{count:,} -> {counts[name]:,} {words} images of class {name!r}"
        for name, count in zip(before.task.class_names, old.counts, strict=True)
        if counts.get(name, count) != count
    ]
    if changed:
        yield from changed
    elif old.names != new.names:
        yield f"{words} images came, went, or have other names"
    elif other_values or (old.sizes, old.pixels) != (new.sizes, new.pixels):
        yield f"{words} images have other contents"
