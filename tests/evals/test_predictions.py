"""What evaluations are shown of a real network on real images: the same for any number of processes and batch size."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from mixer_lightning import create_model
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.sources import BadImage, Dataset
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.data.sources.folder import FolderImages, folder
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.inference import Network, Predictions, evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.evals.accuracy import Accuracy
from mixer_lightning.evals.confusion import Confusion
from mixer_lightning.evals.fewshot import Fewshot, sample_shots
from mixer_lightning.losses import sigmoid_cross_entropy
from mixer_lightning.models.baselines import timm_backbone

AUGMENT = Augment(crop="random_resized", flip=0.5, eval_crop=0.875)
EVALS = (Accuracy(crops=["short_side", "square"]), Fewshot(shots=[1, 5], seeds=[0, 1]), Confusion())


class Noting(FolderImages):
    """Files of which is noted which are read."""

    def __init__(self, files: FolderImages) -> None:
        super().__init__(Path(files._root), files._files, files._labels.tolist())
        self.seen: set[int] = set()

    def read(self, index: int) -> bytes:
        self.seen.add(index)
        return super().read(index)


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    """JPEGs of many sizes in three classes: 40 train, 5 val."""
    for split, count in (("train", 40), ("val", 5)):
        for i in range(count):
            path = tmp_path / "photos" / split / "abc"[i % 3] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((19 + i % 5, 30 - i % 7)).save(path)
    data = folder(root=str(tmp_path / "photos"))
    return Dataset(data.name, data.classes, {split: Noting(images) for split, images in data.splits.items()})  # type: ignore[arg-type]


def few_digits() -> Dataset:
    """Images in memory: 90 train, 41 test."""
    data = digits()
    parts = {"train": 90, "test": 41}
    splits = {
        split: Arrays(split, data.splits[split].pixels[:count], data.splits[split].labels(np.arange(count)))  # type: ignore[attr-defined]
        for split, count in parts.items()
    }
    return Dataset("digits", data.classes, {**splits})


def model(name: str, num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    made = create_model(name, num_classes=num_classes, image_size=8).eval()
    nn.init.normal_(made.head.weight)
    return made


@contextlib.contextmanager
def predictions(
    data: Dataset,
    *,
    name: str = "mixer_digits",
    augment: Augment = AUGMENT,
    device_batch: int = 4,
    world_size: int = 1,
    rank: int = 0,
    folder: Path | None = None,
) -> Iterator[Predictions]:
    backbone = model(name, len(data.classes))
    machine = Machine(accelerator="cpu", precision="32-true", channels_last=False)
    network = Network(backbone, machine)
    micro_batches = split_batch(
        batch_size=device_batch * world_size, device_batch=device_batch, world_size=world_size
    )
    module = DataModule(
        data,
        augment,
        image_size=8,
        micro_batches=micro_batches,
        total_steps=0,
        seed=0,
        repeats=1,
        shuffle_window=1,
        max_bad_fraction=0.0,
        rank=rank,
        threads=1,
        ahead=1,
        pin_memory=False,
    )
    with evaluating(backbone):
        yield Predictions(network, module, device=torch.device("cpu"), folder=folder)
    module.close()


def everything(predict: Predictions) -> dict[str, Any]:
    """Figures of all evaluations, and what they are made of."""
    (split,) = (name for name in predict.data.splits if name != "train")
    some = np.array([7, 3, 11, 30, 2])
    return {
        "metrics": dict(pair for each in EVALS for pair in each.run(predict)),
        "logits": predict.all_gather(logits for logits, _ in predict.logits(split)),
        "labels": predict.all_gather(labels for _, labels in predict.logits(split)),
        "some": predict.all_gather(features for features, _ in predict.features("train", indices=some)),
        "hits": predict.all_gather(
            logits.argmax(dim=1) == labels for logits, labels in predict.logits(split)
        ),
        "share": predict.all_gather(iter([torch.from_numpy(predict.local_indices(split))])),
    }


def one_of(rank: int, world_size: int, meeting: Path, data: Dataset, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    mine = meeting.parent / str(rank)
    mine.mkdir()
    with predictions(data, rank=rank, world_size=world_size, folder=mine if rank == 0 else None) as predict:
        found = everything(predict)
    results.put((rank, {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in found.items()}))
    torch.distributed.destroy_process_group()


def together(data: Dataset, *, world_size: int, folder: Path) -> list[dict[str, Any]]:
    """What each of several processes found."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=one_of, args=(rank, world_size, folder / "meeting", data, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    return [found[rank] for rank in range(world_size)]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["metrics"] == expected["metrics"]
    for name in expected.keys() - {"metrics"}:
        np.testing.assert_allclose(np.asarray(found[name]), np.asarray(expected[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["digits", "photos"])
def test_any_number_of_processes_and_any_batch_size(source, photos, tmp_path):
    data = few_digits() if source == "digits" else photos
    (tmp_path / "alone").mkdir()
    with predictions(data, device_batch=64, folder=tmp_path / "alone") as predict:
        alone = everything(predict)
    assert alone["share"].tolist() == list(range(len(alone["labels"])))
    for device_batch in (1, 7):
        with predictions(data, device_batch=device_batch) as predict:
            same(everything(predict), alone)
    for world_size in (2,) if source == "digits" else (3, 7):  # 7 processes share 5 images
        for found in together(data, world_size=world_size, folder=tmp_path / str(world_size)):
            same(found, alone)
        for name in ("misclassified.csv", f"per_class_{'test' if source == 'digits' else 'val'}.csv"):
            written = (tmp_path / str(world_size) / "0" / name).read_text()
            assert written == (tmp_path / "alone" / name).read_text()


def test_fewshot_goes_on_without_bad_training_images_on_any_number_of_processes(photos, tmp_path, caplog):
    train = photos.splits["train"]
    drawn = sample_shots(train.labels(np.arange(40)), [5], num_classes=3, seed=0)[5]
    spared = [7, 3, 11, 30, 2]  # of which `everything` asks for the features
    bad = [train.name(int(index)) for index in drawn if index not in spared][::6]
    assert len(bad) > 1
    for name in bad:
        Path(name).write_bytes(b"<html>")
    with predictions(photos) as predict:
        expected = dict(Fewshot(shots=[1, 5], seeds=[0, 1]).run(predict))
        named = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert sorted(line.split(": ")[0] for line in named) == sorted(f"cannot read {name}" for name in bad)
    for found in together(photos, world_size=3, folder=tmp_path / "3"):
        figures = {name: value for name, value in found["metrics"].items() if name in expected}
        assert figures == expected
    val = photos.splits["val"]
    Path(val.name(1)).write_bytes(b"<html>")
    with predictions(photos) as predict, pytest.raises(BadImage, match=r"cannot read .*/val/"):
        list(Fewshot(shots=[1]).run(predict))


@pytest.mark.parametrize("name", ["mixer_digits", "convmixer_96_4"])
def test_features_are_what_the_head_sees(name, photos):
    with predictions(photos, name=name) as predict:
        features = predict.all_gather(features for features, _ in predict.features("val"))
        logits = predict.all_gather(logits for logits, _ in predict.logits("val"))
        assert features.dtype == torch.float32
        torch.testing.assert_close(predict.network.backbone.head(features), logits, rtol=1e-4, atol=1e-4)


def test_other_crops_are_those_of_another_recipe(photos):
    square = Augment(eval_resize="square", eval_crop=0.5)
    with predictions(photos) as predict, predictions(photos, augment=square) as other:

        def features(of: Predictions, split: str, **crop: Any) -> torch.Tensor:
            return of.all_gather(features for features, _ in of.features(split, **crop))

        for split, some in (("val", None), ("train", None), ("train", np.array([5, 1]))):
            found = features(predict, split, eval_resize="square", eval_crop=0.5, indices=some)
            assert torch.equal(found, features(other, split, indices=some))
            usual = features(predict, split, indices=some)
            assert not torch.allclose(found, usual, atol=1e-3)
            assert torch.equal(usual, features(predict, split, indices=some))  # the crop was asked for once
        logits = [
            predict.all_gather(each for each, _ in predict.logits("val", eval_resize=resize))
            for resize in (None, "square")
        ]
        assert not torch.allclose(*logits, atol=1e-3)


def test_training_images_come_in_order_and_without_augmentation(photos):
    with predictions(photos) as predict:
        labels = predict.all_gather(labels for _, labels in predict.features("train"))
        assert labels.tolist() == photos.splits["train"].labels(np.arange(40)).tolist()
        whole = predict.all_gather(features for features, _ in predict.features("train"))
        some = np.array([31, 4, 4, 17])
        few = predict.all_gather(features for features, _ in predict.features("train", indices=some))
        torch.testing.assert_close(few, whole[some])


def test_only_images_that_are_asked_for_are_read(photos):
    train, val = photos.splits["train"], photos.splits["val"]
    with predictions(photos) as predict:
        list(predict.features("train", indices=np.array([31, 4, 17])))
        assert (train.seen, val.seen) == ({31, 4, 17}, set())
        pixels = predict.crops("val", np.array([4, 0]))
        assert val.seen == {0, 4}
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 3, 8, 8))
        assert predict.crops("val", np.array([], dtype=np.int64)).shape == (0, 3, 8, 8)


def test_what_is_shown_is_what_the_network_sees(photos):
    with predictions(photos) as predict:
        pixels = predict.crops("val", np.array([3, 0]))
        (logits, _), *_ = predict.logits("val")
        seen = predict.network.backbone((pixels.float() - 127.5) / 127.5)
        torch.testing.assert_close(seen, logits[[3, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timm_name", ["swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"])
def test_backbones_of_other_layouts_answer_with_timms_own_features(timm_name):
    """[B, H, W, C] and a class token: nobody pools by the number of axes."""
    theirs = timm.create_model(timm_name, img_size=32, num_classes=0).eval()
    backbone = timm_backbone(timm_name=timm_name, num_classes=3, image_size=32).eval()
    backbone.load_state_dict(theirs.state_dict(), strict=False)
    network = Network(backbone, Machine(accelerator="cpu", precision="32-true"))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network.features(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_recipes_on_targets_of_all_labels():
    """Labels of several classes are several ones, as in training."""
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]])
    labels = torch.tensor([[0, 2], [1, -1]])
    predict = Predictions.__new__(Predictions)
    predict._criterion = sigmoid_cross_entropy
    assert predict.loss is not None
    by_hand = -torch.log(torch.sigmoid(torch.tensor([0.5, 1.0, 2.0, -1.0, 0.0, 0.5]))).sum() / 2
    assert float(predict.loss(logits, labels)) == pytest.approx(float(by_hand))
