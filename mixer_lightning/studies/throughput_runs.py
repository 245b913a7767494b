"""The measurements of `mixer study throughput`: models, modes and batch sizes, round by round."""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.engine.device import Step, matrix_rate, seconds_for
from mixer_lightning.engine.inference import evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.memory import PeakMemory, available_bytes, release_memory
from mixer_lightning.models import catalogue
from mixer_lightning.models.presets import PASSES, cost, default_image_size, model_node, published
from mixer_lightning.reports.throughput import column_of_device
from mixer_lightning.screen import Screen, last_line
from mixer_lightning.studies.throughput_table import MATMUL, Setting, Table
from mixer_lightning.studies.training_step import inference_step, training_step

BATCH_SIZES = {"cpu": (1, 4, 16), "cuda": (16, 32, 64, 128, 256, 512, 1024)}
#: Matrix products are measured for this part of the seconds of a measurement.
MATRIX_SHARE = 0.2
WARM_UP_STEPS = {"cpu": 1, "cuda": 3}
CLIP_GRAD_NORM = 1.0  # as conf/train.yaml has it
#: Bytes per weight: of itself, its gradient and Adam's two moments in training; of itself and its copy in bf16.
BYTES_PER_WEIGHT = {"inference": 6, "training": 18}


@dataclass(frozen=True)
class Case:
    """A model at a size of image."""

    name: str
    image_size: int
    num_classes: int
    parameters: int
    macs: int
    definition: str


def case_of(name: str, *, image_size: int | None) -> Case:
    """A model of conf/model at its own size or another, with the head of its published row.

    Raises:
        ValueError: it cannot be built at that size.
    """
    node, size = model_node(name), image_size or default_image_size(name)
    num_classes = catalogue.num_classes_of(catalogue.best_known(name, published()))
    counted = catalogue.counted().get(name)
    known = catalogue.known_cost(counted, node, num_classes=num_classes, image_size=size)
    found = known or cost(name, num_classes=num_classes, image_size=size)
    return Case(name, size, num_classes, found.parameters, found.macs, catalogue.digest(node))


class Study:
    """The measurements of a command line, one model at a time."""

    def __init__(self, chosen: argparse.Namespace, machine: Machine, table: Table, screen: Screen) -> None:
        self.chosen, self.machine, self.table, self.screen = chosen, machine, table, screen
        self.published: dict[tuple[str, int], dict[str, float]] = {}
        for row in catalogue.published_speeds():
            theirs = self.published.setdefault((row.model, row.input), {})
            if row.images_per_second is not None:
                theirs[column_of_device(row.device)] = row.images_per_second
        device = machine.device_type
        gpu = f"{torch.cuda.get_device_name()} ({results.cpu_name()})" if device == "cuda" else ""
        versions = results.versions()
        self.conditions: dict[str, Any] = {
            "precision": machine.chosen_precision,
            "layout": chosen.layout,
            "compile": chosen.compile,
            "seconds": chosen.seconds,
            "device": device,
            "machine": gpu or f"{results.cpu_name()}, {torch.get_num_threads()} threads",
            "versions": ", ".join(
                f"{name} {versions[name]}" for name in ("torch", "timm") if name in versions
            ),
        }

    def setting(self, case: Case, mode: str, batch_size: int) -> Setting:
        """What a measurement is identified by."""
        return Setting(
            model=case.name,
            mode=mode,
            batch_size=batch_size,
            image_size=case.image_size,
            definition=case.definition,
            **self.conditions,
        )

    def measure_matrices(self) -> None:
        """The rate of matrix products, once more: a machine is not equally fast all the time."""
        row = self.table.row(Setting("", MATMUL, 0, 0, definition="", **self.conditions))
        row.values.append(matrix_rate(self.machine, at_least=MATRIX_SHARE * self.chosen.seconds))

    def visit(self, case: Case, number: int) -> None:
        """Everything that a round has for a model, which is built once for that, if there is something to be done."""
        due = {mode: self.due(case, mode, number) for mode in self.chosen.modes}
        if not any(due.values()):
            return
        if reason := self.too_slow(case, "inference", min(self.chosen.batch_sizes)):
            for mode in due:
                self.leave_out(case, mode, min(self.chosen.batch_sizes), reason)
            return
        self.measure_matrices()
        release_memory(self.machine)
        peak = PeakMemory(self.machine)
        peak.start()
        try:
            torch.manual_seed(0)
            model = create_model(case.name, num_classes=case.num_classes, image_size=case.image_size)
            model = self.machine.place(model)
        except (RuntimeError, ValueError, MemoryError) as error:
            for mode in due:
                self.leave_out(case, mode, min(self.chosen.batch_sizes), last_line(error))
            return
        for mode, sizes in due.items():
            for batch_size in sizes:
                if not self.measure(case, model, mode, batch_size, peak):
                    break

    def due(self, case: Case, mode: str, number: int) -> list[int]:
        """Batch sizes that lack the value of a round: all in the first one, then the best."""
        sizes = self.chosen.batch_sizes
        rows = {size: self.table.rows.get(self.setting(case, mode, size)) for size in sizes}
        if any(row is not None and row.left_out for row in rows.values()):
            sizes = [size for size in sizes if (row := rows[size]) is not None and row.values]
        if number:
            best = self.table.best(self.setting(case, mode, sizes[0])) if sizes else None
            sizes = [size for size in sizes if size == best]
        return [size for size in sizes if (row := rows[size]) is None or len(row.values) <= number]

    def measure(self, case: Case, model: nn.Module, mode: str, batch_size: int, peak: PeakMemory) -> bool:
        """Warm up and measure; False where larger batches need not be tried. What went wrong is written down."""
        setting = self.setting(case, mode, batch_size)
        reason = self.too_large(case, setting) or self.too_slow(case, mode, batch_size)
        if reason:
            self.leave_out(case, mode, batch_size, reason)
            return False
        row = self.table.row(setting, parameters=case.parameters, macs=case.macs)
        problem, is_full = "", False
        try:
            with evaluating(model) if mode == "inference" else nullcontext():
                step: Step | None = self.step(case, model, mode, batch_size)
                assert step is not None
                peak.restart()
                for _ in range(WARM_UP_STEPS[self.machine.device_type]):
                    step()
                took = seconds_for(step, device=self.machine.device_type, at_least=self.chosen.seconds)
            row.values.append(batch_size / took)
            row.peak_memory_bytes = max(peak.bytes() or 0, row.peak_memory_bytes or 0) or None
            row.memory_format = str(self.machine.memory_format(model)).removeprefix("torch.")
            self.table.write(self.published)
            rate = f"{row.values[-1]:>9,.2f} images/s"
            self.screen.say(f"{case.name:<28} {mode:<9} {batch_size:>5} images  {rate}")
        except (MemoryError, RuntimeError, ValueError) as error:  # torch.OutOfMemoryError is a RuntimeError
            problem, is_full = last_line(error), _is_out_of_memory(error)
        step = None  # its images and optimiser go
        model.zero_grad(set_to_none=True)
        release_memory(self.machine)
        if problem:
            self.leave_out(case, mode, batch_size, problem)
        return not is_full

    def step(self, case: Case, model: nn.Module, mode: str, batch_size: int) -> Step:
        """A function that makes one step of a mode."""
        size = case.image_size
        if mode == "inference":
            return inference_step(model, self.machine, batch_size=batch_size, image_size=size)
        return training_step(
            model,
            self.machine,
            batch_size=batch_size,
            image_size=size,
            num_classes=case.num_classes,
            clip_grad_norm=CLIP_GRAD_NORM,
        )

    def leave_out(self, case: Case, mode: str, batch_size: int, reason: str) -> None:
        """Write down why a measurement is not made."""
        row = self.table.row(self.setting(case, mode, batch_size), parameters=case.parameters, macs=case.macs)
        row.left_out = reason
        self.table.write(self.published)
        self.screen.say(f"{case.name:<28} {mode:<9} {batch_size:>5} images  left out: {reason}")

    def too_large(self, case: Case, setting: Setting) -> str:
        """Why a batch does not fit into a CPU's memory, by what a smaller one took; empty where it may.

        A GPU says so itself, harmlessly; a kernel without memory ends the process.
        """
        there = available_bytes(self.machine)
        if self.machine.device_type == "cuda" or there is None:
            return ""
        needed = BYTES_PER_WEIGHT[setting.mode] * case.parameters
        smaller = [
            (size, row.peak_memory_bytes)
            for size in self.chosen.batch_sizes
            if size < setting.batch_size
            and (row := self.table.rows.get(setting._replace(batch_size=size))) is not None
            and row.peak_memory_bytes
        ]
        if smaller:
            size, peak = smaller[-1]
            needed = max(needed, peak * setting.batch_size // size)
        if needed <= 0.9 * there:
            return ""
        return f"needs about {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are free"

    def too_slow(self, case: Case, mode: str, batch_size: int) -> str:
        """Why a step is left out for the time that the models measured so far let one expect; empty where it is not."""
        limit, rate = self.chosen.step_seconds, self.expected_rate(case, mode)
        if limit is None or rate is None:
            return ""
        expected = batch_size / rate
        return f"a step would take about {expected:.0f} s" if expected > limit else ""

    def expected_rate(self, case: Case, mode: str) -> float | None:
        """Images per second, by what has been measured: this model in this mode or another, else the likes of it."""
        own = {
            each: max(rates)
            for each in PASSES
            if (
                rates := [
                    row.median
                    for setting, row in self.table.rows.items()
                    if row.values and setting == self.setting(case, each, setting.batch_size)
                ]
            )
        }
        for each in (mode, *own):
            if each in own:
                return own[each] * PASSES[each] / PASSES[mode]
        others = [
            row.median * row.macs * PASSES[setting.mode]
            for setting, row in self.table.rows.items()
            if row.values
            and setting == setting._replace(**self.conditions)  # of this machine, with these options
            and row.macs > 0.1 * case.macs  # small networks use less of a device
        ]
        return statistics.median(others) / case.macs / PASSES[mode] if others else None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a larger batch would fail, too; BatchNorm refuses one image whose last map is a pixel, and takes two."""
    is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_full or re.search("memory|alloc", str(error), re.IGNORECASE) is not None


def cases_of(chosen: argparse.Namespace, screen: Screen) -> Iterator[Case]:
    """The models that can be built at the size that is asked for; the others are named."""
    for name in chosen.models:
        try:
            yield case_of(name, image_size=chosen.image_size)
        except (ValueError, RuntimeError) as error:
            screen.say(f"{name} is left out: {last_line(error)}")


#: Images of the training sets that the papers' core-days were spent on, by the data of published_speed.csv.
NUM_IMAGES = {"imagenet1k": 1_281_167, "imagenet21k": 14_197_122, "jft300m": 303_000_000}
#: Pre-trained at a size that it is not published at: 224 px on JFT (arXiv 2102.06171).
PRETRAINED_AT_ANOTHER_SIZE = ("nfnet_f4_plus",)


def plans() -> list[Mapping[str, object]]:
    """Trainings of papers of known length and image size: model, input, data, epochs, images, device, core_days."""
    return [
        {
            "model": row.model,
            "input": row.input,
            "data": catalogue.DATA[row.data][0].rpartition(" ")[2],
            "epochs": row.epochs,
            "images": row.epochs * NUM_IMAGES[row.data],
            "device": row.device,
            "core_days": row.core_days,
        }
        for row in catalogue.published_speeds()
        if row.core_days is not None
        and row.epochs is not None
        and row.data in NUM_IMAGES
        and row.input == default_image_size(row.model)
        and row.model not in PRETRAINED_AT_ANOTHER_SIZE
    ]
