"""Metrics of audio-visual models as plain functions, and the function that picks them for the Trainer.

Scores are logits or probabilities, `float [clips, classes]`; every function says which of the two it needs where it
matters. scikit-learn is imported when a function that needs it is first called. Masks have a module of their own,
`segmentation`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Rows of the joint table [clips, product of all head sizes] held at once: Epic-Kitchens has 97 x 300 actions per clip.
_JOINT_TABLE_CELLS = 16_000_000


class ClusteringScores(NamedTuple):
    """How well clusters agree with labels; both are 1.0 for a perfect clustering, whatever the clusters' numbers."""

    ari: float  # adjusted Rand index, in [-0.5, 1]; 0 is expected of random clusters
    homogeneity: float  # 1 - H(label | cluster) / H(label), in [0, 1]; 1 where every cluster holds a single class


class MeanAveragePrecision(NamedTuple):
    """Macro mean of the per-class average precisions, and which classes it could not include."""

    value: float
    per_class: NDArray[np.float64]  # [classes], NaN where the class has no positive clip
    classes_without_positives: list[int]


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Share of clips whose label is among the `k` highest scores.

    Equal scores are ranked by class index, the lower first, as `argmax` does; so a model that gives every class the
    same score is not credited with a hit.

    Args:
        scores: float `[clips, classes]`, logits or probabilities.
        labels: integer `[clips]`, each in `[0, classes)`.
        k: how many guesses count, at least 1. `k >= classes` gives 1.0.

    Raises:
        ValueError: wrong shapes, no clips, labels out of range, or scores that are NaN.
    """
    scores, labels = _scores_and_labels(scores, labels)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    return float((_rank_of_label(scores, labels) < k).mean())


def top_k_accuracies(scores: ArrayLike, labels: ArrayLike, k: Sequence[int] = (1, 5)) -> dict[str, float]:
    """`{"top1": ..., "top5": ...}`; a k above 1 that reaches all classes says nothing and is left out.

    Arguments and errors as `top_k_accuracy`.
    """
    classes = _check_scores(scores).shape[1]
    return {f"top{each}": top_k_accuracy(scores, labels, each) for each in k if each <= 1 or each < classes}


def average_precision_per_class(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Average precision of each class, scikit-learn's definition (MBT and AudioSet evaluation use it).

    Args:
        scores: float `[clips, classes]`; only their order within a class matters.
        targets: `[clips, classes]` of 0 and 1.

    Returns:
        float64 `[classes]`; NaN for a class without a positive clip, for which the measure is undefined.

    Raises:
        ValueError: wrong shapes, no clips, targets other than 0 and 1, or scores that are NaN or infinite.
    """
    from sklearn.metrics import average_precision_score

    scores, targets = _scores_and_targets(scores, targets)
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(targets.any(axis=0)):
        values[index] = average_precision_score(targets[:, index], scores[:, index])
    return values


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> MeanAveragePrecision:
    """Macro mAP over the classes that have a positive clip; the others are listed, not counted as 0.

    Arguments and errors as `average_precision_per_class`; additionally a ValueError if no class has a positive clip.
    """
    per_class = average_precision_per_class(scores, targets)
    empty = np.isnan(per_class)
    if empty.all():
        raise ValueError(
            "Mean average precision is undefined: no class has a positive clip. Are these the right labels?"
        )
    return MeanAveragePrecision(float(per_class[~empty].mean()), per_class, np.flatnonzero(empty).tolist())


def roc_auc_per_class(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve of each class, float64 `[classes]`; NaN where positives or negatives are missing.

    Arguments and errors as `average_precision_per_class`.
    """
    from sklearn.metrics import roc_auc_score

    scores, targets = _scores_and_targets(scores, targets)
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0)):
        values[index] = roc_auc_score(targets[:, index], scores[:, index])
    return values


def d_prime(auc: float) -> float:
    """Separation of two unit-variance normal distributions with this ROC area: d' = sqrt(2) * Phi^-1(AUC).

    AudioSet's convention takes the class-averaged AUC. An area of exactly 0 or 1 gives -inf or inf.

    Raises:
        ValueError: `auc` outside [0, 1] or NaN.
    """
    if not 0.0 <= auc <= 1.0:
        raise ValueError(f"An area under the ROC curve lies in [0, 1], got {auc}.")
    if auc in (0.0, 1.0):
        return math.inf if auc == 1.0 else -math.inf
    return math.sqrt(2.0) * NormalDist().inv_cdf(auc)


def multi_label_metrics(scores: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """What AudioSet results are given as: `map`, `auc` and `d_prime`, and `classes_without_positives`, how many classes
    the first leaves out.

    `auc` is the mean over the classes that have a positive and a negative clip, `d_prime` is that of the mean area
    (AV-MAE). Both are absent where no class has a negative clip: no ROC curve exists.

    Arguments and errors as `mean_average_precision`.
    """
    precision = mean_average_precision(scores, targets)
    areas = roc_auc_per_class(scores, targets)
    metrics = {"map": precision.value, "classes_without_positives": len(precision.classes_without_positives)}
    if not np.isnan(areas).all():
        metrics["auc"] = float(np.nanmean(areas))
        metrics["d_prime"] = d_prime(metrics["auc"])
    return metrics


def split_heads(logits: ArrayLike, class_splits: Mapping[str, int]) -> dict[str, NDArray[np.floating]]:
    """Cuts concatenated logits `[clips, sum of sizes]` into `{head: [clips, size]}` in the order of `class_splits`.

    Raises:
        ValueError: the columns do not add up to the head sizes.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] != sum(class_splits.values()):
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} do not hold the heads {dict(class_splits)}: "
            f"expected [clips, {sum(class_splits.values())}]."
        )
    edges = np.cumsum([0, *class_splits.values()])
    return {name: logits[:, edges[i] : edges[i + 1]] for i, name in enumerate(class_splits)}


def multi_head_accuracies(
    logits: ArrayLike, labels: ArrayLike, class_splits: Mapping[str, int], k: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Accuracy of each head, and of all heads together as Epic-Kitchens counts its verb-noun actions.

    The joint score of a combination is the product of its heads' softmax probabilities (the outer product); it is
    ranked here by the sum of log-probabilities, the same order without underflow. `top1_joint` is therefore the
    share of clips with every head right, and `top5_joint` looks for the true combination among the five most
    probable ones.

    Args:
        logits: float `[clips, sum of head sizes]`, heads concatenated in the order of `class_splits`. Logits, not
            probabilities.
        labels: integer `[clips, heads]`.
        class_splits: head name to number of classes.
        k: which top-k accuracies to give; for a head (or the joint table) with at most k classes that k is left out.

    Returns:
        `{"top1_<head>": ..., "top5_<head>": ..., "top1_joint": ..., ...}`.

    Raises:
        ValueError: as `split_heads` and `top_k_accuracy`, labels of another shape, or logits that have no softmax: an
            infinite one, or a head with -inf alone.
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
        if wrong := int(np.isnan(head).any(axis=1).sum()):  # nothing ranks before a NaN: it would count as a hit
            raise ValueError(
                f"Logits of the head {name} are infinite for {wrong} of {len(head)} clips, so they have no softmax: compute "
                "them in float32 or bfloat16."
            )
    ranks = _joint_ranks(list(log_probabilities.values()), labels)
    for each in k:
        if each == 1 or each < math.prod(class_splits.values()):
            results[f"top{each}_joint"] = float((ranks < each).mean())
    return results


def event_localization_accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """AVE's measure: the share of seconds, over all clips, whose best class is the labelled one.

    Background is a class like the others (index 28 of 29 in AVE) and its seconds count, as LAVISH's published evaluation
    has it. Equal scores go to the lower class index.

    Args:
        scores: float `[clips, seconds, classes]`, logits or probabilities.
        labels: integer `[clips, seconds]`, each in `[0, classes)`. AVE's one-hot labels are its `argmax(axis=-1)`.

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


def question_answering_accuracy(
    scores: ArrayLike, answers: ArrayLike, question_types: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """MUSIC-AVQA's table: accuracy over all questions, over those about each modality, and over each type of question.

    Each number is the share of right answers among the questions of its group, so groups with more questions weigh
    more in `overall`; it is not a mean of the columns (as in MUSIC-AVQA's own evaluation).

    Args:
        scores: float `[questions, answers]`, logits or probabilities.
        answers: integer `[questions]`, index of the right answer.
        question_types: one per question: a pair such as `("Audio-Visual", "Counting")`, the same as the JSON text of
            the official files (`'["Audio-Visual", "Counting"]'`), or a plain name for questions of one level.

    Returns:
        `{"overall": ..., "Audio-Visual": ..., "Audio-Visual/Counting": ..., ...}`, sorted after `overall`; only
        groups that have a question.

    Raises:
        ValueError: as `top_k_accuracy`, or another number of types than of questions, or a type that is neither.
    """
    scores, answers = _scores_and_labels(scores, answers)
    if len(question_types) != len(answers):
        raise ValueError(f"Expected a type for each of {len(answers)} questions, got {len(question_types)}.")
    right = _rank_of_label(scores, answers) == 0
    groups: dict[str, list[bool]] = {}
    for question_type, hit in zip(question_types, right):
        levels = _question_levels(question_type)
        for depth in range(1, len(levels) + 1):
            groups.setdefault("/".join(levels[:depth]), []).append(hit)
    return {"overall": float(right.mean()), **{name: float(np.mean(groups[name])) for name in sorted(groups)}}


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> ClusteringScores:
    """Adjusted Rand index and homogeneity of `clusters` against `labels`, scikit-learn's definitions
    (MMT reports both on VGGSound's test clips).

    Args:
        labels: integer `[clips]`, the true classes.
        clusters: integer `[clips]`, the cluster of each clip; the numbers need not match the classes'.

    Raises:
        ValueError: wrong shapes, no clips, or values that are not integers.
    """
    from sklearn.metrics import adjusted_rand_score, homogeneity_score

    labels, clusters = np.asarray(labels), np.asarray(clusters)
    integers = all(np.issubdtype(each.dtype, np.integer) for each in (labels, clusters))
    if labels.ndim != 1 or labels.shape != clusters.shape or len(labels) == 0 or not integers:
        raise ValueError(
            f"Expected integer labels and clusters [clips], got {labels.dtype} {tuple(labels.shape)} and "
            f"{clusters.dtype} {tuple(clusters.shape)}."
        )
    return ClusteringScores(float(adjusted_rand_score(labels, clusters)), float(homogeneity_score(labels, clusters)))


def kmeans_clusters(features: ArrayLike, num_clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """Clusters of clips by k-means on their features (the classifier's input), for `clustering_scores`.

    MMT does not say how its clusters are made; k-means with as many clusters as classes is our choice.

    Args:
        features: float `[clips, dim]`.
        num_clusters: at most the number of clips.
        seed: of the ten starts, of which the tightest clustering is kept.

    Returns:
        int64 `[clips]` in `[0, num_clusters)`.

    Raises:
        ValueError: wrong shape, fewer clips than clusters, or features that are NaN or infinite.
    """
    from sklearn.cluster import KMeans

    features = np.asarray(features)
    if features.ndim != 2 or not 1 <= num_clusters <= len(features):
        raise ValueError(
            f"Expected features [clips, dim] with at least num_clusters={num_clusters} clips, got {tuple(features.shape)}."
        )
    if not np.isfinite(features).all():
        wrong = int((~np.isfinite(features)).any(axis=1).sum())
        raise ValueError(f"Features of {wrong} of {len(features)} clips are NaN or infinite.")
    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(features).astype(np.int64)


def _rank_of_label(scores: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """How many classes come before the label of each row, equal scores in order of class index. `[clips]`"""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def _joint_ranks(log_probabilities: list[NDArray], labels: NDArray) -> NDArray[np.int64]:
    """Rank of the true combination of head classes in the outer product of the heads, a block of rows at a time.
    `[clips]`
    """
    sizes = [head.shape[1] for head in log_probabilities]
    block = max(1, _JOINT_TABLE_CELLS // math.prod(sizes))
    ranks = []
    for start in range(0, len(labels), block):
        rows = slice(start, start + block)
        table = log_probabilities[0][rows]
        for head in log_probabilities[1:]:
            table = (table[:, :, None] + head[rows][:, None, :]).reshape(len(table), -1)
        ranks.append(_rank_of_label(table, np.ravel_multi_index(tuple(labels[rows].T), sizes)))
    return np.concatenate(ranks)


def _question_levels(question_type: str | Sequence[str]) -> tuple[str, ...]:
    """`("Audio", "Counting")` of a pair or its JSON text, `(name,)` of a plain name."""
    levels = question_type
    if isinstance(question_type, str):
        levels = (question_type,)
        if question_type.lstrip().startswith("["):
            try:
                levels = json.loads(question_type)
            except json.JSONDecodeError as error:
                raise ValueError(f"Question type {question_type!r} is no JSON list: {error}.") from error
    if not levels or not all(isinstance(level, str) and level for level in levels):
        raise ValueError(
            f'A question type is a name, a pair of names or the JSON text of one, such as \'["Audio", "Counting"]\'; '
            f"got {question_type!r}."
        )
    return tuple(levels)


def _log_softmax(logits: NDArray) -> NDArray[np.float64]:
    """NaN where there is none: a row with +inf, or of -inf alone."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _check_scores(scores: ArrayLike) -> NDArray[np.floating]:
    scores = np.asarray(scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"Expected scores of shape [clips, classes] with at least one of each, got {tuple(scores.shape)}."
        )
    if np.isnan(scores).any():
        raise ValueError(f"Scores of {int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} clips are NaN.")
    return scores


def _scores_and_labels(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    scores, labels = _check_scores(scores), np.asarray(labels)
    if labels.shape != scores.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"Expected integer labels [{len(scores)}], got {labels.dtype} {tuple(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes.")
    return scores, labels


def _scores_and_targets(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray, NDArray[np.bool_]]:
    scores, targets = _check_scores(scores), np.asarray(targets)
    if targets.shape != scores.shape:
        raise ValueError(f"Scores {tuple(scores.shape)} and targets {tuple(targets.shape)} must have the same shape.")
    if np.isinf(scores).any():  # scikit-learn takes none
        raise ValueError(f"Scores of {int(np.isinf(scores).any(axis=1).sum())} of {len(scores)} clips are infinite.")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("Targets must be 0 or 1 (mixed or smoothed labels have no average precision).")
    return scores, targets.astype(bool)
