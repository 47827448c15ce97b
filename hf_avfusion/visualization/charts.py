"""Charts of evaluations: bars per class, ranked gains, lines over a setting, columns for a few groups."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which are distinct for most people with a colour vision deficiency.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "osD^vP"
BETTER, WORSE = COLOURS[0], COLOURS[4]
GREY = "#555555"
LINE = 34  # characters per line of a class name
WIDTH = 9.5  # inches
DPI = 110  # dots per inch
MIN_TICK_DISTANCE = 0.05  # of the axis; closer ticks of a line chart would overlap

# A number and its deviation; None if unknown.
Value = tuple[float | None, float | None]


def draw_bars(
    path: str | os.PathLike,
    names: Sequence[str],
    series: Mapping[str, Sequence[Value]],
    label: str,
    *,
    title: str = "",
) -> None:
    """Horizontal bars: a group per name from top to bottom, one bar per series, its deviation as a line.

    Args:
        path: PNG to write; its folder must exist.
        names: names of the groups; long names are wrapped.
        series: name -> one (value, deviation) per group. A value of None draws no bar, a deviation of None no line.
        label: label of the value axis, with its unit.
        title: heading, one or more lines.

    Raises:
        ValueError: no groups, no series, or a series with another length than the names.
    """
    _check_groups(names, series)
    bar = 0.15 if len(series) > 1 else 0.22
    group = max(bar * len(series) + 0.13, _name_height(names))
    figure = _figure(WIDTH, group * len(names) + 0.9, title, legend=len(series) > 1)
    axis = figure.subplots()
    thick = bar / group
    for number, (name, values) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * thick
        places = [place + shift for place, (value, _) in enumerate(values) if value is not None]
        known = [each for each in values if each[0] is not None]
        axis.barh(places, [value for value, _ in known], thick * 0.92, color=COLOURS[number], label=name, zorder=2)
        _draw_deviations(axis, places, known, horizontal=True)
    axis.set_yticks(range(len(names)), [_wrap_name(name) for name in names], fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(left=0)
    _style_axis(axis, "x")
    axis.set_xlabel(label)
    _legend(figure, axis, series)
    figure.savefig(os.fspath(path), dpi=DPI, format="png")


def draw_ranked_bars(
    path: str | os.PathLike,
    panels: Mapping[str, Sequence[tuple[str, float]]],
    label: str,
    *,
    title: str = "",
) -> None:
    """Panels side by side with horizontal bars from top to bottom, each with its number; negative bars have another colour.

    Args:
        panels: heading -> (name, value) from top to bottom. Other arguments: as in `draw_bars`.

    Raises:
        ValueError: no panels, or one without bars.
    """
    if not panels or not all(panels.values()):
        empty = [name for name, bars in panels.items() if not bars] or "no panels"
        raise ValueError(f"There is nothing to draw in {empty}. Give panels with at least one bar.")
    most = max(map(len, panels.values()))
    row = max(0.27, _name_height([name for bars in panels.values() for name, _ in bars]))
    figure = _figure(WIDTH if len(panels) == 1 else 1.45 * WIDTH, row * most + 1.3, title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (heading, bars) in zip(axes, panels.items()):
        values = [value for _, value in bars]
        axis.barh(range(len(bars)), values, 0.72, color=[BETTER if v >= 0 else WORSE for v in values], zorder=2)
        low, high = min(0.0, *values), max(0.0, *values)
        room = 0.16 * (high - low or 1.0)  # for the numbers
        axis.set_xlim(low - (room if low < 0 else 0), high + room)
        for place, value in enumerate(values):
            text = {"ha": "left" if value >= 0 else "right", "va": "center", "fontsize": 8, "color": GREY}
            text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # over the grid
            offset = room * (0.08 if value >= 0 else -0.08)
            axis.text(value + offset, place, f"{value:+.1f}", **text)
        axis.axvline(0, color=GREY, linewidth=0.8, zorder=3)
        axis.set_yticks(range(len(bars)), [_wrap_name(name) for name, _ in bars], fontsize=9)
        axis.set_ylim(most - 0.5, -0.5)
        _style_axis(axis, "x")
        axis.set_xlabel(label)
        axis.set_title(heading, fontsize=10, loc="left")
    figure.savefig(os.fspath(path), dpi=DPI, format="png")


def draw_lines(
    path: str | os.PathLike,
    series: Mapping[str, Sequence[tuple[float, float, float | None]]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    ticks: Mapping[float, str] | None = None,
) -> None:
    """Lines through the points of each series, with deviations. Ticks are at the points. If they would overlap, the points are
    placed at equal distances, and the axis label states it.

    Args:
        series: name -> (x, y, deviation of y or None). ticks: text instead of the number at some x.
        Other arguments: as in `draw_bars`.

    Raises:
        ValueError: no series, or a series without points.
    """
    if not series or not all(series.values()):
        raise ValueError("There is nothing to draw. Give at least one series, each with at least one point.")
    figure = _figure(7.6, 4.3, title, legend=len(series) > 1)
    axis = figure.subplots()
    values, lowest = sorted({point[0] for points in series.values() for point in points}), []
    nearest = min((after - before for before, after in pairwise(values)), default=0.0)
    to_scale = nearest >= MIN_TICK_DISTANCE * (values[-1] - values[0])
    place_of = {value: value if to_scale else number for number, value in enumerate(values)}
    places = list(place_of.values())
    for number, (name, points) in enumerate(series.items()):
        x, y, deviation = zip(*points)
        deviates = any(each is not None for each in deviation)
        # Deviations of several series must not cover each other.
        shift = (number - (len(series) - 1) / 2) * 0.012 * (max(places) - min(places)) * deviates
        x = [place_of[each] + shift for each in x]
        style = {"color": COLOURS[number], "marker": MARKERS[number], "label": name, "linewidth": 1.8, "markersize": 6}
        if deviates:
            axis.errorbar(x, y, [each or 0.0 for each in deviation], capsize=3, elinewidth=1, **style)
        else:
            axis.plot(x, y, **style)
        lowest += [value - (error or 0.0) for value, error in zip(y, deviation)]
    axis.set_xticks(places, [(ticks or {}).get(value, f"{value:g}") for value in values])
    axis.set_xmargin(0.08)
    axis.set_ymargin(0.12)
    if min(lowest) < 0 <= min(point[1] for points in series.values() for point in points):
        axis.set_ylim(bottom=0)  # shares are never negative, whatever their deviation
    _style_axis(axis, "both")
    axis.set_xlabel(xlabel if to_scale else f"{xlabel}, not to scale")
    axis.set_ylabel(ylabel)
    _legend(figure, axis, series)
    figure.savefig(os.fspath(path), dpi=DPI, format="png")


def draw_columns(
    path: str | os.PathLike,
    names: Sequence[str],
    series: Mapping[str, Mapping[str, Value]],
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
) -> None:
    """Vertical columns: a group per name from left to right, one column per series, with its number above.

    Args:
        series: name -> {group: (value, deviation)}; missing groups have no column.
        Other arguments: as in `draw_bars`.

    Raises:
        ValueError: no groups or no series.
    """
    if not names or not series:
        raise ValueError("There is nothing to draw. Give at least one group and one series.")
    figure = _figure(max(5.6, 1.1 + len(names) * (0.62 * len(series) + 0.5)), 4.3, title, legend=len(series) > 1)
    axis = figure.subplots()
    thick = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        known = [(place, values[group]) for place, group in enumerate(names) if group in values]
        places = [place + (number - (len(series) - 1) / 2) * thick for place, _ in known]
        axis.bar(places, [value for _, (value, _) in known], thick * 0.9, color=COLOURS[number], label=name, zorder=2)
        _draw_deviations(axis, places, [value for _, value in known], horizontal=False)
        for place, (_, (value, deviation)) in zip(places, known):
            text = {"ha": "center", "va": "bottom", "fontsize": 9, "color": GREY, "textcoords": "offset points"}
            axis.annotate(f"{value:.1f}", (place, value + (deviation or 0.0)), (0, 2), **text)
    axis.set_xticks(range(len(names)), [_wrap_name(name) for name in names])
    axis.set_ymargin(0.12)
    axis.set_ylim(bottom=0)
    _style_axis(axis, "y")
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    _legend(figure, axis, series)
    figure.savefig(os.fspath(path), dpi=DPI, format="png")


def _check_groups(names: Sequence[str], series: Mapping[str, Sequence[Value]]) -> None:
    if not names or not series:
        raise ValueError("There is nothing to draw. Give at least one group and one series.")
    for name, values in series.items():
        if len(values) != len(names):
            raise ValueError(f"The series {name!r} holds {len(values)} values for {len(names)} groups.")


def _figure(width: float, height: float, title: str, legend: bool = False) -> Figure:
    """A figure with space for its heading, which is wrapped."""
    # Imported here, because importing the package must not need matplotlib. No pyplot: it would change the caller's
    # global state.
    from matplotlib.figure import Figure

    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, int(width * 11.5))]
    figure = Figure(figsize=(width, height + 0.2 * len(lines) + 0.3 * legend), layout="constrained")
    if lines:
        figure.suptitle(_escape_dollars("\n".join(lines)), fontsize=11, x=0.01, ha="left")
    return figure


def _draw_deviations(axis: Axes, places: Sequence[float], values: Sequence[Value], horizontal: bool) -> None:
    for place, (value, deviation) in zip(places, values):
        if deviation is not None:
            along, error = ((value, place), "xerr") if horizontal else ((place, value), "yerr")
            axis.errorbar(*along, **{error: deviation}, color=GREY, linewidth=1, capsize=1.5, zorder=3)


def _wrap_name(name: str) -> str:
    return _escape_dollars("\n".join(textwrap.wrap(name, LINE)) or name)


def _name_height(names: Sequence[str]) -> float:
    """Height in inches of the tallest name after wrapping."""
    return 0.16 * max(_wrap_name(name).count("\n") + 1 for name in names) + 0.04


def _escape_dollars(text: str) -> str:
    """Escapes dollar signs, which matplotlib would parse as formulas."""
    return text.replace("$", r"\$")


def _style_axis(axis: Axes, grid: str) -> None:
    axis.grid(axis=grid, color="#DDDDDD", linewidth=0.8, zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, axis: Axes, series: Mapping) -> None:
    if len(series) > 1:
        handles, labels = axis.get_legend_handles_labels()
        found = dict(zip(labels, handles))  # matplotlib lists lines with deviations last
        figure.legend(
            [found[name] for name in series],
            list(series),
            loc="outside lower center",
            ncols=len(series),
            frameon=False,
            fontsize=9,
        )
