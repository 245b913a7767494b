"""Images per second of our input pipeline beside those of timm, torchvision and webdataset, on the same files.

    mixer study loader root=~/imagenet/train rounds=5

From class folders `root` of JPEG files to batches uint8 [B, 3, 224, 224] of random resized crops, flipped or to be
flipped on the device. Every pipeline reads the same images, as files or packed into shards as they are, in a process
of its own; rounds alternate, so that a ratio compares what ran within the same minute. `img/cpu-s` counts the CPU
seconds of the whole process tree; memory is its share (PSS). Writes <out>/loader_cpu.csv, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, output_folder
from mixer_lightning.data.sources.names import JPEG_ENDINGS, is_hidden
from mixer_lightning.files import write_text
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies.pipelines import BATCH_SIZE, IMAGE_SIZE, PIPELINES, SMALL_SIDE, measure
from mixer_lightning.studies.rounds import interleave, middle_half


def child(name: str, folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """`measure` in a fresh process."""
    program = [sys.executable, "-W", "ignore", "-m", "mixer_lightning", "study", "loader"]
    argv = [f"child={name}", f"root={folder}", f"workers={chosen.workers}", f"images={chosen.images}"]
    done = subprocess.run(
        [*program, *argv, f"device_rate={chosen.device_rate}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lay_out(files: Sequence[Path], folder: Path, *, copies: int) -> dict[Path, str]:
    """`files/`: links to JPEG files in class folders, each `copies` times. What is wrong with those it leaves out.

    `shards/`: the same images; `restart/`: with a restart marker behind each 4 MCUs; `small/`: as well, and no larger
    than SMALL_SIDE px on their short side, as `mixer prepare` writes them with `short_side` and `restart`.
    """
    import webdataset as wds

    from mixer_lightning.prepare.cleaning import CleaningOptions, clean_image

    kinds = {
        "shards": CleaningOptions(verify=True),
        "restart": CleaningOptions(verify=False, restart=4),
        "small": CleaningOptions(verify=False, restart=4, short_side=SMALL_SIDE),
    }
    labels = {name: i for i, name in enumerate(sorted({path.parent.name for path in files}))}
    broken: dict[Path, str] = {}
    open_shards: dict[str, list[Any]] = {}
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        write_text(folder / kind / "dataset.json", json.dumps({"classes": list(labels)}))
        paths = [folder / kind / f"train-{i:05}.tar" for i in range(8)]
        open_shards[kind] = [wds.TarWriter(str(path), encoder=False, mtime=0) for path in paths]
    for name in labels:
        (folder / "files" / name).mkdir(parents=True)
    count = 0
    for number, path in enumerate(files):
        name = path.parent.name
        outcomes = {kind: clean_image(path.read_bytes, "jpg", options) for kind, options in kinds.items()}
        reasons = [outcome.notes[-1].reason for outcome in outcomes.values() if not outcome.encoded]
        if reasons:
            broken[path] = reasons[0]
            continue
        for copy in range(copies):
            (folder / "files" / name / f"{copy}-{number}.jpg").symlink_to(path.absolute())
            for kind, outcome in outcomes.items():
                image = {"jpg": outcome.encoded, "cls": str(labels[name]).encode()}
                open_shards[kind][count % 8].write({"__key__": f"{copy}-{number}", **image})
            count += 1
    for shard in (shard for kind in kinds for shard in open_shards[kind]):
        shard.close()
    return broken


def jpeg_files(root: Path, most: int) -> list[Path]:
    """JPEG files in the class folders under `root`, `most` of them evenly where there are more; exit 2 without any."""
    files = [path for path in sorted(root.glob("*/*")) if is_jpeg(path)]
    if not files:
        refuse([f"root: there are no JPEG files in class folders under {root}"])
    count = min(most, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def without(files: Sequence[Path], broken: Mapping[Path, str], screen: Screen) -> list[Path]:
    """The files that are not broken, those being said; exit 2 if none is left."""
    kept = [path for path in files if path not in broken]
    if broken:
        path, reason = next(iter(broken.items()))
        said = f"{len(broken):,} of {len(files):,} files cannot be decoded, such as {path}: {reason}"
        if not kept:
            refuse([f"root: {said}"])
        screen.say(f"left out: {said}")
    return kept


def is_jpeg(path: Path) -> bool:
    """Whether a file is a JPEG by its name."""
    return not is_hidden(path.name) and path.suffix.lower() in JPEG_ENDINGS and path.is_file()


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study loader",
        usage="root=<class folders> [key=value ...]",
        description="Images per second of input pipelines, ours and others', interleaved.",
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
    add(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="measurements of each pipeline; default: %(default)s",
    )
    add(
        "--images",
        type=int,
        default=2048,
        metavar="N",
        help="images in a measurement, and the most files that are used; default: %(default)s",
    )
    add("--copies", type=int, metavar="N", help="how often each file is used; default: until there are 1,600")
    add(
        "--device_rate",
        type=float,
        default=0,
        metavar="N",
        help="images/s that an imitated device takes; 0: any",
    )
    add("--only", default=",", metavar="NAMES", help=f"of: {'; '.join(PIPELINES)} (separated by ;)")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    add("--child", help=argparse.SUPPRESS)
    chosen = parser.read(argv)
    chosen.root = chosen.root.expanduser().absolute()
    if not chosen.root.is_dir():
        parser.error(f"there is no folder {chosen.root}")
    chosen.names = [name.strip() for name in chosen.only.split(";") if name.strip(" ,")] or list(PIPELINES)
    for name in chosen.names:
        if name not in PIPELINES:
            parser.error(f"there is no pipeline '{name}': known are {'; '.join(PIPELINES)}")
    parser.check_at_least(1, chosen, "workers", "images", "copies")
    parser.check_at_least(2, chosen, "rounds")
    parser.check_at_least(0, chosen, "device_rate")
    return chosen


def summary(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row per pipeline: medians over the rounds, and of the ratios to the first pipeline in the same round."""
    first = next(iter(found.values()))
    rows = []
    for name, rounds in found.items():
        row: dict[str, Any] = {"loader": name}
        for key in rounds[0]:
            row[key] = statistics.median(each[key] for each in rounds)
        for key, ratio in (("images_per_second", "ratio"), ("images_per_cpu_second", "cpu_ratio")):
            ratios = [each[key] / other[key] for each, other in zip(rounds, first, strict=True)]
            row[f"{ratio}_low"], row[ratio], row[f"{ratio}_high"] = middle_half(ratios)
        rows.append(row)
    return rows


COLUMNS = ("loader", "img/s", "ratio", "img/cpu-s", "ratio", "MiB", "waiting")


def shown(row: dict[str, Any]) -> list[str]:
    """The cells of a row of `summary`."""
    return [
        row["loader"],
        f"{row['images_per_second']:,.0f}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
        f"{row['images_per_cpu_second']:,.0f}",
        f"{row['cpu_ratio']:.2f} ({row['cpu_ratio_low']:.2f} to {row['cpu_ratio_high']:.2f})",
        f"{row['memory_mib']:,.0f}",
        f"{100 * row['waiting']:.0f} %",
    ]


def page(
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
    versions = results.versions() | {name: version(name) for name in ("pillow", "webdataset")}
    lines = [
        "# Input pipelines",
        "",
        f"{about} to batches of {BATCH_SIZE} random resized crops, {IMAGE_SIZE} px, for {device}.",
        f"Medians of {chosen.rounds} alternating rounds of {chosen.images:,} images, the page cache warm, with",
        f"{chosen.workers} threads (ours) or worker processes (others). Ratios are to the first row in the same round,",
        "in brackets their middle half. `img/cpu-s` counts the CPU seconds of the process tree, MiB is its PSS.",
        "",
        *markdown.provenance(
            machine=results.cpu_name(),
            versions=versions,
            command=["mixer", "study", "loader", *argv],
            commit=results.git_sha(),
        ),
        "",
        *markdown.table(COLUMNS, map(shown, rows)),
        "",
        "Our crops against Pillow's full decode, crop and antialiased resize of the same box, one of each file:",
        "",
        *markdown.table(
            ("", "PSNR mean, dB", "PSNR min, dB", "difference mean, grey levels", "difference max"),
            [
                [
                    name,
                    f"{found['psnr_mean']:.1f}",
                    f"{found['psnr_min']:.1f}",
                    f"{found['difference_mean']:.3f}",
                    f"{found['difference_max']:.3f}",
                ]
                for name, found in pixels.items()
            ],
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
        print(json.dumps(found), flush=True)
        os._exit(0)  # loaders of others leave processes behind
    chosen.out = output_folder("out", chosen.out)
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="loader-study-") as name:
        folder = Path(name)
        files = jpeg_files(chosen.root, chosen.images)
        copies = chosen.copies or -(-1600 // len(files))
        files = without(files, lay_out(files, folder, copies=copies), screen)
        if copies * len(files) < BATCH_SIZE:  # of which torchvision and timm would make no batch, for ever
            refuse([f"copies: {copies} of {len(files)} files are fewer images than a batch of {BATCH_SIZE}"])
        sizes = [path.stat().st_size for path in files]
        about = (
            f"{len(sizes):,} JPEG files, mean {statistics.fmean(sizes) / 1000:,.0f} kB, each {copies} times,"
        )
        screen.say(f"{about} {chosen.rounds} rounds of {len(chosen.names)} pipelines")
        runs = [lambda each=each: child(each, folder, chosen) for each in chosen.names]
        measured = interleave(runs, rounds=chosen.rounds)
    rows = summary(dict(zip(chosen.names, measured, strict=True)))
    screen.table("", COLUMNS, map(shown, rows))
    from mixer_lightning.reports import bars
    from mixer_lightning.studies.fidelity import INTERPOLATIONS, fidelity

    pixels: dict[str, dict[str, float]] = {
        kind: fidelity(files[:1000], interpolation=kind) for kind in INTERPOLATIONS
    }
    path = chosen.out / "loader_cpu.csv"
    results.write_rows(path, rows, digits=6)
    markdown.write_page(path.with_suffix(".md"), page(rows, chosen, argv, about, pixels))
    bars.draw(
        path.with_suffix(".png"),
        {row["loader"]: row["images_per_second"] for row in rows},
        title=f"images/s, {chosen.workers} cores, {IMAGE_SIZE} px",
        emphasis="ours",
    )
    screen.say(f"written to {path}, {path.with_suffix('.md')} and {path.with_suffix('.png')}")
