"""Every value of every recipe, copied a second time from its source table or configuration.

If a source does not cover a recipe's benchmark, the rows hold values carried over from another; `uncertain` marks these.
"""

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_avfusion.data.benchmarks.loading import BENCHMARKS
from hf_avfusion.evaluation.views import PROTOCOLS
from hf_avfusion.training.recipes import RECIPES
from hf_avfusion.training.recipes.batches import learning_rate_for
from hf_avfusion.training.recipes.building import build_frame_augmentation, build_processor, input_sizes

# Groups of recipes that rows refer to.
MBT_CODE = ("mbt/audioset-mini", "mbt/audioset-500k", "mbt/vggsound")
MBT_EIGHT_SECONDS = ("mbt/audioset-mini@paper", "mbt/audioset-500k@paper", "mbt/vggsound@paper", "mbt/kinetics400")
MBT_EPIC, MBT_MOMENTS = ("mbt/epic-kitchens-100",), ("mbt/moments",)
MBT_PAPER = (*MBT_EIGHT_SECONDS, *MBT_EPIC, *MBT_MOMENTS)
MBT = (*MBT_CODE, *MBT_PAPER)
PRETRAIN_VGGSOUND = ("avmae/pretrain-vggsound", "avmae/pretrain-vggsound@paper")
PRETRAIN_AUDIOSET = ("avmae/pretrain-audioset", "avmae/pretrain-audioset@paper")
PRETRAIN_CODE = ("avmae/pretrain-vggsound", "avmae/pretrain-audioset")
PRETRAIN_PAPER = ("avmae/pretrain-vggsound@paper", "avmae/pretrain-audioset@paper")
PRETRAIN = (*PRETRAIN_CODE, *PRETRAIN_PAPER)
TUNE_VGGSOUND = ("avmae/vggsound", "avmae/vggsound-audio", "avmae/vggsound-video")
TUNE_AUDIOSET_AUDIO = ("avmae/audioset-500k-audio", "avmae/audioset-500k-audio@paper")
TUNE_AUDIOSET = ("avmae/audioset-500k", *TUNE_AUDIOSET_AUDIO, "avmae/audioset-500k-video")
TUNE = (*TUNE_VGGSOUND, *TUNE_AUDIOSET)
TUNE_BOTH = ("avmae/vggsound", "avmae/audioset-500k")
TUNE_AUDIO = ("avmae/vggsound-audio", *TUNE_AUDIOSET_AUDIO)
TUNE_VIDEO = ("avmae/vggsound-video", "avmae/audioset-500k-video")
WITH_AUDIO = (*TUNE_BOTH, *TUNE_AUDIO)

NAMES = [name for name in RECIPES if not name.startswith("lavish/")]  # those of LAVISH: test_lavish_recipes.py

# (source, recipes, values). The rows of a recipe hold all its values, each in one row.
ROWS = (
    # ---- MBT: configs/audioset/balanced_audioset_base.py; "4.2" and letters: the paper's section, its supplementary's ----
    (
        "balanced_audioset_base.py, model (4.2: MBT-Base, B = 4, Lf = 8; the CLS readout is the paper's)",
        MBT,
        {
            "size": "base",
            "init": "google/vit-base-patch16-224-in21k",
            "init_method": "from_vit",
            "model.fusion": "bottleneck",
            "model.fusion_layer": 8,
            "model.num_bottleneck_tokens": 4,
            "model.share_encoder": False,
            "model.test_with_bottlenecks": True,
            "model.modalities": ("audio", "video"),
            "model.patch_size": 16,
            "model.readout": "token",
        },
    ),
    (
        "balanced_audioset_base.py, regularisation",
        MBT,
        {
            "regularization.drop_path_rate": 0.3,
            "regularization.label_smoothing": 0.3,
            "regularization.hidden_dropout_prob": 0.0,
            "regularization.attention_probs_dropout_prob": 0.0,
        },
    ),
    (
        "balanced_audioset_base.py, optimiser and schedule",
        MBT,
        {
            "training.optimizer": "momentum_sgd",
            "training.momentum": 0.9,
            "training.learning_rate": 0.5,
            "training.weight_decay": 0.0,
            "training.max_grad_norm": 1.0,
            "training.schedule": "warmup_cosine",
            "training.warmup_epochs": 2.5,
            "training.num_train_epochs": 50,
            "training.dataloader_drop_last": True,
            "batch_size": 64,
            "learning_rate_rule": None,
            "views": "mbt",
        },
    ),
    (
        "balanced_audioset_base.py, data: both modalities",
        MBT,
        {
            "window.synchronous": True,
            "audio.mean": 1.102,
            "audio.std": 2.762,
            "video.size": {"shortest_edge": 256},
            "video.crop_size": {"height": 224, "width": 224},
            "frame_augmentation.scale": (0.9, 1.33),
            "frame_augmentation.flip": 0.5,
            "frame_augmentation.color": 0.8,
            "frame_augmentation.grayscale": 0.1,
            "spec_augment.freq_mask_max_bins": 48,
            "spec_augment.freq_mask_count": 1,
            "spec_augment.time_mask_max_frames": 48,
            "spec_augment.time_mask_count": 4,
            "spec_augment.time_warp_max_frames": 1,
            "spec_augment.time_warp_max_ratio": 0.0,
            "collator.mixup_per_modality": False,
            "collator.time_shift": False,
        },
    ),
    (
        "balanced_audioset_base.py: 32 frames of stride 2 at 25 a second, tubelets of 2, 8 s; alpha 0.5; time masks' ratio 0",
        MBT_CODE,
        {
            "window.num_frames": 32,
            "window.frame_rate": 12.5,
            "window.span": None,
            "window.audio_seconds": 8.0,
            "model.tubelet_size": 2,
            "collator.mixup_alpha": 0.5,
            "spec_augment.time_mask_max_ratio": 0.0,
        },
    ),
    (
        "4.2: 16 x 16 patches of single frames, alpha 0.3, time masks of up to 192 frames in all",
        MBT_PAPER,
        {"model.tubelet_size": 1, "collator.mixup_alpha": 0.3, "spec_augment.time_mask_max_ratio": 1.0},
    ),
    (
        "4.2: 8 frames of stride 25 t / 8, t = 8 s",
        MBT_EIGHT_SECONDS,
        {"window.num_frames": 8, "window.span": 8.0, "window.audio_seconds": 8.0},
    ),
    (
        "4.2: 32 frames of stride 1 on Epic-Kitchens, two heads",
        MBT_EPIC,
        {
            "window.num_frames": 32,
            "window.frame_rate": 25.0,
            "window.span": None,
            "label_columns": ("verb", "noun"),
        },
    ),
    ("not stated for Epic-Kitchens: carried over", MBT_EPIC, {"window.audio_seconds": 8.0}),
    (
        "supplementary C.1: clips of 3 s in Moments in Time, which the window of 4.2 cannot exceed",
        MBT_MOMENTS,
        {"window.num_frames": 8, "window.span": 3.0, "window.audio_seconds": 3.0},
    ),
    ("the project's README", ("mbt/audioset-mini",), {"reported": "43.9 mAP (audio alone 30.9, video alone 27.0)"}),
    ("supplementary: late against mid fusion", ("mbt/audioset-mini@paper",), {"reported": "43.92 mAP"}),
    (
        "the project's README",
        ("mbt/audioset-500k", "mbt/audioset-500k@paper"),
        {"reported": "52.3 mAP (audio alone 44.0, video alone 33.9)", "variant": "as500k"},
    ),
    (
        "balanced_audioset_base.py: balanced_train",
        ("mbt/audioset-mini", "mbt/audioset-mini@paper"),
        {"variant": "balanced"},
    ),
    ("supplementary: late against mid fusion", ("mbt/vggsound", "mbt/vggsound@paper"), {"reported": "64.1 top-1"}),
    ("supplementary: late against mid fusion", MBT_EPIC, {"reported": "43.40 action top-1"}),
    ("supplementary: late against mid fusion", ("mbt/kinetics400",), {"reported": "80.8 top-1"}),
    ("supplementary: late against mid fusion", MBT_MOMENTS, {"reported": "37.26 top-1"}),
    ("names", MBT, {"task": "classification"}),
    ("names", (*MBT_CODE[:2], *MBT_EIGHT_SECONDS[:2]), {"benchmark": "audioset"}),
    ("names", ("mbt/vggsound", "mbt/vggsound@paper"), {"benchmark": "vggsound"}),
    ("names", ("mbt/kinetics400",), {"benchmark": "kinetics400"}),
    ("names", MBT_EPIC, {"benchmark": "epic_kitchens_100"}),
    ("names", MBT_MOMENTS, {"benchmark": "moments_in_time"}),
    # ---- AV-MAE, pretraining: table A13; configs/{vggsound,audioset}/pretrain.py ----
    (
        "pretrain.py, model and loss",
        PRETRAIN,
        {
            "size": "large",
            "init": None,
            "init_method": "from_vit",
            "model.tubelet_size": 2,
            "model.patch_size": 16,
            "model.modalities": ("video", "audio"),
            "model.decoder_strategy": "shared",
            "model.objective": "joint_reconstruction",
            "model.video_mask_ratio": 0.9,
            "model.video_masking": "random",
            "model.use_modality_tokens": False,
            "model.position_embeddings": "sinusoidal",
            "model.decoder_position_embeddings": "sinusoidal",
            "model.target_standardization": None,
            "model.average_over_features": True,
            "model.video_loss_weight": 0.5,
            "model.audio_loss_weight": 0.5,
            "regularization.drop_path_rate": 0.0,
            "regularization.decoder_drop_path_rate": 0.0,
            "regularization.hidden_dropout_prob": 0.0,
            "regularization.attention_probs_dropout_prob": 0.0,
        },
    ),
    (
        "pretrain.py, data: 16 frames of stride 4, short side 256, crop 224, flip, nothing else",
        PRETRAIN,
        {
            "window.num_frames": 16,
            "window.frame_rate": 6.25,
            "window.span": None,
            "window.synchronous": True,
            "audio.mean": 0.0,
            "audio.std": 1.0,
            "video.size": {"shortest_edge": 256},
            "video.crop_size": {"height": 224, "width": 224},
            "frame_augmentation.scale": None,
            "frame_augmentation.flip": 0.5,
            "frame_augmentation.color": 0.0,
            "frame_augmentation.grayscale": 0.0,
            "spec_augment": None,
            "collator.mixup_alpha": 0.0,
            "collator.time_shift": False,
            "views": None,
            "reported": "",
        },
    ),
    (
        "A13: Adam, beta 0.9 and 0.95, cosine, batch 512; pretrain.py: epsilon, decay 0.05, no clipping",
        PRETRAIN,
        {
            "training.optimizer": "adam_decoupled",
            "training.adam_beta1": 0.9,
            "training.adam_beta2": 0.95,
            "training.adam_epsilon": 1e-8,
            "training.weight_decay": 0.05,
            "training.max_grad_norm": 0.0,
            "training.schedule": "warmup_cosine",
            "training.dataloader_drop_last": True,
            "batch_size": 512,
        },
    ),
    ("pretrain.py: 4 epochs, rate x batch / 256", PRETRAIN_CODE, {"training.warmup_epochs": 4, "learning_rate_rule": "linear"}),
    (
        "A13: 40 epochs, 3e-4 at a batch of 512",
        PRETRAIN_PAPER,
        {"training.warmup_epochs": 40, "training.learning_rate": 3e-4, "learning_rate_rule": None},
    ),
    ("vggsound/pretrain.py: 1.5e-4 x 512 / 256", PRETRAIN_VGGSOUND[:1], {"training.learning_rate": 3e-4}),
    ("audioset/pretrain.py: 3e-4 x 512 / 256", PRETRAIN_AUDIOSET[:1], {"training.learning_rate": 6e-4}),
    ("vggsound/pretrain.py", PRETRAIN_VGGSOUND[:1], {"training.num_train_epochs": 400}),
    ("A13: VGGSound 800 (ablations 400)", PRETRAIN_VGGSOUND[1:], {"training.num_train_epochs": 800}),
    (
        "vggsound/pretrain.py (A5: 0.5 is the best for audio)",
        PRETRAIN_VGGSOUND,
        {"model.audio_mask_ratio": 0.5, "model.encoder_strategy": "separate", "window.audio_seconds": 8.0},
    ),
    (
        "audioset/pretrain.py; A13: 120 epochs for Large",
        PRETRAIN_AUDIOSET,
        {
            "variant": "full",
            "model.audio_mask_ratio": 0.7,
            "model.encoder_strategy": "mid_fusion",
            "model.num_fusion_layers": 2,
            "window.audio_seconds": 10.0,
            "training.num_train_epochs": 120,
        },
    ),
    ("names", PRETRAIN, {"task": "pretraining"}),
    ("names", TUNE, {"task": "classification"}),
    ("names", (*PRETRAIN_VGGSOUND, *TUNE_VGGSOUND), {"benchmark": "vggsound"}),
    ("names", (*PRETRAIN_AUDIOSET, *TUNE_AUDIOSET), {"benchmark": "audioset"}),
    (
        "the window: 1,000 or 300 rows in patches of 16",
        (*MBT_MOMENTS, *PRETRAIN_AUDIOSET, *TUNE_AUDIOSET),
        {"model.drop_remainder": True},
    ),
    # ---- AV-MAE, fine-tuning: tables A15 and A17; configs/{vggsound,audioset}/finetune.py ----
    (
        "finetune.py, model; no position is learned",
        TUNE,
        {
            "size": "large",
            "init": None,
            "init_method": "from_avmae",
            "model.tubelet_size": 2,
            "model.patch_size": 16,
            "model.fusion": "bottleneck",
            "model.num_bottleneck_tokens": 4,
            "model.share_encoder": False,
            "model.test_with_bottlenecks": True,
            "model.readout": "stream_mean",
            "model.position_embeddings": "sinusoidal",
            "regularization.hidden_dropout_prob": 0.0,
            "regularization.attention_probs_dropout_prob": 0.0,
        },
    ),
    ("finetune.py, modality_fusion", TUNE_BOTH, {"model.modalities": ("video", "audio")}),
    ("A15, A17: column A", TUNE_AUDIO, {"model.modalities": ("audio",), "frame_augmentation": None}),
    ("A15, A17: column V", TUNE_VIDEO, {"model.modalities": ("video",), "spec_augment": None}),
    ("vggsound/finetune.py: layer 16 of 24", TUNE_VGGSOUND, {"model.fusion_layer": 16}),
    ("audioset/finetune.py: layer 18 of 24", TUNE_AUDIOSET, {"model.fusion_layer": 18}),
    ("vggsound/finetune.py leaves inflate_spectrograms at True", TUNE_VGGSOUND, {"model.num_audio_channels": 3}),
    ("audioset/finetune.py: inflate_spectrograms = False", TUNE_AUDIOSET, {"model.num_audio_channels": 1}),
    (
        "A15, A17: SGD, 0.9, layerwise decay, cosine, clipping, epochs, stochastic depth, smoothing; finetune.py: no weight decay",
        TUNE,
        {
            "training.optimizer": "momentum_sgd",
            "training.momentum": 0.9,
            "training.layer_decay": 0.75,
            "training.weight_decay": 0.0,
            "training.max_grad_norm": 1.0,
            "training.schedule": "warmup_cosine",
            "training.warmup_epochs": 2.5,
            "training.num_train_epochs": 50,
            "training.dataloader_drop_last": True,
            "learning_rate_rule": None,
            "regularization.drop_path_rate": 0.3,
            "regularization.label_smoothing": 0.3,
            "views": "avmae",
        },
    ),
    ("A15", TUNE_VGGSOUND, {"training.learning_rate": 0.8, "batch_size": 64}),
    ("A17", TUNE_AUDIOSET, {"training.learning_rate": 1.6, "batch_size": 128, "variant": "as500k"}),
    (
        "A15: 8 s; vggsound/finetune.py: not normalised",
        TUNE_VGGSOUND,
        {"window.audio_seconds": 8.0, "audio.mean": 0.0, "audio.std": 1.0},
    ),
    (
        "A17: 10 s; audioset/finetune.py: normalised",
        TUNE_AUDIOSET,
        {"window.audio_seconds": 10.0, "audio.mean": 1.102, "audio.std": 2.762},
    ),
    (
        "A15, A17: 32 frames; finetune.py: stride 2, short side 256, crop 224",
        TUNE,
        {
            "window.num_frames": 32,
            "window.frame_rate": 12.5,
            "window.span": None,
            "window.synchronous": True,
            "video.size": {"shortest_edge": 256},
            "video.crop_size": {"height": 224, "width": 224},
            "collator.mixup_per_modality": True,
        },
    ),
    (
        "finetune.py, augmentation_params",
        (*TUNE_BOTH, *TUNE_VIDEO),
        {
            "frame_augmentation.scale": (0.9, 1.33),
            "frame_augmentation.flip": 0.5,
            "frame_augmentation.color": 0.8,
            "frame_augmentation.grayscale": 0.1,
        },
    ),
    (
        "finetune.py, spec_augment_params",
        WITH_AUDIO,
        {
            "spec_augment.time_mask_max_frames": 48,
            "spec_augment.time_mask_count": 4,
            "spec_augment.time_mask_max_ratio": 0.0,
            "spec_augment.time_warp_max_frames": 1,
            "spec_augment.time_warp_max_ratio": 0.0,
        },
    ),
    (
        "vggsound/finetune.py, spec_augment_params",
        ("avmae/vggsound", "avmae/vggsound-audio"),
        {"spec_augment.freq_mask_max_bins": 48, "spec_augment.freq_mask_count": 1},
    ),
    (
        "audioset/finetune.py, spec_augment_params",
        ("avmae/audioset-500k", *TUNE_AUDIOSET_AUDIO),
        {"spec_augment.freq_mask_max_bins": 36, "spec_augment.freq_mask_count": 2},
    ),
    (
        "A15 and vggsound/finetune.py name no shift; without audio there is nothing to shift",
        (*TUNE_VGGSOUND, "avmae/audioset-500k-video"),
        {"collator.time_shift": False},
    ),
    (
        "audioset/finetune.py, circular_time_shift; A17 lists it",
        ("avmae/audioset-500k", *TUNE_AUDIOSET_AUDIO),
        {"collator.time_shift": True},
    ),
    (
        "A15; A17: columns V and AV, and audioset/finetune.py for all",
        (*TUNE_VGGSOUND, "avmae/audioset-500k", "avmae/audioset-500k-audio", "avmae/audioset-500k-video"),
        {"collator.mixup_alpha": 0.5},
    ),
    ("A17: column A", ("avmae/audioset-500k-audio@paper",), {"collator.mixup_alpha": 1.25}),
    ("the project's README", ("avmae/vggsound",), {"reported": "65.0 top-1"}),
    ("the project's README", ("avmae/vggsound-audio",), {"reported": "57.2 top-1"}),
    ("the project's README", ("avmae/vggsound-video",), {"reported": "50.3 top-1"}),
    ("the project's README", ("avmae/audioset-500k",), {"reported": "51.8 mAP"}),
    ("the project's README", TUNE_AUDIOSET_AUDIO, {"reported": "46.6 mAP"}),
    ("the project's README", ("avmae/audioset-500k-video",), {"reported": "31.1 mAP"}),
)  # fmt: skip

# Fields of a recipe, other than its sections, that have an effect. Rows may leave them out if they are None.
ATTRIBUTES = (
    "task",
    "benchmark",
    "size",
    "init",
    "init_method",
    "variant",
    "label_columns",
    "learning_rate_rule",
    "views",
    "reported",
)


def published(name):
    """{field: (value, source)} of one recipe."""
    found = {}
    for source, recipes, values in ROWS:
        for field, value in values.items() if name in recipes else ():
            assert field not in found, f"{name}: {field} is in two rows, {found[field][1]} and {source}"
            found[field] = (value, source)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_value_matches_its_source(name):
    recipe, expected = RECIPES[name], published(name)
    actual = {**recipe.values(), **{field: getattr(recipe, field) for field in ATTRIBUTES}}
    for field, (value, source) in expected.items():
        assert actual.pop(field) == value, f"{name}: {field} is not that of {source}"
    assert {field: value for field, value in actual.items() if value is not None or field not in ATTRIBUTES} == {}


def test_rows_cover_all_recipes():
    assert {name for _, recipes, _ in ROWS for name in recipes} == set(NAMES)


# ViT-B, ViT-L as in the configurations: width, heads, width of the MLP, layers; decoders of table A14.
ENCODERS = {"base": (768, 12, 3072, 12), "large": (1024, 16, 4096, 24)}
DECODER_OF_LARGE = (512, 8, 2048, 4)
# Video and audio tokens: 16 x 14 x 14, 8 x 14 x 14, 32 x 14 x 14, and 50 x 8, 62 x 8, 18 x 8.
TOKENS = {
    **dict.fromkeys(MBT_CODE, (3136, 400)),
    **dict.fromkeys(MBT_EIGHT_SECONDS, (1568, 400)),
    **dict.fromkeys(MBT_EPIC, (6272, 400)),
    **dict.fromkeys(MBT_MOMENTS, (1568, 144)),
    **dict.fromkeys(PRETRAIN_VGGSOUND, (1568, 400)),
    **dict.fromkeys(PRETRAIN_AUDIOSET, (1568, 496)),
    **dict.fromkeys(TUNE_VGGSOUND, (3136, 400)),
    **dict.fromkeys(TUNE_AUDIOSET, (3136, 496)),
}


@pytest.mark.parametrize("name", NAMES)
def test_built_configurations_have_the_published_sizes(name):
    recipe = RECIPES[name]
    processor = build_processor(recipe)
    config = getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)(**input_sizes(processor), **recipe.model)
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    assert tuple(getattr(config, field) for field in sizes) == ENCODERS[recipe.size]
    if recipe.task == "pretraining":
        assert tuple(getattr(config, f"decoder_{field}") for field in sizes) == DECODER_OF_LARGE
    video = config.num_frames // config.tubelet_size * (config.image_hw[0] // 16) * (config.image_hw[1] // 16)
    assert (video, config.spectrogram_length // 16 * (config.num_mel_bins // 16)) == TOKENS[name]

    front_end = processor.feature_extractor
    assert (front_end.sampling_rate, front_end.win_length, front_end.hop_length) == (16000, 400, 160)  # 25 ms, 10 ms
    assert (front_end.num_mel_bins, front_end.window_type) == (128, "hamming")
    assert (processor.window["video_grid"], processor.window["audio_grid"]) == (25.0, 100.0)
    if (augmentation := build_frame_augmentation(recipe, processor)) is not None:
        assert (augmentation.shortest_edge, augmentation.crop) == (256, 224)
        assert (augmentation.brightness, augmentation.hue) == (32 / 255, 0.2)
        assert augmentation.saturation == augmentation.contrast == (0.6, 1.4)
    if recipe.views is not None:
        protocol = PROTOCOLS[recipe.views]
        assert (protocol.num_views, protocol.num_crops, protocol.aggregation) == (4, 1, "mean_logits")


def test_clips_and_classes_of_the_configurations():
    """AS-500K has 508,994 clips; 527 and 309 are the classes in the configurations of both projects."""
    assert BENCHMARKS["audioset"].variant("as500k").splits["train"] == 508_994
    assert len(BENCHMARKS["audioset"].label_names("labels")) == 527
    assert len(BENCHMARKS["vggsound"].label_names("label")) == 309


def test_pretraining_of_the_paper_has_no_rule_for_other_batch_sizes():
    """Table A13 gives one learning rate for one batch size; the configurations multiply theirs by batch / 256."""
    for name in PRETRAIN_PAPER:
        with pytest.raises(
            ValueError, match=r"batches of 512 at a learning rate of 0\.0003, and its source has no rule"
        ):
            learning_rate_for(RECIPES[name], name, 256)
        assert not [note for note in RECIPES[name].notes if "x batch" in note]
    for name, text in zip(PRETRAIN_CODE, ("1.5e-4", "3e-4"), strict=True):
        assert learning_rate_for(RECIPES[name], name, 256) == pytest.approx(float(text))
        assert RECIPES[name].notes[0] == f"The rate is {text} x batch / 256."


def test_deviations_are_noted_in_all_recipes_concerned():
    """A recipe's own notes do not replace the notes that hold for all recipes of its source."""
    everywhere = {
        MBT: ("the Trainer clips the mean", "Mixup draws one weight for each device"),
        PRETRAIN: ("Weight decay acts on kernels alone", "the configuration crops at random and flips"),
        PRETRAIN_CODE: ("here to 256 as in training",),
        PRETRAIN_AUDIOSET: ("the last 8 frames are not seen",),
        TUNE: ("turns time masks and time warp off", "Mixup draws one weight for each modality"),
        TUNE_VGGSOUND: ("repeated into 3 channels",),
    }
    for recipes, notes in everywhere.items():
        for name in recipes:
            for note in notes:
                assert [text for text in RECIPES[name].notes if note in text], f"{name} does not say {note!r}"
    for name in ("avmae/vggsound", "avmae/vggsound-audio"):  # not in the paper, and no checkpoint could be opened
        assert "inflate_spectrograms" in RECIPES[name].uncertain["model.num_audio_channels"]
