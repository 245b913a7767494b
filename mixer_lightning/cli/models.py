"""The models of conf/model: size, cost and what was published for them: `mixer models`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from mixer_lightning.config.arguments import Parser
from mixer_lightning.models.presets import Published, cost, default_image_size, list_models, published

#: A label for the data of a published row, and the number of classes of the head that the table counts.
DATA = {
    "imagenet1k": ("ImageNet", 1000),
    "imagenet21k": ("ImageNet, pre-trained on ImageNet-21k", 1000),
    "jft300m": ("ImageNet, pre-trained on JFT-300M", 1000),
    "ilsvrc2010": ("ILSVRC-2010", 1000),
    "cifar10": ("CIFAR-10", 10),
    "cifar10_4k": ("CIFAR-10, 4,000 labels", 10),
    "mnist": ("MNIST", 10),
    "usps1989": ("zip codes of 1989", 10),
    "digits": ("digits", 10),
}


def main(argv: Sequence[str]) -> int:
    """Print the table; the exit code."""
    Parser(
        "models",
        usage="",
        description="Lists the models of conf/model: parameters, multiply-accumulates, published top-1 accuracy.",
    ).read(argv)

    lines = [("model", "parameters", "GMACs", "input", "published top-1", "source")]
    rows = published()
    for name in list_models():
        row = best_known(name, rows)
        label, num_classes = DATA.get(row.data, (row.data, 1000)) if row else ("", 1000)
        parameters, macs = cost(name, num_classes=num_classes)
        size = default_image_size(name)
        top1 = f"{row.top1_percent:.2f} % {label}" if row and row.top1_percent is not None else "-"
        source = row.source if row else ""
        lines.append((name, f"{parameters:,}", gigas(macs), f"{size} px", top1, source))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(aligned(lines, columns)))
    return 0


def aligned(lines: Sequence[tuple[str, ...]], columns: int | None) -> list[str]:
    """The table; in a terminal of too few columns, the two texts at the end of a row get lines of their own."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    head = [
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 4))])
        for line in lines
    ]
    whole = [
        f"{first}  {line[4].ljust(widths[4])}  {line[5]}" for first, line in zip(head, lines, strict=True)
    ]
    if columns is None or max(map(len, whole)) <= columns:
        return whole
    shown = []
    for first, line in zip(head, lines, strict=True):
        shown += [first, *(f"    {text}" for text in line[4:] if text)]
    return shown


def best_known(name: str, rows: list[Published]) -> Published | None:
    """The published row at a model's own size: trained on one data set alone if there is one, else the highest."""
    size = default_image_size(name)
    own = [row for row in rows if row.model == name and row.input == size]
    alone = [row for row in own if row.data in ("imagenet1k", "cifar10")]
    return next(iter(alone), max(own, key=lambda row: row.top1_percent or 0.0, default=None))


def gigas(macs: int) -> str:
    """Billions, to two places, and to two digits where that would be nothing."""
    return f"{macs / 1e9:.2f}" if macs >= 1e8 else f"{macs / 1e9:.2g}"
