"""Code that the user names: functions of modules and of files that build networks.

`--plugin` and `use_plugin` name functions here, and the registry looks among them. A file that holds a
network can ask for a function that was named here or for an installed plug-in, and for nothing else. Knows
no options and builds nothing.
"""

import importlib.util
import inspect
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from cnsn_cli.errors import ArchitectureError, one_line

GROUP = "cnsn.architectures"
GUIDE = "docs/plugins.md"
_named: set[str] = set()  # `module:function`, for the time of this process


def use_plugin(plugin: str | Path) -> None:
    """Let architecture strings name functions of yours that build networks.

    `plugin` is `package.module:function`, or a file, which is run: every function in it that takes
    `num_classes` can be named from then on, `my_nets.py` having `my_nets:plain`. Raises ArchitectureError
    where it cannot be run.
    """
    path = Path(plugin)
    if path.suffix == ".py":
        _named.update(f"{path.stem}:{name}" for name in _builders_in(_run(path)))
    elif is_function(str(plugin)):
        module = str(plugin).partition(":")[0]
        if not exists(module):
            raise ArchitectureError(
                f"no module {module!r}: install it, or give --plugin with the file that it lies in"
            )
        _named.add(str(plugin))
    else:
        raise ArchitectureError(
            f"no plug-in {str(plugin)!r}: give a file that ends in .py, or package.module:function"
        )


def is_function(name: str) -> bool:
    """Whether `name` is spelled `package.module:function`."""
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def exists(module: str) -> bool:
    """Whether there is such a module to import; the packages above it are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # whatever a package above raises, which will be told when it is imported
        return True


def named(name: str) -> EntryPoint | None:
    """The function `package.module:function`, if the user named it."""
    return EntryPoint(name, name, GROUP) if name in _named else None


def named_in(module: str) -> list[str]:
    """The functions of a module that the user named."""
    return sorted(name for name in _named if name.startswith(f"{module}:"))


def _run(path: Path) -> ModuleType:
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path.absolute()):
            return known
        raise ArchitectureError(f"a module {path.stem!r} is at work already: give {path} another name")
    spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
    assert spec is not None  # because of the suffix
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        reason = one_line(error)
        raise ArchitectureError(f"cannot run plug-in {path}: {reason}") from error
    return module


def _builders_in(module: ModuleType) -> list[str]:
    """Functions that the file defines itself, not those it imports: a checkpoint may choose any of them."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", None) == module.__name__
        and _takes_num_classes(value)
    ]


def _takes_num_classes(function: object) -> bool:
    try:
        parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return "num_classes" in parameters
