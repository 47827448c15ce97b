"""Rows of windows to rows of views, and clips that lack a modality or both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..media.modalities import MODALITIES
from ..media.reader import Clip, MediaError


def join_windows(rows: Any, windows: int, own_axis: bool) -> Any:
    """The rows of windows as rows of views.

    Args:
        rows: [views x windows, ...], or a list of as many arrays.
        windows: windows per view.
        own_axis: whether the windows keep an axis of their own.

    Returns:
        [views, windows, ...], or [views, windows x frames, ...] without an axis of their own. A list if `rows` is one.
    """
    if windows == 1 and not own_axis:
        return rows
    if torch.is_tensor(rows):
        rows = rows.unflatten(0, (-1, windows))
        return rows if own_axis else rows.flatten(1, 2)
    library = torch if torch.is_tensor(rows[0]) else np
    join = library.stack if own_axis else library.concatenate
    return [join(rows[start : start + windows]) for start in range(0, len(rows), windows)]


def fill_missing_rows(rows: Any, present: list[bool]) -> Any:
    """Inserts rows of zeros where a modality is missing: [n, ...] (or a list) to [len(present), ...]."""
    if all(present):
        return rows
    if torch.is_tensor(rows):
        full = rows.new_zeros(len(present), *rows.shape[1:])
        full[torch.tensor(present)] = rows
        return full
    left = iter(rows)
    zeros = torch.zeros_like(rows[0]) if torch.is_tensor(rows[0]) else np.zeros_like(rows[0])
    return [next(left) if has else zeros for has in present]


def empty_clip_error(index: int, clips: Sequence[Clip], video: bool, audio: bool) -> ValueError:
    """The error for clip number `index`, which has none of the requested modalities."""
    if not clips:
        return ValueError(f"clip {index} has neither video nor audio (None): leave it out")
    requested = [track for track, wanted in zip(MODALITIES, (video, audio)) if wanted]
    reasons = list(dict.fromkeys(text for clip in clips for text in clip.warnings))
    text = f"has no readable {' and no readable '.join(requested)} track: leave the clip out"
    return MediaError(clips[0].info.name, "; ".join([text, *reasons]))


__all__ = ["empty_clip_error", "fill_missing_rows", "join_windows"]
