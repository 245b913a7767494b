"""Training: a recipe made ready, fitted, and its result written."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn

from mixer_lightning import results
from mixer_lightning.checkpoints import run_format, sharded
from mixer_lightning.checkpoints.load import Head
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.checks import refuse_damaged
from mixer_lightning.data.sources import BadImage
from mixer_lightning.engine import bad_images, closing, presence, resumption, setup, sharding, startup_checks
from mixer_lightning.engine.agreement import Agreement
from mixer_lightning.engine.callbacks import Evaluations, MetricsLog, Progress
from mixer_lightning.engine.checkpoint import Checkpoints, read_last
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.device_batch import settle_device_batch
from mixer_lightning.engine.first_batch import FirstBatch
from mixer_lightning.engine.labels import make_logger
from mixer_lightning.engine.length import Length, length_of
from mixer_lightning.engine.lightning_callbacks import DrivenCallbacks, build_callbacks, is_driven
from mixer_lightning.engine.lightning_logger import RateOfNextStep, RunLogger
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.metrics import NonFiniteLoss
from mixer_lightning.engine.preemption import PendingEvaluation, Preemption
from mixer_lightning.files import write_text
from mixer_lightning.loggers.dashboards import Dashboards
from mixer_lightning.models.presets import PASSES, count_macs
from mixer_lightning.screen import Screen, closing_table, last_line
from mixer_lightning.stopping import Stopped, StopRequests, exit_code, undisturbed


@dataclass(frozen=True)
class Run:
    """A recipe made ready: everything is built and checked, nothing has been changed yet."""

    module: Classifier
    data: DataModule
    trainer: Trainer
    metrics: MetricsLog
    checkpoints: Checkpoints
    dashboards: Dashboards
    preemption: Preemption
    total_steps: int
    planned_steps: int  # more than total_steps where only a few are tried
    num_parameters: int
    device: str

    @property
    def is_unfinished(self) -> bool:
        """Whether there are steps to make, or an evaluation that was broken off."""
        is_at_end = self.module.step >= self.total_steps or self.module.ended is not None
        return self.module.evaluation_due or not is_at_end

    def close(self) -> None:
        """End the threads of the data and the dashboards."""
        self.data.close()
        self.dashboards.close()


def ready(recipe: Recipe, run_dir: Path, screen: Screen, *, head: Head = "auto") -> Run:
    """Build and check every part of a run; `head` says what becomes of that of a checkpoint to start from.

    Raises:
        ValueError, OSError: something in the recipe, the data or a checkpoint is wrong; the message says what.
    """
    earlier = read_last(run_dir)
    parts = setup.assemble(
        recipe,
        head=head,
        stochastic_depth=recipe.stochastic_depth,
        head_bias=recipe.head_bias,
        trained=None if earlier is None else run_format.trained_weights(earlier[1]),
    )
    if parts.report is not None:
        screen.say(str(parts.report))
    machine, source = parts.machine, parts.source
    source.refuse_label_changing(parts.augment)
    of_data = bad_images.record(source, run_dir, earlier and earlier[1])
    num_images = bad_images.num_images(of_data, "train")
    recipe = settle_device_batch(
        recipe,
        machine,
        model=parts.model,
        num_classes=len(source.classes),
        before=earlier and earlier[1]["device_batch"],
        say=screen.say,
    )
    length = length_of(recipe, num_images=num_images, world_size=machine.world_size)
    module = setup.classifier(
        recipe, parts.model, machine, length, class_counts=setup.class_counts(recipe, source)
    )
    startup_checks.check_training(recipe, module, source, total_steps=length.total_steps, say=screen.say)
    data = _data_module(recipe, parts, module, length)
    num_parameters = sum(p.numel() for p in parts.model.parameters())
    screen.say(parts.headline(recipe.choices.get("model", ""), f" {num_parameters:,} parameters"))

    known = [] if earlier is None else results.read_bad_images(run_dir)  # else `_fit` deletes them
    data.on_bad = bad_images.BadImagesLog(run_dir, known)
    if earlier is not None:
        resumption.refuse_another_run(recipe, *earlier, of_data, length)
        resumption.go_on(module, data, earlier[1], of_data, length, screen)
    elif recipe.evals and machine.rank == 0:
        refuse_damaged(source, threads=machine.threads, say=screen.say)
    dashboards = _dashboards(recipe if machine.rank == 0 else None, run_dir, screen)
    metrics = _metrics_log(recipe, run_dir, machine, parts.model, data, length, dashboards)
    others = build_callbacks(recipe, source, parts.evals, device_type=machine.device_type, say=screen.say)
    _check_machine(recipe, module, others)
    states = earlier[1].get("callbacks", {}) if earlier is not None else {}
    checkpoints = Checkpoints(
        run_dir,
        every_steps=recipe.checkpoint_every.to_steps(length.steps_per_epoch),
        every_minutes=recipe.checkpoint_minutes,
        total_steps=length.total_steps,
        record=resumption.record(recipe, of_data, length, earlier and earlier[1]),
        metrics=metrics,
        driven=DrivenCallbacks(others, start_step=module.step, states=states),
        earlier=earlier,
    )
    preemption = _preemption(machine, data, checkpoints, run_dir, screen)
    trainer = setup.lightning_trainer(
        machine,
        steps=length.total_steps + module.only_evaluates,  # or it would do nothing
        accumulate=length.micro_batches.accumulate,
        callbacks=_callbacks(recipe, parts, data, checkpoints, preemption, others, length, screen),
        run_dir=run_dir,
        logger=RunLogger(metrics) if others else None,
        log_every_steps=recipe.log_every_steps,
    )
    device = str(machine) if machine.device_type == "cuda" else results.cpu_name()
    return Run(
        module,
        data,
        trainer,
        metrics,
        checkpoints,
        dashboards,
        preemption,
        length.total_steps,
        length.schedule_steps,
        num_parameters,
        device,
    )


def _check_machine(recipe: Recipe, module: Classifier, others: Mapping[str, Callback]) -> None:
    """See that sharing parameters out, or recomputing activations, changes nothing of what is trained.

    Raises:
        ValueError: it would.
    """
    sharding.refuse_what_needs_whole_tensors(
        module.machine,
        module.model,
        module.make_optimizer(module.model),
        ema_decay=recipe.ema_decay,
        callbacks=[
            key for key, each in others.items() if isinstance(each, ModelCheckpoint | WeightAveraging)
        ],
    )


def _data_module(recipe: Recipe, parts: setup.Assembly, module: Classifier, length: Length) -> DataModule:
    return setup.data_module(
        parts.source,
        parts.augment,
        parts.machine,
        image_size=recipe.image_size,
        micro_batches=length.micro_batches,
        total_steps=length.total_steps,
        seed=recipe.seed,
        repeats=recipe.repeats,
        sampling=recipe.sampling,
        shuffle_window=recipe.shuffle_window,
        max_bad_fraction=recipe.max_bad_fraction,
        overfit_batches=recipe.overfit_batches,
        memory_format=module.memory_format,
    )


def _metrics_log(
    recipe: Recipe,
    run_dir: Path,
    machine: Machine,
    model: nn.Module,
    data: DataModule,
    length: Length,
    dashboards: Dashboards,
) -> MetricsLog:
    macs = None
    if recipe.freeze is None and machine.rank == 0:  # what is frozen has no backward pass, or half of one
        macs = PASSES["training"] * count_macs(model, image_size=recipe.image_size)
    return MetricsLog(
        run_dir,
        every_steps=recipe.log_every_steps,
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        num_devices=machine.world_size,
        dashboards=dashboards,
        seconds_waited=data.seconds_waited,
        macs=macs,
    )


def _callbacks(
    recipe: Recipe,
    parts: setup.Assembly,
    data: DataModule,
    checkpoints: Checkpoints,
    preemption: Preemption,
    others: Mapping[str, Callback],
    length: Length,
    screen: Screen,
) -> list[Callback]:
    """What happens between steps, in this order: what a checkpoint has seen is also in metrics.jsonl."""
    metrics = checkpoints.metrics
    progress = Progress(
        screen, metrics, total_steps=length.total_steps, steps_per_epoch=length.steps_per_epoch
    )
    evaluations = Evaluations(
        parts.evals,
        every_steps=recipe.eval_every.to_steps(length.steps_per_epoch),
        total_steps=length.total_steps,
        data=data,
        metrics=metrics,
        is_asked_to_stop=lambda: bool(preemption.received()),
        on_batch=progress.on_evaluation,
    )
    evaluations.listeners += [checkpoints.on_metrics, progress.on_metrics, checkpoints.driven.on_metrics]
    return [
        Agreement(recipe, checkpoints.record),
        FirstBatch(checkpoints.run_dir, parts.augment, parts.source.classes),
        progress,
        *([RateOfNextStep()] if others else []),
        metrics,
        *(each for each in others.values() if not is_driven(each)),
        evaluations,
        checkpoints.driven,
        checkpoints,
        preemption,  # last of a step: it ends the fit
        PendingEvaluation(evaluations, checkpoints, preemption),
    ]


def fit(recipe: Recipe, run_dir: Path, run: Run, screen: Screen) -> int:
    """Train to the end, from where an earlier session stopped, and write the result; the exit code (see README)."""
    code = 1
    try:
        code = _fit(recipe, run_dir, run, screen)
    finally:
        with undisturbed(code):
            run.dashboards.close(code)
    return code


def _fit(recipe: Recipe, run_dir: Path, run: Run, screen: Screen) -> int:
    if run.module.step:
        screen.say(f"resuming {run_dir} at step {run.module.step:,} of {run.total_steps:,}")
    is_first, code = run.module.machine.rank == 0, 1
    try:
        if is_first:
            (run_dir / results.RESULT).unlink(missing_ok=True)  # of a run that is made longer
            if run.checkpoints.saved_step < 0:  # of one that never saved
                (run_dir / results.BAD_IMAGES).unlink(missing_ok=True)
            write_text(run_dir / results.RECIPE, recipe.to_yaml())
            damaged = results.keep_metrics_until(run_dir, run.module.step)
            if damaged:
                lines = ", ".join(map(str, damaged))
                screen.say(f"{run_dir / results.METRICS} is damaged: left out line {lines}, the others stay")
        run.dashboards.open()
        run.dashboards.log_recipe(recipe.to_dict())
        run.dashboards.advise(run_dir)
        if run.is_unfinished:
            with run.preemption.requests, run.checkpoints.settled():
                run.trainer.fit(run.module, datamodule=run.data)
                if run.module.ended is None and run.module.step < run.total_steps:  # a callback ended it
                    run.preemption.save(run.trainer, run.module)
        screen.stop_bars()
        if run.module.ended is not None:
            screen.say(
                f"stopped early at step {run.module.step:,} of {run.total_steps:,}: {run.module.ended}"
            )
        elif run.module.step < run.total_steps:
            screen.say(
                f"a callback ended the training at step {run.module.step:,} of {run.total_steps:,}, saved "
                f"{run_dir / results.LAST}; the same command goes on from there"
            )
            return 1
        if is_first:
            result = _result(recipe, run)
            results.write_metrics_csv(run_dir)
            closing.draw_pictures(run_dir, screen)
            results.write_result(run_dir, result)
            (run_dir / results.PREVIOUS).unlink(missing_ok=True)
            sharded.remove_unused(run_dir)
            if recipe.fast_dev_run:
                screen.say(
                    f"fast_dev_run: {run.module.step} of {run.planned_steps:,} training steps, evaluations, checkpoint "
                    "and pictures went through; nothing is kept"
                )
            else:
                closing_table(screen, result, run_dir)
            closing.show_on_dashboards(run_dir, run.dashboards, screen)
        return 0
    except Stopped as stop:
        screen.stop_bars()
        if stop.saved:
            presence.leave()  # as all do
        else:
            presence.tell(exit_code(stop.number), f"was asked to stop ({stop}) before another step")
        if stop.saved and not recipe.fast_dev_run:
            screen.say(
                f"stopped by {stop}, saved {run_dir / results.LAST}; the same command goes on from there"
            )
        else:
            screen.say(f"stopped by {stop} before another step. {_where_to_go_on(run_dir, run.checkpoints)}")
        return exit_code(stop.number)
    except torch.OutOfMemoryError as error:
        screen.stop_bars()
        presence.say_why(
            screen,
            f"out of device memory: lower device_batch (the global batch_size stays). {last_line(error)}",
        )
    except NonFiniteLoss as error:  # all processes find it together
        screen.stop_bars()
        screen.say(last_line(error))
    except (BadImage, OSError) as error:
        screen.stop_bars()
        presence.say_why(screen, last_line(error))
    except Exception as error:
        screen.stop_bars()
        code = presence.say_what_broke(screen, error, run_dir / results.LOG)
    screen.say(_where_to_go_on(run_dir, run.checkpoints))
    return code


# --------------------------------------------------------------------------------------------- the pieces


def _dashboards(recipe: Recipe | None, run_dir: Path, screen: Screen) -> Dashboards:
    """The recipe's loggers, not yet opened; none without a recipe."""
    if recipe is None:
        return Dashboards({}, say=screen.say)
    nodes = recipe.logger.items()
    makers = {key: functools.partial(make_logger, node, recipe, run_dir) for key, node in nodes}
    return Dashboards(makers, say=screen.say)


def _result(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The closing record."""
    metrics, module = run.metrics, run.module
    skipped = (results.LEARNING_RATE, results.GRAD_NORM, *results.PACE)
    seconds = metrics.train_seconds
    return {
        "recipe": recipe.to_dict(),
        "metrics": {k: v for k, v in metrics.latest.items() if k not in skipped},
        "best": run.checkpoints.best,
        "seed": recipe.seed,
        "steps": module.step,
        "ended_early": module.ended,
        "num_parameters": run.num_parameters,
        **{
            key: run.checkpoints.record[key] for key in ("checkpoint_sha256", "classes", "images", "identity")
        },
        **results.provenance(),
        "device": run.device,
        **metrics.device_time,
        "wall_seconds": round(run.checkpoints.wall_seconds, 3),
        "images_per_second": round(metrics.steps_timed * recipe.batch_size / max(seconds, 1e-9), 1),
    }


def _where_to_go_on(run_dir: Path, checkpoints: Checkpoints) -> str:
    last = run_dir / results.LAST
    if checkpoints.saved_step < 0:
        return "Nothing had been saved yet"
    if not last.exists():
        return f"The last checkpoint, step {checkpoints.saved_step:,}, was {last}, which is gone"
    return f"The last good checkpoint, step {checkpoints.saved_step:,}, stands in {last}"


def _preemption(
    machine: Machine, data: DataModule, checkpoints: Checkpoints, run_dir: Path, screen: Screen
) -> Preemption:
    def quitting() -> str:
        screen.stop_bars()  # leave the terminal as it was found
        return _where_to_go_on(run_dir, checkpoints)

    requests = StopRequests(
        screen.say, first="saving after this step", quitting=quitting, waiting=data.seconds_waiting
    )
    preemption = Preemption(requests, checkpoints, timeout_minutes=machine.process_timeout_minutes)
    presence.save_undisturbed(lambda: preemption.is_saving)
    return preemption
