"""Reports on evaluations of checkpoints: results.json, a Markdown table, and figures with their data as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..files import atomic_path, read_json, write_text
from ..tasks import task_of_results
from .clips import EvaluationSet
from .figures import figures
from .summaries import condition, summarise
from .tables import MODALITY_NAMES, SAMPLING_NAMES, markdown, span_text

RESULTS = "results.json"
TABLE = "table.md"
_PACKAGES = ("hf_avfusion", "torch", "transformers", "accelerate", "datasets", "av", "numpy", "scikit-learn")


def make_results(
    clips: EvaluationSet, classes: Mapping[str, Sequence[str]], evaluations: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """Makes the content of results.json.

    Args:
        clips: the evaluation set.
        classes: head -> class names of the models.
        evaluations: results of `evaluate_checkpoint` for all checkpoints.
        seed: seed of random windows.

    Raises:
        ValueError: a checkpoint has two evaluations under the same condition, which would count as two runs.
    """
    check_once(evaluations)
    benchmark = clips.describe()
    if evaluations and benchmark["coverage"].get("present", 0) is None:  # every pass goes over all clips
        counted = sum(evaluations[-1][name] for name in ("clips", "skipped", "lacking"))
        benchmark["coverage"] = {**benchmark["coverage"], "present": counted}
    if location := _location(benchmark):
        benchmark["location"] = location
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
    """Checks that no checkpoint has two evaluations under the same condition. Planned evaluations have no scores yet.

    The seed is part of the condition only for random windows: evenly spaced windows are the same for every seed.

    Raises:
        ValueError: a checkpoint has two; the message names the checkpoint and the condition.
    """
    seen: dict[tuple, Mapping[str, Any]] = {}
    for each in evaluations:
        key = _identity(each)
        if key in seen:
            names = " and ".join(dict.fromkeys((seen[key]["checkpoint"], each["checkpoint"])))
            seed = f", seed {each['seed']}" if each["sampling"] != "spread" else ""
            raise ValueError(
                f"{names}: the same checkpoint twice under the same condition ({MODALITY_NAMES[each['given']]}, "
                f"{span_text(each['span'])}, {SAMPLING_NAMES[each['sampling']]}, {each['views']} views{seed}), "
                "which would count as two runs: pass each checkpoint once, and no checkpoint that a given results.json "
                "already holds"
            )
        seen[key] = each


def all_done(planned: Iterable[Mapping[str, Any]], done: Iterable[Mapping[str, Any]]) -> bool:
    """Whether every planned evaluation is done, for the same checkpoint and condition."""
    return {_identity(each) for each in planned} <= {_identity(each) for each in done}


def _identity(each: Mapping[str, Any]) -> tuple:
    seed = each["seed"] if each["sampling"] != "spread" else None
    return os.path.realpath(each["checkpoint"]), each["given"], *condition(each), seed


def write_results(results: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """Writes only results.json, atomically, so that a later failure does not lose finished evaluations."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return write_text(folder / RESULTS, json.dumps(plain(results), indent=1, allow_nan=False) + "\n")


def write_report(results: Mapping[str, Any], folder: str | os.PathLike, top_classes: int = 30) -> list[Path]:
    """Writes results.json, table.md, and a figure with its CSV for every comparison that the evaluations allow.

    Figures of the first settings, with the means of their runs:
        `per_class_ap`: average precision of the `top_classes` best classes for each modality set, one figure per head.
        `fusion_gain`: gain of both modalities over each modality, one figure per head.
        `span_sweep`, `sampling`: scores under several conditions.
    Figures of the largest group of settings that differ only in the compared setting:
        `weight_sharing`, `trained_span`, `trained_sampling`.

    Figures of an earlier report in the folder that this report does not have are deleted.

    Returns:
        The files in the order of writing. Each is written atomically.

    Raises:
        ValueError: `top_classes` below 1.
    """
    if top_classes < 1:
        raise ValueError(f"top_classes must be at least 1, got {top_classes}")
    folder = Path(folder)
    written = [write_results(results, folder), write_text(folder / TABLE, markdown(results))]
    for name, (rows, draw) in figures(results, top_classes).items():
        if not rows:
            for kind in ("csv", "png"):  # left by an earlier report in this folder
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
            continue
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        written.append(write_text(folder / f"{name}.csv", table.getvalue()))
        with atomic_path(folder / f"{name}.png") as partial:
            draw(partial)
        written.append(folder / f"{name}.png")
    return written


def is_results(path: str | os.PathLike) -> bool:
    """Whether a path names results: a .json file, or a folder that holds results.json and no checkpoint."""
    path = Path(path)
    return path.suffix == ".json" or ((path / RESULTS).is_file() and not (path / "config.json").is_file())


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a results.json, given the file or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a report of an evaluation.
    """
    path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    results = read_json(path)
    wanted = {"benchmark", "classes", "evaluations"}
    if not isinstance(results, dict) or not wanted <= set(results):
        missing = ", ".join(sorted(wanted - set(results)))
        raise ValueError(f"{path} has no {missing}: pass a results.json of an evaluation")
    try:
        results["benchmark"]["task"] = task_of_results(results["benchmark"]).name  # earlier files do not name it
    except (ValueError, TypeError, AttributeError) as error:  # of other versions or no report
        raise ValueError(f"{path}: {error}") from error
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
    """Checks that results from a file are for the same clips and classes. They may be for another fold of the benchmark.

    Raises:
        ValueError: they are not; the message names the difference.
    """
    own = clips.describe()
    for field in ("name", "split", "variant", "columns", *clips.task.report_fields, "task"):
        if field == "variant" and clips.partition is not None:
            continue
        if results["benchmark"].get(field) != own[field]:
            raise ValueError(
                f"{path} holds results on other clips: its {field} is {results['benchmark'].get(field)!r}, here it is "
                f"{own[field]!r}; leave this file out"
            )
    if results["classes"] != {head: list(names) for head, names in classes.items()}:
        raise ValueError(
            f"{path} holds results of models with other heads or classes, which cannot be averaged: leave this file out"
        )


def check_output(folder: str | os.PathLike, given: Iterable[str], clips: EvaluationSet) -> None:
    """Checks that a report in this folder would not overwrite results on other clips, except those that are `given` as input.

    Raises:
        ValueError: it would, or the folder's results.json cannot be read.
    """
    path = Path(folder) / RESULTS
    inputs = {os.path.realpath(Path(name) / RESULTS if Path(name).is_dir() else name) for name in given}
    if not path.is_file() or os.path.realpath(path) in inputs:
        return
    remedy = f"give another --output, or remove {path}"
    try:
        earlier = read_results(path)["benchmark"]
    except ValueError as error:
        raise ValueError(f"--output {folder}: {error}: {remedy}") from error
    own = plain(clips.describe())
    locations = _location(own), earlier.get("location") or _location(earlier)
    if all(locations):  # folders of clips, however they are written
        own["name"], earlier["name"] = locations
    own["clips"], earlier["clips"] = (about.get("coverage", {}).get("present") for about in (own, earlier))
    if None in (own["clips"], earlier["clips"]):  # streamed clips are counted while they are read
        earlier["clips"] = own["clips"]
    for field in ("name", "split", "variant", "clips", "columns", *clips.task.report_fields, "task"):
        if earlier.get(field) != own[field]:
            raise ValueError(
                f"--output {folder} holds results on other clips, which would be overwritten: their "
                f"{'number of clips' if field == 'clips' else field} is "
                f"{earlier.get(field)!r}, here it is {own[field]!r}; {remedy}"
            )


def _location(benchmark: Mapping[str, Any]) -> str | None:
    """The absolute path of a folder or file of clips; None for a benchmark that is named."""
    name = str(benchmark.get("name"))
    return os.path.realpath(name) if Path(name).exists() else None


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and its main dependencies."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            from .. import __version__

            found[name] = __version__ if name == "hf_avfusion" else None
    return found


def commit() -> str | None:
    """The git commit of this package, with `+changes` if files differ from it; None if it is not in a repository."""
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


def plain(value: Any) -> Any:
    """The value for strict JSON: NaN (undefined) becomes null, an infinite d-prime a string that `float` can read."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
