"""The whole program: what it writes is read by others, and neither kills nor requests to stop change a byte of it."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from rich.console import Console
from running import (
    CLASSES,
    contents,
    exit_code,
    files_of,
    in_a_child,
    kill,
    odd_photos,
    run,
    stopping_short,
    write_photos,
)

from mixer_lightning import stopping
from mixer_lightning.cli.prepare import parse
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.files import lock_run_dir
from mixer_lightning.prepare import finish, lists, plan, program, readers, state
from mixer_lightning.prepare import open as opening
from mixer_lightning.prepare.cleaning import difference_hash
from mixer_lightning.prepare.journal import versions
from mixer_lightning.progress import Bar
from mixer_lightning.reports import prepare as picture_of

Prepare = Callable[..., tuple[int, str]]
PLOT = picture_of.plot_class_counts


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A histogram takes longer than all the rest of a small set."""
    monkeypatch.setattr(picture_of, "plot_class_counts", lambda *_: None)


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepare:
    """prepare("data=...", "source=...") -> exit code and what was said; `pace` as for program.write_shards."""

    def run_and_listen(*arguments: Any, **pace: Any) -> tuple[int, str]:
        capsys.readouterr()
        code = run(*arguments, **pace)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run_and_listen


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos.tsv with 40 JPEGs of 4 classes, in order of class."""
    return write_photos(tmp_path / "photos", 10)


# ---- what is written


def test_every_image_is_there_once_with_its_label_and_its_bytes(prepare, photos, tmp_path):
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "shards=3")
    assert code == 0, said
    expected = {
        f"{CLASSES[i // 10]}_{i:03d}": {"jpg": picture(i), "cls": str(i // 10).encode()} for i in range(40)
    }
    assert contents(tmp_path / "out", "train") == expected
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (dataset["name"], dataset["classes"]) == ("list", list(CLASSES))
    train = dataset["splits"]["train"]
    assert (train["samples"], train["labels_per_image"]) == (40, 1)
    for shard in train["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert len(data) % 10240 == 0
    assert [shard["name"] for shard in train["shards"]] == [f"train-0000{i}.tar" for i in range(3)]
    assert sum(shard["samples"] for shard in train["shards"]) == 40
    assert str(tmp_path) not in json.dumps(dataset)


def test_the_index_lists_the_shards_in_their_order(prepare, photos, tmp_path):
    prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "shards=3", buffer_bytes=2000)
    expected = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            for image, note in zip(*[iter(tar)] * 2, strict=True):
                if image.name.endswith(".cls"):
                    image, note = note, image
                label = int(tar.extractfile(note).read())
                key = image.name.removesuffix(".jpg")
                expected.append((image.offset_data // 512, image.size, label, hash32(key)))
                assert image.offset_data % 512 == 0
    index = np.load(tmp_path / "out" / "train-index.npy", mmap_mode="r")
    assert index.tolist() == expected
    assert not (tmp_path / "out" / "train-labels.npy").exists()


def test_webdataset_reads_it(prepare, photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "shards=2")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert {sample["__key__"]: sample["cls"] for sample in samples} == {
        f"{CLASSES[i // 10]}_{i:03d}": i // 10 for i in range(40)
    }
    for sample in samples:
        number = int(sample["__key__"][-3:])
        np.testing.assert_array_equal(sample["jpg"], Image.open(io.BytesIO(picture(number))))


def test_every_shard_is_a_random_sample_and_the_seed_decides_which(prepare, tmp_path):
    source = write_photos(tmp_path / "photos", 50)
    for seed in (0, 1):
        prepare("data=list", f"source={source}", f"output={tmp_path / str(seed)}", "shards=4", f"seed={seed}")
    index = np.load(tmp_path / "0" / "train-index.npy")
    dataset = json.loads((tmp_path / "0" / "dataset.json").read_text())
    ends = np.cumsum([shard["samples"] for shard in dataset["splits"]["train"]["shards"]])
    counts = np.array([np.bincount(part["label"], minlength=4) for part in np.split(index, ends[:-1])])
    assert counts.sum() == 200
    assert (
        np.abs(counts - 12.5) < 5 * 12.5**0.5
    ).all()  # 200 in 16 cells; sorted archives would give 50s and 0s
    assert index.tolist() != np.load(tmp_path / "1" / "train-index.npy").tolist()
    assert contents(tmp_path / "0", "train") == contents(tmp_path / "1", "train")


def test_images_are_held_out_by_their_key(prepare, tmp_path):
    source = write_photos(tmp_path / "photos", 50)
    prepare("data=list", f"source={source}", f"output={tmp_path / 'a'}", "val_share=0.2")
    train, val = contents(tmp_path / "a", "train"), contents(tmp_path / "a", "val")
    assert not train.keys() & val.keys()
    assert len(train) + len(val) == 200
    assert 20 < len(val) < 60  # 40 expected, 3.5 standard deviations
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(reversed(lines[:150])))
    prepare("data=list", f"source={source}", f"output={tmp_path / 'b'}", "val_share=0.2")
    assert contents(tmp_path / "b", "val").keys() < val.keys()
    code, said = prepare(
        "data=list", f"source={source}", "split=test", f"output={tmp_path / 'c'}", "val_share=1"
    )
    assert (code, "list has no train split" in said) == (2, True)


def test_several_labels(prepare, photos, tmp_path):
    photos.write_text("elk_000.jpg\telk,wren\nelk_001.jpg\twren\nwren_039.jpg\tnewt,wren,elk\n")
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert code == 0, said
    notes = {key: json.loads(files["json"]) for key, files in contents(tmp_path / "out", "train").items()}
    assert notes == {
        "elk_000": {"label": 0, "labels": [0, 2]},
        "elk_001": {"label": 2, "labels": [2]},
        "wren_039": {"label": 1, "labels": [1, 2, 0]},
    }
    labels = np.load(tmp_path / "out" / "train-labels.npy")
    assert sorted(labels.tolist()) == [[0, 2, -1], [1, 2, 0], [2, -1, -1]]
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert dataset["splits"]["train"]["labels_per_image"] == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["counts"] == [2, 1, 3]


def test_our_reader_reads_it_and_would_have_made_the_same_index(prepare, photos, tmp_path, monkeypatch):
    from mixer_lightning.data.sources.shards import shards

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    photos.write_text(photos.read_text() + "elk_000.jpg\twren,newt\n")
    prepare("data=list", f"source={photos}", f"output={out}", "shards=3", "val_share=0.2")
    data = shards(root=str(out), verify="full")
    assert data.classes == list(CLASSES)
    for split, images in data.splits.items():
        expected = contents(out, split)
        labels = images.labels(np.arange(len(images)))
        assert len(images) == len(expected)
        for i in range(len(images)):
            files = expected[images.key(i)]
            assert images.read(i) == files["jpg"]
            assert [x for x in labels[i].tolist() if x >= 0] == json.loads(files["json"])["labels"]
            assert images.hashes()[i] == hash32(images.key(i).removesuffix("~~2"))
    (out / "dataset.json").unlink()  # now the index is built from the shards
    for path in out.glob("*.npy"):
        path.rename(path.with_suffix(".ours"))
    shards(root=str(out))
    for path in out.glob("*-index.ours"):
        np.testing.assert_array_equal(np.load(path), np.load(path.with_suffix(".npy")))


def test_shards_are_made_anew_from_shards(prepare, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare("data=list", f"source={photos}", f"output={tmp_path / 'few'}", "shards=1", "val_share=0.2")
    code, said = prepare(
        "data=shards", f"source={tmp_path / 'few'}", f"output={tmp_path / 'many'}", "shards=4"
    )
    assert code == 0, said
    assert len(list((tmp_path / "many").glob("train-*.tar"))) == 4
    for split in ("train", "val"):
        assert contents(tmp_path / "many", split) == contents(tmp_path / "few", split)


@pytest.mark.parametrize(
    "options",
    [
        ("data=list", "source={photos}", "classes={names}", "val_share=0.3", "shards=2", "seed=7"),
        ("data=list", "source={photos}", "split=test", "short_side=8", "verify=false", "shard_bytes=20k"),
        ("data=folder", "data.root={birds}", "splits=train,val", "max_bad=0.5"),
        ("data=folder", "source={birds}", "data.name=two words"),
    ],
)
def test_what_is_said_of_a_missing_shard_makes_it_again(prepare, photos, tmp_path, monkeypatch, options):
    from mixer_lightning.data.sources.shards import shards

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "names.txt").write_text("\n".join([*reversed(CLASSES), "yak"]))
    for number in range(6):
        path = tmp_path / "birds" / ("train", "val")[number % 2] / CLASSES[number // 2 % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    paths = {"photos": photos, "names": tmp_path / "names.txt", "birds": tmp_path / "birds"}
    arguments = [argument.format(**paths) for argument in options]
    code, said = prepare(*arguments, f"output={tmp_path / 'out'}")
    assert code == 0, said
    for path in (tmp_path / "out").glob("*-00000.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"00000\.tar is missing") as caught:
        shards(root=str(tmp_path / "out"))
    command = str(caught.value).rpartition("with: mixer prepare ")[2]
    given = dict(argument.split("=", 1) for argument in arguments)
    source = given.get("source", given.get("data.root"))
    fills = {"source": source, "classes": given.get("classes"), "output": tmp_path / "again"}
    filled = [
        f"{key}={fills[key] if value[0] == '<' else value}"
        for key, _, value in (
            argument.partition("=") for argument in shlex.split(command.replace("<", "'<'"))
        )
    ]
    code, said = prepare(*filled)
    assert code == 0, said
    before, after = (json.loads((tmp_path / x / "dataset.json").read_text()) for x in ("out", "again"))
    assert before == after  # every sha256 among it
    assert str(tmp_path) not in json.dumps(before)


def test_a_folder_and_its_shards_are_sliced_alike(prepare, tmp_path, monkeypatch):
    """Also where images of one class have one name: a.jpg and a.png, which a shard must call differently."""
    from mixer_lightning.data.sources.folder import folder
    from mixer_lightning.data.sources.shards import shards
    from mixer_lightning.data.splits import choose

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(60):
        split, form = "train" if number < 50 else "val", ("jpg", "png", "webp")[number % 3]
        path = tmp_path / "birds" / split / CLASSES[number // 3 % 2] / f"{number // 3}.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, {"jpg": "JPEG"}.get(form, form)))
    source = tmp_path / "birds"
    for out, origin in (("few", f"data.root={source}"), ("again", f"source={tmp_path / 'few'}")):
        data = "folder" if out == "few" else "shards"
        code, said = prepare(f"data={data}", origin, f"output={tmp_path / out}", "shards=3", "seed=5")
        assert code == 0, said

    def halves(data):
        half = choose(data, train="train[:50%]", val="train[50%:]")
        return [sorted(map(images.read, range(len(images)))) for images in half.splits.values()]

    expected = halves(folder(root=str(source)))
    assert [len(half) for half in expected] == [len(set(half)) for half in expected]
    assert min(map(len, expected)) > 10
    assert halves(shards(root=str(tmp_path / "few"))) == expected
    assert halves(shards(root=str(tmp_path / "again"))) == expected
    (tmp_path / "few" / "dataset.json").unlink()  # so that the index is built from the shards
    assert halves(shards(root=str(tmp_path / "few"))) == expected


class Rows:
    """`Images` as a data set of ours has them; `several` labels each, pixels or files."""

    def __init__(self, count: int, *, several: bool, pixels: bool) -> None:
        self.count, self.several, self.pixels = count, several, pixels

    def __len__(self) -> int:
        return self.count

    def labels(self, indices):
        first = indices % 3
        second = np.where(indices % 2, 2 - first, -1)
        return np.stack([first, second], axis=1) if self.several else first

    def read(self, index):
        if index == 5:
            raise ValueError("row 5 is gone")
        encoded = picture(index, "PNG")
        return np.asarray(Image.open(io.BytesIO(encoded))) if self.pixels else encoded

    def key(self, index):
        return f"{index:09d}"

    def name(self, index):
        return f"rows row {index}"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
def test_any_data_set_of_conf_is_written(prepare, tmp_path, monkeypatch, several, pixels):
    from mixer_lightning.data.sources import Dataset
    from mixer_lightning.data.sources.shards import shards

    monkeypatch.setattr(readers, "LABELS_PER_CALL", 4)
    splits = {
        split: Rows(count, several=several, pixels=pixels) for split, count in (("train", 11), ("test", 7))
    }
    made = Dataset("rows", ["x", "y", "z"], splits, label_changes_with=("flip",))
    monkeypatch.setattr(opening, "build_dataset", lambda options: made)
    code, said = prepare("data=folder", f"source={tmp_path}", f"output={tmp_path / 'out'}")
    assert code == 0, said
    for split, count in (("train", 11), ("test", 7)):
        found = contents(tmp_path / "out", split)
        assert sorted(found) == [f"{i:09d}" for i in range(count) if i != 5]
        labels = made.splits[split].labels(np.arange(count))
        for key, files in found.items():
            i = int(key)
            expected = np.asarray(Image.open(io.BytesIO(picture(i, "PNG"))))
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files["png"]))), expected)
            assert pixels or files["png"] == picture(i, "PNG")
            if several:
                assert json.loads(files["json"])["labels"] == [x for x in labels[i].tolist() if x >= 0]
            else:
                assert files["cls"] == str(labels[i]).encode()
    assert shards(root=str(tmp_path / "out")).label_changes_with == ("flip",)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["notes"] == {"unreadable": 2}
    source = readers.read_dataset(made, parse(["data=folder", "output=x"]))
    samples = list(source.samples((0, 0)))
    for i, sample in enumerate(samples):
        assert [s.key for s in source.samples(sample.cursor)] == [s.key for s in samples[i + 1 :]]


# ---- bad images, near-duplicates, sizes


def test_bad_images_are_listed_and_left_out(prepare, photos, tmp_path):
    folder = photos.parent
    (folder / "elk_000.jpg").write_bytes(b"")
    whole = picture(1, size=(80, 60))
    (folder / "elk_001.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "newt_010.jpg").unlink()
    (folder / "wren_030.jpg").write_bytes(picture(30, "PNG"))
    (folder / "wren_031.jpg").write_bytes(picture(31, mode="CMYK"))
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert code == 0, said
    found = contents(tmp_path / "out", "train")
    assert len(found) == 37
    assert found["wren_030"]["png"] == picture(30, "PNG")
    assert Image.open(io.BytesIO(found["wren_031"]["jpg"])).mode == "RGB"
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(each["key"], each["kind"], each["done"]) for each in bad] == [
        ("elk_000", "empty", "left out"),
        ("elk_001", "truncated", "left out"),
        ("newt_010", "unreadable", "left out"),
        ("wren_030", "misnamed", "kept, named .png"),
        ("wren_031", "CMYK", "written anew as RGB JPEG, quality 95"),
    ]
    assert all(each["split"] == "train" and each["reason"] for each in bad)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["notes"] == {"CMYK": 1, "empty": 1, "misnamed": 1, "truncated": 1, "unreadable": 1}
    assert report["splits"]["train"]["counts"] == [8, 9, 10, 10]
    assert "truncated: 1" in said


def test_too_many_bad_images_stop_it(prepare, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "TOLERATED_BAD_IMAGES", 3)
    for path in list(photos.parent.glob("osprey*"))[:5]:
        path.write_bytes(b"")
    arguments = ("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    code, said = prepare(*arguments)
    assert (code, "4 of the first" in said, "max_bad=<share>" in said) == (1, True, True)
    code, said = prepare(*arguments, "max_bad=0.5")
    assert code == 0, said
    assert len(contents(tmp_path / "out", "train")) == 35


def test_images_near_those_of_another_set_are_left_out(prepare, photos, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "val.tsv").write_text("a.jpg\tx\nb.jpg\tx\n")
    for name, number in (("a", 7), ("b", 23)):
        (tmp_path / "few" / f"{name}.jpg").write_bytes(picture(number))
    hashes = tmp_path / "val" / "hashes.txt"
    code, said = prepare(
        "data=list", f"source={tmp_path / 'few'}", f"output={tmp_path / 'val'}", f"write_hashes={hashes}"
    )
    assert code == 0, said
    expected = [f"{difference_hash(Image.open(io.BytesIO(picture(number)))):016x}" for number in (7, 23)]
    assert hashes.read_text().split() == expected
    code, said = prepare(
        "data=list", f"source={photos}", f"output={tmp_path / 'out'}", f"hashes={hashes}", "max_distance=1"
    )
    assert code == 0, said
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(each["key"], each["kind"]) for each in bad] == [
        ("elk_007", "near-duplicate"),
        ("osprey_023", "near-duplicate"),
    ]
    assert len(contents(tmp_path / "out", "train")) == 38


def test_short_side(prepare, photos, tmp_path):
    (photos.parent / "elk_000.jpg").write_bytes(picture(0, size=(80, 60)))
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "short_side=30")
    assert code == 0, said
    found = contents(tmp_path / "out", "train")
    assert Image.open(io.BytesIO(found["elk_000"]["jpg"])).size == (40, 30)
    assert found["elk_001"]["jpg"] == picture(1)
    options = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert (options["short_side"], options["quality"], options["resampling"]) == (30, 90, "lanczos")
    assert "an estimate" in said


# ---- refusals


def test_one_class_is_not_worth_shards(prepare, photos, tmp_path):
    photos.write_text("".join(line for line in photos.read_text().splitlines(True) if "elk" in line))
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert (code, "list has one class, 'elk': there would be nothing to tell apart" in said) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_finished_set_is_never_overwritten(prepare, photos, tmp_path, monkeypatch):
    def read_only(folder):
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    arguments = ("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    prepare(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    code, said = prepare(*arguments)
    assert (code, "is finished" in said, "40" in said) == (0, True, True)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "lock_run_dir", read_only)
        assert prepare(*arguments) == (0, said)
    code, said = prepare(*arguments, "seed=1", "verify=false")
    assert code == 2
    assert "seed: 0 there, 1 here" in said
    assert "verify: True there, False here" in said
    photos.write_text(photos.read_text() + "elk_000.jpg\telk\n")
    code, said = prepare(*arguments)
    assert (code, "source: train: " in said) == (2, True)
    photos.unlink()  # archives are often deleted afterwards
    assert prepare(*arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_folders_of_others_are_left_alone(prepare, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-000.tar").write_bytes(b"precious")
    code, said = prepare("data=list", f"source={photos}", f"output={out}")
    assert (code, "train-000.tar, which was not written here" in said) == (2, True)
    (out / "dataset.json").write_text('{"classes": ["a"]}')
    code, said = prepare("data=list", f"source={photos}", f"output={out}")
    assert (code, "not written here" in said) == (2, True)
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "train-000.tar"]


def test_what_cannot_fit_is_refused_with_numbers(prepare, photos, tmp_path, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9 - 30_000, free=30_000)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage)
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert (code, "only 30 kB are free" in said) == (2, True)
    assert not (tmp_path / "out").exists()
    usage.free = 300_000
    assert prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")[0] == 0
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir() if path.suffix != ".png")
    assert written < 300_000


def test_the_estimate_of_resized_images_depends_on_their_number():
    options = parse(["data=list", "source=/x", "output=/y", "short_side=500"])
    photographs = readers.Extent(1_000_000, 10**12)  # of 1 MB each
    assert plan.estimate_shard_bytes(photographs, options) == pytest.approx(
        1e6 * (500 * 667 * 2.5 / 8 + 2048), rel=1e-2
    )
    small = readers.Extent(1_000_000, 10**9)  # of 1 kB each: they stay as they are
    assert plan.estimate_shard_bytes(small, options) == 10**9 + 2048 * 10**6


def test_places_that_may_not_be_written_are_refused(prepare, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(plan.os, "access", lambda path, mode: path.name != "closed")
    (tmp_path / "closed").mkdir()
    arguments = ("data=list", f"source={photos}")
    for key, more in (("output", []), ("write_hashes", [f"output={tmp_path / 'out'}"])):
        code, said = prepare(*arguments, *more, f"{key}={tmp_path / 'closed' / 'a' / 'b'}")
        assert (code, f"{key}: {tmp_path / 'closed'} is not a folder that may be written" in said) == (
            2,
            True,
        )
    assert not (tmp_path / "out").exists()


def test_a_second_program_is_refused(prepare, photos, tmp_path):
    (tmp_path / "out").mkdir()
    with lock_run_dir(tmp_path / "out"):
        code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert (code, "another process is writing" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=lsit", "source=x"], "unknown data 'lsit': did you mean 'list'?"),
        (
            ["data=list", "sorce=x", "sede=1"],
            "unknown key 'sorce': did you mean 'source'? unknown key 'sede'",
        ),
        (["source=x", "out=y"], "unknown key 'out': did you mean 'output'? 'data' is missing: data=..."),
        (["data=list", "source"], "'source' is not of the form key=value"),
        (["data=list"], "source is missing"),
        (["data=list", "source=/none"], "nothing at /none"),
        (["data=imagenet1k", "variant=fall11", "source=."], "variant is for data=imagenet21k"),
        (["data=digits", "source=."], "digits comes with its package"),
        (["data=digits", "data.rot=x"], "unknown key 'data.rot'"),
        (["data=digits", "splits=val"], "digits has no val. There are: train, test"),
        (["data=digits", "splits=trian"], "not made of train, val, test"),
        (["data=digits", "quality=80"], "needs short_side"),
        (["data=digits", "short_side=0"], "short_side must be at least 1"),
        (["data=digits", "max_distance=3"], "max_distance needs hashes"),
        (["data=digits", "verify=maybe"], "neither true nor false"),
        (["data=digits", "shard_bytes=1PB"], "not a number of bytes"),
        (["data=digits", "hashes=/none"], "there is no file /none"),
        (["data=digits", "classes=found"], "digits names its own"),
        (["data=digits", "split=test"], "split is that of a list in one file; of digits, splits=<names>"),
        (["data=digits", "shards=2", "shard_bytes=1MB"], "shards and shard_bytes both say"),
        (["data=folder", "source=.", "data.root=x"], "source and data.root are the same: give one"),
        (["data=imagenet1k", "source=.", "data.rot=x"], "imagenet1k takes no keys of conf/data here"),
    ],
)
def test_mistakes_are_said_before_anything_is_started(prepare, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, said = prepare(*arguments, "output=out")
    assert code == 2
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_an_output_among_class_folders_is_refused(prepare, tmp_path):
    """It would be a class of its own source from then on."""
    for path in ("flat/elk", "flat/newt", "split/train/elk", "split/train/newt"):
        (tmp_path / path).mkdir(parents=True)
        for number in range(3):
            (tmp_path / path / f"{number}.png").write_bytes(picture(number, "PNG"))
    for given, source, output in (
        ("source", "flat", "shards"),
        ("data.root", "flat", "train/shards"),
        ("source", "split", "train/shards"),
    ):
        root, path = tmp_path / source, tmp_path / source / output
        code, said = prepare("data=folder", f"{given}={root}", f"output={path}")
        assert (code, f"is among the class folders of {root}" in said, path.exists()) == (2, True, False)
    beside = ["data=folder", f"source={tmp_path / 'split'}", f"output={tmp_path / 'split/shards'}"]
    assert prepare(*beside)[0] == 0


def test_mistakes_are_said_at_once():
    """Without torch, which takes seconds to come."""
    code = (
        "import sys; from mixer_lightning.cli.prepare import main\n"
        "try: main(['data=lsit'])\n"
        "except SystemExit as stop: print(stop.code, {'torch', 'numpy', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split("\n")[-2] == "2 set()"


def test_the_command(photos, tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "mixer_lightning",
        "prepare",
        "data=list",
        f"source={photos}",
        "output=out",
    ]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "40" in done.stdout
    assert len(contents(tmp_path / "out", "train")) == 40


def test_sizes_of_shards_may_be_written_with_units():
    for text, expected in (("500MB", 5e8), ("1.5G", 1.5e9), ("2 TB", 2e12), ("12345", 12345), ("10kB", 1e4)):
        assert parse(["data=digits", "output=x", f"shard_bytes={text}"]).shard_bytes == expected


# ---- killed, stopped, and going on


def test_killed_at_random_times_it_writes_the_same_bytes(tmp_path):
    source = odd_photos(tmp_path / "photos", 35)
    arguments = ("data=list", f"source={source}", "val_share=0.2", "shards=5")
    pace = {"buffer_bytes": 3000, "commit_seconds": 0.0}
    hashes = [tmp_path / "hashes-whole", tmp_path / "hashes-killed"]
    assert run(*arguments, f"output={tmp_path / 'whole'}", f"write_hashes={hashes[0]}") == 0
    again = partial(run, *arguments, f"output={tmp_path / 'killed'}", f"write_hashes={hashes[1]}", **pace)
    journal = tmp_path / "killed" / ".partial" / "journal.json"
    draws, until = random.Random(0), 0
    for _ in range(4):
        until += draws.randint(5, 30)
        kill(in_a_child(stopping_short(again, most=until + 15)), journal, until, draws)
    assert exit_code(in_a_child(again)) == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert hashes[1].read_text() == hashes[0].read_text()


def test_killed_at_every_write_it_writes_the_same_bytes(tmp_path):
    """The process dies at its first, second, third, ... fsync, rename or truncation, the end of the work included."""
    source = odd_photos(tmp_path / "photos", 3)
    arguments = ("data=list", f"source={source}", "shards=2")
    assert run(*arguments, f"output={tmp_path / 'whole'}") == 0
    expected = files_of(tmp_path / "whole")

    def act(output: Path, dies_at: int) -> int:
        calls = 0

        def dying(true: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return true(*args, **kwargs)

            return call

        for place, name in ((os, "fsync"), (os, "truncate"), (Path, "rename"), (Path, "replace")):
            setattr(place, name, dying(getattr(place, name)))
        return run(*arguments, f"output={output}", buffer_bytes=500)

    deaths = 0
    while True:
        output = tmp_path / f"killed-{deaths + 1}"
        code = exit_code(in_a_child(partial(act, output, deaths + 1)))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert run(*arguments, f"output={output}") == 0
        assert files_of(output) == expected
    assert deaths > 15


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)]
)
def test_asked_to_stop_it_commits_first(prepare, photos, tmp_path, monkeypatch, number, expected):
    arguments = ("data=list", f"source={photos}", "shards=2", f"output={tmp_path / 'out'}")
    prepare(*arguments[:3], f"output={tmp_path / 'whole'}")
    taken = 0
    true = state.State.take

    def take(self, sample, outcome):
        nonlocal taken
        taken += 1
        if taken == 17:
            os.kill(os.getpid(), number)
        true(self, sample, outcome)

    monkeypatch.setattr(state.State, "take", take)
    code, said = prepare(*arguments)
    assert code == expected
    assert "after 17 images; the same command goes on from there" in said
    code, said = prepare(*arguments)
    assert (code, "going on after 17 images" in said) == (0, True)
    assert taken == 40
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_where_there_is_no_terminal_lines_say_how_far_it_is(prepare, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("mixer_lightning.progress.SECONDS_PER_LINE", 0.0)
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    assert code == 0
    assert re.search(
        r"50\.0 % 20 images [\d,]+ images/s [\d,]+ MB/s 0:\d\d:\d\d left 52\.5 % 21 images ", said
    )
    assert "100.0 % 40 images " in said


def test_a_beginning_of_another_set_is_refused(prepare, photos, tmp_path, monkeypatch):
    arguments = ("data=list", f"source={photos}", f"output={tmp_path / 'out'}")
    whole = photos.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "finish", full)
        code, said = prepare(*arguments)
    assert (code, "No space left on device" in said, "goes on from there" in said) == (1, True, True)
    code, said = prepare(*arguments, "shards=7", "threads=1")
    assert code == 2
    assert "shards: None there, 7 here" in said
    photos.write_text(whole.replace("elk_001", "elk_000"))
    code, said = prepare(*arguments)
    assert (code, "source: train: " in said) == (2, True)
    photos.write_text(whole)
    with monkeypatch.context() as patch:
        patch.setitem(versions(), "pillow", "9.0.1")
        code, said = prepare(*arguments)
    assert (code, "and this is 9.0.1: images written anew may differ. Go on with the former" in said) == (
        2,
        True,
    )
    assert prepare(*arguments)[0] == 0
    assert len(contents(tmp_path / "out", "train")) == 40


def test_memory_holds_no_more_than_the_buffer(photos, tmp_path, monkeypatch):
    most = 0
    true = state.State.take

    def take(self, sample, outcome):
        nonlocal most
        true(self, sample, outcome)
        waiting = sum(
            len(entry.encoded) for shards in self.shards.values() for s in shards for entry in s._waiting
        )
        assert waiting == self.waiting_bytes
        most = max(most, waiting)

    monkeypatch.setattr(state.State, "take", take)
    assert (
        run("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "shards=3", buffer_bytes=4000) == 0
    )
    largest = max(len(picture(i)) for i in range(40))
    assert 4000 - largest < most < 4000 + largest


# ---- the report


def test_the_report_counts_and_compares(prepare, photos, tmp_path, monkeypatch):
    from mixer_lightning.prepare import report

    monkeypatch.setitem(report.EXPECTED, "list", {"classes": 4, "train": 41})
    code, said = prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "val_share=0.3")
    assert code == 0
    assert "not as published: train images: 41 published, 40 found" in said
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    for split in ("train", "val"):
        labels = np.load(tmp_path / "out" / f"{split}-index.npy")["label"]
        counts = np.bincount(labels, minlength=4)
        each = written["splits"][split]
        assert each["counts"] == counts.tolist()
        assert (each["images"], each["min"], each["max"]) == (counts.sum(), counts.min(), counts.max())
        assert each["median"] == np.median(counts)
        assert f"{counts.min()} / {np.median(counts):.0f} / {counts.max()}" in said
    assert written["differences"] == ["train images: 41 published, 40 found"]


def test_the_histogram_is_drawn_from_the_report(prepare, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_of, "plot_class_counts", PLOT)
    prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}", "val_share=0.3")
    path = tmp_path / "out" / "report.png"
    width, height = Image.open(path).size
    assert width > height > 300
    before = np.asarray(Image.open(path).convert("RGB"))
    what = json.loads((tmp_path / "out" / "report.json").read_text())
    what["splits"]["val"]["counts"] = [30, 1, 1, 1]
    (tmp_path / "other.json").write_text(json.dumps(what))
    PLOT(tmp_path / "other.json", tmp_path / "other.png")
    after = np.asarray(Image.open(tmp_path / "other.png").convert("RGB"))
    assert before.shape != after.shape or (before != after).any()


# ---- what is no image by its ending


def test_files_beside_images_are_listed_and_are_not_bad(prepare, tmp_path):
    for name in CLASSES[:2]:
        folder = tmp_path / "set/train" / name
        folder.mkdir(parents=True)
        for number in range(4):
            (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / "a.gif").write_bytes(picture(9, "GIF"))
        (folder / "notes.txt").write_text("no image")
        (folder / "._0.jpg").write_bytes(b"\0\5\26\7")
    os.mkfifo(tmp_path / "set/train/newt/pipe.jpg")
    code, said = prepare(
        "data=folder", f"source={tmp_path / 'set'}", f"output={tmp_path / 'out'}", "shards=1"
    )
    assert code == 0, said
    assert "other file: 3" in said
    lines = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    others = {line["key"]: line["reason"] for line in lines if line["kind"] == "other file"}
    assert others == {
        "elk/notes.txt": ".txt is not the ending of an image that is read",
        "newt/notes.txt": ".txt is not the ending of an image that is read",
        "newt/pipe.jpg": "it is a pipe, a device or a socket, not a file",
    }
    assert {line["kind"] for line in lines} == {"other file", "other format"}
    assert len(contents(tmp_path / "out", "train")) == 10
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["images_read"] == 10


def test_names_that_are_not_utf8_go_into_shards_and_back(prepare, tmp_path):
    root = os.fsencode(tmp_path) + b"/set/train/"
    for name in (b"caf\xe9", b"wren"):
        os.makedirs(root + name)  # noqa: PTH103
        for number in range(3):
            with open(root + name + b"/\xff%d.jpg" % number, "wb") as file:  # noqa: PTH123
                file.write(picture(number))
    code, said = prepare(
        "data=folder", f"source={tmp_path / 'set'}", f"output={tmp_path / 'out'}", "shards=1"
    )
    assert code == 0, said
    assert json.loads((tmp_path / "out/dataset.json").read_text())["classes"] == [r"caf\xe9", "wren"]
    assert r"caf\xe9/\xff0" in contents(tmp_path / "out", "train")


def test_a_list_in_latin_1(prepare, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture(0))
    with open(os.fsencode(tmp_path) + b"/\xe9.jpg", "wb") as file:  # noqa: PTH123
        file.write(picture(1))
    (tmp_path / "train.tsv").write_bytes(b"a.jpg\tcaf\xe9\n\xe9.jpg\twren\n")
    code, said = prepare("data=list", f"source={tmp_path / 'train.tsv'}", f"output={tmp_path / 'out'}")
    assert code == 0, said
    assert json.loads((tmp_path / "out/dataset.json").read_text())["classes"] == [r"caf\xe9", "wren"]
    assert len(contents(tmp_path / "out", "train")) == 2
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfwren\ncaf\xe9\n")
    code, said = prepare(
        *("data=list", f"source={tmp_path / 'train.tsv'}", f"output={tmp_path / 'other'}"),
        f"classes={tmp_path / 'names.txt'}",
    )
    assert code == 0, said
    assert json.loads((tmp_path / "other/dataset.json").read_text())["classes"] == ["wren", r"caf\xe9"]


def test_a_read_that_does_not_come_back_is_not_waited_for(prepare, photos, tmp_path, monkeypatch):
    """Neither in a thread, with what was taken before it saved, nor where the source itself does not go on."""
    arguments = ("data=list", f"source={photos}", "shards=2", f"output={tmp_path / 'out'}")
    prepare(*arguments[:3], f"output={tmp_path / 'whole'}")
    come_back, codes = threading.Event(), []
    true = lists.read_regular

    def hangs(path):
        if path.endswith("elk_009.jpg") and not come_back.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            come_back.wait(300)
        return true(path)

    monkeypatch.setattr(lists, "read_regular", hangs)
    code, said = prepare(*arguments)
    come_back.set()
    assert code == 143
    assert "SIGTERM: saving the images read so far" in said
    assert re.search(r"stopped by SIGTERM after \d images; the same command goes on from there", said)

    true_open = program.open_source

    def open_source(options):
        source = true_open(options)
        whole, asked = source.samples, threading.Event()

        def stuck(cursor):
            for number, sample in enumerate(whole(cursor)):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                    asked.wait(300)
                yield sample

        def end(code):
            codes.append(code)
            asked.set()

        monkeypatch.setattr(os, "_exit", end)
        source.samples = stuck
        return source

    with monkeypatch.context() as patch:
        patch.setattr(program, "open_source", open_source)
        patch.setattr(stopping, "HANGING_SECONDS", 0.1)
        code, said = prepare(*arguments)
    assert (code, codes[0]) == (143, 143)
    assert "no image has come for" in said
    assert f"What was committed is in {tmp_path / 'out' / '.partial'}; the same command goes on" in said
    assert prepare(*arguments)[0] == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_asked_again_it_quits_at_once_and_goes_on_later(prepare, photos, tmp_path, monkeypatch):
    arguments = ("data=list", f"source={photos}", "shards=2", f"output={tmp_path / 'out'}")
    prepare(*arguments[:3], f"output={tmp_path / 'whole'}")
    codes, quits = [], threading.Event()
    monkeypatch.setattr(stopping, "SAME_REQUEST_SECONDS", 0.0)
    monkeypatch.setattr(os, "_exit", lambda code: codes.append(code) or quits.set())
    take, commit = state.State.take, state.State.commit

    def pressed(self, sample, outcome):
        take(self, sample, outcome)
        if self.consumed == 17 and not codes:
            os.kill(os.getpid(), signal.SIGINT)

    def slow(self, pool):
        if self.consumed == 17 and not codes:
            os.kill(os.getpid(), signal.SIGINT)
            assert quits.wait(300)
        commit(self, pool)

    monkeypatch.setattr(state.State, "take", pressed)
    monkeypatch.setattr(state.State, "commit", slow)
    code, said = prepare(*arguments)
    assert (code, codes) == (130, [130])
    assert "saving the images read so far, after which the same command goes on; press again to quit" in said
    assert "quit by SIGINT without saving. What was committed is in" in said
    assert prepare(*arguments)[0] == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_the_bar_fits_a_terminal_of_80_columns(prepare, photos, tmp_path, monkeypatch, encoding):
    shown: list[str] = []
    move = Bar.move

    def moved(self, *args, **kwargs):
        move(self, *args, **kwargs)
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=file, width=80, force_terminal=True, color_system=None).print(self)
        file.flush()
        shown.append(file.buffer.getvalue().decode(encoding).rstrip("\n"))

    monkeypatch.setattr(Bar, "move", moved)
    assert prepare("data=list", f"source={photos}", f"output={tmp_path / 'out'}")[0] == 0
    assert len(shown) == 40
    for number, line in enumerate(shown, start=1):
        assert line.startswith(f"{2.5 * number:.1f} %  {number} images  ")
        assert re.search(r"images/s  [\d.,]+ MB/s  \d:\d\d:\d\d *$", line), line
        assert len(line.rstrip()) <= 80 - len("^C^C^C")
