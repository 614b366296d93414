"""An architecture as a value: the function that builds its networks, and the options for this function.

The registry makes an Architecture from a string, once. Commands, training and files build with the value
and look nothing up again. This module knows no other architecture and no exits. It imports torch when a
plug-in is needed, not before.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from io import StringIO
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from cnsn_cli.errors import ArchitectureError, one_line
from cnsn_cli.stages import stage
from cnsn_cli.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cnsn_cli.backbones.backbone import Backbone

STANDARD_ARGUMENTS = ("num_classes", "in_channels", "image_size")
RESERVED = (*STANDARD_ARGUMENTS, "variant", "pretrained")  # an architecture string cannot set them

_made: "WeakSet[nn.Module]" = WeakSet()  # networks that plug-ins returned so far


@dataclass(frozen=True)
class Architecture:
    """An architecture string after its look-up.

    `text` is the string as given (`vgg16:width=0.5`), and `entry` is the plug-in that the string names.
    `variant` is the network that the plug-in shall build (`resnet50` in `torchvision:resnet50`), and
    `options` are the options that the string sets. All methods import the plug-in, and so torch; they raise
    ArchitectureError if this import fails.
    """

    text: str
    entry: EntryPoint
    variant: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the plug-in: `vgg16`, `torchvision`, or `module:function`."""
        return self.entry.name

    @property
    def provider(self) -> str:
        """The distribution of the plug-in, with its version; without a distribution, its module."""
        dist = self.entry.dist
        return f"{dist.name} {dist.version}" if dist else f"module {self.entry.module}"

    def defaults(self) -> dict[str, Any]:
        """The named options of the plug-in and their defaults; an option without a default has None."""
        return {
            name: None if parameter.default is parameter.empty else parameter.default
            for name, parameter in self._parameters().items()
            if name not in RESERVED
            and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        }

    @property
    def takes_any(self) -> bool:
        """Whether the plug-in takes any option and passes it on, so that the valid names are unknown."""
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters().values())

    def narrowing(self) -> tuple[str, float, bool]:
        """The option that narrows the networks of the plug-in, its value, and whether it is a whole number.

        The plug-in names the option in an attribute `narrows`; a plug-in of several networks has a table
        there, from the network to the option and its default. Raises ArchitectureError if there is none.
        """
        narrows = getattr(self._import_builder(), "narrows", None)
        if isinstance(narrows, Mapping):
            name, default = narrows.get(self.variant, (None, None))
        else:
            name, default = narrows, self.defaults().get(str(narrows))
        value = self.options.get(str(name), default)
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise ArchitectureError(
                f"{self.text} has no option that narrows it: give detach points alone, or let the plug-in "
                "name the option in an attribute `narrows` (see docs/plugins.md)"
            )
        return name, value, isinstance(default, int)

    def build(self, task: Task) -> "Backbone":
        """Build the backbone for the images and classes of `task`, with random weights.

        Raises ArchitectureError if an option is unknown, if the plug-in raises an error, or if it returns
        neither a Backbone nor a network that can become a Backbone.
        """
        from torch import nn

        from cnsn_cli.backbones.tracing.equivalence import check_same

        with stage(f"building {self.text}"):
            backbone, made = self._build(task)
        if isinstance(made, nn.Module):
            with stage("comparing its pieces with the whole network"):
                check_same(made, backbone, task)
        return backbone

    def build_blank(self, task: Task) -> "Backbone":
        """Build the backbone on the meta device: shapes without weights. Raises errors like `build`."""
        from cnsn_cli.backbones.meta import blank, emptied

        with blank():  # type: ignore[no-untyped-call]
            backbone, _ = self._build(task)
        emptied(backbone.units, backbone.head)
        return backbone

    def pretrained(self, task: Task) -> "dict[str, Tensor]":
        """Return the published weights of the architecture, under their names in the original network.

        The plug-in may download the weights. Raises ArchitectureError if no weights are published, or if
        they cannot be loaded.
        """
        from torch import nn

        if "pretrained" not in self._parameters():
            raise ArchitectureError(
                f"{self.name} has no pretrained weights: give a file of weights with --init"
            )
        try:
            with _quiet_library(), stage(f"getting the published weights of {self.text}"):
                made = self._import_builder()(**self._arguments(task), pretrained=True)
        except Exception as error:  # any error of a library, for example without internet access
            raise ArchitectureError(
                f"cannot get pretrained weights of {self.text!r}: {one_line(error)}; "
                "give a file of weights with --init"
            ) from error
        assert isinstance(made, nn.Module)
        return dict(made.state_dict())

    def _build(self, task: Task) -> "tuple[Backbone, object]":
        """Build the backbone; return it, and the object that the plug-in returned."""
        from torch import nn

        from cnsn_cli.backbones.backbone import Backbone
        from cnsn_cli.backbones.tracing.units import traced

        arguments = self._arguments(task)
        try:
            backbone = made = self._import_builder()(**arguments)
            if isinstance(made, nn.Module):
                _check_new(made)
                backbone = traced(made, task)
        except Exception as error:
            reason = one_line(error)
            raise ArchitectureError(f"cannot build {self.text!r} of {self.provider}: {reason}") from error
        if not isinstance(backbone, Backbone):
            kind = type(backbone).__name__
            raise ArchitectureError(f"{self._plugin} returned {kind}, not a Backbone or a torch module")
        return backbone, made

    def _arguments(self, task: Task) -> dict[str, Any]:
        """The arguments for the plug-in: its options, and the standard arguments that it takes."""
        parameters = self._parameters()
        if not self.takes_any and "num_classes" not in parameters:
            raise ArchitectureError(f"{self._plugin} takes no num_classes")
        self._check_options()
        standard = {key: getattr(task, key) for key in STANDARD_ARGUMENTS if key in parameters}
        if self.takes_any:
            standard["num_classes"] = task.num_classes
        if "variant" in parameters:
            standard["variant"] = self.variant
        elif self.variant:
            raise ArchitectureError(
                f"cannot read {self.variant!r} in {self.text!r}: write name:key=value,key=value"
            )
        return {**standard, **self.options}

    def _check_options(self) -> None:
        valid = self.defaults()
        for key in self.options:
            if key in RESERVED or not (self.takes_any or key in valid):
                choices = "the options of its builder" if self.takes_any else ", ".join(valid) or "none"
                raise ArchitectureError(f"{self.name} has no option {key!r}: choose from {choices}")

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self._import_builder()).parameters
        except ValueError as error:  # a function written in C has no signature
            raise ArchitectureError(f"{self._plugin}: {error}") from error

    def _import_builder(self) -> Callable[..., object]:
        """Import the plug-in: the function that builds the network."""
        try:
            builder: Callable[..., object] = self.entry.load()
        except Exception as error:
            raise ArchitectureError(f"cannot import {self._plugin}: {one_line(error)}") from error
        if not callable(builder):
            raise ArchitectureError(f"{self._plugin} is no function")
        return builder

    @property
    def _plugin(self) -> str:
        """The plug-in's name in messages."""
        return f"plug-in {self.name!r} of {self.provider}"


def _check_new(made: "nn.Module") -> None:
    """Raise ValueError if a plug-in returned this network before: its layers belong to another model."""
    if made in _made:
        raise ValueError("it returned the same network again: let it build a new one each time")
    _made.add(made)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Libraries' stdout (the download URL) goes to stderr; their warnings and progress bars are dropped."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
