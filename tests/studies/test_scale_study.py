"""The study of scale: which runs it makes, what its rows say, and its figures from rows alone."""

from __future__ import annotations

import csv
import re

import pytest

from conftest import ROOT
from mixer_lightning import results
from mixer_lightning.config.recipe import Duration
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.data.splits import choose
from mixer_lightning.reports import markdown
from mixer_lightning.reports import scale as report
from mixer_lightning.studies import scale

ARGV = [
    "data=digits",
    "models=[tiny,mixer_digits]",
    "tiny.model=mixer_digits",
    "tiny.hidden_dim=8",
    "tiny.tokens_mlp_dim=4",
    "tiny.channels_mlp_dim=16",
    "model.num_blocks=1",
    "fractions=[10,100]",
    "trainer=cpu",
    "batch_size=32",
    "duration.steps=4",
]


def mixer_parameters(*, tokens, hidden, tokens_dim, channels_dim, blocks, classes=10, patch=1):
    """Table 1 of arXiv 2105.01601, with biases, LayerNorms and head."""
    mlps = hidden * channels_dim * 2 + channels_dim + hidden + tokens * tokens_dim * 2 + tokens_dim + tokens
    stem, norm, head = (3 * patch**2 + 1) * hidden, 2 * hidden, (hidden + 1) * classes
    return stem + blocks * (mlps + 4 * hidden) + norm + head


def rows_of(folder):
    with (folder / "scale_digits.csv").open() as file:
        return list(csv.DictReader(file))


def test_from_the_command_line_to_rows_page_and_pictures(tmp_path, capsys):
    argv = [*ARGV, f"folder={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]
    scale.main(argv)
    rows = rows_of(tmp_path / "out")
    assert [(row["model"], row["percent"]) for row in rows] == [
        (model, percent) for model in ("tiny", "mixer_digits") for percent in ("10", "100")
    ]
    assert {row["conf_model"] for row in rows} == {"mixer_digits"}
    assert {row["steps"] for row in rows} == {"4"}
    assert {row["images_seen"] for row in rows} == {"128"}
    tenth = len(choose(digits(), train="train[:10%]").splits["train"])
    assert [row["train_images"] for row in rows] == [str(tenth), "1437"] * 2
    sizes = {"tokens": 64, "blocks": 1}
    small = mixer_parameters(hidden=8, tokens_dim=4, channels_dim=16, **sizes)
    large = mixer_parameters(hidden=64, tokens_dim=32, channels_dim=256, **sizes)
    assert [int(row["parameters"]) for row in rows] == [small, small, large, large]
    macs = 64 * 3 * 64 + 2 * 64 * 64 * 32 + 2 * 64 * 64 * 256 + 64 * 10  # S 3 P^2 C + 2 C S (D_S + D_C) + C K
    assert float(rows[-1]["gmacs"]) == pytest.approx(macs / 1e9, rel=1e-3)
    final = results.read_result(tmp_path / "runs/tiny-8px-10pct-seed0", whole=True)
    assert final["recipe"]["train_split"] == "train[:10%]"
    assert float(rows[0]["accuracy"]) == pytest.approx(final["metrics"]["test/top1"], rel=1e-3)
    text = (tmp_path / "out/scale_digits.md").read_text()
    assert "| tiny | 8 | 10 |" in text
    assert "test/top1 on 360 images of networks" in text
    assert "That a larger network makes more of more images" in text
    assert "3, 10, 30 and 100 % of JFT-300M" in text
    pictures = re.findall(r"\((scale_digits_\w+\.png)\)", text)
    assert pictures == ["scale_digits_models.png", "scale_digits_data.png"]
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in pictures)

    # a run that was stopped before its result goes on from its checkpoint, and nothing else is made again
    for argument in ("batch_size=16", "duration.steps=5"):
        with pytest.raises(SystemExit, match="2"):
            scale.main([*argv, argument])
    assert "batch_size: 32 there, 16 here" in capsys.readouterr().err
    (tmp_path / "runs/tiny-8px-10pct-seed0" / results.RESULT).unlink()
    others = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob(results.RESULT))]
    capsys.readouterr()
    scale.main([*argv, "--dry-run"])
    assert "3 of 4 runs finished" in capsys.readouterr().out
    scale.main(argv)
    assert capsys.readouterr().out.count("finished before") == 3
    now = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob(results.RESULT)}
    del now["tiny-8px-10pct-seed0"]
    assert sorted(now.values()) == sorted(others)
    assert [row["accuracy"] for row in rows_of(tmp_path / "out")] == [row["accuracy"] for row in rows]


def planned(*argv):
    given = {each.partition("=")[0] for each in argv}
    return scale.plan(
        scale.settings([*(each for each in ARGV if each.partition("=")[0] not in given), *argv])
    )


def test_what_is_held_fixed_over_parts_of_the_training_set():
    tenth = len(choose(digits(), train="train[:10%]").splits["train"])
    argv = ("duration.epochs=10", "duration.steps=null", "eval_every.epochs=5")
    whole = round(10 * 1437 / 32)
    steps, epochs = planned(*argv), planned(*argv, "fixed=epochs")
    assert [cell.run.recipe.duration for cell in steps] == 4 * [Duration(steps=whole)]
    part = round(whole * tenth / 1437)
    assert [cell.run.recipe.duration.steps for cell in epochs] == 2 * [part, whole]
    for cell in (*steps, *epochs):  # evaluated twice in its course, however long it is
        ratio = cell.run.recipe.duration.steps / cell.run.recipe.eval_every.steps
        assert ratio == pytest.approx(2, abs=0.2)


def test_every_size_and_seed_is_a_run_of_its_own():
    cells = planned("sizes=[8,16]", "seeds=2", "fractions=50", "train_split=train[:80%]")
    assert {cell.run.recipe.train_split for cell in cells} == {"train[:40%]"}
    assert [(cell.image_size, cell.seed) for cell in cells] == 2 * [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert {(c.run.recipe.image_size, c.run.recipe.seed) for c in cells} == {(8, 0), (8, 1), (16, 0), (16, 1)}
    assert len({cell.run.run_dir for cell in cells}) == 8


def rows(accuracies, **changes):
    """Of two networks on 1 and 100 % of 1,000 images; accuracies are fractions."""
    places = [(model, percent) for model in ("small", "large") for percent in (1, 100)]
    return [
        {
            "model": model,
            "image_size": 32,
            "percent": percent,
            "seed": 0,
            "accuracy": accuracy,
            "parameters": 1e6 if model == "small" else 4e6,
            "gmacs": 0.5 if model == "small" else 2,
            "train_images": 10 * percent,
            "images_seen": 2000,
            "images_per_second": 400 if model == "small" else 100,
            "device_seconds": 5,
            **changes,
        }
        for (model, percent), accuracy in zip(places, accuracies, strict=True)
    ]


def test_points_are_means_over_seeds_and_their_cost_is_three_forward_passes():
    both = rows([0.2, 0.5, 0.3, 0.8]) + rows([0.3, 0.6, 0.3, 0.6], seed=1)
    found = report.points(both)
    assert [(p.model, p.percent, p.seeds) for p in found] == [
        ("small", 1, 2), ("small", 100, 2), ("large", 1, 2), ("large", 100, 2)
    ]  # fmt: skip
    assert [p.accuracy for p in found] == pytest.approx([25, 55, 30, 70])
    assert found[3].deviation == pytest.approx(200**0.5)  # of 80 and 60
    assert found[0].training_macs == pytest.approx(3 * 0.5e9 * 2000)
    assert report.noise(found) == pytest.approx(2 * (2 * 50**0.5 + 0 + 200**0.5) / 4)


def test_the_verdict_follows_the_numbers():
    said = report.verdict(report.points(rows([0.2, 0.5, 0.3, 0.8])))
    assert "more accurate on the whole set shows here: large 80.0 %, small 50.0 %." in said
    assert (
        "shows here for every network between the smallest part and the largest: small +30.0, large +50.0"
        in said
    )
    assert "falls" not in said
    assert "makes more of more images shows here: +20.0 points" in said
    reversed_ = report.verdict(report.points(rows([0.2, 0.5, 0.2, 0.4])))
    assert "on the whole set is reversed here" in reversed_
    assert "makes more of more images is reversed here: -10.0 points" in reversed_
    half = [{**each, "percent": 50, "accuracy": 0.6} for each in rows([0.2, 0.5, 0.3, 0.8])[::2]]
    told = report.verdict(report.points([*rows([0.2, 0.5, 0.3, 0.8]), *half]))
    assert (
        "On the way it falls: small -10.0 from 50 to 100 %; the trainings go 2.0 times through the largest"
        in told
    )
    assert "does not show here" in report.verdict(report.points(rows([0.2, 0.5, 0.2, 0.51])))
    sizes = [*rows([0.2, 0.5, 0.3, 0.8]), *rows([0.2, 0.4, 0.3, 0.9], image_size=64)]
    assert "64 px are better than 32 px is reversed here" in report.verdict(report.points(sizes))


def test_figures_are_drawn_from_rows_alone():
    found = report.points(rows([0.2, 0.5, 0.3, 0.8]))
    models, data = report.model_scale(found, "a", data="x"), report.data_scale(found, "a", data="x")
    cost, speed = models.panels
    assert (cost.series[0].x, cost.series[0].y) == (pytest.approx((3, 12)), pytest.approx((50, 80)))
    assert speed.series[0].x == (400, 100)
    assert [(each.name, each.x) for each in data.panels[0].series] == [
        ("small", (10, 1000)), ("large", (10, 1000))
    ]  # fmt: skip
    assert report.model_scale(found[:2], "a", data="x") is None
    assert report.data_scale(found[1::2], "a", data="x") is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fraction=3"], "unknown key 'fraction': did you mean 'fractions'?"),
        (["models=mixer_s17"], "there is no model 'mixer_s17': did you mean 'mixer_s16'?"),
        (["models=a", "a.model=mixer_s17"], "there is no model 'mixer_s17'"),
        (["models=a b"], "'a b' is no name"),
        (["fractions=[0,10]"], "fractions: expected numbers above 0, found '0'"),
        (["fractions=110"], "fractions are percent of the training set, found 110"),
        (["sizes=31.5"], "sizes: expected whole numbers above 0, found '31.5'"),
        (["--image_size=32"], "'image_size' is set by the study: use sizes="),
        (["hydra.run.dir=x"], "give its runs a place with folder=<folder>"),
        (["fast_dev_run=true"], "fast_dev_run keeps no figures to compare"),
        (["evals=none"], "'evals' is empty"),
        (["seeds=0"], "seeds must be at least 1"),
        (["train_split=train[10%:]"], "use train_split=train or train[:90%]"),
        (["tiny.hiden_dim=3"], "tiny: unknown key"),
        (["sizes=9", "model.patch_size=2"], "image_size 9 is not a multiple of patch_size 2"),
        (["fractions=0.0001"], "holds none of the 1,437 images"),
    ],
)
def test_a_wrong_setting_is_named(argv, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        scale.main([*ARGV, f"folder={tmp_path}", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_committed_page_is_what_its_rows_give():
    with (ROOT / "results/scale_cifar10.csv").open() as file:
        found = report.points(csv.DictReader(file))
    text = (ROOT / "results/scale_cifar10.md").read_text()
    assert markdown.escape(report.verdict(found)) in text
    assert "\n".join(markdown.table(report.TABLE, report.cells(found))) in text
    assert report.PUBLISHED in text
