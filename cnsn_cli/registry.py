"""From names to backbones: of installed plug-ins, and of code that the user named. Listing needs no torch."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnsn_cli.errors import ArchitectureError
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from cnsn_cli.backbone import Backbone

GROUP = "cnsn.architectures"
STANDARD_ARGUMENTS = ("num_classes", "in_channels", "image_size")
_named_by_user: set[str] = set()  # modules, for this process; a file never adds to them


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


def use_plugin(plugin: str | Path) -> None:
    """Let architecture strings name functions of a module: `my_nets:plain` is `plain` of `my_nets`.

    `plugin` is a file, which is run and called by its name without `.py`, or the name of a module that can be
    imported. Raises ArchitectureError where the file cannot be run.
    """
    path = Path(plugin)
    if path.suffix != ".py":
        _named_by_user.add(str(plugin))
        return
    if path.stem not in _named_by_user:
        _run(path)
        _named_by_user.add(path.stem)


def _run(path: Path) -> None:
    if path.stem in sys.modules:
        raise ArchitectureError(f"a module {path.stem!r} is at work already: give {path} another name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # because of the suffix
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise ArchitectureError(f"cannot run plug-in {path}: {_one_line(error)}") from error


def use_plugin_of(arch: str) -> None:
    """Let `package.module:factory` be an architecture, where the user wrote that himself."""
    spec = parse(arch)
    if spec.variant and spec.name not in architectures() and _is_module(spec.name):
        use_plugin(spec.name)


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def find(arch: str) -> EntryPoint:
    """The entry point of an architecture string; raises ArchitectureError with the nearest names."""
    spec = parse(arch)
    known = architectures()
    if spec.name in known:
        return known[spec.name]
    if spec.variant and spec.name in _named_by_user:
        name = f"{spec.name}:{spec.variant}"
        return EntryPoint(name, name, GROUP)
    if spec.variant and _is_module(spec.name):
        raise ArchitectureError(
            f"{spec.name}:{spec.variant} is no installed plug-in, and code is only run where you name it: give "
            f"--plugin {spec.name}, or its file"
        )
    near = get_close_matches(spec.name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(known)}"
    raise ArchitectureError(f"unknown architecture {spec.name!r}: {hint}")


def parse(arch: str) -> Spec:
    """Take an architecture string to pieces; values are Python literals."""
    name, _, tail = arch.partition(":")
    first, _, rest = tail.partition(":")
    variant, tail = (None, tail) if "=" in first or not first else (first, rest)
    options = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ArchitectureError(f"cannot read {item!r} in {arch!r}: write name:key=value,key=value")
        options[key] = _literal(value)
    return Spec(name, variant, options)


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
        if name not in (*STANDARD_ARGUMENTS, "variant")
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def build_blank(arch: str, task: Task) -> "Backbone":
    """A backbone whose parameters lie on the meta device: shapes without weights. Raises like `build`."""
    from cnsn_cli.blank import blank

    with blank():
        return build(arch, task)


def build(arch: str, task: Task) -> "Backbone":
    """Build the backbone of an architecture string such as `vgg16:width=0.5`, with random weights.

    Raises ArchitectureError where the name or an option is unknown, and where the plug-in raises or
    returns something that is neither a Backbone nor a network that can be made one.
    """
    from torch import nn

    from cnsn_cli.backbone import Backbone
    from cnsn_cli.traced import traced

    entry = find(arch)
    arguments = _arguments(arch, entry, task)
    try:
        made = _factory(entry)(**arguments)
        backbone = traced(made, task) if isinstance(made, nn.Module) else made
    except Exception as error:
        raise ArchitectureError(f"cannot build {arch!r} of {provider(entry)}: {_one_line(error)}") from error
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise ArchitectureError(
            f"plug-in {entry.name!r} of {provider(entry)} returned {kind}, not a Backbone or a torch module"
        )
    return backbone


def _arguments(arch: str, entry: EntryPoint, task: Task) -> dict[str, Any]:
    """What the plug-in is called with: of the standard arguments those that it names."""
    spec, parameters = parse(arch), inspect.signature(_factory(entry)).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    valid = options(entry)
    for key in spec.options:
        if key in STANDARD_ARGUMENTS or not (takes_all or key in valid):
            raise ArchitectureError(
                f"{entry.name} has no option {key!r}: choose from {', '.join(valid) or 'none'}"
            )
    standard = {key: getattr(task, key) for key in STANDARD_ARGUMENTS if key in parameters}
    if "variant" in parameters:
        standard["variant"] = spec.variant
    elif spec.variant and entry.name != f"{spec.name}:{spec.variant}":
        raise ArchitectureError(f"cannot read {spec.variant!r} in {arch!r}: write name:key=value,key=value")
    if takes_all:
        standard["num_classes"] = task.num_classes
    return {**standard, **spec.options}


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
