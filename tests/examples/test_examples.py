"""The example scripts as a user runs them: tiny settings, real rendered clips, and a real process where that matters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import torchrun
from rendering import render_clip
from scripts import EXAMPLES, call, process

from hf_avfusion.data.synthetic.sounding_shapes import render

# A model with a few thousand weights for 32 x 32 pixels and 2 s of audio.
TINY = [
    "--image_size", "32", "--num_frames", "2", "--span", "2", "--audio_seconds", "2",
    "--config", '{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "fusion_layer": 1}',
    "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--use_cpu", "True", "--report_to", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=32, num_validation=0, num_test=16, num_proc=1, progress=False, rows_per_shard=16)
    return folder


@pytest.fixture(scope="module")
def checkpoint(shards, tmp_path_factory):
    """A checkpoint with two heads from a small version of a recipe: two steps, stopped and resumed."""
    folder = tmp_path_factory.mktemp("run")
    command = [
        "--data", "sounding_shapes", "--source", shards, "--label_columns", "shape", "sound", "--output_dir", folder, *TINY,
        "--recipe", "mbt/vggsound", "--from_vit", "none", "--global_batch_size", "16", "--warmup_epochs", "0",
        "--modality_dropout", "0.2", "--save_steps", "1",
    ]  # fmt: skip
    done = process("finetune_classification.py", *command, "--max_steps", "1")
    assert re.search(r"MBTForAudioVisualClassification: [\d,]+ parameters, 8 classes", done.stdout), done.stdout
    call(
        "finetune_classification.py", *command, "--max_steps", "2", "--resume_from_checkpoint", folder / "checkpoint-1",
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_finetuning_saves_model_processor_and_metrics(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["class_splits"] == [["shape", 4], ["sound", 4]]  # pairs, since JSON would sort the keys of a map
    assert list(config["id2label"].values())[:4] == ["circle", "cross", "triangle", "ring"]
    for folder in (checkpoint, checkpoint / "checkpoint-1", checkpoint / "checkpoint-2"):
        assert {"model.safetensors", "processor_config.json"} <= {file.name for file in folder.iterdir()}
    metrics = json.loads((checkpoint / "test_results.json").read_text())
    assert {"eval_loss", "eval_top1_shape", "eval_top1_sound", "eval_top1_joint"} <= set(metrics)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == 2


@pytest.mark.slow
def test_finetuning_with_a_recipe_records_overridden_values(checkpoint):
    record = json.loads((checkpoint / "recipe.json").read_text())
    assert record["recipe"] == "mbt/vggsound"
    assert record["batch"] == {"global": 16, "devices": 1, "per_device": 8, "accumulated": 2}
    assert [resumed["checkpoint"] for resumed in record["resumed"]] == ["checkpoint-1"]
    assert record["resumed"][0]["changed"] == {"training.max_steps": {"before": 1, "since": 2}}
    assert record["overridden"]["training.learning_rate"] == {"recipe": 0.5, "run": 0.001}
    assert record["overridden"]["batch_size"] == {"recipe": 64, "run": 16}
    assert "training.momentum" not in record["overridden"]
    assert json.loads((checkpoint / "config.json").read_text())["label_smoothing"] == 0.3


@pytest.fixture(scope="module")
def folder_of_clips(shards, tmp_path_factory):
    """Class sub-folders of mp4 files, and a broken file next to them."""
    from hf_avfusion.data.benchmarks.loading import load_benchmark

    folder = tmp_path_factory.mktemp("clips")
    for row in load_benchmark("sounding_shapes", "train", source=shards).take(12):
        clip = folder / f"class_{row['shape'] % 2}" / f"{row['clip_id']}.mp4"
        clip.parent.mkdir(exist_ok=True)
        clip.write_bytes(row["video"]["bytes"])
    return folder


@pytest.mark.slow
def test_predicting_files_and_folders(checkpoint, folder_of_clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film at all")
    clip = next((folder_of_clips / "class_0").iterdir())
    same_name = tmp_path / "[red]" / clip.name  # not console markup; its picture must not overwrite the other's
    same_name.parent.mkdir()
    same_name.write_bytes(clip.read_bytes())
    done = call(
        "predict.py", "--model", checkpoint, folder_of_clips / "class_1", clip, same_name, broken, tmp_path / "gone.mp4",
        "--top_k", "2", "--output", tmp_path / "new" / "out.jsonl", "--pictures", tmp_path / "pictures", "--device", "cpu",
    )  # fmt: skip
    assert "top 2" in done.stdout
    assert "broken.mp4" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    expected = {*map(str, (folder_of_clips / "class_1").iterdir()), str(clip), str(same_name)}
    predicted = {line["clip"]: line["predictions"] for line in lines if "predictions" in line}
    assert set(predicted) == expected
    assert {line["clip"] for line in lines if "skipped" in line} == {str(broken), str(tmp_path / "gone.mp4")}
    for heads in predicted.values():
        assert set(heads) == {"shape", "sound"}
        for labels in heads.values():
            assert len(labels) == 2
            assert 0 < labels[1]["score"] <= labels[0]["score"] < 1
    assert "[red]" in done.stdout
    for name in (clip.stem, f"{clip.stem}-2"):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def errors(stderr: str) -> list[str]:
    """Lines of a process's stderr, without those that bars and imports of libraries print."""
    return [line for line in stderr.splitlines() if line.strip() and "it/s]" not in line and "/_pytree.py:" not in line]


@pytest.mark.slow
def test_predicting_with_a_pretraining_checkpoint_names_the_fine_tuning_script(tmp_path):
    from travellers import avmae, processor

    from hf_avfusion import AVMAEForPreTraining, AVMAEProcessor

    avmae(AVMAEForPreTraining).save_pretrained(tmp_path)
    processor(AVMAEProcessor).save_pretrained(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"not read")
    done = process("predict.py", "--model", tmp_path, tmp_path / "clip.mp4", "--device", "cpu", check=False)
    assert done.returncode == 1
    assert f"python examples/finetune_classification.py --model {tmp_path}" in done.stderr.splitlines()[-1]
    assert len(errors(done.stderr)) == 1
    assert "top 1" not in done.stdout
    (tmp_path / "processor_config.json").unlink()
    done = call("predict.py", "--model", tmp_path, tmp_path / "clip.mp4", "--device", "cpu", check=False)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert line.startswith("error: ")
    assert str(tmp_path) in line


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"num_segments": 4}], ids=["clips", "segments"])
def test_pictures_of_an_avmae(fields, tmp_path):
    from travellers import avmae, processor

    from hf_avfusion import AVMAEProcessor

    avmae(**fields).save_pretrained(tmp_path / "model")
    processor(AVMAEProcessor).save_pretrained(tmp_path / "model")
    (tmp_path / "clip.mp4").write_bytes(render_clip())
    options = ("--pictures", tmp_path / "seen", "--device", "cpu")
    done = call("predict.py", "--model", tmp_path / "model", tmp_path / "clip.mp4", *options)
    assert "top 5" in done.stdout
    assert (tmp_path / "seen" / "clip.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pictures_of_a_model_without_maps_are_refused_before_the_first_clip(tmp_path):
    from travellers import INPUTS, SIZES, processor

    from hf_avfusion import MBTConfig, MBTForAudioVisualClassification

    straddling = {"num_sampled_frames": 2, "tubelet_size": 1, "image_size": [20, 16], "drop_remainder": True}
    MBTForAudioVisualClassification(MBTConfig(**{**SIZES, **INPUTS, **straddling})).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"not read")
    options = ("--pictures", tmp_path / "seen", "--output", tmp_path / "out.jsonl", "--device", "cpu")
    done = call("predict.py", "--model", tmp_path, tmp_path / "clip.mp4", *options, check=False)
    assert done.returncode == 1
    assert "patches straddle frames" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_no_readable_file_fails(checkpoint, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    done = call("predict.py", "--model", checkpoint, tmp_path, "--device", "cpu", check=False)
    assert done.returncode == 1
    assert "skipped" in done.stdout


@pytest.mark.slow
def test_checkpoint_is_fine_tuned_on_a_folder_with_other_labels(checkpoint, folder_of_clips, tmp_path):
    done = call(
        "finetune_classification.py", "--data", folder_of_clips, "--model", checkpoint, "--output_dir", tmp_path,
        *TINY[-8:], "--max_steps", "1",
    )  # fmt: skip
    assert "2 classes" in done.stdout
    config = json.loads((tmp_path / "config.json").read_text())
    assert list(config["id2label"].values()) == ["class_0", "class_1"]
    assert not config.get("class_splits")
    assert "eval_top1" in json.loads((tmp_path / "test_results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", '{"hidden_siz": 32}'], "MBTConfig has no fields hidden_siz"),
        (["--model", "some/checkpoint", "--image_size", "64"], "--image_size: allowed for a new model only"),
    ],
)
def test_options_without_effect_fail(folder_of_clips, tmp_path, options, message):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    options = [str(tmp_path / "checkpoint") if option == "some/checkpoint" else option for option in options]
    done = call(
        "finetune_classification.py", "--data", folder_of_clips, "--output_dir", tmp_path, *options, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quickstart_from_rendering_to_picture(tmp_path, monkeypatch):
    """Runs all stages on a few clips; it does not test the accuracies of the full settings."""
    options = ["--train_clips", "32", "--test_clips", "16", "--steps", "3", "--batch_size", "16", "--workers", "1"]
    done = process("quickstart.py", "--output", tmp_path, *options)
    for row in (
        "bottleneck fusion, both modalities",
        "same model, audio only",
        "same model, video only",
        "late fusion",
    ):
        assert row in done.stdout
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")

    def run_here(command, check):
        assert Path(command[0]) == Path(sys.executable)
        print(call(Path(command[1]).name, *command[2:], check=check).stdout)

    monkeypatch.setattr(subprocess, "run", run_here)  # of predict.py
    again = call("quickstart.py", "--output", tmp_path, "--clip", tmp_path / "clip.mp4")
    assert "clip.mp4" in again.stdout
    assert "training" not in again.stdout


EVALUATE = ["--label_columns", "shape", "sound", "--views", "2", "--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def report(checkpoint, shards, tmp_path_factory):
    """The report on two checkpoints of one run, with a sweep over spans and both samplings."""
    folder = tmp_path_factory.mktemp("report")
    done = call(
        "evaluate.py", "--checkpoint", checkpoint, "--runs", checkpoint / "checkpoint-1", "--benchmark", "sounding_shapes",
        "--source", shards, *EVALUATE, "--modalities", "av,a,v", "--spans", "1,2", "--sampling", "sync,async", "--output", folder,
    )  # fmt: skip
    assert "audio and video" in done.stdout
    return folder


@pytest.mark.slow
def test_evaluating_checkpoints(report, checkpoint):
    results = json.loads((report / "results.json").read_text())
    # The checkpoint was trained with a span of 2 s, so that span is evaluated only once.
    conditions = [(each["given"], each["span"], each["sampling"]) for each in results["evaluations"]]
    assert conditions[: len(conditions) // 2] == [
        *((given, span, "spread") for span in (2.0, 1.0) for given in ("av", "a", "v")),
        ("av", 2.0, "sync"), ("av", 2.0, "async"),
    ]  # fmt: skip
    assert [row["n"] for row in results["summary"]] == [2] * 8
    assert {each["checkpoint"] for each in results["evaluations"]} == {
        str(checkpoint),
        str(checkpoint / "checkpoint-1"),
    }
    for each in results["evaluations"]:
        assert (each["clips"], each["skipped"], each["views"]) == (16, 0, 2)
        assert {"top1_shape", "top1_sound", "top1_joint"} <= set(each["metrics"])
    assert results["benchmark"]["coverage"]["present"] == 16
    heads = [f"{name}_{head}" for name in ("per_class_ap", "fusion_gain") for head in ("shape", "sound")]
    assert {path.name for path in report.iterdir()} == {
        "results.json", "table.md", *(f"{n}.{kind}" for n in [*heads, "span_sweep", "sampling"] for kind in ("csv", "png"))
    }  # fmt: skip


@pytest.mark.slow
def test_evaluating_with_two_processes_and_earlier_results(report, checkpoint, shards, tmp_path):
    """Every clip is evaluated once with the same scores; earlier results in results.json are not computed again."""
    command = ["--runs", checkpoint / "checkpoint-2", report, "--benchmark", "sounding_shapes", "--source", shards]
    command += [*EVALUATE, "--modalities", "av,a", "--output", tmp_path / "report"]
    done = torchrun(tmp_path / "output", EXAMPLES / "evaluate.py", *map(str, command))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("written: ") == len(list((tmp_path / "report").iterdir()))  # by one process
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    earlier = json.loads((report / "results.json").read_text())["evaluations"]
    assert results["evaluations"][: len(earlier)] == earlier
    new = results["evaluations"][len(earlier) :]
    assert [each["given"] for each in new] == ["av", "a"]
    for each in new:  # checkpoint-2 holds the weights of the finished run
        (same,) = [
            other for other in earlier
            if other["checkpoint"] == str(checkpoint) and all(other[k] == each[k] for k in ("given", "span", "sampling"))
        ]  # fmt: skip
        assert (each["clips"], each["skipped"]) == (16, 0)
        assert each["metrics"] == same["metrics"]
        for head, scores in each["per_class"].items():
            assert scores["average_precision"] == pytest.approx(same["per_class"][head]["average_precision"], abs=1e-6)
    assert results["summary"][0]["n"] == 3


@pytest.mark.slow
def test_wrong_checkpoint_fails_before_the_evaluation(checkpoint, folder_of_clips, tmp_path):
    done = call(
        "evaluate.py", "--checkpoint", checkpoint, "--benchmark", folder_of_clips, "--output", tmp_path / "report",
        "--label_columns", "label", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {checkpoint}: label_columns (--label_columns) label: got 1, but the model has 2 heads: shape, sound; "
        "pass one column per head"
    )  # fmt: skip
    assert not (tmp_path / "report").exists()
