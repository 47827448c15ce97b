"""LAVISH recipes: adapters and a head on a frozen backbone, for event localisation, segmentation, questions and recognition.

Sources. "released": the commands and trainers of GenjiB/LAVISH (revision 97722b0): README, `AVE/run_v2.sh`, issues 5, 11, 17
and 21. "paper": Lin et al., CVPR 2023, and its supplementary.

Names without `@VARIANT` are the README's commands. `lavish/ave` has the stable loss; `@readme`, `@paper`, `@v2` and `@vit` have the
published one. `@paper` are the paper's values where they differ. Every recipe trains adapters of peft (`--adapter lavish`), whose
checkpoints hold adapters and head alone.

The published trainers choose the best epoch by the score on the test split, with a patience of 5. No recipe here does. To choose a
checkpoint on validation clips, add `--load_best_model_at_end true --eval_strategy epoch --save_strategy epoch` and the metric.
These defects of the published trainers are not copied: a second optimiser step with the same gradient every eighth batch (AVE);
gradients of half the batches thrown away (AVE, v2); learning rates by group that are computed and dropped (AVQA).
"""

from typing import Any

from .recipe import Recipe

# Frames and sound of training are those of evaluation: the published data loaders augment nothing.
PLAIN: dict[str, Any] = {"frame_augmentation": None, "spec_augment": None, "init_method": "from_backbone"}

README = "GenjiB/LAVISH@97722b0, README and trainers"
PAPER = "LAVISH (CVPR 2023), supplementary table of hyper-parameters"
SWIN_LARGE = "microsoft/swinv2-large-patch4-window12-192-22k"
VIT_BASE = "google/vit-base-patch16-224-in21k"

_UNREPORTED = "stated neither in the paper nor in the released command: a choice of this package"
_OF_V2 = "stated for the v2 trainer"
_WEIGHTS = "The original loads timm's weights of this model; transformers' may differ, such as in the epsilon of norms."

_SELECTION = "The published trainer chooses the best epoch on the test split (patience 5). Here the last epoch is kept."
_UNIFORM = (
    "The published code starts the latents as zeros, so that they stay equal for ever and act as one; the paper says random. "
    'For the published start: --adapter_config \'{"token_init": "zeros"}\'.'
)
_DROP_PATH = "The stochastic depth of the frozen Swin-V2 (0.1) acts in training, as published."

# What all recipes share.
_SHARED: dict[str, Any] = {"architecture": "lavish", "adapter_method": "lavish", **PLAIN}
_PLAIN_COLLATOR = {"mixup_alpha": 0.0, "time_shift": False}
_ADAM = {"optimizer": "adam", "weight_decay": 0.0, "max_grad_norm": 0.0}
_CONSTANT_RATE = {"schedule": "trainer", "lr_scheduler_type": "constant"}

_AVE = Recipe(
    **_SHARED,
    source=README,
    benchmark="ave",
    label_columns=("events",),
    size="swin_large",
    init=SWIN_LARGE,
    model={
        "modalities": ("video", "audio"),
        "classifier_hidden_size": 512,
        "localization_loss": "cross_entropy",
    },
    adapter={
        "num_tokens": 2,
        "reduction": 8,
        "groups": 2,
        "use_bn": True,
        "ln_before": True,
        "ln_post": True,
        "gate_audio": True,
        "token_init": "uniform",
        "unimodal_activation": "none",
    },
    window={"num_frames": 1, "num_segments": 10, "segment_seconds": 1.0, "segment_margin": 0.1},
    audio={
        "num_mel_bins": 192,
        "hop_length": 83,  # samples: int(5.2 ms * 16 kHz)
        "spectrogram_length": 192,
        "mean": -4.984795570373535,
        "std": 3.7079780101776123,
    },
    collator=_PLAIN_COLLATOR,
    training={
        **_ADAM,
        "learning_rate": 5e-5,
        "learning_rates": {"classifier": 4e-6},
        "schedule": "step",
        "decay_epochs": 3,
        "decay_factor": 0.35,
        "num_train_epochs": 50,
    },
    batch_size=2,
    views="lavish",
    reported="81.1 % of segments (paper); users report 78.8 to 80.1 with this command",
    notes=(
        "The loss is the cross-entropy. The published one, binary cross-entropy of the soft-max, is in @readme: its gradient "
        "explodes on wrong segments with saturated logits.",
        "50 epochs are the published maximum.",
        _SELECTION,
        _DROP_PATH,
    ),
    uncertain={
        "training.decay_epochs": _OF_V2,
        "training.decay_factor": _OF_V2,
        "model.localization_loss": "the stable form of the published loss: a choice of this package",
    },
)

# The published loss and its notes.
_PUBLISHED = {"model": {"localization_loss": "bce_of_probabilities"}, "notes": (_SELECTION, _DROP_PATH)}
_DECAY_OF_V2 = {"training.decay_epochs": _OF_V2, "training.decay_factor": _OF_V2}


def _published(recipe: Recipe, uncertain: dict[str, str] | None = None, **changes: Any) -> Recipe:
    """`recipe` with the published loss. Doubts are those given, not the recipe's."""
    model = {**_PUBLISHED["model"], **changes.pop("model", {})}
    changes = {"notes": _PUBLISHED["notes"], **changes, "model": model}
    changed = recipe.replace(**changes)
    return Recipe(**{**vars(changed), "uncertain": dict(uncertain or {})})


# Frames of 224 x 224, one second of sound as 102 x 128.
_VIT_INPUT = {
    "window": {"num_segments": 10},
    "audio": {"num_mel_bins": 128, "hop_length": 160, "spectrogram_length": 102, "mean": -4.1426, "std": 3.2001},
    "model": {"drop_remainder": True},  # 102 rows are 6 patches and 6 rows, which are not used
}


def _of_vit(recipe: Recipe, size: str, init: str, **changes: Any) -> Recipe:
    model = {**_VIT_INPUT["model"], **changes.pop("model", {})}
    doubts = {"audio.mean": "the released ViT setting's", **changes.pop("uncertain", {})}
    return recipe.replace(
        size=size,
        init=init,
        window=_VIT_INPUT["window"],
        audio=_VIT_INPUT["audio"],
        model=model,
        uncertain=doubts,
        **changes,
    )


# Supplementary section 2 compares backbones; it states no rates, so those of `lavish/ave` are taken.
_COMPARED = {
    "source": "LAVISH (CVPR 2023), supplementary section 2; values that it does not state from the README",
    "uncertain": dict.fromkeys(
        ("training.learning_rate", "training.learning_rates", "adapter.num_tokens", "adapter.reduction", "batch_size"),
        "section 2 does not state it: that of lavish/ave",
    ),
}

_S4 = Recipe(
    **_SHARED,
    source=README,
    benchmark="avsbench_s4",
    task="segmentation",
    size="swin_large",
    init=SWIN_LARGE,
    model={
        "modalities": ("video", "audio"),
        "mask_size": 224,
        "mask_loss": "bce_of_probabilities",
        "matching_loss_weight": 0.0,
    },
    adapter={
        "num_tokens": 16,
        "reduction": 4,
        "groups": 2,
        "use_bn": False,
        "ln_before": True,
        "ln_before_with_fusion": False,
        "ln_post": True,
        "gate_audio": False,
        "gate_before_post_norm": True,
        "token_init": "uniform",
    },
    window={
        "num_frames": 1,
        "num_segments": 5,
        "segment_seconds": 1.0,
        "segment_margin": 0.1,
        "segment_frame": 15 / 16,
    },
    audio={
        "num_mel_bins": 192,
        "hop_length": 160,
        "spectrogram_length": 192,
        "mean": -5.210531711578369,
        "std": 3.5918314456939697,
    },
    collator=_PLAIN_COLLATOR,
    training={
        **_ADAM,
        "learning_rate": 1e-4,
        **_CONSTANT_RATE,
        "num_train_epochs": 30,
    },
    batch_size=4,
    views="lavish",
    reported="80.1 mIoU (paper); about 79.7 with the released code (its author)",
    notes=(
        "The loss is the published one, of probabilities: wrong background pixels that are certain have no gradient. For the "
        'stable form: --config \'{"mask_loss": "bce_with_logits"}\'.',
        "The original reads frames of 224 x 224 and resizes them to 192 in the model; here they are resized to 192 once.",
        "The original also builds a PVT-v2-B5 that it does not use, which inflates its number of parameters.",
        _UNIFORM,
        _SELECTION,
        _DROP_PATH,
    ),
    uncertain={"adapter.token_init": "zeros in the released code, random in the paper"},
)

_AVQA = Recipe(
    **_SHARED,
    source=README,
    benchmark="music_avqa",
    task="question_answering",
    size="swin_large",
    init=SWIN_LARGE,
    model={"modalities": ("video", "audio"), "question_hidden_size": 512, "match_loss_weight": 0.5},
    regularization={"question_dropout": 0.1},
    adapter={
        "num_tokens": 64,
        "reduction": 8,
        "groups": 4,
        "use_bn": False,
        "ln_before": True,
        "ln_post": True,
        "gate_audio": True,
        "token_init": "uniform",
    },
    train_norms=True,
    window={"num_frames": 1, "num_segments": 10, "segment_seconds": 1.95, "segment_margin": 0.1},
    audio={
        "num_mel_bins": 192,
        "hop_length": 160,
        "spectrogram_length": 192,
        "mean": -5.385333061218262,
        "std": 3.5928637981414795,
    },
    collator={**_PLAIN_COLLATOR, "negatives": True},
    training={
        **_ADAM,
        "learning_rate": 8e-5,
        "schedule": "step",
        "decay_epochs": 8,
        "decay_factor": 0.1,
        "num_train_epochs": 30,
    },
    batch_size=2,
    views="lavish",
    reported="77.1 % of answers, of the validation split (GenjiB/LAVISH issue 21)",
    notes=(
        "The original starts the grounding layers from MUSIC-AVQA's own checkpoint; name it with --from_grounding.",
        "Negatives are frames of other videos of a batch, so batches have 2 clips; the original draws them from the data set, for "
        "batches of 1.",
        "All parameters have one rate, as in the released code, which computes two and drops them. The paper has two (@paper).",
        _UNIFORM,
        _DROP_PATH,
    ),
    uncertain={
        "training.num_train_epochs": _UNREPORTED,
        "batch_size": "published: 1, whose negatives come from the data set",
        "adapter.token_init": "zeros in the released code, random in the paper",
    },
)

# Nothing but the backbone, 7.4 M trained parameters and the score is published (supplementary table 2).
_UCF101_CHOICES = (
    "adapter.num_tokens", "adapter.reduction", "adapter.groups", "window.num_frames", "window.frame_rate", "window.audio_seconds",
    "audio.mean", "audio.std", "training.learning_rate", "training.num_train_epochs", "batch_size", "model.classifier_hidden_size",
)  # fmt: skip
_UCF101 = Recipe(
    **{**_SHARED, "frame_augmentation": {"scale": None, "flip": 0.5, "color": 0.0, "grayscale": 0.0}},
    source="LAVISH (CVPR 2023), supplementary table 2; there is no code, so most values are choices of this package",
    benchmark="ucf101",
    label_columns=("label",),
    size="videomae_base",
    init="MCG-NJU/videomae-base-finetuned-kinetics",
    model={"modalities": ("video", "audio"), "classifier_hidden_size": None},
    adapter={"num_tokens": 2, "reduction": 4, "groups": 2, "use_bn": True, "ln_before": True, "ln_post": True},
    window={"num_frames": 16, "frame_rate": 6.25, "span": None, "audio_seconds": 2.56, "num_segments": None},
    audio={"num_mel_bins": 128, "hop_length": 160, "mean": -4.1426, "std": 3.2001},
    video={
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
    },
    collator=_PLAIN_COLLATOR,
    training={
        **_ADAM,
        "learning_rate": 1e-4,
        **_CONSTANT_RATE,
        "num_train_epochs": 50,
    },
    batch_size=8,
    views="lavish/ucf101",
    reported="92.6 top-1 with 7.4 M trained parameters",
    notes=(
        "With these adapters 7.391 M parameters are trained beside the head.",
        "Evaluation has VideoMAE's 5 windows of 3 crops.",
    ),
    uncertain=dict.fromkeys(_UCF101_CHOICES, _UNREPORTED),
)

_VIT_ADAPTER = {
    "num_tokens": 8,
    "reduction": 16,
    "groups": 4,
    "use_bn": False,
    "ln_before": False,
    "ln_post": False,
    "gate_audio": True,
}

RECIPES: dict[str, Recipe] = {
    "lavish/ave": _AVE,
    "lavish/ave@readme": _published(_AVE, _DECAY_OF_V2),
    "lavish/ave@paper": _published(
        _AVE,
        {**_DECAY_OF_V2, "model.localization_loss": "the paper states no loss: the released code's"},
        source=PAPER,
        training={"learning_rate": 5e-6, "learning_rates": {"classifier": 4e-6}},
        reported="81.1 % of segments",
    ),
    "lavish/ave@v2": _published(
        _AVE,
        source="GenjiB/LAVISH@97722b0, AVE/run_v2.sh, the author's advice for 81.1",
        training={"learning_rate": 1e-4, "learning_rates": {"classifier": 5e-6}},
        notes=(
            "The released v2 trainer cannot run with Swin-V2, and throws away the gradients of every second batch.",
            *_PUBLISHED["notes"],
        ),
        reported="81.1 % of segments (its author)",
    ),
    "lavish/ave@vit": _published(
        _of_vit(_AVE, "base", VIT_BASE),
        {"adapter.reduction": "not stated: the released code's default", **_DECAY_OF_V2},
        source="GenjiB/LAVISH issue 17, by the author",
        adapter=_VIT_ADAPTER,
        train_norms=True,
        training={"learning_rate": 3e-5, "learning_rates": {"classifier": 6e-6}},
        notes=(_WEIGHTS, _SELECTION),
        reported="75.2 % of segments (a user, issue 17)",
    ),
    "lavish/ave@vit-tiny": _of_vit(
        _AVE,
        "tiny",
        "WinKawaks/vit-tiny-patch16-224",
        model={"classifier_hidden_size": 64},
        reported="5.4 points above ResNet-152",
        **_COMPARED,
    ),
    "lavish/ave@vit-small": _of_vit(
        _AVE, "small", "WinKawaks/vit-small-patch16-224", reported="13.9 points above ResNet-152", **_COMPARED
    ),
    "lavish/ave@resnet152": _of_vit(
        _AVE,
        "resnet152",
        "microsoft/resnet-152",
        model={"drop_remainder": False},
        reported="18 points below ViT-Base",
        **_COMPARED,
    ),
    "lavish/ave@visual-only": _AVE.replace(
        source="LAVISH (CVPR 2023), supplementary table 1; values that it does not state from the README",
        model={"modalities": ("video",)},
        reported="75.3 % of segments",
        uncertain={"adapter.unimodal_activation": "not described; the released AVE code has no activation there"},
    ),
    "lavish/ave@vggish": _AVE.replace(
        source="LAVISH (CVPR 2023), supplementary table 3; values that it does not state from the README",
        model={"vggish": True, "vggish_postprocess": False, "classifier_hidden_size": None},
        notes=(
            "VGGish starts from its published weights: name vggish-10086976.pth with --from_vggish. It stays frozen.",
            "The released code has only commented lines of this model. Here VGGish hears the first 0.975 s of each segment, and "
            "one linear layer reads its features after those of both streams.",
            *_AVE.notes,
        ),
        reported="82.4 % of segments",
        uncertain={
            "model.vggish_postprocess": _UNREPORTED,
            "model.classifier_hidden_size": "the commented lines have a linear classifier",
        },
    ),
    "lavish/avsbench_s4": _S4,
    "lavish/avsbench_s4@tpavi": _S4.replace(
        source="GenjiB/LAVISH@97722b0, AVS/train.sh",
        model={"tpavi_stages": (0, 1, 2, 3)},
        reported="",
    ),
    "lavish/music_avqa": _AVQA,
    "lavish/music_avqa@paper": _AVQA.replace(
        source=PAPER,
        adapter={"num_tokens": 16, "reduction": 4, "groups": 2},
        training={"learning_rates": {r"(^|\.)head\.": 3e-6}},
        notes=(
            "The adapters have 8e-5, grounding and head 3e-6. The released code drops these groups.",
            *_AVQA.notes[:2],
            _UNIFORM,
            _DROP_PATH,
        ),
    ),
    "lavish/ucf101": _UCF101,
}
