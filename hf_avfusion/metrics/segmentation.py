"""mIoU and F-score of sounding-object masks, by the rules of AVSBench's published evaluation (LAVISH reports both).

A frame with an empty mask (no sounding object) counts in the mIoU, with the share of pixels predicted empty instead of the
overlap. It does not count in the F-score. Everything is averaged over the frames of a video first, then over videos.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

IOU_THRESHOLD = 0.5  # on the sigmoid
IOU_EPSILON = 1e-7  # as published: intersection / (union + epsilon)
BETA_SQUARED = 0.3  # weights precision more than recall
# float32 like the published thresholds, where the last one, 1 - 1e-10, becomes 1.
F_THRESHOLDS = np.linspace(0.0, 1.0 - 1e-10, 255).astype(np.float32)


class SegmentationScores(NamedTuple):
    """mIoU and F-score of a set of videos, their values per video, and the empty frames and videos."""

    miou: float
    f_score: float  # NaN if no video counts
    video_iou: NDArray[np.float64]  # [videos]
    video_f_score: NDArray[np.float64]  # [videos], NaN for a video without a sounding object
    empty_frames: int  # number of frames with an empty mask, which do not count in the F-score
    videos_without_object: list[int]  # videos with only empty masks


def frame_iou(logits: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """Computes the intersection over union of each frame, between sigmoid > 0.5 and the mask.

    For an empty mask, the value is the share of the frame's pixels that are predicted empty.

    Args:
        logits: float `[frames, H, W]`, before the sigmoid.
        masks: `[frames, H, W]` of 0 and 1 (or bool).

    Returns:
        float64 `[frames]`.

    Raises:
        ValueError: different shapes, no pixels, masks other than 0 and 1, or logits that are NaN.
    """
    probabilities, masks = _probabilities_and_masks(logits, masks)
    predicted = probabilities > IOU_THRESHOLD
    axes = (1, 2)
    intersection = (predicted & masks).sum(axis=axes)
    union = (predicted | masks).sum(axis=axes)
    empty = ~masks.any(axis=axes)
    intersection = np.where(empty, (~predicted).sum(axis=axes), intersection)
    union = np.where(empty, masks.shape[1] * masks.shape[2], union)
    return intersection / (union + IOU_EPSILON)


def f_score_curves(logits: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """Computes the F-score of each frame with an object, at 255 thresholds from 0 to 1 on the sigmoid.

    F = (1 + b) P R / (b P + R) with b = beta squared = 0.3, and P and R the precision and recall of the pixels at or above
    the threshold; 0 if both are 0. Arguments and errors are those of `frame_iou`.

    Returns:
        float64 `[frames with a non-empty mask, 255]`.
    """
    probabilities, masks = _probabilities_and_masks(logits, masks)
    curves = []
    for frame, mask in zip(probabilities, masks):
        if not mask.any():
            continue
        # The number of thresholds that each pixel reaches; one histogram then gives the pixels at or above each threshold.
        reached = np.searchsorted(F_THRESHOLDS, frame, side="right")
        predicted = _at_or_above(reached.ravel())
        hits = _at_or_above(reached[mask])
        with np.errstate(invalid="ignore"):
            precision, recall = hits / np.maximum(predicted, 1), hits / mask.sum()
            score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
        curves.append(np.where(np.isnan(score), 0.0, score))
    return np.stack(curves) if curves else np.zeros((0, len(F_THRESHOLDS)))


def video_f_score(logits: ArrayLike, masks: ArrayLike) -> float:
    """Computes the F-score of one video: the maximum over thresholds of the mean curve of its frames with an object.

    NaN if no frame has an object. Arguments and errors are those of `frame_iou`.
    """
    curves = f_score_curves(logits, masks)
    return float(curves.mean(axis=0).max()) if len(curves) else float("nan")


def video_scores(logits: ArrayLike, masks: ArrayLike) -> tuple[float, float]:
    """Computes mIoU and F-score of one video (the mean of `frame_iou`, and `video_f_score`)."""
    return float(frame_iou(logits, masks).mean()), video_f_score(logits, masks)


def joined_scores(
    video_iou: ArrayLike, video_f_score: ArrayLike, *, empty_videos: str = "zero", empty_frames: int = 0
) -> SegmentationScores:
    """Joins the `video_scores` of at least one video.

    Args:
        video_iou, video_f_score: float `[videos]`.
        empty_videos: see `segmentation_scores`.
        empty_frames: their number, for the result.
    """
    if empty_videos not in ("zero", "skip"):
        raise ValueError(f"empty_videos must be 'zero' or 'skip', got {empty_videos!r}.")
    overlaps, per_video = np.asarray(video_iou, dtype=np.float64), np.asarray(video_f_score, dtype=np.float64)
    if not len(overlaps):
        raise ValueError("Got no videos; pass the logits and masks of at least one.")
    counted = np.nan_to_num(per_video) if empty_videos == "zero" else per_video[~np.isnan(per_video)]
    return SegmentationScores(
        miou=float(overlaps.mean()),
        f_score=float(counted.mean()) if len(counted) else float("nan"),
        video_iou=overlaps,
        video_f_score=per_video,
        empty_frames=empty_frames,
        videos_without_object=np.flatnonzero(np.isnan(per_video)).tolist(),
    )


def segmentation_scores(
    logits: Iterable[ArrayLike], masks: Iterable[ArrayLike], *, empty_videos: str = "zero"
) -> SegmentationScores:
    """Computes mIoU and F-score over videos, with one video in memory at a time.

    Args:
        logits: of each video, float `[frames, H, W]` before the sigmoid: an array `[videos, frames, H, W]`, a list, or
            a generator. Videos may differ in frames and size.
        masks: of each video, `[frames, H, W]` of 0 and 1.
        empty_videos: the F-score of a video without any object: "zero" counts it as 0, as in AVSBench's published
            evaluation; "skip" leaves it out, as its authors describe the rule.

    Raises:
        ValueError: the errors of `frame_iou`, with the number of the video; no videos; or different numbers of masks and
            logits.
    """
    if empty_videos not in ("zero", "skip"):
        raise ValueError(f"empty_videos must be 'zero' or 'skip', got {empty_videos!r}.")
    overlaps, scores, empty_frames = [], [], 0
    missing = object()
    remaining = iter(masks)
    for number, video_logits in enumerate(logits):
        video_masks = next(remaining, missing)
        if video_masks is missing:
            raise ValueError(f"Got masks for {number} videos, but logits for more; pass one of each per video.")
        try:
            overlap, score = video_scores(video_logits, video_masks)
        except ValueError as error:
            raise ValueError(f"Video {number}: {error}") from error
        overlaps.append(overlap)
        scores.append(score)
        empty_frames += int((~np.asarray(video_masks).astype(bool).any(axis=(1, 2))).sum())
    if next(remaining, missing) is not missing:
        raise ValueError(f"Got logits for {len(overlaps)} videos, but masks for more; pass one of each per video.")
    return joined_scores(overlaps, scores, empty_videos=empty_videos, empty_frames=empty_frames)


def _at_or_above(reached: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the number of pixels at or above each threshold, `[255]`, from the number of thresholds each pixel reaches."""
    counts = np.bincount(reached, minlength=len(F_THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def _probabilities_and_masks(logits: ArrayLike, masks: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    logits, masks = np.asarray(logits, dtype=np.float32), np.asarray(masks)
    if logits.ndim != 3 or logits.shape != masks.shape or 0 in logits.shape:
        raise ValueError(
            f"Expected logits and masks of one shape [frames, H, W], got {tuple(logits.shape)} and {tuple(masks.shape)}."
        )
    if np.isnan(logits).any():
        raise ValueError(f"Logits of {int(np.isnan(logits).any(axis=(1, 2)).sum())} of {len(logits)} frames are NaN.")
    if masks.dtype != bool and not np.isin(masks, (0, 1)).all():
        raise ValueError(
            f"Masks must be 0 or 1, got values from {masks.min()} to {masks.max()}; threshold an image with mask > 0."
        )
    with np.errstate(over="ignore"):  # exp overflows for a very negative logit, whose sigmoid is rightly 0
        return 1 / (1 + np.exp(-logits)), masks.astype(bool)
