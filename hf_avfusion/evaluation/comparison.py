"""Comparison of model variants over seeds: saved runs, mean and standard deviation of each metric, and one table.

A folder holds `runs/<variant>-seed<n>.json`, one file with metrics and settings per finished run, so that an interrupted
comparison can be resumed; `costs.json`; and the report: `comparison.md`, `.csv` (one row per variant, unrounded) and `.json`
(all data). Files are written atomically.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from ..files import markdown_table, read_json, write_text
from ..tasks.task import ShownMetric, Task
from . import summaries
from .reports import plain, versions

COSTS = {  # heading and format of the values
    "parameters": ("parameters", "{:,}"),
    "trainable_parameters": ("trainable parameters", "{:,}"),
    "flops_per_clip": ("GFLOPs per clip", "{:,.4g}"),
    "inference_clips_per_s": ("clips/s inference", "{:,.0f}"),
    "training_clips_per_s": ("clips/s training", "{:,.0f}"),
    "inference_mib": ("peak MiB inference", "{:,.0f}"),
    "training_mib": ("peak MiB training", "{:,.0f}"),
}
RATES = ("inference_clips_per_s", "training_clips_per_s")  # shown with their ratio to the first variant
NON_SCORES = ("runtime", "samples_per_second", "steps_per_second", "clips", "skipped_clips", "views")


class MeanStd(NamedTuple):
    """Mean and sample standard deviation (n - 1; None for one run, NaN if a value is infinite) of a metric over n seeds."""

    mean: float
    std: float | None
    n: int


def mean_and_std(values: Sequence[float]) -> MeanStd:
    """Mean and standard deviation over runs. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("got no values: a mean needs at least one run")
    return MeanStd(**summaries.mean_and_std(values))


class Comparison:
    """The folder of a comparison.

    Args:
        folder: created before the first file is written.
        settings: common settings of all runs, as JSON values. A saved run with other settings is refused.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # equal to settings that are read from a file

    def run_file(self, variant: str, seed: int) -> Path:
        return self.folder / "runs" / f"{variant}-seed{seed}.json"

    def finished(self, variant: str, seed: int, config: Mapping[str, Any]) -> dict[str, float] | None:
        """Returns the metrics of a finished run, or None if it is not finished.

        Args:
            config: the settings of the variant.

        Raises:
            ValueError: the run has other settings, or its file is not a run of a comparison. The message names the file, the
                difference and the remedy.
        """
        path = self.run_file(variant, seed)
        if not path.exists():
            return None
        try:
            run = read_json(path)
            found, metrics = {**run["settings"], "config of the variant": run["config"]}, dict(run["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a finished run ({error}): delete it to repeat the run") from error
        wanted = {**self.settings, "config of the variant": json.loads(json.dumps(config))}
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if names:
            differences = "; ".join(f"{name}: it has {found.get(name)!r}, now {wanted.get(name)!r}" for name in names)
            raise ValueError(
                f"{path} is a run with other settings ({differences}). Choose another output folder, or delete the file to "
                "repeat the run."
            )
        return metrics

    def keep(self, variant: str, seed: int, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Saves the metrics of a finished run."""
        run = {"settings": self.settings, "config": config, "seed": seed, "metrics": metrics}
        write_text(self.run_file(variant, seed), json.dumps(run, indent=2) + "\n")

    def keep_costs(self, costs: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Any]) -> None:
        """Saves the result of `costs.compare_costs`; `measured` holds its conditions: `configs` of the variants, and others."""
        write_text(self.folder / "costs.json", json.dumps({"measured": measured, "costs": costs}, indent=2) + "\n")

    def costs(self, measured: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
        """Returns the saved costs of the variants in `measured["configs"]`.

        Returns None if the costs of a variant are missing or were measured under other conditions: only costs that were
        measured together are comparable.
        """
        path = self.folder / "costs.json"
        if not path.exists():
            return None
        kept, wanted = read_json(path), json.loads(json.dumps(measured))
        known, variants = kept["measured"].pop("configs"), wanted.pop("configs")
        if kept["measured"] != wanted or any(known.get(variant) != config for variant, config in variants.items()):
            return None
        return {variant: kept["costs"][variant] for variant in variants}

    def report(
        self,
        runs: Mapping[str, Mapping[int, Mapping[str, float]]],
        costs: Mapping[str, Mapping[str, Any]],
        measured: Mapping[str, Any],
        task: Task,
    ) -> Table:
        """Writes `comparison.md`, `.csv` and `.json`; returns the table to print.

        Args:
            runs: variant -> seed -> metric -> value.
            costs: variant -> costs from `compare_costs`.
            measured: see `keep_costs`.
            task: task of the models, which decides how the metrics are shown.
        """
        summary = summarize(runs)
        headings, rows = table(summary, costs, task)
        write_text(self.folder / "comparison.md", markdown_table(headings, rows) + "\n")
        write_text(self.folder / "comparison.csv", as_csv(summary, costs))
        everything = {
            "versions": versions(),
            "measured": measured,
            "settings": self.settings,
            "seeds": {variant: sorted(by_seed) for variant, by_seed in runs.items()},
            "summary": {
                variant: {metric: value._asdict() for metric, value in metrics.items()}
                for variant, metrics in summary.items()
            },
            "costs": costs,
            "runs": runs,
        }
        write_text(self.folder / "comparison.json", json.dumps(plain(everything), indent=2, allow_nan=False) + "\n")
        printed = Table(*headings, title="mean ± standard deviation over n seeds; x: ratio to the first variant")
        for row in rows:
            printed.add_row(*row)
        return printed


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores in the result of `Trainer.evaluate`, without their prefix "eval_"."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    return {name: value for name, value in named.items() if name not in NON_SCORES}


def summarize(runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, dict[str, MeanStd]]:
    """variant -> metric -> mean and standard deviation over the seeds. Variants without a run are left out."""
    summary = {}
    for variant, by_seed in runs.items():
        results = list(by_seed.values())
        if results:
            summary[variant] = {metric: mean_and_std([run[metric] for run in results]) for metric in results[0]}
    return summary


def table(
    summary: Mapping[str, Mapping[str, MeanStd]], costs: Mapping[str, Mapping[str, Any]], task: Task
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells with a column per variant: the metrics without the loss, the number of seeds, then the costs.

    Rates are shown with their ratio to the first variant. Unknown values are `-`.
    """
    variants = list(dict.fromkeys([*costs, *summary]))
    metrics = list(dict.fromkeys(name for scores in summary.values() for name in scores if name != "loss"))
    rows = []
    for metric in metrics:
        scores = [summary.get(variant, {}).get(metric) for variant in variants]
        shown = task.show_metric(metric)
        name = f"{metric} %" if shown.percent else metric
        rows.append([name, *("-" if score is None else _format_score(shown, score) for score in scores)])
    if metrics:
        counts = [[score.n for score in summary.get(variant, {}).values()] for variant in variants]
        rows.append(["seeds (n)", *(str(max(count, default=0)) for count in counts)])
    for name, (heading, _) in COSTS.items():
        values = [costs.get(variant, {}).get(name) for variant in variants]
        if costs:  # unknown values keep their row, so that every table has the same rows
            rows.append([heading, *(_format_cost(name, value, values[0]) for value in values)])
    return ["", *variants], rows


def _format_score(metric: ShownMetric, value: MeanStd) -> str:
    """`99.8 ± 0.1`: shares in per cent with one decimal, other metrics unscaled."""
    scale, digits = (100, 1) if metric.percent else (1, metric.digits)
    text = f"{scale * value.mean:.{digits}f}"
    return text if value.std is None else f"{text} ± {scale * value.std:.{digits}f}"


def _format_cost(name: str, value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    text = COSTS[name][1].format(value / 1e9 if name == "flops_per_clip" else value)
    return f"{text} (x {value / first:.2f})" if name in RATES and first else text


def as_csv(summary: Mapping[str, Mapping[str, MeanStd]], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per variant: `<metric>_mean`, `<metric>_std`, `n`, and the costs, all unrounded."""
    rows = []
    for variant in dict.fromkeys([*costs, *summary]):
        row: dict[str, Any] = {"fusion": variant}
        for metric, value in summary.get(variant, {}).items():
            row |= {f"{metric}_mean": value.mean, f"{metric}_std": value.std, "n": value.n}
        rows.append(row | dict(costs.get(variant, {})))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
