"""Every operator that holds weights or multiplies matrices, counted by hand and by torch's own counter."""

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnsn_cli.backbones.backbone import Backbone
from cnsn_cli.evaluation.costs import check_macs, count, model_costs
from cnsn_cli.network.network import Cnsn
from cnsn_cli.task import Task

IMAGE = (3, 8, 8)
TOKENS, CHANNELS = 64, 3  # an image as a sequence of its pixels


class Layer(nn.Module):
    """Images (N, 3, 8, 8) -> images, changed by the mean of what `function` returns for them."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        features = self.function(self, images)
        return images + features.flatten(1).mean(1)[:, None, None, None]


def tokens(images: Tensor) -> Tensor:
    """(N, 3, 8, 8) -> (N, 64, 3)."""
    return images.flatten(2).transpose(1, 2)


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def network_of(layer: nn.Module) -> Cnsn:
    """The layer, a conv without bias and a linear layer: 64 * 27 and 3 MACs more."""
    units = nn.Sequential(layer, nn.Conv2d(3, 3, 3, padding=1, bias=False))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    task = Task.plain(classes=1, image_size=8)
    return Cnsn(Backbone(units, head, (0, 1)), (), task).eval()


SURROUNDINGS = 64 * 3 * 27 + 3

# Name -> the layer, and its MACs by hand.
PRODUCTS: dict[str, tuple[Layer, int]] = {
    "padding as a word": (
        Layer(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 8, 3, padding="same")),
        64 * 8 * 3 * 9,
    ),
    "padding as a word, in a function": (
        Layer(lambda s, x: F.conv2d(x, s.weight, padding="valid"), weight=weights(4, 3, 3, 3)),
        36 * 4 * 3 * 9,
    ),
    "grouped": (
        Layer(lambda s, x: s.conv(x), conv=nn.Conv2d(3, 6, 3, padding="same", groups=3)),
        64 * 6 * 1 * 9,
    ),
    "transposed": (
        Layer(lambda s, x: s.conv(x), conv=nn.ConvTranspose2d(3, 5, 2, 2)),
        64 * 3 * 5 * 4,  # each input pixel gives 5 channels of 2 x 2
    ),
    "conv of sequences": (
        Layer(lambda s, x: s.conv(x.flatten(2)), conv=nn.Conv1d(3, 4, 5, padding=2)),
        64 * 4 * 3 * 5,
    ),
    "linear": (Layer(lambda s, x: s.linear(tokens(x)), linear=nn.Linear(3, 7)), 64 * 3 * 7),
    "x @ y": (Layer(lambda s, x: tokens(x) @ s.w, w=weights(3, 7)), 64 * 3 * 7),
    "matmul, broadcast": (
        Layer(lambda s, x: torch.matmul(tokens(x)[:, None], s.w), w=weights(4, 3, 7)),
        4 * 64 * 3 * 7,
    ),
    "bmm": (Layer(lambda s, x: torch.bmm(tokens(x), s.w), w=weights(1, 3, 7)), 64 * 3 * 7),
    "baddbmm": (
        Layer(lambda s, x: torch.baddbmm(s.b, tokens(x), s.w), b=weights(1, 64, 7), w=weights(1, 3, 7)),
        64 * 3 * 7,
    ),
    "addmm": (
        Layer(lambda s, x: torch.addmm(s.b, tokens(x)[0], s.w)[None], b=weights(7), w=weights(3, 7)),
        64 * 3 * 7,
    ),
    "einsum": (Layer(lambda s, x: torch.einsum("nct,cd->ntd", x.flatten(2), s.w), w=weights(3, 7)), 64 * 21),
    "einsum with a batch": (
        Layer(lambda s, x: torch.einsum("bhtc,bhsc->bhts", tokens(x)[:, None], tokens(x)[:, None])),
        64 * 64 * 3,
    ),
    "tensordot": (Layer(lambda s, x: torch.tensordot(tokens(x), s.w, 1), w=weights(3, 7)), 64 * 3 * 7),
    "attention": (
        Layer(lambda s, x: F.scaled_dot_product_attention(*[tokens(x)[:, None]] * 3)),
        64 * 64 * (3 + 3),
    ),
    "multi-head attention": (
        Layer(lambda s, x: s.m(*[tokens(x)] * 3)[0], m=nn.MultiheadAttention(3, 1, batch_first=True)),
        64 * 3 * 9 + 64 * 64 * 6 + 64 * 9,  # q, k and v; attention; the projection of its output
    ),
    "a transformer's layer": (
        Layer(lambda s, x: s.layer(tokens(x)), layer=nn.TransformerEncoderLayer(3, 1, 8, batch_first=True)),
        64 * 3 * 9 + 64 * 64 * 6 + 64 * 9 + 2 * 64 * 3 * 8,
    ),
    "LSTM": (
        Layer(lambda s, x: s.m(tokens(x))[0], m=nn.LSTM(3, 5, batch_first=True)),
        64 * (4 * 5) * (3 + 5),  # four gates from the input and the state
    ),
    "GRU in both directions": (
        Layer(lambda s, x: s.m(tokens(x))[0], m=nn.GRU(3, 5, batch_first=True, bidirectional=True)),
        2 * 64 * (3 * 5) * (3 + 5),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_macs_by_hand(name):
    layer, macs = PRODUCTS[name]
    network = network_of(layer)
    costs = model_costs(network)
    assert costs[0].macs == macs + SURROUNDINGS
    assert check_macs(network, costs) == []


UNKNOWN_TO_TORCH = {
    "bilinear": (Layer(lambda s, x: s.m(tokens(x), tokens(x)), m=nn.Bilinear(3, 3, 2)), 64 * 2 * 3 * 3),
    "matrix times vector": (Layer(lambda s, x: torch.matmul(tokens(x), s.w), w=weights(3)), 64 * 3),
}


@pytest.mark.parametrize("name", UNKNOWN_TO_TORCH)
def test_what_the_counter_of_torch_misses_is_said(name):
    layer, macs = UNKNOWN_TO_TORCH[name]
    network = network_of(layer)
    (cost,) = model_costs(network)
    assert cost.macs == macs + SURROUNDINGS
    assert check_macs(network, [cost]) == [("base", cost.macs, SURROUNDINGS)]


ELEMENTS = 3 * 8 * 8
ACTIVATIONS: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module, in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "method": Tensor.relu,
    "torch": torch.relu,
    "clamp": lambda x: x.clamp(min=0),
    "relu6": F.relu6,
    "ReLU6": nn.ReLU6(),
    "leaky": F.leaky_relu,
    "PReLU": nn.PReLU(),
    "selu": F.selu,
    "celu": F.celu,
    "elu": nn.ELU(),
    "silu": nn.SiLU(),
    "gelu": F.gelu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "softplus": nn.Softplus(),
    "threshold": nn.Threshold(0.1, 0),
    "hardswish": F.hardswish,
    "hardsigmoid": nn.Hardsigmoid(),
    "hardshrink": F.hardshrink,
    "softmax": nn.Softmax(1),
    "rrelu": nn.RReLU(),
}


def operations_of(function: nn.Module | Callable[[Tensor], Tensor]) -> int:
    """The operations of `function` alone: those of a layer with it, minus those of the layer without it."""

    def cost(layer: Layer) -> int:
        return model_costs(network_of(layer))[0].operations

    layer = Layer(lambda s, x: s.f(x * 1), f=function) if isinstance(function, nn.Module) else None
    return cost(layer or Layer(lambda s, x: function(x * 1))) - cost(Layer(lambda s, x: x * 1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_counts_in_every_spelling(name):
    assert operations_of(ACTIVATIONS[name]) == ELEMENTS


def test_norms_and_pools_by_hand():
    for norm in (nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, affine=True), nn.LayerNorm(8)):
        assert operations_of(norm) == 2 * ELEMENTS, norm
    assert operations_of(nn.MaxPool2d(2)) == operations_of(nn.AdaptiveMaxPool2d(1)) == ELEMENTS
    assert operations_of(nn.Flatten()) == 0


def test_what_is_left_over_is_named():
    network = network_of(Layer(lambda s, x: F.avg_pool2d(x.abs() + x.exp(), 2).view(-1, 48)))
    assert count(network).not_counted == ("abs", "adaptive_avg_pool2d", "add", "avg_pool2d", "exp", "mean")


PLAIN = """
from torch import nn

def same(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Bilinear(8, 8, 4), nn.Conv2d(3, 4, 8, 8)

    def forward(self, x):
        return self.second(x) + self.first(x[..., :8], x[..., 8:16]).mean((1, 2, 3))[:, None, None, None]

def twice(num_classes, in_channels, image_size):
    from cnsn_cli import Backbone
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return Backbone(nn.Sequential(Twice(), nn.Conv2d(4, 4, 1)), head, (1, 1))
"""


def test_mac_says_what_it_does_not_count_and_where_another_counter_differs(cnsn, tmp_path):
    """By hand: 32 * 32 * 8 * 27 + 16 * 16 * 16 * 72 + 16 * 10 = 516,256."""
    (tmp_path / "counted_nets.py").write_text(PLAIN)
    words = ("mac", "--arch", "counted_nets:same", "--plugin", tmp_path / "counted_nets.py", "--exits", "1")
    content = json.loads(cnsn(*words, "--json").out)
    assert content["models"][0]["macs"] == 516_256
    assert content["not_counted"] == ["adaptive_avg_pool2d"]
    assert content["differences"] == []
    assert cnsn(*words).out.splitlines()[-1] == "not counted: adaptive_avg_pool2d"
    words = ("mac", "--arch", "counted_nets:twice", "--plugin", tmp_path / "counted_nets.py", "--exits", "1")
    first, bilinear = 16 * 4 * 192, 3 * 32 * 4 * 8 * 8
    macs = first + bilinear + 16 * 16 + 40
    other = macs - bilinear
    (line,) = [line for line in cnsn(*words).out.splitlines() if line.startswith("warning")]
    share = f"{bilinear / macs:.1%}"
    assert line == f"warning: torch.utils.flop_counter counts {other:,} MACs for base, {share} fewer"
    (difference,) = json.loads(cnsn(*words, "--json").out)["differences"]
    assert difference == {"name": "base", "macs": macs, "flop_counter": other}
