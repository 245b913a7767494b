"""The experiments against the papers' tables, read from the raw YAML and typed here a second time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
FILES = {path.stem: path for path in sorted((CONF / "experiment").glob("*.yaml"))}

# arXiv 2105.01601, Table 4 (epochs, lr, weight decay, stochastic depth), Appendix B (batch),
# big_vision (head bias); ImageNet top-1 of Table 3, fine-tuned at 224.
MIXER = {
    "mixer_b16_imagenet1k": (300, 0.001, 0.1, 0.1, 4096, -6.9, "76.44"),
    "mixer_l16_imagenet1k": (300, 0.001, 0.1, 0.1, 4096, -6.9, "71.76"),
    "mixer_b16_imagenet1k_60ep": (60, 0.001, 0.1, 0.1, 512, -6.9, "70.5"),
    "mixer_b16_imagenet21k": (300, 0.001, 0.1, 0.1, 4096, -10.0, "80.64"),
    "mixer_l16_imagenet21k": (300, 0.001, 0.1, 0.1, 4096, -10.0, "82.89"),
    "mixer_s32_jft300m": (5, 0.003, 0.03, 0.0, 4096, -10.0, "68.70"),
    "mixer_s16_jft300m": (5, 0.003, 0.03, 0.0, 4096, -10.0, "73.83"),
    "mixer_b32_jft300m": (7, 0.003, 0.03, 0.0, 4096, -10.0, "75.53"),
    "mixer_b16_jft300m": (7, 0.003, 0.03, 0.0, 4096, -10.0, "80.00"),
    "mixer_l32_jft300m": (7, 0.001, 0.03, 0.0, 4096, -10.0, "80.67"),
    "mixer_l16_jft300m": (7, 0.001, 0.03, 0.0, 4096, -10.0, "84.05"),
    "mixer_l16_jft300m_14ep": (14, 0.001, 0.03, 0.0, 4096, -10.0, "84.82"),
    "mixer_h14_jft300m": (14, 0.001, 0.03, 0.0, 4096, -10.0, "86.32"),
}
MIXER_AUGMENT = {  # RandAugment and mixup differ between these: Table 4
    "mixer_b16_imagenet1k": "mixer_imagenet1k",
    "mixer_l16_imagenet1k": "mixer_imagenet1k",
    "mixer_b16_imagenet1k_60ep": "mixer_imagenet1k",
    "mixer_b16_imagenet21k": "mixer_b_imagenet21k",
    "mixer_l16_imagenet21k": "mixer_l_imagenet21k",
}

# arXiv 2201.09792, the ImageNet-1k table: epochs, top-1.
CONVMIXER = {
    "convmixer_1536_20": (150, "81.37"),
    "convmixer_1536_20_p7_k3": (150, "80.43"),
    "convmixer_1536_20_p14_k9": (150, "78.92"),
    "convmixer_768_32": (300, "80.16"),
    "convmixer_1024_16": (100, "79.45"),
    "convmixer_1024_12": (90, "77.75"),
    "convmixer_512_16": (90, "73.76"),
    "convmixer_512_12": (90, "72.59"),
    "convmixer_768_32_p14_k3": (300, "74.93"),
    "convmixer_1024_20": (150, "76.94"),
}
CONVMIXER_A1 = {
    "convmixer_1536_20": "82.20",
    "convmixer_1536_20_p7_k3": "81.60",
    "convmixer_1536_24_p14_k9": "80.21",
}
# arXiv 2201.09792, the ImageNet-1k table, top-1; and the crop of evaluation in the authors' timm (models/resnet.py).
RESNET = {"resnet50": ("76.32", 0.95), "resnet101": ("78.33", 0.875), "resnet152": ("79.64", 0.875)}
# facebookresearch/deit: defaults of main.py, and the size of a process's batch in the commands of README_deit.md
# (main.py and run_with_submitit.py for the base model); top-1 of arXiv 2012.12877.
DEIT = {"deit_ti16": (256, "72.2"), "deit_s16": (256, "79.8"), "deit_b16": (64, "81.8")}
DEIT_MAIN = {
    "lr": 5e-4,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "weight_decay": 0.05,
    "warmup_epochs": 5,
    "drop_path": 0.1,
}
# arXiv 2105.03404, table 1: top-1.
RESMLP = {"resmlp_s12_8": "79.1", "resmlp_b24_8": "81.0", "resmlp_b24_16": "81.0"}
# microsoft/Swin-Transformer: DROP_PATH_RATE of configs/swin, and config.py; top-1 of arXiv 2103.14030.
SWIN = {"swin_t": (0.2, "81.3"), "swin_s": (0.3, "83.0")}
SWIN_CONFIG = {"BASE_LR": 5e-4, "WARMUP_LR": 5e-7, "MIN_LR": 5e-6, "WEIGHT_DECAY": 0.05, "WARMUP_EPOCHS": 20}
VIT = ("vit_b16_imagenet1k",)
CIFAR = (
    "convmixer_256_8_cifar10_25ep",
    "convmixer_256_8_cifar10_100ep",
    "convmixer_256_8_p1_k9_cifar10_200ep",
)
DIGITS = ("mixer_digits", "convmixer_digits")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text())


def header(name: str) -> dict[str, str]:
    """Source, Expect, Cost, Run of the leading comment; lines that are indented further continue the last."""
    found: dict[str, str] = {}
    for line in FILES[name].read_text().splitlines():
        if not line.startswith("#"):
            break
        if field := re.match(r"# (Source|Expect|Cost|Run): +(\S.*)", line):
            key, found[field[1]] = field[1], field[2]
        elif found:
            found[key] += " " + line.lstrip("# ")
    return found


def choices(name: str) -> dict[str, str]:
    """Group to choice, from the defaults list."""
    return {
        key.removeprefix("override /"): choice
        for entry in load(name)["defaults"]
        for key, choice in entry.items()
    }


def test_the_experiments_are_those_of_the_tables_and_no_others():
    expected = {*MIXER, *CIFAR, *DIGITS}
    expected |= {f"{model}_imagenet1k" for model in CONVMIXER}
    expected |= {f"{model}_a1_imagenet1k" for model in CONVMIXER_A1}
    expected |= {*VIT, *(f"{model}_imagenet1k" for model in (*RESNET, *DEIT, *RESMLP, *SWIN))}
    assert expected <= set(FILES)
    papers = {name for name in FILES if re.search(r"_(imagenet1k|imagenet21k|jft300m)\b", name)}
    assert papers <= expected


@pytest.mark.parametrize("name", MIXER)
def test_mixer(name):
    epochs, lr, weight_decay, stochastic_depth, batch_size, head_bias, top1 = MIXER[name]
    recipe = load(name)
    assert recipe["duration"] == {"epochs": epochs}
    assert recipe["steps_per_epoch"] is None
    assert recipe["image_size"] == 224
    assert recipe["batch_size"] == batch_size
    assert recipe["clip_grad_norm"] == 1.0
    assert recipe["stochastic_depth"] == stochastic_depth
    assert recipe["head_bias"] == head_bias
    assert recipe["repeats"] == 1
    assert recipe["ema_decay"] is None
    assert recipe["optimizer"] == {
        "lr": lr,
        "weight_decay": weight_decay,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "decay_bias_and_norm": False,
    }
    assert recipe["schedule"] == {
        "warmup_steps": 10_000,
        "warmup_epochs": None,
        "warmup_start": 0.0,
        "end": 1e-5,
    }
    model, data = name.removesuffix("_60ep").removesuffix("_14ep").rsplit("_", 1)
    assert choices(name) == {
        "model": model,
        "data": data,
        "augment": MIXER_AUGMENT.get(name, "mixer_jft"),
        "optimizer": "adamw",
        "schedule": "linear",
        "loss": "sigmoid",
    }
    assert top1 in header(name)["Expect"]


@pytest.mark.parametrize("model", CONVMIXER)
def test_convmixer(model):
    epochs, top1 = CONVMIXER[model]
    recipe = load(f"{model}_imagenet1k")
    assert recipe["duration"] == {"epochs": epochs}
    assert recipe["steps_per_epoch"] == "floor"
    assert recipe["image_size"] == 224
    assert (recipe["batch_size"], recipe["device_batch"]) == (640, 64)
    assert recipe["clip_grad_norm"] == 1.0
    assert (recipe["stochastic_depth"], recipe["repeats"], recipe["ema_decay"]) == (0.0, 1, None)
    assert recipe["optimizer"] == {
        "lr": 0.01,
        "weight_decay": 2e-5,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-3,
        "decay_bias_and_norm": False,
    }
    assert recipe["loss"] == {"label_smoothing": 0.1}
    assert choices(f"{model}_imagenet1k") == {
        "model": model,
        "data": "imagenet1k",
        "augment": "convmixer_imagenet1k",
        "optimizer": "adamw",
        "schedule": "triangular",
        "loss": "softmax",
    }
    assert top1 in header(f"{model}_imagenet1k")["Expect"]


@pytest.mark.parametrize("model", CONVMIXER_A1)
def test_convmixer_with_the_a1_procedure(model):
    name = f"{model}_a1_imagenet1k"
    recipe = load(name)
    assert recipe["duration"] == {"epochs": 150}
    assert recipe["batch_size"] == 2048
    assert (recipe["stochastic_depth"], recipe["repeats"], recipe["ema_decay"]) == (0.05, 3, None)
    assert recipe["clip_grad_norm"] is None
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (5e-3, 0.01)
    assert (schedule["warmup_epochs"], schedule["warmup_start"]) == (5, 1e-4)
    assert schedule["end"] * optimizer["lr"] == pytest.approx(1e-6)
    assert recipe["loss"] == {"label_smoothing": 0.1}
    assert choices(name) == {
        "model": model,
        "data": "imagenet1k",
        "augment": "convmixer_a1",
        "optimizer": "lamb",
        "schedule": "cosine",
        "loss": "bce",
    }
    assert CONVMIXER_A1[model] in header(name)["Expect"]
    assert "UNVERIFIED" in header(name)["Source"]


@pytest.mark.parametrize("model", RESNET)
def test_resnet_in_the_setting_of_convmixer(model):
    name = f"{model}_imagenet1k"
    recipe, convmixer = load(name), load("convmixer_1536_20_imagenet1k")
    top1, eval_crop = RESNET[model]
    assert recipe.pop("augment") == {"eval_crop": eval_crop}
    assert recipe["duration"] == {"epochs": 150}
    for key in recipe.keys() - {"name", "defaults"}:
        assert recipe[key] == convmixer[key], key
    assert choices(name) == choices("convmixer_1536_20_imagenet1k") | {"model": model}
    assert top1 in header(name)["Expect"]
    assert "UNVERIFIED" in header(name)["Source"]


def adamw(lr: float, weight_decay: float) -> dict[str, Any]:
    """torch's own numbers beside these two."""
    moments = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    return {"lr": lr, "weight_decay": weight_decay, **moments, "decay_bias_and_norm": False}


def without_extras(recipe: dict[str, Any]) -> bool:
    return recipe["ema_decay"] is None and recipe["head_bias"] == 0.0 and recipe["steps_per_epoch"] == "floor"


@pytest.mark.parametrize("model", DEIT)
def test_deit(model):
    name = f"{model}_imagenet1k"
    recipe, main = load(name), DEIT_MAIN
    device_batch, top1 = DEIT[model]
    assert recipe["duration"] == {"epochs": 300}
    assert (recipe["image_size"], recipe["batch_size"], recipe["device_batch"]) == (224, 1024, device_batch)
    assert (recipe["stochastic_depth"], recipe["repeats"]) == (main["drop_path"], 3)
    assert recipe["clip_grad_norm"] is None
    assert without_extras(recipe)
    lr = main["lr"] * 1024 / 512
    assert recipe["optimizer"] == adamw(lr, main["weight_decay"])
    schedule = recipe["schedule"]
    assert schedule["warmup_epochs"] == main["warmup_epochs"]
    assert lr * schedule["warmup_start"] == pytest.approx(main["warmup_lr"])
    assert lr * schedule["end"] == pytest.approx(main["min_lr"])
    assert recipe["loss"] == {"label_smoothing": 0.1}
    assert choices(name) == {
        "model": model,
        "data": "imagenet1k",
        "augment": "deit_imagenet1k",
        "optimizer": "adamw",
        "schedule": "cosine_by_epoch",
        "loss": "softmax",
    }
    assert top1 in header(name)["Expect"]


@pytest.mark.parametrize("model", RESMLP)
def test_resmlp(model):
    """arXiv 2105.03404: LAMB at 5e-3, weight decay .2, 400 epochs; all else as DeiT has it."""
    name = f"{model}_imagenet1k"
    recipe, deit = load(name), load("deit_b16_imagenet1k")
    assert recipe["duration"] == {"epochs": 400}
    differ = {"name", "defaults", "duration", "device_batch", "optimizer", "schedule"}
    assert {key for key in recipe if recipe[key] != deit[key]} == differ
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    assert optimizer == adamw(5e-3, 0.2) | {"max_grad_norm": 1.0}
    assert schedule["warmup_epochs"] == DEIT_MAIN["warmup_epochs"]
    assert 5e-3 * schedule["warmup_start"] == pytest.approx(DEIT_MAIN["warmup_lr"])
    assert 5e-3 * schedule["end"] == pytest.approx(DEIT_MAIN["min_lr"])
    changed = {"model": model, "augment": "resmlp_imagenet1k", "optimizer": "lamb"}
    assert choices(name) == choices("deit_b16_imagenet1k") | changed
    assert RESMLP[model] in header(name)["Expect"]
    assert "UNVERIFIED" in header(name)["Source"]


@pytest.mark.parametrize("model", SWIN)
def test_swin(model):
    name = f"{model}_imagenet1k"
    recipe, config = load(name), SWIN_CONFIG
    stochastic_depth, top1 = SWIN[model]
    assert recipe["duration"] == {"epochs": 300}
    assert (recipe["image_size"], recipe["batch_size"], recipe["device_batch"]) == (224, 1024, 128)
    assert (recipe["stochastic_depth"], recipe["repeats"]) == (stochastic_depth, 1)
    assert recipe["clip_grad_norm"] == 5.0
    assert without_extras(recipe)
    lr, schedule = config["BASE_LR"] * 1024 / 512, recipe["schedule"]
    assert recipe["optimizer"] == adamw(lr, config["WEIGHT_DECAY"])
    assert (schedule["warmup_steps"], schedule["warmup_epochs"]) == (None, config["WARMUP_EPOCHS"])
    assert lr * schedule["warmup_start"] == pytest.approx(config["WARMUP_LR"] * 1024 / 512)
    assert lr * schedule["end"] == pytest.approx(config["MIN_LR"] * 1024 / 512)
    assert recipe["loss"] == {"label_smoothing": 0.1}
    assert choices(name) == choices("deit_b16_imagenet1k") | {"model": model, "schedule": "cosine"}
    assert top1 in header(name)["Expect"]


def test_vit():
    """arXiv 2010.11929, table 3: 300 epochs, 3e-3, cosine, weight decay .3, dropout .1, batch, warm-up."""
    (name,) = VIT
    recipe = load(name)
    assert recipe["duration"] == {"epochs": 300}
    assert (recipe["image_size"], recipe["batch_size"], recipe["clip_grad_norm"]) == (224, 4096, 1.0)
    assert (recipe["stochastic_depth"], recipe["repeats"], recipe["ema_decay"]) == (0.0, 1, None)
    assert recipe["head_bias"] == -10.0  # google-research/vision_transformer, issue 2
    assert recipe["optimizer"] == adamw(3e-3, 0.3)
    schedule = {"warmup_steps": 10_000, "warmup_epochs": None, "warmup_start": 0.0, "end": 0.0}
    assert recipe["schedule"] == schedule
    assert choices(name) == {
        "model": "vit_b16_dropout",
        "data": "imagenet1k",
        "augment": "mixer_jft",  # Inception crop and flip, in [-1, 1]
        "optimizer": "adamw",
        "schedule": "cosine",
        "loss": "sigmoid",
    }
    assert yaml.safe_load((CONF / "model" / "vit_b16_dropout.yaml").read_text())["dropout"] == 0.1
    assert all(top1 in header(name)["Expect"] for top1 in ("74.79", "77.91", "79.67"))
    assert "UNVERIFIED" in header(name)["Source"]


def test_augmentation_of_deit_resmlp_and_swin():
    """facebookresearch/deit, main.py and datasets.py; microsoft/Swin-Transformer, config.py and data/build.py."""
    deit, resmlp = (
        yaml.safe_load((CONF / "augment" / f"{name}_imagenet1k.yaml").read_text())
        for name in ("deit", "resmlp")
    )
    assert int(224 / deit.pop("eval_crop")) == 256  # 256 / 224 of 224
    assert resmlp.pop("eval_crop") == 0.9  # README_resmlp.md
    assert deit == resmlp
    assert (deit["rand_augment"], deit["interpolation"]) == ("rand-m9-mstd0.5-inc1", "bicubic")
    assert [deit[key] for key in ("mixup", "cutmix", "mix_probability", "mix_switch")] == [0.8, 1.0, 1.0, 0.5]
    assert (deit["erase"], deit["erase_mode"]) == (0.25, "pixel")
    assert (deit["mean"], deit["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert deit["eval_interpolation"] == "bicubic"


@pytest.mark.parametrize("epochs", [25, 100])
def test_cifar10_script_of_the_authors(epochs):
    name = f"convmixer_256_8_cifar10_{epochs}ep"
    recipe = load(name)
    assert recipe["duration"] == {"epochs": epochs}
    assert recipe["steps_per_epoch"] == "ceil"
    assert (recipe["image_size"], recipe["batch_size"], recipe["device_batch"]) == (32, 512, 512)
    assert recipe["clip_grad_norm"] is None
    assert (recipe["optimizer"]["lr"], recipe["optimizer"]["weight_decay"]) == (0.05, 0.005)
    assert recipe["optimizer"]["eps"] == 1e-8
    assert recipe["optimizer"]["decay_bias_and_norm"] is True
    assert recipe["loss"] == {"label_smoothing": 0.0}
    regularised = {25: 0.0, 100: 0.2}[epochs]
    assert recipe["augment"] == {
        "crop_scale": [1.0, 1.0],
        "crop_ratio": [1.0, 1.0],
        "rand_augment": "torchvision-n2-m12",
        "color_jitter": regularised,
        "erase": regularised,
        "eval_crop": 1.0,
    }
    assert choices(name)["augment"] == f"convmixer_cifar10_{epochs}"
    assert choices(name)["schedule"] == "triangular"


def test_cifar10_command_of_a_user():
    name = "convmixer_256_8_p1_k9_cifar10_200ep"
    recipe = load(name)
    assert recipe["duration"] == {"epochs": 200}
    assert (recipe["image_size"], recipe["batch_size"], recipe["clip_grad_norm"]) == (32, 64, 1.0)
    optimizer, augment = recipe["optimizer"], recipe["augment"]
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["eps"]) == (0.01, 0.01, 1e-3)
    assert augment["crop_scale"] == [0.75, 1.0]
    assert (augment["mixup"], augment["cutmix"], augment["erase"]) == (0.5, 0.5, 0.25)
    assert "user" in header(name)["Source"]
    assert "95.89" in header(name)["Expect"]


@pytest.mark.parametrize("name", FILES)
class TestEveryExperiment:
    def test_opens_with_its_package_and_what_it_is(self, name):
        first, second, *_ = FILES[name].read_text().splitlines()
        assert first == "# @package _global_"
        assert re.match(r"# .*\.$", second)

    def test_states_its_evidence(self, name):
        assert list(header(name)) == ["Source", "Expect", "Cost", "Run"]

    def test_names_itself_in_the_command(self, name):
        assert re.search(r"[= ]experiment=(\S+)", header(name)["Run"])[1] == name
        assert re.search(r"^(torchrun --nproc_per_node=\d+|python) \w+\.py ", header(name)["Run"])

    def test_is_named_like_its_file(self, name):
        assert load(name)["name"] == name

    def test_takes_whole_parts_and_never_edits_inside_the_model(self, name):
        recipe = load(name)
        assert "model" not in recipe
        assert "trainer" not in recipe
        assert all(key.startswith("override /") for entry in recipe["defaults"] for key in entry)

    def test_takes_parts_that_exist(self, name):
        for group, choice in choices(name).items():
            assert (CONF / group / f"{choice}.yaml").is_file(), f"{group}={choice}"

    def test_sets_only_numbers_that_its_parts_have(self, name):
        for group in ("augment", "optimizer", "schedule", "loss"):
            part = yaml.safe_load((CONF / group / f"{choices(name)[group]}.yaml").read_text())
            assert set(load(name).get(group, {})) <= set(part), group

    def test_the_data_set_changes_nothing_that_its_augmentation_states(self, name):
        # A data set's customary values are composed after conf/augment: a paper's own must be said again.
        chosen = choices(name)
        augment = yaml.safe_load((CONF / "augment" / f"{chosen['augment']}.yaml").read_text())
        path = CONF / "scratch" / f"{chosen['data']}.yaml"
        customary = yaml.safe_load(path.read_text()).get("augment", {})
        changed = {key for key, value in customary.items() if augment[key] != value}
        assert changed <= set(load(name).get("augment", {}))

    def test_fits_its_command(self, name):
        recipe = load(name)
        processes = int((re.search(r"nproc_per_node=(\d+)", header(name)["Run"]) or [0, "1"])[1])
        override = re.search(r"device_batch=(\d+)", header(name)["Run"])
        device_batch = int(override[1]) if override else recipe["device_batch"]
        if device_batch is None:
            assert recipe["batch_size"] % processes == 0
        else:
            assert recipe["batch_size"] % (processes * device_batch) == 0

    def test_interpolates_nothing(self, name):
        assert "${" not in FILES[name].read_text()


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONF.rglob("*.yaml")) if path.parent.name not in ("hydra", "sweep")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_no_part_interpolates(path):
    text = path.read_text()
    numbers = {
        "train.yaml": "scratch",
        "finetune.yaml": "transfer",
    }  # in the defaults list they follow the data set
    if path.name in numbers:
        text = text.replace(f"- optional {numbers[path.name]}: ${{data}}", "")
    assert "${" not in text


@pytest.mark.parametrize("group", ["optimizer", "schedule", "loss"])
def test_parts_open_with_a_comment_that_says_what_they_are(group):
    for path in sorted((CONF / group).glob("*.yaml")):
        first, *_ = path.read_text().splitlines()
        assert re.match(r"# \S.*", first), path.name
        assert "@package" not in first
