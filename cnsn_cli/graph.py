"""The graph of an ordinary network: what torch.fx sees when images go through it."""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.plugin import GUIDE

DROPOUTS: dict[object, Callable[..., nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
CONVS = (F.conv2d, torch.conv2d)
Layers = Mapping[str, nn.Module | Tensor]


class Graph(NamedTuple):
    """`nodes`, a graph without dead nodes, and what it calls or reads, by name.

    `constants` are tensors that no file holds. `attributes` are names of plain ones: files of the network do
    not hold them, ours do.
    """

    nodes: fx.Graph
    layers: Layers
    constants: Mapping[str, Tensor]
    attributes: frozenset[str]


class _Tracer(fx.Tracer):
    """Looks into modules that have children. What a module without any does is its own business."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        childless = next(module.children(), None) is None
        return childless or isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def graph_of(network: nn.Module, training: bool) -> Graph:
    """What `network` does with images, in training or in evaluation; functional dropout has become layers.

    Raises ArchitectureError where torch.fx cannot trace it.
    """
    network.train(training)
    nodes = _symbolic(network)
    tensors, constants, attributes = _read_tensors(network, nodes)
    modules = dict(network.named_modules(remove_duplicate=False))
    layers = {**modules, **tensors, **_dropouts_as_layers(nodes, training)}
    _erase_dead(nodes)
    return Graph(nodes, layers, constants, attributes)


def _symbolic(network: nn.Module) -> fx.Graph:
    from torchvision.ops import stochastic_depth

    name = type(network).__name__
    _images, *others = inspect.signature(network.forward).parameters.values()
    fixed = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        tracer = _Tracer(autowrap_functions=(stochastic_depth,), param_shapes_constant=True)
        graph = tracer.trace(network, fixed)
    except Exception as error:  # whatever the network's code raises when it meets a proxy
        reason = one_line(error)
        raise ArchitectureError(
            f"torch.fx cannot trace {name}, at {_place_of(error)}: {reason}; write a plug-in for it ({GUIDE})"
        ) from error
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        kind = type(output.args[0]).__name__.removeprefix("immutable_")
        raise ArchitectureError(f"{name} returns a {kind}, not one tensor of logits: wrap it, see {GUIDE}")
    return graph


def _place_of(error: Exception) -> str:
    """The last line outside of torch that led to an error: `resnet.py line 99`."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}"


def _read_tensors(
    network: nn.Module, graph: fx.Graph
) -> tuple[dict[str, Tensor], dict[str, Tensor], frozenset[str]]:
    """Tensors that a graph reads by itself, the constants among them, and the names of plain attributes.

    fx leaves constants that a forward pass makes in the network, from where they are taken away.
    """
    found, constants, attributes = {}, {}, set()
    for node in graph.find_nodes(op="get_attr"):
        parent, _, last = node.target.rpartition(".")
        holder = network.get_submodule(parent)
        found[node.target] = tensor = getattr(holder, last)
        if last in holder._non_persistent_buffers_set or last.startswith("_tensor_constant"):
            constants[node.target] = tensor
        elif last in vars(holder):
            attributes.add(node.target)
    for name in [name for name in found if name.startswith("_tensor_constant")]:
        delattr(network, name)
    return found, constants, frozenset(attributes)


def _dropouts_as_layers(graph: fx.Graph, training: bool) -> dict[str, nn.Module]:
    """Functional dropout is traced with the mode of that moment: make it layers, which know theirs.

    Dropout that is on or off whatever the network does stays in one mode, so that the graphs of both differ.
    """
    from torchvision.ops import StochasticDepth, stochastic_depth

    makers = {**DROPOUTS, stochastic_depth: StochasticDepth}
    made = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in makers:
            continue
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        if given.arguments["training"] is not training:
            continue
        options = {key: given.arguments[key] for key in ("p", "mode", "inplace") if key in given.arguments}
        name = f"functional_{node.name}"
        made[name] = makers[node.target](**options)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (given.arguments["input"],), {}
    return made


def _erase_dead(graph: fx.Graph) -> None:
    """Take out what leads nowhere: assertions, and inputs beside the images."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    _images, *others = graph.find_nodes(op="placeholder")
    for node in others:
        graph.erase_node(node)


def depths(graph: Graph) -> dict[fx.Node, int]:
    """For every node that depends on the images, the convs on the longest path from them."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes.nodes:
        before = [found[source] for source in node.all_input_nodes if source in found]
        if node.op == "placeholder" or before:
            found[node] = max(before, default=0) + is_conv(node, graph.layers)
    return found


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
