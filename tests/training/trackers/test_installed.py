"""Trackers are found by name, and what is wrong with one is said before a run reads its data."""

from functools import partial
from importlib.machinery import PathFinder

import pytest

from cnsn_cli.errors import ExtraError, TrackerError
from cnsn_cli.training.trackers import installed
from tests.conftest import TINY

GROUP = "cnsn.trackers"


def test_the_built_in_trackers():
    found = installed.find(["mlflow", "tensorboard", "mlflow"])
    assert list(found) == ["mlflow", "tensorboard"]
    assert all(map(callable, found.values()))
    assert installed.find([]) == {}


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_an_unknown_name_is_told_before_the_data_are_read(cnsn, tmp_path, flags):
    words = ("--exits", "1", "--data", tmp_path / "missing", "--out", tmp_path / "run", "--track", "mlfow")
    result = cnsn("train", "--arch", TINY, *words, *flags)
    assert result.code == 1
    assert result.stages == ()  # PyTorch is not loaded yet
    assert result.err.endswith("unknown tracker 'mlfow': choose from mlflow, tensorboard, trackio, wandb\n")
    assert not (tmp_path / "run").exists()


def test_an_empty_name_is_no_tracker(cnsn, tmp_path):
    words = ("--exits", "1", "--data", tmp_path / "missing", "--out", tmp_path / "run", "--track", "")
    assert "missing" in cnsn("train", "--arch", TINY, *words).err


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "trackio"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_library_that_is_not_installed(monkeypatch, tmp_path, name, folder):
    """A folder of its name, such as wandb makes, is no library."""
    if folder:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(installed, "find_spec", partial(PathFinder.find_spec, path=[str(tmp_path)]))
    with pytest.raises(ExtraError) as caught:
        installed.find([name])
    assert str(caught.value).endswith(f"needs the library {name}: pip install 'cnsn-cli[{name}]'")


@pytest.mark.parametrize(
    ("source", "entry", "said"),
    [
        (
            "1 / 0",
            "mine:track",
            r"cannot import tracker 'mine' of mine 1.0 \(ZeroDivisionError: .*\): repair",
        ),
        ("import nothing_such", "mine:track", r"ModuleNotFoundError: No module named 'nothing_such'"),
        ("", "mine:track", r"AttributeError"),
        ("", "not_there:track", r"No module named 'not_there'"),
        ("track = 3", "mine:track", "tracker 'mine' of mine 1.0 is no function: see docs/trackers.md"),
    ],
)
def test_a_plugin_that_cannot_be_imported(distribution, source, entry, said):
    distribution("mine", {"mine": source}, {"mine": entry}, GROUP)
    with pytest.raises(TrackerError, match=said) as caught:
        installed.find(["mine"])
    assert "\n" not in str(caught.value)


def test_two_trackers_of_one_name(distribution):
    for name in ("one", "two"):
        distribution(name, {name: "def track(run): ..."}, {"same": f"{name}:track"}, GROUP)
    with pytest.raises(TrackerError, match=r"two .* called 'same', of (one|two) 1.0 and of (one|two) 1.0: "):
        installed.find(["same"])
