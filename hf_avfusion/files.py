"""Atomic writes: a stopped process leaves the old file or the new one, never a part of it. JSON of any content is read safely."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # end of the name of a file that is being written


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`. Raises ValueError for all that cannot be read, also for JSON that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is broken, not UTF-8, or nested too deeply; the message names it.
        OSError: the file cannot be read.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path next to `path` to write to, and renames it to `path` at the end of the block.

    If the block raises, `path` stays as it was; the partial file remains and is overwritten by the next attempt. The folder
    is made if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    yield partial
    os.replace(partial, path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def markdown_cell(value: Any) -> str:
    """The value as text of one line that cannot end a cell of a Markdown table or a code span."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


def markdown_table(headings: Sequence[Any], rows: Sequence[Sequence[Any]], *, aligned: bool = False) -> str:
    """A Markdown table with one line per row.

    Args:
        headings, rows: the cells, which `markdown_cell` makes safe.
        aligned: pad the cells to the width of their column, for a table that people read as text.
    """
    lines = [list(map(markdown_cell, line)) for line in (headings, *rows)]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*lines)]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    cells = ([cell.ljust(width) for cell, width in zip(line, widths)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
