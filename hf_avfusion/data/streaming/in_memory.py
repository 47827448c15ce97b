"""The clips of a stream decoded once and kept in memory, for trainings that see few clips many times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .clip_stream import ClipStream

if TYPE_CHECKING:
    import torch


class Remembered:
    """The transform of rows that hold their sample already. Whoever asks it for the views of a sample (`AVTrainer`) is told
    those of the transform that made the samples.

    Args:
        transform: a `ClipTransform` or `CropViews`; anything without `num_views` makes one view.
    """

    def __init__(self, transform: Callable[..., dict[str, Any]]):
        self.num_views: int = getattr(transform, "num_views", 1)

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        return dict(row["sample"])


def decoded_once(
    stream: ClipStream,
    columns: Sequence[str] = (),
    progress: Callable[[Iterable[dict[str, Any]]], Iterable[dict[str, Any]]] = iter,
) -> ClipStream:
    """The same clips from memory, in the order in which `stream` gives them; every epoch has the windows of this one.

    The samples' tensors are shared, never copied. `stream.skipped` counts the clips that do not decode and are left out.

    Args:
        stream: read here, once, in this process.
        columns: of its rows, kept beside the samples; such as the label that a `LabelBalance` counts.
        progress: is handed the clips as they are decoded, such as `tqdm.tqdm`.

    Raises:
        What reading the stream raises.
    """
    transform = stream.transform

    def remember(row: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        kept = {column: row[column] for column in ("clip_id", *columns)}
        return {**kept, "sample": transform(row, generator)}

    reading = copy.copy(stream)  # which counts what it skips where `stream` does
    reading.transform = remember
    return ClipStream(list(progress(reading)), Remembered(transform))
