"""Records of benchmarks/gpu.py: written as they are known, within a time limit, as JSON lines and as Markdown tables."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hf_avfusion.files import write_text

Record = dict[str, Any]
Recorder = Callable[..., None]  # writes the given fields as one record of the running piece

# Fields that say why a piece has no result; the Markdown lists them after the tables.
NOTES = ("skipped", "cut_off", "error")


class OutOfTime(BaseException):
    """The time limit has passed. No `except Exception` of a library catches it."""


class Journal:
    """Runs the pieces of a benchmark within a time limit and writes each record at once.

    `results.jsonl` gets one record a line; `results.md` is written again after every record. Both are complete files at
    any moment, so a run that is killed leaves what it had.

    Args:
        folder: Where the two files go; created if missing.
        minutes: The time limit, counted from now.
        facts: Fields that every record holds, such as the device and the versions.
    """

    def __init__(self, folder: Path, minutes: float, facts: Record):
        folder.mkdir(parents=True, exist_ok=True)
        self.lines, self.tables = folder / "results.jsonl", folder / "results.md"
        self.facts, self.records = facts, []
        self.errors = 0
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.lines.write_text("", encoding="utf-8")
        self._write_tables()

    def left(self) -> float:
        """Seconds until the time limit, negative after it."""
        return self.deadline - time.monotonic()

    def add(self, **fields: Any) -> None:
        """Write one record to both files and print it."""
        # The time limit must not cut a line in two.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            record = fields | {"at_s": round(time.monotonic() - self.started, 2)}
            self.records.append(record)
            with self.lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | self.facts) + "\n")
            self._write_tables()
            print(", ".join(f"{name} {show(value)}" for name, value in record.items()), flush=True)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

    def attempt(self, part: str, piece: str, seconds: float, function: Callable[[Recorder], None]) -> bool:
        """Run `function(record)` if about `seconds` fit into the time that is left; True if it ran to its end.

        A piece that does not fit, that the time limit ends or that raises leaves a record that says so, and the next piece
        is tried.
        """
        if self.left() < seconds:
            reason = f"needs about {seconds:.0f} s, {max(self.left(), 0):.0f} s are left"
            self.add(part=part, piece=piece, skipped=reason)
            return False
        began = time.monotonic()
        try:
            with time_limit(self.left()):
                function(lambda **fields: self.add(part=part, piece=piece, **fields))
            return True
        except OutOfTime:
            self.add(part=part, piece=piece, cut_off=f"the time limit came after {time.monotonic() - began:.0f} s")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.errors += 1
            self.add(part=part, piece=piece, error=f"{type(error).__name__}: {error}"[:1000])
        return False

    def _write_tables(self) -> None:
        write_text(self.tables, markdown(self.facts, self.records))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once `seconds` have passed, as soon as Python code runs again."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # restores a timer that another tool set, such as pytest-timeout


def show(value: Any) -> str:
    """A value as the tables show it: four significant digits, lists and dictionaries in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{name} {show(item)}" for name, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return " ".join(show(item) for item in value) or "-"
    return "-" if value is None else str(value)


def markdown(facts: Record, records: list[Record]) -> str:
    """The facts, a table for each part and set of columns, and a list of what has no result."""
    lines = ["# GPU results", ""]
    lines += [f"- {name}: {show(value)}" for name, value in facts.items()]
    tables: dict[tuple[str, ...], list[Record]] = {}
    notes: list[Record] = []
    for record in records:
        if any(note in record for note in NOTES):
            notes.append(record)
        else:
            columns = tuple(name for name in record if name not in ("part", "at_s"))
            tables.setdefault((record["part"], *columns), []).append(record)
    for (part, *columns), rows in tables.items():
        lines += ["", f"## {part}", "", row(columns), row(["---"] * len(columns))]
        lines += [row([show(record[name]) for name in columns]) for record in rows]
    if notes:
        lines += ["", "## Without a result", ""]
    for record in notes:
        (note,) = (name for name in NOTES if name in record)
        lines.append(f"- {record['part']}, {record['piece']}: {note.replace('_', ' ')}: {show(record[note])}")
    return "\n".join(lines) + "\n"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
