"""Addresses of the Hub: a cache as huggingface_hub lays it out, and its public functions replaced."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from torch import allclose

import cnsn_cli
from cnsn_cli.errors import ExtraError, HubError
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.hub import path_of
from tests.commands.test_lacks import one_line
from tests.hub import COMMITS, LOG_IN, response

ADDRESS = "hf://user/repo/model.safetensors"


@pytest.fixture
def small(checkpoint, tmp_path):
    cnsn_cli.detach(checkpoint, "1", tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_load_takes_an_address(repo, checkpoint, small):
    repo.add(checkpoint, "model.safetensors")
    repo.add(small, "sub/small.safetensors")
    repo.add(small, "model.safetensors", "v2", COMMITS[1])
    for name, file in {
        "hf://user/repo": checkpoint,
        "hf://user/repo/": checkpoint,
        "hf://models/user/repo": checkpoint,
        ADDRESS: checkpoint,
        "hf://user/repo/sub/small.safetensors": small,
        "hf://user/repo@v2": small,
        "hf://user/repo@v2/model.safetensors": small,
        f"hf://user/repo@{COMMITS[1]}/model.safetensors": small,
    }.items():
        found, expected = (dict(load(place).state_dict()) for place in (name, file))
        assert found.keys() == expected.keys(), name
        assert all(allclose(found[key], expected[key]) for key in expected), name


def test_without_the_hub_only_the_usual_file_needs_no_name(repo, small):
    """The cache may hold one of several files."""
    repo.add(small, "other.safetensors")
    with pytest.raises(HubError, match=r"the Hub cannot be reached, and there is no copy in the cache"):
        load("hf://user/repo")
    assert load("hf://user/repo/other.safetensors").name == "submodel1"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.safetensors", "README.md"], None),
        (["README.md", "model.bin"], "hf://user/repo has no file that ends in .safetensors"),
        (
            ["a.safetensors", "b.safetensors"],
            "has several files: choose from hf://user/repo/a.safetensors, hf",
        ),
        (["../../a.safetensors"], "hf://user/repo/../../a.safetensors' is no address"),
    ],
)
def test_the_files_that_the_hub_lists(repo, small, monkeypatch, names, message):
    """A hostile list of files leads to no place outside the cache."""
    asked = []

    def download(repo_id, filename, **options):
        asked.append(filename)
        if filename == "model.safetensors":
            raise errors.EntryNotFoundError("404")
        return str(small)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, **options: names)
    if message is None:
        assert load("hf://user/repo").name == "submodel1"
        assert asked == ["model.safetensors", "a.safetensors"]
        return
    with pytest.raises(HubError, match=message.replace(".", r"\.")):
        load("hf://user/repo")
    assert asked == ["model.safetensors"]


WORDS = {
    "eval": lambda data, out: (),
    "eval --json": lambda data, out: (),
    "info": lambda data, out: (),
    "info --json": lambda data, out: (),
    "card": lambda data, out: (),
    "card -o": lambda data, out: (out / "upload",),
    "mac": lambda data, out: (),
    "detach --submodel 1 -o": lambda data, out: (out / "new.safetensors",),
    "detach --all -o": lambda data, out: (out / "all",),
    "predict": lambda data, out: (data / "test" / "dark" / "00.png",),
    "predict --json": lambda data, out: (data / "test" / "dark" / "00.png",),
    "bench --rounds 1 --json": lambda data, out: (),
    "plot -o": lambda data, out: (out / "plot.png",),
}


@pytest.mark.parametrize("command", WORDS)
def test_every_command_takes_an_address_and_shows_it(cnsn, repo, checkpoint, image_folder, tmp_path, command):
    repo.add(checkpoint, "model.safetensors")
    name, *options = command.split()
    result = cnsn(name, ADDRESS, *options, *WORDS[command](image_folder, tmp_path))
    assert result.code == 0, result.err
    assert f"fetching {ADDRESS}" in result.stages
    assert "cache" not in result.out + result.err
    if command in ("eval", "mac", "predict"):
        assert ADDRESS in result.out
    if command in ("predict --json", "bench --rounds 1 --json"):
        found = json.loads(result.out)
        assert ADDRESS in (found.get("file"), found.get("speeds", [{}])[0].get("file"))


def test_export_takes_an_address(cnsn, repo, tmp_path):
    line = one_line(cnsn("export", ADDRESS, "--to", "pt2", "-o", tmp_path / "new.pt2"))
    assert line.startswith(f"cnsn: {ADDRESS}: the Hub cannot be reached")


def test_a_broken_file_is_named_by_its_address(cnsn, repo, tmp_path):
    (tmp_path / "text").write_text("no tensors at all")
    repo.add(tmp_path / "text", "model.safetensors")
    assert one_line(cnsn("info", ADDRESS)).startswith(f"cnsn: {ADDRESS} is no safetensors file")


def test_a_name_for_one_slash_is_a_path(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:" / "user").mkdir(parents=True)
    shutil.copy(small, tmp_path / "hf:" / "user" / "repo")
    assert load("hf:/user/repo").name == "submodel1"


def test_an_address_stays_one_when_it_is_copied():
    address = path_of(ADDRESS)
    assert str(copy.deepcopy(address)) == str(path_of(address)) == f"{address}" == ADDRESS
    assert address != path_of("hf://user/other/model.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf:///", "hf://user", "hf://user/", "hf:///repo", "hf://a/b@", "hf://a/b@/c.safetensors",
        "hf://a/b//c.safetensors", "hf://a/b/../c", "hf://a/b/../c.safetensors", "hf://a/b/./c.safetensors",
        "hf://a/b/..\\c.safetensors", "hf://../b/c.safetensors", "hf://a/../c.safetensors", "hf://a b/c",
        "hf://a/b@../c.safetensors", "hf://a/b@x%2F..%2F..%2Fy/c.safetensors", "hf://a/b/\x1b.safetensors",
        "hf://a/b/\udce9.safetensors", "hf://datasets/a", "hf://a--b/c",
    ],
)  # fmt: skip
def test_malformed_addresses(cnsn, repo, text):
    line = one_line(cnsn("info", text))
    assert "is no address" in line
    assert line.endswith("give hf://user/repo or hf://user/repo/file.safetensors")
    with pytest.raises(HubError):
        load(text)


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.pt", "pytorch_model.bin", "model.safetensors.bin", "c"]
)
def test_only_safetensors_are_fetched(cnsn, repo, small, name):
    repo.add(small, name)
    line = one_line(cnsn("eval", f"hf://user/repo/{name}"))
    assert line.endswith(f"{name} is not fetched: only files that end in .safetensors are")


def test_other_kinds_of_repositories(cnsn, repo):
    assert "names a dataset, not a model" in one_line(cnsn("info", "hf://datasets/a/b/c.safetensors"))


def test_without_the_extra(cnsn, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert one_line(cnsn("info", ADDRESS)) == (
        "cnsn: the Hub needs huggingface_hub: pip install 'cnsn-cli[hub]'"
    )
    with pytest.raises(ExtraError):
        load(ADDRESS)
    assert path_of("small.safetensors") == Path("small.safetensors")


HTTP = errors.HfHubHTTPError.__bases__[0]
ANSWERS = {
    "no such repository, or a private one: check the name, or " + LOG_IN: errors.RepositoryNotFoundError(
        "404", response=response(404)
    ),
    "its owner gives access on request: ask on the page of the repository, and " + LOG_IN: (
        errors.GatedRepoError("403", response=response(403))
    ),
    "no such revision: name a branch, a tag or a commit after @": errors.RevisionNotFoundError(
        "404", response=response(404)
    ),
    "no such file in the repository": errors.RemoteEntryNotFoundError("404", response=response(404)),
    f"the Hub refuses the token, or there is none: {LOG_IN} (401: Invalid credentials)": (
        errors.HfHubHTTPError("x", response=response(401), server_message="Invalid credentials")
    ),
    "the Hub refuses (500: two lines)": errors.HfHubHTTPError("two\n\nlines", response=response(500)),
    "the Hub cannot be reached (The read operation timed out)": HTTP("The read operation timed out"),
    "No space left on device": OSError("No space left on device"),
    "Xet broke": RuntimeError("Xet\nbroke"),
}


REFUSED = errors.LocalEntryNotFoundError("check your connection")
REFUSED.__cause__ = errors.HfHubHTTPError("x", response=response(400), server_message="Bad request")
ANSWERS["the Hub refuses (400: Bad request)"] = REFUSED


@pytest.mark.parametrize("message", ANSWERS)
def test_what_the_hub_answers_becomes_one_line(cnsn, repo, monkeypatch, message):
    def download(*arguments, **options):
        raise ANSWERS[message]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert one_line(cnsn("eval", ADDRESS)) == f"cnsn: {ADDRESS}: {message}"


def test_no_network_and_not_in_the_cache(cnsn, repo, small):
    repo.add(small, "model.safetensors", "v2")
    for address in ("hf://user/nowhere", ADDRESS, "hf://user/repo", "hf://user/repo@v2/other.safetensors"):
        line = one_line(cnsn("info", address))
        words = "the Hub cannot be reached, and there is no copy in the cache (Cannot reach "
        assert line.startswith(f"cnsn: {address}: {words}")
        assert "HF_HUB_OFFLINE" in line


def test_ctrl_c_stays_ctrl_c(repo, monkeypatch):
    def download(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(KeyboardInterrupt):
        load(ADDRESS)


NOISY = """
import sys, warnings
from contextlib import nullcontext
from cnsn_cli.files.hub import path_of, reported

path_of("hf://user/repo")
sys.stderr.isatty = lambda: True
for wanted in (reported("quiet"), nullcontext()):
    with wanted:
        from huggingface_hub.utils import _http
        from huggingface_hub.utils.tqdm import tqdm

        _http.logger.warning("thrown while requesting")
        warnings.warn("something")
        for _ in tqdm(range(3), desc="bar"):
            pass
    print("---", file=sys.stderr)
"""


def test_only_stages_are_shown():
    """In a new process, because huggingface_hub sets up its log when it is first imported."""
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    quiet, noisy, _ = done.stderr.split("---\n")
    assert quiet == ""
    assert all(word in noisy for word in ("thrown while requesting", "something", "bar: 100%"))
