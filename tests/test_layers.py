"""Imports point down only, and what is light stays light: read from the source, and tried in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mixer_lightning"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "conf" not in path.relative_to(PACKAGE).parts
}

#: The floor on which a room stands. A module may import from its own room and from lower floors.
FLOORS = {
    "files": 0,
    "screen": 2,
    "results": 1,
    "kernels": 1,  # below the models that they speed up
    "models": 3,
    "optim": 3,
    "losses": 3,
    "evals": 3,
    "data": 3,
    "reports": 3,
    "loggers": 3,
    "checkpoints": 4,
    "api": 5,
    "config": 5,
    "": 6,  # mixer_lightning itself: what it offers to a notebook
    "engine": 6,
    "prepare": 6,
    "studies": 7,
    "cli": 8,
    "__main__": 9,
}

#: Who may import what from outside.
TOLD_APART = {
    "hydra": {"config"},
    "omegaconf": {"config"},
    "wandb": {"loggers"},
    "lightning": {"engine", "loggers"},
    "torchmetrics": {"evals", "engine"},
    "matplotlib": {"reports"},
}
WITHOUT_TORCH = {"config", "results", "screen", "files", "cli", "reports"}


def room(module: str) -> str:
    """'mixer_lightning.data.sources.folder' -> 'data'."""
    inner = module.removeprefix("mixer_lightning").removeprefix(".")
    return inner.split(".")[0]


def imports(path: Path, module: str, *, at_import_time: bool = False) -> set[str]:
    """Modules that a file imports, dotted and absolute; inside functions too, unless only those `at_import_time`."""
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if at_import_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        nodes += ast.iter_child_nodes(node)
    return found


def test_modules_are_found():
    assert len(MODULES) > 30
    assert "mixer_lightning.data.sources.folder" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module):
    assert room(module) in FLOORS, f"say in FLOORS on which floor {module} stands"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    here = room(module)
    for other in imports(MODULES[module], module):
        there = room(other)
        if other.startswith("mixer_lightning") and there != here:
            assert FLOORS[there] < FLOORS[here], f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_packages_from_outside_stay_in_their_rooms(module):
    for other in imports(MODULES[module], module):
        package = other.split(".")[0]
        assert room(module) in TOLD_APART.get(package, {room(module)}), f"{module} imports {other}"
        if package in ("torch", "torchvision", "timm", "torchmetrics"):
            assert room(module) not in WITHOUT_TORCH, f"{module} imports {other}"


def test_reports_read_files_only():
    for module, path in MODULES.items():
        if room(module) == "reports":
            ours = {room(other) for other in imports(path, module) if other.startswith("mixer_lightning")}
            assert ours <= {"files", "results", "screen", "reports"}, module


@pytest.mark.parametrize("name", ["files", "results"])
def test_the_ground_floor_needs_the_standard_library_only(name):
    outside = {found.split(".")[0] for found in imports(MODULES[f"mixer_lightning.{name}"], name)}
    assert outside - {"mixer_lightning"} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_are_light(module):
    outside = {name.split(".")[0] for name in imports(MODULES[module], module, at_import_time=True)}
    assert outside <= {*sys.stdlib_module_names, "mixer_lightning"}


def test_annotations_are_not_evaluated():
    for module, path in MODULES.items():
        body = ast.parse(path.read_text()).body
        only_words = all(isinstance(node, ast.Expr | ast.Assign) for node in body)
        first = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        assert first or only_words or path.name in ("__init__.py", "__main__.py"), module


def loaded_by(*modules: str) -> set[str]:
    """What a fresh process has imported after these."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True
    )
    return set(done.stdout.split())


def test_the_start_is_light():
    """A wrong recipe is answered, and a finished run shown, without waiting for torch."""
    light = loaded_by("mixer_lightning", "mixer_lightning.config", "mixer_lightning.engine.run")
    assert not light & {"torch", "numpy", "lightning", "timm", "wandb", "matplotlib", "torchvision", "hydra"}


def test_reports_run_without_torch():
    reports = [module for module in MODULES if room(module) == "reports"]
    assert not loaded_by(*reports) & {"torch", "lightning", "hydra", "wandb"}


def test_the_lower_rooms_work_in_a_notebook():
    rooms = ("models", "kernels", "optim", "losses", "evals", "data")
    lower = [module for module in MODULES if room(module) in rooms and not module.endswith("__main__")]
    loaded = loaded_by(*lower)
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb"}
