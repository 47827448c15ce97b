r"""Selects AS-500K from AudioSet: a roughly balanced part of the unbalanced training set, drawn under a cap per class.

    python -m hf_avfusion.data.selection unbalanced_train_segments.csv as500k_train_segments.csv --cap 200000 --seed 0 \
        --histogram as500k.png

MBT supplementary F caps every class at 200K clips and gets 508,994 clips. Its order of drawing and its list were not
published, so this script makes the same kind of selection, but with other clips.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...arguments import OneLineErrors
from ...files import atomic_path
from .annotations import read_annotations
from .records import BENCHMARKS


def select_capped(labels: Sequence[Sequence[int]], cap: int, seed: int = 0) -> list[int]:
    """Draws clips in a seeded order and keeps a clip if none of its classes has `cap` clips yet.

    Args:
        labels: class indices of each clip.
        cap: largest number of clips per class, at least 1.
        seed: seed of the order.

    Returns:
        the indices of the kept clips, ascending.
    """
    if cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    counts = np.zeros(1 + max((max(classes, default=0) for classes in labels), default=0), dtype=np.int64)
    kept = []
    for index in np.random.default_rng(seed).permutation(len(labels)).tolist():
        classes = list(labels[index])
        if all(counts[label] < cap for label in classes):
            counts[classes] += 1
            kept.append(index)
    return sorted(kept)


def write_selection(
    segments: str | os.PathLike, output: str | os.PathLike, *, cap: int = 200_000, seed: int = 0
) -> tuple[int, int]:
    """Writes the selected lines of an AudioSet segments CSV, in file order, to a file of the same format.

    Returns:
        the number of selected clips, and the number of all clips.

    Raises:
        ValueError: a line cannot be read.
        FileExistsError: `output` exists.
    """
    source, target = Path(segments), Path(output)
    if target.exists():
        raise FileExistsError(f"{target} already exists; delete it or choose another output file")
    labels = [row.values["labels"] for row in read_annotations(source, BENCHMARKS["audioset"], "train")]
    kept = set(select_capped(labels, cap, seed))
    with (
        atomic_path(target) as partial,
        source.open(encoding="utf-8-sig") as lines,
        partial.open("w", encoding="utf-8") as file,
    ):
        file.write(f"# {len(kept)} of the {len(labels)} clips of {source.name}, at most {cap} per class, seed {seed}\n")
        clips = (line for line in lines if line.strip() and not line.startswith("#"))
        file.writelines(line for number, line in enumerate(clips) if number in kept)
    return len(kept), len(labels)


def count_labels(segments: str | os.PathLike) -> np.ndarray:
    """Counts the clips of each of the 527 classes in an AudioSet segments CSV, int64 [527]."""
    record = BENCHMARKS["audioset"]
    labels = [label for row in read_annotations(Path(segments), record, "train") for label in row.values["labels"]]
    return np.bincount(labels, minlength=len(record.label_names("labels")))


def draw_selection(
    segments: str | os.PathLike, output: str | os.PathLike, chart: str | os.PathLike, *, cap: int | None = None
) -> Path:
    """Draws the class counts of a segments CSV and of its selection (MBT supplementary F, figure 5).

    Args:
        segments, output: the files that `write_selection` read and wrote.
        chart: the PNG file to write; the counts go to `<stem>.csv` in the same folder.
        cap: drawn as a line.

    Returns:
        the path of the CSV file (class, clips before, clips after).

    Raises:
        FileExistsError: the CSV file would overwrite `segments` or `output`.
    """
    from ...visualization.histograms import class_histogram  # needs matplotlib

    source, target, chart = Path(segments), Path(output), Path(chart)
    if chart.with_suffix(".csv").resolve() in (source.resolve(), target.resolve()):
        raise FileExistsError(
            f"{chart}: its table {chart.with_suffix('.csv')} would overwrite a list of clips; choose another name"
        )
    counts = {source.stem: count_labels(source), target.stem: count_labels(target)}
    return class_histogram(
        chart, counts, BENCHMARKS["audioset"].label_names("labels"), cap=cap, title="AudioSet: clips per class"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineErrors(
        prog="python -m hf_avfusion.data.selection",
        description="Select a roughly balanced part of an AudioSet segments CSV.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("segments", help="unbalanced_train_segments.csv")
    parser.add_argument("output", help="the CSV file to write, such as as500k_train_segments.csv")
    parser.add_argument("--cap", type=int, default=200_000, help="largest number of clips per class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order in which clips are drawn")
    parser.add_argument(
        "--histogram", help="PNG file for a chart of the class counts before and after; also writes them as a CSV file"
    )
    options = parser.parse_args(arguments)
    try:
        for name in filter(None, (options.output, options.histogram)):  # checked first, since reading takes minutes
            if not Path(name).parent.is_dir():
                raise FileNotFoundError(f"{name}: its folder does not exist; create it first")
        if (
            options.histogram
            and Path(options.histogram).with_suffix(".csv").resolve() == Path(options.output).resolve()
        ):
            raise ValueError(
                f"--histogram {options.histogram}: its CSV file would overwrite {options.output}; choose another name"
            )
        kept, total = write_selection(options.segments, options.output, cap=options.cap, seed=options.seed)
        print(f"wrote {kept} of {total} clips to {options.output}")
        if options.histogram:
            table = draw_selection(options.segments, options.output, options.histogram, cap=options.cap)
            print(f"wrote the class counts before and after to {options.histogram} and {table}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
