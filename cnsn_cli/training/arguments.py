"""The arguments of `cnsn_cli.train`, listed once.

The signature and the docstring of `train`, the options of `cnsn train` and the class Request are made from
this list. This module imports neither torch nor pydantic, so that `cnsn --help` is quick, and does not know
what the arguments do. The metadata of a field have the names of pydantic, which reads `ge` and `le` there.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cnsn_cli.choices import Compile, Precision
from cnsn_cli.files.hub import path_of
from cnsn_cli.task import LARGEST_IMAGE

if TYPE_CHECKING:
    from cnsn_cli.backbones.architecture import Architecture
    from cnsn_cli.exits import Exit
    from cnsn_cli.training.recipe import Recipe
    from cnsn_cli.training.run import Watch

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")


def about(description: str, **more: Any) -> dict[str, Any]:
    """The metadata of an argument: its help text, and some of the keys that follow.

    `ge` and `le` are the limits of its values, and `parser` makes a value from the text of its option.
    `flags` are the names of the option if they are not `--name`. `default` says what the default None means:
    only for fields that Request declares again, as pydantic has a `default` of its own.
    """
    return {"description": description, **more}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments that have a default and are kept in the state of a run."""

    drop: int | str | None = field(
        default=None,
        metadata=about("Train only this sub-model, such as 7 or 7@0.5, by itself; replaces --exits."),
    )
    freeze_base: str | Path | None = field(
        default=None,
        metadata=about(
            "A file, or hf://user/repo/file, whose base-model stays unchanged; only new sub-models are "
            "trained.",
            parser=path_of,
        ),
    )
    init: str | Path | None = field(
        default=None,
        metadata=about(
            "A .safetensors file with weights of the original network, to start from, or "
            "hf://user/repo/file; all names may have a prefix such as module.",
            parser=path_of,
        ),
    )
    pretrained: bool = field(
        default=False, metadata=about("Start from the weights that torchvision or timm publish.")
    )
    image_column: str | None = field(
        default=None, metadata=about("The column that has the images of a table.csv or of hf:.")
    )
    label_column: str | None = field(
        default=None, metadata=about("The column that has the classes of a table.csv or of hf:.")
    )
    test_data: str | Path | None = field(
        default=None, metadata=about("Another table.csv, with the test images.")
    )
    data_dir: str | Path = field(
        default="data", metadata=about("The folder that CIFAR is read from or downloaded to.")
    )
    skip_bad: bool = field(
        default=False, metadata=about("Leave out images that cannot be read, and list them.")
    )
    limit_images: int | None = field(
        default=None,
        metadata=about(
            "Use only so many training images and test images, for a first look; each class keeps a share.",
            ge=1,
        ),
    )
    device: str = field(default="auto", metadata=about("The device to run on: auto, cpu, cuda or mps."))
    precision: Precision | None = field(
        default=None,
        metadata=about(
            "The number format of convs in a training step. A CPU with instructions for bf16 is up to 1.5 "
            "times as fast with it, except for depthwise convs.",
            default="bf16 where it is faster",
        ),
    )
    compiled: Compile = field(
        default="auto",
        metadata=about(
            "Let torch.compile fuse the forward pass: auto, on or off; auto: on CUDA, if a run is so long "
            "that it gains.",
            flags="--compile",
        ),
    )
    capture: bool = field(
        default=True,
        metadata=about(
            "On CUDA, start all kernels of a step at once, as one graph.", flags="--capture/--no-capture"
        ),
    )
    image_size: int | None = field(
        default=None, metadata=about("Height and width of the images in pixels.", ge=1, le=LARGEST_IMAGE)
    )
    in_channels: int = field(
        default=3, metadata=about("Channels of the images: 3, or 1 for grey.", ge=1, le=64)
    )
    deterministic: bool = field(
        default=False, metadata=about("Make results repeatable bit for bit also on CUDA; slower.")
    )
    save_every: str = field(
        default="10m",
        metadata=about("Also save within an epoch, after steps (500) or minutes (10m)."),
    )
    track: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Also record the run with tensorboard, mlflow, wandb, trackio or a tracker of your own; can be "
            "given several times.",
        ),
    )


def ignore(event: object) -> None:
    """The default of `watch`: does nothing."""


@dataclass(frozen=True)
class Arguments(Options):
    """All arguments of `train`."""

    arch: "str | Architecture" = field(metadata=about('An architecture, such as "vgg16:width=0.5".'))
    exits: "tuple[int | str | Exit, ...]" = field(
        metadata=about('The sub-models, such as (2, 7, "@0.5"); () trains the plain baseline.')
    )
    data: str = field(
        metadata=about(
            "A data set: cifar10, cifar100, digits, a folder with train/ and test/ or val/, a table.csv, or "
            "hf:NAME-OR-FOLDER."
        )
    )
    recipe: "Recipe" = field(metadata=about("The hyper-parameters, from load_recipe."))
    out: str | Path = field(metadata=about("The run folder."))
    _: KW_ONLY
    classes: int | None = field(
        default=None, metadata=about("Number of classes; an error if the data has another number.", ge=1)
    )
    force: bool = field(default=False, metadata=about("Replace existing files."))
    profile: bool = field(
        default=False, metadata=about("Write trace.json, a trace of some steps that ui.perfetto.dev opens.")
    )
    watch: "Watch" = field(
        default=ignore,
        metadata=about("A function that is called with every event: Started, Step, Epoch, TrackerFailed."),
    )


# Arguments that an option can give as they are. `cnsn train` makes the other arguments from what users type.
TYPED = [argument for argument in fields(Arguments) if argument.kw_only and argument.name != "watch"]


def help_of(name: str) -> str:
    """The help text of an argument."""
    (found,) = (argument for argument in fields(Arguments) if argument.name == name)
    return str(found.metadata["description"])


def called_like(arguments: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """A decorator for a function whose one parameter is an `arguments` object.

    The decorated function takes the fields of `arguments` as its parameters, and its docstring describes each
    of them. An unknown name raises a TypeError that lists the known names.
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
        del call.__wrapped__  # tools would show its signature and docstring in place of these
        return call

    return decorate


def _described(names: list[str]) -> str:
    by_name = {argument.name: argument for argument in fields(Arguments)}
    return "".join(f"    {name}: {_sentence(by_name[name])}\n" for name in names)


def _sentence(argument: "Field[Any]") -> str:
    """The help text of an argument for Python users, who write `exits` and not `--exits`, and its default."""
    text = re.sub(r"--([a-z-]+)", lambda option: f"`{option[1].replace('-', '_')}`", help_of(argument.name))
    if argument.name == "watch" or not argument.kw_only:
        return text
    return f"{text} Default: {argument.metadata.get('default', repr(argument.default))}."
