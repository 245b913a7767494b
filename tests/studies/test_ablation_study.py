"""The study of ConvMixer's parts: which runs it makes, what its rows say, and the paper's table beside them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from conftest import ROOT
from mixer_lightning import results
from mixer_lightning.reports import ablation as report
from mixer_lightning.reports import charts, markdown, published
from mixer_lightning.reports.sources import collect
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import Provenance
from mixer_lightning.screen import Screen
from mixer_lightning.studies import ablation

ARGV = [
    "data=digits",
    "model=convmixer_96_4",
    "model.dim=8",
    "model.depth=2",
    "patches=[1,2]",
    "kernels=3",
    "changes=[layer_norm,no_rand_augment]",
    "trainer=cpu",
    "batch_size=32",
    "duration.steps=2",
]


def test_from_the_command_line_to_rows_page_and_picture(tmp_path, capsys):
    argv = [*ARGV, f"folder={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]
    ablation.main(argv)
    assert "no RandAugment: so it is already, and left out" in capsys.readouterr().out
    with (tmp_path / "out/ablation_digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["change"], row["patch_size"], row["kernel_size"]) for row in rows] == [
        ("baseline", "1", "5"),
        ("layer_norm", "1", "5"),
        ("", "1", "3"),
        ("", "2", "3"),
    ]
    # h [d (k^2 + h + 6) + 3 p^2 + n + 3] + n
    counts = [8 * (2 * (k**2 + 8 + 6) + 3 * p**2 + 10 + 3) + 10 for p, k in ((1, 5), (1, 3), (2, 3))]
    assert [int(row["parameters"]) for row in rows] == [counts[0], *counts]
    final = [
        results.read_result(tmp_path / "runs" / f"convmixer_96_4-{name}", whole=True)
        for name in ("p1-k5-seed0", "p1-k5-layer_norm-seed0")
    ]
    assert final[0]["recipe"]["model"].keys() == final[1]["recipe"]["model"].keys() - {"normalization"}
    accuracy = [each["metrics"]["test/top1"] for each in final]
    assert float(rows[1]["accuracy"]) == pytest.approx(accuracy[1], rel=1e-3)
    assert float(rows[1]["difference"]) == pytest.approx(100 * (accuracy[1] - accuracy[0]), abs=0.005)
    text = (tmp_path / "out/ablation_digits.md").read_text()
    assert "| LayerNorm for BatchNorm |" in text
    assert "| 94.44 | -1.44 |" in text
    assert "UNVERIFIED" in text
    assert (tmp_path / "out/ablation_digits.png").stat().st_size > 10_000
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob(results.RESULT))]
    ablation.main(argv)
    assert capsys.readouterr().out.count("finished before") == 4
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob(results.RESULT))]

    # the table of a report: each measured row below the published one of its change
    (table,) = report.tables(collect([tmp_path / "out"], without=tmp_path / "nowhere").studies)
    told = [(row.kind, row.cells[0].text) for row in table.rows]
    place = told.index(("published", "LayerNorm for BatchNorm"))
    assert told[place + 1] == ("measured", "LayerNorm for BatchNorm")
    assert told[told.index(("published", "ConvMixer-256/8, patch 1")) + 1] == ("measured", "as it is")
    (chart,) = report.charts(collect([tmp_path / "out"], without=tmp_path / "nowhere").studies)
    (cells,) = chart.heat_maps
    assert (cells.rows, cells.columns) == (("1", "2"), ("3", "5"))
    assert cells.values[0][1] == pytest.approx(100 * accuracy[0], rel=1e-3)
    assert cells.values[1][1] is None


def test_every_change_changes_one_node_and_no_other():
    argv = [each for each in ARGV if not each.startswith("changes")]
    augment = ["augment=convmixer_imagenet1k", "augment.color_jitter=0.1", "augment.flip=0.5"]
    cells = ablation.plan(ablation.settings([*argv, *augment]), Screen())
    base = cells[0].run.recipe.to_dict()
    keys = {}
    for cell in cells[1:]:
        changed = results.differing_keys(base, cell.run.recipe.to_dict())
        keys[cell.change] = {name for name, _, _ in changed}
    assert list(keys) == [*ablation.CHANGES, ""]
    assert keys["no_mixing"] == {"augment.mixup", "augment.cutmix"}
    assert keys["layer_norm"] == {"model._target_", "model.normalization"}
    assert keys["no_residual"] == keys["residual_pointwise"] == {"model._target_", "model.residual"}
    assert keys["other_activation"] == {"model.activation"}
    assert all(len(changed) <= 2 for changed in keys.values())


def row(change="", *, p=1, k=9, accuracy, seed=0, difference=""):
    what = change or f"patch {p}, kernel {k}"
    return {
        "change": change,
        "what": what,
        "patch_size": p,
        "kernel_size": k,
        "seed": seed,
        "metric": "test/top1",
        "accuracy": accuracy,
        "difference": difference,
    }


def test_patches_are_compared_at_the_papers_kernel():
    rows = [
        row("baseline", k=5, accuracy=0.5),
        row(p=1, accuracy=0.6),
        row(p=2, accuracy=0.55),
        row(p=4, k=5, accuracy=0.4),
    ]
    found = {each.key: each for each in report.changes(rows)}
    assert found["patch_2"].difference == pytest.approx(-5)
    assert found["patch_2"].published_difference == "-0.80"
    assert found["patch_4"].difference is None
    assert found["baseline"].difference is None


def test_the_verdict_follows_the_numbers():
    grid = [
        row("baseline", p=1, k=3, accuracy=0.5),
        row(p=1, k=9, accuracy=0.6),
        row(p=4, k=3, accuracy=0.4),
        row(p=4, k=9, accuracy=0.41),
    ]
    rows = [
        *grid,
        row("layer_norm", k=3, accuracy=0.4, difference="-10"),
        row("other_activation", k=3, accuracy=0.49, difference="-1"),
        row("no_erasing", k=3, accuracy=0.55, difference="5"),
    ]
    said = report.verdict(rows, epochs=0.5)
    assert (
        "patches are better shows here; from patch 4 to 1, in points: +10.0 at kernel 3, +19.0 at kernel 9."
        in said
    )
    assert (
        "are better shows here in part; from kernel 3 to 9, in points: +10.0 at patch 1, +1.0 at patch 4."
        in said
    )
    published = "layer_norm -10.0 (-1.44); patch 4 for 1 -19.0 (-3.27)."
    assert f"As published (in brackets), beyond noise: {published}" in said
    assert (
        "Within noise, where the paper's differences may lie as well: other_activation -1.0 (-0.37)" in said
    )
    assert "Other than published: no_erasing +5.0 (-0.64)" in said
    assert "After 0.5 epochs" in said
    assert "runs of 0.5 say how fast a network learns at first" in said
    assert "learns at first" not in report.verdict(rows, epochs=100)
    seeds = [row("baseline", accuracy=a, seed=i) for i, a in enumerate((0.5, 0.54))]
    assert report.noise(seeds) == pytest.approx(2 * 8**0.5)  # of 50 and 54 %


def test_the_published_rows_name_paper_and_table_and_what_is_unverified():
    rows = published.rows(published.CONVMIXER_ABLATION)
    assert {each["key"] for each in rows} <= {"baseline", "patch_2", "patch_4", *ablation.CHANGES}
    base = float(rows[0]["top-1"])
    for each in rows:
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}, table \d+", each["source"])
        assert each["unverified"] in ("top-1", "both")
        if each["difference"]:
            assert float(each["top-1"]) - base == pytest.approx(float(each["difference"]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=mixer_digits"], "the parts that are exchanged are a ConvMixer's, which mixer_digits is not"),
        (["kernel=3"], "unknown key 'kernel': did you mean 'kernels'?"),
        (["changes=layernorm"], "there is no change 'layernorm': did you mean 'layer_norm'?"),
        (["patches=[1,3]"], "image_size 8 is not a multiple of patch_size 3"),
        (["kernels=0"], "kernels: expected whole numbers above 0, found '0'"),
        (["seed=1"], "'seed' is set by the study: use seeds="),
        (["name=x"], "'name' is set by the study: use folder="),
        (["kernel_sizes=3"], "unknown key 'kernel_sizes'"),
    ],
)
def test_a_wrong_setting_is_named(argv, message, capsys, tmp_path):
    given = {each.partition("=")[0] for each in argv}
    own = [] if argv[0].startswith("model=") else ["model.dim=8", "model.depth=2"]
    base = [each for each in ARGV if each.partition("=")[0] not in given and not each.startswith("model.")]
    with pytest.raises(SystemExit) as stop:
        ablation.main([*base, *own, f"folder={tmp_path}", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_committed_page_is_what_its_rows_give():
    with (ROOT / "results/ablation_cifar10.csv").open() as file:
        rows = list(csv.DictReader(file))
    text = (ROOT / "results/ablation_cifar10.md").read_text()
    epochs = float(rows[0]["images_seen"]) / float(rows[0]["train_images"])
    assert markdown.escape(report.verdict(rows, epochs=epochs)) in text
    assert "\n".join(markdown.table(*report.grid_cells(rows))) in text
    assert "\n".join(markdown.table(report.CHANGE_TABLE, report.change_cells(rows))) in text


def test_cells_of_the_papers_kernel_stand_below_its_patches():
    rows = [
        {key: str(value) for key, value in each.items()}
        for each in (row("baseline", k=5, accuracy=0.5), row(p=1, accuracy=0.6), row(p=2, accuracy=0.55))
    ]
    study = StudyTable(Path("results/ablation_x.csv"), "X", list(rows[0]), rows, Provenance())
    (table,) = report.tables([study])
    told = [cells.cells[0].text for cells in table.rows]
    assert told[:5] == [
        "ConvMixer-256/8, patch 1",
        "baseline",
        "patch 1, kernel 9",
        "patch 2 for 1",
        "patch 2, kernel 9",
    ]
    timed = [{**each, "images_per_second": "100"} for each in rows]
    assert charts.throughput(StudyTable(study.path, "X", list(timed[0]), timed, Provenance())) is None
