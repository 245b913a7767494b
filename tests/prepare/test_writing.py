"""A shard on disk is what webdataset would have written; the index is what tarfile finds in it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_lightning.data.sources.names import tar_key
from mixer_lightning.data.sources.samples import samples
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.prepare.writing import Entry, Shard, write_index

webdataset = pytest.importorskip("webdataset")

ENTRIES = [
    Entry("n01/a_1", b"jpeg" * 200, "jpg", (3,)),
    Entry("n01/b", b"x" * 512, "png", (0,)),
    Entry("ä/ö ü", b"webp" * 3, "webp", (21842,)),
    Entry(f"{'deep/' * 18}{'n' * 60}", b"p", "jpg", (7,)),
]


def grown(folder, entries, *, labels_per_image=1, at_a_time=10):
    shard = Shard(folder / "train-00000.tar", labels_per_image)
    for i, entry in enumerate(entries):
        shard.add(entry)
        if (i + 1) % at_a_time == 0:
            shard.write()
    shard.write()
    shard.sync()
    return shard


def listing(path):
    with tarfile.open(path) as tar:
        return [(info.name, info.offset_data, tar.extractfile(info).read()) for info in tar]


def test_it_is_what_webdataset_writes(tmp_path):
    (tmp_path / "done").mkdir()
    written = grown(tmp_path, ENTRIES).finish(tmp_path / "done" / "train-00000.tar")
    expected = io.BytesIO()
    with webdataset.TarWriter(expected, encoder=False, mtime=0) as sink:
        for each in ENTRIES:
            sink.write({"__key__": each.key, each.suffix: each.encoded, "cls": str(each.labels[0]).encode()})
    data = (tmp_path / "done" / "train-00000.tar").read_bytes()
    assert data == expected.getvalue()
    assert written == ("train-00000.tar", len(data), 4, hashlib.sha256(data).hexdigest())


def test_the_index_says_where_images_lie(tmp_path):
    long = Entry("n" * 300, b"long" * 9, "jpg", (1,))  # needs an extended header
    shard = grown(tmp_path, [*ENTRIES, long], at_a_time=2)
    write_index(tmp_path / "train-index.npy", [shard], labels_path=None)
    shard.finish(tmp_path / "done.tar")
    index = np.load(tmp_path / "train-index.npy", mmap_mode="r")
    assert index.dtype == np.dtype([("block", "<u4"), ("size", "<u4"), ("label", "<i4"), ("hash", "<u4")])
    images = {offset: (name, data) for name, offset, data in listing(tmp_path / "done.tar")}
    for row, entry in zip(index, [*ENTRIES, long], strict=True):
        name, data = images[int(row["block"]) * 512]
        assert (name, data) == (f"{entry.key}.{entry.suffix}", entry.encoded)
        assert (row["size"], row["label"], row["hash"]) == (len(data), entry.labels[0], hash32(entry.key))


def test_several_labels_are_written_as_json_and_in_an_array(tmp_path):
    entries = [
        Entry("a", b"1", "jpg", (4, 2)),
        Entry("b", b"2", "jpg", (1,)),
        Entry("c", b"3", "png", (0, 1, 9)),
    ]
    shard = grown(tmp_path, entries, labels_per_image=3)
    write_index(tmp_path / "index.npy", [shard], labels_path=tmp_path / "labels.npy")
    shard.finish(tmp_path / "done.tar")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [[4, 2, -1], [1, -1, -1], [0, 1, 9]])
    assert np.load(tmp_path / "labels.npy").dtype == np.int32
    np.testing.assert_array_equal(np.load(tmp_path / "index.npy")["label"], [4, 1, 0])
    notes = {name: json.loads(data) for name, _, data in listing(tmp_path / "done.tar") if "json" in name}
    assert notes["a.json"] == {"label": 4, "labels": [4, 2]}
    assert notes["b.json"] == {"label": 1, "labels": [1]}


@pytest.mark.parametrize("at_a_time", [1, 2, 10])
def test_no_two_samples_of_a_shard_share_a_key(tmp_path, at_a_time):
    keys = ["a", "b", "a", "a-2", "a"]
    shard = grown(tmp_path, [Entry(key, b"1", "jpg", (0,)) for key in keys], at_a_time=at_a_time)
    shard.finish(tmp_path / "x.tar")
    names = [name for name, _, _ in listing(tmp_path / "x.tar") if name.endswith("jpg")]
    assert names == ["a.jpg", "b.jpg", "a~~2.jpg", "a-2.jpg", "a~~3.jpg"]
    assert shard.rows()["hash"].tolist() == [hash32(key) for key in keys]
    with (tmp_path / "x.tar").open("rb") as tar:  # the tar alone tells the same
        assert samples(tar.fileno(), {})[0]["hash"].tolist() == [hash32(key) for key in keys]


def test_restored_it_goes_on_as_if_nothing_had_been_written_since(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = grown(tmp_path / "whole", ENTRIES)
    shard = grown(tmp_path / "killed", ENTRIES[:2])
    committed = (shard.num_bytes, shard.samples)
    for entry in ENTRIES[2:]:
        shard.add(entry)
    shard.write()  # and the journal never heard of it
    again = Shard(shard.path, 1)
    again.restore(*committed, finished=False)
    for entry in ENTRIES[2:]:
        again.add(entry)
    again.write()
    assert again.finish(tmp_path / "b.tar") == whole.finish(tmp_path / "a.tar")._replace(name="b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    np.testing.assert_array_equal(again.rows(), whole.rows())


def test_less_on_disk_than_was_committed_is_refused(tmp_path):
    shard = grown(tmp_path, ENTRIES[:2])
    with pytest.raises(ValueError, match=r"has 4,608 bytes, but 9,999 were written: delete"):
        Shard(shard.path, 1).restore(9999, 2, finished=False)


@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=30) | st.from_regex(r"\A[./_a-c~1-3\n]{0,12}\Z")
)
def test_any_key_is_split_where_webdataset_splits_it(key):
    from webdataset.tariterators import base_plus_ext

    found = tar_key(key)
    assert base_plus_ext(f"{found}.jpg") == (found, "jpg")
    assert tar_key(found) == found
    assert not found.rpartition("/")[2].startswith("__")
    assert not found.startswith("/")
    assert ".." not in found.split("/")


def test_ordinary_keys_stay():
    for key in ("n01440764/n01440764_10026", "000000017", "train/a b"):
        assert tar_key(key) == key
    assert tar_key("birds/a.b") == "birds/a_b"


def test_the_numbers_that_shards_append_are_no_part_of_a_key():
    for key in ("birds/a", "a-2", "a~2", "a~~b", "~~2", "birds/~~2"):
        assert tar_key(key) == key
        assert tar_key(f"{key}~~2") == tar_key(f"{key}~~2~~13") == key
