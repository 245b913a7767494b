"""An evaluation: a checkpoint made ready, judged, and its figures written."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixer_lightning import results
from mixer_lightning.checkpoints import load as checkpoints
from mixer_lightning.checkpoints.load import Checkpoint
from mixer_lightning.config.recipe import EvaluationRecipe
from mixer_lightning.config.signatures import build
from mixer_lightning.data import splits
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.callbacks import Predictions
from mixer_lightning.engine.classifier import Network, evaluating
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.training import last_line, quieten, say_what_broke, show_log
from mixer_lightning.evals import Eval
from mixer_lightning.files import write_text
from mixer_lightning.reports import confusion
from mixer_lightning.screen import Screen, format_metric


@dataclass(frozen=True)
class Ready:
    """A checkpoint in a network, the data, and what shall judge it."""

    checkpoint: Checkpoint
    network: Network
    data: DataModule
    evals: dict[str, Eval]
    machine: Machine
    device: torch.device


def evaluate(recipe: EvaluationRecipe, run_dir: Path, screen: Screen) -> int:
    """Judge a checkpoint and write evaluation.json into `run_dir`; the exit code."""
    quieten()
    show_log(screen)
    try:
        ready = prepare(recipe, screen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    except Exception as error:  # not a user's mistake: the traceback is worth having
        screen.open_log(run_dir / results.LOG)
        say_what_broke(screen, error, run_dir)
        return 1
    screen.open_log(run_dir / results.LOG)
    try:
        _judge(recipe, run_dir, ready, screen)
    except torch.OutOfMemoryError as error:
        screen.say(f"out of device memory: lower device_batch. {last_line(error)}")
    except (ValueError, OSError) as error:  # an image that cannot be read, a full disk
        screen.say(last_line(error))
    except Exception as error:
        say_what_broke(screen, error, run_dir)
    else:
        return 0
    finally:
        ready.data.close()
        screen.close()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 1


def prepare(recipe: EvaluationRecipe, screen: Screen) -> Ready:
    """Build and check every part.

    Raises:
        ValueError, OSError: something in the recipe, the data or the checkpoint is wrong; the message says what.
    """
    machine: Machine = build(recipe.trainer)
    machine.configure_torch()
    source = splits.choose(
        build(recipe.data), train=recipe.train_split, val=recipe.val_split, test=recipe.test_split
    )
    evals: dict[str, Eval] = {name: build(node) for name, node in recipe.evals.items()}
    for name, each in evals.items():
        try:
            each.check(source)
        except ValueError as error:
            raise ValueError(f"evals.{name}: {error}") from error
    model = build(
        recipe.model,
        num_classes=len(source.classes),
        image_size=recipe.image_size,
    )
    assert recipe.checkpoint is not None
    checkpoint = checkpoints.read(recipe.checkpoint)
    report = checkpoints.load(model, checkpoint, classes=source.classes)
    judges = [name for name, each in evals.items() if each.uses_head]
    if report.fresh and judges:
        why = (report.head or "").removeprefix("stays fresh: ")
        raise ValueError(
            f"{checkpoint.path} is no classifier of {source.name}, which {', '.join(judges)} would judge: {why}. "
            "Give the data that it was trained on, fine-tune it first (finetune.py), or take evals=fewshot, which "
            "needs features only"
        )
    augment: Augment = build(recipe.augment)
    screen.say(str(report))
    _compare_pixels(augment, checkpoint, screen)

    machine.init_process_group()
    device = (
        torch.device(machine.device_type, machine.local_rank)
        if machine.device_type == "cuda"
        else torch.device("cpu")
    )
    channels_last = model.channels_last if machine.channels_last is None else machine.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(machine.chosen_precision)
    precision = functools.partial(torch.autocast, device.type, dtype) if dtype else contextlib.nullcontext
    network = Network(
        model.to(device=device, memory_format=layout),
        augment,
        image_size=recipe.image_size,
        layout=layout,
        precision=precision,
    )
    data = DataModule(
        source,
        augment,
        image_size=recipe.image_size,
        micro_batches=split_batch(
            batch_size=recipe.device_batch * machine.world_size,
            device_batch=recipe.device_batch,
            world_size=machine.world_size,
        ),
        total_steps=0,
        seed=recipe.seed,
        repeats=1,
        shuffle_window=1,
        max_bad_fraction=0.0,
        rank=machine.rank,
        threads=machine.threads,
        ahead=machine.batches_ahead,
        decode_on=machine.decode_device,
        pin_memory=machine.device_type == "cuda",
    )
    counts = "  ".join(f"{len(images):,} {split}" for split, images in source.splits.items())
    screen.say(
        f"{source.name}  {counts}  {len(source.classes):,} classes     "
        f"{recipe.choices.get('model', type(model).__name__)} at {recipe.image_size} px     {machine}"
    )
    return Ready(checkpoint, network, data, evals, machine, device)


def _compare_pixels(augment: Augment, checkpoint: Checkpoint, screen: Screen) -> None:
    """Say so where the checkpoint was trained on images of another scale of colours."""
    for name in ("mean", "std"):
        there = checkpoint.preprocessing.get(name)
        if there is not None and list(there) != list(getattr(augment, name)):
            screen.say(
                f"note: {checkpoint.path.name} was trained with {name} {there}, and augment.{name} is "
                f"{getattr(augment, name)}"
            )


def _judge(recipe: EvaluationRecipe, run_dir: Path, ready: Ready, screen: Screen) -> None:
    """Run the evaluations; the first process prints and writes."""
    is_first = ready.machine.rank == 0
    predict = Predictions(
        ready.network, ready.data, device=ready.device, folder=run_dir if is_first else None
    )
    metrics: dict[str, float] = {}
    began = time.perf_counter()
    with evaluating(ready.network.backbone):
        for each in ready.evals.values():
            metrics |= dict(each.run(predict))
    if not is_first:
        return
    record = _record(recipe, ready, metrics, time.perf_counter() - began)
    try:
        confusion.draw(run_dir)
    except Exception as error:  # figures must not hang on a picture
        screen.say(f"no {confusion.CONFUSION_PNG}: {error}")
    write_text(run_dir / results.EVALUATION, json.dumps(record, indent=2) + "\n")
    screen.table(
        "", ("metric", "value"), [(name, format_metric(name, value)) for name, value in metrics.items()]
    )
    screen.say(f"{record['wall_seconds']:,.0f} s; written to {run_dir / results.EVALUATION}")


def _record(
    recipe: EvaluationRecipe, ready: Ready, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What evaluation.json says."""
    source, checkpoint = ready.data.source, ready.checkpoint
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "metrics": metrics,
        "checkpoint": {"path": str(checkpoint.path), "kind": checkpoint.kind, "sha256": digest},
        "data": {
            "name": source.name,
            "num_classes": len(source.classes),
            "images": {split: len(images) for split, images in source.splits.items()},
        },
        "recipe": recipe.to_dict(),
        "git_sha": results.git_sha(),
        "versions": results.versions(),
        "device": str(ready.machine) if ready.machine.device_type == "cuda" else results.cpu_name(),
        "wall_seconds": round(seconds, 3),
    }
