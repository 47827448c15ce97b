"""Any folder of clips as rows of a benchmark: class sub-folders, CSV files that list the clips, or all clips without labels."""

from __future__ import annotations

import csv
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...media.sources import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from .shards import find_shards

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
    path: Path
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
) -> datasets.Dataset:
    """Rows of a folder's split: clip_id, video {bytes: None, path}, start, end (s, None: whole clip), label (ClassLabel).

    Where the labels come from, the first that applies:

    - the folder, or its `data`, holds parquet shards `<split>-*.parquet` that `preparing.prepare_folder` made (clips are
      then bytes; the rows are copied once to the cache of `datasets`).
    - `path` is a CSV file, or the folder holds CSV files: `train.csv`, `validation.csv`, `test.csv` (also val, eval),
      or a single other one. Columns `file,label[,start,end][,split]`; files are relative to the CSV, or absolute
      (their `clip_id` is then the path within the folder that all of them have in common).
    - the folder holds split folders (`train`, `test`, ...), each with a sub-folder per class.
    - the folder holds a sub-folder per class.

    Class folders are searched to any depth, and links are followed. What is left out there (files of other kinds, media
    beside the class folders) is told once; a link that leads nowhere is an error, as a missing file of a CSV is.

    Without splits of its own a folder is divided once, by `seed`: a share of `holdout` of each class's files, at least
    one and never all, is the test split (it also serves as `validation`), the rest is `train`. Segments of one file
    stay together. Class names, sorted (as numbers where all are whole numbers), are numbered over all splits together.

    Args:
        path: folder or CSV file.
        split: "train", "validation" or "test"; a split that does not exist is an error.
        holdout: share of the test split, used only when the folder has no splits of its own.
        seed: of the division.

    Raises:
        FileNotFoundError: for a missing folder, CSV or clip. ValueError: for labels or times that cannot be read, with
        file and line, for a class that is evaluated but never trained on, an unknown split, a file name that is not
        UTF-8, or sub-folders of which it is not clear whether they are splits, classes or neither.
    """
    import datasets

    if split not in SPLIT_NAMES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {split!r}")
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {holdout}")
    if found := _shards(Path(path)):
        return _load_shards(Path(path), found, split)
    splits = _read(Path(path))
    if set(splits) == {None}:
        train, test = _divide(splits[None], holdout, seed)
        splits = {"train": train, "test": test, "validation": test}
        if not splits[split]:
            raise ValueError(
                f"{path}: no class has more than one clip, so none can be held out for the split {split!r}: add clips, or a"
                " folder (or CSV) per split"
            )
    if split not in splits:
        raise ValueError(_no_split(path, split, splits))
    names = _in_order({entry.label for entries in splits.values() for entry in entries})
    if "train" in splits:
        unknown = {entry.label for entry in splits[split]} - {entry.label for entry in splits["train"]}
        if unknown:
            raise ValueError(f"{path}: these classes of the split {split!r} have no clip in 'train': {sorted(unknown)}")
    features = datasets.Features(
        {
            "clip_id": datasets.Value("string"),
            "video": datasets.Video(decode=False),
            "start": datasets.Value("float32"),
            "end": datasets.Value("float32"),
            "label": datasets.ClassLabel(names=names),
        }
    )
    entries = splits[split]
    return datasets.Dataset.from_dict(
        {
            "clip_id": [entry.clip_id for entry in entries],
            "video": [{"bytes": None, "path": str(entry.path)} for entry in entries],
            "start": [entry.start for entry in entries],
            "end": [entry.end for entry in entries],
            "label": [names.index(entry.label) for entry in entries],
        },
        features=features,
    )


def find_splits(path: str | os.PathLike) -> tuple[str, ...]:
    """The splits of a folder or CSV file that `load_folder` reads; of one without splits those it is divided into.

    Raises as `load_folder`.
    """
    if found := _shards(Path(path)):
        return tuple(found)
    splits = _read(Path(path))
    if set(splits) != {None}:
        return tuple(split for split in SPLIT_NAMES if split in splits)
    files: dict[str, set[Path]] = defaultdict(set)
    for entry in splits[None]:
        files[entry.label].add(entry.path)
    return ("train", "test") if any(len(paths) > 1 for paths in files.values()) else ("train",)


def find_evaluation_split(path: str | os.PathLike, *, labels: bool = True) -> str:
    """The split of a folder or CSV file that scores a model: `test` or, where there is none, `validation`.

    A folder with neither gives `test` too, and reading that split tells what is missing.

    Args:
        labels: as `load_folder` reads it; False: as `load_unlabelled`.

    Raises as the one of them that reads it.
    """
    folder = Path(path)
    if labels or _is_table(folder):
        found = find_splits(path)
    else:
        found = tuple(_split_folders(folder) or ("train", "test"))
    return "validation" if "validation" in found and "test" not in found else "test"


def has_shards(path: str | os.PathLike) -> bool:
    """Whether a folder holds parquet shards of splits rather than clips."""
    return bool(_shards(Path(path)))


def _shards(path: Path) -> dict[str, list[Path]]:
    """The parquet shards of each split in a prepared folder; a folder of clips has none."""
    if not path.is_dir():
        return {}
    found = {
        split: sorted([*path.glob(f"{split}-*.parquet"), *path.glob(f"data/{split}-*.parquet")])
        for split in SPLIT_NAMES
    }
    return {split: shards for split, shards in found.items() if shards}


def _load_shards(path: Path, found: dict[str, list[Path]], split: str) -> datasets.Dataset:
    import datasets

    if split not in found:
        raise ValueError(_no_split(path, split, found))
    shards = [str(shard) for shard in find_shards(path, split)]
    rows = datasets.load_dataset("parquet", data_files={split: shards}, split=split)
    missing = [column for column in ("clip_id", "video", "label") if column not in rows.features]
    if missing or not isinstance(rows.features["label"], datasets.ClassLabel):
        raise ValueError(
            f"{path}: its shards are not those of a folder of clips (columns {', '.join(rows.features)}); a benchmark's are"
            " read by its name: load_benchmark(name, split, source=...)"
        )
    return rows.cast_column("video", datasets.Video(decode=False))


def load_unlabelled(
    path: str | os.PathLike, split: str = "train", *, holdout: float = 0.05, seed: int = 0
) -> datasets.Dataset:
    """Rows of all clips of a folder, for pretraining: clip_id, video {bytes: None, path}, start, end (s, None: whole clip).

    Sub-folders may be called anything and mean nothing, except where all of them are named after splits (`train`, `test`,
    ...): those are the splits; other folders beside those of several splits are an error. Otherwise the clips are divided
    once, by `seed`: a share of `holdout`, at least one, is the test split (it also serves as `validation`). A CSV file, or
    a folder with CSV files, is read as by `load_folder`, its labels dropped.

    Raises:
        FileNotFoundError: for a missing folder, CSV or clip. ValueError: for a folder without clips, or with a single one and
        no split folders, and as `load_folder`.
    """
    if split not in SPLIT_NAMES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {split!r}")
    folder = Path(path)
    if _is_table(folder):
        return load_folder(folder, split, seed=seed).remove_columns("label")
    import datasets

    named = _split_folders(folder)
    if named:
        if split not in named:
            raise ValueError(_no_split(folder, split, named))
        clips = _clips_below(named[split], folder)
    else:
        clips = _clips_below(folder, folder)
        if len(clips) < 2:
            raise ValueError(f"{folder} holds a single clip, {clips[0]}: add clips, or make a folder per split")
        shuffled = random.Random(f"{seed}/unlabelled").sample(clips, len(clips))
        held = set(shuffled[: min(max(round(holdout * len(clips)), 1), len(clips) - 1)])
        clips = [clip for clip in clips if (clip in held) != (split == "train")]
    features = datasets.Features(
        {
            "clip_id": datasets.Value("string"),
            "video": datasets.Video(decode=False),
            "start": datasets.Value("float32"),
            "end": datasets.Value("float32"),
        }
    )
    columns = {
        "clip_id": [clip.relative_to(folder).as_posix() for clip in clips],
        "video": [{"bytes": None, "path": str(clip)} for clip in clips],
        "start": [None] * len(clips),
        "end": [None] * len(clips),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted; whole numbers by their value, so that classes called 0, 1, ... 10 are the classes 0, 1, ... 10."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else names


def _is_table(path: Path) -> bool:
    """Whether clips are listed in a CSV file, this one or one in this folder."""
    _check_exists(path)
    return path.is_file() or any(file.suffix.lower() == ".csv" for file in path.iterdir())


def _split_folders(folder: Path) -> dict[str, Path]:
    """The sub-folder of each split, where all are named after splits; otherwise nothing.

    Raises:
        ValueError: two are named after one split, or some after several splits and others after none.
    """
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    splits = [_split_of(child.name) for child in children]
    others = [child.name for child, split in zip(children, splits) if split is None]
    if not others:
        if len(set(splits)) < len(children):
            shown = ", ".join(child.name for child in children)
            raise ValueError(f"{folder} has several folders for one split: {shown}")
        return dict(zip(splits, children))
    # One alone may be a class, such as train among bus and tram.
    if len(set(splits) - {None}) > 1:
        named = [child.name for child, split in zip(children, splits) if split is not None]
        raise ValueError(
            f"{folder} has folders of splits ({', '.join(named)}) and others beside them ({', '.join(others[:3])}"
            f"{', ...' if len(others) > 3 else ''}): move the others out, or list the clips in a CSV file"
        )
    return {}


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder, nor is it a benchmark's name (`python -m hf_avfusion.data.describe` lists them)"
        )


def _no_split(path: str | os.PathLike, split: str, found: Iterable[str]) -> str:
    remedy = "" if split == "train" else "; choose by split= (--split, when training --eval_split)"
    return f"{path} has no split {split!r}; it has: {', '.join(sorted(found))}{remedy}"


def media_files(names: Iterable[str | os.PathLike]) -> list[Path]:
    """Files as named, also those that do not exist; of folders every media file in them, in the order of their names."""
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
        raise ValueError(f"{folder} holds no clips (known suffixes: {VIDEO_SUFFIXES} {AUDIO_SUFFIXES})")
    for clip in clips:
        _check_clip(clip)
    ignored = [file.relative_to(root).as_posix() for file in files if file.suffix.lower() not in MEDIA_SUFFIXES]
    if ignored:
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        _warn_once(f"{folder}: {len(ignored)} files are no media by their suffix and are left out: {shown}")
    return clips


def _check_clip(clip: Path) -> None:
    """A file that is there, under a name that a column of text can hold."""
    if not clip.is_file():
        raise FileNotFoundError(f"{clip}: a link to {os.path.realpath(clip)}, which does not exist")
    _check_name(clip)


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it") from None


def _read(path: Path) -> dict[str | None, list[_Entry]]:
    """Entries per split; the one key None where the source knows no splits."""
    _check_exists(path)
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
            f"{path} holds several CSV files ({', '.join(table.name for table in tables)}) that are not one per split"
            " (train.csv, validation.csv, test.csv); name the one to read"
        )
    if named := _split_folders(path):
        return {split: _read_classes(folder, root=path) for split, folder in named.items()}
    entries = _read_classes(path, root=path)
    (only, *others) = {entry.label for entry in entries}
    if not others and all(entry.path.parent != path / only for entry in entries):
        raise ValueError(
            f"{path}: its only class folder, {only!r}, holds folders alone ({entries[0].path.parent}, ...); if those are"
            f" the classes, or splits, name {path / only}"
        )
    return {None: entries}


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _by_column(entries: list[_Entry], table: Path) -> dict[str | None, list[_Entry]]:
    groups: dict[str | None, list[_Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.split].append(entry)
    if None in groups and len(groups) > 1:
        raise ValueError(f"{table}: some rows have a split and some have none")
    return dict(groups)


def _read_classes(folder: Path, root: Path) -> list[_Entry]:
    entries, ignored = [], []
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    loose = [child for child in children if child.suffix.lower() in MEDIA_SUFFIXES and not child.is_dir()]
    for child in children:
        if not child.is_dir():
            continue
        files = files_below(child)
        clips = [file for file in files if file.suffix.lower() in MEDIA_SUFFIXES]
        ignored += [file for file in files if file.suffix.lower() not in MEDIA_SUFFIXES]
        if not clips:
            raise ValueError(
                f"{child}: holds no clips; add some or move it out (known suffixes: {VIDEO_SUFFIXES} {AUDIO_SUFFIXES})"
            )
        for clip in clips:
            _check_clip(clip)
        entries += [_Entry(clip.relative_to(root).as_posix(), clip, child.name) for clip in clips]
    if not entries:
        also = f" ({len(loose)} clips lie in it, but in no class folder)" if loose else ""
        raise ValueError(f"{folder} holds neither CSV files nor class folders with clips{also}")
    for left_out, why in ((ignored, "are no media by their suffix"), (loose, "lie in no class folder")):
        if left_out:
            shown = ", ".join(file.relative_to(root).as_posix() for file in left_out[:3])
            more = ", ..." if len(left_out) > 3 else ""
            _warn_once(f"{folder}: {len(left_out)} files {why} and are left out: {shown}{more}")
    return entries


@cache
def _warn_once(text: str) -> None:
    """The splits of a folder are read one by one; what is true of the folder is told with the first."""
    logger.warning(text)


def files_below(folder: Path) -> list[Path]:
    """Its files at any depth, sorted, without hidden ones; links are followed, but into no folder twice.

    Raises:
        OSError: for a folder that cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _read_csv(table: Path) -> list[_Entry]:
    entries = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or []]
            if not {"file", "label"} <= set(columns):
                raise ValueError(
                    f"{table}:1: the header must name the columns file,label[,start,end][,split], got {columns}"
                )
            if len(set(columns)) < len(columns):
                raise ValueError(f"{table}:1: the header names a column twice: {columns}")
            reader.fieldnames = columns
            for row in reader:
                entries.append(_entry(row, table, reader.line_num))
            entries = _named_within(entries)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: not a CSV file in UTF-8: {error}") from error
    if not entries:
        raise ValueError(f"{table}: lists no clips")
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if entry.clip_id in seen:
            raise ValueError(
                f"{table}: rows {seen[entry.clip_id] + 1} and {number + 1} list the same clip {entry.clip_id}"
            )
        seen[entry.clip_id] = number
    return entries


def _named_within(entries: list[_Entry]) -> list[_Entry]:
    """Clips that the CSV names by absolute paths, named within the folder that all of them have in common: where that lies
    on this machine is nobody's business whom the rows are given to.
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
    if not row["file"]:
        raise ValueError(f"{where}: the column 'file' is empty")
    if not row["label"]:
        raise ValueError(f"{where}: the label of {row['file']} is empty")
    path = table.parent / row["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such clip: {path}")
    start, end = (_seconds(row.get(column, ""), column, where) for column in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where}: end ({end} s) must lie after start ({start or 0.0} s)")
    split = row.get("split") or None
    if split is not None and _split_of(split) is None:
        raise ValueError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLIT_NAMES)}")
    _check_name(path)
    clip_id = Path(row["file"]).as_posix()
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
    if not 0 <= value < float("inf"):
        raise ValueError(f"{where}: {column} must be a number of seconds >= 0, got {text!r}")
    return value


def _divide(entries: list[_Entry], holdout: float, seed: int) -> tuple[list[_Entry], list[_Entry]]:
    """Stratified by class, by file: segments of one file never lie on both sides."""
    files: dict[str, dict[Path, None]] = defaultdict(dict)
    placed: set[Path] = set()
    for entry in entries:
        if entry.path not in placed:  # a file with segments of several classes counts for its first
            placed.add(entry.path)
            files[entry.label][entry.path] = None
    held: set[Path] = set()
    for label in sorted(files):
        paths = list(files[label])
        random.Random(f"{seed}/{label}").shuffle(paths)
        count = min(max(round(holdout * len(paths)), 1), len(paths) - 1)
        if count == 0:
            _warn_once(f"class {label!r} has a single file, {paths[0]}, which is left in 'train'")
        held.update(paths[:count])
    return [entry for entry in entries if entry.path not in held], [entry for entry in entries if entry.path in held]
