"""The models of conf/model: family, size, cost, what was published for them and where weights are: `mixer models`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser
from mixer_lightning.models import catalogue
from mixer_lightning.models.presets import (
    MODEL_FOLDER,
    Cost,
    Published,
    count,
    default_image_size,
    list_models,
    published,
)
from mixer_lightning.reports import markdown
from mixer_lightning.screen import last_line, refuse

#: Of a model with weights of several names, as many are shown.
SHOWN_WEIGHTS = 1


def main(argv: Sequence[str]) -> int:
    """Print the table; the exit code."""
    chosen, words = settings(argv)
    files = model_files(chosen.config_dir)
    try:
        names = catalogue.matching(sorted(files), words, beginnings=True)
    except ValueError as error:
        refuse([str(error)])
    if chosen.count:
        try:
            print("\n".join(write_counts({name: files[name] for name in names})))
        except OSError as error:
            refuse([f"cannot write what was counted: {error}"])
        return 0
    entries = read_entries(
        {name: files[name] for name in names}, image_size=chosen.image_size, num_classes=chosen.num_classes
    )
    if chosen.json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
    elif chosen.markdown:
        print("\n".join(table_of_families(entries)))
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(aligned(entries, columns)))
    return 0


def settings(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command line, and its words: patterns of names. A wrong one ends the program with a message."""
    words = [word for word in argv if not word.startswith("-") and "=" not in word]
    parser = Parser(
        "models",
        usage="[name, family or 'pattern*' ...] [image_size=224] [num_classes=1000] [--json] [--markdown]",
        description="Lists the models of conf/model: family, parameters, multiply-accumulates for one image, published "
        "top-1\naccuracy with its source, and where weights are. Words choose among them: mixer models resnet 'mixer*'",
    )
    add = parser.add_argument
    add("--image_size", type=int, metavar="N", help="count at this side in pixels; default: what each is for")
    add("--num_classes", type=int, metavar="N", help="count with a head for so many classes; 0: without one")
    add("--config-dir", type=Path, metavar="FOLDER", help="with the models of a folder of one's own")
    add("--json", action="store_true", help="everything, also all published rows, as JSON")
    add("--markdown", action="store_true", help="a table with a row per family, as in the README")
    add("--count", action="store_true", help="count every model anew and write costs.csv and weights.csv")
    chosen = parser.read([word for word in argv if word not in words])
    parser.check_at_least(1, chosen, "image_size")
    parser.check_at_least(0, chosen, "num_classes")
    if chosen.json and chosen.markdown:
        parser.error("--json and --markdown are two forms of the table: choose one")
    others = [word for word in argv if word not in words and word != "--count"]
    if chosen.count and others:
        parser.error(f"--count counts the models of conf/model as they are: leave out {others[0]}")
    return chosen, words


def model_files(config_dir: Path | None) -> dict[str, Path]:
    """The files of conf/model by name, and those of a folder of one's own, which go before."""
    files = {name: MODEL_FOLDER / f"{name}.yaml" for name in list_models()}
    if config_dir is not None:
        folder = config_dir.expanduser()
        if not folder.is_dir():
            refuse([f"--config-dir: there is no folder {folder}"])
        files |= {path.stem: path for path in sorted((folder / "model").glob("*.yaml"))}
    return files


class Entry(NamedTuple):
    """A model of the table; without `cost` where it cannot be built, for the reason `problem`."""

    name: str
    num_classes: int
    image_size: int
    cost: Cost | None
    rows: list[Published]
    weights: list[str]
    unverified: bool
    problem: str = ""

    @property
    def best(self) -> Published | None:
        """The row that the table shows, published at this size."""
        return catalogue.best_known(self.name, [row for row in self.rows if row.input == self.image_size])

    @property
    def not_public(self) -> list[str]:
        """What some of its published rows were pre-trained on and only its owner has."""
        return [catalogue.PRIVATE[data] for data in catalogue.PRIVATE if data in {r.data for r in self.rows}]

    def to_dict(self) -> dict[str, Any]:
        """The entry for a program to read."""
        return {
            "model": self.name,
            "family": catalogue.family(self.name),
            "parameters": self.cost.parameters if self.cost else None,
            "macs": self.cost.macs if self.cost else None,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "published": [row._asdict() for row in self.rows],
            "published_speed": [
                row._asdict() for row in catalogue.published_speeds() if row.model == self.name
            ],
            "weights": self.weights,
            "weights_not_public": self.not_public,
            "unverified": self.unverified,
            "problem": self.problem or None,
        }


def read_entries(
    files: Mapping[str, Path], *, image_size: int | None = None, num_classes: int | None = None
) -> list[Entry]:
    """Entries of the table. What costs.csv does not have, with exactly these numbers, is counted."""
    rows, costs, weights = published(), catalogue.counted(), catalogue.weights()
    entries = []
    for name, path in files.items():
        own = [row for row in rows if row.model == name]
        size = default_image_size(name)
        classes = catalogue.num_classes_of(catalogue.best_known(name, own))
        size, classes = image_size or size, classes if num_classes is None else num_classes
        text = path.read_text(encoding="utf-8")
        cost, problem = None, ""
        try:
            node = yaml.safe_load(text)
            cost = catalogue.known_cost(costs.get(name), node, num_classes=classes, image_size=size)
            cost = cost or count(node, num_classes=classes, image_size=size)
        except Exception as error:  # of a file of one's own, say: the others are listed all the same
            problem = last_line(error)
        about = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        unverified = catalogue.unverified(about, own)
        entries.append(Entry(name, classes, size, cost, own, weights.get(name, []), unverified, problem))
    return entries


# ------------------------------------------------------------------------------------------- the table


def cells(entry: Entry) -> list[str]:
    """Name, family, parameters, GMACs, input, top-1, then texts: its data, its source, weights."""
    row = entry.best
    cost, top1, source = entry.cost, "-", row.source if row else entry.problem
    data = ""
    if row is not None and row.top1_percent is not None:
        top1 = f"{row.top1_percent:.2f} %"
        data = catalogue.DATA.get(row.data, (row.data, 0))[0]
        data += f", {row.epochs} epochs" if row.epochs is not None else ""
    if entry.problem:
        source = f"cannot be built: {entry.problem}"
    elif entry.unverified and "unverified" not in source.lower():
        source += f"; UNVERIFIED, see conf/model/{entry.name}.yaml"
    return [
        entry.name,
        catalogue.family(entry.name),
        f"{cost.parameters:,}" if cost else "-",
        gigas(cost.macs) if cost else "-",
        f"{entry.image_size} px",
        top1,
        data,
        source,
        where(entry),
    ]


def where(entry: Entry) -> str:
    """Where weights are, in a line."""
    cited = entry.best.source.split() if entry.best else []
    first = sorted(entry.weights, key=lambda each: each.removeprefix("timm:") not in cited)
    texts = []
    for kind in (True, False):
        names = [each for each in first if each.startswith("timm:") is kind]
        more = len(names) - SHOWN_WEIGHTS
        texts += names[:SHOWN_WEIGHTS]
        texts += [f"{more} more of {'timm' if kind else 'its authors'} (--json)"] if more > 0 else []
    if not entry.weights:
        return "none public"
    return ", ".join(texts) + "".join(f"; those of {data} are not public" for data in entry.not_public)


HEADER = ["model", "family", "parameters", "GMACs", "input", "top-1", "data, epochs", "source", "weights"]


def aligned(entries: Sequence[Entry], columns: int | None) -> list[str]:
    """The table; in a terminal of too few columns, the family and the texts of a row get lines of their own."""
    lines = [HEADER, *map(cells, entries)]
    widths = [max(map(len, each)) for each in zip(*lines, strict=True)]

    def numbers(line: Sequence[str]) -> list[str]:
        return [line[i].rjust(widths[i]) for i in range(2, 6)]

    whole = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                line[1].ljust(widths[1]),
                *numbers(line),
                *(line[i].ljust(widths[i]) for i in range(6, 9)),
            ]
        ).rstrip()
        for line in lines
    ]
    if columns is None or max(map(len, whole)) <= columns:
        return whole
    shown = ["  ".join([HEADER[0].ljust(widths[0]), *numbers(HEADER)])]
    for line in lines[1:]:
        shown.append("  ".join([line[0].ljust(widths[0]), *numbers(line)]))
        about = f"{line[1]}: {line[6] or 'no accuracy'}; {line[7]}" if line[7] else line[1]
        for text in (about, f"weights: {line[8]}"):
            shown += textwrap.wrap(text, max(30, columns), initial_indent="    ", subsequent_indent="      ")
    return shown


def gigas(macs: int) -> str:
    """Billions, to two places, and to two digits where that would be nothing."""
    return f"{macs / 1e9:.2f}" if macs >= 1e8 else f"{macs / 1e9:.2g}"


# ------------------------------------------------------------------------------------------- by families


def table_of_families(entries: Sequence[Entry]) -> list[str]:
    """A Markdown table with a row per family, the smallest and the largest of each number."""
    rows = []
    for family in dict.fromkeys(catalogue.family(entry.name) for entry in entries):
        mine = [entry for entry in entries if catalogue.family(entry.name) == family]
        costs = [entry.cost for entry in mine if entry.cost]
        bests = [entry.best for entry in mine if entry.best is not None]
        top1 = [
            row.top1_percent
            for row in bests
            if row.top1_percent is not None and catalogue.DATA[row.data][0].startswith("ImageNet")
        ]
        kinds = {"timm" if each.startswith("timm:") else "authors" for e in mine for each in e.weights}
        rows.append(
            [
                family,
                ", ".join(entry.name + (" (UNVERIFIED)" if entry.unverified else "") for entry in mine),
                _span([cost.parameters / 1e6 for cost in costs]),
                _span([cost.macs / 1e9 for cost in costs]),
                _span([float(entry.image_size) for entry in mine]),
                _span(top1),
                ", ".join(sorted(kinds, reverse=True)) or "none public",
            ]
        )
    header = ("family", "model=", "M parameters", "GMACs", "px", "ImageNet top-1, %", "weights")
    return markdown.table(header, rows)


def _span(values: Sequence[float]) -> str:
    """'4.1 to 11.5', to three digits; '-' for nothing."""
    ends = (min(values), max(values)) if values else ()
    texts = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in ends]
    return " to ".join(dict.fromkeys(texts)) or "-"


# ------------------------------------------------------------------------------------------- counting


def write_counts(files: Mapping[str, Path]) -> list[str]:
    """Count models anew, and write them to costs.csv and timm's names for them to weights.csv; what was written."""
    from mixer_lightning.checkpoints.families import TIMM_SCHEME, model_named
    from mixer_lightning.checkpoints.hub import names  # timm: seconds

    rows, costs = published(), catalogue.counted()
    for name, path in files.items():
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
        size, classes = default_image_size(name), catalogue.num_classes_of(catalogue.best_known(name, rows))
        cost = count(node, num_classes=classes, image_size=size)
        costs[name] = catalogue.CountedModel(name, catalogue.digest(node), classes, size, *cost)
    known = list_models()
    kept = [costs[name]._asdict() for name in sorted(costs) if name in known]
    of_timm = {(model_named(name, known), f"{TIMM_SCHEME}{name}") for name in names()}
    others = [
        (model, each)
        for model, found in catalogue.weights().items()
        for each in found
        if not each.startswith(TIMM_SCHEME)
    ]
    found = sorted((model, each) for model, each in of_timm if model is not None) + others
    results.write_rows(catalogue.COSTS, kept)
    weights = [{"model": model, "weights": each} for model, each in sorted(found, key=lambda row: row[0])]
    results.write_rows(catalogue.WEIGHTS, weights)
    return [f"{len(files)} models counted; {catalogue.COSTS} and {catalogue.WEIGHTS} written"]
