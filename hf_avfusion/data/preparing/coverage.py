"""Coverage reports: numbers of annotated, present, vanished and undecodable clips per split and class."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import markdown_table, read_json, write_text

FATES = ("present", "vanished", "undecodable")
MAX_LISTED = 20  # clips and classes of each kind in the Markdown page
REPORT = "coverage"


@dataclass(frozen=True)
class SplitReport:
    """Coverage of one split.

    Args:
        split: name of the split.
        expected: official number of clips, None if unknown.
        annotated: number of rows in the annotation file.
        present: number of clips in the shards.
        vanished: ids of the clips without a file.
        undecodable: (clip id, file, reason) of the clips whose file cannot be read.
        notes: (clip id, file, remark) of present clips, such as a clip that is shorter than annotated.
        classes: label column -> class name -> {"annotated", "present", "vanished", "undecodable"}: numbers of clips. A
            clip with several labels counts for each.
    """

    split: str
    expected: int | None
    annotated: int
    present: int
    vanished: tuple[str, ...]
    undecodable: tuple[tuple[str, str, str], ...]
    notes: tuple[tuple[str, str, str], ...]
    classes: Mapping[str, Mapping[str, Mapping[str, int]]]

    def __str__(self) -> str:
        text = f"{self.split}: {self.present:,} of {self.annotated:,} annotated clips are present"
        if self.expected is not None and self.expected != self.annotated:
            text += f" (officially {self.expected:,})"
        return f"{text}, {len(self.vanished):,} vanished, {len(self.undecodable):,} do not decode"


def count_classes(
    column: str, feature: Any, fates: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, dict[str, int]]:
    """Counts clips: class name -> {"annotated", "present", "vanished", "undecodable"}, in the order of the classes.

    Args:
        column: the label column.
        feature: its ClassLabel, or List of a ClassLabel.
        fates: (one of `FATES`, the clip's annotation columns) of every annotated clip.
    """
    names = getattr(feature, "feature", feature).names
    counts = {fate: Counter() for fate in FATES}
    for fate, values in fates:
        labels = values[column]
        counts[fate].update(set(labels) if isinstance(labels, (list, tuple)) else (labels,))
    return {
        name: {
            "annotated": sum(counts[fate][index] for fate in FATES),
            **{fate: counts[fate][index] for fate in FATES},
        }
        for index, name in enumerate(names)
    }


def write_reports(folder: str | os.PathLike, reports: Mapping[str, SplitReport]) -> None:
    """Writes `coverage.json` (everything), `.csv` (a line per split and class) and `.md` (a readable page).

    The files keep the reports of other splits that the folder already has.
    """
    _write(Path(folder), {**read_reports(folder), **reports})


def drop_reports(folder: str | os.PathLike, splits: Iterable[str]) -> None:
    """Removes splits, whose shards will be replaced, from the report files."""
    reports, splits = read_reports(folder), set(splits)
    if splits & set(reports):
        _write(Path(folder), {split: report for split, report in reports.items() if split not in splits})


def _write(folder: Path, reports: Mapping[str, SplitReport]) -> None:
    as_dict = {split: asdict(report) for split, report in reports.items()}
    write_text(folder / f"{REPORT}.json", json.dumps(as_dict, indent=1, ensure_ascii=False) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("split", "column", "class", "annotated", *FATES))
    for report in reports.values():
        for column, classes in report.classes.items():
            for name, counts in classes.items():
                writer.writerow((report.split, column, name, counts["annotated"], *(counts[fate] for fate in FATES)))
    write_text(folder / f"{REPORT}.csv", table.getvalue())
    write_text(folder / f"{REPORT}.md", as_markdown(reports))


def read_reports(folder: str | os.PathLike) -> dict[str, SplitReport]:
    """Reads the reports of a folder; returns an empty dictionary if it has no `coverage.json`."""
    file = Path(folder) / f"{REPORT}.json"
    if not file.exists():
        return {}
    reports = read_json(file)
    for report in reports.values():
        report["vanished"] = tuple(report["vanished"])
        for key in ("undecodable", "notes"):
            report[key] = tuple(map(tuple, report[key]))
    return {split: SplitReport(**report) for split, report in reports.items()}


def as_markdown(reports: Mapping[str, SplitReport]) -> str:
    """Formats the reports as a readable page: totals, the classes that miss most clips, reasons, clips."""
    totals = []
    for report in reports.values():
        official = "not known" if report.expected is None else f"{report.expected:,}"
        numbers = (report.annotated, report.present, len(report.vanished), len(report.undecodable))
        totals.append([report.split, official, *(f"{number:,}" for number in numbers)])
    headings = ["split", "official", "annotated", "present", "vanished", "do not decode"]
    lines = ["# Coverage", "", markdown_table(headings, totals)]
    for report in reports.values():
        lines += _markdown_of(report)
    return "\n".join(lines) + "\n"


def _markdown_of(report: SplitReport) -> list[str]:
    lines = ["", f"## {report.split}"]
    for column, classes in report.classes.items():
        lost = {name: counts for name, counts in classes.items() if counts["present"] < counts["annotated"]}
        empty = sum(counts["present"] == 0 for counts in classes.values())
        lines += ["", f"`{column}`: {len(lost)} of {len(classes)} classes lack clips, {empty} have none."]
        worst = sorted(lost, key=lambda name: lost[name]["present"] / lost[name]["annotated"])
        keys = ("present", "annotated", "vanished", "undecodable")
        rows = [[name, *(lost[name][key] for key in keys)] for name in worst[:MAX_LISTED]]
        if rows:
            lines += ["", markdown_table(["class", "present", "annotated", "vanished", "do not decode"], rows)]
        lines += _more(len(worst), "classes")
    for title, entries in (("Do not decode", report.undecodable), ("Notes", report.notes)):
        if entries:
            lines += ["", f"### {title}", "", markdown_table(["clip", "file", "remark"], entries[:MAX_LISTED])]
            lines += _more(len(entries), "entries")
    if report.vanished:
        lines += ["", "### Vanished", "", ", ".join(f"`{clip}`" for clip in report.vanished[:MAX_LISTED])]
        lines += _more(len(report.vanished), "clips")
    return lines


def _more(count: int, what: str) -> list[str]:
    return ["", f"... and {count - MAX_LISTED:,} more {what}, in {REPORT}.json."] if count > MAX_LISTED else []
