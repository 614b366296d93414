"""At the same MACs: a pruned network, or a sub-model that is trained with the network?

    pip install torch-pruning
    python benchmarks/same_macs.py cifar10-jpeg --jobs 2 --seeds 0 1

People who need a smaller network prune a trained one and train it further. The script does this with
Torch-Pruning: every layer loses the same share of its channels at once, and then the network is trained for
as many epochs again, 20 together. The script compares the result with short and narrow networks of cnsn, each
trained alone, and trained together in one network. Images and recipe are those of ablation.py. Finished runs
are not trained again.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch_pruning as tp
from ablation import ARCH, accuracies, cell, chosen_rows, finished, place, subset, train_all
from safetensors.torch import save_file

import cnsn_cli
from cnsn_cli.backbones import registry
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.task import Task
from cnsn_cli.training.initial_weights import from_file

NARROW_ARCH = "vgg16:width=0.16"
KEPT = 0.640625  # share of the channels; leaves 10, 20, 41 and 82, the channels of NARROW_ARCH
WIDE = ("--arch", ARCH, "--nesterov")
NARROW = ("--arch", NARROW_ARCH, "--nesterov", "--exits", "")
STEM = (*WIDE, "--step-down", "stem")
TOGETHER = (*STEM, "--distill", "base", "--exits")
LONG = ("--epochs", "20")  # as many as a pruned network has seen
BASELINE = "baseline"
PRUNED = {
    "pruned by group L1": tp.importance.GroupMagnitudeImportance(p=1),
    "pruned by BN scale": tp.importance.BNScaleImportance(),
}
ROWS: dict[str, tuple[str, ...]] = {
    BASELINE: (*WIDE, "--exits", ""),
    "baseline, 20 epochs": (*WIDE, "--exits", "", *LONG),
    **dict.fromkeys(PRUNED, NARROW),  # with --init
    "alone @0.64": NARROW,
    "alone @0.64, 20 epochs": (*NARROW, *LONG),
    "alone 7": (*STEM, "--drop", "7"),
    "alone 7, 20 epochs": (*STEM, "--drop", "7", *LONG),
    "alone 2@0.68": (*STEM, "--drop", "2@0.68"),
    "alone 10": (*STEM, "--drop", "10"),
    "alone 7@0.7": (*STEM, "--drop", "7@0.7"),
    "alone @0.45": (*STEM, "--drop", "@0.45"),
    "together @0.64": (*TOGETHER, "@0.64"),
    "together @0.64, 20 epochs": (*TOGETHER, "@0.64", *LONG),
    "together 2,@0.64": (*TOGETHER, "2,@0.64"),
    "together 2,@0.64, 20 epochs": (*TOGETHER, "2,@0.64", *LONG),
    "together 2,7,2@0.68,@0.64": (*TOGETHER, "2,7,2@0.68,@0.64"),
    "together 2,10,7@0.7,@0.45": (*TOGETHER, "2,10,7@0.7,@0.45"),
}


def options(runs: Path, row: str, seed: int) -> tuple[str, ...]:
    return (*ROWS[row], "--init", str(pruned_file(runs, row, seed))) if row in PRUNED else ROWS[row]


def pruned_file(runs: Path, row: str, seed: int) -> Path:
    return runs / f"{place(runs, row, seed).name}.safetensors"


def prune(row: str, seed: int, data: Path, runs: Path) -> None:
    """Write a pruned baseline to a file, and print its accuracy before it is trained further."""
    model = cnsn_cli.load(place(runs, BASELINE, seed) / "last.safetensors").model("base")
    test = cnsn_cli.load_test(str(data), model.task)
    images = model.inputs(next(iter(test.in_order(100))))
    last = [model.head[-1]]  # its outputs are the classes
    tp.pruner.BasePruner(
        model, images[:1], PRUNED[row], pruning_ratio=1 - KEPT, ignored_layers=last, global_pruning=False
    ).step()
    file = pruned_file(runs, row, seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    narrow = started_from(file, model.task)
    with torch.inference_mode():
        torch.testing.assert_close(narrow.model("base")(images), model.eval()(images), rtol=1e-4, atol=1e-4)
    accuracy = 100 * cnsn_cli.evaluate(narrow, test)[0].accuracy
    print(f"{row}, seed {seed}, before it is trained further: {accuracy:.2f}", flush=True)


def started_from(file: Path, task: Task) -> cnsn_cli.Cnsn:
    """The network that `cnsn train --init` starts from."""
    backbone = registry.find(NARROW_ARCH).build(task)
    from_file(file).fill(backbone, task.num_classes)
    return cnsn_cli.Cnsn(backbone, (), task).eval()


def table(rows: Sequence[str], seeds: Sequence[int], runs: Path) -> str:
    """A line for every model of every row that was trained, the models with most MACs first."""
    lines = sorted((line for row in rows for line in lines_of(row, seeds, runs)), key=lambda line: -line[0])
    head = ["| MACs | parameters | row | model | seeds | accuracy |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [f"| {macs:,} | {rest} |" for macs, rest in lines])


def lines_of(row: str, seeds: Sequence[int], runs: Path) -> list[tuple[int, str]]:
    """The MACs of every model of a row, and the rest of its line."""
    places = [out for seed in seeds if finished(ROWS[row], out := place(runs, row, seed))]
    if not places:
        return []
    costs = metadata_in(places[0] / "last.safetensors").models
    by_model = zip(models(ROWS[row]), costs, *map(accuracies, places), strict=True)
    return [
        (cost.macs, f"{cost.parameters:,} | {row} | {name} | {len(found)} | {cell(found)}")
        for name, cost, *found in by_model
    ]


def models(options: Sequence[str]) -> list[str]:
    """The models that `cnsn train` makes, in its order."""
    if "--drop" in options:
        return [options[options.index("--drop") + 1]]
    exits = options[options.index("--exits") + 1]
    return ["base", *filter(None, exits.split(","))]


def main() -> None:
    chosen = chosen_rows(__doc__, ROWS, "same_macs")
    its_options = partial(options, chosen.runs)
    data = subset(chosen.data, chosen.runs / "data")
    pruned = [row for row in chosen.rows if row in PRUNED]
    if pruned:
        train_all([BASELINE], chosen, data, its_options)
    for row in pruned:
        for seed in chosen.seeds:
            prune(row, seed, data, chosen.runs)
    train_all(chosen.rows, chosen, data, its_options)
    print(table(chosen.rows, chosen.seeds, chosen.runs))


if __name__ == "__main__":
    main()
