"""Evaluations of several runs put together: mean and spread of each metric."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def summarise(evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all runs of the same settings under the same condition: mean, sample standard deviation (None for a
    single run) and number of runs of each metric, in the order in which they first came.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for each in evaluations:
        groups[(frozen(each["settings"]), each["given"], *condition(each))].append(each)
    rows = []
    for members in groups.values():
        first = members[0]
        kept = ("settings", "given", "span", "sampling", "views", "crops", "aggregation")
        metrics = {
            name: spread([each["metrics"][name] for each in members])
            for name in first["metrics"]
            if all(name in each["metrics"] for each in members)
        }
        counts = {name: [each[name] for each in members] for name in ("clips", "skipped", "lacking")}
        runs = {"runs": [each["checkpoint"] for each in members], "n": len(members)}
        rows.append({**{name: first[name] for name in kept}, **runs, **counts, "metrics": metrics})
    return rows


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation (n - 1; None for one value) and n."""
    finite = all(math.isfinite(value) for value in values)
    deviation = None if len(values) < 2 else stdev(values) if finite else math.nan
    return {"mean": mean(values), "std": deviation, "n": len(values)}


def headline(metrics: Mapping[str, Any]) -> str:
    """The metric that a benchmark of this kind is known by: mAP, the joint accuracy of several heads, top-1, or the
    accuracy of all parts of the clips (event localisation).
    """
    return next(name for name in ("map", "top1_action", "top1_joint", "top1", "accuracy") if name in metrics)


def condition(each: Mapping[str, Any]) -> tuple:
    """Under what an evaluation was made: evaluations under another are not averaged with it."""
    return tuple(each[name] for name in ("span", "sampling", "views", "crops", "aggregation"))


def frozen(settings: Mapping[str, Any]) -> tuple:
    """The settings as something that can be compared and counted."""
    return tuple((name, tuple(v) if isinstance(v := settings[name], list) else v) for name in sorted(settings))
