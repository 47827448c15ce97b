"""examples/compare_fusion.py on a few clips: resuming, the table of results, several views, balanced labels and early errors."""

import csv
import importlib
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import scripts
import torch

from hf_avfusion.data.synthetic.sounding_shapes import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
FRONT_END = {"hop_length": 1000, "win_length": 1024, "n_fft": 1024, "num_mel_bins": 32}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A settings file as a user would write it."""
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


def process(*arguments):
    """Runs the script in a new process. Costs are measured in forks of a process that ran no parallel code."""
    return scripts.process("compare_fusion.py", *arguments, check=False)


@pytest.fixture
def script(monkeypatch):
    """The script's module; `call` runs its `main` with a command line."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module("compare_fusion")
    # Costs are measured in forks, which would wait forever for OpenMP threads that an earlier test of this process started.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare_fusion.py", *map(str, arguments)])
        return module.main()

    module.call = call
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def costs(settings, tmp_path_factory):
    """A folder that holds only costs."""
    output = tmp_path_factory.mktemp("costs")
    done = process("--args_file", settings, "--output_dir", output, "--costs_only", "True")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clips/s training" in done.stdout
    assert not (output / "runs").exists()
    return output


@pytest.fixture
def compare(script, settings, costs, tmp_path):
    """Calls `main` in a folder that holds costs."""
    output = tmp_path / "comparison"
    shutil.copytree(costs, output)

    def main(*more):
        command = ["--args_file", settings, "--output_dir", output, "--disable_tqdm", "True", *more]
        assert script.call(*command) == 0
        return {path.name: json.loads(path.read_text()) for path in (output / "runs").iterdir()}

    return main, output


@pytest.mark.slow
def test_finished_run_is_not_repeated_and_the_table_is_computed_from_the_runs(compare, capsys):
    main, output = compare
    costs = (output / "costs.json").read_text()
    assert len(main("--seeds", "0")) == 2
    assert "run 2 of 2: late, seed 0" in capsys.readouterr().out
    finished = output / "runs" / "late-seed0.json"
    run = json.loads(finished.read_text())
    run["metrics"]["top1_shape"] = (
        0.123  # training would not give this value, so it is kept only if the run is not repeated
    )
    finished.write_text(json.dumps(run))

    runs = main("--seeds", "0", "1")
    assert set(runs) == {f"{fusion}-seed{seed}.json" for fusion in ("bottleneck", "late") for seed in (0, 1)}
    printed = capsys.readouterr().out
    assert "run 2 of 2: late, seed 1" in printed
    assert "seed 0" not in printed
    assert runs["late-seed0.json"]["metrics"]["top1_shape"] == 0.123
    assert runs["late-seed0.json"]["config"]["fusion_layer"] == 2
    assert {"top1_shape", "top1_sound", "top1_label", "top1_joint"} <= set(runs["bottleneck-seed1.json"]["metrics"])
    assert (output / "costs.json").read_text() == costs  # costs were not measured again

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
def test_published_recipe_is_evaluated_over_its_views(settings, tmp_path):
    """With clips that are streamed, and rare labels read more often."""
    model = {**TINY, "fusion_layer": 1}  # the recipe has 8
    options = [
        "--recipe", "mbt/vggsound", "--from_vit", "none", "--global_batch_size", "8", "--warmup_epochs", "0", "--seeds", "0", "1",
        "--learning_rate", "1e-3", "--config", json.dumps(model, separators=(",", ":")),
        "--decode_once", "False", "--balance_labels", "True",
        "--fusions", "late", "--label_columns", "label", "--disable_tqdm", "True",
    ]  # fmt: skip
    done = process("--args_file", settings, "--output_dir", tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("'eval_views': 4") == 2
    assert done.stdout.count("'repeated_clips'") == 2
    run = json.loads((tmp_path / "runs" / "late-seed1.json").read_text())
    assert {"loss", "top1"} <= set(run["metrics"])
    assert "views" not in run["metrics"]  # not a score
    assert run["settings"]["training"]["eval_protocol"] == "mbt"
    assert run["settings"]["recipe"]["regularization.label_smoothing"] == 0.3

    # The printed and the Markdown table have the same rows: scores with standard deviations, and all costs.
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / "comparison.md").read_text().splitlines()[2:]]
    cells = dict(lines)
    assert "±" in cells["top1 %"]
    costs = ["parameters", "trainable parameters", "GFLOPs per clip", "clips/s inference", "clips/s training"]
    costs += ["peak MiB inference", "peak MiB training"]
    assert list(cells)[-8:] == ["seeds (n)", *costs]
    for name, value in lines:
        assert any(name in line and value in line for line in done.stdout.splitlines()), (name, value)


@pytest.mark.slow
def test_clips_decoded_once_have_the_requested_views(compare, script, monkeypatch, capsys):
    main, _ = compare
    seen = {}
    trainer = script.AVTrainer

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return trainer(*args, **kwargs)

    monkeypatch.setattr(script, "AVTrainer", spy)
    main("--seeds", "0", "--fusions", "late", "--eval_num_views", "2", "--balance_labels", "True")
    printed = capsys.readouterr().out
    assert "measuring the costs" not in printed
    assert "'eval_views': 2" in printed
    assert "'repeated_clips'" in printed
    assert seen["eval_dataset"].transform.num_views == 2
    assert seen["train_dataset"].transform.num_views == 1
    assert next(iter(seen["eval_dataset"]))["pixel_values"].shape[:2] == (2, 2)  # views, frames


@pytest.mark.slow
def test_training_split_can_be_evaluated(compare, script, monkeypatch):
    """Training and evaluation on the same split use different streams."""
    main, _ = compare
    seen = {}

    class Stopped(Exception):
        pass

    def spy(*_, train_dataset, eval_dataset, **__):
        seen.update(train=train_dataset.transform, evaluation=eval_dataset.transform)
        raise Stopped

    monkeypatch.setattr(script, "AVTrainer", spy)
    with pytest.raises(Stopped):
        main("--eval_split", "train", "--decode_once", "False")
    assert (seen["train"].mode, seen["evaluation"].mode) == ("train", "eval")


@pytest.mark.slow
def test_costs_of_other_inputs_are_not_reused(compare, script, monkeypatch):
    main, _ = compare
    measured = []

    class Stopped(Exception):
        pass

    def measure(builders, *_, **__):
        measured.append(list(builders))
        raise Stopped

    monkeypatch.setattr(script, "compare_costs", measure)
    for other in (["--num_frames", "4"], ["--size", "small"], ["--cost_rounds", "2"], ["--label_columns", "label"]):
        with pytest.raises(Stopped):
            main("--seeds", "0", *other)
    assert measured == [["bottleneck", "late"]] * 4


@pytest.mark.slow
def test_run_with_other_settings_fails_with_its_name(script, settings, tmp_path, capsys):
    run = {"settings": {"training": {"learning_rate": 0.1}}, "config": {}, "metrics": {}}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "late-seed7.json").write_text(json.dumps(run))
    assert script.call("--args_file", settings, "--output_dir", tmp_path, "--seeds", "7") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"seed7.json is a run with other settings .*learning_rate.*another output folder", line)


@pytest.mark.parametrize("allowed", [False, True])
def test_allow_urls_reaches_training_and_evaluation(script, settings, tmp_path, monkeypatch, allowed):
    transforms = {}

    class Watched(script.ClipStream):
        def __init__(self, rows, transform, **options):
            super().__init__(rows, transform, **options)
            transforms[transform.mode] = transform

    monkeypatch.setattr(script, "ClipStream", Watched)
    monkeypatch.setattr(script, "compare_costs", lambda *arguments, **options: {})
    command = ["--args_file", settings, "--output_dir", tmp_path, "--costs_only", "True"]
    assert script.call(*command, "--allow_urls", allowed) == 0
    assert {mode: transform.allow_urls for mode, transform in transforms.items()} == {"train": allowed, "eval": allowed}


WRONG = [
    ("--eval_aggregation max_logits", "this one's problem_type is multi_head_classification"),
    ("--recipe mbt/nope", "There is no recipe 'mbt/nope'"),
    ("--recipe avmae/pretrain-vggsound", "--recipe avmae/pretrain-vggsound is for pretraining"),
    ("--source gone", "source 'gone' is neither a folder nor"),
    ("--eval_split nope", "--eval_split nope: SoundingShapes has no such split"),
    ("--fusions middle", "--fusions middle: is not one of bottleneck,"),
    ("--model avmae", "--model avmae: only these architectures have fusion variants: mbt"),
    ("--augment True", "--decode_once does not allow frame augmentation: add --augment False"),
    ("--set audio.hopp=3", "audio has no field hopp"),
    ("--fusion_layer 3", "`fusion_layer` must lie between 0"),
    (
        '--config {"fusion":"early","share_encoder":true}',
        "--config: --fusions or the flag of the same name already sets",
    ),
    ('--fusion_layer 1 --config {"fusion_layer":2}', "the flag of the same name already sets fusion_layer"),
    ("--eval_num_crops 2", "got num_views=1 and num_crops=2: pass at least 1 view, and 1 or 3 crops"),
    # flags without effect
    ("--seed 3", "--seed: --seeds decides the order"),
    ("--resume_from_checkpoint x", "--resume_from_checkpoint: the same command continues after the last finished run"),
    ("--num_segments 2", "--num_segments: event localisation models have no fusion variants"),
    ("--push_to_hub True", "--push_to_hub: the result is the table"),
    ("--data .", "source= (--source): allowed only for the benchmarks vggsound,"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments_print_a_one_line_error(script, settings, tmp_path, capsys, options, message):
    assert script.call("--args_file", settings, "--output_dir", tmp_path / "out", *options.split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["--args_file nofile", "--args_file"])
def test_missing_settings_file_prints_an_error(script, capsys, options):
    assert script.call("--data", "x", *options.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {options}: no such file")


@pytest.mark.slow
def test_process_with_wrong_arguments_exits_with_status_2(tmp_path):
    done = process("--data", tmp_path / "nope", "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'nope'} is neither a file, a folder nor the name"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_undecodable_clip_can_stop_the_comparison(compare, monkeypatch):
    main, _ = compare
    monkeypatch.syspath_prepend(str(EXAMPLES))
    script, made = importlib.import_module("compare_fusion"), []

    class Watched(script.ClipStream):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self.on_error)

    monkeypatch.setattr(script, "ClipStream", Watched)
    main("--seeds", "0", "--fusions", "late", "--on_decode_failure", "stop")
    main("--seeds", "9", "--fusions", "late", "--on_decode_failure", "stop")
    assert made[:2] == ["stop", "stop"]  # training and evaluation
