"""Which networks of torchvision and timm can be taken to pieces? Writes docs/ARCHITECTURES.md.

python benchmarks/architectures.py

Each network is built without weights, for images of the size that it is published for. The script takes 10
minutes on 2 cores; the largest network takes 10 GB of memory.
"""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torchvision import models

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.errors import CnsnError
from cnsn_cli.evaluation.costs import model_costs
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

TABLE = Path(__file__).parents[1] / "docs" / "ARCHITECTURES.md"
TORCHVISION = models.list_models(module=models)
TIMM = [
    "bat_resnext26ts", "botnet26t_256", "coatnet_0_rw_224", "convmixer_768_32", "convnext_tiny",
    "convnextv2_nano", "cspdarknet53", "cspresnet50", "darknet53", "densenet121", "dla34", "dm_nfnet_f0",
    "dpn68", "eca_nfnet_l0", "ecaresnet26t", "edgenext_xx_small", "efficientnet_b0",
    "efficientnetv2_rw_t", "efficientvit_b0", "ese_vovnet19b_dw", "fastvit_t8", "fbnetc_100",
    "focalnet_tiny_srf", "gernet_s", "ghostnet_100", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_tiny", "inception_resnet_v2", "inception_v4", "lambda_resnet26t", "lcnet_050",
    "legacy_xception", "mambaout_femto", "mixnet_s", "mnasnet_100", "mobilenetv2_100",
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "nf_regnet_b0",
    "poolformer_s12", "rdnet_tiny", "regnetx_002", "regnety_002", "regnetz_b16", "repghostnet_050",
    "repvgg_a0", "repvit_m1", "res2net50_26w_4s", "resnest14d", "resnet26d", "resnet50", "resnetblur50",
    "resnetv2_50", "resnext50_32x4d", "rexnet_100", "selecsls42", "seresnet50", "skresnet18",
    "spnasnet_100", "starnet_s1", "tf_efficientnet_lite0", "tinynet_a", "tresnet_m", "vgg11_bn",
    "visformer_tiny", "xception41",
]  # fmt: skip


def row(library: str, name: str) -> str:
    """A line of the table. For a network that cannot be cut, it has the reason instead of figures."""
    size = image_size(library, name)
    task = Task.plain(classes=1000, image_size=size)
    try:
        backbone = registry.find(f"{library}:{name}").build_blank(task)
        points = detach_points(backbone, task.image_shape)
        middle = points[len(points) // 2].drops
        with torch.device("meta"):
            network = Cnsn(backbone, (middle,), task)
    except CnsnError as error:
        reason = str(error).partition(f"of {registry.find(library).provider}: ")[2] or str(error)
        return f"| {name} | {size} | | | | | {reason.replace('|', '/')} |"
    base, cut = (cost.macs / 1e9 for cost in model_costs(network))
    counts = f"{len(backbone.units)} | {sum(backbone.conv_counts)} | {len(points)}"
    return f"| {name} | {size} | {counts} | {base:.2f} | {middle}: {cut:.2f} |"


def image_size(library: str, name: str) -> int:
    if library == "timm":
        return int(timm.get_pretrained_cfg(name).input_size[-1])
    return int(models.get_model_weights(name).DEFAULT.transforms().crop_size[0])


def table(library: str, names: list[str]) -> str:
    rows = []
    for name in names:
        start = time.perf_counter()
        rows.append(row(library, name))
        print(f"{rows[-1]} {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    cut = sum(" | | | " not in line for line in rows)
    return "\n".join(
        [
            f"## {library} {version(library).partition('+')[0]}: {cut} of {len(names)} can be detached from",
            "",
            "| network | pixels | units | convs | detach points | GMACs | middle cut, or why there is none |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


INTRODUCTION = """# Networks of torchvision and timm

`python benchmarks/architectures.py` writes this page. *Units* are the pieces that cnsn found. *Convs*
are the convs on the longest path up to the last place where the later layers need one feature map and
nothing else of the images. The *middle cut* shows *k*, the number of convs that the cut drops, and the
GMACs that remain. Every network has 1,000 classes and takes images of the size for which it is
published. `cnsn archs NAME --why --image-size S` says for every border whether it is a detach point, and
if not, why. You can try a network of timm that is not listed in a second: `cnsn archs timm:NAME`. If
torch.fx cannot take a network to pieces, a plug-in can: [plugins.md](plugins.md)."""


if __name__ == "__main__":
    parts = [INTRODUCTION, table("torchvision", TORCHVISION), table("timm", TIMM)]
    TABLE.write_text("\n\n".join(parts) + "\n")
