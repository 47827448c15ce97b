"""What a task is: everything that streams, trainer, evaluation, prediction, hub and card ask about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..lazy_registration import load_reference

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig

    from ..auto import PipelineEntry


class RowLabels:
    """Reads the labels of a row. This base class reads none; the tasks have their own.

    Args:
        columns: label columns of the rows.
    """

    def __init__(self, columns: Sequence[str] | str = ()):
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)

    def __call__(self, row: Mapping[str, Any]) -> torch.Tensor | None:
        """The labels of one row as a tensor; None without labels.

        Raises:
            ValueError: a column that the row lacks, or a value that is not a label.
        """
        return None

    def check_window(self, row: Mapping[str, Any], processor: Any, modalities: Sequence[str], seconds: float) -> None:
        """Checks that a window of the processor holds what the labels describe, for labels of parts of a clip.

        Args:
            seconds: length of the clip.

        Raises:
            ValueError: the window is longer or shorter than the labelled part of the clip.
        """


def check_equal_fields(config: PreTrainedConfig, fields: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if a field of the configuration is not as the labels need it."""
    for name, value in fields.items():
        if getattr(config, name, None) != value:
            raise ValueError(f"the model has {name}={getattr(config, name, None)}, but {where} needs {value}")


@dataclass(frozen=True)
class ShownMetric:
    """How tables, figures and cards show a metric.

    Args:
        name: in tables, such as "mAP".
        axis: at the axis of a figure; "" means `name`.
        percent: whether the values are shares, which are shown in per cent.
        digits: decimals of a value that is not shown in per cent.
        hub: the Hub's name of the metric; "" means that it has none.
        lowest_is_best: the value is an error.
    """

    name: str
    axis: str = ""
    percent: bool = False
    digits: int = 3
    hub: str = ""
    lowest_is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. A task of another kind is another instance; nothing outside of `tasks/` asks which task it has.

    Functions take the model's configuration as `config`. Logits and labels are tensors with the clips along the first axis.

    Args:
        name: key in `TASKS`.
        heads: ends of the class names of the models that solve it.
        auto_class: the Auto class that loads them.
        selects: (config) -> whether a model with one of `heads` solves this task. Needed where several tasks have the same heads.
        benchmark_tasks: values of `Benchmark.task` that it solves.
        needs: what a model has to give for it, for messages.
        config_fields: (features of the rows, label columns, config or None) -> fields of a configuration that the labels
            decide, such as `id2label`.
        check_fields: (config, what `config_fields` gave, name of the label column and its clips for messages) raises ValueError
            if the labels do not fit the model. Classes are not compared: `ModelClasses` matches them by name. Default: each
            field must be equal.
        report_fields: fields of `config_fields` that a report states. Results with other values are on other labels.
        choose_columns: (config, label columns of the benchmark: name -> kind, features of the rows) -> the label columns that
            fit the model, or () for the benchmark's own first one.
        borrowed_kinds: kinds of label columns that a model can also be scored on in benchmarks of other tasks.
        read_labels: (label columns, what `config_fields` gave) -> the `RowLabels` of a stream.
        processor_fields: (rows of training, a `SplitRows`) -> fields of a new model's processor that the data decide, such as the
            words of questions.
        check_rows: (processor, rows, a `SplitRows`) raises ValueError for rows that the processor cannot prepare, before a run.
        class_heads: (config) -> head of the model -> number of classes; {} where its answers are not classes.
        needed_modalities: modalities without which a model gives no answer, such as the video for masks of frames.
        class_names: (features of the rows, label columns) -> column -> class names; {} where labels are not classes.
        whole_clip: a clip is seen whole, in one view, since the labels belong to parts of it.
        has_timeline: answers are classes of parts of a clip, so `visualization.timeline` can draw them.
        check_aggregation: (aggregation, config, labels_decide) raises ValueError where views cannot be joined so. With
            `labels_decide`, a configuration without a problem type passes: the kind of the labels decides later.
        join_views: (logits [clips, views, ...], labels or None, aggregation, config) -> logits [clips, ...].
        loss: (logits, labels, config) -> the loss of each clip, for logits that were joined from views.
        reduce: (logits, labels, config) -> smaller tensors from which `metrics` computes the same, clip by clip, so that large
            answers such as masks are not kept until the end of an evaluation. None: `metrics` takes logits and labels.
        metrics: (logits, labels, config) -> name -> value; given what `reduce` returns, where there is one.
        metric_inputs: names of tensors of the collator, [B, ...], that `metrics` also takes, as keyword arguments, such as the
            types of questions. The model does not get them.
        metric_names: (config) -> the names that `metrics` can return, to check a name before any evaluation; None if unknown.
        report_names: (metrics, config) -> the same values under the names that reports use. The trainer uses the names of
            `metrics`.
        headline: names of the main metrics, in order of preference. Figures show the first that an evaluation has, or else the
            first metric of the evaluation.
        show_metric: (name of a metric) -> how tables, figures and cards show it. Default: its name and three decimals.
        per_class: (logits, labels, head -> class names, config) -> head -> {"average_precision", "positives"}.
        answer: (config, logits [views, ...], top_k=) -> {name of a row: [{"label", "score"}, ...]}, as predict.py prints it. With
            `takes_text` it takes `texts=` too, the questions.
        takes_text: models answer questions about a clip, which the processor takes as `text=`.
        pipeline: its entry in `auto.PIPELINES`; None where the task has no pipeline.
        hub_task: the Hub's name of the task (`pipeline_tag`); None for no tag.
        title: the task's name for people, in lower case.
        describe_labels: (config, source of the names or None) -> what a model card says of the labels.
        transform: `module:Class` inside `data/` that makes a sample of a row: `ClipTransform` or a class derived from it.
        collator: `module:Class` inside `data/` that makes a batch of samples: `AVCollator` or a class derived from it. Its
            `for_model(config)` is for evaluation, and with augmentations for training. Tensors that it adds, [B, ...], are
            passed to the model by their names.
        dataset_categories: values of `Benchmark.task` -> the Hub's category of such data sets (`task_categories`).
        plain_recipe: fields of the `Recipe` that training starts from without a published one, where they differ from those for
            classification.
    """

    name: str
    heads: tuple[str, ...]
    auto_class: type
    title: str
    needs: str = ""
    benchmark_tasks: tuple[str, ...] = ()
    selects: Callable[[PreTrainedConfig], bool] = lambda config: True
    config_fields: Callable[[datasets.Features, Sequence[str], Any], dict[str, Any]] = (
        lambda features, columns, config: {}
    )
    check_fields: Callable[[PreTrainedConfig, Mapping[str, Any], str], None] = check_equal_fields
    report_fields: tuple[str, ...] = ()
    choose_columns: Callable[[PreTrainedConfig, Mapping[str, str], Mapping[str, Any]], tuple[str, ...]] = (
        lambda config, kinds, features: ()
    )
    borrowed_kinds: tuple[str, ...] = ()
    read_labels: Callable[[Sequence[str], Mapping[str, Any]], RowLabels] = lambda columns, fields: RowLabels()
    processor_fields: Callable[[Any], dict[str, Any]] = lambda trained: {}
    check_rows: Callable[[Any, Any], None] = lambda processor, rows: None
    class_names: Callable[[datasets.Features, Sequence[str]], dict[str, tuple[str, ...]]] = lambda features, columns: {}
    class_heads: Callable[[PreTrainedConfig], dict[str, int]] = lambda config: {}
    needed_modalities: tuple[str, ...] = ()
    whole_clip: bool = False
    has_timeline: bool = False
    check_aggregation: Callable[[str, PreTrainedConfig, bool], None] = lambda aggregation, config, labels_decide: None
    join_views: Callable[..., torch.Tensor] | None = None
    loss: Callable[..., torch.Tensor] | None = None
    reduce: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
    metrics: Callable[..., dict[str, float]] | None = None
    metric_inputs: tuple[str, ...] = ()
    metric_names: Callable[[PreTrainedConfig], set[str] | None] = lambda config: None
    report_names: Callable[[Mapping[str, float], PreTrainedConfig], dict[str, float]] = lambda metrics, config: dict(
        metrics
    )
    headline: tuple[str, ...] = ()
    show_metric: Callable[[str], ShownMetric] = lambda name: ShownMetric(name.replace("_", " "))
    per_class: Callable[..., dict[str, dict[str, list]]] = lambda logits, labels, classes, config: {}
    answer: Callable[..., dict[str, list[dict[str, Any]]]] | None = None
    takes_text: bool = False
    pipeline: PipelineEntry | None = None
    hub_task: str | None = None
    describe_labels: Callable[[PreTrainedConfig, str | None], str] = lambda config, source: (
        "This checkpoint has no labels."
    )
    transform: str = "transforms:ClipTransform"
    collator: str = "collating:AVCollator"
    dataset_categories: Mapping[str, str] = field(default_factory=dict)
    plain_recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transform_class(self) -> type:
        """The class that `transform` names."""
        return load_reference(f"data.{self.transform}")

    @property
    def collator_class(self) -> type:
        """The class that `collator` names."""
        return load_reference(f"data.{self.collator}")

    def solves(self, class_name: str, config: Any) -> bool:
        """Whether a model of this class with this configuration is for this task."""
        return class_name.endswith(self.heads) and self.selects(config)
