"""`mixer report`: the papers' tables as data, and measured values beside them, each traceable to its file."""

from __future__ import annotations

import csv
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.models.catalogue import SPEEDS
from mixer_lightning.models.presets import PUBLISHED
from mixer_lightning.reports import chart_files, charts, one_run, published
from mixer_lightning.reports.comparison import tables
from mixer_lightning.reports.report import named_apart
from mixer_lightning.reports.sources import collect, trained_on_of
from mixer_lightning.reports.tables import Source, Table

NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?( %)?")


def result(**changes: Any) -> dict[str, Any]:
    """A finished run of Mixer-B/16 on ImageNet-1k."""
    choices = {"model": "mixer_b16", "data": "imagenet1k"}
    recipe = {"choices": choices, "image_size": 224, "duration": {"epochs": 300}, "checkpoint": None}
    return {
        "recipe": recipe | {key: value for key, value in changes.items() if key != "metrics"},
        "metrics": changes.get("metrics", {"test/top1": 0.76521, "real/top1": 0.8237}),
        "best": None,
        "images_per_second": 12.5,
        "wall_seconds": 3.0,
        "num_parameters": 59880472,
        "device": "a machine",
        "versions": {"torch": "9.9"},
        "git_sha": "abc123",
    }


def write_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result(**changes)))
    return folder


def report_of(*paths: Path) -> dict[str, Table]:
    return {each.name: each for each in tables(collect(paths, without=Path("nowhere")), PUBLISHED)}


def stands_at(source: Source) -> str:
    """What a file really has at a place."""
    path = Path(source.file)
    if source.file.startswith("mixer_lightning/"):
        path = ROOT / source.file
    if path.suffix == ".json":
        node = json.loads(path.read_text())
        for part in source.key.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            node = node[int(key)] if isinstance(node, list) else node[key]
        return json.dumps(node)
    if path.suffix == ".md":
        return path.read_text().splitlines()[source.row - 1].split("|")[int(source.key)].strip()
    return csv_rows(path.resolve())[source.row - 1][source.key]


@functools.cache
def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_number(shown: str, value: str) -> bool:
    """Whether a number is shown as it stands, rounded, or in percent."""
    if shown == value:
        return True
    number = shown.replace(",", "").removesuffix(" %")
    digits = len(number.partition(".")[2])
    half = 0.5000001 * 10**-digits
    factors = (1, 100) if "." in shown else (1,)
    return any(
        abs(float(number) - factor * float(value)) <= max(half, 1e-3 * abs(float(number)))
        for factor in factors
    )


# ------------------------------------------------------------------------------------------- the papers


#: How a source that is no table of a paper is named: a file or a thread of a repository, a venue and what there.
OTHER_SOURCES = (
    r"timm( [\d.]+)?, [\w-]+\.csv: ",
    r"locuslab/convmixer(-cifar10, README| issue \d+)",
    r"google-research/vision_transformer issue \d+",
    r"google-research/big_vision, configs/mlp_mixer_i1k\.py$",
    r"leondgarse/keras_cv_attention_models, halonet/README\.md, as of arXiv 2103\.12731$",
    r"torchvision, \w+\.\w+ as measured there",
    r"arXiv 2003\.10580, as quoted in kekmodel/MPL-pytorch",
    r"(Krizhevsky|LeCun) et al\., .*\d{4}(, abstract)?: error ",
)


@pytest.mark.parametrize(("path", "number"), [(PUBLISHED, "top1_percent"), (SPEEDS, "images_per_second")])
def test_every_published_number_says_where_it_stands(path: Path, number: str):
    """In a paper that is its arXiv number and the table: pages differ between versions, and are not cited."""
    for row in csv_rows(path):
        is_table = re.match(
            r"arXiv \d{4}\.\d{5},( as in the)? (table \d+|(ImageNet|CIFAR-10) table)( of arXiv \d{4}\.\d{5})?",
            row["source"],
        )
        if row[number] or row.get("core_days"):
            assert is_table or any(re.match(each, row["source"]) for each in OTHER_SOURCES), row
        assert row["source"]


@pytest.mark.parametrize(
    ("table", "num_rows"),
    [(published.MIXER_TABLE_2, 10), (published.MIXER_TABLE_3, 26), (published.CONVMIXER, 31)],
)
def test_every_published_row_names_paper_and_table(table: published.PublishedTable, num_rows: int):
    rows = published.rows(table)
    assert len(rows) == num_rows
    for row in rows:
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}, (table \d+|ImageNet table)", row["source"])
        assert (ROOT / "conf/model" / f"{row['conf_model']}.yaml").is_file()
        for name in ("ImNet", "ReaL", "Avg 5", "VTAB-1k", "top-1"):
            assert re.fullmatch(r"\d\d\.\d{1,2}|", row.get(name, ""))


def test_both_files_of_published_accuracies_agree():
    with PUBLISHED.open() as file:
        known = list(csv.DictReader(file))
    printed = [
        (table, row, row[table.accuracy])
        for table in published.TABLES
        for row in published.rows(table)
        if row[table.accuracy]
    ]
    for _, row, accuracy in printed:
        alike = [
            each["top1_percent"]
            for each in known
            if (each["model"], each["data"], each["input"], each["star"])
            == (row["conf_model"], row["data"], row["image_size"], row.get("star", ""))
        ]
        digits = len(accuracy.partition(".")[2])
        assert any(f"{float(each):.{digits}f}" == accuracy for each in alike), row
    for each in known:
        of_mixer = re.search(r"2105\.01601, table (\d)", each["source"])
        of_convmixer = re.match(r"arXiv 2201\.09792, ImageNet table", each["source"])
        wanted = f"mixer_table{of_mixer[1]}" if of_mixer else "convmixer_imagenet" if of_convmixer else None
        # the paper has one definition of its isometric MobileNetV3, conf/model two readings of it
        model = each["model"].replace("_minimalistic", "")
        if wanted and each["top1_percent"]:
            values = [float(a) for t, row, a in printed if t.name == wanted and row["conf_model"] == model]
            assert float(each["top1_percent"]) in values, each


def test_the_tables_say_what_the_paper_marks():
    rows = published.rows(published.CONVMIXER)
    assert [row["top-1"] for row in rows if row["star"]] == ["82.20", "81.60", "80.21"]
    assert [row["network"] for row in rows if row["dagger"]] == ["DeiT-B", "DeiT-S", "DeiT-Ti"]
    assert {row["activation"] for row in rows if row["network"].startswith("ConvMixer-768")} == {"ReLU"}
    assert sum(bool(row["dot"]) for row in rows) == 17
    jft = {
        row["core-days (k)"]
        for row in published.rows(published.MIXER_TABLE_3)
        if row["model"] == "Mixer-L/16"
    }
    assert jft == {"0.04", "0.41", "0.23", "0.45"}


def test_the_files_of_published_speeds_agree():
    with SPEEDS.open() as file:
        known = list(csv.DictReader(file))
    for table, rate in (
        (published.MIXER_TABLE_2, "img/s/core"),
        (published.MIXER_TABLE_3, "img/s/core"),
        (published.CONVMIXER, "img/s"),
    ):
        cited = [each for each in known if published.rows(table)[0]["source"] in each["source"]]
        printed: dict[tuple[str, str], set[tuple[str, float]]] = {}
        for row in published.rows(table):
            core_days = round(1000 * float(row.get("core-days (k)", 0)))
            printed.setdefault((row["conf_model"], row["data"]), set()).add((row[rate], core_days))
        assert cited
        for each in cited:
            assert (each["images_per_second"], float(each["core_days"] or 0)) in printed[
                each["model"], each["data"]
            ]
        there = {(each["model"], each["data"], each["images_per_second"]) for each in known}
        for row in published.rows(table):  # and none is left out
            if row[rate] or "core-days (k)" in row:
                assert (row["conf_model"], row["data"], row[rate]) in there


# ------------------------------------------------------------------------------------------ measured


def test_a_run_stands_below_the_published_rows_of_its_kind(tmp_path: Path):
    run = write_run(tmp_path / "default" / "b16")
    write_run(tmp_path / "default" / "larger", image_size=448)
    write_run(tmp_path / "default" / "other_data", choices={"model": "mixer_b16", "data": "cifar10"})
    write_run(tmp_path / "default" / "a_tenth", train_split="train[:10%]")
    report = report_of(tmp_path)
    for name, accuracy in (("mixer_table3", "76.44"), ("convmixer_imagenet", "76.44")):
        rows = report[name].rows
        (number,) = (i for i, row in enumerate(rows) if row.kind == "measured")
        assert accuracy in [cell.text for cell in rows[number - 1].cells]
        assert {"76.52", "mixer_b16: default/b16"} <= {cell.text for cell in rows[number].cells}
        assert report[name].made[(run / "result.json").as_posix()].machine == "a machine"
    assert "82.37" in [cell.text for row in report["mixer_table3"].rows for cell in row.cells]
    assert not any(row.kind == "measured" for row in report["mixer_table2"].rows)
    columns = report["runs"].columns
    beside = {
        row.cells[0].text: (
            row.cells[columns.index("measured")].text,
            row.cells[columns.index("published")].text,
        )
        for row in report["runs"].rows
    }
    assert beside == {
        "default/b16": ("76.52 %", "76.44 %"),
        "default/larger": ("76.52 %", ""),
        "default/other_data": ("76.52 %", ""),
        "default/a_tenth": ("76.52 %", ""),
    }


@pytest.mark.parametrize(
    ("model", "data", "changes", "shown"),
    [
        ("mixer_b16", "imagenet1k", {"duration": {"epochs": 60}}, "70.5 %"),  # big_vision's short run
        ("mixer_b16", "imagenet1k", {"duration": {"epochs": 90}}, ""),
        ("mixer_b16", "imagenet1k", {"checkpoint": "timm:mixer_b16_224.goog_in21k_ft_in1k"}, "76.44 %"),
        ("mixer_b16", "imagenet1k", {"duration": {"steps": 9}}, ""),
        ("mixer_s32", "jft300m", {"duration": {"epochs": 2}}, ""),  # no figure on JFT-300M itself
        ("convmixer_256_8", "cifar10", {"duration": {"epochs": 25}, "image_size": 32}, "92.5 %"),
        ("convmixer_256_8", "cifar10", {"duration": {"epochs": 2}, "image_size": 32}, ""),
        ("convmixer_1536_20", "imagenet1k", {"duration": {"epochs": 150}}, "81.37 %"),
        (
            "convmixer_1536_20",
            "imagenet1k",
            {"duration": {"epochs": 2}},
            "81.37 %",
        ),  # 150 epochs alone are published
        ("convmixer_1536_20", "imagenet1k", {"augment": "convmixer_a1"}, "82.20 %"),
        ("convmixer_1536_24_p14_k9", "imagenet1k", {}, ""),  # with a star alone
    ],
)
def test_of_several_published_accuracies_that_of_the_same_training_stands_beside_a_run(
    model: str, data: str, changes: dict[str, Any], shown: str, tmp_path: Path
):
    split = "test" if data == "cifar10" else "val"
    recipe = {key: value for key, value in changes.items() if key != "augment"} | {"test_split": split}
    choices = {"model": model, "data": data, "augment": changes.get("augment", "inception")}
    run = write_run(tmp_path / "first" / "run", choices=choices, **recipe)
    if "checkpoint" not in changes:  # a later judgement is of the same weights
        evaluation = {
            **recipe,
            "choices": {**choices, "augment": "none"},
            "checkpoint": str(run / "best.ckpt"),
        }
        write_run(tmp_path / "second" / "run", **evaluation)
    report = report_of(tmp_path)
    place = report["runs"].columns.index("published")
    assert {row.cells[place].text for row in report["runs"].rows} == {shown}
    below = [row.kind for row in report["convmixer_imagenet"].rows]
    if changes.get("augment"):
        assert below[1:3] == ["measured", "measured"]  # the row with a star comes first


def test_what_a_dashboard_is_given_of_a_run(tmp_path: Path):
    run = write_run(tmp_path / "default" / "b16")
    (run / "metrics.csv").write_text("step,epoch\n1,1\n")
    (run / "per_class_test.csv").write_text("class,top1\nbird,0.5\n")
    (run / "curves.png").write_bytes(b"")
    found = {each.name: each for each in one_run.tables(run, PUBLISHED)}
    assert list(found) == ["runs", "mixer_table3", "convmixer_imagenet", "per_class_test"]
    (row,) = found["runs"].rows
    assert {"76.52 %", "76.44 %", "arXiv 2105.01601, table 3; 300 epochs"} <= {
        cell.text for cell in row.cells
    }
    assert one_run.pictures(run) == {"curves": run / "curves.png"}


@pytest.mark.parametrize(
    ("splits", "metrics", "shown"),
    [
        # ConvMixer's recipes, and evaluations: the official 50,000 are the data set's val
        ({"val_split": None, "test_split": None}, {"val/top1": 0.765}, "76.50"),
        # Mixer's recipes: val is 1 % of the training images
        ({"val_split": "train[99%:]", "test_split": "val"}, {"val/top1": 0.9, "test/top1": 0.765}, "76.50"),
        ({"val_split": "train[99%:]", "test_split": None}, {"val/top1": 0.9}, ""),
        ({"val_split": "val[:50%]", "test_split": None}, {"val/top1": 0.9}, ""),
        ({"val_split": None, "test_split": None}, {"fewshot/imagenet_5shot": 0.6, "real/top1": 0.8}, ""),
    ],
)
def test_published_accuracies_stand_beside_those_on_the_official_images_alone(
    splits: dict[str, Any], metrics: dict[str, float], shown: str, tmp_path: Path
):
    write_run(tmp_path / "default" / "b16", metrics=metrics, **splits)
    report = report_of(tmp_path)
    columns, (row,) = report["runs"].columns, report["runs"].rows
    cells = {name: cell.text for name, cell in zip(columns, row.cells, strict=True)}
    assert cells["published"] == ("76.44 %" if shown else "")
    if shown:
        assert cells["measured"] == f"{shown} %"
    for name, column in (("mixer_table3", "ImNet"), ("convmixer_imagenet", "top-1")):
        place = report[name].columns.index(column)
        found = [row.cells[place].text for row in report[name].rows if row.kind == "measured"]
        assert [text for text in found if text] == ([shown] if shown else [])
    parameters, _ = charts.convmixer(collect([tmp_path], without=Path("nowhere")).measured).panels
    assert [series.y for series in parameters.series if series.kind == "measured"] == (
        [(76.5,)] if shown else []
    )


def test_a_suite_without_imagenet_has_no_published_accuracy(tmp_path: Path):
    suite = tmp_path / "transfer" / "b16"
    write_run(suite / "vtab" / "seed0", checkpoint="timm:mixer_b16_224.goog_in21k")
    content = {"checkpoint": ["checkpoint=timm:mixer_b16_224.goog_in21k"], "row": {"VTAB-1k": [70.1, 0.1]}}
    (suite / "transfer.json").write_text(json.dumps(content))
    table = report_of(suite / "transfer.json")["runs"]
    cells = {name: cell.text for name, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert (cells["metric"], cells["measured"], cells["published"]) == ("VTAB-1k", "70.10 %", "")


@pytest.mark.parametrize(
    ("checkpoint", "data"),
    [
        ("timm:mixer_b16_224.goog_in21k", "imagenet21k"),
        (
            "timm:mixer_b16_224.goog_in21k_ft_in1k",
            "imagenet1k",
        ),  # of ImageNet-1k alone, whatever its name says
        ("timm:mixer_b16_224.miil_in21k_ft_in1k", "imagenet21k"),
        ("timm:convmixer_768_32.in1k", "imagenet1k"),
        ("timm:resnetv2_152x4_bit.goog_in21k_ft_in1k", "imagenet21k"),  # arXiv 1912.11370: BiT-M
        ("timm:convnext_tiny.fb_in22k_ft_in1k", "imagenet21k"),
        ("timm:convnext_small.in12k_ft_in1k", ""),
        ("here/convmixer_768_32_ks7_p7_relu.pth.tar", "imagenet1k"),  # locuslab/convmixer, README
        ("alexnet-owt-7be5be79.pth", "imagenet1k"),
        ("timm:tf_efficientnet_l2.ns_jft_in1k", "jft300m_unlabelled"),  # Noisy Student: no labels of JFT
        ("timm:resnet50.fb_swsl_ig1b_ft_in1k", ""),
        ("timm:resmlp_12_224.fb_distilled_in1k", "imagenet1k with a teacher"),
        ("timm:caformer_s18.sail_in1k_384", "imagenet1k"),
        ("weights/convnext_tiny.fb_in1k.safetensors", "imagenet1k"),
        ("Mixer-B_16.npz", ""),
    ],
)
def test_what_public_weights_were_trained_on(checkpoint: str, data: str):
    assert trained_on_of(checkpoint) == data


def test_a_finetuned_run_was_trained_on_the_data_of_the_run_before_it(tmp_path: Path):
    before = write_run(tmp_path / "pre" / "b16", choices={"model": "mixer_b16", "data": "imagenet21k"})
    write_run(tmp_path / "runs" / "tuned", checkpoint=str(before / "best.ckpt"))
    report = report_of(tmp_path / "runs")
    rows = report["mixer_table3"].rows
    (number,) = (i for i, row in enumerate(rows) if row.kind == "measured")
    assert "80.64" in [cell.text for cell in rows[number - 1].cells]


def test_the_row_of_a_suite_stands_beside_the_paper(tmp_path: Path):
    suite = tmp_path / "transfer" / "b16"
    write_run(suite / "imagenet1k" / "seed0", checkpoint="timm:mixer_b16_224.goog_in21k")
    words = ["checkpoint=timm:mixer_b16_224.goog_in21k", "trainer=gpu"]
    content = {"checkpoint": words, "suite": "avg5", "row": {"ImNet": [80.5, 0.1], "Avg 5": [92.4, 0.2]}}
    (suite / "transfer.json").write_text(json.dumps(content))
    report = report_of(suite / "transfer.json")
    (row,) = (row for row in report["mixer_table3"].rows if row.kind == "measured")
    assert {"80.50", "92.40"} <= {cell.text for cell in row.cells}
    made = report["mixer_table3"].made[row.file]
    assert made.command == "mixer transfer checkpoint=timm:mixer_b16_224.goog_in21k trainer=gpu suite=avg5"


def test_every_number_is_traceable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "default" / "b16")
    monkeypatch.chdir(ROOT)
    report = report_of(Path("results"), tmp_path)
    assert {"results_step_speed_cpu", "results_loader_cpu", "runs", "mixer_table2"} <= report.keys()
    # these stand in Markdown alone
    assert {"results_default_recipe", "results_cifar10_cpu", "results_transfer_cifar_cpu_2"} <= report.keys()
    numbers = 0
    for table in report.values():
        for row in table.rows:
            for cell in row.cells:
                if NUMBER.fullmatch(cell.text):
                    assert cell.source is not None, (table.name, cell)
                if cell.source is not None:
                    numbers += 1
                    assert stands_at(cell.source) == cell.source.value
                    assert not NUMBER.fullmatch(cell.text) or same_number(cell.text, cell.source.value), cell
    assert numbers > 600


def test_words_that_are_the_same_in_every_row_stand_in_a_note(tmp_path: Path):
    (tmp_path / "old").mkdir()
    for name in ("a", "b", "old/b"):
        text = "model,machine,seconds,ms\nnet,my machine,0.5,1\nother,my machine,0.5,2\n"
        (tmp_path / f"{name}.csv").write_text(text)
        (tmp_path / f"{name}.md").write_text("# Speed\n")
    tables = [each for each in report_of(tmp_path).values() if each.title.startswith("Speed")]
    titles = [each.title for each in tables]
    assert titles == ["Speed (a)", f"Speed ({tmp_path.name}/b)", "Speed (old/b)"]  # told apart by their files
    assert tables[0].columns == ("model", "seconds", "ms")
    assert tables[0].notes == ("In every row: machine my machine.",)


def test_links_to_folders_are_followed_once(tmp_path: Path):
    write_run(tmp_path / "far" / "b16")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "runs")
    found = collect([tmp_path / "runs"], without=tmp_path / "to")
    assert [each.file for each in found.measured] == [f"{tmp_path}/runs/a/b16/result.json"]


def test_the_command_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chart_files, "draw", lambda *_: None)  # figures are looked at in test_page.py
    study = tmp_path / "results"
    study.mkdir()
    (study / "speed.csv").write_text(
        "\ufeffmodel,images_per_second\nmixer_s16,7.1\n"
    )  # as spreadsheets begin files
    (study / "speed.md").write_text(
        "# Speed of a step\n\n* Machine: EPYC\n* Versions: torch 9\n* Command: `mixer study speed a=1`\n"
    )
    assert mixer(["report", "to=results/page"]) == 0
    assert mixer(["report", "to=results/page"]) == 0  # which is not read as a result of its own
    written = {path.name for path in (study / "page" / "tables").iterdir()}
    papers = {f"{table.name}.{ending}" for table in published.TABLES for ending in ("csv", "md")}
    assert written == papers | {"results_speed.csv", "results_speed.md"}
    assert (study / "page/tables/results_speed.md").read_text() == (
        "# Speed of a step\n\n"
        "|  | model | images_per_second | from |\n| --- | --- | --- | --- |\n"
        "| MEASURED | mixer_s16 | 7.1 | results/speed.csv |\n\n"
        "From `results/speed.csv`:\n\n"
        "* Command: `mixer study speed a=1`\n* Machine: EPYC\n* Versions: torch 9\n"
    )


def test_files_of_a_report_have_names_of_their_own():
    """Paths that differ in their slashes alone, or in the case of letters, and one longer than a file's name."""
    names = ["results_speed", "results_speed", "Results_Speed", "runs", "x" * 400 + "é", "x" * 500 + "é"]
    apart = named_apart([Table(name, "", (), ()) for name in names])
    found = [each.name for each in apart]
    assert found[:4] == ["results_speed", "results_speed_2", "Results_Speed_3", "runs"]
    assert len({name.casefold() for name in found}) == len(names)
    assert all(len(f".{name}.csv.part".encode()) <= 255 for name in found)


DAMAGED_CELLS = [
    ("ablation.csv", "test/top1,0.4095,", 'test/top1,"0,41",'),
    ("shuffling.csv", ",0.220869", ",nan"),
    ("scale.csv", ",0.001401,", ",,"),
]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "there is no file and no folder nowhere"),
        (["to="], "'to=' is empty"),
        (["too=x"], "unknown key 'too'"),
        (["to=file.txt"], "to=file.txt is a file"),
        (["lr=0.1", "to=file.txt"], "to=file.txt is a file"),
        (["lr=0.1"], "result.json is damaged"),
        (["runs/lr=0.1"], "there is no file and no folder runs/lr=0.1"),
        (["cells.csv"], "cells.csv: row 2 has more cells than the header"),
        (["ablation.csv"], "ablation.csv: row 2 has '0,41' as accuracy, which is no number"),
        (["shuffling.csv"], "shuffling.csv: row 2 has 'nan' as fewshot_5shot, which is no number"),
        (["scale.csv"], "scale.csv: row 2 has '' as gmacs, which is no number"),
    ],
)
def test_wrong_command_lines(
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    (tmp_path / "cells.csv").write_text("a,b\n1,2,3\n")
    for file, given, cell in DAMAGED_CELLS:
        text = (ROOT / "results" / file.replace(".", "_cifar10.")).read_text()
        assert given in text
        (tmp_path / file).write_text(text.replace(given, cell, 1))
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "lr=0.1" / "result.json").write_text('{"metrics": ')
    with pytest.raises(SystemExit, match="2"):
        mixer(["report", *argv])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
