"""A Backbone out of an ordinary network: units end where one tensor separates images from logits.

Layers keep the names that they have in the network: `layer1.0.conv1.weight` becomes
`units.1.layer1.0.conv1.weight`.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from cnsn_cli.backbones.backbone import Backbone, Obstacle, UnitNote
from cnsn_cli.backbones.meta import on_meta
from cnsn_cli.backbones.plugins import GUIDE
from cnsn_cli.backbones.tracing.dataflow import Graph, depths, is_batch_size, is_conv, needed_later
from cnsn_cli.backbones.tracing.requirements import check_ordinary
from cnsn_cli.backbones.tracing.trace import graph_of
from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.task import Task

SIZES = (224, 299)  # pixels a side that networks are made for, where the given size is too small to try


class Segment(nn.Module):
    """A stretch of a network: features (N, ...) -> features or logits (N, ...).

    `constants__` are names of buffers that files of the network do not hold, and ours do.
    """  # names that end in __ do not meet those of a network's own layers

    def __init__(self, nodes: fx.Graph, graph: Graph) -> None:
        super().__init__()
        used = [str(node.target) for node in nodes.nodes if node.op in ("call_module", "get_attr")]
        for name in used:
            _place(self, name, graph.layers[name])
        self.constants__ = graph.constants.keys() & used
        # The code that fx writes for a graph, without its module, which cannot be copied cheaply.
        self.run__: Callable[..., Tensor] = type(fx.GraphModule(self, nodes)).forward

    def forward(self, features: Tensor) -> Tensor:
        return self.run__(self, features)


def _place(root: nn.Module, name: str, layer: nn.Module | Tensor) -> None:
    *containers, last = name.split(".")
    for container in containers:
        if container not in root._modules:
            root.add_module(container, nn.Module())
        root = root.get_submodule(container)
    if isinstance(layer, nn.Module):
        root.add_module(last, layer)
    elif isinstance(layer, nn.Parameter):
        root.register_parameter(last, layer)
    else:
        root.register_buffer(last, layer.clone())  # a constant may be used in several units


class Border(NamedTuple):
    """A place where `value` is all that is known of the images; `drops` convs lie before it."""

    value: fx.Node
    drops: int


def traced(network: nn.Module, task: Task) -> Backbone:
    """`network`, which maps images (N, C, H, W) to logits (N, classes), as a Backbone.

    A unit ends at the last place before the next conv where one feature map (N, c, h, w) separates images
    from logits. The network's modules are taken over. Raises ArchitectureError where torch.fx cannot trace
    it, where there is no such place, where it does something else in training than in evaluation, dropout
    apart, and where its logits are not those of `task`.
    """
    check_ordinary(network)
    in_evaluation = graph_of(network, training=False)
    needed = needed_later(in_evaluation)
    borders = _borders(in_evaluation, needed, task)
    _check_cuts(network, in_evaluation, borders)
    graph = graph_of(network, training=True)
    if not _same(graph, in_evaluation):
        raise ArchitectureError(
            f"{type(network).__name__} computes something else in training than in evaluation: write a "
            f"plug-in for it ({GUIDE})"
        )
    return _backbone(in_evaluation, needed, borders)


def _same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs of one network compute the same."""
    return str(graph.nodes) == str(other.nodes) and all(
        torch.equal(constant, other.constants[name])
        for name, constant in graph.constants.items()
        if not constant.is_meta
    )


def _borders(graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]], task: Task) -> list[Border]:
    """Where one feature map is all that is known; of several places behind as many convs, the last."""
    convs = depths(graph)
    alone = [node for node, names in needed.items() if names == (node.name,) and convs[node]]
    (output,) = graph.nodes.find_nodes(op="output")
    *shapes, logits = _shapes(graph, [*alone, output.args[0]], task.image_shape)
    if logits != (1, task.num_classes):
        found = " x ".join(map(str, logits))
        raise ArchitectureError(
            f"it returns a tensor {found} for one image, not 1 x {task.num_classes} logits: let its factory "
            "take num_classes"
        )
    last = {convs[node]: node for node, shape in zip(alone, shapes, strict=True) if len(shape) == 4}
    return [Border(node, drops) for drops, node in last.items()]


def _check_cuts(network: nn.Module, graph: Graph, borders: list[Border]) -> None:
    name, convs = type(network).__name__, max(depths(graph).values())
    if convs < 2:
        raise ArchitectureError(
            f"no sub-model can be detached from {name}: a cut goes between two conv layers, and its longest "
            f"path has {convs}"
        )
    if not any(border.drops < borders[-1].drops for border in borders):
        raise ArchitectureError(
            f"no sub-model can be detached from {name}: nowhere between its convs one feature map is all "
            f"that is known of the images; a plug-in may know better ({GUIDE})"
        )


def _backbone(graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]], borders: list[Border]) -> Backbone:
    nodes = list(depths(graph))  # what depends on weights alone is computed where it is needed
    values = [nodes[0], *(border.value for border in borders)]
    places = [nodes.index(value) for value in values]
    stretches = [nodes[start + 1 : end + 1] for start, end in pairwise([*places, len(nodes) - 2])]
    outputs = [*values[1:], nodes[-1].args[0]]
    parts = [
        Segment(_subgraph(stretch, value, output), graph)
        for stretch, value, output in zip(stretches, values, outputs, strict=True)
    ]
    counts = tuple(after - before for before, after in pairwise([0, *(b.drops for b in borders)]))
    notes = tuple(_note(stretch, graph, needed) for stretch in stretches[:-1])
    return Backbone(nn.Sequential(*parts[:-1]), parts[-1], counts, notes)


def _subgraph(stretch: list[fx.Node], value: fx.Node, output: Any) -> fx.Graph:
    """The nodes of `stretch` as a graph of their own, from `value` to `output`, with the weights they use."""
    graph = fx.Graph()
    features = graph.placeholder("features")
    copies = {value: features}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # what is needed here and does not depend on images
            size = is_batch_size(node)
            copies[node] = graph.call_method("size", (features, 0)) if size else graph.node_copy(node, copied)
        return copies[node]

    for node in stretch:
        copied(node)
    graph.output(copied(output))
    return graph


def _shapes(graph: Graph, values: list[fx.Node], image_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The shape of every value, () for what is no tensor; at a usual size where images are too small."""
    watched = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes.nodes:
        if node.op != "output":
            copies[node] = watched.node_copy(node, copies.__getitem__)
    watched.output(tuple(copies[value] for value in values))
    whole = Segment(watched, graph)
    channels, size, _ = image_shape
    reasons = []
    for side in (size, *SIZES):
        try:
            found = on_meta(whole, torch.empty(1, channels, side, side, device="meta"))
            return [tuple(value.shape) if isinstance(value, Tensor) else () for value in found]
        except Exception as error:  # whatever the network raises
            reasons.append(one_line(error))
    raise ArchitectureError(f"it takes no images of shape {image_shape}: {reasons[0]}")


def _note(stretch: list[fx.Node], graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]]) -> UnitNote:
    """The last node of a unit; and for every conv inside, what is needed at the narrowest place behind it."""
    convs = [index for index, node in enumerate(stretch) if is_conv(node, graph.layers)]
    obstacles = []
    for conv, following in pairwise(convs):
        between = [needed[node] for node in stretch[conv:following] if node in needed]
        obstacles.append(Obstacle(_title(stretch[conv]), min(between, key=len)))
    return UnitNote(_title(stretch[-1]), tuple(obstacles))


def _title(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
