"""`cnsn push`: what reaches the Hub, and what is refused before. HfApi of huggingface_hub is replaced."""

import os
import re
import shutil
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors

import cnsn_cli
from cnsn_cli.deploy.card import card
from cnsn_cli.files.metadata import metadata_in
from tests.commands.test_lacks import one_line
from tests.conftest import TINY
from tests.hub import LOG_IN, response

ADDRESS = "hf://user/repo/small.safetensors"


class Hub:
    """Stands for the Hub: the files of `user/repo`, or None if there is no such repository, and the calls."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None
        self.private = False
        self.calls: list[tuple[str, Any]] = []
        self.token: str | None = "hf_token"

    def __call__(self, **options: str) -> "Hub":
        assert options == {"library_name": "cnsn", "library_version": cnsn_cli.__version__}
        return self

    def create_repo(self, repo: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(("create_repo", repo))
        assert exist_ok
        if self.files is None:
            self.files, self.private = {".gitattributes": b""}, bool(private)

    def model_info(self, repo: str) -> Any:
        assert self.files is not None
        siblings = [SimpleNamespace(rfilename=name) for name in self.files]
        return SimpleNamespace(sha="c0ffee", private=self.private, siblings=siblings)

    def create_commit(self, repo: str, operations: Any, *, commit_message: str, parent_commit: str) -> None:
        assert self.files is not None
        self.calls.append(("create_commit", commit_message))
        assert (repo, parent_commit) == ("user/repo", "c0ffee")
        self.files |= {operation.path_in_repo: operation.path_or_fileobj for operation in operations}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: hub.token)
    return hub


@pytest.fixture
def small(checkpoint, tmp_path):
    cnsn_cli.detach(checkpoint, "1", tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_the_file_and_its_card_arrive_in_one_commit(cnsn, hub, small):
    result = cnsn("push", small, "user/repo", "--license", "apache-2.0")
    assert (result.code, result.out) == (0, f"pushed: {ADDRESS}\n"), result.err
    assert hub.calls == [("create_repo", "user/repo"), ("create_commit", "Add small.safetensors")]
    assert sorted(hub.files) == [".gitattributes", "README.md", "small.safetensors"]
    assert hub.files["small.safetensors"] == small.read_bytes()
    assert not hub.private


def test_the_card_on_the_hub(hub, small, image_folder):
    cnsn_cli.push(small, "hf://user/repo", "mit", private=True)
    assert hub.private
    text = hub.files["README.md"].decode()
    fields, own = (yaml.safe_load(each.split("---\n")[1]) for each in (text, card(small, "mit")))
    assert fields["library_name"] == "cnsn"
    assert fields["pipeline_tag"] == "image-classification"
    assert fields["tags"] == ["cnsn", "image-classification", TINY.partition(":")[0]]
    (result,) = fields["model-index"][0]["results"]
    assert result["task"]["type"] == "image-classification"
    assert [metric["value"] for metric in result["metrics"]] == [metadata_in(small).models[0].accuracy]
    assert fields == own
    assert f'cnsn_cli.load("{ADDRESS}")' in text
    introductions = [each.split("## Use")[0].split("---\n")[2] for each in (text, card(small, "mit"))]
    assert introductions[0] == introductions[1]


def test_all_models_of_a_network_are_in_the_fields(hub, checkpoint):
    cnsn_cli.push(checkpoint, "user/repo")
    fields = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    values = [m["value"] for r in fields["model-index"][0]["results"] for m in r["metrics"]]
    assert values == [model.accuracy for model in metadata_in(checkpoint).models]


def test_nothing_is_replaced_without_force(cnsn, hub, small):
    hub.files = {"README.md": b"mine"}
    result = cnsn("push", small, "user/repo")
    kept = "kept: README.md of the repository; --force replaces it with the card of this file"
    assert result.out == f"pushed: {ADDRESS}\n{kept}\n"
    assert hub.files == {"README.md": b"mine", "small.safetensors": small.read_bytes()}
    hub.files = {"small.safetensors": b"old"}
    line = one_line(cnsn("push", small, "user/repo"))
    assert line == f"cnsn: {ADDRESS} exists: give --force to replace it and README.md"
    assert hub.files == {"small.safetensors": b"old"}
    hub.files["README.md"] = b"mine"
    assert cnsn("push", small, "user/repo", "--force").out == f"pushed: {ADDRESS}\n"
    assert hub.files["small.safetensors"] == small.read_bytes()
    assert hub.files["README.md"].startswith(b"---\nlicense: unknown\n")


def test_a_private_file_never_lands_in_a_public_repository(cnsn, hub, small):
    hub.files = {}
    line = one_line(cnsn("push", small, "user/repo", "--private"))
    assert line == "cnsn: user/repo is public already: leave out --private, or make it private on its page"
    assert hub.files == {}
    hub.private = True
    assert cnsn("push", small, "user/repo", "--private").code == 0


def broken(small):
    data = bytearray(small.read_bytes())
    data[-5] ^= 1
    return bytes(data)


@pytest.mark.parametrize("kind", ["state", "damaged", "text", "foreign", "missing", "folder", "onnx", "pt2"])
def test_a_file_that_cnsn_cannot_read_is_refused_before_anything_happens(
    cnsn, hub, small, checkpoint, tmp_path, kind
):
    path = tmp_path / "file.safetensors"
    message = "was not written by cnsn"
    if kind == "state":
        path = checkpoint.parent / "state.safetensors"
    elif kind == "damaged":
        path.write_bytes(broken(small))
        message = "is damaged: tensor "
    elif kind == "text":
        path.write_text("weights, honestly")
        message = "is no safetensors file"
    elif kind == "foreign":
        path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    elif kind == "missing":
        message = f"cannot read {path}: No such file"
    elif kind == "folder":
        path.mkdir()
        message = "is a folder"
    else:
        path = shutil.copy(small, tmp_path / f"file.{kind}")
        message = "is not uploaded: only files of cnsn that end in .safetensors are"
    assert message in one_line(cnsn("push", path, "user/repo"))
    assert not hub.calls


@pytest.mark.parametrize(
    "repo",
    ["repo", "user/", "/repo", "a b/c", "../x", "user/..", "hf://", "datasets/user", "https://x/y", "a/b\n"],
)
def test_names_of_repositories(cnsn, hub, small, repo):
    assert "is no address: give hf://user/repo" in one_line(cnsn("push", small, repo))
    assert not hub.calls


@pytest.mark.parametrize("repo", ["user/repo@v1", "user/repo/small.safetensors", "hf://a/b@v1/c.safetensors"])
def test_more_than_a_repository(cnsn, hub, small, repo):
    assert one_line(cnsn("push", small, repo)).endswith("is more than a repository: give user/repo")
    assert not hub.calls


@pytest.mark.parametrize(
    "name", [os.fsdecode(b"caf\xe9.safetensors"), "a\nb.safetensors", "a\\b.safetensors"]
)
def test_names_that_no_address_has(cnsn, hub, small, tmp_path, name):
    assert "is no address" in one_line(cnsn("push", shutil.copy(small, tmp_path / name), "user/repo"))
    assert not hub.calls


def test_no_token(cnsn, hub, small):
    hub.token = None
    line = one_line(cnsn("push", small, "user/repo"))
    assert line == f"cnsn: no token for the Hub: {LOG_IN}"
    assert not hub.calls


def test_a_file_of_the_hub_can_be_pushed_to_another_repository(cnsn, hub, repo, small):
    repo.add(small, "sub/small.safetensors")
    assert cnsn("push", "hf://user/repo/sub/small.safetensors", "user/repo").out == f"pushed: {ADDRESS}\n"
    assert hub.files["small.safetensors"] == small.read_bytes()


ANSWERS = {
    f"the Hub refuses the token, or there is none: {LOG_IN} (403: You don't have the rights)": (
        errors.HfHubHTTPError("x", response=response(403), server_message="You don't have the rights")
    ),
    "the Hub refuses (412: A commit has happened since)": (
        errors.HfHubHTTPError("x", response=response(412), server_message="A commit has happened since")
    ),
    'Invalid metadata in README.md. - "license" must be one of': ValueError(
        'Invalid metadata in README.md.\n- "license" must be one of'
    ),
    "the Hub cannot be reached (timed out)": errors.HTTPError("timed out"),
}


@pytest.mark.parametrize("message", ANSWERS)
@pytest.mark.parametrize("call", ["create_repo", "create_commit"])
def test_what_the_hub_answers_becomes_one_line(cnsn, hub, small, monkeypatch, call, message):
    def fail(*arguments, **options):
        raise ANSWERS[message]

    monkeypatch.setattr(hub, call, fail)
    assert one_line(cnsn("push", small, "user/repo")) == f"cnsn: hf://user/repo: {message}"


def test_without_a_network(cnsn, repo, small, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    line = one_line(cnsn("push", small, "user/repo"))
    assert re.match("cnsn: hf://user/repo: the Hub cannot be reached.*HF_HUB_OFFLINE", line)
