import json
import math

import pytest
import torch
import torch.nn.functional as F

from cnsn_cli import registry
from cnsn_cli.checkpoint import load
from cnsn_cli.data import load_dataset
from cnsn_cli.errors import DataError, OutputError, RecipeError, TrainingError
from cnsn_cli.images import normalise
from cnsn_cli.network import Cnsn
from cnsn_cli.recipe import load_recipe
from cnsn_cli.run import train
from cnsn_cli.split import Split
from cnsn_cli.tensorfile import read_header
from cnsn_cli.training import Epoch, Trainer
from tests.conftest import TINY


def trainer(network: Cnsn, split: Split, **settings: object) -> Trainer:
    plain = {"epochs": 1, "batch_size": 4, "schedule": "step", "milestones": (), "warmup_epochs": 0}
    recipe = load_recipe("paper", {**plain, "crop_padding": 0, "flip": False, **settings})
    return Trainer(network, split, split, recipe)


def network(dataset, seed: int = 0) -> Cnsn:
    torch.manual_seed(seed)
    return Cnsn(registry.build(TINY, dataset.task), (1, 4), dataset.task)


@pytest.fixture(scope="module")
def dataset(image_folder):
    return load_dataset(str(image_folder))


def test_one_step_is_sgd_on_the_multi_model_loss(dataset):
    """The weights after one step, against w - lr * (gradient + weight decay * w)."""
    ours, reference = network(dataset), network(dataset)
    split = dataset.train.take(torch.arange(0, 64, 16))
    images, labels = normalise(split.pixels, dataset.task), split.labels
    losses = [F.cross_entropy(logits, labels) for logits in reference.train()(images)]
    (losses[0] + (losses[1] + losses[2]) / 2).backward()
    list(trainer(ours, split, lr=0.1, weight_decay=0.01).run())
    for (name, weight), before in zip(ours.named_parameters(), reference.parameters(), strict=True):
        expected = before - 0.1 * (before.grad + 0.01 * before)
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_it_learns(dataset):
    events = list(trainer(network(dataset), dataset.train, epochs=8, lr=0.01, batch_size=8).run())
    epochs = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.epoch for epoch in epochs] == list(range(1, 9))
    assert [result.name for result in epochs[-1].results] == ["base", "submodel0", "submodel1"]
    for first, last in zip(epochs[0].results, epochs[-1].results, strict=True):
        assert last.accuracy >= 0.9, last
        assert last.loss < first.loss


def test_the_same_seed_gives_the_same_weights(dataset):
    def weights(seed: int) -> torch.Tensor:
        trained = network(dataset, seed)
        list(trainer(trained, dataset.train, seed=seed, crop_padding=2, flip=True).run())
        return torch.cat([parameter.flatten() for parameter in trained.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_last_partial_batch_is_dropped(dataset):
    split = dataset.train.take(torch.arange(11))
    assert trainer(network(dataset), split).steps_per_epoch == 2


def test_a_batch_larger_than_the_data(dataset):
    with pytest.raises(TrainingError, match="a batch of 65 is more than the 64 training images"):
        trainer(network(dataset), dataset.train, batch_size=65)


def test_a_loss_that_is_not_finite_stops_before_best_is_overwritten(image_folder, tmp_path):
    recipe = load_recipe("quick", {"epochs": 5, "batch_size": 8, "lr": 1e30, "warmup_epochs": 4})

    with pytest.raises(TrainingError, match=r"the loss of \w+ became (nan|inf) in epoch 1 .* lower --lr"):
        train(TINY, (1,), str(image_folder), recipe, tmp_path)
    assert not (tmp_path / "best.safetensors").exists()
    assert (tmp_path / "recipe.toml").exists()


def test_a_run_folder(image_folder, tmp_path, quick):
    out, events = tmp_path / "new" / "run", []
    recipe = quick.model_copy(update={"epochs": 2})
    run = train(TINY, (1, 4), str(image_folder), recipe, out, watch=events.append)
    assert {path.name for path in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "state.safetensors", "metrics.jsonl", "recipe.toml",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["selection"] == "test"
    best = max(lines, key=lambda line: sum(result["accuracy"] for result in line["results"]))
    assert run.best_epoch == best["epoch"]
    assert [model.accuracy for model in run.models] == [result["accuracy"] for result in best["results"]]
    assert load_recipe(str(out / "recipe.toml")) == recipe
    learnt = {name for name, _ in load(out / "last.safetensors").named_parameters()}
    state = read_header(out / "state.safetensors")
    assert set(state.entries) == learnt
    assert json.loads(state.metadata["cnsn-state"]) == {"epoch": 2}
    assert (out / "best.safetensors").stat().st_mode & 0o777 == (out / "recipe.toml").stat().st_mode & 0o777


def test_selection_on_held_out_training_images(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"val_split": 0.25})
    events = []
    run = train(TINY, (1,), str(image_folder), recipe, tmp_path, watch=events.append)
    assert (events[0].train_images, events[0].held_out_images) == (48, 16)
    assert run.selection == "validation"
    assert all(model.accuracy * 16 == pytest.approx(round(model.accuracy * 16)) for model in run.models)


def test_too_small_a_val_split(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"val_split": 0.001})
    with pytest.raises(RecipeError, match=r"val_split = 0.001 of 64 images"):
        train(TINY, (1,), str(image_folder), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused(image_folder, checkpoint, quick):
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="holds a run already: give --force"):
        train(TINY, (1,), str(image_folder), quick, checkpoint.parent)
    assert checkpoint.read_bytes() == before


def test_a_wrong_number_of_classes_is_refused(image_folder, tmp_path, quick):
    with pytest.raises(DataError, match="has 2 classes, not 10: leave out --classes"):
        train(TINY, (1,), str(image_folder), quick, tmp_path / "run", classes=10)


def test_without_exits_only_the_baseline_is_trained(image_folder, tmp_path, quick):
    run = train(TINY, (), str(image_folder), quick, tmp_path)
    assert [model.name for model in run.models] == ["base"]
    assert math.isfinite(run.models[0].loss)
