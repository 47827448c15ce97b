"""Command lines: wrong arguments are answered in one line, before PyTorch and transformers are imported."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from hf_avfusion import arguments
from hf_avfusion.arguments import check_checkpoint, check_device, did_you_mean

ROOT = Path(__file__).parent.parent

# Runs a script or module, and says at its end whether something slow was imported.
RUN = """
import runpy, sys
target, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_path(target, run_name="__main__") if target.endswith(".py") else runpy.run_module(target, run_name="__main__")
except SystemExit as error:
    code = error.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
slow = sorted({"torch", "transformers", "datasets", "av", "accelerate"} & sys.modules.keys())
print(code, *slow)
"""

TRAIN = ["--output_dir", "new"]
EXAMPLES = {
    "compare_fusion.py": [
        (["--data", "clips", "--fusion", "x", "--sedes", "1"], "unknown option --sedes; did you mean --seeds?"),
        (["--args_file", "gone.args"], "gone.args: no such file"),
        (["--data", "clips", *TRAIN, "--fusions", "erly"], "--fusions erly: is not one of bottleneck, "),
        (["--data", "clips", *TRAIN, "--seeds", "0", "-1"], "--seeds -1: a seed is a whole number from 0 to"),
        (["--data", "clips", *TRAIN, "--cost_rounds", "0"], "--cost_rounds must be at least 1, got 0"),
        (["--data", "clips", *TRAIN, "--eval_split", "none"], "--eval_split none: every run is evaluated"),
    ],
    "evaluate.py": [
        (["--benchmark", "clips", "--topclasses", "3"], "unknown option --topclasses; did you mean --top_classes?"),
        (["--benchmark", "vgsound", "--checkpoint", "x/y"], "did you mean vggsound?"),
        (["--benchmark", "clips", "--checkpoint", "clips/nope"], "--checkpoint clips/nope: no such folder"),
        (["--benchmark", "clips", "--checkpoint", "model", "--views", "0"], "--views must be at least 1, got 0"),
        (
            ["--benchmark", "clips", "--checkpoint", "model", "--spans", "2,0"],
            "a span (--spans) must be a positive number of seconds, got 0.0",
        ),
        (
            ["--benchmark", "clips", "--checkpoint", "model", "--split", "tset"],
            "--split tset: a folder of clips has no such",
        ),
        (["--benchmark", "clips"], "no checkpoint to evaluate: give --checkpoint X"),
        (["--benchmark", "clips", "--checkpoint", "model", "--output", "clip.mp4"], "clip.mp4 is a file"),
    ],
    "finetune_classification.py": [
        (["--data", "clips", *TRAIN, "--modle", "mbt"], "unknown option --modle; did you mean --model?"),
        (["--data", "clips", *TRAIN, "--learning_rat", "1", "--learning_raet", "1"], "did you mean --learning_rate?"),
        (TRAIN, "the following arguments are required: --data"),
        (["--data", "nope/", *TRAIN], "nope/ is neither a file, a folder nor the name of a benchmark"),
        (["--data", "clips", *TRAIN, "--num_train_epochs", "ten"], "invalid float value: 'ten'"),
        (["--data", "clips", *TRAIN, "--model", "mtb"], "--model mtb: neither an architecture"),
        (["--data", "clips", *TRAIN, "--model", "clips/nope"], "--model clips/nope: no such folder"),
        (["--data", "clips", *TRAIN, "--from_vit", "./nope"], "--from_vit ./nope: no such folder"),
        (
            ["--data", "clips", *TRAIN, "--from_vggish", "nope.pth"],
            "--from_vggish nope.pth: no such file: give the file",
        ),
        (["--data", "clips", *TRAIN, "--start", "from_avmae=clips"], "--start clips: holds no config.json"),
        (["--data", "clips", *TRAIN, "--recipe", "mbt/vgsound"], "Did you mean mbt/vggsound?"),
        (["--data", "clips", *TRAIN, "--optim", "adamv"], "--optim adamv: is not one of adamw_torch, "),
        (["--data", "clips", *TRAIN, "--lr_scheduler_type", "cosin"], "did you mean cosine?"),
        (
            ["--data", "clips", *TRAIN, "--eval_strategy", "epochs"],
            "is not one of no, steps, epoch; did you mean epoch?",
        ),
        (["--data", "clips", *TRAIN, "--size", "hugee"], "--size hugee: is not one of small, base, large"),
        (["--data", "clips", *TRAIN, "--config", "{bad"], "--config {bad: is not JSON"),
        (["--data", "clips", *TRAIN, "--config", "[1]"], "--config [1]: must be a JSON object"),
        (["--data", "clips", *TRAIN, "--adapter", "lavsih"], "invalid choice: 'lavsih'"),
        (["--data", "clips", *TRAIN, "--adapter_config", "{bad"], "--adapter_config {bad: is not JSON"),
        (["--data", "clips", *TRAIN, "--eval_split", "tset"], "--eval_split tset: a folder of clips has no such split"),
        (["--data", "audioset", *TRAIN, "--eval_split", "tset"], "its splits are: train, eval"),
        (["--data", "vggsound", *TRAIN, "--train_split", "trian"], "did you mean train?"),
        (["--data", "esc50", *TRAIN, "--variant", "fold6"], "no variant 'fold6'; its variants are: fold1, "),
        (["--data", "clips", *TRAIN, "--source", "x"], "source= (--source): allowed only for the benchmarks"),
        (["--data", "clips", *TRAIN, "--modality_dropout", "2"], "--modality_dropout must be at most 1, got 2.0"),
        (["--data", "clips", *TRAIN, "--num_frames", "-5"], "--num_frames must be at least 1, got -5"),
        (["--data", "clips", *TRAIN, "--span", "0"], "--span must be above 0 s, got 0.0"),
        (["--data", "clips", *TRAIN, "--gradient_accumulation_steps", "0"], "must be at least 1, got 0"),
        (["--data", "clips", "--output_dir", "clip.mp4"], "--output_dir clip.mp4: is a file; give a folder"),
        (
            ["--data", "clips", *TRAIN, "--resume_from_checkpoint", "gone"],
            "--resume_from_checkpoint gone: no such folder",
        ),
    ],
    "finetune_question_answering.py": [
        (["--data", "clips", *TRAIN, "--modality_dropot", "1"], "did you mean --modality_dropout?"),
    ],
    "finetune_segmentation.py": [
        (["--data", "clips", *TRAIN, "--num_segments", "0"], "--num_segments must be at least 1, got 0"),
    ],
    "predict.py": [
        (["--model", "model", "clip.mp4", "--topk", "3"], "unknown option --topk; did you mean --top_k?"),
        (["clip.mp4"], "the following arguments are required: --model"),
        (["--model", "clips/nope", "clip.mp4"], "--model clips/nope: no such folder: give the folder of a checkpoint"),
        (["--model", "model", "clip.mp4", "--device", "cuda"], "--device cuda: PyTorch finds no GPU here"),
        (["--model", "model", "clip.mp4", "--top_k", "0"], "--top_k must be at least 1, got 0"),
        (["--model", "model", "clip.mp4", "--num_views", "100000"], "--num_views must be at most 1000, got 100000"),
        (["--model", "model", "clip.mp4", "--device", "banana"], "--device banana: is not one of cpu, cuda, mps"),
        (["--model", "model", "clip.mp4", "--output", "clips"], "--output clips: is a folder; give a file"),
        (["--model", "model", "clip.mp4", "--output", "clip.mp4/x.jsonl"], "clip.mp4 is a file; choose another place"),
        (["--model", "model", "clip.mp4", "--pictures", "clip.mp4"], "clip.mp4 is a file; choose another place"),
    ],
    "prepare_benchmark.py": [
        (["clips", "--output", "new", "--shortside", "3"], "did you mean --short_side?"),
        (["clip", "--output", "new"], "clip is neither a file, a folder nor the name of a benchmark"),
        (["vggsound", "--output", "new", "--source", "gone"], "--source gone: no such folder"),
        (["clips", "--output", "new", "--holdout", "5"], "holdout (--holdout) must lie between 0 and 1, got 5.0"),
        (["clips", "--output", "new", "--short_side", "3"], "short_side must be at least 16 pixels, got 3"),
        (["clips", "--output", "new", "--num_proc", "0"], "--num_proc must be at least 1, got 0"),
        (["clips", "--output", "new", "--splits", "tset"], "--splits tset: a folder of clips has no such split"),
        (["clips", "--output", "new", "--push", "me"], "repo_id must be like org/name, got 'me'"),
    ],
    "pretrain_avmae.py": [
        (["--data", "clips", *TRAIN, "--picture_step", "1", "--picturestep", "1"], "did you mean --picture_steps?"),
        (["--data", "clips", *TRAIN, "--picture_clip", "gone.mp4"], "--picture_clip gone.mp4: no such file"),
    ],
    "push_to_hub.py": [
        (["gone", "org/name"], "gone is not a folder"),
        (["model", "org/name", "--dryrun"], "did you mean --dry_run?"),
    ],
    "quickstart.py": [(["--clips", "x"], "unknown option --clips; did you mean --clip?")],
    "reconstruct.py": [
        (["--model", "model", "clip.mp4", "--mask_ratio", "3"], "unknown option --mask_ratio"),
        (["--model", "model", "clip.mp4", "--video_mask_ratio", "3"], "--video_mask_ratio must lie between 0 and 1"),
        (["--model", "model", "clip.mp4", "--device", "cuda"], "PyTorch finds no GPU here"),
    ],
}
CONVERT = ["--checkpoint", "clip.mp4"]
MODULES = {
    "hf_avfusion.conversion.avmae": [(CONVERT, "the following arguments are required: --output")],
    "hf_avfusion.conversion.lavish": [(["--checkpoint", "gone", "--output", "x"], "--checkpoint gone: no such file")],
    "hf_avfusion.conversion.mbt": [
        ([*CONVERT, "--outptu", "x"], "did you mean --output?"),
        (["--checkpoint", "gone", "--output", "x"], "--checkpoint gone: no such file"),
    ],
    "hf_avfusion.data.avdigits": [(["--speach", "x", "--output", "y"], "did you mean --speech?")],
    "hf_avfusion.data.describe": [(["vggsound", "--label", "--variants", "x"], "did you mean --variant?")],
    "hf_avfusion.data.selection": [(["gone.csv", "out.csv", "--caps", "3"], "did you mean --cap?")],
    "hf_avfusion.data.sounding_shapes": [(["--output", "x", "--num_trian", "3"], "did you mean --num_train?")],
    "hf_avfusion.training.recipes": [(["mbt/vgsound"], "Did you mean mbt/vggsound")],
}
CASES = [
    (target, args, message)
    for group in ({str(ROOT / "examples" / name): cases for name, cases in EXAMPLES.items()}, MODULES)
    for target, cases in group.items()
    for args, message in cases
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "clips").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "clip.mp4").write_bytes(b"not read")
    return folder


@pytest.mark.parametrize(("target", "args", "message"), CASES, ids=lambda value: Path(str(value)).name[:30])
def test_wrong_arguments_are_answered_before_slow_imports(folder, target, args, message):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    if "cuda" in args and any(map(os.path.exists, arguments._GPU_FILES)):
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-c", RUN, target, *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() in (["1"], ["2"]), f"it imported {done.stdout}\n{done.stderr}"
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr


def test_every_script_and_command_is_tested():
    assert EXAMPLES.keys() == {file.name for file in (ROOT / "examples").glob("*.py")}
    commands = {file for file in (ROOT / "hf_avfusion").rglob("*.py") if '__name__ == "__main__"' in file.read_text()}
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for file in commands}
    moved = {"hf_avfusion.data.synthetic.avdigits", "hf_avfusion.data.synthetic.sounding_shapes"}
    moved |= {"hf_avfusion.data.benchmarks.describe", "hf_avfusion.data.benchmarks.selection"}
    assert MODULES.keys() == names - moved - {"hf_avfusion.arguments"}


def test_flags_that_are_read_from_source_are_those_of_the_classes():
    from transformers.trainer_utils import IntervalStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    from hf_avfusion.auto import ARCHITECTURES
    from hf_avfusion.evaluation.runs import SAMPLINGS
    from hf_avfusion.evaluation.views import Aggregation
    from hf_avfusion.training.arguments import AVTrainingArguments
    from hf_avfusion.training.recipes.command_line import start_methods

    expected = {field.name for field in dataclasses.fields(AVTrainingArguments) if field.init}
    assert {field.name for field in dataclasses.fields(arguments.training_flags())} == expected
    assert arguments.start_sources() == {name: method.file for name, method in start_methods().items()}
    assert set(arguments.model_types()) == {config.model_type for config, *_ in ARCHITECTURES}
    assert all(arguments.model_sizes(config.model_type) == config.sizes() for config, *_ in ARCHITECTURES)
    enums = {"optim": OptimizerNames, "lr_scheduler_type": SchedulerType, "eval_strategy": IntervalStrategy}
    choices = arguments.training_choices()
    assert {name: choices[name] for name in enums} == {
        n: tuple(each.value for each in enum) for n, enum in enums.items()
    }
    script = (ROOT / "examples" / "evaluate.py").read_text()
    for name, choices in (("AGGREGATIONS", get_args(Aggregation)), ("SAMPLINGS", SAMPLINGS)):
        assert f"{name} = ({', '.join(map(json.dumps, choices))})" in script
    from hf_avfusion.data.preparing.shards import ROWS_PER_SHARD

    assert f"default={ROWS_PER_SHARD}, " in (ROOT / "examples" / "prepare_benchmark.py").read_text()


def test_valid_training_arguments_pass(folder, monkeypatch):
    from hf_avfusion.training.recipes.options import ClassificationOptions, check_arguments

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    for args in (
        ["--data", "clips", "--output_dir", "x", "--report_to", "none", "tensorboard", "--augment", "False", "--bf16"],
        [
            "--data",
            "vggsound",
            "--model",
            "model",
            "--use_cpu",
            "True",
            "--no_spec_augment",
            "--lr_scheduler_kwargs",
            "{}",
        ],
        [
            "--data",
            "clips",
            "--from_vit",
            "none",
            "--label_columns",
            "verb",
            "noun",
            "--save-strategy=no",
            "--fsdp",
            "auto_wrap",
        ],
    ):
        check_arguments(ClassificationOptions, lambda args=args: args)


def test_checkpoints_that_cannot_be_had_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "checkpoint-3" / "config.json").write_text("{}")
    check_checkpoint("--model", "runs/mine/checkpoint-3")
    for name in ("runs/nope", "./nope", "nope", "a/b/c", str(tmp_path / "gone"), "~/gone"):
        with pytest.raises(FileNotFoundError, match=r"--model .*: no such folder: give the folder of a checkpoint"):
            check_checkpoint("--model", name)
    with pytest.raises(ValueError, match=r"holds no config.json; its sub-folders runs/mine/checkpoint-3 do"):
        check_checkpoint("--model", "runs/mine")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "https_proxy", "http_proxy", "all_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"--model org/name: .* HF_HUB_OFFLINE"):
        check_checkpoint("--model", "org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a port that refuses
    with pytest.raises(OSError, match=r"the Hub at http://127.0.0.1:9 does not answer \(.*refused"):
        check_checkpoint("--model", "org/name")
    (tmp_path / "home" / "hub" / "models--org--name").mkdir(parents=True)
    check_checkpoint("--model", "org/name")


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    import torch

    check_device("cpu")
    check_device(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--device cuda:1: PyTorch finds no GPU here; use --device cpu"):
        check_device("cuda:1")


def test_did_you_mean():
    assert did_you_mean("--topk", ["--top_k", "--model"]) == "; did you mean --top_k?"
    assert did_you_mean("--zzz", ["--top_k"]) == ""
