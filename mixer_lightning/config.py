"""From the command line and conf/ to a checked Recipe. The only importer of hydra and omegaconf.

Plain Hydra lets most typing errors inside a YAML file through in silence. Here every mapping of a recipe answers
to a signature: the root to the dataclass `Recipe`, every other mapping to the callable that its `_target_` names.
Signatures are read from source text, so a wrong recipe is refused before torch is imported.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_HERE = Path(__file__).parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"

#: What the code supplies when it builds a node, and where a user sets it instead (None: nowhere).
FACTS: dict[str, dict[str, str | None]] = {
    "model": {
        "num_classes": None,
        "image_size": "image_size",
        "stochastic_depth": "stochastic_depth",
        "head_bias": "head_bias",
    },
    "optimizer": {"model": None},
    "schedule": {"step": None, "total_steps": "duration", "steps_per_epoch": None},
    "loss": {"logits": None, "targets": None},
    "logger": {"run_dir": "hydra.run.dir", "run_name": "name"},
}
BAGS = ("evals", "logger")  # named collections of nodes; everything else is one node
PARTIALS = ("optimizer", "schedule", "loss")  # called at every step: their nodes say `_partial_: true`


@dataclass(frozen=True)
class Duration:
    """A length of training: optimiser steps, or epochs (passes over the training set); exactly one."""

    epochs: float | None = None
    steps: int | None = None

    def to_steps(self, steps_per_epoch: float) -> int:
        """Length in optimiser steps, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.epochs:g} epochs"


@dataclass(frozen=True)
class Recipe:
    """A composed and checked config: everything that a run needs to know."""

    image_size: int
    batch_size: int  # global: over all devices and accumulated micro-batches
    duration: Duration
    model: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    loss: dict[str, Any]
    trainer: dict[str, Any]
    name: str = "default"
    seed: int = 0
    device_batch: int | None = None  # per device and micro-batch; None: batch_size / number of devices
    eval_every: Duration = Duration(epochs=1)
    checkpoint_every: Duration = Duration(epochs=1)
    log_every_steps: int = 20
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    stochastic_depth: float = 0.0
    head_bias: float = 0.0
    repeats: int = 1  # repeated augmentation: each sample of a batch this many times
    train_split: str = "train"  # or a slice by hash, "train[:99%]", or "train+val": see data/splits.py
    val_split: str | None = None
    test_split: str | None = None
    shuffle_window: int = 32  # shards among which samples are shuffled
    max_bad_fraction: float = 0.001  # of the training images: so many may be unreadable
    checkpoint: str | None = None  # weights to start from
    evals: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)  # the file taken from each group of conf/

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, in the order of the fields: for recipe.yaml, checkpoints and comparison."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_yaml(self) -> str:
        """recipe.yaml: the whole resolved recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


#: Keys that may change between two sittings of the same run: the machine and the dashboards, not the recipe.
FREE_KEYS = (
    "trainer",
    "logger",
    "choices",
    "device_batch",
    "data.root",
    "data.download",
    "data.verify",
    "data.cache",
    "data.cache_bytes",
)


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return {key: v for key, v in (("epochs", value.epochs), ("steps", value.steps)) if v is not None}
    return value


# ------------------------------------------------------------------------------------------------ build


def build(node: Mapping[str, Any], **facts: Any) -> Any:
    """Call the `_target_` of a node with its parameters and the facts; `_partial_: true` gives the partial."""
    parameters = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    target = locate(node["_target_"])
    if node.get("_partial_", False):
        return functools.partial(target, **parameters, **facts)
    return target(**parameters, **facts)


def locate(target: str) -> Any:
    """The object that a dotted path names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------------- signatures


class Parameter(NamedTuple):
    """One parameter of a callable: its annotation as text ("" without one), and whether it must be given."""

    annotation: str
    required: bool


def signature(target: str) -> dict[str, Parameter]:
    """Parameters of the function, class or dataclass at a dotted path, read without importing it if possible.

    Raises:
        ValueError: there is no such module or no such name in it.
    """
    module, _, name = target.rpartition(".")
    path = _source_file(module)
    if path is not None:
        body = ast.parse(path.read_text()).body
        defined = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if name in defined:
            node = defined[name]
            return _from_function(node) if isinstance(node, ast.FunctionDef) else _from_class(node)
        if name not in {found for node in body for found in _names(node)}:
            raise ValueError(f"there is no '{target}'{did_you_mean(name, sorted(defined), f'{module}.')}")
    try:
        found = inspect.signature(locate(target))
    except (ImportError, AttributeError, ValueError, TypeError):
        raise ValueError(f"there is no '{target}'") from None
    return {
        key: Parameter(
            "" if p.annotation is p.empty else _annotation_text(p.annotation), p.default is p.empty
        )
        for key, p in found.parameters.items()
    }


def _names(node: ast.stmt) -> set[str]:
    """Names that a statement of a module may give to what was made elsewhere."""
    imported = {a.asname or a.name for n in ast.walk(node) if isinstance(n, ast.ImportFrom) for a in n.names}
    return imported | {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _source_file(module: str) -> Path | None:
    """Source of a module, found without running any of its parents' code where they are plain packages."""
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    for part in rest:
        folder = path.parent
        path = folder / part / "__init__.py" if (folder / part).is_dir() else folder / f"{part}.py"
    return path if path.suffix == ".py" and path.exists() else None


def _from_function(node: ast.FunctionDef) -> dict[str, Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    found = {
        a.arg: Parameter(_text(a.annotation), i < without_default)
        for i, a in enumerate(positional)
        if a.arg != "self"
    }
    for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[a.arg] = Parameter(_text(a.annotation), default is None)
    return found


def _from_class(node: ast.ClassDef) -> dict[str, Parameter]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _from_function(item)
    return {  # a dataclass
        item.target.id: Parameter(_text(item.annotation), item.value is None)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not _text(item.annotation).startswith("ClassVar")
    }


def _annotation_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)


def fits(annotation: str, value: Any) -> bool:
    """Whether a YAML value fits an annotation; annotations that a YAML file cannot write fit everything."""
    return not annotation or _fits(ast.parse(annotation, mode="eval").body, value)


def _fits(node: ast.expr, value: Any) -> bool:
    if isinstance(node, ast.BinOp):  # X | Y
        return _fits(node.left, value) or _fits(node.right, value)
    if isinstance(node, ast.Constant):
        return type(value) is type(node.value) and value == node.value
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).rpartition(".")[2]
        inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Literal":
            return any(_fits(choice, value) for choice in inner)
        if outer in ("list", "List", "Sequence"):
            return isinstance(value, list) and all(_fits(inner[0], item) for item in value)
        if outer in ("tuple", "Tuple"):
            if not isinstance(value, list):
                return False
            if isinstance(inner[-1], ast.Constant) and inner[-1].value is ...:
                return all(_fits(inner[0], item) for item in value)
            return len(value) == len(inner) and all(map(_fits, inner, value))
        if outer in ("dict", "Dict", "Mapping"):
            return isinstance(value, dict)
        return True
    name = ast.unparse(node).rpartition(".")[2]
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "str":
        return isinstance(value, str)
    if name == "Duration":
        return isinstance(value, dict)
    return True


# ------------------------------------------------------------------------------------------------ check


class Problem(NamedTuple):
    """What is wrong at a dotted key of the recipe."""

    key: str
    message: str


def check(recipe: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with a composed recipe: unknown, missing and ill-typed keys, all at once."""
    problems = list(_check_root(recipe))
    nodes = {f.name for f in fields(Recipe) if f.type == "dict[str, Any]"}
    for group in nodes & recipe.keys():
        node = recipe[group]
        if not isinstance(node, Mapping):
            problems.append(Problem(group, f"'{group}' must be a mapping, found {node!r}"))
        elif group in BAGS:
            for name, member in node.items():
                problems += _check_node(f"{group}.{name}", member, FACTS.get(group, {}))
        else:
            problems += _check_node(group, node, FACTS.get(group, {}))
    return problems


def _check_root(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    known = {
        f.name: Parameter(str(f.type), f.default is MISSING and f.default_factory is MISSING)
        for f in fields(Recipe)
    }
    lost = recipe.get("experiment")
    if isinstance(lost, Mapping) and lost:
        yield Problem(
            f"experiment.{next(iter(lost))}", "the experiment file lacks its first line, # @package _global_"
        )
    yield from _check_keys("", {k: v for k, v in recipe.items() if k != "experiment"}, known)
    for key, parameter in known.items():
        value = recipe.get(key)
        if parameter.annotation == "Duration" and isinstance(value, Mapping):
            yield from _check_duration(key, value)
    for key in ("image_size", "batch_size", "device_batch", "log_every_steps", "repeats", "shuffle_window"):
        value = recipe.get(key)
        if isinstance(value, int) and value < 1:
            yield Problem(key, f"'{key}' must be at least 1, found {value}")
    for key in ("stochastic_depth", "ema_decay", "max_bad_fraction"):
        value = recipe.get(key)
        if isinstance(value, int | float) and not 0 <= value < 1:
            yield Problem(key, f"'{key}' must be at least 0 and below 1, found {value}")
    clip = recipe.get("clip_grad_norm")
    if isinstance(clip, int | float) and clip <= 0:
        yield Problem("clip_grad_norm", f"'clip_grad_norm' must be above 0 (null: no clipping), found {clip}")


def _check_duration(key: str, value: Mapping[str, Any]) -> Iterator[Problem]:
    known = {f.name: Parameter(str(f.type), False) for f in fields(Duration)}
    wrong = list(_check_keys(key, value, known))
    yield from wrong
    given = {unit: amount for unit, amount in value.items() if amount is not None}
    if not wrong and len(given) != 1:
        hint = f": write null for the other, {key}: {{epochs: null, steps: 1000}}" if given else ""
        yield Problem(key, f"'{key}' needs exactly one of epochs and steps, found {given or 'neither'}{hint}")
    elif not wrong and next(iter(given.values())) <= 0:
        yield Problem(key, f"'{key}' must be above 0, found {given}")


def _check_node(key: str, node: Any, facts: Mapping[str, str | None]) -> Iterator[Problem]:
    if not isinstance(node, Mapping):
        yield Problem(key, f"'{key}' must be a mapping, found {node!r}")
        return
    if "_target_" not in node:
        close = difflib.get_close_matches("_target_", list(map(str, node)), n=1)
        hint = f": is '{close[0]}' a misspelling?" if close else ""
        yield Problem(key, f"'{key}' has no '_target_'{hint}")
        return
    try:
        known = signature(str(node["_target_"]))
    except ValueError as error:
        yield Problem(f"{key}._target_", f"'{key}._target_': {error}")
        return
    if node.get("_partial_", False) is not (key in PARTIALS):
        must = "must be true" if key in PARTIALS else "has no place"
        yield Problem(f"{key}._partial_", f"'{key}._partial_' {must} here")
    parameters = {k: v for k, v in node.items() if k not in ("_target_", "_partial_")}
    for fact in [k for k in parameters if k in facts]:
        where = facts[fact]
        instead = f"set '{where}' at the root instead" if where else "it is not yours to set"
        yield Problem(f"{key}.{fact}", f"'{key}.{fact}' comes from the run: {instead}")
        del parameters[fact]
    yield from _check_keys(key, parameters, {k: p for k, p in known.items() if k not in facts})


def _check_keys(prefix: str, node: Mapping[str, Any], known: Mapping[str, Parameter]) -> Iterator[Problem]:
    dot = f"{prefix}." if prefix else ""
    for key, value in node.items():
        path = f"{dot}{key}"
        if key not in known:
            yield Problem(path, f"unknown key '{path}'{did_you_mean(str(key), known, dot)}")
        elif not fits(known[key].annotation, value):
            yield Problem(path, f"'{path}' takes {known[key].annotation}, found {value!r}")
    for key, parameter in known.items():
        if parameter.required and key not in node:
            yield Problem(f"{dot}{key}", f"'{dot}{key}' is missing ({parameter.annotation})")


def did_you_mean(word: str, choices: Mapping[str, Any] | Sequence[str], prefix: str = "") -> str:
    """': did you mean ...?', to be put behind a message; empty where nothing is near."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.55)
    return f": did you mean '{prefix}{close[0]}'?" if close else ""


# ------------------------------------------------------------------------------------------ composition


class Job(NamedTuple):
    """One composed job of a command line."""

    recipe: dict[str, Any]
    choices: dict[str, str]
    run_dir: Path


class Composition(NamedTuple):
    """What a command line means: its jobs, or messages about all that is wrong with it (then no jobs).

    `overrides` are those of the command line in the form that Hydra takes.
    """

    jobs: list[Job]
    messages: list[str]
    overrides: list[str]


def groups(folders: Sequence[Path] = (CONF,)) -> dict[str, list[str]]:
    """Names of the choices in every group of conf/ (and of further config folders)."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name != "hydra":
                found.setdefault(path.parent.name, []).append(path.stem)
    return found


def load_recipe(job: Job) -> Recipe:
    """The typed recipe of a job that `check` found nothing wrong with."""
    values = dict(job.recipe)
    for f in fields(Recipe):
        if f.type == "Duration" and f.name in values:
            given = {unit: amount for unit, amount in values[f.name].items() if amount is not None}
            values[f.name] = Duration(**given)
    return Recipe(**values, choices=job.choices)


def compose(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    multirun: bool = False,
    folders: Sequence[Path] = (CONF,),
) -> Composition:
    """Compose and check every job of a command line.

    `overrides` are Hydra's (`model=mixer_b16`, `optimizer.lr=0.003`); with `multirun` a value may be a list of
    values. Unknown keys, unknown choices and wrong values are all reported together.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = groups(folders)
    overrides = _complete_durations([_as_typed(line, multirun) for line in overrides])
    wrong = {line: message for line in overrides if (message := _wrong_on_sight(line, known))}
    overrides = [line for line in overrides if line not in wrong]
    if multirun:
        overrides += _name_of_each_job(overrides, known)
    search = [f"hydra.searchpath=[{','.join(f'file://{f}' for f in folders[1:])}]"] if folders[1:] else []
    jobs: list[Job] = []
    found: dict[str, str] = {}  # message -> the same with the file that it is about
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            expanded = _expand(overrides, multirun, GlobalHydra.instance().config_loader())
            for lines in expanded:
                job = _compose_job(
                    config_name, [*(_forced(line, known) for line in lines), *search], multirun
                )
                jobs.append(job)
                for problem in check(job.recipe):
                    typed = problem.key in {_key(line) for line in overrides}
                    where = "" if typed else _written_in(problem.key, config_name, job.choices, folders)
                    found.setdefault(problem.message, f"{problem.message}{where}")
            choices = [line for line in expanded[0] if _key(line) in known]
            standing = _compose_job(config_name, [*choices, *search], multirun).recipe
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            message = _in_our_words(error, overrides, known, folders)
            return Composition([], [*wrong.values(), *found.values(), message], [])
    if wrong or found:
        return Composition([], [*wrong.values(), *found.values()], [])
    stands = flat_keys(standing) | known.keys()
    return Composition(jobs, [], [o if _key(o) in stands else _forced(o, known) for o in overrides])


def _compose_job(config_name: str, overrides: Sequence[str], multirun: bool) -> Job:
    from hydra import compose as hydra_compose
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    config = hydra_compose(config_name, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # ${hydra:...} reads it
    run_dir = f"{config.hydra.sweep.dir}/{config.hydra.sweep.subdir}" if multirun else config.hydra.run.dir
    choices = _chosen(config.hydra.runtime.choices)
    ours = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    recipe = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    assert isinstance(recipe, dict)
    return Job({str(key): value for key, value in recipe.items()}, choices, Path(run_dir))


def _chosen(choices: Mapping[str, Any]) -> dict[str, str]:
    """The file taken from each group of ours: {"model": "mixer_b16", ...}."""
    return {k: str(v) for k, v in choices.items() if not k.startswith("hydra") and v is not None}


def flat_keys(node: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a nested mapping, of inner nodes too."""
    keys = set()
    for key, value in node.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys |= flat_keys(value, f"{prefix}{key}.")
    return keys


def compose_one(config_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of one command line, for notebooks, tests and studies.

    Raises:
        ValueError: listing everything that is wrong.
    """
    jobs, messages, _ = compose(config_name, overrides)
    if messages:
        raise ValueError("\n".join(messages))
    return load_recipe(jobs[0])


def _as_typed(override: str, multirun: bool) -> str:
    """`data.root=~/my birds (2)` with the home directory written out, and quoted: Hydra's grammar has its own ideas.

    A value that looks like a path is taken as it is typed, except that a sweep splits it at commas.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    value = re.sub(r"(^|,)~(?=/|$)", lambda match: match[1] + str(Path.home()), value)
    override = f"{key}{equals}{value}"
    if not value or value[0] in "'\"[{":
        return override
    is_path = value.startswith(("/", "./", "../")) and not multirun
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        is_path = True
    return f"{key}={quoted(value)}" if is_path else override


def quoted(text: str) -> str:
    """A text in Hydra's quotes, where only backslashes before a quote, or at the end, stand for anything else."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """The text that Hydra makes of a value."""
    quote = value[:1]
    if quote not in ("'", '"'):
        return value
    return re.sub(rf"(\\+)({quote}|\Z)", lambda found: len(found[1]) // 2 * "\\" + found[2], value[1:-1])


def values_of(override: str) -> list[str]:
    """The values, as texts, that a sweep's override such as `seed=0,1` takes; none where it is no sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:  # it is refused elsewhere
        return []
    if not parsed.is_sweep_override():
        return []
    return [str(getattr(value, "text", value)) for value in parsed.sweep_iterator(Transformer.identity)]


def _complete_durations(overrides: Sequence[str]) -> list[str]:
    """Let `duration.steps=100` on the command line replace the epochs that a file names, and the reverse."""
    keys = {_key(line) for line in overrides}
    extra = []
    for f in fields(Recipe):
        if f.type == "Duration":
            steps, epochs = f"{f.name}.steps", f"{f.name}.epochs"
            if steps in keys and epochs not in keys:
                extra.append(f"++{epochs}=null")
            if epochs in keys and steps not in keys:
                extra.append(f"++{steps}=null")
    return [*overrides, *extra]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _forced(override: str, known: Mapping[str, Any]) -> str:
    """A plain `key=value` as `++key=value`: Hydra takes it, and `check` says what is wrong with it."""
    if override[0] in "+~" or _key(override) in known or _key(override).startswith("hydra"):
        return override
    return f"++{override}"


def _name_of_each_job(overrides: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """The override that adds what a sweep varies to the names of its run directories."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return []  # composing says what is wrong
    keys = [override.key_or_group for override in parsed if override.is_sweep_override()]
    varied = [key for key in keys if key not in ("model", "data", "seed")]
    if not varied or "hydra.sweep.subdir" in {_key(line) for line in overrides}:
        return []
    values = {key: f"hydra:runtime.choices.{key}" if key in known else key for key in varied}
    name = "-".join(f"{key}=${{{value}}}" for key, value in values.items())
    return [f"hydra.sweep.subdir='{_sweep_subdir()}-{name}'"]


def _sweep_subdir() -> str:
    return str(yaml.safe_load((CONF / "hydra" / "default.yaml").read_text())["sweep"]["subdir"])


def _expand(overrides: Sequence[str], multirun: bool, loader: Any) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's own sweeper splits them."""
    if not multirun:
        return [list(overrides)]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _wrong_on_sight(override: str, known: Mapping[str, list[str]]) -> str | None:
    """What is wrong with an override that is no `key=value`, has an unknown root key, or an unknown choice."""
    if override.startswith("~"):
        return None
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}' is not of the form key=value"
    if key in known and not any(c in value for c in "*()"):
        for choice in filter(None, (word.strip() for word in value.strip("[]").split(","))):
            if choice not in known[key] and not (key == "experiment" and choice == "null"):
                hint = did_you_mean(choice, known[key]) or f". There are: {', '.join(known[key])}"
                return f"unknown {key} '{choice}'{hint}"
    root = _key(override).split(".")[0].split("/")[0]
    everything = [*known, *(f.name for f in fields(Recipe)), "hydra"]
    return None if root in everything else f"unknown key '{root}'{did_you_mean(root, everything)}"


def _written_in(key: str, config_name: str, choices: Mapping[str, str], folders: Sequence[Path]) -> str:
    """'  (in conf/experiment/x.yaml)' for a key that a file sets, '' for one of the command line."""
    names = [("_global_", f"{config_name}.yaml")]
    last = ("data", "experiment")  # composed after the other groups, so they have the last word
    for group, choice in sorted(
        choices.items(), key=lambda item: last.index(item[0]) if item[0] in last else -1
    ):
        names += [(group, f"{group}/{name.strip()}.yaml") for name in choice.strip("[]").split(",")]
    found = ""
    for package, name in names:
        for path in (folder / name for folder in folders):
            if path.exists() and _has_key(path, key, package):
                found = f"  (in {os.path.relpath(path)})"
    return found


def _has_key(path: Path, key: str, package: str) -> bool:
    """Whether a YAML file sets a dotted key of the recipe; its `# @package` line counts."""
    text = path.read_text()
    for line in text.splitlines():
        if line.startswith("# @package"):
            package = line.split()[-1]
    prefix = "" if package == "_global_" else f"{package}."
    return key.startswith(prefix) and key.removeprefix(prefix) in flat_keys(yaml.safe_load(text) or {})


def _in_our_words(
    error: Exception, overrides: Sequence[str], known: Mapping[str, Sequence[str]], folders: Sequence[Path]
) -> str:
    """One line for what Hydra or YAML refused."""
    text = str(error)
    if "Ambiguous value" in text or "requires --multirun" in text:
        return f"{text.splitlines()[0].split(' requires')[0]} names several values: add -m (--multirun) for a sweep"
    missing = re.search(r"Could not find '(\w+)/(\w+)'", text)
    if missing and missing[1] in known:
        group, choice = missing.groups()
        chosen = [line.partition("=")[2] for line in overrides if _key(line) == "experiment"]
        files = [folder / "experiment" / f"{name}.yaml" for folder in folders for name in chosen]
        where = [os.path.relpath(path) for path in files if path.exists() and choice in path.read_text()]
        return f"unknown {group} '{choice}'{did_you_mean(choice, known[group])}" + "".join(
            f"  (in {w})" for w in where
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:4]) or type(error).__name__


# -------------------------------------------------------------------------------------------- programs


def program(config_name: str, *, run: str, after_sweep: str, implied: str | None = None) -> None:
    """A command-line program: help, compose, check, then `run(recipe, run_dir) -> exit code` for every job.

    `run` and `after_sweep` are dotted paths, imported once the recipe is known to be good. `after_sweep` gets the
    run directories of a sweep. `implied(overrides, models)` names further overrides that those of the command line
    imply. Exits 2 when the recipe is wrong, else with the highest code of the jobs.
    """
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_intermixed_args()
    if arguments.help:
        print(help_text(config_name))
        raise SystemExit(0)
    folders = [CONF, Path(arguments.config_dir).resolve()] if arguments.config_dir else [CONF]
    sweep = bool(arguments.multirun)
    if arguments.cfg == "hydra" or arguments.info or arguments.hydra_help or arguments.shell_completion:
        overrides = list(arguments.overrides)
        jobs: list[Job] = []
    else:
        try:
            more = locate(implied)(arguments.overrides, groups(folders)["model"]) if implied else []
        except ValueError as error:
            refuse([str(error)])
            raise  # never reached
        given = [*arguments.overrides, *more]
        jobs, messages, overrides = compose(config_name, given, multirun=sweep, folders=folders)
        if messages:
            refuse(messages)
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    sys.argv[1:] = [*flags, *overrides]
    codes = _run_under_hydra(config_name, run)
    code = max(codes, default=0)
    if code == 2 and set(codes) != {2}:
        code = 1  # 2 promises that nothing was started
    if sweep and jobs:
        missing = locate(after_sweep)([job.run_dir for job in jobs])
        code = code or missing
    raise SystemExit(code)


def refuse(messages: Sequence[str]) -> None:
    """Say what is wrong, once however many processes there are, and exit 2."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        for message in messages:
            print(message, file=sys.stderr)
    raise SystemExit(2)


def _run_under_hydra(config_name: str, run: str) -> list[int]:
    """Let Hydra compose for good, choose the run directory and launch; exit codes of the jobs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    codes: list[int] = []

    def task(config: DictConfig) -> None:
        settings = HydraConfig.get()
        recipe = OmegaConf.to_container(config, resolve=True)
        assert isinstance(recipe, dict)
        job = Job(
            {str(key): value for key, value in recipe.items()},
            _chosen(settings.runtime.choices),
            Path(os.path.relpath(settings.runtime.output_dir)),
        )
        code = locate(run)(load_recipe(job), job.run_dir)
        codes.append(code)
        if code > 128:  # asked to stop: the rest of a sweep is not wanted either
            raise SystemExit(code)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, and not Hydra's own printer
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except HydraException as error:
        refuse([str(error)])
    except OSError as error:
        refuse([f"cannot create the run directory: {error}. Choose another with hydra.run.dir=<folder>."])
    return codes


#: How each program is started, and with what, for example.
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    "train": (
        "train.py",
        [
            "model=mixer_s16 data=folder data.root=~/birds",
            "experiment=convmixer_256_8_cifar10_25ep trainer=gpu",
            "-m optimizer.lr=0.001,0.003 seed=0,1,2     every combination, then one table",
        ],
    ),
    "finetune": (
        "finetune.py",
        [
            "checkpoint=Mixer-B_16.npz data=folder data.root=~/birds",
            "checkpoint=timm:mixer_b16_224.goog_in21k data=pets image_size=448",
            "-m checkpoint=... data=pets optimizer.lr=0.003,0.01,0.03,0.06 seed=0,1,2     then one table",
        ],
    ),
    "evaluate": (
        "-m mixer_lightning.evaluate",
        [
            "checkpoint=runs/finetune/mixer_b16-folder-seed0 evals=[accuracy,confusion]",
            "checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot",
        ],
    ),
}


def help_text(config_name: str) -> str:
    """What `--help` prints: usage, the choices of every group with their first comment, the root keys."""
    script, examples = EXAMPLES[config_name]
    lines = [
        f"python {script} [group=choice] [key=value] [-m] [--cfg job --resolve]",
        "",
        *(f"  python {script} {example}" for example in examples),
        f"  python {script} experiment=... --cfg job --resolve         print the recipe and stop",
    ]
    for group, choices in groups().items():
        lines += ["", f"{group}="]
        width = max(map(len, choices)) + 2
        for choice in choices:
            lines.append(f"  {choice:<{width}}{_first_comment(CONF / group / f'{choice}.yaml')}")
    lines += ["", "root keys (defaults in conf/" + f"{config_name}.yaml)"]
    keys = ", ".join(f.name for f in fields(Recipe) if f.type != "dict[str, Any]" and f.name != "choices")
    lines += textwrap.wrap(keys, width=100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return textwrap.shorten(line.lstrip("# "), width=90, placeholder=" ...")
    return ""
