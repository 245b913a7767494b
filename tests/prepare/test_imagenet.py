"""Miniatures of the official archives: labels against class folders, torchvision's reading of the devkit, tarfile."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import picture

from mixer_lightning.cli.prepare import parse
from mixer_lightning.data.sources import imagenet_archives
from mixer_lightning.prepare import imagenet
from mixer_lightning.prepare.open import open_source

WNIDS = ["n01440764", "n01443537", "n02084071", "n02123045", "n03272010"]
NAMES = ["tench", "goldfish", "dog", "tabby", "electric guitar"]
MISSING = "n99999999"


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as sink:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            sink.addfile(info, io.BytesIO(data))
    return file.getvalue()


def photos(wnid: str, count: int = 3) -> dict[str, bytes]:
    return {f"{wnid}_{i}.JPEG": picture(1000 * int(wnid[1:]) + i) for i in range(count)}


def class_tars(wnids, prefix="") -> dict[str, bytes]:
    return {f"{prefix}{wnid}.tar": tar(photos(wnid)) for wnid in wnids}


def devkit(path: Path, truth: list[str]) -> None:
    """The tables of ILSVRC2012_devkit_t12.tar.gz; ids in another order than WordNet ids, one synset with children."""
    from scipy.io import savemat

    fields = [
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
    ]  # fmt: skip
    by_id = ["n03272010", "n01440764", "n02123045", "n02084071", "n01443537"]
    synsets = np.zeros(len(by_id) + 1, dtype=[(field, object) for field in fields])
    for i, wnid in enumerate([*by_id, "n00001740"]):
        inner = wnid == "n00001740"
        synsets[i] = (
            i + 1,
            wnid,
            f"words of {wnid}",
            "gloss",
            5 if inner else 0,
            [1, 2] if inner else [],
            1,
            3,
        )
    matrix = io.BytesIO()
    savemat(matrix, {"synsets": synsets})
    numbers = "".join(f"{by_id.index(wnid) + 1}\n" for wnid in truth)
    folder = "ILSVRC2012_devkit_t12/data"
    data = {
        f"{folder}/meta.mat": matrix.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": numbers.encode(),
        f"{folder}/readme.txt": b"words",
    }
    path.write_bytes(gzip.compress(tar(data)))


TRUTH = ["n02084071", "n01440764", "n03272010", "n01440764"]


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    source = tmp_path / "archives"
    source.mkdir()
    unsorted = [WNIDS[i] for i in (2, 0, 4, 1, 3)]
    (source / "ILSVRC2012_img_train.tar").write_bytes(tar(class_tars(unsorted)))
    # not in the order of their numbers, which is what labels go by
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(i) for i in (3, 1, 4, 2)}
    (source / "ILSVRC2012_img_val.tar").write_bytes(tar(val))
    devkit(source / "ILSVRC2012_devkit_t12.tar.gz", TRUTH)
    return source


def opened_source(*arguments):
    return open_source(parse([*map(str, arguments), "output=/nowhere"]))


def read(opened, start=(0, 0)):
    """What a source yields: (split, key, labels) -> bytes."""
    found = [((s.split, s.key, s.labels), s.read()) for s in opened.samples(start)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_labels_are_those_of_class_folders(archives):
    opened = opened_source("data=imagenet1k", f"source={archives}")
    expected = {}
    for label, wnid in enumerate(sorted(WNIDS)):  # as torchvision's ImageFolder counts folders
        for name, data in photos(wnid).items():
            expected["train", f"{wnid}/{name.removesuffix('.JPEG')}", (label,)] = data
    for number, wnid in enumerate(TRUTH, 1):
        key = ("val", f"{wnid}/ILSVRC2012_val_{number:08d}", (sorted(WNIDS).index(wnid),))
        expected[key] = picture(number)
    assert read(opened) == expected
    assert (opened.wnids, opened.classes) == (sorted(WNIDS), NAMES)
    assert opened.splits["val"].num_samples == 4
    assert {s.suffix for s in opened.samples((0, 0))} == {"jpg"}


def test_archives_and_class_folders_make_the_same_shards(archives, tmp_path):
    from mixer_lightning.prepare.program import write_shards
    from mixer_lightning.screen import Screen

    folders = tmp_path / "folders"
    truth = [("train", wnid, name, data) for wnid in WNIDS for name, data in photos(wnid).items()]
    truth += [("val", wnid, f"ILSVRC2012_val_{i:08d}.JPEG", picture(i)) for i, wnid in enumerate(TRUTH, 1)]
    for split, wnid, name, data in truth:
        path = folders / split / wnid / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for data, source in (("imagenet1k", archives), ("folder", folders)):
        arguments = [f"data={data}", f"source={source}", f"output={tmp_path / data}", "shards=2", "threads=2"]
        assert write_shards(parse(arguments), Screen()) == 0
    shards = sorted(path.name for path in (tmp_path / "folder").glob("*.tar"))
    assert {name[:5] for name in shards} == {"train", "val-0"}
    for name in shards:
        contents = []
        for data in ("imagenet1k", "folder"):
            with tarfile.open(tmp_path / data / name) as found:
                contents.append({info.name: found.extractfile(info).read() for info in found})
        assert contents[0] == contents[1]
    about = json.loads((tmp_path / "imagenet1k" / "dataset.json").read_text())
    assert (about["classes"], about["wnids"]) == (NAMES, WNIDS)
    report = json.loads((tmp_path / "imagenet1k" / "report.json").read_text())
    assert report["differences"] == [
        "classes with images: 1,000 published, 5 found",
        "train images: 1,281,167 published, 15 found",
        "val images: 50,000 published, 4 found",
    ]


def test_the_devkit_is_read_as_torchvision_reads_it(archives, monkeypatch):
    from torchvision.datasets import imagenet as theirs

    monkeypatch.setattr(theirs, "_verify_archive", lambda *_: None)  # of the true one
    theirs.parse_devkit_archive(archives)
    wnid_to_classes, val_wnids = theirs.load_meta_file(archives)
    wnids, truth = imagenet_archives.read_devkit(archives / imagenet_archives.DEVKIT)
    assert wnids == sorted(wnid_to_classes)
    assert truth == val_wnids == TRUTH


def test_a_devkit_that_goes_back_is_not_read_for_ever(tmp_path):
    """tarfile, and with it torchvision, goes from one of its headers to the one before, and so on."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as sink:
        for number in range(3):
            info = tarfile.TarInfo(f"data/{number}.txt")
            info.pax_headers = {"size": "-1536"} if number else {}
            sink.addfile(info)
    path = tmp_path / imagenet_archives.DEVKIT
    path.write_bytes(gzip.compress(file.getvalue()))
    with pytest.raises(
        ValueError, match=r"cannot read .*devkit.*size=-1536; at its byte 512\).*image-net\.org"
    ):
        imagenet_archives.read_devkit(path)


def test_reading_goes_on_at_any_place(archives):
    opened = opened_source("data=imagenet1k", f"source={archives}")
    everything = list(opened.samples((0, 0)))
    for i, sample in enumerate(everything):
        rest = [(s.key, s.cursor, s.read(), s.done) for s in opened.samples(sample.cursor)]
        assert rest == [(s.key, s.cursor, s.read(), s.done) for s in everything[i + 1 :]]
    assert everything[-1].done <= opened.total


def test_parts_behind_are_not_read(archives, monkeypatch):
    opened = opened_source("data=imagenet1k", f"source={archives}")
    places = [s.cursor for s in opened.samples((0, 0)) if s.split == "val"]
    read_bytes = []
    true = imagenet.ArchiveStream.read
    monkeypatch.setattr(
        imagenet.ArchiveStream, "read", lambda archive, n: read_bytes.append(n) or true(archive, n)
    )
    list(opened.samples(places[-1]))
    assert sum(read_bytes) < 30_000 + 2**21  # headers, not images; twice the end of an archive is looked at
    assert max(n for n in read_bytes if n < 2**20) == 512


def test_one_split_needs_only_its_archives(archives):
    (archives / imagenet_archives.DEVKIT).unlink()
    opened = opened_source("data=imagenet1k", f"source={archives}", "splits=train")
    assert len(opened.classes) == 1000  # the list that timm has
    labels = {labels for _, _, labels in read(opened)}
    assert labels == {(0,), (1,), (281,), (546,)}  # the dog is no class of ILSVRC 2012
    assert opened.unknown_classes == {"n02084071"}
    with pytest.raises(
        ValueError, match=r"ILSVRC2012_devkit_t12\.tar\.gz missing in .*splits=train or splits=val"
    ):
        opened_source("data=imagenet1k", f"source={archives}")
    (archives / imagenet_archives.ARCHIVES_1K["train"]).unlink()
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar missing"):
        opened_source("data=imagenet1k", f"source={archives}", "splits=train")
    for split in ("train", "val"):  # or only its class folders, which ought to be a thousand
        (archives / split / split / WNIDS[0]).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"{split} has 1 class folders instead of the 1,000"):
            opened_source("data=imagenet1k", f"source={archives / split}", f"splits={split}")


def test_a_cut_archive_is_refused_before_the_start(archives):
    path = archives / imagenet_archives.ARCHIVES_1K["train"]
    whole = path.read_bytes()
    with tarfile.open(path) as outer:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in outer]
    path.write_bytes(
        whole[: ends[2]]
    )  # between two class tars, where tarfile sees three classes and no mistake
    with tarfile.open(path) as outer:
        assert len(outer.getnames()) == 3
    with pytest.raises(ValueError, match=r"is cut"):
        opened_source("data=imagenet1k", f"source={archives}")


def test_more_validation_images_than_labels_are_refused(archives):
    devkit(archives / imagenet_archives.DEVKIT, TRUTH[:3])
    with pytest.raises(ValueError, match=r"labels for images 1 to 3"):
        read(opened_source("data=imagenet1k", f"source={archives}", "splits=val"))


# ---- ImageNet-21k


def expected_21k(wnids, classes, split="train"):
    return {
        (split, f"{wnid}/{name.removesuffix('.JPEG')}", (classes.index(wnid),)): data
        for wnid in wnids
        for name, data in photos(wnid).items()
    }


@pytest.mark.parametrize("layout", ["fall11_whole.tar", "winter21_whole.tar.gz", "folder"])
def test_classes_are_found_in_the_headers(tmp_path, layout):
    """winter21_whole.tar.gz is a plain tar here: its bytes tell, not its name."""
    prefix = "winter21_whole/" if "winter" in layout else ""
    inner = class_tars([WNIDS[3], WNIDS[0], MISSING], prefix)
    if layout == "folder":
        for name, data in inner.items():
            (tmp_path / name).write_bytes(data)
        source = [f"source={tmp_path}", "variant=winter21"]
    else:
        (tmp_path / layout).write_bytes(tar(inner))
        source = [f"source={tmp_path}"]  # the name tells the release
    opened = opened_source("data=imagenet21k", *source, "classes=found")
    wnids = [WNIDS[0], WNIDS[3], MISSING]
    assert opened.wnids == wnids
    assert opened.classes == ["tench", "tabby", MISSING]  # no word is known for the last
    assert read(opened) == expected_21k(wnids, wnids)
    assert opened.release == ("imagenet21k fall11" if "fall" in layout else "imagenet21k winter21")
    assert opened.val_share == pytest.approx(25_600 / 14_197_122)
    everything = list(opened.samples((0, 0)))
    for i, sample in enumerate(everything):
        assert [s.key for s in opened.samples(sample.cursor)] == [s.key for s in everything[i + 1 :]]
    by_default = opened_source("data=imagenet21k", *source)
    google = imagenet_archives.wnid_list("google")
    assert by_default.wnids == google  # a head of Google's is for these, in this order
    assert read(by_default) == expected_21k([WNIDS[3], WNIDS[0]], google)
    assert by_default.unknown_classes == {MISSING}
    assert set(by_default.fingerprint) - set(opened.fingerprint) == {"classes: google"}


@pytest.mark.parametrize("choice", [None, "fall11", "file"])
def test_a_compressed_archive_takes_a_list_of_classes(tmp_path, choice):
    path = tmp_path / "winter21_whole.tar.gz"
    path.write_bytes(gzip.compress(tar(class_tars([WNIDS[3], MISSING, WNIDS[0]], "winter21_whole/"))))
    with pytest.raises(ValueError, match=r"only be read from front to end"):
        opened_source("data=imagenet21k", f"source={path}", "classes=found")
    wnids = [WNIDS[3], WNIDS[0], WNIDS[1]]
    if choice == "file":
        (tmp_path / "wnids.txt").write_text("\n".join(wnids) + "\n")
    else:
        wnids = imagenet_archives.wnid_list(choice or "google")
    argument = str(tmp_path / "wnids.txt") if choice == "file" else choice
    arguments = [f"classes={argument}"] if argument else []
    opened = opened_source("data=imagenet21k", f"source={path}", *arguments)
    assert read(opened) == expected_21k([WNIDS[3], WNIDS[0]], wnids)
    assert opened.unknown_classes == {MISSING}


def test_class_folders_of_the_processed_release_are_read_in_one_stream(tmp_path):
    files = {}
    for split, wnids in (("train", WNIDS[:2]), ("small_classes", WNIDS[2:3]), ("val", WNIDS[:2])):
        for wnid in wnids:
            for name, data in photos(wnid, 2).items():
                files[f"imagenet21k_resized/imagenet21k_{split}/{wnid}/{split}_{name}"] = data
    path = tmp_path / "imagenet21k_resized.tar.gz"
    path.write_bytes(gzip.compress(tar(files)))
    opened = opened_source("data=imagenet21k", f"source={tmp_path}", "classes=fall11_p", "variant=fall11_p")
    classes = imagenet_archives.wnid_list("fall11_p")
    known = [wnid for wnid in WNIDS[:2] if wnid in classes]
    assert known
    found = read(opened)
    assert found == {
        (split, f"{wnid}/{split}_{name.removesuffix('.JPEG')}", (classes.index(wnid),)): data
        for split in ("train", "val")
        for wnid in known
        for name, data in photos(wnid, 2).items()
    }
    assert (set(opened.splits), opened.val_share) == ({"train", "val"}, 0)
    only_val = read(opened_source("data=imagenet21k", f"source={path}", "variant=fall11_p", "splits=val"))
    assert only_val == {key: data for key, data in found.items() if key[0] == "val"}
    assert opened_source("data=imagenet21k", f"source={path}").release == "imagenet21k winter21_p"


@pytest.mark.parametrize(
    ("name", "count"), [("google", 21_843), ("fall11", 21_841), ("fall11_p", 11_221), ("winter21_p", 10_450)]
)
def test_bundled_lists_have_the_published_length(name, count):
    wnids = imagenet_archives.wnid_list(name)
    assert len(wnids) == len(set(wnids)) == count
    assert all(map(imagenet_archives.is_wnid, wnids))


def test_wrong_sources_are_refused_with_what_would_mend_them(tmp_path):
    with pytest.raises(ValueError, match=r"no archive of ImageNet-21k .*data=folder"):
        opened_source("data=imagenet21k", f"source={tmp_path}")
    path = tmp_path / "mine.tar"
    path.write_bytes(tar(class_tars(WNIDS[:1])))
    with pytest.raises(ValueError, match=r"variant is missing: mine\.tar"):
        opened_source("data=imagenet21k", f"source={path}")
    (tmp_path / "other.txt").write_text(f"{WNIDS[1]}\n")
    with pytest.raises(ValueError, match=r"none of the 1 classes of the archive"):
        opened_source(
            "data=imagenet21k", f"source={path}", "variant=fall11", f"classes={tmp_path / 'other.txt'}"
        )
    (tmp_path / "other.txt").write_text(f"{WNIDS[0]}\n{WNIDS[0]}\n")
    with pytest.raises(ValueError, match=r"n01440764 more than once"):
        opened_source(
            "data=imagenet21k", f"source={path}", "variant=fall11", f"classes={tmp_path / 'other.txt'}"
        )
    with pytest.raises(ValueError, match=r"no file gogle"):
        opened_source("data=imagenet21k", f"source={path}", "variant=fall11", "classes=gogle")
    path.rename(tmp_path / "fall11_whole.tar")
    for source in (tmp_path / "fall11_whole.tar", tmp_path):
        with pytest.raises(ValueError, match=r"fall11_whole\.tar is fall11, not winter21"):
            opened_source("data=imagenet21k", f"source={source}", "variant=winter21")


@pytest.mark.parametrize("val_share", [None, 0.5])
def test_a_val_split_that_came_out_empty_is_said(tmp_path, monkeypatch, capsys, val_share):
    """Of nine images 0.18 % are none."""
    from mixer_lightning.prepare import program
    from mixer_lightning.reports import prepare as picture_of
    from mixer_lightning.screen import Screen

    monkeypatch.setattr(picture_of, "plot_class_counts", lambda *_: None)
    for name, data in class_tars(WNIDS[:3]).items():
        (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    arguments = ["data=imagenet21k", f"source={tmp_path}", "variant=winter21", f"output={out}", "threads=1"]
    arguments += [f"val_share={val_share}"] if val_share else []
    for said_again in (False, True):
        assert program.write_shards(parse(arguments), Screen()) == 0
        said = " ".join("".join(capsys.readouterr()).split())
        if not said_again:
            assert "shards: up to 1 train, 1 val" in said
            assert f"of which about {'50' if val_share else '0.18'} % become val" in said
        is_empty = val_share is None
        assert ("val: no image and no shard (val_share=0.0018 of train held out none)" in said) == is_empty
        assert ("train_split='train[:99%]'" in said) == is_empty
    written = json.loads((out / "dataset.json").read_text())["splits"]
    assert sorted(written) == (["train"] if is_empty else ["train", "val"])
    assert sum(each["samples"] for each in written.values()) == 9
    assert (out / "val-00000.tar").exists() != is_empty
    assert json.loads((out / "report.json").read_text())["empty_splits"] == (["val"] if is_empty else [])
