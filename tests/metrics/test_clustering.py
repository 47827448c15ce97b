"""Clustering scores against hand-worked cases, counted pairs and recorded cases; k-means on separate groups."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from hf_avfusion.metrics.clustering import clustering_scores, kmeans_clusters


def independent_clustering(labels, clusters):
    """Computes the Rand index by counting pairs, adjusted by its expectation, and the homogeneity from entropies."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    same_label = np.array([labels[i] == labels[j] for i, j in pairs])
    same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
    both, expected = (same_label & same_cluster).sum(), same_label.sum() * same_cluster.sum() / len(pairs)
    ari = (both - expected) / ((same_label.sum() + same_cluster.sum()) / 2 - expected)

    def entropy(values):
        shares = np.array(list(Counter(values).values())) / len(values)
        return -(shares * np.log(shares)).sum()

    joint = entropy(list(zip(labels, clusters)))
    return ari, 1 - (joint - entropy(clusters)) / entropy(labels)


def test_clustering_by_hand_and_by_pairs():
    # Pairs with equal labels: 01 02 12 34; with equal clusters: 01 23 24 34; with both: 01 34; 10 pairs.
    # Expected 4 * 4 / 10 = 1.6, so the index is (2 - 1.6) / (4 - 1.6) = 1/6.
    scores = clustering_scores([0, 0, 0, 1, 1], [5, 5, 2, 2, 2])
    assert scores.ari == pytest.approx(1 / 6)
    assert clustering_scores([0, 0, 1, 1], [3, 3, 7, 7]) == (1.0, 1.0)
    assert clustering_scores([0, 0, 1, 1], [0, 1, 2, 3]).homogeneity == pytest.approx(
        1.0
    )  # pure clusters, but several per class

    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 40)
    clusters = np.where(rng.random(40) < 0.6, labels, rng.integers(0, 6, 40))
    assert clustering_scores(labels, clusters) == pytest.approx(
        independent_clustering(labels.tolist(), clusters.tolist())
    )


# The first recorded case of MMT (../shared/goldens/mmt/metrics.json), one digit per clip.
RECORDED_LABELS = "330243323241412104244120023402324143342040030432120141114300"
RECORDED_CLUSTERS = "430243143242412104241040421432322143312022035454120101104350"


def test_recorded_clustering():
    scores = clustering_scores([int(digit) for digit in RECORDED_LABELS], [int(digit) for digit in RECORDED_CLUSTERS])
    assert scores == pytest.approx((0.34951364501889115, 0.4896771160917107), abs=1e-12)


def test_all_recorded_clusterings(shared):
    cases = json.loads((shared / "goldens" / "mmt" / "metrics.json").read_text())["clustering"]
    assert len(cases) == 4
    for case in cases:
        scores = clustering_scores(case["labels"], case["clusters"])
        assert scores == pytest.approx((case["ari"], case["homogeneity"]), abs=1e-12)


def test_kmeans_finds_separate_groups_and_is_reproducible():
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(4), 15)
    features = 10 * np.eye(4)[labels] + rng.normal(size=(60, 4))
    clusters = kmeans_clusters(features, 4, seed=1)
    assert clustering_scores(labels, clusters) == (1.0, 1.0)
    noise = rng.normal(size=(60, 8))
    assert (kmeans_clusters(noise, 5, seed=2) == kmeans_clusters(noise, 5, seed=2)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clustering_scores([0, 1], [0, 1, 1]), "integer labels and clusters"),
        (lambda: clustering_scores([0.0, 1.0], [0, 1]), "float64"),
        (lambda: kmeans_clusters(np.zeros((3, 2)), 4), "num_clusters=4"),
        (lambda: kmeans_clusters(np.full((3, 2), np.nan), 2), "3 of 3 clips"),
    ],
)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
