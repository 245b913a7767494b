"""CIFAR training, ours and torchvision's: both sides of the study `cifar`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixer_lightning.api import create_model
from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.decode import only_raster_formats
from mixer_lightning.data.loader import Loader
from mixer_lightning.data.order import MicroBatchSampler, Order, split_batch
from mixer_lightning.data.sources.folder import class_folders, scan
from mixer_lightning.engine.machine import Machine, keep_freed_memory
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.studies.rounds import interleave, middle_half
from mixer_lightning.targets import build

EXPERIMENT = "convmixer_256_8_cifar10_25ep"
Batches = Iterator[tuple[Tensor, Tensor]]  # float32 [B, 3, 32, 32] on the device, targets [B, K]


def ours(root: Path, *, batch_size: int, workers: int, device: torch.device, ahead: int) -> Batches:
    """Our loader and augmentation."""
    augment = build(compose_one("train", [f"experiment={EXPERIMENT}"]).augment)
    images = scan("cifar10", root, class_folders(root))
    plan = MicroBatchSampler(
        Order([len(images)], window=1, seed=0),
        micro_batches=split_batch(batch_size=batch_size, device_batch=None, world_size=1),
        rank=0,
        start_step=0,
        total_steps=10**9,
    )
    loader = Loader(
        images,
        plan,
        augment,
        image_size=32,
        seed=0,
        threads=workers,
        ahead=ahead,
        pin_memory=device.type == "cuda",
    )
    num_classes = len(class_folders(root))
    for batch in loader:
        batch = batch.to(device)
        assert batch.params is not None
        yield augment.train_batch(batch.cropped(32), batch.labels, batch.params, num_classes)


def torchvisions(root: Path, *, batch_size: int, workers: int, device: torch.device, ahead: int) -> Batches:
    """ImageFolder, DataLoader and transforms of torchvision, as in locuslab/convmixer-cifar10's train.py."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(1.0, 1.0), ratio=(1.0, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandAugment(num_ops=2, magnitude=12),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ]
    )
    dataset = ImageFolder(str(root), transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    with only_raster_formats():
        while True:
            for images, labels in loader:
                targets = torch.nn.functional.one_hot(labels, len(dataset.classes)).float()
                yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def training_step(device: torch.device, *, num_classes: int) -> Callable[[Tensor, Tensor], None]:
    """A step of ConvMixer-256/8 as our runs make it on this device."""
    machine = Machine(accelerator="gpu" if device.type == "cuda" else "cpu")
    machine.configure_torch()
    torch.manual_seed(0)
    model = create_model("convmixer_256_8", num_classes=num_classes, image_size=32)
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adamw(model, lr=1e-3, weight_decay=0.005)
    autocast = machine.chosen_precision != "32-true"

    def step(images: Tensor, targets: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(
    batches: Batches, step: Callable[[Tensor, Tensor], None] | None, *, count: int, device: torch.device
) -> float:
    """Images per second over `count` batches, after one that is not counted."""
    seen = 0
    images, targets = next(batches)
    if step is not None:
        step(images, targets)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        images, targets = next(batches)
        if step is not None:
            step(images, targets)
        seen += len(images)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - began)


def compare(
    root: Path,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    rounds: int,
    batches: int,
    steps: int,
) -> list[dict[str, Any]]:
    """A row for the input alone, and for training: images per second of both sides, medians over alternating rounds.

    A round of the input alone has this many `batches`, one with training this many `steps`.

    Raises:
        ValueError: there are no class folders, or fewer images than a batch has.
        OSError: an image cannot be read.
    """
    num_images = len(scan("cifar10", root, class_folders(root)))
    if num_images < batch_size:  # of which torchvision's side would make no batch, for ever
        raise ValueError(f"{num_images:,} images are fewer than a batch of {batch_size:,}")
    ahead = 3 if device.type == "cuda" else 0
    step = training_step(device, num_classes=len(class_folders(root)))
    parts = [("input alone", None, batches), ("with training", step, steps)]
    if device.type == "cpu" and keep_freed_memory(False):
        parts.append(("with training, freed memory given back", step, steps))
    rows: list[dict[str, Any]] = []
    for what, trained, count in parts:
        if device.type == "cpu":
            keep_freed_memory(not what.endswith("given back"))
        sides = [
            make(root, batch_size=batch_size, workers=workers, device=device, ahead=ahead)
            for make in (torchvisions, ours)
        ]
        runs = [
            lambda side=side, trained=trained, count=count: measured(
                side, trained, count=count, device=device
            )
            for side in sides
        ]
        theirs, mine = interleave(runs, rounds=rounds)
        low, middle, high = middle_half([a / b for a, b in zip(mine, theirs, strict=True)])
        rows.append(
            {
                "what": what,
                "torchvision_images_per_second": statistics.median(theirs),
                "ours_images_per_second": statistics.median(mine),
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
            }
        )
        del sides, runs
    return rows
