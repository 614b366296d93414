"""The classifiers of torchvision and timm, as they are: cnsn finds their units by itself.

They are built without weights; only `--pretrained` fetches some.
"""

from difflib import get_close_matches
from typing import Any

from torch import nn

FETCHING = ("pretrained", "weights", "checkpoint", "cache", "progress", "url")
LARGEST_NUMBER = 10_000  # an option: torch draws a number per layer before the first layer is made
LARGEST_SIZE = 1_024  # pixels, as for every image: maxvit makes tables that grow with its square
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")  # their other classifiers are for training only


def torchvision(
    num_classes: int,
    in_channels: int,
    image_size: int,
    variant: str | None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """`torchvision:resnet50`: a classifier of torchvision.models; options go to its builder.

    `pretrained` ones know the classes of ImageNet.
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
    if name in WITHOUT_AUXILIARY:  # and they would warn that they are about to start with other weights
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
    """`timm:convnext_tiny`: a classifier of timm; options go to its builder.

    `pretrained` ones know the classes that they were trained on; a tag says which weights it shall be, as in
    `timm:convnext_tiny.fb_in22k`.
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
    """An architecture string comes out of files too: it must not fetch anything, or fill the memory."""
    for key, value in options.items():
        if any(word in key for word in FETCHING):
            raise ValueError(f"{key!r} is no option here: weights come with --pretrained or --init")
        is_size = key.endswith("size")
        what, limit = ("a size", LARGEST_SIZE) if is_size else ("a number in an option", LARGEST_NUMBER)
        if _largest(value) > limit:
            raise ValueError(f"{key} = {value!r}: {what} is at most {limit:,}")


def _largest(value: Any) -> float:
    """The largest number in an option; a nested one counts whole."""
    if isinstance(value, list | tuple | set | dict):
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return max([len(value), *map(_largest, items)])
    return abs(value) if isinstance(value, int | float) else 0
