"""The command line of prepare: key=value words, checked."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.groups import groups
from mixer_lightning.screen import did_you_mean, refuse

USAGE = """data=<name> source=<path> output=<folder> [key=value ...]

  mixer prepare data=imagenet1k source=~/archives output=data/imagenet1k
  mixer prepare data=imagenet21k variant=winter21 source=winter21_whole.tar output=data/imagenet21k
  mixer prepare data=list source=photos.tsv classes=names.txt val_share=0.02 output=data/photos
  mixer prepare data=folder source=~/birds output=data/birds short_side=500 quality=90"""

OWN = (
    "imagenet1k",
    "imagenet21k",
    "jft300m",
    "list",
)  # what is read here; the rest by the functions of conf/data
VARIANTS = ("fall11", "fall11_p", "winter21", "winter21_p")
SPLITS = ("train", "val", "test")
UNITS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
CMYK_QUALITY = 95  # of the JPEGs that CMYK images become


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make of which source, and where."""

    data: str
    output: Path
    source: Path | None = None
    variant: str | None = None
    split: str = "train"
    splits: tuple[str, ...] | None = None  # None: all that there are
    classes: str | None = None
    val_share: float | None = None  # None: as the data set is used
    short_side: int | None = None
    quality: int | None = None
    verify: bool = True
    hashes: Path | None = None
    max_distance: int = 0
    write_hashes: Path | None = None
    shard_bytes: int = 10**9
    shards: int | None = None
    max_bad: float = 0.01
    seed: int = 0
    threads: int = 1
    overrides: tuple[str, ...] = ()  # data.<key>=<value>, for functions of conf/data

    def record(self) -> dict[str, Any]:
        """What decides the bytes of the shards, in plain values; two equal records make equal shards of a source."""
        return {
            "data": self.data,
            "variant": self.variant,
            "split": self.split if self.data in ("list", "jft300m") else None,
            "splits": sorted(self.splits) if self.splits else None,
            "classes": _content(self.classes),
            "val_share": self.val_share,
            "short_side": self.short_side,
            "resampling": "lanczos" if self.short_side else None,
            "quality": self.quality,
            "cmyk_quality": CMYK_QUALITY,
            "verify": self.verify,
            "hashes": _content(self.hashes),
            "max_distance": self.max_distance,
            "write_hashes": self.write_hashes is not None,
            "shard_bytes": self.shard_bytes,
            "shards": self.shards,
            "seed": self.seed,
            "overrides": sorted(self.overrides),
        }


def _content(path: str | Path | None) -> str | None:
    """A file as its checksum, a word as itself."""
    if path is None or not Path(path).is_file():
        return None if path is None else str(path)
    return f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def parse(words: Sequence[str]) -> Options:
    """The options of a command line. Wrong words end the program, with a sentence each and exit code 2."""
    overrides = tuple(word for word in words if word.startswith("data."))
    plain = [word for word in words if word not in overrides]
    parser = _parser()
    messages = parser.wrong(plain)
    keyed = [word for word in plain if "=" in word or word.startswith("-")]
    chosen, _ = parser.parse_known_args([word if word.startswith("-") else f"--{word}" for word in keyed])
    for key in ("data", "output"):
        if getattr(chosen, key) is None:
            messages.append(f"'{key}' is missing: {key}=...")
    names = sorted({*OWN, *groups()["data"]})
    if chosen.data is not None and chosen.data not in names:
        messages.append(
            f"unknown data '{chosen.data}'{did_you_mean(chosen.data, names)}. There are: {', '.join(names)}"
        )
    values = vars(chosen) | {"overrides": overrides}
    if messages := messages or _wrong(values):
        refuse(messages)
    if values["short_side"] is not None and values["quality"] is None:
        values["quality"] = 90
    return Options(**values)


def _parser() -> Parser:
    parser = Parser(
        "prepare",
        usage=USAGE,
        description="Write a data set as WebDataset shards with an index. What was interrupted goes on with the same "
        "command. Keys data.<key>=<value> go to the function of conf/data.",
    )
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = parser.add_argument
    # fmt: off
    add("--data", metavar="NAME", help="imagenet1k, imagenet21k, list, or a name of conf/data")
    add("--source", type=_path, metavar="PATH", help="archives, folder or list file")
    add("--output", type=_path, metavar="FOLDER", help="where the shards go")
    add("--variant", choices=VARIANTS, help="release of imagenet21k; default: told from the archive's name")
    add("--split", choices=SPLITS, default="train", help="of a list in one file; default: %(default)s")
    add("--splits", type=_split_names, metavar="NAMES", help="only these, such as train,val; default: all")
    add("--classes", metavar="FILE",
        help="one name (imagenet21k: WordNet id) per line, in the order of labels; for imagenet21k also: found, "
        "google, fall11, fall11_p, winter21_p, 12k, 1k")
    add("--val_share", type=float, metavar="SHARE",
        help="share of train to hold out as val; default: 0, for imagenet21k without val 0.0018")
    add("--short_side", type=int, metavar="PIXELS", help="resize larger images; default: bytes as they are")
    add("--quality", type=int, metavar="N", help="of resized JPEGs; default: 90")
    add("--verify", type=_truth, default=True, metavar="true|false", help="decode all images; default: true")
    add("--hashes", type=_path, metavar="FILE", help="difference hashes; what is near one is left out")
    add("--max_distance", type=int, default=0, metavar="BITS", help="what near means, of 64; default: 0")
    add("--write_hashes", type=_path, metavar="FILE", help="write such a file for this data set")
    add("--shard_bytes", type=_bytes, default=10**9, metavar="BYTES", help="such as 500MB; default: 1GB")
    add("--shards", type=int, metavar="N", help="how many for the largest split, instead of a size")
    add("--max_bad", type=float, default=0.01, metavar="SHARE",
        help="stop when more images are bad; default: 0.01, and never under 100 images")
    add("--seed", type=int, default=0, metavar="N", help="decides which sample goes where; default: 0")
    add("--threads", type=int, default=threads, metavar="N", help="default: one per core")
    # fmt: on
    return parser


def _wrong(values: dict[str, Any]) -> list[str]:
    """What is wrong with values that have the right type."""
    data, found = values["data"], []
    for key, least, most in (
        ("short_side", 1, None),
        ("quality", 1, 100),
        ("max_distance", 0, 64),
        ("shard_bytes", 1, None),
        ("shards", 1, 99_999),
        ("threads", 1, None),
    ):
        value = values[key]
        if value is not None and (value < least or (most is not None and value > most)):
            found.append(
                f"{key} must be at least {least}{f' and at most {most:,}' if most else ''}, found {value}"
            )
    for key in ("val_share", "max_bad"):
        if values[key] is not None and not 0 <= values[key] <= 1:
            found.append(f"{key} is a share, from 0 to 1, found {values[key]}")
    if values["quality"] is not None and values["short_side"] is None:
        found.append("quality is that of resized images: it needs short_side=<pixels>")
    if values["max_distance"] and values["hashes"] is None:
        found.append("max_distance needs hashes=<file>")
    if values["variant"] and data != "imagenet21k":
        found.append(f"variant is for data=imagenet21k, not for {data}")
    if values["classes"] and data not in ("imagenet21k", "list", "jft300m"):
        found.append(f"classes is for imagenet21k and lists; {data} names its own")
    if values["overrides"] and data in ("imagenet21k", "list", "jft300m"):
        found.append(f"'{values['overrides'][0]}': {data} takes no keys of conf/data here")
    if values["source"] is None and data in OWN:
        found.append(f"source is missing: the archives, folder or list of {data}")
    if values["source"] is not None and values["source"] == values["output"]:
        found.append("source and output are the same folder: choose another output")
    if values["hashes"] is not None and not values["hashes"].is_file():
        found.append(f"hashes: there is no file {values['hashes']}")
    return found


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _split_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(SPLITS):
        raise argparse.ArgumentTypeError(f"'{text}' is not made of {', '.join(SPLITS)}")
    return names


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text == "true"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kMGT])B?)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of bytes, such as 500MB or 1GB")
    return int(float(match[1]) * UNITS[match[2]])
