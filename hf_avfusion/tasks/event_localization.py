"""Event localisation: a class for each of `num_segments` equal parts of a clip, such as the seconds of AVE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..auto import AUDIO_VISUAL_EVENT_LOCALIZATION
from ..metrics.classification import event_localization_accuracy
from ..processing.answers import name_segments
from .classification import (
    CLASSIFICATION,
    ClassLabels,
    class_fields,
    class_metric_names,
    class_metrics,
    class_precision,
    is_multi_label,
    is_regression,
    show_class_metric,
)
from .task import ShownMetric

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig

WINDOW_TOLERANCE = 0.05  # a few frames, or rows of the spectrogram, more or less do not matter


class SegmentLabels(ClassLabels):
    """A class for each segment of a clip: long [num_segments].

    Args:
        columns: the one column with a list of `num_segments` class numbers.
    """

    def __init__(self, columns: Sequence[str] | str, num_segments: int):
        super().__init__(columns)
        if len(self.columns) != 1:
            raise ValueError(f"event localisation has one label column, got {self.columns}")
        self.num_segments = num_segments

    def __call__(self, row: Mapping[str, Any]) -> torch.Tensor:
        (values,) = self._values(row)
        if not isinstance(values, (list, tuple)) or len(values) != self.num_segments:
            raise ValueError(
                f"clip {row['clip_id']}: {self.columns[0]!r} must hold a class for each of {self.num_segments} "
                f"segments, got {values}"
            )
        self._check_numbers(values, row)
        return torch.tensor(list(values))

    def check_window(self, row: Mapping[str, Any], processor: Any, modalities: Sequence[str], seconds: float) -> None:
        window = processor.window
        if window["num_segments"] is not None:  # its segments are spread over the whole clip, however long it is
            if window["num_segments"] != self.num_segments:
                raise ValueError(
                    f"clip {row['clip_id']} has labels of {self.num_segments} segments, but the processor cuts clips into "
                    f"num_segments={window['num_segments']}: give both the same number"
                )
            return
        video = window["span"] if window["span"] is not None else window["num_frames"] / window["frame_rate"]
        for modality, length, field in (("video", video, "span"), ("audio", window["audio_seconds"], "audio_seconds")):
            if modality in modalities and abs(length - seconds) > WINDOW_TOLERANCE * seconds:
                raise ValueError(
                    f"clip {row['clip_id']} is {seconds:g} s long and its labels are of {self.num_segments} parts of it, but the"
                    f" processor's window takes {length:g} s of {modality}: give the processor {field}={seconds:g}"
                )


def segment_fields(features: datasets.Features, columns: Sequence[str], config: Any) -> dict[str, Any]:
    """As `classification.class_fields`, of one column with a list of classes for each clip; with `config.num_segments`.

    Raises:
        ValueError: as there, and for a column that holds one class for the whole clip.
    """
    import datasets

    fields = class_fields(features, columns)
    if not isinstance(features[columns[0]], datasets.List):
        raise ValueError(
            f"num_segments={config.num_segments} (event localisation) needs a label column with a list of classes, one for each"
            f" part of the clip (AVE: events), but {', '.join(columns)} holds one class for the whole clip; choose another with"
            " label_columns= (--label_columns)"
        )
    return {**fields, "num_segments": config.num_segments, "problem_type": "single_label_classification"}


def choose_segment_column(
    config: PreTrainedConfig, kinds: Mapping[str, str], features: Mapping[str, Any]
) -> tuple[str, ...]:
    """The benchmark's column with a class for each part of a clip."""
    return tuple(column for column, kind in kinds.items() if kind == "classes")[:1]


def whole_clip_logits(logits: torch.Tensor, labels: torch.Tensor | None, aggregation: str, config: Any) -> torch.Tensor:
    """[clips, 1 view, segments, classes] -> [clips, segments, classes]; segments of different windows cannot be joined."""
    if logits.dim() != 4 or logits.shape[1] != 1:
        raise ValueError(
            f"Expected one view of each whole clip and logits [clips, 1, {config.num_segments} segments, classes] in event "
            f"localisation, got {tuple(logits.shape)}."
        )
    return logits[:, 0]


def segment_metrics(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> dict[str, float]:
    """`accuracy` over the segments of all clips. For other labels than one class, `class_metrics` over these segments."""
    rows, targets = logits.flatten(0, 1), labels.flatten(0, 1)
    if getattr(config, "class_splits", None) or is_regression(config) or is_multi_label(config, targets):
        return class_metrics(rows, targets, config)
    return {"accuracy": event_localization_accuracy(logits.numpy(), labels.numpy())}


def segment_metric_names(config: Any) -> set[str]:
    """The names that `segment_metrics` can return."""
    names = class_metric_names(config)
    if getattr(config, "class_splits", None) or is_regression(config) or is_multi_label(config):
        return names
    return {"accuracy", *(name for name in names if not name.startswith("top"))}


def show_segment_metric(name: str) -> ShownMetric:
    return ShownMetric("accuracy of segments", percent=True) if name == "accuracy" else show_class_metric(name)


EVENT_LOCALIZATION = replace(
    CLASSIFICATION,
    name="event_localization",
    title="audio-visual event localisation",
    needs="a class for every second",
    benchmark_tasks=("event localization",),
    selects=lambda config: getattr(config, "num_segments", None) is not None,
    config_fields=segment_fields,
    choose_columns=choose_segment_column,
    borrowed_kinds=(),
    read_labels=lambda columns, fields: SegmentLabels(columns, fields["num_segments"]),
    whole_clip=True,
    has_timeline=True,
    join_views=whole_clip_logits,
    metrics=segment_metrics,
    metric_names=segment_metric_names,
    headline=("accuracy",),
    show_metric=show_segment_metric,
    per_class=class_precision,
    answer=name_segments,
    pipeline=AUDIO_VISUAL_EVENT_LOCALIZATION,
    hub_task=AUDIO_VISUAL_EVENT_LOCALIZATION.name,
    dataset_categories={"event localization": "video-classification"},
)
