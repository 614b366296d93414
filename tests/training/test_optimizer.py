"""The weights after some steps are those of a loop by hand, with torch's own optimizers."""

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cnsn_cli.data.pixels import normalise
from cnsn_cli.network.loss import multi_model_loss
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import plan_epoch
from cnsn_cli.training.metrics import Step
from cnsn_cli.training.muon import Muon, matrices
from cnsn_cli.training.optimizer import MEMORIES
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.resume_state import read_state
from cnsn_cli.training.run import resume, train
from cnsn_cli.training.step import TrainingStep
from tests.commands.test_cli import one_line
from tests.conftest import TINY, built
from tests.faults.test_items import ends_alike
from tests.training.test_resume import Stop, assert_same_run, stop_at_step

TASK = Task.plain()
SAMPLES, BATCH, STEPS, LR = 40, 8, 5, 0.01
PIXELS = torch.randint(
    256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
LABELS = torch.randint(10, (SAMPLES,), generator=torch.Generator().manual_seed(2))
PLAIN = {"batch_size": BATCH, "lr": LR, "flip": "none", "crop_padding": 0}
CLASSIFIER = ("head.1.weight", "head.1.bias")


def learning_rate(step: int) -> float:
    """A rate of its own in each step, which a captured step would not notice if it were a number."""
    return LR / (1 + step)


def batch(step: int, size: int = BATCH) -> Tensor:
    return torch.arange(step * size, (step + 1) * size) % SAMPLES


def ours(network: Cnsn, changes: dict[str, object], drawn: tuple[str, ...] = ()) -> Cnsn:
    """`network` after STEPS steps of the product."""
    recipe = load_recipe("paper", {**PLAIN, **changes})
    step = TrainingStep(network.train(), LABELS, recipe, drawn=drawn)
    step.begin(plan_epoch(SAMPLES, recipe, 1, torch.device("cpu")))
    scales = recipe.gradient_scales(len(step.step_downs), 0)
    for number in range(STEPS):
        chosen = batch(number, len(step.indices))
        step.set(chosen, PIXELS[chosen], learning_rate(number), scales, number)
        step()
    return network


def by_hand(
    network: Cnsn,
    make: Callable[[Cnsn], list[torch.optim.Optimizer]],
    scale_lr: Callable[..., float] = lambda group: 1.0,
    batches: int = 1,
    change_gradients: Callable[[Cnsn], None] = lambda network: None,
) -> Cnsn:
    """`network` after STEPS steps of a loop in plain torch; a step has so many batches."""
    optimizers = make(network.train())
    for number in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(number) * scale_lr(group)
        for chosen in batch(number, batches * BATCH).split(BATCH):
            loss, _ = multi_model_loss(network(normalise(PIXELS[chosen], TASK)), LABELS[chosen])
            (loss / batches).backward()
        change_gradients(network)
        for optimizer in optimizers:
            optimizer.step()
    return network


def plain_sgd(network: Cnsn) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=6e-4)]


def assert_alike(ours: nn.Module, theirs: nn.Module, adaptive: bool = False) -> None:
    """Adaptive optimizers make whole steps of rounding errors: the gradient of a bias before BN is zero."""
    for (name, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if adaptive and name.endswith(".0.bias"):
            continue
        torch.testing.assert_close(
            weight,
            expected,
            rtol=2e-5,
            atol=1e-4 if adaptive else 2e-6,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def test_pretrained_weights_take_smaller_steps():
    network = built(TINY, (1, 4), TASK)
    twin = copy.deepcopy(network)

    def groups(network: Cnsn) -> list[torch.optim.Optimizer]:
        new = [p for n, p in network.named_parameters() if "step_down" in n or n in CLASSIFIER]
        old = [p for n, p in network.named_parameters() if "step_down" not in n and n not in CLASSIFIER]
        assert (len(new), len(old)) == (2 * 4 + 2, 8 * 4)
        parts = [{"params": new, "share": 1.0}, {"params": old, "share": 0.1}]
        return [torch.optim.SGD(parts, lr=LR, momentum=0.9, weight_decay=6e-4)]

    hand = by_hand(twin, groups, lambda group: group["share"])
    assert_alike(ours(network, {"pretrained_lr": 0.1}, CLASSIFIER), hand)


def names_of_matrices(network: Cnsn) -> set[str]:
    """By hand: of eight convs and a linear layer in VGG-11, AdamW trains the first and the last."""
    return {f"units.{number}.0.weight" for number in range(1, 8)}


def adamw(parameters: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=LR, betas=(0.8, 0.95), weight_decay=0.05, fused=True)


class MatrixMuon(torch.optim.Muon):
    """torch's Muon on conv weights, which it sees as matrices."""

    def __init__(self, weights: list[nn.Parameter], **settings: object) -> None:
        self.whole = weights
        super().__init__([nn.Parameter(weight.detach().flatten(1)) for weight in weights], **settings)

    def step(self) -> None:
        (group,) = self.param_groups
        for matrix, weight in zip(group["params"], self.whole, strict=True):
            matrix.grad = weight.grad.flatten(1)
        super().step()
        for matrix, weight in zip(group["params"], self.whole, strict=True):
            weight.detach().copy_(matrix.view_as(weight))
            weight.grad = None


def muon_and_adamw(network: Cnsn) -> list[torch.optim.Optimizer]:
    inner = names_of_matrices(network)
    weights = [p for n, p in network.named_parameters() if n in inner]
    rest = [p for n, p in network.named_parameters() if n not in inner]
    settings = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}
    return [MatrixMuon(weights, lr=LR, **settings), adamw(rest)]


def test_adamw():
    network = built(TINY, (1, 4), TASK)
    twin = copy.deepcopy(network)
    hand = by_hand(twin, lambda network: [adamw(network.parameters())])
    assert_alike(
        ours(network, {"optimizer": "adamw", "betas": (0.8, 0.95), "weight_decay": 0.05}), hand, True
    )


def test_muon():
    network = built(TINY, (1, 4), TASK)
    twin = copy.deepcopy(network)
    settings = {"momentum": 0.8, "nesterov": True, "betas": (0.8, 0.95), "weight_decay": 0.05}
    hand = by_hand(twin, muon_and_adamw)
    assert_alike(ours(network, {"optimizer": "muon", **settings}), hand, True)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (16, 16), (3, 33)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_of_a_matrix_is_torchs_to_the_last_bit(shape, nesterov):
    torch.manual_seed(0)
    mine = nn.Parameter(torch.randn(shape))
    torchs = nn.Parameter(mine.detach().clone())
    group = {"params": [mine], "lr": torch.tensor(0.0), "share": 1.0, "weight_decay": 0.1}
    ours = Muon([group], 0.9, nesterov)
    settings = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    theirs = torch.optim.Muon([torchs], **settings, adjust_lr_fn="match_rms_adamw")
    for number in range(STEPS):
        mine.grad = torch.randn(shape)
        torchs.grad = mine.grad.clone()
        ours.param_groups[0]["lr"].fill_(learning_rate(number))
        theirs.param_groups[0]["lr"] = learning_rate(number)
        ours.step()
        theirs.step()
        assert torch.equal(mine, torchs)


def test_what_muon_trains():
    network = built(TINY, (1, 4), TASK)
    named = {parameter: name for name, parameter in network.named_parameters()}
    assert {named[weight] for weight in matrices(network)} == names_of_matrices(network)
    alone = network.model("submodel1")  # its step-down conv takes the place of the first convs
    named = {parameter: name for name, parameter in alone.named_parameters()}
    assert {named[weight] for weight in matrices(alone)} == {f"units.{n}.0.weight" for n in range(4, 8)}


def test_muon_without_matrices(cnsn, checkpoint, image_folder, tmp_path):
    """A frozen base-model leaves only step-down convs to train."""
    words = ("--exits", "2", "--data", image_folder, "--out", tmp_path / "run", "--batch-size", 8)
    given = ("--freeze-base", checkpoint, "--recipe", "quick", "--optimizer", "muon")
    assert one_line(cnsn("train", *given, *words)) == (
        "optimizer = muon trains the weights of convs and linear layers between the first and the last one, "
        "and there are none to train: give --optimizer sgd or adamw"
    )
    assert not (tmp_path / "run").exists()


def test_an_accumulated_step_averages_the_gradients_of_its_batches():
    """BN normalises each batch, and its statistics see every batch."""
    network = built(TINY, (1, 4), TASK)
    hand = by_hand(copy.deepcopy(network), plain_sgd, batches=3)
    assert_alike(ours(network, {"accumulate": 3}), hand)
    assert network.units[0][1].state_dict()["num_batches_tracked"] == 3 * STEPS


@pytest.mark.parametrize("most", [0.05, 1e6])
def test_clipped_gradients(most):
    network = built(TINY, (1, 4), TASK)

    def clip(network: Cnsn) -> None:
        norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
        for parameter in network.parameters():
            parameter.grad *= min(1.0, most / norm.item())
        assert (norm > most) == (most < 1)

    hand = by_hand(copy.deepcopy(network), plain_sgd, change_gradients=clip)
    assert_alike(ours(network, {"clip_norm": most}), hand)


def epochs_and_steps(events: list[object]) -> list[tuple[int, int, int]]:
    return [(event.epoch, event.step, event.steps) for event in events if isinstance(event, Step)]


def test_everything_counts_steps(image_folder, quick, tmp_path):
    """64 images make two steps of three batches of eight; the last two batches are dropped."""
    events: list[object] = []
    recipe = quick.model_copy(update={"accumulate": 3, "epochs": 2})
    train(TINY, (1,), str(image_folder), recipe, tmp_path, watch=events.append)
    assert epochs_and_steps(events) == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    started, *_, last = events
    assert (started.steps_per_epoch, last.lr) == (2, recipe.learning_rate(3, 2))
    assert all(0 <= result.accuracy <= 1 for result in last.train)
    assert last.images_per_second == pytest.approx(48 / last.seconds, rel=0.2)


def test_too_few_images_for_a_step(cnsn, image_folder, tmp_path):
    words = ("--arch", TINY, "--exits", "1", "--data", image_folder, "--out", tmp_path / "run")
    message = one_line(cnsn("train", *words, "--batch-size", 8, "--accumulate", 9))
    assert message == "a step of 9 batches of 8 is more than the 64 training images: lower --accumulate"


OTHERS = {
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "muon": {"optimizer": "muon", "lr": 0.002},
    "accumulated": {"accumulate": 2, "clip_norm": 0.5},
}


PARAMETERS = 4 * 8 + 2 + 4  # conv, BN; the classifier; the step-down conv
EXPECTED = {  # parameters, and what is remembered of each
    "sgd": [(PARAMETERS, 1)],
    "adamw": [(PARAMETERS, 3)],
    "muon": [(7, 1), (PARAMETERS - 7, 3)],
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_run_resumed_at_any_step_and_each_item_of_its_state(changes, image_folder, quick, tmp_path):
    """Also, the end of the run depends on each tensor that the optimizer remembers."""
    recipe = quick.model_copy(update={"batch_size": 16, "crop_padding": 1, **changes})
    whole, cut, case = (tmp_path / name for name in ("whole", "cut", "case"))
    train(TINY, (1,), str(image_folder), recipe, whole)
    for step in range(1, 64 // (16 * recipe.accumulate)):
        with pytest.raises(Stop):
            train(
                TINY,
                (1,),
                str(image_folder),
                recipe,
                cut,
                force=True,
                save_every="1",
                watch=stop_at_step(step),
            )
        if step == 1:
            shutil.copytree(cut, case)
        resume(cut)
        assert_same_run(cut, whole)
    state, tensors = read_state(case / "state.safetensors"), load_file(case / "state.safetensors")
    remembered = [name for name in tensors if name.split(".")[0] in MEMORIES.values()]
    assert len(remembered) == sum(many * each for many, each in EXPECTED[recipe.optimizer])
    for name in remembered[:: len(remembered) // 3]:
        other = {**tensors, name: tensors[name] + 1}
        assert not ends_alike(case, whole, tmp_path / "again", other, state), name


def test_a_resumed_run_still_knows_what_is_new(checkpoint, image_folder, quick, tmp_path):
    """The classifier is new, because the weights are for other classes: a state names it."""
    weights = {n: t for n, t in load_file(checkpoint).items() if not n.startswith("submodels")}
    weights |= {name: weights[name].repeat(3, *[1] * (weights[name].dim() - 1)) for name in CLASSIFIER}
    save_file(weights, tmp_path / "other.safetensors")
    recipe = quick.model_copy(update={"pretrained_lr": 0.01, "lr": 0.05, "epochs": 2})
    start = {"init": tmp_path / "other.safetensors", "save_every": "1"}
    events: list[object] = []
    train(TINY, (1,), str(image_folder), recipe, tmp_path / "whole", watch=events.append, **start)
    assert set(events[0].drawn) == set(CLASSIFIER)
    with pytest.raises(Stop):
        train(TINY, (1,), str(image_folder), recipe, tmp_path / "cut", watch=stop_at_step(3), **start)
    events.clear()
    resume(tmp_path / "cut", watch=events.append)
    assert events[0].drawn == ()  # it is told once
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
