"""Classification of clips: one label, several labels, or one label for each of several heads such as verb and noun.

Models with `problem_type="regression"` have the same heads; their outputs are numbers and not classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..auto import AUDIO_VISUAL_CLASSIFICATION, AutoModelForAudioVisualClassification
from ..files import markdown_cell
from ..metrics.classification import (
    average_precision_per_class,
    multi_head_accuracies,
    multi_label_metrics,
    top_k_accuracies,
)
from ..metrics.regression import regression_errors
from ..models.shared.losses_classification import IGNORED_LABEL, classification_loss, infer_problem_type
from ..processing.answers import classify, head_slices
from ..processing.joining import aggregate_views
from .task import RowLabels, ShownMetric, Task, check_equal_fields

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig

HEADS = ("ForAudioVisualClassification", "ForVideoClassification", "ForAudioClassification")
CLASS_FIELDS = ("id2label", "label2id", "class_splits", "problem_type")  # classes, which are matched by name
SHOWN_LABELS = 20  # of each head in a model card


class ClassLabels(RowLabels):
    """Class numbers of a row: long [] for one column, long [heads] for several, float [num_labels] for a column of lists.

    Args:
        columns: one column, an integer or a list of integers (multi-label); or several integer columns, one per head, in the
            order of the model's `class_splits`.
        num_labels: number of classes of a multi-label column.
    """

    def __init__(self, columns: Sequence[str] | str = ("label",), num_labels: int | None = None):
        super().__init__(columns)
        self.num_labels = num_labels

    def __call__(self, row: Mapping[str, Any]) -> torch.Tensor:
        values = self._values(row)
        if len(values) == 1 and isinstance(values[0], (list, tuple)):
            return self._multi_hot(values[0], row)
        self._check_numbers(values, row)
        return torch.tensor(values[0] if len(values) == 1 else values)

    def _values(self, row: Mapping[str, Any]) -> list[Any]:
        for column in self.columns:
            if column not in row:
                raise ValueError(f"clip {row['clip_id']} has no column {column!r}; its columns are: {', '.join(row)}")
        return [row[column] for column in self.columns]

    def _check_numbers(self, values: Sequence[Any], row: Mapping[str, Any]) -> None:
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
            raise ValueError(
                f"clip {row['clip_id']}: labels must be class numbers, got {dict(zip(self.columns, values))}"
            )

    def _multi_hot(self, classes: Sequence[int], row: Mapping[str, Any]) -> torch.Tensor:
        if self.num_labels is None:
            raise ValueError(f"the column {self.columns[0]!r} holds lists of classes: pass num_labels to ClassLabels")
        wrong = [value for value in classes if not 0 <= value < self.num_labels]
        if wrong:
            raise ValueError(f"clip {row['clip_id']}: classes {wrong} lie outside 0..{self.num_labels - 1}")
        labels = torch.zeros(self.num_labels)
        labels[list(classes)] = 1.0
        return labels


def class_fields(features: datasets.Features, columns: Sequence[str], config: Any = None) -> dict[str, Any]:
    """The fields of a configuration that label columns decide: id2label, label2id, class_splits, problem_type.

    Args:
        features: of the rows, such as `rows.features`.
        columns: one column of ClassLabel (single label) or of List(ClassLabel) (multi-label); or several columns of
            ClassLabel, one head each, in this order.

    Raises:
        ValueError: a column that does not exist or holds no class labels, or a multi-label one next to others.
    """
    import datasets

    lists = [column for column in columns if isinstance(features.get(column), datasets.List)]
    kinds = _class_columns(features)
    if unknown := [column for column in columns if column not in kinds]:
        raise ValueError(
            f"no labels in {', '.join(unknown)}: the columns that hold class labels are {', '.join(kinds)}; pass"
            " label_columns= (--label_columns) of these"
        )
    if lists and len(columns) > 1:
        raise ValueError(f"the column {lists[0]} holds several labels per clip and cannot stand next to others")
    labels = [name for column in columns for name in kinds[column].names]
    fields = {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "class_splits": None,
        "problem_type": "multi_label_classification" if lists else "single_label_classification",
    }
    if len(columns) > 1:
        fields["class_splits"] = {column: len(kinds[column].names) for column in columns}
        fields["problem_type"] = "multi_head_classification"
    return fields


def check_class_fields(config: Any, fields: Mapping[str, Any], where: str) -> None:
    """Checks that a clip has as many labels as the model predicts: one, or any number.

    Raises:
        ValueError: it has not, or a field other than those of the classes differs.
    """
    check_equal_fields(config, {name: fields[name] for name in fields.keys() - set(CLASS_FIELDS)}, where)
    if is_regression(config):
        raise ValueError(
            f"the model predicts numbers (problem_type={config.problem_type}, num_labels={config.num_labels}), but {where} holds"
            " classes: load a model of classes, or evaluate numbers with AVTrainer and your own data set"
        )
    kinds = ("one class", "any number of classes")
    predicted, held = is_multi_label(config), fields.get("problem_type") == "multi_label_classification"
    if predicted != held:
        raise ValueError(
            f"the model predicts {kinds[predicted]} per clip (problem_type={config.problem_type}), but {where} holds {kinds[held]}"
        )


def class_names(features: datasets.Features, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Class names of each column, in the order of the rows' numbers."""
    kinds = _class_columns(features)
    return {column: tuple(kinds[column].names) for column in columns}


def _class_columns(features: datasets.Features) -> dict[str, datasets.ClassLabel]:
    import datasets

    inner = {name: kind.feature if isinstance(kind, datasets.List) else kind for name, kind in features.items()}
    return {name: kind for name, kind in inner.items() if isinstance(kind, datasets.ClassLabel)}


def class_heads(config: PreTrainedConfig) -> dict[str, int]:
    """Head -> number of classes; a model with one head calls it "label"."""
    return {head: columns.stop - columns.start for head, columns in head_slices(config).items()}


def is_multi_label(config: Any, labels: torch.Tensor | None = None) -> bool:
    """Whether a clip has several labels, by the `problem_type` or by float labels [clips, classes]."""
    if is_regression(config):
        return False
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return True
    return labels is not None and labels.is_floating_point() and labels.dim() == 2


def is_regression(config: Any) -> bool:
    """Whether the outputs are numbers and not classes, as the loss takes them (`infer_problem_type`)."""
    problem_type = getattr(config, "problem_type", None)
    one_output = problem_type is None and getattr(config, "num_labels", None) == 1
    return problem_type == "regression" or (one_output and not getattr(config, "class_splits", None))


def choose_head_columns(
    config: PreTrainedConfig, kinds: Mapping[str, str], features: Mapping[str, Any]
) -> tuple[str, ...]:
    """The columns that are called like the model's heads; () for a model with one head.

    Raises:
        ValueError: the rows have no columns of these names.
    """
    heads = list(getattr(config, "class_splits", None) or ())
    if missing := [name for name in heads if name not in features]:
        raise ValueError(f"there are no columns {', '.join(missing)} for the heads of the model ({', '.join(heads)})")
    return tuple(heads)


def check_class_aggregation(aggregation: str, config: Any, labels_decide: bool) -> None:
    """Raises ValueError for the maximum over views where a clip has one class, and for all but the mean of numbers."""
    if is_regression(config) and aggregation != "mean_logits":
        raise ValueError(f"{aggregation} is for models of classes, and this one predicts numbers: choose mean_logits")
    problem_type = getattr(config, "problem_type", None)
    undecided = problem_type is None and labels_decide
    if aggregation == "max_logits" and problem_type != "multi_label_classification" and not undecided:
        raise ValueError(
            f"max_logits is for models of several labels per clip, and this one's problem_type is {problem_type}: "
            "choose mean_logits or mean_probabilities"
        )


def join_class_views(logits: torch.Tensor, labels: torch.Tensor | None, aggregation: str, config: Any) -> torch.Tensor:
    """[clips, views, classes] -> [clips, classes]."""
    return aggregate_views(
        logits,
        aggregation,
        multi_label=is_multi_label(config, labels),
        class_splits=getattr(config, "class_splits", None),
    )


def class_loss(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
    """The model's own loss in evaluation, float32 [clips]."""
    problem_type = infer_problem_type(getattr(config, "problem_type", None), logits.shape[1], labels)
    return classification_loss(logits, labels, problem_type, class_splits=getattr(config, "class_splits", None))


def class_metrics(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> dict[str, float]:
    """`top1` and `top5`; of several labels `map`, `auc`, `d_prime`; of several heads the accuracies of each and of all together;
    of a regression `mse` and `mae`.

    Args:
        logits: float [clips, classes]. labels: long [clips] or [clips, heads], or float [clips, classes].
    """
    scores, targets = logits.numpy(), labels.numpy()
    if is_regression(config):
        return regression_errors(scores, targets)
    splits = getattr(config, "class_splits", None)
    if splits:
        return multi_head_accuracies(scores, targets, splits)
    if is_multi_label(config, labels):
        return multi_label_metrics(scores, targets)
    return top_k_accuracies(scores, targets)


def class_metric_names(config: Any) -> set[str]:
    """The names that `class_metrics` can return."""
    classes, problem_type = config.num_labels, getattr(config, "problem_type", None)
    logits, splits = torch.zeros(2, classes), getattr(config, "class_splits", None)
    if is_regression(config):
        return set(class_metrics(logits, logits, config))
    one = torch.zeros(2, len(splits), dtype=torch.long) if splits else torch.zeros(2, dtype=torch.long)
    several = torch.eye(2, classes)
    labels = {None: (one,) if splits else (one, several), "multi_label_classification": (several,)}
    found = [class_metrics(logits, each, config).keys() for each in labels.get(problem_type, (one,))]
    return set().union(*found)


def name_actions(metrics: Mapping[str, float], config: Any) -> dict[str, float]:
    """Names the joint accuracy of a verb and a noun that of the action, as EPIC-KITCHENS does."""
    if list(class_heads(config)) != ["verb", "noun"]:
        return dict(metrics)
    return {name.replace("_joint", "_action"): value for name, value in metrics.items()}


OTHER_METRICS = {
    "map": ShownMetric("mAP", percent=True),
    "auc": ShownMetric("AUC"),
    "d_prime": ShownMetric("d-prime"),
    "classes_without_positives": ShownMetric("classes without positives", digits=0),
    "mse": ShownMetric("mean squared error", hub="mse", lowest_is_best=True),
    "mae": ShownMetric("mean absolute error", hub="mae", lowest_is_best=True),
}


def show_class_metric(name: str) -> ShownMetric:
    """`top1_verb` is shown as `top-1 verb`, in per cent."""
    found = re.fullmatch(r"top(\d+)(?:_(.+))?", name)
    if found is None:
        return OTHER_METRICS.get(name, ShownMetric(name.replace("_", " ")))
    number, head = found[1], (found[2] or "").replace("_", " ")
    which = {"": "", "joint": ", all heads together"}.get(head, f", {head}")
    return ShownMetric(
        name=f"top-{number} {head}".strip(),
        axis=f"top-{number} accuracy{which}",
        percent=True,
        hub="accuracy" if number == "1" else "",
    )


def class_precision(
    logits: torch.Tensor, labels: torch.Tensor, classes: Mapping[str, Sequence[str]], config: Any
) -> dict[str, dict[str, list]]:
    """Average precision and number of positives of each class, by head.

    Args:
        logits: float [..., classes]. labels: class numbers long [...] or [..., heads], or multi-hot [clips, classes].
    """
    rows = logits.flatten(0, -2)
    found = {}
    for number, (head, scores) in enumerate(
        zip(classes, rows.split([len(names) for names in classes.values()], dim=1))
    ):
        if is_multi_label(config, labels):
            targets = labels.numpy()
        else:
            numbers = labels.reshape(len(rows), -1)[:, number]
            counted = numbers != IGNORED_LABEL
            scores = scores[counted].log_softmax(dim=1)  # comparable between clips, as a single logit is not
            targets = np.eye(scores.shape[1], dtype=np.int64)[numbers[counted].numpy()]
        found[head] = {
            "average_precision": average_precision_per_class(scores.numpy(), targets).tolist(),
            "positives": (targets == 1).sum(axis=0).tolist(),
        }
    return found


def describe_classes(config: PreTrainedConfig, source: str | None) -> str:
    """The labels of each head, the first `SHOWN_LABELS` by name."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        return f"{len(names)} labels, whose names are not stated."
    unit = "clip" if getattr(config, "num_segments", None) is None else "segment"
    kind = f"several per {unit}, each with its own probability" if is_multi_label(config) else f"one per {unit}"
    kind = "a number each, no classes" if is_regression(config) else kind
    named, lines = bool(getattr(config, "class_splits", None)), []
    for head, columns in head_slices(config).items():
        size = columns.stop - columns.start
        shown = ", ".join(f"`{markdown_cell(name)}`" for name in names[columns][:SHOWN_LABELS])
        more = f" and {size - SHOWN_LABELS} more (`id2label` in `config.json`)" if size > SHOWN_LABELS else ""
        lines.append(f"{f'{head}: ' if named else ''}{size} ({kind}): {shown}{more}.")
    lines.append(f"Source of the names: {source or 'not stated.'}")
    return "\n\n".join(lines)


CLASSIFICATION = Task(
    name="classification",
    heads=HEADS,
    auto_class=AutoModelForAudioVisualClassification,
    title="audio-visual classification",
    needs="a class for the clip",
    benchmark_tasks=(
        "classification",
        "multi-label classification",
        "verb and noun classification",
        "audio classification",
    ),
    config_fields=class_fields,
    check_fields=check_class_fields,
    report_fields=("num_segments",),
    choose_columns=choose_head_columns,
    borrowed_kinds=("class",),
    read_labels=lambda columns, fields: ClassLabels(columns, len(fields["id2label"])),
    class_heads=class_heads,
    class_names=class_names,
    check_aggregation=check_class_aggregation,
    join_views=join_class_views,
    loss=class_loss,
    metrics=class_metrics,
    metric_names=class_metric_names,
    report_names=name_actions,
    headline=("map", "top1_action", "top1_joint", "top1"),
    show_metric=show_class_metric,
    per_class=class_precision,
    answer=classify,
    pipeline=AUDIO_VISUAL_CLASSIFICATION,
    # Not "video-classification": transformers' own pipeline of that name would answer without the audio.
    hub_task=AUDIO_VISUAL_CLASSIFICATION.name,
    describe_labels=describe_classes,
    dataset_categories={
        "classification": "video-classification",
        "multi-label classification": "video-classification",
        "verb and noun classification": "video-classification",
        "audio classification": "audio-classification",
    },
)
