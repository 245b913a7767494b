"""Images per second of CIFAR training: our input pipeline against torchvision's, in the same loop.

    mixer study cifar root=~/cifar10/train rounds=5

Both sides see class folders of 32 px images through the augmentation of locuslab/convmixer-cifar10's 25-epoch recipe
(flip, RandAugment of 2 operations at magnitude 12): ours from memory and batch by batch, torchvision's by ImageFolder,
DataLoader and its own transforms, image by image. Once the input alone, once with a training step of ConvMixer-256/8,
on a CPU also without machine.keep_freed_memory. Rounds alternate in one process. Writes <out>/cifar_<device>.csv and
.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.signatures import build
from mixer_lightning.data.loader import Loader
from mixer_lightning.data.order import MicroBatchSampler, Order, split_batch
from mixer_lightning.data.sources.folder import class_folders, scan
from mixer_lightning.engine.machine import Machine, keep_freed_memory
from mixer_lightning.files import write_text
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.screen import Screen
from mixer_lightning.studies.step_speed import take_turns

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


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong word ends the program with a sentence."""
    parser = Parser(
        "study cifar",
        usage="root=<class folders of CIFAR's training images> [key=value ...]",
        description="Images per second of CIFAR training, our input pipeline against torchvision's.",
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="FOLDER", help="class folders of 32 px images")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="threads or processes")
    add("--batch_size", type=int, default=512, metavar="N", help="default: %(default)s, the recipe's")
    add("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    add(
        "--batches",
        type=int,
        default=20,
        metavar="N",
        help="of a turn of the input alone; default: %(default)s",
    )
    add("--steps", type=int, default=4, metavar="N", help="of a turn with training; default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.root = chosen.root.expanduser()
    if not chosen.root.is_dir():
        parser.error(f"there is no folder {chosen.root}")
    for name in ("workers", "batch_size", "rounds", "batches", "steps"):
        if getattr(chosen, name) < (2 if name == "rounds" else 1):
            parser.error(f"{name} must be at least {2 if name == 'rounds' else 1}")
    return chosen


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ahead = 3 if device.type == "cuda" else 0
    step = training_step(device, num_classes=len(class_folders(chosen.root)))
    rows: list[dict[str, Any]] = []
    parts = [("input alone", None, chosen.batches), ("with training", step, chosen.steps)]
    if device.type == "cpu" and keep_freed_memory(False):
        parts.append(("with training, freed memory given back", step, chosen.steps))
    for what, trained, count in parts:
        if device.type == "cpu":
            keep_freed_memory(not what.endswith("given back"))
        sides = {
            name: make(
                chosen.root, batch_size=chosen.batch_size, workers=chosen.workers, device=device, ahead=ahead
            )
            for name, make in (("torchvision", torchvisions), ("ours", ours))
        }
        runs = [
            lambda side=side, trained=trained, count=count: measured(
                side, trained, count=count, device=device
            )
            for side in sides.values()
        ]
        theirs, mine = take_turns(runs, rounds=chosen.rounds)
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
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
    columns = ("", "torchvision, images/s", "ours, images/s", "ratio (middle half)")
    lines = [
        [
            row["what"],
            f"{row['torchvision_images_per_second']:,.0f}",
            f"{row['ours_images_per_second']:,.0f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
        ]
        for row in rows
    ]
    screen.table("", columns, lines)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else results.cpu_name()
    text = [
        "# CIFAR training: our input pipeline against torchvision's",
        "",
        "Class folders of 32 px images, augmentation of the 25-epoch recipe, the same ConvMixer-256/8 step for both.",
        f"Medians of {chosen.rounds} alternating rounds, {chosen.workers} threads (ours) or processes (torchvision's).",
        "",
        f"* Machine: {machine}",
        f"* Versions: {', '.join(f'{name} {number}' for name, number in results.versions().items())}",
        f"* Command: `{' '.join(['mixer study cifar', *argv])}`",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / f"cifar_{device.type}.csv"
    results.write_rows(path, rows, digits=4)
    write_text(path.with_suffix(".md"), "\n".join(text) + "\n")
    screen.say(f"written to {path} and {path.with_suffix('.md')}")
