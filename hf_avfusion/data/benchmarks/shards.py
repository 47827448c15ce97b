"""Finds the shards of a split, `<split>-*.parquet` or `<split>-*.tar`, in a folder or its `data`."""

from __future__ import annotations

import os
import re
from pathlib import Path


def shards_of(folder: Path, split: str, suffix: str) -> list[Path]:
    """Returns the existing shards of a split, sorted; the set may be incomplete."""
    return sorted([*folder.glob(f"{split}-*{suffix}"), *folder.glob(f"data/{split}-*{suffix}")])


def find_shards(folder: str | os.PathLike, split: str, suffix: str = ".parquet") -> list[Path]:
    """Returns the shards of a split in order.

    Raises:
        FileNotFoundError: there are no shards, or the set is incomplete.
        ValueError: a shard is a pipe, a device or a folder.
    """
    folder = Path(folder)
    shards = shards_of(folder, split, suffix)
    if not shards:
        kind = suffix.lstrip(".")
        raise FileNotFoundError(f"{folder} contains no {kind} shards of the split {split!r} ({split}-*{suffix})")
    if irregular := [shard for shard in shards if not shard.is_file()]:
        raise ValueError(f"{irregular[0]} is not a regular file (a folder, pipe or device); remove it")
    # Only the file names give the number of shards: <split>-00002-of-00006.parquet
    pattern = rf"{re.escape(split)}-(\d+)-of-(\d+){re.escape(suffix)}"
    numbered = [re.fullmatch(pattern, shard.name) for shard in shards]
    if all(numbered):
        totals = {int(match[2]) for match in numbered}
        present = {int(match[1]) for match in numbered}
        missing = sorted(set(range(max(totals))) - present)
        if len(totals) > 1 or missing:
            raise FileNotFoundError(
                f"{folder} contains {len(shards)} shards of {split!r} that are not one complete set (of {sorted(totals)},"
                f" missing {missing[:5]}); finish or repeat the rendering"
            )
    return shards


def count_rows(folder: str | os.PathLike, split: str) -> int:
    """Counts the clips of a split in a folder of parquet shards from the shards' footers.

    Raises:
        FileNotFoundError: there are no shards, or the set is incomplete.
        ValueError: a shard is truncated or not a parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for shard in find_shards(folder, split):
        try:
            count += pq.read_metadata(shard).num_rows
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{shard} is not a complete parquet file ({error}); download or render it again"
            ) from error
    return count
