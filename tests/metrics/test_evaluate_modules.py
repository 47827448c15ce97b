"""The `evaluate` modules load without a network, take batches, and equal the plain functions."""

import socket
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from hf_avfusion.metrics import classification, clustering, question_answering
from hf_avfusion.metrics.evaluate_modules import METRICS
from hf_avfusion.metrics.evaluate_modules.mean_average_precision import MeanAveragePrecision
from hf_avfusion.metrics.evaluate_modules.top_k_accuracy import TopKAccuracy
from hf_avfusion.metrics.segmentation import segmentation_scores

RNG = np.random.default_rng(0)
CLIPS = 23
HEADS = {"verb": 3, "noun": 5}
TYPES = ['["Audio", "Counting"]', '["Audio-Visual", "Location"]', "plain"]


def scores(*shape):
    return RNG.normal(size=(CLIPS, *shape)).astype(np.float32)


def masks():
    drawn = RNG.random((CLIPS, 5, 8, 6)) < 0.4
    drawn[2] = drawn[5, 1] = False
    return drawn.astype(np.float32)


def segmentation(predictions, references):
    result = segmentation_scores(predictions, references)
    without = len(result.videos_without_object)
    names = ("miou", "f_score", "empty_frames")
    return {**{name: getattr(result, name) for name in names}, "videos_without_object": without}


# name: (options, inputs, result of the plain function)
CASES = {
    "top_k_accuracy": (
        {"k": (1, 3)},
        {"predictions": scores(9), "references": RNG.integers(0, 9, CLIPS)},
        lambda predictions, references: classification.top_k_accuracies(predictions, references, (1, 3)),
    ),
    "mean_average_precision": (
        {},
        {"predictions": scores(6), "references": np.eye(7, dtype=np.float32)[RNG.integers(0, 5, CLIPS), :6]},
        lambda predictions, references: classification.multi_label_metrics(predictions, references),
    ),
    "multi_head_accuracy": (
        {"class_splits": HEADS},
        {"predictions": scores(8), "references": RNG.integers(0, 3, (CLIPS, 2))},
        lambda predictions, references: classification.multi_head_accuracies(predictions, references, HEADS),
    ),
    "event_localization_accuracy": (
        {},
        {"predictions": scores(10, 29), "references": RNG.integers(0, 29, (CLIPS, 10))},
        lambda predictions, references: {
            "accuracy": classification.event_localization_accuracy(predictions, references)
        },
    ),
    "segmentation": (
        {"shape": (5, 8, 6)},
        {"predictions": scores(5, 8, 6), "references": masks()},
        segmentation,
    ),
    "question_answering_accuracy": (
        {},
        {
            "predictions": scores(4),
            "references": RNG.integers(0, 4, CLIPS),
            "question_types": [TYPES[index % 3] for index in range(CLIPS)],
        },
        lambda predictions, references, question_types: question_answering.question_answering_accuracy(
            predictions, references, question_types
        ),
    ),
    "clustering": (
        {},
        {"predictions": RNG.integers(0, 4, CLIPS), "references": RNG.integers(0, 3, CLIPS)},
        lambda predictions, references: clustering.clustering_scores(references, predictions)._asdict(),
    ),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` without network access and without writing into the user's caches."""

    def refuse(*arguments):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)

    def load_one(name, **options):
        return evaluate.load(METRICS[name], cache_dir=str(tmp_path / "cache"), **options)

    return load_one


def test_every_module_is_tested():
    assert set(METRICS) == set(CASES)


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == pytest.approx(second[name], rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize("tensors", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_batches_equal_the_plain_function(name, tensors, load):
    options, inputs, function = CASES[name]
    metric = load(name, **options)
    if tensors:
        inputs = {
            key: torch.from_numpy(values) if isinstance(values, np.ndarray) else values
            for key, values in inputs.items()
        }
    expected = function(**CASES[name][1])
    for start, stop in ((0, 8), (8, 22), (22, CLIPS)):
        metric.add_batch(**{key: values[start:stop] for key, values in inputs.items()})
    result = metric.compute()
    equal(result, expected)
    equal(metric.compute(**inputs), expected)  # all at once; `compute` has emptied the metric
    assert all(isinstance(value, (int, float)) for value in result.values())  # must fit into a JSON report
    assert Path(METRICS[name]).stem == name


def test_one_clip_at_a_time(load):
    options, inputs, function = CASES["top_k_accuracy"]
    metric = load("top_k_accuracy", **options)
    for prediction, reference in zip(inputs["predictions"], inputs["references"]):
        metric.add(prediction=prediction, reference=reference)
    equal(metric.compute(), function(**inputs))


def test_combined(load):
    _, inputs, _ = CASES["top_k_accuracy"]
    both = evaluate.combine([load("top_k_accuracy", k=(1,)), load("top_k_accuracy", k=(3,))])
    for start in range(0, CLIPS, 10):
        both.add_batch(**{key: values[start : start + 10] for key, values in inputs.items()})
    equal(both.compute(), classification.top_k_accuracies(*inputs.values(), k=(1, 3)))

    named = evaluate.combine({"a": load("top_k_accuracy", k=(1,)), "b": load("top_k_accuracy", k=(1,))})
    assert set(named.compute(**inputs)) == {"a_top1", "b_top1"}


def test_classes_work_without_evaluate_load(tmp_path):
    _, inputs, function = CASES["mean_average_precision"]
    metric = MeanAveragePrecision(per_class=True, cache_dir=str(tmp_path))
    result = metric.compute(**inputs)
    per_class = result.pop("average_precision")
    equal(result, function(**inputs))
    assert per_class == pytest.approx(
        classification.average_precision_per_class(*inputs.values()).tolist(), nan_ok=True
    )
    assert np.isnan(per_class[5])  # no clip has that class
    assert "logits or probabilities" in metric.inputs_description


def test_videos_with_different_numbers_of_frames(load):
    _, inputs, _ = CASES["segmentation"]
    cut = {name: [video[: 1 + index % 5] for index, video in enumerate(values)] for name, values in inputs.items()}
    metric = load("segmentation", shape=(None, 8, 6), empty_videos="skip")
    for index in range(CLIPS):
        metric.add(prediction=cut["predictions"][index], reference=cut["references"][index])
    result, expected = metric.compute(), segmentation_scores(*cut.values(), empty_videos="skip")
    assert (result["miou"], result["f_score"]) == (expected.miou, expected.f_score)


def test_half_precision_logits(tmp_path):
    """The metric stores half-precision logits exactly, as float32."""
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).half()
    metric = TopKAccuracy(cache_dir=str(tmp_path))
    metric.add_batch(predictions=logits, references=torch.arange(6) % 4)
    assert metric.compute() == classification.top_k_accuracies(logits.float(), np.arange(6) % 4)


@pytest.mark.parametrize(
    ("name", "options", "inputs", "message"),
    [
        ("mean_average_precision", {}, (np.zeros((2, 3)), np.full((2, 3), 0.5)), "0 or 1"),
        ("segmentation", {"shape": (1, 2, 2)}, (np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), 0.5)), "must be 0 or 1"),
        ("top_k_accuracy", {}, (np.zeros((2, 3)), [0, 3]), "there are 3 classes"),
        ("top_k_accuracy", {}, (np.zeros((2, 3)), [0.9, 1]), "references must be whole numbers below .*, got 0.9"),
        ("multi_head_accuracy", {"class_splits": HEADS}, (np.zeros((1, 8)), [[0.5, 1]]), "got 0.5"),
        ("event_localization_accuracy", {}, (np.zeros((1, 2, 3)), [[0, 1.5]]), "got 1.5"),
        ("clustering", {}, ([2**24, 2**24 + 1], [0, 1]), "predictions must be whole numbers below"),
        ("clustering", {}, (np.array([0.2, 1]), [0, 1]), "predictions must be whole numbers below .*, got 0.2"),
        ("event_localization_accuracy", {}, (np.zeros((2, 4, 3)), np.zeros((2, 5), int)), "seconds"),
    ],
)
def test_invalid_values_raise(name, options, inputs, message, load):
    predictions, references = inputs
    with pytest.raises(ValueError, match=message):
        load(name, **options).compute(predictions=predictions, references=references)
