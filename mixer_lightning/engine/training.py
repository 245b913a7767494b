"""Training: a recipe made ready, fitted, and its result written."""

from __future__ import annotations

import functools
import logging
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from mixer_lightning import results
from mixer_lightning.checkpoints.load import Head, load
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.config.signatures import build
from mixer_lightning.data import splits
from mixer_lightning.data.order import seed_generators, split_batch
from mixer_lightning.data.sources import BadImage
from mixer_lightning.data.stateless_random import key
from mixer_lightning.engine.callbacks import (
    Checkpoints,
    Evaluations,
    Metrics,
    Preemption,
    Progress,
    SameRecipe,
    Stopped,
)
from mixer_lightning.engine.classifier import Classifier, NonFiniteLoss
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.machine import Machine
from mixer_lightning.files import write_text
from mixer_lightning.loggers.dashboards import Dashboards
from mixer_lightning.screen import Screen, closing_table


@dataclass(frozen=True)
class Run:
    """A recipe made ready: everything is built and checked, nothing has been changed yet."""

    module: Classifier
    data: DataModule
    trainer: Trainer
    metrics: Metrics
    checkpoints: Checkpoints
    dashboards: Dashboards
    total_steps: int
    num_parameters: int
    device: str


def train(recipe: Recipe, run_dir: Path, screen: Screen, *, head: Head = "auto") -> int:
    """Train `recipe` in `run_dir`, or go on where an earlier sitting stopped; the exit code (see README)."""
    quieten()
    show_log(screen)
    try:
        run = prepare(recipe, run_dir, screen, head=head)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    except Exception as error:  # not a user's mistake: the traceback is worth having
        screen.open_log(run_dir / results.LOG)
        say_what_broke(screen, error, run_dir)
        return 1
    screen.open_log(run_dir / results.LOG)
    try:
        return _fit(recipe, run_dir, run, screen)
    finally:
        run.data.close()
        run.dashboards.close()
        screen.close()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def prepare(recipe: Recipe, run_dir: Path, screen: Screen, *, head: Head = "auto") -> Run:
    """Build and check every part of a run; `head` says what becomes of that of a checkpoint to start from.

    Raises:
        ValueError, OSError: something in the recipe, the data or a checkpoint is wrong; the message says what.
    """
    machine: Machine = build(recipe.trainer)
    machine.configure_torch()
    source = splits.choose(
        build(recipe.data), train=recipe.train_split, val=recipe.val_split, test=recipe.test_split
    )
    num_classes, num_train = len(source.classes), len(source.splits["train"])
    micro_batches = split_batch(
        batch_size=recipe.batch_size, device_batch=recipe.device_batch, world_size=machine.world_size
    )
    steps_per_epoch = num_train / recipe.batch_size
    total_steps = recipe.duration.to_steps(steps_per_epoch)

    seed_generators(key(recipe.seed, "init"))
    model = build(
        recipe.model,
        num_classes=num_classes,
        image_size=recipe.image_size,
        stochastic_depth=recipe.stochastic_depth,
        head_bias=recipe.head_bias,
    )
    if recipe.checkpoint is not None:
        report = load(model, recipe.checkpoint, head=head, classes=source.classes)
        screen.say(str(report))
    schedule = build(recipe.schedule)
    for step in (0, total_steps - 1):
        schedule(step, total_steps, steps_per_epoch)  # says now what it dislikes about this length
    augment = build(recipe.augment)
    module = Classifier(
        model,
        augment=augment,
        loss=build(recipe.loss),
        optimizer=build(recipe.optimizer),
        schedule=functools.partial(schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch),
        image_size=recipe.image_size,
        num_classes=num_classes,
        micro_batches=micro_batches,
        rank=machine.rank,
        seed=recipe.seed,
        clip_grad_norm=recipe.clip_grad_norm,
        ema_decay=recipe.ema_decay,
        channels_last=model.channels_last if machine.channels_last is None else machine.channels_last,
        compile=machine.compile,
    )
    data = DataModule(
        source,
        augment,
        image_size=recipe.image_size,
        micro_batches=micro_batches,
        total_steps=total_steps,
        seed=recipe.seed,
        repeats=recipe.repeats,
        shuffle_window=recipe.shuffle_window,
        max_bad_fraction=recipe.max_bad_fraction,
        rank=machine.rank,
        threads=machine.threads,
        ahead=machine.batches_ahead,
        decode_on=machine.decode_device,
        pin_memory=machine.device_type == "cuda",
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    counts = "  ".join(f"{len(images):,} {split}" for split, images in source.splits.items())
    screen.say(
        f"{source.name}  {counts}  {num_classes:,} classes     "
        f"{recipe.choices.get('model', type(model).__name__)}  {num_parameters:,} parameters     {machine}"
    )

    dashboards = _dashboards(recipe if machine.rank == 0 else None, run_dir, screen)
    metrics = Metrics(
        run_dir,
        every_steps=recipe.log_every_steps,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        dashboards=dashboards,
    )
    evaluations = Evaluations(
        {name: build(node) for name, node in recipe.evals.items()},
        every_steps=recipe.eval_every.to_steps(steps_per_epoch),
        total_steps=total_steps,
        data=data,
        metrics=metrics,
    )
    saver = Checkpoints(
        run_dir,
        every_steps=recipe.checkpoint_every.to_steps(steps_per_epoch),
        total_steps=total_steps,
        record={
            "recipe": recipe.to_dict(),
            **source.record(),
            "device_batch": micro_batches.device_batch,
        },
        monitor="val/top1" if "val" in source.splits and recipe.evals else None,
        metrics=metrics,
    )
    progress = Progress(screen, metrics, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    _try_parts(module, evaluations, data)
    evaluations.listeners += [saver.on_metrics, progress.on_metrics]

    last = run_dir / results.LAST
    if last.exists():
        state = _read_checkpoint(last)
        source.refuse_another(state, run_dir)
        module.resume_from(state)
        saver.restore(state)
        data.start_step = module.step
        if state["device_batch"] != micro_batches.device_batch:
            screen.say(
                f"a forward pass saw {state['device_batch']} images before, {micro_batches.device_batch} from here on: "
                "BatchNorm, mixing and dropped branches will not be those of an undisturbed run"
            )
    callbacks: list[Callback] = [
        SameRecipe(recipe.to_yaml()),
        metrics,
        evaluations,
        saver,
        progress,
        Preemption(saver, timeout_minutes=machine.process_timeout_minutes),
    ]
    trainer = Trainer(
        accelerator="gpu" if machine.device_type == "cuda" else "cpu",
        devices=machine.local_world_size,
        num_nodes=machine.num_nodes,
        strategy=machine.strategy(),
        plugins=machine.plugins(),
        precision=machine.chosen_precision,
        max_epochs=1,
        max_steps=total_steps - module.step,
        accumulate_grad_batches=micro_batches.accumulate,
        callbacks=callbacks,
        logger=False,  # dashboards are fed by Metrics, which knows the step of the whole run
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    if machine.world_size > 1:
        # Lightning asks the device before every micro-batch whether process 0 got SIGTERM; Preemption does that job,
        # for all processes and signals, without waiting for the device.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    device = str(machine) if machine.device_type == "cuda" else results.cpu_name()
    return Run(module, data, trainer, metrics, saver, dashboards, total_steps, num_parameters, device)


def training_rate(recipe: Recipe, *, seconds: float = 5.0) -> float:
    """Images per second of whole training steps on this machine, on synthetic images, measured for a few seconds."""
    machine: Machine = build(recipe.trainer)
    machine.configure_torch()
    facts = {"stochastic_depth": recipe.stochastic_depth, "head_bias": recipe.head_bias}
    model = build(recipe.model, num_classes=100, image_size=recipe.image_size, **facts)
    channels_last = model.channels_last if machine.channels_last is None else machine.channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = torch.device(machine.device_type)
    model = model.to(device=device, memory_format=layout)
    optimizer, loss = build(recipe.optimizer)(model), build(recipe.loss)
    batch = min(recipe.batch_size, recipe.device_batch or recipe.batch_size)
    images = torch.randn(batch, 3, recipe.image_size, recipe.image_size, device=device)
    images = images.contiguous(memory_format=layout)
    targets = torch.full((batch, 100), 0.01, device=device)

    def step() -> None:
        dtype = {"16-mixed": torch.float16}.get(machine.chosen_precision, torch.bfloat16)
        with torch.autocast(device.type, dtype, enabled=machine.chosen_precision != "32-true"):
            logits = model(images)
        loss(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # fills caches
    steps, began = 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - began < seconds:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - began) * machine.world_size


def _fit(recipe: Recipe, run_dir: Path, run: Run, screen: Screen) -> int:
    """Train to the end and write the result; the exit code."""
    if run.module.step:
        screen.say(f"resuming {run_dir} at step {run.module.step:,} of {run.total_steps:,}")
    run.dashboards.open()
    run.dashboards.log_recipe(recipe.to_dict())
    run.dashboards.advise(run_dir)
    is_first = run.module.rank == 0
    try:
        if is_first:
            write_text(run_dir / results.RECIPE, recipe.to_yaml())
            results.keep_metrics_until(run_dir, run.module.step)
        if run.module.step < run.total_steps:
            run.trainer.fit(run.module, datamodule=run.data)
        screen.stop_bar()
        if is_first:
            result = _result(recipe, run)
            results.write_metrics_csv(run_dir)
            _draw_pictures(run_dir, screen)
            results.write_result(run_dir, result)
            closing_table(screen, result, run_dir)
        return 0
    except Stopped as stop:
        screen.stop_bar()
        screen.say(f"stopped by {stop}, saved {run_dir / results.LAST}; the same command goes on from there")
        return stop.exit_code
    except torch.OutOfMemoryError as error:
        screen.stop_bar()
        screen.say(
            f"out of device memory: lower device_batch (the global batch_size stays). {last_line(error)}"
        )
    except NonFiniteLoss as error:  # all processes find it together
        screen.stop_bar()
        screen.say(last_line(error))
    except (BadImage, OSError) as error:
        screen.stop_bar()
        screen.alarm(last_line(error))
    except Exception as error:
        screen.stop_bar()
        say_what_broke(screen, error, run_dir)
    screen.say(_where_to_go_on(run_dir, run))
    return 1


# --------------------------------------------------------------------------------------------- the pieces


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """last.ckpt of this run.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({last_line(error)}). Restore it from a copy, or delete it to train anew."
        ) from error
    return dict(state)


def _dashboards(recipe: Recipe | None, run_dir: Path, screen: Screen) -> Dashboards:
    """The recipe's loggers, not yet opened; none without a recipe."""
    name = "/".join(run_dir.parts[-2:])
    nodes = recipe.logger.items() if recipe is not None else []
    makers = {key: functools.partial(build, node, run_dir=run_dir, run_name=name) for key, node in nodes}
    return Dashboards(makers, say=screen.say)


def _try_parts(module: Classifier, evaluations: Evaluations, data: DataModule) -> None:
    """Call once what the first step or the first evaluation would call, on next to nothing.

    Raises:
        ValueError: a part does not take its numbers, or does not fit the data set.
    """
    try:
        module.make_optimizer(module.model)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer: {last_line(error)}") from error
    targets = torch.full((2, module.num_classes), 1 / module.num_classes)
    try:
        module.loss(torch.zeros_like(targets), targets)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"loss: {last_line(error)}") from error
    for name, evaluation in evaluations.evals.items():
        try:
            evaluation.check(data.source)
        except ValueError as error:
            raise ValueError(f"evals.{name}: {error}") from error


def _result(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The closing record."""
    metrics, module = run.metrics, run.module
    skipped = ("train/lr", "train/images_per_second", "train/grad_norm")
    seconds = metrics.train_seconds
    return {
        "recipe": recipe.to_dict(),
        "metrics": {k: v for k, v in metrics.latest.items() if k not in skipped},
        "best": run.checkpoints.best,
        "seed": recipe.seed,
        "steps": module.step,
        "num_parameters": run.num_parameters,
        **run.data.source.record(),
        "git_sha": results.git_sha(),
        "versions": results.versions(),
        "device": run.device,
        "wall_seconds": round(run.checkpoints.wall_seconds, 3),
        "images_per_second": round(metrics.steps_timed * recipe.batch_size / max(seconds, 1e-9), 1),
    }


def _draw_pictures(run_dir: Path, screen: Screen) -> None:
    from mixer_lightning.reports import confusion, curves

    for report, name in ((curves, results.CURVES), (confusion, confusion.CONFUSION_PNG)):
        try:
            report.draw(run_dir)
        except Exception as error:  # the result of weeks must not hang on a picture
            screen.say(f"no {name}: {error}")


def say_what_broke(screen: Screen, error: Exception, run_dir: Path) -> None:
    """One line on the screen, the traceback in log.txt."""
    if screen.log is not None:
        screen.log.print(traceback.format_exc(), soft_wrap=True)
    screen.say(f"{type(error).__name__}: {last_line(error)}. The traceback is in {run_dir / results.LOG}")


def _where_to_go_on(run_dir: Path, run: Run) -> str:
    if run.checkpoints.saved_step < 0:
        return "Nothing had been saved yet"
    return (
        f"The last good checkpoint, step {run.checkpoints.saved_step:,}, stands in {run_dir / results.LAST}"
    )


def last_line(error: BaseException) -> str:
    """The message without the traceback that torch's loader processes put before it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1].strip() if "Traceback" in str(error) else lines[0].strip()
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name).rstrip(".")


class _OnScreen(logging.Handler):
    """Shows what the data sources say while they work."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        of_one_process = record.name.endswith(".loader")  # each process meets its own bad images
        (self.screen.alarm if of_one_process else self.screen.say)(record.getMessage())


def show_log(screen: Screen) -> None:
    """Let the data sources say on the screen what they do."""
    ours = logging.getLogger("mixer_lightning")
    ours.handlers = [_OnScreen(screen)]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def quieten() -> None:
    """Keep Lightning's tips and notices off the screen; errors stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
