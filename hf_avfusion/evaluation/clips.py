"""Evaluation sets: the clips that checkpoints are scored on, and the mapping of their classes to those of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..data.benchmarks.records import BENCHMARKS
from ..data.benchmarks.splits import SplitRows
from ..models.shared.losses_classification import IGNORED_LABEL
from ..tasks import needs_of_benchmark, task_of_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..tasks import Task


@dataclass(frozen=True, kw_only=True)
class EvaluationSet(SplitRows):
    """The rows that checkpoints are scored on, and their labels.

    Args:
        task: task of the scored models.
        columns: label columns, one per head.
        names: column -> class names, in the order of the class numbers in the rows.
        fields: values of config fields that follow from the labels (`Task.config_fields`).
    """

    task: Task
    columns: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    fields: dict[str, Any]

    @property
    def metric(self) -> str:
        """The official metric of the benchmark; "" for a folder."""
        return self.record.metric if self.record is not None else ""

    @property
    def partition(self) -> str | None:
        """The fold or split, if the benchmark averages scores over several; otherwise None."""
        return self.record.partition(self.variant) if self.record is not None else None

    def describe(self) -> dict[str, Any]:
        """The entries of a report that describe this set."""
        kept = (
            "name", "title", "split", "source", "variant", "partition", "columns", "metric", "coverage",
        )  # fmt: skip
        about = {key: list(value) if isinstance(value := getattr(self, key), tuple) else value for key in kept}
        return {**about, **{name: self.fields.get(name) for name in self.task.report_fields}, "task": self.task.name}


def label_rows(rows: SplitRows, config: PreTrainedConfig, label_columns: Sequence[str] | None = None) -> EvaluationSet:
    """Selects the label columns of rows for a model.

    Args:
        rows: clips of a split.
        config: config of the model.
        label_columns: one per head of the model, in the order of the heads. Default: the columns with the names of the
            heads; otherwise those that the task chooses, or the benchmark's main label.

    Raises:
        ValueError: a benchmark of another task (unless `label_columns` names its columns), or columns whose number or kind
            does not match the heads.
    """
    record, task = rows.record, task_of_config(config)
    kinds = record.columns if record is not None else {}
    if record is not None and record.task not in task.benchmark_tasks and label_columns is None:
        usable = [column for column in record.label_columns if kinds[column] in task.borrowed_kinds]
        usable = usable or [name for name, kind in kinds.items() if kind in set(task.borrowed_kinds) - {"class"}]
        remedy = "Use a benchmark or a model of the same task"
        if usable:
            remedy = f"To score {task.needs}, pass label_columns= (--label_columns) {' or '.join(usable)}"
        raise ValueError(
            f"{record.title} is a benchmark of {record.task}: it needs {needs_of_benchmark(record.task)}, but this model "
            f"predicts {task.needs}. {remedy}"
        )
    usual = record.label_columns if record is not None else ("label",)
    heads = task.class_heads(config)
    if label_columns is None:
        try:
            label_columns = task.choose_columns(config, kinds, rows.rows.features) or usual[:1]
        except ValueError as error:
            remedy = f"pass label_columns= (--label_columns), one per head in their order, out of: {', '.join(usual)}"
            if len(usual) < len(heads):
                remedy = (
                    f"its only labels are {', '.join(usual)}, but each head needs one: use another benchmark or model"
                )
            raise ValueError(f"{rows.title}: {error}: {remedy}") from error
    if heads and len(label_columns) != len(heads):
        named = f": {', '.join(heads)}" if len(heads) > 1 else ""
        raise ValueError(
            f"label_columns (--label_columns) {', '.join(label_columns)}: got {len(label_columns)}, but the model has "
            f"{len(heads)} head{'s' * (len(heads) > 1)}{named}; pass one column per head"
        )
    features = rows.rows.features
    return EvaluationSet(
        **vars(rows),
        task=task,
        columns=tuple(label_columns),
        fields=task.config_fields(features, label_columns, config),
        names=task.class_names(features, label_columns),
    )


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model, matched by name with those of an evaluation set.

    Args:
        names: head -> class names of the model.
        numbers: for each label column of the set, the model's number of each of its classes.

    Both are empty for a task whose labels are not classes.
    """

    names: dict[str, tuple[str, ...]]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def matched(cls, config: PreTrainedConfig, clips: EvaluationSet) -> ModelClasses:
        """Matches classes by name; their numbers may differ.

        Raises:
            ValueError: the clips have a class that the model does not have, the model's classes are not those of the
                benchmark, or the model is for another task.
        """
        task = task_of_config(config)
        if task is not clips.task:
            raise ValueError(f"the model predicts {task.needs}, but the labels of the clips are {clips.task.needs}")
        task.check_fields(config, clips.fields, f"the column {', '.join(clips.columns)} of {clips.title}")
        classes, numbers, start = {}, [], 0
        for (head, size), column in zip(task.class_heads(config).items(), clips.names):
            own = tuple(str(config.id2label[start + index]) for index in range(size))
            start += size
            theirs = clips.names[column]
            unknown = [name for name in theirs if name not in own]
            # A user's folder may hold only some of the model's classes. A benchmark must have exactly the model's classes.
            spare = [name for name in own if name not in theirs] if clips.name in BENCHMARKS else []
            if unknown or spare or len(set(own)) < len(own):
                raise ValueError(_mismatch_message(head, column, clips, own, unknown, spare))
            classes[head] = own
            numbers.append(tuple(own.index(name) for name in theirs))
        return cls(classes, tuple(numbers))

    def to_model_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Converts labels of the set to the model's class numbers.

        Args:
            labels: long [clips], [clips, heads] or [clips, segments], or multi-hot float [clips, classes]. Labels that are
                no classes are returned unchanged, and so is -100 (no label) of a model with one head.
        """
        if not self.numbers:
            return labels
        if labels.is_floating_point():
            own = torch.zeros(len(labels), len(next(iter(self.names.values()))), dtype=labels.dtype)
            own[:, list(self.numbers[0])] = labels
            return own
        if len(self.numbers) == 1:  # one head, for clips or for segments
            numbers = torch.tensor(self.numbers[0])
            return torch.where(labels == IGNORED_LABEL, labels, numbers[labels.clamp(min=0)])
        columns = labels.unbind(dim=1)
        return torch.stack([torch.tensor(table)[column] for table, column in zip(self.numbers, columns)], dim=1)


def _mismatch_message(head, column, clips, own, unknown, spare) -> str:
    text = f"the classes of the model's head {head} are not those of the column {column} of {clips.title}: "
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return (
            text + f"its id2label holds no names ({own[0]}, ...), so they cannot be matched; set id2label in its config"
        )
    if len(set(own)) < len(own):
        return text + "its id2label has the same name for two classes, so they cannot be matched; make the names unique"
    parts = []
    if unknown:
        parts.append(f"the model does not have {_first_three(unknown)}")
    if spare:
        parts.append(f"{clips.title} does not have {_first_three(spare)}")
    variants = BENCHMARKS[clips.name].variants if clips.name in BENCHMARKS else ()
    known = f"; variants of the benchmark: {', '.join(variants)}" if variants else ""
    return text + "; ".join(parts) + known


def _first_three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
