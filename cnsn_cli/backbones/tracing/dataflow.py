"""The graph of a network: how images flow through it, and what is needed where."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

CONVS = (F.conv2d, torch.conv2d)
Layers = Mapping[str, nn.Module | Tensor]


class Graph(NamedTuple):
    """`nodes`, a graph without dead nodes, and what it calls or reads, by name.

    `constants` are tensors that files of the network do not hold: plain attributes, buffers that are not
    persistent, and what a forward pass makes.
    """

    nodes: fx.Graph
    layers: Layers
    constants: Mapping[str, Tensor]


def images_of(graph: fx.Graph) -> fx.Node:
    images: fx.Node = next(iter(graph.find_nodes(op="placeholder")))
    return images


def depths(graph: Graph) -> dict[fx.Node, int]:
    """For every node that depends on the images, the convs on the longest path from them.

    Their number does not count as one: it can be read off any features.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.nodes.nodes:
        before = [found[source] for source in node.all_input_nodes if source in found]
        if node.op == "placeholder" or (before and not is_batch_size(node)):
            found[node] = max(before, default=0) + is_conv(node, graph.layers)
    return found


def is_batch_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and node.args == (images_of(node.graph), 0)


def is_conv(node: fx.Node, layers: Layers) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.Conv2d)
    return node.op == "call_function" and node.target in CONVS


def needed_later(graph: Graph) -> dict[fx.Node, tuple[str, ...]]:
    """After each node that depends on the images: what is known there and needed later.

    These are such nodes, by name, and weights that are used both before and later.
    """
    nodes = list(graph.nodes.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    depending = [node for node in depths(graph) if node.op != "output"]
    ends = {node.name: max(place[user] for user in node.users) for node in depending if node.users}
    starting = {node: [node.name] for node in depending}
    for layer, uses in _uses_of_weights(graph):
        if len(uses) > 1:
            name = f"the weights of {layer}"
            ends[name] = max(ends.get(name, 0), place[uses[-1]])
            starting[uses[0]].append(name)
    alive: dict[str, None] = {}
    found = {}
    for node in nodes:
        alive |= dict.fromkeys(starting.get(node, ()))
        alive = {name: None for name in alive if ends.get(name, -1) > place[node]}
        if node in starting and node.op != "output":
            found[node] = tuple(alive)
    return {node: found[node] for node in depending}


def _uses_of_weights(graph: Graph) -> Iterable[tuple[str, list[fx.Node]]]:
    """The name of every parameter and buffer, and the nodes with images that use it or what is made of it."""
    with_images = depths(graph).keys()
    behind: dict[fx.Node, dict[int, str]] = {}  # of nodes without images: the weights that they are made of
    uses: dict[int, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes.nodes:
        weights = _weights_of(node, graph)
        for source in node.all_input_nodes:
            weights |= behind.get(source, {})
        if node not in with_images:
            behind[node] = weights
            continue
        for key, name in weights.items():
            uses.setdefault(key, (name, []))[1].append(node)
    return uses.values()


def _weights_of(node: fx.Node, graph: Graph) -> dict[int, str]:
    """The parameters and buffers that a node reads by itself, all under its name."""
    name = str(node.target)
    if node.op not in ("call_module", "get_attr") or name in graph.constants:
        return {}
    layer = graph.layers[name]
    tensors = [layer] if isinstance(layer, Tensor) else [*layer.parameters(), *layer.buffers()]
    return {id(tensor): name for tensor in tensors}
