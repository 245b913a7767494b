"""An evaluation: a checkpoint made ready, judged, and its figures written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixer_lightning import results
from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.families import TIMM_SCHEME
from mixer_lightning.checkpoints.read import Checkpoint
from mixer_lightning.config.recipe import EvaluationRecipe
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine import presence, setup
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.inference import Network, Predictions, evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.metrics import NonFiniteOutput
from mixer_lightning.evals import Eval, metrics_of, uses_head
from mixer_lightning.files import sha256, write_text
from mixer_lightning.progress import PassBars
from mixer_lightning.reports import confusion
from mixer_lightning.screen import Screen, format_metric, last_line


@dataclass(frozen=True)
class Ready:
    """A checkpoint in a network, the data, and what shall judge it."""

    checkpoint: Checkpoint
    network: Network
    data: DataModule
    evals: dict[str, Eval]
    machine: Machine

    def close(self) -> None:
        """End the threads of the data."""
        self.data.close()


def ready(recipe: EvaluationRecipe, screen: Screen) -> Ready:
    """Build and check every part.

    Raises:
        ValueError, OSError: something in the recipe, the data or the checkpoint is wrong; the message says what.
    """
    parts = setup.assemble(recipe, head="auto")
    assert parts.report is not None
    checkpoint, machine = parts.report.checkpoint, parts.machine
    if machine.profiler is not None:
        raise ValueError("trainer.profiler is of a training: leave it out of an evaluation")
    judges = [name for name, each in parts.evals.items() if uses_head(each)]
    if parts.report.fresh and judges:
        why = (parts.report.head or "").removeprefix("stays fresh: ")
        raise ValueError(
            f"{checkpoint.path} is not a classifier of {parts.source.name}, which {', '.join(judges)} would judge: "
            f"{why}. Give the data that it was trained on, fine-tune it first (mixer finetune), or use evals=fewshot, "
            "which needs features only"
        )
    screen.say(str(parts.report))
    _compare_pixels(parts.augment, checkpoint, screen)
    note = other_view(checkpoint.kind, image_size=recipe.image_size, eval_crop=parts.augment.eval_crop)
    if note is not None:
        screen.say(note)
    data = setup.data_module(
        parts.source,
        parts.augment,
        machine,
        image_size=recipe.image_size,
        micro_batches=split_batch(
            batch_size=recipe.device_batch * machine.world_size,
            device_batch=recipe.device_batch,
            world_size=machine.world_size,
        ),
    )
    screen.say(parts.headline(recipe.choices.get("model", ""), f"at {recipe.image_size} px"))
    network = Network(machine.place(parts.model), machine)
    machine.init_process_group()
    return Ready(checkpoint, network, data, parts.evals, machine)


def other_view(kind: str, *, image_size: int, eval_crop: float) -> str | None:
    """What to say where timm's figure of its weights is of larger images than these; None where it is of these."""
    if not kind.startswith(TIMM_SCHEME):
        return None
    view = hub.validation_view(kind.removeprefix(TIMM_SCHEME))
    if view in ({}, {"image_size": image_size, "eval_crop": eval_crop}):
        return None
    return (
        f"note: {kind} was trained at {hub.image_size(kind.removeprefix(TIMM_SCHEME))} px, and timm validates it with "
        f"image_size={view['image_size']} augment.eval_crop={view['eval_crop']:g}"
    )


def _compare_pixels(augment: Augment, checkpoint: Checkpoint, screen: Screen) -> None:
    """Say so where the checkpoint was trained on another scale of colours, or another order of pixels."""
    there, off = checkpoint.preprocessing, Augment.shuffle
    names = ["mean", "std", "shuffle"]
    if off not in (augment.shuffle, there.get("shuffle", off)):
        names += ["shuffle_seed", *(["shuffle_patch"] if augment.shuffle == "patches" else [])]
    for name in names:
        was, now = there.get(name, off if name == "shuffle" else None), getattr(augment, name)
        if was is not None and was != now and (isinstance(was, str | int) or list(was) != list(now)):
            screen.say(
                f"note: {checkpoint.path.name} was trained with {name} {was}, and augment.{name} is {now}"
            )


def evaluate(recipe: EvaluationRecipe, run_dir: Path, parts: Ready, screen: Screen) -> int:
    """Run the evaluations and write evaluation.json into `run_dir`; the exit code."""
    try:
        _evaluate(recipe, run_dir, parts, screen)
    except torch.OutOfMemoryError as error:
        presence.say_why(screen, f"out of device memory: lower device_batch. {last_line(error)}")
    except (ValueError, OSError, NonFiniteOutput) as error:  # an image that cannot be read, a full disk
        presence.say_why(screen, last_line(error))
    except Exception as error:
        return presence.say_what_broke(screen, error, run_dir / results.LOG)
    else:
        return 0
    return 1


def _evaluate(recipe: EvaluationRecipe, run_dir: Path, parts: Ready, screen: Screen) -> None:
    """Run the evaluations; the first process prints and writes."""
    is_first = parts.machine.rank == 0
    bars = PassBars(screen)
    predict = Predictions(
        parts.network,
        parts.data,
        device=parts.machine.device,
        folder=run_dir if is_first else None,
        on_batch=bars,
    )
    metrics: dict[str, float] = {}
    began = time.perf_counter()
    with evaluating(parts.network.backbone):
        for name, each in parts.evals.items():
            metrics |= metrics_of(name, each, predict)
    if not is_first:
        return
    record = _record(recipe, parts, metrics, time.perf_counter() - began)
    try:
        pictures = confusion.draw(run_dir)
    except Exception as error:  # figures must not hang on a picture
        screen.say(f"no {confusion.CONFUSION_PNG}: {error}")
        pictures = []
    write_text(run_dir / results.EVALUATION, json.dumps(record, indent=2) + "\n")
    rows = [(name, format_metric(name, value)) for name, value in metrics.items()]
    if rows:
        screen.table("", ("metric", "value"), rows)
    if pictures:
        screen.say(f"pictures: {', '.join(map(str, pictures))}")
    screen.say(f"{record['wall_seconds']:,.0f} s; written to {run_dir / results.EVALUATION}")


def _record(
    recipe: EvaluationRecipe, parts: Ready, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """What evaluation.json says."""
    source, checkpoint = parts.data.source, parts.checkpoint
    digest = sha256([checkpoint.path, *checkpoint.shards])
    return {
        "metrics": metrics,
        "checkpoint": {"path": str(checkpoint.path), "kind": checkpoint.kind, "sha256": digest},
        "data": {
            "name": source.name,
            "num_classes": len(source.classes),
            "images": {split: len(images) for split, images in source.splits.items()},
        },
        "recipe": recipe.to_dict(),
        **results.provenance(),
        "device": str(parts.machine) if parts.machine.device_type == "cuda" else results.cpu_name(),
        "wall_seconds": round(seconds, 3),
    }
