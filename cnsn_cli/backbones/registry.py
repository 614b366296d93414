"""From strings to architectures: the installed plug-ins, and the functions that the user named.

Commands and functions that take an architecture string look it up here, once, and pass the Architecture on.
This module knows nothing of the networks that an architecture builds. A look-up imports neither a plug-in nor
torch.
"""

from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from cnsn_cli.backbones import arch_string, plugins
from cnsn_cli.backbones.arch_string import Spec
from cnsn_cli.backbones.architecture import Architecture
from cnsn_cli.errors import ArchitectureError

Installed = dict[str, Architecture]


def architectures() -> Installed:
    """Return every installed architecture by its name, sorted.

    Raises ArchitectureError if two distributions provide the same name.
    """
    found: Installed = {}
    for entry in sorted(entry_points(group=plugins.GROUP), key=_natural):
        new = Architecture(entry.name, entry)
        other = found.setdefault(entry.name, new)
        # One distribution can be found twice, as an installation and as a source tree on the path.
        if other is not new and (other.provider, other.entry.value) != (new.provider, entry.value):
            raise ArchitectureError(
                f"two plug-ins are called {entry.name!r}, of {other.provider} and of {new.provider}: "
                "uninstall one of them"
            )
    return found


def _natural(entry: EntryPoint) -> tuple[str, int]:
    letters = entry.name.rstrip("0123456789")
    return letters, int(entry.name[len(letters) :] or 0)


def find(arch: str | Architecture, provider: str | None = None) -> Architecture:
    """Return the architecture that a string names; an Architecture is returned unchanged.

    `provider` is the distribution that a file names for its architecture. Raises ArchitectureError if no
    architecture has this name: the message says that the provider is missing, or lists the most similar
    names.
    """
    if isinstance(arch, Architecture):
        return arch
    return _look_up(arch, arch_string.parse(arch), architectures(), provider)


def find_typed(arch: str) -> Architecture:
    """Like `find`, for a string that the user typed: only such a string may name a function of any module.

    Raises ArchitectureError if the architecture or the module does not exist.
    """
    spec, installed = arch_string.parse(arch), architectures()
    if _names_new_function(spec, installed):
        if not plugins.exists(spec.name):
            near = _near(spec.name, installed)
            hint = f"{near} Else install it" if near else "install it"
            raise ArchitectureError(
                f"no architecture or module {spec.name!r}: {hint}, or give --plugin with the file that "
                "contains it"
            )
        plugins.use_plugin(spec.function)
    return _look_up(arch, spec, installed)


def _names_new_function(spec: Spec, installed: Installed) -> bool:
    """Whether a string must name a function, in a module from which the user has named no function yet."""
    return (
        spec.name not in installed and plugins.is_function(spec.function) and not plugins.named_in(spec.name)
    )


def _look_up(text: str, spec: Spec, installed: Installed, provider: str | None = None) -> Architecture:
    if spec.name in installed:
        return Architecture(text, installed[spec.name].entry, spec.variant, spec.options)
    if entry := plugins.named(spec.function):
        return Architecture(text, entry, options=spec.options)
    raise ArchitectureError(_missing(spec, provider) or _why_unknown(spec, installed))


def _missing(spec: Spec, provider: str | None) -> str | None:
    """A message if `provider` is a distribution that is not installed, or installed in another version."""
    name, _, wanted = (provider or "module").partition(" ")
    if name == "module" or plugins.is_function(spec.function):  # a function is named by the user
        return None
    try:
        here = version(name)
    except (PackageNotFoundError, ValueError):  # ValueError: no name of a distribution
        return f"unknown architecture {spec.name!r}: it needs {provider}, which is not installed"
    if here == wanted:
        return None
    return f"unknown architecture {spec.name!r}: it needs {provider}, and {name} {here} is installed"


def _why_unknown(spec: Spec, installed: Installed) -> str:
    function = spec.function
    if others := plugins.named_in(spec.name):
        return f"no function {function} that takes num_classes: choose from {', '.join(others)}"
    near = _near(spec.name, installed)
    if plugins.is_function(function):
        hint = f" ({near})" if near else ""
        return (
            f"{function} is no installed plug-in{hint}, and code runs only if you name it: "
            f"give --plugin {function}, or --plugin with its file"
        )
    choices = f"choose from {', '.join(installed)}"
    return f"unknown architecture {spec.name!r}: {near or choices}"


def _near(name: str, installed: Installed) -> str:
    near = get_close_matches(name.lower(), installed, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else ""
