"""The study of input pipelines: every pipeline on the same files, and how the figures are put together."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.sources.shards import shards
from mixer_lightning.studies import loader, pipelines


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four JPEG files in two classes."""
    random = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / "photos" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(
            folder / f"{i}.v1.JPEG"
        )
    return tmp_path / "photos"


def test_files_and_shards_hold_the_same_images(photos: Path, tmp_path: Path) -> None:
    found = loader.jpeg_files(photos, 9)
    assert loader.jpeg_files(photos, 3) == [found[0], found[1], found[2]]
    assert loader.jpeg_files(photos, 2) == [found[0], found[2]]
    broken = photos / "class1" / "broken.jpg"
    broken.write_bytes(found[3].read_bytes()[:1000])
    for path, name in zip(found, ("a.b.jpg", "a_b.jpg"), strict=False):  # names that shards know as one
        path.rename(path.with_name(name))
    left_out = loader.lay_out(loader.jpeg_files(photos, 9), tmp_path / "laid", copies=3)
    assert list(left_out) == [broken]
    files = sorted((tmp_path / "laid/files").glob("*/*.jpg"))
    images = shards(root=str(tmp_path / "laid/shards")).splits["train"]
    assert len(files) == len(images) == 12
    contents = sorted(path.read_bytes() for path in files)
    assert sorted(bytes(images.read(i)) for i in range(12)) == contents
    assert sorted(images.labels(np.arange(12)).tolist()) == [0] * 6 + [1] * 6


def test_small_shards_hold_smaller_images_in_the_same_order(photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "class0" / "0.v1.JPEG").resize((900, 600)).save(photos / "class0" / "0.v1.JPEG")
    loader.lay_out(loader.jpeg_files(photos, 9), tmp_path / "laid", copies=2)
    large, small = (
        shards(root=str(tmp_path / "laid" / kind)).splits["train"] for kind in ("shards", "small")
    )
    for i in range(8):
        before, after = (Image.open(io.BytesIO(bytes(each.read(i)))) for each in (large, small))
        assert min(after.size) == min(288, *before.size)
        assert after.size[0] / after.size[1] == pytest.approx(before.size[0] / before.size[1], rel=0.01)


@pytest.mark.parametrize("name", pipelines.PIPELINES)
def test_every_pipeline_makes_uint8_batches_of_one_shape(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "BATCH_SIZE", 4)
    loader.lay_out(loader.jpeg_files(photos, 9), tmp_path / "laid", copies=6)
    pipeline, options = pipelines.PIPELINES[name]
    source = pipeline(tmp_path / "laid", workers=1, batches=2, **options)
    for _ in range(2):
        images = next(source)
        assert tuple(images.shape) == (4, 3, 224, 224)
        assert str(images.dtype) == ("torch.float32" if "float32" in name else "torch.uint8")
    source.close()


def test_a_process_of_its_own_tells_what_it_measured(photos: Path, tmp_path: Path) -> None:
    loader.lay_out(
        loader.jpeg_files(photos, 9), tmp_path / "laid", copies=96
    )  # three batches: two to warm up
    chosen = loader.settings([f"root={photos}", "workers=1", "images=128"])
    found = loader.child("ours, files, bilinear", tmp_path / "laid", chosen)
    assert found.keys() == {"images_per_second", "images_per_cpu_second", "memory_mib", "waiting"}
    assert found["images_per_second"] > 0


def test_ratios_are_taken_round_by_round() -> None:
    def turn(speed: float) -> dict[str, float]:
        return {
            "images_per_second": speed,
            "images_per_cpu_second": speed / 2,
            "memory_mib": 1.0,
            "waiting": 1.0,
        }

    rows = loader.summary({"a": [turn(100), turn(10), turn(1)], "b": [turn(200), turn(30), turn(2)]})
    assert rows[0]["ratio"] == 1
    assert (rows[1]["ratio"], rows[1]["cpu_ratio"]) == (2.0, 2.0)  # of 2, 3, 2; of the medians it would be 3
    assert rows[1]["images_per_second"] == 30


def test_what_it_writes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = iter(range(1, 100))

    def child(name: str, folder: Path, chosen: object) -> dict[str, float]:
        assert (folder / "files").is_dir()
        speed = float(next(speeds))
        return {"images_per_second": speed, "images_per_cpu_second": speed, "memory_mib": 1.0, "waiting": 0.5}

    monkeypatch.setattr(loader, "child", child)
    loader.main([f"root={photos}", "rounds=2", "copies=32", f"out={tmp_path / 'out'}"])
    with (tmp_path / "out/loader_cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loader"] for row in rows] == list(pipelines.PIPELINES)
    text = (tmp_path / "out/loader_cpu.md").read_text()
    assert "4 JPEG files" in text
    with pytest.raises(SystemExit):
        loader.main([f"root={photos}", "copies=3", f"out={tmp_path / 'out'}"])
    assert "copies: 3 of 4 files are fewer images than a batch of 128" in capsys.readouterr().err
    assert "rounds=2" in text
    decibels = [
        float(line.split("|")[2]) for line in text.splitlines() if line.startswith(("| bil", "| bic"))
    ]
    assert len(decibels) == 2
    assert min(decibels) > 45
    assert (tmp_path / "out/loader_cpu.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["root=/nowhere/at/all"], "there is no folder"),
        (["rounds=1"], "at least 2"),
        (["device_rate=-1"], "device_rate must be at least 0, found -1.0"),
        (["only=the fastest"], "there is no pipeline"),
    ],
)
def test_wrong_arguments(
    argv: list[str], message: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        loader.settings([f"root={photos}", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
