"""MBT recipes: the released AudioSet configuration, the paper's settings, and settings for the other benchmarks.

Sources. "released": `configs/audioset/balanced_audioset_base.py` of scenic's `projects/mbt`, the only configuration that
was released. "paper": Nagrani et al., NeurIPS 2021, section 4.2, and its supplementary. Values of the paper known
only at second hand, and values carried over from AudioSet, are marked in `uncertain`.

Names: `mbt/BENCHMARK` is the released setting or the closest to it; `mbt/BENCHMARK@paper` is the paper's, where it differs.
"""

from dataclasses import replace

from .recipe import Recipe

RELEASED = "scenic projects/mbt, configs/audioset/balanced_audioset_base.py"
PAPER = "Attention Bottlenecks for Multimodal Fusion (NeurIPS 2021), section 4.2 and supplementary"

_SECOND_HAND = "the paper's value, known at second hand"
_CARRIED = "no configuration was released for this benchmark: carried over from AudioSet"

# Differences between this package and the original on every benchmark. Recipes with their own notes repeat these.
_DEVIATIONS = (
    "The original clips the gradient of each device, before the mean over devices; the Trainer clips the mean.",
    "Mixup draws one weight for each device's batch, so smaller batches with accumulation draw more weights.",
)

# The released configuration without benchmark-specific values.
_RELEASED = Recipe(
    architecture="mbt",
    source=RELEASED,
    size="base",
    init="google/vit-base-patch16-224-in21k",
    model={
        "tubelet_size": 2,
        "patch_size": 16,
        "fusion": "bottleneck",
        "fusion_layer": 8,
        "num_bottleneck_tokens": 4,
        "modalities": ("audio", "video"),
        "share_encoder": False,
        "test_with_bottlenecks": True,
        "readout": "token",
    },
    regularization={
        "drop_path_rate": 0.3,
        "label_smoothing": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    window={"num_frames": 32, "frame_rate": 12.5, "span": None, "audio_seconds": 8.0, "synchronous": True},
    audio={"mean": 1.102, "std": 2.762},
    video={"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    frame_augmentation={"scale": (0.9, 1.33), "flip": 0.5, "color": 0.8, "grayscale": 0.1},
    spec_augment={
        "freq_mask_max_bins": 48,
        "freq_mask_count": 1,
        "time_mask_max_frames": 48,
        "time_mask_count": 4,
        "time_mask_max_ratio": 0.0,
        "time_warp_max_frames": 1,
        "time_warp_max_ratio": 0.0,
    },
    collator={"mixup_alpha": 0.5, "mixup_per_modality": False, "time_shift": False},
    training={
        "optimizer": "momentum_sgd",
        "momentum": 0.9,
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "schedule": "warmup_cosine",
        "warmup_epochs": 2.5,
        "num_train_epochs": 50,
        "dataloader_drop_last": True,
    },
    batch_size=64,
    views="mbt",
    notes=(
        "The released configuration sets readout 'gap', which its code cannot run with bottlenecks; 'token' is the "
        'paper\'s. For the released value, give --config \'{"readout": "mean"}\'.',
        "frame_rate 12.5 is stride 2 at 25 frames per second: the 32 frames span 2.56 s, while the audio is 8 s long.",
        "A maximal ratio of 0 turns time masks and time warp off: only the frequency mask acts.",
        *_DEVIATIONS,
    ),
)

# 8 frames over the window of 8 s, each cut into 16 x 16 patches; time masks as the paper seems to intend them.
_PAPER = replace(_RELEASED, window={"num_frames": 8, "span": 8.0, "audio_seconds": 8.0, "synchronous": True}).replace(
    source=PAPER,
    model={"tubelet_size": 1},
    spec_augment={"time_mask_max_ratio": 1.0},
    collator={"mixup_alpha": 0.3},
    notes=(
        "8 frames spread over 8 s (stride 25 t / 8), 1,568 tokens of single frames.",
        *_DEVIATIONS,
    ),
    uncertain={
        "window.num_frames": _SECOND_HAND,
        "window.span": _SECOND_HAND,
        "model.tubelet_size": _SECOND_HAND,
        "collator.mixup_alpha": _SECOND_HAND,
        "spec_augment.time_mask_max_ratio": "the paper's masks of up to 192 frames in all, known at second hand, read as"
        " the configuration's 4 x 48 with the limit lifted",
        "regularization.label_smoothing": "in the released configuration; whether the paper names it is not known",
        "regularization.drop_path_rate": _SECOND_HAND,
        "training.learning_rate": _SECOND_HAND,
        "training.num_train_epochs": _SECOND_HAND,
        "training.warmup_epochs": _SECOND_HAND,
        "batch_size": _SECOND_HAND,
    },
)


def _carried_over(base: Recipe, benchmark: str, reported: str, **changes) -> Recipe:
    """`base` for a benchmark without a released configuration; marks every value that its source does not state."""
    values = ("training.learning_rate", "training.num_train_epochs", "batch_size", "collator.mixup_alpha")
    doubts = {**dict.fromkeys((*values, "audio.mean", "audio.std"), _CARRIED), **base.uncertain}
    doubts |= changes.pop("uncertain", {})
    return base.replace(benchmark=benchmark, variant=None, reported=reported, uncertain=doubts, **changes)


_AS_500K = {
    "variant": "as500k",
    "reported": "52.3 mAP (audio alone 44.0, video alone 33.9)",
    "uncertain": {
        "training.num_train_epochs": "that of AudioSet-mini; no configuration of AS-500K was released",
        "training.learning_rate": "that of AudioSet-mini; no configuration of AS-500K was released",
    },
}

_VGGSOUND_AUDIO = dict.fromkeys(
    ("audio.mean", "audio.std"), "AudioSet's; AV-MAE, of the same repository, takes mean 0 and deviation 1 on VGGSound"
)
# AV-MAE's and PolyViT's configurations for VGGSound share these values with MBT's for AudioSet: 32 frames of stride 2, 8 s,
# one frequency mask of 48, alpha 0.5, smoothing 0.3, stochastic depth 0.3, 4 views, batch 64, 50 epochs.
_AS_NEIGHBOURS = dict.fromkeys(
    ("training.num_train_epochs", "batch_size", "collator.mixup_alpha"),
    "as on AudioSet, and as AV-MAE and PolyViT, of the same repository, train on VGGSound",
)

_EPIC = {
    "label_columns": ("verb", "noun"),
    # Segments are short, so frames are adjacent: 32 at stride 1 of 25 frames per second.
    "window": {"num_frames": 32, "frame_rate": 25.0, "span": None},
    "notes": (
        "Two heads, verb and noun, whose losses are averaged; an action is scored by the product of their probabilities.",
        "Audio shorter than the window is repeated (windows wrap around), as in the released pipeline.",
        *_DEVIATIONS,
    ),
    "uncertain": {
        "window.num_frames": _SECOND_HAND,
        "window.frame_rate": _SECOND_HAND,
        "window.audio_seconds": "not stated for Epic-Kitchens, whose segments are mostly shorter: carried over",
        "model.tubelet_size": "not stated: single frames, as the paper cuts them on AudioSet",
    },
}

_MOMENTS = {
    "model": {"drop_remainder": True},  # 300 rows of the spectrogram are 18 patches and 12 rows
    "window": {"span": 3.0, "audio_seconds": 3.0},
    "notes": ("The clips are 3 s long, so the paper's window of 8 s is cut to that, with its 8 frames.", *_DEVIATIONS),
    "uncertain": {
        "window.span": "not stated: the length of a clip",
        "window.audio_seconds": "not stated: the length of a clip",
    },
}

RECIPES: dict[str, Recipe] = {
    "mbt/audioset-mini": _RELEASED.replace(
        benchmark="audioset", variant="balanced", reported="43.9 mAP (audio alone 30.9, video alone 27.0)"
    ),
    "mbt/audioset-mini@paper": _PAPER.replace(benchmark="audioset", variant="balanced", reported="43.92 mAP"),
    "mbt/audioset-500k": _RELEASED.replace(benchmark="audioset", **_AS_500K),
    "mbt/audioset-500k@paper": _PAPER.replace(benchmark="audioset", **_AS_500K),
    "mbt/vggsound": _carried_over(_RELEASED, "vggsound", "64.1 top-1", uncertain={**_VGGSOUND_AUDIO, **_AS_NEIGHBOURS}),
    "mbt/vggsound@paper": _carried_over(_PAPER, "vggsound", "64.1 top-1", uncertain=_VGGSOUND_AUDIO),
    "mbt/epic-kitchens-100": _carried_over(_PAPER, "epic_kitchens_100", "43.40 action top-1", **_EPIC),
    "mbt/kinetics400": _carried_over(_PAPER, "kinetics400", "80.8 top-1"),
    "mbt/moments": _carried_over(_PAPER, "moments_in_time", "37.26 top-1", **_MOMENTS),
}
