"""From an ordinary network to its graph: the operations that torch.fx records for images.

    def forward(self, images):
        a = F.dropout(self.first(images))                            .--> short --.
        b = self.short(a) + self.long(a)     images -> first -> drop -|            +-> add -> linear -> output
        return self.linear(b)                                        '--> long ---'

units.py calls `graph_of` twice, for evaluation and for training. A node calls a layer, a function or a
method, or it reads a tensor. This module knows the order of the nodes and which of them depend on the
images, but no convs, no units and no cuts.
"""

import inspect
import operator
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnsn_cli.backbones.plugins import GUIDE
from cnsn_cli.errors import ArchitectureError, one_line

DROPOUTS: dict[object, Callable[..., nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
Layers = Mapping[str, nn.Module | Tensor]


class Graph(NamedTuple):
    """The operations of a network on images: `nodes`, and by name the `layers` and tensors that nodes use.

    No node is dead. `constants` are tensors that files of the network do not hold: plain attributes, buffers
    that are not persistent, and tensors that a forward pass makes.
    """

    nodes: fx.Graph
    layers: Layers
    constants: Mapping[str, Tensor]


class _Tracer(fx.Tracer):
    """Follows images into modules that have children. A module without children is one node."""

    def getattr(self, attr: str, value: Any, cache: dict[str, Any]) -> Any:
        """Record reads of buffers as get_attr nodes; fx would bake values computed from them into
        constants.
        """
        buffers = self.root.named_buffers() if isinstance(value, Tensor) else ()
        name = next((name for name, buffer in buffers if buffer is value), None)
        if name is None:
            return super().getattr(attr, value, cache)
        if name not in cache:
            cache[name] = self.create_proxy("get_attr", name, (), {})
        return cache[name]

    def to_bool(self, proxy: fx.Proxy) -> bool:
        """Take the condition of an assert statement as true: the network runs once before its pieces do."""
        place = _last_outside_torch(traceback.extract_stack()[:-1])
        return (place.line or "").startswith("assert ") or super().to_bool(proxy)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        childless = next(module.children(), None) is None
        return childless or isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


def graph_of(network: nn.Module, training: bool) -> Graph:
    """Trace what `network` does with images, in training or in evaluation; make functional dropout layers.

    Raises ArchitectureError if torch.fx cannot trace the network, if the network does not return one tensor,
    or if images change its weights.
    """
    network.train(training)
    own = set(vars(network))
    nodes = _trace(network)
    _count_images_once(nodes)
    weights, constants = _tensors_read(network, nodes)
    for name in set(vars(network)) - own:  # fx stored constants of the forward pass there
        delattr(network, name)
    modules = dict(network.named_modules(remove_duplicate=False))
    layers = {**modules, **weights, **constants, **_dropouts_as_layers(nodes, training)}
    graph = Graph(nodes, layers, constants)
    _check_changes(graph, network)
    _erase_dead(graph)
    return graph


def _trace(network: nn.Module) -> fx.Graph:
    from torchvision.ops import stochastic_depth

    name = type(network).__name__
    _images, *others = inspect.signature(network.forward).parameters.values()
    fixed = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        tracer = _Tracer(autowrap_functions=(stochastic_depth,), param_shapes_constant=True)
        graph = tracer.trace(network, fixed)
    except Exception as error:  # any error of the network's code, which runs on proxies here
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
    """The last line outside of torch in the traceback of an error: `resnet.py line 99`."""
    place = _last_outside_torch(traceback.extract_tb(error.__traceback__))
    return f"{Path(place.filename).name} line {place.lineno}"


def _last_outside_torch(frames: list[traceback.FrameSummary]) -> traceback.FrameSummary:
    torch_folder = str(Path(torch.__file__).parent)
    return [f for f in frames if not f.filename.startswith((torch_folder, __file__))][-1]


def _tensors_read(network: nn.Module, graph: fx.Graph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors that a graph reads outside of layers: a dict of weights and buffers, and one of constants."""
    weights: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for node in graph.find_nodes(op="get_attr"):
        parent, _, last = node.target.rpartition(".")
        holder = network.get_submodule(parent)
        if isinstance(getattr(holder, last), fx.Proxy):
            raise _changes_weights(network, node)
        plain = last in vars(holder) or last in holder._non_persistent_buffers_set
        (constants if plain else weights)[node.target] = getattr(holder, last)
    return weights, constants


def images_of(nodes: fx.Graph) -> fx.Node:
    images: fx.Node = next(iter(nodes.find_nodes(op="placeholder")))
    return images


def from_images(nodes: fx.Graph) -> dict[fx.Node, None]:
    """The nodes that depend on the images, in the order of the graph.

    The batch size is no such node: every feature map has it.
    """
    found: dict[fx.Node, None] = {}
    for node in nodes.nodes:
        depends = any(source in found for source in node.all_input_nodes) and not is_batch_size(node)
        if node.op == "placeholder" or depends:
            found[node] = None
    return found


def is_batch_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "size" and node.args == (images_of(node.graph), 0)


def _count_images_once(graph: fx.Graph) -> None:
    """Replace all `images.size(0)` and `images.shape[0]` by one node, directly after the images."""
    images = images_of(graph)
    counts = [user for user in images.users if user.target == "size" and user.args[1:] == (0,)]
    for whole in images.users:
        if (whole.target == "size" and not whole.args[1:]) or whole.args[1:] == ("shape",):
            counts += [u for u in whole.users if u.target is operator.getitem and u.args[1] == 0]
    with graph.inserting_after(images):
        count = graph.call_method("size", (images, 0))
    for node in counts:
        node.replace_all_uses_with(count)


def _dropouts_as_layers(graph: fx.Graph, training: bool) -> dict[str, nn.Module]:
    """Replace functional dropout by layers: a layer has a mode, a traced call keeps the mode of the trace.

    Dropout that is always on or always off is replaced in one mode only, so that the graphs of training and
    evaluation differ, and `traced` refuses the network.
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


def _changes_weights(network: nn.Module, node: fx.Node) -> ArchitectureError:
    return ArchitectureError(
        f"{type(network).__name__} changes its weights or buffers when images go through it, by {node.name}: "
        f"write a plug-in for it ({GUIDE})"
    )


def _check_changes(graph: Graph, network: nn.Module) -> None:
    """Raise ArchitectureError if a node that does not depend on the images changes weights.

    A node may change a value made from weights in place, if no other node uses this value.
    """
    with_images = from_images(graph.nodes)
    for node in graph.nodes.nodes:
        if node not in with_images and _changes_tensors(node, graph.layers):
            (changed, *_) = node.all_input_nodes
            if changed.op == "get_attr" or len(changed.users) > 1 or not node.users:
                raise _changes_weights(network, node)


def _erase_dead(graph: Graph) -> None:
    """Erase nodes whose result nobody uses, such as assertions, and inputs other than the images."""
    for node in reversed(list(graph.nodes.nodes)):
        leads = node.users or node.op in ("output", "placeholder") or _changes_tensors(node, graph.layers)
        if not leads:
            graph.nodes.erase_node(node)
    _images, *others = graph.nodes.find_nodes(op="placeholder")
    for node in others:
        graph.nodes.erase_node(node)


def _changes_tensors(node: fx.Node, layers: Layers) -> bool:
    """Whether a node changes its input in place, so that the node counts even if nobody uses its result."""
    if node.op == "call_module":
        return bool(getattr(layers[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else node.target.__name__
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or node.target in AUGMENTED or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
