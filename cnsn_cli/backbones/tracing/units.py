"""From an ordinary network to a Backbone: a unit ends where one feature map separates images from logits.

    images -> first -> drop --> short --+-> add -> last -> mean -> linear -> logits
                              '-> long --'

    unit ends             drop             add       last
    Segments     | first drop | short long add | last | mean linear |
                 units.0      units.1            units.2  head

Architecture calls `traced` with the network that a plug-in returned. If several places between two convs have
one such feature map, the unit ends at the last place. A Segment is a module that runs the stretch of the
graph between two unit ends. Layers keep their names in the network: `layer1.0.conv1.weight` becomes
`units.1.layer1.0.conv1.weight`. This module knows no sub-models: detach_points.py says which units may follow
a step-down conv.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from cnsn_cli.backbones.backbone import Backbone, Obstacle, UnitNote
from cnsn_cli.backbones.meta import blank_images, run_blank
from cnsn_cli.backbones.plugins import GUIDE
from cnsn_cli.backbones.tracing.dataflow import depths, is_conv, needed_later
from cnsn_cli.backbones.tracing.requirements import check_ordinary
from cnsn_cli.backbones.tracing.trace import Graph, from_images, graph_of, is_batch_size
from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.task import Task

SIZES = (224, 299)  # usual image sizes in pixels, tried if the network takes no images of the given size


class Segment(nn.Module):
    """A stretch of a network: features (N, ...) -> features or logits (N, ...).

    `constants__` are names of buffers that files of the original network do not hold, but files of cnsn do.
    `unused__`, of the head, are names of tensors that are the other way round: the original network has them,
    and computes nothing with them.
    """  # the suffix __ keeps these attributes apart from the network's own layers

    def __init__(self, nodes: fx.Graph, graph: Graph) -> None:
        super().__init__()
        used = [str(node.target) for node in nodes.nodes if node.op in ("call_module", "get_attr")]
        for name in used:
            _register(self, name, graph.layers[name])
        self.constants__ = graph.constants.keys() & used
        self.unused__: frozenset[str] = frozenset()
        # Only the code that fx writes for the graph: the module that fx makes cannot be copied cheaply.
        self.run__: Callable[..., Tensor] = type(fx.GraphModule(self, nodes)).forward

    def forward(self, features: Tensor) -> Tensor:
        return self.run__(self, features)


def _register(root: nn.Module, name: str, layer: nn.Module | Tensor) -> None:
    """Add a layer or a tensor to `root` under a dotted name; each part before the last is a module."""
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


class UnitEnd(NamedTuple):
    """A place where later nodes need `value` and nothing else of the images; `drops` convs come before it."""

    value: fx.Node
    drops: int


def traced(network: nn.Module, task: Task) -> Backbone:
    """Split `network`, which maps images (N, C, H, W) to logits (N, classes), into a Backbone.

    A unit ends at the last place before the next conv where one feature map (N, c, h, w) separates images
    from logits. The Backbone uses the modules of `network` itself. Raises ArchitectureError if torch.fx
    cannot trace the network, if there is no such place, if the network computes something else in training
    than in evaluation (except dropout), or if its logits do not fit `task`.
    """
    check_ordinary(network)
    in_evaluation = graph_of(network, training=False)
    needed = needed_later(in_evaluation)
    ends = _unit_ends(in_evaluation, needed, task)
    _check_cuts(network, in_evaluation, ends)
    graph = graph_of(network, training=True)
    if not _compute_the_same(graph, in_evaluation):
        raise ArchitectureError(
            f"{type(network).__name__} computes something else in training than in evaluation: write a "
            f"plug-in for it ({GUIDE})"
        )
    return _backbone(network, in_evaluation, needed, ends)


def _compute_the_same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs of one network have the same nodes and the same constants."""
    return str(graph.nodes) == str(other.nodes) and all(
        torch.equal(constant, other.constants[name])
        for name, constant in graph.constants.items()
        if not constant.is_meta
    )


def _unit_ends(graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]], task: Task) -> list[UnitEnd]:
    """Find where one feature map separates images from logits: after each number of convs the last place."""
    convs = depths(graph)
    alone = [node for node, names in needed.items() if names == (node.name,) and convs[node]]
    (output,) = graph.nodes.find_nodes(op="output")
    *shapes, logits = _shapes_of(graph, [*alone, output.args[0]], task.image_shape)
    if logits != (1, task.num_classes):
        found = " x ".join(map(str, logits))
        raise ArchitectureError(
            f"it returns a tensor {found} for one image, not 1 x {task.num_classes} logits: let its factory "
            "take num_classes"
        )
    last = {convs[node]: node for node, shape in zip(alone, shapes, strict=True) if len(shape) == 4}
    return [UnitEnd(node, drops) for drops, node in last.items()]


def _check_cuts(network: nn.Module, graph: Graph, ends: list[UnitEnd]) -> None:
    name, convs = type(network).__name__, max(depths(graph).values())
    if convs < 2:
        raise ArchitectureError(
            f"no sub-model can be detached from {name}: a cut goes between two conv layers, and its longest "
            f"path has {convs}"
        )
    if not any(end.drops < ends[-1].drops for end in ends):
        raise ArchitectureError(
            f"no sub-model can be detached from {name}: no place between its convs passes on one feature map "
            f"and nothing else; a plug-in may know better ({GUIDE})"
        )


def _backbone(
    network: nn.Module, graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]], ends: list[UnitEnd]
) -> Backbone:
    """Make a Segment of every stretch between unit ends; the stretch after the last end is the head."""
    nodes = list(from_images(graph.nodes))  # the other nodes are copied to where they are needed
    values = [nodes[0], *(end.value for end in ends)]
    places = [nodes.index(value) for value in values]
    stretches = [nodes[start + 1 : last + 1] for start, last in pairwise([*places, len(nodes) - 2])]
    outputs = [*values[1:], nodes[-1].args[0]]
    parts = [
        Segment(_graph_between(stretch, value, output), graph)
        for stretch, value, output in zip(stretches, values, outputs, strict=True)
    ]
    parts[-1].unused__ = frozenset(network.state_dict()).difference(*(part.state_dict() for part in parts))
    counts = tuple(after - before for before, after in pairwise([0, *(end.drops for end in ends)]))
    notes = tuple(_unit_note(stretch, graph, needed) for stretch in stretches[:-1])
    return Backbone(nn.Sequential(*parts[:-1]), parts[-1], counts, notes)


def _graph_between(stretch: list[fx.Node], value: fx.Node, output: Any) -> fx.Graph:
    """Copy `stretch` into its own graph, from `value` to `output`, with the nodes of weights that it uses."""
    graph = fx.Graph()
    features = graph.placeholder("features")
    copies = {value: features}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # an input that does not depend on the images
            size = is_batch_size(node)
            copies[node] = graph.call_method("size", (features, 0)) if size else graph.node_copy(node, copied)
        return copies[node]

    for node in stretch:
        copied(node)
    graph.output(copied(output))
    return graph


def _shapes_of(
    graph: Graph, values: list[fx.Node], image_shape: tuple[int, int, int]
) -> list[tuple[int, ...]]:
    """The shape of every value, () if it is not a tensor; for images of a usual size if these fail."""
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
            found = run_blank(whole, blank_images((channels, side, side), whole))
            return [tuple(value.shape) if isinstance(value, Tensor) else () for value in found]
        except Exception as error:  # any error of the network
            reasons.append(one_line(error))
    raise ArchitectureError(f"it takes no images of shape {image_shape}: {reasons[0]}")


def _unit_note(stretch: list[fx.Node], graph: Graph, needed: Mapping[fx.Node, tuple[str, ...]]) -> UnitNote:
    """The unit's last node, and for each pair of convs the smallest set of values that a cut between them
    would have to pass on.
    """
    convs = [index for index, node in enumerate(stretch) if is_conv(node, graph.layers)]
    obstacles = []
    for conv, following in pairwise(convs):
        between = [needed[node] for node in stretch[conv:following] if node in needed]
        obstacles.append(Obstacle(_shown_name(stretch[conv]), min(between, key=len)))
    return UnitNote(_shown_name(stretch[-1]), tuple(obstacles))


def _shown_name(node: fx.Node) -> str:
    """The name of a node in `cnsn archs --why`: the name of its layer, or else of the node."""
    return str(node.target) if node.op == "call_module" else node.name
