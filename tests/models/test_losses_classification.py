"""Labels of -100 do not count in any classification loss."""

import pytest
import torch

from hf_avfusion import MBTConfig, MBTForAudioVisualClassification
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
