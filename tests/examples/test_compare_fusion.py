"""The comparison of fusion variants on a handful of clips: stopped, resumed, and its table recomputed from its runs."""

import csv
import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from hf_avfusion.data.sounding_shapes import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
FRONT_END = {"hop_length": 1000, "win_length": 1024, "n_fft": 1024, "num_mel_bins": 32}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A file of settings, as a user would write it."""
    folder = tmp_path_factory.mktemp("shapes")
    render(folder / "shapes", num_train=16, num_validation=0, num_test=8, num_proc=1, progress=False)
    options = [
        "--data", "sounding_shapes", "--source", folder / "shapes", "--label_columns", "shape", "sound", "label",
        "--decode_once", "True", "--augment", "False", "--spec_augment", "False", "--image_size", "16", "--num_frames", "2",
        "--span", "2", "--audio_seconds", "2", "--config", json.dumps(TINY, separators=(",", ":")),
        "--set", *(f"audio.{name}={value}" for name, value in FRONT_END.items()), "--fusions", "bottleneck", "late",
        "--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "True", "--cost_rounds", "1",
        "--num_bottleneck_tokens", "2",
    ]  # fmt: skip
    (folder / "compare.args").write_text("\n".join(map(str, options)))
    return folder / "compare.args"


@pytest.fixture(scope="module")
def compare(settings, tmp_path_factory):
    """The costs in a process of their own, since they are measured in forks of it; then main(...) in this one."""
    output = tmp_path_factory.mktemp("comparison")
    command = ["--args_file", settings, "--output_dir", output, "--disable_tqdm", "True"]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    script = [sys.executable, EXAMPLES / "compare_fusion.py", *command, "--costs_only", "True"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clips/s training" in done.stdout
    assert not (output / "runs").exists()

    def main(*more):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(EXAMPLES))
            patch.setattr(sys, "argv", ["compare_fusion.py", *map(str, [*command, *more])])
            importlib.import_module("compare_fusion").main()
        return {path.name: json.loads(path.read_text()) for path in (output / "runs").iterdir()}

    return main, output


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_the_table_is_that_of_the_runs(compare, capsys):
    main, output = compare
    costs = (output / "costs.json").read_text()
    assert len(main("--seeds", "0")) == 2
    assert "run 2 of 2: late, seed 0" in capsys.readouterr().out
    finished = output / "runs" / "late-seed0.json"
    run = json.loads(finished.read_text())
    run["metrics"]["top1_shape"] = 0.123  # no training would give this, so it stays only if nothing is trained
    finished.write_text(json.dumps(run))

    runs = main("--seeds", "0", "1")
    assert set(runs) == {f"{fusion}-seed{seed}.json" for fusion in ("bottleneck", "late") for seed in (0, 1)}
    printed = capsys.readouterr().out
    assert "run 2 of 2: late, seed 1" in printed
    assert "seed 0" not in printed
    assert runs["late-seed0.json"]["metrics"]["top1_shape"] == 0.123
    assert runs["late-seed0.json"]["config"]["fusion_layer"] == 2
    assert {"top1_shape", "top1_sound", "top1_label", "top1_joint"} <= set(runs["bottleneck-seed1.json"]["metrics"])
    assert (output / "costs.json").read_text() == costs  # nor were the costs

    table = {row["fusion"]: row for row in csv.DictReader((output / "comparison.csv").open())}
    for fusion, row in table.items():
        for metric in ("top1_shape", "top1_label", "loss"):
            values = [runs[f"{fusion}-seed{seed}.json"]["metrics"][metric] for seed in (0, 1)]
            assert float(row[f"{metric}_mean"]) == pytest.approx(statistics.mean(values))
            assert float(row[f"{metric}_std"]) == pytest.approx(statistics.stdev(values))
        assert row["n"] == "2"
    assert int(table["bottleneck"]["parameters"]) == int(table["late"]["parameters"]) + (2 + 1) * 16
    assert int(table["bottleneck"]["flops_per_clip"]) > int(table["late"]["flops_per_clip"])
    assert all(float(row["training_clips_per_s"]) > 0 for row in table.values())


@pytest.mark.slow
def test_other_settings_are_refused_and_named(compare):
    main, output = compare
    (output / "runs").mkdir(exist_ok=True)
    run = {"settings": {"training": {"learning_rate": 0.1}}, "config": {}, "metrics": {}}
    (output / "runs" / "late-seed7.json").write_text(json.dumps(run))
    with pytest.raises(
        ValueError, match=r"seed7.json is a run with other settings .*learning_rate.*another output folder"
    ):
        main("--seeds", "7")
    with pytest.raises(ValueError, match="--fusions middle: the variants of mbt are bottleneck,"):
        main("--fusions", "middle")
    with pytest.raises(ValueError, match="audio has no field hopp"):
        main("--set", "audio.hopp=3")
    with pytest.raises(ValueError, match="--model avmae: variants are known of mbt"):
        main("--model", "avmae")
    with pytest.raises(ValueError, match="--augment False"):
        main("--augment", "True")
