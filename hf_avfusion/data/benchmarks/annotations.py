"""Parsers for the official annotation files of the benchmarks, one per format; all yield `Annotation`.

A parser is a generator `(file, record, split)` of `Annotation`. It raises ValueError with file and line for anything it
cannot read, so no row is lost.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...files import parse_json, read_json
from .records import Benchmark, label_indices, read_labels

MAX_TIME = 1_000_000_000  # largest start or end in s; a larger number is a mistake in the file


@dataclass(frozen=True)
class Annotation:
    """One annotated clip.

    Args:
        clip_id: unique within the split.
        values: the benchmark's columns, classes as indices.
        trimmed: possible names of the trimmed clip's file, without suffix ("name" or "folder/name").
        whole: possible names of the whole video's file, without suffix.
        start, end: the clip's bounds in the whole video, in seconds.
        crop: the clip's bounds in the trimmed file, in seconds, for files that may be longer than the clip.
        masks: folder of the masks, relative to the folder of clips.
    """

    clip_id: str
    values: dict[str, Any]
    trimmed: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    crop: tuple[float, float] | None = None
    masks: str | None = None


def read_annotations(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """Yields the rows of a split in file order. A clip listed n times gets the ids `id`, `id#2`, ... `id#n`.

    Raises:
        ValueError: a row cannot be read, or the file has no row of the split.
    """
    seen: Counter[str] = Counter()
    try:
        for row in PARSERS[record.parser](file, record, split):
            seen[row.clip_id] += 1
            yield row if seen[row.clip_id] == 1 else replace(row, clip_id=f"{row.clip_id}#{seen[row.clip_id]}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file in UTF-8: {error}") from error
    if not seen:
        raise ValueError(f"{file}: contains no rows of the split {split!r} of {record.title}")


def _rows(
    file: Path, number: int | tuple[int, ...] | None = None, *, comment: str = "", **dialect: Any
) -> Iterator[tuple[str, list[str]]]:
    """Yields ("file:line", stripped fields) of every non-empty row. `number`: the allowed number(s) of fields."""
    allowed = (number,) if isinstance(number, int) else number
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text, skipinitialspace=True, **{"strict": True, **dialect})
        for fields in _quoted(reader, file):
            where = f"{file}:{reader.line_num}"
            if not fields or (comment and fields[0].startswith(comment)):
                continue
            if allowed is not None and len(fields) not in allowed:
                raise ValueError(
                    f"{where}: expected {' or '.join(map(str, allowed))} fields, found {len(fields)}: {fields}"
                )
            yield (
                where,
                [field.strip() if number is None else one_line(field.strip(), f"{where}: a field") for field in fields],
            )


def _quoted(reader: Iterator[list[str]], file: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: {error}; check the quotes up to this line") from error


def one_line(field: str, what: str) -> str:
    """The field. Raises ValueError for several lines, since an unclosed quote takes all rows up to the next quote for one field,
    and for a NUL.
    """
    if "\0" in field:
        raise ValueError(f"{what} holds a NUL character, {field!r}: remove it, or save the file as text in UTF-8")
    if len(lines := field.splitlines()) > 1:
        raise ValueError(
            f"{what} holds {len(lines)} lines, starting with {lines[0]!r}: labels and names have one line; in a CSV file, check "
            "the quotes from there on"
        )
    return field


def _records(file: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("file:line", {column: field}) of a CSV file whose header contains at least `columns`."""
    rows = _rows(file, strict=False)  # descriptions are free text, also with line breaks and quotes
    where, header = next(rows, (f"{file}:1", []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{where}: the header lacks the columns {', '.join(missing)}; it has: {', '.join(header)}")
    for where, fields in rows:
        if len(fields) != len(header):
            raise ValueError(f"{where}: {len(fields)} fields under a header of {len(header)}")
        row = dict(zip(header, fields))
        for column in columns:
            one_line(row[column], f"{where}: the column {column!r}")
        yield where, row


def _index(record: Benchmark, column: str, name: str, where: str) -> int:
    indices = label_indices(record.labels[column])
    if name not in indices:
        raise ValueError(
            f"{where}: {name!r} is not one of the {len(indices)} {column} names of {record.title}. If the file belongs to"
            " another version of the benchmark, choose that variant."
        )
    return indices[name]


def _class_number(record: Benchmark, column: str, text: str, where: str, first: int = 0) -> int:
    """Parses a class number and makes it 0-based; `first` is the file's number for class 0."""
    count = len(record.label_names(column))
    index = _number(text, column, where, int) - first
    if not 0 <= index < count:
        raise ValueError(f"{where}: {column} must lie in {first}..{count - 1 + first}, got {text}")
    return index


def _number(text: str, what: str, where: str, kind: Callable[[str], Any] = float) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where}: {what} must be a number, got {text!r}") from None


def _bounds(start: str, end: str, where: str) -> tuple[float, float]:
    first, last = _number(start, "start", where), _number(end, "end", where)
    if not 0 <= first < last <= MAX_TIME:
        raise ValueError(
            f"{where}: start must be at least 0 s, end after start and at most {MAX_TIME:,} s, got {start} to {end}"
        )
    return first, last


def vggsound(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """vggsound.csv has id, start, label, split; test.csv has <id>_<start, 6 digits>.mp4, label. No header."""
    for where, fields in _rows(file, (2, 4)):
        if len(fields) == 2:
            match = re.fullmatch(r"(.+)_(\d{6})(?:\.\w+)?", fields[0])
            if match is None:
                raise ValueError(f"{where}: expected <id>_<start, 6 digits>.mp4, got {fields[0]!r}")
            if split != "test":
                raise ValueError(
                    f"{where}: a file with two columns is the official test list, which has no split {split!r}; pass"
                    " vggsound.csv"
                )
            video, begin, label = match[1], match[2], fields[1]
        else:
            video, begin, label, part = fields
            if part not in ("train", "test"):
                raise ValueError(f"{where}: the split must be train or test, got {part!r}")
            if part != split:
                continue
        start = _number(begin, "start", where)
        if not 0 <= start <= MAX_TIME:
            raise ValueError(f"{where}: start must be at least 0 s, got {begin}: at most {MAX_TIME:,} s are allowed")
        name = f"{video}_{int(start):06d}"
        values = {"label": _index(record, "label", label, where)}
        yield Annotation(name, values, (name,), (video,), start, start + record.clip_seconds)


def audioset(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """*_segments.csv: YTID, start_seconds, end_seconds, "mid,mid,..."; lines starting with # are comments."""
    mids = label_indices("audioset_mids")
    for where, (video, begin, finish, positive) in _rows(file, 4, comment="#"):
        start, end = _bounds(begin, finish, where)
        unknown = [mid for mid in positive.split(",") if mid not in mids]
        if unknown:
            raise ValueError(f"{where}: unknown label ids: {', '.join(unknown)}")
        labels = sorted(mids[mid] for mid in positive.split(","))
        names = (
            f"{video}_{int(start):06d}",
            f"{video}_{start:.3f}",
            f"{video}_{int(start)}",
            f"{video}_{int(start)}_{int(end)}",
        )
        yield Annotation(f"{video}_{start:g}", {"labels": labels}, names, (video, f"Y{video}"), start, end)


_KINETICS_SPLITS = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}


def kinetics(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """label, youtube_id, time_start, time_end[, split], ...; clips are named <id>_<start, 6 digits>_<end, 6 digits>.

    Some copies hold all splits in one file, so rows whose column `split` names another split are skipped.
    With the option `selection` (Kinetics-Sounds), rows of other Kinetics-400 classes are skipped.
    """
    selection = set(record.label_names("label")) if record.options.get("selection") else None
    kinetics400 = set(read_labels("kinetics400"))
    for where, row in _records(file, "label", "youtube_id", "time_start", "time_end"):
        if _KINETICS_SPLITS.get(row.get("split", ""), split) != split:
            continue
        if selection is not None and row["label"] in kinetics400 - selection:
            continue
        start, end = _bounds(row["time_start"], row["time_end"], where)
        name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
        values = {"label": _index(record, "label", row["label"], where)}
        yield Annotation(name, values, (name,), (row["youtube_id"],), start, end)


def kinetics_sounds_ogmge(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """OGM-GE's my_*.txt: <id>_<start>, a second field, class number. The first field is the clip's file name."""
    for where, (name, _, number) in _rows(file, 3):
        match = re.fullmatch(r"(.+)_(\d+)", name)
        if match is None:
            raise ValueError(f"{where}: expected <youtube id>_<start>, got {name!r}")
        start = float(match[2])
        official = f"{match[1]}_{int(start):06d}_{int(start + record.clip_seconds):06d}"
        values = {"label": _class_number(record, "label", number, where)}
        yield Annotation(name, values, (name, official), (match[1],), start, start + record.clip_seconds)


def epic_kitchens(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """EPIC_100_*.csv, with times as h:min:s."""
    columns = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class", "noun_class")
    for where, row in _records(file, *columns):
        start, end = (_clock(row[column], column, where) for column in ("start_timestamp", "stop_timestamp"))
        if end <= start:
            raise ValueError(f"{where}: end must be after start, got {start} s to {end} s")
        values = {
            "verb": _class_number(record, "verb", row["verb_class"], where),
            "noun": _class_number(record, "noun", row["noun_class"], where),
            "narration": row["narration"],
        }
        yield Annotation(row["narration_id"], values, (row["narration_id"],), (row["video_id"],), start, end)


def _clock(text: str, what: str, where: str) -> float:
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)
    if match is None:
        raise ValueError(f"{where}: {what} must be h:min:s, got {text!r}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def moments(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """trainingSet.csv and validationSet.csv: <class>/<file>.mp4, class, votes, votes. No header."""
    for where, (path, label, *_) in _rows(file, 4):
        name = Path(path).with_suffix("").as_posix()
        yield Annotation(name, {"label": _index(record, "label", label, where)}, (name,))


def ave(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """Category&VideoID&Quality&StartTime&EndTime; second t has the event if StartTime <= t < EndTime."""
    background = len(record.label_names("events")) - 1
    for where, (label, video, _, begin, finish) in _rows(file, 5, delimiter="&", quoting=csv.QUOTE_NONE):
        event = _index(record, "label", label, where)
        start, end = (_number(text, "time", where, int) for text in (begin, finish))
        if not 0 <= start <= end <= record.clip_seconds:  # one official row runs from 0 to 0
            raise ValueError(f"{where}: the event must lie within {record.clip_seconds:g} s, got {start} to {end}")
        seconds = range(int(record.clip_seconds))
        events = [event if start <= second < end else background for second in seconds]
        yield Annotation(video, {"label": event, "events": events}, (video,))


def avsbench_s4(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """s4_meta_data.csv, read like its own loader does: name in column 0, category in column 2, and a column `split`."""
    part = record.options["official_splits"][split]
    rows = _rows(file)
    where, header = next(rows, (f"{file}:1", []))
    if "split" not in header or len(header) < 3:
        raise ValueError(f"{where}: the header must have at least three columns, one of them split, got: {header}")
    for where, fields in rows:
        if len(fields) != len(header):
            raise ValueError(f"{where}: {len(fields)} fields under a header of {len(header)}")
        video, category, listed = fields[0], fields[2], fields[header.index("split")]
        if listed not in record.options["official_splits"].values():
            raise ValueError(
                f"{where}: unknown split {listed!r}; the file's splits are:"
                f" {', '.join(record.options['official_splits'].values())}"
            )
        if listed == part:
            values = {"label": _index(record, "label", category, where)}
            yield Annotation(video, values, (video,), masks=f"gt_masks/{part}/{category}/{video}")


def music_avqa(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """avqa-*.json: a list of questions; `templ_values` fills their slots (such as <Object>) in order."""
    questions = read_json(file)
    for number, row in enumerate(questions):
        where = f"{file}: question {number}"
        missing = [column for column in record.annotation_columns if column not in row]
        if missing:
            raise ValueError(f"{where}: the fields {', '.join(missing)} are missing")
        if row["question_deleted"]:
            continue
        try:
            fillers, kinds = parse_json(row["templ_values"]), parse_json(row["type"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: templ_values and type must hold JSON lists: {error}") from error
        pieces = re.split(r"<[A-Za-z]+>", row["question_content"])
        if len(pieces) != len(fillers) + 1:
            raise ValueError(f"{where}: {len(fillers)} values for the slots of {row['question_content']!r}")
        question = pieces[0] + "".join(filler + piece for filler, piece in zip(fillers, pieces[1:]))
        values = {
            "question": question,
            "answer": _index(record, "answer", row["anser"], where),
            "question_type": _index(record, "question_type", " / ".join(kinds), where),
        }
        yield Annotation(f"{row['video_id']}-{row['question_id']}", values, (str(row["video_id"]),))


def ucf101(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """trainlist0N.txt has <class>/<file>.avi and a 1-based class number; testlist0N.txt has <class>/<file>.avi only."""
    for where, (path, *number) in _rows(file, (1, 2), delimiter=" "):
        label, _, name = path.partition("/")
        index = _index(record, "label", label, where)
        if number and _class_number(record, "label", number[0], where, first=1) != index:
            raise ValueError(f"{where}: {label} is class {index + 1}, not {number[0]}")
        stem = Path(name).stem
        yield Annotation(stem, {"label": index}, (stem,))


def esc(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """esc50.csv or esc10.csv. The record's test fold is the test split; the other folds are train.

    The clip is the first 5 s of its file. Files of ESC-10 may be up to 2 s longer.
    """
    target = record.options["target"]
    for where, row in _records(file, "filename", "fold", target, "category"):
        fold = _number(row["fold"], "fold", where, int)
        label = _class_number(record, "label", row[target], where)
        if record.label_names("label")[label] != row["category"]:
            raise ValueError(f"{where}: class {label} is {record.label_names('label')[label]}, not {row['category']}")
        if (fold == record.options["test_fold"]) == (split == "test"):
            stem = Path(row["filename"]).stem
            yield Annotation(stem, {"label": label, "fold": fold}, (stem,), crop=(0.0, record.clip_seconds))


def charades(file: Path, record: Benchmark, split: str) -> Iterator[Annotation]:
    """Charades_v1_*.csv: `actions` is "c092 11.90 21.20;c147 0.00 12.60"; a video without actions has no labels."""
    for where, row in _records(file, "id", "actions"):
        labels = set()
        for action in filter(None, row["actions"].split(";")):
            match = re.fullmatch(r"c(\d{3}) [\d.]+ [\d.]+", action)
            if match is None:
                raise ValueError(f"{where}: expected an action like 'c092 11.90 21.20', got {action!r}")
            labels.add(_class_number(record, "labels", match[1], where))
        yield Annotation(row["id"], {"labels": sorted(labels)}, (row["id"],))


PARSERS: dict[str, Callable[[Path, Benchmark, str], Iterator[Annotation]]] = {
    parser.__name__: parser
    for parser in (
        *(vggsound, audioset, kinetics, kinetics_sounds_ogmge, epic_kitchens, moments, ave, avsbench_s4),
        *(music_avqa, ucf101, esc, charades),
    )
}
