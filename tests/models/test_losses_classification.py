"""Labels of -100 do not count in any classification loss."""

import pytest
import torch
from equality import assert_same_bits

from hf_avfusion import MBTConfig, MBTForAudioVisualClassification
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.models.shared.losses_classification import classification_loss

SPLITS = {"verb": 3, "noun": 2}
LABELS = {
    "single_label_classification": torch.tensor([1, 4, 0, 2]),
    "multi_head_classification": torch.tensor([[1, 0], [2, 1], [0, 0], [2, 1]]),
    "multi_label_classification": torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]]),
    "regression": torch.linspace(-1, 1, 20).reshape(4, 5),
}


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_samples_leave_the_mean_of_the_others(problem_type, smoothing):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = LABELS[problem_type]
    if problem_type in ("multi_label_classification", "regression"):
        labels = labels.float()

    def loss(rows: list[int], labels: torch.Tensor) -> torch.Tensor:
        return classification_loss(logits[rows], labels[rows], problem_type, smoothing, SPLITS).mean()

    expected = loss([0, 2], labels)
    (gradient,) = torch.autograd.grad(expected, logits)
    ignored = labels.clone()
    ignored[[1, 3]] = -100
    found = loss([0, 1, 2, 3], ignored)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient)
    assert loss([1, 3], ignored) == 0


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_head_classification"])
def test_ignored_rows_of_probabilities_leave_the_mean_of_the_others(problem_type):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = (
        torch.eye(5)[:3]
        if problem_type == "single_label_classification"
        else torch.eye(5)[:3] + torch.eye(5)[[3, 4, 3]]
    )
    expected = classification_loss(logits[:2], labels[:2], problem_type, 0.1, SPLITS).mean()
    labels[2] = -100
    found = classification_loss(logits, labels, problem_type, 0.1, SPLITS).mean()
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found, logits)[0][2].abs().max() == 0


def test_a_head_can_be_ignored_alone():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0], [2, -100], [0, 1]])
    found = classification_loss(logits, labels, "multi_head_classification", class_splits=SPLITS).mean()
    verb = torch.nn.functional.cross_entropy(logits[:, :3], labels[:, 0])
    noun = torch.nn.functional.cross_entropy(logits[[0, 2], 3:], labels[[0, 2], 1])
    torch.testing.assert_close(found, (verb + noun) / 2)


def test_a_model_averages_over_the_clips_that_count():
    config = MBTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, num_frames=2,
        spectrogram_length=16, num_mel_bins=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MBTForAudioVisualClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    inputs = {"pixel_values": torch.rand(3, 2, 3, 16, 16), "input_features": torch.rand(3, 16, 16)}
    for training in (False, True):
        model.train(training)
        alone = model(**{name: value[:1] for name, value in inputs.items()}, labels=torch.tensor([1])).loss
        torch.testing.assert_close(model(**inputs, labels=torch.tensor([1, -100, -100])).loss, alone)


SINGLE, MULTI, HEADS = "single_label_classification", "multi_label_classification", "multi_head_classification"
NO_SUCH_CLASS = "`labels` hold {}, but its class numbers are 0..4 .* `config.num_labels`"
WRONG = [
    (SINGLE, [0, 5, -100], NO_SUCH_CLASS.format(5)),
    (SINGLE, [0, -1, -100], NO_SUCH_CLASS.format(-1)),
    (SINGLE, [[0.5, 1.5, 0, 0, 0]], r"hold 1.5, but targets of single_label_classification lie in \[0, 1\]"),
    (MULTI, [[0.0, 1, 2, 0, 0]], r"hold 2, but targets of multi_label_classification lie in \[0, 1\]"),
    (MULTI, [[0, 1, -1, 0, 0]], "hold -1, but targets"),
    (MULTI, [[0, 1, float("nan"), 0, 0]], "hold nan, but targets"),
    (HEADS, [[2, 1], [0, 2]], "of the head noun hold 2, but its class numbers are 0..1 .* `config.class_splits`"),
]


@pytest.mark.parametrize(("problem_type", "labels", "message"), WRONG)
def test_wrong_values_raise_in_the_loss_and_in_the_collator(problem_type, labels, message):
    labels, splits = torch.tensor(labels), SPLITS if problem_type == HEADS else None
    with pytest.raises(ValueError, match=message):
        classification_loss(torch.zeros(len(labels), 5), labels, problem_type, 0.0, splits)
    config = MBTConfig(num_labels=5, problem_type=problem_type, **({"class_splits": splits} if splits else {}))
    samples = [{"pixel_values": torch.zeros(1), "labels": row} for row in labels]
    with pytest.raises(ValueError, match=message):
        AVCollator.for_model(config)(samples)
    with pytest.raises(ValueError, match=message):
        AVCollator.for_model(config, mixup_alpha=0.5)(samples)


@pytest.mark.parametrize("problem_type", [SINGLE, HEADS, MULTI])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8])
def test_integers_of_any_type_are_labels(problem_type, dtype):
    labels, logits = LABELS[problem_type], torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    expected = classification_loss(logits, labels, problem_type, 0.1, SPLITS)
    assert_same_bits(classification_loss(logits, labels.to(dtype), problem_type, 0.1, SPLITS), expected)
    batch = AVCollator()([{"pixel_values": torch.zeros(1), "labels": row} for row in labels.to(dtype)])
    assert batch["labels"].dtype == torch.int64


def test_targets_of_a_regression_are_not_checked():
    samples = [{"pixel_values": torch.zeros(1), "labels": labels} for labels in (7, -3)]
    assert AVCollator(num_labels=1)(samples)["labels"].tolist() == [7, -3]
