"""How values flow through a Graph: the convs before each node, and what is needed after each node.

                             .--> short --.
    images -> first -> drop -|            +-> add -> linear -> logits      first, short, long: convs
                             '--> long ---'

    node            images   first   drop   short         long          add   linear
    convs up to it  0        1       1      2             2             2     2
    needed later    images   first   drop   drop, short   short, long   add   linear

If the last row lists only the node itself, all later nodes depend on the images through this node alone: a
network may be cut after it. units.py calls this module and decides where to cut. This module knows nodes,
convs and weights, but no shapes and no units.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cnsn_cli.backbones.tracing.trace import Graph, Layers, from_images

CONVS = (F.conv2d, torch.conv2d)


def depths(graph: Graph) -> dict[fx.Node, int]:
    """Depth in convs of every node that depends on the images.

    The batch size is no such node: every feature map has it.
    """
    found: dict[fx.Node, int] = {}
    for node in from_images(graph.nodes):
        before = [found[source] for source in node.all_input_nodes if source in found]
        found[node] = max(before, default=0) + is_conv(node, graph.layers)
    return found


def is_conv(node: fx.Node, layers: Layers) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.Conv2d)
    return node.op == "call_function" and node.target in CONVS


def needed_later(graph: Graph) -> dict[fx.Node, tuple[str, ...]]:
    """For each node that depends on the images: the names of the values that later nodes need.

    A value is a node up to here that depends on the images and that a later node uses, or weights that are
    used both up to here and later.
    """
    place = {node: index for index, node in enumerate(graph.nodes.nodes)}
    depending = [node for node in from_images(graph.nodes) if node.op != "output"]
    ends = {node.name: max(place[user] for user in node.users) for node in depending if node.users}
    starting = {node: [node.name] for node in depending}
    for layer, uses in _uses_of_weights(graph):
        if len(uses) > 1:
            name = f"the weights of {layer}"
            ends[name] = max(ends.get(name, 0), place[uses[-1]])
            starting[uses[0]].append(name)
    alive: dict[str, None] = {}
    found = {}
    for node in depending:
        alive |= dict.fromkeys(starting[node])
        alive = {name: None for name in alive if ends.get(name, -1) > place[node]}
        found[node] = tuple(alive)
    return found


def _uses_of_weights(graph: Graph) -> Iterable[tuple[str, list[fx.Node]]]:
    """Name and users of each parameter and buffer: nodes with images that use it or a value made from it."""
    with_images = from_images(graph.nodes)
    made_of: dict[fx.Node, dict[int, str]] = {}  # node without images -> weights that it is computed from
    uses: dict[int, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes.nodes:
        weights = _weights_of(node, graph)
        for source in node.all_input_nodes:
            weights |= made_of.get(source, {})
        if node not in with_images:
            made_of[node] = weights
            continue
        for key, name in weights.items():
            uses.setdefault(key, (name, []))[1].append(node)
    return uses.values()


def _weights_of(node: fx.Node, graph: Graph) -> dict[int, str]:
    """The parameters and buffers that a node itself reads: their ids, and the name of the layer or tensor."""
    name = str(node.target)
    if node.op not in ("call_module", "get_attr") or name in graph.constants:
        return {}
    layer = graph.layers[name]
    tensors = [layer] if isinstance(layer, Tensor) else [*layer.parameters(), *layer.buffers()]
    return {id(tensor): name for tensor in tensors}
