"""The tables that the papers print, as data: one CSV a table beside this file, which owns its numbers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
#: What a file of this folder is called where its rows are cited: not where it happens to be installed.
CITED_AS = "mixer_lightning/reports"


class PublishedTable(NamedTuple):
    """A printed table: its file's stem, title, and what a reader should know before comparing with it."""

    name: str
    title: str
    accuracy: str  # the column of ImageNet top-1
    notes: tuple[str, ...]


MIXER_TABLE_2 = PublishedTable(
    "mixer_table2",
    "MLP-Mixer, table 2: ten systems",
    "ImNet",
    (
        "Top-1 in percent after fine-tuning; img/s and core-days (thousands) of pre-training are of one TPUv3 core.",
        "The table states an image size for Mixer alone; where another row's comes from stands in its note.",
        "Core-days of ViT are .18k and 2.30k here, .23k and 2.5k in arXiv 2010.11929.",
    ),
)
MIXER_TABLE_3 = PublishedTable(
    "mixer_table3",
    "MLP-Mixer, table 3: scale and pre-training data",
    "ImNet",
    (
        "Top-1 in percent after fine-tuning, mean of three runs for Mixer and ViT (deviation below .15).",
        "img/s and core-days (thousands) are of one TPUv3 core.",
    ),
)
CONVMIXER = PublishedTable(
    "convmixer_imagenet",
    "ConvMixer, ImageNet table: 31 networks",
    "top-1",
    (
        "Top-1 in percent on ImageNet-1k without further data.",
        "img/s are the authors', on a GPU, their conditions unverified: not comparable with the TPU figures above.",
        "star: regularisation after A1; dagger: throughput alone; dot: a row with one of the matching coloured dots.",
    ),
)
#: Not of ImageNet, and set beside the rows of a study: reports/ablation.py.
CONVMIXER_ABLATION = PublishedTable(
    "convmixer_ablation",
    "ConvMixer-256/8 on CIFAR-10: parts exchanged one at a time",
    "top-1",
    (
        "Top-1 in percent; differences in points to the network as it is, of the same seed.",
        "Published numbers are UNVERIFIED: the paper itself could not be read.",
        "Differences of residual, LayerNorm and patches are quoted by another source, others follow from accuracies.",
        "A user of the authors' code quotes 96.03 for patch 1 and kernel 9 from table 4.",
        "What LayerNorm takes together in the paper is not known; here it is the channels of each position.",
    ),
)
TABLES = (MIXER_TABLE_2, MIXER_TABLE_3, CONVMIXER)
#: The network that the ablation exchanges parts of, and its data, by their names in conf/.
ABLATED = ("convmixer_256_8_p1_k9", "cifar10")


def rows(table: PublishedTable) -> list[dict[str, str]]:
    """The rows of a table, as they stand in its file."""
    with (FOLDER / f"{table.name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables_of(model: str, data: str) -> list[str]:
    """Names of the tables with a row of a network trained on a data set, both as conf/ calls them."""
    found = [
        table.name
        for table in TABLES
        if any((row["conf_model"], row["data"]) == (model, data) for row in rows(table))
    ]
    return found + ([CONVMIXER_ABLATION.name] if (model, data) == ABLATED else [])


def cited(table: PublishedTable) -> str:
    """How the file of a table is named as the source of a number."""
    return f"{CITED_AS}/{table.name}.csv"
