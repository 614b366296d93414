"""The training loop and a whole run, from Python: steps, epochs, files and errors."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import Dataset, load_dataset
from cnsn_cli.data.pixels import normalise
from cnsn_cli.data.split import MemorySplit, Split
from cnsn_cli.errors import DataError, OutputError, TrainingError
from cnsn_cli.evaluation.accuracy import ModelResult, evaluate_file
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.tensor_file import read_header
from cnsn_cli.network.network import Cnsn
from cnsn_cli.training import step as training_step
from cnsn_cli.training import trainer as training
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.building import build_network
from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.recipe import Recipe, load_recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import train
from cnsn_cli.training.setup import split_off
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY, broken_compiler


def settings(**changes: object) -> Recipe:
    plain = {"epochs": 1, "batch_size": 4, "schedule": "step", "milestones": (), "warmup_epochs": 0}
    return load_recipe("paper", {**plain, "crop_padding": 0, "flip": "none", **changes})


def trainer(network: Cnsn, split: Split, **changes: object) -> Trainer:
    return Trainer(network, split, split, settings(**changes))


def network(dataset, seed: int = 0) -> Cnsn:
    torch.manual_seed(seed)
    return Cnsn(registry.find(TINY).build(dataset.task), (1, 4), dataset.task)


@pytest.fixture(scope="module")
def dataset(image_folder):
    return load_dataset(str(image_folder))


def test_one_step_is_sgd_on_the_multi_model_loss(dataset):
    """The weights after one step are w - lr * (gradient + weight decay * w)."""
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
        list(trainer(trained, dataset.train, seed=seed, crop_padding=2, flip="random").run())
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
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "recipe.toml", "state.safetensors"}


def test_a_failed_run_leaves_the_networks_that_it_would_replace(image_folder, checkpoint, tmp_path, quick):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.parent, folder)
    diverging = quick.model_copy(update={"lr": 1e30})
    with pytest.raises(TrainingError, match="became"):
        train(TINY, (1,), str(image_folder), diverging, folder, force=True)
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (checkpoint.parent / name).read_bytes()


def test_a_run_folder(image_folder, tmp_path, quick):
    out, events = tmp_path / "new" / "run", []
    recipe = quick.model_copy(update={"epochs": 2})
    run = train(TINY, (1, 4), str(image_folder), recipe, out, watch=events.append)
    assert {path.name for path in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "state.safetensors", "metrics.jsonl", "recipe.toml", ".lock",
        "plot.png",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["selection"] == "test"
    best = max(lines, key=lambda line: sum(result["accuracy"] for result in line["results"]))
    assert run.best_epoch == best["epoch"]
    assert [model.accuracy for model in run.models] == [result["accuracy"] for result in best["results"]]
    assert load_recipe(str(out / "recipe.toml")) == recipe
    last = load(out / "last.safetensors")
    state = read_header(out / "state.safetensors")
    held = {f"network.{name}" for name in last.state_dict()} | {"random", "losses", "correct", "metrics"}
    assert set(state.entries) == held | {f"momentum.{name}" for name, _ in last.named_parameters()}
    assert read_state(out / "state.safetensors").epoch == 2
    assert (out / "best.safetensors").stat().st_mode & 0o777 == (out / "recipe.toml").stat().st_mode & 0o777


def test_selection_on_held_out_training_images(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"val_split": 0.25})
    events = []
    run = train(TINY, (1,), str(image_folder), recipe, tmp_path, watch=events.append)
    assert (events[0].train_images, events[0].held_out_images) == (48, 16)
    assert run.selection == "validation"
    assert all(model.accuracy * 16 == pytest.approx(round(model.accuracy * 16)) for model in run.models)


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


def test_the_schedule_goes_on_over_epochs(dataset):
    ours = trainer(
        network(dataset), dataset.train, epochs=3, batch_size=32, lr=1e-3, milestones=(1, 2), gamma=0.5
    )
    seen = []
    ours.optimizer.parts[0].register_step_pre_hook(
        lambda sgd, *_: seen.append(float(sgd.param_groups[0]["lr"]))
    )
    list(ours.run())
    assert seen == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


def test_every_sample_is_seen_once_an_epoch_augmented_and_normalised(dataset, monkeypatch):
    seen = []
    forward_pass = training_step.forward_pass

    def spy(forward, images, labels, *rest):
        seen.append((images, labels))
        return forward_pass(forward, images, labels, *rest)

    monkeypatch.setattr(training_step, "forward_pass", spy)
    changes = {"epochs": 2, "batch_size": 16, "crop_padding": 3, "flip": "random", "seed": 5}
    list(trainer(network(dataset), dataset.train, **changes).run())
    for epoch in (1, 2):
        plan = plan_epoch(64, settings(**changes), epoch, torch.device("cpu"))
        augmented = plan.augment(dataset.train.pixels, torch.arange(64))[plan.order]
        batches = seen[4 * (epoch - 1) : 4 * epoch]
        assert torch.equal(torch.cat([images for images, _ in batches]), normalise(augmented, dataset.task))
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.train.labels[plan.order])


def test_an_evaluation_that_is_not_finite_stops_too(dataset, monkeypatch):
    broken = [ModelResult("base", 0.1, math.nan)]
    monkeypatch.setattr(training, "evaluate", lambda network, split: broken)
    with pytest.raises(TrainingError, match="the loss of base became nan in epoch 1"):
        list(trainer(network(dataset), dataset.train, batch_size=32).run())


def test_best_is_the_best_and_not_the_last(image_folder, tmp_path, quick, monkeypatch):
    accuracies = iter([0.5, 0.75, 0.25])

    def scripted(network, split):
        accuracy = next(accuracies)
        return [ModelResult(name, accuracy, 1.0) for name in ("base", "submodel0")]

    monkeypatch.setattr(training, "evaluate", scripted)
    recipe = quick.model_copy(update={"epochs": 3})
    finished = train(TINY, (1,), str(image_folder), recipe, tmp_path)
    assert finished.best_epoch == 2
    assert [model.accuracy for model in finished.models] == [0.75] * 2
    best, last = (load(tmp_path / f"{name}.safetensors").state_dict() for name in ("best", "last"))
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_with_a_val_split_the_best_network_meets_the_test_images_once(image_folder, tmp_path, quick):
    recipe = quick.model_copy(update={"val_split": 0.25, "epochs": 3, "seed": 3})
    finished = train(TINY, (1,), str(image_folder), recipe, tmp_path)
    results = evaluate_file(tmp_path / "best.safetensors", device="cpu").results
    assert [(m.accuracy, m.loss) for m in finished.models] == [(r.accuracy, r.loss) for r in results]


def test_held_out_images_are_not_trained_on(image_folder, quick):
    whole = load_dataset(str(image_folder))
    numbered = Dataset(MemorySplit(torch.arange(64), whole.train.labels), whole.test, whole.task)
    recipe = quick.model_copy(update={"val_split": 0.25})
    fitted, held_out = split_off(numbered, recipe)
    assert sorted([*fitted.pixels.tolist(), *held_out.pixels.tolist()]) == list(range(64))
    assert torch.bincount(held_out.labels).tolist() == [8, 8]
    other, _ = split_off(numbered, recipe.model_copy(update={"seed": 1}))
    assert set(other.pixels.tolist()) != set(fitted.pixels.tolist())


def test_the_recipe_decides_on_statistics_and_seed(dataset, quick):
    def built(**changes):
        return build_network(registry.find(TINY), (1,), dataset.task, quick.model_copy(update=changes))

    assert built(bn="shared").bn == "shared"
    first, again, other = (built(seed=seed).state_dict()["units.0.0.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(dataset):
    ours, plain = network(dataset), network(dataset)
    seen = []
    ours.units[0][0].register_forward_hook(lambda conv, inputs, output: seen.append(output.dtype))
    split = dataset.train.take(torch.arange(0, 64, 16))
    (epoch,) = (
        event for event in Trainer(ours, split, split, settings(), "bf16").run() if isinstance(event, Epoch)
    )
    (expected,) = (
        event for event in Trainer(plain, split, split, settings()).run() if isinstance(event, Epoch)
    )
    assert seen == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]  # the check of batch sizes, a step, the evaluation
    assert {tensor.dtype for tensor in ours.parameters()} == {torch.float32}
    for ours_, expected_ in zip(epoch.train, expected.train, strict=True):
        assert ours_.loss == pytest.approx(expected_.loss, rel=0.05)


def test_a_folder_that_does_not_fit_into_memory_is_trained_alike(image_folder, tmp_path, quick, monkeypatch):
    whole = train(TINY, (1,), str(image_folder), quick, tmp_path / "memory")
    monkeypatch.setattr("cnsn_cli.data.datasets.MEMORY_LIMIT", 1)
    streamed = train(TINY, (1,), str(image_folder), quick, tmp_path / "files")
    assert streamed.models == whole.models
    results = evaluate_file(tmp_path / "files" / "best.safetensors", device="cpu").results
    assert [result.accuracy for result in results] == [model.accuracy for model in whole.models]


def test_a_folder_that_cannot_be_made_is_noticed_before_training(image_folder, tmp_path, quick):
    (tmp_path / "file").write_text("")
    events = []
    with pytest.raises(OSError, match="Not a directory"):
        train(TINY, (1,), str(image_folder), quick, tmp_path / "file" / "run", watch=events.append)
    assert not events


def test_a_compiler_that_fails_names_the_remedy(dataset, monkeypatch):
    monkeypatch.setattr(torch, "compile", broken_compiler("no C++ compiler\nmore"))
    split = dataset.train
    with pytest.raises(
        TrainingError, match=r"torch.compile fails here \(no C\+\+ compiler\): give --compile off"
    ):
        list(Trainer(network(dataset), split, split, settings(), compiled=True).run())


def test_the_compiler_is_not_blamed_for_errors_of_the_network(dataset, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("a fault of the network")

    monkeypatch.setattr(torch, "compile", broken_compiler("graph break"))
    broken = network(dataset)
    monkeypatch.setattr(broken.units[0], "forward", refuse)
    with pytest.raises(RuntimeError, match="a fault of the network"):
        list(Trainer(broken, dataset.train, dataset.train, settings(), compiled=True).run())
