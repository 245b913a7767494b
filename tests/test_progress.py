"""How far a run is: whole lines on any terminal, the time left from the first batch on, else a line a minute."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from mixer_lightning import progress
from mixer_lightning.engine.callbacks import Progress, format_progress
from mixer_lightning.progress import Bar, PassBars
from mixer_lightning.screen import Screen


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, to be set."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.seconds)
    return now


def line(bar: Bar, width: int, encoding: str = "utf-8") -> str:
    """What a terminal of a width shows of a bar."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, force_terminal=True, color_system=None).print(bar)
    file.flush()
    return file.buffer.getvalue().decode(encoding).rstrip("\n")


METRICS = {"train/loss": 0.53912, "train/top1": 0.998, "val/top1": 0.9941, "train/images_per_second": 1778.2}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_line_fits_and_ends_with_the_time_left(capsys, clock, width, encoding):
    bar = Bar(Screen(), total=1600, label="epoch 0.0/1,600")
    clock.seconds = 7.5
    bar.move(2, label="epoch 1,234.5/1,600", parts=format_progress(METRICS))
    shown = line(bar, width, encoding)
    assert "\n" not in shown
    assert len(shown.rstrip()) <= width - len("^C^C^C")  # which a terminal writes behind it
    assert shown.startswith("epoch 1,234.5/1,600  ")
    assert shown.rstrip().endswith("  1:39:52")  # 1,598 units of 3.75 seconds, less none
    whole = ["loss 0.5391", "val/top1 99.4 %", "train/top1 99.8 %", "1,778 images/s"]
    assert [part in shown for part in whole] == sorted((part in shown for part in whole), reverse=True)
    assert whole[0] in shown
    assert (whole[-1] in shown) == (width == 120)


def test_the_time_left_is_known_within_the_first_step_and_forgets_what_it_took(capsys, clock):
    bar = Bar(Screen(), total=10, done=0)
    assert bar.time_left() == ""
    clock.seconds = 30.0  # something is compiled
    bar.move(0.25)
    assert bar.time_left() == "0:19:30"
    clock.seconds = 60.0
    bar.move(1)
    clock.seconds = 61.0
    bar.move(1.5)
    assert bar.time_left() == "0:00:17"
    clock.seconds = 62.0
    assert bar.time_left() == "0:00:16"


def test_without_a_terminal_there_is_a_line_every_minute(capsys, clock):
    bar = Bar(Screen(), total=100, label="step 0/100")
    for second in range(1, 200):
        clock.seconds = second
        bar.move(second / 4, label=f"step {second // 4}/100", parts=["loss 1"])
        if second == 100:
            bar.said()  # an evaluation
    assert capsys.readouterr().out.splitlines() == [
        "step 15/100  loss 1  0:05:40 left",
        "step 40/100  loss 1  0:04:00 left",
    ]


def test_a_pass_over_images_begins_anew(capsys, clock):
    bars = PassBars(Screen())
    for split in ("val", "test"):
        bars(split, 0, 2)
        clock.seconds += 61
        bars(split, 1, 2)
        bars(split, 2, 2)
    assert capsys.readouterr().out.splitlines() == ["val 1/2  0:01:01 left", "test 1/2  0:01:01 left"]


@pytest.mark.parametrize(
    ("total", "steps_per_epoch", "step", "shown"),
    [
        (160_000, 100.0, 123_450, "epoch 1,234.5/1,600"),
        (2_450, 98.0, 49, "epoch 0.5/25"),
        (250, 100.0, 100, "epoch 1.0/2.5"),
        (1_500, 1_000.0, 1_234, "step 1,234/1,500"),
    ],
)
def test_a_position_has_all_its_digits(total, steps_per_epoch, step, shown):
    said = []
    screen = SimpleNamespace(say=said.append)
    each = Progress(screen, SimpleNamespace(latest={}), total_steps=total, steps_per_epoch=steps_per_epoch)
    each.on_metrics(None, SimpleNamespace(step=step), {"val/top1": 0.5})
    assert said == [f"{shown}  val/top1 50.0 %"]  # it is said, so it stays


def test_tables_and_lines_are_text(capsys):
    screen = Screen()
    screen.say("runs/[/b]/x :dog: \x1b[2J")
    screen.table("[red]:cat:", ("file", ":dog:"), [("[old]dog.png", "a[/b].png\x1b[2J")])
    said = capsys.readouterr().out
    for text in (r"runs/[/b]/x :dog: \x1b[2J", "[red]:cat:", ":dog:", "[old]dog.png", r"a[/b].png\x1b[2J"):
        assert text in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("share", "said"), [(0.04, ""), (0.37, "37 % waiting for images")])
def test_only_a_wait_that_matters_is_shown(share, said):
    parts = format_progress({"train/images_per_second": 12.0, "train/data_wait": share})
    assert parts == ["12 images/s", *([said] if said else [])]
