"""The clips that checkpoints are scored on, and how their classes are numbered by a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..data.benchmarks.records import BENCHMARKS
from ..data.benchmarks.splits import SplitRows, load_rows
from ..tasks import TASKS, task_of_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..tasks import Task

# What a model needs for benchmarks of tasks that are not in `TASKS`.
OTHER_NEEDS = {"segmentation": "a mask for every frame", "question answering": "an answer to a question"}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(SplitRows):
    """The clips that checkpoints are scored on: rows, and how a model is scored by their labels.

    Args:
        task: of the models that are scored.
        columns: label columns, one per head; names: the classes of each, in the order of the rows' numbers.
        fields: of a model's configuration, as the labels decide them (`Task.config_fields`).
    """

    task: Task
    columns: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    fields: dict[str, Any]

    @property
    def num_segments(self) -> int | None:
        """Parts of a clip that have a class each (event localisation)."""
        return self.fields.get("num_segments")

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
    record, task = rows.record, task_of_config(config)
    kinds = record.columns if record is not None else {}
    if record is not None and record.task not in task.benchmark_tasks and label_columns is None:
        official = next((each for each in TASKS.values() if record.task in each.benchmark_tasks), None)
        if official is not TASKS["classification"]:
            needs = official.needs if official is not None else OTHER_NEEDS[record.task]
            of_clip = [column for column in record.label_columns if kinds[column] == "class"]
            raise ValueError(
                f"{record.title} is a benchmark of {record.task}: it needs {needs}, and this model gives {task.needs}. To score "
                f"the class of the clip give label_columns= (--label_columns) {' or '.join(of_clip)}"
            )
    usual = record.label_columns if record is not None else ("label",)
    heads = task.class_heads(config)
    if label_columns is None:
        try:
            label_columns = task.choose_columns(config, kinds, rows.rows.features) or usual[:1]
        except ValueError as error:
            remedy = f"give label_columns= (--label_columns), one per head in their order, of: {', '.join(usual)}"
            if len(usual) < len(heads):
                remedy = f"its labels are {', '.join(usual)} alone, and scoring takes one for each head"
            raise ValueError(f"{rows.title}: {error}: {remedy}") from error
    if heads and len(label_columns) != len(heads):
        named = f": {', '.join(heads)}" if len(heads) > 1 else ""
        raise ValueError(
            f"label_columns (--label_columns) {', '.join(label_columns)} are {len(label_columns)}, but the model has "
            f"{len(heads)} head{'s' * (len(heads) > 1)}{named}"
        )
    features = rows.rows.features
    return EvaluationSet(
        **vars(rows),
        task=task,
        columns=tuple(label_columns),
        fields=task.config_fields(features, label_columns, config),
        names=task.class_names(features, label_columns),
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
class ModelClasses:
    """The classes of a model, matched by name with those of an evaluation set.

    names: head -> the model's class names; numbers: for each column of the set, the model's number of each of its classes.
    Both are empty for a task whose labels are no classes.
    """

    names: dict[str, tuple[str, ...]]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def matched(cls, config: PreTrainedConfig, clips: EvaluationSet) -> ModelClasses:
        """Matches classes by their names, so their numbers may differ.

        Raises:
            ValueError: a class of the clips that the model does not know, a model of other classes than the benchmark's, or a
                model of another task.
        """
        task = task_of_config(config)
        if task is not clips.task:
            raise ValueError(f"the model gives {task.needs}, but the clips' labels are read as {clips.task.needs}")
        for field, value in clips.fields.items():
            if field not in _OF_CLASSES and getattr(config, field, None) != value:
                raise ValueError(
                    f"the model has {field}={getattr(config, field, None)}, but the clips' labels ask for {value}"
                )
        multi_label = [
            kind == "multi_label_classification" for kind in (config.problem_type, clips.fields.get("problem_type"))
        ]
        if clips.names and multi_label[0] != multi_label[1]:
            kinds = ("one class", "any number of classes")
            raise ValueError(
                f"the model was trained to give {kinds[multi_label[0]]} per clip (problem_type={config.problem_type}), but the "
                f"column {clips.columns[0]} of {clips.title} holds {kinds[multi_label[1]]}"
            )
        classes, numbers, start = {}, [], 0
        for (head, size), column in zip(task.class_heads(config).items(), clips.names):
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

    def to_model_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The set's labels with the model's class numbers: long [clips], [clips, heads] or [clips, segments], or multi-hot
        float [clips, classes]; other labels as they are.
        """
        if not self.numbers:
            return labels
        if labels.is_floating_point():
            own = torch.zeros(len(labels), len(next(iter(self.names.values()))), dtype=labels.dtype)
            own[:, list(self.numbers[0])] = labels
            return own
        if len(self.numbers) == 1:  # one head, perhaps for several parts of a clip
            return torch.tensor(self.numbers[0])[labels]
        columns = labels.unbind(dim=1)
        return torch.stack([torch.tensor(table)[column] for table, column in zip(self.numbers, columns)], dim=1)


_OF_CLASSES = ("id2label", "label2id", "class_splits", "problem_type")  # fields that are compared class by class


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
