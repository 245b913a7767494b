"""Batches: equal for any number of threads and processes, and each evaluation image exactly once."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.sources import BadImage, Dataset, Images
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.data.sources.folder import FolderImages, folder
from mixer_lightning.data.splits import choose
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.evals import eval_splits

AUGMENT = Augment(crop="random_resized", interpolation="random", flip=0.5, rand_augment="rand-m9-n2")


@pytest.fixture
def module() -> Iterator[Callable[..., DataModule]]:
    made = []

    def module(source: Dataset, augment: Augment = AUGMENT, **options: int) -> DataModule:
        settings = {
            "image_size": 8,
            "total_steps": 4,
            "seed": 0,
            "repeats": 1,
            "shuffle_window": 2,
            "max_bad_fraction": 0.0,
            "rank": 0,
            "threads": 1,
            "ahead": 0,
            "start_step": 0,
            "world_size": 1,
            "device_batch": 4,
        } | options
        start_step = settings.pop("start_step")
        micro_batches = split_batch(
            batch_size=24,
            device_batch=settings.pop("device_batch"),
            world_size=settings.pop("world_size"),
        )
        made.append(DataModule(source, augment, micro_batches=micro_batches, pin_memory=False, **settings))
        made[-1].start_step = start_step
        return made[-1]

    yield module
    for data in made:
        data.close()


def write_images(root: Path, *, train: int = 40, val: int = 11) -> Path:
    """JPEGs of many sizes in two classes, the pixels of each another colour."""
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            path = root / split / ("cats", "dogs")[i % 2] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((9 + i % 5, 20 - i % 7)).save(path)
    return root


class Sharded(FolderImages):
    """Files that are taken to lie in shards of five."""

    def __init__(self, files: FolderImages) -> None:
        super().__init__(Path(files._root), files._files, files._labels.tolist())
        self.expected: list[list[int]] = []

    def shard_sizes(self) -> list[int]:
        return [5] * (len(self) // 5)

    def prefetch(self, shards: list[int]) -> None:
        self.expected.append(list(shards))

    def hashes(self) -> np.ndarray:
        return np.array([hash32(self.key(i)) for i in range(len(self))], np.uint32)


@pytest.fixture(params=["digits", "folder", "shards", "slice"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """In memory, to be decoded, in shards, and a part of shards."""
    if request.param == "digits":
        return digits()
    data = folder(root=str(write_images(tmp_path)))
    if request.param == "folder":
        return data
    splits: dict[str, Images] = {**data.splits, "train": Sharded(data.splits["train"])}  # type: ignore[arg-type]
    stored = Dataset("shards", data.classes, splits)
    return stored if request.param == "shards" else choose(stored, train="train[:70%]")


def micro_batches(data: DataModule) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All training batches as the network gets them, but for mixing: pixels and labels."""
    found = []
    for batch in data.train_dataloader():
        assert batch.params is not None
        found.append((data.augment.apply(batch.cropped(data.image_size), batch.params), batch.labels))
    return found


def equal(some: list, others: list) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a, b) for pair in zip(some, others, strict=True) for a, b in zip(*pair, strict=True)
    )


def singly(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[bytes, int]]:
    """Images and labels one by one."""
    return [
        (image.numpy().tobytes(), int(label))
        for images, labels in parts
        for image, label in zip(images, labels, strict=True)
    ]


def test_threads_batches_ahead_ranks_and_restarts_see_the_same_pixels(module, source):
    whole = micro_batches(module(source))
    assert len(whole) == 24
    assert whole[0][0].shape == (4, 3, 8, 8)
    assert whole[0][0].dtype == torch.uint8
    assert whole[0][1].dtype == torch.int64
    assert len({image.numpy().tobytes() for images, _ in whole for image in images}) > 90  # of 96
    for threads, ahead in ((1, 2), (3, 0), (4, 5)):
        assert equal(micro_batches(module(source, threads=threads, ahead=ahead)), whole)
    assert equal(micro_batches(module(source, start_step=3, threads=2)), whole[18:])
    for world_size in (2, 3):
        options = {"world_size": world_size, "threads": world_size, "ahead": 1}
        ranks = [micro_batches(module(source, rank=rank, **options)) for rank in range(world_size)]
        assert equal([ranks[i % world_size][i // world_size] for i in range(24)], whole)


def test_the_size_of_micro_batches_does_not_change_a_sample(module, source):
    whole = [torch.cat(parts) for parts in zip(*micro_batches(module(source)), strict=True)]
    for device_batch in (1, 8, 24):
        parts = micro_batches(module(source, device_batch=device_batch, threads=2))
        assert len(parts) == 96 // device_batch
        assert all(map(torch.equal, map(torch.cat, zip(*parts, strict=True)), whole))


def test_an_epoch_shows_every_image_once_with_its_label(module, tmp_path):
    data = folder(root=str(write_images(tmp_path, train=48)))
    plain = Augment(eval_resize="square")
    shown = micro_batches(module(data, plain, total_steps=2, threads=3))
    evaluated = module(Dataset("", data.classes, {"val": data.splits["train"]}), plain).eval_loader("val")
    expected = [(batch.cropped(8), batch.labels) for batch in evaluated]
    assert sorted(singly(shown)) == sorted(singly(expected))
    assert len(set(singly(shown))) == 48


def test_another_seed_shows_other_pixels(module, source):
    (first, _), *_ = micro_batches(module(source, seed=1))
    assert not torch.equal(first, micro_batches(module(source, seed=0))[0][0])


def test_epochs_and_repeats_show_an_image_anew(module, tmp_path):
    data = folder(root=str(write_images(tmp_path, train=24)))
    for options in ({"total_steps": 2}, {"total_steps": 2, "repeats": 2}):
        images = torch.cat([images for images, _ in micro_batches(module(data, device_batch=24, **options))])
        assert len({image.numpy().tobytes() for image in images}) == 48


@pytest.mark.parametrize("mix_per", ["batch", "device_batch"])
def test_mixing_shares_its_factor_as_the_recipe_says(module, mix_per):
    """Once for all parts of a global batch, on any number of processes, as in big_vision; or for each, as in timm."""

    def factors(**options: int) -> list[set[float]]:
        """Of each step, the smaller shares of labels that were mixed, rounded."""
        data = module(digits(), Augment(mixup=1.0, mix_per=mix_per), total_steps=3, **options)
        found: list[set[float]] = [set() for _ in range(3)]
        for i, batch in enumerate(data.train_dataloader()):
            _, targets = data.on_after_batch_transfer(batch, 0)
            shares = targets[(targets > 0) & (targets < 1)]
            found[i // data.micro_batches.accumulate] |= {round(min(x, 1 - x), 5) for x in shares.tolist()}
        return found

    whole = factors(device_batch=24)
    assert [len(step) for step in whole] == [1, 1, 1]
    assert len(set.union(*whole)) == 3  # another at each step
    split = factors(device_batch=4)
    second = factors(device_batch=4, world_size=2, rank=1)
    if mix_per == "batch":
        assert split == second == whole
    else:
        assert all(len(step) > 1 for step in split)


def test_shards_are_told_what_is_read_next(module, tmp_path):
    data = folder(root=str(write_images(tmp_path)))
    images = Sharded(data.splits["train"])
    splits: dict[str, Images] = {"train": images, "val": data.splits["val"]}
    micro_batches(
        module(Dataset("shards", data.classes, splits), total_steps=2)
    )  # 48 of 40: into the second epoch
    first_epoch, second_epoch = images.expected[:4], images.expected[4:]
    assert [len(shards) for shards in first_epoch] == [4, 4, 4, 2]
    assert sorted(shard for shards in first_epoch for shard in shards[:2]) == list(range(8))
    assert len(second_epoch) == 1
    for before, after in itertools.pairwise(first_epoch):
        assert before[2:] == after[:2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_evaluation_image_once_for_any_number_of_processes(module, source, world_size, threads):
    (split,) = eval_splits(source)
    options = {"world_size": world_size, "threads": threads, "ahead": threads - 1}
    loaders = [module(source, rank=rank, **options).eval_loader(split) for rank in range(world_size)]
    for _ in range(2):  # an evaluation comes again and again
        with torch.inference_mode():  # whose tensors other threads may not write to
            ranks = [list(loader) for loader in loaders]
        assert [len(batches) for batches in ranks] == [len(loader) for loader in loaders]
        shown = [
            [(b.cropped(8)[i], b.labels[i]) for b in rank for i in range(len(b.labels))] for rank in ranks
        ]
        count = len(source.splits[split])
        assert sum(map(len, shown)) == count
        labels = [int(shown[i % world_size][i // world_size][1]) for i in range(count)]
        assert labels == source.splits[split].labels(np.arange(count)).tolist()
        pixels = torch.stack([shown[i % world_size][i // world_size][0] for i in range(count)])
        (whole,) = [torch.cat([b.cropped(8) for b in module(source, device_batch=24).eval_loader(split)])]
        assert torch.equal(pixels, whole)


def test_evaluation_batches_are_no_larger_than_a_micro_batch(module):
    sizes = [len(batch.labels) for batch in module(digits(), device_batch=24).eval_loader("test")]
    assert sizes == [24] * 15


def test_evaluation_splits_are_all_but_train(tmp_path):
    assert eval_splits(digits()) == ["test"]
    assert eval_splits(folder(root=str(write_images(tmp_path)))) == ["val"]


# ---- bad images


def spoil(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        path = root / name
        path.write_bytes(path.read_bytes()[:150] if i % 2 == 0 else b"")


@pytest.fixture
def warned(caplog) -> Callable[[], list[str]]:
    """What the loaders have said."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


BAD = ("train/cats/04.jpg", "train/dogs/09.jpg", "train/dogs/11.jpg")


def test_bad_training_images_are_replaced_and_named_once(module, tmp_path, warned):
    spoil(write_images(tmp_path), *BAD)
    data = folder(root=str(tmp_path))
    whole = micro_batches(module(data, max_bad_fraction=0.1))
    assert sorted(text.split(":")[0] for text in warned()) == [
        f"cannot read {tmp_path / name}" for name in BAD
    ]
    assert all(text.endswith("another image is used instead") for text in warned())
    for threads, ahead in ((1, 3), (2, 0), (4, 4)):
        options = {"threads": threads, "ahead": ahead, "max_bad_fraction": 0.1}
        assert equal(micro_batches(module(data, **options)), whole)
        assert equal(micro_batches(module(data, start_step=2, **options)), whole[12:])
    ranks = [micro_batches(module(data, rank=rank, world_size=2, max_bad_fraction=0.1)) for rank in (0, 1)]
    assert equal([ranks[i % 2][i // 2] for i in range(24)], whole)


@pytest.mark.parametrize("augment", [Augment(), AUGMENT])
def test_a_good_image_with_its_own_label_takes_the_place_and_all_others_stay(module, tmp_path, augment):
    write_images(tmp_path)
    options = {"device_batch": 24, "total_steps": 2, "max_bad_fraction": 0.1}  # 48 of 40
    before = module(folder(root=str(tmp_path)), augment, **options)
    after = module(folder(root=str(tmp_path)), augment, **options)
    images, sound = before.source.splits["train"], singly(micro_batches(before))
    spoil(tmp_path, *BAD)
    (tmp_path / BAD[0]).unlink()  # amid others that one thread takes with it
    found = singly(micro_batches(after))
    read = [images.name(int(sample[1])) for part in before.train_dataloader().plan for sample in part]
    places = {i for i, name in enumerate(read) if name in {str(tmp_path / bad) for bad in BAD}}
    assert len(places) >= len(BAD)
    assert {i for i in range(48) if found[i] != sound[i]} == places
    if augment == Augment():
        assert all(found[i] in {sound[j] for j in {*range(48)} - places} for i in places)


@pytest.mark.parametrize("threads", [1, 4])
def test_too_many_bad_images_end_the_run(module, tmp_path, threads):
    spoil(write_images(tmp_path, train=40), *BAD, "train/cats/20.jpg", "train/dogs/31.jpg")  # a tenth may be
    data = module(folder(root=str(tmp_path)), max_bad_fraction=0.05, threads=threads, ahead=threads - 1)
    with pytest.raises(BadImage) as caught:
        micro_batches(data)
    message = str(caught.value)
    assert message.startswith(f"cannot read {tmp_path}/train/")
    assert "bad image number 5 of 40, more than max_bad_fraction=0.05 allows" in message


def test_the_fraction_that_is_advised_is_one_that_a_recipe_takes(module, tmp_path):
    spoil(
        write_images(tmp_path, train=4),
        *(f"train/{path.parent.name}/{path.name}" for path in sorted(tmp_path.glob("train/*/*"))[:3]),
    )
    with pytest.raises(BadImage) as caught:
        micro_batches(module(folder(root=str(tmp_path)), max_bad_fraction=0.3))
    advised = str(caught.value).rpartition("such as ")[2]
    assert compose_one("train", ["data=folder", advised]).max_bad_fraction >= 0.75


@pytest.mark.parametrize("threads", [1, 4])
def test_no_evaluation_image_may_be_bad(module, tmp_path, threads):
    spoil(write_images(tmp_path), "val/dogs/07.jpg")
    data = module(folder(root=str(tmp_path)), max_bad_fraction=0.9, threads=threads)
    with pytest.raises(BadImage, match=r"cannot read .*/val/dogs/07\.jpg: .*[Tt]runcated"):
        list(data.eval_loader("val"))


def test_a_missing_file_counts_as_bad(module, tmp_path, warned):
    data = folder(root=str(write_images(tmp_path)))
    (tmp_path / BAD[0]).unlink()
    micro_batches(module(data, max_bad_fraction=0.1))
    (text,) = warned()
    assert text.startswith(f"cannot read {tmp_path / BAD[0]}: No such file")


def test_images_in_memory_are_replaced_the_same_way(module, tmp_path, monkeypatch):
    """Files of one size are decoded once and kept; what stands for a bad one is what reading would have shown."""
    for i in range(40):
        path = tmp_path / ("train" if i < 36 else "val") / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        path.write_bytes(file.getvalue() if i not in (4, 9) else b"")
    data, plain = folder(root=str(tmp_path)), Augment(crop="pad", crop_padding=2, flip=0.5)
    kept = module(data, plain, max_bad_fraction=0.1)
    found = micro_batches(kept)
    assert kept.train_dataloader().images is not data.splits["train"]
    monkeypatch.setattr("mixer_lightning.data.memory.MAX_BYTES_IN_MEMORY", 0)
    read = module(data, plain, max_bad_fraction=0.1)
    assert equal(micro_batches(read), found)
    assert read.train_dataloader().images is data.splits["train"]
