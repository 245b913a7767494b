"""The source that a command line names, opened: archives, lists, or any data set of conf/data."""

from __future__ import annotations

from pathlib import Path

from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.signatures import signature
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.folder import SPLITS
from mixer_lightning.data.sources.imagenet_archives import ARCHIVES_1K
from mixer_lightning.data.sources.torchvision import imagenet1k_folders
from mixer_lightning.prepare import imagenet, lists
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.readers import Source, read_dataset, selected_splits
from mixer_lightning.targets import build


def open_source(options: Options) -> Source:
    """Open the source of `options`.

    Raises:
        ValueError, OSError: the source is missing or not as it should be, or the output lies among its classes; the
            message says what was expected.
    """
    path = options.source
    if path is not None and not path.exists():
        raise ValueError(f"source: there is nothing at {path}")
    if path is not None and options.reads_lists:
        return lists.open_list(path, options)
    if path is not None and options.data == "imagenet21k":
        return imagenet.open_21k(path, options)
    if path is not None and options.data == "imagenet1k":
        wanted = selected_splits(ARCHIVES_1K, options)
        if all((path / split).is_dir() for split in wanted):
            return read_dataset(imagenet1k_folders(path, wanted), options)
        if "train" not in wanted or not (path / "train").is_dir():
            return imagenet.open_1k(path, options)
    return read_dataset(build_dataset(options), options)


def build_dataset(options: Options) -> Dataset:
    """The data set of a file of conf/data, its root replaced by the source."""
    overrides = [f"data={options.data}", *options.overrides]
    node = compose_one("train", overrides).data
    if options.source is not None:
        if "root" not in signature(node["_target_"]):
            raise ValueError(f"source: {options.data} comes with its package and takes no source")
        node = compose_one("train", [*overrides, f"data.root={options.source}"]).data
    if node["_target_"].endswith(".folder.folder"):
        _refuse_among_classes(options.output, Path(node["root"]))
    data: Dataset = build(node)
    return data


def _refuse_among_classes(output: Path, root: Path) -> None:
    """See that shards do not become a class of the class folders that they are made of."""
    output, root = output.resolve(), root.expanduser().resolve()
    if not output.is_relative_to(root):
        return
    inside = output.relative_to(root).parts
    if inside[:1] and inside[0] not in SPLITS and any((root / split).is_dir() for split in SPLITS):
        return
    raise ValueError(f"output: {output} is among the class folders of {root}. Choose an output elsewhere.")
