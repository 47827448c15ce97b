"""Each metric against a hand-worked case and an independent formula."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_avfusion.metrics import classification as metrics_module
from hf_avfusion.metrics.classification import (
    average_precision_per_class,
    clustering_scores,
    d_prime,
    event_localization_accuracy,
    kmeans_clusters,
    mean_average_precision,
    multi_head_accuracies,
    question_answering_accuracy,
    roc_auc_per_class,
    split_heads,
    top_k_accuracies,
    top_k_accuracy,
)


def test_top_k_by_hand():
    scores = [[0.1, 0.5, 0.4], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.2, 0.6, 0.2]]
    labels = [2, 0, 0, 2]  # ranks: second, first, second (ties: lower index first), third
    assert top_k_accuracy(scores, labels, 1) == 0.25
    assert top_k_accuracy(scores, labels, 2) == 0.75
    assert top_k_accuracy(scores, labels, 3) == 1.0
    assert top_k_accuracy(scores, labels, 9) == 1.0


def test_top_k_by_name():
    scores = np.random.default_rng(7).normal(size=(30, 6))
    labels = np.arange(30) % 6
    assert top_k_accuracies(scores, labels) == {
        "top1": top_k_accuracy(scores, labels, 1),
        "top5": top_k_accuracy(scores, labels, 5),
    }
    assert set(top_k_accuracies(scores, labels, (1, 3, 6))) == {"top1", "top3"}  # top 6 of 6 says nothing


def test_constant_scores_are_not_credited():
    assert top_k_accuracy(np.zeros((4, 4)), [0, 1, 2, 3], 1) == 0.25


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_top_k_equals_sorting(seed, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (20, 6)).astype(float)  # many ties
    labels = rng.integers(0, 6, 20)
    hits = [label in np.argsort(-row, kind="stable")[:k] for row, label in zip(scores, labels)]
    assert top_k_accuracy(scores, labels, k) == pytest.approx(np.mean(hits))


def independent_average_precision(scores, targets):
    """Mean over the positives of the precision at their place in the ranking (no ties)."""
    ranked = np.asarray(targets)[np.argsort(-np.asarray(scores))]
    places = np.flatnonzero(ranked) + 1
    return np.mean([(index + 1) / place for index, place in enumerate(places)])


def test_average_precision_by_hand():
    # Ranking: positive, negative, positive, negative -> (1/1 + 2/3) / 2.
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    assert average_precision_per_class(scores, [[1], [0], [1], [0]])[0] == pytest.approx((1 + 2 / 3) / 2)


def test_map_leaves_out_and_lists_classes_without_positives():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 5))
    targets = (rng.random((40, 5)) < 0.3).astype(int)
    targets[:, [1, 3]] = 0
    result = mean_average_precision(scores, targets)
    expected = [independent_average_precision(scores[:, c], targets[:, c]) for c in (0, 2, 4)]
    assert result.classes_without_positives == [1, 3]
    assert np.isnan(result.per_class[[1, 3]]).all()
    assert result.per_class[[0, 2, 4]] == pytest.approx(expected)
    assert result.value == pytest.approx(np.mean(expected))


def test_map_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no class has a positive"):
        mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2)))


def test_auc_counts_ordered_pairs():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, (30, 4)).astype(float)
    targets = (rng.random((30, 4)) < 0.4).astype(int)
    targets[:, 2], targets[:, 3] = 1, 0
    values = roc_auc_per_class(scores, targets)
    for index in (0, 1):
        positive, negative = scores[targets[:, index] == 1, index], scores[targets[:, index] == 0, index]
        pairs = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
        assert values[index] == pytest.approx(pairs)
    assert np.isnan(values[2:]).all()


def test_d_prime():
    assert d_prime(0.5) == pytest.approx(0.0, abs=1e-12)
    assert d_prime(0.75) == pytest.approx(0.9539, abs=5e-5)
    # Independent: AUC = Phi(d'/sqrt 2) = (1 + erf(d'/2)) / 2.
    for value in (0.3, 0.9, 0.97):
        assert (1 + math.erf(d_prime(value) / 2)) / 2 == pytest.approx(value)
    assert d_prime(1.0) == math.inf
    assert d_prime(0.0) == -math.inf
    with pytest.raises(ValueError, match="lies in"):
        d_prime(1.2)


def test_heads_are_cut_in_order():
    heads = split_heads(np.arange(10).reshape(2, 5), {"verb": 2, "noun": 3})
    assert heads["verb"].tolist() == [[0, 1], [5, 6]]
    assert heads["noun"].tolist() == [[2, 3, 4], [7, 8, 9]]
    with pytest.raises(ValueError, match="verb"):
        split_heads(np.zeros((2, 6)), {"verb": 2, "noun": 3})


@pytest.mark.parametrize("cells", [16_000_000, 30])
def test_joint_accuracy_is_the_outer_product(cells, monkeypatch):
    monkeypatch.setattr(metrics_module, "_JOINT_TABLE_CELLS", cells)  # 30: many blocks
    rng = np.random.default_rng(2)
    splits = {"verb": 4, "noun": 7}
    logits = rng.normal(size=(50, 11)) * 3
    labels = np.stack([rng.integers(0, 4, 50), rng.integers(0, 7, 50)], axis=1)
    results = multi_head_accuracies(logits, labels, splits)

    top1, top5 = [], []
    for row, (verb, noun) in zip(logits, labels):
        p_verb, p_noun = np.exp(row[:4]), np.exp(row[4:])
        table = np.outer(p_verb / p_verb.sum(), p_noun / p_noun.sum())
        best = np.argsort(-table.ravel())
        top1.append(best[0] == verb * 7 + noun)
        top5.append(verb * 7 + noun in best[:5])
    assert results["top1_joint"] == pytest.approx(np.mean(top1))
    assert results["top5_joint"] == pytest.approx(np.mean(top5))
    assert results["top1_verb"] == pytest.approx((logits[:, :4].argmax(1) == labels[:, 0]).mean())
    both = (logits[:, :4].argmax(1) == labels[:, 0]) & (logits[:, 4:].argmax(1) == labels[:, 1])
    assert results["top1_joint"] == pytest.approx(both.mean())
    assert "top5_verb" not in results  # four classes: always right
    assert "top5_noun" in results


def test_a_class_that_is_ruled_out_has_no_joint_score():
    results = multi_head_accuracies([[-np.inf, 0, 1, 2]], [[1, 1]], {"a": 2, "b": 2})
    assert results["top1_joint"] == 1.0


def test_actions_of_epic_kitchens_by_hand():
    # The recorded case of MMT (../shared/goldens/mmt/metrics.json), worked by hand: verbs predicted 0 1 2 2 (third wrong),
    # nouns predicted 1 0 1 0 (second wrong): half of the actions are right.
    verbs = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.5, 2.0], [0.2, 0.1, 0.3]]
    nouns = [[1.0, 2.0], [3.0, 1.0], [0.0, 0.5], [2.0, 1.0]]
    labels = [[0, 1], [1, 1], [0, 1], [2, 0]]
    results = multi_head_accuracies(np.concatenate([verbs, nouns], axis=1), labels, {"verb": 3, "noun": 2}, k=(1,))
    assert results == {"top1_verb": 0.75, "top1_noun": 0.75, "top1_joint": 0.5}


def test_seconds_of_events_by_hand():
    # Two clips of three seconds, classes: event 0, event 1, background 2.
    scores = np.zeros((2, 3, 3))
    for clip, second, best in ((0, 0, 0), (0, 1, 0), (0, 2, 2), (1, 0, 2), (1, 1, 1), (1, 2, 1)):
        scores[clip, second, best] = 1.0
    labels = [[0, 0, 2], [2, 2, 0]]  # the second clip: background right, then two seconds wrong
    assert event_localization_accuracy(scores, labels) == pytest.approx(4 / 6)
    rng = np.random.default_rng(4)
    scores, labels = rng.normal(size=(7, 10, 29)), rng.integers(0, 29, (7, 10))
    labels[::2] = scores[::2].argmax(axis=-1)
    assert event_localization_accuracy(scores, labels) == (scores.argmax(axis=-1) == labels).mean()


def test_answers_by_question_type_by_hand():
    types = [
        '["Audio", "Counting"]',
        '["Audio", "Comparative"]',
        ("Audio-Visual", "Counting"),
        ["Audio-Visual", "Counting"],
        '["Audio-Visual","Counting"]',
        '["Visual", "Location"]',
    ]
    predicted, answers = [0, 1, 2, 2, 0, 1], [0, 2, 2, 1, 0, 1]  # the second and the fourth are wrong
    results = question_answering_accuracy(np.eye(3)[predicted], answers, types)
    assert results == {
        "overall": pytest.approx(4 / 6),
        "Audio": 0.5,
        "Audio/Comparative": 0.0,
        "Audio/Counting": 1.0,
        "Audio-Visual": pytest.approx(2 / 3),  # "Audio" does not take in "Audio-Visual"
        "Audio-Visual/Counting": pytest.approx(2 / 3),
        "Visual": 1.0,
        "Visual/Location": 1.0,
    }
    assert next(iter(results)) == "overall"
    assert question_answering_accuracy(np.eye(3)[predicted], answers, ["count"] * 6) == {
        "overall": pytest.approx(4 / 6),
        "count": pytest.approx(4 / 6),
    }


def test_official_question_types_are_read(shared):
    rows = json.loads((shared / "benchmarks" / "annotations" / "music_avqa_val.json").read_text())
    types = [row["type"] for row in rows]
    results = question_answering_accuracy(np.ones((len(rows), 1)), np.zeros(len(rows), int), types)
    counts = json.loads((shared / "benchmarks" / "music_avqa.json").read_text())["question_types"]["val"]
    kinds = {name.replace(" / ", "/") for name in counts}
    assert set(results) == {"overall", "Audio", "Visual", "Audio-Visual", *kinds}


def independent_clustering(labels, clusters):
    """Rand index by counting pairs, adjusted by its expectation; homogeneity from the entropies."""
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
    # Pairs alike in labels: 01 02 12 34; in clusters: 01 23 24 34; in both: 01 34; 10 pairs.
    # Expected 4 * 4 / 10 = 1.6, so the index is (2 - 1.6) / (4 - 1.6) = 1/6.
    scores = clustering_scores([0, 0, 0, 1, 1], [5, 5, 2, 2, 2])
    assert scores.ari == pytest.approx(1 / 6)
    assert clustering_scores([0, 0, 1, 1], [3, 3, 7, 7]) == (1.0, 1.0)
    assert clustering_scores([0, 0, 1, 1], [0, 1, 2, 3]).homogeneity == pytest.approx(1.0)  # pure, though scattered

    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 40)
    clusters = np.where(rng.random(40) < 0.6, labels, rng.integers(0, 6, 40))
    assert clustering_scores(labels, clusters) == pytest.approx(
        independent_clustering(labels.tolist(), clusters.tolist())
    )


# The first of the recorded cases of MMT (../shared/goldens/mmt/metrics.json), one digit a clip.
RECORDED_LABELS = "330243323241412104244120023402324143342040030432120141114300"
RECORDED_CLUSTERS = "430243143242412104241040421432322143312022035454120101104350"


def test_recorded_clustering():
    scores = clustering_scores([int(digit) for digit in RECORDED_LABELS], [int(digit) for digit in RECORDED_CLUSTERS])
    assert scores == pytest.approx((0.34951364501889115, 0.4896771160917107), abs=1e-12)


def test_other_recorded_clusterings(shared):
    cases = json.loads((shared / "goldens" / "mmt" / "metrics.json").read_text())["clustering"]
    assert len(cases) == 4
    for case in cases:
        scores = clustering_scores(case["labels"], case["clusters"])
        assert scores == pytest.approx((case["ari"], case["homogeneity"]), abs=1e-12)


def test_kmeans_finds_separate_groups_and_repeats_itself():
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
        (lambda: top_k_accuracy(np.zeros((2, 3)), [0, 3]), "there are 3 classes"),
        (lambda: top_k_accuracy(np.zeros((2, 3)), [0.0, 1.0]), "integer labels"),
        (lambda: top_k_accuracy(np.zeros((0, 3)), np.zeros(0, int)), "at least one"),
        (lambda: top_k_accuracy(np.array([[np.nan, 1.0]]), [0]), "NaN"),
        (lambda: top_k_accuracy(np.zeros((2, 3)), [0, 1], 0), "at least 1"),
        (lambda: average_precision_per_class(np.zeros((2, 3)), np.zeros((3, 2))), "same shape"),
        (lambda: average_precision_per_class(np.zeros((2, 3)), np.full((2, 3), 0.5)), "0 or 1"),
        (lambda: average_precision_per_class([[np.inf, 0.0]], [[1, 0]]), "1 of 1 clips are infinite"),
        (lambda: roc_auc_per_class([[-np.inf, 0.0]], [[1, 0]]), "1 of 1 clips are infinite"),
        (lambda: multi_head_accuracies(np.zeros((2, 5)), np.zeros((2, 3), int), {"a": 2, "b": 3}), "heads"),
        (
            lambda: multi_head_accuracies([[np.inf, 0, 1, 2]], [[1, 0]], {"a": 2, "b": 2}),
            "head a are infinite for 1 of 1",
        ),
        (lambda: multi_head_accuracies([[1, 2, *[-np.inf] * 2]], [[1, 0]], {"a": 2, "b": 2}), "head b are infinite"),
        (lambda: event_localization_accuracy(np.zeros((2, 10, 3)), np.zeros((2, 9), int)), "seconds"),
        (lambda: event_localization_accuracy(np.zeros((2, 10, 3)), np.full((2, 10), 3)), "there are 3 classes"),
        (lambda: question_answering_accuracy(np.zeros((2, 3)), [0, 1], ["count"]), "each of 2 questions, got 1"),
        (lambda: question_answering_accuracy(np.zeros((1, 3)), [0], ['["Audio", "Count']), "no JSON list"),
        (lambda: question_answering_accuracy(np.zeros((1, 3)), [0], [("Audio", None)]), "pair of names"),
        (lambda: clustering_scores([0, 1], [0, 1, 1]), "integer labels and clusters"),
        (lambda: clustering_scores([0.0, 1.0], [0, 1]), "float64"),
        (lambda: kmeans_clusters(np.zeros((3, 2)), 4), "num_clusters=4"),
        (lambda: kmeans_clusters(np.full((3, 2), np.nan), 2), "3 of 3 clips"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
