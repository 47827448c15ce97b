"""
Questions about videos: shards hold a video once, with lists of its questions; what is read has a row for each question.

A row for each question gives each the same weight in training and in scores, as published. The clip_id of a question is
`<video>-<question>`. In a shard the clip_id is `<video>`, and `question_id` and the annotation columns are lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .records import Benchmark

if TYPE_CHECKING:
    import datasets

IDS = "question_id"


def video_of(clip_id: str) -> str:
    """The video of a question: "00000093-17" is about "00000093"."""
    return clip_id.rpartition("-")[0]


def grouped_features(features: datasets.Features, record: Benchmark) -> datasets.Features:
    """The features of rows of videos, from those of questions."""
    from datasets import Features, List, Value

    kept = {name: kind for name, kind in features.items() if name not in record.columns}
    return Features({**kept, IDS: List(Value("string")), **{name: List(features[name]) for name in record.columns}})


def group_questions(rows: Iterable[Mapping[str, Any]], record: Benchmark) -> list[dict[str, Any]]:
    """Rows of questions to rows of videos, in the order in which videos appear first."""
    videos: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = video_of(row["clip_id"])
        if name not in videos:
            kept = {column: value for column, value in row.items() if column not in record.columns}
            videos[name] = {**kept, "clip_id": name, IDS: [], **{column: [] for column in record.columns}}
        videos[name][IDS].append(row["clip_id"].removeprefix(f"{name}-"))
        for column in record.columns:
            videos[name][column].append(row[column])
    return list(videos.values())


def group_values(values: Mapping[str, Mapping[str, Any]], record: Benchmark) -> dict[str, dict[str, Any]]:
    """Annotations by clip_id of a question to annotations by video, with lists."""
    rows = ({"clip_id": clip_id, **columns} for clip_id, columns in values.items())
    return {row.pop("clip_id"): row for row in group_questions(rows, record)}


def is_grouped(features: Mapping[str, Any], record: Benchmark) -> bool:
    """Whether rows with these features are videos with lists of questions."""
    return record.has_questions and IDS in features


def expand_questions(rows: Any, features: datasets.Features, record: Benchmark, source: str) -> Any:
    """
    Rows of videos to rows of questions, as they are read. The content of a video is not copied.

    Args:
        rows: a `datasets.IterableDataset` whose videos are not decoded.
        features: of the rows.

    Raises:
        ValueError: rows with random access, which would hold a copy of the video for each question.
    """
    import datasets

    if not isinstance(rows, datasets.IterableDataset):
        raise ValueError(
            f"{source} holds each video of {record.title} once, and a row for each question of it would copy the video: pass "
            "streaming=True"
        )
    lists = {column: features[column].feature for column in record.columns}
    kept = {name: kind for name, kind in features.items() if name not in (IDS, *record.columns)}
    return rows.map(
        _expand,
        batched=True,
        batch_size=1,
        fn_kwargs={"columns": tuple(record.columns)},
        remove_columns=[IDS],
        features=datasets.Features({**kept, **lists}),
    )


def _expand(batch: dict[str, list[Any]], columns: tuple[str, ...]) -> dict[str, list[Any]]:
    (ids,) = batch.pop(IDS)
    repeated = {name: values * len(ids) for name, values in batch.items() if name not in columns}
    clip_ids = [f"{video}-{number}" for video, number in zip(repeated["clip_id"], ids)]
    return {**repeated, "clip_id": clip_ids, **{column: batch[column][0] for column in columns}}


def count_questions(shards: Iterable[Path], record: Benchmark) -> int | None:
    """The number of questions in parquet shards of videos; None if the shards have a row for each question."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shards = list(shards)
    if not all(is_grouped(dict.fromkeys(pq.read_schema(shard).names), record) for shard in shards):
        return None
    return sum(pc.sum(pc.list_value_length(pq.read_table(shard, columns=[IDS])[IDS])).as_py() or 0 for shard in shards)
