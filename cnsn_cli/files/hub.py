"""Addresses of the Hub, `hf://user/repo[@revision][/file]`: users may give one where they name a file.

Commands and the functions that Python users call turn the name that a user gave into a path with `path_of`. A
name that a file records does not come here. huggingface_hub downloads, keeps the cache and finds the token.
This module does not know what is in the files: a downloaded file is checked like any file of a stranger.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

from cnsn_cli.errors import CnsnError, ExtraError, HubError, one_line
from cnsn_cli.stages import stage

if TYPE_CHECKING:
    from huggingface_hub import HfUri
    from huggingface_hub.errors import HfHubHTTPError

PROTOCOL = "hf://"
SUFFIX = ".safetensors"
USUAL = "model.safetensors"  # the file of a repository, if an address names none
FORM = "hf://user/repo or hf://user/repo/file.safetensors"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class Address(PosixPath):
    """An address as a path: it reads as the user wrote it, and opens as its copy in the cache of the Hub.

    So every message names the address. The file is fetched when it is opened first.
    """

    text: str
    uri: "HfUri"

    def __new__(cls, text: str) -> "Address":
        self = super().__new__(cls, text)
        self.text, self.uri = text, parsed(text)
        return self

    def __str__(self) -> str:
        return self.text  # a path has one slash where the address has two

    def __fspath__(self) -> str:
        return self.local

    def __reduce__(self) -> tuple[type["Address"], tuple[str]]:
        return Address, (self.text,)

    @cached_property
    def local(self) -> str:
        """The name of the copy in the cache, downloaded if it is missing or out of date. Raises HubError."""
        with stage(f"fetching {self}"), reported(self):
            return _fetched(self.uri)

    @cached_property
    def cached(self) -> str:
        """The name of the copy in the cache; nothing is downloaded. Raises HubError if there is no copy."""
        with reported(self):
            return _fetched(self.uri, cache_only=True)


def path_of(name: str | Path) -> Path:
    """The path that a user named; of a text that starts with `hf://`, an Address.

    Raises HubError for a malformed address, ExtraError if huggingface_hub is not installed.
    """
    if isinstance(name, Path):
        return name
    return Address(name) if name.startswith(PROTOCOL) else Path(name)


def parsed(text: str) -> "HfUri":
    """The parts of an address of a safetensors file or of a repository. Raises HubError, ExtraError."""
    try:
        from huggingface_hub import parse_hf_uri
    except ImportError:
        raise ExtraError("the Hub needs huggingface_hub: pip install 'cnsn-cli[hub]'") from None
    try:
        uri = parse_hf_uri(text)
    except ValueError:
        raise HubError(f"{text!r} is no address: give {FORM}") from None
    if uri.type != "model":
        raise HubError(f"{text} names a {uri.type}, not a model: give {FORM}")
    for part in (uri.revision or "", uri.path_in_repo):
        if not part.isprintable() or "\\" in part or {".", ".."} & {*part.split("/")}:
            raise HubError(f"{text!r} is no address, because of {part!r}: give {FORM}")
    if uri.path_in_repo and not uri.path_in_repo.endswith(SUFFIX):
        raise HubError(f"{text} is not fetched: only files that end in {SUFFIX} are")
    return uri


def _fetched(uri: "HfUri", cache_only: bool = False) -> str:
    """The name of the copy of a file in the cache. Raises the errors of huggingface_hub, and HubError."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    get = partial(hf_hub_download, uri.id, revision=uri.revision, local_files_only=cache_only)
    if uri.path_in_repo:
        return get(uri.path_in_repo)
    try:
        return get(USUAL)
    except LocalEntryNotFoundError:
        raise  # the Hub was not asked, or did not answer: nobody knows which files the repository has
    except EntryNotFoundError:
        names = HfApi().list_repo_files(uri.id, revision=uri.revision)
    return get(_only(uri, [name for name in names if name.endswith(SUFFIX)]))


def _only(uri: "HfUri", names: list[str]) -> str:
    """The one file among `names`. Raises HubError if there are several, or none."""
    where = PROTOCOL + uri.id + (f"@{uri.revision}" if uri.revision else "")
    if not names:
        raise HubError(f"{where} has no file that ends in {SUFFIX}")
    if len(names) > 1:
        choices = ", ".join(f"{where}/{name}" for name in sorted(names))
        raise HubError(f"{where} has several files: choose from {choices}")
    return parsed(f"{where}/{names[0]}").path_in_repo  # the Hub could list any name


@contextmanager
def reported(where: object) -> Iterator[None]:
    """In this context, an error of the Hub, the network or the disk becomes one line about `where`.

    huggingface_hub shows no bars and logs no warnings: `stage` says what is being done. Raises HubError.
    """
    from huggingface_hub.utils import logging as log
    from huggingface_hub.utils.tqdm import disable_progress_bars

    level = log.get_verbosity()
    log.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), disable_progress_bars():
            yield
    except CnsnError:
        raise
    except Exception as error:  # those of the Hub, of HTTP, of Xet and of the disk have no common class
        raise HubError(f"{where}: {_reason(error)}") from error
    finally:
        log.set_verbosity(level)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return f"its owner gives access on request: ask on the page of the repository, and {LOG_IN}"
        case errors.RepositoryNotFoundError():
            return f"no such repository, or a private one: check the name, or {LOG_IN}"
        case errors.RevisionNotFoundError():
            return "no such revision: name a branch, a tag or a commit after @"
        case errors.LocalEntryNotFoundError(__cause__=errors.HfHubHTTPError() as answer):
            return _reason(answer)
        case errors.LocalEntryNotFoundError():
            cause = f" ({one_line(error.__cause__)})" if error.__cause__ else ""
            return f"the Hub cannot be reached, and there is no copy in the cache{cause}"
        case errors.EntryNotFoundError():
            return "no such file in the repository"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the Hub refuses the token, or there is none: {LOG_IN} ({_said(error)})"
        case errors.HfHubHTTPError():
            return f"the Hub refuses ({_said(error)})"
        case errors.OfflineModeIsEnabled() | errors.HTTPError():  # type: ignore[attr-defined]
            return f"the Hub cannot be reached ({one_line(error)})"
    return one_line(error)


def _said(error: "HfHubHTTPError") -> str:
    return f"{error.response.status_code}: {error.server_message or one_line(error)}"
