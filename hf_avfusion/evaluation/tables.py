"""The table of a report, and how metrics and settings are worded in it and in the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .summaries import frozen

GIVEN_NAMES = {"av": "audio and video", "a": "audio only", "v": "video only"}
SAMPLING_NAMES = {"spread": "spread evenly", "sync": "synchronous, drawn", "async": "asynchronous, drawn"}
METRIC_NAMES = {
    "map": "mAP",
    "auc": "AUC",
    "d_prime": "d-prime",
    "classes_without_positives": "classes without positives",
    "accuracy": "accuracy of the parts",
}
# Settings that a run is trained with, as a report words them.
_TRAINED = ("trained_span", "trained_synchronous")


def markdown(results: Mapping[str, Any]) -> str:
    """The summary as a table, under a few lines that say of what it is."""
    summary, about = results["summary"], results["benchmark"]
    several = len({frozen(row["settings"]) for row in summary}) > 1
    names = list(dict.fromkeys(name for row in summary for name in row["metrics"]))
    columns = [*(["model"] if several else []), "given", "span of the frames", "windows", "views", "clips", "runs"]
    lines = [f"# {about['title']}, {about['split']}", ""]
    partitions = sorted({each["partition"] for each in results["evaluations"] if each.get("partition")})
    if partitions:
        whole = ", the mean of the test clips of each" if len(partitions) > 1 else " only"
        lines += [f"{', '.join(partitions)}{whole}.", ""]
    if not several and summary:
        lines += [f"Model: {settings_text(summary[0]['settings'], trained=True)}.", ""]
    covered = about["coverage"]
    if covered.get("present") is not None:
        expected = f" of {covered['expected']}" if covered.get("expected") is not None else ""
        vanished = f"; {covered['vanished']} annotated clips are not there" if covered.get("vanished") else ""
        which = f" of {clips_of}" if (clips_of := about.get("partition")) else ""
        lines += [f"Coverage{which}: {covered['present']}{expected} clips{vanished}.", ""]
    table = [[*columns, *map(metric_text, names)]]
    for row in summary:
        cells = [settings_text(row["settings"], trained=True) + _besides(row, summary)] if several else []
        crops = f" x {row['crops']} crops" if row["crops"] > 1 else ""
        cells += [
            GIVEN_NAMES[row["given"]], f"{row['span']:g} s", SAMPLING_NAMES[row["sampling"]], f"{row['views']}{crops}",
            _counted(row), str(row["n"]),
        ]  # fmt: skip
        cells += [metric_value(name, row["metrics"][name]) if name in row["metrics"] else "" for name in names]
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table)]
    table.insert(1, ["-" * width for width in widths])
    lines += ["| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |" for cells in table]
    spread_note = "Mean ± sample standard deviation over runs. " if any(row["n"] > 1 for row in summary) else ""
    made_by = f"hf_avfusion {results['versions']['hf_avfusion']}, commit {results['commit'] or 'not known'}"
    lines += [
        "",
        f"{spread_note}Scores of a clip's views: {_aggregations(summary)}. {_seeds(results)}; {made_by}.",
        "",
    ]
    return "\n".join(lines)


def metric_text(name: str) -> str:
    """`top1_verb` -> `top-1 verb (%)`."""
    head = name.split("_", 1)[1].replace("_", " ") if name.startswith("top") and "_" in name else ""
    text = METRIC_NAMES.get(name) or f"top-{name.split('_')[0].removeprefix('top')} {head}".strip()
    return f"{text} (%)" if in_percent(name) else text


def axis_text(name: str) -> str:
    """`top1_joint` -> `top-1 accuracy, all heads together (%)`."""
    if not name.startswith("top"):
        return metric_text(name)
    first, _, head = name.partition("_")
    which = {"": "", "joint": ", all heads together"}.get(head, f", {head}")
    return f"top-{first.removeprefix('top')} accuracy{which} (%)"


def metric_value(name: str, value: Mapping[str, Any]) -> str:
    """Mean and deviation; accuracies and mAP in per cent."""
    factor, digits = (100, 2) if in_percent(name) else (1, 0 if name == "classes_without_positives" else 3)
    text = f"{factor * value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {factor * value['std']:.{digits or 1}f}"


def settings_text(settings: Mapping[str, Any], trained: bool = False) -> str:
    """`MBT, bottleneck fusion from layer 8 of 12, separate encoders`, and with `trained` how its windows were."""
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
        parts.append(f"frames over {settings['trained_span']:g} s")
        parts += [] if settings["trained_synchronous"] else ["trained on asynchronous windows"]
    return ", ".join(parts)


# Settings that `settings_text` tells.
_TOLD = (
    "model_type", "fusion", "fusion_layer", "share_encoder", "encoder_strategy", "num_hidden_layers", "modalities", *_TRAINED,
)  # fmt: skip


def _besides(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What tells a row's settings from those of the rows that `settings_text` words alike."""
    own, text = row["settings"], settings_text(row["settings"], trained=True)
    alike = [dict(frozen(each["settings"])) for each in rows if settings_text(each["settings"], trained=True) == text]
    names = [name for name in own if name not in _TOLD and all(name in each for each in alike)]
    return "".join(f", {name} {own[name]}" for name in names if len({each[name] for each in alike}) > 1)


def _counted(row: Mapping[str, Any]) -> str:
    clips = "/".join(map(str, dict.fromkeys(row["clips"])))
    left_out = [
        f"{max(row[key])} {text}" for key, text in (("skipped", "skipped"), ("lacking", "without")) if max(row[key])
    ]
    return clips + (f" ({', '.join(left_out)})" if left_out else "")


def _seeds(results: Mapping[str, Any]) -> str:
    """Of the windows drawn by chance, which those of an earlier evaluation may have had another of."""
    drawn = {each["seed"] for each in results["evaluations"] if each["sampling"] != "spread"}
    seeds = sorted(drawn or {results["seed"]})
    return f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _aggregations(summary: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row["aggregation"].replace("_", " of ") for row in summary))


def in_percent(metric: str) -> bool:
    """Whether a metric is read in per cent."""
    return metric in ("map", "accuracy") or metric.startswith("top")
