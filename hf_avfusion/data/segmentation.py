"""Carries masks from a row to a batch: moves them with augmented frames, and resizes them to the masks of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..media.reader import MediaError
from ..models.lavish.losses_lavish import NO_MASK
from .collating import AVCollator
from .transforms import ClipTransform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig


class MaskTransform(ClipTransform):
    """A `ClipTransform` whose `labels` are masks, uint8 [segments, height, width], of the size of their pictures.

    Masks and frames show the same field of view. Frames may be stretched, and so may masks, but they are not cropped: the processor
    must not crop. An augmentation moves the masks with the frames by its method `with_masks`, as `FrameAugmentation` does.

    Raises:
        ValueError: a processor that crops frames, or an augmentation that does not move masks.
    """

    def __init__(self, processor: Any, *args: Any, **options: Any):
        super().__init__(processor, *args, **options)
        video = processor.video_processor
        if video.do_center_crop and dict(video.crop_size) != dict(video.size):
            raise ValueError(
                f"the processor crops frames to {dict(video.crop_size)}, but masks cover whole frames: give its video processor"
                " do_center_crop=False and a size with height and width"
            )
        if self.augmentation is not None and not hasattr(self.augmentation, "with_masks"):
            raise ValueError(
                f"{type(self.augmentation).__name__} has no method `with_masks`, so it would move frames without their masks: "
                "use FrameAugmentation, or none"
            )

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """As `ClipTransform`.

        Raises:
            MediaError: also for a clip without video, since masks are of frames.
        """
        sample = super().__call__(row, generator)
        if not sample["has_video"]:
            raise MediaError(str(row["clip_id"]), "has no video, of which masks are: leave the clip out")
        masks, segments = sample.get("labels"), self.processor.window["num_segments"]
        if masks is not None and len(masks) < segments:  # the mask of the first segment alone
            absent = masks.new_full((segments - len(masks), *masks.shape[1:]), NO_MASK)
            sample["labels"] = torch.cat([masks, absent])
        return sample

    def augment(
        self, frames: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if labels is None:
            return super().augment(frames, labels, generator)
        return self.augmentation.with_masks(frames, labels, generator)


class MaskCollator(AVCollator):
    """An `AVCollator` of samples with masks: `labels` uint8 [B, segments, height, width] of 0, 1 and 255 (no mask).

    Args:
        mask_size: height and width of the model's masks. Masks of another size are resized: each pixel takes the nearest pixel of
            the picture, so masks stay binary. (AVSBench's masks have the published size of 224 x 224, so there it changes
            nothing.) None: masks keep their size, which must be that of all clips of a batch.
        options: of `AVCollator`. Mixup is an error, since masks are not mixed, and so is a dropout of the video.
    """

    def __init__(self, mask_size: tuple[int, int] | None = None, **options: Any):
        super().__init__(**options)
        if self.mixup_alpha:
            raise ValueError(f"got mixup_alpha={self.mixup_alpha}, but masks of clips are not mixed; set it to 0")
        if self.modality_dropout[0]:
            raise ValueError(
                f"got modality_dropout={self.modality_dropout} for (video, audio), but a clip without video has no masks; pass "
                "(0, p) to drop the audio alone"
            )
        self.mask_size = mask_size

    @classmethod
    def for_model(cls, config: PreTrainedConfig | None, **options: Any) -> MaskCollator:
        return cls(getattr(config, "mask_hw", None), **options)

    def _labels(self, samples: Sequence[dict[str, Any]]) -> torch.Tensor:
        masks = [resize_masks(torch.as_tensor(sample["labels"]), self.mask_size) for sample in samples]
        shapes = {tuple(each.shape) for each in masks}
        if len(shapes) > 1:
            ids = ", ".join(str(sample.get("clip_id", number)) for number, sample in enumerate(samples))
            raise ValueError(
                f"masks of one batch must have one shape, got {sorted(shapes)} (clips {ids}): pass mask_size"
            )
        return torch.stack(masks)


def resize_masks(masks: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """uint8 [n, height, width] at another (height, width), each pixel the nearest one; None keeps the size."""
    if size is None or tuple(masks.shape[1:]) == tuple(size):
        return masks
    return F.interpolate(masks[None], size=tuple(size), mode="nearest-exact")[0]
