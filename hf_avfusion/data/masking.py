"""Collator for masked autoencoders: adds a mask to every clip, drawn from the clip's seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..media.modalities import MODEL_INPUTS
from ..models.avmae.configuration_avmae import AVMAEConfig
from ..models.avmae.patches_avmae import draw_visible_tokens
from .collating import AVCollator

_MASK_SEED = 0x6D61736B  # makes the draws of masks differ from the collator's other draws


class MaskingCollator(AVCollator):
    """An `AVCollator` without labels that adds each clip's mask: `video_visible`, `audio_visible`, long [B, k].

    A clip's mask is drawn from the sample's `seed`, which a `ClipStream` computes from its own seed, the epoch and the clip. So
    a clip's mask does not depend on the batch, the worker or the number of processes. Training resumed from a checkpoint draws
    the same masks as without the interruption. Evaluation, whose epoch never changes, always uses the same masks. Samples
    without a `seed` get masks from the collator's own generator.

    Args:
        config: config of the model; its ratios and grids determine the masks.
        options: of `AVCollator`. Mixup is an error, since there are no labels to mix.
    """

    def __init__(self, config: AVMAEConfig, **options: Any):
        super().__init__(**options)
        if self.mixup_alpha:
            raise ValueError(f"got mixup_alpha={self.mixup_alpha}, but pretraining has no labels to mix; set it to 0")
        self.config = config

    @classmethod
    def for_model(cls, config: AVMAEConfig, **options: Any) -> MaskingCollator:
        return cls(config, **options)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(samples)
        batch.pop("labels", None)
        drawn = [draw_visible_tokens(self.config, 1, self._mask_generator(sample)) for sample in samples]
        for modality in self.config.modalities:
            if MODEL_INPUTS[modality] in batch:
                batch[f"{modality}_visible"] = torch.cat([visible[f"{modality}_visible"] for visible in drawn])
        return batch

    def _mask_generator(self, sample: dict[str, Any]) -> torch.Generator:
        if "seed" not in sample:
            return self.generator
        return torch.Generator().manual_seed(int(sample["seed"]) ^ _MASK_SEED)
