"""Loads the rows of one split of a benchmark, a folder of clips or a CSV file."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import did_you_mean
from .folders import SPLIT_NAMES, describe_division, find_evaluation_split, find_splits, load_folder, load_unlabelled
from .loading import evaluation_split, get_record, load_with_coverage
from .reading import read_once
from .records import BENCHMARKS, Benchmark, read_labels
from .shards import find_shards, shards_of

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The rows of a split.

    Args:
        name, title, split, source, variant: of the benchmark; for a folder, `name` is its path.
        rows: undecoded rows.
        num_rows: number of rows, None if unknown before reading.
        coverage: numbers of clips found (`present`), official clips (`expected`) and annotated clips without a file
            (`vanished`); None if unknown. Clips of a Hub repository are counted when they are read.
        record: record of the benchmark's variant, None for a folder.
        division: how the rows were divided where the data have no such split; None for splits that exist.
        allow_urls: that of `load_rows`, for the `ClipTransform` that reads the rows.
    """

    name: str
    title: str
    split: str
    rows: datasets.Dataset | datasets.IterableDataset
    num_rows: int | None
    source: str | None = None
    variant: str | None = None
    coverage: dict[str, int | None] = field(default_factory=dict)
    record: Benchmark | None = None
    division: str | None = None
    allow_urls: bool = False

    def read_column(self, name: str) -> Iterator[Any]:
        """Yields the values of a column of all rows, and of lists their entries. Of local parquet shards no clip is read."""
        folder = Path(self.source) if self.source is not None else None
        if folder is not None and folder.is_dir() and shards_of(folder, self.split, ".parquet"):
            import pyarrow.parquet as pq

            shards = find_shards(folder, self.split)
            values = (value for shard in shards for value in pq.read_table(shard, columns=[name])[name].to_pylist())
        else:
            rows = self.rows.select_columns([name]) if hasattr(self.rows, "select_columns") else self.rows
            values = (row[name] for row in rows)
        for value in values:
            yield from value if isinstance(value, list) else (value,)

    @property
    def question_words(self) -> tuple[str, ...] | None:
        """The published words of the benchmark's questions, if it has any."""
        words = self.record.question_words if self.record is not None else ""
        return read_labels(words) if words else None


def check_selection(
    data: str,
    *splits: str | None,
    source: str | None = None,
    variant: str | None = None,
    flag: str = "--split",
) -> None:
    """Checks the names that select rows, without reading any clip or importing anything slow.

    A benchmark's splits are those of the variant, or of any variant without one. A folder can have the splits of `SPLIT_NAMES`.

    Raises:
        ValueError: an unknown split or variant, or `source` or `variant` for a folder.
    """
    if data in BENCHMARKS:
        variants = [variant] if variant is not None else [None, *BENCHMARKS[data].variants]
        known = dict.fromkeys(split for each in variants for split in get_record(data, each).splits)
    else:
        if unused := [
            f"{name}= (--{name})" for name, given in (("source", source), ("variant", variant)) if given is not None
        ]:
            raise ValueError(
                f"{' and '.join(unused)}: allowed only for the benchmarks {', '.join(BENCHMARKS)}; {data} is not one of them, so"
                " leave this out"
            )
        known = dict.fromkeys(SPLIT_NAMES)
    for split in splits:
        if split is not None and split not in known:
            title = BENCHMARKS[data].title if data in BENCHMARKS else "a folder of clips"
            raise ValueError(
                f"{flag} {split}: {title} has no such split; its splits are: {', '.join(known)}{did_you_mean(split, known)}"
            )


def load_rows(
    data: str,
    split: str | None = None,
    *,
    source: str | None = None,
    variant: str | None = None,
    labels: bool = True,
    flag: str = "--split",
    allow_urls: bool = False,
    read: Callable[..., Any] | None = None,
) -> SplitRows:
    """Loads the undecoded rows of a split of a benchmark, a folder of clips or a CSV file.

    Args:
        data: a key of `BENCHMARKS`, or a path.
        split: by default the evaluation split: `evaluation_split` of a benchmark, `find_evaluation_split` of a folder.
        source, variant: of a benchmark.
        labels: False loads all clips of a folder without labels (`load_unlabelled`).
        flag: the script's option for the split, used in messages.
        allow_urls: allow addresses (URLs) as clips of a CSV file. Pass it on to `ClipTransform`, which refuses addresses in all
            rows by default.
        read: pass one `reading.read_once()` to the calls for several splits, and they read a folder once. By default, each call
            has its own.

    Raises:
        ValueError: the split or variant is unknown, or `source` or `variant` is given for a folder; and the errors of
            the loading functions.
        FileNotFoundError: `data` does not exist.
    """
    read = read or read_once()
    if data in BENCHMARKS:
        record = get_record(data, variant)
        split = evaluation_split(record, split, flag=flag)
        rows, covered = load_with_coverage(data, split, source=source, variant=variant, read=read)
        found, number = {"present": None, "expected": record.splits[split], "vanished": None}, None
        if covered is not None:
            number = covered.present
            vanished = None if covered.annotated is None else len(covered.vanished)
            found = {"present": number, "expected": covered.expected, "vanished": vanished}
        return SplitRows(
            name=data,
            title=record.title,
            split=split,
            source=source,
            variant=variant,
            rows=rows,
            num_rows=number,
            coverage=found,
            record=record,
            allow_urls=allow_urls,
        )
    check_selection(data, source=source, variant=variant)
    split = split or find_evaluation_split(data, labels=labels, read=read)
    load = load_folder if labels else load_unlabelled
    rows = load(data, split, allow_urls=allow_urls, read=read)
    found = {"present": len(rows), "expected": None, "vanished": None}
    return SplitRows(
        name=data,
        title=Path(data).resolve().name,
        split=split,
        rows=rows,
        num_rows=len(rows),
        coverage=found,
        division=describe_division(data, labels=labels, read=read),
        allow_urls=allow_urls,
    )


def load_validation(
    trained: SplitRows,
    evaluated: str | None,
    *,
    labels: bool = True,
    read: Callable[..., Any] | None = None,
) -> tuple[SplitRows, SplitRows]:
    """The rows to train on and those to choose a checkpoint on, without the clips of the evaluated split.

    The validation rows are the split `validation`, if the data have it and it is neither trained on nor evaluated. Otherwise 20 %
    of the training files, at least one, of each class of the column `label`, are taken out of the training rows.

    Args:
        trained: the rows to train on.
        evaluated: the evaluated split, None for none.
        labels, read: as for `load_rows`.

    Raises:
        ValueError: the rows are streamed, or no class has more than one file.
    """
    read = read or read_once()
    if trained.record is not None:
        splits = tuple(trained.record.splits)
    else:
        splits = () if trained.division else find_splits(trained.name, labels=labels, read=read)
    if "validation" in splits and "validation" not in (evaluated, trained.split):
        where = {"source": trained.source, "variant": trained.variant, "labels": labels, "read": read}
        where["allow_urls"] = trained.allow_urls
        return trained, load_rows(trained.name, "validation", **where)
    remedy = (
        f"Use data with a split `validation` that is not evaluated (now: {evaluated}), or keep the last checkpoint."
    )
    if not hasattr(trained.rows, "select"):
        raise ValueError(
            f"The best checkpoint is chosen on clips that are neither trained on nor evaluated, but {trained.name} has none and its"
            f" rows are streamed, so that no part of {trained.split} can be taken out. {remedy}"
        )
    classes = trained.rows["label"] if "label" in trained.rows.features else [""] * len(trained.rows)
    files: dict[Any, dict[str, None]] = defaultdict(dict)
    file_of = [re.sub(r"@[\d.e+-]+-(end|[\d.e+-]+)$", "", clip_id) for clip_id in trained.rows["clip_id"]]
    for file, label in zip(file_of, classes):
        files[label].setdefault(file)
    held: set[str] = set()
    for label in sorted(files):
        names = sorted(files[label])
        count = min(max(round(0.2 * len(names)), 1), len(names) - 1)
        held.update(random.Random(f"0/validation/{label}").sample(names, count))
    if not held:
        raise ValueError(
            f"The best checkpoint is chosen on a part of {trained.split}, but no class of {trained.name} has more than one file"
            f" there. {remedy}"
        )

    def part(is_held: bool, **changes: Any) -> SplitRows:
        rows = trained.rows.select([number for number, file in enumerate(file_of) if (file in held) == is_held])
        return replace(trained, rows=rows, num_rows=len(rows), coverage={}, **changes)

    share = f"20 % of the files of each class of `{trained.split}`, at least one, are `validation` (seed 0)"
    return part(False), part(True, split="validation", division=share)
