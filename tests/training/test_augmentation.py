"""Augmentation: what a plan draws, and how it changes images and targets."""

import pytest
import torch

from cnsn_cli.task import Task
from cnsn_cli.training.augmentation import EpochPlan, crop, plan_epoch
from cnsn_cli.training.recipe import load_recipe
from cnsn_cli.training.setup import seed_of_process

CPU = torch.device("cpu")


def plan(samples: int, seed: int = 0, epoch: int = 1, **changes: object) -> EpochPlan:
    settings = {"seed": seed, "crop_padding": 0, "flip": "none", **changes}
    return plan_epoch(samples, load_recipe("quick", settings), epoch, CPU)


def test_crop_equals_cutting_one_image_at_a_time():
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    offsets = torch.tensor([[0, 0], [4, 4], [2, 2], [0, 4], [3, 1], [1, 3]])
    cropped = crop(pixels, offsets, padding=2)
    for image, (top, left), result in zip(pixels, offsets.tolist(), cropped, strict=True):
        canvas = torch.zeros(3, 12, 12, dtype=torch.uint8)
        canvas[:, 2:10, 2:10] = image
        assert torch.equal(result, canvas[:, top : top + 8, left : left + 8])
    assert torch.equal(cropped[2], pixels[2])


def test_flips_and_crops_are_drawn_per_sample():
    drawn = plan(1000, crop_padding=4, flip="random")
    assert sorted(drawn.order.tolist()) == list(range(1000))
    assert 400 < drawn.flips.sum() < 600
    counts = torch.bincount(drawn.offsets.flatten(), minlength=9)
    assert len(counts) == 9
    assert counts.min() > 150  # 2,000 draws over 9 values


def test_what_a_sample_gets_does_not_depend_on_its_batch():
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    drawn = plan(10, seed=3, epoch=2, crop_padding=2, flip="random")
    whole = drawn.augment(pixels, torch.arange(10))
    for index in range(10):
        alone = drawn.augment(pixels[index : index + 1], torch.tensor([index]))
        assert torch.equal(alone[0], whole[index])


def test_a_flip_mirrors_left_and_right():
    pixels = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    plans = (plan(1, seed, flip="random") for seed in range(50))
    flipped = next(drawn for drawn in plans if drawn.flips[0])
    assert flipped.augment(pixels, torch.tensor([0])).flatten().tolist() == [2, 1, 0, 5, 4, 3, 8, 7, 6]


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[int]:
        return plan(100, seed, epoch).order.tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_large_seeds_differ_too():
    """torch reads 32 bits of a seed, 20 of which were for the epoch: seeds 4,096 apart were alike."""
    seeds = (0, 1, 4095, 4096, 4097, 2 * 4096, 2**31, 2**31 + 4096, 2**32 - 4096, 2**32 - 1)
    changes = {"crop_padding": 4, "flip": "alternating"}
    plans = [plan(50, seed, epoch, **changes) for seed in seeds for epoch in (1, 2)]
    for part in ("order", "offsets"):
        assert len({tuple(getattr(drawn, part).flatten().tolist()) for drawn in plans}) == len(plans)
    assert len({tuple(drawn.flips.tolist()) for drawn in plans}) == len(plans)


@pytest.mark.parametrize("seed", [0, 7, 4095])
def test_seeds_below_4096_keep_their_order(seed):
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(seed * 2**20 + 3))
    assert torch.equal(plan(100, seed, epoch=3).order, expected)


def test_processes_differ_in_dropout():
    numbers = {
        torch.rand(1, generator=torch.Generator().manual_seed(seed_of_process(seed, rank))).item()
        for seed in (0, 1, 2**32 - 1)
        for rank in range(4)
    }
    assert len(numbers) == 12


def test_without_flip_and_padding_nothing_changes():
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(plan(4).augment(pixels, torch.arange(4)), pixels)


def test_alternating_flips_show_both_sides_in_every_two_epochs():
    first, second, third = (plan(1000, epoch=epoch, flip="alternating").flips for epoch in (1, 2, 3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 400 < first.sum() < 600


def prepared(pixels: torch.Tensor, **changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepare all samples as one batch, each with its own index as its label; images on a scale of 0 to 1."""
    samples = len(pixels)
    task = Task(tuple(map(str, range(samples))), pixels.shape[-1], 1, (0.0,), (1.0,))
    return plan(samples, **changes).prepare(pixels, torch.arange(samples), torch.arange(samples), task)


def white(samples: int, size: int) -> torch.Tensor:
    return torch.full((samples, 1, size, size), 255, dtype=torch.uint8)


def test_cutout_blanks_a_square_that_may_lie_partly_outside():
    images, labels = prepared(white(200, 16), cutout=6)
    blanked = [(image[0] == 0).nonzero() for image in images]
    sizes = [(h.max(0).values - h.min(0).values + 1).tolist() for h in blanked]
    assert max(sizes) == [6, 6]
    assert all(3 <= side <= 6 for size in sizes for side in size)
    assert all(len(hole) == height * width for hole, (height, width) in zip(blanked, sizes, strict=True))
    assert len({tuple(hole[0].tolist()) for hole in blanked}) > 50
    assert labels.tolist() == list(range(200))


def test_mixup_mixes_images_and_targets_alike():
    """The brightness of an image is its index, so that a mixture shows the shares of its two parts."""
    pixels = (torch.arange(10, dtype=torch.uint8) * 25).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    images, targets = prepared(pixels, mix="mixup", mix_alpha=1.0)
    assert torch.allclose(targets.sum(1), torch.ones(10))
    brightness = targets @ (torch.arange(10) * 25 / 255)
    torch.testing.assert_close(images.mean((1, 2, 3)), brightness)
    own = targets.diagonal()
    assert torch.allclose(own + targets.roll(1, 1).diagonal(), torch.ones(10))  # the rest is the image before
    assert own.min() < 0.3
    assert own.max() > 0.7


def test_cutmix_counts_the_pixels_that_are_left():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 8, 8).clone()
    images, targets = prepared(pixels, mix="cutmix", seed=2)
    for number in range(10):
        shown = (images[number, 0] * 255).round().long()
        before = (number - 1) % 10
        assert set(shown.unique().tolist()) <= {number, before}
        assert targets[number, number].item() == pytest.approx((shown == number).float().mean().item())
        assert targets[number].sum().item() == pytest.approx(1)
        pasted = (shown == before).nonzero()
        if len(pasted):  # the pasted pixels fill a rectangle
            height, width = (pasted.max(0).values - pasted.min(0).values + 1).tolist()
            assert len(pasted) == height * width
    assert 0.2 < targets.diagonal().mean() < 0.95


def test_shares_follow_a_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        shares = plan(20_000, mix_alpha=alpha).shares
        assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
