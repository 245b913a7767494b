"""ReaL by hand, against timm's evaluator, and from folders and shards alike."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import Fixed, Named
from timm.data.real_labels import RealLabelsImagenet

from mixer_lightning.data.sources import Dataset, Images
from mixer_lightning.data.sources.folder import folder
from mixer_lightning.data.sources.shards import shards
from mixer_lightning.evals.real import Real, number_in, read

#: Images 1 to 6: two without a label, two with several.
TABLE = [[0], [1, 2], [], [3], [], [0, 1, 3]]


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "real.json"
    path.write_text(json.dumps(TABLE))
    return str(path)


def made(numbers: list[int], truth: list[int], classes: int = 4) -> Dataset:
    keys = [
        f"n{label:08}/ILSVRC2012_val_{number:08}.JPEG" for number, label in zip(numbers, truth, strict=True)
    ]
    images: Images = Named(keys, np.array(truth))
    return Dataset("imagenet", [str(i) for i in range(classes)], {"train": images, "val": images})


def logits(predicted: list[int], classes: int = 4) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def test_a_prediction_is_right_if_it_is_in_the_list_and_empty_lists_do_not_count(labels):
    numbers, truth = [6, 1, 3, 2, 5, 4], [0, 0, 2, 1, 0, 3]  # in the order of classes, not of numbers
    for predicted, expected in (
        ([3, 0, 0, 2, 0, 3], 1.0),  # the two that do not count are wrong by their own labels
        ([2, 0, 2, 0, 0, 1], 0.25),
        ([2, 3, 2, 3, 0, 1], 0.0),
    ):
        for batch in (1, 4, 6):
            predict = Fixed(made(numbers, truth), {"val": logits(predicted)}, batch=batch)
            assert dict(Real(labels=labels).run(predict)) == {"real/top1": expected}
    Real(labels=labels).check(made(numbers, truth))


def test_other_images_and_other_classes_are_refused(labels):
    real = Real(labels=labels)
    for numbers in ([1, 7], [1, 0]):
        with pytest.raises(
            ValueError, match=r"ILSVRC2012_val_00000001 to 00000006, and 'n\d+/ILSVRC2012_val_0000000[07]"
        ):
            real.check(made(numbers, [0, 1]))
    strange = Named(["n01440764/n01440764_10026.JPEG"], np.array([0]))
    data = Dataset("imagenet", list("abcd"), {"train": strange, "val": strange})
    for call in (lambda: real.check(data), lambda: list(real.run(Fixed(data, {"val": logits([0])})))):
        with pytest.raises(
            ValueError, match=r"'n01440764/n01440764_10026\.JPEG' .* is for ImageNet's validation set"
        ):
            call()
    with pytest.raises(ValueError, match="classes up to 3, but imagenet has 3"):
        real.check(made([1], [0], classes=3))
    with pytest.raises(ValueError, match="in the order of their WordNet ids"):
        real.check(made([1, 2, 4, 6], [3, 0, 1, 0]))
    with pytest.raises(ValueError, match="none of the images of val has a label"):
        list(real.run(Fixed(made([3, 5], [0, 0]), {"val": logits([0, 0])})))
    with pytest.raises(ValueError, match=r"labels: cannot read .*nowhere\.json"):
        Real(labels="nowhere.json").check(made([1], [0]))


def test_numbers_in_keys():
    assert number_in("n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    assert number_in("ILSVRC2012_val_00050000-2") == 50_000
    assert number_in("ILSVRC2012_val_000000001") is None
    assert number_in("n01440764_10026") is None


def test_the_labels_that_come_with_timm():
    table = read(None)
    counts = (table >= 0).sum(axis=1)
    assert table.shape == (50_000, 9)
    assert (counts == 0).sum() == 3163
    assert (counts == 1).sum() == 39_394
    assert counts.sum() == 57_553
    assert table.max() == 999


def test_as_timm_counts():
    """All 50,000 images in an order of their own, with the predictions of a fair classifier."""
    generator = np.random.default_rng(0)
    order = generator.permutation(50_000)
    truth = np.maximum(read(None)[order, 0], 0)
    predicted = np.where(generator.random(50_000) < 0.7, truth, generator.integers(0, 1000, 50_000))
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in order]
    images: Images = Named(names, truth)
    data = Dataset("imagenet1k", [str(i) for i in range(1000)], {"train": images, "test": images})

    class Scores(Fixed):
        def logits(self, split, *, eval_resize=None):
            for some in np.split(np.arange(50_000), 25):
                one_hot = torch.nn.functional.one_hot(torch.from_numpy(predicted[some]), 1000)
                yield one_hot.float(), torch.from_numpy(truth[some])

    theirs = RealLabelsImagenet(names, topk=(1,))
    predict = Scores(data, {})
    for batch, _ in predict.logits("test"):
        theirs.add_result(batch)
    Real().check(data)
    (figure,) = dict(Real().run(predict)).values()
    assert 100 * figure == pytest.approx(theirs.get_accuracy(1), abs=1e-9)
    assert 0.65 < figure < 0.75


def test_folders_and_shards_give_the_same_figure(tmp_path, labels):
    truth = {1: 0, 2: 1, 3: 2, 4: 3, 6: 1}
    stored = io.BytesIO()
    Image.new("RGB", (3, 3)).save(stored, "JPEG")
    for split in ("train", "val"):
        for number, label in truth.items():
            path = tmp_path / "folder" / split / f"n{label:08}" / f"ILSVRC2012_val_{number:08}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stored.getvalue())
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{split}-000000.tar", "w") as tar:
            for number, label in sorted(truth.items(), reverse=True):
                key = f"n{label:08}/ILSVRC2012_val_{number:08}"
                for name, content in ((f"{key}.cls", str(label).encode()), (f"{key}.jpg", stored.getvalue())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    predictions = {1: 0, 2: 0, 3: 0, 4: 3, 6: 3}  # right, wrong, not counted, right, right
    for data in (folder(root=str(tmp_path / "folder")), shards(root=str(tmp_path / "shards"))):
        images = data.splits["val"]
        predicted = [predictions[number_in(images.key(i))] for i in range(len(images))]
        real = Real(labels=labels)
        real.check(data)
        assert dict(real.run(Fixed(data, {"val": logits(predicted)}, batch=2))) == {"real/top1": 0.75}
