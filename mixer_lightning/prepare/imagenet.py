"""ImageNet-1k and ImageNet-21k in the archives that image-net.org hands out, read in one pass.

Labels are positions in a list of WordNet ids. What the archives are called and what lies in them stands in
data/sources/imagenet_archives.py.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mixer_lightning.data.sources.archives import ArchiveMember, ArchiveStream, archive_members, is_gzip
from mixer_lightning.data.sources.imagenet_archives import (
    ARCHIVES_1K,
    ARCHIVES_21K,
    BUNDLED,
    DEFAULT_LIST_21K,
    DEVKIT,
    SPLIT_FOLDERS_21K,
    VAL_SHARE_21K,
    VARIANTS,
    class_names,
    is_wnid,
    needed_1k,
    read_devkit,
    wnid_list,
)
from mixer_lightning.data.sources.names import is_hidden, not_read, stem, suffix_of
from mixer_lightning.files import read_lines, readable
from mixer_lightning.prepare.cleaning import OtherFile
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.readers import EVERYWHERE, Cursor, Extent, Sample, Source, selected_splits

GOOGLES_ORDER = f"classes: {DEFAULT_LIST_21K}"  # in a fingerprint: earlier versions took those found instead
VAL_SHARE_P = 561_052 / 12_358_684  # of fall11_p, which has one: for an estimate before it is read


class Part(NamedTuple):
    """Images that lie together; `label_of` gives a member's key and label, None for what is not an image."""

    split: str
    files: Iterable[ArchiveMember]
    label_of: Callable[[ArchiveMember], tuple[str, int] | None]
    num_bytes: int = sys.maxsize  # from here on in the archive; the default: to its end


Parts = Callable[[ArchiveStream], Iterator[Part]]


def samples(
    archives: Sequence[tuple[Path, Parts]], start: Cursor, *, places: range = EVERYWHERE
) -> Iterator[Sample]:
    """The samples of all parts of all archives; parts before `start` are passed over without being read.

    An image's place is where it begins in its archive, unpacked, behind the files of the archives before; in one that
    unpacks to more than its file has, all further ones have the last place of the file.
    """
    number, behind = 0, 0
    for path, parts in archives:
        archive = ArchiveStream(path)
        num_bytes = path.stat().st_size

        def place(offset: int, first: int = behind, num_bytes: int = num_bytes) -> int:
            return first + min(offset, num_bytes - 1)

        try:
            for part in parts(archive):
                if place(archive.offset) >= places.stop:
                    return
                if number >= start[0] and place(archive.offset + part.num_bytes) >= places.start:
                    begin = start[1] if number == start[0] else 0
                    for index, file in enumerate(part.files):
                        here = place(archive.offset)
                        if here >= places.stop:
                            return
                        if here < places.start or index < begin or is_hidden(file.name):
                            continue
                        found = part.label_of(file)
                        key, label = found or (readable(file.name), -1)
                        yield Sample(
                            part.split,
                            key,
                            (label,),
                            suffix_of(file.name),
                            partial(_other_file, key) if found is None else partial(bytes, file.read()),
                            (number, index + 1),
                            behind + archive.position(),
                        )
                number += 1
        finally:
            archive.close()
        behind += num_bytes


def _other_file(name: str) -> bytes:
    raise OtherFile(not_read(name))


def class_parts(
    archive: ArchiveStream,
    *,
    labels: dict[str, int],
    only: Sequence[str],
    unknown_classes: set[str],
    left_out: list[tuple[str, str]],
) -> Iterator[Part]:
    """A part for each class tar in an archive, or for each image in class folders; or the one class that it holds.

    Adds to `unknown_classes` and, of files that are neither tars nor images, to `left_out`.
    """
    if is_wnid(archive.path.stem):  # n00004475.tar by itself
        inside = partial(archive_members, archive, str(archive.path))
        yield from _class_part("train", archive.path.stem, inside, labels, unknown_classes)
        return
    for file in archive_members(archive, str(archive.path)):
        folders = file.name.split("/")
        split = next((SPLIT_FOLDERS_21K[each] for each in folders if each in SPLIT_FOLDERS_21K), "train")
        if split is None or split not in only:
            continue
        if file.name.endswith(".tar"):
            inside = partial(archive_members, file, file.where, nested=True)
            wnid = folders[-1].removesuffix(".tar")
            yield from _class_part(split, wnid, inside, labels, unknown_classes, file.size)
        elif is_hidden(file.name):
            continue
        elif not suffix_of(file.name):
            left_out.append((split, readable(file.name)))
        elif len(folders) > 1:
            alone = partial(iter, [file])
            yield from _class_part(split, folders[-2], alone, labels, unknown_classes, file.size)


def _class_part(
    split: str,
    wnid: str,
    inside: Callable[[], Iterator[ArchiveMember]],
    labels: dict[str, int],
    unknown_classes: set[str],
    num_bytes: int = sys.maxsize,
) -> Iterator[Part]:
    if wnid not in labels:
        unknown_classes.add(wnid)
        return

    def label_of(file: ArchiveMember) -> tuple[str, int] | None:
        return (
            (readable(f"{wnid}/{stem(file.name.rpartition('/')[2])}"), labels[wnid])
            if suffix_of(file.name)
            else None
        )

    yield Part(split, inside(), label_of, num_bytes)


# ----------------------------------------------------------------------------------------------- ImageNet-1k


def open_1k(source: Path, options: Options) -> Source:
    """The official archives in a folder; class folders are read by the function of conf/data instead."""
    archives = {split: source / name for split, name in ARCHIVES_1K.items()}
    wanted = selected_splits(archives, options)
    missing = [name for split in wanted for name in needed_1k(split) if not (source / name).is_file()]
    if missing:
        raise ValueError(
            f"source: {' and '.join(missing)} missing in {source}. Expected {', '.join(ARCHIVES_1K.values())} and "
            f"{DEVKIT} from image-net.org, or class folders train/<wnid> and val/<wnid>; splits=train or splits=val "
            "reads one alone."
        )
    if (source / DEVKIT).is_file():
        wnids, truth = read_devkit(source / DEVKIT)
    else:
        wnids, truth = wnid_list("1k"), []
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    unknown_classes: set[str] = set()

    def val_label_of(file: ArchiveMember) -> tuple[str, int] | None:
        if not suffix_of(file.name):
            return None
        name = stem(file.name.rpartition("/")[2])
        number = int(name.rpartition("_")[2]) if re.search(r"_\d+$", name) else 0
        if not 1 <= number <= len(truth):
            raise ValueError(
                f"{file.where}: the devkit has labels for images 1 to {len(truth):,}. Fetch both again."
            )
        return f"{truth[number - 1]}/{name}", labels[truth[number - 1]]

    def val_parts(archive: ArchiveStream) -> Iterator[Part]:
        yield Part("val", archive_members(archive, str(archive.path)), val_label_of)

    if "train" in wanted:
        unknown_classes = _unknown_classes(
            found_classes([archives["train"]]), labels, f"the ILSVRC 2012 list in {source}"
        )
    left_out: list[tuple[str, str]] = []
    train_parts = partial(
        class_parts, labels=labels, only=["train"], unknown_classes=unknown_classes, left_out=left_out
    )
    parts: dict[str, Parts] = {"train": train_parts, "val": val_parts}
    return Source(
        name="imagenet1k",
        release="imagenet1k",
        classes=class_names(wnids),
        wnids=wnids,
        splits={
            split: Extent(len(truth) if split == "val" else None, archives[split].stat().st_size)
            for split in wanted
        },
        labels_per_image=1,
        fingerprint=[_about(archives[split]) for split in wanted],
        total=sum(archives[split].stat().st_size for split in wanted),
        samples=partial(samples, [(archives[split], parts[split]) for split in wanted]),
        unknown_classes=unknown_classes,
        left_out=left_out,
    )


# ---------------------------------------------------------------------------------------------- ImageNet-21k


def open_21k(source: Path, options: Options) -> Source:
    """One of the releases of ImageNet-21k: see VARIANTS."""
    archives, variant = _archives_21k(source, options.variant)
    wnids, unknown_classes = _classes_21k(archives, variant, options.classes)
    own_val = variant.endswith("_p")
    wanted = selected_splits(["train", "val"] if own_val else ["train"], options)
    num_bytes = sum(path.stat().st_size for path in archives)
    share = {"train": 1 - VAL_SHARE_P, "val": VAL_SHARE_P} if own_val else {"train": 1.0}
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    left_out: list[tuple[str, str]] = []
    parts = partial(
        class_parts, labels=labels, only=wanted, unknown_classes=unknown_classes, left_out=left_out
    )
    return Source(
        name="imagenet21k",
        release=f"imagenet21k {variant}",
        classes=class_names(wnids),
        wnids=wnids,
        splits={split: Extent(None, round(num_bytes * share[split])) for split in wanted},
        labels_per_image=1,
        fingerprint=[
            variant,
            *map(_about, archives),
            *([] if own_val or options.classes else [GOOGLES_ORDER]),
        ],
        total=num_bytes,
        samples=partial(samples, [(path, parts) for path in archives]),
        val_share=0.0 if own_val or options.splits is not None else VAL_SHARE_21K,
        unknown_classes=unknown_classes,
        left_out=left_out,
    )


def _archives_21k(source: Path, variant: str | None) -> tuple[list[Path], str]:
    """The archive, or the class tars of a folder; and the release that they are."""
    if source.is_file():
        archives = [source]
    else:
        present = [name for name in ARCHIVES_21K if (source / name).is_file()]
        known = [name for name in present if variant is None or variant in ARCHIVES_21K[name]]
        if len(known) > 1:
            raise ValueError(f"source: {source} holds {' and '.join(known)}. Set source to one of them.")
        archives = [source / name for name in known]
        archives = archives or sorted(path for path in source.glob("n*.tar") if is_wnid(path.stem))
        archives = archives or [source / name for name in present]  # of other variants, which is said below
    if not archives:
        raise ValueError(
            f"source: no archive of ImageNet-21k in {source}. Expected {', '.join(ARCHIVES_21K)}, or "
            "class tars such as n00004475.tar. Class folders are read with data=folder, from "
            "<source>/train/<class>/<image> and val/."
        )
    possible = ARCHIVES_21K.get(archives[0].name, ())
    if variant is None and not possible:
        raise ValueError(
            f"variant is missing: {archives[0].name} does not say which release it is. Use variant={'|'.join(VARIANTS)}"
        )
    if variant is not None and possible and variant not in possible:
        raise ValueError(f"variant: {archives[0].name} is {' or '.join(possible)}, not {variant}")
    return archives, variant or possible[0]


def _classes_21k(archives: list[Path], variant: str, choice: str | None) -> tuple[list[str], set[str]]:
    """WordNet ids in the order of labels, and those of class tars that the list lacks, as far as headers tell."""
    nested = not variant.endswith("_p")
    found = found_classes(archives) if nested and not is_gzip(archives[0]) else None
    choice = choice or (DEFAULT_LIST_21K if nested else variant)
    if choice == "found":
        if found is None:
            raise ValueError(
                f"classes: {archives[0].name} can only be read from front to end, so its classes are not known at the "
                "start. Use classes=<file> with one WordNet id per line, or one of the lists that exist."
            )
        return found, set()
    if choice in BUNDLED:
        wnids = wnid_list(choice)
    elif Path(choice).expanduser().is_file():
        wnids = " ".join(read_lines(Path(choice).expanduser())).split()
    else:
        raise ValueError(f"classes: no file {choice}. The lists at hand are found, {', '.join(BUNDLED)}")
    repeated = [wnid for wnid, times in Counter(wnids).items() if times > 1]
    if not wnids or repeated:
        raise ValueError(
            f"classes: {choice} " + (f"has {repeated[0]} more than once" if repeated else "is empty")
        )
    return wnids, _unknown_classes(found or [], dict.fromkeys(wnids, 0), f"classes={choice}")


def _unknown_classes(found: Sequence[str], labels: dict[str, int], where: str) -> set[str]:
    """Classes of an archive that a list lacks; ValueError when it has none of them."""
    unknown = {wnid for wnid in found if wnid not in labels}
    if found and len(unknown) == len(found):
        raise ValueError(
            f"none of the {len(found):,} classes of the archive, such as {found[0]}, is in {where}."
        )
    return unknown


# --------------------------------------------------------------------------------------------------- classes


def found_classes(archives: Sequence[Path]) -> list[str]:
    """WordNet ids of the class tars in an archive, or of class tars; from the headers alone, sorted."""
    if is_wnid(archives[0].stem):
        return sorted(path.stem for path in archives)
    archive = ArchiveStream(archives[0])
    try:
        names = [file.name for file in archive_members(archive, str(archives[0]))]
    finally:
        archive.close()
    found = sorted({name.rpartition("/")[2].removesuffix(".tar") for name in names if name.endswith(".tar")})
    if not found:
        raise ValueError(f"source: {archives[0]} holds no class tars, such as n01440764.tar.")
    return found


def _about(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size} bytes"
