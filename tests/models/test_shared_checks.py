"""Checks of configs and inputs that stand once in `models/shared/`: every architecture gives the same error."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_avfusion import AVMAEConfig, AVMAEModel, MBTConfig, MBTModel

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


@pytest.mark.parametrize("shape", [(1, 6, 3, 16, 16), (1, 4, 3, 16, 24), (4, 3, 16, 16), (1, 2, 4, 3, 16, 16)])
def test_frames_of_another_shape(shape):
    first, second = errors(lambda config, model: model(config(**SIZES, **INPUTS))(torch.zeros(shape)))
    assert f"[B, 4, 3, 16, 16] for this model, got {shape}" in first
    assert first == second
