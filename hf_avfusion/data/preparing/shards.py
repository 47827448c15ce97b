"""Converts raw clips and annotations to parquet shards for streaming: parallel, resumable, with a coverage report.

    DIR/data/<split>-0000k-of-0000n.parquet    rows like those of `load_benchmark`, with the clips' bytes
    DIR/coverage.json, .csv, .md               annotated, present, vanished and undecodable clips per class
    DIR/preparation.json                       the settings, which a second run must repeat

`pushing.push_shards` uploads such a folder to the Hub.

The rows of a split are divided into shards in annotation order before anything is decoded. A clip that does not decode is
left out of its shard, and the shard's footer lists it with the reason. So a shard depends only on its rows and the settings:
the number of processes and interruptions change no byte.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import atomic_path, write_text
from ...media.sources import MediaError, check_regular_file
from ..benchmarks.folders import find_splits, has_shards, load_folder
from ..benchmarks.loading import get_record, row_features
from ..benchmarks.question_rows import group_questions, group_values, grouped_features
from ..benchmarks.raw_clips import find_annotations, find_clips
from ..benchmarks.reading import read_once
from ..benchmarks.records import Benchmark
from ..synthetic.sounding_shapes import usable_cores
from .coverage import SplitReport, count_classes, drop_reports, write_reports
from .reencoding import check_clip, reencode
from .settings import ClipSettings

if TYPE_CHECKING:
    import datasets

MANIFEST = "preparation.json"
LOCK = ".preparing.lock"
LOCK_WAIT = 10.0  # s; the processes of a killed run end a moment later
VERSION = 1  # of the layout and of the encoding
ROWS_PER_SHARD = 256
ROW_GROUP = 8  # rows; small groups need only small range reads when streaming; a process handles one group at a time
MAX_GROUP_BYTES = 2**26  # of clips that are not re-encoded; groups of large files have fewer rows
MAX_CLIP_BYTES = 2**31 - 2**16  # limit of one parquet value
FOOTER = "hf_avfusion"  # key in a shard's footer: the clips left out, and notes, as JSON


@dataclass
class _Split:
    """The clips of one split. `vanished`: id -> annotation columns of the clips without a file."""

    rows: list[dict[str, Any]]
    features: datasets.Features
    expected: int | None = None
    vanished: dict[str, dict[str, Any]] = field(default_factory=dict)


def prepare_benchmark(
    name: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    splits: Sequence[str] | None = None,
    variant: str | None = None,
    annotations: str | os.PathLike | None = None,
    trimmed: bool | None = None,
    settings: ClipSettings | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    num_proc: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, SplitReport]:
    """Makes shards from a benchmark's raw clips and official annotation files, for `load_benchmark(..., source=output)`.

    Args:
        name, variant, annotations, trimmed: see `load_benchmark`.
        source: folder of the clips.
        output: folder of the shards, created if missing.
        splits: names of splits; by default, all of the benchmark.
        settings: trimming and encoding; by default, clips are only decoded once to find broken ones.
        rows_per_shard: clips per file.
        num_proc: number of processes; by default, one per core.
        overwrite: replace shards that were made with other settings.
        progress: show a progress bar.

    Returns:
        the coverage of every split, which is also in `coverage.md`.

    Raises:
        ValueError: the name or a split is unknown, or an annotation cannot be read.
        FileNotFoundError: an annotation file, or every clip of a split, is missing; or the benchmark exists only as shards.
        FileExistsError: `output` contains other files, or was made with other settings.
        OSError: the disk has too little space for the shards.
        RuntimeError: a process died.
    """
    record = get_record(name, variant)
    folder, found = Path(source), {}
    if not folder.is_dir():
        raise FileNotFoundError(
            f"source {os.fspath(source)!r} is not a folder; pass the folder of the clips (--source)"
        )
    splits = splits or list(record.splits)
    for split in splits:
        get_record(name, variant, split)
    files = {record.annotations[split] for split in splits} if record.parser else set()
    if len(files) > 1 and annotations is not None and Path(annotations).is_file():
        raise ValueError(
            f"annotations {os.fspath(annotations)!r} is one file, but each of the splits {', '.join(splits)} has its own; pass"
            f" the folder with {', '.join(sorted(files))}, or a single split (--splits)"
        )
    read = read_once()
    for split in splits:
        try:
            file = find_annotations(record, split, folder, annotations, read)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or prepare only other splits, with splits= (--splits)") from error
        rows, vanished, coverage = find_clips(record, split, folder, file, trimmed, read)
        if not rows:
            raise FileNotFoundError(
                f"{folder} contains none of the {coverage.annotated} clips that {file} lists for the split {split!r}; name"
                f" the clips like {', '.join(coverage.examples)}, or prepare only other splits, with splits= (--splits)"
            )
        found[split] = _Split(rows, row_features(record), coverage.expected, vanished)
        if (
            record.has_questions
        ):  # a video is stored once, with all its questions; the number of videos is not published
            grouped = group_questions(rows, record), grouped_features(row_features(record), record)
            found[split] = _Split(*grouped, None, group_values(vanished, record))
    what = {"data": name, "variant": variant}
    work = {"rows_per_shard": rows_per_shard, "num_proc": num_proc, "overwrite": overwrite, "progress": progress}
    return _prepare(found, what, folder, Path(output), settings or ClipSettings(), record=record, **work)


def prepare_folder(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    splits: Sequence[str] | None = None,
    holdout: float = 0.2,
    seed: int = 0,
    settings: ClipSettings | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    num_proc: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, SplitReport]:
    """Makes shards from a folder of videos or its CSV file. `load_folder` reads both the folder and its shards.

    Arguments and errors are those of `prepare_benchmark`, except:

    Args:
        splits: names of splits; by default, those of the folder, or the two into which it is divided.
        holdout, seed: of that division, see `load_folder`.

    Raises:
        ValueError: `output` is inside the source, or the source already contains shards.
    """
    path, found = Path(source), {}
    if Path(output).resolve().is_relative_to(path.resolve()):
        raise ValueError(f"output {output} is inside the folder of the clips, {path}; choose a folder outside of it")
    if has_shards(path):
        raise ValueError(f"{path} already contains parquet shards; upload them with push_shards")
    read = read_once()
    for split in splits or find_splits(path, read=read):
        rows = load_folder(path, split, holdout=holdout, seed=seed, read=read)
        found[split] = _Split([dict(row) for row in rows], rows.features)
    what = {"data": None, "holdout": holdout, "seed": seed}
    work = {"rows_per_shard": rows_per_shard, "num_proc": num_proc, "overwrite": overwrite, "progress": progress}
    root = path if path.is_dir() else path.parent
    return _prepare(found, what, root, Path(output), settings or ClipSettings(), **work)


def _prepare(
    splits: Mapping[str, _Split],
    what: Mapping[str, Any],
    root: Path,
    output: Path,
    settings: ClipSettings,
    *,
    record: Benchmark | None = None,
    rows_per_shard: int,
    num_proc: int | None,
    overwrite: bool,
    progress: bool,
) -> dict[str, SplitReport]:
    num_proc = num_proc if num_proc is not None else usable_cores()
    for name, value in (("rows_per_shard", rows_per_shard), ("num_proc", num_proc)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    (output / "data").mkdir(parents=True, exist_ok=True)
    with _locked(output):
        shards = _claim_output(output, splits, what, root, settings, rows_per_shard, overwrite)
        _write_missing(shards, splits, root, settings, rows_per_shard, num_proc, progress)
        reports = {split: _report(split, part, shards[split], record) for split, part in splits.items()}
        write_reports(output, reports)
    return reports


# ------------------------------------------------------------------------------------------------- the output folder


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Locks the output folder for one process; the lock ends with the process, even if it is killed."""
    import filelock

    lock = filelock.FileLock(output / LOCK)
    try:
        lock.acquire(timeout=LOCK_WAIT)
    except filelock.Timeout:
        raise FileExistsError(f"another process is preparing clips in {output}; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _claim_output(
    output: Path,
    splits: Mapping[str, _Split],
    what: Mapping[str, Any],
    root: Path,
    settings: ClipSettings,
    rows_per_shard: int,
    overwrite: bool,
) -> dict[str, list[Path]]:
    """Checks the folder's settings, writes its manifest, deletes outdated shards, and returns the shards of every split."""
    import av

    encoders = f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    common = {"version": VERSION, **what, **asdict(settings), "rows_per_shard": rows_per_shard, "encoders": encoders}
    ours = {split: _fingerprint(part, root) for split, part in splits.items()}
    note = output / MANIFEST
    try:
        theirs = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
        known = theirs["splits"] if theirs is not None else {}
        before = {key: theirs[key] for key in theirs if key != "splits"} if theirs is not None else common
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{note} cannot be read ({error}); choose another folder") from error
    if theirs is None and any((output / "data").glob("*.parquet")):
        raise FileExistsError(
            f"{output / 'data'} contains parquet files that were not prepared here; choose another folder"
        )
    changed = [
        f"{key} was {before.get(key)!r} and is {common.get(key)!r}"
        for key in sorted({*before, *common})
        if before.get(key) != common.get(key)
    ]
    changed += [
        f"the clips of {split} have changed ({known[split]['clips']} before, {ours[split]['clips']} now)"
        for split in ours
        if split in known and known[split] != ours[split]
    ]
    if changed and not overwrite:
        raise FileExistsError(
            f"{output} was prepared with other settings or clips: {'; '.join(changed)}. Use the same settings to continue,"
            " choose another folder, or pass overwrite=True (--overwrite) to replace it"
        )
    if before != common:  # changed settings affect every split, changed clips only their own
        stale, known = list(known), {}
    else:
        stale = [split for split in ours if split in known and known[split] != ours[split]]
    for split in stale:
        for old in (output / "data").glob(f"{split}-*-of-*"):
            old.unlink()
    drop_reports(output, stale)
    write_text(note, json.dumps({**common, "splits": {**known, **ours}}, indent=2) + "\n")
    names = {}
    for split, part in splits.items():
        total = -(-len(part.rows) // rows_per_shard)
        names[split] = [output / "data" / f"{split}-{number:05d}-of-{total:05d}.parquet" for number in range(total)]
    return names


def _fingerprint(part: _Split, root: Path) -> dict[str, Any]:
    """Number of clips, and a digest of their ids, relative paths, sizes and annotations."""
    digest = hashlib.sha256()
    for row in part.rows:
        path = row["video"]["path"]
        about = {column: value for column, value in row.items() if column not in ("video", "masks")}
        size = os.stat(path).st_size if os.path.exists(path) else None
        masks = [_relative_path(mask["path"], root) for mask in row.get("masks") or ()]
        digest.update(json.dumps([_relative_path(path, root), size, about, masks], sort_keys=True).encode())
    digest.update(repr(part.features).encode())
    return {"clips": len(part.rows), "sha256": digest.hexdigest()}


def _relative_path(path: str | os.PathLike, root: Path) -> str:
    """Returns a file's path relative to the source, or `folder/name` if it is outside of it.

    Shards must not leak the local directory layout.
    """
    relative = Path(os.path.relpath(path, root))
    return Path(*Path(path).parts[-2:]).as_posix() if relative.parts[:1] == ("..",) else relative.as_posix()


# ------------------------------------------------------------------------------------------------------- the shards


def _write_missing(
    shards: Mapping[str, list[Path]],
    splits: Mapping[str, _Split],
    root: Path,
    settings: ClipSettings,
    rows_per_shard: int,
    num_proc: int,
    progress: bool,
) -> None:
    from tqdm.auto import tqdm

    missing = [
        (split, path, splits[split].rows[number * rows_per_shard : (number + 1) * rows_per_shard])
        for split, paths in shards.items()
        for number, path in enumerate(paths)
        if not path.exists()
    ]
    _check_space([row for _, _, rows in missing for row in rows], settings, next(iter(shards.values()))[0].parent)
    work = [_groups(rows, settings) for _, _, rows in missing]
    total, left = sum(len(part.rows) for part in splits.values()), sum(len(rows) for _, _, rows in missing)
    jobs = [group for shard in work for group in shard]
    results = _in_order(partial(_prepare_group, root=root, settings=settings), jobs, num_proc)
    failed = 0
    with tqdm(total=total, initial=total - left, unit="clip", desc="preparing", disable=not progress) as bar:
        for (split, path, _), groups in zip(missing, work):
            bar.set_postfix_str(f"{split}, {failed} do not decode")
            schema = splits[split].features.arrow_schema
            left_out, notes = [], []
            with atomic_path(path) as part, _parquet_writer(part, schema) as writer:
                for _ in groups:
                    outcomes = next(results)
                    _write_group(writer, [outcome.row for outcome in outcomes if outcome.row is not None])
                    left_out += [(o.clip_id, o.file, o.reason) for o in outcomes if o.row is None]
                    notes += [(o.clip_id, o.file, note) for o in outcomes for note in o.notes]
                    bar.update(len(outcomes))
                writer.add_key_value_metadata({FOOTER: json.dumps({"undecodable": left_out, "notes": notes})})
            failed += len(left_out)
            bar.set_postfix_str(f"{split}, {failed} do not decode")


def _copied_bytes(row: Mapping[str, Any], settings: ClipSettings) -> int:
    """Size of a clip that is copied; 0 for a clip that is re-encoded, whose new size is unknown but small."""
    path = row["video"]["path"]
    return 0 if settings.encodes(row["start"], row["end"]) or not os.path.exists(path) else os.stat(path).st_size


def _check_space(rows: Sequence[Mapping[str, Any]], settings: ClipSettings, folder: Path) -> None:
    needed, free = sum(_copied_bytes(row, settings) for row in rows), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the shards would take {needed / 1e9:.1f} GB, but {folder} has only {free / 1e9:.1f} GB free; free some space,"
            " trim the clips (trim=True, --trim; otherwise each row contains its whole video), or make them smaller with"
            " short_side"
        )


def _groups(rows: Sequence[dict[str, Any]], settings: ClipSettings) -> list[list[dict[str, Any]]]:
    """Divides the rows of a shard into row groups, which depend only on the rows and settings."""
    groups: list[list[dict[str, Any]]] = []
    size = 0
    for row in rows:
        more = _copied_bytes(row, settings)
        if not groups or len(groups[-1]) == ROW_GROUP or size + more > MAX_GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += more
    return groups


def _parquet_writer(path: Path, schema: Any) -> Any:
    import pyarrow.parquet as pq

    # H.264 does not compress further, and labels are small. A dictionary of the clips would only store each clip again.
    return pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)


def _write_group(writer: Any, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema), row_group_size=len(rows))


# ---------------------------------------------------------------------------------------------------- the processes


@dataclass
class _Outcome:
    """The row of a clip, or None and the reason. `file` is relative to the source."""

    clip_id: str
    file: str
    row: dict[str, Any] | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def _prepare_group(rows: list[dict[str, Any]], root: Path, settings: ClipSettings) -> list[_Outcome]:
    return [_prepare_clip(row, root, settings) for row in rows]


def _prepare_clip(row: dict[str, Any], root: Path, settings: ClipSettings) -> _Outcome:
    import av

    path, start, end = row["video"]["path"], row["start"], row["end"]
    file = _relative_path(path, root)
    outcome = _Outcome(row["clip_id"], file)
    try:
        if settings.encodes(start, end):
            clip = reencode(path, start, end, settings, name=file)
            data, name, notes = clip.data, Path(file).stem + clip.suffix, clip.notes
            start, end = clip.start, clip.end
        else:
            notes = check_clip(path, start, end, name=file) if settings.check else ()
            check_regular_file(path, file)
            data, name = Path(path).read_bytes(), Path(file).name
        for mask in row.get("masks") or ():
            check_regular_file(mask["path"], file)
        masks = [
            {"bytes": Path(mask["path"]).read_bytes(), "path": Path(mask["path"]).name}
            for mask in row.get("masks") or ()
        ]
        if len(data) > MAX_CLIP_BYTES:
            raise MediaError(
                file, f"has {len(data) / 1e9:.1f} GB, more than a parquet value can hold; trim it or set short_side"
            )
    except MediaError as error:
        # Without the reader's advice on on_decode_error, which is not an option here.
        outcome.reason = error.cause.partition("; on_decode_error=")[0]
    except av.FFmpegError as error:
        outcome.reason = f"cannot be encoded: {error}"
    except OSError as error:
        outcome.reason = f"cannot be read: {error.strerror or error}"
    except Exception as error:
        raise RuntimeError(f"preparing the clip {row['clip_id']} ({path}) failed: {error!r}") from error
    else:
        outcome.row = {**row, "video": {"bytes": data, "path": name}, "start": start, "end": end}
        if "masks" in row:
            outcome.row["masks"] = masks
        outcome.notes = tuple(notes)
    return outcome


def _in_order(work: Callable[[Any], Any], jobs: Iterable[Any], num_proc: int) -> Iterator[Any]:
    """Like `map(work, jobs)`, but with several processes and only a few unread results at a time.

    Raises:
        RuntimeError: a process died (out of memory, or a crash of a decoder).
    """
    jobs = list(jobs)
    num_proc = min(num_proc, len(jobs))
    if num_proc <= 1:
        yield from map(work, jobs)
        return
    # With fork, the children need not import torch, which takes seconds.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(num_proc, context, _start_worker, (os.getpid(),)) as pool:
        waiting: deque[Any] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= 2 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process died while it prepared clips. If it ran out of memory, use fewer processes (num_proc); repeat the"
                " call to continue after the complete shards"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if waiting:  # the caller stopped early: end the running jobs
                for child in set(multiprocessing.active_children()) - others:
                    child.terminate()


def _start_worker(parent: int) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the children, but the parent ends them
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """Ends this process when its parent has died; otherwise it would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


# ------------------------------------------------------------------------------------------------------- the report


def _report(split: str, part: _Split, shards: Sequence[Path], record: Benchmark | None) -> SplitReport:
    """Makes the coverage report of a split from its shards' footers."""
    import pyarrow.parquet as pq

    present, undecodable, notes = 0, [], []
    for shard in shards:
        footer = pq.read_metadata(shard)
        left_out = json.loads(footer.metadata[FOOTER.encode()])
        present += footer.num_rows
        undecodable += [tuple(entry) for entry in left_out["undecodable"]]
        notes += [tuple(entry) for entry in left_out["notes"]]
    if present + len(undecodable) != len(part.rows):
        raise RuntimeError(
            f"the shards of {split!r} contain {present} clips and left out {len(undecodable)}, but there are"
            f" {len(part.rows)}; delete {shards[0].parent} and prepare again"
        )
    broken = {clip_id for clip_id, _, _ in undecodable}
    # Without columns after the first that have a class per second, such as AVE's events.
    columns = record.label_columns if record is not None else ("label",)
    columns = [column for column in columns if column == columns[0] or record.columns[column] == "class"]
    fates = [("undecodable" if row["clip_id"] in broken else "present", row) for row in part.rows]
    fates += [("vanished", values) for values in part.vanished.values()]
    return SplitReport(
        split=split,
        expected=part.expected,
        annotated=len(fates),
        present=present,
        vanished=tuple(part.vanished),
        undecodable=tuple(undecodable),
        notes=tuple(notes),
        classes={column: count_classes(column, part.features[column], fates) for column in columns},
    )
