"""LAVISH through the training script: sizes that follow from the backbone, segments, what is trained, and evaluation."""

import json
from dataclasses import dataclass

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from lavish_runs import EVENTS, PLAIN, SOUND, finetune, load_script, losses, render_shards, save_backbone
from transformers import AutoConfig, AutoModelForVideoClassification, AutoProcessor

from hf_avfusion.data.benchmarks.splits import load_rows
from hf_avfusion.evaluation.clips import label_rows
from hf_avfusion.evaluation.runs import evaluate_checkpoint, load_checkpoint, protocol_for, settings_of
from hf_avfusion.evaluation.tables import settings_text
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.recipes.building import build_fresh, build_processor, input_sizes
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.recipes.recipe import Recipe


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return render_shards(tmp_path_factory.mktemp("shapes"), num_train=8)


@pytest.fixture(scope="module")
def script():
    return load_script("finetune_classification.py")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {name: save_backbone(name, folder / name) for name in ("vit", "swinv2", "videomae")}


def parse(*flags, options=None):
    @dataclass
    class Options:
        data: str = "sounding_shapes"
        num_segments: int | None = None

    given = [*map(str, flags), "--output_dir", "unused", "--use_cpu", "True", "--report_to", "none"]
    return parse_with_recipe(options or Options, AVTrainingArguments, given)[0]


# ---- sizes ----


@pytest.mark.parametrize("size", LavishTwoStreamConfig.sizes())
def test_a_new_model_of_each_size_takes_what_its_processor_makes(size):
    segments = None if size == "videomae_base" else 10
    recipe = Recipe("lavish", "test", size=size, window={"num_segments": segments})
    processor = build_processor(recipe)
    with torch.device("meta"):
        _, model = build_fresh(recipe, {"num_labels": 3})
    sizes = input_sizes(processor)
    config = model.config
    assert (sizes["num_frames"], sizes["num_segments"]) == (config.num_frames, config.num_segments)
    assert (sizes["spectrogram_length"], sizes["num_mel_bins"]) == config.spectrogram_hw
    side = 192 if size.startswith("swin") else 224
    assert sizes["image_size"] == side
    assert config.image_hw == (side, side)
    published = {True: (192, 192, 83, 1.0), False: (102, 128, 160, 1.0)}[size.startswith("swin")]
    extractor = processor.feature_extractor
    if segments:
        assert (*config.spectrogram_hw, extractor.hop_length, processor.window["segment_seconds"]) == published
    else:
        assert config.spectrogram_hw == (800, 128)
        assert processor.window["num_frames"] == 16


def test_a_pretrained_backbone_decides_the_sizes(backbones):
    run = parse("--model", "lavish", "--from_backbone", backbones["swinv2"], "--num_segments", 2)
    processor, model = build_fresh(run.recipe, {"num_labels": 3, "num_segments": 2})
    assert model.config.image_hw == model.config.spectrogram_hw == (32, 32)
    assert processor.feature_extractor.hop_length == 500  # 32 rows over 1 s
    run = parse("--model", "lavish", "--from_backbone", backbones["swinv2"], "--num_segments", 2, "--image_size", 64)
    with pytest.raises(
        StrictDataclassError, match=r"`image_size` \(64, 64\) differs from that of `backbone_config`, \(32, 32\)"
    ):
        build_fresh(run.recipe, {"num_labels": 3, "num_segments": 2})


def test_the_size_of_a_new_model_reaches_its_backbone():
    fields = {"backbone_config": {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "patch_size": 8}}
    run = parse("--model", "lavish", "--image_size", 64, "--num_segments", 3, "--config", json.dumps(fields))
    _, model = build_fresh(run.recipe, {"num_labels": 3})
    assert model.config.backbone_config.image_size == 64
    assert model.config.num_frames == model.config.num_segments == 3
    fields["backbone_config"]["model_type"] = "videomae"
    run = parse("--model", "lavish", "--image_size", 64, "--num_frames", 4, "--config", json.dumps(fields))
    _, model = build_fresh(run.recipe, {"num_labels": 3})
    assert model.config.backbone_config.num_frames == model.config.num_frames == 4
    assert model.config.num_segments is None


def test_longer_segments_are_heard_whole():
    recipe = Recipe("lavish", "test", window={"num_segments": 4, "segment_seconds": 2.0})
    assert build_processor(recipe).feature_extractor.spectrogram_length == 200


def test_nothing_is_augmented_by_default(backbones):
    assert parse("--model", "lavish", "--num_segments", 2).recipe.frame_augmentation is None
    assert parse("--model", "lavish").recipe.spec_augment is None
    assert parse("--model", "lavish", "--augment", "true").recipe.frame_augmentation == {}
    assert parse("--model", "mbt").recipe.frame_augmentation == {}


# ---- runs ----


def test_event_localiser_trains_its_head_and_is_evaluated(script, shards, backbones, tmp_path):
    command = ["--data", "sounding_shapes", "--source", shards, "--output_dir", tmp_path, "--model", "lavish", *EVENTS]
    assert finetune(script, *command, *PLAIN, *SOUND, "--from_backbone", backbones["vit"], "--max_steps", "3") == 0
    model, processor = load_checkpoint(str(tmp_path))
    assert model.config.num_segments == processor.window["num_segments"] == 2
    assert len(losses(tmp_path)) == 3
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.{kind}" for layer in ("classifier", "pre_classifier") for kind in ("weight", "bias")}
    own = AutoConfig.from_pretrained(backbones["vit"])
    start = AutoModelForVideoClassification.from_config(loaded.config)
    start = type(start).from_backbone(str(backbones["vit"]), num_segments=2, spectrogram_length=32, num_mel_bins=32)
    for name, tensor in start.lavish.backbone.state_dict().items():
        assert torch.equal(loaded.lavish.backbone.state_dict()[name], tensor), name
    assert loaded.config.backbone_config.hidden_size == own.hidden_size

    clips = label_rows(load_rows("sounding_shapes", "test", source=shards), model.config, ["events"])
    [result] = evaluate_checkpoint("x", model, processor, clips, given=("av",), protocol=protocol_for(model.config, ""))
    assert result["clips"] == 4
    assert 0 <= result["metrics"]["accuracy"] <= 1
    assert result["span"] is None
    settings = settings_of(model.config, processor)
    assert settings["trained_span"] is None
    assert settings["backbone"] == "vit"
    assert settings_text(settings, trained=True) == "LAVISH, 2 segments of 1 s"


def test_built_in_adapters_train_with_a_frozen_backbone(script, shards, backbones, tmp_path):
    adapter = {"num_tokens": 2, "reduction": 4, "groups": 1}
    command = ["--data", "sounding_shapes", "--source", shards, "--output_dir", tmp_path, "--model", "lavish", *EVENTS]
    command += [
        "--from_backbone",
        backbones["swinv2"],
        "--config",
        json.dumps({"adapter": adapter, "drop_remainder": True}),
    ]
    assert finetune(script, *command, *PLAIN, "--set", "audio.num_mel_bins=32", "--max_steps", "2") == 0
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert any(".fusion_attn.audio." in name for name in trained)
    assert not any(".backbone." in name for name in trained)
    changed = [parameter for name, parameter in loaded.named_parameters() if name.endswith("fusion_attn.video.gate")]
    assert all(parameter.item() != 0 for parameter in changed)


def test_clip_recogniser_trains_on_a_videomae(script, shards, backbones, tmp_path):
    command = ["--data", "sounding_shapes", "--source", shards, "--output_dir", tmp_path, "--model", "lavish"]
    command += [
        "--label_columns",
        "label",
        "--from_backbone",
        backbones["videomae"],
        "--audio_seconds",
        "2",
        "--span",
        "2",
    ]
    assert finetune(script, *command, *PLAIN, "--max_steps", "2", "--set", "audio.num_mel_bins=40") == 0
    model, processor = load_checkpoint(str(tmp_path))
    assert model.config.num_segments is None
    assert processor.window["num_frames"] == model.config.num_frames == 4
    assert json.loads((tmp_path / "test_results.json").read_text())["eval_clips"] == 4


def test_labels_of_another_kind_than_the_model_are_refused(script, shards, backbones, tmp_path, capsys):
    command = ["--data", "sounding_shapes", "--source", shards, "--model", "lavish", *PLAIN, *SOUND]
    assert finetune(script, *command, *EVENTS, "--from_backbone", backbones["vit"], "--max_steps", "1",
                    "--output_dir", tmp_path / "one") == 0  # fmt: skip
    command[command.index("lavish")] = tmp_path / "one"
    command = [word for word in command if word not in SOUND]
    assert finetune(script, *command, "--label_columns", "label", "--output_dir", tmp_path / "two") == 2
    assert "is a model for audio-visual event localisation (num_segments=2)" in capsys.readouterr().err


def test_a_checkpoint_is_trained_with_another_number_of_segments(script, shards, backbones, tmp_path):
    command = ["--data", "sounding_shapes", "--source", shards, *EVENTS, *PLAIN, "--max_steps", "1"]
    first = ["--model", "lavish", "--from_backbone", backbones["vit"], *SOUND, "--output_dir", tmp_path / "one"]
    assert finetune(script, *command, *first) == 0
    run = parse("--model", tmp_path / "one", "--num_segments", 4)
    from hf_avfusion.training.recipes.building import load_checkpoint

    processor, model = load_checkpoint(run, {"num_segments": 4, "num_labels": 9})
    assert model.config.num_frames == model.config.num_segments == processor.window["num_segments"] == 4
    saved = AutoProcessor.from_pretrained(tmp_path / "one")
    assert saved.window["num_segments"] == 2
