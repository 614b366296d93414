"""From names to trackers, among the entry points of installed packages.

`run` looks trackers up here before it reads data. A look-up imports the module of a tracker, and not the
library that the tracker needs. This module does not call trackers.
"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from cnsn_cli.errors import ExtraError, TrackerError, one_line
from cnsn_cli.training.trackers.tracking import Tracker

GROUP = "cnsn.trackers"
BUILT_IN = "cnsn_cli.training.trackers."


def find(names: Sequence[str]) -> dict[str, Tracker]:
    """The trackers of these names; a name that is given twice counts once.

    Raises TrackerError if a name is unknown, if two packages provide it, or if it cannot be imported, and
    ExtraError, with the remedy, if the library of a built-in tracker is not installed.
    """
    return {name: _imported(_entry(name)) for name in names}


def _entry(name: str) -> EntryPoint:
    # One distribution can be found twice, as an installation and as a source tree on the path.
    found = {(_provider(entry), entry.value): entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        choices = ", ".join(sorted(entry_points(group=GROUP).names))
        raise TrackerError(f"unknown tracker {name!r}: choose from {choices}")
    if len(found) > 1:
        providers = " and of ".join(provider for provider, _ in found)
        raise TrackerError(f"two trackers are called {name!r}, of {providers}: uninstall one of them")
    (entry,) = found.values()
    return entry


def _imported(entry: EntryPoint) -> Tracker:
    if entry.value.startswith(BUILT_IN):
        _check_library(entry.name)
    plugin = f"tracker {entry.name!r} of {_provider(entry)}"
    try:
        tracker: Tracker = entry.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise TrackerError(f"cannot import {plugin} ({reason}): repair it, or leave it out") from error
    if not callable(tracker):
        raise TrackerError(f"{plugin} is no function: see docs/trackers.md")
    return tracker


def _check_library(name: str) -> None:
    """A built-in tracker, its library and its extra have one name."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder without code, such as the wandb/ of earlier runs
        raise ExtraError(f"tracker {name} needs the library {name}: pip install 'cnsn-cli[{name}]'")


def _provider(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else f"module {entry.module}"
