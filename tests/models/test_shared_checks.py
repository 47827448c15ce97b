"""Checks of configs and inputs that stand once in `models/shared/`: every architecture gives the same error."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_avfusion import (
    AVMAEConfig,
    AVMAEForPreTraining,
    AVMAEModel,
    MBTConfig,
    MBTForAudioVisualClassification,
    MBTModel,
)

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
INPUTS = {"image_size": 16, "patch_size": 8, "num_frames": 4, "num_mel_bins": 16, "spectrogram_length": 16}


def errors(call) -> list[str]:
    found = []
    for config_class, model_class in ((MBTConfig, MBTModel), (AVMAEConfig, AVMAEModel)):
        with pytest.raises((ValueError, StrictDataclassError), match=r"\S") as raised:
            call(config_class, model_class)
        found.append(str(raised.value))
    return found


@pytest.mark.parametrize("field", ["spectrogram_length", "num_mel_bins"])
def test_spectrogram_smaller_than_a_patch(field):
    first, second = errors(lambda config, model: config(**{**SIZES, **INPUTS, field: 4}))
    assert "smaller than one patch" in first
    assert first == second
    for config in (MBTConfig, AVMAEConfig):
        assert config(**{**SIZES, **INPUTS, field: 4}, modalities=("video",)).modalities == ("video",)


@pytest.mark.parametrize("name", ["pixel_values", "input_features", "modality_mask"])
@pytest.mark.parametrize("value", [np.zeros((1, 4, 3, 16, 16), np.float32), [[0.0]]])
def test_inputs_that_are_no_tensors(name, value):
    given = {"pixel_values": torch.zeros(1, 4, 3, 16, 16), name: value}
    for config_class, model_class in ((MBTConfig, MBTModel), (AVMAEConfig, AVMAEModel)):
        message = rf'`{name}` is a {type(value).__name__}, but the model takes torch tensors.* return_tensors="pt"'
        with pytest.raises(TypeError, match=message):
            model_class(config_class(**SIZES, **INPUTS))(**given)


def test_labels_and_masks_that_are_no_tensors():
    inputs = {"pixel_values": torch.zeros(1, 4, 3, 16, 16), "input_features": torch.zeros(1, 16, 16)}
    model = MBTForAudioVisualClassification(MBTConfig(**SIZES, **INPUTS, num_labels=3))
    with pytest.raises(TypeError, match="`labels` is a list, but the model takes torch tensors"):
        model(**inputs, labels=[1])
    model = AVMAEForPreTraining(AVMAEConfig(**SIZES, **INPUTS))
    with pytest.raises(TypeError, match="`video_mask` is a ndarray, but the model takes torch tensors"):
        model(**inputs, video_mask=np.zeros((1, 4)))


@pytest.mark.parametrize("shape", [(1, 6, 3, 16, 16), (1, 4, 3, 16, 24), (4, 3, 16, 16), (1, 2, 4, 3, 16, 16)])
def test_frames_of_another_shape(shape):
    first, second = errors(lambda config, model: model(config(**SIZES, **INPUTS))(torch.zeros(shape)))
    assert f"[B, 4, 3, 16, 16] for this model, got {shape}" in first
    assert first == second
