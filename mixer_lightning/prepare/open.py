"""The source that a command line names, opened: archives, lists, or any data set of conf/data."""

from __future__ import annotations

from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.signatures import signature
from mixer_lightning.data.sources import Dataset
from mixer_lightning.prepare import imagenet, lists
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.readers import Source, read_dataset
from mixer_lightning.targets import build


def open_source(options: Options) -> Source:
    """Open the source of `options`.

    Raises:
        ValueError, OSError: the source is missing or not as it should be; the message says what was expected.
    """
    path = options.source
    if path is not None and not path.exists():
        raise ValueError(f"source: there is nothing at {path}")
    if path is not None and options.reads_lists:
        return lists.open_list(path, options)
    if path is not None and options.data == "imagenet21k":
        return imagenet.open_21k(path, options)
    if path is not None and options.data == "imagenet1k" and not (path / "train").is_dir():
        return imagenet.open_1k(path, options)
    return read_dataset(build_dataset(options), options)


def build_dataset(options: Options) -> Dataset:
    """The data set of a file of conf/data, its root replaced by the source."""
    overrides = [f"data={options.data}", *options.overrides]
    if options.source is not None:
        node = compose_one("train", overrides).data
        if "root" not in signature(node["_target_"]):
            raise ValueError(f"source: {options.data} comes with its package and takes no source")
        overrides.append(f"data.root={options.source}")
    data: Dataset = build(compose_one("train", overrides).data)
    return data
