"""Arguments of the two training scripts: recipes by name, splits, wrong arguments and undecodable clips."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from rendering import render_clip
from scripts import process

from hf_avfusion.data.benchmarks.loading import evaluation_split, get_record
from hf_avfusion.data.benchmarks.records import read_labels
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.media.reader import MediaError
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes import RECIPES, building_runs
from hf_avfusion.training.recipes.command_line import exit_with_error, parse_with_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = {"classification": "finetune_classification.py", "pretraining": "pretrain_avmae.py"}
# Their own tests are elsewhere; here their recipes are parsed.
OTHER_SCRIPTS = {"segmentation": "finetune_segmentation.py", "question_answering": "finetune_question_answering.py"}
PLAIN = ["--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no"]
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = {f"decoder_{name}": value for name, value in ENCODER.items()}
TINY = ["--from_vit", "none", "--image_size", "32", "--num_frames", "2", "--span", "2", "--audio_seconds", "2"]
TASK_OPTIONS = {
    "classification": ["--config", json.dumps({**ENCODER, "fusion_layer": 1})],
    "pretraining": ["--config", json.dumps({**ENCODER, **DECODER, "patch_size": 16}), "--picture_steps", "0"],
}


def load(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module there
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts():
    return {task: load(name) for task, name in {**SCRIPTS, **OTHER_SCRIPTS}.items()}


@pytest.fixture
def run(scripts, monkeypatch):
    """Calls the script's `main` with a command line and returns its exit status."""

    def call(task, *arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPTS[task], *map(str, arguments)])
        return scripts[task].main()

    return call


@pytest.fixture(scope="module")
def film():
    return render_clip(num_frames=50)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def own_videos(film, tmp_path):
    """A folder with train and validation splits but no test split."""
    for name in ("train/cat/a", "train/dog/b", "val/cat/c", "val/dog/d"):
        write(tmp_path / "mine" / f"{name}.mp4", film)
    return tmp_path / "mine"


# ---- recipes and splits


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_its_benchmark(scripts, tmp_path, name):
    recipe = RECIPES[name]
    command = ["--recipe", name, "--data", recipe.benchmark, "--source", str(tmp_path), "--output_dir", str(tmp_path)]
    if recipe.init_method == "from_avmae":
        command += ["--from_avmae", "none"]
    if name.endswith("@vggish"):
        command += ["--from_vggish", "none"]
    options_class = scripts[recipe.task].Options
    _, options, _ = parse_with_recipe(
        options_class, AVTrainingArguments, [*command, "--use_cpu", "--report_to", "none"], task=recipe.task
    )
    record = get_record(recipe.benchmark, options.variant, "train")
    assert record == get_record(recipe.benchmark, recipe.variant)
    own = {"audioset": "eval", **dict.fromkeys(("kinetics400", "epic_kitchens_100", "moments_in_time"), "validation")}
    assert evaluation_split(record, options.eval_split) == own.get(recipe.benchmark, "test")
    assert getattr(options, "train_split", "train") in record.splits


@pytest.mark.parametrize(
    ("task", "recipe"), [("classification", "mbt/audioset-mini"), ("pretraining", "avmae/pretrain-audioset")]
)
def test_audioset_is_evaluated_on_its_eval_split(run, film, tmp_path, task, recipe):
    first, second = read_labels("audioset_mids")[:2]
    # The training splits of both variants.
    parts = {"balanced_train": "ab", "unbalanced_train": "ab", "eval": "c"}
    for part, clips in parts.items():
        lines = [f'{clip}, 0.000, 2.000, "{first},{second}"\n' for clip in clips]
        (tmp_path / f"{part}_segments.csv").write_text("".join(lines))
        for clip in clips:
            write(tmp_path / "clips" / f"{clip}_000000.mp4", film)
    command = ["--recipe", recipe, "--data", "audioset", "--source", tmp_path, "--output_dir", tmp_path / "out"]
    command += ["--max_steps", "1", "--global_batch_size", "2", "--warmup_epochs", "0", "--learning_rate", "1e-3"]
    assert run(task, *command, *PLAIN, *TINY, *TASK_OPTIONS[task], "--eval_num_views", "1") == 0
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_clips"] == 1


@pytest.mark.parametrize("task", SCRIPTS)
def test_folder_without_test_split_is_evaluated_on_its_validation_split(run, own_videos, tmp_path, task):
    command = [
        "--data",
        own_videos,
        "--output_dir",
        tmp_path / "out",
        "--max_steps",
        "1",
        *PLAIN,
        *TINY,
        *TASK_OPTIONS[task],
    ]
    assert run(task, *command) == 0
    assert json.loads((tmp_path / "out" / "validation_results.json").read_text())["eval_clips"] == 2


@pytest.mark.parametrize("task", SCRIPTS)
def test_best_checkpoint_is_chosen_on_validation_clips_alone(run, film, tmp_path, capsys, monkeypatch, task):
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / "mine" / name / f"{number}.mp4", film)
    write(tmp_path / "mine" / "cat" / "4.mp4", b"no film at all")
    evaluated = []
    trainer = building_runs.AVTrainer
    loop = trainer.evaluation_loop

    def watched(self, dataloader, *args, **kwargs):
        evaluated.append(({row["clip_id"] for row in dataloader.dataset.rows}, self.is_in_train))
        return loop(self, dataloader, *args, **kwargs)

    monkeypatch.setattr(trainer, "evaluation_loop", watched)
    command = ["--data", tmp_path / "mine", "--output_dir", tmp_path / "out", "--max_steps", "2", *TINY, *PLAIN[:-2]]
    command += ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]
    assert run(task, *command, *TASK_OPTIONS[task]) == 0
    (first, second, last) = evaluated
    assert first == second
    assert (first[1], last[1]) == (True, False)
    assert not first[0] & last[0]
    assert (tmp_path / "out" / "test_results.json").exists()
    printed = capsys.readouterr().out
    assert "the best checkpoint is chosen by loss on `validation`; `test` is evaluated once, at the end" in printed
    counts = [json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][-1]["skipped_clips"]]
    counts.append(json.loads((tmp_path / "out" / "test_results.json").read_text())["eval_skipped_clips"])
    stated = f"skipped {sum(counts)} clips that could not be decoded" in " ".join(printed.split())
    assert stated == (sum(counts) > 0)


def test_pretraining_without_an_evaluation_split(run, own_videos, tmp_path):
    command = ["--data", own_videos, "--output_dir", tmp_path / "out", "--max_steps", "1", "--eval_split", "None"]
    assert run("pretraining", *command, *PLAIN, *TINY, *TASK_OPTIONS["pretraining"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not list((tmp_path / "out").glob("*_results.json"))


def test_resuming_with_another_model_or_without_the_flag_fails(run, own_videos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--data", own_videos, "--output_dir", out, "--max_steps", "3", *TINY, *TASK_OPTIONS["classification"]]
    command += ["--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--save_steps", "2"]
    command += ["--lr_scheduler_type", "constant"]
    assert run("classification", *command) == 0
    weights, record = ((out / name).read_bytes() for name in ("model.safetensors", "recipe.json"))
    capsys.readouterr()

    other = ["--config", json.dumps({**ENCODER, "fusion_layer": 1, "num_bottleneck_tokens": 2})]
    assert run("classification", *command, *other, "--resume_from_checkpoint", "true") != 0
    assert "holds another model's weights: 1 differ" in capsys.readouterr().err
    assert run("classification", *command) != 0
    assert "holds checkpoints of an earlier run (checkpoint-2, checkpoint-3): resume" in capsys.readouterr().err
    assert (out / "recipe.json").read_bytes() == record  # the checks fail before anything is written

    assert (
        run("classification", *command, "--resume_from_checkpoint", "true") == 0
    )  # the run had finished, so there are no steps left
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert (out / "model.safetensors").read_bytes() == weights


# ---- wrong arguments


WRONG = [
    ("classification", ["--recipe", "mbt/nope", "--data", "vggsound"], "There is no recipe 'mbt/nope'"),
    ("classification", ["--recipe", "avmae/pretrain-vggsound", "--data", "vggsound"], "is for pretraining, not for"),
    ("classification", ["--data", "nope"], "nope is neither a file, a folder nor the name of a benchmark"),
    ("classification", ["--data", "vggsound"], "VGGSound needs source= (--source): pass source= a folder"),
    ("classification", ["--data", "vggsound", "--source", "/gone"], "source '/gone' is neither a folder nor"),
    (
        "classification",
        ["--data", "YOURS", "--source", "clips"],
        "source= (--source): allowed only for the benchmarks vggsound,",
    ),
    (
        "pretraining",
        ["--data", "YOURS", "--variant", "mini"],
        "variant= (--variant): allowed only for the benchmarks vggsound,",
    ),
    ("classification", ["--data", "vggsound", "--args_file", "nofile"], "['--args_file', 'nofile']"),
    (
        "classification",
        ["--data", "audioset", "--variant", "mini", "--eval_split", "test"],
        "--eval_split test: AudioSet has no such split; its splits are: train, eval",
    ),
    (
        "classification",
        ["--data", "YOURS", "--label_columns", "verb"],
        "are label; pass label_columns= (--label_columns)",
    ),
    (
        "classification",
        ["--data", "YOURS", "--num_segments", "2"],
        "num_segments=2 (event localisation) needs a label column",
    ),
    (
        "classification",
        ["--data", "YOURS", "--eval_split", "test"],
        "choose one with split= (--split; for training, --eval_split)",
    ),
    ("classification", ["--data", "YOURS", "--model", "gone/for_good"], "huggingface.co"),
    ("classification", ["--data", "YOURS", "--config", '{"hidden_size": "many"}'], "hidden_size"),
    ("pretraining", ["--recipe", "avmae/nope", "--data", "vggsound"], "There is no recipe 'avmae/nope'"),
    ("pretraining", ["--recipe", "mbt/vggsound", "--data", "vggsound"], "is for classification, not for pretraining"),
    ("pretraining", ["--data", "nope"], "nope is neither a file, a folder nor the name"),
    ("pretraining", ["--data", "vggsound"], "needs source= (--source)"),
    ("pretraining", ["--data", "YOURS", "--picture_clip", "gone.mp4"], "--picture_clip gone.mp4: no such file"),
    (
        "pretraining",
        ["--data", "YOURS", "--eval_split", "train", "--fsdp", "full_shard"],
        "but FSDP and DeepSpeed's ZeRO-3 shard it: disable them (--picture_steps 0)",
    ),
    ("pretraining", ["--data", "audioset", "--eval_split", "test"], "--eval_split test: AudioSet has no such split"),
]


@pytest.mark.parametrize(("task", "options", "message"), WRONG)
def test_wrong_arguments_print_a_one_line_error(run, own_videos, tmp_path, capsys, task, options, message):
    options = [own_videos if option == "YOURS" else option for option in options]
    assert run(task, *options, "--output_dir", tmp_path / "out", "--use_cpu", "True", "--report_to", "none") == 2
    printed = capsys.readouterr().err
    last = printed.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "recipe.json").exists()


@pytest.mark.parametrize("task", SCRIPTS)
def test_wrong_start_fails_before_the_record_of_an_earlier_run_is_replaced(run, own_videos, tmp_path, capsys, task):
    write(tmp_path / "out" / "recipe.json", b"of an earlier run")
    command = ["--data", own_videos, "--output_dir", tmp_path / "out", *PLAIN, *TINY, *TASK_OPTIONS[task]]
    for options, message in (
        (
            ["--resume_from_checkpoint", tmp_path / "out/checkpoint-3"],
            "out/checkpoint-3, is not a folder. There is no complete",
        ),
        (["--resume_from_checkpoint", "true"], "There is no complete checkpoint in "),
        (["--dataloader_drop_last", "true"], "The training set has 2 clips, less than one batch"),
        (["--schedule", "warmup_cosine", "--warmup_steps", "90"], "The warm-up of 90 updates does not end within"),
    ):
        assert run(task, *command, *options) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
    assert (tmp_path / "out" / "recipe.json").read_bytes() == b"of an earlier run"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS.values())
def test_exit_status_of_an_error(tmp_path, script):
    done = process(script, "--data", tmp_path / "nope", "--output_dir", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path / 'nope'} is neither a file, a folder nor the name"
    )
    assert "Traceback" not in done.stderr + done.stdout


def test_errors_of_other_processes_include_their_rank(monkeypatch, capsys):
    for local, rank in (("0", "8"), ("1", "9")):
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setenv("RANK", rank)
        assert exit_with_error(OSError("no\n  clips")) == 2
    assert capsys.readouterr().err == "error: no clips\nerror (process 9): no clips\n"


# ---- undecodable clips


@pytest.mark.parametrize("task", SCRIPTS)
@pytest.mark.parametrize("broken", ["train/cat/a", "val/dog/d"])
def test_undecodable_clip_is_skipped_or_stops_the_run(
    run, scripts, own_videos, film, tmp_path, monkeypatch, task, broken
):
    """Checks the training stream and the evaluation stream of each script."""
    made = []

    class Watched(ClipStream):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(building_runs, "ClipStream", Watched)
    write(own_videos / f"{broken}.mp4", b"no film at all")
    write(own_videos / "train/cat/e.mp4", film)
    command = ["--data", own_videos, "--output_dir", tmp_path / "out", *PLAIN, *TINY, *TASK_OPTIONS[task]]
    command += ["--num_train_epochs", "1", "--per_device_train_batch_size", "1"]
    assert run(task, *command) == 0
    assert [stream.skipped for stream in made] == ([1, 0] if broken.startswith("train") else [0, 1])
    with pytest.raises(MediaError, match=f"clip {broken}.mp4: "):
        run(task, *command, "--on_decode_failure", "stop")
    assert [stream.on_error for stream in made] == ["skip", "skip", "stop", "stop"]
