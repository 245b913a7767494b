"""`mixer study loader` with pipelines of packages that nothing here needs: DALI, SPDL and litdata.

    pip install nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 spdl-io spdl-core litdata    # SPDL: and FFmpeg's libraries
    python results/peers/others.py root=<class folders> [key=value ...]

Each makes random resized crops of JPEGs, flipped half of the time, with the decoder that it comes with.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixer_lightning.studies import loader, pipelines
from mixer_lightning.studies.pipelines import BATCH_SIZE, IMAGE_SIZE

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # area and aspect of a crop, as torchvision draws them


def dali(folder: Path, *, workers: int, batches: int, interpolation: str) -> Iterator[Any]:
    """NVIDIA's, on the CPU: files, fused decoding and cropping, antialiased resizing; interpolation CUBIC or LINEAR."""
    import torch
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=BATCH_SIZE, num_threads=workers, device_id=None, seed=0)
    with pipeline:
        files, _ = fn.readers.file(file_root=str(folder / "files"), random_shuffle=True)
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=RATIO)
        filter = getattr(types, f"INTERP_{interpolation}")
        images = fn.resize(images, size=[IMAGE_SIZE, IMAGE_SIZE], interp_type=filter, antialias=True)
        pipeline.set_outputs(
            fn.transpose(fn.flip(images, horizontal=fn.random.coin_flip(seed=1)), perm=[2, 0, 1])
        )
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield torch.from_numpy(images.as_array())


def spdl(folder: Path, *, workers: int, batches: int) -> Iterator[Any]:
    """Meta's, on files: FFmpeg decodes, crops, resizes (bicubic) and flips in threads."""
    import torch
    from spdl import io
    from spdl.pipeline import PipelineBuilder
    from torchvision.transforms import RandomResizedCrop

    files = [str(path) for path in sorted((folder / "files").glob("*/*"))]

    def shuffled() -> Iterator[str]:
        while True:
            yield from random.sample(files, len(files))

    def decoded(path: str) -> Any:
        packets = io.demux_image(path)
        like = torch.empty(1, packets.height, packets.width)
        top, left, height, width = RandomResizedCrop.get_params(like, list(SCALE), list(RATIO))
        steps = [
            f"crop={width}:{height}:{left}:{top}:exact=1",
            f"scale={IMAGE_SIZE}:{IMAGE_SIZE}:flags=bicubic",
        ]
        steps += ["hflip"] * random.getrandbits(1)
        return io.decode_packets(packets, filter_desc=",".join([*steps, "format=pix_fmts=rgb24"]))

    def together(frames: list[Any]) -> Any:
        return io.to_torch(io.convert_frames(frames)).permute(0, 3, 1, 2)

    built = PipelineBuilder().add_source(shuffled()).pipe(decoded, concurrency=workers)
    pipeline = built.aggregate(BATCH_SIZE).pipe(together).add_sink(2).build(num_threads=workers)
    with pipeline.auto_stop():
        yield from pipeline


def litdata(folder: Path, *, workers: int, batches: int) -> Iterator[Any]:
    """Lightning's, on chunks of its own that hold the same files; torchvision decodes and resizes (bicubic)."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    chunks = folder / "litdata"
    writer = BinaryWriter(str(chunks), chunk_bytes=1 << 26)
    for index, path in enumerate(sorted((folder / "files").glob("*/*"))):
        writer.add_item(index, {"image": path.read_bytes()})
    writer.done()
    writer.merge()
    crop = v2.RandomResizedCrop(IMAGE_SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def decoded(sample: dict[str, Any]) -> Any:
        file = torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8)
        return transform(decode_jpeg(file, mode=ImageReadMode.RGB))

    dataset = StreamingDataset(str(chunks), shuffle=True, drop_last=True, transform=decoded)
    loader = StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)
    while True:
        yield from loader


PEERS = {
    "DALI, files, bilinear": (dali, {"interpolation": "LINEAR"}),
    "DALI, files, bicubic": (dali, {"interpolation": "CUBIC"}),
    "SPDL, files, bicubic": (spdl, {}),
    "litdata, chunks, bicubic": (litdata, {}),
}


def child(name: str, folder: Path, chosen: Any) -> dict[str, float]:
    """`measure` in a fresh process of this script, which knows these pipelines."""
    words = {"child": name, "root": folder, "workers": chosen.workers, "images": chosen.images}
    argv = [f"{key}={value}" for key, value in words.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    pipelines.PIPELINES |= PEERS
    loader.child = child
    loader.main(sys.argv[1:])
