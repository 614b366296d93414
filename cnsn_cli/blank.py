"""Networks without weights: their shapes are known, and nothing is computed or kept."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def blank() -> Iterator[None]:
    """Parameters of modules made here lie on the meta device.

    Buffers do not: they are small, and networks of others keep constants in them, or compute with tensors
    while they are built, which the meta device cannot.
    """
    hook = register_module_parameter_registration_hook(_emptied)
    try:
        yield
    finally:
        hook.remove()


def _emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return None  # as it is
    return nn.Parameter(parameter.to("meta"), parameter.requires_grad)
