"""A set prepared by several jobs: joined it is what one job writes, and only what belongs together is joined."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pictures import picture
from running import exit_code, files_of, in_a_child, kill, odd_photos, run, stopping_short, write_photos

from mixer_lightning.files import lock_run_dir
from mixer_lightning.prepare import merging, state
from mixer_lightning.prepare.journal import versions
from mixer_lightning.reports import prepare as picture_of

Prepare = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_of, "plot_class_counts", lambda *_: None)


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepare:
    def run_and_listen(*arguments: Any, **pace: Any) -> tuple[int, str]:
        capsys.readouterr()
        code = run(*arguments, **pace)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run_and_listen


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos.tsv with 40 images of 4 classes, a few of them not as they should be."""
    return odd_photos(tmp_path / "photos", 10)


def folders(root: Path) -> list[str]:
    """Class folders with images, bad ones, files that are none, and one key three times."""
    for split, each in (("train", 11), ("test", 5)):
        for name in ("elk", "newt", "wren"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                (folder / f"{number}.jpg").write_bytes(picture(number))
        (root / split / "newt/notes.txt").write_text("no image")
    (root / "train/newt/3.jpg").write_bytes(b"")
    for form in ("PNG", "WEBP"):
        (root / f"train/newt/5.{form.lower()}").write_bytes(picture(5, form))
    (root / "train/elk/7.gif").write_bytes(picture(7, "GIF"))
    return ["data=folder", f"source={root}", "shards=2", "short_side=9"]


def listed(root: Path) -> list[str]:
    """A list with several labels an image, val held out, and difference hashes written."""
    source = odd_photos(root, 9)
    lines = source.read_text().splitlines()
    source.write_text("".join(f"{line}{',wren' if i % 3 else ''}\n" for i, line in enumerate(lines)))
    return ["data=list", f"source={source}", "val_share=0.3", "shards=3"]


def nested_tar(path: Path, counts: dict[str, int]) -> None:
    """ImageNet-21k as its archives are: a tar of a tar for each class."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as outer:
        for wnid, count in counts.items():
            inside = io.BytesIO()
            with tarfile.open(fileobj=inside, mode="w") as inner:
                for number in range(count):
                    data = b"" if number == 2 else picture(number)
                    info = tarfile.TarInfo(f"{wnid}_{number}.JPEG")
                    info.size = len(data)
                    inner.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = inside.tell()
            outer.addfile(info, io.BytesIO(inside.getvalue()))
        info = tarfile.TarInfo("ReadMe.txt")
        outer.addfile(info)


def archive(root: Path) -> list[str]:
    root.mkdir()
    nested_tar(root / "winter21_whole.tar", {"n00000001": 9, "n00000002": 1, "n00000003": 14})
    source = f"source={root / 'winter21_whole.tar'}"
    return ["data=imagenet21k", source, "classes=found", "val_share=0.2", "shards=2"]


def compressed(root: Path) -> list[str]:
    """One that unpacks to far more than its file has, with a class that the list lacks."""
    root.mkdir()
    nested_tar(root / "winter21_whole.tar.gz", {"n00000001": 9, "n00000002": 3, "n00000003": 14})
    (root / "classes.txt").write_text("n00000003 n00000001")
    source = f"source={root / 'winter21_whole.tar.gz'}"
    return ["data=imagenet21k", source, f"classes={root / 'classes.txt'}", "val_share=0", "variant=winter21"]


@pytest.mark.parametrize("make", [folders, listed, archive, compressed])
def test_three_parts_merged_are_what_one_job_writes(prepare, tmp_path, make):
    arguments = make(tmp_path / "source")
    hashes = [tmp_path / "whole.txt", tmp_path / "parts.txt"]
    code, said = prepare(*arguments, f"output={tmp_path / 'whole'}", f"write_hashes={hashes[0]}")
    assert code == 0, said
    in_parts = [*arguments, f"output={tmp_path / 'out'}", f"write_hashes={hashes[1]}"]
    for done, part in enumerate((2, 3, 1), start=1):
        code, said = prepare(*in_parts, f"part={part}/3")
        assert code == 0, said
        assert f"part {part} of 3 is finished" in said
        assert (f"{done} of 3 parts are finished" in said) == (done < 3)
    assert "all 3 parts are finished: the same command with part=merge" in said
    code, said = prepare(*in_parts, "part=merge")
    assert code == 0, said
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert hashes[1].read_bytes() == hashes[0].read_bytes() != b""
    report, expected = (json.loads((tmp_path / x / "report.json").read_text()) for x in ("out", "whole"))
    for key in expected.keys() - {"seconds", "images_per_second", "megabytes_per_second"}:
        assert report[key] == expected[key], key
    assert prepare(*in_parts, "part=2/3")[0] == 0
    assert prepare(*in_parts)[0] == 0


def test_more_parts_than_images(prepare, tmp_path):
    source = write_photos(tmp_path / "few", 1)
    arguments = ["data=list", f"source={source}"]
    assert prepare(*arguments, f"output={tmp_path / 'whole'}")[0] == 0
    for part in range(1, 8):
        assert prepare(*arguments, f"output={tmp_path / 'out'}", f"part={part}/7")[0] == 0
    assert prepare(*arguments, f"output={tmp_path / 'out'}", "part=merge")[0] == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_parts_that_are_missing_or_do_not_belong_are_named(prepare, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["data=list", f"source={photos}", "shards=2", f"output={out}"]

    def refused(*more: str) -> str:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.name.startswith("train")}
        code, said = prepare(*arguments, *more)
        assert code == 2, said
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.name.startswith("train")}
        return said

    assert "there are no parts in" in refused("part=merge")
    assert prepare(*arguments, "part=2/4")[0] == 0
    said = refused("part=merge")
    assert "of 4 parts in" in said
    assert "parts 1, 3, 4 are missing. Prepare them with part=1/4 and so on" in said
    assert "part=merge joins them" in refused()  # one job
    assert (
        f"holds part 2 of 4 ({out / '.partial/part-2-of-4'}), which does not go with parts of 3"
        in refused("part=1/3")
    )
    assert "part 2 of 4 of another set: seed: 0 there, 5 here" in refused("part=1/4", "seed=5")
    assert "part 2 of 4 of another set: seed: 0 there, 5 here" in refused("part=merge", "seed=5")
    whole = photos.read_text()
    photos.write_text(whole.replace("elk_001", "elk_000"))
    assert "part 2 of 4 of another set: source: train: " in refused("part=3/4")
    photos.write_text(whole)
    for part in (3, 4):
        assert prepare(*arguments, f"part={part}/4")[0] == 0

    # a part that was prepared elsewhere and put here
    other = [*arguments[:3], "verify=false", f"output={tmp_path / 'other'}"]
    assert prepare(*other, "part=1/4")[0] == 0
    first = out / ".partial/part-1-of-4"
    shutil.rmtree(first, ignore_errors=True)
    shutil.copytree(tmp_path / "other/.partial/part-1-of-4", first)
    assert "part 1 of 4 of another set: verify: False there, True here" in refused("part=merge")
    shutil.rmtree(first)
    monkeypatch.setitem(versions(), "pillow", "9.0.1")
    assert prepare(*arguments, "part=1/4")[0] == 0
    monkeypatch.undo()
    monkeypatch.setattr(picture_of, "plot_class_counts", lambda *_: None)
    assert "part 1 of 4 was prepared with pillow 9.0.1" in refused("part=merge")
    shutil.rmtree(first)

    # one that was stopped
    true = state.State.take

    def take(self, sample, outcome):
        true(self, sample, outcome)
        if self.consumed == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "take", take)
        code, said = prepare(*arguments, "part=1/4")
    assert (code, "after 3 images; the same command goes on" in said) == (143, True)
    assert "part 1 is not finished. The same command with part=1/4 goes on with it" in refused("part=merge")
    with lock_run_dir(first):
        assert "another process is writing part 1 of 4" in refused("part=1/4")
        assert prepare(*arguments, "part=3/4")[0] == 0  # others may
    with lock_run_dir(out, shared=True):
        assert "another process is writing into" in refused("part=merge")
    code, said = prepare(*arguments, "part=1/4")
    assert (code, "going on after 3 images" in said) == (0, True)

    # one that was cut
    piece = next(out.glob(".partial/part-3-of-4/train-*.tar"))
    data = piece.read_bytes()
    piece.write_bytes(data[:-512])
    assert f"part 3 of 4: {piece} has {len(data) - 512:,} bytes, but {len(data):,} were written" in refused(
        "part=merge"
    )
    piece.write_bytes(data)
    (tmp_path / "other/.partial").rename(tmp_path / "other/x")
    assert prepare(*other[:3], f"output={tmp_path / 'whole'}")[0] == 0
    assert prepare(*arguments, "part=merge")[0] == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_damaged_piece_is_named(prepare, photos, tmp_path):
    out = tmp_path / "out"
    arguments = ["data=list", f"source={photos}", f"output={out}"]
    for part in (1, 2):
        assert prepare(*arguments, f"part={part}/2")[0] == 0
    piece = out / ".partial/part-2-of-2/train-00000.tar"
    data = bytearray(piece.read_bytes())
    data[0:7] = b"another"
    piece.write_bytes(data)
    code, said = prepare(*arguments, "part=merge")
    assert (code, f"part 2 of 2: {piece} is damaged" in said) == (1, True)
    assert "prepare it again with part=2/2" in said
    shutil.rmtree(piece.parent)
    assert prepare(*arguments, "part=2/2")[0] == 0
    assert prepare(*arguments, "part=merge")[0] == 0
    assert prepare(*arguments[:2], f"output={tmp_path / 'whole'}")[0] == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_the_bad_images_of_all_parts_count(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "TOLERATED_BAD_IMAGES", 3)
    source = write_photos(tmp_path / "photos", 5)
    for path in [*source.parent.glob("elk*")][:2] + [*source.parent.glob("wren*")][:2]:
        path.write_bytes(b"")
    arguments = ["data=list", f"source={source}", f"output={tmp_path / 'out'}"]
    for part in (1, 2):
        assert prepare(*arguments, f"part={part}/2")[0] == 0
    code, said = prepare(*arguments, "part=merge")
    assert (code, "4 of 20 images are bad" in said, "max_bad=<share>" in said) == (1, True, True)
    assert prepare(*arguments, "part=merge", "max_bad=0.5")[0] == 0


def test_two_parts_at_once_killed_and_gone_on_with(tmp_path):
    arguments = ["data=list", f"source={odd_photos(tmp_path / 'photos', 30)}", "val_share=0.2", "shards=3"]
    assert run(*arguments, f"output={tmp_path / 'whole'}") == 0
    out = tmp_path / "out"
    pace = {"buffer_bytes": 3000, "commit_seconds": 0.0}
    again = {i: partial(run, *arguments, f"output={out}", f"part={i}/2", **pace) for i in (1, 2)}
    draws = random.Random(0)
    for until in (7, 20):
        children = {i: in_a_child(stopping_short(act, most=until + 30)) for i, act in again.items()}
        for i, child in children.items():
            kill(child, out / f".partial/part-{i}-of-2/journal.json", until, draws)
    children = {i: in_a_child(act) for i, act in again.items()}
    assert [exit_code(child) for child in children.values()] == [0, 0]
    assert run(*arguments, f"output={out}", "part=merge") == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_merge_that_is_killed_at_any_write_loses_nothing(tmp_path):
    """The process dies at its first, second, third, ... fsync, rename, deletion or truncation."""
    source = odd_photos(tmp_path / "photos", 1)
    arguments = ["data=list", f"source={source}", "shards=1"]
    assert run(*arguments, f"output={tmp_path / 'whole'}") == 0
    expected = files_of(tmp_path / "whole")
    for part in (1, 2):
        assert run(*arguments, f"output={tmp_path / 'parts'}", f"part={part}/2") == 0

    def act(output: Path, dies_at: int) -> int:
        calls, lock = 0, threading.Lock()

        def dying(true: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                with lock:
                    calls += 1
                    if calls == dies_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                return true(*args, **kwargs)

            return call

        for place, name in (
            *((os, name) for name in ("fsync", "truncate")),
            *((Path, name) for name in ("rename", "replace", "unlink")),
        ):
            setattr(place, name, dying(getattr(place, name)))
        return run(*arguments, f"output={output}", "part=merge")

    deaths = 0
    while True:
        output = tmp_path / f"killed-{deaths + 1}"
        shutil.copytree(tmp_path / "parts", output)
        code = exit_code(in_a_child(partial(act, output, deaths + 1)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert run(*arguments, f"output={output}", "part=merge") == 0
        assert files_of(output) == expected
    assert deaths > 15


def test_a_merge_that_is_asked_to_stop_goes_on(prepare, photos, tmp_path, monkeypatch):
    arguments = ["data=list", f"source={photos}", "shards=4"]
    assert prepare(*arguments, f"output={tmp_path / 'whole'}")[0] == 0
    for part in (1, 2):
        assert prepare(*arguments, f"output={tmp_path / 'out'}", f"part={part}/2")[0] == 0
    true, joined = merging._join, []

    def join(shard, pieces, stop_if_asked):
        joined.append(shard.path.name)
        if len(joined) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                stop_if_asked()
                time.sleep(0.001)
        true(shard, pieces, stop_if_asked)

    monkeypatch.setattr(merging, "_join", join)
    arguments += [f"output={tmp_path / 'out'}"]
    code, said = prepare(*arguments, "part=merge")
    assert (code, "of 4 shards; the same command goes on from there" in said) == (143, True), said
    finished = {path.name for path in (tmp_path / "out").glob("*.tar")}
    assert joined[1] not in finished
    joined[:] = ["", ""]
    assert prepare(*arguments, "part=merge")[0] == 0
    assert sorted(joined[2:]) == sorted({f"train-0000{i}.tar" for i in range(4)} - finished)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("3", "'3' is neither K/N, such as 3/64, nor merge"),
        ("0/4", "parts count from 1"),
        ("5/4", "parts count from 1"),
    ],
)
def test_wrong_parts_are_refused(prepare, part, message):
    code, said = prepare("data=digits", "output=x", f"part={part}")
    assert (code, message in said) == (2, True), said
