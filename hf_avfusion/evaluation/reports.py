"""What evaluations of checkpoints come to: results.json, a table in Markdown, and figures with their numbers as CSV."""

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

from .clips import EvaluationSet
from .figures import figures
from .summaries import condition, summarise
from .tables import GIVEN_NAMES, SAMPLING_NAMES, markdown

RESULTS = "results.json"
TABLE = "table.md"
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
    return os.path.realpath(each["checkpoint"]), each["given"], *condition(each), seed


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
