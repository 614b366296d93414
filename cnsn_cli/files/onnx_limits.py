"""What an ONNX file may ask for before ONNX Runtime opens it: no loops, no other files, bounded tensors.

ONNX Runtime computes constants while it opens a file, so that a small file of a stranger could fill the
memory or never end. `files.onnx_model` calls this module, which runs nothing.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnsn_cli.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

STANDARD = ("", "ai.onnx")  # names of the domain of standard operators
REPEATING = ("Loop", "Scan", "SequenceMap")
# Compare: the attention of vit_l_16 has this many values for an image of 1,024 pixels a side.
LARGEST_TENSOR = 2**28  # values; 1 GiB of float32, for one image
MOST_CONSTANTS = 2**29  # values of all constants together; a file of 2 GiB has as many in float32
ARITHMETIC = ("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Squeeze", "Sub", "Unsqueeze")
SMALL = 1024  # bytes; tensors that state shapes are smaller


def check_limits(path: Path, content: bytes) -> None:
    """Raises CheckpointError if the ONNX file `path` with these bytes asks for too much."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # the errors of protobuf have no public class
        raise CheckpointError(f"{path} is no ONNX file that can be run: {one_line(error)}") from error
    try:
        _check_declared(model)
        _check_inferred(_inferred(model))
    except ValueError as error:
        raise CheckpointError(f"{path} is not run: {error}") from error


def _check_declared(model: "ModelProto") -> None:
    """Raises ValueError for what the file says of itself."""
    if model.functions:
        raise ValueError("it defines operators of its own")
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in STANDARD:
                raise ValueError(
                    f"operator {node.domain}.{node.op_type} is not one of the standard operators"
                )
            if node.op_type in REPEATING:
                raise ValueError(f"it repeats operators ({node.op_type}), and may never end")
        for tensor in _tensors(graph):
            if tensor.external_data or tensor.data_location:
                raise ValueError(f"tensor {tensor.name!r} is in another file")
            _check_size(tensor.name, prod(tensor.dims))


def _check_inferred(model: "ModelProto") -> None:
    """Raises ValueError for tensors that operators compute. The model is for one image."""
    sizes: dict[str, int] = {}
    constants: set[str] = set()
    for graph in _graphs(model.graph):  # an inner graph sees the constants of the graphs around it
        sizes |= {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
        constants |= {tensor.name for tensor in graph.initializer}
        known = {value.name: _size(value) for value in (*graph.value_info, *graph.output)}
        for node in graph.node:
            for name in filter(None, node.output):
                sizes[name] = _known_size(name, node.op_type, known.get(name))
                if all(source in constants for source in node.input if source):
                    constants.add(name)
    if sum(sizes[name] for name in constants) > MOST_CONSTANTS:
        raise ValueError(f"its constants have more than {MOST_CONSTANTS:,} values")


def _known_size(name: str, operator: str, size: int | None) -> int:
    if size is None:
        raise ValueError(f"the size of {name!r}, which {operator} returns, is unknown")
    _check_size(name, size)
    return size


def _check_size(name: str, size: int) -> None:
    if not 0 <= size <= LARGEST_TENSOR:
        raise ValueError(f"tensor {name!r} has {size:,} values for an image, more than {LARGEST_TENSOR:,}")


def _inferred(model: "ModelProto") -> "ModelProto":
    """The model for one image, with the shapes that follow from its input, whatever it says of them."""
    import onnx

    for graph in _graphs(model.graph):
        del graph.value_info[:]
        for tensor in graph.initializer:
            if len(tensor.raw_data) > SMALL:  # weights: no shape follows from their values
                tensor.ClearField("raw_data")
    for value in model.graph.output:
        value.ClearField("type")
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = 1
    try:
        if any(node.op_type == "Range" for node in model.graph.node):
            _fold_batch_size(model.graph)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of many kinds, for graphs that make no sense
        raise ValueError(f"its shapes make no sense: {one_line(error)[:200]}") from error


def _fold_batch_size(graph: "GraphProto") -> None:
    """Turn what follows from the shape of the input alone into constants; the inference does so only partly.

    torch writes indices as a Range up to the number of images.
    """
    import numpy as np
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    shapes = {value.name: _shape(value) for value in graph.input}
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if 0 < len(t.raw_data) <= SMALL}
    for node in graph.node:
        if node.op_type == "Shape" and (shape := shapes.get(node.input[0])):
            feeds = {node.input[0]: np.broadcast_to(np.uint8(0), shape)}  # takes one byte
        elif node.op_type in ARITHMETIC and all(name in values for name in node.input):
            feeds = {name: values[name] for name in node.input}
        else:
            continue
        results: Any = ReferenceEvaluator(node).run(None, feeds)
        result = np.asarray(results[0])
        if result.nbytes <= SMALL:
            name = node.output[0]
            values[name] = result
            node.CopyFrom(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(result)))


def _size(value: "ValueInfoProto") -> int | None:
    """The number of values of a tensor; None if it is unknown, or if it is no tensor of numbers."""
    import onnx

    kind, shape = value.type.tensor_type.elem_type, _shape(value)
    numbers = kind not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)
    return prod(shape) if numbers and shape is not None else None


def _shape(value: "ValueInfoProto") -> tuple[int, ...] | None:
    """The shape of a tensor; None if a part of it is unknown."""
    kind = value.type.tensor_type
    known = kind.HasField("shape") and all(part.HasField("dim_value") for part in kind.shape.dim)
    return tuple(part.dim_value for part in kind.shape.dim) if known else None


def _graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """A graph, and the graphs inside its operators."""
    yield graph
    for attribute in _attributes(graph):
        for inner in (attribute.g, *attribute.graphs):
            if inner.node:
                yield from _graphs(inner)


def _attributes(graph: "GraphProto") -> "Iterator[AttributeProto]":
    return (attribute for node in graph.node for attribute in node.attribute)


def _tensors(graph: "GraphProto") -> "Iterator[TensorProto]":
    """The tensors in a graph, those in its operators too. Raises ValueError for sparse ones."""
    if graph.sparse_initializer:
        raise ValueError("it has sparse tensors")
    yield from graph.initializer
    for attribute in _attributes(graph):
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise ValueError("it has sparse tensors")
        yield from (attribute.t, *attribute.tensors)
