"""The transfer table: means over data sets and seeds, beside the published rows."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from mixer_lightning.reports import transfer as tables
from mixer_lightning.reports.transfer import Column

FIVE = ("imagenet1k", "cifar10", "cifar100", "pets", "flowers")
GROUPS = {"natural": 7, "specialized": 4, "structured": 8}  # arXiv 1910.04867
TASKS = {group: tuple(f"{group}{i}" for i in range(number)) for group, number in GROUPS.items()}
COLUMNS = (
    Column("ImNet", "test/top1", ("imagenet1k",)),
    Column("ReaL", "real/top1", ("imagenet1k",)),
    Column("Avg 5", "test/top1", FIVE),
    Column("VTAB-1k", "test/top1", tuple(name for names in TASKS.values() for name in names)),
    *(Column(group, "test/top1", names) for group, names in TASKS.items()),
)


@pytest.mark.parametrize(
    ("parts", "published"),
    [  # arXiv 2010.11929, Table 2: ImageNet, CIFAR-10, CIFAR-100, Pets, Flowers; the mean: arXiv 2105.01601, Table 2
        ((88.55, 99.50, 94.55, 97.56, 99.68), 95.97),
        ((85.30, 99.15, 93.25, 94.67, 99.61), 94.39),
        ((87.54, 99.37, 93.51, 96.62, 99.63), 95.33),
    ],
)
def test_avg_5_of_published_parts(parts: tuple[float, ...], published: float) -> None:
    runs = {data: {"test/top1": [part / 100]} for data, part in zip(FIVE, parts, strict=True)}
    row = tables.row(runs, COLUMNS)
    assert row["Avg 5"] == pytest.approx((published, 0.0), abs=0.0065)
    assert row["ImNet"][0] == pytest.approx(parts[0])
    assert "VTAB-1k" not in row
    assert "ReaL" not in row


def test_vtab_is_the_mean_over_tasks_not_over_groups() -> None:
    names = [name for group in TASKS.values() for name in group]
    assert len(names) == 19
    values = {name: [i / 20, i / 25] for i, name in enumerate(names)}
    row = tables.row({name: {"test/top1": seeds} for name, seeds in values.items()}, COLUMNS)
    means = [100 * statistics.fmean(seeds[k] for seeds in values.values()) for k in (0, 1)]
    assert row["VTAB-1k"] == pytest.approx((statistics.fmean(means), statistics.stdev(means)))
    assert row["natural"][0] != pytest.approx(row["VTAB-1k"][0])
    incomplete = {name: {"test/top1": values[name]} for name in names[1:]}
    assert "VTAB-1k" not in tables.row(incomplete, COLUMNS)
    stopped = {name: {"test/top1": values[name][: 1 if name == "natural6" else 2]} for name in names}
    assert set(tables.row(stopped, COLUMNS)) == {"specialized", "structured"}  # natural6 lacks a seed


def test_published_rows_stand_beside_it(tmp_path: Path) -> None:
    rows = tables.published("mixer_l16")
    assert {row["Avg 5"] for row in rows} == {"87.25", "93.63", "93.86", "93.91", "94.51", "94.77", "95.13"}
    runs = {"imagenet1k": {"test/top1": [0.801, 0.799]}}
    tables.write(tmp_path, {"ImNet": (80.0, 0.1)}, rows, runs, COLUMNS)
    text = (tmp_path / "transfer.md").read_text()
    assert "| this checkpoint | 80.00 ± 0.10 |" in text
    name = "Mixer-L/16 ImageNet-21k, 300 epochs, 448 px (published, table 2)"  # table 3 has 83.91, of another crop
    assert f"| {name} | 84.15 | 87.86 | 93.91 | 74.95 |" in text
    assert f"* {name}: 83.91 in table 3: another evaluation crop" in text
    assert (
        tables.label(tables.published("bit_r152x4")[0])
        == "BiT-R152x4 ImageNet-21k, 480 px (published, table 2)"
    )
    assert (tmp_path / "transfer.csv").read_text().splitlines()[1] == "imagenet1k,test/top1,80,0.141421,2"
