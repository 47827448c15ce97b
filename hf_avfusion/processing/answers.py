"""Logits of a clip to labels with scores: the answers of the pipeline, of predict.py and of explanations."""

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
) -> dict[str, Labels]:
    """The best labels of each head.

    Args:
        config: of the model: `id2label`, `class_splits`, `problem_type`.
        logits: float [views, classes] of one clip.
        top_k: labels per head; None gives all.
        aggregation: what is averaged over views, one of `AGGREGATIONS`.
        function: one of `FUNCTIONS`; by default sigmoid for several labels per clip and softmax of each head otherwise.

    Returns:
        `{head: [{"label": str, "score": float}, ...]}`, best first.
    """
    function = function or _BY_PROBLEM.get(config.problem_type, "softmax")
    answers = {}
    for head, columns in head_slices(config).items():
        how = "mean_logits" if function == "none" else aggregation  # numbers that are no logits have no probabilities
        (scores,) = aggregate_views(logits[None, :, columns], how, multi_label=function == "sigmoid")
        if function != "none":
            scores = scores.softmax(dim=-1) if function == "softmax" else scores.sigmoid()
        best = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist())
        answers[head] = [{"label": config.id2label[columns.start + index], "score": score} for index, score in pairs]
    return answers


def localize(config: PreTrainedConfig, logits: torch.Tensor, **options: Any) -> list[dict[str, Labels]]:
    """The best labels of each segment of a clip, in the order of time: `classify` for each (event localisation).

    Args:
        logits: float [views, segments, classes] of one clip.
        options: of `classify`.
    """
    return [classify(config, segment, **options) for segment in logits.unbind(dim=1)]
