"""What evaluations of checkpoints come to: results.json, a table in Markdown, and figures with their numbers as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..visualization.charts import draw_bars, draw_columns, draw_lines, draw_ranked_bars
from .runs import EvaluationSet

RESULTS = "results.json"
TABLE = "table.md"
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
_PACKAGES = ("hf_avfusion", "torch", "transformers", "accelerate", "datasets", "av", "numpy", "scikit-learn")


def make_results(
    clips: EvaluationSet, classes: Mapping[str, Sequence[str]], evaluations: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        clips: what was evaluated on; classes: head -> class names of the models.
        evaluations: of `evaluate_checkpoint`, of all checkpoints; seed: of windows drawn by chance.

    Raises:
        ValueError: a checkpoint comes twice under one condition, which would count it as two runs.
    """
    check_once(evaluations)
    benchmark = clips.describe()
    if evaluations and benchmark["coverage"].get("present", 0) is None:  # every pass goes over all clips
        counted = sum(evaluations[-1][name] for name in ("clips", "skipped", "lacking"))
        benchmark["coverage"] = {**benchmark["coverage"], "present": counted}
    return {
        "benchmark": benchmark,
        "classes": {head: list(names) for head, names in classes.items()},
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "summary": summarise(evaluations),
        "evaluations": list(evaluations),
    }


def check_once(evaluations: Iterable[Mapping[str, Any]]) -> None:
    """That no checkpoint comes twice under one condition; scores are not looked at, so plans can be checked too.

    The seed tells only windows drawn by chance apart: those that are spread are the same for every seed.

    Raises:
        ValueError: one does, and would count as two runs; the message names it and the condition.
    """
    seen: dict[tuple, Mapping[str, Any]] = {}
    for each in evaluations:
        key = _identity(each)
        if key in seen:
            names = " and ".join(dict.fromkeys((seen[key]["checkpoint"], each["checkpoint"])))
            seed = f", seed {each['seed']}" if each["sampling"] != "spread" else ""
            raise ValueError(
                f"{names}: the same checkpoint twice under the same condition ({GIVEN_NAMES[each['given']]}, {each['span']:g} "
                f"s, {SAMPLING_NAMES[each['sampling']]}, {each['views']} views{seed}), which would count as two runs: give each "
                "checkpoint once, and none that the results.json beside it holds already"
            )
        seen[key] = each


def all_done(planned: Iterable[Mapping[str, Any]], done: Iterable[Mapping[str, Any]]) -> bool:
    """Whether each of these plans is among the evaluations that are done: the same checkpoint under the same condition."""
    return {_identity(each) for each in planned} <= {_identity(each) for each in done}


def _identity(each: Mapping[str, Any]) -> tuple:
    seed = each["seed"] if each["sampling"] != "spread" else None
    return os.path.realpath(each["checkpoint"]), each["given"], *_condition(each), seed


def summarise(evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all runs of the same settings under the same condition: mean, sample standard deviation (None for a
    single run) and number of runs of each metric, in the order in which they first came.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for each in evaluations:
        groups[(_frozen(each["settings"]), each["given"], *_condition(each))].append(each)
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


def write_results(results: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """Writes results.json alone, whole or not at all: what is finished is not lost with what comes after it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / RESULTS, (json.dumps(plain(results), indent=1, allow_nan=False) + "\n").encode())


def write_report(results: Mapping[str, Any], folder: str | os.PathLike, top_classes: int = 30) -> list[Path]:
    """Writes results.json, table.md and every figure that the evaluations hold the numbers of, each with its CSV.

    Figures: `per_class_ap` (average precision of the `top_classes` best classes, as given both tracks or one), and
    `fusion_gain` (what both tracks give over each of them), for every head; `span_sweep`, `sampling` (one set of runs
    under several conditions); `weight_sharing`, `trained_span`, `trained_sampling` (runs that were trained
    differently). The first four are of the settings that come first, the means of its runs; each of the last three is of
    the largest set of settings that differ in what it shows alone.

    What an earlier report in the folder has of these and this one has not is removed.

    Returns:
        the files, in the order of writing. Each is written whole or not at all.

    Raises:
        ValueError: `top_classes` below 1.
    """
    if top_classes < 1:
        raise ValueError(f"top_classes must be at least 1, got {top_classes}")
    folder = Path(folder)
    written = [write_results(results, folder), _write(folder / TABLE, markdown(results).encode())]
    for name, (rows, draw) in figures(results, top_classes).items():
        if not rows:
            for kind in ("csv", "png"):  # of an earlier report in this folder, which results.json is no longer of
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
            continue
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        written.append(_write(folder / f"{name}.csv", table.getvalue().encode()))
        part = folder / f".{name}.png.part"
        draw(part)
        os.replace(part, folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


def is_results(path: str | os.PathLike) -> bool:
    """Whether a name is of results: a .json file, or a folder that holds results.json and no checkpoint."""
    path = Path(path)
    return path.suffix == ".json" or ((path / RESULTS).is_file() and not (path / "config.json").is_file())


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """A results.json (or the folder that holds one), to be put together with other evaluations.

    Raises:
        FileNotFoundError: there is none. ValueError: it is not one of this kind.
    """
    path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    wanted = {"benchmark", "classes", "evaluations"}
    if not isinstance(results, dict) or not wanted <= set(results):
        raise ValueError(f"{path} is no report of an evaluation: it lacks {', '.join(sorted(wanted - set(results)))}")
    for each in results["evaluations"]:
        each["metrics"] = {name: float(value) for name, value in each["metrics"].items()}
        for scores in each["per_class"].values():
            scores["average_precision"] = [
                math.nan if value is None else value for value in scores["average_precision"]
            ]
    return results


def check_same(
    results: Mapping[str, Any], path: str, clips: EvaluationSet, classes: Mapping[str, Sequence[str]]
) -> None:
    """That results read from a file are of the same clips and classes, or of another fold of a benchmark that has several.

    Raises:
        ValueError: they are not; the message says in what.
    """
    own = clips.describe()
    for field in ("name", "split", "variant", "columns", "num_segments"):
        if field == "variant" and clips.partition is not None:
            continue
        if results["benchmark"].get(field) != own[field]:
            raise ValueError(
                f"{path} was evaluated on another benchmark: its {field} is {results['benchmark'].get(field)!r}, here it is "
                f"{own[field]!r}"
            )
    if results["classes"] != {head: list(names) for head, names in classes.items()}:
        raise ValueError(
            f"{path} holds results of models with other heads or classes, which cannot be averaged with these"
        )


def versions() -> dict[str, str | None]:
    """Of this package, Python and what computes the numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from .. import __version__

            found[name] = __version__ if name == "hf_avfusion" else None
    return found


def commit() -> str | None:
    """The commit of the repository that this package lies in, with `+changes` where files differ from it; None where it
    was installed without one.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        changed = git("status", "--porcelain", "--", str(root / "hf_avfusion"))
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


# ------------------------------------------------------------------------------------------------------------ the table


def markdown(results: Mapping[str, Any]) -> str:
    """The summary as a table, under a few lines that say of what it is."""
    summary, about = results["summary"], results["benchmark"]
    several = len({_frozen(row["settings"]) for row in summary}) > 1
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
    return f"{text} (%)" if _in_percent(name) else text


def axis_text(name: str) -> str:
    """`top1_joint` -> `top-1 accuracy, all heads together (%)`."""
    if not name.startswith("top"):
        return metric_text(name)
    first, _, head = name.partition("_")
    which = {"": "", "joint": ", all heads together"}.get(head, f", {head}")
    return f"top-{first.removeprefix('top')} accuracy{which} (%)"


def metric_value(name: str, value: Mapping[str, Any]) -> str:
    """Mean and deviation; accuracies and mAP in per cent."""
    factor, digits = (100, 2) if _in_percent(name) else (1, 0 if name == "classes_without_positives" else 3)
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
    alike = [dict(_frozen(each["settings"])) for each in rows if settings_text(each["settings"], trained=True) == text]
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


# ---------------------------------------------------------------------------------------------------------- the figures


def figures(
    results: Mapping[str, Any], top_classes: int = 30
) -> dict[str, tuple[list[dict[str, Any]], Callable[[Path], None]]]:
    """File name -> rows of its CSV and a function that draws it; without rows where the evaluations do not hold them."""
    evaluations = results["evaluations"]
    if not evaluations:
        return {}

    def alike(row: Mapping[str, Any]) -> bool:  # results of an earlier time may be of other views
        return all(row[name] == evaluations[0][name] for name in ("views", "crops", "aggregation"))

    evaluations, summary = list(filter(alike, evaluations)), list(filter(alike, results["summary"]))
    first = _frozen(evaluations[0]["settings"])
    own = [each for each in evaluations if _frozen(each["settings"]) == first]
    of_first = [row for row in summary if _frozen(row["settings"]) == first]
    about = f"{results['benchmark']['title']} {results['benchmark']['split']}"
    model = settings_text(evaluations[0]["settings"])
    number = max(row["n"] for row in of_first)
    mean_of = f"\nmean of {number} runs" if number > 1 else ""
    lines = f"{mean_of}, lines: ± standard deviation" if number > 1 else ""
    found = {}
    for head, names in results["classes"].items():
        suffix = f"_{head}" if len(results["classes"]) > 1 else ""
        rows = _class_rows(own, head, names)
        of_head = f"{about}{', ' + head if suffix else ''}: {model}"
        found[f"per_class_ap{suffix}"] = (rows, _per_class(rows, of_head + lines, top_classes))
        gains = [row for row in rows if row.get("gain_over_a") is not None or row.get("gain_over_v") is not None]
        found[f"fusion_gain{suffix}"] = (gains, _gain(gains, of_head + mean_of, top_classes))
    metric = headline(evaluations[0]["metrics"])

    spans = [row for row in of_first if row["sampling"] == "spread"]
    title = f"{about}: {model}"
    found["span_sweep"] = _sweep(spans, lambda row: row["span"], metric, title, "span of the frames (s)", "span_s")
    drawn = [row for row in of_first if row["sampling"] != "spread"]
    found["sampling"] = _choices(drawn, lambda row: row["sampling"], metric, title, "windows", SAMPLING_NAMES)

    # Runs that were trained differently, each as it was trained.
    plain = [row for row in summary if row["sampling"] == "spread" and row["span"] == row["settings"]["trained_span"]]
    alike = _of_spans(plain)
    found["trained_span"] = _sweep(
        alike, lambda row: row["span"], metric, f"{_about_them(about, alike)}, a model for each span",
        "span of the frames in training and test (s)", "span_s",
    )  # fmt: skip
    alike = _alike(plain, "trained_synchronous")
    found["trained_sampling"] = _choices(
        alike, lambda row: "sync" if row["settings"]["trained_synchronous"] else "async",
        metric, f"{_about_them(about, alike)}, a model for each sampling", "windows in training", SAMPLING_NAMES,
    )  # fmt: skip
    found["weight_sharing"] = _sharing(plain, metric, about)
    return found


def _class_rows(own: Sequence[Mapping[str, Any]], head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class that has a positive clip: positives, AP mean and deviation by what was given, gains; best first."""
    plain = [each for each in own if each["sampling"] == "spread" and each["span"] == each["settings"]["trained_span"]]
    given = list(dict.fromkeys(each["given"] for each in plain))
    rows = []
    for index, name in enumerate(names):
        row: dict[str, Any] = {"class": name, "positives": 0}
        for each in given:
            scores = [run["per_class"][head] for run in plain if run["given"] == each]
            values = [run["average_precision"][index] for run in scores]
            row["positives"] = max(row["positives"], *(run["positives"][index] for run in scores))
            known = [value for value in values if not math.isnan(value)]
            of_runs = spread(known) if known else {"mean": None, "std": None, "n": 0}
            row |= {f"ap_{each}": of_runs["mean"], f"ap_{each}_std": of_runs["std"], f"ap_{each}_n": of_runs["n"]}
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
        GIVEN_NAMES[each]: [(row[f"ap_{each}"], row[f"ap_{each}_std"]) for row in shown]
        for each in GIVEN_NAMES
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
        heading = f"over {GIVEN_NAMES[each]}: better in {better} of {len(known)} classes"
        heading += f"\n(the {top} largest gains)" if len(known) > top else ""
        panels[heading] = [(row["class"], 100 * row[f"gain_over_{each}"]) for row in known[:top]]
    return lambda path: draw_ranked_bars(
        path, panels, "gain in average precision (percentage points)", title=f"What both tracks gain. {title}"
    )


def _sweep(rows, of, metric, title, label, column):
    """Lines by what was given over a number; nothing where that number is the same everywhere."""
    if len({of(row) for row in rows}) < 2:
        return [], lambda path: None
    rows = sorted(rows, key=lambda row: (list(GIVEN_NAMES).index(row["given"]), of(row)))
    series = defaultdict(list)
    for row in rows:
        series[GIVEN_NAMES[row["given"]]].append((of(row), *_percent_of(row["metrics"][metric], metric)))
    title += _runs_text(rows) + _given_text(series)
    table = [{column: of(row), "given": row["given"], **_metric_cells(row)} for row in rows]
    return table, lambda path: draw_lines(path, series, label, axis_text(metric), title=title)


def _choices(rows, of, metric, title, label, names):
    """Columns by what was given over a few names; nothing where there is one name only."""
    chosen = list(dict.fromkeys(of(row) for row in rows))
    if len(chosen) < 2:
        return [], lambda path: None
    series: dict[str, dict[str, tuple]] = defaultdict(dict)
    for row in rows:
        series[GIVEN_NAMES[row["given"]]][names[of(row)]] = _percent_of(row["metrics"][metric], metric)
    title += _runs_text(rows) + _given_text(series)
    table = [{"windows": of(row), "given": row["given"], **_metric_cells(row)} for row in rows]
    return table, lambda path: draw_columns(
        path, [names[each] for each in chosen], series, label, axis_text(metric), title=title
    )


def _about_them(about: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What models of one kind have in common, for a heading."""
    return f"{about}: {settings_text(rows[0]['settings'])}" if rows else about


def _runs_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many runs stand behind the points, and what the lines at them are."""
    least, most = min(row["n"] for row in rows), max(row["n"] for row in rows)
    number = most if least == most else f"{least} to {most}"
    return f"\nmean of {number} runs, lines: ± standard deviation" if most > 1 else ""


def _given_text(series: Mapping[str, Any]) -> str:
    """What the model was given, where no legend says so."""
    return f"\ngiven {next(iter(series))}" if len(series) == 1 else ""


def _sharing(plain, metric, about):
    """Separate and shared encoders by fusion layer, as given the most."""
    rows = _alike(
        [row for row in plain if row["settings"].get("fusion_layer") is not None], "fusion_layer", "share_encoder"
    )
    best = next((each for each in GIVEN_NAMES if any(row["given"] == each for row in rows)), None)
    rows = [row for row in rows if row["given"] == best]
    settings = [row["settings"] for row in rows]
    if len({(each["fusion_layer"], each["share_encoder"]) for each in settings}) < 2:
        return [], lambda path: None
    rows = sorted(rows, key=lambda row: (row["settings"]["share_encoder"], row["settings"]["fusion_layer"]))
    series, table = defaultdict(list), []
    for row in rows:
        layer, shared = row["settings"]["fusion_layer"], row["settings"]["share_encoder"]
        value = _percent_of(row["metrics"][metric], metric)
        series["one encoder shared by both streams" if shared else "an encoder for each stream"].append((layer, *value))
        table.append({"fusion_layer": layer, "share_encoder": shared, "given": row["given"], **_metric_cells(row)})
    layers = settings[0]["num_hidden_layers"]
    ticks = {layers: f"{layers}\n(late)", 0: "0\n(early)"}
    of = f"{str(settings[0]['model_type']).upper()}, frames over {settings[0]['trained_span']:g} s"
    title = f"{about}: {of}, weight sharing by fusion layer{_runs_text(rows)}\ngiven {GIVEN_NAMES[best]}"
    return table, lambda path: draw_lines(
        path, series, "first layer that exchanges information", axis_text(metric), title=title, ticks=ticks
    )


def _of_spans(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of models for different spans, and alike in all else; or whose sound is as long as the span (MBT), or whose
    frames are as many more, as long as each span comes once.
    """
    for besides in ((), ("spectrogram_length",), ("num_frames", "spectrogram_length")):
        alike = _alike(rows, "trained_span", *besides)
        points = {(row["given"], row["settings"]["trained_span"]) for row in alike}
        if len({span for _, span in points}) > 1 and len(points) == len(alike):
            return alike
    return []


def _alike(rows: Sequence[Mapping[str, Any]], *but: str) -> list[Mapping[str, Any]]:
    """The rows whose settings differ in these fields alone: of several such sets, which no line may join, the one with the
    most different values, the first among equals.
    """
    sets: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        sets[_frozen({name: value for name, value in row["settings"].items() if name not in but})].append(row)
    return max(
        sets.values(),
        key=lambda each: len({tuple(row["settings"].get(name) for name in but) for row in each}),
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


def _percent_of(value: Mapping[str, Any], metric: str) -> tuple[float, float | None]:
    factor = 100 if _in_percent(metric) else 1
    return factor * value["mean"], None if value["std"] is None else factor * value["std"]


def _in_percent(metric: str) -> bool:
    return metric in ("map", "accuracy") or metric.startswith("top")


def _condition(each: Mapping[str, Any]) -> tuple:
    return tuple(each[name] for name in ("span", "sampling", "views", "crops", "aggregation"))


def _frozen(settings: Mapping[str, Any]) -> tuple:
    return tuple((name, tuple(v) if isinstance(v := settings[name], list) else v) for name in sorted(settings))


def plain(value: Any) -> Any:
    """As strict JSON can hold it: NaN (undefined) is null, an infinite d-prime the text that `float` reads."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _write(path: Path, content: bytes) -> Path:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
    return path
