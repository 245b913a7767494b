"""`mixer dashboard`: what it would save, without a server; and what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk import wandb_setup

from conftest import ROOT
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.cli.dashboard import settings
from mixer_lightning.loggers import workspaces

MACHINE = {
    "Machine": [
        ("Run History Line Plot", ["train/images_per_second"]),
        ("Run History Line Plot", ["train/data_wait"]),
        ("Run History Line Plot", ["train/mfu"]),
        ("Run History Line Plot", ["train/memory_gb"]),
        ("Run History Line Plot", ["train/device_days"]),
    ]
}
LOSS = {
    "Loss": [("Run History Line Plot", ["train/loss"]), ("Run History Line Plot", ["val/loss", "test/loss"])]
}
OPTIMISATION = {
    "Optimisation": [("Run History Line Plot", ["train/lr"]), ("Run History Line Plot", ["train/grad_norm"])]
}
#: {kind: {section: [(type of the panel, what it shows)]}}, as W&B's server takes them
EXPECTED: dict[str, dict[str, list[tuple[str, list[str]]]]] = {
    "pretraining": {
        "Accuracy": [
            ("Run History Line Plot", ["val/top1", "test/top1"]),
            ("Run History Line Plot", ["val/top5", "test/top5"]),
            ("Run History Line Plot", ["train/top1"]),
        ],
        **LOSS,
        **OPTIMISATION,
        **MACHINE,
        "Pictures": [
            ("Media Browser", ["pictures/curves", "pictures/first_batch"]),
            ("Media Browser", ["pictures/weights_mixing", "pictures/weights_stem"]),
        ],
    },
    "transfer": {
        "Accuracy": [
            ("Run History Line Plot", ["val/top1", "test/top1"]),
            ("Bar Chart", ["test/top1", "val/top1"]),
        ],
        **LOSS,
        **OPTIMISATION,
        "Mistakes": [
            ("Media Browser", ["pictures/confusion"]),
            ("Media Browser", ["pictures/misclassified", "examples/misclassified"]),
        ],
        **MACHINE,
    },
    "sweep": {
        "Settings": [
            (
                "Parallel Coordinates Plot",
                [
                    "config:optimizer.value.lr", "config:optimizer.value.weight_decay", "config:batch_size.value",
                    "config:seed.value", "summary:val/top1",
                ],
            ),
            ("Parameter Importance", ["val/top1"]),
            ("Scatter Plot", ["config:optimizer.value.lr", "summary:val/top1"]),
            ("Scatter Plot", ["config:optimizer.value.weight_decay", "summary:val/top1"]),
            ("Scatter Plot", ["config:batch_size.value", "summary:val/top1"]),
            ("Scatter Plot", ["config:seed.value", "summary:val/top1"]),
        ],
        "Curves": [
            ("Run History Line Plot", ["val/top1"]),
            ("Run History Line Plot", ["train/loss"]),
            ("Run History Line Plot", ["train/lr"]),
        ],
        **MACHINE,
    },
}  # fmt: skip


def shown(panel: dict[str, Any]) -> tuple[str, list[str]]:
    """The type of a panel and what it shows; a line plot's x axis must be the step."""
    kind, config = panel["viewType"], panel["config"]
    if kind == "Run History Line Plot":
        assert config["xAxis"] == "_step"
        return kind, config["metrics"]
    if kind == "Bar Chart":
        return kind, config["metrics"]
    if kind == "Media Browser":
        return kind, config["mediaKeys"]
    if kind == "Parameter Importance":
        return kind, [config["targetKey"]]
    if kind == "Scatter Plot":
        return kind, [config["xAxis"], config["yAxis"]]
    return kind, [column["accessor"] for column in config["columns"]]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """An environment in which wandb finds no key."""
    monkeypatch.setattr(wandb_setup, "_singleton", None)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", EXPECTED)
def test_without_a_key_it_writes_what_it_would_save(kind, no_key, tmp_path, capsys):
    assert mixer(["dashboard", kind, "project=mine", "group=tuned"]) == 0
    said = capsys.readouterr().out
    assert f"written to {kind}_dashboard.json, not saved on a server: no key for" in said
    content = json.loads((tmp_path / f"{kind}_dashboard.json").read_text())
    workspace, report = content["workspace"], content["report"]
    assert workspace["project"] == report["project"]["name"] == "mine"
    section = workspace["spec"]["section"]
    assert section["settings"]["xAxis"] == "_step"
    panels = {each["name"]: each["panels"] for each in section["panelBankConfig"]["sections"]}
    assert {name: [shown(panel) for panel in each] for name, each in panels.items()} == EXPECTED[kind]

    blocks = report["spec"]["blocks"]
    headings = [each["children"][0]["text"] for each in blocks if each["type"] == "heading"]
    grids = [each["metadata"] for each in blocks if each["type"] == "panel-grid"]
    assert headings == list(EXPECTED[kind])
    found = [[shown(panel) for panel in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert found == list(EXPECTED[kind].values())
    for grid in grids:
        places = [tuple(panel["layout"].values()) for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len(set(places)) == len(places)  # none upon another
    wanted = {"group": "tuned"} if kind == "sweep" else {"jobType": kind, "group": "tuned"}
    for run_set in [*section["runSets"], *(run_set for grid in grids for run_set in grid["runSets"])]:
        assert filtered(run_set["filters"]) == wanted


def filtered(node: dict[str, Any]) -> dict[str, Any]:
    """{run attribute: value} of all conditions of a filter."""
    found = {}
    for each in node.get("filters") or []:
        found |= filtered(each)
    if node.get("key"):
        assert node["op"] in ("=", "==")
        found[node["key"]["name"]] = node["value"]
    return found


def test_a_sweep_is_judged_by_any_metric_over_any_keys(no_key, tmp_path):
    assert mixer(["dashboard", "sweep", "to=a.json", "metric=real/top1", "keys=model.patch_size,seed"]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    panels = content["workspace"]["spec"]["section"]["panelBankConfig"]["sections"][0]["panels"]
    keys = ["config:model.value.patch_size", "config:seed.value"]
    assert [shown(panel)[1] for panel in panels] == [
        [*keys, "summary:real/top1"],
        ["real/top1"],
        *([key, "summary:real/top1"] for key in keys),
    ]


def test_to_names_the_file_whatever_the_key(no_key, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mixer(["dashboard", "transfer", f"to={tmp_path / 'a' / 'b.json'}"]) == 0
    assert json.loads((tmp_path / "a" / "b.json").read_text())["kind"] == "transfer"
    assert "not saved" not in capsys.readouterr().out


class Server:
    """As much of W&B's API as saving asks."""

    default_entity = "somebody"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def projects(self, entity: str) -> list[Any]:
        return []

    def create_project(self, name: str, entity: str) -> None:
        self.asked.append({"project": name, "entity": entity})

    def graphql(self, api: Any, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        assert variables is not None
        self.asked.append(variables)
        name = variables["name"]
        spec = {"id": "Vm1", "name": name, "displayName": name, "description": "", "spec": variables["spec"]}
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        return {"upsertView": {"view": {**spec, "type": variables["type"], "project": project}}}


def test_with_a_key_it_saves_both_and_says_where(no_key, monkeypatch, capsys):
    from wandb_workspaces.reports.v2 import interface as reports
    from wandb_workspaces.workspaces import interface, internal

    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "Api", lambda *_, **__: server)
    for module in (internal, reports):
        monkeypatch.setattr(module, "execute_graphql", server.graphql)
    monkeypatch.setattr(reports, "_get_api", lambda: server)
    for module in (interface, reports):
        monkeypatch.setattr(module, "get_app_url", lambda api: "https://wandb.example")
    assert mixer(["dashboard", "pretraining", "project=mine"]) == 0
    said = capsys.readouterr()
    assert "workspace  https://wandb.example/somebody/mine?nw=" in said.out
    assert "report     https://wandb.example/somebody/mine/reports/" in said.out
    assert [each.get("type") for each in server.asked] == [None, "runs", "project-view"]
    assert {each.get("entityName", "somebody") for each in server.asked} == {"somebody"}


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("permission denied\nand more")])
def test_a_server_that_refuses_is_named_in_a_line(no_key, monkeypatch, capsys, error):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")

    def fail(self: Any) -> list[str]:
        raise error

    monkeypatch.setattr(workspaces.Dashboard, "save", fail)
    assert mixer(["dashboard", "sweep"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        f"wandb.example did not take the dashboard: {str(error).splitlines()[0]}. to=<file>"
    )
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweeps"], "unknown kind 'sweeps': did you mean 'sweep'?"),
        (["transfer", "metric=val/top1"], "unknown key 'metric'"),
        (["transfer", "projct=x"], "unknown key 'projct': did you mean 'project'?"),
        (
            ["sweep", "keys=seed,optimiser.lr"],
            "keys=optimiser is no key of a recipe: did you mean 'optimizer'?",
        ),
        (["transfer", "to=."], "to=. is a folder: name a file in it, to=transfer.json"),
    ],
)
def test_a_wrong_option_is_answered(words, message, no_key, capsys):
    with pytest.raises(SystemExit) as stop:
        mixer(["dashboard", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_project_is_that_of_the_logger():
    node = yaml.safe_load((ROOT / "conf/logger/wandb.yaml").read_text())
    assert settings("sweep", []).project == node["project"]
