"""Shards of a split in a folder: `<split>-*.parquet` (or `.tar`), beside the folder's README or in its `data`."""

from __future__ import annotations

import os
import re
from pathlib import Path


def shards_of(folder: Path, split: str, suffix: str) -> list[Path]:
    """The shards of a split that are there, complete or not."""
    return sorted([*folder.glob(f"{split}-*{suffix}"), *folder.glob(f"data/{split}-*{suffix}")])


def find_shards(folder: str | os.PathLike, split: str, suffix: str = ".parquet") -> list[Path]:
    """The shards of a split, in order; an incomplete set is an error."""
    folder = Path(folder)
    shards = shards_of(folder, split, suffix)
    if not shards:
        kind = suffix.lstrip(".")
        raise FileNotFoundError(f"{folder} holds no {kind} shards of the split {split!r} ({split}-*{suffix})")
    # Only a name tells how many there should be: <split>-00002-of-00006.parquet
    pattern = rf"{re.escape(split)}-(\d+)-of-(\d+){re.escape(suffix)}"
    numbered = [re.fullmatch(pattern, shard.name) for shard in shards]
    if all(numbered):
        totals = {int(match[2]) for match in numbered}
        present = {int(match[1]) for match in numbered}
        missing = sorted(set(range(max(totals))) - present)
        if len(totals) > 1 or missing:
            raise FileNotFoundError(
                f"{folder} holds {len(shards)} shards of {split!r} that are not one whole set (of {sorted(totals)}, missing"
                f" {missing[:5]}); finish or repeat the rendering"
            )
    return shards


def count_rows(folder: str | os.PathLike, split: str) -> int:
    """Number of clips of a split in a folder of parquet shards, read from the shards' footers.

    Raises:
        FileNotFoundError: for an incomplete set. ValueError: for a shard that is cut short or no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for shard in find_shards(folder, split):
        try:
            count += pq.read_metadata(shard).num_rows
        except pa.ArrowInvalid as error:
            raise ValueError(f"{shard}: not a whole parquet file: {error}; get the shard again") from error
    return count
