"""LAVISH's recipes: their values by source, the models that they build, and a run of one."""

import json
import re

import pytest
import torch
from lavish_runs import PLAIN, SOUND, finetune, load_script, render_shards, save_backbone
from peft import get_peft_model
from rendering import render_clip
from safetensors.torch import load_file
from tiny_lavish import VGGISH
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.evaluation.runs import load_checkpoint
from hf_avfusion.evaluation.views import PROTOCOLS
from hf_avfusion.models.lavish.processing_lavish import LavishProcessor
from hf_avfusion.models.shared.vggish import VGGish
from hf_avfusion.tasks import TASKS
from hf_avfusion.training.recipes import RECIPES
from hf_avfusion.training.recipes.adapting import make_config
from hf_avfusion.training.recipes.building import build_fresh, build_processor
from hf_avfusion.training.recipes.options import check_arguments

NAMES = [name for name in RECIPES if name.startswith("lavish/")]
# Adapter and head rates, batch, T, r, g (spec of the released commands, and the supplementary's table).
RATES = {
    "lavish/ave": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@readme": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@paper": (5e-6, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@v2": (1e-4, {"classifier": 5e-6}, 2, 2, 8, 2),
    "lavish/ave@vit": (3e-5, {"classifier": 6e-6}, 2, 8, 16, 4),
    "lavish/ave@vit-tiny": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@vit-small": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@resnet152": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@visual-only": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/ave@vggish": (5e-5, {"classifier": 4e-6}, 2, 2, 8, 2),
    "lavish/avsbench_s4": (1e-4, None, 4, 16, 4, 2),
    "lavish/avsbench_s4@tpavi": (1e-4, None, 4, 16, 4, 2),
    "lavish/music_avqa": (8e-5, None, 2, 64, 8, 4),
    "lavish/music_avqa@paper": (8e-5, {r"(^|\.)head\.": 3e-6}, 2, 16, 4, 2),
    "lavish/ucf101": (1e-4, None, 8, 2, 4, 2),
}
# Step, factor and whether the norms are trained.
DECAY = {"ave": (3, 0.35, False), "avsbench_s4": (None, None, False), "music_avqa": (8, 0.1, True)}
PRESET = {"ave": "lavish_ave_swin", "avsbench_s4": "lavish_avs", "music_avqa": "lavish_avqa"}
# Trained parameters of the adapters, M (counted with the original's code; UCF101: the paper's 7.4).
ADAPTERS = {
    "lavish/ave": 8.448,
    "lavish/ave@vit": 1.180,
    "lavish/ave@vit-tiny": 0.297,
    "lavish/ave@vit-small": 1.037,
    "lavish/avsbench_s4": 17.148,
    "lavish/music_avqa": 8.835,
    "lavish/ucf101": 7.391,
}


def test_rates_are_listed_for_every_recipe():
    assert set(RATES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_sources(name):
    recipe = RECIPES[name]
    training, adapter = recipe.training, recipe.adapter
    values = (training["learning_rate"], training.get("learning_rates"), recipe.batch_size)
    assert (*values, adapter["num_tokens"], adapter["reduction"], adapter["groups"]) == RATES[name]
    assert (training["optimizer"], training["weight_decay"], training["max_grad_norm"]) == ("adam", 0.0, 0.0)
    base = name.removeprefix("lavish/").partition("@")[0]
    step, factor, norms = DECAY.get(base, (None, None, False))
    assert (training.get("decay_epochs"), training.get("decay_factor")) == (step, factor)
    assert recipe.train_norms == (norms or name == "lavish/ave@vit")
    assert recipe.frame_augmentation is None or base == "ucf101"
    # Nothing is selected on the test split, and every choice of this package is named.
    assert "load_best_model_at_end" not in training
    assert PROTOCOLS[recipe.views].total == (15 if base == "ucf101" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_processor_is_the_published_preset(name):
    base = name.removeprefix("lavish/").partition("@")[0]
    if base == "ucf101":  # nothing is published
        return
    is_vit = "vit" in name or "resnet" in name
    preset = LavishProcessor.from_preset("lavish_ave_vit" if is_vit else PRESET[base])
    built = build_processor(RECIPES[name])
    assert built.feature_extractor.to_dict() == preset.feature_extractor.to_dict()
    segments = {**preset.window, "segment_frame": built.window["segment_frame"]}
    assert built.window == segments
    side = 224 if is_vit else 192
    size = built.video_processor.size
    assert (size.height, size.width) == (side, side)
    assert not built.video_processor.do_center_crop
    assert built.channel_mix == "left"
    assert built.vggish == (name == "lavish/ave@vggish")


@pytest.mark.parametrize("name", NAMES)
def test_the_adapters_have_the_published_number_of_parameters(name):
    recipe = RECIPES[name].replace(init=None)
    task = TASKS[recipe.task]
    head = {"num_labels": 29}
    with torch.device("meta"):
        _, model = build_fresh(recipe, head, task.auto_class)
        adapted = get_peft_model(model, make_config(recipe, model))
    count = sum(each.numel() for key, each in adapted.named_parameters() if ".lavish_" in key) / 1e6
    if name in ADAPTERS:
        assert count == pytest.approx(ADAPTERS[name], abs=6e-4)
    trained = {key for key, each in adapted.named_parameters() if each.requires_grad}
    norms = {key for key in trained if ".backbone." in key}
    assert bool(norms) == recipe.train_norms
    assert all("norm" in key for key in norms)
    for pattern in recipe.training.get("learning_rates") or ():
        assert any(re.search(pattern, key) for key in trained)
    assert isinstance(model.config, CONFIG_MAPPING["lavish"])


def test_a_recipe_trains_with_its_adapter(tmp_path, capsys):
    """The flags of a small machine: a tiny backbone, other clips; the recipe's optimiser, rates and adapter stay."""
    render(
        tmp_path / "shapes", num_train=4, num_validation=0, num_test=2, num_proc=1, progress=False, width=32, height=32, duration=2,
        num_classes=2,
    )  # fmt: skip
    backbone = save_backbone("vit", tmp_path / "backbone")
    small = ["--adapter_config", '{"reduction": 4, "groups": 1}', "--num_segments", "2", "--from_backbone", backbone]
    small += [
        "--set",
        "audio.num_mel_bins=32",
        "audio.hop_length=500",
        "audio.spectrogram_length=32",
        "--image_size",
        "32",
    ]
    command = ["--recipe", "lavish/ave@vit", "--data", "sounding_shapes", "--source", tmp_path / "shapes", *small]
    command += ["--label_columns", "events", "--output_dir", tmp_path / "run", "--max_steps", "2", "--use_cpu", "True"]
    command += ["--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no"]
    script = load_script("finetune_classification.py")
    assert finetune(script, *command) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["settings"]["training"]["learning_rates"] == {"classifier": 6e-6}
    assert record["settings"]["adapter"]["num_tokens"] == 8
    assert record["overridden"]["adapter.reduction"] == {"recipe": 16, "run": 4}
    assert not {"adapter.num_tokens", "adapter_method", "train_norms"} & set(record["overridden"])
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LAVISH"
    assert any("layernorm" in module for module in saved["modules_to_save"])


def test_vggish_weights_for_a_model_without_it_are_refused(tmp_path, capsys):
    command = ["--model", "lavish", "--from_backbone", "none", "--data", "sounding_shapes", "--source", tmp_path]
    command += ["--label_columns", "events", "--num_segments", "2", *PLAIN, "--output_dir", tmp_path / "run"]
    assert finetune(load_script("finetune_classification.py"), *command, "--from_vggish", "none") == 2
    assert "--from_vggish none: the model has no part that starts from it" in capsys.readouterr().err


def test_the_recipe_with_vggish_trains_and_its_checkpoint_is_used(tmp_path, capsys):
    """VGGish comes from its file into the base model, and a data worker, evaluation and prediction carry its input."""
    shards, backbone = render_shards(tmp_path / "shapes", 4), save_backbone("vit", tmp_path / "backbone")
    sizes = {name: value for name, value in VGGISH.items() if name.startswith("vggish_")}
    published = VGGish(*sizes.values())
    torch.save(published.state_dict(), tmp_path / "vggish.pth")
    command = ["--recipe", "lavish/ave@vggish", "--data", "sounding_shapes", "--source", shards]
    command += ["--label_columns", "events", "--num_segments", "2"]
    command += ["--from_backbone", backbone, *SOUND, *PLAIN, "--global_batch_size", "4"]
    command += ["--adapter_config", '{"reduction": 4, "groups": 1}', "--config", json.dumps(sizes), "--max_steps", "1"]
    command += ["--dataloader_num_workers", "1", "--output_dir", tmp_path / "run"]
    script = load_script("finetune_classification.py")
    assert finetune(script, *command) == 2
    assert re.search(
        r"lavish/ave@vggish has vggish=true, whose part starts from VGGish's published weights.*name it with --from_vggish",
        capsys.readouterr().err,
    )
    started = [*command, "--from_vggish", tmp_path / "vggish.pth"]
    check_arguments(script.Options, args=lambda: [str(word) for word in started])  # before the imports
    assert finetune(script, *started) == 0, capsys.readouterr().err
    assert not any("vggish" in name for name in load_file(tmp_path / "run" / "adapter_model.safetensors"))
    base = load_file(tmp_path / "run" / "base_model" / "model.safetensors")
    for name, value in published.state_dict().items():
        assert torch.equal(base[f"lavish.vggish.{name}"], value)
    evaluate = ["--checkpoint", tmp_path / "run", "--benchmark", "sounding_shapes", "--source", shards]
    evaluate += ["--workers", "0"]
    evaluate += ["--label_columns", "events", "--output", tmp_path / "report"]
    assert finetune(load_script("evaluate.py"), *evaluate) == 0
    report = json.loads((tmp_path / "report" / "results.json").read_text())
    results = {each["given"]: each for each in report["summary"]}
    trained = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["av"]["settings"]["vggish"]
    assert results["av"]["metrics"]["accuracy"]["mean"] == pytest.approx(trained["eval_accuracy"])
    assert results["a"]["clips"] == [4]
    clip = render_clip(tmp_path / "clip.mp4", size=(32, 32))
    predict = ["--model", tmp_path / "run", clip, "--output", tmp_path / "lines.jsonl"]
    assert finetune(load_script("predict.py"), *predict) == 0
    found = json.loads((tmp_path / "lines.jsonl").read_text())["predictions"]
    model, processor = load_checkpoint(str(tmp_path / "run"))
    with torch.no_grad():
        expected = model(**processor(videos=str(clip), return_tensors="pt")).logits[0].softmax(dim=-1).amax(dim=-1)
    assert [labels[0]["score"] for labels in found.values()] == pytest.approx(expected.tolist(), abs=1e-5)
