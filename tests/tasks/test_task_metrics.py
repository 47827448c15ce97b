"""The metrics of a task, as trainer and evaluate.py report them: which ones, and that they are the plain functions'."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_avfusion.metrics.classification import (
    d_prime,
    mean_average_precision,
    multi_label_metrics,
    roc_auc_per_class,
    top_k_accuracy,
)
from hf_avfusion.tasks import task_of_class


def metrics(logits: np.ndarray, labels: np.ndarray, config: SimpleNamespace) -> dict[str, float]:
    task = task_of_class("MBTForAudioVisualClassification", config)
    return task.metrics(torch.from_numpy(logits), torch.from_numpy(labels), config)


def test_metrics_follow_the_configuration():
    logits = np.random.default_rng(3).normal(size=(24, 8))
    single = SimpleNamespace(problem_type=None, class_splits=None)
    labels = np.arange(24) % 8
    assert metrics(logits, labels, single) == {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
    }
    assert set(metrics(logits[:, :4], labels % 4, single)) == {"top1"}

    targets = np.eye(8)[labels]
    targets[:, 5] = 0
    multi = metrics(logits, targets, SimpleNamespace(problem_type="multi_label_classification"))
    areas = roc_auc_per_class(logits, targets)
    assert multi["map"] == mean_average_precision(logits, targets).value
    assert multi["classes_without_positives"] == 1
    assert multi["d_prime"] == pytest.approx(d_prime(np.nanmean(areas)))
    assert multi == multi_label_metrics(logits, targets)
    # Where every clip has every class that occurs there is a mAP but no ROC curve.
    assert multi_label_metrics(logits, targets[:1].repeat(24, axis=0)) == {
        "map": pytest.approx(1.0),
        "classes_without_positives": 7,
    }

    heads = SimpleNamespace(class_splits={"shape": 4, "sound": 4})
    result = metrics(logits, np.stack([labels % 4, labels // 4], axis=1), heads)
    assert set(result) == {"top1_shape", "top1_sound", "top1_joint", "top5_joint"}

    seconds = SimpleNamespace(num_segments=3, class_splits=None)
    logits = logits.reshape(8, 3, 8)
    assert metrics(logits, logits.argmax(-1), seconds) == {"accuracy": 1.0}


def test_segments_with_other_labels_than_one_class_have_the_metrics_of_these():
    generator = np.random.default_rng(4)
    logits, multi = generator.normal(size=(8, 3, 4)), np.eye(4)[generator.integers(0, 4, (8, 3))]
    rows = {"num_segments": 3, "num_labels": 4}
    several = SimpleNamespace(**rows, problem_type=None)
    assert metrics(logits, multi, several) == multi_label_metrics(logits.reshape(24, 4), multi.reshape(24, 4))
    numbers = SimpleNamespace(**rows, problem_type="regression")
    assert metrics(logits, multi, numbers)["mae"] == pytest.approx(np.abs(logits - multi).mean())
    heads = SimpleNamespace(**rows, class_splits={"shape": 2, "sound": 2})
    found = metrics(logits, np.zeros((8, 3, 2), dtype=np.int64), heads)
    for config, names in ((several, {"map", "accuracy"}), (numbers, {"mse", "mae"}), (heads, set(found))):
        task = task_of_class("MBTForAudioVisualClassification", config)
        assert names <= task.metric_names(config)


@pytest.mark.parametrize("kind", ["single", "heads", "segments", "multi"])
def test_labels_of_minus_100_count_in_no_metric(kind):
    generator = np.random.default_rng(5)
    logits, absent = generator.normal(size=(24, 8)), np.arange(24) % 3 == 0
    labels, config = generator.integers(0, 8, 24), SimpleNamespace(problem_type=None, class_splits=None, num_labels=8)
    classes = {"label": [str(number) for number in range(8)]}
    if kind == "heads":
        labels, config.class_splits = np.stack([labels % 4, labels // 2], axis=1), {"shape": 4, "sound": 4}
        classes = {"shape": classes["label"][:4], "sound": classes["label"][:4]}
    elif kind == "segments":
        logits, labels, config.num_segments = logits[:, None].repeat(2, axis=1), labels[:, None].repeat(2, axis=1), 2
    elif kind == "multi":
        labels, config.problem_type = np.eye(8)[labels] + np.eye(8)[::-1][labels], "multi_label_classification"
    ignored = labels.copy()
    ignored[absent] = -100
    task = task_of_class("MBTForAudioVisualClassification", config)
    assert metrics(logits, ignored, config) == metrics(logits[~absent], labels[~absent], config)
    found, expected = (
        task.per_class(torch.from_numpy(scores), torch.from_numpy(targets), classes, config)
        for scores, targets in ((logits, ignored), (logits[~absent], labels[~absent]))
    )
    assert str(found) == str(expected)  # as text, since NaN is not equal to NaN
    with pytest.raises(ValueError, match=r"-100|no class has a positive clip"):
        metrics(logits, np.full_like(ignored, -100), config)


def test_a_head_without_a_label_leaves_the_joint_accuracy_without_its_clip():
    logits, labels = (
        np.random.default_rng(3).normal(size=(24, 8)),
        np.stack([np.arange(24) % 4, np.arange(24) // 6], axis=1),
    )
    heads = SimpleNamespace(class_splits={"shape": 4, "sound": 4})
    labels[::2, 0] = -100
    found, complete = metrics(logits, labels, heads), metrics(logits[1::2], labels[1::2], heads)
    sound = top_k_accuracy(logits[:, 4:], labels[:, 1])
    assert found == {**complete, "top1_sound": sound}
    labels[1::2, 1] = -100
    assert set(metrics(logits, labels, heads)) == {"top1_shape", "top1_sound"}
