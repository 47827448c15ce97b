"""Comparisons: saved runs and costs, and tables with mean and standard deviation."""

import csv
import json
import math

import numpy as np
import pytest

from hf_avfusion.evaluation.comparison import Comparison, mean_and_std, scores_of, summarize, table
from hf_avfusion.evaluation.reports import versions
from hf_avfusion.tasks import TASKS

TASK = TASKS["classification"]
RUNS = {
    "bottleneck": {0: {"loss": 0.25, "top1": 0.9}, 1: {"loss": 0.5, "top1": 0.8}, 2: {"loss": 1.0, "top1": 0.95}},
    "late": {0: {"loss": 2.0, "top1": 0.25}},
}
COSTS = {
    "bottleneck": {"parameters": 1200, "trainable_parameters": 1000, "flops_per_clip": 65_000_000,
                   "inference_clips_per_s": 400.0, "training_clips_per_s": 100.0, "inference_mib": 16.2, "training_mib": None},
    "late": {"parameters": 1100, "trainable_parameters": 1100, "flops_per_clip": 60_000_000,
             "inference_clips_per_s": 500.0, "training_clips_per_s": 120.0, "inference_mib": 15.0, "training_mib": None},
}  # fmt: skip


def test_mean_and_sample_standard_deviation():
    values = [0.9, 0.8, 0.95]
    mean, std, n = mean_and_std(values)
    assert (mean, std, n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 3)
    assert mean_and_std([0.5]) == (0.5, None, 1)
    mean, std, n = mean_and_std([math.inf, math.inf, 2.5])  # a perfect ranking has an infinite d-prime
    assert (mean, n) == (math.inf, 3)
    assert math.isnan(std)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_std([])


def test_scores_of_drops_other_entries_of_the_trainer():
    metrics = {
        "eval_loss": 1.0,
        "eval_top1_shape": 0.5,
        "eval_runtime": 3.0,
        "eval_clips": 16,
        "eval_views": 4,
        "epoch": 2.0,
    }
    assert scores_of(metrics) == {"loss": 1.0, "top1_shape": 0.5}


def test_table():
    headings, rows = table(summarize(RUNS), COSTS, TASK)
    assert headings == ["", "bottleneck", "late"]
    assert rows == [
        ["top1 %", "88.3 ± 7.6", "25.0"],
        ["seeds (n)", "3", "1"],
        ["parameters", "1,200", "1,100"],
        ["trainable parameters", "1,000", "1,100"],
        ["GFLOPs per clip", "0.065", "0.06"],
        ["clips/s inference", "400 (x 1.00)", "500 (x 1.25)"],
        ["clips/s training", "100 (x 1.00)", "120 (x 1.20)"],
        ["peak MiB inference", "16", "15"],
        ["peak MiB training", "-", "-"],  # unknown values keep their row
    ]


def test_costs_alone_and_a_variant_without_runs():
    assert table({}, COSTS, TASK)[1][0] == ["parameters", "1,200", "1,100"]
    _, rows = table(summarize({"bottleneck": RUNS["bottleneck"], "late": {}}), COSTS, TASK)
    assert rows[0][1:] == ["88.3 ± 7.6", "-"]
    assert rows[1][1:] == ["3", "0"]


def test_reports_hold_unrounded_numbers(tmp_path):
    comparison = Comparison(tmp_path / "new", {"data": "x"})
    comparison.report(RUNS, COSTS, {"device": "CPU"}, TASK)
    rows = {row["fusion"]: row for row in csv.DictReader((tmp_path / "new" / "comparison.csv").open())}
    values = [run["loss"] for run in RUNS["bottleneck"].values()]
    assert float(rows["bottleneck"]["loss_mean"]) == pytest.approx(np.mean(values))
    assert float(rows["bottleneck"]["loss_std"]) == pytest.approx(np.std(values, ddof=1))
    assert rows["late"]["top1_std"] == ""
    assert rows["late"]["flops_per_clip"] == "60000000"
    kept = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert kept["seeds"] == {"bottleneck": [0, 1, 2], "late": [0]}
    assert kept["runs"]["bottleneck"]["2"] == {"loss": 1.0, "top1": 0.95}
    assert {"torch", "transformers", "hf_avfusion", "python"} <= set(kept["versions"])
    assert kept["versions"] == versions()  # as in the reports of evaluations
    lines = (tmp_path / "new" / "comparison.md").read_text().splitlines()
    assert lines[:3] == ["|  | bottleneck | late |", "| --- | --- | --- |", "| top1 % | 88.3 ± 7.6 | 25.0 |"]


def test_a_perfect_variant_is_reported_in_strict_json(tmp_path):
    runs = {"late": {seed: {"map": 1.0, "d_prime": math.inf} for seed in (0, 1)}}
    Comparison(tmp_path, {}).report(runs, {}, {"device": "CPU"}, TASK)

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    kept = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    assert kept["summary"]["late"]["d_prime"] == {"mean": "inf", "std": None, "n": 2}
    assert "| d_prime | inf ± nan |" in (tmp_path / "comparison.md").read_text()


def test_a_finished_run_with_other_settings_is_refused(tmp_path):
    comparison = Comparison(tmp_path, {"data": "x", "sizes": (1, 2)})
    config = {"fusion": "bottleneck"}
    assert comparison.finished("late", 0, config) is None
    comparison.keep("late", 0, config, {"top1": 0.5})
    assert comparison.finished("late", 0, config) == {"top1": 0.5}
    assert comparison.finished("late", 1, config) is None
    with pytest.raises(ValueError, match=r"late-seed0.json.*data: it has 'x', now 'y'.*another output folder"):
        Comparison(tmp_path, {"data": "y", "sizes": (1, 2)}).finished("late", 0, config)
    with pytest.raises(ValueError, match="config of the variant"):
        comparison.finished("late", 0, {"fusion": "self_attention"})
    comparison.run_file("late", 0).write_text("{")
    with pytest.raises(ValueError, match=r"late-seed0.json is not a finished run.*delete it"):
        comparison.finished("late", 0, config)


def test_saved_costs_are_used_only_under_the_same_conditions(tmp_path):
    comparison = Comparison(tmp_path, {})
    configs = {"bottleneck": {"patch_size": (8, 8)}, "late": {"patch_size": (4, 4)}}
    measured = {"device": "CPU, 1 threads", "configs": configs}
    assert comparison.costs(measured) is None
    comparison.keep_costs(COSTS, measured)
    assert comparison.costs(measured) == COSTS
    assert comparison.costs({**measured, "configs": {"late": configs["late"]}}) == {"late": COSTS["late"]}
    assert comparison.costs({**measured, "configs": {"late": configs["bottleneck"]}}) is None
    assert comparison.costs({**measured, "configs": {**configs, "early": {}}}) is None
    assert comparison.costs({**measured, "device": "a GPU"}) is None
