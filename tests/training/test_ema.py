"""Averaged weights: how they are computed, and that they are evaluated and saved."""

import pytest
import torch

from cnsn_cli.backbones import registry
from cnsn_cli.data.datasets import load_dataset
from cnsn_cli.files.checkpoint import load
from cnsn_cli.network.recalibration import recalibrated
from cnsn_cli.training.building import build_network
from cnsn_cli.training.run import train
from cnsn_cli.training.trainer import Trainer
from tests.conftest import TINY


def test_the_average_by_hand_and_its_statistics(image_folder, quick):
    """After step n the average moves to the weights by 1 - min(decay, (1 + n) / (10 + n))."""
    dataset = load_dataset(str(image_folder))
    recipe = quick.model_copy(update={"ema": 0.3})
    network = build_network(registry.find(TINY), (1, 4), dataset.task, recipe)
    trainer = Trainer(network, dataset.train, dataset.test, recipe)
    seen = [network.head[1].weight.detach().clone()]
    trainer.optimizer.parts[0].register_step_post_hook(
        lambda *_: seen.append(network.head[1].weight.detach().clone())
    )
    list(trainer.run())
    average, *weights = seen
    for step, weight in enumerate(weights, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert len(weights) == 8
    torch.testing.assert_close(trainer.trained.head[1].weight.detach(), average)
    again = recalibrated(trainer.trained.models(), dataset.train, 50)
    for model, fresh in zip(trainer.trained.models(), again, strict=True):
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, fresh.get_buffer(name), msg=name)


def test_the_average_is_what_is_kept(image_folder, tmp_path, quick):
    plain = train(TINY, (1,), str(image_folder), quick, tmp_path / "plain")
    kept = train(TINY, (1,), str(image_folder), quick.model_copy(update={"ema": 0.9}), tmp_path / "average")
    weights = [load(run.folder / "last.safetensors").state_dict()["head.1.weight"] for run in (plain, kept)]
    assert not torch.equal(*weights)
    assert kept.models[0].loss == pytest.approx(_loss(tmp_path / "average" / "best.safetensors"), rel=1e-6)


def _loss(path) -> float:
    from cnsn_cli.evaluation.accuracy import evaluate_file

    return evaluate_file(path, device="cpu").results[0].loss
