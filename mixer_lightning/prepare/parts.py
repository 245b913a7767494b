"""A set that several jobs prepare, each a part of the source: where the parts lie, and whether they belong together.

A part holds, of every shard, the samples that its stretch of the source has for it. Joined in their order they are the
shards that one job would have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mixer_lightning.prepare.journal import Journal, read_journal, refuse_differences, refuse_other_versions
from mixer_lightning.prepare.options import Options, Part
from mixer_lightning.prepare.readers import Source
from mixer_lightning.prepare.state import JOURNAL, MERGING, PARTIAL

MAX_NAMED = 10  # parts in a message


class Prepared(NamedTuple):
    """A part as its job left it."""

    part: Part
    folder: Path
    journal: Journal


def find_parts(output: Path) -> list[Prepared]:
    """The parts that were begun in an output, in order."""
    found = []
    for path in (output / PARTIAL).glob(f"part-*-of-*/{JOURNAL}"):
        if match := re.fullmatch(r"part-(\d+)-of-(\d+)", path.parent.name):
            found.append(Prepared(Part(int(match[1]), int(match[2])), path.parent, read_journal(path)))
    return sorted(found)


def refuse_other_work(options: Options, source: Source, num_shards: dict[str, int]) -> None:
    """See that what another command has begun in the output is not mixed with what this one does.

    Raises:
        ValueError: the output holds parts of another division, parts of something else, or the beginning of one job.
    """
    output, parts = options.output, find_parts(options.output)
    if options.part is None:
        if parts and not options.merge:
            raise ValueError(
                f"output: {output} holds parts of a set ({parts[0].part}): part=merge joins them, the same command "
                f"with part=1/{parts[0].part.total} and so on goes on with them. To make it in one job, choose another "
                f"output or delete {output / PARTIAL}."
            )
        return
    if (output / PARTIAL / JOURNAL).exists():
        raise ValueError(
            f"output: {output} holds the beginning of one job, without part=. Go on with that, choose another output, "
            f"or delete {output / PARTIAL}."
        )
    _refuse_other_counts(output, parts, options.part.total)
    for each in parts:
        _refuse_other_set(each, options, source, num_shards)


def finished_parts(options: Options, source: Source, num_shards: dict[str, int]) -> list[Prepared]:
    """All parts of the output, each finished, and of the same source and options as this command.

    Raises:
        ValueError: a part is missing, not finished, cut, or made otherwise; it is named.
    """
    output, parts = options.output, find_parts(options.output)
    if not parts:
        raise ValueError(
            f"part: there are no parts in {output} to merge. Prepare them first, with part=1/4 ... part=4/4 or as many "
            "as there are jobs."
        )
    count = parts[0].part.total
    _refuse_other_counts(output, parts, count)
    for each in parts:
        _refuse_other_set(each, options, source, num_shards)
    have = {each.part.number for each in parts}
    if missing := [number for number in range(1, count + 1) if number not in have]:
        raise ValueError(
            f"part: of {count} parts in {output}, {_named(missing)} missing. Prepare "
            f"{'them' if len(missing) > 1 else 'it'} with part={missing[0]}/{count}"
            f"{' and so on' if len(missing) > 1 else ''}, then merge."
        )
    if unfinished := [each.part.number for each in parts if not each.journal.read_all]:
        raise ValueError(
            f"part: of {count} parts in {output}, {_named(unfinished)} not finished. "
            f"The same command with part={unfinished[0]}/{count} goes on with it."
        )
    for each in parts:
        advice = f"Merge with the former, or use one version for all. {how_to_prepare_again(each)}"
        refuse_other_versions(each.journal, str(each.part), advice)
    return parts


def is_being_merged(output: Path) -> bool:
    """Whether the merge of parts was begun: what is merged already is no longer in them."""
    return (output / PARTIAL / MERGING / JOURNAL).exists()


def progress_of_parts(options: Options, part: Part) -> str:
    """What is to be done after a part is finished."""
    finished = sum(each.journal.read_all for each in find_parts(options.output))
    if finished == part.total:
        return f"all {part.total} parts are finished: the same command with part=merge makes the set of them"
    return (
        f"{finished:,} of {part.total:,} parts are finished; when all are, the same command with part=merge"
    )


def how_to_prepare_again(each: Prepared) -> str:
    """For messages about a part that is of no use."""
    return f"Delete {each.folder} and prepare it again with part={each.part.number}/{each.part.total}."


def _named(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    some = ", ".join(map(str, numbers[:MAX_NAMED]))
    more = f" and {len(numbers) - MAX_NAMED:,} more" if len(numbers) > MAX_NAMED else ""
    return f"part {some} is" if len(numbers) == 1 else f"parts {some}{more} are"


def _refuse_other_counts(output: Path, parts: list[Prepared], count: int) -> None:
    others = [each for each in parts if each.part.total != count]
    if others:
        raise ValueError(
            f"part: {output} holds {others[0].part} ({others[0].folder}), which does not go with parts of {count}. "
            "Choose another output, or delete the folders of one of the two divisions."
        )


def _refuse_other_set(each: Prepared, options: Options, source: Source, num_shards: dict[str, int]) -> None:
    subject = f"{each.folder} holds {each.part} of another set"
    refuse_differences(each.journal.options, each.journal.source, options, source, subject)
    if each.journal.num_shards != num_shards:
        raise ValueError(
            f"{each.part} has {each.journal.num_shards} shards, and there are to be {num_shards}: the images of the "
            f"source have changed since. {how_to_prepare_again(each)}"
        )
