"""Config of the test architecture: a config of this package for audio, and any image backbone of transformers for video."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..shared.configuration_shared import AVFusionConfig, ClassifierConfig

_SIZES = {
    "base": {
        "video_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
        "audio_config": {"hidden_size": 24, "num_hidden_layers": 2},
    }
}


@strict
class NestedAudioConfig(AVFusionConfig):
    """Audio alone: no frames, no labels of its own."""

    model_type = "nested_audio"
    _counts = ("hidden_size", "num_hidden_layers", "num_mel_bins", "num_audio_channels", "spectrogram_length")
    _rates = ("hidden_dropout_prob",)
    _choices = {"pooling": ("mean", "max")}

    hidden_size: int = 16
    num_hidden_layers: int = 1
    num_mel_bins: int = 128
    num_audio_channels: int = 1
    spectrogram_length: int = 800
    hidden_dropout_prob: float | int = 0.0
    pooling: str = "mean"


@strict
class NestedConfig(ClassifierConfig):
    """Both streams."""

    model_type = "nested"
    sub_configs_defaults = {
        "video_config": SubConfigSpec(AutoConfig, model_type="vit"),
        "audio_config": NestedAudioConfig,
    }
    _counts = ("num_frames",)
    _rates = ("label_smoothing",)
    _sizes = _SIZES

    num_frames: int = 8
    modalities: list[str] | tuple[str, ...] = ("video", "audio")
    video_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None

    @classmethod
    def base(cls, **overrides) -> "NestedConfig":
        """The only size."""
        return cls._of_size("base", overrides)


__all__ = ["NestedAudioConfig", "NestedConfig"]
