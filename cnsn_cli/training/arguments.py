"""The arguments of `cnsn_cli.train`, listed once: its signature, docstring and the options of `cnsn train`.

A run keeps some of them in its state, as a Request. This module imports neither torch nor pydantic, so that
`cnsn --help` is quick; the metadata of a field are named as in pydantic, which reads `ge` and `le` there.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cnsn_cli.choices import Precision
from cnsn_cli.task import LARGEST_IMAGE

if TYPE_CHECKING:
    from cnsn_cli.backbones.architecture import Architecture
    from cnsn_cli.training.recipe import Recipe
    from cnsn_cli.training.run import Watch

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")


def about(description: str, **more: Any) -> dict[str, Any]:
    """The metadata of an argument: its help text, and its limits `ge` and `le` where it has some.

    `flags` name its option where `--name` does not; `default` says what None stands for.
    """
    return {"description": description, **more}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments that have a default and are kept in the state of a run."""

    drop: int | None = field(
        default=None,
        metadata=about("In place of --exits: train the sub-model at this detach point alone."),
    )
    freeze_base: str | Path | None = field(
        default=None, metadata=about("A file whose base-model gets sub-models and stays as it is.")
    )
    init: str | Path | None = field(
        default=None,
        metadata=about("Start with the weights in this .safetensors file, of the original network."),
    )
    pretrained: bool = field(
        default=False, metadata=about("Start with the weights that torchvision or timm publish.")
    )
    data_dir: str | Path = field(default="data", metadata=about("Where CIFAR lies, or is downloaded to."))
    skip_bad: bool = field(
        default=False, metadata=about("Leave out images that cannot be read, and list them.")
    )
    device: str = field(default="auto", metadata=about("auto, cpu, cuda or mps."))
    precision: Precision | None = field(
        default=None,
        metadata=about("What convs of a training step compute in.", default="bf16 on CUDA, else fp32"),
    )
    compiled: bool | None = field(
        default=None,
        metadata=about(
            "Let torch.compile fuse the forward pass.", flags="--compile/--no-compile", default="on CUDA"
        ),
    )
    image_size: int | None = field(
        default=None, metadata=about("Side of the images in pixels.", ge=1, le=LARGEST_IMAGE)
    )
    in_channels: int = field(
        default=3, metadata=about("Channels of the images: 3, or 1 for grey.", ge=1, le=64)
    )
    deterministic: bool = field(
        default=False, metadata=about("Repeatable bit for bit on CUDA too, and slower.")
    )
    save_every: str = field(
        default="10m",
        metadata=about("Save the state after so many steps (500) or minutes (10m) too."),
    )


def ignore(event: object) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Arguments(Options):
    """All that `train` takes."""

    arch: "str | Architecture" = field(metadata=about('An architecture, such as "vgg16:width=0.5".'))
    exits: tuple[int, ...] = field(
        metadata=about("Detach points such as (2, 7); () trains the plain baseline.")
    )
    data: str = field(metadata=about("cifar10, cifar100, digits, or a folder with train/ and test/ or val/."))
    recipe: "Recipe" = field(metadata=about("The hyper-parameters, from load_recipe."))
    out: str | Path = field(metadata=about("The run folder."))
    _: KW_ONLY
    classes: int | None = field(
        default=None, metadata=about("Number of classes; an error where the data has others.", ge=1)
    )
    force: bool = field(default=False, metadata=about("Replace what exists."))
    watch: "Watch" = field(
        default=ignore, metadata=about("A function that is told of every event: Started, Step, Epoch.")
    )


# Those that are typed alike on a command line; the others are made of what is typed.
TYPED = [argument for argument in fields(Arguments) if argument.kw_only and argument.name != "watch"]


def help_of(name: str) -> str:
    """The help text of an argument."""
    (found,) = (argument for argument in fields(Arguments) if argument.name == name)
    return str(found.metadata["description"])


def called_like(arguments: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """A decorator: a function of `arguments` is called with the parts of these, and documents each of them.

    Unknown names are a TypeError that lists those that there are.
    """
    signature = inspect.signature(arguments)
    names = list(signature.parameters)

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs.keys() - names:
                raise TypeError(
                    f"{function.__name__} has no argument {name!r}: choose from {', '.join(names)}"
                )
            return function(arguments(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        call.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.getdoc(function)}\n{_described(names)}"
        return call

    return decorate


def _described(names: list[str]) -> str:
    by_name = {argument.name: argument for argument in fields(Arguments)}
    return "".join(f"    {name}: {_sentence(by_name[name])}\n" for name in names)


def _sentence(argument: "Field[Any]") -> str:
    """What is said of an argument in Python, where `--save-every` is `save_every`."""
    text = re.sub(r"--([a-z-]+)", lambda option: f"`{option[1].replace('-', '_')}`", help_of(argument.name))
    if argument.name == "watch" or not argument.kw_only:
        return text
    return f"{text} Default: {argument.metadata.get('default', repr(argument.default))}."
