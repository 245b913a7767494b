"""Tables of paths and labels: columns in any order, names and numbers, and what is said of lines that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.table import table


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight images: 0.png ... 7.png."""
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.new("RGB", (4, 3), (i, 0, 0)).save(tmp_path / f"images/{i}.png")
    return tmp_path


def lines(*labels: str, first: int = 0) -> str:
    return "".join(f"images/{first + i}.png,{label}\n" for i, label in enumerate(labels))


def read(data: Dataset, split: str) -> list[tuple[str, str]]:
    images = data.splits[split]
    labels = images.labels(np.arange(len(images))).tolist()
    return [(images.key(i), data.classes[label]) for i, label in enumerate(labels)]


def test_a_folder_of_tables(root):
    (root / "train.csv").write_text("path,label\n" + lines("owl", "crow", "owl"))
    (root / "val.csv").write_text("path,label\n" + lines("crow", first=6) + "./images/6.png,crow\n")
    data = table(root=str(root))
    assert data.classes == ["crow", "owl"]
    assert read(data, "train") == [("images/0.png", "owl"), ("images/1.png", "crow"), ("images/2.png", "owl")]
    assert read(data, "val") == [("images/6.png", "crow")]
    assert data.splits["train"].read(2) == (root / "images/2.png").read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_one_file_as_spreadsheets_write_it(root, encoding, end, mark):
    rows = [("Label", "width", "Filename", "split"), ("owl, grey", "4", "images/0.png", "train")]
    rows += [("crow", "4", "images/1.png", "Training"), ("crow", "4", str(root / "images/2.png"), "valid")]
    text = (
        end.join(mark.join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows) + end + end
    )
    (root / "birds.csv").write_bytes(text.encode(encoding))
    data = table(root=str(root / "birds.csv"), name="birds")
    assert data.classes == ["crow", "owl, grey"]
    assert read(data, "train") == [("images/0.png", "owl, grey"), ("images/1.png", "crow")]
    assert data.splits["val"].read(0) == (root / "images/2.png").read_bytes()


def test_numbers_are_positions_and_a_file_names_the_classes(root):
    (root / "train.csv").write_text("path,label\n" + lines("10", "2", "0"))
    data = table(root=str(root))
    assert data.classes == [str(i) for i in range(11)]
    assert [label for _, label in read(data, "train")] == ["10", "2", "0"]
    (root / "names.txt").write_bytes(b"\xef\xbb\xbf" + b"".join(b"bird %d\n" % i for i in range(11)))
    named = table(root=str(root), classes=str(root / "names.txt"))
    assert [label for _, label in read(named, "train")] == ["bird 10", "bird 2", "bird 0"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "images/0.png,owl\n",
            r"train\.csv begins with 'images/0.png,owl'\. Expected a first line path,label",
        ),
        ("", r"train\.csv begins with ''"),
        ("path,label\n", r"train\.csv names no image"),
        ("path,label\nimages/0.png\n", r"line 2 of .*train\.csv lacks a path or a label"),
        ("path,label\nimages/0.png,owl\n,owl\n", r"line 3 of .*train\.csv lacks a path or a label"),
        (
            "path,label\nimages/0.png,owl\nimages/9.png,owl\n",
            r"1 of 2 files looked at do not exist, such as .*9\.png",
        ),
        (
            "path,label\nimages/0.png,owl\nimages/0.png,crow\n",
            r"'owl' in line 2 of train and 'crow' in line 3",
        ),
        (
            "path,label\nimages/0.png,owl\n./images//0.png,crow\n",
            r"'owl' in line 2 of train and 'crow' in line 3",
        ),
        (
            "path,label,split\nimages/0.png,owl,train\nimages/0.png,owl,val\n",
            r"0\.png is in train and in val",
        ),
        (
            "path,label,split\nimages/0.png,owl,dev\n",
            r"line 2 of .* has the split 'dev'; there are train, val, test",
        ),
        (
            "path,label\nimages/0.png,2\nimages/1.png,-1\n",  # among numbers it would make names of them all
            r"line 3 of .*: 'images/1\.png' has label -1\. .*leave out images without a class",
        ),
        ("path,label\nimages/0.png,900000\n", r"labels go up to 900000.* data\.classes=<file>"),
    ],
)
def test_what_is_wrong_is_named(root, text, complaint):
    (root / "train.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^birds: .*{complaint}"):
        table(root=str(root), name="birds")


def test_where_there_is_no_table(root):
    with pytest.raises(FileNotFoundError, match=r"csv: no table at .*train\.csv .*path,label"):
        table(root=str(root))
    with pytest.raises(FileNotFoundError, match=r"data\.val=no\.csv: there is no file .*no\.csv"):
        table(root=str(root), val="no.csv")
