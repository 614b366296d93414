"""Weights to start training from: published weights of the original network, or weights in a file.

`setup` calls this module before a new run. It does not know exits and sub-models.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.backbones.tracing.units import Segment
from cnsn_cli.errors import CheckpointError
from cnsn_cli.files.checkpoint import read_plain
from cnsn_cli.task import Task

PART = re.compile(r"^(units\.\d+|head)\.")
# What torch.compile and FSDP put into names where they wrap a layer.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# First parts of names that may be left over: classifiers that only training uses, the counter of torch's
# AveragedModel, and the sub-models in a file of cnsn.
SPARE = {
    "AuxLogits", "aux1", "aux2", "aux_classifier", "aux_head", "aux_logits", "auxiliary_head",
    "n_averaged", "submodels",
}  # fmt: skip
NAMED = 3  # how many tensors that are left over a message names


@dataclass
class Start:
    """`weights` under the names of the original network, or under the names of the backbone made from it.

    Error messages call them `source`. After `fill`, `drawn` names the weights that the backbone did not get
    because it has another number of classes: they stay as they were drawn at random. The names are those of
    the backbone.
    """

    weights: dict[str, Tensor]
    source: str
    drawn: tuple[str, ...] = ()

    def fill(self, backbone: Backbone, classes: int) -> None:
        """Copy the weights into `backbone`, except the weights of a classifier for other classes.

        All names may have a prefix of a wrapper, such as `module.`. Raises CheckpointError if a weight that
        the backbone has is missing or has another shape, and if weights are left over, except classifiers
        that only training uses (`aux1`).
        """
        wanted, prefix = self._wanted(backbone)
        names = {id(tensor): name for name, tensor in _parts(backbone).state_dict(keep_vars=True).items()}
        given = {name.removeprefix(prefix): name for name in self.weights if name.startswith(prefix)}
        drawn = []
        for name, tensor in wanted.items():
            if name not in given:
                if name.endswith("num_batches_tracked"):  # old files have none
                    continue
                raise CheckpointError(f"{self.source}: weights of another network, without {name!r}")
            found = self.weights[given[name]]
            if _of_other_classes(found, tensor, classes):
                drawn.append(names[id(tensor)])
            elif found.shape != tensor.shape:
                shapes = f"{tuple(found.shape)}, not {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"{self.source}: weights of another network, {name!r} has shape {shapes}"
                )
            else:
                tensor.detach().copy_(found)
        used = {given[name] for name in given.keys() & {*wanted, *_unused(backbone)}}
        self._check_left_over([name for name in self.weights if name not in used], prefix)
        self.drawn = tuple(drawn)

    def _wanted(self, backbone: Backbone) -> tuple[dict[str, Tensor], str]:
        """The tensors of the backbone by the names that fit the weights best, and the prefix of these."""
        whole = _parts(backbone)
        own = original = whole.state_dict(keep_vars=True)
        if isinstance(backbone.head, Segment):
            constants = {
                f"{name}.{constant}"
                for name, part in whole.named_modules()
                if isinstance(part, Segment)
                for constant in part.constants__
            }
            original = {PART.sub("", name): tensor for name, tensor in own.items() if name not in constants}
        found = [(names, *_prefix(self.weights, names)) for names in (original, own)]
        wanted, prefix, _ = max(found, key=lambda each: each[2])
        return wanted, prefix

    def _check_left_over(self, left: list[str], prefix: str) -> None:
        foreign = [name for name in sorted(left) if name.removeprefix(prefix).split(".")[0] not in SPARE]
        if foreign:
            names = ", ".join(map(repr, foreign[:NAMED])) + (", ..." if foreign[NAMED:] else "")
            raise CheckpointError(
                f"{self.source}: weights of another network: this one has no place for {len(foreign):,} of "
                f"{len(self.weights):,} tensors: {names}"
            )


def _parts(backbone: Backbone) -> nn.ModuleDict:
    """A module whose tensors have the names of those in the network that is made from `backbone`."""
    return nn.ModuleDict({"units": nn.Sequential(*backbone.units), "head": backbone.head})


def _prefix(names: Iterable[str], wanted: Iterable[str]) -> tuple[str, int]:
    """The prefix without which most of `names` are in `wanted`, and how many these are."""
    known, prefixes = set(wanted), Counter({"": 0})
    for name in names:
        dots = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        prefixes.update(name[:dot] for dot in dots if name[dot:] in known)
    return prefixes.most_common(1)[0]


def _unused(backbone: Backbone) -> frozenset[str]:
    """Names of tensors of the original network that it does not use: a `state_dict()` holds them too."""
    return backbone.head.unused__ if isinstance(backbone.head, Segment) else frozenset()


def _of_other_classes(found: Tensor, wanted: Tensor, classes: int) -> bool:
    if not found.dim() or found.dim() != wanted.dim():
        return False
    return wanted.shape[0] == classes != found.shape[0] and found.shape[1:] == wanted.shape[1:]


def from_file(path: Path) -> Start:
    """The tensors of a safetensors file, which need not be from cnsn. Raises CheckpointError."""
    tensors = read_plain(path)
    bare = {WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    return Start(bare if len(bare) == len(tensors) else tensors, str(path))


def from_publisher(arch: Architecture, task: Task) -> Start:
    """The published weights of an architecture. Raises ArchitectureError if they cannot be had."""
    return Start(arch.pretrained(task), f"pretrained weights of {arch.text}")
