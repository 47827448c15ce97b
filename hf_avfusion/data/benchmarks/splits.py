"""Loads the rows of one split of a benchmark, a folder of clips or a CSV file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folders import find_evaluation_split, load_folder, load_unlabelled
from .loading import evaluation_split, get_record, load_with_coverage
from .reading import read as read_now
from .records import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split.

    Args:
        name, title, split, source, variant: of the benchmark; for a folder, `name` is its path.
        rows: undecoded rows.
        num_rows: number of rows, None if unknown before reading.
        coverage: numbers of clips found (`present`), official clips (`expected`) and annotated clips without a file
            (`vanished`); None if unknown. Clips of a Hub repository are counted when they are read.
        record: record of the benchmark's variant, None for a folder.
        allow_urls: that of `load_rows`, for the `ClipTransform` that reads the rows.
    """

    name: str
    title: str
    split: str
    source: str | None
    variant: str | None
    rows: datasets.Dataset | datasets.IterableDataset
    num_rows: int | None
    coverage: dict[str, int | None] = field(default_factory=dict)
    record: Benchmark | None = None
    allow_urls: bool = False


def load_rows(
    data: str,
    split: str | None = None,
    *,
    source: str | None = None,
    variant: str | None = None,
    labels: bool = True,
    flag: str = "--split",
    allow_urls: bool = False,
    read: Callable[..., Any] = read_now,
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
        read: pass one `reading.read_once()` to the calls for several splits, and they read a folder once.

    Raises:
        ValueError: the split or variant is unknown, or `source` or `variant` is given for a folder; and the errors of
            the loading functions.
        FileNotFoundError: `data` does not exist.
    """
    if data in BENCHMARKS:
        record = get_record(data, variant)
        split = evaluation_split(record, split, flag=flag)
        rows, covered = load_with_coverage(data, split, source=source, variant=variant, read=read)
        found, number = {"present": None, "expected": record.splits[split], "vanished": None}, None
        if covered is not None:
            number = covered.present
            vanished = None if covered.annotated is None else len(covered.vanished)
            found = {"present": number, "expected": covered.expected, "vanished": vanished}
        return SplitRows(data, record.title, split, source, variant, rows, number, found, record, allow_urls)
    if unused := [
        f"{name}= (--{name})" for name, given in (("source", source), ("variant", variant)) if given is not None
    ]:
        raise ValueError(
            f"{' and '.join(unused)}: allowed only for the benchmarks {', '.join(BENCHMARKS)}; {data} is not one of them, so"
            " leave this out"
        )
    split = split or find_evaluation_split(data, labels=labels, read=read)
    load = load_folder if labels else load_unlabelled
    rows = load(data, split, allow_urls=allow_urls, read=read)
    found = {"present": len(rows), "expected": None, "vanished": None}
    return SplitRows(data, Path(data).resolve().name, split, None, None, rows, len(rows), found, None, allow_urls)
