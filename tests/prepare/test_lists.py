"""Lists of image files: paths, labels and classes against what was written into them."""

from __future__ import annotations

import json
import os

import pytest
from pictures import picture

from mixer_lightning.cli.prepare import parse
from mixer_lightning.prepare.open import open_source


def opened_source(*arguments):
    return open_source(parse([*map(str, arguments), "output=/nowhere"]))


def read(opened, start=(0, 0)):
    return [(s.split, s.key, s.labels, s.read()) for s in opened.samples(start)]


def test_names_paths_and_several_labels(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "1.jpg").write_bytes(b"one")
    (tmp_path / "ü.PNG").write_bytes(b"two")
    away = tmp_path.parent / f"{tmp_path.name}-away.jpg"
    away.write_bytes(b"three")
    source = tmp_path / "x.tsv"
    source.write_text(f"\ufeffa b/1.jpg\tcat, dog\r\n\nü.PNG\tant\n{away}\tdog,dog\n", encoding="utf-8")
    opened = opened_source("data=list", f"source={source}")
    assert opened.classes == ["ant", "cat", "dog"]
    assert read(opened) == [
        ("train", "a b/1", (1, 2), b"one"),
        ("train", "ü", (0,), b"two"),
        ("train", str(away).removesuffix(".jpg"), (2,), b"three"),
    ]
    assert (opened.labels_per_image, opened.total) == (2, 3)
    assert opened.splits["train"].num_samples == 3
    assert [s.suffix for s in opened.samples((0, 0))] == ["jpg", "png", "jpg"]


def test_a_folder_of_lists_and_json_lines(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]))
    rows = [{"path": "0.jpg", "labels": ["b", "c, d"]}, {"path": "1.jpg", "label": "a"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "val.tsv").write_text("2.jpg\tb\n")
    opened = opened_source("data=jft300m", f"source={tmp_path}")
    assert (opened.name, opened.classes) == ("jft300m", ["a", "b", "c, d"])
    everything = read(opened)
    assert everything == [
        ("train", "0", (1, 2), b"\x00"),
        ("train", "1", (0,), b"\x01"),
        ("val", "2", (1,), b"\x02"),
    ]
    samples = list(opened.samples((0, 0)))
    for i, sample in enumerate(samples):
        assert read(opened, sample.cursor) == everything[i + 1 :]
    assert [s.done for s in samples] == [1, 2, 3]
    assert opened_source("data=list", f"source={tmp_path}", "splits=val").total == 1


def test_two_lists_of_one_split_are_refused(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"x")
    for name in ("train.tsv", "val.tsv", "train.txt"):
        (tmp_path / name).write_text("0.jpg\tcat\n")
    with pytest.raises(
        ValueError, match=r"holds train\.tsv and train\.txt, and only one .* of train\. Remove"
    ):
        opened_source("data=list", f"source={tmp_path}")
    assert opened_source("data=list", f"source={tmp_path / 'train.txt'}").total == 1
    (tmp_path / "train.txt").rename(tmp_path / "readme.txt")
    assert opened_source("data=list", f"source={tmp_path}").total == 2


def test_numbers_are_labels_unless_they_are_names(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"x")
    source = tmp_path / "val.txt"
    source.write_text("0.jpg\t2\n0.jpg\t0,1\n")
    opened = opened_source("data=list", f"source={source}", "split=val")
    assert opened.classes == ["0", "1", "2"]
    assert [(split, labels) for split, _, labels, _ in read(opened)] == [("val", (2,)), ("val", (0, 1))]
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    opened = opened_source("data=list", f"source={source}", f"classes={names}")
    assert opened.classes == ["ant", "bee", "cat", "dog"]
    assert [labels for _, _, labels, _ in read(opened)] == [(2,), (0, 1)]
    names.write_text("2\n1\n0\n")
    opened = opened_source("data=list", f"source={source}", f"classes={names}")
    assert [labels for _, _, labels, _ in read(opened)] == [(0,), (2, 1)]


def test_large_numbers_may_be_labels_or_names(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"x")
    source, names = tmp_path / "x.tsv", tmp_path / "names.txt"
    source.write_text("0.jpg\t100199\n0.jpg\t00007\n")
    assert len(opened_source("data=list", f"source={source}").classes) == 100_200
    source.write_text("0.jpg\t5551234567\n0.jpg\t-ish\n")
    assert opened_source("data=list", f"source={source}").classes == ["-ish", "5551234567"]
    source.write_text("0.jpg\t5551234567\n")
    names.write_text("12\n5551234567\n")
    opened = opened_source("data=list", f"source={source}", f"classes={names}")
    assert [labels for _, _, labels, _ in read(opened)] == [(1,)]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("0.jpg cat\n", None, r"x\.tsv, line 1: '0\.jpg cat'\. Expected path<TAB>label"),
        ("0.jpg\tcat\n0.jpg\t\n", None, r"line 2"),
        ("0.jpg\tcat\tdog\n", None, r"line 1"),
        ("0.jpg\tcat,\n", None, r"line 1"),
        ("0.jpg\t0\n0.jpg\t1\n0.jpg\t-1\n", None, r"x\.tsv, line 3: '0\.jpg' has label -1\. .* from 0 on"),
        ("0.jpg\t1,-20\n", None, r"x\.tsv, line 1: '0\.jpg' has label -20\."),
        ("0.jpg\t5\n0.jpg\t2000000\n", None, r"labels go up to 2000000, but the list has 2 images: .* ids"),
        ("0.jpg\t5\n0.jpg\t100200\n", None, r"labels go up to 100200, .* classes=<file>"),
        (f"0.jpg\t{'9' * 5000}\n", None, r"labels go up to 9999"),
        ("\n", None, r"x\.tsv is empty"),
        ("0.jpg\tcat\n0.jpg\tdgo\n", "cat\ndog\n", r"1 labels of the list are not in .*: 'dgo'"),
        ("0.jpg\t0\n0.jpg\t2\n", "cat\ndog\n", r"labels go up to 2, but .* names 2 classes"),
        ("0.jpg\tcat\n", "cat\ncat\n", r"stands twice"),
        ("away/0.jpg\tcat\n", None, r"none of 1 images looked at exists, such as .*away/0\.jpg"),
    ],
)
def test_mistakes_are_found_before_the_start(tmp_path, text, names, message):
    (tmp_path / "0.jpg").write_bytes(b"x")
    (tmp_path / "x.tsv").write_text(text)
    arguments = ["data=list", f"source={tmp_path / 'x.tsv'}"]
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
        arguments.append(f"classes={tmp_path / 'names.txt'}")
    with pytest.raises(ValueError, match=message):
        opened_source(*arguments)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"path": "0.jpg"}',
        '{"path": "0.jpg", "labels": [true]}',
        '{"path": "0.jpg", "labels": "cat"}',
        '{"path": 5, "label": "cat"}',
        '{"label": 1}',
        '{"path": "0.jpg", "labels": [1, -1]}',
    ],
)
def test_wrong_json_lines_are_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1"):
        opened_source("data=list", f"source={tmp_path / 'x.jsonl'}")


def test_the_size_is_estimated_from_evenly_spaced_files(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(bytes(1000 * (i + 1)))
    (tmp_path / "x.tsv").write_text("".join(f"{i % 3}.jpg\ta\n" for i in range(6000)))
    assert opened_source("data=list", f"source={tmp_path / 'x.tsv'}").splits[
        "train"
    ].num_bytes == pytest.approx(12e6, rel=0.02)


def test_names_that_are_not_utf8_are_found(tmp_path):
    name = b"\xff.jpg"
    (tmp_path / os.fsdecode(name)).write_bytes(picture(0))
    (tmp_path / "x.tsv").write_bytes(name + b"\tcat\n")
    assert read(opened_source("data=list", f"source={tmp_path / 'x.tsv'}"))[0][3] == picture(0)
