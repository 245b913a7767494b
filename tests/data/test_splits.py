"""Slices of splits: each image on one side for good, and nothing both trained on and evaluated on."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
import pytest
from timm.data import ImageNetInfo

from mixer_lightning.data.sources import Dataset, Stored
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.data.splits import Joined, Subset, by_class_names, choose, refuse_one_class, shard_sizes
from mixer_lightning.data.stateless_random import hash32

KEYS = [f"class{i % 7}/{i:05}.jpg" for i in range(3000)]


def in_shards(key: str) -> str:
    """What prepare calls an image of such a key: its path without the suffix."""
    return key.removesuffix(".jpg")


class Files:
    """Images of such keys, each labelled with the number in its key; reading one gives its key."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def labels(self, indices):
        return np.array([int(self.keys[i][-9:-4]) for i in indices], np.int64)

    def read(self, index):
        return self.keys[index].encode()

    def key(self, index):
        return self.keys[index]

    def name(self, index):
        return f"/images/{self.keys[index]}"


class Shards(Files):
    """The same in shards of given numbers of images."""

    def __init__(self, keys: list[str], counts: list[int]) -> None:
        super().__init__(keys)
        assert sum(counts) == len(keys)
        self.counts = counts
        self.expected: list[list[int]] = []

    def shard_sizes(self):
        return self.counts

    def hashes(self):
        return np.array([hash32(in_shards(each)) for each in self.keys], np.uint32)

    def prefetch(self, shards):
        self.expected.append(list(shards))


def dataset(**splits) -> Dataset:
    return Dataset("stills", ["cat", "dog", *map(str, range(2, 5000))], splits)


def keys_of(images) -> list[str]:
    return [images.key(i) for i in range(len(images))]


def position(key: str) -> float:
    """Where an image lies in its split, in percent, reckoned without our code."""
    return (
        int.from_bytes(hashlib.blake2b(in_shards(key).encode(), digest_size=4).digest(), "little")
        / 2**32
        * 100
    )


# ---- slices


@pytest.mark.parametrize("cuts", [(50,), (99,), (10, 20), (33.3, 66.7), (0.5, 1, 99.95)])
def test_slices_hold_every_image_once(cuts):
    edges = ["", *(f"{cut}%" for cut in cuts), ""]
    data = dataset(train=Files(KEYS), test=Files(KEYS[:1]))
    texts = [f"train[{low}:{high}]" for low, high in itertools.pairwise(edges)]
    slices = [keys_of(choose(data, train=text).splits["train"]) for text in texts]
    assert sorted(itertools.chain.from_iterable(slices)) == sorted(KEYS)
    for text, found, low, high in zip(texts, slices, (0, *cuts), (*cuts, 100), strict=True):
        assert found == [each for each in KEYS if low <= position(each) < high], text  # in the split's order
        share = (high - low) / 100
        assert abs(len(found) - 3000 * share) < 4 * np.sqrt(3000 * share * (1 - share)) + 1


def test_an_image_stays_on_its_side_however_the_set_is_stored():
    shuffled = random.Random(0).sample(KEYS, len(KEYS))
    stored = [
        Files(KEYS),
        Files(shuffled),
        Shards(KEYS, [1000, 1, 0, 1999]),
        Shards(shuffled, [100] * 30),
        Joined([Files(KEYS[:700]), Shards(KEYS[700:], [2000, 300])]),
        Subset(Files(KEYS), np.arange(3000)),
    ]
    chosen = [choose(dataset(train=each), train="train[:90%]", val="train[90%:]").splits for each in stored]
    for splits in chosen:
        assert set(keys_of(splits["val"])) == {each for each in KEYS if position(each) >= 90}
        assert len(splits["train"]) + len(splits["val"]) == 3000


def test_more_images_move_no_image_to_the_other_side():
    few = choose(dataset(train=Files(KEYS[:500])), train="train[:80%]", val="train[80%:]").splits["val"]
    many = choose(dataset(train=Files(KEYS)), train="train[:80%]", val="train[80%:]").splits["val"]
    assert set(keys_of(few)) == set(keys_of(many)) & set(KEYS[:500])


def test_a_subset_is_its_images():
    files = Files(KEYS)
    part = choose(dataset(train=files), train="train[:90%]", val="train[90%:]").splits["val"]
    for i in (0, 7, len(part) - 1):
        assert part.read(i) == part.key(i).encode()
        assert part.name(i) == f"/images/{part.key(i)}"
    indices = np.array([5, 0, 5])
    assert part.labels(indices).tolist() == [int(part.key(i)[-9:-4]) for i in indices]
    assert part.labels(indices).dtype == np.int64
    assert part.hashes().tolist() == [hash32(in_shards(each)) for each in keys_of(part)]


def test_a_slice_of_pixels_in_memory():
    whole = digits()
    cut = choose(whole, train="train[:90%]", val="train[90%:]")
    assert list(cut.splits) == ["train", "val", "test"]
    train, val = cut.splits["train"], cut.splits["val"]
    assert len(train) + len(val) == len(whole.splits["train"])
    rows = {whole.splits["train"].key(i): i for i in range(len(whole.splits["train"]))}
    for i in (0, len(val) - 1):
        there = rows[val.key(i)]
        assert np.array_equal(val.read(i), whole.splits["train"].read(there))
        assert val.labels(np.array([i])) == whole.splits["train"].labels(np.array([there]))


@pytest.mark.parametrize(
    "text", ["train", "train[:]", "train[0%:100%]", " train ", "train[:100%]", "train[0.0%:]"]
)
def test_the_whole_split_is_the_split_itself(text):
    files = Files(KEYS)
    assert choose(dataset(train=files, test=Files(KEYS[:1])), train=text).splits["train"] is files


# ---- which splits there are


def test_val_and_test_are_taken_where_they_are():
    train, val, test = Files(KEYS[:10]), Files(KEYS[10:20]), Files(KEYS[20:30])
    chosen = choose(dataset(train=train, val=val, test=test, extra=Files(KEYS[30:])))
    assert chosen.splits == {"train": train, "val": val, "test": test}
    assert (chosen.name, chosen.classes[:2]) == ("stills", ["cat", "dog"])


def test_what_is_trained_on_is_not_evaluated_on_by_default():
    train, val, test = Files(KEYS[:10]), Files(KEYS[10:20]), Files(KEYS[20:30])
    chosen = choose(dataset(train=train, val=val, test=test), train="train+val")
    assert list(chosen.splits) == ["train", "test"]
    assert keys_of(chosen.splits["train"]) == KEYS[:20]
    assert chosen.splits["test"] is test


def test_a_test_split_to_choose_by_is_not_tested_on_as_well():
    chosen = choose(dataset(train=Files(KEYS), test=Files(KEYS)), val="test")
    assert list(chosen.splits) == ["train", "val"]


def test_halves_of_one_split():
    chosen = choose(dataset(train=Files(KEYS), val=Files(KEYS)), val="val[:50%]", test="val[50%:]")
    assert len(chosen.splits["val"]) + len(chosen.splits["test"]) == 3000


# ---- several splits in one


def test_joined_splits_follow_each_other():
    parts = [Files(KEYS[:3]), Subset(Files(KEYS), np.array([70, 90])), Shards(KEYS[5:10], [4, 1])]
    joined = Joined(parts)
    keys = [*KEYS[:3], KEYS[70], KEYS[90], *KEYS[5:10]]
    assert len(joined) == 10
    assert keys_of(joined) == keys
    assert [joined.read(i) for i in range(10)] == [each.encode() for each in keys]
    assert [joined.name(i) for i in range(10)] == [f"/images/{each}" for each in keys]
    assert joined.hashes().tolist() == [hash32(in_shards(each)) for each in keys]
    indices = np.array([9, 0, 4, 4, 2, 3, 5])
    assert joined.labels(indices).tolist() == [int(keys[i][-9:-4]) for i in indices]


@pytest.mark.parametrize("indices", [[0], [4], [1, 0], [3, 4, 3], []])
def test_labels_of_a_batch_that_lies_in_one_part(indices):
    joined = Joined([Files(KEYS[:3]), Files(KEYS[10:12])])
    labels = joined.labels(np.array(indices, np.int64))
    assert labels.dtype == np.int64
    assert labels.tolist() == [[0, 1, 2, 10, 11][i] for i in indices]


def test_labels_of_several_lengths_are_filled_up():
    pixels = np.zeros((2, 1, 1, 3), np.uint8)
    one = Arrays("one", pixels, [5, 6])
    two = Arrays("two", pixels, [[0, 1], [2, -1]])
    three = Arrays("three", pixels, [[7, 8, 9], [7, -1, -1]])
    joined = Joined([one, two, three])
    assert joined.labels(np.array([4, 0, 3, 2])).tolist() == [[7, 8, 9], [5, -1, -1], [2, -1, -1], [0, 1, -1]]
    # The width is that of the whole set, whichever images a batch has: its pieces are put together.
    assert joined.labels(np.array([1])).tolist() == [[6, -1, -1]]
    assert joined.labels(np.array([2, 3])).tolist() == [[0, 1, -1], [2, -1, -1]]


def test_joined_slices():
    data = dataset(train=Files(KEYS[:2000]), val=Files(KEYS[2000:]))
    chosen = choose(data, train="train[:50%]+val[:50%]", val="val[50%:]+train[50%:]")
    assert set(keys_of(chosen.splits["train"])) == {each for each in KEYS if position(each) < 50}
    assert set(keys_of(chosen.splits["val"])) == {each for each in KEYS if position(each) >= 50}


# ---- how they lie on disk


def test_what_is_not_in_shards_is_one_shard():
    files = Files(KEYS)
    assert shard_sizes(files) == [3000]
    assert shard_sizes(Subset(files, np.array([3, 5, 2999]))) == [3]
    assert not isinstance(files, Stored)


def test_shard_sizes_of_a_subset_count_its_images_in_each_shard():
    shards = Shards(KEYS[:10], [3, 0, 4, 1, 2])
    assert shard_sizes(shards) == [3, 0, 4, 1, 2]
    assert shard_sizes(Subset(shards, np.array([0, 2, 3, 6, 8, 9]))) == [2, 0, 2, 0, 2]
    assert shard_sizes(Subset(shards, np.array([7]))) == [0, 0, 0, 1, 0]
    assert shard_sizes(Subset(shards, np.arange(10))) == [3, 0, 4, 1, 2]


def test_shard_sizes_of_joined_splits_follow_each_other():
    shards = Shards(KEYS[:10], [3, 7])
    assert shard_sizes(Joined([shards, Files(KEYS[:4]), Subset(shards, np.array([2, 3, 4]))])) == [
        3,
        7,
        4,
        1,
        2,
    ]


def test_shard_sizes_hold_as_many_images_as_there_are():
    data = dataset(train=Shards(KEYS, [500] * 6), val=Shards(KEYS[:9], [9]), test=Files(KEYS[:1]))
    images = choose(data, train="train[:30%]+val").splits["train"]
    assert isinstance(images, Stored)
    assert sum(shard_sizes(images)) == len(images)
    assert len(shard_sizes(images)) == 7


def test_every_shard_learns_under_its_own_number_that_it_is_read_next():
    first, second = Shards(KEYS[:10], [5, 5]), Shards(KEYS[:9], [3, 3, 3])
    joined = Joined([first, Files(KEYS[:4]), Subset(second, np.array([0, 5, 8]))])
    assert shard_sizes(joined) == [5, 5, 4, 1, 1, 1]
    joined.prefetch([5, 1, 3, 2])
    assert first.expected == [[1]]
    assert second.expected == [[2, 0]]


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "train[:90%]", "val": "train[89%:]"}, ["train[:90%]", "train[89%:]", "share images"]),
        ({"train": "train", "val": "train[99%:]"}, ["train_split=train ", "val_split=train[99%:]", "share"]),
        ({"train": "train+val", "val": "val"}, ["train+val", "val_split=val", "share"]),
        ({"train": "train", "test": "val+train[:1%]"}, ["test_split", "share"]),
        ({"train": "trian"}, ["train_split=trian", "train, val"]),
        ({"val": "test"}, ["val_split=test", "train, val"]),
        ({"train": "train[:90]"}, ["cannot read", "train[:90]", "train[:99%]"]),
        ({"train": "train[90%]"}, ["cannot read", "train[90%]"]),
        ({"train": "train[-1%:]"}, ["cannot read", "train[-1%:]"]),
        ({"train": "train+"}, ["cannot read", "train_split=''"]),
        ({"train": ""}, ["cannot read", "train_split=''"]),
        ({"val": ""}, ["cannot read", "val_split=''"]),
        ({"train": "train[50%:50%]"}, ["train[50%:50%]", "first figure < second"]),
        ({"train": "train[60%:40%]"}, ["train[60%:40%]", "first figure < second"]),
        ({"train": "train[:101%]"}, ["train[:101%]", "100%"]),
        ({"train": "train[:0%]"}, ["train[:0%]", "first figure < second"]),
        ({"val": "val[:0.00001%]"}, ["val_split=val[:0.00001%]", "none of the 3,000 images"]),
    ],
)
def test_a_mistake_is_named(options, words):
    with pytest.raises(ValueError, match=r"^stills: ") as error:
        choose(dataset(train=Files(KEYS), val=Files(KEYS)), **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_slices_that_touch_do_not_overlap():
    chosen = choose(dataset(train=Files(KEYS)), train="train[10%:90%]", val="train[:10%]", test="train[90%:]")
    keys = [each for images in chosen.splits.values() for each in keys_of(images)]
    assert sorted(keys) == sorted(KEYS)


def test_without_anything_to_evaluate_on_it_says_how_to_set_some_aside():
    with pytest.raises(ValueError, match=r"neither a val nor a test split") as error:
        choose(dataset(train=Files(KEYS)))
    assert "val_split='train[90%:]'" in str(error.value)


@pytest.mark.parametrize("train", ["train+train", "train[:50%]+train[40%:60%]"])
def test_no_image_is_in_a_split_twice(train):
    with pytest.raises(ValueError, match="holds images of train twice"):
        choose(dataset(train=Files(KEYS), val=Files(KEYS)), train=train)


@pytest.mark.parametrize("labels", [[3] * 40, [[3, -1]] * 40, [[3, 3]] * 39 + [[3, -1]]])
def test_images_of_one_class_teach_nothing(labels):
    images = Arrays("flat", np.zeros((40, 1, 1, 3), np.uint8), labels)
    data = Dataset("flat", list("abcde"), {"train": images, "val": images})
    with pytest.raises(
        ValueError, match=r"flat: all 40 training images are of one class, 'd'.*<root>/train/<class>/<image>"
    ):
        refuse_one_class(data)
    other = np.array(labels)
    other[(39, *([0] * (other.ndim - 1)))] = 2
    images = Arrays("flat", np.zeros((40, 1, 1, 3), np.uint8), other)
    refuse_one_class(Dataset("flat", list("abcde"), {"train": images}))


def test_labels_follow_the_names_of_the_classes():
    images = Arrays("few", np.zeros((4, 1, 1, 3), np.uint8), [0, 1, 1, 2])
    several = Arrays("few", np.zeros((2, 1, 1, 3), np.uint8), [[2, -1], [0, 1]])
    data = Dataset("few", ["owl", "crow", "emu"], {"val": images, "test": several})
    known = ["ant", "crow", "emu", "owl"]
    mapped = by_class_names(data, known)
    assert mapped.classes == known
    assert mapped.splits["val"].labels(np.arange(4)).tolist() == [3, 1, 1, 2]
    assert mapped.splits["val"].labels(np.array([3, 0])).tolist() == [2, 3]
    assert mapped.splits["test"].labels(np.arange(2)).tolist() == [[2, -1], [3, 1]]
    assert mapped.splits["val"].key(3) == images.key(3)
    assert by_class_names(data, data.classes) is data
    assert by_class_names(data, ["x", "y", "z"]) is data
    with pytest.raises(
        ValueError, match=r"few: 1 of its 3 classes are none of the 2 .* knows: 'emu'\. Leave"
    ):
        by_class_names(data, ["crow", "owl"])
    assert by_class_names(data, ["crow", "owl", "emu", "crow"]) is data  # which of the two, nobody knows


def test_classes_that_a_slice_leaves_without_images_are_named(caplog):
    caplog.set_level("WARNING", logger="mixer_lightning.data.splits")
    labels = np.zeros(60, np.int64)
    labels[[7, 8]] = [1, 2]
    images = Arrays("rare", np.zeros((60, 1, 1, 3), np.uint8), labels)
    data = Dataset("rare", ["many", "one", "another", "never"], {"train": images})
    cut = choose(data, train="train[:50%]", val="train[50%:]")
    inside = set(cut.splits["train"].labels(np.arange(len(cut.splits["train"]))).tolist())
    lost = [name for label, name in ((1, "one"), (2, "another")) if label not in inside]
    assert lost
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"rare: train_split=train[:50%] leaves {len(lost)} of 4 classes without a training image: "
        + ", ".join(map(repr, lost))
    ]


INFO = ImageNetInfo()
WNIDS = INFO.label_names()
SYNONYMS = [INFO.label_name_to_description(wnid, detailed=False).split(",")[0] for wnid in WNIDS]


@pytest.mark.parametrize("by_wnid", [True, False])
@pytest.mark.parametrize(
    "chosen", [range(1000), [207, 0, 517]]
)  # 517 is a crane, the machine, and 134 is the bird
def test_classes_of_imagenet_are_mapped_between_ids_and_synonyms(by_wnid, chosen):
    """timm's tables say which id a synonym of the thousand has."""
    here, there = (WNIDS, SYNONYMS) if by_wnid else (SYNONYMS, WNIDS)
    assert SYNONYMS[134] == SYNONYMS[517] == "crane"
    images = Arrays("photos", np.zeros((len(chosen), 1, 1, 3), np.uint8), np.arange(len(chosen)))
    data = Dataset("photos", [here[each] for each in chosen], {"val": images})
    mapped = by_class_names(data, there)
    if not by_wnid and len(chosen) < 1000:  # which crane
        assert mapped is data
        return
    assert mapped.classes == there
    assert mapped.splits["val"].labels(np.arange(len(chosen))).tolist() == list(chosen)
    few = [there[each] for each in (5, 207, 0)]
    if len(chosen) < 1000:
        with pytest.raises(ValueError, match=r"1 of its 3 classes are none of the 3 .*'n03126707'"):
            by_class_names(data, few)


def test_ids_without_a_synonym_leave_the_data_as_they_are():
    images = Arrays("photos", np.zeros((2, 1, 1, 3), np.uint8), np.arange(2))
    data = Dataset("photos", ["n01440764", "misc"], {"val": images})
    assert by_class_names(data, SYNONYMS) is data
    data = Dataset("photos", ["n01440764", "n09999999"], {"val": images})
    with pytest.raises(ValueError, match=r"1 of its 2 classes are none of the 1,000 .*'n09999999'"):
        by_class_names(data, SYNONYMS)
