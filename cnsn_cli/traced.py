"""A Backbone out of an ordinary network: torch.fx finds where one tensor separates images from logits.

Layers keep the names that they have in the network: `layer1.0.conv1.weight` becomes
`units.1.layer1.0.conv1.weight`.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbone import Backbone, Obstacle, UnitNote, on_meta
from cnsn_cli.errors import ArchitectureError
from cnsn_cli.task import Task

SIZES = (224, 299)  # pixels a side that networks are made for, where the given size is too small to try
DROPOUTS: dict[object, Callable[..., nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
CONVS = (F.conv2d, torch.conv2d)
Layers = Mapping[str, nn.Module | Tensor]


class Segment(nn.Module):
    """A stretch of a network: features (N, ...) -> features or logits (N, ...)."""

    def __init__(self, graph: fx.Graph, layers: Layers) -> None:
        super().__init__()
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                _place(self, node.target, layers[node.target])
        # The code that fx writes for a graph, without its module, which cannot be copied cheaply.
        self._run: Callable[..., Tensor] = type(fx.GraphModule(self, graph)).forward

    def forward(self, features: Tensor) -> Tensor:
        return self._run(self, features)


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
        root.register_buffer(last, layer)


class Border(NamedTuple):
    """A place where `value` is all that is known of the images; `drops` convs lie before it."""

    value: fx.Node
    drops: int


def traced(network: nn.Module, task: Task) -> Backbone:
    """`network`, which maps images (N, C, H, W) to logits (N, classes), as a Backbone.

    A unit ends at the last place before the next conv where one feature map (N, c, h, w) separates images
    from logits. The network's modules are taken over. Raises ArchitectureError where torch.fx cannot trace
    it, where it does something else in training than in evaluation, dropout apart, and where its logits are
    not those of `task`.
    """
    graph, layers = _trace(network)
    alive = _alive(graph, layers)
    borders = _last_of_each_depth(graph, layers, alive, task)
    nodes = list(graph.nodes)
    values = [nodes[0], *(border.value for border in borders)]
    places = [nodes.index(value) for value in values]
    stretches = [nodes[start + 1 : end + 1] for start, end in pairwise([*places, len(nodes) - 2])]
    outputs = [*values[1:], nodes[-1].args[0]]
    parts = [
        Segment(_subgraph(stretch, value, output), layers)
        for stretch, value, output in zip(stretches, values, outputs, strict=True)
    ]
    counts = tuple(after - before for before, after in pairwise([0, *(b.drops for b in borders)]))
    notes = tuple(_note(stretch, layers, alive) for stretch in stretches[:-1])
    backbone = Backbone(nn.Sequential(*parts[:-1]), parts[-1], counts, notes)
    _check_same(network, backbone, task)
    return backbone


class _Tracer(fx.Tracer):
    """Looks into modules that have children. What a module without any does is its own business."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        childless = next(module.children(), None) is None
        return childless or isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def _trace(network: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module | Tensor]]:
    """The graph of a network, without dead nodes, and its layers by name."""
    layers: dict[str, nn.Module | Tensor] = dict(network.named_modules(remove_duplicate=False))
    graphs = []
    for training in (False, True):
        network.train(training)
        graph = _symbolic(network)
        layers |= _tensors_by_name(network, graph)
        layers |= _dropouts_as_layers(graph)
        _erase_dead(graph)
        graphs.append(graph)
    if str(graphs[0]) != str(graphs[1]):
        raise ArchitectureError(
            f"{type(network).__name__} computes something else in training than in evaluation: write a "
            "plug-in for it (docs/plugins.md)"
        )
    return graphs[1], layers


def _symbolic(network: nn.Module) -> fx.Graph:
    _images, *others = inspect.signature(network.forward).parameters.values()
    fixed = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        graph = _Tracer(param_shapes_constant=True).trace(network, fixed)
    except Exception as error:  # whatever the network's code raises when it meets a proxy
        reason = " ".join(str(error).split())
        raise ArchitectureError(
            f"torch.fx cannot trace {type(network).__name__}, at {_place_of(error)}: {reason}; write a "
            "plug-in for it (docs/plugins.md)"
        ) from error
    (output,) = graph.find_nodes(op="output")
    if not isinstance(output.args[0], fx.Node):
        kind = type(output.args[0]).__name__
        raise ArchitectureError(f"{type(network).__name__} returns a {kind}, not one tensor of logits")
    return graph


def _place_of(error: Exception) -> str:
    """The last line outside of torch that led to an error: `resnet.py line 99`."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}"


def _tensors_by_name(network: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """Parameters and buffers that a graph uses by themselves, and constants, which fx leaves in the network."""
    found = {}
    for node in graph.find_nodes(op="get_attr"):
        parent, _, last = node.target.rpartition(".")
        holder = network.get_submodule(parent)
        found[node.target] = getattr(holder, last)
    for name in [name for name in found if name.startswith("_tensor_constant")]:
        delattr(network, name)
    return found


def _dropouts_as_layers(graph: fx.Graph) -> dict[str, nn.Module]:
    """Functional dropout is traced with the mode of that moment: make it layers, which know theirs."""
    from torchvision.ops import StochasticDepth, stochastic_depth

    made = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in (*DROPOUTS, stochastic_depth):
            continue
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        given.apply_defaults()
        options = {key: given.arguments[key] for key in ("p", "mode") if key in given.arguments}
        name = f"functional_{node.name}"
        made[name] = DROPOUTS.get(node.target, StochasticDepth)(**options)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (given.arguments["input"],), {}
    return made


def _erase_dead(graph: fx.Graph) -> None:
    """Take out what leads nowhere: assertions, and inputs beside the images."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op != "output":
            graph.erase_node(node)


def _last_of_each_depth(
    graph: fx.Graph, layers: Layers, alive: Mapping[fx.Node, list[str]], task: Task
) -> list[Border]:
    """Where one feature map is all that is known; of several places behind as many convs, the last."""
    depths = _depths(graph, layers)
    alone = [node for node, names in alive.items() if names == [node.name] and depths[node]]
    (output,) = graph.find_nodes(op="output")
    *shapes, logits = _shapes(graph, layers, [*alone, output.args[0]], task.image_shape)
    if logits != (1, task.num_classes):
        raise ArchitectureError(
            f"it returns a tensor {logits} for one image, not 1 x {task.num_classes} logits: give its factory a "
            "parameter num_classes"
        )
    last = {depths[node]: node for node, shape in zip(alone, shapes, strict=True) if len(shape) == 4}
    return [Border(node, drops) for drops, node in last.items()]


def _depths(graph: fx.Graph, layers: Layers) -> dict[fx.Node, int]:
    """For every node that depends on the images, the convs on the longest path from them."""
    depths: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = [depths[source] for source in node.all_input_nodes if source in depths]
        if node.op == "placeholder" or before:
            depths[node] = max(before, default=0) + _is_conv(node, layers)
    return depths


def _is_conv(node: fx.Node, layers: Layers) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.Conv2d)
    return node.op == "call_function" and node.target in CONVS


def _alive(graph: fx.Graph, layers: Layers) -> dict[fx.Node, list[str]]:
    """After each node that depends on the images: what is known there and needed later.

    These are such nodes, by name, and weights that are used both before and later.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    depending = [node for node in _depths(graph, layers) if node.op != "output"]
    spans = {node.name: (place[node], max(place[user] for user in node.users)) for node in depending}
    uses: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for tensor in _tensors(node, layers):
            uses.setdefault(id(tensor), []).append(node)
    spans |= {f"the weights of {used[0].target}": (place[used[0]], place[used[-1]]) for used in uses.values()}
    return {
        node: [name for name, (first, last) in spans.items() if first <= place[node] < last]
        for node in depending
    }


def _tensors(node: fx.Node, layers: Layers) -> list[Tensor]:
    if node.op not in ("call_module", "get_attr"):
        return []
    layer = layers[str(node.target)]
    return [layer] if isinstance(layer, Tensor) else [*layer.parameters(), *layer.buffers()]


def _subgraph(stretch: list[fx.Node], value: fx.Node, output: Any) -> fx.Graph:
    """The nodes of `stretch` as a graph of their own, from `value` to `output`, with constants they use."""
    graph = fx.Graph()
    copies = {value: graph.placeholder("features")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant from further up
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in stretch:
        if node.op != "get_attr":
            copied(node)
    graph.output(copied(output))
    _erase_dead(graph)
    return graph


def _shapes(
    graph: fx.Graph,
    layers: Layers,
    values: list[fx.Node],
    image_shape: tuple[int, int, int],
) -> list[tuple[int, ...]]:
    """The shape of every value, () for what is no tensor; at a usual size where images are too small."""
    watched = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            copies[node] = watched.node_copy(node, copies.__getitem__)
    watched.output(tuple(copies[value] for value in values))
    whole = Segment(watched, layers)
    channels, size, _ = image_shape
    for side in (size, *SIZES):
        try:
            found = on_meta(whole, torch.empty(1, channels, side, side, device="meta"))
            return [tuple(value.shape) if isinstance(value, Tensor) else () for value in found]
        except Exception as error:  # whatever the network raises
            reason = error
    raise ArchitectureError(f"it takes no images of shape {image_shape}: {' '.join(str(reason).split())}")


def _note(stretch: list[fx.Node], layers: Layers, alive: Mapping[fx.Node, list[str]]) -> UnitNote:
    """The last node of a unit; and for every conv inside, what is needed at the narrowest place behind it."""
    convs = [index for index, node in enumerate(stretch) if _is_conv(node, layers)]
    obstacles = []
    for conv, following in pairwise(convs):
        between = [alive[node] for node in stretch[conv:following] if node in alive]
        obstacles.append(
            Obstacle(str(stretch[conv].target), tuple(min(between, key=lambda names: len(names))))
        )
    return UnitNote(stretch[-1].name, tuple(obstacles))


def _check_same(network: nn.Module, backbone: Backbone, task: Task) -> None:
    """Raises ArchitectureError unless network and backbone return the same logits, bit for bit."""
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    images = torch.randn(2, *task.image_shape, generator=torch.Generator().manual_seed(0))
    whole = nn.Sequential(*backbone.units, backbone.head)
    with torch.inference_mode():
        network.eval()
        try:
            same = torch.equal(network(images.clone()), whole(images))
        except RuntimeError:  # images are too small: the shapes of the features will tell
            return
        finally:
            network.train()
    if not same:
        raise ArchitectureError(
            f"{type(network).__name__} changes tensors in a way that torch.fx does not see: write a plug-in "
            "for it (docs/plugins.md)"
        )
