"""Transfer suites: those of conf/suite, their protocol, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixer_lightning.data.sources.vtab.tasks import TASKS
from mixer_lightning.studies.suites import Task, available, read_suite


def test_the_suites_of_the_paper() -> None:
    assert available() == ["all", "avg5", "fewshot", "vtab"]
    avg5, vtab, fewshot, everything = (read_suite(name) for name in ("avg5", "vtab", "fewshot", "all"))
    assert everything.tasks == (*avg5.tasks, *vtab.tasks)
    assert everything.fewshot == fewshot.fewshot
    assert [column.name for column in everything.columns] == [  # arXiv 2105.01601, Table 2, and VTAB's groups
        "ImNet", "ReaL", "Avg 5", "VTAB-1k", "natural", "specialized", "structured",
    ]  # fmt: skip
    assert {task.learning_rates for task in avg5.tasks} == {(0.003, 0.01, 0.03, 0.06)}
    assert {task.learning_rates for task in vtab.tasks} == {(0.003, 0.01, 0.03)}


def test_vtab_has_every_task_once_and_in_one_group() -> None:
    suite = read_suite("vtab")
    assert [task.name for task in suite.tasks] == [f"vtab_{name}" for name in TASKS]
    assert [f"data.task={name}" for name in TASKS] == [task.overrides[1] for task in suite.tasks]
    data = {column.name: column.data for column in suite.columns}
    assert data["VTAB-1k"] == tuple(f"vtab_{name}" for name in TASKS)
    groups = {name: data[name] for name in ("natural", "specialized", "structured")}
    assert [len(names) for names in groups.values()] == [7, 4, 8]  # arXiv 1910.04867
    assert sorted(data["VTAB-1k"]) == sorted(name for names in groups.values() for name in names)


def test_what_a_file_says_holds_for_all_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "learning_rates: [0.1]\n"
        "overrides: data=folder\n"
        "dev: test_split=none\n"
        "tasks:\n"
        "  birds: {overrides: data.root='my birds', final: val_split=none}\n"
        "  fish:\n"
        "    learning_rates: [0.01, 0.3]\n"
        "    dev: val_split=train[90%:]\n"
    )
    suite = read_suite(str(tmp_path / "mine.yaml"))
    birds = Task(
        "birds", ("data=folder", "data.root=my birds"), (0.1,), ("test_split=none",), ("val_split=none",)
    )
    fish = Task("fish", ("data=folder",), (0.01, 0.3), ("test_split=none", "val_split=train[90%:]"), ())
    assert suite.tasks == (birds, fish)
    assert suite.only(["fish"]).tasks == (fish,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taks: {}", "mine.yaml: unknown key 'taks': did you mean 'tasks'?"),
        ("tasks: {a: {devv: x=1}}", "mine.yaml: tasks.a: unknown key 'devv': did you mean 'dev'?"),
        (
            "tasks: {a: {dev: nonsense, learning_rates: [1]}}",
            "tasks.a.dev: 'nonsense' is not of the form key=value",
        ),
        ("tasks: {a: {dev: x=1}}", "mine.yaml: tasks.a needs learning_rates above 0, found []"),
        ("tasks: {a: {learning_rates: [0.1, 0]}}", "tasks.a needs learning_rates above 0, found [0.1, 0]"),
        ("learning_rates: 0.1", "'learning_rates' takes list[float], found 0.1"),
        ("tasks: [a]", "'tasks' takes dict[str, Any], found ['a']"),
        ("tasks: {a: pets}", "tasks.a must be a mapping, found 'pets'"),
        ("fewshot: {a: null}", "fewshot.a takes arguments such as data=pets"),
        ("columns: {x: {tasks: []}}", "columns.x needs a metric"),
        (
            "{learning_rates: [1], tasks: {pets: {}}, columns: {x: {metric: test/top1, tasks: [pet]}}}",
            "columns.x has an unknown task 'pet': did you mean 'pets'?",
        ),
        (
            'tasks: {a: {dev: "x=\'1", learning_rates: [1]}}',
            "mine.yaml: tasks.a.dev: No closing quotation: x='1",
        ),
        ("suites: [mine.yaml]", "mine.yaml: suites: the suite is a part of itself"),
        ("suites: [avg]", "there is no suite 'avg': did you mean 'avg5'?"),
        ("tasks: {", "mine.yaml: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its message is compared below)
        read_suite(str(tmp_path / "mine.yaml"))
    assert message in str(caught.value)
