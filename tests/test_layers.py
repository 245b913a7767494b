"""How the house stands, read from the source and tried in fresh processes.

Imports point down, nothing runs in a circle, what is light stays light, declared dependencies are the imported ones.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = "mixer_lightning"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = [extra for extra in PROJECT["optional-dependencies"] if extra != "dev"]


def modules_below(folder: Path) -> dict[str, Path]:
    """{dotted name: file} of the Python files in a package, `__init__.py` under the package's own name."""
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }


MODULES = modules_below(ROOT / OURS)
TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}

#: The floor on which a room stands. A file may import from its own room and from lower floors.
FLOORS = {
    "files": 0,
    "launcher": 0,
    "children": 1,
    "ranges": 0,
    "targets": 0,
    "results": 1,
    "stdio": 0,
    "stopping": 0,
    "screen": 2,
    "progress": 3,
    "kernels": 3,  # below the models that they speed up
    "models": 4,
    "optim": 4,
    "losses": 4,
    "data": 4,
    "reports": 4,
    "loggers": 4,
    "evals": 5,  # of data sets
    "checkpoints": 5,
    "api": 6,
    "config": 6,
    "": 7,  # mixer_lightning itself: what it offers to a notebook
    "engine": 7,
    "prepare": 7,
    "studies": 8,
    "cli": 9,
    "__main__": 10,
}

#: Which rooms may import a package from outside.
ALLOWED_ROOMS = {
    "hydra": {"config"},
    "omegaconf": {"config"},
    "wandb": {"loggers"},
    "wandb_workspaces": {"loggers"},
    "lightning": {"engine", "loggers"},
    "torchmetrics": {"evals", "engine"},
    "matplotlib": {"reports"},
    "plotly": {"reports"},
    "jinja2": {"reports"},
    "optuna": {"studies"},
}
WITHOUT_TORCH = {"config", "results", "screen", "progress", "stdio", "stopping", "files", "cli", "reports"}
#: The one file that turns a dotted path into an object, and those that ask it for one that is not ours to import:
#: a `_target_` of a foreign package, whose signature is looked up, and timm's class that an export is loaded into.
MAY_LOCATE = {
    "mixer_lightning.targets",
    "mixer_lightning.config.signatures",
    "mixer_lightning.checkpoints.formats",
}

MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 85

#: Declared and not imported by name: what needs them.
USED_THROUGH = {
    "tensorboard": "torch.utils.tensorboard",
    "s3fs": "fsspec, for s3://",
    "onnxscript": "torch.onnx",
}
#: Programs and plugins of the development extra.
TOOLS = {"mypy", "pytest-cov", "pytest-xdist", "ruff", "setuptools", "types-pyyaml"}
#: Folders that several distributions share, and the one that is meant.
NAMESPACES = {"google": "protobuf"}

#: Violations of the rules below that still stand, one a line. One that has gone must leave this list.
KNOWN: set[str] = set()


def room(module: str) -> str:
    """'mixer_lightning.data.sources.folder' -> 'data'."""
    return inside(module).split(".")[0]


def inside(module: str) -> str:
    """'mixer_lightning.data.order' -> 'data.order'."""
    return module.removeprefix(OURS).removeprefix(".")


def imports(tree: ast.Module, *, at_import_time: bool = False) -> set[str]:
    """Dotted names of all that a file imports: files of ours, packages of others.

    Those inside functions, under TYPE_CHECKING and by `import_module("literal")` count too, unless only those
    `at_import_time` are asked for.
    """
    found = set()
    nodes: list[ast.AST] = [tree]
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
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
        elif is_dynamic_import(node) and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value))
        nodes += ast.iter_child_nodes(node)
    return found


def is_dynamic_import(node: ast.AST) -> bool:
    """Whether a node calls import_module, __import__ or locate."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
        "import_module",
        "__import__",
        "locate",
    )


IMPORTS = {module: imports(tree) for module, tree in TREES.items()}


def strings(tree: ast.Module) -> Iterator[str]:
    """String literals of a file, except docstrings and names of loggers."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            skipped |= {each.value for each in node.body if isinstance(each, ast.Expr)}
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger"):
            skipped |= set(node.args)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file (Tarjan), each sorted."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(here: str) -> None:
        number[here] = lowest[here] = len(number)
        stack.append(here)
        for there in graph[here]:
            if there not in number:
                visit(there)
                lowest[here] = min(lowest[here], lowest[there])
            elif there in stack:
                lowest[here] = min(lowest[here], number[there])
        if lowest[here] == number[here]:
            at = stack.index(here)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1 or here in graph[here]:
                found.append(sorted(component))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def normalised(requirement: str) -> str:
    """'PyYAML>=6.0' -> 'pyyaml'."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def imported_by(folder: Path) -> set[str]:
    """Distributions that the files below a folder import, by their names on PyPI."""
    trees = [ast.parse(path.read_text()) for path in folder.rglob("*.py")]
    packages = {name.split(".")[0] for tree in trees for name in imports(tree)}
    own = {path.stem for path in folder.rglob("*.py")} | {OURS}  # tests import their helpers by file name
    known = importlib.metadata.packages_distributions()
    found = set()
    for package in packages - set(sys.stdlib_module_names):
        assert package in known or package in own, f"{package} is imported and not installed"
        if package not in known or package == OURS:
            continue
        (distribution,) = [NAMESPACES[package]] if package in NAMESPACES else set(known[package])
        found.add(normalised(distribution))
    return found


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml declares: for everybody, or in these extras."""
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    return {normalised(each) for each in chain(*lists)} - {"mixer-lightning"}


# -------------------------------------------------------------------------------------------------- rules
# Each yields what breaks it, in the words of KNOWN.


def upward_imports() -> Iterator[str]:
    for module, others in IMPORTS.items():
        for other in others:
            if other.split(".")[0] != OURS or room(other) == room(module):
                continue
            if FLOORS[room(other)] >= FLOORS[room(module)]:
                yield f"upward: {inside(module)} imports {inside(other)}"


def circular_imports() -> Iterator[str]:
    graph = {module: {other for other in others if other in MODULES} for module, others in IMPORTS.items()}
    for circle in circles(graph):
        yield f"circle: {' '.join(map(inside, circle))}"


def paths_in_strings() -> Iterator[str]:
    for module, tree in TREES.items():
        for text in strings(tree):
            for path in re.findall(rf"\b{OURS}\.[a-z_]\w*[\w.]*", text):
                yield f"path in a string: {inside(module)} has '{path}'"


def dynamic_imports() -> Iterator[str]:
    for module, tree in TREES.items():
        if module not in MAY_LOCATE and any(
            is_dynamic_import(node) and not isinstance(node.args[0], ast.Constant) for node in ast.walk(tree)
        ):
            yield f"dynamic import: {inside(module)}"


def strangers_in_rooms() -> Iterator[str]:
    for module, others in IMPORTS.items():
        here = room(module)
        for package in {other.split(".")[0] for other in others}:
            if here not in ALLOWED_ROOMS.get(package, {here}):
                yield f"package: {inside(module)} imports {package}"
            if here in WITHOUT_TORCH and package in ("torch", "torchvision", "timm", "torchmetrics"):
                yield f"package: {inside(module)} imports {package}"


def long_files() -> Iterator[str]:
    for module, path in MODULES.items():
        if len(path.read_text().splitlines()) > MAX_FILE_LINES:
            yield f"long file: {inside(module)}"


def long_functions() -> Iterator[str]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                    yield f"long function: {inside(module)}.{node.name}"


def wrong_dependencies() -> Iterator[str]:
    imported, everybodys = imported_by(ROOT / OURS), declared() | declared(*OPTIONAL)
    for name in imported - everybodys:
        yield f"imported and not declared: {name}"
    for name in everybodys - imported - set(USED_THROUGH):
        yield f"declared and not imported: {name}"


RULES = (
    upward_imports,
    circular_imports,
    paths_in_strings,
    dynamic_imports,
    strangers_in_rooms,
    long_files,
    long_functions,
    wrong_dependencies,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_stands(rule):
    assert set(rule()) - KNOWN == set()


def test_known_violations_still_stand():
    found = {line for rule in RULES for line in rule()}
    assert KNOWN - found == set(), "mended: delete these lines from KNOWN"


# -------------------------------------------------------------------------------------- the rules' own tests


def test_modules_are_found():
    assert len(MODULES) > 80
    assert "mixer_lightning.data.sources.folder" in MODULES
    assert "mixer_lightning.data" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_every_room_has_a_floor(module):
    assert room(module) in FLOORS, f"say in FLOORS on which floor {module} stands"


def test_every_floor_has_a_room():
    assert set(FLOORS) == {room(module) for module in MODULES}


def test_imports_are_seen_wherever_they_stand():
    tree = ast.parse(
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from c import d\n"
        "def f():\n    from mixer_lightning.data import order\n    import e\n"
        "    class G:\n        import h\n"
        "importlib.import_module('i.j')\n"
        "from mixer_lightning import results\n"
    )
    deep = {"c", "mixer_lightning.data.order", "e", "h"}
    light = {"a.b", "typing", "i.j", "mixer_lightning.results"}
    assert imports(tree) == deep | light
    assert imports(tree, at_import_time=True) == light
    with pytest.raises(AssertionError, match="relative"):
        imports(ast.parse("from . import x"))


def test_circles_are_seen():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"f"}, "g": {"a"}}
    assert sorted(circles(graph)) == [["a", "b", "c"], ["f"]]


def test_strings_are_seen():
    tree = ast.parse(
        '"""mixer_lightning.a"""\nx = {"y": f"mixer_lightning.{z}"}\n'
        'def f():\n    """mixer_lightning.b"""\n    return "mixer_lightning.c"\n'
        'logging.getLogger("mixer_lightning.d")\n'
    )
    assert set(strings(tree)) == {"y", "mixer_lightning.", "mixer_lightning.c"}


# -------------------------------------------------------------------------------------------- what is light


def test_reports_read_files_only():
    for module, others in IMPORTS.items():
        if room(module) == "reports":
            rooms = {room(other) for other in others if other.startswith(OURS)}
            assert rooms <= {"files", "results", "screen", "reports"}, module


@pytest.mark.parametrize("name", ["files", "results"])
def test_the_ground_floor_needs_the_standard_library_only(name):
    outside = {found.split(".")[0] for found in IMPORTS[f"{OURS}.{name}"]}
    assert outside - {OURS} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_are_light(module):
    outside = {name.split(".")[0] for name in imports(TREES[module], at_import_time=True)}
    assert outside <= {*sys.stdlib_module_names, OURS}


def test_annotations_are_not_evaluated():
    for module, tree in TREES.items():
        only_words = all(isinstance(node, ast.Expr | ast.Assign) for node in tree.body)
        first = [
            node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        ]
        assert first or only_words or MODULES[module].name in ("__init__.py", "__main__.py"), module


def loaded_by(*modules: str) -> set[str]:
    """What a fresh process has imported after these."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
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


# ---------------------------------------------------------------------------------------------- dependencies


def test_optional_dependencies_are_imported_late():
    late = {name.replace("-", "_") for name in declared(*OPTIONAL)}
    for module, tree in TREES.items():
        first = {name.split(".")[0] for name in imports(tree, at_import_time=True)}
        assert not first & late, module


def test_what_the_tests_import_is_declared():
    imported = imported_by(ROOT / "tests")
    assert imported <= declared() | declared(*OPTIONAL, "dev")
    assert declared("dev") - imported == TOOLS


def test_all_that_is_declared_is_pinned():
    pins = {normalised(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert (declared() | declared(*OPTIONAL, "dev")) - pins == {"s3fs"}  # the one that nothing here tries
