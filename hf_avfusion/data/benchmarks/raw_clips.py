"""Raw clips and an official annotation file as rows: which clips are there, where, and which have vanished."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...media.sources import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from .annotations import Annotation, read_annotations
from .records import Benchmark

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """How much of a split a source holds; its text is a line for a person.

    Args:
        title, split, source: of what and where.
        expected: official number of clips, None where it is not known.
        annotated: rows of the annotation file, None for shards.
        present: clips that are there. vanished: ids of the annotated clips that are not.
        examples: names that the first clip was looked for under.
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
        text = f"{self.title} {self.split} in {self.source}: {self.present} clips are there"
        if self.annotated is not None:
            text += f" of {self.annotated} annotated"
        if self.expected is not None and self.expected != self.annotated:
            text += f" (expected {self.expected})"
        if self.vanished:
            more = ", ..." if len(self.vanished) > 5 else ""
            text += f"; {len(self.vanished)} vanished: {', '.join(self.vanished[:5])}{more}"
        return text


def find_annotations(record: Benchmark, split: str, folder: Path, given: str | os.PathLike | None) -> Path:
    """The annotation file of a split: the one given, or the official name in the folder given or in that of the clips.

    Raises:
        FileNotFoundError: when it is in neither, or the benchmark has none. ValueError: it is the one of another split.
    """
    if not record.parser:
        raise FileNotFoundError(
            f"{folder} holds no parquet shards of the split {split!r} of {record.title}: {record.obtain}"
        )
    name = record.annotations[split]
    if given is not None and Path(given).is_file():
        given = Path(given)
        if given.name != name and given.name in record.annotations.values():
            raise ValueError(
                f"{given} is {record.title}'s file of another split; that of {split!r} is {name}: pass annotations= it, or"
                " the folder that they lie in (prepare_benchmark.py: --annotations, --splits)"
            )
        return given
    root = folder if given is None else Path(given)
    found = sorted(root.rglob(name))
    if len(found) == 1:
        return found[0]
    if found:
        raise FileNotFoundError(
            f"{root} holds several {name} ({found[0]}, {found[1]}); pass annotations= the one to read"
            " (prepare_benchmark.py: --annotations)"
        )
    raise FileNotFoundError(
        f"{root} holds neither shards ({split}-*.parquet, {split}-*.tar) nor the annotation file {name} of {record.title};"
        f" pass annotations= (prepare_benchmark.py: --annotations) that file, or another source= (--source): {record.obtain}"
    )


def find_clips(
    record: Benchmark, split: str, folder: Path, annotations: Path, trimmed: bool | None = None
) -> tuple[list[dict[str, Any]], Coverage]:
    """Rows of the annotated clips that are in the folder, in the order of the annotations, and what is missing.

    Raises:
        ValueError: where a file may be the clip or the whole video and `trimmed` does not say which.
    """
    if trimmed is None and record.options.get("whole_videos"):
        trimmed = False
    files = _index(folder)
    found, vanished, examples = [], [], ()
    for row in read_annotations(annotations, record, split):
        examples = examples or (*row.trimmed, *row.whole, *([row.masks] if row.masks else []))
        place = _locate(row, files, trimmed)
        masks = None if row.masks is None else _masks(folder / row.masks)
        if place is None or masks == []:
            vanished.append(row.clip_id)
            continue
        path, start, end = place
        clip = {"clip_id": row.clip_id, "video": {"bytes": None, "path": str(path)}, "start": start, "end": end}
        found.append({**clip, **row.values, **({} if masks is None else {"masks": masks})})
    annotated = len(found) + len(vanished)
    report = Coverage(
        *(record.title, split, str(folder), record.splits[split], annotated, len(found)), tuple(vanished), examples
    )
    return found, report


def _index(folder: Path) -> dict[str, list[Path]]:
    """Media files by their name, and by `folder/name`, without suffixes."""
    files: dict[str, list[Path]] = {}
    seen: set[str] = set()

    def tell(error: OSError) -> None:  # a disk may hold folders that are nobody's clips, such as lost+found
        logger.warning("%s cannot be read (%s): clips in it count as vanished", error.filename, error.strerror)

    for root, folders, names in os.walk(folder, onerror=tell, followlinks=True):
        if os.path.realpath(root) in seen:  # a link back up
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
    """(file, start, end) of a clip; start and end are None where the file is the clip."""
    for name in row.trimmed:
        if name in files:
            return _choose(files[name], name), *(row.crop or (None, None))
    for name in row.whole:
        if name in files:
            path = _choose(files[name], name)
            if trimmed is None:
                raise ValueError(
                    f"{path} may be the clip or the whole video it was cut from ({row.start:g} to {row.end:g} s); pass"
                    " trimmed=True if such files are the cut clips, trimmed=False if they are whole videos"
                    " (prepare_benchmark.py: --trimmed true or false)"
                )
            return (path, None, None) if trimmed else (path, row.start, row.end)
    return None


def _choose(paths: list[Path], name: str) -> Path:
    """A video rather than a sound of the same name; two videos would be a guess."""
    videos = [path for path in paths if path.suffix.lower() not in AUDIO_SUFFIXES.split()] or paths
    if len(videos) > 1:
        raise ValueError(
            f"the clip {name} is there twice: {videos[0]} and {videos[1]}; pass source= (--source) the folder of one"
        )
    return videos[0]


def _masks(folder: Path) -> list[dict[str, Any]]:
    """The PNG files of a clip, <video>_<second>.png, in the order of their seconds."""
    pictures = sorted(folder.glob("*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [{"bytes": None, "path": str(path)} for path in pictures]
