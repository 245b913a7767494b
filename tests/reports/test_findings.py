"""What pages of results say follows from their rows alone, for either outcome; only notes of a human stay."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from mixer_lightning.models.presets import list_models
from mixer_lightning.reports import (
    convolutions,
    markdown,
    receptive,
    shuffling,
    throughput,
    token_mixing,
)
from mixer_lightning.reports.study_files import made_by
from mixer_lightning.reports.study_files import read as read_study
from mixer_lightning.studies.shuffling import verdict
from mixer_lightning.studies.throughput_runs import plans

RESULTS = ROOT / "results"


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def provenance(name: str) -> dict[str, Any]:
    """Machine, versions and command that a page states."""
    made = made_by((RESULTS / f"{name}.md").read_text())
    versions = dict(each.split(" ", 1) for each in made.versions.split(", "))
    made_with = {"machine": made.machine, "versions": versions, "command": shlex.split(made.command)}
    return made_with | {"commit": made.commit}


def again(name: str) -> str:
    """The page of some committed rows, written anew."""
    if name.startswith("receptive"):
        return receptive.page(rows_of(name), picture=f"{name}.png", **provenance(name))
    if name.startswith("convolutions"):
        made = {key: value for key, value in provenance(name).items() if key in ("command", "commit")}
        return convolutions.page(rows_of(name), picture=f"{name}.png", **made)
    if name.startswith("throughput"):
        page, lines = (RESULTS / f"{name}.md").read_text(), rows_of(name)
        said = re.search(r"Asked for and without a figure: (.+)", page)
        keys = ("precision", "layout", "compile", "seconds", "device", "machine", "versions")
        about = {key: lines[0][key] for key in keys}
        models = [line["model"] for line in lines if line["model"]]
        models += re.findall(r"(\w+)(?: \(|,|$)", said[1]) if said else []
        assert set(models) <= set(list_models())
        made = {key: value for key, value in provenance(name).items() if key in ("command", "commit")}
        asked = {"models": models, "modes": ("inference", "training")}
        return throughput.page(RESULTS / f"{name}.csv", about=about, plans=plans(), **asked, **made)
    page = (RESULTS / f"{name}.md").read_text()
    runs = {
        each[1]: (each[2], "") for each in re.finditer(r"^\* ([\w-]+): (\w+ with .+)$", page, re.MULTILINE)
    }
    pictures = re.findall(r"\]\((.+\.png)\)", page)
    return token_mixing.page(rows_of(name), remarks=[], runs=runs, pictures=pictures, **provenance(name))


@pytest.mark.parametrize(
    "name",
    [
        "receptive_cifar10",
        "receptive_photographs",
        "token_mixing_cifar10",
        "convolutions_cpu",
        "throughput_cpu",
    ],
)
def test_a_committed_page_is_what_its_rows_give(name: str):
    generated, _, _ = (RESULTS / f"{name}.md").read_text().partition(f"\n{markdown.NOTES}\n")
    assert generated.strip() == again(name).strip()


def test_what_shuffled_pixels_show_follows_from_the_committed_rows():
    rows = [
        row | {shuffling.ACCURACY: float(row[shuffling.ACCURACY])} for row in rows_of("shuffling_cifar10")
    ]
    page = (RESULTS / "shuffling_cifar10.md").read_text()
    unaware = re.findall(r"^\* (\w+): .*: the logits are the same\.$", page, re.MULTILINE)
    assert f"{markdown.FINDING}\n\n{verdict(shuffling.drops(rows), unaware=unaware)}\n" in page


def test_notes_stay_where_a_page_is_written_again(tmp_path: Path):
    page = tmp_path / "page.md"
    markdown.write_page(page, "# One\n")
    assert page.read_text() == "# One\n"
    notes = f"\n{markdown.NOTES}\nSeen by *me*.\n\nTwice.\n{markdown.END_OF_NOTES}\n"
    page.write_text(f"# One\nadded by hand\n{notes}more by hand\n")
    for _ in range(2):
        markdown.write_page(page, "# Two\n")
        assert page.read_text() == f"# Two\n{notes}"
    page.write_text(f"# One\n{markdown.NOTES}\nno end\n")
    markdown.write_page(page, "# Two\n")
    assert page.read_text() == f"# Two\n\n{markdown.NOTES}\nno end\n{markdown.END_OF_NOTES}\n"


# ------------------------------------------------------------------------------------------ receptive


def field(model: str, side: float, theoretical: str, weights: str = "initialisation") -> dict[str, str]:
    """A row whose half of the gradient lies in a square of so many of 100 pixels."""
    row = {"model": model, "weights": weights, "side_50": str(side), "image_size": "100"}
    return row | {"theoretical_side": theoretical}


def test_whether_the_whole_image_matters_more_follows_from_the_fields():
    mixer, trained = field("mixer", 70, "image"), field("mixer", 61, "image", "trained")
    said = receptive.finding([mixer, trained, field("net", 40, "300"), field("gated", 5, "")])
    assert "claim that a network whose layers reach the whole image at once" in said
    assert (
        "shows here: the least of the former is 61 % (mixer, trained), the most of the latter 40 % (net"
        in said
    )
    assert "Training changes it by -9 points (mixer)." in said
    said = receptive.finding([mixer, field("vit", 30, "image"), field("net", 40, "300")])
    assert "does not show here: the least of the former is 30 % (vit, initialisation)" in said
    assert "Training" not in said
    assert "claim" not in receptive.finding([mixer, field("gated", 5, "")])


# --------------------------------------------------------------------------------------- token mixing


def units(
    layer: str, *, alike: tuple[float, float], opposite: tuple[float, float]
) -> Iterator[dict[str, str]]:
    """Units of a layer around means after training and before it, of a standard error of .01 each."""
    for i, weights in enumerate(("trained", "initial")):
        for sign in (-1, 1) * 8:
            spread = sign * 0.01 * (15**0.5)
            row = {"checkpoint": "net", "kind": "token_mixing", "layer": layer, "weights": weights}
            row |= {"neighbour_cosine": str(alike[i] + spread), "cosine": str(opposite[i] + spread)}
            yield row | {"spectral_centroid": "0.3"}


def test_whether_weights_organise_follows_from_the_units():
    far = [*units("a", alike=(0.3, 0.0), opposite=(-0.9, -0.2))]
    near = [*units("b", alike=(0.02, 0.0), opposite=(-0.21, -0.2))]
    said = token_mixing.finding(far)
    assert "net: the claim that training makes neighbouring weights alike shows: mean cosine between" in said
    assert (
        "neighbours 0.30 after training, 0.00 before it; 100 % of the units lie above 0.2, before training 0 %."
        in said
    )
    assert (
        "pairs of opposite phase shows: mean cosine to the closest opposite -0.90 after training, -0.20"
        in said
    )
    said = token_mixing.finding(near)
    assert said.count("does not show") == 2
    assert token_mixing.finding([*far, *near]).count("shows in 1 of 2 layers") == 2
    assert token_mixing.finding([row | {"kind": "depthwise"} for row in far]) == ""


# ----------------------------------------------------------------------------------------- throughput


def speeds(rates: list[float], *, rounds: int = 3) -> list[dict[str, str]]:
    lines = [{"mode": "matmul", "values": " ".join(f"{rate * 1e9}" for rate in rates)}]
    best = {"is_best": "True", "images_per_second": "2", "rounds": str(rounds), "values": ""}
    return lines + [best | {"mode": mode, "model": "net"} for mode in ("inference", "training")]


def test_whether_a_machine_was_steady_follows_from_its_products_of_matrices():
    said = throughput.finding(speeds([100.0] * 15 + [99.0, 101.0, 20.0]))
    assert "Each figure is of 3 rounds." in said
    assert "from 20 to 101 GMAC/s, the middle one at 100, nine in ten above 99." in said
    assert "steady: within a factor of 1.01" in said
    said = throughput.finding(speeds([float(rate) for rate in range(10, 110, 5)], rounds=1))
    assert "Each figure is of 1 round." in said
    assert "was not steady" in said
    assert "not one to rely on" in said
    assert throughput.finding([]) == ""


def test_a_page_states_a_command_that_can_be_pasted_and_tells_no_secret():
    command = ["mixer", "study", "scale", "folder=my runs", "data.root=https://h/x?token=abc"]
    lines = markdown.provenance(machine="m", versions={}, command=command)
    assert lines[2] == "* Command: `mixer study scale 'folder=my runs' 'data.root=https://h/x?token=***'`"


# ------------------------------------------------------------------------- tables in Markdown alone


def test_tables_of_a_page_without_a_csv_file_are_read(tmp_path: Path):
    page = tmp_path / "runs.md"
    text = "# Runs\n\nTwo of them.\n\n| | a | b\\|c |\n| --- | --- | --- |\n| x | 1.5 % | 2 |\n| y | | 3 |\n"
    text += "\n```\n| not | one |\n| --- | --- |\n```\n\n## Others\n\n| a | a |\n|---|---|\n| 1 | 2 |\n"
    page.write_text(text)
    assert read_study(page) == []  # it does not say how its numbers were made
    page.write_text(f"{text}\n* Machine: m\n* Commands, in turn:\n\n```\nmake \\\n    a\nmake b\n```\n")
    first, second = read_study(page)
    assert (first.title, first.columns) == ("Runs", ["", "a", "b|c"])
    assert first.rows == [{"": "x", "a": "1.5 %", "b|c": "2"}, {"": "y", "a": "", "b|c": "3"}]
    assert [text.splitlines()[line - 1] for line in first.lines] == ["| x | 1.5 % | 2 |", "| y | | 3 |"]
    assert first.notes == ("Two of them.",)
    assert (first.made.machine, first.made.command) == ("m", "make a; make b")
    assert (second.title, second.columns, second.rows) == (
        "Runs: Others",
        ["a 1", "a 2"],
        [{"a 1": "1", "a 2": "2"}],
    )
    page.with_suffix(".csv").write_text("a\n1\n")
    assert read_study(page) == []  # the file has the numbers
