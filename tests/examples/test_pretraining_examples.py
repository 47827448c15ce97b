"""Pretraining on clips without labels and the examples that use the checkpoint, in one process."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from equality import assert_same_bits
from safetensors.torch import load_file

from hf_avfusion.data.synthetic.sounding_shapes import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLAIN = ["--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--shuffle_buffer", "8"]
SMALL = json.dumps({
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16, "patch_size": 8,
})  # fmt: skip


@pytest.fixture
def example(monkeypatch):
    """Calls a script's `main` with arguments."""

    def run(script, *arguments):
        spec = importlib.util.spec_from_file_location(Path(script).stem, EXAMPLES / script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, Path(script).stem, module)  # dataclasses look up their module there
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        return module.main()

    return run


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Shards, and the same clips as files without labels."""
    from hf_avfusion.data.benchmarks.loading import load_benchmark

    folder = tmp_path_factory.mktemp("shapes")
    render(folder / "shards", num_train=12, num_validation=0, num_test=4, num_proc=1, progress=False)
    (folder / "files").mkdir()
    for row in load_benchmark("sounding_shapes", "train", source=folder / "shards"):
        (folder / "files" / f"{row['clip_id']}.mp4").write_bytes(row["video"]["bytes"])
    return folder


@pytest.fixture
def pretrained(example, clips, tmp_path):
    """A checkpoint from a small version of a recipe: three steps, stopped after the first and resumed."""
    command = [
        "--recipe", "avmae/pretrain-vggsound", "--data", clips / "files", "--output_dir", tmp_path / "mae", *PLAIN,
        "--image_size", "32", "--num_frames", "4", "--span", "2", "--audio_seconds", "2", "--config", SMALL,
        "--set", "audio.num_mel_bins=32", "--global_batch_size", "8", "--per_device_train_batch_size", "4", "--max_steps", "3",
        "--warmup_epochs", "0", "--save_steps", "1", "--logging_steps", "1", "--picture_steps", "2",
    ]  # fmt: skip
    example("pretrain_avmae.py", *command)
    torch.manual_seed(123)
    example(
        "pretrain_avmae.py", *command, "--output_dir", tmp_path / "again", "--resume_from_checkpoint",
        tmp_path / "mae" / "checkpoint-1",
    )  # fmt: skip
    return tmp_path / "mae"


def test_pretraining_reconstruction_and_fine_tuning(example, clips, pretrained, tmp_path, capsys):
    first, again = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "again"))
    assert_same_bits(again, first)
    history = json.loads((pretrained / "trainer_state.json").read_text())["log_history"]
    assert sum("loss_video" in entry and "loss_audio" in entry for entry in history) == 3
    results = json.loads((pretrained / "test_results.json").read_text())
    assert {"eval_loss", "eval_loss_video", "eval_loss_audio"} <= set(results)
    assert [file.name for file in (pretrained / "reconstructions").iterdir()] == ["step-000002.png"]
    record = json.loads((pretrained / "recipe.json").read_text())
    assert record["batch"] == {"global": 8, "devices": 1, "per_device": 4, "accumulated": 2}
    assert record["settings"]["training"]["learning_rate"] == pytest.approx(1.5e-4 * 8 / 256)

    clip = next((clips / "files").iterdir())
    command = [
        "--model",
        pretrained,
        clip,
        "--output",
        tmp_path / "pictures",
        "--device",
        "cpu",
        "--audio_mask_ratio",
        "0.9",
    ]
    assert example("reconstruct.py", *command) == 0
    assert (tmp_path / "pictures" / f"{clip.stem}.png").read_bytes().startswith(b"\x89PNG")
    command = ["--model", pretrained, tmp_path / "gone.mp4", "--output", tmp_path / "none", "--device", "cpu"]
    assert example("reconstruct.py", *command) == 1
    assert "skipped" in capsys.readouterr().out

    tuning = [
        "--data", "sounding_shapes", "--source", clips / "shards", *PLAIN, "--per_device_train_batch_size", "4",
        "--max_steps", "1", "--save_strategy", "no",
    ]  # fmt: skip
    # Into an MBT by the published mapping, then event localisation with the model's own encoder.
    example(
        "finetune_classification.py", *tuning, "--from_avmae", pretrained, "--output_dir", tmp_path / "mbt", "--config",
        '{"fusion_layer": 1}', "--label_columns", "shape",
    )  # fmt: skip
    assert json.loads((tmp_path / "mbt" / "config.json").read_text())["model_type"] == "mbt"
    assert "eval_top1" in json.loads((tmp_path / "mbt" / "test_results.json").read_text())
    example(
        "finetune_classification.py", *tuning, "--model", pretrained, "--output_dir", tmp_path / "events",
        "--label_columns", "events", "--num_segments", "2",
    )  # fmt: skip
    assert 0 <= json.loads((tmp_path / "events" / "test_results.json").read_text())["eval_accuracy"] <= 1
    lines = tmp_path / "lines.jsonl"
    assert example("predict.py", "--model", tmp_path / "events", clip, "--output", lines, "--device", "cpu") == 0
    (line,) = lines.read_text().splitlines()
    assert list(json.loads(line)["predictions"]) == ["part 1", "part 2"]
    # A linear probe on audio only.
    example(
        "finetune_classification.py", *tuning, "--model", pretrained, "--output_dir", tmp_path / "probe",
        "--label_columns", "sound", "--config", '{"freeze_encoder": true, "modalities": ["audio"]}',
    )  # fmt: skip
    probe, encoder = (load_file(folder / "model.safetensors") for folder in (tmp_path / "probe", pretrained))
    same = [name for name in probe if name in encoder]
    assert len(same) > 10
    assert all(torch.equal(probe[name], encoder[name]) for name in same)
