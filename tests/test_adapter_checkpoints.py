"""Folders and Hub repositories that hold only an adapter, wherever a checkpoint is taken: evaluate, predict, pipelines, pushing."""

import json
from pathlib import Path

import pytest
import torch
from lavish_runs import adapter_command, finetune, load_script, render_shards, save_backbone
from transformers import AutoConfig, AutoModelForVideoClassification, AutoProcessor, pipeline

import hf_avfusion  # noqa: F401
from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.evaluation.runs import load_checkpoint


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return render_shards(tmp_path_factory.mktemp("shapes"), num_train=4)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    backbone = save_backbone("vit", tmp_path_factory.mktemp("backbone"))
    script = load_script("finetune_classification.py")
    assert finetune(script, *adapter_command(shards, backbone, folder, "--max_steps", "3")) == 0
    return folder


@pytest.fixture(scope="module")
def clip(shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(next(iter(load_benchmark("sounding_shapes", "test", source=shards)))["video"]["bytes"])
    return path


def logits_of(model, processor, clip):
    with torch.no_grad():
        return model.eval()(**processor(videos=str(clip), return_tensors="pt")).logits


def test_evaluate_and_predict_take_it(trained, shards, clip, tmp_path, capsys):
    options = [
        "--benchmark",
        "sounding_shapes",
        "--source",
        shards,
        "--label_columns",
        "events",
        "--output",
        tmp_path / "report",
    ]
    assert finetune(load_script("evaluate.py"), "--checkpoint", trained, *options) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["evaluations"][0]["settings"]["adapter_reduction"] == 4
    written = ["--output", tmp_path / "lines.jsonl", "--pictures", tmp_path / "pictures"]
    assert finetune(load_script("predict.py"), "--model", trained, *written, clip) == 0
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == [f"{Path(clip).stem}.png"]
    line = json.loads((tmp_path / "lines.jsonl").read_text())
    model, processor = load_checkpoint(str(trained))
    best = logits_of(model, processor, clip)[0].softmax(-1)
    first = next(iter(line["predictions"].values()))[0]
    assert first["score"] == pytest.approx(best[0].max().item(), abs=1e-5)


def test_a_pipeline_takes_it(trained, clip):
    model, processor = load_checkpoint(str(trained))
    expected = logits_of(model, processor, clip)[0].softmax(-1)
    answer = pipeline("audio-visual-classification", model=str(trained))(str(clip), top_k=1)
    assert [entry["labels"][0]["score"] for entry in answer] == pytest.approx(expected.amax(-1).tolist(), abs=1e-5)


def test_pushing_an_adapter_pushes_its_base_where_asked(trained, clip, local_hub, tmp_path, capsys):
    push = load_script("push_to_hub.py")
    assert finetune(push, trained, "org/adapter") == 1
    assert "give --base_repo org/name to push it too, or --build_in" in " ".join(capsys.readouterr().err.split())
    assert finetune(push, trained, "org/adapter", "--base_repo", "org/base") == 0
    assert "model.safetensors" in local_hub.files("org/base")
    files = local_hub.files("org/adapter")
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert b"base_model: org/base" in files["README.md"]
    expected = logits_of(*load_checkpoint(str(trained)), clip)
    model, processor = load_checkpoint("org/adapter")
    assert torch.allclose(logits_of(model, processor, clip), expected, atol=1e-5)
    other = AutoModelForVideoClassification.from_pretrained("org/adapter")
    assert torch.allclose(logits_of(other, processor, clip), expected, atol=1e-5)


def test_pushing_with_build_in_pushes_a_whole_model(trained, clip, local_hub, capsys):
    push = load_script("push_to_hub.py")
    assert finetune(push, trained, "org/whole", "--build_in") == 0
    assert "adapter_config.json" not in local_hub.files("org/whole")
    assert AutoConfig.from_pretrained("org/whole").adapter["reduction"] == 4
    model = AutoModelForVideoClassification.from_pretrained("org/whole")
    processor = AutoProcessor.from_pretrained("org/whole")
    expected = logits_of(*load_checkpoint(str(trained)), clip)
    assert torch.allclose(logits_of(model, processor, clip), expected, atol=1e-5)
    assert finetune(push, trained / "base_model", "org/x", "--build_in") == 1
    assert "--build_in is for an adapter" in capsys.readouterr().err
