"""Matches the raw clips in a folder with an official annotation file and reports which clips are missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...media.sources import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from .annotations import Annotation, read_annotations
from .reading import read as read_now
from .records import Benchmark

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """How many clips of a split a source has; `str` gives a one-line summary.

    Args:
        title, split, source: the benchmark, its split, and where the clips are.
        expected: official number of clips, None if unknown.
        annotated: number of rows in the annotation file, None for shards.
        present: number of clips found.
        vanished: ids of the annotated clips without a file.
        examples: file names that were tried for the first clip.
    """

    title: str
    split: str
    source: str
    expected: int | None
    annotated: int | None
    present: int
    vanished: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        annotated = "" if self.annotated is None else f" of {self.annotated} annotated"
        text = f"{self.title} {self.split} in {self.source}: found {self.present}{annotated} clips"
        if self.expected is not None and self.expected != self.annotated:
            text += f" (expected {self.expected})"
        if self.vanished:
            more = ", ..." if len(self.vanished) > 5 else ""
            text += f"; {len(self.vanished)} vanished: {', '.join(self.vanished[:5])}{more}"
        return text


def find_annotations(
    record: Benchmark,
    split: str,
    folder: Path,
    given: str | os.PathLike | None,
    read: Callable[..., Any] = read_now,
) -> Path:
    """Returns `given` if it is a file; otherwise searches `given`, or `folder`, for the official annotation file.

    `read` is that of `find_clips`.

    Raises:
        FileNotFoundError: the file was not found, or the benchmark has no annotation file.
        ValueError: the given file belongs to another split.
    """
    if not record.parser:
        raise FileNotFoundError(
            f"{folder} contains no parquet shards of the split {split!r} of {record.title}; {record.obtain}"
        )
    name = record.annotations[split]
    if given is not None and Path(given).is_file():
        given = Path(given)
        if given.name != name and given.name in record.annotations.values():
            raise ValueError(
                f"{given} is {record.title}'s annotation file of another split; the file of {split!r} is {name}. Pass that"
                " file or its folder as annotations= (prepare_benchmark.py: --annotations, --splits)"
            )
        return given
    root = folder if given is None else Path(given)
    names = tuple(sorted(set(record.annotations.values())))
    found = [path for path in read(_files_named, root, names) if path.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise FileNotFoundError(
            f"{root} contains several files {name} ({found[0]}, {found[1]}); pass the one to read as annotations="
            " (prepare_benchmark.py: --annotations)"
        )
    raise FileNotFoundError(
        f"{root} contains neither shards ({split}-*.parquet, {split}-*.tar) nor the annotation file {name} of"
        f" {record.title}; pass that file as annotations= (prepare_benchmark.py: --annotations), or another source="
        f" (--source): {record.obtain}"
    )


def _files_named(root: Path, names: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.name in names and path.is_file())


def find_clips(
    record: Benchmark,
    split: str,
    folder: Path,
    annotations: Path,
    trimmed: bool | None = None,
    read: Callable[..., Any] = read_now,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], Coverage]:
    """Returns rows of the annotated clips found in the folder, in annotation order; the annotations of the others; coverage.

    Pass one `reading.read_once()` as `read` to the calls for several splits, and they walk the folder once.

    Raises:
        ValueError: a file may be the trimmed clip or the whole video, and `trimmed` is None.
    """
    if trimmed is None and record.options.get("whole_videos"):
        trimmed = False
    files = read(_index, folder)
    found, vanished, examples = [], {}, ()
    for row in read_annotations(annotations, record, split):
        examples = examples or (*row.trimmed, *row.whole, *([row.masks] if row.masks else []))
        place = _locate(row, files, trimmed)
        masks = None if row.masks is None else _masks(folder / row.masks)
        if place is None or masks == []:
            vanished[row.clip_id] = row.values
            continue
        path, start, end = place
        clip = {"clip_id": row.clip_id, "video": {"bytes": None, "path": str(path)}, "start": start, "end": end}
        found.append({**clip, **row.values, **({} if masks is None else {"masks": masks})})
    annotated = len(found) + len(vanished)
    report = Coverage(
        *(record.title, split, str(folder), record.splits[split], annotated, len(found)), tuple(vanished), examples
    )
    return found, vanished, report


def _index(folder: Path) -> dict[str, list[Path]]:
    """Maps `name` and `folder/name`, without suffix, to media files."""
    files: dict[str, list[Path]] = {}
    seen: set[str] = set()

    def log_unreadable(error: OSError) -> None:  # not an error: a disk has folders without clips, such as lost+found
        logger.warning("%s cannot be read (%s); its clips count as vanished", error.filename, error.strerror)

    for root, folders, names in os.walk(folder, onerror=log_unreadable, followlinks=True):
        if os.path.realpath(root) in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in MEDIA_SUFFIXES and not name.startswith("."):
                path = Path(root, name)
                files.setdefault(stem, []).append(path)
                files.setdefault(f"{path.parent.name}/{stem}", []).append(path)
    return files


def _locate(
    row: Annotation, files: dict[str, list[Path]], trimmed: bool | None
) -> tuple[Path, float | None, float | None] | None:
    """Returns (file, start, end) of a clip, or None; start and end are None if the file is the trimmed clip."""
    for name in row.trimmed:
        if name in files:
            return _choose(files[name], name), *(row.crop or (None, None))
    for name in row.whole:
        if name in files:
            path = _choose(files[name], name)
            if trimmed is None:
                raise ValueError(
                    f"{path} may be the trimmed clip ({row.start:g} to {row.end:g} s) or the whole video; pass trimmed=True"
                    " if such files are trimmed clips, trimmed=False if they are whole videos (prepare_benchmark.py:"
                    " --trimmed true or false)"
                )
            return (path, None, None) if trimmed else (path, row.start, row.end)
    return None


def _choose(paths: list[Path], name: str) -> Path:
    """Prefers a video to an audio file of the same name; raises for two videos."""
    videos = [path for path in paths if path.suffix.lower() not in AUDIO_SUFFIXES.split()] or paths
    if len(videos) > 1:
        raise ValueError(
            f"the clip {name} has two files, {videos[0]} and {videos[1]}; remove one, or pass source= (--source) a folder"
            " with one of them"
        )
    return videos[0]


def _masks(folder: Path) -> list[dict[str, Any]]:
    """Returns the masks of a clip, <video>_<second>.png, sorted by second."""
    paths = sorted(folder.glob("*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [{"bytes": None, "path": str(path)} for path in paths]
