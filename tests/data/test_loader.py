"""Batches: the right pixels for any number of threads, bad images replaced alike everywhere, and no thread left."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, features

from mixer_lightning.data import loader as module
from mixer_lightning.data import memory
from mixer_lightning.data.eval_transform import EvalTransform
from mixer_lightning.data.loader import BadImages, Batch, Loader, decoding_threads
from mixer_lightning.data.memory import load_into_memory
from mixer_lightning.data.sources import BadImage
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.data.transforms import Augment

TASK = module.IMAGES_PER_TASK

TRAIN = Augment(crop="random_resized", flip=0.5)
SIZE = 8


class Files:
    """PNG files of given sizes (width, height), labelled with their index; those in `bad` hold something else."""

    def __init__(self, sizes, *, bad=(), damage: bytes | Exception = b"<html>", labels=None) -> None:
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes]
        self.files: list[bytes | Exception] = [encoded(each) for each in self.pixels]
        for index in bad:
            self.files[index] = damage
        self._labels = np.arange(len(sizes)) if labels is None else labels
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.files)

    def labels(self, indices):
        return self._labels[indices]

    def read(self, index):
        self.reads.append(index)
        file = self.files[index]
        if isinstance(file, Exception):
            raise file
        return file

    def key(self, index):
        return f"{index}.png"

    def name(self, index):
        return f"/images/{index}.png"


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def mixed(count: int) -> list[tuple[int, int]]:
    """Sizes that are not all the same."""
    return [(9 + i % 5, 8 + i % 7) for i in range(count)]


def plan_of(*batches) -> list[np.ndarray]:
    """One batch of samples [D, 3] for each list of images; epoch and repeat are 0."""
    return [np.stack([np.zeros(len(b)), b, np.zeros(len(b))], 1).astype(np.int64) for b in map(list, batches)]


@pytest.fixture
def load():
    """load(images, [0, 1], [2], threads=...): a Loader of these batches, closed in the end."""
    made: list[Loader] = []

    def make(images, *batches, **options) -> Loader:
        settings = {"image_size": SIZE, "seed": 0, "threads": 2, "ahead": 0, "pin_memory": False}
        augment = options.pop("augment", TRAIN)
        made.append(Loader(images, plan_of(*batches), augment, **settings | options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=["memory", "mixed", "decoded"])
def sizes_of(request, monkeypatch):
    """sizes_of(count), for images that are kept in memory; that turn out too mixed for it; that are not even tried."""
    if request.param == "decoded":
        monkeypatch.setattr(module, "load_into_memory", lambda *_, **__: None)
    return mixed if request.param != "memory" else lambda count: [(9, 9)] * count


@pytest.fixture
def nothing_kept(monkeypatch):
    """Whatever the images are, they are decoded when they are wanted and not before."""
    monkeypatch.setattr(module, "load_into_memory", lambda *_, **__: None)


@pytest.fixture
def said():
    """What the loader's log says, line by line."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    module.log.addHandler(handler)
    yield lines
    module.log.removeHandler(handler)


def pixels_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.cropped(SIZE) for batch in batches])


def labels_of(batches) -> list[int]:
    return torch.cat([batch.labels for batch in batches]).tolist()


def spare(index: int, count: int, bad) -> int:
    """What is shown instead of a bad image, reckoned knowing all that are bad."""
    tried = [index]
    while tried[-1] in bad:
        tried.append(derive_seed("spare", index, len(tried) - 1) % count)
    return tried[-1]


def have_ended(threads: set[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(20)
    return not any(thread.is_alive() for thread in threads)


def decode_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("decode")}


# ---- pixels and labels


def test_evaluation_shows_what_pillow_shows(load):
    images = Files(mixed(19))
    augment = Augment(eval_crop=0.8, eval_resize="square", eval_interpolation="bicubic")
    batches = list(load(images, range(10), range(10, 19), seed=None, augment=augment))
    assert [len(batch.labels) for batch in batches] == [10, 9]
    assert all(batch.params is None and batch.crops is None for batch in batches)
    assert labels_of(batches) == list(range(19))
    for seen, pixels in zip(pixels_of(batches), images.pixels, strict=True):
        expected = np.array(
            Image.fromarray(pixels).resize((10, 10), Image.Resampling.BICUBIC).crop((1, 1, 9, 9))
        )
        difference = np.abs(seen.permute(1, 2, 0).numpy().astype(int) - expected)
        assert (difference > 1).mean() < 0.1  # noise, and newer Pillow chooses which axis it resizes first
        assert difference.mean() < 1


@pytest.mark.parametrize("count", [1, TASK - 1, TASK, TASK + 1, 3 * TASK, 500])
def test_batches_of_any_size(load, count):
    images = Files([(SIZE, SIZE)] * 12 + [(SIZE, SIZE + 1)])
    wanted = np.random.default_rng(count).integers(0, 12, count)
    [batch] = load(images, wanted, seed=None, augment=Augment(), threads=3)
    assert batch.images.shape == (count, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == wanted.tolist()
    expected = np.stack([images.pixels[i] for i in wanted])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_training_does_not_depend_on_threads_on_batches_ahead_or_on_the_batch(load, sizes_of):
    images = Files(sizes_of(30))
    together = list(load(images, range(20), range(20, 30)))
    pixels, flips = pixels_of(together), np.concatenate([batch.params.flip for batch in together])
    for threads, ahead in ((1, 0), (3, 2), (4, 50)):
        again = list(load(images, range(20), range(20, 30), threads=threads, ahead=ahead))
        assert torch.equal(pixels_of(again), pixels)
    order = np.random.default_rng(0).permutation(30)
    apart = list(load(images, *order[:, None]))
    assert torch.equal(pixels_of(apart), pixels[order])
    assert np.array_equal(np.concatenate([batch.params.flip for batch in apart]), flips[order])
    assert labels_of(apart) == order.tolist()
    assert not torch.equal(pixels_of(list(load(images, range(30), seed=1))), pixels)
    assert 0 < flips.sum() < 30


def test_what_the_network_is_told_about_gradients_is_no_matter(load, sizes_of):
    loader = load(Files(sizes_of(9)), range(9), range(9))
    expected = pixels_of(list(loader))
    with torch.inference_mode():  # tensors made in it cannot be written to by threads that know nothing of it
        seen = pixels_of(list(loader))
    assert torch.equal(seen, expected)


def test_a_loader_can_be_gone_through_again(load):
    loader = load(Files(mixed(9)), range(5), range(5, 9), ahead=1)
    assert len(loader) == 2
    first, second = list(loader), list(loader)
    assert torch.equal(pixels_of(first), pixels_of(second))


def test_images_with_several_labels(load, sizes_of):
    labels = np.array([[3, 5], [4, -1], [0, 1]])
    [batch] = load(Files(sizes_of(3), labels=labels), [2, 1])
    assert batch.labels.tolist() == [[0, 1], [4, -1]]


def test_pixels_are_as_good_as_files(load):
    files = Files(mixed(9))
    pixels = Files(mixed(9))
    pixels.files = pixels.pixels
    assert torch.equal(pixels_of(list(load(files, range(9)))), pixels_of(list(load(pixels, range(9)))))


# ---- memory


def test_crops_of_images_in_memory_are_those_of_decoded_ones(load, monkeypatch):
    images = Files([(13, 11)] * 40)
    options = {"train": {}, "evaluation": {"seed": None, "augment": Augment(eval_interpolation="bicubic")}}
    kept = {name: list(load(images, range(40), **each)) for name, each in options.items()}
    monkeypatch.setattr(memory, "MAX_BYTES_IN_MEMORY", 0)
    decoded = {name: list(load(images, range(40), **each)) for name, each in options.items()}
    for name in options:
        assert kept[name][0].crops is not None
        assert kept[name][0].images.shape == (40, 3, 11, 13)
        assert decoded[name][0].crops is None
        difference = (pixels_of(kept[name]).int() - pixels_of(decoded[name]).int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.1  # ties are frequent in so simple ratios
        assert labels_of(kept[name]) == labels_of(decoded[name]) == list(range(40))
    assert np.array_equal(kept["train"][0].params.flip, decoded["train"][0].params.flip)


def test_images_in_memory_are_read_once(load):
    images = Files([(9, 9)] * 70)
    loader = load(images, range(70), range(70), range(70))
    assert sorted(images.reads) == list(range(70))
    assert len(list(loader)) == 3
    assert len(images.reads) == 70


def test_images_that_come_as_an_array_are_taken_as_they_are(load):
    arrays = Arrays(
        "pixels", np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8), range(4)
    )
    loader = load(arrays, [3, 0], seed=None, augment=Augment())
    assert loader.images is arrays
    [batch] = loader
    assert np.array_equal(batch.cropped(SIZE).permute(0, 2, 3, 1).numpy(), arrays.pixels[[3, 0]])
    assert batch.labels.tolist() == [3, 0]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("sizes", "bad", "kept"),
    [
        ([(9, 7)] * 200, [], True),
        ([(9, 7)], [], True),
        ([(9, 7)] * 199 + [(7, 9)], [], False),
        ([(7, 9)] + [(9, 7)] * 199, [], False),
        ([(9, 7)] * 200, [0, 100, 199], True),
        ([(9, 7)] * 199 + [(7, 9)], [199], True),  # what cannot be decoded has no size
    ],
)
def test_the_images_alone_decide_whether_they_are_kept(sizes, bad, kept, threads):
    images = Files(sizes, bad=bad)
    some = decoding_threads(threads)
    arrays = load_into_memory(images, BadImages(images, max_fraction=0.5), some)
    some.shutdown()
    assert (arrays is not None) == kept
    if arrays is not None:
        good = np.setdiff1d(np.arange(len(sizes)), bad)
        assert np.array_equal(arrays.pixels[good], np.stack([images.pixels[i] for i in good]))
        assert not arrays.pixels[bad].any()
        assert arrays.labels(np.arange(len(sizes))).tolist() == list(range(len(sizes)))


def test_no_more_is_kept_than_fits(monkeypatch):
    images = Files([(9, 7)] * 10)
    some = decoding_threads(2)
    for most, kept in ((10 * 9 * 7 * 3, True), (10 * 9 * 7 * 3 - 1, False)):
        monkeypatch.setattr(memory, "MAX_BYTES_IN_MEMORY", most)
        images.reads.clear()
        assert (load_into_memory(images, BadImages(images, max_fraction=None), some) is not None) == kept
    some.shutdown()


def test_headers_tell_whether_images_fit_before_any_is_decoded(monkeypatch):
    """256 photographs of 24 megapixels were decoded to find out that they do not."""
    decoded: list[int] = []
    pixels = module.decode.pixels
    monkeypatch.setattr(module.decode, "pixels", lambda encoded: decoded.append(1) or pixels(encoded))
    some = decoding_threads(2)
    large = Files([(900, 700)])
    large.files *= 300
    monkeypatch.setattr(memory, "MAX_BYTES_IN_MEMORY", 3 * 900 * 700 * 300 - 1)
    assert load_into_memory(large, BadImages(large, max_fraction=None), some) is None
    assert not decoded
    assert len(large.reads) == 1
    mixed_sizes = Files([(9, 7)] + [(7, 9)] * 299)
    assert load_into_memory(mixed_sizes, BadImages(mixed_sizes, max_fraction=None), some) is None
    assert len(decoded) <= 1
    some.shutdown()


def test_nothing_is_kept_when_nothing_can_be_decoded():
    images = Files([(9, 7)] * 10, bad=range(10))
    some = decoding_threads(2)
    assert load_into_memory(images, BadImages(images, max_fraction=1.0), some) is None
    some.shutdown()


# ---- bad images

BAD = {0, 3, 7, 8, 15, 16, 17, 29}  # the first, the last, on both sides of task boundaries; 12 more follow


@pytest.mark.parametrize("count", [1, 8, 20])
def test_another_image_takes_the_place_of_a_bad_one_whoever_finds_out_when(load, sizes_of, count):
    sizes = sizes_of(30)
    bad = [*BAD, *sorted(set(range(30)) - BAD)][:count] if count > 1 else [29]
    images = Files(sizes, bad=bad)
    good = Files(sizes)
    shown = [spare(i, 30, bad) for i in range(30)]
    if count > 1:
        assert any(derive_seed("spare", i, 0) % 30 in bad for i in bad)  # the next in line is bad as well
    rng = np.random.default_rng(0)
    for threads, ahead, order in (
        (1, 0, np.arange(30)),
        (4, 3, np.arange(30)),
        (4, 0, np.arange(30)[::-1]),
        (3, 2, rng.permutation(30)),
        (2, 1, rng.permutation(30)),
    ):
        batches = [order[:13], order[13:16], order[16:]]
        found = list(load(images, *batches, threads=threads, ahead=ahead, max_bad_fraction=0.9))
        assert labels_of(found) == [shown[i] for i in order]
        # The pixels are those of the other image, seen as the bad one would have been.
        pixels = pixels_of(found)
        for place in range(0, 30, 5):
            index = order[place]
            stand_in = Files(sizes)
            stand_in.files[index] = good.files[shown[index]]
            [alone] = load(stand_in, [index])
            assert torch.equal(alone.cropped(SIZE)[0], pixels[place])


DAMAGES = {
    "empty": (b"", "it is empty"),
    "not an image": (b"<html>404</html>", "not an image"),
    "cut": (encoded(np.zeros((64, 64, 3), np.uint8), "JPEG")[:500], "Truncated"),
    "missing": (FileNotFoundError(2, "No such file or directory", "x"), "No such file"),
    "unreadable": (ValueError("its shard ends early"), "its shard ends early"),
    "no range": (b"TIFF", ""),
}
_floating = io.BytesIO()
Image.fromarray(np.ones((2, 2), np.float32)).save(_floating, "TIFF")
DAMAGES["no range"] = (_floating.getvalue(), "floating point")
if features.check("avif"):
    _avif = encoded(np.zeros((64, 64, 3), np.uint8), "AVIF")
    DAMAGES["AVIF without its picture"] = (_avif[:-40] + bytes(40), "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage_is_named(load, said, sizes_of, damage):
    contents, words = DAMAGES[damage]
    images = Files(sizes_of(6), bad=[4], damage=contents)
    [batch] = load(images, range(6), max_bad_fraction=0.2)
    assert batch.labels.tolist() == [0, 1, 2, 3, spare(4, 6, [4]), 5]
    assert len(said) == 1
    assert said[0].startswith("cannot read /images/4.png: ")
    assert words in said[0]
    assert said[0].endswith("; another image is used instead")
    with pytest.raises(BadImage, match=r"cannot read /images/4\.png: ."):
        list(load(images, range(6), seed=None, augment=Augment()))


def test_unread_and_undecoded_images_side_by_side(load, said, sizes_of):
    sizes = sizes_of(16)
    images = Files(sizes)
    for index in (1, 4, 9):
        images.files[index] = OSError(5, "Input/output error")
    for index in (0, 2, 5, 6):
        images.files[index] = b""
    [batch] = load(images, range(16), threads=1, max_bad_fraction=0.9)
    bad = {0, 1, 2, 4, 5, 6, 9}
    assert batch.labels.tolist() == [spare(i, 16, bad) for i in range(16)]
    [whole] = load(Files(sizes), range(16))
    good = sorted(set(range(16)) - bad)
    assert torch.equal(batch.cropped(SIZE)[good], whole.cropped(SIZE)[good])
    reasons = dict(line.removeprefix("cannot read /images/").split(".png: ") for line in said)
    assert {int(index) for index in reasons} == bad
    for index in bad:
        assert reasons[str(index)].startswith("Input/output error" if index in (1, 4, 9) else "it is empty")


def test_an_image_is_named_once_however_many_threads_meet_it(load, said):
    images = Files(mixed(12), bad=[5])
    for batch in load(images, [5] * 64, [5] * 64, threads=4, ahead=1, max_bad_fraction=0.1):
        assert set(batch.labels.tolist()) == {spare(5, 12, [5])}
    assert len(said) == 1


def test_evaluation_ends_at_the_first_bad_image(load):
    images = Files(mixed(20), bad=[11])
    loader = load(images, range(8), range(8, 20), seed=None, augment=Augment())
    batches = iter(loader)
    assert labels_of([next(batches)]) == list(range(8))
    with pytest.raises(BadImage, match=r"^cannot read /images/11\.png: its 6 bytes are not an image"):
        next(batches)


@pytest.mark.parametrize("small", [module.MAX_PIXELS_CROPPED_ON_DEVICE, 0])
def test_bad_images_are_marked_where_that_is_asked_for(load, said, sizes_of, small, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS_CROPPED_ON_DEVICE", small)  # images in memory go two ways
    bad, sizes = {0, 7, 8, 19}, sizes_of(20)
    order = np.random.default_rng(0).permutation(20)
    found = list(
        load(Files(sizes, bad=bad), order[:6], order[6:], seed=None, augment=Augment(), mark_bad=True)
    )
    assert labels_of(found) == [-1 if i in bad else i for i in order]
    expected = pixels_of(list(load(Files(sizes), order[:6], order[6:], seed=None, augment=Augment())))
    expected[np.isin(order, list(bad))] = 0
    assert torch.equal(pixels_of(found), expected)
    assert sorted(line.split(":")[0] for line in said) == sorted(f"cannot read /images/{i}.png" for i in bad)
    assert not [line for line in said if "another" in line]
    monkeypatch.setattr(module, "MIN_IMAGES_OF_BAD_FRACTION", 3)  # more are bad than count as read
    [batch] = load(Files(sizes, bad=range(19)), range(20), seed=None, augment=Augment(), mark_bad=True)
    assert batch.labels.tolist() == [-1] * 19 + [19]


def test_an_evaluation_that_meets_a_bad_image_ends_there(load):
    with pytest.raises(BadImage, match=r"^cannot read /images/11\.png"):
        load(Files([(9, 9)] * 20, bad=[11, 12]), range(8), seed=None, augment=Augment())


def test_as_many_bad_images_as_allowed_and_not_one_more(load, sizes_of):
    sizes = sizes_of(20)
    [batch] = load(Files(sizes, bad=[0, 19]), range(20), max_bad_fraction=0.1)
    assert not {0, 19} & set(batch.labels.tolist())
    with pytest.raises(BadImage) as error:
        list(load(Files(sizes, bad=[0, 10, 19]), range(20), max_bad_fraction=0.1, threads=1))
    message = str(error.value)
    assert message.startswith("cannot read /images/19.png: ")
    for words in (
        "bad image number 3 of 20",
        "max_bad_fraction=0.1",
        "put good files in place",
        "such as max_bad_fraction=0.3",
    ):
        assert words in message
    with pytest.raises(BadImage, match="max_bad_fraction=0 allows"):
        list(load(Files(sizes, bad=[7]), range(20)))


@pytest.mark.parametrize("sizes", [[(1, 1)] * 3000, [(1, 1)] * 2999 + [(1, 2)]], ids=["memory", "decoded"])
def test_the_fraction_is_that_of_the_images_read(load, sizes):
    # 1 in 100 may be bad: the 11th comes after 2,500 images, which allow it.
    images = Files(sizes, bad=[*range(0, 1000, 100), 2500])
    batches = [range(first, first + 500) for first in range(0, 3000, 500)]
    found = list(load(images, *batches, max_bad_fraction=0.01))
    assert len(labels_of(found)) == 3000
    early = Files(sizes, bad=range(0, 1000, 50))  # and here after 950
    with pytest.raises(BadImage, match="bad image number 11 of 1,000"):
        list(load(early, *batches, max_bad_fraction=0.01))


@pytest.mark.parametrize(("count", "tolerated"), [(5, 1), (20, 2), (90, 9), (300, 10)])
def test_a_few_bad_images_stop_no_small_set(load, count, tolerated):
    """One in a thousand of less than a thousand is none."""
    for number in (tolerated, tolerated + 1):
        images = Files([(9, 9)] * count, bad=range(number))
        if number == tolerated:
            assert len(labels_of(load(images, range(count), max_bad_fraction=0.001))) == count
        else:
            with pytest.raises(BadImage, match=f"bad image number {number} of {count}"):
                load(images, range(count), max_bad_fraction=0.001)


def test_what_the_message_advises_is_enough(load):
    images = Files([(9, 9)] * 200, bad=range(30))
    with pytest.raises(BadImage) as error:
        load(images, range(200), max_bad_fraction=0.001)
    advised = float(str(error.value).rpartition("max_bad_fraction=")[2])
    assert advised == 0.2  # twice what was met when it stopped, 11 of 200
    assert len(labels_of(load(images, range(200), max_bad_fraction=advised))) == 200


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_only_bad_images(load, sizes_of, most):
    with pytest.raises(BadImage, match=r"cannot read|no good image"):
        list(load(Files(sizes_of(20), bad=range(20)), range(20), max_bad_fraction=most))


def test_one_good_image_stands_for_all(load, sizes_of):
    found = list(
        load(Files(sizes_of(20), bad=set(range(20)) - {6}), range(20), max_bad_fraction=1.0, threads=4)
    )
    assert labels_of(found) == [6] * 20


def test_many_bad_images_are_counted_not_named(load, said, monkeypatch):
    monkeypatch.setattr(module, "MAX_BAD_IMAGES_NAMED", 3)
    images = Files(mixed(40), bad=range(0, 40, 2))
    list(load(images, range(40), max_bad_fraction=0.6, threads=4))
    assert len([line for line in said if line.startswith("cannot read /images/")]) == 3
    assert [line.split()[0] for line in said[3:]] == ["4", "8", "16"]


def test_a_mistake_in_a_source_is_not_taken_for_a_bad_image(load):
    images = Files(mixed(20), bad=[3], damage=KeyError("no such column"))
    with pytest.raises(KeyError, match="no such column"):
        list(load(images, range(20), max_bad_fraction=0.5))


# ---- threads


def test_threads_end_when_a_loader_is_closed(load):
    before = decode_threads()
    loader = load(Files(mixed(9)), range(9), threads=5)
    assert len(decode_threads() - before) == 5
    list(loader)
    loader.close()
    loader.close()  # which may be said twice
    assert have_ended(decode_threads() - before)


def test_an_iteration_may_stop_early(load):
    before = decode_threads()
    images = Files(mixed(9))
    loader = load(images, *([range(9)] * 30), threads=2, ahead=3)
    for batch in loader:
        assert len(batch.labels) == 9
        break
    assert len(list(loader)) == 30
    next(iter(loader))
    loader.close()
    assert have_ended(decode_threads() - before)


def test_closing_does_not_wait_for_a_read_that_does_not_come_back(load, nothing_kept):
    images, go_on, hangs = Files(mixed(9)), threading.Event(), threading.Event()
    read = images.read
    images.read = lambda index: (hangs.set(), go_on.wait(300), read(index))[2]
    before = decode_threads()
    loader = load(images, range(9), threads=1, ahead=1)
    loader._submit(next(iter(loader.plan)))
    assert hangs.wait(20)
    loader.close()
    assert not go_on.is_set()
    go_on.set()
    assert have_ended(decode_threads() - before)


def test_closing_drops_what_was_not_begun(load, nothing_kept):
    images = Files(mixed(80))
    go_on = threading.Event()
    read = images.read
    images.read = lambda index: (go_on.wait(300), read(index))[1] if index >= TASK else read(index)
    loader = load(
        images,
        range(TASK),
        range(TASK, 80),
        threads=1,
        ahead=1,
        seed=None,
        augment=Augment(),
    )
    next(iter(loader))
    closing = threading.Thread(target=loader.close)
    closing.start()
    time.sleep(0.1)
    go_on.set()
    closing.join(20)
    assert not closing.is_alive()
    assert TASK <= len(images.reads) <= 3 * TASK  # of 80


def test_with_no_batch_ahead_threads_rest_while_a_batch_is_used(load, nothing_kept):
    images = Files(mixed(24))
    batches = iter(load(images, range(8), range(8, 16), range(16, 24), threads=3))
    next(batches)
    time.sleep(0.05)
    assert sorted(images.reads) == list(range(8))


def test_so_many_batches_are_ahead(load, nothing_kept):
    images = Files(mixed(40))
    batches = iter(load(images, *np.arange(40).reshape(5, 8), threads=3, ahead=2))
    next(batches)
    until = time.monotonic() + 10
    while len(images.reads) < 24 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(images.reads) == list(range(24))


def test_torch_keeps_its_threads_except_in_the_decoding_threads():
    torch.set_num_threads(3)  # conftest.py sets it back
    some = decoding_threads(2)
    try:
        assert {some.submit(torch.get_num_threads).result() for _ in range(20)} == {1}
        assert torch.get_num_threads() == 3
        seen: list[int] = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen == [3]
    finally:
        some.shutdown()
    assert torch.get_num_threads() == 3


def test_where_no_more_threads_can_be_started_none_waits_for_them(monkeypatch):
    before = decode_threads()
    start = threading.Thread.start

    def at_most_two(thread: threading.Thread) -> None:
        if len(decode_threads() - before) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", at_most_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        decoding_threads(4)
    until = time.monotonic() + 10
    while decode_threads() - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not decode_threads() - before


LEFT_OPEN = """
import numpy as np
from mixer_lightning.data import loader
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.splits import Subset
from mixer_lightning.data.transforms import Augment

loader.load_into_memory = lambda *_, **__: None
images = Subset(Arrays("black", np.zeros((9, 99, 99, 3), np.uint8), range(9)), np.arange(9))
plan = [np.array([[0, i % 9, 0] for i in range(500)])] * 50
batches = iter(loader.Loader(images, plan, Augment(), image_size=8, seed=0, threads=4, ahead=3, pin_memory=False))
print(next(batches).images.shape)
raise SystemExit(7)
"""


def test_a_program_that_ends_without_closing_ends():
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (7, "torch.Size([500, 3, 8, 8])"), ended.stderr


# ---- a batch


def test_a_batch_goes_to_a_device_without_what_the_cpu_looks_at(load):
    [batch] = load(Files([(9, 9)] * 4), range(4))
    there = batch.to(torch.device("meta"))
    assert there.images.device.type == there.labels.device.type == "meta"
    assert there.images.shape == batch.images.shape
    assert there.crops is batch.crops is not None
    assert there.params is batch.params is not None
    here = batch.to(torch.device("cpu"))
    assert torch.equal(here.images, batch.images)
    assert torch.equal(here.cropped(SIZE), batch.cropped(SIZE))


def test_processes_that_are_silent_name_their_own_bad_images(capsys, monkeypatch):
    from mixer_lightning.screen import Screen, show_logging

    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    show_logging(Screen(silent=True))
    logging.getLogger("mixer_lightning.data.loader").warning("cannot read x")
    logging.getLogger("mixer_lightning.data.sources.shards").warning("indexing")
    said = capsys.readouterr()
    assert said.err == "process 3: cannot read x\n"
    assert said.out == ""


# ---- orientation


@pytest.mark.parametrize("seed", [None, 3])
def test_photographs_are_turned_before_they_are_cropped(load, seed):
    upright = Files([(9, 7)] * 8 + [(7, 9)] * 4)
    lying = Files([(9, 7)] * 12)
    for i, pixels in enumerate(upright.pixels):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6  # a quarter turn clockwise shows it as it is
        Image.fromarray(np.rot90(pixels)).save(file, "PNG", exif=exif)
        lying.files[i] = file.getvalue()
    augment = replace(TRAIN, exif_orientation=True)
    for keep in (True, False):
        for some in (range(8), range(12)):  # of one size, and of two
            part = [Files([(1, 1)] * len(some)) for _ in range(2)]
            for each, whole in zip(part, (upright, lying), strict=True):
                each.files = [whole.files[i] for i in some]
            expected, found = (
                list(load(each, some, seed=seed, augment=augment, keep_in_memory=keep)) for each in part
            )
            assert torch.equal(pixels_of(found), pixels_of(expected))
    plain = list(load(lying, range(12), seed=seed))
    assert not torch.equal(pixels_of(plain), pixels_of(expected))


def test_a_transform_of_one_image_turns_it_too():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(np.rot90(pixels)).save(file, "PNG", exif=exif)
    augment = Augment(exif_orientation=True)
    with Image.open(file) as image:
        found = EvalTransform(augment, SIZE)(image)
    assert torch.equal(found, EvalTransform(augment, SIZE)(Image.fromarray(pixels)))
