"""A repository in the cache of huggingface_hub, and answers of the Hub, for tests without a network."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import errors

COMMITS = ("0" * 40, "1" * 40)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class Repository:
    """A repository in the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""

    def __init__(self, cache: Path, name: str) -> None:
        self.folder = cache / f"models--{name.replace('/', '--')}"
        (self.folder / "refs").mkdir(parents=True)

    def add(self, file: Path, name: str, revision: str = "main", commit: str = COMMITS[0]) -> None:
        """Add a file to a revision: a link to a blob, which has the name of a digest."""
        place = self.folder / "snapshots" / commit / name
        blob = self.folder / "blobs" / f"{commit}{len(name)}"
        for folder in (place.parent, blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        place.symlink_to(blob)
        (self.folder / "refs" / revision).write_text(commit)


def response(status: int) -> Any:
    """An answer, of the class of the HTTP library that huggingface_hub uses."""
    http = import_module(errors.HTTPError.__module__.partition(".")[0])
    return http.Response(status, request=http.Request("GET", "https://hub"))
