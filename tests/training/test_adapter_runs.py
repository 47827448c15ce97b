"""Runs of the training script with adapters: checkpoints, their base model, resuming, refusals and evaluation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lavish_runs import (
    EVENTS,
    EXAMPLES,
    PLAIN,
    SOUND,
    adapter_command,
    finetune,
    load_script,
    losses,
    render_shards,
    save_backbone,
)
from peft import PeftModel
from safetensors.torch import load_file
from tiny_lavish import tiny_segmentation
from transformers import AutoModel, AutoModelForVideoClassification

from hf_avfusion.evaluation.adapter_checkpoints import base_of, load_adapter
from hf_avfusion.evaluation.runs import load_checkpoint, settings_of

TESTS = Path(__file__).resolve().parents[1]
SAVE = ["--save_strategy", "steps", "--save_steps", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return render_shards(tmp_path_factory.mktemp("shapes"), num_train=12, num_validation=4)


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_classification.py")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone("vit", tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def trained(script, shards, backbone, tmp_path_factory):
    """A run of 4 steps with checkpoints after 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    assert finetune(script, *adapter_command(shards, backbone, folder, *SAVE, "--max_steps", "4")) == 0
    return folder


def environment():
    return {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_a_checkpoint_holds_the_adapter_alone(trained, backbone):
    for folder in (trained, trained / "checkpoint-2"):
        assert not (folder / "config.json").exists()
        assert not (folder / "model.safetensors").exists()
        names = set(weights(folder))
        assert any(".lavish_audio.bn_down.running_mean" in name for name in names)
        assert {"base_model.model.classifier.weight", "base_model.model.pre_classifier.weight"} <= names
        assert not any(".backbone." in name for name in names)
        assert (folder / "processor_config.json").is_file()
        assert base_of(folder) == str(trained / "base_model")
    assert json.loads((trained / "adapter_config.json").read_text())["base_model_name_or_path"] == base_of(trained)
    record = json.loads((trained / "recipe.json").read_text())
    assert record["settings"]["adapter"]["reduction"] == 4
    base = AutoModelForVideoClassification.from_pretrained(trained / "base_model").lavish.backbone.state_dict()
    start = AutoModel.from_pretrained(backbone, add_pooling_layer=False).state_dict()
    assert all(torch.equal(base[name], tensor) for name, tensor in start.items())


def test_peft_and_transformers_load_it(trained):
    ours, processor = load_checkpoint(str(trained))
    peft = PeftModel.from_pretrained(AutoModelForVideoClassification.from_pretrained(trained / "base_model"), trained)
    own = AutoModelForVideoClassification.from_pretrained(trained).eval()
    frames = torch.randn(2, 2, 3, 32, 32)
    sound = torch.randn(2, 2, 32, 32)
    with torch.no_grad():
        expected = ours(frames, sound).logits
        assert torch.equal(peft.eval()(frames, sound).logits, expected)
        assert torch.allclose(own(frames, sound).logits, expected, atol=1e-5)
        base = AutoModelForVideoClassification.from_pretrained(trained / "base_model").eval()
        assert not torch.allclose(base(frames, sound).logits, expected, atol=1e-3)
    assert settings_of(ours.config, processor)["adapter_reduction"] == 4


def test_resuming_is_exact(script, shards, backbone, trained, tmp_path):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copytree(trained / "base_model", tmp_path / "base_model")
    command = adapter_command(shards, backbone, tmp_path, *SAVE, "--max_steps", "4", "--resume_from_checkpoint", "true")
    assert finetune(script, *command) == 0
    assert losses(tmp_path) == losses(trained)
    expected = weights(trained)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name
    optimizers = [torch.load(run / "checkpoint-4" / "optimizer.pt") for run in (tmp_path, trained)]
    for state, other in zip(*(each["state"].values() for each in optimizers)):
        assert all(torch.equal(state[key], other[key]) for key in state)


def test_resuming_another_adapter_or_base_is_refused(script, shards, backbone, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    command = adapter_command(
        shards, backbone, tmp_path / "run", "--resume_from_checkpoint", "true", "--max_steps", "6"
    )
    assert finetune(script, *command, "--adapter_config", '{"reduction": 2}') == 2
    assert "does not hold the weights of this adapter" in capsys.readouterr().err
    assert finetune(script, *command, "--seed", "7") == 2
    assert "holds the base model of an earlier run" in capsys.readouterr().err


def test_a_moved_run_is_found_and_a_lost_base_is_named(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "moved")
    for folder in (tmp_path / "moved", tmp_path / "moved" / "checkpoint-4"):
        assert base_of(folder) == str(tmp_path / "moved" / "base_model")
    monkeypatch.chdir(tmp_path / "moved" / "checkpoint-4")
    assert base_of(".") == str(tmp_path / "moved" / "base_model")
    shutil.rmtree(tmp_path / "moved" / "base_model")
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/base_model"
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="is an adapter of /nowhere/base_model, which does not exist: put the folder back"
    ):
        load_checkpoint(str(tmp_path / "moved"))


def test_weights_that_a_checkpoint_lacks_are_named(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "cut")
    kept = weights(trained)
    name = next(name for name in kept if name.endswith("lavish_video.gate"))
    del kept[name]
    from safetensors.torch import save_file

    save_file(kept, tmp_path / "cut" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"The weights of the adapter default lack .*lavish_video\.default\.gate"):
        load_adapter(tmp_path / "cut")


def test_the_best_checkpoint_is_loaded_at_the_end(script, shards, backbone, tmp_path):
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "accuracy", "--eval_strategy", "steps"]
    command = adapter_command(shards, backbone, tmp_path, *SAVE, *best, "--eval_steps", "2", "--max_steps", "4")
    assert finetune(script, *command) == 0
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    best, final = weights(tmp_path / state["best_model_checkpoint"].rpartition("/")[2]), weights(tmp_path)
    for name, tensor in final.items():
        assert torch.equal(tensor, best[name]), name


def test_training_continues_from_an_adapter(script, shards, backbone, trained, tmp_path, capsys):
    command = ["--data", "sounding_shapes", "--source", shards, "--model", trained, *EVENTS, *PLAIN]
    assert (
        finetune(script, *command, "--output_dir", tmp_path / "more", "--max_steps", "1", "--learning_rate", "0") == 0
    )
    assert base_of(tmp_path / "more") == str(trained / "base_model")
    before, after = weights(trained), weights(tmp_path / "more")
    assert before.keys() == after.keys()
    same = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert finetune(script, *command, "--output_dir", tmp_path / "x", "--adapter", "lora") == 2
    assert "is an adapter, which is trained further with its own options" in capsys.readouterr().err


def test_other_labels_get_a_new_head_and_base(script, shards, trained, tmp_path):
    command = ["--data", "sounding_shapes", "--source", shards, "--model", trained, *PLAIN, "--output_dir", tmp_path]
    fields = ["--config", '{"num_segments": null, "spectrogram_length": 32}']
    assert (
        finetune(script, *command, "--label_columns", "shape", *fields, "--max_steps", "1", "--audio_seconds", "1") == 0
    )
    assert base_of(tmp_path) == str(tmp_path / "base_model")
    model, _ = load_checkpoint(str(tmp_path))
    assert model.config.num_labels == 2
    assert model.config.num_segments is None


def test_norms_are_trained_too(script, shards, backbone, tmp_path):
    assert (
        finetune(script, *adapter_command(shards, backbone, tmp_path, "--train_norms", "true", "--max_steps", "1")) == 0
    )
    names = [name for name in weights(tmp_path) if ".backbone." in name]
    assert len(names) == 2 * (2 * 2 + 1)
    assert all("layernorm" in name for name in names)


def test_lora_trains_on_a_lavish_model(script, shards, backbone, tmp_path):
    command = adapter_command(shards, backbone, tmp_path, "--max_steps", "1")
    command = [*command, "--adapter", "lora", "--adapter_config", '{"r": 2}']
    assert finetune(script, *command) == 0
    names = weights(tmp_path)
    assert any(".q_proj.lora_A." in name for name in names)
    assert any(".fc2.lora_B." in name for name in names)
    model, _ = load_checkpoint(str(tmp_path))
    assert settings_of(model.config, load_checkpoint(str(tmp_path))[1])["adapter_r"] == 2


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("4bit", "bitsandbytes")])
def test_quantized_base_trains(script, shards, backbone, trained, tmp_path, kind, package):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install {package})")
    command = adapter_command(shards, backbone, tmp_path, "--quantize", kind, *SAVE, "--max_steps", "4")
    assert finetune(script, *command) == 0
    assert losses(tmp_path) != losses(trained)
    assert losses(tmp_path) == pytest.approx(losses(trained), rel=0.2)
    load_checkpoint(str(tmp_path))
    shutil.rmtree(tmp_path / "checkpoint-4")
    expected = weights(tmp_path)
    assert finetune(script, *command, "--resume_from_checkpoint", "true") == 0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter_config", '{"reductoin": 4}'], "LavishConfig has no field reductoin; did you mean reduction?"),
        (["--adapter_config", '{"reduction": 8, "groups": 2}'], "`groups` (2) must divide the width of each block"),
        (["--adapter_config", '{"num_tokens": 0}'], "`num_tokens` of the adapters must be at least 1"),
        (["--adapter_config", "[1]"], "--adapter_config '[1]' must be a JSON object"),
        (["--adapter", "none", "--train_norms", "true"], "needs an adapter: give --adapter lavish"),
        (["--quantize", "4bit"], "--quantize 4bit needs bitsandbytes: pip install bitsandbytes"),
        (["--model", "mbt", "--from_backbone", "none"], "--adapter lavish: mbt has no places for these adapters"),
    ],
)
def test_wrong_options_are_refused(script, shards, backbone, tmp_path, capsys, monkeypatch, flags, message):
    from hf_avfusion.training.recipes import adapting

    find = adapting.find_spec
    monkeypatch.setattr(adapting, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert finetune(script, *adapter_command(shards, backbone, tmp_path, "--max_steps", "1", *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "base_model").exists()


def test_mbt_trains_lora_adapters(script, shards, tmp_path):
    tiny = '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "fusion_layer": 0}'
    command = [
        "--data",
        "sounding_shapes",
        "--source",
        shards,
        "--label_columns",
        "label",
        *PLAIN,
        "--output_dir",
        tmp_path,
    ]
    command += ["--image_size", "32", "--num_frames", "2", "--span", "2", "--audio_seconds", "2", "--config", tiny]
    assert finetune(script, *command, "--adapter", "lora", "--max_steps", "2") == 0
    model, _ = load_checkpoint(str(tmp_path))
    assert type(model).__name__ == "MBTForAudioVisualClassification"


@pytest.mark.parametrize(
    ("task", "more", "head"),
    [
        ("segmentation", ["--label_columns", "masks", "--set", "window.segment_frame=0.5"], "decoder."),
        ("question_answering", [*SOUND, "--eval_split", "none"], "head."),
    ],
)
def test_the_other_tasks_train_adapters_too(shards, tmp_path, task, more, head):
    folder, fields = tmp_path / "backbone", {"question_hidden_size": 16}
    if task == "segmentation":
        config = tiny_segmentation()
        AutoModel.from_config(config.backbone_config).save_pretrained(folder)
        names = ("mask_size", "decoder_map_widths", "decoder_width", "decoder_head_widths")
        fields = {name: getattr(config, name) for name in names}
    else:
        save_backbone("vit", folder)
    command = [
        "--data",
        "sounding_shapes",
        "--source",
        shards,
        "--output_dir",
        tmp_path / "run",
        *PLAIN,
        "--max_steps",
        "2",
    ]
    command += ["--num_segments", "2", "--from_backbone", folder, "--adapter", "lavish", *more]
    command += ["--adapter_config", '{"reduction": 4, "groups": 1}', "--config", json.dumps(fields)]
    assert finetune(load_script(f"finetune_{task}.py"), *command) == 0
    names = set(weights(tmp_path / "run"))
    assert any(name.startswith(f"base_model.model.{head}") for name in names)
    assert not any(".backbone." in name for name in names)
    model, _processor = load_checkpoint(str(tmp_path / "run"))
    assert type(model).__name__ == {"segmentation": "LavishForSegmentation"}.get(task, "LavishForQuestionAnswering")
    more = ["--model", tmp_path / "run", "--data", "sounding_shapes", "--source", shards, "--max_steps", "1", *PLAIN]
    columns = ["--label_columns", "masks"] if task == "segmentation" else ["--eval_split", "none"]
    assert finetune(load_script(f"finetune_{task}.py"), *more, *columns, "--output_dir", tmp_path / "more") == 0


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(shards, backbone, trained, tmp_path):
    code = (
        "import sys, os, signal; sys.path.insert(0, sys.argv.pop(1)); from lavish_runs import load_script\n"
        "from hf_avfusion.training.trainer import AVTrainer\n"
        "own = AVTrainer.training_step\n"
        "def step(self, *args, **options):\n"
        "    if self.state.global_step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return own(self, *args, **options)\n"
        "AVTrainer.training_step = step\n"
        "sys.exit(load_script('finetune_classification.py').main())"
    )
    command = [str(word) for word in adapter_command(shards, backbone, tmp_path, *SAVE, "--max_steps", "4")]
    killed = subprocess.run([sys.executable, "-c", code, str(TESTS), *command], env=environment(), capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert finetune(load_script("finetune_classification.py"), *command, "--resume_from_checkpoint", "true") == 0
    expected = weights(trained)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


@pytest.mark.slow
def test_two_processes_train_one_adapter(shards, backbone, tmp_path):
    """Adapters with BatchNorm; the gathered batch is that of one process, its statistics are of each process's half."""
    script = EXAMPLES / "finetune_classification.py"
    command = [
        str(word)
        for word in adapter_command(shards, backbone, tmp_path, *SAVE, "--max_steps", "2", "--ddp_backend", "gloo")
    ]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29533",
        str(script),
    ]
    done = subprocess.run([*launch, *map(str, command)], env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path)) == 2
    names = weights(tmp_path)
    gates = [tensor for name, tensor in names.items() if name.endswith("lavish_video.gate")]
    assert gates
    assert all(gate.item() != 0 for gate in gates)
    load_checkpoint(str(tmp_path))
