"""Clips per class before and after a selection, as a figure and as a table (MBT supplementary, section F, figure 5)."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..files import atomic_path

WIDTH, HEIGHT = 11.0, 5.2  # inches
DPI = 130  # dots per inch
COLOURS = ("#9aa5b1", "#d1495b", "#30638e", "#edae49")  # of the selections, in order
NUM_NAMED = 5  # classes listed at each end
MAX_NAME_LENGTH = 26


def class_histogram(
    path: str | os.PathLike,
    counts: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    *,
    cap: int | None = None,
    title: str = "",
) -> Path:
    """Writes a PNG with the number of clips per class, on a logarithmic scale, and the numbers to `<stem>.csv` next to it.

    Classes are sorted by their number in the first of `counts`, largest first. The other selections are drawn over it in the same
    order, so that each bar shows what a selection removed. Classes without clips have no bar; the legend states their number.

    Args:
        path: of the PNG; its folder must exist.
        counts: name of a selection -> number of clips of each class; a clip with several labels counts for each. One to four
            selections, such as {"all": ..., "AS-500K": ...}.
        class_names: one per class.
        cap: maximum number of clips per class; drawn as a line.
        title: heading.

    Returns:
        the path of the CSV: the class and one column per selection, in the order of the figure.

    Raises:
        ValueError: for no selection, more than four, or another number of counts than classes.
    """
    if not 1 <= len(counts) <= len(COLOURS):
        raise ValueError(f"counts must hold 1 to {len(COLOURS)} selections, got {len(counts)}")
    numbers = {name: np.asarray(values, dtype=np.int64) for name, values in counts.items()}
    for name, values in numbers.items():
        if values.shape != (len(class_names),) or values.size == 0 or values.min() < 0:
            raise ValueError(f"counts[{name!r}] must be {len(class_names)} numbers of clips, one per class")
    # Imported here, because importing the package must not need matplotlib. No pyplot: it would change the caller's
    # global state.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    first = next(iter(numbers.values()))
    order = np.argsort(-first, kind="stable")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(order) + 1) - 0.5
    for number, (name, values) in enumerate(numbers.items()):
        heights = values[order].astype(float)
        empty = int((values == 0).sum())
        label = f"{name}: {values.sum():,} labels" + (f", {empty} classes without a clip" if empty else "")
        # Steps instead of bars: with about 500 classes a bar is a pixel or two wide, and gaps between bars would flicker.
        axis.stairs(np.maximum(heights, 0.5), places, baseline=0.5, fill=True, color=COLOURS[number], label=label)
    if cap is not None:
        axis.axhline(cap, color="black", linewidth=1, linestyle="--", label=f"cap: {cap:,} clips of a class")
    top = max(int(values.max()) for values in numbers.values())
    axis.set_yscale("log")
    axis.set_ylim(0.5, 2.5 * max(top, cap or 0, 1))
    axis.set_xlim(places[0], places[-1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axis.grid(axis="y", color="black", alpha=0.12, linewidth=0.6)
    axis.set_axisbelow(False)
    axis.set_xlabel(f"{len(order)} classes, by their number of clips in {next(iter(numbers))}")
    axis.set_ylabel("clips (logarithmic)")
    axis.legend(loc="upper right", frameon=True, framealpha=0.92, edgecolor="none", fontsize=9)
    if len(order) > 4 * NUM_NAMED:
        axis.text(
            *(0.012, 0.03),
            f"most: {_listed(order[:NUM_NAMED], class_names, first)}\n"
            f"fewest: {_listed(order[::-1][:NUM_NAMED], class_names, first)}",
            transform=axis.transAxes,
            fontsize=7.5,
            bbox={"facecolor": "white", "alpha": 0.88, "edgecolor": "none", "pad": 3},
        )
    if title:
        axis.set_title(title, fontsize=12, fontweight="bold", loc="left")
    path = Path(path)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=DPI, format="png")
    table = path.with_suffix(".csv")
    with atomic_path(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("class", *numbers))
        writer.writerows((class_names[index], *(int(values[index]) for values in numbers.values())) for index in order)
    return table


def _listed(indices: Sequence[int], names: Sequence[str], counts: np.ndarray) -> str:
    return ", ".join(f"{_short(names[index])} ({counts[index]:,})" for index in indices)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1].rstrip() + "…"
