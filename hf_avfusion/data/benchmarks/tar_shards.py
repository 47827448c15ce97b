"""Reads WebDataset tar shards as rows. Files with one key are one sample; they are read in order and never unpacked.

A sample has `<key>.<suffix>` (the clip, with any known media suffix), `<key>.json` (the benchmark's columns, classes as
names or indices, and optionally clip_id, start and end), and for masks `<key>.masks.<n>.png`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...media.sources import MEDIA_SUFFIXES
from .records import Benchmark, label_indices

if TYPE_CHECKING:
    import datasets

TAR_SUFFIX = ".tar"


def read_tars(shards: list[Path], record: Benchmark, features: datasets.Features, streaming: bool) -> Any:
    """Returns the rows as an `IterableDataset` with one shard per tar, or as a `Dataset` (copied once to its cache)."""
    import datasets

    # Size and modification time are part of the cache key, so that a changed shard is read again.
    stamps = [(str(shard), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(_rows, features=features, gen_kwargs={"shards": stamps, "record": record})


def _rows(shards: list[tuple[str, int, int]], record: Benchmark) -> Iterator[dict[str, Any]]:
    for path, *_ in shards:
        for sample in read_samples(path):
            yield sample_to_row(sample, record, path)


def read_samples(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields {"__key__": key, suffix: bytes, ...} for each sample; consecutive files with one key are one sample."""
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                # Nothing is unpacked here, but keys become paths of clips, which other code may read or write.
                if member.name.startswith("/") or ".." in folder.split("/") or "\\" in member.name:
                    raise ValueError(
                        f"{path}: the name {member.name!r} leads out of the archive; make the shard again with relative"
                        " names without '..' and '\\'"
                    )
                if not member.isfile() or not stem:
                    continue
                key = f"{folder}/{stem}".removeprefix("./") if folder else stem
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                if suffix in sample:
                    raise ValueError(f"{path}: the sample {key} has two files .{suffix}; remove one")
                sample["__key__"] = key
                sample[suffix] = archive.extractfile(member).read()
                archive.members = []  # otherwise tarfile keeps the headers of all files
            _check_end(archive, path)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a readable tar file: {error}") from error
    if sample:
        yield sample


def count_samples(path: str | Path) -> int:
    """Counts the clips of a shard from its headers.

    Raises:
        ValueError: the file is truncated or not a tar file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            names = archive.getnames()
            _check_end(archive, path)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a readable tar file: {error}") from error
    return sum(Path(name).suffix == ".json" for name in names)


def _check_end(archive: tarfile.TarFile, path: str | Path) -> None:
    """Raises if the archive is truncated; tarfile does not notice an end between two files or in a header."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(
            f"{path} is truncated: the block of zeros at the end of a tar file is missing; download or make it again"
        )


def sample_to_row(sample: Mapping[str, Any], record: Benchmark, where: str) -> dict[str, Any]:
    """Converts a sample (bytes, or as decoded by `datasets`) to a row of the benchmark.

    Raises:
        ValueError: the sample has not exactly one clip, has no annotations, or has an unknown label.
    """
    where = f"{where}: sample {sample['__key__']}"
    media = [name for name in sample if f".{name.lower()}" in MEDIA_SUFFIXES and sample[name] is not None]
    if len(media) != 1:
        raise ValueError(f"{where} must contain exactly one clip, got: {', '.join(media) or ', '.join(sample)}")
    if sample.get("json") is None:
        raise ValueError(f"{where} has no annotations; add a file <key>.json")
    about = sample["json"] if isinstance(sample["json"], Mapping) else json.loads(sample["json"])
    key = sample["__key__"]
    row = {
        "clip_id": str(about.get("clip_id", key)),
        "video": {"bytes": _bytes(sample[media[0]]), "path": f"{key}.{media[0]}"},
        "start": about.get("start"),
        "end": about.get("end"),
    }
    for column, kind in record.columns.items():
        if kind == "images":
            masks = [name for name in sample if name.startswith(f"{column}.") and sample[name] is not None]
            masks.sort(key=lambda name: int(name.split(".")[1]))
            row[column] = [{"bytes": _bytes(sample[name]), "path": f"{key}.{name}"} for name in masks]
            continue
        if about.get(column) is None:
            raise ValueError(f"{where}: its JSON lacks {column}; it has: {', '.join(about)}")
        if kind == "class":
            row[column] = _index(about[column], record, column, where)
        elif kind == "classes":
            row[column] = [_index(label, record, column, where) for label in about[column]]
        else:
            row[column] = about[column]
    return row


def _bytes(value: Any) -> bytes:
    return value["bytes"] if isinstance(value, Mapping) else value


def _index(label: Any, record: Benchmark, column: str, where: str) -> int:
    indices = label_indices(record.labels[column])
    if isinstance(label, str) and label in indices:
        return indices[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(indices):
        return label
    raise ValueError(
        f"{where}: {label!r} is not one of the {len(indices)} names of {column}, nor an index in 0..{len(indices) - 1}"
    )
