"""The clips that checkpoints are scored on, and the heads of a model that has to name their classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.benchmarks.records import BENCHMARKS
from ..data.benchmarks.splits import SplitRows, load_rows
from ..data.heads import head_fields

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Benchmarks whose official task is not to name the class of a clip, and what a model needs for them.
OTHER_TASKS = {
    "event localization": "a class for every second",
    "segmentation": "a mask for every frame",
    "question answering": "an answer to a question",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(SplitRows):
    """The clips that checkpoints are scored on: rows, and how a model is scored by their labels.

    Args:
        columns: label columns, one per head; names: the classes of each, in the order of the rows' numbers.
        multi_label: several classes per clip.
        num_segments: where the one column holds a class for each of so many equal parts of a clip (event localisation).
    """

    columns: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    multi_label: bool
    num_segments: int | None = None

    @property
    def metric(self) -> str:
        """What is officially reported; "" for a folder."""
        return self.record.metric if self.record is not None else ""

    @property
    def partition(self) -> str | None:
        """The fold or split of several whose scores are averaged; None where the benchmark has one division only."""
        return self.record.partition(self.variant) if self.record is not None else None

    def describe(self) -> dict[str, Any]:
        """What a report says of them."""
        kept = (
            "name",
            "title",
            "split",
            "source",
            "variant",
            "partition",
            "columns",
            "metric",
            "coverage",
            "num_segments",
        )
        return {key: list(value) if isinstance(value := getattr(self, key), tuple) else value for key in kept}


def label_rows(rows: SplitRows, config: PreTrainedConfig, label_columns: Sequence[str] | None = None) -> EvaluationSet:
    """The rows as a model would be scored on them.

    Args:
        config: of the model.
        label_columns: one per head of the model, in the heads' order. By default the columns that are called as the
            heads are; the benchmark's column with a class for each part of a clip, for a model with
            `config.num_segments`; or the usual label.

    Raises:
        ValueError: a benchmark of another task (without `label_columns` that name a class of the clip), or a number or
            kind of columns that is not that of the heads.
    """
    record, segments = rows.record, getattr(config, "num_segments", None)
    kinds = record.columns if record is not None else {}
    localises = record is not None and record.task == "event localization" and segments is not None
    if record is not None and record.task in OTHER_TASKS and not localises and label_columns is None:
        of_clip = [column for column in record.label_columns if kinds[column] == "class"]
        raise ValueError(
            f"{record.title} is a benchmark of {record.task}: it needs {OTHER_TASKS[record.task]}, and this model gives one "
            f"answer per clip. To score the class of the clip give label_columns= (--label_columns) {' or '.join(of_clip)}"
        )
    heads = list(config.class_splits or []) if getattr(config, "class_splits", None) else []
    usual = record.label_columns if record is not None else ("label",)
    if label_columns is None:
        known = [name for name in heads if name in rows.rows.features]
        if heads and known != heads:
            remedy = f"give label_columns= (--label_columns), one per head in their order, of: {', '.join(usual)}"
            if len(usual) < len(heads):
                remedy = f"its labels are {', '.join(usual)} alone, and scoring takes one for each head"
            raise ValueError(
                f"the model has the heads {', '.join(heads)}, and {rows.title} no columns of these names: {remedy}"
            )
        of_parts = [column for column, kind in kinds.items() if kind == "classes"] if segments is not None else []
        label_columns = heads or of_parts[:1] or usual[:1]
    if len(label_columns) != max(len(heads), 1):
        raise ValueError(
            f"label_columns (--label_columns) {', '.join(label_columns)} are {len(label_columns)}, but the model has "
            f"{max(len(heads), 1)} head{'s' if len(heads) > 1 else ''}{': ' + ', '.join(heads) if heads else ''}"
        )
    if segments is not None and getattr(rows.rows.features.get(label_columns[0]), "names", None):
        raise ValueError(
            f"the model gives a class for each of {segments} parts of a clip (event localisation), but {label_columns[0]} of "
            f"{rows.title} holds one for the whole clip: give label_columns= (--label_columns) a column of lists of classes"
        )
    fields = head_fields(rows.rows.features, label_columns, segments)
    names, start = {}, 0
    for column in label_columns:
        size = (fields["class_splits"] or {column: len(fields["id2label"])})[column]
        names[column] = tuple(fields["id2label"][start + index] for index in range(size))
        start += size
    return EvaluationSet(
        **vars(rows),
        columns=tuple(label_columns),
        names=names,
        multi_label=fields["problem_type"] == "multi_label_classification",
        num_segments=segments,
    )


def load_evaluation_set(
    data: str,
    split: str | None = None,
    *,
    source: str | None = None,
    variant: str | None = None,
    label_columns: Sequence[str] | None = None,
    config: PreTrainedConfig,
) -> EvaluationSet:
    """`load_rows` and `label_rows` in one; arguments and errors are theirs."""
    return label_rows(load_rows(data, split, source=source, variant=variant), config, label_columns)


@dataclass(frozen=True)
class Heads:
    """The heads of a model over the classes of an evaluation set.

    classes: head -> the model's class names; numbers: for each column of the set, its class numbers as the model's.
    """

    classes: dict[str, tuple[str, ...]]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def fitted(cls, config: PreTrainedConfig, clips: EvaluationSet) -> Heads:
        """Classes are matched by their names, so their numbers may differ.

        Raises:
            ValueError: a class of the clips that the model does not know, a model of other classes than the benchmark's,
                one label per clip on one side and several on the other, or another number of parts of a clip.
        """
        segments = getattr(config, "num_segments", None)
        if segments != clips.num_segments:
            kinds = [
                f"a class for each of {n} parts of a clip" if n else "one answer per clip"
                for n in (segments, clips.num_segments)
            ]
            raise ValueError(f"the model gives {kinds[0]}, but the clips' labels are read as {kinds[1]}")
        sizes = dict(config.class_splits) if getattr(config, "class_splits", None) else {"label": config.num_labels}
        multi_label = config.problem_type == "multi_label_classification"
        if multi_label != clips.multi_label:
            kinds = ("one class", "any number of classes")
            raise ValueError(
                f"the model was trained to give {kinds[multi_label]} per clip (problem_type={config.problem_type}), but the "
                f"column {clips.columns[0]} of {clips.title} holds {kinds[clips.multi_label]}"
            )
        classes, numbers, start = {}, [], 0
        for (head, size), column in zip(sizes.items(), clips.columns):
            own = tuple(str(config.id2label[start + index]) for index in range(size))
            start += size
            theirs = clips.names[column]
            unknown = [name for name in theirs if name not in own]
            # The folder of a user may hold some of the classes; a benchmark of other classes is another benchmark.
            spare = [name for name in own if name not in theirs] if clips.name in BENCHMARKS else []
            if unknown or spare or len(set(own)) < len(own):
                raise ValueError(_other_classes(head, column, clips, own, unknown, spare))
            classes[head] = own
            numbers.append(tuple(own.index(name) for name in theirs))
        return cls(classes, tuple(numbers))

    def own_labels(self, labels: torch.Tensor, multi_label: bool) -> np.ndarray:
        """The set's labels with the model's class numbers: long [clips], [clips, heads] or [clips, segments], or multi-hot
        [clips, classes].
        """
        if multi_label:
            own = torch.zeros(len(labels), len(next(iter(self.classes.values()))), dtype=labels.dtype)
            own[:, list(self.numbers[0])] = labels
            return own.numpy()
        if len(self.numbers) == 1:  # one head, perhaps for several parts of a clip
            return torch.tensor(self.numbers[0])[labels].numpy()
        columns = labels.unbind(dim=1)
        return torch.stack([torch.tensor(table)[column] for table, column in zip(self.numbers, columns)], dim=1).numpy()


def _other_classes(head, column, clips, own, unknown, spare) -> str:
    text = f"the classes of the model's head {head} are not those of the column {column} of {clips.title}: "
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return (
            text + f"its id2label holds no names ({own[0]}, ...), so they cannot be matched; set id2label in its config"
        )
    if len(set(own)) < len(own):
        return text + "its id2label gives two classes one name, so they cannot be matched"
    parts = []
    if unknown:
        parts.append(f"the model does not know {_some(unknown)}")
    if spare:
        parts.append(f"{clips.title} does not have {_some(spare)}")
    known = f"; variants of the benchmark: {', '.join(v)}" if (v := _variants(clips.name)) else ""
    return text + "; ".join(parts) + known


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _variants(name: str) -> Iterable[str]:
    return BENCHMARKS[name].variants if name in BENCHMARKS else ()
