"""Argument checks and small computations that several metrics share."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORED_LABEL = -100  # of clips or entries without a label; they count in no metric, as in no loss


def check_scores(scores: ArrayLike) -> NDArray[np.floating]:
    """Returns `scores` as an array; raises ValueError unless it is a non-empty `[clips, classes]` without NaN."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"Expected scores of shape [clips, classes] with at least one of each, got {tuple(scores.shape)}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"Scores of {int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} clips are NaN.")
    return scores


def check_scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Returns both as arrays, without the clips whose label is -100.

    Raises:
        ValueError: `labels` are not integers `[clips]` in `[0, classes)` or -100, or all are -100.
    """
    scores, labels = check_scores(scores), np.asarray(labels)
    if labels.shape != scores.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"Expected integer labels [{len(scores)}], got {labels.dtype} {tuple(labels.shape)}.")
    counted = labels != IGNORED_LABEL
    if not counted.any():
        raise ValueError(f"All {len(labels)} labels are {IGNORED_LABEL} (no label); evaluate clips that have labels.")
    if not counted.all():
        scores, labels = scores[counted], labels[counted]
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes.")
    return scores, labels


def check_scores_and_targets(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray, NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the scores, the positive and the negative entries; an entry of -100 is neither.

    Raises:
        ValueError: `targets` are not 0, 1 or -100, `[clips, classes]`, or a score is infinite.
    """
    scores, targets = check_scores(scores), np.asarray(targets)
    if targets.shape != scores.shape:
        raise ValueError(f"Scores {tuple(scores.shape)} and targets {tuple(targets.shape)} must have the same shape.")
    if np.isinf(scores).any():  # scikit-learn raises for infinite scores
        raise ValueError(f"Scores of {int(np.isinf(scores).any(axis=1).sum())} of {len(scores)} clips are infinite.")
    if not np.isin(targets, (0, 1, IGNORED_LABEL)).all():
        raise ValueError(
            "Targets must be 0 or 1, or -100 for no label (mixed or smoothed labels have no average precision)."
        )
    return scores, targets == 1, targets == 0


def rank_of_label(scores: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """Returns the rank of each clip's label by score, 0 for the best, `[clips]`; equal scores rank by class index."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
