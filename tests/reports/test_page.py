"""The page of a report: well-formed, self-contained, every number with its place in a file; the figures' data."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_report import NUMBER, same_number, stands_at, write_run

from conftest import ROOT
from mixer_lightning.models.presets import PUBLISHED
from mixer_lightning.reports import chart_files, charts, measured_charts, point_labels
from mixer_lightning.reports.page import figure
from mixer_lightning.reports.report import write_report
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import Provenance, Source

SWEEP = """optimizer.lr,batch_size,seeds,mean,std,metric
0.01,16,2,0.505,0.01,test/top1
0.001,8,2,0.4,0.01,test/top1
0.01,8,2,0.3,0.01,test/top1
0.001,16,2,0.2,0.01,test/top1
0.1,16,2,0.1,0.01,test/top1
0.1,8,2,nan,nan,test/top1
"""

Page = tuple[Path, str, ElementTree.Element]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Folder, text and parsed page of a report of results/ and of a run; the parsed one is without the programs."""
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "default" / "b16<&")
    command = "python train.py model=mixer_b16 'data.root=/data/my images'"
    record = json.loads((run / "result.json").read_text()) | {"command": command}
    (run / "result.json").write_text(json.dumps(record))
    (folder / "default" / "sweep.csv").write_text(SWEEP)
    rows = [{"step": i, "epoch": i / 10, "train/loss": 1 / (i + 1), "test/top1": i / 20} for i in range(10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (8, 8)).save(run / "confusion.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        write_report([Path("results"), folder / "default"], folder / "to", results_of_models=PUBLISHED)
    text = (folder / "to" / "index.html").read_text()
    head, _, rest = text.partition("</main>")
    assert rest.count("<script>") == 2
    # an XML parser is the strictest there is: every element closed, every attribute quoted, every & escaped
    return folder / "to", text, ElementTree.fromstring(f"{head}</main></body></html>")


def test_every_number_of_the_page_stands_in_a_file(page: Page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    numbers = 0
    for cell in page[2].iter("td"):
        text = "".join(cell.itertext())
        if not NUMBER.fullmatch(text):
            continue
        numbers += 1
        place = [cell.get(f"data-{name}") for name in ("file", "row", "key", "value")]
        assert None not in place, text
        source = Source(str(place[0]), int(str(place[1])), str(place[2]), str(place[3]))
        assert stands_at(source) == source.value
        assert same_number(text, source.value)
    assert numbers > 1000


def test_it_loads_nothing_from_elsewhere(page: Page):
    _, text, root = page
    for element in root.iter():
        for name in ("src", "data", "poster", "srcset", "action"):
            assert element.get(name, "data:").startswith("data:")
        if element.tag != "a" and element.get("href"):
            assert element.get("href", "").startswith("data:")
    assert not root.findall(".//link[@rel='stylesheet']")
    assert "@import" not in text.partition("</style>")[0]
    assert "default-src 'none'" in text.partition("<title>")[0]  # the browser refuses what is forgotten


def test_links_lead_somewhere_and_controls_have_names(page: Page):
    root = page[2]
    places = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(places) == len(set(places))
    for link in root.iter("a"):
        target = link.get("href", "")
        assert target.startswith("https://arxiv.org/abs/") or target.removeprefix("#") in places
    for field in root.iter("input"):
        assert root.find(f".//label[@for='{field.get('id')}']") is not None
    assert all(header.find("button") is not None for header in root.iter("th"))
    assert all(image.get("alt") for image in root.iter("img"))
    listed = {str(each.get("href")) for each in root.findall(".//nav//a")}
    assert {f"#{place}" for place in places if re.match(r"(table|figure)-\d+$", str(place))} <= listed


def test_measured_rows_are_told_apart_and_say_how_they_were_made(page: Page):
    root = page[2]
    rows = [row for row in root.iter("tr") if row.get("class") == "measured"]
    assert rows
    headings = {each.get("id") for each in root.iter("h3")}
    for row in rows:
        assert "".join(row[0].itertext()) == "measured"
        anchor = row[-1].find("a")
        assert anchor is not None
        assert anchor.get("href", "")[1:] in headings
    assert any("default/b16<&" in "".join(row.itertext()) for row in rows)
    assert "git_sha" not in page[1]
    assert {"abc123", "torch 9.9", "a machine"} <= {"".join(each.itertext()) for each in root.iter("dd")}


def test_studies_say_what_they_found_and_runs_their_command(page: Page):
    section = next(
        each
        for each in page[2].iter("section")
        if "Shuffled pixels on cifar10" in "".join(each[0].itertext())
    )
    said = " ".join("".join(each.itertext()) for each in section.iter("p"))
    assert (
        "The claim that a Mixer does not notice (1) while a network of convolutions does shows here" in said
    )
    commands = {"".join(each.itertext()) for each in page[2].iter("code")}
    assert "python train.py model=mixer_b16 'data.root=/data/my images'" in commands


def test_every_figure_is_a_png_an_svg_and_in_the_page(page: Page):
    folder, _, root = page
    files = sorted(path.name for path in (folder / "figures").iterdir())
    names = {name.partition(".")[0] for name in files}
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    assert {"pareto", "model_scale", "convmixer", "curves", "throughput_results_step_speed_cpu"} <= names
    studied = {"curves_results_shuffling_cifar10", "results_ablation_cifar10"}
    assert studied | {"results_scale_cifar10_models", "results_scale_cifar10_data"} <= names
    assert any(name.startswith("heat_map_") for name in names)
    shown = [json.loads(script.text or "") for script in root.iter("script") if script.get("type")]
    assert len(shown) >= len(names)
    assert all(trace["x"] for each in shown for trace in each["data"])
    grids = [trace for each in shown for trace in each["data"] if trace["type"] == "heatmap"]
    grid, cells = sorted(grids, key=lambda trace: trace["y"] != ["8", "16"])
    assert (cells["x"], cells["y"]) == (["3", "5", "9"], ["1", "2", "4"])
    assert (grid["x"], grid["y"]) == (["0.001", "0.01", "0.1"], ["8", "16"])
    assert grid["z"] == [[40.0, 30.0, None], [20.0, 50.5, 10.0]]
    ElementTree.parse(folder / "figures" / "pareto.svg")
    captions = "".join("".join(each.itertext()) for each in root.iter("figcaption"))
    assert "which class is mistaken for which: default/b16<&" in captions


# ---------------------------------------------------------------------------------------------- figures


def test_the_frontier_of_the_mixer_paper():
    """Through HaloNet, ViT, NFNet, MPL and Mixer, as the paper draws it."""
    (panel,) = charts.pareto().panels
    line = panel.series[-1]
    assert list(zip(line.x, line.y, strict=True)) == [
        (0.10, 85.8),
        (0.45, 86.78),
        (0.65, 87.76),
        (1.01, 87.94),
        (1.86, 89.2),
        (20.48, 90.0),
    ]
    assert charts.frontier([(1, 1), (1, 2), (2, 2), (0.5, 0), (3, 1)]) == [(0.5, 0), (1, 2)]


@pytest.mark.parametrize("style", ["points", "bars"])
def test_names_out_of_the_data_are_no_markup_in_a_figure(style: str):
    """Plotly makes bold of <b>, a link of <a>, and & of &amp;; the names of folders are neither."""
    name = "<b>run</b> &amp; 2"
    series = charts.Series(name, (name,) if style == "bars" else (1.0,), (2.0,), (name,), style)
    (trace,) = figure(charts.Panel("x", "y", (series,)))["data"]
    shown = "&lt;b&gt;run&lt;/b&gt; &amp;amp; 2"
    assert trace["name"] == shown
    assert list(trace["y" if style == "bars" else "text"]) == [shown]


def test_model_scale_shows_the_jft_rows_at_224():
    for panel in charts.model_scale().panels:
        assert {series.name: len(series.x) for series in panel.series} == {"Mixer": 8, "BiT": 5, "ViT": 2}


def test_a_curve_is_named_by_what_its_run_has_of_its_own():
    rows = [{"step": i, "epoch": float(i), "test/top1": top1} for i, top1 in ((1, 0.5), (2, float("nan")))]
    chart = charts.curves({f"runs/s/digits-seed0-optimizer.lr={rate}": rows for rate in ("1e-05", "1e-06")})
    assert [each.name for each in chart.panels[0].series] == ["optimizer.lr=1e-05", "optimizer.lr=1e-06"]
    assert chart.panels[0].series[0].y == (50.0,)  # JSON has no NaN


def test_bars_are_the_rates_of_a_study_and_nothing_else():
    rows = [
        {"loader": "ours", "images_per_second": "2", "machine": "m", "is_best": "True"},
        {"loader": "timm", "images_per_second": "nan", "machine": "m", "is_best": "True"},
        {"loader": "slow", "images_per_second": "1", "machine": "m", "is_best": "False"},
        {"loader": "fast", "images_per_second": "3", "machine": "m", "is_best": "True"},
    ]
    study = StudyTable(Path("results/speed.csv"), "Speed", list(rows[0]), rows, Provenance())
    chart = charts.throughput(study)
    assert chart is not None
    ((series,),) = (panel.series for panel in chart.panels)
    assert (series.x, series.y) == (("ours", "fast"), (2.0, 3.0))
    two = [row | {"mode": mode} for mode in ("training", "inference") for row in rows[2:]]
    two = [row | {"is_best": "True", "definition": f"hash{i}"} for i, row in enumerate(two)]
    chart = charts.throughput(StudyTable(Path("a.csv"), "", list(two[0]), two, Provenance()))
    assert chart is not None
    assert [panel.x for panel in chart.panels] == ["images/s, training", "images/s, inference"]
    assert all(panel.series[0].x == ("fast", "slow") for panel in chart.panels)  # named without the hash
    no_rates = StudyTable(Path("a.csv"), "", ["loader", "loss"], [{"loader": "a", "loss": "1"}], Provenance())
    assert charts.throughput(no_rates) is None


def test_a_sweep_over_three_keys_has_a_grid_for_each_setting_of_the_third():
    rows = [
        {"lr": lr, "model": model, "wd": wd, "seeds": "1", "mean": f"{i}", "std": "", "metric": "val/loss"}
        for i, (lr, model, wd) in enumerate(itertools.product(("1e-3", "0.01", "0.1"), "ab", ("0", "1")))
    ]
    study = StudyTable(Path("runs/x/sweep.csv"), "Sweep x", list(rows[0]), rows[::-1], Provenance())
    chart = measured_charts.heat_maps(study)
    assert chart is not None
    first, second = chart.heat_maps
    assert (first.title, second.title) == ("wd=0", "wd=1")
    assert (first.x, first.columns, first.y, first.rows) == (
        "lr",
        ("1e-3", "0.01", "0.1"),
        "model",
        ("a", "b"),
    )
    assert (first.values, second.values) == (((0, 4, 8), (2, 6, 10)), ((1, 5, 9), (3, 7, 11)))
    assert first.what == "val/loss"
    one_key = [row for row in rows if (row["model"], row["wd"]) == ("a", "0")]
    assert measured_charts.heat_maps(dataclasses.replace(study, rows=one_key)) is None


def test_confusions_are_shares_of_the_true_class(tmp_path: Path):
    matrix, run = np.array([[3, 1], [0, 0]]), tmp_path / "default" / "a"
    run.mkdir(parents=True)
    np.savez(run / "confusion.npz", matrix=matrix, classes=np.array(["cat", "dog"]), split=np.array("val"))
    (chart,) = measured_charts.confusions([run / "confusion.npz"]).values()
    (grid,) = chart.heat_maps
    assert (grid.rows, grid.columns, grid.y, grid.x) == (("cat", "dog"), ("cat", "dog"), "true", "predicted")
    assert grid.values == ((75.0, 25.0), (None, None))
    assert "val: 3 of 4 right" in chart.caption
    many = np.array([str(i) for i in range(measured_charts.MAX_CLASSES + 1)])
    np.savez(run / "confusion.npz", matrix=np.eye(len(many), dtype=int), classes=many, split=np.array("val"))
    assert measured_charts.confusions([run / "confusion.npz"]) == {}  # its picture stands
    (run / "confusion.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"confusion\.npz is damaged"):
        measured_charts.confusions([run / "confusion.npz"])


@pytest.mark.parametrize("chart", [charts.pareto(), charts.model_scale(), charts.convmixer([])])
def test_names_of_points_touch_nothing(chart: charts.Chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found: list[tuple[list[point_labels.Place], list[tuple[float, float]]]] = []
    place = point_labels.place

    def recorded(points: list[tuple[float, float]], *others: Any) -> list[point_labels.Place]:
        found.append((place(points, *others), points))
        return found[-1][0]

    monkeypatch.setattr(point_labels, "place", recorded)
    chart_files.draw(tmp_path, chart)
    assert len(found) == len(chart.panels)
    for places, points in found:
        boxes = [each.box for each in places]
        for i, box in enumerate(boxes):
            assert not any(box.touches(other) for other in boxes[:i])
            assert not any(box.left < x < box.right and box.bottom < y < box.top for x, y in points)


def test_a_name_keeps_off_a_line_where_it_can():
    within = point_labels.Box(0, 0, 200, 200)
    (free,) = point_labels.place([(100, 100)], [(30, 10)], within)
    line = [(100 + 2 * i, 100 + i) for i in range(40)]
    (kept_off,) = point_labels.place([(100, 100)], [(30, 10)], within, line)
    assert any(free.box.left < x < free.box.right and free.box.bottom < y < free.box.top for x, y in line)
    assert kept_off.radius == free.radius
    assert kept_off.box.top <= 100
    everywhere = [(x, y) for x in range(0, 201, 4) for y in range(0, 201, 4)]
    assert point_labels.place([(100, 100)], [(30, 10)], within, everywhere) == [free]


def test_equal_figures_give_equal_files(tmp_path: Path, page: Page):
    """Also with names beside points, and whatever was drawn before: no date, no identifiers that differ."""
    chart_files.draw(tmp_path, charts.pareto())
    for name in ("pareto.png", "pareto.svg"):
        written = (tmp_path / name).read_bytes()
        assert written == (page[0] / "figures" / name).read_bytes()
        assert b"dc:date" not in written
