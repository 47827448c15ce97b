"""The Markdown table of a report, and the text for metrics and settings in tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..files import markdown_table
from ..tasks import task_of_results
from ..tasks.task import ShownMetric
from .summaries import frozen

MODALITY_NAMES = {"av": "audio and video", "a": "audio only", "v": "video only"}
SAMPLING_NAMES = {"spread": "evenly spaced", "sync": "synchronous, random", "async": "asynchronous, random"}


def markdown(results: Mapping[str, Any]) -> str:
    """The summary as a table with a short heading."""
    summary, about = results["summary"], results["benchmark"]
    several = len({frozen(row["settings"]) for row in summary}) > 1
    show = task_of_results(about).show_metric
    shown = {name: show(name) for row in summary for name in row["metrics"]}
    columns = [*(["model"] if several else []), "given", "span of the frames", "windows", "views", "clips", "runs"]
    lines = [f"# {about['title']}, {about['split']}", ""]
    partitions = sorted({each["partition"] for each in results["evaluations"] if each.get("partition")})
    if partitions:
        which = "Mean over the test clips of" if len(partitions) > 1 else "Only"
        lines += [f"{which} {', '.join(partitions)}.", ""]
    if not several and summary:
        lines += [f"Model: {settings_text(summary[0]['settings'], trained=True)}.", ""]
    covered = about["coverage"]
    if covered.get("present") is not None:
        expected = f" of {covered['expected']}" if covered.get("expected") is not None else ""
        vanished = f"; {covered['vanished']} annotated clips are missing" if covered.get("vanished") else ""
        which = f" of {clips_of}" if (clips_of := about.get("partition")) else ""
        lines += [f"Coverage{which}: {covered['present']}{expected} clips{vanished}.", ""]
    table = []
    for row in summary:
        cells = [settings_text(row["settings"], trained=True) + _differences(row, summary)] if several else []
        crops = f" x {row['crops']} crops" if row["crops"] > 1 else ""
        cells += [
            MODALITY_NAMES[row["given"]], span_text(row["span"]), SAMPLING_NAMES[row["sampling"]], f"{row['views']}{crops}",
            _counted(row), str(row["n"]),
        ]  # fmt: skip
        values = row["metrics"]
        cells += [metric_value(metric, values[name]) if name in values else "" for name, metric in shown.items()]
        table.append(cells)
    lines.append(markdown_table([*columns, *map(metric_text, shown.values())], table, aligned=True))
    std_note = "Mean ± sample standard deviation over runs. " if any(row["n"] > 1 for row in summary) else ""
    made_by = f"hf_avfusion {results['versions']['hf_avfusion']}, commit {results['commit'] or 'not known'}"
    lines += [
        "",
        f"{std_note}Aggregation over views: {_aggregations(summary)}. {_seeds(results)}; {made_by}.",
        "",
    ]
    return "\n".join(lines)


def metric_text(metric: ShownMetric) -> str:
    """The heading of a metric in a table, such as `top-1 verb (%)`."""
    return f"{metric.name} (%)" if metric.percent else metric.name


def axis_text(metric: ShownMetric) -> str:
    """The label of a metric at an axis, such as `top-1 accuracy, all heads together (%)`."""
    text = metric.axis or metric.name
    return f"{text} (%)" if metric.percent else text


def metric_value(metric: ShownMetric, value: Mapping[str, Any]) -> str:
    """Mean and standard deviation, shares in per cent."""
    factor, digits = (100, 2) if metric.percent else (1, metric.digits)
    text = f"{factor * value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {factor * value['std']:.{digits or 1}f}"


def settings_text(settings: Mapping[str, Any], trained: bool = False) -> str:
    """`MBT, bottleneck fusion from layer 8 of 12, separate encoders`; `trained` adds the windows of the training."""
    parts = [str(settings["model_type"]).upper()]
    layer, layers = settings.get("fusion_layer"), settings.get("num_hidden_layers")
    if settings.get("modalities") is not None and len(settings["modalities"]) == 1:
        parts.append(f"{settings['modalities'][0]} stream only")
    elif settings.get("fusion") is not None:
        how = f"{settings['fusion'].replace('_', '-')} fusion from layer {layer} of {layers}"
        parts.append("late fusion" if layer == layers else how)
        parts.append("shared encoder" if settings.get("share_encoder") else "separate encoders")
    elif settings.get("encoder_strategy") is not None:
        parts.append(f"{settings['encoder_strategy'].replace('_', ' ')} encoding")
    if trained:
        parts.append(window_text(settings))
        parts += [] if settings["trained_synchronous"] else ["trained on asynchronous windows"]
    return ", ".join(parts)


def window_text(settings: Mapping[str, Any]) -> str:
    """The window of the training, such as `frames over 4 s`."""
    if settings["trained_span"] is None:
        return settings["trained_segments"]
    return f"frames over {settings['trained_span']:g} s"


def span_text(span: float | None) -> str:
    """The span of the frames of an evaluation; None is a model with segments."""
    return "whole clip" if span is None else f"{span:g} s"


# Settings that `settings_text` includes.
_TEXT_SETTINGS = (
    "model_type", "fusion", "fusion_layer", "share_encoder", "encoder_strategy", "num_hidden_layers", "modalities",
    "trained_span", "trained_synchronous", "trained_segments",
)  # fmt: skip


def _differences(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The settings in which a row differs from other rows with the same `settings_text`."""
    own, text = row["settings"], settings_text(row["settings"], trained=True)
    same_text = [
        dict(frozen(each["settings"])) for each in rows if settings_text(each["settings"], trained=True) == text
    ]
    names = [name for name in own if name not in _TEXT_SETTINGS and all(name in each for each in same_text)]
    return "".join(f", {name} {own[name]}" for name in names if len({each[name] for each in same_text}) > 1)


def _counted(row: Mapping[str, Any]) -> str:
    clips = "/".join(map(str, dict.fromkeys(row["clips"])))
    left_out = [
        f"{max(row[key])} {text}"
        for key, text in (("skipped", "skipped"), ("lacking", "without the modality"))
        if max(row[key])
    ]
    return clips + (f" ({', '.join(left_out)})" if left_out else "")


def _seeds(results: Mapping[str, Any]) -> str:
    """The seeds of random windows. Evaluations of earlier results may have other seeds."""
    random_seeds = {each["seed"] for each in results["evaluations"] if each["sampling"] != "spread"}
    seeds = sorted(random_seeds or {results["seed"]})
    return f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _aggregations(summary: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row["aggregation"].replace("_", " of ") for row in summary))
