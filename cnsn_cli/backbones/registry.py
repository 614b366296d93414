"""From names to backbones: of installed plug-ins, and of code that the user named. Listing needs no torch."""

import ast
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from cnsn_cli.backbones import plugins
from cnsn_cli.backbones.plugins import GROUP
from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnsn_cli.backbones.backbone import Backbone

STANDARD_ARGUMENTS = ("num_classes", "in_channels", "image_size")
RESERVED = (
    *STANDARD_ARGUMENTS,
    "variant",
    "pretrained",
)  # no options: an architecture string cannot set them


_made: "WeakSet[nn.Module]" = WeakSet()  # networks that were taken to pieces


class Spec(NamedTuple):
    """What an architecture string says: `name[:variant][:key=value,key=value]`."""

    name: str
    variant: str | None
    options: dict[str, Any]


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
    """The distribution that an architecture comes from, with its version; else its module."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else f"module {entry.module}"


def use_plugin_of(arch: str) -> None:
    """Let `package.module:function` be an architecture, where the user wrote that himself.

    Raises ArchitectureError where there is no such module.
    """
    name = _name(parse(arch))
    module = name.partition(":")[0]
    if module in architectures() or not plugins.is_function(name) or plugins.named_in(module):
        return
    if not plugins.exists(module):
        near = _near(module, architectures())
        hint = f"{near} Else install it" if near else "install it"
        raise ArchitectureError(
            f"no architecture or module {module!r}: {hint}, or give --plugin with the file that it lies in"
        )
    plugins.use_plugin(name)


def find(arch: str) -> EntryPoint:
    """The entry point of an architecture string; raises ArchitectureError with the nearest names."""
    spec = parse(arch)
    known, name = architectures(), _name(spec)
    entry = known.get(spec.name) or plugins.named(name)
    if entry:
        return entry
    if others := plugins.named_in(spec.name):
        raise ArchitectureError(f"no function {name} that takes num_classes: choose from {', '.join(others)}")
    near = _near(spec.name, known)
    if plugins.is_function(name):
        hint = f" ({near})" if near else ""
        raise ArchitectureError(
            f"{name} is no installed plug-in{hint}, and code runs only where you name it: "
            f"give --plugin {name}, or --plugin with its file"
        )
    choices = f"choose from {', '.join(known)}"
    raise ArchitectureError(f"unknown architecture {spec.name!r}: {near or choices}")


def _name(spec: Spec) -> str:
    return f"{spec.name}:{spec.variant}" if spec.variant else spec.name


def _near(name: str, known: dict[str, EntryPoint]) -> str:
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else ""


def parse(arch: str) -> Spec:
    """Take an architecture string to pieces; values are Python literals."""
    name, _, tail = arch.partition(":")
    first, _, rest = tail.partition(":")
    variant, tail = (None, tail) if "=" in first or not first else (first, rest)
    options = {}
    for item in filter(None, _split(tail)):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"cannot read {item!r} in {arch!r}: write name:key=value,key=value")
        options[key] = _literal(value)
    return Spec(name, variant, options)


def _split(text: str) -> list[str]:
    """The parts between commas, except those in brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def options(entry: EntryPoint) -> dict[str, Any]:
    """The options of an architecture and their defaults. This imports the plug-in, and so torch."""
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in _parameters(entry).items()
        if name not in RESERVED
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def takes_any(entry: EntryPoint) -> bool:
    """Whether an architecture hands options on, so that nobody here knows which there are."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(entry).values())


def build_blank(arch: str, task: Task) -> "Backbone":
    """A backbone on the meta device: shapes without weights. Raises like `build`."""
    from cnsn_cli.backbones.meta import blank, emptied

    with blank():  # type: ignore[no-untyped-call]
        backbone, _ = _build(arch, task)
    emptied(backbone.units, backbone.head)
    return backbone


def build(arch: str, task: Task) -> "Backbone":
    """Build the backbone of an architecture string such as `vgg16:width=0.5`, with random weights.

    Raises ArchitectureError where the name or an option is unknown, and where the plug-in raises or
    returns something that is neither a Backbone nor a network that can be made one.
    """
    from torch import nn

    from cnsn_cli.backbones.tracing.equivalence import check_same

    backbone, made = _build(arch, task)
    if isinstance(made, nn.Module):
        check_same(made, backbone, task)
    return backbone


def pretrained(arch: str, task: Task) -> "dict[str, Tensor]":
    """The weights that an architecture has been published with, by the names of the original network.

    They may have to be fetched. Raises ArchitectureError where there are none, or where they cannot be had.
    """
    from torch import nn

    entry = find(arch)
    if "pretrained" not in _parameters(entry):
        raise ArchitectureError(f"{entry.name} has no pretrained weights: give a file of weights with --init")
    try:
        with _silence():
            made = _factory(entry)(**_arguments(arch, entry, task), pretrained=True)
    except Exception as error:  # whatever a library raises that finds no network
        raise ArchitectureError(
            f"cannot get pretrained weights of {arch!r}: {one_line(error)}; --init takes a file of them"
        ) from error
    assert isinstance(made, nn.Module)
    return dict(made.state_dict())


@contextmanager
def _silence() -> Iterator[None]:
    """Of what libraries tell, stderr gets from where they fetch, and not how often they try."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _build(arch: str, task: Task) -> "tuple[Backbone, object]":
    """The backbone, and what it was made of."""
    from torch import nn

    from cnsn_cli.backbones.backbone import Backbone
    from cnsn_cli.backbones.tracing.units import traced

    entry = find(arch)
    arguments = _arguments(arch, entry, task)
    try:
        backbone = made = _factory(entry)(**arguments)
        if isinstance(made, nn.Module):
            _check_new(made)
            backbone = traced(made, task)
    except Exception as error:
        raise ArchitectureError(f"cannot build {arch!r} of {provider(entry)}: {one_line(error)}") from error
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise ArchitectureError(
            f"plug-in {entry.name!r} of {provider(entry)} returned {kind}, not a Backbone or a torch module"
        )
    return backbone, made


def _check_new(made: "nn.Module") -> None:
    """Raises ValueError for a network that is at work already: its layers are those of another model."""
    if made in _made:
        raise ValueError("it returned the same network again: let it build a new one each time")
    _made.add(made)


def _arguments(arch: str, entry: EntryPoint, task: Task) -> dict[str, Any]:
    """What the plug-in is called with: of the standard arguments those that it names."""
    spec, parameters = parse(arch), _parameters(entry)
    takes_all = takes_any(entry)
    if not takes_all and "num_classes" not in parameters:
        raise ArchitectureError(f"plug-in {entry.name!r} of {provider(entry)} takes no num_classes")
    valid = options(entry)
    for key in spec.options:
        if key in RESERVED or not (takes_all or key in valid):
            choices = "those of its builder" if takes_all else ", ".join(valid) or "none"
            raise ArchitectureError(f"{entry.name} has no option {key!r}: choose from {choices}")
    standard = {key: getattr(task, key) for key in STANDARD_ARGUMENTS if key in parameters}
    if takes_all:
        standard["num_classes"] = task.num_classes
    if "variant" in parameters:
        standard["variant"] = spec.variant
    elif spec.variant and entry.name != _name(spec):
        raise ArchitectureError(f"cannot read {spec.variant!r} in {arch!r}: write name:key=value,key=value")
    return {**standard, **spec.options}


def _parameters(entry: EntryPoint) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(_factory(entry)).parameters
    except ValueError as error:  # written in C
        raise ArchitectureError(f"plug-in {entry.name!r} of {provider(entry)}: {error}") from error


def _factory(entry: EntryPoint) -> Callable[..., object]:
    try:
        factory: Callable[..., object] = entry.load()
    except Exception as error:
        raise ArchitectureError(
            f"cannot import plug-in {entry.name!r} of {provider(entry)}: {one_line(error)}"
        ) from error
    if not callable(factory):
        raise ArchitectureError(f"plug-in {entry.name!r} of {provider(entry)} is no function")
    return factory
