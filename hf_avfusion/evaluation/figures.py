"""The figures of a report: the rows of their CSV files, and functions that draw them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..tasks import task_of_results
from ..tasks.task import ShownMetric
from ..visualization.charts import draw_bars, draw_columns, draw_lines, draw_ranked_bars
from .summaries import frozen, headline, mean_and_std
from .tables import MODALITY_NAMES, SAMPLING_NAMES, axis_text, settings_text, window_text


class _Measure(NamedTuple):
    """The metric that a figure shows."""

    name: str
    shown: ShownMetric

    def value(self, row: Mapping[str, Any]) -> tuple[float, float | None]:
        """Mean and standard deviation of a row, shares in per cent."""
        value, factor = row["metrics"][self.name], 100 if self.shown.percent else 1
        return factor * value["mean"], None if value["std"] is None else factor * value["std"]


def figures(
    results: Mapping[str, Any], top_classes: int = 30
) -> dict[str, tuple[list[dict[str, Any]], Callable[[Path], None]]]:
    """File name -> rows of its CSV and a function that draws it. Rows are empty if the evaluations do not hold the data."""
    evaluations = results["evaluations"]
    if not evaluations:
        return {}

    def same_views(row: Mapping[str, Any]) -> bool:  # results of an earlier run may have other views
        return all(row[name] == evaluations[0][name] for name in ("views", "crops", "aggregation"))

    evaluations, summary = list(filter(same_views, evaluations)), list(filter(same_views, results["summary"]))
    first = frozen(evaluations[0]["settings"])
    own = [each for each in evaluations if frozen(each["settings"]) == first]
    first_rows = [row for row in summary if frozen(row["settings"]) == first]
    about = f"{results['benchmark']['title']} {results['benchmark']['split']}"
    model = settings_text(evaluations[0]["settings"])
    number = max(row["n"] for row in first_rows)
    runs_text = f"\nmean of {number} runs" if number > 1 else ""
    std_text = f"{runs_text}, lines: ± standard deviation" if number > 1 else ""
    found = {}
    per_class = {
        head: names for head, names in results["classes"].items() if all(head in each["per_class"] for each in own)
    }
    for head, names in per_class.items():
        suffix = f"_{head}" if len(results["classes"]) > 1 else ""
        rows = _class_rows(own, head, names)
        title_of_head = f"{about}{', ' + head if suffix else ''}: {model}"
        found[f"per_class_ap{suffix}"] = (rows, _per_class(rows, title_of_head + std_text, top_classes))
        gains = [row for row in rows if row.get("gain_over_a") is not None or row.get("gain_over_v") is not None]
        found[f"fusion_gain{suffix}"] = (gains, _gain(gains, title_of_head + runs_text, top_classes))
    task = task_of_results(results["benchmark"])
    name = headline(task, evaluations[0]["metrics"])
    if name is None:
        return found
    metric = _Measure(name, task.show_metric(name))

    spans = [row for row in first_rows if row["sampling"] == "spread" and row["span"] is not None]
    title = f"{about}: {model}"
    found["span_sweep"] = _sweep(spans, lambda row: row["span"], metric, title, "span of the frames (s)", "span_s")
    random_windows = [row for row in first_rows if row["sampling"] != "spread"]
    found["sampling"] = _choices(random_windows, lambda row: row["sampling"], metric, title, "windows", SAMPLING_NAMES)

    # Models with different training, each evaluated with the span of its training.
    as_trained = [
        row for row in summary if row["sampling"] == "spread" and row["span"] == row["settings"]["trained_span"]
    ]
    rows = _group_by_span(as_trained)
    found["trained_span"] = _sweep(
        rows, lambda row: row["span"], metric, f"{_model_title(about, rows)}, a model for each span",
        "span of the frames in training and test (s)", "span_s",
    )  # fmt: skip
    rows = _largest_group(as_trained, "trained_synchronous")
    found["trained_sampling"] = _choices(
        rows, lambda row: "sync" if row["settings"]["trained_synchronous"] else "async",
        metric, f"{_model_title(about, rows)}, a model for each sampling", "windows in training", SAMPLING_NAMES,
    )  # fmt: skip
    found["weight_sharing"] = _sharing(as_trained, metric, about)
    return found


def _class_rows(own: Sequence[Mapping[str, Any]], head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class with a positive clip, best first: positives, mean and deviation of AP per modality set, gains."""
    as_trained = [
        each for each in own if each["sampling"] == "spread" and each["span"] == each["settings"]["trained_span"]
    ]
    given = list(dict.fromkeys(each["given"] for each in as_trained))
    rows = []
    for index, name in enumerate(names):
        row: dict[str, Any] = {"class": name, "positives": 0}
        for each in given:
            scores = [run["per_class"][head] for run in as_trained if run["given"] == each]
            values = [run["average_precision"][index] for run in scores]
            row["positives"] = max(row["positives"], *(run["positives"][index] for run in scores))
            known = [value for value in values if not math.isnan(value)]
            precision = mean_and_std(known) if known else {"mean": None, "std": None, "n": 0}
            row |= {f"ap_{each}": precision["mean"], f"ap_{each}_std": precision["std"], f"ap_{each}_n": precision["n"]}
        for each in ("a", "v"):
            both = (row.get("ap_av"), row.get(f"ap_{each}"))
            if "av" in given and each in given:
                row[f"gain_over_{each}"] = None if None in both else both[0] - both[1]
        if row["positives"]:
            rows.append(row)
    best = f"ap_{'av' if 'av' in given else given[0]}" if given else ""
    return sorted(rows, key=lambda row: -(row[best] if row[best] is not None else -1.0))


def _per_class(rows: Sequence[Mapping[str, Any]], title: str, top: int) -> Callable[[Path], None]:
    shown = rows[:top]
    series = {
        MODALITY_NAMES[each]: [(row[f"ap_{each}"], row[f"ap_{each}_std"]) for row in shown]
        for each in MODALITY_NAMES
        if rows and f"ap_{each}" in rows[0]
    }
    note = f"the {len(shown)} best of {len(rows)} classes" if len(rows) > len(shown) else f"{len(rows)} classes"
    return lambda path: draw_bars(
        path, [row["class"] for row in shown], _percent(series), "average precision of the class against the rest (%)",
        title=f"{title}\n{note}",
    )  # fmt: skip


def _gain(rows: Sequence[Mapping[str, Any]], title: str, top: int) -> Callable[[Path], None]:
    panels = {}
    for each in ("a", "v"):
        known = [row for row in rows if row.get(f"gain_over_{each}") is not None]
        if not known:
            continue
        known.sort(key=lambda row: -row[f"gain_over_{each}"])
        better = sum(row[f"gain_over_{each}"] > 0 for row in known)
        heading = f"over {MODALITY_NAMES[each]}: better in {better} of {len(known)} classes"
        heading += f"\n(the {top} largest gains)" if len(known) > top else ""
        panels[heading] = [(row["class"], 100 * row[f"gain_over_{each}"]) for row in known[:top]]
    return lambda path: draw_ranked_bars(
        path, panels, "gain in average precision (percentage points)", title=f"Gain of both modalities. {title}"
    )


def _sweep(rows, value_of, metric, title, label, column):
    """A figure with one line per modality set over the number `value_of(row)`; empty if all rows have the same number."""
    if len({value_of(row) for row in rows}) < 2:
        return [], lambda path: None
    rows = sorted(rows, key=lambda row: (list(MODALITY_NAMES).index(row["given"]), value_of(row)))
    series = defaultdict(list)
    for row in rows:
        series[MODALITY_NAMES[row["given"]]].append((value_of(row), *metric.value(row)))
    title += _runs_text(rows) + _given_text(series)
    table = [{column: value_of(row), "given": row["given"], **_metric_cells(row)} for row in rows]
    return table, lambda path: draw_lines(path, series, label, axis_text(metric.shown), title=title)


def _choices(rows, value_of, metric, title, label, names):
    """A figure with one column per modality set for each name `value_of(row)`; empty if there is only one name."""
    chosen = list(dict.fromkeys(value_of(row) for row in rows))
    if len(chosen) < 2:
        return [], lambda path: None
    series: dict[str, dict[str, tuple]] = defaultdict(dict)
    for row in rows:
        series[MODALITY_NAMES[row["given"]]][names[value_of(row)]] = metric.value(row)
    title += _runs_text(rows) + _given_text(series)
    table = [{"windows": value_of(row), "given": row["given"], **_metric_cells(row)} for row in rows]
    return table, lambda path: draw_columns(
        path, [names[each] for each in chosen], series, label, axis_text(metric.shown), title=title
    )


def _model_title(about: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Title with the common settings of the models."""
    return f"{about}: {settings_text(rows[0]['settings'])}" if rows else about


def _runs_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The number of runs of each point, and the meaning of the error bars."""
    least, most = min(row["n"] for row in rows), max(row["n"] for row in rows)
    number = most if least == most else f"{least} to {most}"
    return f"\nmean of {number} runs, lines: ± standard deviation" if most > 1 else ""


def _given_text(series: Mapping[str, Any]) -> str:
    """The modality set, if there is only one and hence no legend."""
    return f"\ngiven {next(iter(series))}" if len(series) == 1 else ""


def _sharing(as_trained, metric, about):
    """Separate and shared encoders by fusion layer, for the largest available modality set."""
    rows = _largest_group(
        [row for row in as_trained if row["settings"].get("fusion_layer") is not None], "fusion_layer", "share_encoder"
    )
    best = next((each for each in MODALITY_NAMES if any(row["given"] == each for row in rows)), None)
    rows = [row for row in rows if row["given"] == best]
    settings = [row["settings"] for row in rows]
    if len({(each["fusion_layer"], each["share_encoder"]) for each in settings}) < 2:
        return [], lambda path: None
    rows = sorted(rows, key=lambda row: (row["settings"]["share_encoder"], row["settings"]["fusion_layer"]))
    series, table = defaultdict(list), []
    for row in rows:
        layer, shared = row["settings"]["fusion_layer"], row["settings"]["share_encoder"]
        encoders = "one encoder shared by both streams" if shared else "an encoder for each stream"
        series[encoders].append((layer, *metric.value(row)))
        table.append({"fusion_layer": layer, "share_encoder": shared, "given": row["given"], **_metric_cells(row)})
    layers = settings[0]["num_hidden_layers"]
    ticks = {layers: f"{layers}\n(late)", 0: "0\n(early)"}
    model = f"{str(settings[0]['model_type']).upper()}, {window_text(settings[0])}"
    title = f"{about}: {model}, weight sharing by fusion layer{_runs_text(rows)}\ngiven {MODALITY_NAMES[best]}"
    return table, lambda path: draw_lines(
        path, series, "first layer that exchanges information", axis_text(metric.shown), title=title, ticks=ticks
    )


def _group_by_span(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of models that differ only in the span of their training.

    The length of the audio (MBT), or the length of the audio and the number of frames, may grow with the span, if there is
    only one model for each span.
    """
    for others in ((), ("spectrogram_length",), ("num_frames", "spectrogram_length")):
        group = _largest_group(rows, "trained_span", *others)
        points = {(row["given"], row["settings"]["trained_span"]) for row in group}
        if len({span for _, span in points}) > 1 and len(points) == len(group):
            return group
    return []


def _largest_group(rows: Sequence[Mapping[str, Any]], *fields: str) -> list[Mapping[str, Any]]:
    """The largest group of rows whose settings differ only in `fields`.

    The largest group is the one with the most different values; if several are equal, the first. One line of a figure must
    not join rows of different groups.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[frozen({name: value for name, value in row["settings"].items() if name not in fields})].append(row)
    return max(
        groups.values(),
        key=lambda each: len({tuple(row["settings"].get(name) for name in fields) for row in each}),
        default=[],
    )


def _metric_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {}
    for name, value in row["metrics"].items():
        cells |= {name: value["mean"], f"{name}_std": value["std"]}
    return {**cells, "runs": row["n"], "clips": "/".join(map(str, row["clips"])), "views": row["views"] * row["crops"]}


def _percent(series: Mapping[str, list[tuple]]) -> dict[str, list[tuple]]:
    return {
        name: [tuple(None if number is None else 100 * number for number in value) for value in values]
        for name, values in series.items()
    }
