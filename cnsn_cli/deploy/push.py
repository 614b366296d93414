"""Putting a file and its model card on the Hub: `cnsn push` and Python users start here.

huggingface_hub uploads, and finds the token. This module does not know what a card says.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from cnsn_cli.deploy.card import CARD, card_of
from cnsn_cli.errors import HubError, OutputError
from cnsn_cli.files.checkpoint import read_network
from cnsn_cli.files.hub import LOG_IN, PROTOCOL, SUFFIX, parsed, path_of, reported
from cnsn_cli.files.tensor_file import TensorFile
from cnsn_cli.stages import stage
from cnsn_cli.version import __version__


class Pushed(NamedTuple):
    """A file on the Hub: its address, and whether its card was put there too.

    `with_card` is False if the repository had a README.md already, which stays.
    """

    address: str
    with_card: bool


def push(
    file: str | Path, repo: str, license_name: str = "unknown", private: bool = False, force: bool = False
) -> Pushed:
    """Put a network or a detached model into a repository on the Hub, under its own name, with a model card.

    file: a file that `cnsn train` or `cnsn detach` wrote; its name ends in `.safetensors`.
    repo: `user/repo`; the repository is created if there is none.
    license_name: the license as the Hub spells it, such as `apache-2.0`.
    private: create a private repository; a repository that is public already is refused.
    force: replace the file and README.md if the repository has them. (It keeps their history.)

    All of the file is checked before anything is uploaded. The file and its card, README.md, arrive in one
    commit. Raises CheckpointError for the file, HubError for the repository, the token or the network,
    OutputError if the repository has the file and `force` is False, ExtraError without huggingface_hub.
    """
    repo = _repository(repo)
    path = path_of(file)
    name = _name(path, repo)
    content, card = _checked(path, license_name, f"{PROTOCOL}{repo}/{name}")
    with stage(f"uploading {name} to {PROTOCOL}{repo}"), reported(PROTOCOL + repo):
        added = _commit(repo, {name: content, CARD: _as_on_hub(card)}, private, force)
    return Pushed(f"{PROTOCOL}{repo}/{name}", CARD in added)


def _repository(repo: str) -> str:
    uri = parsed(PROTOCOL + repo.removeprefix(PROTOCOL))
    if uri.path_in_repo or uri.revision:
        raise HubError(f"{repo!r} is more than a repository: give user/repo")
    return uri.id


def _name(path: Path, repo: str) -> str:
    """The name of a file in the repository. Raises HubError if no address could name it there."""
    name = Path(os.fspath(path)).name
    if not name.endswith(SUFFIX):
        raise HubError(f"{path} is not uploaded: only files of cnsn that end in {SUFFIX} are")
    parsed(f"{PROTOCOL}{repo}/{name}")
    return name


def _checked(path: Path, license_name: str, address: str) -> tuple[bytes, str]:
    """The content of a file that cnsn can read, and its card. Raises CheckpointError.

    The file is opened once, for a run may replace it meanwhile.
    """
    content = BytesIO()
    with stage(f"checking {path.name}"), TensorFile(path) as file:
        metadata = read_network(file).metadata
        file.copy_to(content)
    return content.getvalue(), card_of(metadata, license_name, address)


def _as_on_hub(card: str) -> bytes:
    """The card with its fields as huggingface_hub checks and writes them. Raises ValueError."""
    from huggingface_hub import ModelCard

    return str(ModelCard(card)).encode()


def _commit(repo: str, files: dict[str, bytes], private: bool, force: bool) -> list[str]:
    """Put the files into a repository, in one commit, and return their names; a README.md there stays.

    The Hub refuses the commit if the repository changes after it was looked at here.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise HubError(f"no token for the Hub: {LOG_IN}")
    api = HfApi(library_name="cnsn", library_version=__version__)
    api.create_repo(repo, private=private or None, exist_ok=True)
    found = api.model_info(repo)
    if private and not found.private:
        raise HubError(f"{repo} is public already: leave out --private, or make it private on its page")
    there = {file.rfilename for file in found.siblings or ()}
    name, *_ = files
    if name in there and not force:
        raise OutputError(f"{PROTOCOL}{repo}/{name} exists: give --force to replace it and {CARD}")
    added = [name for name in files if force or name not in there]
    operations = [CommitOperationAdd(name, files[name]) for name in added]
    api.create_commit(repo, operations, commit_message=f"Add {name}", parent_commit=found.sha)
    return added
