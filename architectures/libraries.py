"""The classifiers of torchvision and timm, as they are: cnsn finds their units by itself.

They are built without weights. `--pretrained` fetches those, where they can be had.
"""

from difflib import get_close_matches
from typing import Any

from torch import nn

RESERVED = (
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "progress",
)
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")  # their second and third classifiers are for training only


def torchvision(
    num_classes: int, in_channels: int, image_size: int, variant: str | None, **options: Any
) -> nn.Module:
    """`torchvision:resnet50`: a classifier of torchvision.models; options go to its builder."""
    from torchvision import models

    name = _known("torchvision", variant, models.list_models(module=models))
    if in_channels != 3:
        raise ValueError(f"the networks of torchvision take 3 channels, not {in_channels}")
    if name in WITHOUT_AUXILIARY:
        options = {"aux_logits": False, "init_weights": True, **options}
    builder = models.get_model_builder(name)
    network: nn.Module = builder(weights=None, num_classes=num_classes, **_allowed(options))
    return network


def timm(
    num_classes: int, in_channels: int, image_size: int, variant: str | None, **options: Any
) -> nn.Module:
    """`timm:convnext_tiny`: a classifier of timm; options go to its builder."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("timm is not installed: pip install 'cnsn-cli[timm]'") from error
    name = _known("timm", variant and variant.partition(".")[0], timm.list_models())
    builder = timm.models.model_entrypoint(name)
    network: nn.Module = builder(
        pretrained=False, num_classes=num_classes, in_chans=in_channels, **_allowed(options)
    )
    return network


def _known(library: str, variant: str | None, names: list[str]) -> str:
    if variant is None:
        raise ValueError(f"say which network, as in {library}:resnet50")
    if variant not in names:
        near = ", ".join(get_close_matches(variant, names, n=3, cutoff=0.5))
        raise ValueError(f"{library} has no {variant!r}" + (f": did you mean {near}?" if near else ""))
    return variant


def _allowed(options: dict[str, Any]) -> dict[str, Any]:
    """An architecture string comes out of files too, and must not fetch anything."""
    for key in options:
        if key in RESERVED:
            raise ValueError(f"{key!r} is no option here: weights come with --pretrained or --init")
    return options
