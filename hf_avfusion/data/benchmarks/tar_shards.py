"""Reads WebDataset tar shards as rows. Files with one key are one sample; they are read in order and never unpacked.

A sample has `<key>.<suffix>` (the clip, with any known media suffix), `<key>.json` (the benchmark's columns, classes as
names or indices, and optionally clip_id, start and end), and for masks `<key>.masks.<n>.png`.
"""

from __future__ import annotations

import io
import json
import os
import re
import reprlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...media.sources import MEDIA_SUFFIXES, one_line
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
    """Yields {"__key__": key, suffix: bytes, ...} for each sample; consecutive files with one key are one sample.

    Raises:
        ValueError: the file is truncated or not a tar file, or a member cannot be read; the message names both.
    """
    sample: dict[str, Any] = {}
    for member, data in _members(path):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if not stem:
            continue
        key = f"{folder}/{stem}".removeprefix("./") if folder else stem
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if suffix in sample:
            raise ValueError(f"{path}: the sample {key} has two files .{suffix}; remove one")
        sample["__key__"] = key
        sample[suffix] = data
    if sample:
        yield sample


def count_samples(path: str | Path) -> int:
    """Counts the clips of a shard from its headers.

    Raises:
        ValueError: the file is truncated or not a tar file, or a member cannot be read.
    """
    return sum(Path(member.name).suffix == ".json" for member, _ in _members(path, with_data=False))


class _Shard(io.FileIO):
    """A file that never allocates more than it holds: headers may state any size."""

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise tarfile.ReadError("a header states a negative size")
        return super().read(min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0)))


def _members(path: str | Path, with_data: bool = True) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Yields the files of a tar in order, each with its bytes. Folders are left out."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a regular file (missing, or a folder, pipe or device); pass a tar file")
    size = os.path.getsize(path)
    try:
        with _Shard(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _check_member(member, size, path)
                if not member.isdir():
                    yield member, archive.extractfile(member).read() if with_data else None
                archive.members = []  # otherwise tarfile keeps the headers of all files
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                # tarfile does not notice an end between two files or in a header.
                raise ValueError(
                    f"{path} is truncated: the block of zeros at the end of a tar file is missing; download or make it again"
                )
    except (tarfile.TarError, RecursionError, OverflowError, EOFError) as error:  # of damaged or hostile headers
        raise ValueError(f"{path}: not a readable tar file: {one_line(error)}") from error


def _check_member(member: tarfile.TarInfo, size: int, path: str | Path) -> None:
    """Raises ValueError for a member of a tar file of `size` bytes that is neither a folder nor a plain file inside it."""
    name = member.name
    # Nothing is unpacked here, but keys become paths of clips, which other code may read or write.
    if name.startswith("/") or ".." in name.split("/")[:-1] or "\\" in name:
        raise ValueError(
            f"{path}: the name {name!r} leads out of the archive; make the shard again with relative names without '..' and"
            " '\\'"
        )
    if "\0" in name or not _is_text(name):
        raise ValueError(f"{path}: the name {name!r} has a NUL or is not UTF-8; make the shard again with other names")
    if member.isdir():
        return
    if not member.isfile() or member.issparse():
        kind = "a sparse file" if member.isfile() else "a hard link" if member.islnk() else "a link, pipe or device"
        raise ValueError(
            f"{path}: the member {name!r} is {kind}; only plain files are read: make the shard again with copies"
            " (tar --hard-dereference --dereference)"
        )
    if not 0 <= member.size <= size - member.offset_data:
        raise ValueError(
            f"{path} is truncated: its member {name!r} states {member.size:,} bytes, but the file ends before; download or"
            " make it again"
        )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sample_to_row(sample: Mapping[str, Any], record: Benchmark, where: str) -> dict[str, Any]:
    """Converts a sample (bytes, or as decoded by `datasets`) to a row of the benchmark.

    Raises:
        ValueError: the sample has not exactly one clip, has no annotations or annotations of a wrong type, or has an unknown
            label.
    """
    where = f"{where}: sample {sample['__key__']}"
    media = [name for name in sample if f".{name.lower()}" in MEDIA_SUFFIXES and sample[name] is not None]
    if len(media) != 1:
        raise ValueError(f"{where} must contain exactly one clip, got: {', '.join(media) or ', '.join(sample)}")
    if sample.get("json") is None:
        raise ValueError(f"{where} has no annotations; add a file <key>.json")
    about = _annotations(sample["json"], where)
    key = sample["__key__"]
    row = {
        "clip_id": str(about.get("clip_id", key)),
        "video": {"bytes": _bytes(sample[media[0]]), "path": f"{key}.{media[0]}"},
        "start": about.get("start"),
        "end": about.get("end"),
    }
    for name in ("start", "end"):
        if row[name] is not None and not _is_number(row[name]):
            raise _wrong_type(name, row[name], "a finite number of seconds or null", where)
    if not _is_text(row["clip_id"]):
        raise _wrong_type("clip_id", row["clip_id"], "text in UTF-8", where)
    for column, kind in record.columns.items():
        if kind == "images":
            masks = [name for name in sample if name.startswith(f"{column}.") and sample[name] is not None]
            if wrong := [name for name in masks if not re.fullmatch(r"[0-9]{1,9}", name.split(".")[1])]:
                raise ValueError(f"{where}: the name .{wrong[0]} has no number; name masks .{column}.<number>.png")
            masks.sort(key=lambda name: int(name.split(".")[1]))
            row[column] = [{"bytes": _bytes(sample[name]), "path": f"{key}.{name}"} for name in masks]
            continue
        value = about.get(column)
        if value is None:
            raise ValueError(f"{where}: its JSON lacks {column}; it has: {', '.join(about)}")
        if kind == "class":
            row[column] = _index(value, record, column, where)
        elif kind == "classes":
            if not isinstance(value, list):
                raise _wrong_type(column, value, "a list of classes", where)
            row[column] = [_index(label, record, column, where) for label in value]
        else:
            fits = _is_text(value) if isinstance(value, str) and kind != "integer" else _is_number(value)
            if not fits or (kind == "integer" and value != int(value)):
                raise _wrong_type(column, value, "a whole number" if kind == "integer" else "text in UTF-8", where)
            row[column] = value
    return row


def _annotations(value: Any, where: str) -> Mapping[str, Any]:
    """The JSON object of a sample, given as bytes or decoded."""
    if isinstance(value, (bytes, bytearray, str)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:  # broken, not UTF-8, or too deep
            raise ValueError(
                f"{where}: its .json cannot be read ({one_line(error)}); write an object in UTF-8"
            ) from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: its .json holds {reprlib.repr(value)}; write an object with the columns")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18


def _wrong_type(name: str, value: Any, expected: str, where: str) -> ValueError:
    return ValueError(f"{where}: its .json holds {name}={reprlib.repr(value)}; it must be {expected}: correct it")


def _bytes(value: Any) -> bytes:
    return value["bytes"] if isinstance(value, Mapping) else value


def _index(label: Any, record: Benchmark, column: str, where: str) -> int:
    indices = label_indices(record.labels[column])
    if isinstance(label, str) and label in indices:
        return indices[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(indices):
        return label
    raise ValueError(
        f"{where}: {reprlib.repr(label)} is not one of the {len(indices)} names of {column}, nor an index in 0..{len(indices) - 1}"
    )
