"""Decodes the clips of a stream once and keeps them in memory, for training on few clips for many epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .clip_stream import ClipStream

if TYPE_CHECKING:
    import torch


class CachedSamples:
    """Transform for rows with cached samples; `num_views` is that of the original transform.

    Args:
        transform: the original transform, a `ClipTransform` or `CropViews`. Without `num_views`, it makes one view.
    """

    def __init__(self, transform: Callable[..., dict[str, Any]]):
        self.num_views: int = getattr(transform, "num_views", 1)

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        return dict(row["sample"])


def cache_clips(
    stream: ClipStream,
    columns: Sequence[str] = (),
    progress: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
) -> ClipStream:
    """Returns a stream of the same clips from memory, in the order of `stream`; all epochs have the windows of this one.

    The samples' tensors are shared, never copied. `stream.skipped` counts the clips that do not decode and are skipped.

    Args:
        stream: read here, once, in this process.
        columns: columns of the rows to keep in addition to the samples, such as the label for a `LabelBalance`.
        progress: wraps the iteration over the clips, such as `tqdm.tqdm`.

    Raises the errors of reading the stream.
    """
    transform = stream.transform

    def keep(row: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        kept = {column: row[column] for column in ("clip_id", *columns)}
        return {**kept, "sample": transform(row, generator)}

    reading = copy.copy(stream)  # shares the counter `skipped` with `stream`
    reading.transform = keep
    return ClipStream(list(progress(reading)), CachedSamples(transform))
