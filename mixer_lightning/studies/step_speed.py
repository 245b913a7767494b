"""Training steps and inference of our models beside timm's of the same shape, in images per second.

    mixer study step_speed models=mixer_s16,convmixer_256_8 rounds=7

A step is forward, backward and AdamW on synthetic images, with the loss in float32. The other side is timm's model with
torch.optim.AdamW, first as they come, eager, in float32 and contiguous memory, to which ratios are, then with each of
PyTorch's own settings. Variants are interleaved in one process, so that a ratio compares steps made within the same
seconds; the table gives medians over the rounds. On a CPU it is said where the steps of timm's model and of the fastest
of ours go. Writes <out>/step_speed_<device>.csv, <out>/step_parts_<device>.csv and a Markdown page with both.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.models.presets import default_image_size, list_models, model_node
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies.cases import CASES, Case, Variant, variants
from mixer_lightning.studies.rounds import interleave, middle_half


def summary(case: Case, times: list[list[float]], chosen: Sequence[Variant]) -> list[dict[str, Any]]:
    """A row per variant: images per second and the ratio to the first variant, each with its quartiles."""
    rows = []
    for variant, mine in zip(chosen, times, strict=True):
        speeds = [case.batch_size / value for value in mine]
        ratios = [first / value for first, value in zip(times[0], mine, strict=True)]
        row: dict[str, Any] = {"variant": str(variant)}
        for name, values in (("images_per_second", speeds), ("ratio_to_timm", ratios)):
            low, middle, high = middle_half(values)
            row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


def shares(model: str, variant: str, parts: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per part of a step of a variant: its milliseconds and its share."""
    whole = sum(parts.values())
    about = {"model": model, "variant": variant}
    return [about | {"part": part, "milliseconds": ms, "share": ms / whole} for part, ms in parts.items()]


# ------------------------------------------------------------------------------------------------ program

MODES = ("training", "inference")


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study step_speed",
        usage="[key=value ...]",
        description="Speed of whole training steps, ours and timm's, interleaved. Settings are written key=value, "
        "for example: models=mixer_s16,convmixer_256_8 rounds=7",
    )
    add = parser.add_argument
    add(
        "--models",
        default=",".join(CASES),
        metavar="NAMES",
        help=f"{', '.join(CASES)} or any Mixer or ConvMixer",
    )
    add("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    add("--batch_size", type=int, metavar="N", help="images per step; default: 4 to 64, by model")
    add(
        "--rounds",
        type=int,
        default=7,
        metavar="N",
        help="measurements of each variant; default: %(default)s",
    )
    add("--steps", type=int, metavar="N", help="steps in a measurement; default: 1 on a CPU, 10 on a GPU")
    add("--modes", default=",".join(MODES), metavar="NAMES", help="default: %(default)s")
    add("--bf16", choices=["true", "false"], default="true", help="also in bfloat16; default: %(default)s")
    add("--compile", choices=["true", "false"], default="false", help="all also through torch.compile")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.models = listed(chosen.models)
    if not chosen.models:
        parser.error("models names none: for example models=mixer_s16,convmixer_256_8")
    for name in chosen.models:
        if name not in CASES and name not in list_models():
            parser.error(
                f"there is no model '{name}': known are {', '.join(CASES)} and what `mixer models` lists"
            )
        if name not in CASES and not model_node(name)["_target_"].endswith((".Mixer", ".ConvMixer")):
            parser.error(
                f"models: '{name}' is neither a Mixer nor a ConvMixer, of which timm's are built here"
            )
    chosen.modes = listed(chosen.modes)
    if not chosen.modes or set(chosen.modes) - set(MODES):
        parser.error(f"modes must be {' or '.join(MODES)}, or both, separated by commas")
    parser.check_at_least(1, chosen, "steps", "batch_size")
    parser.check_at_least(2, chosen, "rounds")
    return chosen


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    import torch

    from mixer_lightning.engine.device import seconds
    from mixer_lightning.studies.step_parts import milliseconds
    from mixer_lightning.studies.training_step import compared_inference, compared_step

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        refuse(["device is cuda, but torch sees no GPU here: use device=cpu"])
    path = output_folder("out", chosen.out) / f"step_speed_{device}.csv"
    num_steps = chosen.steps or (1 if device == "cpu" else 10)
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for name, mode in itertools.product(chosen.models, chosen.modes):
        case = CASES.get(name) or Case(name, None, default_image_size(name), 8, 1000)
        case = case._replace(batch_size=chosen.batch_size or case.batch_size)
        compared = variants(
            convolutional=name.startswith("convmixer"),
            device=device,
            compile=chosen.compile == "true",
            bf16=chosen.bf16 == "true",
        )
        if mode == "inference":  # the depthwise kernel is one of gradients
            compared = list(dict.fromkeys(replace(variant, kernel=False) for variant in compared))
        make = compared_step if mode == "training" else compared_inference
        torch._dynamo.reset()  # which compiles a function only so often
        steps = [make(case, variant, device=device) for variant in compared]
        for step in steps:
            seconds(step, device=device, steps=2)  # compiles, and fills caches
        runs = [lambda step=step: seconds(step, device=device, steps=num_steps) for step in steps]
        found = summary(case, interleave(runs, rounds=chosen.rounds), compared)
        if device == "cpu" and mode == "training":
            ours = [n for n, variant in enumerate(compared) if not variant.timm]
            fastest = max(ours, key=lambda n: found[n]["images_per_second"])
            parts += [
                row for n in (0, fastest) for row in shares(name, str(compared[n]), milliseconds(steps[n]))
            ]
        about = {"model": name, "mode": mode, "image_size": case.image_size, "batch_size": case.batch_size}
        rows += [about | row | {"rounds": chosen.rounds} for row in found]
        title = f"{name}, {mode}: {case.batch_size} images of {case.image_size} px"
        screen.table(title, COLUMNS, map(shown, found))
        screen.say("")
    results.write_rows(path, rows, digits=6)
    if parts:
        results.write_rows(path.with_name(f"step_parts_{device}.csv"), parts, digits=4)
    markdown.write_page(path.with_suffix(".md"), page(rows, parts, device=device, argv=argv))
    screen.say(f"written to {path} and {path.with_suffix('.md')}")


SMALLEST_SHARE = 0.005  # of a part that the page shows
COLUMNS = ("variant", "images/s", "middle half", "ratio to timm", "middle half")


def shown(row: dict[str, Any]) -> list[str]:
    """The cells of a row of `summary`."""
    speed, ratio = "images_per_second", "ratio_to_timm"
    return [
        row["variant"],
        f"{row[speed]:,.1f}",
        f"{row[f'{speed}_low']:,.1f} to {row[f'{speed}_high']:,.1f}",
        f"{row[ratio]:.2f}",
        f"{row[f'{ratio}_low']:.2f} to {row[f'{ratio}_high']:.2f}",
    ]


def page(
    rows: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]], *, device: str, argv: Sequence[str]
) -> str:
    """The tables, with machine, versions and command."""
    import torch

    from mixer_lightning.kernels.depthwise import native_weight_gradients

    machine = f"{results.cpu_name()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()} ({results.cpu_name()})"
    else:
        native = native_weight_gradients() is not None
        machine += f"; kernels {'compiled' if native else 'in PyTorch, for want of a C++ compiler'}"
    lines = [
        "# Speed of a step",
        "",
        "Training: forward, backward and AdamW; inference: as in evaluations. Synthetic images. Medians over rounds in",
        "which each variant runs once; a ratio is between steps of the same round. In brackets the middle half of the",
        "rounds.",
        "",
        *markdown.provenance(
            machine=machine,
            versions=results.versions(),
            command=["mixer", "study", "step_speed", *argv],
            commit=results.git_sha(),
        ),
    ]
    for name, mode in dict.fromkeys((row["model"], row["mode"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["mode"]) == (name, mode)]
        size = f"{mine[0]['batch_size']} images of {mine[0]['image_size']} px, {mine[0]['rounds']} rounds"
        lines += [
            "",
            f"## {name}, {mode}: {size}",
            "",
            *markdown.table(
                ("variant", "images/s", "ratio to timm"),
                [
                    [variant, f"{speed} ({speeds})", f"{ratio} ({ratios})"]
                    for variant, speed, speeds, ratio, ratios in map(shown, mine)
                ],
            ),
        ]
        theirs = [part for part in parts if mode == "training" and part["model"] == name]
        for variant in dict.fromkeys(part["variant"] for part in theirs):
            shown_parts = [
                part for part in theirs if part["variant"] == variant and part["share"] >= SMALLEST_SHARE
            ]
            lines += [
                "",
                f"Where a step goes, by torch.profiler: {variant}",
                "",
                *markdown.table(
                    ("part", "ms", "share"),
                    [
                        [part["part"], f"{part['milliseconds']:.1f}", f"{100 * part['share']:.1f} %"]
                        for part in shown_parts
                    ],
                ),
            ]
    return "\n".join(lines) + "\n"
