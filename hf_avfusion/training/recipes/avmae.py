"""AV-MAE recipes: pretraining the masked autoencoder, and fine-tuning an MBT from it with both modalities or one.

Sources. "released": the configurations `configs/{vggsound,audioset}/{pretrain,finetune}.py` of scenic's `projects/av_mae`, all for
the Large model. "paper": Georgescu et al., ICCV 2023, supplementary tables A13 (pretraining), A14 (decoders), A15 (VGGSound) and
A17 (AudioSet). Values of unreadable table cells are taken from the configurations and marked in `uncertain`. Table A16
(Epic-Kitchens) was unreadable and no configuration for it was released, so there is no recipe.

Names: `avmae/pretrain-DATA` pretrains; `avmae/BENCHMARK`, `-audio` and `-video` fine-tune with both modalities or one of them,
from a checkpoint that `--from_avmae` names. Names without `@VARIANT` are the released configurations; `@paper` are the paper's
tables where they differ.
"""

from .recipe import Recipe

PRETRAINING = "scenic projects/av_mae, configs/{}/pretrain.py; supplementary tables A13, A14"
FINETUNING = "scenic projects/av_mae, configs/{}/finetune.py; supplementary table {}"

_UNREADABLE = "the cell of the table could not be read: the released configuration's"

# ---- pretraining ----

# Notes that hold for every source. `replace(notes=...)` replaces all notes, so each recipe lists these again.
_DECAY = "Weight decay acts on kernels alone, after the update; nothing is clipped."
_CROPS = "The table names no augmentation; the configuration crops at random and flips."
_EVALUATION = "Evaluation resizes the short side to 224 there, here to 256 as in training."
_ROWS = "1,000 spectrogram frames are 62 rows of patches; the last 8 frames are not seen."

_PRETRAINING = Recipe(
    architecture="avmae",
    source=PRETRAINING.format("vggsound"),
    task="pretraining",
    size="large",
    model={
        "tubelet_size": 2,
        "patch_size": 16,
        "modalities": ("video", "audio"),
        "encoder_strategy": "separate",
        "decoder_strategy": "shared",
        "objective": "joint_reconstruction",
        "video_mask_ratio": 0.9,
        "audio_mask_ratio": 0.5,
        "video_masking": "random",
        "use_modality_tokens": False,
        "position_embeddings": "sinusoidal",
        "decoder_position_embeddings": "sinusoidal",
        "target_standardization": None,
        "average_over_features": True,
        "video_loss_weight": 0.5,
        "audio_loss_weight": 0.5,
    },
    regularization={
        "drop_path_rate": 0.0,
        "decoder_drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    window={"num_frames": 16, "frame_rate": 6.25, "span": None, "audio_seconds": 8.0, "synchronous": True},
    audio={"mean": 0.0, "std": 1.0},
    video={"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    frame_augmentation={"scale": None, "flip": 0.5, "color": 0.0, "grayscale": 0.0},
    spec_augment=None,
    collator={"mixup_alpha": 0.0, "time_shift": False},
    training={
        "optimizer": "adam_decoupled",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.05,
        "learning_rate": 3e-4,
        "max_grad_norm": 0.0,
        "schedule": "warmup_cosine",
        "warmup_epochs": 4,
        "num_train_epochs": 400,
        "dataloader_drop_last": True,
    },
    batch_size=512,
    learning_rate_rule="linear",
    notes=(
        "The rate is 1.5e-4 x batch / 256.",
        _DECAY,
        _CROPS,
        _EVALUATION,
    ),
)

_PAPER_DOUBTS = {
    "training.weight_decay": _UNREADABLE,
    "model.audio_mask_ratio": "table A4 could not be read; 0.5 is the best of table A5",
    "model.video_mask_ratio": "table A4 could not be read; 0.95 is the best for video alone in table A6",
    "frame_augmentation.flip": "the table names no augmentation: the released configuration's",
}

_PRETRAIN_AUDIOSET = _PRETRAINING.replace(
    source=PRETRAINING.format("audioset"),
    benchmark="audioset",
    variant="full",
    # 1,000 rows of the spectrogram are 62 patches and 8 rows.
    model={"encoder_strategy": "mid_fusion", "num_fusion_layers": 2, "audio_mask_ratio": 0.7, "drop_remainder": True},
    window={"audio_seconds": 10.0},
    training={"learning_rate": 6e-4, "num_train_epochs": 120},
    notes=(
        "The rate is 3e-4 x batch / 256.",
        _DECAY,
        _CROPS,
        _EVALUATION,
        _ROWS,
    ),
)

# ---- fine-tuning into MBT ----

_FINETUNING = Recipe(
    architecture="mbt",
    source=FINETUNING.format("vggsound", "A15"),
    benchmark="vggsound",
    size="large",
    init_method="from_avmae",
    model={
        "tubelet_size": 2,
        "patch_size": 16,
        "num_audio_channels": 3,
        "modalities": ("video", "audio"),
        "fusion": "bottleneck",
        "fusion_layer": 16,
        "num_bottleneck_tokens": 4,
        "share_encoder": False,
        "test_with_bottlenecks": True,
        "readout": "stream_mean",
        "position_embeddings": "sinusoidal",
    },
    regularization={
        "drop_path_rate": 0.3,
        "label_smoothing": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    window={"num_frames": 32, "frame_rate": 12.5, "span": None, "audio_seconds": 8.0, "synchronous": True},
    audio={"mean": 0.0, "std": 1.0},
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
    collator={"mixup_alpha": 0.5, "mixup_per_modality": True, "time_shift": False},
    training={
        "optimizer": "momentum_sgd",
        "momentum": 0.9,
        "learning_rate": 0.8,
        "layer_decay": 0.75,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "schedule": "warmup_cosine",
        "warmup_epochs": 2.5,
        "num_train_epochs": 50,
        "dataloader_drop_last": True,
    },
    batch_size=64,
    views="avmae",
    notes=(
        "For the Large model; fusion from layer 16 of 24. Base has no published value (MBT-Base: 8 of 12).",
        "Spectrograms are repeated into 3 channels, which AudioSet's configuration and those of pretraining switch off. A"
        " pretrained patch kernel of one channel is repeated too, undivided, so it gives three times what it gave. For one"
        " channel: --config '{\"num_audio_channels\": 1}'.",
        "A maximal ratio of 0 turns time masks and time warp off: only the frequency mask acts.",
        "Mixup draws one weight for each modality and device's batch, so smaller batches with accumulation draw more weights.",
    ),
)

_FINETUNE_AUDIOSET = _FINETUNING.replace(
    source=FINETUNING.format("audioset", "A17"),
    benchmark="audioset",
    variant="as500k",
    model={"fusion_layer": 18, "num_audio_channels": 1, "drop_remainder": True},
    window={"audio_seconds": 10.0},
    audio={"mean": 1.102, "std": 2.762},
    spec_augment={"freq_mask_max_bins": 36, "freq_mask_count": 2},
    collator={"time_shift": True},
    training={"learning_rate": 1.6},
    batch_size=128,
    notes=(
        "For the Large model; fusion from layer 18 of 24.",
        "A maximal ratio of 0 turns time masks and time warp off: only the frequency masks act.",
        "Spectrograms are normalised here, though not in pretraining: so the released configurations.",
        "Mixup draws one weight for each modality and device's batch, so smaller batches with accumulation draw more weights.",
    ),
)

# The released reader is `datasets/audiovisual_tfrecord_dataset.py`.
_THREE_CHANNELS = {
    "model.num_audio_channels": "the released reader's default: VGGSound's configuration does not set `inflate_spectrograms`, as"
    " AudioSet's and both of pretraining do, and some keys that it sets are not read; the paper does not say"
}


def _audio(recipe: Recipe, reported: str) -> Recipe:
    return recipe.replace(model={"modalities": ("audio",)}, frame_augmentation=None, reported=reported)


def _video(recipe: Recipe, reported: str) -> Recipe:
    return recipe.replace(
        model={"modalities": ("video",)}, spec_augment=None, collator={"time_shift": False}, reported=reported
    )


RECIPES: dict[str, Recipe] = {
    "avmae/pretrain-vggsound": _PRETRAINING.replace(benchmark="vggsound"),
    "avmae/pretrain-vggsound@paper": _PRETRAINING.replace(
        source="AV-MAE (ICCV 2023), supplementary table A13",
        benchmark="vggsound",
        training={"learning_rate": 3e-4, "warmup_epochs": 40, "num_train_epochs": 800},
        learning_rate_rule=None,
        notes=("The table gives 3e-4 at batches of 512 and no rule for others.", _DECAY, _CROPS),
        uncertain={**_PAPER_DOUBTS, "training.num_train_epochs": "400 in the ablations, 800 in the comparison"},
    ),
    "avmae/pretrain-audioset": _PRETRAIN_AUDIOSET,
    "avmae/pretrain-audioset@paper": _PRETRAIN_AUDIOSET.replace(
        source="AV-MAE (ICCV 2023), supplementary table A13",
        training={"learning_rate": 3e-4, "warmup_epochs": 40, "num_train_epochs": 120},
        learning_rate_rule=None,
        notes=(
            "120 epochs for Large, 80 for Base. The table's 3e-4 at batches of 512 is half of the configuration's.",
            _DECAY,
            _CROPS,
            _ROWS,
        ),
        uncertain={**_PAPER_DOUBTS, "model.audio_mask_ratio": "table A4 could not be read: the configuration's"},
    ),
    "avmae/vggsound": _FINETUNING.replace(reported="65.0 top-1", uncertain=_THREE_CHANNELS),
    "avmae/vggsound-audio": _audio(_FINETUNING, "57.2 top-1").replace(uncertain=_THREE_CHANNELS),
    "avmae/vggsound-video": _video(_FINETUNING, "50.3 top-1"),
    "avmae/audioset-500k": _FINETUNE_AUDIOSET.replace(reported="51.8 mAP"),
    "avmae/audioset-500k-audio": _audio(_FINETUNE_AUDIOSET, "46.6 mAP"),
    "avmae/audioset-500k-audio@paper": _audio(_FINETUNE_AUDIOSET, "46.6 mAP").replace(
        source="AV-MAE (ICCV 2023), supplementary table A17; unreadable cells from configs/audioset/finetune.py",
        collator={"mixup_alpha": 1.25},
        uncertain={"spec_augment": _UNREADABLE, "collator.time_shift": _UNREADABLE},
    ),
    "avmae/audioset-500k-video": _video(_FINETUNE_AUDIOSET, "31.1 mAP"),
}
