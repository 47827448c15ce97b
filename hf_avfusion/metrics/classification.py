"""Classification metrics as plain functions.

Scores are logits or probabilities, `float [clips, classes]`; a function that needs one of the two says so. Labels of -100
count in no metric, as in no loss. scikit-learn is imported when a function that needs it is first called.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import IGNORED_LABEL, check_scores, check_scores_and_labels, check_scores_and_targets, rank_of_label

# Cells of the joint table [clips, product of all head sizes] in memory at once: Epic-Kitchens has 97 x 300 actions per clip.
_JOINT_TABLE_CELLS = 16_000_000


class MeanAveragePrecision(NamedTuple):
    """Macro mean of the per-class average precisions, and the classes without positive clips, which it excludes."""

    value: float
    per_class: NDArray[np.float64]  # [classes], NaN where the class has no positive clip
    classes_without_positives: list[int]


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Computes the share of clips whose label is among the `k` highest scores.

    Equal scores are ranked by class index, lowest first, like `argmax`. So a model that gives every class the same score
    gets no credit for that.

    Args:
        scores: float `[clips, classes]`, logits or probabilities.
        labels: integer `[clips]`, each in `[0, classes)`, or -100 for a clip that does not count.
        k: number of guesses, at least 1. `k >= classes` gives 1.0.

    Raises:
        ValueError: wrong shapes, no clips, labels out of range, or scores that are NaN.
    """
    scores, labels = check_scores_and_labels(scores, labels)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    return float((rank_of_label(scores, labels) < k).mean())


def top_k_accuracies(scores: ArrayLike, labels: ArrayLike, k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Computes `{"top1": ..., "top5": ...}`, without any k above 1 that is not less than the number of classes.

    Arguments and errors are those of `top_k_accuracy`.
    """
    classes = check_scores(scores).shape[1]
    return {f"top{each}": top_k_accuracy(scores, labels, each) for each in k if each <= 1 or each < classes}


def average_precision_per_class(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Computes the average precision of each class with scikit-learn's definition, like MBT and AudioSet's evaluation.

    Args:
        scores: float `[clips, classes]`; only their order within a class matters.
        targets: `[clips, classes]` of 0 and 1; an entry of -100 does not count.

    Returns:
        float64 `[classes]`; NaN for a class without positive clips, where average precision is undefined.

    Raises:
        ValueError: wrong shapes, no clips, targets other than 0 and 1, or scores that are NaN or infinite.
    """
    from sklearn.metrics import average_precision_score

    scores, positive, negative = check_scores_and_targets(scores, targets)
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(positive.any(axis=0)):
        counted = positive[:, index] | negative[:, index]
        values[index] = average_precision_score(positive[counted, index], scores[counted, index])
    return values


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> MeanAveragePrecision:
    """Computes the macro mAP over the classes with positive clips; the others are listed, not counted as 0.

    Arguments and errors are those of `average_precision_per_class`; raises ValueError also if no class has positive clips.
    """
    per_class = average_precision_per_class(scores, targets)
    empty = np.isnan(per_class)
    if empty.all():
        raise ValueError("Mean average precision is undefined: no class has a positive clip. Check the labels.")
    return MeanAveragePrecision(float(per_class[~empty].mean()), per_class, np.flatnonzero(empty).tolist())


def roc_auc_per_class(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Computes the area under the ROC curve of each class, float64 `[classes]`.

    It is NaN for a class without positive or without negative clips. Arguments and errors are those of
    `average_precision_per_class`.
    """
    from sklearn.metrics import roc_auc_score

    scores, positive, negative = check_scores_and_targets(scores, targets)
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(positive.any(axis=0) & negative.any(axis=0)):
        counted = positive[:, index] | negative[:, index]
        values[index] = roc_auc_score(positive[counted, index], scores[counted, index])
    return values


def d_prime(auc: float) -> float:
    """Computes d' = sqrt(2) * Phi^-1(AUC), the distance of two unit-variance normal distributions with this ROC area.

    AudioSet's convention uses the class-averaged AUC. An area of exactly 0 or 1 gives -inf or inf.

    Raises:
        ValueError: `auc` outside [0, 1] or NaN.
    """
    if not 0.0 <= auc <= 1.0:
        raise ValueError(f"The area under the ROC curve must lie in [0, 1], got {auc}.")
    if auc in (0.0, 1.0):
        return math.inf if auc == 1.0 else -math.inf
    return math.sqrt(2.0) * NormalDist().inv_cdf(auc)


def multi_label_metrics(scores: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Computes the metrics of AudioSet: `map`, `auc`, `d_prime`, and the number of `classes_without_positives`.

    `map` excludes the classes without positives. `auc` is the mean over the classes with positive and negative clips, and
    `d_prime` is computed from it (AV-MAE). Both are absent if no class has negative clips, since there is no ROC curve.

    Arguments and errors are those of `mean_average_precision`.
    """
    precision = mean_average_precision(scores, targets)
    areas = roc_auc_per_class(scores, targets)
    metrics = {"map": precision.value, "classes_without_positives": len(precision.classes_without_positives)}
    if not np.isnan(areas).all():
        metrics["auc"] = float(np.nanmean(areas))
        metrics["d_prime"] = d_prime(metrics["auc"])
    return metrics


def split_heads(logits: ArrayLike, class_splits: Mapping[str, int]) -> dict[str, NDArray[np.floating]]:
    """Splits concatenated logits `[clips, sum of sizes]` into `{head: [clips, size]}` in the order of `class_splits`.

    Raises:
        ValueError: the columns do not add up to the head sizes.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] != sum(class_splits.values()):
        raise ValueError(
            f"Expected logits of shape [clips, {sum(class_splits.values())}] for the heads {dict(class_splits)}, got "
            f"{tuple(logits.shape)}."
        )
    edges = np.cumsum([0, *class_splits.values()])
    return {name: logits[:, edges[i] : edges[i + 1]] for i, name in enumerate(class_splits)}


def multi_head_accuracies(
    logits: ArrayLike, labels: ArrayLike, class_splits: Mapping[str, int], k: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Computes the accuracy of each head and of all heads together, like Epic-Kitchens' accuracy of verb-noun actions.

    The joint score of a combination is the product of its heads' softmax probabilities (the outer product). It is ranked
    here by the sum of log-probabilities, which gives the same order without underflow. So `top1_joint` is the share of
    clips with every head right, and `top5_joint` the share of clips whose true combination is among the five most probable
    ones.

    Args:
        logits: float `[clips, sum of head sizes]`, heads concatenated in the order of `class_splits`; not probabilities.
        labels: integer `[clips, heads]`; a head of -100 does not count, nor its clip in the joint accuracies.
        class_splits: head name to number of classes.
        k: values of k; a k above 1 is left out for a head (or the joint table) with at most k classes.

    Returns:
        `{"top1_<head>": ..., "top5_<head>": ..., "top1_joint": ..., ...}`, without joint accuracies if no clip has a label of
        every head.

    Raises:
        ValueError: the errors of `split_heads` and `top_k_accuracy`; labels of another shape; or logits without a softmax,
            with an infinite value or only -inf in a head.
    """
    heads = split_heads(logits, class_splits)
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape != (len(np.asarray(logits)), len(heads)):
        raise ValueError(
            f"Expected labels [clips, {len(heads)}] for the heads {list(heads)}, got {tuple(labels.shape)}."
        )

    results = {}
    for column, (name, head_logits) in enumerate(heads.items()):
        for each in k:
            if each == 1 or each < head_logits.shape[1]:
                results[f"top{each}_{name}"] = top_k_accuracy(head_logits, labels[:, column], each)

    log_probabilities = {name: _log_softmax(head) for name, head in heads.items()}
    for name, head in log_probabilities.items():
        if wrong := int(np.isnan(head).any(axis=1).sum()):  # nothing ranks before a NaN, so it would count as a hit
            raise ValueError(
                f"Logits of the head {name} are infinite for {wrong} of {len(head)} clips, so they have no softmax; compute "
                "them in float32 or bfloat16."
            )
    complete = (labels != IGNORED_LABEL).all(axis=1)
    if not complete.any():
        return results
    ranks = _joint_ranks([head[complete] for head in log_probabilities.values()], labels[complete])
    for each in k:
        if each == 1 or each < math.prod(class_splits.values()):
            results[f"top{each}_joint"] = float((ranks < each).mean())
    return results


def event_localization_accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Computes AVE's metric: the share of seconds, over all clips, whose predicted class is the label.

    Background is a class like the others (index 28 of 29 in AVE), and its seconds count, as in LAVISH's published
    evaluation. Of equal scores, the lower class index is predicted.

    Args:
        scores: float `[clips, seconds, classes]`, logits or probabilities.
        labels: integer `[clips, seconds]`, each in `[0, classes)`, or -100 for a second that does not count. For AVE's
            one-hot labels, pass `argmax(axis=-1)`.

    Raises:
        ValueError: wrong shapes, no clips, labels out of range, or scores that are NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 3 or labels.shape != scores.shape[:2]:
        raise ValueError(
            "Expected scores [clips, seconds, classes] and integer labels [clips, seconds], got "
            f"{tuple(scores.shape)} and {tuple(labels.shape)}."
        )
    return top_k_accuracy(scores.reshape(-1, scores.shape[2]), labels.reshape(-1))


def _joint_ranks(log_probabilities: list[NDArray], labels: NDArray) -> NDArray[np.int64]:
    """Returns the rank of the true combination of classes in the outer product of the heads, `[clips]`, block by block."""
    sizes = [head.shape[1] for head in log_probabilities]
    block = max(1, _JOINT_TABLE_CELLS // math.prod(sizes))
    ranks = []
    for start in range(0, len(labels), block):
        rows = slice(start, start + block)
        table = log_probabilities[0][rows]
        for head in log_probabilities[1:]:
            table = (table[:, :, None] + head[rows][:, None, :]).reshape(len(table), -1)
        ranks.append(rank_of_label(table, np.ravel_multi_index(tuple(labels[rows].T), sizes)))
    return np.concatenate(ranks)


def _log_softmax(logits: NDArray) -> NDArray[np.float64]:
    """Log-softmax of each row; NaN if it does not exist: a row with +inf, or with only -inf."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
