"""A config made of others works wherever a flat one does. `tests/models/nested` is such an architecture."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from equality import assert_rounding, assert_same_bits
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForVideoClassification, AutoProcessor

import hf_avfusion
from hf_avfusion import AutoModelForAudioVisualClassification, AVTrainer, AVTrainingArguments, MBTProcessor, hub
from hf_avfusion.auto import ARCHITECTURES
from hf_avfusion.training.recipes import RECIPES, Recipe
from hf_avfusion.training.recipes.building import (
    build_collator,
    build_fresh,
    build_processor,
    config_values,
    input_sizes,
    known_fields,
    load_checkpoint,
)
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.recipes.nested_fields import place_fields
from hf_avfusion.training.recipes.record import keep_record, record_resumed, record_run

CODE = Path(__file__).parent
PACKAGE = Path(hf_avfusion.__file__).parent
SMALL = ["--image_size", "32", "--num_frames", "4", "--span", "2", "--audio_seconds", "2"]


@dataclass
class Options:
    data: str = "folder"


@pytest.fixture(scope="module", autouse=True)
def nested(tmp_path_factory):
    """Makes `tests/models/nested` an architecture of the package."""
    room = tmp_path_factory.mktemp("package")
    (room / "models").mkdir()
    for name in ("media", "processing", "models/shared", "models/mbt"):
        (room / name).symlink_to(PACKAGE / name)
    (room / "models" / "nested").symlink_to(CODE / "nested")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["hf_avfusion.models"], "__path__", [str(PACKAGE / "models"), str(CODE)])
        configs = importlib.import_module("hf_avfusion.models.nested.configuration_nested")
        modeling = importlib.import_module("hf_avfusion.models.nested.modeling_nested")
        model = modeling.NestedForAudioVisualClassification
        AutoConfig.register("nested", configs.NestedConfig, exist_ok=True)
        AutoProcessor.register(configs.NestedConfig, MBTProcessor, exist_ok=True)
        for auto_class in (AutoModelForVideoClassification, AutoModelForAudioVisualClassification):
            auto_class.register(configs.NestedConfig, model, exist_ok=True)
        reference = f"models.nested.modeling_nested:{model.__name__}"
        row = (configs.NestedConfig, "", {AutoModelForVideoClassification: reference})
        patch.setattr(hub, "ARCHITECTURES", (*ARCHITECTURES, row))
        patch.setattr(hub, "PACKAGE", room)
        yield configs


def parse(folder, *flags):
    flags = [*map(str, flags), "--output_dir", str(folder), "--use_cpu", "True", "--report_to", "none"]
    return parse_with_recipe(Options, AVTrainingArguments, flags)


def built(folder, *flags):
    run, _, args = parse(folder, *flags)
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    collator = build_collator(run.recipe, model.config, seed=0)
    return run, AVTrainer(model, args, collator, processing_class=processor)


# ---- the config ----


def test_an_override_changes_only_the_fields_that_it_names(nested):
    config = nested.NestedConfig.base(audio_config={"hidden_size": 8}, video_config={"hidden_size": 16})
    assert (config.audio_config.hidden_size, config.audio_config.num_hidden_layers) == (8, 2)
    assert (config.video_config.hidden_size, config.video_config.intermediate_size) == (16, 48)
    other = nested.NestedConfig.base(video_config={"model_type": "dinov2", "hidden_size": 24})
    assert (other.video_config.model_type, other.video_config.hidden_size) == ("dinov2", 24)
    assert other.video_config.num_hidden_layers == 12  # not the size's, which are a ViT's


def test_a_config_uses_only_the_checks_that_it_names(nested):
    assert not hasattr(nested.NestedAudioConfig(), "class_splits")
    for fields, message in (
        ({"hidden_size": 0}, "`hidden_size` must be at least 1"),
        ({"hidden_dropout_prob": 2.0}, r"`hidden_dropout_prob` must lie in \[0, 1\]"),
        ({"pooling": "sum"}, "`pooling` must be one of 'mean', 'max'"),
        ({"problem_type": "multilabel"}, "`problem_type` must be one of"),
    ):
        with pytest.raises(Exception, match=message):
            nested.NestedAudioConfig(**fields)
        with pytest.raises(Exception, match=message):
            nested.NestedConfig(audio_config=fields)
    with pytest.raises(Exception, match="add up to 7 classes"):
        nested.NestedConfig(class_splits={"verb": 3, "noun": 4}, num_labels=5)


def test_a_saved_config_loads_equal(nested, tmp_path):
    config = nested.NestedConfig.base(class_splits={"verb": 3, "noun": 4}, video_config={"image_size": 32})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded.audio_config) is nested.NestedAudioConfig
    assert loaded.to_json_string() == config.to_json_string()
    assert list(loaded.class_splits) == ["verb", "noun"]


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_config": {"num_hidden_layers": 10**9}},
        {"audio_config": {"num_labels": 10**12}},
        {"video_config": {"num_hidden_layers": 10**9}},
        {"video_config": {"num_labels": 10**12}},
        {"video_config": {"model_type": "swinv2", "depths": [1000, 1000]}},
        {"video_config": {"image_size": [16, 10**12]}},
    ],
)
def test_absurd_sizes_of_sub_configs_fail_before_memory_is_taken(nested, fields, tmp_path):
    ((part, sizes),) = fields.items()
    with pytest.raises(ValueError, match=rf"`{part}\.{list(sizes)[-1]}`=.* exceeds the supported maximum"):
        nested.NestedConfig(**fields)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nested", **fields}))
    with pytest.raises(ValueError, match="The config file may be corrupt"):
        AutoConfig.from_pretrained(tmp_path)


def test_absurd_sizes_of_sub_configs_are_counted_together(nested):
    sizes = {"hidden_size": 2**18, "intermediate_size": 2**18, "num_attention_heads": 1}
    config = nested.NestedConfig(video_config=sizes)
    with pytest.raises(ValueError, match=r"sizes in NestedConfig together give .* exceeds the supported maximum"):
        AutoModelForVideoClassification.from_config(config)


# ---- recipes and command lines ----


def test_known_fields_are_dotted():
    known = known_fields("model", "nested")
    assert {"num_frames", "audio_config.hidden_size", "video_config.patch_size"} <= known
    assert not known & {"audio_config", "model_type", "audio_config.transformers_version"}


def test_sizes_of_the_inputs_reach_the_config_that_holds_them(nested, tmp_path):
    run, _, _ = parse(tmp_path, "--model", "nested", *SMALL, "--set", "audio.num_mel_bins=32")
    sizes = place_fields(nested.NestedConfig(), input_sizes(build_processor(run.recipe)))
    assert sizes == {
        "video_config.image_size": 32, "num_frames": 4, "audio_config.num_mel_bins": 32,
        "audio_config.spectrogram_length": 200,
    }  # fmt: skip
    assert place_fields(nested.NestedAudioConfig(), {"image_size": 32, "num_mel_bins": 32}) == {"num_mel_bins": 32}


@pytest.mark.parametrize(
    "fields",
    [
        {"audio_config": {"hidden_size": 40}, "video_config": {"hidden_act": "relu"}, "label_smoothing": 0.1},
        {"audio_config.hidden_size": 40, "video_config.hidden_act": "relu", "label_smoothing": 0.1},
    ],
)
def test_config_on_the_command_line_sets_nested_fields(fields, tmp_path):
    _, trainer = built(tmp_path, "--model", "nested", *SMALL, "--config", json.dumps(fields))
    config = trainer.model.config
    assert (config.audio_config.hidden_size, config.audio_config.num_hidden_layers) == (40, 2)
    assert (config.video_config.hidden_act, config.video_config.hidden_size) == ("relu", 32)
    assert (config.label_smoothing, config.num_labels) == (0.1, 3)
    assert trainer.model.audio[0].weight.shape == (40, 128)
    assert (config.video_config.image_size, config.audio_config.spectrogram_length) == (32, 200)


def test_another_backbone_on_the_command_line(tmp_path):
    backbone = {"model_type": "dinov2", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields = {"video_config": {**backbone, "mlp_ratio": 2, "patch_size": 16}}
    _, trainer = built(tmp_path, "--model", "nested", *SMALL, "--config", json.dumps(fields))
    assert type(trainer.model.video).__name__ == "Dinov2Model"
    assert trainer.model.config.video_config.image_size == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_config": {"hidden_siz": 4}}, r"no fields audio_config\.hidden_siz \(did you mean audio_config\.hidden_size\?\)"),
        ({"video_config.patch_sizes": 4}, r"no fields video_config\.patch_sizes \(did you mean video_config\.patch_size\?\)"),
        ({"audio_confg": {"hidden_size": 4}}, "no fields audio_confg"),
        ({"audio_confg.hidden_size": 4}, r"audio_confg\.hidden_size \(did you mean audio_config\.hidden_size\?\)"),
        ({"num_frame": 4}, r"NestedConfig has no fields num_frame \(did you mean num_frames\?\)"),
        ({"audio_config": 4}, r"audio_config=4 must be an object of fields, such as"),
    ],
)  # fmt: skip
def test_unknown_fields_are_named_with_the_nearest(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, "--model", "nested", "--config", json.dumps(fields))


@pytest.fixture
def recipe(monkeypatch):
    made = Recipe(
        architecture="nested",
        source="this test",
        model={"audio_config.hidden_size": 12, "video_config.patch_size": 8, "label_smoothing": 0.2},
        regularization={"video_config.hidden_dropout_prob": 0.5},
        window={"num_frames": 4, "span": 2.0, "audio_seconds": 2.0},
        video={"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}},
        training={"learning_rate": 0.1},
        batch_size=8,
    )
    monkeypatch.setitem(RECIPES, "nested/test", made)
    return made


def test_recipes_set_nested_fields_and_the_record_compares_them(recipe, tmp_path):
    run, trainer = built(tmp_path / "same", "--recipe", "nested/test")
    config = trainer.model.config
    assert (config.audio_config.hidden_size, config.video_config.patch_size) == (12, 8)
    assert config.video_config.hidden_dropout_prob == 0.5
    assert record_run(run, trainer)["overridden"] == {}

    fields = {"audio_config.pooling": "max", "video_config": {"patch_size": 16, "hidden_dropout_prob": 0.1}}
    run, trainer = built(tmp_path / "other", "--recipe", "nested/test", "--config", json.dumps(fields))
    record = keep_record(run, trainer)
    assert record["overridden"] == {
        "model.audio_config.pooling": {"recipe": "mean", "run": "max"},
        "model.video_config.patch_size": {"recipe": 8, "run": 16},
        "regularization.video_config.hidden_dropout_prob": {"recipe": 0.5, "run": 0.1},
    }
    assert record["settings"]["model"]["audio_config"]["hidden_size"] == 12

    fields["audio_config.pooling"] = "mean"
    run, trainer = built(tmp_path / "third", "--recipe", "nested/test", "--config", json.dumps(fields))
    resumed = record_resumed(record_run(run, trainer), tmp_path / "other" / "checkpoint-3")
    changed = resumed["resumed"][0]["changed"]
    assert changed == {"model.audio_config.pooling": {"before": "max", "since": "mean"}}


def test_merged_recipes_keep_the_other_nested_fields(recipe):
    changed = recipe.replace(model={"audio_config.num_hidden_layers": 1})
    fields = config_values(changed, {}, build_processor(changed))
    assert fields["audio_config"]["hidden_size"] == 12
    assert fields["audio_config"]["num_hidden_layers"] == 1
    assert changed.values()["model.audio_config.hidden_size"] == 12


def test_config_changes_nested_fields_of_a_checkpoint(tmp_path):
    _, trainer = built(tmp_path / "run", "--model", "nested", *SMALL)
    checkpoint = tmp_path / "checkpoint"
    trainer.save_model(checkpoint)
    flags = [
        "--model",
        checkpoint,
        "--config",
        '{"audio_config": {"hidden_dropout_prob": 0.3}, "label_smoothing": 0.1}',
    ]
    run, _, _ = parse(tmp_path / "run", *flags)
    _, model = load_checkpoint(run, {"num_labels": 3})
    assert (model.config.audio_config.hidden_dropout_prob, model.config.label_smoothing) == (0.3, 0.1)
    assert model.config.audio_config.spectrogram_length == 200
    assert_same_bits(model.state_dict(), trainer.model.state_dict())
    run, _, _ = parse(tmp_path / "run", "--model", checkpoint, "--audio_seconds", 1)
    assert load_checkpoint(run, {})[1].config.audio_config.spectrogram_length == 100
    run, _, _ = parse(tmp_path / "run", "--model", checkpoint, "--config", '{"audio_config": {"poolin": "max"}}')
    with pytest.raises(ValueError, match=r"no field audio_config\.poolin \(did you mean audio_config\.pooling\?\)"):
        load_checkpoint(run, {})


# ---- the Hub ----

ELSEWHERE = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification
model = AutoModelForVideoClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
assert type(model.config.audio_config).__name__ == "NestedAudioConfig"
save_file({"logits": model(**load_file("inputs.safetensors")).logits.detach()}, "outputs.safetensors")
assert not any(name.partition(".")[0] == "hf_avfusion" for name in sys.modules)
"""


@pytest.mark.slow
def test_an_export_loads_without_the_package(tmp_path):
    _, trainer = built(tmp_path / "run", "--model", "nested", *SMALL)
    model = trainer.model.eval()
    torch.nn.init.normal_(model.classifier.weight)
    folder = hub.export(model, trainer.processing_class, tmp_path / "exported")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "A model of the architecture `nested`." in card
    assert "4 RGB frames" in card
    assert {"configuration_nested.py", "configuration_shared.py", "bounded_model.py"} <= set(os.listdir(folder))
    inputs = {"pixel_values": torch.rand(2, 4, 3, 32, 32), "input_features": torch.rand(2, 200, 128)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-P", "-c", ELSEWHERE, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_rounding(load_file(tmp_path / "outputs.safetensors")["logits"], model(**inputs).logits.detach())
    assert_same_bits(AutoModelForVideoClassification.from_pretrained(folder).state_dict(), model.state_dict())
