"""Loads a folder of clips as a dataset, with labels from class sub-folders or CSV files, or without labels."""

from __future__ import annotations

import csv
import logging
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import did_you_mean
from ...media.remote import is_address
from ...media.sources import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES, MediaError, check_row_path
from .annotations import MAX_TIME, one_line
from .loading import clip_features
from .reading import read as read_now
from .records import BENCHMARKS
from .shards import find_shards, shards_of

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class _Entry:
    clip_id: str
    path: Path | str  # a string is an address
    label: str
    start: float | None = None
    end: float | None = None
    split: str | None = None


def load_folder(
    path: str | os.PathLike,
    split: str = "train",
    *,
    holdout: float = 0.2,
    seed: int = 0,
    allow_urls: bool = False,
    read: Callable[..., Any] = read_now,
) -> datasets.Dataset:
    """Loads one split of a folder: clip_id, video {bytes: None, path}, start, end (s, None: whole clip), label (ClassLabel).

    The labels come from the first of these sources that exists:

    - Parquet shards `<split>-*.parquet` in the folder or in its `data`, made by `preparing.prepare_folder`. The clips are
      then bytes, and the rows are copied once to the cache of `datasets`.
    - The CSV file `path`, or CSV files in the folder: `train.csv`, `validation.csv`, `test.csv` (also val, eval), or a
      single other one. Columns: `file,label[,start,end][,split]`, one line per clip. Files are relative to the CSV file, or
      absolute; the `clip_id` of an absolute file is its path relative to the files' common folder.
    - Split folders (`train`, `test`, ...), each with one sub-folder per class.
    - One sub-folder per class.

    Class folders are searched to any depth, and links are followed. Skipped files (other file types, media outside the
    class folders) are logged once. A broken link is an error, like a missing file of a CSV.

    A folder without splits is divided once, by `seed`: `holdout` of each class's files, at least one and never all, are
    the test split (also used as `validation`), and the rest is `train`. Segments of one file stay in one split. Classes
    are numbered over all splits together, sorted by name (by value if all names are whole numbers).

    Args:
        path: folder or CSV file.
        split: "train", "validation" or "test"; a split that does not exist is an error.
        holdout: share of the test split, used only for a folder without splits.
        seed: seed of the division into splits.
        allow_urls: allow addresses (URLs) in the column `file` of a CSV file. They are fetched by
            `ClipTransform(..., allow_urls=True)`.
        read: pass one `hf_avfusion.data.benchmarks.reading.read_once()` to the calls for several splits, and they read the
            folder once.

    Raises:
        FileNotFoundError: the folder, the CSV file or a clip is missing.
        ValueError: a label or time cannot be read (the message has file and line), an evaluated class has no training
            clips, the split is unknown, a file name is not UTF-8, the sub-folders mix splits and other folders, or a CSV file
            holds an address that is not allowed.
    """
    if split not in SPLIT_NAMES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {split!r}")
    check_holdout(holdout)
    if found := _shards(Path(path)):
        return _load_shards(Path(path), found, split)
    splits = read(_read, Path(path))
    if set(splits) == {None}:
        train, test = _divide(splits[None], holdout, seed)
        splits = {"train": train, "test": test, "validation": test}
        if not splits[split]:
            raise ValueError(
                f"{path}: no class has more than one clip, so none can be held out for the split {split!r}; add clips, or"
                " make one folder or CSV file per split"
            )
    if split not in splits:
        raise ValueError(_no_split(path, split, splits))
    names = _in_order({entry.label for entries in splits.values() for entry in entries})
    if "train" in splits:
        unknown = {entry.label for entry in splits[split]} - {entry.label for entry in splits["train"]}
        if unknown:
            raise ValueError(
                f"{path}: the classes {sorted(unknown)} of the split {split!r} have no clips in 'train'; add some, or remove"
                f" these classes from {split!r}"
            )
    _check_addresses(splits[split], path, allow_urls)
    return _to_rows(splits[split], names)


def _to_rows(entries: list[_Entry], names: list[str] | None = None) -> datasets.Dataset:
    """Makes rows of the entries, with a column of labels if the class names are given."""
    import datasets

    features = clip_features()
    columns = {
        "clip_id": [entry.clip_id for entry in entries],
        "video": [{"bytes": None, "path": str(entry.path)} for entry in entries],
        "start": [entry.start for entry in entries],
        "end": [entry.end for entry in entries],
    }
    if names is not None:
        features["label"] = datasets.ClassLabel(names=names)
        columns["label"] = [names.index(entry.label) for entry in entries]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def find_splits(
    path: str | os.PathLike, *, labels: bool = True, read: Callable[..., Any] = read_now
) -> tuple[str, ...]:
    """Returns the splits that `load_folder` finds in a folder or CSV file, or makes if there are none.

    Without `labels`, those of `load_unlabelled`. Raises the errors of the function that reads the folder.
    """
    if not labels and not _is_table(Path(path)):
        return tuple(_split_folders(Path(path)) or ("train", "test"))
    if found := _shards(Path(path)):
        return tuple(found)
    splits = read(_read, Path(path))
    if set(splits) != {None}:
        return tuple(split for split in SPLIT_NAMES if split in splits)
    files: dict[str, set[Path]] = defaultdict(set)
    for entry in splits[None]:
        files[entry.label].add(entry.path)
    return ("train", "test") if any(len(paths) > 1 for paths in files.values()) else ("train",)


def describe_division(
    path: str | os.PathLike, *, labels: bool = True, read: Callable[..., Any] = read_now
) -> str | None:
    """How `load_folder` (`load_unlabelled` without `labels`) divides a folder without splits; None for one that has splits."""
    folder = Path(path)
    if labels or _is_table(folder):
        divided = not _shards(folder) and set(read(_read, folder)) == {None}
        return "20 % of the files of each class, at least one, are `test` (seed 0)" if divided else None
    return None if _split_folders(folder) else "5 % of the clips, at least one, are `test` (seed 0)"


def find_evaluation_split(path: str | os.PathLike, *, labels: bool = True, read: Callable[..., Any] = read_now) -> str:
    """Returns the evaluation split of a folder or CSV file: `test`, or `validation` if only that exists.

    For a folder with neither, it returns `test`; reading that split raises an error that lists the splits.

    Args:
        labels: True for a folder that `load_folder` reads, False for one that `load_unlabelled` reads.
        read: see `load_folder`.

    Raises the errors of the function that reads the folder.
    """
    found = find_splits(path, labels=labels, read=read)
    return "validation" if "validation" in found and "test" not in found else "test"


def has_shards(path: str | os.PathLike) -> bool:
    """Whether a folder contains parquet shards instead of clips."""
    return bool(_shards(Path(path)))


def _shards(path: Path) -> dict[str, list[Path]]:
    """Returns the parquet shards of each split; empty for a folder of clips."""
    if not path.is_dir():
        return {}
    return {split: shards for split in SPLIT_NAMES if (shards := shards_of(path, split, ".parquet"))}


def _load_shards(path: Path, found: dict[str, list[Path]], split: str) -> datasets.Dataset:
    import datasets

    if split not in found:
        raise ValueError(_no_split(path, split, found))
    shards = [str(shard) for shard in find_shards(path, split)]
    rows = datasets.load_dataset("parquet", data_files={split: shards}, split=split)
    missing = [column for column in ("clip_id", "video", "label") if column not in rows.features]
    if missing or not isinstance(rows.features["label"], datasets.ClassLabel):
        raise ValueError(
            f"{path}: the shards must have the columns clip_id, video and label (a ClassLabel), but have"
            f" {', '.join(rows.features)}; read a benchmark's shards with load_benchmark(name, split, source=...)"
        )
    return rows.cast_column("video", datasets.Video(decode=False))


def load_unlabelled(
    path: str | os.PathLike,
    split: str = "train",
    *,
    holdout: float = 0.05,
    seed: int = 0,
    allow_urls: bool = False,
    read: Callable[..., Any] = read_now,
) -> datasets.Dataset:
    """Loads one split of all clips in a folder, without labels: clip_id, video {bytes: None, path}, start, end (s).

    `start` and `end` are None for whole clips. If all sub-folders are named after splits (`train`, `test`, ...), they are
    the splits. Folders of several splits mixed with other folders are an error. Any other sub-folder names are ignored,
    and the clips are divided once, by `seed`: a share of `holdout`, at least one clip, is the test split (also used as
    `validation`). A CSV file, or a folder with CSV files, is read by `load_folder`, and the labels are dropped.
    `allow_urls` and `read` are those of `load_folder`.

    Raises:
        FileNotFoundError: the folder, the CSV file or a clip is missing.
        ValueError: the folder has no clips, or a single clip and no split folders; and the errors of `load_folder`.
    """
    if split not in SPLIT_NAMES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {split!r}")
    check_holdout(holdout)
    folder = Path(path)
    if _is_table(folder):
        return load_folder(folder, split, seed=seed, allow_urls=allow_urls, read=read).remove_columns("label")
    named = _split_folders(folder)
    if named:
        if split not in named:
            raise ValueError(_no_split(folder, split, named))
        clips = read(_clips_below, named[split], folder)
    else:
        clips = read(_clips_below, folder, folder)
        if len(clips) < 2:
            raise ValueError(f"{folder} contains a single clip, {clips[0]}; add clips, or make one folder per split")
        shuffled = random.Random(f"{seed}/unlabelled").sample(clips, len(clips))
        held = set(shuffled[: min(max(round(holdout * len(clips)), 1), len(clips) - 1)])
        clips = [clip for clip in clips if (clip in held) != (split == "train")]
    return _to_rows([_Entry(clip.relative_to(folder).as_posix(), clip, "") for clip in clips])


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorts names; if all are whole numbers, by value, so that the classes 0, 1, ... 10 get these numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else names


def _is_table(path: Path) -> bool:
    """Whether `path` is a CSV file or a folder with one."""
    check_exists(path)
    return path.is_file() or any(file.suffix.lower() == ".csv" for file in path.iterdir())


def _split_folders(folder: Path) -> dict[str, Path]:
    """Returns the sub-folder of each split if all sub-folders are named after splits; otherwise an empty dictionary.

    Raises:
        ValueError: two sub-folders are named after one split, or folders of several splits are mixed with others.
    """
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    splits = [_split_of(child.name) for child in children]
    others = [child.name for child, split in zip(children, splits) if split is None]
    if not others:
        if len(set(splits)) < len(children):
            shown = ", ".join(child.name for child in children)
            raise ValueError(f"{folder} has several folders for one split ({shown}); merge them, or rename one")
        return dict(zip(splits, children))
    # A single split name may be a class, such as "train" next to "bus" and "tram".
    if len(set(splits) - {None}) > 1:
        named = [child.name for child, split in zip(children, splits) if split is not None]
        raise ValueError(
            f"{folder} mixes folders of splits ({', '.join(named)}) with other folders ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}); move the others out, or list the clips in a CSV file"
        )
    return {}


def check_exists(path: str | os.PathLike) -> None:
    """Raises FileNotFoundError if there is no such file or folder, with the benchmark that was probably meant."""
    if not Path(path).exists():
        hint = did_you_mean(str(path), BENCHMARKS)
        raise FileNotFoundError(
            f"{path} is neither a file, a folder nor the name of a benchmark{hint}; `python -m hf_avfusion.data.describe` lists"
            " the benchmarks"
        )
    if not Path(path).is_file() and not Path(path).is_dir():
        raise ValueError(f"{path} is a pipe or a device; pass a folder or a CSV file")


def check_holdout(holdout: float) -> None:
    """Raises ValueError unless the share of clips in the test split lies between 0 and 1."""
    if not 0 < holdout < 1:
        raise ValueError(f"holdout (--holdout) must lie between 0 and 1, got {holdout}")


def _no_split(path: str | os.PathLike, split: str, found: Iterable[str]) -> str:
    remedy = "" if split == "train" else "; choose one with split= (--split; for training, --eval_split)"
    return f"{path} has no split {split!r}; its splits are: {', '.join(sorted(found))}{remedy}"


def media_files(names: Iterable[str | os.PathLike]) -> list[Path]:
    """Replaces folders by their media files, sorted by name; keeps files as given, even if they do not exist."""
    found = []
    for path in map(Path, names):
        if path.is_dir():
            found += [file for file in files_below(path) if file.suffix.lower() in MEDIA_SUFFIXES]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _clips_below(folder: Path, root: Path) -> list[Path]:
    files = files_below(folder)
    clips = [file for file in files if file.suffix.lower() in MEDIA_SUFFIXES]
    if not clips:
        raise ValueError(f"{folder} contains no clips (known suffixes: {VIDEO_SUFFIXES} {AUDIO_SUFFIXES})")
    for clip in clips:
        _check_clip(clip)
    ignored = [file for file in files if file.suffix.lower() not in MEDIA_SUFFIXES]
    _warn_skipped(folder, ignored, "without a media suffix", root)
    return clips


def _check_clip(clip: Path) -> None:
    """Raises if a clip is a broken link or a pipe, or its name is not UTF-8 and so does not fit a text column."""
    if not clip.exists():
        raise FileNotFoundError(f"{clip} is a link to {os.path.realpath(clip)}, which does not exist")
    if not clip.is_file():
        raise ValueError(f"{clip} is a pipe or a device, not a regular file; remove it")
    _check_name(clip)


def _check_addresses(entries: Iterable[_Entry], table: str | os.PathLike, allow_urls: bool) -> None:
    for entry in entries:
        if isinstance(entry.path, str):
            try:
                check_row_path(entry.path, allow_urls)
            except MediaError as error:
                raise ValueError(f"{table}: {error}") from error


def _check_name(path: Path | str) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fsencode(path)!r}: the file name is not UTF-8; rename it") from None


def _read(path: Path) -> dict[str | None, list[_Entry]]:
    """Returns the entries of each split; the only key is None if the source has no splits."""
    check_exists(path)
    if path.is_file():
        return _by_column(_read_csv(path), path)
    tables = sorted(file for file in path.iterdir() if file.suffix.lower() == ".csv")
    if tables:
        named = {_split_of(table.stem): table for table in tables}
        if None not in named and len(named) == len(tables):
            return {split: _read_csv(table) for split, table in named.items()}
        if len(tables) == 1:
            return _by_column(_read_csv(tables[0]), tables[0])
        raise ValueError(
            f"{path} contains several CSV files ({', '.join(table.name for table in tables)}) that are not one per split"
            " (train.csv, validation.csv, test.csv); pass the path of the one to read"
        )
    if named := _split_folders(path):
        return {split: _read_classes(folder, root=path) for split, folder in named.items()}
    entries = _read_classes(path, root=path)
    (only, *others) = {entry.label for entry in entries}
    if not others and all(entry.path.parent != path / only for entry in entries):
        raise ValueError(
            f"{path}: its only class folder, {only!r}, contains only folders ({entries[0].path.parent}, ...); if those"
            f" are the classes or splits, pass {path / only}"
        )
    return {None: entries}


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _by_column(entries: list[_Entry], table: Path) -> dict[str | None, list[_Entry]]:
    groups: dict[str | None, list[_Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.split].append(entry)
    if None in groups and len(groups) > 1:
        raise ValueError(
            f"{table}: some rows have a split and some have none; fill the column 'split' in all rows or none"
        )
    return dict(groups)


def _read_classes(folder: Path, root: Path) -> list[_Entry]:
    entries, ignored = [], []
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    loose = [child for child in children if child.suffix.lower() in MEDIA_SUFFIXES and not child.is_dir()]
    for child in children:
        if not child.is_dir():
            continue
        one_line(child.name, f"{folder}: the name of a class folder")
        files = files_below(child)
        clips = [file for file in files if file.suffix.lower() in MEDIA_SUFFIXES]
        ignored += [file for file in files if file.suffix.lower() not in MEDIA_SUFFIXES]
        if not clips:
            raise ValueError(
                f"{child} contains no clips; add some or move it out (known suffixes: {VIDEO_SUFFIXES} {AUDIO_SUFFIXES})"
            )
        for clip in clips:
            _check_clip(clip)
        entries += [_Entry(clip.relative_to(root).as_posix(), clip, child.name) for clip in clips]
    if not entries:
        also = f" ({len(loose)} of its clips are in no class folder)" if loose else ""
        raise ValueError(
            f"{folder} contains neither CSV files nor class folders with clips{also}; make one folder per class, or list"
            " the clips in a CSV file"
        )
    _warn_skipped(folder, ignored, "without a media suffix", root)
    _warn_skipped(folder, loose, "outside the class folders", root)
    return entries


def _warn_skipped(folder: Path, files: list[Path], why: str, root: Path) -> None:
    if files:
        shown = ", ".join(file.relative_to(root).as_posix() for file in files[:3])
        _warn_once(f"{folder}: skipped {len(files)} files {why}: {shown}{', ...' if len(files) > 3 else ''}")


@cache
def _warn_once(text: str) -> None:
    """Logs a warning once, although each split reads the folder again."""
    logger.warning(text)


def files_below(folder: Path) -> list[Path]:
    """Returns all files in a folder at any depth, sorted, without hidden ones; follows links, but visits no folder twice.

    Raises:
        OSError: a folder cannot be read.
    """

    def raise_error(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=raise_error, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _read_csv(table: Path) -> list[_Entry]:
    if not table.is_file():
        raise ValueError(f"{table} is not a regular file (a folder, pipe or device); remove it")
    entries = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column.strip() for column in reader.fieldnames or []]
            if not {"file", "label"} <= set(columns):
                raise ValueError(
                    f"{table}:1: the header must name the columns file,label[,start,end][,split], got {columns}"
                )
            if len(set(columns)) < len(columns):
                raise ValueError(f"{table}:1: the header names a column twice: {columns}")
            _check_columns(columns, f"{table}:1")
            reader.fieldnames = columns
            for row in reader:
                entries.append(_entry(row, table, reader.line_num))
            entries = _relative_clip_ids(entries)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not a CSV file in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(
            f"{table}:{reader.reader.line_num}: not a row of a CSV file: {error}. Check the quotes up to this line: a field is "
            'quoted whole, and a quote inside of it is doubled ("")'
        ) from error
    if not entries:
        raise ValueError(f"{table} lists no clips")
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if entry.clip_id in seen:
            raise ValueError(
                f"{table}: rows {seen[entry.clip_id] + 1} and {number + 1} list the same clip {entry.clip_id}"
            )
        seen[entry.clip_id] = number
    return entries


# Names that other tools give to the optional columns.
_OTHER_NAMES = {
    "start": ("begin", "start_time", "start_s", "start_sec", "start_seconds", "begin_time"),
    "end": ("stop", "end_time", "end_s", "end_sec", "end_seconds", "stop_time"),
    "split": ("subset", "partition"),
}


def _check_columns(columns: list[str], where: str) -> None:
    """Raises ValueError for a column that looks like an optional one by another name: it would be ignored."""
    for column in columns:
        one_line(column, f"{where}: a column")
        for name, others in _OTHER_NAMES.items():
            if column != name and name not in columns and column.lower().replace(" ", "_") in (name, *others):
                raise ValueError(
                    f"{where}: the column {column!r} is not read; rename it to {name!r} if it is that, else to something else"
                )


def _relative_clip_ids(entries: list[_Entry]) -> list[_Entry]:
    """Makes absolute clip ids relative to the clips' common folder.

    Absolute paths would leak the local directory layout into published datasets.
    """
    absolute = [entry.path for entry in entries if os.path.isabs(entry.clip_id)]
    if not absolute:
        return entries
    above = Path(os.path.commonpath([path.parent for path in absolute])).parent
    return [
        replace(entry, clip_id=Path(entry.clip_id).relative_to(above).as_posix())
        if os.path.isabs(entry.clip_id)
        else entry
        for entry in entries
    ]


def _entry(row: dict[str, str | None], table: Path, line: int) -> _Entry:
    where = f"{table}:{line}"
    if None in row or None in row.values():
        raise ValueError(f"{where}: the row does not have as many fields as the header")
    row = {column: value.strip() for column, value in row.items()}
    for column, value in row.items():
        one_line(value, f"{where}: the column {column!r}")
    if not row["file"]:
        raise ValueError(f"{where}: the column 'file' is empty")
    if not row["label"]:
        raise ValueError(f"{where}: the label of {row['file']} is empty")
    path: Path | str = row["file"] if is_address(row["file"]) else table.parent / row["file"]
    if "\0" in row["file"] or (isinstance(path, Path) and not path.is_file()):
        raise FileNotFoundError(f"{where}: no such clip: {path}")
    start, end = (_seconds(row.get(column, ""), column, where) for column in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end ({end} s) must be after start ({start or 0.0} s)")
    split = row.get("split") or None
    if split is not None and _split_of(split) is None:
        raise ValueError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLIT_NAMES)}")
    _check_name(path)
    clip_id = path if isinstance(path, str) else Path(row["file"]).as_posix()
    if start is not None or end is not None:
        clip_id += f"@{start or 0.0:g}-{'end' if end is None else format(end, 'g')}"
    return _Entry(clip_id, path, row["label"], start, end, split and _split_of(split))


def _seconds(text: str, column: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: {column} must be a number of seconds, got {text!r}") from None
    if not 0 <= value <= MAX_TIME:
        raise ValueError(f"{where}: {column} must be a number of seconds >= 0 and at most {MAX_TIME:,}, got {text!r}")
    return value


def _divide(entries: list[_Entry], holdout: float, seed: int) -> tuple[list[_Entry], list[_Entry]]:
    """Divides entries into train and test, stratified by class; segments of one file stay on one side."""
    files: dict[str, dict[Path, None]] = defaultdict(dict)
    seen: set[Path] = set()
    for entry in entries:
        if entry.path not in seen:  # a file with segments of several classes counts for its first class
            seen.add(entry.path)
            files[entry.label][entry.path] = None
    held: set[Path] = set()
    for label in sorted(files):
        paths = list(files[label])
        random.Random(f"{seed}/{label}").shuffle(paths)
        count = min(max(round(holdout * len(paths)), 1), len(paths) - 1)
        if count == 0:
            _warn_once(f"class {label!r} has a single file, {paths[0]}, which stays in 'train'")
        held.update(paths[:count])
    return [entry for entry in entries if entry.path not in held], [entry for entry in entries if entry.path in held]
