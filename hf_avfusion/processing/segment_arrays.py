"""Cuts frames and waveforms that were passed as arrays into the segments of a clip."""

from typing import Any

import torch

from ..media.windows import WindowPolicy, segment_ranges
from .feature_extraction_avfusion import AVFusionFeatureExtractor


def split_frames(policy: WindowPolicy, videos: list[Any]) -> list[Any]:
    """The frames of each window of clips.

    Args:
        policy: without segments, each clip is one window.
        videos: frames [T, H, W, C] or [T, C, H, W] (or a list of T pictures) per clip, None for a clip without video.

    Returns:
        Per clip a list of its windows, or None.

    Raises:
        ValueError: a clip that does not have `num_frames` frames for each segment.
    """
    if policy.num_segments is None:
        return [None if video is None else [video] for video in videos]
    each, total = policy.num_frames, policy.num_segments * policy.num_frames
    for index, video in enumerate(videos):
        if video is not None and len(video) != total:
            raise ValueError(
                f"videos[{index}] has {len(video)} frames, but this processor takes {total}: num_frames={each} for each of "
                f"num_segments={policy.num_segments}. Select them from the first to the last of the clip, "
                f"frames[np.linspace(0, len(frames) - 1, {total}).astype(int)], or pass a file"
            )
    return [
        None if video is None else [video[first : first + each] for first in range(0, total, each)] for video in videos
    ]


def split_waveforms(
    policy: WindowPolicy,
    audio: list[Any],
    extractor: AVFusionFeatureExtractor,
    sampling_rate: int | None,
    do_resample: bool | None,
) -> tuple[list[list[torch.Tensor] | None], list[float | None]]:
    """The audio of each segment of clips (`media.windows.segment_ranges`), at the rate of the feature extractor.

    Args:
        policy: with segments.
        audio: the waveform of a whole clip, or a row of datasets' `Audio`, per clip; None for a clip without audio.
        extractor: checks and resamples the waveforms, before they are cut.
        sampling_rate: of the waveforms, Hz.
        do_resample: see the extractor.

    Returns:
        Per clip a list of float32 [samples], and its length in s; None for a clip without audio. Segments may share their memory.

    Raises:
        ValueError: what the feature extractor refuses.
    """
    given = [item for item in audio if item is not None]
    left, rate = iter(extractor.waveforms(given, sampling_rate, do_resample)), extractor.sampling_rate
    waveforms = [None if item is None else next(left) for item in audio]
    windows = [
        None if each is None else [each[first:last] for first, last in segment_ranges(policy, len(each), rate)]
        for each in waveforms
    ]
    return windows, [None if each is None else len(each) / rate for each in waveforms]


__all__ = ["split_frames", "split_waveforms"]
