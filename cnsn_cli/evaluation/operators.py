"""What each operator of a torch.jit trace costs, as fvcore asks for it.

`costs.py` calls this module. It knows operators and shapes, and no networks. A trace has the operators that
autograd sees: a conv is one operator however it is written, `x @ y` is `aten::matmul`, and a module of
activation and its function are the same.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isqrt, prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

from cnsn_cli.backbones.meta import QuickMode

Handle = Callable[[list[Any], list[Any]], Counter[str]]
Macs = Callable[[list[Any], list[Any]], int]
Shape = Sequence[int]

# 1 operation for each element that they return.
ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "clip", "leaky_relu", "prelu", "rrelu",
    "elu", "selu", "celu", "silu", "gelu", "mish", "glu", "sigmoid", "log_sigmoid", "hardsigmoid", "tanh",
    "hardswish", "softplus", "softmax", "log_softmax", "threshold", "hardshrink", "softshrink",
)  # fmt: skip
# 2 operations for each element: scaled and shifted.
NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
# 1 operation for each element that they take.
MAX_POOLS = tuple(
    f"{kind}max_pool{axes}d{tail}"
    for kind in ("", "adaptive_")
    for axes in (1, 2, 3)
    for tail in ("", "_with_indices")
)
# These move data or read shapes. They compute nothing.
FREE = {
    "Int", "ScalarImplicit", "alias", "alpha_dropout", "arange", "as_strided", "broadcast_tensors", "cat",
    "channel_shuffle", "chunk", "clone", "concat", "constant_pad_nd", "contiguous", "copy", "detach",
    "dropout", "empty", "expand", "expand_as", "feature_alpha_dropout", "feature_dropout", "flatten", "flip",
    "full", "full_like", "gather", "im2col", "index", "index_put", "index_select", "item", "lift_fresh",
    "movedim", "narrow", "native_channel_shuffle", "native_dropout", "new_empty", "new_full", "new_ones",
    "new_zeros", "numel", "ones", "ones_like", "pad", "permute", "pixel_shuffle", "pixel_unshuffle",
    "reflection_pad1d", "reflection_pad2d", "repeat", "repeat_interleave", "replication_pad1d",
    "replication_pad2d", "reshape", "reshape_as", "roll", "scalar_tensor", "select", "size", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "t", "tile", "to", "transpose", "type_as", "unbind",
    "unflatten", "unfold", "unsqueeze", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "view", "view_as", "zeros", "zeros_like",
}  # fmt: skip
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class TorchCount(QuickMode):
    """Counts MACs of what torch runs in this context, with the formulas of torch.utils.flop_counter.

    The FlopCounterMode of that module imports torch's compiler, for longer than `cnsn mac` takes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @property
    def macs(self) -> int:
        """Two floating-point operations are one MAC."""
        return int(self.flops) // 2

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(operator._overloadpacket)
        if formula is None:
            with self:  # an operator without a formula may be made of others that have one
                made = operator.decompose(*args, **kwargs)
            return operator(*args, **kwargs) if made is NotImplemented else made
        output = operator(*args, **kwargs)
        self.flops += formula(*args, **kwargs, out_val=output)
        return output


@contextmanager
def separate() -> Iterator[None]:
    """In this context, torch runs attention and recurrent layers as several operators, not as a fused one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mkldnn warns that it has no Intel GPU
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def handles() -> dict[str, Handle]:
    """Name of an operator -> function of its inputs and outputs that returns MACs and operations."""
    found: dict[str, Handle] = {f"aten::{name}": _with_macs(count) for name, count in _macs().items()}
    found["torchvision::deform_conv2d"] = _with_macs(_conv)
    found["aten::_convolution"] = found["aten::_convolution_mode"] = _conv_with_bias
    for name in ACTIVATIONS:
        found[f"aten::{name}"] = found[f"aten::{name}_"] = _per_output
    found |= {f"aten::{name}": _twice_per_output for name in NORMS}
    return found | {f"aten::{name}": _per_input for name in MAX_POOLS}


def not_counted(operators: Iterable[str]) -> set[str]:
    """The names of operators that compute something and have no handle, without `aten::`."""
    plain = {name.removeprefix("aten::").removesuffix("_") for name in operators}
    return {name for name in plain if name not in FREE and not name.startswith("__")}


def _macs() -> dict[str, Macs]:
    products: dict[str, Macs] = dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner"), _matmul)
    products |= dict.fromkeys(("addmm", "baddbmm", "addbmm"), _added_product)
    products |= {"linear": _matmul, "addmv": lambda inputs, outputs: _elements(inputs[1])}
    products |= {"einsum": _einsum, "tensordot": _tensordot, "bilinear": _conv_like(2)}
    products |= {"scaled_dot_product_attention": _attention}
    return products | dict.fromkeys((*RECURRENT, *(f"{name}_cell" for name in RECURRENT)), _recurrent)


def _with_macs(count: Macs) -> Handle:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        macs = count(inputs, outputs)
        return Counter(macs=macs, operations=macs)

    return handle


def _conv_with_bias(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """The paper counts 1 operation for each output of a conv with bias."""
    macs = _conv(inputs, outputs)
    return Counter(macs=macs, operations=macs + (_elements(outputs[0]) if _is_tensor(inputs[2]) else 0))


def _conv(inputs: list[Any], outputs: list[Any]) -> int:
    """Each output takes a kernel of weights; in a transposed conv each input gives one."""
    transposed = len(inputs) > 8 and bool(inputs[6].toIValue()) and not _is_tensor(inputs[6])
    return _elements(inputs[0] if transposed else outputs[0]) * prod(_shape(inputs[1])[1:])


def _conv_like(weight: int) -> Macs:
    """Each output takes all weights that `inputs[weight]` has for it."""
    return lambda inputs, outputs: _elements(outputs[0]) * prod(_shape(inputs[weight])[1:])


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Each output is a sum over the last axis of the first factor, whatever is broadcast."""
    return _elements(outputs[0]) * _shape(inputs[0])[-1]


def _added_product(inputs: list[Any], outputs: list[Any]) -> int:
    """`a + b @ c`, where the sum may also run over a batch."""
    return _elements(inputs[1]) * _shape(inputs[2])[-1]


def _tensordot(inputs: list[Any], outputs: list[Any]) -> int:
    """Both factors have the axes of the sum, and the output has all others: |a| |b| = |out| * sum^2."""
    products = _elements(inputs[0]) * _elements(inputs[1])
    return _elements(outputs[0]) * isqrt(products // _elements(outputs[0]))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Runs einsum on the meta device, and counts its matrix products."""
    operands = [torch.empty(_shape(value), device="meta") for value in inputs[1].node().inputs()]
    with TorchCount() as counter:
        torch.einsum(inputs[0].toIValue(), *operands)
    return int(counter.macs)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries (..., L, E) times keys (..., S, E), and the weights (..., L, S) times values (..., S, V)."""
    query, key, value = (_shape(part) for part in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Each step of each sequence takes every matrix of weights once."""
    lists = [part for value in inputs if not _is_tensor(value) for part in _listed(value)]
    shapes = [_shape(value) for value in (lists or inputs[2:]) if _is_tensor(value)]
    steps = prod(_shape(inputs[0])[:-1])
    return steps * sum(prod(shape) for shape in shapes if len(shape) == 2)


def _listed(value: Any) -> list[Any]:
    node = value.node()
    return list(node.inputs()) if node.kind() == "prim::ListConstruct" else []


def _per_output(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter(operations=_elements(outputs[0]))


def _twice_per_output(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter(operations=2 * _elements(outputs[0]))


def _per_input(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter(operations=_elements(inputs[0]))


def _is_tensor(value: Any) -> bool:
    return bool(value.isCompleteTensor())


def _shape(value: Any) -> list[int]:
    shape: list[int] = value.type().sizes()
    return shape


def _elements(value: Any) -> int:
    return prod(_shape(value))
