"""Images per second of our input pipeline beside those of timm, torchvision and webdataset, on the same files.

    mixer study loader root=~/imagenet/train rounds=5

From class folders `root` of JPEG files to batches uint8 [B, 3, 224, 224] of random resized crops, flipped or to be
flipped on the device. Every contestant reads the same images, as files or packed into shards as they are, in a process
of its own; rounds alternate, so that a ratio compares what ran within the same minute. `img/cpu-s` counts the CPU
seconds of the whole process tree; memory is its share (PSS). Writes <out>/loader_cpu.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser
from mixer_lightning.data import decode
from mixer_lightning.data.crops import Crops, Integers
from mixer_lightning.data.loader import Loader
from mixer_lightning.data.order import MicroBatchSampler, Order, split_batch
from mixer_lightning.data.sources.folder import class_folders, scan
from mixer_lightning.data.sources.shards import shards
from mixer_lightning.data.splits import shard_sizes
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.files import write_text
from mixer_lightning.screen import Screen
from mixer_lightning.studies.step_speed import take_turns

IMAGE_SIZE, BATCH_SIZE = 224, 128
Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic")


# -------------------------------------------------------------------------------------------- contestants
# Each yields images of one batch after the other, endlessly or for at least `batches` of them.


def ours(folder: Path, *, workers: int, batches: int, interpolation: str, packed: bool) -> Iterator[Any]:
    """Our loader on files, or on shards."""
    if packed:
        images = shards(root=str(folder / "shards"), name="photos").splits["train"]
    else:
        images = scan("photos", folder / "files", class_folders(folder / "files"))
    plan = MicroBatchSampler(
        Order(shard_sizes(images), window=32, seed=0),
        micro_batches=split_batch(batch_size=BATCH_SIZE, device_batch=None, world_size=1),
        rank=0,
        start_step=0,
        total_steps=batches,
    )
    augment = Augment(crop="random_resized", interpolation=interpolation, flip=0.5)  # type: ignore[arg-type]
    loader = Loader(
        images, plan, augment, image_size=IMAGE_SIZE, seed=0, threads=workers, ahead=1, pin_memory=False
    )
    for batch in loader:
        yield augment.apply(batch.images, batch.params) if batch.params is not None else batch.images


def timm(folder: Path, *, workers: int, batches: int, interpolation: str, jitter: bool) -> Iterator[Any]:
    """timm's create_loader; uint8 batches as its worker processes hand them over."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(folder / "files"))
    loader = create_loader(
        dataset,
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=BATCH_SIZE,
        is_training=True,
        interpolation=interpolation,
        color_jitter=0.4 if jitter else None,  # .4 is its default
        num_workers=workers,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    while True:  # its prefetcher would normalise on the CPU: take what it is fed
        yield from (images for images, _ in loader.loader)


def torchvision(folder: Path, *, workers: int, batches: int, decoded: str) -> Iterator[Any]:
    """ImageFolder and DataLoader, by Pillow or by decode_jpeg and transforms v2."""
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
    loader = torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        yield from (images for images, _ in loader)


def webdataset(folder: Path, *, workers: int, batches: int, normalise: bool) -> Iterator[Any]:
    """WebDataset and WebLoader as its documentation shows them; float32 and normalised, or bytes."""
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


Contestant = Callable[..., Iterator[Any]]

CONTESTANTS: dict[str, tuple[Contestant, dict[str, Any]]] = {
    "timm, default": (timm, {"interpolation": "bilinear", "jitter": True}),
    "timm, bicubic, no colour jitter": (timm, {"interpolation": "bicubic", "jitter": False}),
    "torchvision, Pillow": (torchvision, {"decoded": "pillow"}),
    "torchvision, decode_jpeg": (torchvision, {"decoded": "torchvision"}),
    "webdataset, as documented, float32": (webdataset, {"normalise": True}),
    "webdataset, bytes": (webdataset, {"normalise": False}),
    "ours, files, bilinear": (ours, {"interpolation": "bilinear", "packed": False}),
    "ours, files, bicubic": (ours, {"interpolation": "bicubic", "packed": False}),
    "ours, shards, bicubic": (ours, {"interpolation": "bicubic", "packed": True}),
}


# ---------------------------------------------------------------------------------------------- measuring


def measure(name: str, folder: Path, *, workers: int, images: int, device_rate: float) -> dict[str, float]:
    """Run one contestant in this process: images per second, per CPU second, memory, share of time spent waiting.

    A device that takes `device_rate` images a second is imitated by sleeping; 0 is one that takes no time at all.
    """
    contestant, options = CONTESTANTS[name]
    warm_up, batches = 2, -(-images // BATCH_SIZE)
    source = contestant(folder, workers=workers, batches=warm_up + batches, **options)
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
    return {
        "images_per_second": batches * BATCH_SIZE / seconds,
        "images_per_cpu_second": batches * BATCH_SIZE / (_cpu_seconds() - cpu),
        "memory_mib": _memory_mib(),
        "waiting": waited / seconds,
    }


def _process_tree() -> list[int]:
    found, todo = [], [os.getpid()]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cpu_seconds() -> float:
    ticks = 0
    for pid in _process_tree():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_mib() -> float:
    total = 0
    for pid in _process_tree():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def child(name: str, folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """`measure` in a fresh process."""
    words = [f"child={name}", f"root={folder}", f"workers={chosen.workers}", f"images={chosen.images}"]
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "mixer_lightning",
            "study",
            "loader",
            *words,
            f"device_rate={chosen.device_rate}",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lay_out(root: Path, folder: Path, *, copies: int) -> int:
    """`files/`: links to the JPEGs under root, each `copies` times; `shards/`: the same images; their number."""
    import webdataset as wds

    count, labels = 0, {each: i for i, each in enumerate(class_folders(root))}
    (folder / "shards").mkdir(parents=True)
    open_shards = [
        wds.TarWriter(str(folder / "shards" / f"train-{i:05}.tar"), encoder=False, mtime=0) for i in range(8)
    ]
    for copy in range(copies):
        for name, label in labels.items():
            (folder / "files" / name).mkdir(parents=True, exist_ok=True)
            for path in sorted((root / name).iterdir()):
                if path.suffix.lower() in (".jpg", ".jpeg"):
                    link = f"{copy}-{path.stem.replace('.', '_')}"
                    (folder / "files" / name / f"{link}.jpg").symlink_to(path.absolute())
                    sample = {
                        "__key__": f"{name}-{link}",
                        "jpg": path.read_bytes(),
                        "cls": str(label).encode(),
                    }
                    open_shards[count % len(open_shards)].write(sample)
                    count += 1
    for shard in open_shards:
        shard.close()
    write_text(folder / "shards" / "dataset.json", json.dumps({"classes": list(labels)}))
    return count


# ----------------------------------------------------------------------------------------------- fidelity


def fidelity(files: Sequence[Path], *, interpolation: Interpolation) -> dict[str, float]:
    """Our crops against Pillow's full decode, crop and antialiased resize of the same random box of each file.

    PSNR in decibels (255 grey levels; equal images count as 100) and mean absolute difference in grey levels.
    """
    augment = Augment(crop="random_resized", interpolation=interpolation)
    keys = sample_keys(0, [(0, i, 0) for i in range(len(files))])
    psnr, difference = [], []
    for i, path in enumerate(files):
        seen: list[Crops] = []

        def crops_of(
            _: Integers, widths: Integers, heights: Integers, i: int = i, seen: list[Crops] = seen
        ) -> Crops:
            seen.append(augment.train_crops(keys[i : i + 1], widths, heights, IMAGE_SIZE))
            return seen[-1]

        ours = torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
        if decode.decode_crops([path.read_bytes()], crops_of, [ours]):
            raise ValueError(f"{path} cannot be decoded")
        left, top = int(seen[0].left[0]), int(seen[0].top[0])
        box = (left, top, left + int(seen[0].width[0]), top + int(seen[0].height[0]))
        resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[
            interpolation
        ]
        with Image.open(path) as image:
            theirs = image.convert("RGB").crop(box).resize((IMAGE_SIZE, IMAGE_SIZE), resampling)
        apart = ours.permute(1, 2, 0).numpy().astype(np.float64) - np.asarray(theirs)
        psnr.append(10 * math.log10(255**2 / max(float((apart**2).mean()), 255**2 / 1e10)))
        difference.append(float(np.abs(apart).mean()))
    return {
        "psnr_mean": statistics.fmean(psnr),
        "psnr_min": min(psnr),
        "difference_mean": statistics.fmean(difference),
        "difference_max": max(difference),
    }


# ------------------------------------------------------------------------------------------------ program


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong word ends the program with a sentence."""
    parser = Parser(
        "study loader",
        usage="root=<class folders> [key=value ...]",
        description="Images per second of input pipelines, ours and others' in turns.",
    )
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="FOLDER", help="class folders of JPEG files")
    add(
        "--workers",
        type=int,
        default=cores,
        metavar="N",
        help="threads or processes; default: %(default)s, the cores",
    )
    add("--rounds", type=int, default=5, metavar="N", help="turns of each contestant; default: %(default)s")
    add("--images", type=int, default=2048, metavar="N", help="images of a turn; default: %(default)s")
    add("--copies", type=int, metavar="N", help="how often each file is used; default: until there are 1,600")
    add(
        "--device_rate",
        type=float,
        default=0,
        metavar="N",
        help="images/s that an imitated device takes; 0: any",
    )
    add("--only", default=",", metavar="NAMES", help=f"of: {'; '.join(CONTESTANTS)} (separated by ;)")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    add("--child", help=argparse.SUPPRESS)
    chosen = parser.read(argv)
    chosen.root = chosen.root.expanduser().absolute()
    if not chosen.root.is_dir():
        parser.error(f"there is no folder {chosen.root}")
    chosen.names = [name.strip() for name in chosen.only.split(";") if name.strip(" ,")] or list(CONTESTANTS)
    for name in chosen.names:
        if name not in CONTESTANTS:
            parser.error(f"there is no contestant '{name}': known are {'; '.join(CONTESTANTS)}")
    for name in ("workers", "rounds", "images", "copies"):
        value = getattr(chosen, name)
        if value is not None and value < (2 if name == "rounds" else 1):
            parser.error(f"{name} must be at least {2 if name == 'rounds' else 1}, found {value}")
    return chosen


def summary(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row per contestant: medians over the rounds, and of the ratios to the first contestant in the same round."""
    first = next(iter(found.values()))
    rows = []
    for name, rounds in found.items():
        row: dict[str, Any] = {"loader": name}
        for key in rounds[0]:
            row[key] = statistics.median(turn[key] for turn in rounds)
        for key, ratio in (("images_per_second", "ratio"), ("images_per_cpu_second", "cpu_ratio")):
            ratios = [turn[key] / other[key] for turn, other in zip(rounds, first, strict=True)]
            row[f"{ratio}_low"], row[ratio], row[f"{ratio}_high"] = statistics.quantiles(
                ratios, n=4, method="inclusive"
            )
        rows.append(row)
    return rows


COLUMNS = ("loader", "img/s", "ratio", "img/cpu-s", "ratio", "MiB", "waiting")


def shown(row: dict[str, Any]) -> list[str]:
    """A row of `summary` in words."""
    return [
        row["loader"],
        f"{row['images_per_second']:,.0f}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
        f"{row['images_per_cpu_second']:,.0f}",
        f"{row['cpu_ratio']:.2f} ({row['cpu_ratio_low']:.2f} to {row['cpu_ratio_high']:.2f})",
        f"{row['memory_mib']:,.0f}",
        f"{100 * row['waiting']:.0f} %",
    ]


def markdown(
    rows: Sequence[dict[str, Any]],
    chosen: argparse.Namespace,
    argv: Iterable[str],
    about: str,
    pixels: Mapping[str, Mapping[str, float]],
) -> str:
    """The table, with machine, versions and command."""
    device = (
        f"a device of {chosen.device_rate:,.0f} images/s"
        if chosen.device_rate
        else "a device that takes no time"
    )
    versions = results.versions()
    from importlib.metadata import version

    versions |= {name: version(name) for name in ("pillow", "webdataset")}
    lines = [
        "# Input pipelines",
        "",
        f"{about} to batches of {BATCH_SIZE} random resized crops, {IMAGE_SIZE} px, for {device}.",
        f"Medians of {chosen.rounds} alternating rounds of {chosen.images:,} images, the page cache warm, with",
        f"{chosen.workers} threads (ours) or worker processes (others). Ratios are to the first row in the same round,",
        "in brackets their middle half. `img/cpu-s` counts the CPU seconds of the process tree, MiB is its PSS.",
        "",
        f"* Machine: {results.cpu_name()}",
        f"* Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
        f"* Command: `{' '.join(['mixer study loader', *argv])}`",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
        *(f"| {' | '.join(shown(row))} |" for row in rows),
        "",
        "Our crops against Pillow's full decode, crop and antialiased resize of the same box, one of each file:",
        "",
        "| | PSNR mean, dB | PSNR min, dB | difference mean, grey levels | difference max |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {found['psnr_mean']:.1f} | {found['psnr_min']:.1f} | {found['difference_mean']:.3f} "
            f"| {found['difference_max']:.3f} |"
            for name, found in pixels.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen = settings(argv)
    if chosen.child:
        found = measure(
            chosen.child,
            chosen.root,
            workers=chosen.workers,
            images=chosen.images,
            device_rate=chosen.device_rate,
        )
        print(json.dumps(found))
        os._exit(0)  # loaders of others leave processes behind
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="loader-study-") as name:
        folder = Path(name)
        files = [path for path in sorted(chosen.root.glob("*/*")) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not files:
            raise SystemExit(f"no JPEG files in class folders under {chosen.root}")
        sizes = [path.stat().st_size for path in files]
        copies = chosen.copies or -(-1600 // len(sizes))
        lay_out(chosen.root, folder, copies=copies)
        about = f"{len(sizes):,} JPEG files, mean {np.mean(sizes) / 1000:,.0f} kB, each {copies} times,"
        screen.say(f"{about} {chosen.rounds} rounds of {len(chosen.names)} contestants")
        runs = [lambda each=each: child(each, folder, chosen) for each in chosen.names]
        turns = take_turns(runs, rounds=chosen.rounds)
    rows = summary(dict(zip(chosen.names, turns, strict=True)))
    screen.table("", COLUMNS, map(shown, rows))
    pixels: dict[str, dict[str, float]] = {
        kind: fidelity(files[:1000], interpolation=kind) for kind in INTERPOLATIONS
    }
    from mixer_lightning.reports import bars  # matplotlib, whose memory is no contestant's

    chosen.out.mkdir(parents=True, exist_ok=True)
    path = chosen.out / "loader_cpu.csv"
    results.write_rows(path, rows, digits=4)
    write_text(path.with_suffix(".md"), markdown(rows, chosen, argv, about, pixels))
    bars.draw(
        path.with_suffix(".png"),
        {row["loader"]: row["images_per_second"] for row in rows},
        title=f"images/s, {chosen.workers} cores, {IMAGE_SIZE} px",
        emphasis="ours",
    )
    screen.say(f"written to {path}, {path.with_suffix('.md')} and {path.with_suffix('.png')}")
