"""Recipes: every value sets an existing field and has an effect, flags override values, and batches divide exactly."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_avfusion.data.benchmarks.loading import BENCHMARKS
from hf_avfusion.data.masking import MaskingCollator
from hf_avfusion.evaluation.views import PROTOCOLS
from hf_avfusion.model_card import read_recipe
from hf_avfusion.training.arguments import AVTrainingArguments
from hf_avfusion.training.optimization import warmup_cosine_factor
from hf_avfusion.training.recipes import RECIPES, Recipe, get_recipe
from hf_avfusion.training.recipes.__main__ import main
from hf_avfusion.training.recipes.batches import learning_rate_for, share_batch
from hf_avfusion.training.recipes.building import (
    build_collator,
    build_frame_augmentation,
    build_fresh,
    build_processor,
    known_fields,
    load_checkpoint,
)
from hf_avfusion.training.recipes.command_line import parse_with_recipe
from hf_avfusion.training.recipes.recipe import SECTIONS
from hf_avfusion.training.recipes.record import keep_record, print_record, read_record, record_run, save_record
from hf_avfusion.training.trainer import AVTrainer

# Recipes of registered architectures. Fine-tuning AV-MAE trains an MBT, but needs fields that come with AV-MAE.
REGISTERED = [
    name
    for name, recipe in RECIPES.items()
    if recipe.architecture in CONFIG_MAPPING and name.split("/")[0] in CONFIG_MAPPING
]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "fusion_layer": 0}
SMALL_FLAGS = [
    "--from_vit", "none", "--image_size", "32", "--num_frames", "2", "--span", "2", "--audio_seconds", "2",
    "--config", json.dumps(SMALL),
]  # fmt: skip


@dataclass
class Options:
    data: str = field(default="folder")
    variant: str | None = field(default=None)
    label_columns: list[str] | None = field(default=None)


def parse(tmp_path, *flags):
    flags = [*map(str, flags), "--output_dir", str(tmp_path), "--use_cpu", "True", "--report_to", "none"]
    return parse_with_recipe(Options, AVTrainingArguments, flags)


# ---- the data ----


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_source_and_benchmark(name):
    recipe = RECIPES[name]
    assert name.split("/")[0] in (recipe.architecture, recipe.init_method.removeprefix("from_"))
    assert recipe.source
    if recipe.benchmark is not None:
        BENCHMARKS[recipe.benchmark].variant(recipe.variant)
        assert set(recipe.label_columns or ()) <= set(BENCHMARKS[recipe.benchmark].label_columns)
    assert recipe.views in PROTOCOLS or recipe.task == "pretraining"
    json.dumps(recipe.values())
    known = {*recipe.values(), *SECTIONS}
    assert set(recipe.uncertain) <= known, set(recipe.uncertain) - known


@pytest.mark.parametrize("name", REGISTERED)
def test_every_field_of_a_recipe_exists(name):
    recipe = RECIPES[name]
    for section in SECTIONS:
        unknown = set(getattr(recipe, section) or ()) - known_fields(section, recipe.architecture)
        assert not unknown, f"{name}: nothing takes {section} {unknown}"


@pytest.mark.parametrize("name", REGISTERED)
def test_every_value_of_a_recipe_reaches_the_built_objects(name, tmp_path):
    recipe = RECIPES[name]
    processor = build_processor(recipe)
    assert recipe.window.items() <= processor.window.items()
    for field_name, value in recipe.audio.items():
        assert getattr(processor.feature_extractor, field_name) == value
    if processor.window["num_segments"] is None:
        seconds = processor.window["audio_seconds"]
        assert processor.feature_extractor.spectrogram_length == round(100 * seconds)
    fields = {**recipe.model, **recipe.regularization}
    config = getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)(**fields)
    for field_name, value in fields.items():
        assert getattr(config, field_name) == value
    if recipe.task == "classification":
        collator = build_collator(recipe, config, seed=0)
        for field_name, value in recipe.collator.items():
            assert getattr(collator, field_name) == value
        augmentation = build_frame_augmentation(recipe, processor)
        assert (augmentation is None) == (recipe.frame_augmentation is None)
    args = AVTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **recipe.training)
    for field_name, value in recipe.training.items():
        assert getattr(args, field_name) == value


def test_released_recipe_matches_recorded_learning_rates_and_tokens():
    """The original's scheduler printed these rates for AudioSet-mini with 20,361 clips; token counts are its model's."""
    recipe = get_recipe("mbt/audioset-mini")
    per_epoch = 20361 // recipe.batch_size
    assert recipe.training["dataloader_drop_last"]
    warmup, total = (recipe.training[name] * per_epoch for name in ("warmup_epochs", "num_train_epochs"))
    for step, rate in {1: 6.2893e-4, 397: 0.249686, 795: 0.5, 5000: 0.410331, 15000: 4.3670e-3}.items():
        assert recipe.training["learning_rate"] * warmup_cosine_factor(step, warmup, total) == pytest.approx(
            rate, rel=2e-5
        )

    for name, tokens in (("mbt/audioset-mini", 3136), ("mbt/audioset-mini@paper", 1568)):
        recipe = get_recipe(name)
        config = CONFIG_MAPPING["mbt"](num_frames=recipe.window["num_frames"], **recipe.model)
        rows, columns = config.video_patch_grid
        assert rows * columns == tokens


def test_code_and_paper_variants_differ_only_in_known_values():
    code, paper = get_recipe("mbt/audioset-mini").values(), get_recipe("mbt/audioset-mini@paper").values()
    differing = {key for key in {*code, *paper} if code.get(key) != paper.get(key)}
    assert differing == {
        "model.tubelet_size", "window.num_frames", "window.frame_rate", "window.span", "collator.mixup_alpha",
        "spec_augment.time_mask_max_ratio",
    }  # fmt: skip


def test_replace_merges_sections():
    recipe = Recipe("mbt", "test", window={"num_frames": 8, "span": 2.0}, spec_augment={"freq_mask_count": 2})
    changed = recipe.replace(window={"span": None}, spec_augment=None, batch_size=3)
    assert changed.values() == {"window.num_frames": 8, "window.span": None, "spec_augment": None, "batch_size": 3}
    assert recipe.batch_size is None
    assert changed.replace(spec_augment={"freq_mask_count": 1}).spec_augment == {"freq_mask_count": 1}


# ---- the built objects ----


def test_collator_of_a_recipe_augments():
    recipe = get_recipe("mbt/audioset-mini").replace(
        collator={"time_shift": True, "mixup_alpha": 0.0}, spec_augment={"freq_mask_count": 0}
    )
    config = CONFIG_MAPPING["mbt"](num_labels=3)
    features = torch.arange(40.0).unsqueeze(1).expand(40, 4)
    samples = [
        {"has_video": False, "has_audio": True, "input_features": features, "labels": torch.tensor(n)} for n in range(3)
    ]
    shifted = build_collator(recipe, config, seed=0)(samples)["input_features"]
    assert not torch.equal(shifted, torch.stack([features] * 3))
    assert torch.equal(shifted.sort(dim=1).values, torch.stack([features] * 3))  # rolled, with the same values
    masked = build_collator(recipe.replace(spec_augment={"freq_mask_count": 20}), config, seed=0)(samples)
    assert (masked["input_features"] == 0).all(dim=1).any()
    mixed = build_collator(recipe.replace(collator={"mixup_alpha": 0.5}), config, seed=0)(samples)
    assert mixed["labels"].shape == (3, 3)
    assert mixed["labels"][0, 2] == mixed["labels"][2, 0]


# ---- the batch ----


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((64, 1), (64, 1)),
        ((64, 8), (8, 1)),
        ((64, 1, 4), (4, 16)),
        ((64, 2, 4), (4, 8)),
        ((64, 2, None, 4), (8, 4)),
        ((64, 4, 8, 2), (8, 2)),
    ],
)
def test_a_batch_is_divided_exactly(arguments, expected):
    assert share_batch(*arguments) == expected
    assert expected[0] * expected[1] * arguments[1] == arguments[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 3), "cannot be divided equally among 3 devices.*--global_batch_size 63"),
        ((64, 1, 5), "each device has 64 clips per update.*1, 2, 4, 8, 16, 32, 64"),
        (
            (64, 2, 8, 8),
            "per_device_train_batch_size 8 x gradient_accumulation_steps 8 on 2 devices.*product must be 32",
        ),
        ((64, 2, 64), "product must be 32"),
        ((64, 1, 0), "per_device_train_batch_size must be at least 1"),
        ((64, 1, None, 0), "gradient_accumulation_steps must be at least 1"),
        ((0, 1), "batch size must be at least 1"),
    ],
)
def test_indivisible_batch_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        share_batch(*arguments)


def test_learning_rate_is_scaled_only_by_a_rule_of_the_source():
    recipe = Recipe("mbt", "test", training={"learning_rate": 3e-4}, batch_size=512, learning_rate_rule="linear")
    assert learning_rate_for(recipe, "x", 256) == pytest.approx(1.5e-4)
    assert learning_rate_for(recipe.replace(learning_rate_rule=None), "x", 512) == 3e-4
    with pytest.raises(ValueError, match=r"batches of 512 at a learning rate of 0.0003.*0.00015 would be proportional"):
        learning_rate_for(recipe.replace(learning_rate_rule=None), "x", 256)


# ---- flags ----


def test_flags_override_the_values_of_a_recipe(tmp_path):
    run, _, args = parse(
        tmp_path, "--recipe", "mbt/vggsound", "--per_device_train_batch_size", 4, "--learning_rate", 0.1, "--num_frames", 8,
        "--config", '{"label_smoothing": 0.1, "readout": "mean"}', "--spec_augment", "False",
        "--set", "window.frame_rate=5", "frame_augmentation.color=0",
    )  # fmt: skip
    assert (args.learning_rate, args.momentum, args.warmup_epochs, args.num_train_epochs) == (0.1, 0.9, 2.5, 50)
    assert (args.optimizer, args.schedule, args.dataloader_drop_last) == ("momentum_sgd", "warmup_cosine", True)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, run.devices) == (4, 16, 1)
    recipe = run.recipe
    assert recipe.window["num_frames"] == 8
    assert recipe.window["frame_rate"] == 5
    assert recipe.model["readout"] == "mean"
    assert recipe.regularization["label_smoothing"] == 0.1
    assert recipe.regularization["drop_path_rate"] == 0.3
    assert recipe.spec_augment is None
    assert recipe.frame_augmentation["color"] == 0
    assert recipe.frame_augmentation["grayscale"] == 0.1
    assert recipe.init == "google/vit-base-patch16-224-in21k"
    assert run.published is RECIPES["mbt/vggsound"]


def test_flags_for_fine_tuning_from_an_autoencoder(tmp_path):
    run, _, args = parse(tmp_path, "--recipe", "avmae/audioset-500k", "--from_avmae", "some/folder")
    assert (run.recipe.init, run.recipe.init_method) == ("some/folder", "from_avmae")
    assert (args.layer_decay, args.learning_rate, args.per_device_train_batch_size) == (0.75, 1.6, 128)
    assert getattr(args, "eval_protocol", "avmae") == "avmae"
    run, _, _ = parse(tmp_path, "--recipe", "avmae/audioset-500k", "--from_avmae", "none", "--size", "base")
    assert run.recipe.init is None


def test_start_flag_names_method_and_source(tmp_path):
    run, _, _ = parse(tmp_path, "--start", "from_vit=some/vit")
    assert (run.recipe.init, run.recipe.init_method) == ("some/vit", "from_vit")
    run, _, _ = parse(tmp_path, "--recipe", "avmae/audioset-500k", "--start", "from_avmae=some/folder")
    assert (run.recipe.init, run.recipe.init_method) == ("some/folder", "from_avmae")
    run, _, _ = parse(tmp_path, "--recipe", "mbt/vggsound", "--start", "none", "--size", "small")
    assert run.recipe.init is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--start", "from_resnet=x"], r"--start from_resnet=x: give METHOD=SOURCE with one of .*from_vit, from_avmae"),
        (["--start", "from_vit"], "--start from_vit: give METHOD=SOURCE"),
        (
            ["--from_vit", "a", "--from_avmae", "b"],
            "--from_vit and --from_avmae: a model can start from only one source",
        ),
        (
            ["--from_vit", "a", "--start", "from_vit=b"],
            "--from_vit and --start: a model can start from only one source",
        ),
        (["--recipe", "avmae/audioset-500k"], "starts from a pretrained AV-MAE.*name it with --from_avmae"),
        (
            ["--model", "avmae", "--size", "enormous"],
            "--size enormous: choose one of the sizes of avmae: small, base, large",
        ),
    ],
)
def test_unknown_starts_and_sizes_raise(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, *flags)


def test_pretraining_scales_its_learning_rate(tmp_path):
    flags = ["--recipe", "avmae/pretrain-vggsound", "--model", "mbt", "--global_batch_size", "128"]
    flags += ["--output_dir", str(tmp_path), "--use_cpu", "True", "--report_to", "none"]
    with pytest.raises(ValueError, match="is for avmae, not for --model mbt"):
        parse_with_recipe(Options, AVTrainingArguments, flags, task="pretraining")
    recipe = get_recipe("avmae/pretrain-vggsound")
    assert learning_rate_for(recipe, "x", 128) == pytest.approx(1.5e-4 * 128 / 256)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A tiny AV-MAE with a processor that differs from every default."""
    from transformers import AutoModelForPreTraining

    folder = tmp_path_factory.mktemp("avmae")
    flags = [
        "--image_size", "32", "--num_frames", "4", "--span", "2", "--audio_seconds", "2", "--set", "audio.num_mel_bins=32",
        "audio.mean=0.5", "--config", json.dumps({
            "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
            "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 8, "patch_size": 8,
        }),
        "--output_dir", str(folder / "run"), "--use_cpu", "True", "--report_to", "none",
    ]  # fmt: skip
    run, _, _ = parse_with_recipe(Options, AVTrainingArguments, flags, task="pretraining")
    assert (run.recipe.architecture, run.recipe.spec_augment, run.recipe.frame_augmentation["color"]) == (
        "avmae",
        None,
        0,
    )
    processor, model = build_fresh(run.recipe, {}, AutoModelForPreTraining)
    collator = build_collator(run.recipe, model.config, seed=0)
    assert type(collator) is MaskingCollator
    assert collator.config is model.config
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_mbt_uses_the_processor_of_its_autoencoder_unless_flags_change_it(tmp_path, pretrained):
    run, _, _ = parse(tmp_path, "--from_avmae", pretrained)
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    assert type(model).__name__ == "MBTForAudioVisualClassification"
    assert (processor.window["num_frames"], processor.window["span"]) == (4, 2.0)
    assert (processor.feature_extractor.mean, processor.feature_extractor.num_mel_bins) == (0.5, 32)
    assert (model.config.image_size, model.config.spectrogram_length, model.config.patch_size) == (32, 200, 8)
    run, _, _ = parse(tmp_path, "--from_avmae", pretrained, "--num_frames", 8, "--audio_seconds", 1)
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    assert (model.config.num_frames, model.config.spectrogram_length) == (8, 100)
    assert processor.window["span"] == 2.0


@pytest.mark.parametrize(("recipe", "channels"), [("avmae/vggsound", 3), ("avmae/audioset-500k", 1)])
def test_audio_channels_of_a_recipe_and_a_training_step(tmp_path, pretrained, recipe, channels):
    """A kernel that was pretrained on one channel is repeated for three and not divided, as in the released mapping."""
    run, _, args = parse(
        tmp_path, "--recipe", recipe, "--from_avmae", pretrained, "--image_size", 32, "--num_frames", 4, "--span", 2,
        "--audio_seconds", 2, "--set", "audio.num_mel_bins=32", "--config", '{"patch_size": 8, "fusion_layer": 1}',
        "--global_batch_size", 4, "--learning_rate", 0.5, "--warmup_epochs", 0, "--max_steps", 2, "--save_strategy", "no",
    )  # fmt: skip
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    kernel = load_file(pretrained / "model.safetensors")["avmae.audio_embeddings.patch_embeddings.projection.weight"]
    projection = model.mbt.audio_embeddings.patch_embeddings.projection
    assert (kernel.shape[1], model.config.num_audio_channels) == (1, channels)
    assert torch.equal(projection.weight, kernel.repeat(1, channels, 1, 1))
    torch.manual_seed(0)
    spectrogram = torch.randn(1, 200, 32)  # [B, time, mel], for any number of channels
    once = torch.nn.functional.conv2d(spectrogram.unsqueeze(1), kernel, stride=8).flatten(2).transpose(1, 2)
    embedded = model.mbt.audio_embeddings.patch_embeddings(spectrogram.unsqueeze(1))
    torch.testing.assert_close(embedded, channels * once + projection.bias, atol=1e-5, rtol=1e-5)

    clips = [
        {
            "pixel_values": torch.randn(4, 3, 32, 32), "input_features": torch.randn(200, 32), "has_video": True,
            "has_audio": True, "labels": torch.tensor(index % 3), "clip_id": f"clip-{index}",
        }
        for index in range(4)
    ]  # fmt: skip
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = AVTrainer(
        model, args, build_collator(run.recipe, model.config, seed=0), train_dataset=clips, processing_class=processor
    )
    trainer.train()
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert not torch.equal(projection.weight, before["mbt.audio_embeddings.patch_embeddings.projection.weight"])


def test_config_flag_changes_fields_of_a_checkpoint(tmp_path, pretrained):
    flags = ["--model", pretrained, "--config", '{"freeze_encoder": true, "modalities": ["audio"]}']
    run, _, _ = parse(tmp_path, *flags)
    _, model = load_checkpoint(run, {"num_labels": 3, "num_segments": 2})
    assert type(model).__name__ == "AVMAEForAudioVisualClassification"
    assert (tuple(model.config.modalities), model.config.num_segments) == (("audio",), 2)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
        "classifier.weight", "classifier.bias",
    ]  # fmt: skip
    for config, message in (
        ('{"hidden_size": 16}', r"has no weights that fit avmae\."),
        ('{"num_hidden_layers": 3}', r"has no weights that fit avmae\.encoder\.layers\.2"),
        ('{"hidden_siz": 16}', "is a checkpoint of avmae, whose configuration has no field hidden_siz"),
    ):
        run, _, _ = parse(tmp_path, "--model", pretrained, "--config", config)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(run, {"num_labels": 3})


def test_window_flags_change_a_checkpoint(tmp_path, pretrained):
    """Fixed positions fit any length; learned ones do not."""
    run, _, _ = parse(tmp_path, "--model", pretrained, "--num_frames", 6, "--span", 3, "--audio_seconds", 3)
    processor, model = load_checkpoint(run, {"num_labels": 3})
    assert (processor.window["num_frames"], processor.window["span"], processor.window["audio_seconds"]) == (
        6,
        3.0,
        3.0,
    )
    assert (model.config.num_frames, model.config.spectrogram_length, model.config.image_size) == (6, 300, 32)
    assert processor.feature_extractor.mean == 0.5
    mbt, _, _ = parse(tmp_path, "--from_vit", "none", *SMALL_FLAGS)
    for part in build_fresh(mbt.recipe, {"num_labels": 3}):
        part.save_pretrained(tmp_path / "mbt")
    run, _, _ = parse(tmp_path, "--model", tmp_path / "mbt", "--num_frames", 4)
    with pytest.raises(ValueError, match=r"has no weights that fit mbt\.video_embeddings\.position_embeddings"):
        load_checkpoint(run, {"num_labels": 3})


def test_labels_without_a_head_in_the_architecture_raise(tmp_path):
    run, _, _ = parse(tmp_path, "--from_vit", "none", *SMALL_FLAGS)
    with pytest.raises(ValueError, match="mbt has no num_segments"):
        build_fresh(run.recipe, {"num_labels": 3, "num_segments": 2})


def test_recipe_sets_defaults_for_its_benchmark_only(tmp_path):
    _, options, _ = parse(tmp_path, "--recipe", "mbt/epic-kitchens-100", "--data", "epic_kitchens_100")
    assert options.label_columns == ["verb", "noun"]
    _, options, _ = parse(tmp_path, "--recipe", "mbt/audioset-500k", "--data", "audioset")
    assert options.variant == "as500k"
    _, options, _ = parse(tmp_path, "--recipe", "mbt/audioset-500k", "--data", "vggsound")
    assert options.variant is None


def test_without_a_recipe_defaults_are_unchanged(tmp_path):
    run, _, args = parse(tmp_path)
    plain = AVTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    changing = ("logging_dir", "run_name")
    assert {k: v for k, v in args.to_dict().items() if k not in changing} == {
        k: v for k, v in plain.to_dict().items() if k not in changing
    }
    assert run.published is None
    assert run.recipe.init is None
    processor = build_processor(run.recipe)
    assert processor.window == type(processor)().window
    assert processor.feature_extractor.to_dict() == type(processor)().feature_extractor.to_dict()
    assert processor.video_processor.to_dict() == type(processor)().video_processor.to_dict()


def test_batch_without_a_recipe_is_accumulated(tmp_path):
    _, _, args = parse(tmp_path, "--global_batch_size", 32, "--per_device_train_batch_size", 8)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "mbt/vgsound"], r"no recipe 'mbt/vgsound'. Did you mean mbt/vggsound\?.*mbt/audioset-mini, "),
        (
            ["--recipe", "mbt/vggsound", "--size", "small"],
            "the model has the size of .*, from which it starts.*--from_vit",
        ),
        (
            ["--recipe", "mbt/vggsound", "--global_batch_size", "32"],
            "has no rule for others.*0.25 would be proportional",
        ),
        (["--recipe", "mbt/vggsound", "--per_device_train_batch_size", "7"], "product must be 64"),
        (["--recipe", "mbt/vggsound", "--per_device_train_batch_size", "1"], "mixes the clips of one forward pass"),
        (["--recipe", "mbt/vggsound", "--model", "vit"], "is for mbt, not for --model vit"),
        (["--recipe", "avmae/pretrain-vggsound"], "is for pretraining, not for classification"),
        (["--recipe", "avmae/vggsound"], "starts from a pretrained AV-MAE, .*: name it with --from_avmae"),
        (["--from_vit", "a", "--from_avmae", "b"], "a model can start from only one source"),
        (["--set", "spec_augment.freq=3"], "spec_augment has no field freq; it has freq_mask_count"),
        (["--set", "training.momentum=0.5"], "expected SECTION.FIELD=VALUE"),
        (["--spec_augment", "False", "--set", "spec_augment.freq_mask_count=3"], "spec_augment is switched off"),
        (["--config", "{"], "is not JSON"),
        (["--config", "[1]"], "must be a JSON object"),
        (
            ["--model", "a/b", "--set", "window.frame_rate=5"],
            "window.frame_rate=5: allowed for a new model only, but a/b",
        ),
        (["--global_batch_size", "0"], "batch size must be at least 1"),
        (["--model", "some/checkpoint", "--image_size", "64"], "--image_size: allowed for a new model only"),
    ],
)
def test_flags_that_contradict_a_recipe_raise(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, *flags)


def test_help_shows_the_defaults_of_a_recipe(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_with_recipe(Options, AVTrainingArguments, ["--recipe", "avmae/vggsound", "--help"])
    assert "(default: 0.75)" in " ".join(capsys.readouterr().out.split())


def test_a_checkpoint_keeps_its_sizes_and_takes_the_regularization(tmp_path):
    run, _, _ = parse(tmp_path / "run", "--recipe", "mbt/vggsound", *SMALL_FLAGS)
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    model.config.drop_path_rate = 0.0
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    run, _, args = parse(tmp_path / "run", "--recipe", "mbt/vggsound", "--model", tmp_path / "model")
    assert run.checkpoint == str(tmp_path / "model")
    processor, model = load_checkpoint(run, {"num_labels": 5})
    assert (model.config.drop_path_rate, model.config.label_smoothing) == (0.3, 0.3)
    assert (model.config.hidden_size, model.config.num_frames, model.classifier.out_features) == (8, 2, 5)
    trainer = AVTrainer(model, args, build_collator(run.recipe, model.config, seed=0), processing_class=processor)
    record = record_run(run, trainer, build_frame_augmentation(run.recipe, processor))
    assert record["overridden"]["window.num_frames"] == {"recipe": 32, "run": 2}
    assert record["overridden"]["init"]["run"] == str(tmp_path / "model")
    assert "regularization.drop_path_rate" not in record["overridden"]
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"is for mbt, but .* is a checkpoint of vit"):
        load_checkpoint(run, {})


# ---- the record ----


def test_record_lists_overridden_values(tmp_path, capsys):
    run, _, args = parse(
        tmp_path, "--recipe", "mbt/vggsound", "--per_device_train_batch_size", 8, "--learning_rate", 0.1, *SMALL_FLAGS
    )
    processor, model = build_fresh(run.recipe, {"num_labels": 3})
    augmentation = build_frame_augmentation(run.recipe, processor)
    trainer = AVTrainer(model, args, build_collator(run.recipe, model.config, seed=0), processing_class=processor)
    record = record_run(run, trainer, augmentation)
    assert set(record["overridden"]) == {
        "training.learning_rate", "window.num_frames", "window.span", "window.audio_seconds", "video.size",
        "video.crop_size", "init", *(f"model.{name}" for name in SMALL), "model.image_size", "model.num_frames",
        "model.spectrogram_length", "model.drop_remainder",
    }  # fmt: skip
    assert record["overridden"]["training.learning_rate"] == {"recipe": 0.5, "run": 0.1}
    assert record["batch"] == {"global": 64, "devices": 1, "per_device": 8, "accumulated": 8}
    assert record["settings"]["model"]["drop_path_rate"] == 0.3
    assert record["settings"]["model"]["hidden_size"] == 8
    assert record["settings"]["training"]["warmup_epochs"] == 2.5
    assert record["settings"]["spec_augment"]["freq_mask_max_bins"] == 48
    assert record["settings"]["frame_augmentation"]["crop"] == 32
    assert record["flags"]["learning_rate"] == 0.1
    assert "audio.mean" in record["uncertain"]

    path = save_record(record, tmp_path / "new")
    assert [file.name for file in path.parent.iterdir()] == ["recipe.json"]
    assert read_record(tmp_path / "new") == record
    main([str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert "training.learning_rate" in printed
    assert "1 device x 8 clips x 8 accumulated" in printed
    print_record({**record, "overridden": {}})
    assert "all values are the recipe's" in capsys.readouterr().out


def test_record_of_a_resumed_run_lists_changed_settings(tmp_path, capsys):
    def record_of(*flags, checkpoint=None, place="run"):
        run, _, args = parse(tmp_path / place, "--recipe", "mbt/vggsound", *SMALL_FLAGS, *flags)
        processor, model = build_fresh(run.recipe, {"num_labels": 3})
        trainer = AVTrainer(model, args, build_collator(run.recipe, model.config, seed=0), processing_class=processor)
        args.resume_from_checkpoint = checkpoint
        return keep_record(run, trainer)

    earlier = record_of()
    assert "resumed" not in earlier
    assert {"architectures", "dtype"} <= earlier["settings"]["model"].keys()
    same = record_of(checkpoint=tmp_path / "run" / "checkpoint-3")
    assert same["resumed"] == [{"checkpoint": "checkpoint-3", "changed": {}}]
    options = ["--learning_rate", 0.1, "--mixup_alpha", 0.3, "--per_device_train_batch_size", 8]
    other = record_of(*options, checkpoint=tmp_path / "run" / "checkpoint-6", place="elsewhere")
    assert other["resumed"][0] == same["resumed"][0]
    assert other["resumed"][1]["checkpoint"] == "checkpoint-6"
    changed = other["resumed"][1]["changed"]
    assert changed["training.learning_rate"] == {"before": 0.5, "since": 0.1}
    assert changed["collator.mixup_alpha"]["since"] == 0.3
    assert changed["batch.per_device"] == {"before": 64, "since": 8}
    assert {key.split(".")[0] for key in changed} == {"training", "collator", "batch"}
    assert read_record(tmp_path / "elsewhere") == other
    printed = " ".join(capsys.readouterr().out.split())
    assert "resumed from checkpoint-3: the same settings" in printed
    assert "training.learning_rate 0.1 (before 0.5)" in printed
    lines = read_recipe(tmp_path / "elsewhere" / "recipe.json")
    assert "training.learning_rate 0.1 (before 0.5)" in lines["from checkpoint-6 on"]
    assert "from checkpoint-3 on" not in lines
    strange = record_of(checkpoint=tmp_path / "gone" / "checkpoint-6")
    assert strange["resumed"] == [{"checkpoint": "checkpoint-6", "changed": None}]


def test_with_zero3_a_model_is_built_whole(deepspeed, tmp_path):
    """The trainer sets the ZeRO-3 configuration again and shards the model. It requires the setting that gathers the model for
    saving.
    """
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    settings = tmp_path / "zero3.json"
    settings.write_text(json.dumps({**dict.fromkeys(sizes, "auto"), "zero_optimization": {"stage": 3}}))
    try:
        run, _, args = parse(tmp_path / "run", *SMALL_FLAGS, "--from_vit", "none", "--deepspeed", settings)
        assert not is_deepspeed_zero3_enabled()
        processor, model = build_fresh(run.recipe, {"num_labels": 3})
        assert model.num_parameters() > 0
        trainer = AVTrainer(model, args, build_collator(run.recipe, model.config, seed=0), processing_class=processor)
        assert is_deepspeed_zero3_enabled()
        with pytest.raises(ValueError, match="ZeRO-3 would not save the trained model; set"):
            trainer.check_start()
    finally:
        unset_hf_deepspeed_config()


def test_reading_a_wrong_record_raises(tmp_path):
    with pytest.raises(ValueError, match="does not hold the record of a run"):
        read_record(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'overridden'"):
        read_record(tmp_path)


def test_recipes_are_listed_and_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main([])
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    main(["mbt/vggsound@paper"])
    printed = capsys.readouterr().out
    assert "mixup_alpha" in printed
    assert "uncertain" in printed
    with pytest.raises(SystemExit):
        main(["mbt/nothing"])
    assert "There is no recipe 'mbt/nothing'" in capsys.readouterr().err
