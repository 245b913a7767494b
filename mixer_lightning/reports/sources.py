"""What lies in folders of results: runs, evaluations, transfer rows, tables of studies, pictures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from mixer_lightning import results
from mixer_lightning.reports import study_files, sweep
from mixer_lightning.reports.confusion import CONFUSION_PNG, MISCLASSIFIED_PNG
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import Provenance, Source

TRANSFER = "transfer.json"
#: Pictures of a run's directory that a report shows, and what it calls them.
PICTURES_OF_RUNS = {
    CONFUSION_PNG: "confusion, which class is mistaken for which",
    MISCLASSIFIED_PNG: "misclassified, the surest mistakes",
}
#: What a name of public weights says of the data they were trained on, the first that fits. timm's Mixers of
#: goog_in21k_ft_in1k are those of ImageNet-1k alone (pytorch-image-models, pull request 651); 22k is 21k elsewhere.
_TRAINED_ON = (
    (r"laion|yfcc|ig1b|lvd\d|bamboo|in12k", ""),  # of which conf/data has nothing
    (r"ns_jft", "jft300m_unlabelled"),
    (r"jft", "jft300m"),
    (r"mixer_\w+\.goog_in21k_ft_in1k", "imagenet1k"),
    (r"in2[12]k|imagenet21k", "imagenet21k"),
    (r"_dist(illed)?_in1k", "imagenet1k with a teacher"),
    (r"in1k(_\d+)?$|imagenet1k", "imagenet1k"),
    (
        r"convmixer_\d+_\d+_ks\d+_p\d+(_relu)?(\.pth)?$|alexnet-owt-\w+$",
        "imagenet1k",
    ),  # the authors', torchvision's
)
#: The split with the images on which papers report, where it is not called test.
_OFFICIAL_SPLIT = {"imagenet1k": "val"}
#: The file of conf/augment that the recipes of rows with a star in ConvMixer's table have.
_STARRED = "convmixer_a1"


class _Procedure(TypedDict):
    """What of a training from scratch decides which of several published figures is its own."""

    pretrained_epochs: str | None
    star: str


@dataclass(frozen=True)
class Measured:
    """Metrics of one run, evaluation or suite, in the words of its file.

    `trained_on` and `tested_on` are names of conf/data, "" where the file does not tell. `values` are the metrics by
    name, each a fraction or a percentage as `percent` says, with its place in the file; `official` is the name of
    the one that papers report, "" where it has none. `pretrained_epochs` are those of the training from scratch, "" if
    its length is not in epochs, None for public weights; `star` is "yes" where that was by the procedure of rows that
    ConvMixer's table marks so.
    """

    label: str
    kind: str
    model: str
    trained_on: str
    tested_on: str
    image_size: Source | None
    values: dict[str, Source]
    percent: bool
    file: str
    made: Provenance
    official: str = ""
    epochs: Source | None = None
    pretrained_epochs: str | None = None
    star: str = ""
    others: dict[str, Source] = field(default_factory=dict)

    @property
    def top1(self) -> Source | None:
        """Top-1 on the images on which papers report it."""
        return self.values.get(self.official)


@dataclass(frozen=True)
class Picture:
    """A picture and its caption."""

    path: Path
    caption: str


@dataclass
class Found:
    """All that was found, in the order of names."""

    measured: list[Measured] = field(default_factory=list)
    studies: list[StudyTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    confusions: list[Path] = field(default_factory=list)


def collect(paths: Sequence[Path], *, without: Path) -> Found:
    """Read files and folders, those behind links as well. What lies under the folder `without` is left out.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    found = Found()
    for path in dict.fromkeys(each for root in paths for each in _files(root, without.resolve())):
        if path.name in (results.RESULT, results.EVALUATION):
            found.measured.append(_run(path))
        elif path.name == TRANSFER:
            found.measured += _transfer(path)
        elif path.name == results.METRICS:
            found.curves[path.parent.as_posix()] = results.read_metrics(path.parent)
        elif path.name == results.CONFUSION:
            found.confusions.append(path)
        elif path.name == sweep.TABLE:
            found.studies += [_swept(each) for each in study_files.read(path)]
        elif path.suffix in (".csv", ".md"):
            studies = study_files.read(path)
            found.studies += studies
            found.curves |= {path.as_posix(): rows for each in studies if (rows := _metrics(each))}
        elif path.suffix == ".png":
            found.pictures.append(Picture(path, _caption(path)))
    found.studies = study_files.told_apart(found.studies)
    return found


def _files(root: Path, without: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    seen = {without}
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:
            below.clear()
            continue
        seen.add(here.resolve())
        visible = (each for each in below if not each.startswith("."))
        below[:] = sorted(visible, key=lambda each: ((here / each).is_symlink(), each))
        own = {results.RECIPE, results.RESULT, results.METRICS, results.EVALUATION} & set(names)
        of_run = {results.RESULT, results.METRICS, results.EVALUATION, results.CONFUSION, *PICTURES_OF_RUNS}
        yield from (here / name for name in sorted(names) if not own or name in of_run)


# ----------------------------------------------------------------------------------------------- records


def _run(path: Path) -> Measured:
    is_evaluation = path.name == results.EVALUATION
    read = results.read_evaluation if is_evaluation else results.read_result
    record = read(path.parent, whole=True)
    assert record is not None
    file, recipe = path.as_posix(), record["recipe"]
    choices = recipe.get("choices") or {}
    checkpoint, data = recipe.get("checkpoint"), str(choices.get("data", ""))
    first = recipe if checkpoint is None else _first(str(checkpoint))
    others = {key: json_source(file, record, (key,)) for key in ("num_parameters", "images_per_second")}
    size, epochs = (json_source(file, record, key) for key in (("recipe", "image_size"), _EPOCHS))
    return Measured(
        label=f"{path.parent.parent.name}/{path.parent.name}",
        kind="evaluation" if is_evaluation else "fine-tuning" if checkpoint is not None else "training",
        model=str(choices.get("model", "")),
        trained_on=_trained_on(first),
        tested_on=data,
        image_size=size,
        epochs=None if is_evaluation else epochs,
        **_procedure(first),
        values=_sources(file, record, "metrics"),
        percent=False,
        file=file,
        made=_made(record, f"recipe: {(path.parent / results.RECIPE).as_posix()}"),  # of earlier versions
        official=_official(recipe, record["metrics"]),
        others={key: source for key, source in others.items() if source is not None},
    )


def _official(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Which of the metrics is top-1 on a data set's own test images, not on a part of the training images."""
    own = _OFFICIAL_SPLIT.get((recipe.get("choices") or {}).get("data", ""), "test")
    splits = {"test": recipe.get("test_split", own), "val": recipe.get("val_split")}
    names = [f"{name}/top1" for name, split in splits.items() if (split or name) == own]
    return next((name for name in names if name in metrics), "")


def _scratch(recipe: Mapping[str, Any]) -> str:
    """What a training from scratch saw: its data set, and of a part of it also which."""
    data, split = (recipe.get("choices") or {}).get("data", ""), recipe.get("train_split")
    return str(data) if split in (None, "train") else f"{data} {split}"


_EPOCHS = ("recipe", "duration", "epochs")


def _transfer(path: Path) -> list[Measured]:
    """The row of a suite; model, image size and machine are those of its runs."""
    record = _read_json(path)
    row = record.get("row")
    runs = [_run(each) for each in sorted(path.parent.rglob(results.RESULT))]
    if not isinstance(row, dict) or not row or not runs:
        return []
    words = [str(each) for each in record.get("checkpoint") or []]
    first = _first(next((each.partition("=")[2] for each in words if each.startswith("checkpoint=")), ""))
    file = path.as_posix()
    sources = {name: json_source(file, record, ("row", name, 0)) for name in row}
    return [
        Measured(
            label=path.parent.name,
            kind="transfer",
            model=runs[0].model,
            trained_on=_trained_on(first),
            **_procedure(first),
            tested_on="imagenet1k",
            image_size=runs[0].image_size,
            values={name: source for name, source in sources.items() if source is not None},
            percent=True,
            official="ImNet" if sources.get("ImNet") else "",
            file=file,
            made=Provenance(
                command=_command(runs[0].made.command, words, record.get("suite")),
                machine=runs[0].made.machine,
                versions=runs[0].made.versions,
                commit=runs[0].made.commit,
            ),
        )
    ]


def trained_on_of(checkpoint: str) -> str:
    """What weights were trained on, in the words of conf/data: by the result of their run, or by their public name."""
    return _trained_on(_first(checkpoint))


def _first(checkpoint: str) -> Mapping[str, Any] | str:
    """The recipe of the run from scratch that weights go back to, or the name of the public weights."""
    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    record = results.read_result(folder) if (folder / results.RESULT).is_file() else None
    if record is None or not isinstance(recipe := record.get("recipe"), dict):
        return checkpoint
    return recipe if recipe.get("checkpoint") is None else _first(str(recipe["checkpoint"]))


def _trained_on(first: Mapping[str, Any] | str) -> str:
    if not isinstance(first, str):
        return _scratch(first)
    name = re.sub(r"\.(safetensors|bin|pth|pt|tar|npz|ckpt)$", "", first.lower())
    return next((data for pattern, data in _TRAINED_ON if re.search(pattern, name)), "")


def _procedure(first: Mapping[str, Any] | str) -> _Procedure:
    if isinstance(first, str):
        return {"pretrained_epochs": None, "star": ""}
    epochs = (first.get("duration") or {}).get("epochs")
    is_starred = (first.get("choices") or {}).get("augment") == _STARRED
    return {
        "pretrained_epochs": "" if epochs is None else f"{epochs:g}",
        "star": "yes" if is_starred else "",
    }


def json_source(file: str, record: Any, keys: Sequence[str | int]) -> Source | None:
    """The place of a number in a JSON record; None where there is none."""
    node = record
    for key in keys:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            return None
    if isinstance(node, bool) or not isinstance(node, int | float):
        return None
    pointer = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
    return Source(file, 0, pointer, json.dumps(node))


def _sources(file: str, record: Mapping[str, Any], key: str) -> dict[str, Source]:
    places = {name: json_source(file, record, (key, name)) for name in record[key]}
    return {name: source for name, source in places.items() if source is not None}


def _command(recorded: str, words: Sequence[str], suite: Any) -> str:
    """That of the suite's first run, where it records one."""
    return (
        results.typed(["mixer", "transfer", *words, f"suite={suite or ''}"])
        if recorded.startswith("recipe: ")
        else recorded
    )


def _made(record: Mapping[str, Any], otherwise: str) -> Provenance:
    """How a record was made; `otherwise` stands for a command that it does not have."""
    versions = record.get("versions")
    named = versions.items() if isinstance(versions, dict) else ()
    return Provenance(
        command=record.get("command") or otherwise,
        machine=str(record.get("device") or ""),
        versions=", ".join(f"{name} {version}" for name, version in named),
        commit=str(record.get("git_sha") or ""),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and make it again") from error
    return record if isinstance(record, dict) else {}


def _metrics(study: StudyTable) -> list[dict[str, float]]:
    """The rows of a table that holds the metrics of a run, as metrics.csv does; else none."""
    names = [name for name in study.columns if re.fullmatch(r"\w+/\w+", name)]
    if not names or not {"step", "epoch"} <= set(study.columns):
        return []
    try:
        return [{n: float(row[n]) for n in ("step", "epoch", *names) if row[n]} for row in study.rows]
    except ValueError:
        return []


def _swept(study: StudyTable) -> StudyTable:
    """The table of a sweep, whose runs say how it was made."""
    folder = study.path.parent
    records = (
        results.read_result(path.parent, whole=True) for path in sorted(folder.glob(f"*/{results.RESULT}"))
    )
    made = next((_made(record, "") for record in records if record is not None), study.made)
    return replace(study, title=f"Sweep {folder.name}", made=made)


def _caption(path: Path) -> str:
    """What a Markdown page of its folder calls a picture, else the title of the page of its name, else its name."""
    for page in sorted(path.parent.glob("*.md")):
        text = page.read_text(encoding="utf-8", errors="replace")
        found = re.search(rf"!\[([^\]]+)\]\((?:\./)?{re.escape(path.name)}\)", text)
        if found:
            return " ".join(found[1].split())
    if path.name in PICTURES_OF_RUNS:
        return f"{PICTURES_OF_RUNS[path.name]}: {path.parent.parent.name}/{path.parent.name}"
    return study_files.title(study_files.beside(path)) or path.stem.replace("_", " ")
