"""Pretraining without labels: a loss on the clips themselves, with parts that the output names (`<part>_loss`)."""

from transformers import AutoModelForPreTraining

from .task import Task

PRETRAINING = Task(
    name="pretraining",
    heads=("ForPreTraining",),
    auto_class=AutoModelForPreTraining,
    title="pretraining",
    collator="masking:MaskingCollator",
    # A new AV-MAE-Base with the published augmentation, a random crop and a flip.
    plain_recipe={
        "architecture": "avmae",
        "frame_augmentation": {"scale": None, "flip": 0.5, "color": 0.0, "grayscale": 0.0},
        "spec_augment": None,
    },
)
