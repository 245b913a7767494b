"""What makes a ConvMixer work: patch and kernel, and its parts exchanged one at a time (arXiv 2201.09792, table 3).

    mixer study ablation experiment=convmixer_256_8_p1_k9_cifar10_200ep trainer=gpu --dry-run
    mixer study ablation model=convmixer_96_4 data=cifar10 patches=[1,2,4] kernels=[3,5,7,9] duration.epochs=10

Trains the network at every patch of `patches` with every kernel of `kernels`; and at its own patch and kernel once for
each change: residuals, normalisation, activation (models/convmixer_ablation.py), and each part of the recipe's
augmentation that is on, off. These are runs of `mixer train` under `folder`, of which those that have finished are not
repeated. Writes <out>/ablation_<data>.csv with a row for each run, a page, and a picture: a heat map of patch and
kernel, and the changes beside the published ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.overrides import file_name, quoted
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.engine.run import wait_briefly
from mixer_lightning.models.presets import Cost
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, did_you_mean, refuse
from mixer_lightning.studies import training_runs
from mixer_lightning.studies.training_runs import Run

BASELINE = "baseline"  # the network as it is, among the changes
OPTIONS = ("patches", "kernels", "changes", "seeds", "folder", "out")
OF_STUDY = {
    "seed": "seeds=",
    "name": "folder=",
}


class Change(NamedTuple):
    """What is exchanged, in words; in which node of the recipe, and the values set there: none where it is so."""

    what: Callable[[Recipe], str]
    node: Literal["model", "augment"]
    values: Callable[[Mapping[str, Any]], dict[str, Any]]


def _part(what: str, **values: str) -> Change:
    """Another part of the network, by a parameter of AblatedConvMixer."""
    return Change(lambda recipe: what, "model", lambda model: {"_target_": _targets()[1], **values})


def _off(what: str, **values: Any) -> Change:
    """A part of the augmentation, off; nothing where it is off already."""
    return Change(
        lambda recipe: what,
        "augment",
        lambda augment: values if any(augment[key] != value for key, value in values.items()) else {},
    )


def _targets() -> tuple[str, str]:
    """ConvMixer, and that with parts exchanged, as recipes call them."""
    from mixer_lightning.models.convmixer import ConvMixer  # torch: seconds
    from mixer_lightning.models.convmixer_ablation import AblatedConvMixer

    as_it_is, ablated = (f"{each.__module__}.{each.__name__}" for each in (ConvMixer, AblatedConvMixer))
    return as_it_is, ablated


def _other(activation: object) -> str:
    return "relu" if activation == "gelu" else "gelu"


CHANGES = {
    "no_residual": _part("no residual", residual="none"),
    "residual_pointwise": _part("a residual around the pointwise convolution too", residual="both"),
    "layer_norm": _part("LayerNorm for BatchNorm", normalization="layer"),
    "no_norm": _part("no normalisation", normalization="none"),
    "other_activation": Change(
        lambda recipe: "ReLU for GELU" if recipe.model["activation"] == "gelu" else "GELU for ReLU",
        "model",
        lambda model: {"activation": _other(model["activation"])},
    ),
    "no_mixing": _off("no mixup and CutMix", mixup=0.0, cutmix=0.0),
    "no_erasing": _off("no random erasing", erase=0.0),
    "no_rand_augment": _off("no RandAugment", rand_augment=None),
    "no_crop": _off("no random crop", crop="none"),
    "no_flip": _off("no flip", flip=0.0),
    "no_jitter": _off("no colour jitter", color_jitter=0.0),
}


class Cell(NamedTuple):
    """One training, and what it is: a key of CHANGES, BASELINE, or "" for another patch and kernel alone."""

    change: str
    what: str
    seed: int
    run: Run


class Settings(NamedTuple):
    """What a command line asks for; `overrides` are handed on to the runs."""

    chosen: argparse.Namespace
    patches: list[int]
    kernels: list[int]
    changes: list[str]
    overrides: list[str]


def settings(argv: Sequence[str]) -> Settings:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study ablation",
        usage="[patches=...] [kernels=...] [changes=...] [key=value ... of mixer train] [--dry-run]",
        description="Accuracy of a ConvMixer over patch and kernel, and with its parts exchanged one at a time.",
    )
    add = parser.add_argument
    add("--patches", default="1,2,4", metavar="LIST", help="sides in pixels; default: %(default)s")
    add("--kernels", default="3,5,7,9", metavar="LIST", help="sides in patches; default: %(default)s")
    add(
        "--changes",
        default="all",
        metavar="NAMES",
        help=f"all, none, or of {', '.join(CHANGES)}; default: all that change something",
    )
    training_runs.add_options(parser, folder="runs/ablation")
    chosen, overrides = training_runs.read_settings(parser, argv, OPTIONS, set_for_runs=OF_STUDY)
    parser.check_at_least(1, chosen, "seeds")
    words = listed(chosen.changes)
    changes = {"all": [*CHANGES], "none": []}.get(words[0] if len(words) == 1 else "", words)
    for word in changes:
        if word not in CHANGES:
            parser.error(f"there is no change '{word}'{did_you_mean(word, list(CHANGES))}")
    patches, kernels = (
        [int(number) for number in training_runs.numbers_of(parser, name, getattr(chosen, name))]
        for name in ("patches", "kernels")
    )
    chosen.folder = chosen.folder.expanduser()
    return Settings(chosen, patches, kernels, changes, overrides)


def main(argv: Sequence[str]) -> None:
    """Train what is not trained yet, print, write; or show what that would cost."""
    asked, screen = settings(argv), Screen()
    wait_briefly()
    try:
        cells = plan(asked, screen)
        training_runs.carry_out(
            [cell.run for cell in cells],
            asked.chosen,
            screen,
            write=lambda costs: _write(asked, cells, costs, argv, screen),
        )
    except (ValueError, OSError) as error:
        refuse([str(error)])


def plan(asked: Settings, screen: Screen) -> list[Cell]:
    """The network as it is, then every change, then every other patch and kernel; what is off already is named.

    Raises:
        ValueError, OSError: what is wrong with the recipe; it is of no ConvMixer; or the data are not there.
    """
    folder = asked.chosen.folder
    base = compose_one("train", [f"name={quoted(folder.absolute().name)}", *asked.overrides])
    if base.model.get("_target_") != _targets()[0]:
        raise ValueError(
            f"the parts that are exchanged are a ConvMixer's, which {base.choices.get('model')} is not: use "
            "model=convmixer_96_4 or another of them"
        )
    (num_images,) = training_runs.num_train_images([base])
    base = training_runs.in_steps(base, num_images)
    own = (int(base.model["patch_size"]), int(base.model["kernel_size"]))
    kinds: list[tuple[str, str, Recipe]] = [(BASELINE, "as it is", base)]
    for key in asked.changes:
        what, changed = CHANGES[key].what(base), exchanged(base, key)
        if changed is None:
            screen.say(f"{what}: so it is already, and left out")
        else:
            kinds.append((key, what, changed))
    for patch in asked.patches:
        for kernel in asked.kernels:
            if (patch, kernel) != own:
                node = {**base.model, "patch_size": patch, "kernel_size": kernel}
                kinds.append(("", f"patch {patch}, kernel {kernel}", replace(base, model=node)))
    cells = []
    for key, what, recipe in kinds:
        place = f"p{recipe.model['patch_size']}-k{recipe.model['kernel_size']}"
        for seed in range(asked.chosen.seeds):
            name = "-".join(
                filter(None, (base.choices["model"], place, key if key != BASELINE else "", f"seed{seed}"))
            )
            made = replace(recipe, seed=seed)
            cells.append(Cell(key, what, seed, Run(f"{what}, seed {seed}", made, folder / name, place)))
    return cells


def exchanged(recipe: Recipe, key: str) -> Recipe | None:
    """The recipe with a change of CHANGES; None where it is so already."""
    change = CHANGES[key]
    if change.node == "model":
        values = change.values(recipe.model)
        return replace(recipe, model={**recipe.model, **values}) if values else None
    values = change.values(recipe.augment)
    return replace(recipe, augment={**recipe.augment, **values}) if values else None


# ---------------------------------------------------------------------------------------------- what is written


def rows_of(cells: Sequence[Cell], costs: Mapping[Path, Cost]) -> list[dict[str, Any]]:
    """A row for every run; `difference` of a change in points, to the network as it is with the same seed."""
    rows = []
    baselines: dict[int, float] = {}
    for cell in cells:
        node = cell.run.recipe.model
        found = training_runs.outcome(cell.run, costs[cell.run.run_dir])
        if cell.change == BASELINE:
            baselines[cell.seed] = found["accuracy"]
        difference = round(100 * (found["accuracy"] - baselines[cell.seed]), 2)
        rows.append(
            {
                "change": cell.change,
                "what": cell.what,
                "patch_size": node["patch_size"],
                "kernel_size": node["kernel_size"],
                "seed": cell.seed,
                **found,
                "difference": difference if cell.change not in ("", BASELINE) else "",
            }
        )
    return rows


def _write(
    asked: Settings, cells: Sequence[Cell], costs: Mapping[Path, Cost], argv: Sequence[str], screen: Screen
) -> None:
    """The tables on the screen; rows, page and picture."""
    from mixer_lightning.reports import ablation as report  # matplotlib: seconds
    from mixer_lightning.reports.ablation_picture import draw

    recipe = cells[0].run.recipe
    data = str(recipe.data.get("name") or recipe.choices["data"])
    path = asked.chosen.out / f"ablation_{file_name(data)}.csv"
    rows = training_runs.write_rows(path, rows_of(cells, costs))
    screen.table("", *report.grid_cells(rows))
    screen.table("", report.CHANGE_TABLE, report.change_cells(rows))
    epochs = float(rows[0]["images_seen"]) / float(rows[0]["train_images"])
    screen.say(report.verdict(rows, epochs=epochs))
    draw(path.with_suffix(".png"), rows, data=data)
    text = report.page(
        rows,
        title=f"Ablation of ConvMixer on {data}",
        introduction=_introduction(cells, rows[0], epochs),
        picture=path.with_suffix(".png").name,
        epochs=epochs,
        provenance=[
            *markdown.provenance(
                machine=results.cpu_name(),
                versions=results.versions(),
                command=["mixer", "study", "ablation", *argv],
                commit=results.git_sha(),
            ),
        ],
    )
    markdown.write_page(path.with_suffix(".md"), text)
    screen.say(f"written to {path}, .md and .png")


def _introduction(cells: Sequence[Cell], row: Mapping[str, str], epochs: float) -> str:
    recipe = cells[0].run.recipe
    node = recipe.model
    return (
        f"{row['metric']}{training_runs.on_images(row)} of {markdown.escape(recipe.choices['model'])} (dim "
        f"{node['dim']}, depth {node['depth']}) after {recipe.duration} of {recipe.batch_size} images of "
        f"{recipe.image_size} px, {epochs:.2g} epochs. Patch and kernel below; each part is exchanged at patch "
        f"{node['patch_size']} and kernel {node['kernel_size']}, framed in the picture."
    )
