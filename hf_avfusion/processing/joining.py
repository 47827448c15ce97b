"""Logits of the views of a clip to logits of the clip: the published ways of joining views.

The result stands where the logits of a single view would: softmax (of each head) or sigmoid turns it into probabilities, and
every metric takes it as it is.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch

Aggregation = Literal["mean_logits", "mean_probabilities", "max_logits"]


def check_aggregation_name(name: str) -> None:
    if name not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}, got {name!r}.")


def mean_probabilities(
    logits: torch.Tensor, *, multi_label: bool = False, class_splits: Mapping[str, int] | None = None
) -> torch.Tensor:
    """Logits of the mean of the views' probabilities (MMT, 5 views; UCF101, 10 x 3 views).

    Published as the sum of the views' soft-max scores, which orders classes alike.

    Args:
        logits: float `[clips, views, classes]`.
        multi_label: probabilities are sigmoids of each class, not a softmax over classes.
        class_splits: sizes of heads, each with a softmax of its own; the classes are the heads concatenated.

    Returns:
        `[clips, classes]`: log of the mean softmax, or the log-odds of the mean sigmoid; computed from logarithms, so
        that probabilities near 0 and 1 keep their order.

    Raises:
        ValueError: heads that do not add up to the classes, or heads and `multi_label` together.
    """
    if class_splits is not None:
        if multi_label:
            raise ValueError("class_splits are heads with a softmax each: leave out multi_label.")
        if sum(class_splits.values()) != logits.shape[-1]:
            raise ValueError(
                f"Heads {dict(class_splits)} do not add up to the {logits.shape[-1]} classes of the logits."
            )
        heads = logits.split(list(class_splits.values()), dim=-1)
        return torch.cat([mean_probabilities(head) for head in heads], dim=-1)
    views = math.log(logits.shape[1])
    if multi_label:
        log_yes = torch.nn.functional.logsigmoid(logits).logsumexp(dim=1) - views
        log_no = torch.nn.functional.logsigmoid(-logits).logsumexp(dim=1) - views
        return log_yes - log_no
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - views


def aggregate_views(
    logits: torch.Tensor,
    aggregation: Aggregation = "mean_logits",
    *,
    multi_label: bool = False,
    class_splits: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """Joins the logits of views, float `[clips, views, classes]` -> `[clips, classes]`.

    Args:
        aggregation: "mean_logits", before any softmax or sigmoid (MBT and AV-MAE, 4 views); "mean_probabilities" (see the
            function); "max_logits", the best view of each class (Charades). For classes with a sigmoid each, the last is the
            maximum of the probabilities too; for a softmax it is not.
        multi_label, class_splits: see `mean_probabilities`.

    Raises:
        ValueError: an unknown name, another shape, no views, or the maximum over views of anything but multi-label
            scores.
    """
    check_aggregation_name(aggregation)
    if logits.dim() != 3 or logits.shape[1] == 0:
        raise ValueError(f"Expected logits [clips, views, classes] with at least one view, got {tuple(logits.shape)}.")
    if aggregation == "mean_logits":
        return logits.mean(dim=1)
    if aggregation == "mean_probabilities":
        return mean_probabilities(logits, multi_label=multi_label, class_splits=class_splits)
    if not multi_label:
        raise ValueError(
            "aggregation='max_logits' is for multi-label scores (sigmoids); views of single-label clips are averaged."
        )
    return logits.amax(dim=1)
