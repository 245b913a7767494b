"""Batches: equal for any number of loader processes, and each evaluation image exactly once."""

from __future__ import annotations

import pytest
import torch

from mixer_lightning.data.module import DataModule
from mixer_lightning.data.order import chunking
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.data.transforms import Augment


def module(
    *, rank: int = 0, world_size: int = 1, num_workers: int = 0, start_step: int = 0, seed: int = 0
) -> DataModule:
    data = DataModule(
        digits(),
        Augment(crop="pad", crop_padding=2, flip=0.5, rand_augment="rand-m9-n2"),
        image_size=8,
        chunks=chunking(batch_size=24, device_batch=6, world_size=world_size),
        total_steps=4,
        seed=seed,
        repeats=1,
        rank=rank,
        num_workers=num_workers,
        pin_memory=False,
    )
    data.start_step = start_step
    return data


def batches(**options: int) -> list[torch.Tensor]:
    return [images for images, _ in module(**options).train_dataloader()]


def test_workers_ranks_and_restarts_see_the_same_pixels():
    whole = batches()
    assert len(whole) == 16
    assert whole[0].shape == (6, 3, 8, 8)
    assert whole[0].dtype == torch.uint8
    assert all(map(torch.equal, batches(num_workers=2), whole))
    assert all(map(torch.equal, batches(start_step=3), whole[12:]))
    of_two = [batches(rank=rank, world_size=2) for rank in (0, 1)]
    assert all(torch.equal(of_two[i % 2][i // 2], chunk) for i, chunk in enumerate(whole))


def test_another_seed_shows_other_pixels():
    assert not torch.equal(batches(seed=1)[0], batches(seed=0)[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_evaluation_image_once_for_any_number_of_processes(world_size):
    parts = [module(rank=rank, world_size=world_size).eval_loader("test") for rank in range(world_size)]
    images = torch.cat([images for part in parts for images, _ in part])
    labels = torch.cat([labels for part in parts for _, labels in part])
    assert len(images) == 360
    test = digits().splits["test"]
    expected = torch.bincount(torch.tensor([test[i][1] for i in range(360)]), minlength=10)
    assert torch.equal(torch.bincount(labels, minlength=10), expected)


def test_evaluation_splits_are_all_but_train():
    assert module().eval_splits() == ["test"]
