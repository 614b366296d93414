"""The classifiers of torchvision and timm, unchanged: cnsn finds their units itself.

The classifiers are built with random weights; only `--pretrained` downloads weights.
"""

from difflib import get_close_matches
from typing import Any

from torch import nn

FETCHING = ("pretrained", "weights", "checkpoint", "cache", "progress", "url")
LARGEST_NUMBER = 10_000  # in an option: torch draws a number per layer before it makes a layer
LARGEST_SIZE = 1_024  # pixels, as for every image: tables of maxvit grow with the square of the size
# The option that narrows a network, and its default in the library.
OF_TORCHVISION = {
    "mobilenet_v2": ("width_mult", 1.0),
    "mobilenet_v3_large": ("width_mult", 1.0),
    "mobilenet_v3_small": ("width_mult", 1.0),
    "resnet50": ("width_per_group", 64),
    "resnet101": ("width_per_group", 64),
    "resnet152": ("width_per_group", 64),
}
OF_TIMM = {
    "resnet26": ("base_width", 64),
    "resnet26d": ("base_width", 64),
    "resnet50": ("base_width", 64),
    "resnet101": ("base_width", 64),
    "seresnet50": ("base_width", 64),
    "wide_resnet50_2": ("base_width", 128),
}
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")  # their auxiliary classifiers are for training only


def torchvision(
    num_classes: int,
    in_channels: int,
    image_size: int,
    variant: str | None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a classifier of torchvision.models (`torchvision:resnet50`); options go to its builder.

    With `pretrained` it has weights for the classes of ImageNet. Raises ValueError if there is no such
    classifier, if an option is not allowed, or if `in_channels` is not 3.
    """
    from torchvision import models

    _check(options)
    name = _known("torchvision", variant, models.list_models(module=models))
    if in_channels != 3:
        raise ValueError(f"the networks of torchvision take 3 channels, not {in_channels}")
    builder = models.get_model_builder(name)
    network: nn.Module
    if pretrained:
        network = builder(weights="DEFAULT", progress=False, **options)
        return network
    if name in WITHOUT_AUXILIARY:  # without init_weights they warn that initial weights will change
        options = {"aux_logits": False, "init_weights": True, **options}
    network = builder(weights=None, num_classes=num_classes, **options)
    return network


def timm(
    num_classes: int,
    in_channels: int,
    image_size: int,
    variant: str | None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a classifier of timm (`timm:convnext_tiny`); options go to its builder.

    With `pretrained` it has weights for the classes that it was trained on; a tag chooses the weights, as in
    `timm:convnext_tiny.fb_in22k`. Raises ModuleNotFoundError if timm is not installed, and ValueError if
    there is no such classifier or an option is not allowed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm is not installed: pip install 'cnsn-cli[timm]'") from error
    _check(options)
    name = _known("timm", variant and variant.partition(".")[0], timm.list_models())
    network: nn.Module
    if pretrained:
        network = timm.create_model(str(variant), pretrained=True, in_chans=in_channels, **options)
        return network
    build = timm.models.model_entrypoint(name)
    network = build(pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)
    return network


def _known(library: str, variant: str | None, names: list[str]) -> str:
    if variant is None:
        raise ValueError(f"say which network, as in {library}:resnet50")
    if variant not in names:
        near = ", ".join(get_close_matches(variant, names, n=3, cutoff=0.5))
        raise ValueError(f"{library} has no {variant!r}" + (f": did you mean {near}?" if near else ""))
    return variant


def _check(options: dict[str, Any]) -> None:
    """Raise ValueError for options that download something or fill the memory.

    Architecture strings come from model files too, and model files may come from strangers.
    """
    for key, value in options.items():
        if any(word in key for word in FETCHING):
            raise ValueError(f"{key!r} is no option here: weights come with --pretrained or --init")
        is_size = key.endswith("size")
        what, limit = ("a size", LARGEST_SIZE) if is_size else ("a number in an option", LARGEST_NUMBER)
        if _largest(value) > limit:
            raise ValueError(f"{key} = {value!r}: {what} is at most {limit:,}")


def _largest(value: Any) -> float:
    """The largest number in an option; lengths and items of nested values count."""
    if isinstance(value, list | tuple | set | dict):
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return max([len(value), *map(_largest, items)])
    return abs(value) if isinstance(value, int | float) else 0


torchvision.narrows = OF_TORCHVISION  # type: ignore[attr-defined]
timm.narrows = OF_TIMM  # type: ignore[attr-defined]
