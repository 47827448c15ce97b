"""Clustering: adjusted Rand index and homogeneity, and k-means clusters of features."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ClusteringScores(NamedTuple):
    """Agreement of clusters with labels; both scores are 1.0 for a perfect clustering with any numbering of clusters."""

    ari: float  # adjusted Rand index, in [-0.5, 1]; its expectation for random clusters is 0
    homogeneity: float  # 1 - H(label | cluster) / H(label), in [0, 1]; 1 if every cluster has a single class


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> ClusteringScores:
    """Computes adjusted Rand index and homogeneity of clusters, with scikit-learn's definitions.

    MMT reports both on VGGSound's test clips.

    Args:
        labels: integer `[clips]`, the true classes.
        clusters: integer `[clips]`, the cluster of each clip; the numbers need not match the classes.

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
    """Clusters clips with k-means on their features (the classifier's input), for `clustering_scores`.

    MMT does not say how its clusters are made. We use k-means with as many clusters as classes.

    Args:
        features: float `[clips, dim]`.
        num_clusters: at most the number of clips.
        seed: seed of the ten starts; the clustering with the lowest inertia is returned.

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
