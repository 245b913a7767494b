"""Text out of the data in pictures, tables and spreadsheets is text, in any script; curves keep their colours."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry
from PIL import Image

from mixer_lightning import results
from mixer_lightning.reports import bars, confusion, curves, figures, markdown, prepare
from mixer_lightning.reports.figures import label

#: Names that people and programs give: formulas of matplotlib, scripts, lines, bytes that are not UTF-8, markup.
NAMES = [
    r"$\foo$", "$5 to $9", "$", r"\frac{", "Zürich", "ミキサー", "深圳市", "กรุงเทพ", "हिन्दी", "مرحبا", "🐶 dog",
    "two\nlines", "a\tb", "bytes \udce9\udcff", "=1+1", "a|b", "<b>x</b>", "", "x" * 300, "\x1b[31mred",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_warning():
    """A glyph that is missing is a warning of matplotlib's, which would reach the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the figures that are saved from here on show, as it is drawn."""
    shown: list[str] = []
    save = figures.save_figure

    def saving(figure: Figure, path: Path) -> None:
        save(figure, path)
        for text in figure.findobj(lambda artist: hasattr(artist, "_preprocess_math")):
            drawn, is_math = text._preprocess_math(text.get_text())  # type: ignore[attr-defined]
            assert not is_math, drawn
            shown.append(drawn)

    for module in (bars, confusion, curves, prepare):
        monkeypatch.setattr(module, "save_figure", saving)
    return shown


def confusion_file(folder: Path, names: list[str]) -> None:
    count = len(names)
    np.savez(
        folder / results.CONFUSION,
        split=np.array("test"),
        classes=np.array(names),
        matrix=np.ones((count, count), np.int64),
        names=np.array([f"val/{name}.jpg" for name in names]),
        images=np.zeros((count, 8, 8, 3), np.uint8),
        true=np.arange(count),
        predicted=np.roll(np.arange(count), 1),
        probability=np.linspace(1, 0.5, count),
    )


def test_class_and_file_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    confusion_file(tmp_path, NAMES)
    shown = texts(monkeypatch)
    pictures = confusion.draw(tmp_path)
    assert [path.name for path in pictures] == [confusion.CONFUSION_PNG, confusion.MISCLASSIFIED_PNG]
    assert all(width(path) > 300 for path in pictures)
    for name in (r"$\foo$", "$5 to $9", "Zürich", "two lines", r"bytes \xe9\xff", "=1+1", "a|b"):
        assert name in shown
    assert any(r"val/$\foo$.jpg" in text for text in shown)  # under its picture
    assert not [text for text in shown if "\x1b" in text]


def test_a_file_of_an_earlier_version_has_no_names(tmp_path):
    confusion_file(tmp_path, ["a", "b"])
    with np.load(tmp_path / results.CONFUSION) as content:
        found = {key: content[key] for key in content.files if key != "names"}
    np.savez(tmp_path / results.CONFUSION, **found)
    assert len(confusion.draw(tmp_path)) == 2


def test_what_no_font_has_is_transliterated(monkeypatch):
    monkeypatch.setattr(figures, "_family_with", lambda character: None)
    assert label("深圳") == "ShenZhen"
    assert label("Москва ёж") == "Москва ёж"  # the default font has it
    assert label("nothern pintail, adult male", 10) == "noth… male"
    assert label("nothern pintail, adult male", 9) == "noth…male"
    assert label("male female", 11) == "male female"
    assert label("\ue000") == "?"
    assert label("é") == "é"


def test_leftward_scripts_without_shaping_are_transliterated(monkeypatch):
    monkeypatch.setattr(figures, "_SHAPES_TEXT", False)
    assert label("שלום").isascii()


def test_a_font_that_has_the_glyph_is_used(tmp_path, monkeypatch):
    """Of the fonts that come with matplotlib, STIX has characters that DejaVu lacks."""
    stix = [
        font for font in figures.fontManager.ttflist if font.name == "STIXGeneral" and font.style == "normal"
    ]
    own = set().union(*(figures._glyphs(font.fname) for font in stix)) - figures._default_glyphs()
    character = next(chr(code) for code in sorted(own) if chr(code).isprintable() and not chr(code).isspace())
    figures._family_with.cache_clear()
    monkeypatch.setattr(figures.fontManager, "ttflist", stix)
    assert label(character) == character
    figure = figures.new_figure(2, 2)
    title = figure.suptitle(label(character))
    figures.save_figure(figure, tmp_path / "one.png")
    assert "STIXGeneral" in title.get_fontfamily()
    figures._family_with.cache_clear()


def test_a_damaged_font_is_passed_over(tmp_path):
    path = tmp_path / "broken.ttf"
    path.write_bytes(b"no font")
    assert figures._glyphs(FontEntry(fname=str(path), name="broken").fname) == frozenset()


# --------------------------------------------------------------------------------------------------- curves


def curves_of(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float]]) -> Figure:
    folder.mkdir(parents=True)
    for step, row in enumerate(rows, start=1):
        results.append_metrics(folder, {"step": step, "epoch": step, **row})
    drawn: list[Figure] = []
    save = figures.save_figure

    def saving(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(curves, "save_figure", saving)
    curves.draw(folder)
    assert width(folder / results.CURVES) > 300
    return drawn[0]


def test_a_curve_has_one_colour_in_every_run(tmp_path, monkeypatch):
    base = {"train/loss": 1.0, "train/top1": 0.5, "train/lr": 0.1}
    runs = [{"val/top1": 0.5, "val/loss": 2.0}, {"test/top1": 0.5}, {"val/top1": 0.5, "test/top1": 0.4}]
    runs += [{"fewshot/digits_1shot": 0.5, "fewshot/digits_5shot": 0.6}]
    seen: dict[str, set[str]] = {}
    for number, more in enumerate(runs):
        figure = curves_of(tmp_path / str(number), monkeypatch, [base | more] * 2)
        for axes in figure.axes:
            lines = {line.get_label().split("  ")[0]: line.get_color() for line in axes.lines}  # type: ignore[union-attr]
            assert len(set(lines.values())) == len(lines)
            for name, colour in lines.items():
                seen.setdefault(name.split("/")[0] if "shot" not in name else name, set()).add(str(colour))
    assert all(len(found) == 1 for found in seen.values())
    assert len({colour for found in seen.values() for colour in found}) == len(seen)


def test_validation_loss_stands_beside_training_loss(tmp_path, monkeypatch):
    rows = [{"train/loss": 1.0, "val/loss": 2.0, "train/top1": 0.1, "train/lr": 0.1}] * 2
    losses = curves_of(tmp_path / "run", monkeypatch, rows).axes[0]
    assert [line.get_label() for line in losses.lines] == ["train/loss  1", "val/loss  2"]


def test_ticks_of_a_small_learning_rate_say_all_of_it(tmp_path, monkeypatch):
    rows = [{"train/loss": 1.0, "train/top1": 0.1, "train/lr": 1e-5 + 1e-9 * step} for step in range(5)]
    figure = curves_of(tmp_path / "run", monkeypatch, rows)
    for axes in figure.axes:
        assert axes.yaxis.get_offset_text().get_text() == ""
        assert axes.xaxis.get_offset_text().get_text() == ""
    values = [float(tick.get_text()) for tick in figure.axes[2].get_yticklabels()]
    assert values == pytest.approx(list(figure.axes[2].get_yticks()), rel=1e-5)


# ------------------------------------------------------------------------------------ class counts, and bars


def report(folder: Path, counts: list[int]) -> Figure:
    split = {"images": sum(counts), "median": float(np.median(counts)), "counts": counts}
    content = {"name": r"$\foo$ 深", "num_classes": len(counts), "splits": {"train": split}}
    (folder / "report.json").write_text(json.dumps(content))
    drawn: list[Figure] = []
    save = figures.save_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path)))
        prepare.plot_class_counts(folder / "report.json", folder / "report.png")
    return drawn[0]


@pytest.mark.parametrize(
    ("counts", "scale"),
    [([1, 2, 50, 3000, 100_000], "log"), ([40, 50, 60], "linear"), ([0, 50], "linear"), ([7] * 9, "linear")],
)
def test_counts_over_decades_have_a_logarithmic_axis(tmp_path, counts, scale):
    (axes,) = report(tmp_path, counts).axes
    assert axes.get_xscale() == scale
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == len(counts)  # every class is in one bar


def test_classes_without_images_are_counted_where_they_cannot_be_shown(tmp_path):
    (axes,) = report(tmp_path, [0, 0, 1, 500]).axes
    assert "2 classes without images are not shown" in axes.get_title(loc="left")


def test_bars_are_named_as_they_are(tmp_path, monkeypatch):
    shown = texts(monkeypatch)
    bars.draw(tmp_path / "bars.png", {r"$\foo$": 1.0, "b": 2.0}, title="$a$", emphasis="$")
    assert {r"$\foo$", "$a$"} <= set(shown)


# ------------------------------------------------------------------------------------------ tables of text


def test_a_table_in_markdown_keeps_its_columns():
    """Rendered by the rules of CommonMark: an escaped sign is the sign."""
    lines = markdown.table(["name", "n"], [[name, "1"] for name in NAMES if "\x1b" not in name])
    for line, name in zip(lines[2:], NAMES, strict=False):
        assert "\n" not in line
        cells = line.replace(r"\\", "\0").replace(r"\|", "\1").split("|")
        assert len(cells) == 4
        for sign in "`*$<[":
            assert line.count(sign) == line.count(f"\\{sign}") == name.count(sign)
    assert markdown.table(["a_b"], [["mixer_s16"]])[2] == "| mixer_s16 |"
    assert markdown.code("a `b`") == "`` a `b` ``"


def test_a_spreadsheet_sees_no_formula(tmp_path):
    rows = [
        {"class": name, "top1": -0.5} for name in ["=1+1", "+1 555", "@x", "-a", "-0.5", "1e-3", 'a,b\n"c"']
    ]
    results.write_rows(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as file:
        found = [row["class"] for row in csv.DictReader(file)]
    assert found == ["'=1+1", "'+1 555", "'@x", "'-a", "-0.5", "1e-3", 'a,b\n"c"']
