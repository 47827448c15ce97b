"""Turns a row of a benchmark into a sample: decodes a window, augments it in training and processes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..media.modalities import MODALITIES
from ..media.reader import MediaError
from ..tasks.classification import ClassLabels
from ..tasks.task import RowLabels

if TYPE_CHECKING:
    from ..processing.processing_avfusion import AVFusionProcessor

logger = logging.getLogger(__name__)


class ClipTransform:
    """Turns a row into {pixel_values [T, C, H, W], input_features [time, mel], has_video, has_audio, labels, clip_id}.

    Further inputs that the processor makes are in the sample too. A modality that the clip lacks, or that is not in `modalities`,
    is absent from the sample. A processor with several windows
    per view adds an axis of windows (`AVFusionProcessor.input_axes`).

    Args:
        processor: decides windows, sizes and normalisation.
        labels: reads the labels of a row, such as `task.read_labels(columns, fields)`; or the names of columns of class
            numbers, one per head, in the order of the model's `class_splits`. Empty: samples have no labels.
        mode: "train" draws a random window; "eval" takes the centred window, or `num_views` windows spread over the clip. With
            several views, both tensors have a leading axis of views.
        augmentation: (uint8 frames [T, 3, H, W], generator) -> frames [T, 3, crop, crop] with values 0..255, such as
            `FrameAugmentation`; the processor then only normalises them. It is drawn once per view, for all windows of the
            view together. Allowed only in training. If it has a method `reduce`, frames pass through that as they are decoded.
        num_views: views per clip.
        modalities: ("video", "audio") or one of them; the other is not decoded.
        allow_urls: fetch rows whose path is an address (http, https, or a bucket). By default, they raise MediaError: rows
            are untrusted, and the address may be inside your network. Local files are named by plain paths only.
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
        allow_urls: bool = False,
        **reading: Any,
    ):
        if mode not in ("train", "eval"):
            raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
        if augmentation is not None and mode != "train":
            raise ValueError(
                "augmentation is allowed only with mode='train', got mode='eval': leave it out for evaluation"
            )
        if not modalities or not set(modalities) <= set(MODALITIES):
            raise ValueError(f"modalities must be 'video', 'audio' or both, got {tuple(modalities)}")
        self.processor = processor
        if not isinstance(labels, RowLabels):
            labels = ClassLabels(labels) if labels else RowLabels()
        self.labels = labels
        self.mode = mode
        self.augmentation = augmentation
        self.num_views = num_views
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        self.allow_urls = allow_urls
        self.reading = reading

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Decodes and prepares one row.

        Raises:
            MediaError: the clip cannot be decoded, has none of the `modalities`, or is an address without `allow_urls`.
            ValueError: the labels are wrong.
        """
        labels = self.labels(row)  # wrong labels fail before the clip is decoded
        if self.augmentation is None:
            reduce = self.processor.video_processor.reducer()
        else:
            reduce = getattr(self.augmentation, "reduce", None)
        clips = self.processor.load_clip(
            row["video"],
            mode=self.mode,
            num_views=self.num_views,
            generator=generator,
            tracks=self.modalities,
            start=row.get("start"),
            end=row.get("end"),
            allow_urls=self.allow_urls,
            reduce=reduce,
            **self.reading,
        )
        self.processor.check_windows(clips, self.num_views)
        start = row.get("start") or 0.0
        seconds = (row.get("end") or start + clips[0].info.duration) - start
        self.labels.check_window(row, self.processor, self.modalities, seconds)
        for text in dict.fromkeys(text for clip in clips for text in clip.warnings):
            logger.warning("clip %s: %s", row["clip_id"], text)
        present = {
            "video": [clip.frames is not None for clip in clips],
            "audio": [clip.waveform is not None for clip in clips],
        }
        for modality, views in present.items():
            if any(views) and not all(views):
                raise MediaError(str(row["clip_id"]), f"has no {modality} in some of its {len(views)} views")
        has = {modality: all(views) for modality, views in present.items()}
        if not any(has.values()):
            raise MediaError(str(row["clip_id"]), f"has no {' and no '.join(self.modalities)}")

        if self.augmentation is not None and has["video"]:
            windows = self.processor.windows_per_view
            for view in (clips[start : start + windows] for start in range(0, len(clips), windows)):
                frames = [window.frames for window in view]
                augmented, labels = self.augment(torch.cat(frames) if windows > 1 else frames[0], labels, generator)
                for window, part in zip(view, augmented.chunk(windows)):
                    window.frames = part
        sample = {"clip_id": row["clip_id"], "has_video": has["video"], "has_audio": has["audio"]}
        if labels is not None:
            sample["labels"] = labels
        # Frames were resized and cropped as they were decoded, or augmented.
        inputs = self.processor.process_clips(clips, return_tensors="pt", **self.processor.reduced_frames)
        for name, values in inputs.items():
            sample[name] = values if self.num_views > 1 else values[0]
        return sample

    def augment(
        self, frames: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The frames of a view after `augmentation`, and the clip's labels; a transform of labels in pixels moves them, too."""
        return self.augmentation(frames, generator), labels
