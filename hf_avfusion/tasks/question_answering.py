"""Question answering: one of a fixed list of answers to a question about a clip, as in MUSIC-AVQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..auto import AUDIO_VISUAL_QUESTION_ANSWERING, AutoModelForAudioVisualQuestionAnswering
from ..files import markdown_cell
from ..metrics.question_answering import question_answering_accuracy
from ..models.shared.losses_classification import classification_loss
from ..processing.answers import name_questions
from ..processing.question_words import QuestionWords
from .classification import CLASS_FIELDS, SHOWN_LABELS, ClassLabels, class_fields, class_names
from .task import ShownMetric, Task, check_equal_fields

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig

LEVELS = " / "  # between the levels of a type, such as "Audio-Visual / Counting"


class QuestionLabels(ClassLabels):
    """The answer to the question of a row, long []; to each of several questions, long [questions].

    Args:
        columns: the one column of answers: a class number, or a list of one for each question.
        with_types: rows have a column `question_type`, in the same form.
    """

    def __init__(self, columns: Sequence[str] | str = ("answer",), with_types: bool = False):
        super().__init__(columns)
        if len(self.columns) != 1:
            raise ValueError(f"question answering has one column of answers, got {self.columns}")
        self.with_types = with_types

    def __call__(self, row: Mapping[str, Any]) -> torch.Tensor:
        return self._numbers(row, self._values(row)[0])

    def question_types(self, row: Mapping[str, Any]) -> torch.Tensor | None:
        """The numbers of the types of the questions, in the shape of the labels; None without types."""
        if not self.with_types:
            return None
        if "question_type" not in row:
            raise ValueError(f"clip {row['clip_id']} has no column 'question_type'; its columns are: {', '.join(row)}")
        return self._numbers(row, row["question_type"])

    def _numbers(self, row: Mapping[str, Any], value: Any) -> torch.Tensor:
        self._check_numbers(value if isinstance(value, (list, tuple)) else [value], row)
        return torch.tensor(value)


def answer_fields(features: datasets.Features, columns: Sequence[str], config: Any = None) -> dict[str, Any]:
    """As `classification.class_fields`, of one column of answers; with `question_types`, the names of the types of questions.

    Raises:
        ValueError: as there, for several columns, and for rows without questions.
    """
    if len(columns) != 1:
        raise ValueError(
            f"question answering has one column of answers, got {', '.join(columns)}: pass one as label_columns= (--label_columns)"
        )
    if "question" not in features:
        raise ValueError(
            f"question answering needs a column `question`, but the columns are {', '.join(features)}: choose data with questions"
        )
    import datasets

    fields = class_fields(features, columns)
    kind = features.get("question_type")
    kind = kind.feature if isinstance(kind, datasets.List) else kind
    types = list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    return {**fields, "problem_type": "single_label_classification", "question_types": types}


def check_answer_fields(config: Any, fields: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if the clips have types of questions, but others than the model. Without types there is one score."""
    own, types = getattr(config, "question_types", None), fields.get("question_types")
    if types is not None and own is not None:
        check_equal_fields(
            config, {name: fields[name] for name in fields.keys() - {*CLASS_FIELDS, "question_types"}}, where
        )
        if list(own) != list(types):
            raise ValueError(
                f"the model's types of questions are {', '.join(own)}, but {where} has {', '.join(types)}: remove the column "
                "question_type for one score of all questions"
            )


def question_words(trained: Any) -> dict[str, Any]:
    """Vocabulary and length of questions for a new processor: the published ones of the benchmark, else of the training rows."""
    if trained.question_words is not None:
        return QuestionWords(trained.question_words).to_dict()
    return QuestionWords.from_questions(trained.read_column("question")).to_dict()


def check_questions(processor: Any, rows: Any) -> None:
    """Raises ValueError for a question that the processor cannot encode."""
    for question in dict.fromkeys(rows.read_column("question")):
        try:
            processor.encode_questions(question)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{rows.title}, split {rows.split}: {error}") from error


def one_view(logits: torch.Tensor, labels: torch.Tensor | None, aggregation: str, config: Any) -> torch.Tensor:
    """[clips, 1 view, (questions,) answers] -> [clips, (questions,) answers]; the model sees the whole clip in one view."""
    if logits.shape[1] != 1:
        raise ValueError(f"Expected one view of each whole clip in question answering, got {logits.shape[1]}.")
    return logits[:, 0]


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Cross-entropy of the answers, float32 [clips]; over the questions of a clip, their mean."""
    kind = "single_label_classification"
    losses = classification_loss(logits.flatten(0, -2), labels.flatten(), kind)
    return losses.reshape(len(labels), -1).mean(dim=1)


def type_levels(name: str) -> tuple[str, ...]:
    """The levels of a type: "Audio-Visual / Counting" has two, "counting" has one."""
    return tuple(level.strip() for level in name.split(LEVELS))


def answer_metrics(
    logits: torch.Tensor, labels: torch.Tensor, config: Any, question_types: torch.Tensor | None = None
) -> dict[str, float]:
    """MUSIC-AVQA's table: accuracy `overall`, and of each type of question (`Audio-Visual`, `Audio-Visual/Counting`, ...).

    Args:
        logits: float [..., answers]. labels: long [...], -100 where there is no question.
        question_types: long [...], numbers of `config.question_types`; without them there is only `overall`.
    """
    answers, names = labels.flatten(), getattr(config, "question_types", None)
    if question_types is None or not names:
        levels = [("all",)] * len(answers)
    else:
        of_types = [type_levels(name) for name in names]
        levels = [of_types[max(number, 0)] for number in question_types.flatten().tolist()]  # -1: no question
    found = question_answering_accuracy(logits.flatten(0, -2).numpy(), answers.numpy(), levels)
    return {name: value for name, value in found.items() if name != "all"}


def answer_metric_names(config: Any) -> set[str]:
    levels = [type_levels(name) for name in getattr(config, "question_types", None) or ()]
    return {"overall", *("/".join(each[:depth]) for each in levels for depth in range(1, len(each) + 1))}


def show_answer_metric(name: str) -> ShownMetric:
    if name == "overall":
        return ShownMetric("accuracy", axis="accuracy of answers", percent=True, hub="accuracy")
    return ShownMetric(name, axis=f"accuracy of answers, {name}", percent=True)


def describe_answers(config: PreTrainedConfig, source: str | None) -> str:
    """The answers, the first `SHOWN_LABELS` by name, and the types of questions."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    if names == [f"LABEL_{index}" for index in range(len(names))]:
        return f"{len(names)} answers, whose names are not stated."
    shown = ", ".join(f"`{markdown_cell(name)}`" for name in names[:SHOWN_LABELS])
    more = f" and {len(names) - SHOWN_LABELS} more (`id2label` in `config.json`)" if len(names) > SHOWN_LABELS else ""
    lines = [f"{len(names)} answers, one for each question: {shown}{more}."]
    if types := getattr(config, "question_types", None):
        lines.append(f"Types of questions: {', '.join(f'`{markdown_cell(name)}`' for name in types)}.")
    return "\n\n".join([*lines, f"Source of the names: {source or 'not stated.'}"])


QUESTION_ANSWERING = Task(
    name="question_answering",
    heads=("ForQuestionAnswering",),
    auto_class=AutoModelForAudioVisualQuestionAnswering,
    title="audio-visual question answering",
    needs="an answer to a question",
    benchmark_tasks=("question answering",),
    config_fields=answer_fields,
    check_fields=check_answer_fields,
    choose_columns=lambda config, kinds, features: ("answer",),
    read_labels=lambda columns, fields: QuestionLabels(columns, with_types=bool(fields.get("question_types"))),
    processor_fields=question_words,
    check_rows=check_questions,
    class_heads=lambda config: {"answer": config.num_labels},
    class_names=class_names,
    whole_clip=True,
    join_views=one_view,
    loss=answer_loss,
    metrics=answer_metrics,
    metric_inputs=("question_types",),
    metric_names=answer_metric_names,
    headline=("overall",),
    show_metric=show_answer_metric,
    answer=name_questions,
    takes_text=True,
    pipeline=AUDIO_VISUAL_QUESTION_ANSWERING,
    hub_task=AUDIO_VISUAL_QUESTION_ANSWERING.name,
    describe_labels=describe_answers,
    transform="questions:QuestionTransform",
    collator="questions:QuestionCollator",
    dataset_categories={"question answering": "visual-question-answering"},
    # No augmentation, as published: a flip would change the answer to a question about the left side.
    plain_recipe={
        "architecture": "lavish",
        "frame_augmentation": None,
        "spec_augment": None,
        "window": {"num_segments": 10},
        "collator": {"negatives": True},
    },
)
