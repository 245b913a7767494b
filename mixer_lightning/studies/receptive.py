"""The effective receptive field of a feature: how much each pixel of the image matters to it.

    mixer study receptive models=mixer_s16,convmixer_256_8,resnet50 images=~/photographs
    mixer study receptive checkpoints=runs/a,runs/b

For the feature in the middle of the last map, the gradient with respect to the image (receptive_field.py), averaged
over images or random noise. Models of `models` are newly initialised; a checkpoint is shown beside its architecture at
initialisation. Writes <out>/<name>.csv, the maps as .npz, a page and a picture; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.config.from_checkpoint import check_there, labels_of
from mixer_lightning.files import atomic_write
from mixer_lightning.models.presets import list_models
from mixer_lightning.reports import markdown
from mixer_lightning.reports import receptive as report
from mixer_lightning.reports.description import describe_checkpoint
from mixer_lightning.reports.receptive import INITIAL
from mixer_lightning.screen import Screen, did_you_mean, refuse

if TYPE_CHECKING:
    from torch import nn

MODELS = "mixer_s16,convmixer_256_8,resnet50"
#: What readers know a row by.
IDENTITY = ("model", "weights", "image_size", "images", "num_images", "seed")


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study receptive",
        usage="[models=<names>] [checkpoints=<files or run directories>] [key=value ...]",
        description="Effective receptive fields, at initialisation and of checkpoints.",
    )
    add = parser.add_argument
    add("--models", metavar="NAMES", help=f"of conf/model, newly initialised; without checkpoints {MODELS}")
    add("--checkpoints", default="", metavar="FILES", help="files of weights, run directories or timm:<name>")
    add("--images", metavar="FOLDER", help="of images, from which some are taken; default: normal noise")
    add("--num_images", type=int, default=20, metavar="N", help="default: %(default)s")
    add("--image_size", type=int, metavar="N", help="side in pixels; default: the model's")
    add("--seed", type=int, default=0, metavar="N", help="of weights, noise and signs; default: %(default)s")
    add("--name", default="receptive", metavar="NAME", help="of the files; default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.checkpoints = listed(chosen.checkpoints)
    chosen.models = listed(chosen.models or ("" if chosen.checkpoints else MODELS))
    for name in chosen.models:
        if name not in list_models():
            hint = did_you_mean(name, list_models()) or ": `mixer models` lists them"
            parser.error(f"there is no model '{name}'{hint}")
    if Path(chosen.name).name != chosen.name:
        parser.error(f"name={chosen.name} names a folder: that is what out= is for")
    parser.check_at_least(1, chosen, "num_images", "image_size")
    parser.check_at_least(0, chosen, "seed")
    return chosen


class Subject(NamedTuple):
    """A network whose field is asked for.

    `make` builds it, `preprocessing` is what its images go through, `about` tells of the run behind its weights.
    """

    model: str
    weights: str
    digest: str
    image_size: int
    preprocessing: dict[str, Any]
    make: Callable[[], nn.Module]
    about: str = ""


def main(argv: Sequence[str]) -> None:
    """Compute, print, write."""
    chosen, screen = settings(argv), Screen()
    try:
        for checkpoint in chosen.checkpoints:
            check_there(checkpoint)
        files = _files(chosen)
        contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        subjects = [*_initial(chosen), *_trained(chosen)]
    except (ValueError, OSError) as error:
        refuse([str(error)])
    path = output_folder("out", chosen.out) / f"{chosen.name}.csv"
    rows, maps = _read(path)
    shown: list[dict[str, Any]] = []
    for subject in subjects:
        row = _about(subject, chosen, contents)
        there = next((each for each in rows if each["key"] == row["key"] and row["key"] in maps), None)
        if there is not None and there.get("about", "") != subject.about:  # a row of an earlier version
            there["about"] = subject.about
            _write(path, rows, maps)
        if there is None:
            try:
                found, field = _measure(subject, chosen, files)
            except (ValueError, OSError) as error:
                screen.say(f"{subject.model}, {subject.weights}, is left out: {error}")
                continue
            row |= found
            kept = {each["key"] for each in shown}
            rows = [each for each in rows if each["key"] in kept or not _is_of(each, row)] + [row]
            maps = {key: value for key, value in maps.items() if any(each["key"] == key for each in rows)}
            maps[row["key"]] = field
            _write(path, rows, maps)
            there = next(each for each in _read(path)[0] if each["key"] == row["key"])
        screen.say(
            f"{subject.model}, {subject.weights}: 95 % of the field in {float(there['side_95']):.0f} px"
        )
        shown.append(there)
    if not shown:
        refuse(["there is nothing to show: see above"])
    picture = path.with_suffix(".png")
    text = report.page(
        shown,
        picture=picture.name,
        machine=results.cpu_name(),
        versions=results.versions(),
        command=["mixer", "study", "receptive", *argv],
        commit=results.git_sha(),
    )
    markdown.write_page(path.with_suffix(".md"), text)
    report.draw(picture, shown, maps)
    screen.table("", report.COLUMNS[:10], (report.cells(row)[:10] for row in shown))
    screen.say(f"written to {path}, .npz, .md and .png")


def _files(chosen: argparse.Namespace) -> list[Path]:
    """Images, evenly taken from all that are there, so that no class has them all; empty for noise."""
    if chosen.images is None:
        return []
    from mixer_lightning.engine.prediction import find_images

    files = find_images([chosen.images]).files
    if len(files) < chosen.num_images:
        raise ValueError(f"{chosen.images} holds {len(files)} images: say num_images={len(files)}")
    return [files[i * len(files) // chosen.num_images] for i in range(chosen.num_images)]


def _initial(chosen: argparse.Namespace) -> Iterator[Subject]:
    """The models that are named, with new weights."""
    from mixer_lightning.models import catalogue
    from mixer_lightning.models.presets import build_model, default_image_size, model_node

    for name in chosen.models:
        size = chosen.image_size or default_image_size(name)

        def make(name: str = name, size: int = size) -> nn.Module:
            return build_model(name, image_size=size)

        yield Subject(name, INITIAL, catalogue.digest(model_node(name)), size, {}, make)


def _trained(chosen: argparse.Namespace) -> Iterator[Subject]:
    """Every checkpoint, after its architecture at initialisation."""
    if not chosen.checkpoints:
        return
    from mixer_lightning.checkpoints.read import read
    from mixer_lightning.checkpoints.restore import restore
    from mixer_lightning.models.presets import model_node
    from mixer_lightning.targets import build

    for text, name in zip(chosen.checkpoints, labels_of(chosen.checkpoints), strict=True):
        checkpoint = read(text)
        restored = restore(checkpoint, image_size=chosen.image_size)
        size, recipe = restored.image_size, checkpoint.recipe
        node = recipe["model"] if recipe else None
        if node is None and restored.name is not None:
            node = model_node(restored.name) | restored.parameters
        if node is not None:

            def make(node: dict[str, Any] = node, size: int = size) -> nn.Module:
                made: nn.Module = build(
                    node, num_classes=10, image_size=size, stochastic_depth=0.0, head_bias=0.0
                )
                return made

            yield Subject(name, INITIAL, repr(sorted(node.items())), size, restored.preprocessing, make)
        digest = hashlib.sha256()
        for key, tensor in restored.model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        trained = restored.model
        yield Subject(
            name,
            "trained",
            digest.hexdigest(),
            size,
            restored.preprocessing,
            lambda trained=trained: trained,  # type: ignore[misc]
            describe_checkpoint(Path(text))[0],
        )


def _is_of(there: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row of the file is the same, or of new weights before the model or the images were others."""
    if there["key"] == row["key"]:
        return True
    return row["weights"] == INITIAL and all(str(there.get(key)) == str(row[key]) for key in IDENTITY)


def _about(subject: Subject, chosen: argparse.Namespace, contents: Sequence[str]) -> dict[str, Any]:
    """What identifies a row; `key` is a digest of it all and of the contents of the images, and names the map."""
    row = {
        "model": subject.model,
        "weights": subject.weights,
        "image_size": subject.image_size,
        "images": Path(chosen.images).name if chosen.images else "normal noise",
        "num_images": chosen.num_images,
        "seed": chosen.seed,
    }
    all_of_it = [
        *row.values(),
        subject.digest,
        contents,
        sorted(subject.preprocessing.items()),
    ]
    return {"key": hashlib.sha256(repr(all_of_it).encode()).hexdigest()[:12]} | row


def _measure(
    subject: Subject, chosen: argparse.Namespace, files: Sequence[Path]
) -> tuple[dict[str, Any], report.Map]:
    """The numbers of a row and the map, in half precision with 1 for the largest value."""
    import torch
    from PIL import Image

    from mixer_lightning.data.eval_transform import EvalTransform
    from mixer_lightning.data.transforms import Augment
    from mixer_lightning.studies import receptive_field as fields

    generator = torch.Generator().manual_seed(chosen.seed)
    size = subject.image_size
    if files:
        transform = EvalTransform(Augment(**subject.preprocessing), size)
        seen = []
        for file in files:
            try:
                with Image.open(file) as image:
                    seen.append(transform(image))
            except (ValueError, OSError) as error:  # of all models alike
                refuse([f"images: {file} cannot be read: {error}"])
        images = torch.stack(seen)
    else:
        images = torch.randn(chosen.num_images, 3, size, size, generator=generator)
    torch.manual_seed(chosen.seed)
    model = subject.make().eval().requires_grad_(requires_grad=False)
    if subject.weights == INITIAL:
        fields.batch_statistics(model, images)
    with torch.no_grad():
        grid = fields.on_grid(model, model.forward_features(images[:1])).shape[2]  # type: ignore[operator]
    field = fields.gradient_map(model, images, generator=generator)
    if not (field.isfinite().all() and field.max() > 0):
        raise ValueError("its gradient is zero or not finite")
    array: report.Map = (field / field.max()).numpy()
    theoretical = _theoretical(model, array, position=grid // 2)
    if isinstance(theoretical["theoretical_side"], int):
        centre = (theoretical["theoretical_first"] + theoretical["theoretical_end"]) / 2
    else:
        centre = report.centre_of(grid // 2, grid=grid, size=size)
    row: dict[str, Any] = {"grid": grid, "centre": centre, "about": subject.about}
    row |= {
        f"side_{share}": report.side_of_mass(array, share / 100, centre=centre) for share in report.SHARES
    }
    return row | {"luo_side": report.luo_side(array)} | theoretical, array.astype(np.float16)


def _theoretical(model: nn.Module, field: report.Map, *, position: int) -> dict[str, Any]:
    """Side and place of the theoretical field, how much of the image it covers, and of the mass it holds."""
    from mixer_lightning.studies import receptive_field as fields

    size = len(field)
    layers = fields.layers_of(model)
    if layers is not None:
        first, end = fields.field_of(layers, position)
        side: int | str = end - first
    elif fields.sees_everything(model):
        first, end, side = 0, size, "image"
    else:
        keys = ("theoretical_side", "theoretical_first", "theoretical_end", "image_inside", "mass_inside")
        return dict.fromkeys(keys, "")
    inside = slice(max(first, 0), min(end, size))
    return {
        "theoretical_side": side,
        "theoretical_first": first,
        "theoretical_end": end,
        "image_inside": ((inside.stop - inside.start) / size) ** 2,
        "mass_inside": float(field[inside, inside].sum() / field.sum()),
    }


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, report.Map]]:
    """Rows and maps that are there; ends the program where the file is something else."""
    if not path.exists():
        return [], {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    if any(None in row or not {"key", "side_95", "mass_inside"} <= row.keys() for row in rows):
        refuse([f"{path} holds no rows of this study: move it away, or say name=<another>"])
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            return rows, {key: stored[key] for key in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile):  # then they are computed again
        return rows, {}


def _write(path: Path, rows: Sequence[dict[str, Any]], maps: dict[str, report.Map]) -> None:
    """Maps first: a row without its map is computed again, a map without its row only takes space."""

    def write(file: BinaryIO) -> None:
        np.savez_compressed(file, **maps)  # type: ignore[arg-type]

    atomic_write(path.with_suffix(".npz"), write)
    results.write_rows(path, rows, digits=6)
