"""docker/: launch scripts with stand-ins for torchrun, srun, scontrol; Dockerfile and compose.yaml by reading."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from mixer_lightning.cli.prepare import parse as parse_prepare

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"

#: Variables of a launcher around the tests must not decide them.
LAUNCHER = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


def stand_in(folder: Path, name: str, body: str = "") -> Path:
    """A program `name` in `folder` that appends its arguments, one per line and then an empty one, to `name`.args."""
    log = folder / f"{name}.args"
    program = folder / name
    program.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" "" >> "{log}"\n{body}\n')
    program.chmod(0o755)
    return log


def calls(log: Path) -> list[list[str]]:
    """What a stand-in was called with."""
    return (
        [call.split("\n") for call in log.read_text().removesuffix("\n\n").split("\n\n")]
        if log.exists()
        else []
    )


def launch(script: str, *argv: str, path: Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of docker/ with the stand-ins in `path` before everything else."""
    clean = {
        k: v for k, v in os.environ.items() if k not in LAUNCHER and not k.startswith(("SLURM", "TORCH"))
    }
    return subprocess.run(
        ["bash", str(DOCKER / script), *argv],
        cwd=cwd,
        env=clean | {"PATH": f"{path}:{os.environ['PATH']}"} | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("script", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_are_executable_and_strict(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text().splitlines()


# ---------------------------------------------------------------------------------------------- torchrun.sh


def test_torchrun_on_one_node_finds_its_own_port(tmp_path: Path) -> None:
    log = stand_in(tmp_path, "torchrun", 'echo "$PWD $TORCH_ELASTIC_SHUTDOWN_TIMEOUT"')
    done = launch("torchrun.sh", "model=mixer_s16", "name=two words", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ROOT), "110"]
    (argv,) = calls(log)
    options, program = argv[: argv.index("train.py")], argv[argv.index("train.py") :]
    assert program == ["train.py", "trainer=ddp", "model=mixer_s16", "name=two words"]
    assert {"--standalone", "--nproc-per-node=gpu"} <= set(options)
    assert not any(option.startswith(("--nnodes", "--master")) for option in options)


def test_torchrun_on_several_nodes_meets_at_node_0(tmp_path: Path) -> None:
    log = stand_in(tmp_path, "torchrun")
    env = {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "node0", "NPROC_PER_NODE": "8"}
    assert launch("torchrun.sh", path=tmp_path, cwd=tmp_path, **env).returncode == 0
    assert {
        "--nnodes=4",
        "--node-rank=3",
        "--master-addr=node0",
        "--master-port=29500",
        "--nproc-per-node=8",
    } < set(calls(log)[0])
    launch("torchrun.sh", path=tmp_path, cwd=tmp_path, MASTER_PORT="1234", **env)
    assert "--master-port=1234" in calls(log)[1]


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_torchrun_on_several_nodes_wants_to_know_which_and_where(tmp_path: Path, missing: str) -> None:
    log = stand_in(tmp_path, "torchrun")
    env = {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "node0"}
    del env[missing]
    done = launch("torchrun.sh", path=tmp_path, cwd=tmp_path, **env)
    assert done.returncode != 0
    assert missing in done.stderr
    assert calls(log) == []


def test_torchrun_takes_the_place_of_the_shell_so_that_signals_arrive(tmp_path: Path) -> None:
    stand_in(tmp_path, "torchrun", "kill -TERM $$")
    assert (
        launch("torchrun.sh", path=tmp_path, cwd=tmp_path).returncode == -15
    )  # a shell in between makes it 143


def test_torchrun_knows_the_options(tmp_path: Path) -> None:
    run = pytest.importorskip("torch.distributed.run")
    log = stand_in(tmp_path, "torchrun")
    launch(
        "torchrun.sh", "seed=1", path=tmp_path, cwd=tmp_path, NNODES="2", NODE_RANK="1", MASTER_ADDR="node0"
    )
    arguments = run.get_args_parser().parse_args(calls(log)[0])
    assert (arguments.nnodes, arguments.node_rank, arguments.master_addr) == ("2", 1, "node0")
    assert arguments.training_script == "train.py"
    assert arguments.training_script_args == ["trainer=ddp", "seed=1"]
    assert "SIGUSR1" in arguments.signals_to_handle.split(",")


# ------------------------------------------------------------------------------------------------- slurm.sh


def submit(tmp_path: Path, *argv: str, srun_exits: int, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run slurm.sh as the batch shell of job 123456 on node3 and node4."""
    stand_in(tmp_path, "srun", f'echo "$MASTER_ADDR $MASTER_PORT $SRUN_CPUS_PER_TASK"; exit {srun_exits}')
    stand_in(tmp_path, "scontrol", '[[ "$1" != show ]] || printf "node3\\nnode4\\n"')
    return launch(
        "slurm.sh", *argv, path=tmp_path, cwd=cwd,
        SLURM_JOB_ID="123456", SLURM_JOB_NODELIST="node[3-4]", SLURM_CPUS_PER_TASK="6",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("exits", "requeued"), [(0, False), (1, False), (2, False), (137, False), (143, True)]
)
def test_slurm_queues_the_job_again_after_143_only(tmp_path: Path, exits: int, requeued: bool) -> None:
    done = submit(tmp_path, srun_exits=exits)
    assert done.returncode == exits, done.stderr
    assert (["requeue", "123456"] in calls(tmp_path / "scontrol.args")) == requeued


def test_slurm_starts_one_command_for_all_processes(tmp_path: Path) -> None:
    done = submit(tmp_path, "experiment=mixer_l16_imagenet21k", "name=two words", srun_exits=0)
    assert done.stdout.split() == ["node3", "18456", "6"]
    (argv,) = calls(tmp_path / "srun.args")
    program = argv[argv.index("python") :]
    assert program == [
        "python",
        "train.py",
        "trainer=ddp",
        "experiment=mixer_l16_imagenet21k",
        "name=two words",
    ]
    assert "--kill-on-bad-exit=0" in argv[: argv.index("python")]


def test_slurm_outside_the_checkout_starts_nothing(tmp_path: Path) -> None:
    done = submit(tmp_path, srun_exits=0, cwd=tmp_path)
    assert done.returncode == 2
    assert "checkout" in done.stderr
    assert calls(tmp_path / "srun.args") == []


def test_an_array_of_jobs_prepares_parts_and_a_last_one_merges(tmp_path: Path) -> None:
    log = stand_in(tmp_path, "python")
    start = partial(launch, "prepare_array.sh", "data=list", "output=two words", path=tmp_path)
    in_array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_CPUS_PER_TASK": "8"}
    assert start(cwd=tmp_path, **in_array).returncode == 2
    assert start(cwd=ROOT, **in_array).returncode == 0
    assert start(cwd=ROOT, **in_array, PARTS="100").returncode == 0
    assert start("part=merge", cwd=ROOT).returncode == 0
    head, given = ["-m", "mixer_lightning", "prepare"], ["data=list", "output=two words"]
    assert calls(log) == [
        [*head, "threads=8", *given, "part=3/64"],
        [*head, "threads=8", *given, "part=3/100"],
        [*head, "threads=1", *given, "part=merge"],
    ]
    for call in calls(log):
        assert parse_prepare([*call[3:], "source=x"]).output.name == "two words"


def test_slurm_options_stand_before_the_first_command() -> None:
    lines = (DOCKER / "slurm.sh").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])  # sbatch would not read them
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH")
    )
    assert options["signal"] == "USR1@120"  # B:USR1 would reach this shell and no process of the run
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options  # SLURM_LOCALID numbers the GPUs of the node


# --------------------------------------------------------------------------------- Dockerfile and compose.yaml


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continuation lines joined."""
    lines = [
        line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copied() -> list[str]:
    """Sources of all COPY instructions."""
    return [source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]]


def test_dockerfile_copies_what_there_is_and_the_ignore_file_lets_it_in() -> None:
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignore if line and not line.startswith("#")) == "*"
    assert copied()
    for source in copied():
        assert any(ROOT.glob(source)), f"{source} does not exist"
        assert f"!{source}" in ignore


def test_image_holds_all_that_the_package_is_built_from() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = [package.partition(".")[0] for package in project["tool"]["setuptools"]["packages"]]
    folders += project["tool"]["setuptools"]["package-dir"].values()
    assert {"pyproject.toml", project["project"]["readme"], *folders} <= set(copied())


def test_python_of_the_image_is_one_that_the_package_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (DOCKER / "Dockerfile").read_text()
    (version,) = set(re.findall(r"\bpython(\d\.\d+)\b", text))
    assert version in SpecifierSet(project["requires-python"])
    (ubuntu,) = re.findall(r"nvidia/cuda:\S+-ubuntu([\d.]+)", text)
    assert (
        version == {"22.04": "3.10", "24.04": "3.12", "26.04": "3.14"}[ubuntu]
    )  # the one that apt has there


def test_image_has_the_cuda_of_the_pinned_torch() -> None:
    (cuda,) = re.findall(r"nvidia/cuda:(\d+)\.", (DOCKER / "Dockerfile").read_text())
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(rf"^nvidia-cudnn-cu{cuda}==", pins, flags=re.MULTILINE)


def test_dockerfile_installs_dependencies_before_sources_and_runs_as_a_user() -> None:
    steps = dockerfile()
    dependencies = next(i for i, (_, rest) in enumerate(steps) if "-r /tmp/requirements.txt" in rest)
    sources = next(i for i, (word, rest) in enumerate(steps) if word == "COPY" and "mixer_lightning" in rest)
    assert dependencies < sources
    users = [rest for word, rest in steps if word == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    assert steps[-2:] == [("ENTRYPOINT", '["mixer"]'), ("CMD", '["--help"]')]
    for i, (word, rest) in enumerate(steps):
        if word == "RUN" and "pip install" in rest:
            assert "-c constraints.txt" in rest, i
            assert "--mount=type=cache" in rest or "--no-cache-dir" in rest, i


def test_compose_gives_the_gpus_shared_memory_folders_and_keys() -> None:
    (name, service), *others = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].items()
    assert (name, others) == ("mixer", [])
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["shm_size"] == "64gb"
    assert set(service["environment"]) == {
        "WANDB_API_KEY",
        "WANDB_MODE",
    }  # by name: values stay out of the file
    assert service["user"] == "${HOST_UID:-1000}:${HOST_GID:-1000}"
    build = service["build"]
    assert (
        DOCKER / build["context"]
    ).resolve() == ROOT.resolve()  # compose counts from the folder of its file
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    volumes = {volume["target"] for volume in service["volumes"]}
    declared = next(rest for word, rest in dockerfile() if word == "VOLUME")
    assert volumes == set(yaml.safe_load(declared))


def test_stopping_a_container_leaves_torchrun_time_to_end_first() -> None:
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["mixer"]
    (minutes,) = re.findall(r"^(\d+)m$", service["stop_grace_period"])
    (seconds,) = re.findall(r"SHUTDOWN_TIMEOUT:-(\d+)\}", (DOCKER / "torchrun.sh").read_text())
    assert int(seconds) < 60 * int(minutes)


def test_commands_of_its_readme_are_those_of_the_console() -> None:
    from mixer_lightning.cli.console import COMMANDS

    text = (DOCKER / "README.md").read_text() + (DOCKER / "compose.yaml").read_text()
    named = re.findall(
        r"^in_container mixer (\S+)|run --rm mixer (\S+)| mixer-lightning (\w+) ", text, re.MULTILINE
    )
    assert len(named) >= 5
    assert {word for words in named for word in words if word} <= set(COMMANDS)
