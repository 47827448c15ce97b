"""WebDataset tar shards as rows: files of one key are one sample, read in order, never unpacked.

A sample holds `<key>.<suffix>` (the clip, any known media suffix) and `<key>.json` (clip_id, start, end where they
apply, and the benchmark's columns; classes as names or as indices), and for masks `<key>.masks.<n>.png`.
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
    """The rows of the shards, as a stream of one shard per tar or as a `Dataset` (copied once to datasets' cache)."""
    import datasets

    # Size and time of change are part of the cache's key, so that a changed shard is read anew.
    stamps = [(str(shard), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(_rows, features=features, gen_kwargs={"shards": stamps, "record": record})


def _rows(shards: list[tuple[str, int, int]], record: Benchmark) -> Iterator[dict[str, Any]]:
    for path, *_ in shards:
        for sample in read_samples(path):
            yield sample_to_row(sample, record, path)


def read_samples(path: str | Path) -> Iterator[dict[str, Any]]:
    """{"__key__": key, suffix: bytes, ...} per sample; neighbours of one key belong together."""
    sample: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                # Nothing is unpacked here, but keys become paths of clips, which others may write or read.
                if member.name.startswith("/") or ".." in folder.split("/") or "\\" in member.name:
                    raise ValueError(
                        f"{path}: the name {member.name!r} leads out of the archive; such a shard is not read"
                    )
                if not member.isfile() or not stem:
                    continue
                key = f"{folder}/{stem}".removeprefix("./") if folder else stem
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                if suffix in sample:
                    raise ValueError(f"{path}: the sample {key} holds .{suffix} twice")
                sample["__key__"] = key
                sample[suffix] = archive.extractfile(member).read()
                archive.members = []  # it would keep every header of a long shard
            _check_end(archive, path)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a readable tar file: {error}") from error
    if sample:
        yield sample


def count_samples(path: str | Path) -> int:
    """Number of clips in a shard, from its headers.

    Raises:
        ValueError: for a file that is no tar file, or is cut short.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            names = archive.getnames()
            _check_end(archive, path)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a readable tar file: {error}") from error
    return sum(Path(name).suffix == ".json" for name in names)


def _check_end(archive: tarfile.TarFile, path: str | Path) -> None:
    """tarfile takes an archive that was cut off between two files, or in a header, for a whole one."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(
            f"{path}: is cut short: the block of zeros that ends a tar file is missing; get the shard again"
        )


def sample_to_row(sample: Mapping[str, Any], record: Benchmark, where: str) -> dict[str, Any]:
    """One sample (bytes, or as `datasets` decodes tars) to the row of its benchmark.

    Raises:
        ValueError: for a sample without exactly one clip, without annotations, or with a label that is none.
    """
    where = f"{where}: sample {sample['__key__']}"
    media = [name for name in sample if f".{name.lower()}" in MEDIA_SUFFIXES and sample[name] is not None]
    if len(media) != 1:
        raise ValueError(f"{where} must hold one clip, found: {', '.join(media) or ', '.join(sample)}")
    if sample.get("json") is None:
        raise ValueError(f"{where} holds no json with its annotations")
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
            raise ValueError(f"{where}: its json lacks {column}; it has: {', '.join(about)}")
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
    raise ValueError(f"{where}: {label!r} is neither one of the {len(indices)} names of {column} nor an index of them")
