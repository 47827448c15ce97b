"""The `Recipe` class: the values of a published training recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Sections of a recipe. `building.known_fields` lists the fields of each.
SECTIONS = (
    "model",
    "regularization",
    "adapter",
    "window",
    "audio",
    "video",
    "frame_augmentation",
    "spec_augment",
    "collator",
    "training",
)


@dataclass(frozen=True)
class Recipe:
    """One way to train one architecture on one benchmark.

    Args:
        architecture: `model_type` of the model that is trained.
        source: the table or file of the values.
        benchmark, variant: as in `load_benchmark`; None if the recipe fits any data.
        label_columns: the label columns; None for the benchmark's first label column.
        task: key of `tasks.TASKS`: "classification" or "pretraining".
        size: name of the configuration's factory ("base" is `MBTConfig.base`).
        init, init_method: the initial weights of a new model, and the model's class method that takes them. "from_vit" takes a
            Hub id of an image ViT (None: random weights); "from_avmae" takes a pretrained AV-MAE that the command line names.
        part_inits: start methods for parts of a new model and their sources, beside `init`.
        model: fields of the configuration that decide the shapes or the use of the weights. Fields of a sub-configuration have
            dotted names such as "audio_config.hidden_size".
        regularization: fields of the configuration that act in training only; they also apply to a checkpoint's configuration.
        adapter_method: adapters of peft that are trained on the frozen model, "lavish" or "lora"; None for none.
        adapter: fields of the method's config that differ from its defaults.
        train_norms: whether the norms of the frozen model are trained too.
        quantize: "int8" or "4bit": the frozen model is quantised.
        window: fields of `WindowPolicy`: frames, rate or span, seconds of audio.
        audio, video: fields of the feature extractor and the video processor that differ from the processor's defaults.
        frame_augmentation: fields of `FrameAugmentation` that differ from its defaults; None: no frame augmentation.
        spec_augment: fields of `SpecAugment` that differ from its defaults; None: no SpecAugment.
        collator: fields that the collator of the task lets a recipe set (`AVCollator.RECIPE_FIELDS`).
        training: fields of `AVTrainingArguments`, except the batch size.
        batch_size: clips per update, over all devices and accumulated batches.
        learning_rate_rule: "linear" if the source scales the learning rate with the batch size, else None.
        views: key of `evaluation.views.PROTOCOLS`: the source's evaluation.
        reported: the source's result, for orientation; no value here was measured with this package.
        notes: differences between code and paper, or between the source and this package.
        uncertain: field ("training.learning_rate", "batch_size") -> reason for the uncertainty.
    """

    architecture: str
    source: str
    benchmark: str | None = None
    variant: str | None = None
    label_columns: tuple[str, ...] | None = None
    task: str = "classification"
    size: str = "base"
    init: str | None = None
    init_method: str = "from_vit"
    part_inits: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    regularization: Mapping[str, Any] = field(default_factory=dict)
    adapter_method: str | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    train_norms: bool = False
    quantize: str | None = None
    window: Mapping[str, Any] = field(default_factory=dict)
    audio: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    frame_augmentation: Mapping[str, Any] | None = field(default_factory=dict)
    spec_augment: Mapping[str, Any] | None = field(default_factory=dict)
    collator: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    learning_rate_rule: str | None = None
    views: str | None = None
    reported: str = ""
    notes: tuple[str, ...] = ()
    uncertain: Mapping[str, str] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Recipe:
        """A copy of this recipe with changed values. Sections are merged field by field; None removes a section.

        >>> base.replace(window={"num_frames": 8}, batch_size=32)
        """
        for name, value in changes.items():
            current = getattr(self, name)
            if name in (*SECTIONS, "uncertain") and value is not None and current is not None:
                changes[name] = {**current, **value}
        return dataclasses.replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """{"section.field": value} of all sections, and `batch_size`; a section that is None has one entry, its name."""
        flat = {}
        for section in SECTIONS:
            fields = getattr(self, section)
            if fields is None:
                flat[section] = None
            else:
                flat |= {f"{section}.{name}": value for name, value in fields.items()}
        return {**flat, "batch_size": self.batch_size}
