"""The end of a resumed run depends on everything that its state holds."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.resume_state import read_state, write_state
from cnsn_cli.training.run import resume, train
from tests.faults.test_mutations import many
from tests.training.test_resume import Stop, assert_same_run, stop_at_step

CHANGES = {"epochs": 3, "batch_size": 2, "lr": 0.05, "crop_padding": 1}
RECOMPUTED = ("running_mean", "running_var", "num_batches_tracked")  # of an average, after every epoch


def ends_alike(cut, whole, case, tensors, state) -> bool:
    """Whether the run in `cut`, resumed from `tensors` and `state`, ends like the run in `whole`."""
    shutil.copytree(cut, case)
    write_state(case / "state.safetensors", tensors, state)
    resume(case)
    try:
        assert_same_run(case, whole)
    except AssertionError:
        return False
    finally:
        shutil.rmtree(case)
    return True


def changed(name: str, tensor: Tensor) -> Tensor:
    if name == "random":
        return torch.Generator().manual_seed(99).get_state()[None]
    return tensor + torch.ones((), dtype=tensor.dtype)


@pytest.mark.parametrize("ema", [0, 0.8])
@many(9, 1)
def test_each_item_of_the_state(tiny, tmp_path, figures, ema, count):
    """Changes all tensors in the long version, one of `count` in the short version, and three other items."""
    data, recipe = tiny["network"].parents[1] / "data", load_recipe("quick", {**CHANGES, "ema": ema})
    whole, cut, case = (tmp_path / name for name in ("whole", "cut", "case"))
    train("tiny", (1,), str(data), recipe, whole)
    with pytest.raises(Stop):
        train("tiny", (1,), str(data), recipe, cut, save_every="1", watch=stop_at_step(6))
    state, tensors = read_state(cut / "state.safetensors"), load_file(cut / "state.safetensors")
    assert ends_alike(cut, whole, case, tensors, state)

    idle = {
        name
        for name in list(tensors)[::count]
        if ends_alike(cut, whole, case, {**tensors, name: changed(name, tensors[name])}, state)
    }
    assert all(ema and name.endswith(RECOMPUTED) for name in idle)
    others = {
        "step": state.step - 1,
        "metrics": state.metrics.replace('"lr": ', '"lr": 1'),
        "request": state.request.with_changes({"lr": 0.04}),
    }
    for name, value in others.items():
        assert not ends_alike(cut, whole, case, tensors, state.model_copy(update={name: value})), name
    figures(f"{len(list(tensors)[::count]) - len(idle)} tensors and {len(others)} others matter")
