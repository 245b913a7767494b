"""report.json: how many images each split and class got, and what was left out; and the closing table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_lightning import results
from mixer_lightning.prepare.plan import format_bytes
from mixer_lightning.prepare.state import State
from mixer_lightning.prepare.writing import Written
from mixer_lightning.screen import Screen

REPORT = "report.json"
HISTOGRAM = "report.png"

#: Published counts: of classes with images, and of images in the splits of the source.
EXPECTED: dict[str, dict[str, int]] = {
    "imagenet1k": {"classes": 1000, "train": 1_281_167, "val": 50_000},
    "imagenet21k fall11": {"classes": 21_841, "train": 14_197_122},
    "imagenet21k fall11_p": {"classes": 11_221, "train": 11_797_632, "val": 561_052},
    "imagenet21k winter21": {"classes": 19_167, "train": 13_153_500},
    "imagenet21k winter21_p": {"classes": 10_450},
    "cifar10": {"classes": 10, "train": 50_000, "test": 10_000},
    "cifar100": {"classes": 100, "train": 50_000, "test": 10_000},
    "pets": {"classes": 37, "train": 3_680, "test": 3_669},
    "flowers": {"classes": 102, "test": 6_149},
}


def make_report(state: State, finished: Mapping[str, list[Written]]) -> dict[str, Any]:
    """The content of report.json."""
    source = state.source
    splits: dict[str, dict[str, Any]] = {}
    with_images = np.zeros(len(source.classes), dtype=bool)
    for split, shards in finished.items():
        counts = np.zeros(len(source.classes), dtype=np.int64)
        for shard in state.shards[split]:
            labels = shard.rows()["labels"]
            counts += np.bincount(labels[labels >= 0], minlength=len(counts))
        with_images |= counts > 0
        splits[split] = {
            "images": sum(shard.samples for shard in shards),
            "classes_with_images": int((counts > 0).sum()),
            "min": int(counts.min()),
            "median": float(np.median(counts)),
            "max": int(counts.max()),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
            "counts": counts.tolist(),
        }
    return {
        "name": source.name,
        "splits": splits,
        "empty_splits": [split for split in state.shards if split not in finished],
        "val_share": state.val_share,
        "num_classes": len(source.classes),
        "images_read": state.consumed,
        "notes": dict(sorted(state.notes.items())),
        "differences": _differences(state, int(with_images.sum())),
        "classes_left_out": sorted(source.unknown_classes),
        "seconds": round(state.seconds, 1),
        "images_per_second": round(state.consumed / max(state.seconds, 1e-9), 1),
        "megabytes_per_second": round(state.bytes_read / 1e6 / max(state.seconds, 1e-9), 1),
        "threads": state.options.threads,
        "machine": results.cpu_name(),
    }


def _differences(state: State, classes_with_images: int) -> list[str]:
    """A sentence for each count that is not the published one."""
    expected = EXPECTED.get(state.source.release, {})
    found = {"classes": classes_with_images, **state.images_read}
    return [
        f"{'classes with images' if what == 'classes' else f'{what} images'}: "
        f"{expected[what]:,} published, {count:,} found"
        for what, count in found.items()
        if what in expected and count != expected[what]
    ]


def show_report(screen: Screen, report: Mapping[str, Any], output: Path) -> None:
    """Say what a report holds."""
    rows = [
        (
            split,
            f"{each['images']:,}",
            f"{each['classes_with_images']:,} of {report['num_classes']:,}",
            f"{each['min']:,} / {each['median']:,.0f} / {each['max']:,}",
            f"{each['shards']:,}",
            format_bytes(each["bytes"]),
        )
        for split, each in report["splits"].items()
    ]
    columns = ("split", "images", "classes", "min / median / max a class", "shards", "size")
    screen.table("", columns, rows)
    for split in report.get("empty_splits", []):  # older reports have none
        held_out = split == "val" and report["val_share"]
        why = f"val_share={report['val_share']:.2g} of train held out none" if held_out else "none was kept"
        screen.say(f"{split}: no image and no shard ({why})")
    if report.get("empty_splits") and not {"val", "test"} & report["splits"].keys():
        screen.say(
            "Training needs a val or a test split. Hold images out in training, with train_split='train[:99%]' "
            "val_split='train[99%:]'; or make the set anew, in another folder, with a larger val_share."
        )
    for kind, count in report["notes"].items():
        screen.say(f"{kind}: {count:,} (see {output / 'bad.jsonl'})")
    if report["classes_left_out"]:
        names = report["classes_left_out"]
        screen.say(
            f"{len(names):,} classes are not in the list and were left out: {', '.join(names[:5])} ..."
        )
    for line in report["differences"]:
        screen.say(f"not as published: {line}")
    screen.say(
        f"{report['seconds']:,.0f} seconds, {report['images_per_second']:,.0f} images/s, "
        f"{report['megabytes_per_second']:,.0f} MB/s"
    )
    screen.say(f"shards, index, report: {output}")
