"""The training step: what it computes, and what it must not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.crops import crop_one
from mixer_lightning.data.loader import Batch
from mixer_lightning.data.order import MicroBatches, split_batch
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine import metrics
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.metrics import MetricAccumulator, NonFiniteLoss
from mixer_lightning.engine.run import train
from mixer_lightning.targets import build

CPU = torch.device("cpu")


def run(tmp_path: Path, *words: str) -> tuple[dict, list[dict]]:
    recipe = compose_one("train", [*TINY, *words])
    run_dir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    assert train(recipe, run_dir) == 0
    return torch.load(run_dir / results.LAST, weights_only=True), results.read_metrics(run_dir)


def losses(rows: list[dict]) -> list[float]:
    return [row["train/loss"] for row in rows if "train/loss" in row]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"])


def test_same_seed_same_losses_other_seed_other_losses(tmp_path):
    first, first_rows = run(tmp_path)
    again, again_rows = run(tmp_path, "trainer.decode_threads=3", "log_every_steps=5")
    _, other_rows = run(tmp_path, "seed=1")
    assert same(first, again)
    assert losses(first_rows) == losses(again_rows)
    assert losses(first_rows) != losses(other_rows)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    # A Mixer without augmentation noise between images: micro_batches of 60 or of 15 see the same 60 images.
    whole, _ = run(tmp_path, "augment=none", "augment.crop=none", "optimizer=sgd", "device_batch=60")
    parts, _ = run(tmp_path, "augment=none", "augment.crop=none", "optimizer=sgd", "device_batch=15")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=1e-4, atol=1e-6)


def classifier(model: nn.Module, **options: object) -> Classifier:
    settings: dict[str, object] = {
        "loss": lambda logits, targets: F.cross_entropy(logits, targets),
        "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        "schedule": lambda step: 1.0,
        "micro_batches": split_batch(batch_size=8, device_batch=8, world_size=1),
        "machine": Machine(accelerator="cpu", precision="32-true", channels_last=False),
        "clip_grad_norm": None,
        "ema_decay": None,
    }
    return Classifier(model, **(settings | options))  # type: ignore[arg-type]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def batches(steps: int, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    params = Augment().sample_params(sample_keys(0, [(0, image, 0) for image in range(size)]))
    return [
        Batch(
            torch.randint(0, 256, (size, 3, 2, 2), dtype=torch.uint8, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
            params=params,
        )
        for _ in range(steps)
    ]


class Given(DataModule):
    """Hands out the batches that it is given, to be augmented as any other."""

    def __init__(self, given: list[Batch], augment: Augment, *, micro_batches: MicroBatches) -> None:
        super().__init__(
            Dataset("given", [*"abcd"], {}),
            augment,
            image_size=2,
            micro_batches=micro_batches,
            total_steps=len(given),
            seed=0,
            repeats=1,
            shuffle_window=1,
            max_bad_fraction=0.0,
            rank=0,
            threads=1,
            ahead=0,
            pin_memory=False,
        )
        self.given = given

    def train_dataloader(self) -> torch.utils.data.DataLoader:  # type: ignore[override]
        return torch.utils.data.DataLoader(self.given, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


PLAIN = Augment(crop="none", flip=0.0)


def fit(
    module: Classifier, data: list[Batch], *, accumulate: int = 1, augment: Augment = PLAIN
) -> DataModule:
    given = Given(data, augment, micro_batches=module.micro_batches)
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=given)
    return given


def test_steps_equal_a_loop_written_out(tmp_path):
    """Rate of the schedule, clipping by the global norm and the moving average, against plain PyTorch."""
    data = batches(6, size=4)
    module = classifier(
        linear(),
        micro_batches=split_batch(batch_size=8, device_batch=4, world_size=1),
        schedule=lambda step: [0.5, 1.0, 0.25][step],
        clip_grad_norm=0.05,
        ema_decay=0.9,
    )
    fit(module, data, accumulate=2)

    expected, average = linear(), linear()
    for step in range(3):
        images = torch.cat([data[2 * step].images, data[2 * step + 1].images]).float() / 127.5 - 1
        labels = torch.cat([data[2 * step].labels, data[2 * step + 1].labels])
        expected.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        gradients = [p.grad for p in expected.parameters()]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        assert norm > 0.05  # or nothing would be clipped
        with torch.no_grad():
            for p, g in zip(expected.parameters(), gradients, strict=True):
                p -= 0.1 * [0.5, 1.0, 0.25][step] * g * 0.05 / norm
            for a, p in zip(average.parameters(), expected.parameters(), strict=True):
                a.copy_(p if step == 0 else 0.9 * a + 0.1 * p)
    assert module.step == 3
    for got, want in zip(module.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert module.ema is not None
    for got, want in zip(module.ema.module.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_accumulator_is_the_mean_over_chunks_and_starts_anew():
    accumulator = MetricAccumulator()
    targets = torch.eye(4)
    accumulator.add(0, torch.tensor(1.0), torch.eye(4), targets)
    accumulator.add(0, torch.tensor(2.0), torch.eye(4).flip(0), targets)
    accumulator.add_grad_norm(torch.tensor(3.0))
    assert accumulator.read() == {"train/loss": 1.5, "train/top1": 0.5, "train/grad_norm": 3.0}
    accumulator.add(1, torch.tensor(5.0), torch.eye(4), targets)
    assert accumulator.read() == {"train/loss": 5.0, "train/top1": 1.0}


@pytest.mark.parametrize("restored", [True, False])
def test_processes_meet_on_their_device_also_before_the_first_step_of_a_session(monkeypatch, restored):
    """NCCL sums no tensor of the CPU, where the sums of an earlier session were read."""
    met: list[str] = []
    monkeypatch.setattr(metrics, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: met.append(tensor.device.type))
    accumulator = MetricAccumulator()
    if restored:
        accumulator.restore([1.0] * 5)
    with pytest.raises(NotImplementedError):  # a tensor of this device has no values to be read
        accumulator.sums(1, torch.device("meta"))
    assert met == ["meta"]


def test_accumulator_leaves_out_a_step_that_is_not_finished():
    """A callback may end a session between micro-batches; the next one makes the step anew."""
    accumulator = MetricAccumulator()
    for step in (0, 0, 1):
        accumulator.add(step, torch.tensor(1.0), torch.eye(4), torch.eye(4))
    assert accumulator.sums(1, CPU) == [2.0, 2.0, 2.0, 0.0, 0.0]
    accumulator.add(1, torch.tensor(1.0), torch.eye(4), torch.eye(4))
    assert accumulator.sums(2, CPU) == [4.0, 4.0, 4.0, 0.0, 0.0]
    accumulator.read()
    assert accumulator.sums(2, CPU) == [0.0] * 5


def test_an_infinite_norm_is_left_out_of_the_mean():
    accumulator = MetricAccumulator()
    accumulator.add(0, torch.tensor(1.0), torch.eye(4), torch.eye(4))
    accumulator.add_grad_norm(torch.tensor(float("inf")))
    accumulator.add_grad_norm(torch.tensor(3.0))
    assert accumulator.read()["train/grad_norm"] == 3.0


def test_accumulator_goes_on_from_saved_sums():
    targets = torch.eye(4)
    accumulator, other = MetricAccumulator(), MetricAccumulator()
    accumulator.add(0, torch.tensor(1.0), torch.eye(4), targets)
    other.restore(accumulator.sums(1, CPU))
    for w in (accumulator, other):
        w.add(1, torch.tensor(4.0), torch.eye(4).flip(0), targets)
    assert accumulator.read() == other.read() == {"train/loss": 2.5, "train/top1": 0.5}


def test_first_bad_step_is_named():
    accumulator = MetricAccumulator()
    for step, loss in enumerate([1.0, float("nan"), float("inf"), 1.0]):
        accumulator.add(step, torch.tensor(loss), torch.eye(4), torch.eye(4))
    with pytest.raises(NonFiniteLoss, match="step 2 "):
        accumulator.read()


def test_evaluation_uses_the_average_and_leaves_training_mode(tmp_path):
    module = classifier(linear(), ema_decay=0.5)
    fit(module, batches(3))
    images = batches(1)[0].images
    with module.evaluating() as network:
        got = network.logits(images.float() / 127.5 - 1)
        assert not module.ema.module.training
    assert module.model.training
    expected = module.ema.module(images.float() / 127.5 - 1)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, module.model(images.float() / 127.5 - 1))


def test_images_that_are_still_to_be_cropped_are_cropped(tmp_path):
    """Images in memory come whole, with their crops: training and evaluation see the sampled ones."""
    keys = sample_keys(0, [(0, image, 0) for image in range(8)])
    augment = Augment(crop="random_resized", flip=0.5)
    images = torch.randint(0, 256, (8, 3, 9, 7), dtype=torch.uint8)
    widths, heights = np.full(8, 7), np.full(8, 9)
    labels, params = torch.arange(8) % 4, augment.sample_params(keys)
    whole = Batch(images, labels, augment.train_crops(keys, widths, heights, 2), params)
    cropped = Batch(whole.cropped(2), labels, None, params)
    assert cropped.images.shape == (8, 3, 2, 2)
    modules = [classifier(linear()) for _ in range(2)]
    for module, batch in zip(modules, (whole, cropped), strict=True):
        data = fit(module, [batch], augment=augment)
    assert not torch.equal(modules[0].model[1].weight, linear()[1].weight)
    assert torch.equal(modules[0].model[1].weight, modules[1].model[1].weight)
    crops = augment.eval_crops(widths, heights, 2)
    seen = augment.eval_batch(torch.stack([crop_one(images[i], crops, i, 2) for i in range(8)]))
    with modules[0].evaluating() as network:
        got = network.logits(data.normalised_crops(Batch(images, labels, crops)))
        torch.testing.assert_close(got, modules[0].model(seen), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("mixer_digits", "softmax"),
        ("convmixer_96_4", "softmax"),
        ("convmixer_96_4", "sigmoid"),
        ("convmixer_96_4", "bce"),
    ],
)
def test_overfits_32_images(model, loss):
    """Both families and all losses learn 32 images by heart."""
    recipe = compose_one("train", [f"model={model}", f"loss={loss}"])
    source = build(recipe.data)
    augment = Augment(crop="none", flip=0.0)
    torch.manual_seed(0)
    network = build(recipe.model, num_classes=10, image_size=8, stochastic_depth=0.0, head_bias=0.0)
    train, first = source.splits["train"], np.arange(32)
    pixels = augment.eval_batch(torch.from_numpy(train.pixels[first]).permute(0, 3, 1, 2))
    labels = torch.from_numpy(train.labels(first))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        build(recipe.loss)(network(pixels), F.one_hot(labels, 10).float()).backward()
        optimizer.step()
        if (network(pixels).argmax(-1) == labels).all():
            return
    pytest.fail("32 images were not learnt in 200 steps")
