"""Loads any benchmark with the same columns, from parquet or WebDataset shards, raw clips, or the Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .question_rows import count_questions, expand_questions, is_grouped
from .raw_clips import Coverage, find_annotations, find_clips
from .reading import read as read_now
from .records import BENCHMARKS, Benchmark
from .shards import count_rows, find_shards, shards_of
from .tar_shards import TAR_SUFFIX, count_samples, read_tars, sample_to_row

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "coverage",
    "evaluation_split",
    "get_record",
    "load_benchmark",
    "load_with_coverage",
    "row_features",
]


def clip_features() -> dict[str, Any]:
    """Returns the features of a clip without annotations."""
    from datasets import Value, Video

    times = {"start": Value("float32"), "end": Value("float32")}
    return {"clip_id": Value("string"), "video": Video(decode=False), **times}


def row_features(record: Benchmark) -> datasets.Features:
    """Returns the features of a benchmark's rows: clip_id, video {bytes, path} (undecoded), start, end (s), annotations.

    Raises:
        ValueError: the class names of a column are stored only in the benchmark's shards.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    kinds = {"text": Value("string"), "integer": Value("int64"), "images": List(Image(decode=False))}
    columns = {}
    for column, kind in record.columns.items():
        if kind in kinds:
            columns[column] = kinds[kind]
            continue
        names = record.label_names(column)
        if names is None:
            raise ValueError(
                f"{record.title}: the class names of {column} are stored only in its parquet shards; pass source= a folder"
                " with such shards"
            )
        label = ClassLabel(names=list(names))
        columns[column] = label if kind == "class" else List(label)
    return Features({**clip_features(), **columns})


def load_benchmark(
    name: str,
    split: str,
    streaming: bool = True,
    source: str | os.PathLike | None = None,
    *,
    variant: str | None = None,
    annotations: str | os.PathLike | None = None,
    trimmed: bool | None = None,
) -> datasets.IterableDataset | datasets.Dataset:
    """Loads one split with undecoded videos: clip_id, video {bytes, path}, start, end (s), the annotation columns.

    `source` is read as the first of these that matches:

    - a folder with parquet shards `<split>-*.parquet`, in it or in its `data`; shards that hold each video once with its
      questions (`question_rows`) give a row for each question, if they are streamed;
    - a folder with WebDataset shards `<split>-*.tar`, in it or in its `data` (`tar_shards` documents the format);
    - a folder with the raw clips, at any depth, and the official annotation file (always chosen if `annotations` is
      given). A warning reports how many annotated clips have no file, with their first ids; `coverage` lists all;
    - the id of a Hub repository with parquet or WebDataset shards (missing rows show only when the rows are read).

    Args:
        name: a key of `BENCHMARKS`.
        split: one of the benchmark's splits.
        streaming: True returns an `IterableDataset`, False a `Dataset` with random access.
        source: a folder or the id of a Hub repository; by default, the record's first verified Hub repository.
        variant: one of the benchmark's variants; by default, the first.
        annotations: the official annotation file, or a folder that contains it under its official name.
        trimmed: whether raw files named `<id>`, without a start, are trimmed clips (True) or whole videos in which the
            clip lies from `start` to `end` (False). Required only if there are such files.

    Raises:
        ValueError: the name, split or variant is unknown, an annotation cannot be read, the label names are not in the
            benchmark's order, a file may be a trimmed clip or a whole video, or there is no source.
        FileNotFoundError: the folder lacks the split or some of its shards, or no annotated clip has a file.
    """
    where = {"source": source, "variant": variant, "annotations": annotations, "trimmed": trimmed}
    return load_with_coverage(name, split, streaming, **where, count_tars=False)[0]


def load_with_coverage(
    name: str,
    split: str,
    streaming: bool = True,
    source: str | os.PathLike | None = None,
    *,
    variant: str | None = None,
    annotations: str | os.PathLike | None = None,
    trimmed: bool | None = None,
    count_tars: bool = True,
    read: Callable[..., Any] = read_now,
) -> tuple[Any, Coverage | None]:
    """The rows of `load_benchmark` and the coverage of a folder, which is read once for both.

    Args:
        count_tars: False leaves out the coverage of WebDataset shards, whose headers all have to be read for it.
        read: see `find_clips`.

    Returns:
        The rows, and the `Coverage`; None for a Hub repository.
    """
    import datasets

    record = get_record(name, variant, split)
    if source is None:
        verified = [repository.id for repository in record.hub_ids if repository.verified]
        if not verified:
            raise ValueError(f"{record.title} needs source= (--source): {record.obtain}")
        source = verified[0]
    folder = Path(source)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(source)):
            raise FileNotFoundError(
                f"source {os.fspath(source)!r} is neither a folder nor the id of a Hub repository like org/name; correct"
                " source= (--source)"
            )
        rows = datasets.load_dataset(os.fspath(source), split=split, streaming=streaming)
        return _checked(rows, record, os.fspath(source)), None
    if annotations is None and shards_of(folder, split, ".parquet"):
        shards = find_shards(folder, split)
        found = _shard_coverage(record, split, _count(record, folder, split), folder)
        _report(found)
        rows = datasets.load_dataset(
            "parquet", data_files={split: [str(shard) for shard in shards]}, split=split, streaming=streaming
        )
        return _checked(rows, record, str(folder)), found
    if annotations is None and shards_of(folder, split, TAR_SUFFIX):
        tars = find_shards(folder, split, TAR_SUFFIX)
        found = _tar_coverage(record, split, tars, folder) if count_tars else None
        return read_tars(tars, record, row_features(record), streaming), found
    file = find_annotations(record, split, folder, annotations, read)
    clips, _, found = find_clips(record, split, folder, file, trimmed, read)
    _report(found)
    if not clips:
        raise FileNotFoundError(
            f"{folder} contains none of the {found.annotated} clips that {file} lists for the split {split!r}; name the"
            f" clips like {', '.join(found.examples)}, or pass another source= (--source)"
        )
    features = row_features(record)
    columns = {column: [clip[column] for clip in clips] for column in features}
    rows = datasets.Dataset.from_dict(columns, features=features)
    return rows.to_iterable_dataset(num_shards=min(len(rows), 64)) if streaming else rows, found


def coverage(
    name: str,
    split: str,
    source: str | os.PathLike,
    *,
    variant: str | None = None,
    annotations: str | os.PathLike | None = None,
    trimmed: bool | None = None,
) -> Coverage:
    """Counts the clips of a split in a folder; for raw clips, also lists the ids without a file.

    The arguments are those of `load_benchmark`.
    """
    record = get_record(name, variant, split)
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"source {os.fspath(source)!r} is not a folder; pass source= a folder (--source)")
    if annotations is None and shards_of(folder, split, ".parquet"):
        return _shard_coverage(record, split, _count(record, folder, split), folder)
    if annotations is None and shards_of(folder, split, TAR_SUFFIX):
        return _tar_coverage(record, split, find_shards(folder, split, TAR_SUFFIX), folder)
    return find_clips(record, split, folder, find_annotations(record, split, folder, annotations), trimmed)[-1]


def get_record(name: str, variant: str | None = None, split: str | None = None) -> Benchmark:
    """Returns the record of a benchmark's variant (None: the first) and checks that it has the split `split`.

    Raises:
        ValueError: the name, variant or split does not exist; the message lists the existing ones.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; the benchmarks are: {', '.join(sorted(BENCHMARKS))}")
    record = BENCHMARKS[name].variant(variant)
    if split is not None and split not in record.splits:
        raise ValueError(f"{record.title} has no split {split!r}; its splits are: {', '.join(record.splits)}")
    return record


def evaluation_split(record: Benchmark, wanted: str | None = None, *, flag: str = "--split") -> str:
    """Returns the split on which models are scored: `wanted`, or by default `test`, or the record's last split.

    Not every record has `test`: AudioSet has `eval`; Kinetics, EPIC-KITCHENS-100 and Moments in Time have only `train`
    and `validation`.

    Args:
        record: record of the benchmark's variant (`get_record`); variants can have different splits.
        wanted: one of its splits, or None.
        flag: the script's option for the split, used in the error message.

    Raises:
        ValueError: the wanted split does not exist; the message lists the existing ones.
    """
    if wanted is None:
        return "test" if "test" in record.splits else list(record.splits)[-1]
    if wanted not in record.splits:
        raise ValueError(
            f"{flag} {wanted}: {record.title} has no such split; its splits are: {', '.join(record.splits)}"
        )
    return wanted


def _count(record: Benchmark, folder: Path, split: str) -> int:
    """Rows of parquet shards; of shards with a row for each video, the questions."""
    number = count_rows(folder, split)  # checks the files
    questions = count_questions(find_shards(folder, split), record) if record.has_questions else None
    return number if questions is None else questions


def _shard_coverage(record: Benchmark, split: str, present: int, folder: Path) -> Coverage:
    return Coverage(record.title, split, str(folder), record.splits[split], None, present)


def _tar_coverage(record: Benchmark, split: str, tars: list[Path], folder: Path) -> Coverage:
    return _shard_coverage(record, split, sum(map(count_samples, tars)), folder)


def _report(found: Coverage) -> None:
    complete = found.annotated is None and found.expected in (None, found.present)
    if complete or (found.annotated is not None and not found.vanished and found.expected in (None, found.annotated)):
        logger.info("%s", found)
    else:
        logger.warning("%s", found)


def _checked(rows: Any, record: Benchmark, source: str) -> Any:
    """Checks the columns and the order of the label names of rows from shards; returns them with undecoded videos."""
    import datasets

    if rows.features is None:
        raise ValueError(f"{source}: the columns of its rows are unknown; convert it to parquet shards")
    if "__key__" in rows.features:  # WebDataset shards of a Hub repository
        features = row_features(record)
        rows = rows.decode(False) if isinstance(rows, datasets.IterableDataset) else _undecoded(rows)
        return rows.map(
            sample_to_row,
            fn_kwargs={"record": record, "where": source},
            features=features,
            remove_columns=[column for column in rows.features if column not in features],
        )
    missing = [column for column in ("clip_id", "video", *record.columns) if column not in rows.features]
    if missing:
        raise ValueError(
            f"{source} lacks the columns {', '.join(missing)} of {record.title}; it has {', '.join(rows.features)}. Rename"
            " or add the missing columns"
        )
    for column in record.columns:
        feature, expected = rows.features[column], record.label_names(column)
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if expected is None:
            continue
        if names is None:
            raise ValueError(f"{source}: the column {column} has no label names; store it as a ClassLabel")
        if list(names) != list(expected):
            first = next((k for k, (a, b) in enumerate(zip(names, expected)) if a != b), min(len(names), len(expected)))
            raise ValueError(
                f"{source}: the {len(names)} names of {column} differ from the {len(expected)} names of {record.title}, from"
                f" number {first} on. If they are those of another variant, choose it: {', '.join(record.variants)}"
            )
    rows = _undecoded(rows)
    return expand_questions(rows, rows.features, record, source) if is_grouped(rows.features, record) else rows


def _undecoded(rows: Any) -> Any:
    """Turns off decoding of media columns, since clips are decoded in the transform."""
    import datasets

    for column, feature in rows.features.items():
        if isinstance(feature, (datasets.Video, datasets.Audio, datasets.Image)):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows
