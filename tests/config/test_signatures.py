"""What a `_target_` takes: signatures read from source, and whether a value fits an annotation."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_lightning.config.signatures import defaults, describe, fits, signature
from mixer_lightning.files import CONF
from mixer_lightning.targets import build


def targets() -> list[str]:
    found = set()
    for path in CONF.rglob("*.yaml"):
        found |= {
            line.partition(":")[2].split("#")[0].strip()
            for line in path.read_text().splitlines()
            if line.strip().startswith("_target_:")
        }
    return sorted(found)


def test_the_targets_are_found():
    assert len(targets()) > 20
    elsewhere = [target for target in targets() if not target.startswith("mixer_lightning.")]
    assert elsewhere == [
        "lightning.pytorch.callbacks.device_stats_monitor.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
        "lightning.pytorch.callbacks.lr_monitor.LearningRateMonitor",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.rich_model_summary.RichModelSummary",
    ]


@pytest.mark.parametrize("target", [t for t in targets() if t.startswith("mixer_lightning.")])
def test_a_signature_read_from_source_is_the_real_one(target):
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    names = {"Literal": Literal, **vars(importlib.import_module(module))}
    assert list(signature(target)) == list(real)
    for key, found in signature(target).items():
        assert found.required == (real[key].default is inspect.Parameter.empty)
        if found.annotation != ast.unparse(ast.parse(real[key].annotation)):  # a name of texts, expanded
            assert eval(found.annotation, names) == eval(real[key].annotation, names)
    for key, value in defaults(target).items():
        assert value == real[key].default
    kinds = {p.kind for p in real.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}  # no **kwargs


def test_a_signature_of_a_name_that_is_imported_from_elsewhere():
    found = signature("mixer_lightning.create_model")
    assert found["num_classes"][:2] == ("int", False)
    assert found["name"][:2] == ("str", True)


@pytest.mark.parametrize(
    ("annotation", "yes", "no"),
    [
        ("int", [0, -3, 10**20], [True, 1.0, "1", None, [1], {}]),
        ("float", [0, 1.5, -2, 1e30], [True, "1e-3", None, [1.0]]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "a", "1"], [1, None, ["a"], True]),
        ("None", [None], [0, "", False, []]),
        ("int | None", [3, None], [3.5, "", False]),
        ("float | str | None", [3, "x", None, 0.5], [True, [1]]),
        ("Literal['gelu', 'relu']", ["gelu", "relu"], ["GELU", "", None, 1]),
        ("Literal[1] | None", [1, None], [2, "1"]),
        ("typing.Literal['a']", ["a"], ["b"]),
        ("list[float]", [[], [1, 2.5]], [1, "ab", [1, "a"], [None], [True], {}]),
        ("list[str] | None", [None, ["a"]], ["a", [1]]),
        ("tuple[float, float]", [[1, 2.5]], [[1], [1, 2, 3], ["a", 1], 1]),
        ("tuple[int, ...]", [[], [1], [1, 2, 3]], [[1.5], 1, ["a"]]),
        ("dict[str, Any]", [{}, {"a": 1}], [1, [], "a"]),
        ("Duration", [{"epochs": 1}], [3, "3 epochs", None]),
        ("", [1, "a", None], []),
        ("Callable[[int], float]", [1, "a"], []),  # no YAML file can write one
    ],
)
def test_fits(annotation, yes, no):
    assert [value for value in yes if not fits(annotation, value)] == []
    assert [value for value in no if fits(annotation, value)] == []


def test_a_literal_is_of_its_type():
    assert not fits("Literal[1]", True)
    assert not fits("Literal[1]", 1.0)


LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "str": st.text(max_size=5),
    "bool": st.booleans(),
    "None": st.none(),
    "Literal['a', 'b', 3]": st.sampled_from(["a", "b", 3]),
}
leaf = st.sampled_from(list(LEAVES.items()))


def larger(
    inner: st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]]:
    union = st.tuples(inner, inner).map(lambda two: (f"{two[0][0]} | {two[1][0]}", two[0][1] | two[1][1]))
    many = inner.map(lambda one: (f"list[{one[0]}]", st.lists(one[1], max_size=3)))
    pair = st.tuples(inner, inner).map(
        lambda two: (f"tuple[{two[0][0]}, {two[1][0]}]", st.tuples(two[0][1], two[1][1]).map(list))
    )
    return union | many | pair


@given(st.data(), st.recursive(leaf, larger, max_leaves=5))
@settings(max_examples=200, deadline=None)
def test_a_value_made_for_an_annotation_fits_it(data, kind):
    annotation, values = kind
    value = data.draw(values)
    assert fits(annotation, value)
    assert not fits(annotation, {"a": value})  # none of them is a mapping
    assert not fits(f"list[{annotation}]", {"a": value})
    assert fits(f"list[{annotation}]", [value, value])
    assert not fits(f"tuple[{annotation}, {annotation}]", [value])


@given(st.sampled_from(["int", "float", "str", "bool", "None"]), st.data())
def test_kinds_do_not_mix(annotation, data):
    other = data.draw(st.sampled_from(["int", "float", "str", "bool", "None"]))
    value = data.draw(LEAVES[other])
    exact = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}[annotation]
    assert fits(annotation, value) == (type(value) is exact or (annotation == "float" and type(value) is int))


def test_building_calls_the_target_with_parameters_and_facts():
    node = {"_target_": "textwrap.shorten", "placeholder": "~"}
    assert build(node, text="one two three", width=8) == "one two~"
    partial = build({**node, "_partial_": True}, width=8)
    assert partial("one two three") == "one two~"
    assert node == {"_target_": "textwrap.shorten", "placeholder": "~"}


def test_texts_that_have_a_name_are_known_by_it(tmp_path, monkeypatch):
    """Stated once in a module, used by it and others: in a Literal, in a list, or by itself."""
    package = tmp_path / "birds"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text('from typing import Literal\nKind = Literal["owl", "jay"]\nOther = int\n')
    (package / "b.py").write_text(
        "from typing import Literal\nfrom birds.a import Kind as K, Other\n"
        'def see(*, kind: K | None, kinds: list[K], more: Literal[K, "any"], count: Other): ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = {key: each.annotation for key, each in signature("birds.b.see").items()}
    assert found == {
        "kind": "Literal['owl', 'jay'] | None",
        "kinds": "list[Literal['owl', 'jay']]",
        "more": "Literal['owl', 'jay', 'any']",
        "count": "Other",
    }
    assert fits(found["more"], "jay")
    assert not fits(found["more"], "tit")
    assert describe(found["kind"], "jai") == "one of owl, jay, null (did you mean 'jay'?)"
