"""The rows of one split, wherever clips come from: a benchmark by its name, or a folder or CSV file of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .folders import find_evaluation_split, load_folder, load_unlabelled
from .loading import coverage, evaluation_split, get_record, load_benchmark
from .records import BENCHMARKS, Benchmark

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split, before a model says which of their labels it is scored by.

    Args:
        name, title, split, source, variant: of the benchmark; a folder's path is its name.
        rows: undecoded; num_rows: how many, None if not known beforehand.
        coverage: clips that are there (`present`), that should be (`expected`), that are annotated but not there
            (`vanished`); None where that is not known. Clips of a Hub repository are counted when they are read.
        record: of the benchmark's variant, None of a folder.
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


def load_rows(
    data: str,
    split: str | None = None,
    *,
    source: str | None = None,
    variant: str | None = None,
    labels: bool = True,
    flag: str = "--split",
) -> SplitRows:
    """The rows of a split of a benchmark, or of a folder of videos or its CSV file; videos undecoded.

    Args:
        data: a key of `BENCHMARKS`, or a path.
        split: None is the one that scores a model: `evaluation_split` of a benchmark, `find_evaluation_split` of a folder.
        source, variant: of a benchmark.
        labels: False takes all clips of a folder, whatever its sub-folders mean (`load_unlabelled`).
        flag: how a script lets its user choose the split, for messages.

    Raises:
        ValueError: an unknown split or variant, `source` or `variant` beside a folder, and what loading refuses.
        FileNotFoundError: nothing of that name.
    """
    if data in BENCHMARKS:
        record = get_record(data, variant)
        split = evaluation_split(record, split, flag=flag)
        where = {"source": source, "variant": variant}
        rows = load_benchmark(data, split, **where)
        found, number = {"present": None, "expected": record.splits[split], "vanished": None}, None
        if source is not None and Path(source).is_dir():
            covered = coverage(data, split, **where)
            number = covered.present
            vanished = None if covered.annotated is None else len(covered.vanished)
            found = {"present": number, "expected": covered.expected, "vanished": vanished}
        return SplitRows(data, record.title, split, source, variant, rows, number, found, record)
    if idle := [
        f"{name}= (--{name})" for name, given in (("source", source), ("variant", variant)) if given is not None
    ]:
        raise ValueError(
            f"{' and '.join(idle)}: for the benchmarks {', '.join(BENCHMARKS)}, and {data} is none of them"
        )
    split = split or find_evaluation_split(data, labels=labels)
    rows = load_folder(data, split) if labels else load_unlabelled(data, split)
    found = {"present": len(rows), "expected": None, "vanished": None}
    return SplitRows(data, Path(data).resolve().name, split, None, None, rows, len(rows), found)
