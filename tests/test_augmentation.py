import torch

from cnsn_cli.augmentation import crop, plan_epoch

CPU = torch.device("cpu")


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
    plan = plan_epoch(1000, seed=0, epoch=1, padding=4, flip=True, device=CPU)
    assert sorted(plan.order.tolist()) == list(range(1000))
    assert 400 < plan.flips.sum() < 600
    counts = torch.bincount(plan.offsets.flatten(), minlength=9)
    assert len(counts) == 9
    assert counts.min() > 150  # 2,000 draws over 9 values


def test_what_a_sample_gets_does_not_depend_on_its_batch():
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    plan = plan_epoch(10, seed=3, epoch=2, padding=2, flip=True, device=CPU)
    whole = plan.augment(pixels, torch.arange(10))
    for index in range(10):
        alone = plan.augment(pixels[index : index + 1], torch.tensor([index]))
        assert torch.equal(alone[0], whole[index])


def test_a_flip_mirrors_left_and_right():
    pixels = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    plans = (plan_epoch(1, seed, 1, 0, flip=True, device=CPU) for seed in range(50))
    flipped = next(plan for plan in plans if plan.flips[0])
    assert flipped.augment(pixels, torch.tensor([0])).flatten().tolist() == [2, 1, 0, 5, 4, 3, 8, 7, 6]


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[int]:
        return plan_epoch(100, seed, epoch, 4, True, CPU).order.tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_without_flip_and_padding_nothing_changes():
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    plan = plan_epoch(4, 0, 1, padding=0, flip=False, device=CPU)
    assert torch.equal(plan.augment(pixels, torch.arange(4)), pixels)
