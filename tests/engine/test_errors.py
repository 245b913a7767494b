"""What goes wrong is said in a sentence that names the place and what would mend it, with the right exit code."""

from __future__ import annotations

import errno
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import TINY
from mixer_lightning import launcher, results
from mixer_lightning.api import create_model
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import run
from mixer_lightning.screen import Screen, say_what_broke


def train(run_dir: Path, *words: str) -> int:
    """A tiny run in this process; the exit code."""
    return run.train(compose_one("train", [*TINY, *words]), run_dir)


@pytest.fixture
def refused(tmp_path, capsys):
    """refused("..."): the words of a run that must exit with 2 and leave nothing behind."""

    def refused(*words: str) -> str:
        try:
            recipe = compose_one("train", [*TINY, *words])
        except ValueError as error:  # the command line alone shows it: there is no run directory yet
            return str(error)
        (tmp_path / "run").mkdir()  # as Hydra does
        assert run.train(recipe, tmp_path / "run") == 2
        assert not (tmp_path / "run").exists()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return said.out

    return refused


def write_images(
    root: Path, *, splits: tuple[str, ...] = ("train", "val"), each: int = 6, mixed_sizes: bool = False
) -> Path:
    """A data set of two classes in folders; of one size, it is kept in memory."""
    noise = np.random.default_rng(0)
    for split in splits:
        for name in ("cats", "dogs"):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = noise.integers(0, 256, (12, 12 + mixed_sizes * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


FOLDER = ("data=folder", "image_size=8", "batch_size=4", "duration.steps=4")


# ------------------------------------------------------------------------------------------------- 2: data


@pytest.mark.parametrize("layout", ["train/all", "all"])
def test_one_class_is_refused_and_not_trained_to_a_hundred_percent(refused, tmp_path, layout):
    noise = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "birds" / layout / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    split = ("train_split=train[:50%]", "val_split=train[50%:]")
    said = refused(*FOLDER, f"data.root={tmp_path / 'birds'}", *split)
    assert "training images are of one class, 'all': there is nothing to tell apart" in said
    assert "<root>/train/<class>/<image>" in said


def test_shards_of_one_class_are_refused(refused, tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for i in range(4):
            for name, content in ((f"{i}.cls", b"1"), (f"{i}.png", b"picture")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    shutil.copy(tmp_path / "train-0.tar", tmp_path / "val-0.tar")
    said = refused("data=shards", f"data.root={tmp_path}", "image_size=8", "batch_size=4", "duration.steps=4")
    assert "shards: all 4 training images are of one class, '1'" in said


def test_missing_shards(refused, tmp_path):
    """Word for word as the user stories have it."""
    root = tmp_path / "none"
    said = refused("model=mixer_s16", "data=imagenet21k", "trainer=cpu", f"data.root={root}")
    assert said.startswith(
        f"imagenet21k: no shards under {root}. Expected {root}/train-*.tar and dataset.json."
    )
    assert said.count("\n") == 1


def test_missing_folder(refused, tmp_path):
    said = refused(*FOLDER, f"data.root={tmp_path}/nowhere")
    assert said.startswith(f"folder: no folder {tmp_path}/nowhere. Set data.root to")


def test_empty_class_folder(refused, tmp_path):
    root = write_images(tmp_path / "pets")
    (root / "train" / "ferrets").mkdir()
    assert "1 class folder(s)" in (said := refused(*FOLDER, f"data.root={root}"))
    assert "'ferrets'" in said


def test_no_split_to_evaluate_on(refused, tmp_path):
    root = write_images(tmp_path / "pets", splits=("train",))
    said = refused(*FOLDER, f"data.root={root}")
    assert "folder: there is neither a val nor a test split" in said
    assert "train_split='train[:90%]'" in said


# ----------------------------------------------------------------------------------------------- 2: numbers


def test_an_image_size_that_the_patch_does_not_divide(refused):
    said = refused("model=mixer_s16", "image_size=40")
    assert "40" in said
    assert "16" in said
    assert "image_size" in said


def test_a_batch_that_does_not_divide(refused):
    said = refused("device_batch=7")
    assert said.startswith("device_batch 7 does not divide 60")
    assert "set device_batch to" in said
    assert any(f" {fit}" in said for fit in (5, 6, 10))


def test_a_warmup_longer_than_the_run(refused):
    said = refused("schedule.warmup_steps=50")
    assert "schedule.warmup_steps=50" in said
    assert "the run has only 12" in said


def test_a_probability_above_one(refused):
    assert "augment.flip" in refused("augment.flip=7")


@pytest.mark.parametrize("word", ["optimizer.lr=-1", "optimizer.beta1=2", "loss.label_smoothing=2"])
def test_numbers_that_the_optimizer_or_the_loss_refuses(refused, word):
    assert refused(word)


def test_a_split_that_the_data_set_lacks(refused):
    assert "no split 'val'" in refused("evals.accuracy.splits=[val]", "eval_every.steps=12")


# ------------------------------------------------------------------------------------------ 2: checkpoints


def test_a_checkpoint_that_is_not_there(refused, tmp_path):
    assert f"there is no checkpoint file {tmp_path}/x.pth" in refused(f"checkpoint={tmp_path}/x.pth")


def test_a_checkpoint_of_another_model(refused, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(create_model("convmixer_96_4", num_classes=10).state_dict(), path)
    said = refused(f"checkpoint={path}")
    assert str(path) in said
    assert "model=convmixer_96_4" in said  # what would fit


def test_a_checkpoint_that_is_a_web_page(refused, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    said = refused(f"checkpoint={path}")
    assert str(path) in said
    assert "web page" in said


def test_a_head_that_stays_fresh_is_said(tmp_path, capsys):
    path = tmp_path / "seven.pth"
    torch.save(create_model("mixer_digits", num_classes=7).state_dict(), path)
    assert train(tmp_path / "run", f"checkpoint={path}", "duration.steps=2", "evals=none") == 0
    assert "head stays fresh: 7 classes there, 10 here" in capsys.readouterr().out


def test_weights_to_start_from_are_used(tmp_path):
    torch.manual_seed(5)
    start = create_model("mixer_digits", num_classes=10)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    words = ("duration.steps=1", "schedule=constant", "optimizer=sgd", "optimizer.lr=1e-9", "evals=none")
    assert train(tmp_path / "run", f"checkpoint={tmp_path}/start.pth", *words) == 0
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(state[f"model.{name}"], tensor, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- 2: machine


def test_ddp_without_a_launcher(refused, monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    said = refused("trainer=ddp", "trainer.accelerator=cpu")
    assert said.startswith("trainer=ddp is started by a launcher")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(refused):
    assert "use trainer=cpu" in refused("trainer=gpu")


# ------------------------------------------------------------------------------------- 2: the run directory


def test_a_run_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert train(tmp_path / "taken" / "run") == 2
    said = capsys.readouterr().out
    assert f"cannot write into the run directory {tmp_path}/taken/run" in said
    assert "hydra.run.dir=" in said


@pytest.mark.parametrize("word", ["[1", None])
def test_a_lost_or_damaged_recipe_lets_no_other_recipe_in(tmp_path, capsys, word):
    """The checkpoint holds its own, and so does the result."""
    assert train(tmp_path) == 0
    for _ in ("with a result", "with a checkpoint alone"):
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)
        if word is not None:
            (tmp_path / "recipe.yaml").write_text(word)
        capsys.readouterr()
        assert train(tmp_path, "optimizer.lr=0.5", "seed=1") == 2
        said = capsys.readouterr().out
        assert "of another recipe" in said
        assert "optimizer.lr: 0.001 there, 0.5 here" in said
        assert train(tmp_path) == 0
        (tmp_path / "result.json").unlink()
    assert train(tmp_path) == 0
    assert "seed: 0" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "content"), [("last.ckpt", b""), ("last.ckpt", b"PK\3\4 cut"), ("result.json", b'{"a')]
)
def test_a_damaged_file_in_the_run_directory(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert train(tmp_path) == 2
    said = capsys.readouterr().out
    assert str(tmp_path / name) in said
    assert (tmp_path / name).read_bytes() == content


# ------------------------------------------------------------------------------------ 1: failed on the way


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize(
    ("mixed_sizes", "threads", "words"),
    [(True, 1, ["max_bad_fraction=0.01"]), (True, 3, []), (False, 3, ["max_bad_fraction=0.0"])],
)
def test_too_many_corrupt_training_images(tmp_path, capsys, mixed_sizes, threads, words):
    """Two of twelve are more than a hundredth, than the default allows, and one is more than none."""
    root = write_images(tmp_path / "pets", mixed_sizes=mixed_sizes)
    bad = [cut(root / "train" / "dogs" / "3.jpg")]
    if words != ["max_bad_fraction=0.0"]:
        bad.append(cut(root / "train" / "cats" / "2.jpg"))
    options = (f"data.root={root}", f"trainer.decode_threads={threads}", "checkpoint_every.steps=1")
    assert train(tmp_path / "run", *FOLDER, *options, *words) == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if f"bad image number {len(bad)} of 12" in line]
    assert any(line.startswith(f"cannot read {each}: ") for each in bad)
    assert "more than max_bad_fraction=" in line
    assert "Traceback" not in said
    assert f"  {line}\n" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("mixed_sizes", "threads"), [(True, 3), (False, 1)])
def test_a_few_corrupt_training_images_are_named_and_replaced(tmp_path, capsys, mixed_sizes, threads):
    root = write_images(tmp_path / "pets", mixed_sizes=mixed_sizes)
    bad = [cut(root / "train" / name) for name in ("dogs/3.jpg", "cats/0.jpg")]
    options = (f"data.root={root}", f"trainer.decode_threads={threads}", "max_bad_fraction=0.2")
    assert train(tmp_path / "run", *FOLDER, *options) == 0  # 16 of 12: every image is wanted
    said = capsys.readouterr().out
    log = (tmp_path / "run" / "log.txt").read_text()
    for path in bad:
        for text in (said, log):
            (line,) = [line for line in text.splitlines() if str(path) in line]
            assert line.removeprefix(line[:21] if text is log else "").startswith(f"cannot read {path}: ")
            assert line.rstrip().endswith("another image is used instead")
    assert results.read_result(tmp_path / "run")["metrics"].keys() >= {"val/top1"}


def test_a_corrupt_image_to_evaluate_on_ends_the_run(tmp_path, capsys):
    """A figure without it would be that of another data set, whatever training puts up with."""
    root = write_images(tmp_path / "pets", mixed_sizes=True)
    (root / "val/cats/5.jpg").unlink()
    bad = root / "val/cats/5.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(bad)
    whole = bad.read_bytes()
    bad.write_bytes(whole[:60] + bytes(20) + whole[80:])  # which neither end shows
    options = (f"data.root={root}", "max_bad_fraction=0.5", "checkpoint_every.steps=1", "eval_every.steps=2")
    assert train(tmp_path / "run", *FOLDER, *options) == 1
    said = capsys.readouterr().out
    assert f"cannot read {bad}: " in said
    assert "put a good file in its place" in said
    assert f"step 1, stands in {tmp_path}/run/last.ckpt" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "result.json").exists()
    bad.write_bytes(whole)
    assert train(tmp_path / "run", *FOLDER, *options) == 0


SPOILT = """
from __future__ import annotations
import torch
import yaml
from mixer_lightning.losses import softmax_cross_entropy

calls = 0

def loss(logits: torch.Tensor, targets: torch.Tensor, *, bad_call: int, class_weights: None) -> torch.Tensor:
    global calls
    calls += logits.requires_grad  # a trial before the run is no step
    factor = float("nan") if calls == bad_call else 1.0
    return factor * softmax_cross_entropy(logits, targets)
"""


def test_a_loss_that_is_not_finite(tmp_path, capsys, monkeypatch):
    """It becomes NaN in step 8: what was saved at step 6 stands."""
    (tmp_path / "spoilt.py").write_text(SPOILT)
    (tmp_path / "my" / "loss").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        "~loss.label_smoothing",
        "loss._target_=spoilt.loss",
        "loss.bad_call=8",
    )  # call 1 is the trial before the start
    assert train(tmp_path / "run", *words) == 1
    said = capsys.readouterr().out
    assert "the loss of step 8 is not finite" in said
    assert "optimizer.lr" in said
    assert f"step 6, stands in {tmp_path}/run/last.ckpt" in said
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert not (tmp_path / "run" / "result.json").exists()


def test_weights_that_are_not_finite_are_no_good_checkpoint(tmp_path):
    """The step after the warm-up makes them infinite; its own loss was still finite."""
    words = ("optimizer.lr=1e39", "schedule=linear", "schedule.warmup_steps=4", "checkpoint_every.steps=1")
    assert train(tmp_path / "run", *words) == 1
    last = tmp_path / "run" / "last.ckpt"
    assert last.exists()
    state = torch.load(last, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_a_rate_far_too_high(tmp_path, capsys):
    assert train(tmp_path / "run", "optimizer.lr=1e30", "clip_grad_norm=null") == 1
    said = capsys.readouterr().out
    assert "is not finite. Lower optimizer.lr" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("function", ["keep_metrics_until", "write_metrics_csv", "write_result"])
def test_a_full_disk_before_and_after_the_training(tmp_path, capsys, monkeypatch, function):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, function, full)
    assert train(tmp_path / "run", "duration.steps=2", "evals=none") == 1
    said = capsys.readouterr().out
    assert "No space left on device" in said
    assert "Traceback" not in said


def test_what_was_not_foreseen_leaves_its_traceback_in_the_log(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "from __future__ import annotations\nimport torch\n\n"
        "def loss(logits: torch.Tensor, targets: torch.Tensor, class_weights: None) -> torch.Tensor:\n"
        "    return logits.no_such_thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert train(tmp_path / "run", "~loss.label_smoothing", "loss._target_=broken.loss") == 1
    said = capsys.readouterr().out
    assert "AttributeError" in said
    assert "no_such_thing" in said
    assert "Traceback" not in said
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert "broken.py" in log


STOPPING = """
from lightning.pytorch import Callback

class Impatient(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        trainer.should_stop = module.step == 2
"""


def test_a_callback_that_ends_the_training_leaves_a_checkpoint_and_no_result(tmp_path, capsys, monkeypatch):
    (tmp_path / "stopping.py").write_text(STOPPING)
    monkeypatch.syspath_prepend(tmp_path)
    assert train(tmp_path / "run", "+callbacks.impatient._target_=stopping.Impatient") == 1
    assert "a callback ended the training at step 2 of 12" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 2
    assert not (tmp_path / "run" / "result.json").exists()


def test_brackets_are_text_on_the_screen_and_in_the_log(tmp_path, capsys):
    screen = Screen()
    screen.open_log(tmp_path / "log.txt")
    screen.table("", ("file", "[bold]"), [("runs/x-evals=[accuracy,real]/last.ckpt", "a[/x]b")])
    try:
        raise RuntimeError("[/pytorch/pair.cc:152] connection [closed]")
    except RuntimeError as error:
        say_what_broke(screen, error, tmp_path / "log.txt")
    screen.close()
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert "evals=[accuracy,real]/last.ckpt" in text
        assert "a[/x]b" in text
        assert "[/pytorch/pair.cc:152] connection [closed]" in text


def test_the_name_of_a_run_directory_is_text(tmp_path, capsys):
    run_dir = tmp_path / "a[" / "b] :dog:"
    assert train(run_dir, "evals=none") == 0
    assert f"{run_dir}/result.json" in capsys.readouterr().out
    assert f"{run_dir}/result.json" in (run_dir / "log.txt").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_under_the_log_ends_the_log_alone(tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "log.txt").symlink_to("/dev/full")
    assert train(run_dir, "evals=none") == 0
    said = capsys.readouterr().out
    assert "cannot write the log" in said
    assert "Traceback" not in said
    assert (run_dir / "result.json").exists()


def test_a_disk_that_becomes_read_only_fails_the_run(tmp_path, capsys, monkeypatch):
    """1, since steps were made; also where the lock cannot be taken away any more."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    unlink = Path.unlink

    def unlink_all_but_the_lock(path: Path, **how: bool) -> None:
        return (read_only if path.name == ".lock" else unlink)(path, **how)

    monkeypatch.setattr(results, "append_metrics", read_only)
    monkeypatch.setattr(Path, "unlink", unlink_all_but_the_lock)
    assert train(tmp_path / "run", "evals=none") == 1
    said = capsys.readouterr().out
    assert "Read-only file system" in said
    assert f"step 3, stands in {tmp_path}/run/last.ckpt" in said


def test_a_directory_that_is_gone_holds_no_checkpoint(tmp_path, capsys, monkeypatch):
    append = results.append_metrics

    def gone(run_dir: Path, row: dict[str, float]) -> None:
        shutil.rmtree(run_dir)
        append(run_dir, row)

    monkeypatch.setattr(results, "append_metrics", gone)
    assert train(tmp_path / "run", "evals=none") == 1
    assert f"step 3, was {tmp_path}/run/last.ckpt, which is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    "word", ["model.patch_size=0", "model.hidden_dim=-4", "model.hidden_dim=1000000000000"]
)
def test_a_model_that_cannot_be_built(refused, word):
    assert word.partition(".")[2].partition("=")[0] in refused(word)


def test_what_another_process_alone_finds_wrong_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launcher, "is_first", lambda: False)
    monkeypatch.setattr(launcher, "rank", lambda: "1")
    monkeypatch.setattr(run, "SECONDS_FOR_THE_FIRST", 0.0)
    assert train(tmp_path / "run", "data=folder", f"data.root={tmp_path}/nowhere") == 2
    assert f"process 1: folder: no folder {tmp_path}/nowhere" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- damaged images


def test_a_damaged_image_to_evaluate_on_is_named_before_the_start(refused, tmp_path):
    root = write_images(tmp_path / "pets", mixed_sizes=True)
    path = root / "val/dogs/3.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    said = refused(*FOLDER, f"data.root={root}")
    assert f"cannot read {path}: " in said
    assert "put good files in the place of these, or remove them" in said


@pytest.mark.parametrize("mended", ["allowed", "repaired"])
def test_what_is_advised_about_bad_images_is_accepted_by_the_run_that_they_stopped(tmp_path, capsys, mended):
    root = write_images(tmp_path / "pets", mixed_sizes=True)
    whole = {}
    for path in (root / "train/cats/1.jpg", root / "train/dogs/4.jpg"):
        whole[path] = path.read_bytes()
        path.write_bytes(whole[path][:-30])
    words = [*FOLDER, f"data.root={root}", "checkpoint_every.epochs=null", "checkpoint_every.steps=1"]
    run_dir = tmp_path / "run"
    assert train(run_dir, *words) == 1
    assert (run_dir / results.LAST).exists()
    said = capsys.readouterr().out.replace("\n", " ")
    assert "bad image number 2 of 12" in said
    advised = said.partition("such as max_bad_fraction=")[2].split()[0].rstrip(".")
    if mended == "allowed":
        words.append(f"max_bad_fraction={advised}")
    else:
        path, content = whole.popitem()
        path.write_bytes(content)
    assert train(run_dir, *words) == 0
    said = capsys.readouterr().out
    assert "resuming" in said
    assert (f"max_bad_fraction is {advised} from here on, 0.001 before" in said) == (mended == "allowed")


def test_a_run_older_than_a_key_goes_on_with_what_it_did(tmp_path):
    assert train(tmp_path / "run") == 0
    recipe = yaml.safe_load((tmp_path / "run" / results.RECIPE).read_text())
    del recipe["augment"]["exif_orientation"]
    (tmp_path / "run" / results.RECIPE).write_text(yaml.safe_dump(recipe))
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "run", "augment.exif_orientation=true") == 2
