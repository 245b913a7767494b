"""The rows of the study `throughput`: what has been measured, in a CSV file that grows with every measurement."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mixer_lightning import results
from mixer_lightning.models.presets import PASSES
from mixer_lightning.studies.rounds import middle_half

MATMUL = "matmul"  # the mode of the rows that hold the device's rate of matrix products


class Setting(NamedTuple):
    """What decides a measurement: rows of one setting, and no others, are the same measurement made again."""

    model: str
    mode: str
    batch_size: int
    image_size: int
    precision: str
    layout: str
    compile: str
    seconds: float
    definition: str  # fingerprint of the model's file
    device: str
    machine: str
    versions: str


@dataclass
class Row:
    """The measurements of a setting, one a round; for a product of matrices multiply-accumulates per second."""

    setting: Setting
    values: list[float] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0  # of a forward pass, for one image
    peak_memory_bytes: int | None = None
    memory_format: str = ""
    left_out: str = ""  # why there are no values, or no more

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)


class Table:
    """Rows by setting. Those of other settings that are in the file stay there, behind.

    What was left out is tried again, and said until it is.

    Raises:
        ValueError: the file is of something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Setting, Row] = {}
        self._left_out_before: dict[Setting, Row] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                read = [_read(line) for line in csv.DictReader(file)]
            for row in read:
                if row is None:
                    raise ValueError(
                        f"{path} holds no measurements of this study: move it away, or say out=<another folder>"
                    )
                if row.values:
                    row.left_out = ""
                    self.rows[row.setting] = row
                else:
                    self._left_out_before[row.setting] = row

    def row(self, setting: Setting, *, parameters: int = 0, macs: int = 0) -> Row:
        """The row of a setting, which from now on is one of the table."""
        row = self.rows.setdefault(setting, Row(setting))
        row.parameters, row.macs = parameters, macs
        return row

    def matrix_rate(self, setting: Setting) -> float | None:
        """The fastest matrix products under the same conditions, in multiply-accumulates per second; None without any.

        Whatever else runs on a machine only slows them, hence not the median.
        """
        rows = [
            row
            for other, row in self.rows.items()
            if other.mode == MATMUL
            and row.values
            and (other.precision, other.machine, other.versions)
            == (setting.precision, setting.machine, setting.versions)
        ]
        return max(value for row in rows for value in row.values) if rows else None

    def utilisation(self, row: Row) -> float | None:
        """MFU: the multiply-accumulates that a row achieves, of those that products of matrices do."""
        rate = self.matrix_rate(row.setting)
        if rate is None or not row.values or not row.macs:
            return None
        return row.median * row.macs * PASSES[row.setting.mode] / rate

    def best(self, setting: Setting) -> int | None:
        """The batch size that was best in the first round, which all have and the best alone goes on from."""
        rows = [
            row
            for other, row in self.rows.items()
            if row.values and other._replace(batch_size=setting.batch_size) == setting
        ]
        return max(rows, key=lambda row: row.values[0]).setting.batch_size if rows else None

    def write(self, published: Mapping[tuple[str, int], Mapping[str, float]]) -> None:
        """The file, at once; `published` has others' images per second by model and size, and column."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(column for each in published.values() for column in each))
        rows = [row for row in self.rows.values() if row.values or row.left_out]
        rows += [row for setting, row in self._left_out_before.items() if setting not in self.rows]
        results.write_rows(self.path, [dict(self._cells(row, published, columns)) for row in rows])

    def _cells(
        self,
        row: Row,
        published: Mapping[tuple[str, int], Mapping[str, float]],
        columns: list[str],
    ) -> Iterator[tuple[str, object]]:
        setting = row.setting
        yield from setting._asdict().items()
        if row.values and setting.mode == MATMUL:
            yield "macs_per_second", float(f"{max(row.values):.4g}")
        elif row.values:
            low, middle, high = middle_half(row.values) if len(row.values) > 1 else row.values * 3
            for name, value in (("", middle), ("_low", low), ("_high", high)):
                yield f"images_per_second{name}", float(f"{value:.4g}")
            yield "num_devices", 1
            yield "images_per_second_per_device", float(f"{row.median:.4g}")
            yield "is_best", setting.batch_size == self.best(setting)
            mfu = self.utilisation(row)
            yield "mfu", float(f"{mfu:.3g}") if mfu is not None else ""
        yield "rounds", len(row.values)
        yield "values", " ".join(f"{value:.6g}" for value in row.values)
        yield "peak_memory_bytes", row.peak_memory_bytes if row.peak_memory_bytes is not None else ""
        yield "memory_format", row.memory_format
        yield "parameters", row.parameters or ""
        yield "macs", row.macs or ""
        yield "left_out", row.left_out
        theirs = published.get((setting.model, setting.image_size), {}) if setting.mode == "inference" else {}
        for column in columns:
            yield column, theirs.get(column, "")


def _read(line: Mapping[str, str]) -> Row | None:
    """A line of the file; None for one that is none."""
    try:
        setting = Setting(
            **{
                key: line[key]
                for key in Setting._fields
                if key not in ("batch_size", "image_size", "seconds")
            },
            batch_size=int(line["batch_size"]),
            image_size=int(line["image_size"]),
            seconds=float(line["seconds"]),
        )
        return Row(
            setting,
            [float(value) for value in line["values"].split()],
            int(line["parameters"] or 0),
            int(line["macs"] or 0),
            int(line["peak_memory_bytes"]) if line["peak_memory_bytes"] else None,
            line["memory_format"],
            line["left_out"],
        )
    except (KeyError, ValueError, TypeError):
        return None
