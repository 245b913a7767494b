"""A search for the best setting: Optuna proposes, each trial is a training of its own, and hears its evaluations.

Everything is in the search's folder: `study.db` (Optuna's storage), `search.csv`, and a run directory for each trial
and seed with what it said beside it. A search that was killed goes on with the trial that it stood at, from its last
checkpoint: what is proposed depends on what is known and on the number of the trial alone.
"""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mixer_lightning import results
from mixer_lightning.children import Child
from mixer_lightning.config.overrides import quoted
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.config.space import Dimension, Space
from mixer_lightning.files import lock_run_dir
from mixer_lightning.screen import Screen, error_in, format_metric
from mixer_lightning.stopping import StopRequests, exit_code

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

STUDY = "study.db"
TABLE = "search.csv"
STOPPED = 128  # exit codes above: by a signal


class Search(NamedTuple):
    """What is searched. `startup` trials are random, and none of them is pruned; `processes` those of a training."""

    program: str  # train or finetune
    space: Space
    folder: Path
    metric: str
    trials: int
    startup: int
    prune: bool
    seed: int
    processes: int
    flags: Sequence[str]  # of the command line, for each training: --config-dir=...

    def record(self) -> dict[str, Any]:
        """What makes it this search and no other."""
        return {"program": self.program, "metric": self.metric, **self.space.record()}


class NoMetric(ValueError):
    """The evaluations of a trial do not measure what is searched for."""


def carry_out(search: Search, screen: Screen) -> int:
    """Make all trials that are still to be made, and show the table; the exit code.

    Raises:
        ValueError, OSError: the folder holds another search, or cannot be written.
    """
    import optuna  # of the extra `search`, and a second

    search.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with lock_run_dir(search.folder):
        study = open_study(search)
        requests = StopRequests(
            screen.say, first="stopping the training, which saves first", quitting=lambda: "It saves and ends"
        )
        with requests:
            requests.catch()
            try:
                code = _trials(search, study, requests, screen)
            except NoMetric as error:
                screen.say(str(error))
                if not _completed(study):
                    (
                        search.folder / STUDY
                    ).unlink()  # another metric is another search; its run is there already
                return 1
    if code:
        screen.say(
            f"stopped at trial {_num_done(study)} of {search.trials}; the same command goes on from there"
        )
    show(search, study, screen)
    return code or (0 if _completed(study) else 1)


def open_study(search: Search) -> optuna.Study:
    """The study in the search's folder, made where there is none.

    Raises:
        ValueError: it is of another search; or it is damaged.
    """
    import optuna

    path = search.folder / STUDY
    direction: Literal["minimize", "maximize"] = (
        "minimize" if results.is_better_lower(search.metric) else "maximize"
    )
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}", study_name="search", direction=direction, load_if_exists=True
        )
        before = study.user_attrs.get("search")
    except Exception as error:  # of SQLAlchemy, sqlite and Alembic
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): delete {search.folder}, or use name=<another>"
        ) from error
    now = json.loads(json.dumps(search.record()))
    if before is not None and before != now:
        changes = results.differing_keys(before, now)
        lines = [f"  {name}: {was!r} there, {here!r} here" for name, was, here in changes]
        raise ValueError("\n".join([f"{search.folder} holds another search:", *lines, "Use name=<another>"]))
    study.set_user_attr("search", now)
    return study


def _num_done(study: optuna.Study) -> int:
    return len([trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()])


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a value, the best first."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return sorted(trials, key=lambda trial: sign * (trial.value or 0.0))


def _trials(search: Search, study: optuna.Study, requests: StopRequests, screen: Screen) -> int:
    """Trials one after the other, first one that was broken off; 0, or the exit code of being stopped."""
    import optuna
    from optuna.trial import Trial

    study.pruner = optuna.pruners.NopPruner()
    if search.prune:
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=search.startup)
    while _num_done(study) < search.trials:
        if requests.received:
            return exit_code(requests.received)
        trials = study.get_trials(deepcopy=False)
        begun = [trial for trial in trials if not trial.state.is_finished()]
        number = begun[0].number if begun else len(trials)
        study.sampler = optuna.samplers.TPESampler(
            seed=search.seed * 100_003 + number, n_startup_trials=search.startup
        )
        trial = Trial(study, begun[0]._trial_id) if begun else study.ask()
        values = {each.key: propose(trial, each) for each in search.space.dimensions}
        said = "  ".join(f"{each.key}={each.text(values[each.key])}" for each in search.space.dimensions)
        screen.say(f"trial {number} ({number + 1} of {search.trials})  {said}")
        code = _Attempt(search, study, trial, requests, screen).make(values)
        write_table(search, study)
        if code:
            return code
    return 0


def propose(trial: Trial, dimension: Dimension) -> Any:
    """The value of a key in a trial, proposed once."""
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.step is not None:
        return trial.suggest_int(
            dimension.key, int(dimension.low), int(dimension.high), step=dimension.step, log=dimension.log
        )
    return trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


class _Attempt:
    """One trial: a training for each seed; the first seed's evaluations are reported, and may prune it."""

    def __init__(
        self, search: Search, study: optuna.Study, trial: Trial, requests: StopRequests, screen: Screen
    ) -> None:
        self.search, self.study, self.trial = search, study, trial
        self.requests, self.screen = requests, screen
        self.pruned_at: int | None = None
        self._reported = set(study.trials[trial.number].intermediate_values)
        self._seen = (-1.0, -1)

    def make(self, values: dict[str, Any]) -> int:
        """Train with all seeds, and tell the study; 0, or an exit code where the search is to stop.

        Raises:
            NoMetric: no evaluation measures what is searched for.
        """
        from optuna.trial import TrialState

        found: dict[str, float] = {}
        for seed in self.search.space.seeds:
            code, error = self._train(values, seed)
            if self.pruned_at is not None:
                self.screen.say(f"trial {self.trial.number}  pruned at step {self.pruned_at:,}")
                self.study.tell(self.trial, state=TrialState.PRUNED)
                return 0
            if self.requests.received:
                return exit_code(self.requests.received)
            if code > STOPPED and code != STOPPED + 9:
                return code  # somebody stopped the training itself: the trial goes on later
            if error is None:
                metrics = (results.read_result(run_dir(self.search, self.trial.number, seed)) or {})[
                    "metrics"
                ]
                if self.search.metric not in metrics:
                    raise _no_metric(self.search.metric, metrics)
                found[str(seed)] = metrics[self.search.metric]
                self.trial.set_user_attr("values", found)
                continue
            if code == 2 and not _completed(self.study):
                raise ValueError(error)  # so it would be with every other
            self.screen.say(f"trial {self.trial.number}  failed: {error}")
            self.trial.set_user_attr("error", error)
            self.study.tell(self.trial, state=TrialState.FAIL)
            return 0
        mean = sum(found.values()) / len(found)
        if not math.isfinite(mean):
            self.trial.set_user_attr("error", f"{self.search.metric} is {mean}")
            self.study.tell(self.trial, state=TrialState.FAIL)
            return 0
        self.study.tell(self.trial, mean)
        best = _completed(self.study)[0]
        shown = [format_metric(self.search.metric, value) for value in (mean, best.value or 0.0)]
        self.screen.say(
            f"trial {self.trial.number}  {self.search.metric} {shown[0]}  best {shown[1]} (trial {best.number})"
        )
        return 0

    def _train(self, values: dict[str, Any], seed: int) -> tuple[int, str | None]:
        """The exit code of a training, and what went wrong."""
        folder = run_dir(self.search, self.trial.number, seed)
        words = [*self.search.space.words(values, seed), f"hydra.run.dir={quoted(str(folder))}"]
        with folder.with_suffix(".txt").open("w", encoding="utf-8") as said:

            def hear(line: str) -> None:
                said.write(f"{line}\n")
                said.flush()

            child = Child(
                [self.search.program, *self.search.flags, *words], processes=self.search.processes, hear=hear
            )
            is_first = seed == self.search.space.seeds[0]
            code = child.wait(self.requests, look=lambda: self._look(child, folder) if is_first else None)
        if code == 0:
            return 0, None
        return code, error_in(child.last_lines) or f"it ended with exit code {code}"

    def _look(self, child: Child, folder: Path) -> None:
        """Report what has been evaluated, and ask the training to stop where that is no good."""
        path = folder / results.METRICS
        try:
            stat = path.stat()
        except OSError:
            return
        if (stat.st_mtime, stat.st_size) == self._seen:
            return
        self._seen = (stat.st_mtime, stat.st_size)
        for row in results.read_metrics(folder):
            step, value = int(row["step"]), row.get(self.search.metric)
            if value is None or step in self._reported or self.pruned_at is not None:
                continue
            self._reported.add(step)
            self.trial.report(value, step)
            if child.poll() is None and not self.requests.received and self.trial.should_prune():
                self.pruned_at = step
                child.ask_to_stop()


def check_metric(metric: str, recipe: Recipe) -> None:
    """See that an evaluation yields what is searched for; of one that does not tell its names the first trial will.

    Raises:
        ValueError, OSError: none does, or the data of the recipe are not there.
    """
    from mixer_lightning.engine.source import open_data
    from mixer_lightning.evals import checked_eval, names_of
    from mixer_lightning.targets import build

    data = open_data(recipe)
    names = [names_of(checked_eval(name, build(node)), data) for name, node in recipe.evals.items()]
    if None not in names and not any(metric in (each or []) for each in names):
        raise _no_metric(metric, [name for each in names for name in each or []])


def _no_metric(metric: str, there: Iterable[str]) -> NoMetric:
    names = sorted(name for name in there if not name.startswith(("train/", "test/")))
    return NoMetric(
        f"no metric '{metric}': the evaluations yield {', '.join(names) or 'none but test figures'}. Use "
        "search.metric=<one of them>; train_split='train[:90%]' val_split='train[90%:]' makes a val split"
    )


def run_dir(search: Search, number: int, seed: int) -> Path:
    """The run directory of a trial and seed."""
    return search.folder / f"trial{number:04d}-seed{seed}"


# ------------------------------------------------------------------------------------------------- what came out


def rows(search: Search, study: optuna.Study) -> list[dict[str, Any]]:
    """One row for each trial and seed: what was tried, how it ended, its value and the trial's, or the error."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.user_attrs.get("values", {})
        for seed in search.space.seeds:
            last = list(trial.intermediate_values.items())[-1:] if seed == search.space.seeds[0] else []
            found.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name.lower(),
                    **{each.key: trial.params.get(each.key, "") for each in search.space.dimensions},
                    "seed": seed,
                    search.metric: values.get(str(seed), last[0][1] if last else ""),
                    "step": last[0][0] if last else "",
                    "mean": "" if trial.value is None else trial.value,
                    "error": trial.user_attrs.get("error", ""),
                    "run": run_dir(search, trial.number, seed).name,
                }
            )
    return found


def write_table(search: Search, study: optuna.Study) -> None:
    """search.csv, after every trial."""
    results.write_rows(search.folder / TABLE, rows(search, study))


def show(search: Search, study: optuna.Study, screen: Screen) -> None:
    """Print all trials, the best first, then those that were pruned or failed; and write the table."""
    write_table(search, study)
    done = _completed(study)
    others = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "COMPLETE"]
    keys = [each.key for each in search.space.dimensions]
    if done or others:
        lines = [
            [
                str(trial.number),
                trial.state.name.lower(),
                *(each.text(trial.params[each.key]) for each in search.space.dimensions),
                "" if trial.value is None else format_metric(search.metric, trial.value),
                str(trial.user_attrs.get("error", "")),
            ]
            for trial in [*done, *others]
            if len(trial.params) == len(keys)
        ]
        screen.table("", ["trial", "state", *keys, search.metric, "error"], lines)
    if done:
        words = [*search.flags, *search.space.words(done[0].params, search.space.seeds[0])]
        screen.say(f"best: {shlex.join(['mixer', search.program, *words])}")
    screen.say(f"written to {search.folder / TABLE}")
