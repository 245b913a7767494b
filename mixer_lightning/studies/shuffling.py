"""Whether a network needs to know where pixels are (arXiv 2105.01601, section 4.1 and figure 4).

    mixer study shuffling data=imagenet1k trainer=gpu
    mixer study shuffling data=cifar10 models=mixer_s16,wrn_28_2 mixer_s16.patch_size=4 mixer_s16.num_blocks=4
    mixer study shuffling checkpoint=Mixer-B_16.npz

Every model is trained on three inputs: original; (1) 16x16 patches in another order, and the pixels in each by one
common permutation; (2) the pixels of the whole image permuted. One fixed permutation is shared by all images, in
training and in evaluation (augment.shuffle). Writes linear 5-shot accuracy over training, as
<out>/shuffling_<data>.csv, .md and .png. Runs lie under `folder`; those that have finished are not repeated.

With `checkpoint` nothing is trained: the logits of its network on images of (1) are compared with those of the
original, with its weights as they are and permuted (studies/shuffling_proof.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.config.from_checkpoint import check_there
from mixer_lightning.config.overrides import file_name
from mixer_lightning.engine.run import wait_briefly
from mixer_lightning.models.presets import list_models, model_node
from mixer_lightning.reports import markdown
from mixer_lightning.reports import shuffling as report
from mixer_lightning.reports.description import describe_checkpoint
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies.shuffling_runs import SHOTS, Run, curves, plan, run_all
from mixer_lightning.studies.training_runs import read_settings, refuse_unknown_model

if TYPE_CHECKING:
    from mixer_lightning.studies.shuffling_proof import Proof

PAPERS = "mixer_b16,bit_r50x1"
NOISE = 2  # points between two seeds of a short run, of which a difference is no finding
OPTIONS = ("models", "patch", "shuffle_seed", "folder", "out", "checkpoint")
SHUFFLED_BY = "shuffle_seed= and patch="
OF_STUDY = {
    "model": "models=",
    "name": "folder=",
    "augment.shuffle": SHUFFLED_BY,
    "augment.shuffle_patch": SHUFFLED_BY,
    "augment.shuffle_seed": SHUFFLED_BY,
}


class Settings(NamedTuple):
    """What a command line asks for; `overrides` are handed on to the runs."""

    chosen: argparse.Namespace
    models: list[str]
    overrides: list[str]


def settings(argv: Sequence[str]) -> Settings:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study shuffling",
        usage="[models=...] [key=value ... of mixer train], or checkpoint=<file>",
        description="5-shot accuracy of models trained on shuffled pixels; or, of a checkpoint, what shuffled patches "
        "change in its logits.",
    )
    add = parser.add_argument
    add("--models", default=PAPERS, metavar="NAMES", help="of conf/model; default: %(default)s, the paper's")
    add(
        "--patch",
        type=int,
        metavar="N",
        help="side of a patch in pixels; default: the first model's, else 16",
    )
    add("--shuffle_seed", type=int, default=0, metavar="N", help="of the permutations; default: %(default)s")
    add("--folder", type=Path, default=Path("runs/shuffling"), metavar="FOLDER", help="default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    add("--checkpoint", metavar="FILE", help="compare logits only: weights, a run directory or timm:<name>")
    chosen, overrides = read_settings(parser, argv, OPTIONS, set_for_runs=OF_STUDY)
    parser.check_at_least(1, chosen, "patch")
    parser.check_at_least(0, chosen, "shuffle_seed")
    models = listed(chosen.models)
    if not models:
        parser.error("models names none: for example models=mixer_s16,resnet50")
    for name in models:
        refuse_unknown_model(parser, name)
    if chosen.checkpoint is not None and overrides:
        given = overrides[0].partition("=")[0]
        parser.error(f"with checkpoint nothing is trained: '{given}' has no place beside it")
    chosen.folder = chosen.folder.expanduser()
    return Settings(chosen, models, overrides)


def main(argv: Sequence[str]) -> None:
    """Train what is not trained yet, print, write; or compare the logits of a checkpoint."""
    chosen, models, overrides = settings(argv)
    screen = Screen()
    wait_briefly()
    try:
        if chosen.checkpoint is not None:
            screen.say(str(proof_of(chosen.checkpoint, patch=chosen.patch, seed=chosen.shuffle_seed)))
            return
        runs = plan(
            models, patch=chosen.patch, seed=chosen.shuffle_seed, folder=chosen.folder, overrides=overrides
        )
        chosen.out = output_folder("out", chosen.out)
        if code := run_all(runs, screen):
            raise SystemExit(code)
        _write(runs, chosen, argv, screen)
    except (ValueError, OSError) as error:
        refuse([str(error)])


def proof_of(checkpoint: str, *, patch: int | None, seed: int) -> Proof:
    """What shuffled patches change in the logits of a checkpoint; `patch` None is that of its network, else 16.

    Raises:
        ValueError, OSError: there is no such checkpoint, it does not tell its model, or has no such patches.
    """
    check_there(checkpoint)
    from mixer_lightning.checkpoints.restore import restore
    from mixer_lightning.data.shuffling import Shuffle
    from mixer_lightning.studies.shuffling_proof import patch_size_of, prove
    from mixer_lightning.studies.shuffling_runs import DEFAULT_PATCH

    restored = restore(checkpoint)
    patch = patch or patch_size_of(restored.model) or DEFAULT_PATCH
    shuffle = Shuffle(kind="patches", patch_size=patch, seed=seed, image_size=restored.image_size)
    return prove(restored.model, shuffle)


def _write(runs: Sequence[Run], chosen: argparse.Namespace, argv: Sequence[str], screen: Screen) -> None:
    """The table on the screen; rows, page and picture."""
    data, rows = curves(runs)
    columns, cells = report.drop_rows(report.drops(rows))
    screen.table("", columns, cells)
    patch = next(each.recipe.augment["shuffle_patch"] for each in runs if each.input == "patches")
    proofs = {
        each.model: proof_of(str(each.run_dir), patch=patch, seed=chosen.shuffle_seed)
        for each in runs
        if each.input == "original"
    }
    for model, proof in proofs.items():
        screen.say(f"{model}: {proof}")
    path = chosen.out / f"shuffling_{file_name(data)}.csv"
    results.write_rows(path, rows, digits=6)
    report.draw(path.with_suffix(".png"), rows, examples(runs), data=data, details=details(runs))
    text = "\n".join(page(runs, data, rows, proofs, argv, picture=path.with_suffix(".png").name))
    markdown.write_page(path.with_suffix(".md"), f"{text}\n")
    screen.say(f"written to {path}, .md and .png")


def details(runs: Sequence[Run]) -> dict[str, str]:
    """Of every model, in what it differs from its file of conf/model."""
    return {
        each.model: ", ".join(
            f"{key} {value}"
            for key, value in each.recipe.model.items()
            if each.model not in list_models() or model_node(each.model).get(key) != value
        )
        for each in runs
    }


def examples(runs: Sequence[Run]) -> dict[str, Any]:
    """A photograph that comes with scikit-learn, as the first model sees it under each input: uint8 [S, S, 3]."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from mixer_lightning.data.eval_transform import EvalTransform
    from mixer_lightning.engine.first_batch import pixels
    from mixer_lightning.targets import build

    image = Image.fromarray(load_sample_image("flower.jpg"))
    found = {}
    for each in runs:
        if each.model == runs[0].model:
            augment = build(each.recipe.augment)
            found[each.input] = pixels(EvalTransform(augment, each.recipe.image_size)(image)[None], augment)[
                0
            ]
    return found


def page(
    runs: Sequence[Run],
    data: str,
    rows: Sequence[dict[str, Any]],
    proofs: dict[str, Proof],
    argv: Sequence[str],
    *,
    picture: str,
) -> list[str]:
    """The lines of the Markdown page: table, verdict, proof, caveats, provenance."""
    found = report.drops(rows)
    result = results.read_result(runs[0].run_dir) or {}
    patched = next(each.recipe for each in runs if each.input == "patches")
    columns, cells = report.drop_rows(found)
    about = {each.model: describe_checkpoint(each.run_dir)[0] for each in runs if each.input == "original"}
    introduction = (
        f"Linear {SHOTS}-shot top-1 of networks trained on images whose pixels are in another order, the same for all "
        f"images in training and evaluation: (1) patches of {patched.augment['shuffle_patch']} px shuffled and the "
        "pixels in each by one common permutation, (2) the pixels of the whole image permuted; after crop, flip and "
        f"normalisation (arXiv 2105.01601, section 4.1, figure 4). Each run: {patched.duration} of "
        f"{patched.batch_size} images of {patched.image_size} px, seed {patched.seed}."
    )
    return [
        f"# Shuffled pixels on {data}",
        "",
        introduction,
        "",
        *markdown.table(columns, cells),
        "",
        f"![{SHOTS}-shot accuracy over training]({picture})",
        "",
        markdown.FINDING,
        "",
        verdict(found, unaware=[model for model, proof in proofs.items() if proof.is_equal]),
        "",
        caveats(len(result.get("classes", []))),
        "",
        "## The exact statement behind (1)",
        "",
        *(f"* {markdown.escape(model)}: {markdown.escape(str(proof))}." for model, proof in proofs.items()),
        "",
        "## Where the numbers come from",
        "",
        *(f"* {markdown.escape(model)}, original: {markdown.escape(each)}" for model, each in about.items()),
        *markdown.provenance(
            machine=results.cpu_name(),
            versions=results.versions(),
            command=["mixer", "study", "shuffling", *argv],
            commit=results.git_sha(),
        ),
    ]


def verdict(found: Sequence[report.Drop], *, unaware: Sequence[str]) -> str:
    """Whether the paper's claims show; `unaware` are the networks whose weights can undo (1)."""
    sentences = []
    for kind, claim in (
        ("patches", "that a Mixer does not notice (1) while a network of convolutions does"),
        ("pixels", "that a Mixer loses less under (2) than a network of convolutions"),
    ):
        here = [drop for drop in found if drop.input == kind]
        mixers = [drop for drop in here if drop.model in unaware]
        others = [drop.points for drop in here if drop.model not in unaware]
        if not mixers or not others:
            continue
        most = max(drop.points for drop in mixers)
        shows = most < min(others) / 2 if kind == "patches" else most < min(others)
        changes = ", ".join(
            f"{each.model} {-each.points:+.1f} points ({-each.relative:+.0f} %)" for each in here
        )
        sentences.append(f"The claim {claim} {'shows' if shows else 'does not show'} here: {changes}.")
        if kind == "pixels" and min(drop.points for drop in mixers) < NOISE:
            sentences.append(
                "That (2) costs a Mixer much as well does not show: it may use no neighbourhoods yet after so short a "
                "training, and then has none to lose."
            )
    sentences.append(f"One run each: a second seed may differ by {NOISE} points or so.")
    return markdown.escape(" ".join(sentences))


def caveats(num_classes: int) -> str:
    """What is ambiguous in the paper, and other than there."""
    sentences = [
        f"Published, on JFT-300M and ImageNet: {report.PUBLISHED}.",
        "The paper does not say whether in points or relative, so both stand above; its curves are in a figure alone.",
        "The few-shot classes are those of training here, in the paper they are of another data set.",
    ]
    if num_classes:
        sentences.append(
            f"Chance is {100 / num_classes:.3g} % with {num_classes:,} classes: a network can lose what it has above "
            "that and no more, so that relative losses are smaller than they would be with many classes."
        )
    return " ".join(sentences)
