"""A run that is killed at any call to the system leaves models, metrics and a state that belong together.

Only between the first and the last new name of one save, which follow each other at once, new models may be
beside the state before.
"""

from pathlib import Path

from cnsn_cli.training import recorder
from cnsn_cli.training import run as runs
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.run_folder import STATE
from tests.faults.filelayer import FileLayer
from tests.faults.forked import forked
from tests.faults.test_mutations import many
from tests.training.test_resume import assert_same_run
from tests.training.test_saving import check_together, wait_for_writers

CHANGES = {"epochs": 3, "batch_size": 4, "crop_padding": 1, "flip": "random"}


class Journal(FileLayer):
    """Also writes down every call: its name, and that of the file that it renames."""

    def __init__(self, path: Path, at: int | None = None, fault: int | str = 0) -> None:
        super().__init__(at, fault)
        self.lines = path.open("w", buffering=1)

    def call(self, function, *arguments):
        name = getattr(function, "__name__", "")
        target = Path(arguments[1]).name if name == "replace" else ""
        self.lines.write(f"{name} {target}\n")
        return super().call(function, *arguments)


def names_being_given(calls: list[str]) -> set[int]:
    """The numbers of the calls after the first new name of a save, up to and including the last one."""
    inside, found = False, set()
    for number, call in enumerate(calls):
        found |= {number} if inside else set()
        if call.startswith("replace"):
            inside = call == "replace last.safetensors" or (inside and not call.endswith(STATE))
    return found


@many(9, 1)
def test_a_kill_at_any_call(tiny, tmp_path, monkeypatch, figures, count):
    monkeypatch.setattr(runs, "plot", lambda *folders, **more: None)
    monkeypatch.setattr(recorder, "EPOCHS_APART", 0)
    data, recipe = tiny["network"].parents[1] / "data", load_recipe("quick", CHANGES)
    whole, journal = tmp_path / "whole", tmp_path / "journal"

    def start(folder: Path, *fault: int | str) -> None:
        """The run waits for the disk after every event, so that each run makes the same calls."""
        Journal(journal, *fault).install()
        train("tiny", (1,), str(data), recipe, folder, watch=lambda event: wait_for_writers())

    sound = forked(lambda: start(whole))
    assert sound.code == 0, sound
    calls = journal.read_text().splitlines()
    names, epochs, mixed = names_being_given(calls), [], 0
    assert {calls[number].split()[0] for number in names} == {"replace", "open", "fsync", "close"}  # folders
    for at in range(0, len(calls), count):
        folder = tmp_path / f"{at}"
        killed = forked(lambda at=at, folder=folder: start(folder, at, "before"))
        assert killed.code == -9, killed
        if not (folder / STATE).exists():
            continue
        try:
            epochs.append(check_together(folder))
        except AssertionError:
            assert at in names, calls[at]
            mixed += 1
        ended = forked(lambda folder=folder: resume(folder))
        assert ended.code == 0, ended
        assert_same_run(folder, whole)
    assert set(epochs) >= {0, 1, 2}
    figures(f"{len(epochs) + mixed} kills in {len(calls)} calls, {mixed} of them between names")
