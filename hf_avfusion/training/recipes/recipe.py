"""What a published training recipe is: plain values, each of which sets one thing of the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Sections whose fields are arguments of something in the package; `building.known_fields` says of what.
SECTIONS = (
    "model",
    "regularization",
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
        source: the table or file that the values are from.
        benchmark, variant: as in `load_benchmark`; None where the recipe fits any data.
        label_columns: what is learnt, where it is not the benchmark's first column of labels alone.
        task: "classification" or "pretraining".
        size: name of the factory of the configuration ("base" is `MBTConfig.base`).
        init, init_method: what a fresh model's weights start from, and the model's class method that takes it: "from_vit" a Hub
            id of an image ViT (None: random weights), "from_avmae" a pretrained AV-MAE, which the command line has to name.
        model: fields of the configuration that decide the weights' shapes or their use.
        regularization: fields of the configuration that act in training only, so also on a checkpoint's configuration.
        window: fields of `WindowPolicy`: frames, rate or span, seconds of sound.
        audio, video: fields of the feature extractor and of the video processor that differ from the processor's own.
        frame_augmentation: fields of `FrameAugmentation` that differ from its defaults; None: no augmentation of frames.
        spec_augment: likewise of `SpecAugment`; None: none.
        collator: `time_shift`, `mixup_alpha`, `mixup_per_modality` of `AVCollator`.
        training: fields of `AVTrainingArguments`, save the batch.
        batch_size: clips of one update, over all devices and accumulated batches.
        learning_rate_rule: "linear" where the source makes the learning rate proportional to the batch, else None.
        views: key of `evaluation.views.PROTOCOLS`: how the source evaluates.
        reported: what the source reports for it, for orientation; nothing here was measured with this package.
        notes: differences between code and paper, or between the source and this package.
        uncertain: field ("training.learning_rate", "batch_size") -> why it is not certain.
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
    model: Mapping[str, Any] = field(default_factory=dict)
    regularization: Mapping[str, Any] = field(default_factory=dict)
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

    def but(self, **changes: Any) -> Recipe:
        """This recipe with other values; of a section the fields that are not named stay, None drops the section.

        >>> base.but(window={"num_frames": 8}, batch_size=32)
        """
        for name, value in changes.items():
            before = getattr(self, name)
            if name in (*SECTIONS, "uncertain") and value is not None and before is not None:
                changes[name] = {**before, **value}
        return dataclasses.replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """{"section.field": value} of all sections, and `batch_size`; a section that is None is one entry."""
        flat = {}
        for section in SECTIONS:
            fields = getattr(self, section)
            if fields is None:
                flat[section] = None
            else:
                flat |= {f"{section}.{name}": value for name, value in fields.items()}
        return {**flat, "batch_size": self.batch_size}
