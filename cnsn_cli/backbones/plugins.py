"""Code that the user names: functions in modules and in files that build networks.

`--plugin` and `use_plugin` record functions here, and the registry looks them up. A model file can name only
a function that is recorded here or an installed plug-in. This module knows no options and builds nothing.
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
_named: set[str] = set()  # `module:function`, until the process ends


def use_plugin(plugin: str | Path) -> None:
    """Allow architecture strings to name your own functions that build networks.

    `plugin` is `package.module:function` or the path of a Python file. The file is run; then a string can
    name every function in it that takes `num_classes`: `my_nets:plain` is the function `plain` in
    `my_nets.py`.
    Raises ArchitectureError if the module does not exist or the file cannot be run.
    """
    path = Path(plugin)
    if path.suffix == ".py":
        _named.update(f"{path.stem}:{name}" for name in _builders_in(_run(path)))
    elif is_function(str(plugin)):
        module = str(plugin).partition(":")[0]
        if not exists(module):
            raise ArchitectureError(
                f"no module {module!r}: install it, or give --plugin with the file that contains it"
            )
        _named.add(str(plugin))
    else:
        raise ArchitectureError(
            f"no plug-in {str(plugin)!r}: give a file that ends in .py, or package.module:function"
        )


def is_function(name: str) -> bool:
    """Whether `name` has the form `package.module:function`."""
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def exists(module: str) -> bool:
    """Whether the module can be found; this imports the packages that contain it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # any error of a package; importing the module reports it later
        return True


def named(name: str) -> EntryPoint | None:
    """Return the function `package.module:function` if the user named it, else None."""
    return EntryPoint(name, name, GROUP) if name in _named else None


def named_in(module: str) -> list[str]:
    """Return the functions of a module that the user named, sorted."""
    return sorted(name for name in _named if name.startswith(f"{module}:"))


def _run(path: Path) -> ModuleType:
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(path.absolute()):
            return known
        raise ArchitectureError(f"a module {path.stem!r} is in use already: give {path} another name")
    spec = importlib.util.spec_from_file_location(path.stem, path.absolute())
    assert spec is not None  # a path that ends in .py has a spec and a loader
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
    """List the functions that the file itself defines; a model file may name any function in this list."""
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
