"""Summaries of the evaluations of several runs: mean and standard deviation of each metric."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tasks import Task


def summarise(evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row for each settings and condition, in the order of their first evaluation.

    A row holds the mean, the sample standard deviation (None for a single run) and the number of runs of each metric.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for each in evaluations:
        groups[(frozen(each["settings"]), each["given"], *condition(each))].append(each)
    rows = []
    for members in groups.values():
        first = members[0]
        kept = ("settings", "given", "span", "sampling", "views", "crops", "aggregation")
        metrics = {
            name: mean_and_std([each["metrics"][name] for each in members])
            for name in first["metrics"]
            if all(name in each["metrics"] for each in members)
        }
        counts = {name: [each[name] for each in members] for name in ("clips", "skipped", "lacking")}
        runs = {"runs": [each["checkpoint"] for each in members], "n": len(members)}
        rows.append({**{name: first[name] for name in kept}, **runs, **counts, "metrics": metrics})
    return rows


def mean_and_std(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation (n - 1; None for one value) and n."""
    finite = all(math.isfinite(value) for value in values)
    # A perfect model has an infinite d-prime, for which `stdev` fails.
    deviation = None if len(values) < 2 else stdev(values) if finite else math.nan
    return {"mean": mean(values), "std": deviation, "n": len(values)}


def headline(task: Task, metrics: Mapping[str, Any]) -> str | None:
    """The name of the main metric (`Task.headline`); None without metrics."""
    return next((name for name in (*task.headline, *metrics) if name in metrics), None)


def condition(each: Mapping[str, Any]) -> tuple:
    """The condition of an evaluation. Only evaluations under the same condition are averaged."""
    return tuple(each[name] for name in ("span", "sampling", "views", "crops", "aggregation"))


def frozen(settings: Mapping[str, Any]) -> tuple:
    """The settings as a hashable value."""
    return tuple((name, tuple(v) if isinstance(v := settings[name], list) else v) for name in sorted(settings))
