"""From names to backbones, through entry points. Listing names does not import torch."""

import ast
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from cnsn_cli.errors import ArchitectureError
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from cnsn_cli.backbone import Backbone

GROUP = "cnsn.architectures"
STANDARD_ARGUMENTS = ("num_classes", "in_channels", "image_size")


def architectures() -> dict[str, EntryPoint]:
    """Every installed architecture by name, sorted.

    Raises ArchitectureError where two distributions provide the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=_natural):
        other = found.setdefault(entry.name, entry)
        # One distribution can be found twice, as an installation and as a source tree on the path.
        if (provider(other), other.value) != (provider(entry), entry.value):
            raise ArchitectureError(
                f"two plug-ins are called {entry.name!r}, of {provider(other)} and of {provider(entry)}: "
                "uninstall one of them"
            )
    return found


def _natural(entry: EntryPoint) -> tuple[str, int]:
    letters = entry.name.rstrip("0123456789")
    return letters, int(entry.name[len(letters) :] or 0)


def provider(entry: EntryPoint) -> str:
    """The distribution that an architecture comes from, with its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def find(arch: str) -> EntryPoint:
    """The entry point of an architecture string; raises ArchitectureError with the nearest names."""
    name, _ = parse(arch)
    known = architectures()
    if name in known:
        return known[name]
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(known)}"
    raise ArchitectureError(f"unknown architecture {name!r}: {hint}")


def parse(arch: str) -> tuple[str, dict[str, Any]]:
    """Split `name[:key=value,key=value]` into the name and its options; values are Python literals."""
    name, _, tail = arch.partition(":")
    options = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"cannot read {item!r} in {arch!r}: write name:key=value,key=value")
        options[key] = _literal(value)
    return name, options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def options(entry: EntryPoint) -> dict[str, Any]:
    """The options of an architecture and their defaults. This imports the plug-in, and so torch."""
    parameters = inspect.signature(_factory(entry)).parameters
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in parameters.items()
        if name not in STANDARD_ARGUMENTS
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def build_blank(arch: str, task: Task) -> "Backbone":
    """A backbone on the meta device: shapes without weights. Raises like `build`."""
    import torch

    with torch.device("meta"):
        return build(arch, task)


def build(arch: str, task: Task) -> "Backbone":
    """Build the backbone of an architecture string such as `vgg16:width=0.5`, with random weights.

    Raises ArchitectureError where the name or an option is unknown, and where the plug-in raises or
    returns something that is no Backbone.
    """
    from cnsn_cli.backbone import Backbone

    entry, (_, chosen) = find(arch), parse(arch)
    valid = options(entry)
    for key in chosen:
        if key not in valid:
            raise ArchitectureError(
                f"{entry.name} has no option {key!r}: choose from {', '.join(valid) or 'none'}"
            )
    try:
        backbone = _factory(entry)(
            num_classes=task.num_classes,
            in_channels=task.in_channels,
            image_size=task.image_size,
            **chosen,
        )
    except Exception as error:
        raise ArchitectureError(f"cannot build {arch!r} of {provider(entry)}: {_one_line(error)}") from error
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise ArchitectureError(
            f"plug-in {entry.name!r} of {provider(entry)} returned {kind}, not a Backbone"
        )
    return backbone


def _factory(entry: EntryPoint) -> Callable[..., object]:
    try:
        factory: Callable[..., object] = entry.load()
    except Exception as error:
        raise ArchitectureError(
            f"cannot import plug-in {entry.name!r} of {provider(entry)}: {_one_line(error)}"
        ) from error
    if not callable(factory):
        raise ArchitectureError(f"plug-in {entry.name!r} of {provider(entry)} is no function")
    return factory


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
