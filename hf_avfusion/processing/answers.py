"""Logits of a clip to labels with scores: the answers of the pipeline, of predict.py and of explanations."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from .joining import aggregate_views

FUNCTIONS = ("softmax", "sigmoid", "none")
AGGREGATIONS = ("mean_logits", "mean_probabilities")
_BY_PROBLEM = {"multi_label_classification": "sigmoid", "regression": "none"}

Labels = list[dict[str, Any]]


def head_slices(config: PreTrainedConfig) -> dict[str, slice]:
    """The columns of the logits that belong to each head of a classifier; a model with one head calls it "label"."""
    splits = getattr(config, "class_splits", None) or {"label": config.num_labels}
    slices, start = {}, 0
    for head, size in splits.items():
        slices[head] = slice(start, start + size)
        start += size
    return slices


def classify(
    config: PreTrainedConfig,
    logits: torch.Tensor,
    *,
    top_k: int | None = 5,
    aggregation: str = "mean_logits",
    function: str | None = None,
    heads: Sequence[str] | None = None,
) -> dict[str, Labels]:
    """The best labels of each head.

    Args:
        config: of the model: `id2label`, `class_splits`, `problem_type`.
        logits: float [views, classes] of one clip.
        top_k: labels per head; None gives all.
        aggregation: what is averaged over views, one of `AGGREGATIONS`.
        heads: names of the heads to answer for; by default all.
        function: one of `FUNCTIONS`; by default sigmoid for several labels per clip and softmax of each head otherwise.

    Returns:
        `{head: [{"label": str, "score": float}, ...]}`, best first.
    """
    function = function or _BY_PROBLEM.get(config.problem_type, "softmax")
    answers = {}
    for head, columns in head_slices(config).items():
        if heads is not None and head not in heads:
            continue
        how = "mean_logits" if function == "none" else aggregation  # numbers that are not logits have no probabilities
        (scores,) = aggregate_views(logits[None, :, columns], how, multi_label=function == "sigmoid")
        if function != "none":
            scores = scores.softmax(dim=-1) if function == "softmax" else scores.sigmoid()
        best = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist())
        answers[head] = [{"label": config.id2label[columns.start + index], "score": score} for index, score in pairs]
    return answers


def check_segment_views(config: PreTrainedConfig, views: int, argument: str) -> None:
    """Checks that a model can answer from several views of a clip.

    Args:
        argument: name of the argument that sets `views`, for the message.

    Raises:
        ValueError: several views for an event localiser. Its segments are parts of a view, so segments of different views lie at
            different times.
    """
    if views > 1 and getattr(config, "num_segments", None) is not None:
        raise ValueError(
            f"{argument}={views}: the model localises events in the {config.num_segments} segments of one view (num_segments), and "
            f"segments of several views cannot be averaged: pass {argument}=1 or leave it out"
        )


def localize(config: PreTrainedConfig, logits: torch.Tensor, **options: Any) -> list[dict[str, Labels]]:
    """The best labels of each segment of a clip, in the order of time: `classify` for each (event localisation).

    Args:
        logits: float [1 view, segments, classes] of one clip.
        options: of `classify`.

    Raises:
        ValueError: several views.
    """
    check_segment_views(config, len(logits), "views")
    return [classify(config, segment, **options) for segment in logits.unbind(dim=1)]


def name_segments(config: PreTrainedConfig, logits: torch.Tensor, **options: Any) -> dict[str, Labels]:
    """`localize` with a name for each segment (and head): "part 1", or "part 1, verb" for several heads."""
    return {
        f"part {number}" if head == "label" else f"part {number}, {head}": labels
        for number, heads in enumerate(localize(config, logits, **options), start=1)
        for head, labels in heads.items()
    }


def mask_shares(config: PreTrainedConfig, logits: torch.Tensor, *, top_k: int | None = None) -> dict[str, Labels]:
    """The share of the frame that the mask of each segment covers (segmentation), in the order of time.

    Args:
        logits: float [1 view, segments, height, width] of one clip.
        top_k: not used; a segment has one mask.

    Returns:
        `{"part 1": [{"label": "sounding object", "score": share of the pixels}], ...}`. For a segment with an empty mask the label
        is "nothing", and the score 1.
    """
    shares = (logits[0] > 0).flatten(1).float().mean(dim=1).tolist()
    parts = [
        {"label": "sounding object", "score": share} if share else {"label": "nothing", "score": 1.0}
        for share in shares
    ]
    return {f"part {number}": [part] for number, part in enumerate(parts, start=1)}


def answer_clip(config: PreTrainedConfig, logits: torch.Tensor, window: Sequence[float], **options: Any) -> Any:
    """The answer of a pipeline for one clip.

    Args:
        logits: float [views, classes], or [1 view, segments, classes] if the configuration has `num_segments`.
        window: start and end of the view in the clip, s. Only event localisation uses it.
        options: of `classify`.

    Returns:
        The labels, best first; `{head: labels}` for a model with several heads; for an event localiser a list with a dict for
        each segment: `start` and `end` (s) and `labels`, which are one of the former.
    """
    if getattr(config, "num_segments", None) is None:
        return _without_name(classify(config, logits, **options))
    start, end = window
    seconds = (end - start) / config.num_segments
    return [
        {"start": start + i * seconds, "end": start + (i + 1) * seconds, "labels": _without_name(heads)}
        for i, heads in enumerate(localize(config, logits, **options))
    ]


def answer_questions(config: PreTrainedConfig, logits: torch.Tensor, **options: Any) -> list[Labels]:
    """The best answers to each question about a clip, in their order (question answering).

    Args:
        logits: float [1 view, answers] for one question, or [1 view, questions, answers].
        options: of `classify`.

    Raises:
        ValueError: several views.
    """
    if len(logits) != 1:
        raise ValueError(f"Expected one view of the whole clip in question answering, got {len(logits)}.")
    questions = logits.unbind(dim=1) if logits.dim() == 3 else [logits]
    return [classify(config, each, **options)["label"] for each in questions]


def name_questions(
    config: PreTrainedConfig, logits: torch.Tensor, texts: Sequence[str] = (), **options: Any
) -> dict[str, Labels]:
    """`answer_questions` with a name for each question: its text, or without `texts` "question 1", "question 2", ..."""
    answers = answer_questions(config, logits, **options)
    names = texts or [f"question {number}" for number in range(1, len(answers) + 1)]
    return dict(zip(names, answers, strict=True))


def _without_name(heads: dict[str, Labels]) -> Any:
    """The labels of a model with one head, which `head_slices` calls "label"; `{head: labels}` of a model with several."""
    return heads["label"] if list(heads) == ["label"] else heads
