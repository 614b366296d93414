"""Is a training step on the CPU faster in bf16? It depends on the architecture: see network/precision.py.

Every row is a bare step (forward pass, losses, backward pass, SGD) of a network with one sub-model, whose cut
is a third of the way through the network. The batch holds 32 images of 64 px, or of 32 px for VGG and ResNet.
"""

import argparse
import statistics

import torch
from step import bare_step
from timing import interleave, markdown, ratio, report

from cnsn_cli.backbones import registry
from cnsn_cli.backbones.detach_points import detach_points
from cnsn_cli.choices import Precision
from cnsn_cli.network.memory_format import place
from cnsn_cli.network.network import Cnsn
from cnsn_cli.network.precision import fastest_precision
from cnsn_cli.task import Task

CPU, BATCH = torch.device("cpu"), 32
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
ARCHS = (
    "vgg16", "vgg16:width=0.25", "vgg11:width=0.25", "resnet20", "resnet110:width=0.25",
    "torchvision:resnet18", "torchvision:resnext50_32x4d", "torchvision:densenet121",
    "torchvision:squeezenet1_1", "torchvision:convnext_tiny", "torchvision:mobilenet_v2",
    "torchvision:mnasnet0_5", "torchvision:shufflenet_v2_x1_0", "torchvision:efficientnet_b0",
)  # fmt: skip


def built(arch: str) -> Cnsn:
    task = Task.plain(image_size=64 if arch.startswith("torchvision:") else 32)
    backbone = registry.find(arch).build(task)
    points = sorted(point.drops for point in detach_points(backbone, task.image_shape))
    return place(Cnsn(backbone, (points[len(points) // 3],), task), CPU).train()


def row(arch: str, rounds: int) -> list[str]:
    network = built(arch)
    images, labels = torch.randn(BATCH, *network.task.image_shape), torch.randint(10, (BATCH,))
    steps = {precision: bare_step(network, images, labels, precision) for precision in PRECISIONS}
    times = interleave(steps, rounds)
    medians = [f"{1e3 * statistics.median(seconds):.1f}" for seconds in times.values()]
    faster = f"{ratio(times, 'bf16', 'fp32'):.2f}, {min(times['fp32']) / min(times['bf16']):.2f}"
    return [arch, *medians, faster, fastest_precision(network, CPU)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--archs", nargs="*", default=ARCHS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    given = parser.parse_args()
    columns = ["network", "fp32, ms", "bf16, ms", "bf16 is faster by (medians, minima)", "default here"]
    table = markdown(columns, [row(arch, given.rounds) for arch in given.archs])
    report("precision", table, given.write)


if __name__ == "__main__":
    main()
