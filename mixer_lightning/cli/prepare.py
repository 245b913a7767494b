"""Any data set to WebDataset shards, once: `mixer prepare data=... source=... output=...`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.groups import groups
from mixer_lightning.data.sources.imagenet_archives import (
    BUNDLED,
    DEFAULT_LIST_21K,
    VAL_SHARE_21K,
    VARIANTS,
)
from mixer_lightning.data.sources.prepare_defaults import DEFAULTS
from mixer_lightning.prepare.options import (
    ARCHIVES_AND_LISTS,
    LISTS,
    MAX_PARTS,
    MAX_SHARDS,
    SPLITS,
    Options,
    Part,
)
from mixer_lightning.screen import Screen, did_you_mean, refuse

USAGE = """data=<name> source=<path> output=<folder> [key=value ...]

  mixer prepare data=imagenet1k source=~/archives output=data/imagenet1k
  mixer prepare data=imagenet21k variant=winter21 source=winter21_whole.tar output=data/imagenet21k
  mixer prepare data=list source=photos.tsv classes=names.txt val_share=0.02 output=data/photos
  mixer prepare data=folder source=~/birds output=data/birds short_side=500 quality=90
  mixer prepare data=folder source=~/birds output=data/birds part=3/64     (one of 64 jobs; at last part=merge)"""

MERGE = "merge"
BYTE_UNITS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def main(argv: Sequence[str]) -> int:
    """Run a command line; the exit code: 0 done, 1 failed on the way, 2 nothing was started, 130 or 143 stopped."""
    options = parse(argv)
    from mixer_lightning.prepare import program  # torch: seconds

    return program.write_shards(options, Screen())


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line. Wrong ones end the program, with a sentence each and exit code 2."""
    overrides = tuple(argument for argument in argv if argument.startswith("data."))
    own = [argument for argument in argv if argument not in overrides]
    parser = _parser()
    messages = parser.wrong(own)
    keyed = [argument for argument in own if "=" in argument or argument in ("-h", "--help")]
    chosen, _ = parser.parse_known_args([x if x.startswith("-") else f"--{x}" for x in keyed])
    for key in ("data", "output"):
        if getattr(chosen, key) is None:
            messages.append(f"'{key}' is missing: {key}=...")
    names = sorted({*ARCHIVES_AND_LISTS, *groups()["data"]})
    if chosen.data is not None and chosen.data not in names:
        messages.append(
            f"unknown data '{chosen.data}'{did_you_mean(chosen.data, names)}. There are: {', '.join(names)}"
        )
    values = vars(chosen) | {"overrides": overrides}
    values["merge"] = values["part"] == MERGE
    values["part"] = None if values["merge"] else values["part"]
    if messages := messages or [*_out_of_range(values), *_contradictions(values)]:
        refuse(messages)
    if values["short_side"] is not None and values["quality"] is None:
        values["quality"] = DEFAULTS.resized_quality
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
    add("--variant", choices=VARIANTS, help="release of imagenet21k; default: by the archive's name")
    add("--split", choices=SPLITS, default=Options.split, help="of a list in one file; default: %(default)s")
    add("--splits", type=_split_names, metavar="NAMES", help="only these, such as train,val; default: all")
    add("--classes", metavar="FILE",
        help="one name (imagenet21k: WordNet id) per line, in the order of labels; for imagenet21k also: "
        f"{', '.join(['found', *BUNDLED])}; default of fall11 and winter21: {DEFAULT_LIST_21K}")
    add("--val_share", type=float, metavar="SHARE",
        help=f"share of train to hold out as val; default: 0, for imagenet21k without val {VAL_SHARE_21K:.2g}")
    add("--short_side", type=int, metavar="PIXELS", help="resize larger images; default: bytes as they are")
    add("--quality", type=int, metavar="N", help=f"of resized JPEGs; default: {DEFAULTS.resized_quality}")
    add("--restart", type=int, metavar="MCUS",
        help="restart markers every so many blocks of JPEGs, without loss: 4 lets training decode sooner")
    add("--verify", type=_boolean, default=Options.verify, metavar="true|false",
        help=f"decode all images; default: {str(Options.verify).lower()}")
    add("--hashes", type=_path, metavar="FILE", help="difference hashes; what is near one is left out")
    add("--max_distance", type=int, default=Options.max_distance, metavar="BITS",
        help="what near means, of 64; default: %(default)s")
    add("--write_hashes", type=_path, metavar="FILE", help="write such a file for this data set")
    add("--shard_bytes", type=_num_bytes, default=Options.shard_bytes, metavar="BYTES",
        help=f"such as 500MB; default: {Options.shard_bytes / 1e9:g}GB")
    add("--shards", type=int, metavar="N", help="how many for the largest split, instead of a size")
    add("--max_bad", type=float, default=Options.max_bad, metavar="SHARE",
        help="stop when more images are bad; default: %(default)s, and never under 100 images")
    add("--seed", type=int, default=Options.seed, metavar="N",
        help="decides which sample goes where; default: %(default)s")
    add("--part", type=_part, metavar="K/N|merge",
        help="prepare part K of N in this job, from 1 on, beside others or after them; merge: join all into the set")
    add("--threads", type=int, default=threads, metavar="N", help="default: one per core")
    # fmt: on
    return parser


def _out_of_range(values: dict[str, Any]) -> list[str]:
    """A sentence for each number that is too small or too large."""
    messages = []
    for key, least, most in (
        ("short_side", 1, None),
        ("quality", 1, 100),
        ("restart", 1, 65_535),
        ("max_distance", 0, 64),
        ("shard_bytes", 1, None),
        ("shards", 1, MAX_SHARDS),
        ("threads", 1, None),
    ):
        value = values[key]
        if value is not None and (value < least or (most is not None and value > most)):
            messages.append(
                f"{key} must be at least {least}{f' and at most {most:,}' if most else ''}, found {value}"
            )
    for key in ("val_share", "max_bad"):
        if values[key] is not None and not 0 <= values[key] <= 1:
            messages.append(f"{key} is a share, from 0 to 1, found {values[key]}")
    return messages


def _contradictions(values: dict[str, Any]) -> list[str]:
    """A sentence for each option that does not go with the others."""
    data, messages = values["data"], []
    if values["quality"] is not None and values["short_side"] is None:
        messages.append("quality is that of resized images: it needs short_side=<pixels>")
    if values["max_distance"] and values["hashes"] is None:
        messages.append("max_distance needs hashes=<file>")
    if values["variant"] and data != "imagenet21k":
        messages.append(f"variant is for data=imagenet21k, not for {data}")
    if values["classes"] and data not in ("imagenet21k", *LISTS):
        messages.append(f"classes is for imagenet21k and lists; {data} names its own")
    if values["split"] != DEFAULTS.split and data not in LISTS:
        messages.append(f"split is that of a list in one file; of {data}, splits=<names> chooses")
    if values["shards"] is not None and values["shard_bytes"] != DEFAULTS.shard_bytes:
        messages.append("shards and shard_bytes both say how many shards there are to be: give one")
    if values["source"] is not None and any(each.startswith("data.root=") for each in values["overrides"]):
        messages.append("source and data.root are the same: give one")
    if values["overrides"] and data in ARCHIVES_AND_LISTS:
        messages.append(f"'{values['overrides'][0]}': {data} takes no keys of conf/data here")
    if values["source"] is None and data in ARCHIVES_AND_LISTS:
        messages.append(f"source is missing: the archives, folder or list of {data}")
    if values["source"] is not None and values["source"] == values["output"]:
        messages.append("source and output are the same folder: choose another output")
    if values["hashes"] is not None and not values["hashes"].is_file():
        messages.append(f"hashes: there is no file {values['hashes']}")
    return messages


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _split_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(SPLITS):
        raise argparse.ArgumentTypeError(f"'{text}' is not made of {', '.join(SPLITS)}")
    return names


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text == "true"


def _part(text: str) -> Part | str:
    if text == MERGE:
        return text
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is neither K/N, such as 3/64, nor {MERGE}")
    part = Part(int(match[1]), int(match[2]))
    if not 1 <= part.number <= part.total <= MAX_PARTS:
        raise argparse.ArgumentTypeError(
            f"'{text}': parts count from 1, to at most {MAX_PARTS:,}: 1/64 to 64/64"
        )
    return part


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kMGT])B?)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of bytes, such as 500MB or 1GB")
    return int(float(match[1]) * BYTE_UNITS[match[2]])
