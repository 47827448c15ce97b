"""The flags that all training scripts have. Imports nothing slow, so that wrong arguments are answered at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...arguments import check_at_least, check_at_most, check_training
from ...data.benchmarks.folders import check_exists
from ...data.benchmarks.records import BENCHMARKS
from ...data.benchmarks.splits import check_selection
from . import get_recipe

SETTABLE = ("window", "audio", "video", "frame_augmentation", "spec_augment", "collator")


@dataclass
class RecipeOptions:
    """Flags for the values of a recipe; with `--recipe`, the recipe's values are their defaults."""

    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Published recipe to train with (`python -m hf_avfusion.training.recipes` lists them); flags "
            "override its values."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Clips per update, over all devices and accumulated batches. If --per_device_train_batch_size is "
            "smaller than a device's share, the rest is accumulated. Default: the recipe's."
        },
    )
    model: str = field(
        default="mbt", metadata={"help": "Name of an architecture, or folder or Hub id of a checkpoint."}
    )
    size: str = field(
        default="base",
        metadata={"help": "Size of a new model, one that its configuration offers (small, base, large)."},
    )
    start: str | None = field(
        default=None,
        metadata={
            "help": "METHOD=SOURCE: initial weights of a new model, such as from_vit=google/vit-base-patch16-224-in21k; "
            "`none` for random weights. --METHOD SOURCE does the same."
        },
    )
    config: str = field(
        default="{}",
        metadata={
            "help": "JSON of further configuration fields; a field of a sub-configuration is nested, or has a dotted name such "
            "as audio_config.hidden_size. For a checkpoint: only fields that do not change weight shapes, such "
            'as \'{"modalities": ["audio"]}\' or, for a linear probe of an AV-MAE, \'{"freeze_encoder": true}\'.'
        },
    )
    adapter: str = field(
        default="none",
        metadata={
            "help": "Freeze the model and train adapters of peft and the head: `lavish` (LAVISH models only), `lora`, or `none`. "
            "The run's checkpoints are then adapters.",
            "choices": ["lavish", "lora", "none"],
        },
    )
    adapter_config: str = field(
        default="{}",
        metadata={
            "help": 'JSON of fields of the adapter\'s config, such as \'{"num_tokens": 2, "reduction": 8}\' for lavish or '
            "'{\"r\": 8}' for lora."
        },
    )
    train_norms: bool = field(
        default=False, metadata={"help": "With an adapter: also train the norms of the frozen model."}
    )
    quantize: str | None = field(
        default=None,
        metadata={
            "help": "With an adapter: quantise the frozen model, to `int8` weights (torchao) or `4bit` (bitsandbytes).",
            "choices": ["int8", "4bit"],
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the frames in pixels, for a new model (MBT: 224)."}
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames per clip (new MBT: 32; checkpoint: its own)."}
    )
    span: float | None = field(default=None, metadata={"help": "Spread the frames over this many seconds."})
    audio_seconds: float | None = field(
        default=None, metadata={"help": "Length of the audio in seconds (new MBT: 8; checkpoint: its own)."}
    )

    augment: bool = field(default=True, metadata={"help": "Published frame augmentation (scale, crop, flip, colour)."})
    spec_augment: bool = field(default=True, metadata={"help": "Published SpecAugment (one frequency mask)."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Alpha of mixup, 0 for none; MBT was released with 0.5."})
    set: list[str] | None = field(
        default=None,
        metadata={
            "help": f"More values as SECTION.FIELD=VALUE, such as spec_augment.time_mask_max_ratio=1.0; sections: "
            f"{', '.join(SETTABLE)}."
        },
    )

    def __post_init__(self) -> None:
        check_at_least(0, mixup_alpha=self.mixup_alpha)
        if self.recipe is not None:
            get_recipe(self.recipe)


@dataclass
class DataOptions:
    """Flags of every training script: which clips to use and how to read them."""

    data: str = field(
        metadata={"help": f"A benchmark ({', '.join(BENCHMARKS)}), or a folder of clips or its CSV file."}
    )
    source: str | None = field(
        default=None, metadata={"help": "Location of the benchmark: folder of shards or Hub repository."}
    )
    variant: str | None = field(
        default=None, metadata={"help": "Variant of a benchmark, such as fold2 of esc50 or full of audioset."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on, `none` for none; default: `test`, or the dataset's own, such as `eval` or "
            "`validation`."
        },
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Undecoded clips to buffer for shuffling the training stream."}
    )
    on_decode_failure: str = field(
        default="skip",
        metadata={
            "help": "If a clip cannot be decoded: `skip` leaves it out, logs its name and counts it; `stop` ends the run.",
            "choices": ["skip", "stop"],
        },
    )
    allow_urls: bool = field(
        default=False,
        metadata={
            "help": "Fetch clips whose path in a CSV file or shard is an address (URL); only for rows that you trust."
        },
    )

    def __post_init__(self) -> None:
        check_at_least(1, shuffle_buffer=self.shuffle_buffer)
        if self.data not in BENCHMARKS:
            check_exists(self.data)
        check_selection(self.data, self.train_split, source=self.source, variant=self.variant, flag="--train_split")
        if (self.eval_split or "").lower() != "none":
            check_selection(self.data, self.eval_split, variant=self.variant, flag="--eval_split")


@dataclass
class DropoutOptions(DataOptions):
    """Flags of the scripts whose models also work without a modality."""

    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of training clips that lose a modality, so that the model also works without it."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, modality_dropout=self.modality_dropout)
        check_at_most(1, modality_dropout=self.modality_dropout)


@dataclass
class ClassificationOptions(DropoutOptions):
    """Flags of the scripts that train classifiers."""

    label_columns: list[str] | None = field(
        default=None, metadata={"help": "The label column; several columns make several heads (such as verb noun)."}
    )
    num_segments: int | None = field(
        default=None,
        metadata={
            "help": "Event localisation: number of equal parts of a clip; the label column holds one class for each."
        },
    )
    balance_labels: bool = field(
        default=False,
        metadata={"help": "Read clips of rare labels more often; an epoch then does not hold each clip exactly once."},
    )


@dataclass
class QuestionOptions(DropoutOptions):
    """Flags of the script that trains models to answer questions."""

    num_segments: int | None = field(
        default=None,
        metadata={
            "help": "Segments of a clip: a frame and a piece of sound each (new model: 10; checkpoint: its own)."
        },
    )


def check_arguments(options: type, args: Callable[[], list[str]] | None = None) -> None:
    """Ends a training script with one line if its arguments are wrong; `options` is its own dataclass of options."""
    check_training(RecipeOptions, options, args=args)
