"""Batches for a masked autoencoder: every clip comes with its mask, drawn by what the stream knows of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..models.avmae.configuration_avmae import AVMAEConfig
from ..models.avmae.patches_avmae import draw_visible_tokens
from .collating import AVCollator

_OF_MASKS = 0x6D61736B  # so that masks and the collator's other draws differ
_INPUTS = {"video": "pixel_values", "audio": "input_features"}


class MaskingCollator(AVCollator):
    """An `AVCollator` without labels that adds each clip's mask: `video_visible`, `audio_visible`, long [B, k].

    A clip's mask is drawn from the `seed` that a `ClipStream` gives it, which follows from the stream's seed, the epoch and the
    clip. So the same clip has the same mask whatever the batch, the worker or the number of processes; a training that goes
    on from a checkpoint, which holds the epoch and the place in it, draws what it would have drawn without the stop; and an
    evaluation, whose epoch never changes, is scored on the same masks each time. Samples without a `seed` get masks from the
    collator's own generator.

    Args:
        config: of the model; its ratios and grids decide the masks.
        options: of `AVCollator`. Mixup is refused: it has no labels to mix.
    """

    def __init__(self, config: AVMAEConfig, **options: Any):
        super().__init__(**options)
        if self.mixup_alpha:
            raise ValueError(f"mixup_alpha={self.mixup_alpha}: pretraining has no labels to mix; leave it at 0")
        self.config = config

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(samples)
        batch.pop("labels", None)
        drawn = [draw_visible_tokens(self.config, 1, self._generator_of(sample)) for sample in samples]
        for modality in self.config.modalities:
            if _INPUTS[modality] in batch:
                batch[f"{modality}_visible"] = torch.cat([visible[f"{modality}_visible"] for visible in drawn])
        return batch

    def _generator_of(self, sample: dict[str, Any]) -> torch.Generator:
        if "seed" not in sample:
            return self.generator
        return torch.Generator().manual_seed(int(sample["seed"]) ^ _OF_MASKS)
