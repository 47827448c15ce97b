"""One row of a benchmark to one sample: decode a window, augment it in training, and hand it to the processor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..media.modalities import MODALITIES
from ..media.reader import Clip, MediaError
from ..tasks.classification import ClassLabels
from ..tasks.task import RowLabels

if TYPE_CHECKING:
    from ..processing.processing_avfusion import AVFusionProcessor

logger = logging.getLogger(__name__)


@dataclass
class DecodedClip:
    """What `ClipTransform.decode` makes of a row: its windows, made as small as they get, and the rest of its sample."""

    clips: list[Clip]
    sample: dict[str, Any]


class ClipTransform:
    """Row -> {pixel_values [T, C, H, W], input_features [time, mel], has_video, has_audio, labels, clip_id}.

    A track that the clip lacks, or that is not in `modalities`, is absent from the sample.

    Args:
        processor: decides windows, sizes and normalisation.
        labels: reads the labels of a row, such as `task.read_labels(columns, config)`; or the names of columns of class
            numbers, one per head, in the order of the model's `class_splits`. Empty: samples without labels.
        mode: "train" draws the window, "eval" takes the centred one, or `num_views` spread over the clip; with several
            views both tensors get a leading axis of views.
        augmentation: (uint8 frames [T, 3, H, W], generator) -> frames [T, 3, crop, crop] on the scale 0..255, such as
            `FrameAugmentation`; the processor then only normalises. Used in training alone.
        num_views: windows per clip.
        modalities: ("video", "audio") or one of them; the other track is not decoded.
        reading: `backend`, `on_decode_error` of the media reader.
    """

    def __init__(
        self,
        processor: AVFusionProcessor,
        labels: RowLabels | Sequence[str] | str = ("label",),
        *,
        mode: str = "eval",
        augmentation: Callable[[torch.Tensor, torch.Generator | None], torch.Tensor] | None = None,
        num_views: int = 1,
        modalities: Sequence[str] = MODALITIES,
        **reading: Any,
    ):
        if mode not in ("train", "eval"):
            raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
        if augmentation is not None and mode != "train":
            raise ValueError("augmentation is for mode='train'; evaluation sees clips as they are")
        if not modalities or not set(modalities) <= set(MODALITIES):
            raise ValueError(f"modalities must be 'video', 'audio' or both, got {tuple(modalities)}")
        self.processor = processor
        self.labels = labels if isinstance(labels, RowLabels) else ClassLabels(labels)
        self.mode = mode
        self.augmentation = augmentation
        self.num_views = num_views
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        self.reading = reading

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Decodes and prepares one row.

        Raises:
            MediaError: for a clip that does not decode, or has none of the wanted tracks. ValueError: for wrong labels.
        """
        return self.prepare([self.decode(row, generator)])[0]

    def decode(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> DecodedClip:
        """The first half of a call, with all that can go wrong with a file and all that is drawn by chance."""
        labels = self.labels(row)  # before the work
        clips = self.processor.load_clip(
            row["video"],
            mode=self.mode,
            num_views=self.num_views,
            generator=generator,
            tracks=self.modalities,
            start=row.get("start"),
            end=row.get("end"),
            **self.reading,
        )
        start = row.get("start") or 0.0
        seconds = (row.get("end") or start + clips[0].info.duration) - start
        self.labels.check_window(row, self.processor, self.modalities, seconds)
        for text in dict.fromkeys(text for clip in clips for text in clip.warnings):
            logger.warning("clip %s: %s", row["clip_id"], text)
        present = {
            "video": [clip.frames is not None for clip in clips],
            "audio": [clip.waveform is not None for clip in clips],
        }
        for track, views in present.items():
            if any(views) and not all(views):
                raise MediaError(str(row["clip_id"]), f"the {track} track is missing in some of its {len(views)} views")
        has = {track: all(views) for track, views in present.items()}
        if not any(has.values()):
            raise MediaError(str(row["clip_id"]), f"has no {' and no '.join(self.modalities)} track")

        options = {}
        if self.augmentation is not None and has["video"]:
            for clip in clips:
                clip.frames = self.augmentation(clip.frames, generator)
            options = {"do_resize": False, "do_center_crop": False}
        sample = {"clip_id": row["clip_id"], "has_video": has["video"], "has_audio": has["audio"]}
        if labels is not None:
            sample["labels"] = labels
        return DecodedClip([self.processor.reduce_clip(clip, **options) for clip in clips], sample)

    def prepare(
        self,
        decoded: Sequence[DecodedClip],
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None = None,
    ) -> list[dict[str, Any]]:
        """The second half: spectrograms and normalisation, for a whole batch at once.

        The tensors of all samples then lie side by side in memory that `empty` (size, dtype) gives, so that stacking them
        copies nothing (`AVCollator`). Clips that differ in their tracks or sizes are prepared one by one.
        """
        if len({(one.sample["has_video"], one.sample["has_audio"]) for one in decoded}) == 1:
            try:
                return self._prepare(decoded, empty)
            except ValueError:
                if len(decoded) == 1:
                    raise  # of several it is told below, for the one clip that it is about
        return [sample for one in decoded for sample in self._prepare([one], None)]

    def _prepare(
        self,
        decoded: Sequence[DecodedClip],
        empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None,
    ) -> list[dict[str, Any]]:
        clips = [clip for one in decoded for clip in one.clips]
        tensors = self.processor.process_reduced(clips, empty)
        for name, values in tensors.items():
            whole = values if self.num_views == 1 else values.unflatten(0, (-1, self.num_views))
            for one, of_clip in zip(decoded, whole):
                one.sample[name] = of_clip
        return [one.sample for one in decoded]
