r"""AudioSet's AS-500K: a roughly balanced part of the unbalanced training set, drawn greedily under a cap per class.

    python -m hf_avfusion.data.selection unbalanced_train_segments.csv as500k_train_segments.csv --cap 200000 --seed 0 \
        --histogram as500k.png

MBT supplementary F caps every class at 200K clips and arrives at 508,994; neither its order of drawing nor its list was
published, so a selection made here is of the same kind, not the same clips.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .annotations import read_annotations
from .records import BENCHMARKS


def select_capped(labels: Sequence[Sequence[int]], cap: int, seed: int = 0) -> list[int]:
    """Indices, ascending, of clips drawn in a seeded order; one is kept if none of its classes has `cap` clips yet.

    Args:
        labels: class indices of each clip.
        cap: most clips of a class, at least 1.
        seed: of the order.
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
    """Writes the selected lines of an AudioSet segments csv, in its order, to a file of the same format.

    Returns:
        how many clips were selected, and of how many.

    Raises:
        ValueError: for a line that cannot be read. FileExistsError: if `output` exists.
    """
    source, target = Path(segments), Path(output)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    labels = [row.values["labels"] for row in read_annotations(source, BENCHMARKS["audioset"], "train")]
    kept = set(select_capped(labels, cap, seed))
    part = target.with_name(target.name + ".partial")
    with source.open(encoding="utf-8-sig") as lines, part.open("w", encoding="utf-8") as file:
        file.write(f"# {len(kept)} of the {len(labels)} clips of {source.name}, at most {cap} per class, seed {seed}\n")
        clips = (line for line in lines if line.strip() and not line.startswith("#"))
        file.writelines(line for number, line in enumerate(clips) if number in kept)
    os.replace(part, target)  # there whole or not at all
    return len(kept), len(labels)


def count_labels(segments: str | os.PathLike) -> np.ndarray:
    """Number of clips of each of the 527 classes in an AudioSet segments csv, int64 [527]."""
    record = BENCHMARKS["audioset"]
    labels = [label for row in read_annotations(Path(segments), record, "train") for label in row.values["labels"]]
    return np.bincount(labels, minlength=len(record.label_names("labels")))


def draw_selection(
    segments: str | os.PathLike, output: str | os.PathLike, picture: str | os.PathLike, *, cap: int | None = None
) -> Path:
    """Draws the classes of a segments csv and of the selection from it (MBT supplementary F, figure 5).

    Args:
        segments, output: as `write_selection` read and wrote them. picture: PNG to write. cap: drawn as a line.

    Returns:
        the path of the table that lies beside the picture (`<stem>.csv`: class, clips before, clips after).

    Raises:
        FileExistsError: when that table would overwrite one of the two files.
    """
    from ...visualization.histograms import class_histogram  # needs matplotlib

    source, target, picture = Path(segments), Path(output), Path(picture)
    if picture.with_suffix(".csv").resolve() in (source.resolve(), target.resolve()):
        raise FileExistsError(f"{picture}: the table beside it would overwrite a list of clips; give it another name")
    counts = {source.stem: count_labels(source), target.stem: count_labels(target)}
    return class_histogram(
        picture, counts, BENCHMARKS["audioset"].label_names("labels"), cap=cap, title="AudioSet: clips per class"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hf_avfusion.data.selection",
        description="Select a roughly balanced part of an AudioSet segments csv.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("segments", help="unbalanced_train_segments.csv")
    parser.add_argument("output", help="the csv to write, such as as500k_train_segments.csv")
    parser.add_argument("--cap", type=int, default=200_000, help="most clips of a class")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which clips are drawn")
    parser.add_argument("--histogram", help="PNG of the classes before and after; their numbers in a csv beside it")
    options = parser.parse_args(arguments)
    try:
        for name in filter(None, (options.output, options.histogram)):  # before the minutes that reading takes
            if not Path(name).parent.is_dir():
                raise FileNotFoundError(f"{name}: its folder does not exist")
        if (
            options.histogram
            and Path(options.histogram).with_suffix(".csv").resolve() == Path(options.output).resolve()
        ):
            raise ValueError(f"--histogram {options.histogram}: the csv beside it would be {options.output} itself")
        kept, total = write_selection(options.segments, options.output, cap=options.cap, seed=options.seed)
        print(f"{kept} of {total} clips in {options.output}")
        if options.histogram:
            table = draw_selection(options.segments, options.output, options.histogram, cap=options.cap)
            print(f"classes before and after in {options.histogram} and {table}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
