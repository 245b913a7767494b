"""Input pipelines on the same files: ours, timm's, torchvision's and webdataset's, and how one is measured.

Each imports its packages when it runs, in a process of its own, so that none counts in the memory of another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IMAGE_SIZE, BATCH_SIZE = 224, 128
SMALL_SIDE = 288  # px of the short side at most
#: DeiT's and ConvMixer's, but always of the mean magnitude: timm's Posterize would at times keep no bit, which Pillow
#: refuses.
RAND_AUGMENT = "rand-m9-inc1"

# ---------------------------------------------------------------------------------------------- pipelines
# Each yields images of one batch after the other, endlessly or for at least `batches` of them.


def ours(
    folder: Path,
    *,
    workers: int,
    batches: int,
    interpolation: str,
    packed: str | None,
    rand_augment: str | None = None,
) -> Iterator[Any]:
    """Our loader on files, or on the shards of a folder."""
    from mixer_lightning.data.loader import Loader
    from mixer_lightning.data.order import MicroBatchSampler, Order, split_batch
    from mixer_lightning.data.sources.folder import class_folders, scan
    from mixer_lightning.data.sources.shards import shards
    from mixer_lightning.data.splits import shard_sizes
    from mixer_lightning.data.transforms import Augment

    if packed is not None:
        images = shards(root=str(folder / packed), name="photos").splits["train"]
    else:
        images = scan("photos", folder / "files", class_folders(folder / "files"))
    plan = MicroBatchSampler(
        Order(shard_sizes(images), window=32, seed=0),
        micro_batches=split_batch(batch_size=BATCH_SIZE, device_batch=None, world_size=1),
        rank=0,
        start_step=0,
        total_steps=batches,
    )
    augment = Augment(
        crop="random_resized",
        interpolation=interpolation,  # type: ignore[arg-type]
        flip=0.5,
        rand_augment=rand_augment,
    )
    loader = Loader(
        images, plan, augment, image_size=IMAGE_SIZE, seed=0, threads=workers, ahead=1, pin_memory=False
    )
    for batch in loader:
        yield augment.apply(batch.images, batch.params) if batch.params is not None else batch.images


def timm(
    folder: Path,
    *,
    workers: int,
    batches: int,
    interpolation: str,
    jitter: bool,
    rand_augment: str | None = None,
) -> Iterator[Any]:
    """timm's create_loader; uint8 batches as its worker processes hand them over."""
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(folder / "files"))
    loader = create_loader(
        dataset,
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=BATCH_SIZE,
        is_training=True,
        interpolation=interpolation,
        color_jitter=0.4 if jitter else None,  # .4 is its default
        auto_augment=rand_augment,
        num_workers=workers,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    while True:  # its prefetcher would normalise on the CPU: use what it is fed
        yield from (images for images, _ in loader.loader)


def torchvision(folder: Path, *, workers: int, batches: int, decoded: str) -> Iterator[Any]:
    """ImageFolder and DataLoader, by Pillow or by decode_jpeg and transforms v2."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(IMAGE_SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    if decoded == "pillow":
        dataset = ImageFolder(
            str(folder / "files"), v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
        )
    else:
        dataset = ImageFolder(
            str(folder / "files"),
            v2.Compose([crop, v2.RandomHorizontalFlip()]),
            loader=lambda path: decode_image(path, mode=ImageReadMode.RGB),
        )
    loader = DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        yield from (images for images, _ in loader)


def webdataset(folder: Path, *, workers: int, batches: int, normalise: bool) -> Iterator[Any]:
    """WebDataset and WebLoader as its documentation shows them; float32 and normalised, or uint8."""
    import torch
    import webdataset as wds
    from torchvision.transforms import v2

    last: list[Any] = [v2.PILToTensor()]
    if normalise:
        last += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    transform = v2.Compose([v2.RandomResizedCrop(IMAGE_SIZE), v2.RandomHorizontalFlip(), *last])
    urls = [str(path) for path in sorted((folder / "shards").glob("train-*.tar"))]
    dataset = (
        wds.WebDataset(urls, resampled=True, shardshuffle=False)
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
        .batched(BATCH_SIZE)
    )
    yield from (images for images, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers))


Pipeline = Callable[..., Iterator[Any]]

PIPELINES: dict[str, tuple[Pipeline, dict[str, Any]]] = {
    "timm, default": (timm, {"interpolation": "bilinear", "jitter": True}),
    "timm, bicubic, no colour jitter": (timm, {"interpolation": "bicubic", "jitter": False}),
    "timm, bicubic, RandAugment": (
        timm,
        {"interpolation": "bicubic", "jitter": False, "rand_augment": RAND_AUGMENT},
    ),
    "torchvision, Pillow": (torchvision, {"decoded": "pillow"}),
    "torchvision, decode_jpeg": (torchvision, {"decoded": "torchvision"}),
    "webdataset, as documented, float32": (webdataset, {"normalise": True}),
    "webdataset, uint8": (webdataset, {"normalise": False}),
    "ours, files, bilinear": (ours, {"interpolation": "bilinear", "packed": None}),
    "ours, files, bicubic": (ours, {"interpolation": "bicubic", "packed": None}),
    "ours, files, bicubic, RandAugment": (
        ours,
        {"interpolation": "bicubic", "packed": None, "rand_augment": RAND_AUGMENT},
    ),
    "ours, shards, bicubic": (ours, {"interpolation": "bicubic", "packed": "shards"}),
    "ours, shards with restart markers, bicubic": (ours, {"interpolation": "bicubic", "packed": "restart"}),
    f"ours, shards encoded anew at {SMALL_SIDE} px, with restart markers, bicubic": (
        ours,
        {"interpolation": "bicubic", "packed": "small"},
    ),
}


# ---------------------------------------------------------------------------------------------- measuring


def measure(name: str, folder: Path, *, workers: int, images: int, device_rate: float) -> dict[str, float]:
    """Run one pipeline in this process: images per second, per CPU second, memory, share of time spent waiting.

    A device that takes `device_rate` images a second is imitated by sleeping; 0 is one that takes no time at all.
    """
    from mixer_lightning.data.decode import only_raster_formats

    pipeline, options = PIPELINES[name]
    warm_up, batches = 2, -(-images // BATCH_SIZE)
    source = pipeline(folder, workers=workers, batches=warm_up + batches, **options)
    with only_raster_formats():
        for _ in range(warm_up):
            next(source)
        cpu, begin, waited = _cpu_seconds(), time.perf_counter(), 0.0
        for _ in range(batches):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            if tuple(batch.shape) != (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE):
                raise RuntimeError(f"{name} made a batch of shape {tuple(batch.shape)}")
            if device_rate:
                time.sleep(BATCH_SIZE / device_rate)
    seconds = time.perf_counter() - begin
    cpu_seconds = max(_cpu_seconds() - cpu, 1 / os.sysconf("SC_CLK_TCK"))  # of the kernel's clock
    return {
        "images_per_second": batches * BATCH_SIZE / seconds,
        "images_per_cpu_second": batches * BATCH_SIZE / cpu_seconds,
        "memory_mib": _memory_mib(),
        "waiting": waited / seconds,
    }


def _process_tree() -> list[int]:
    found, todo = [], [os.getpid()]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
    return found


def _cpu_seconds() -> float:
    ticks = 0
    for pid in _process_tree():
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_mib() -> float:
    total = 0
    for pid in _process_tree():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
