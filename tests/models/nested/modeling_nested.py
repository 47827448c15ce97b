"""Model of the test architecture: the mean of the streams' pooled features, and a linear head."""

from itertools import pairwise

import torch
from torch import nn
from transformers import AutoModel

from ..shared.bounded_model import BoundedPreTrainedModel
from ..shared.layers_vit import init_marked_layer, with_init
from ..shared.two_streams import AudioVisualClassifierOutput, StreamClassifier, check_inputs, spectrogram_planes
from .configuration_nested import NestedConfig


class NestedForAudioVisualClassification(StreamClassifier, BoundedPreTrainedModel):
    """The only model; `base_model_prefix` names its video stream."""

    config_class = NestedConfig
    base_model_prefix = "video"
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: NestedConfig):
        super().__init__(config)
        audio, self.pre_logits = config.audio_config, None
        self.video = AutoModel.from_config(config.video_config)
        widths = [audio.num_mel_bins, *[audio.hidden_size] * audio.num_hidden_layers]
        self.audio = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
        self.to_video = nn.Linear(audio.hidden_size, config.video_config.hidden_size)
        self.classifier = with_init(nn.Linear(config.video_config.hidden_size, config.num_labels), "head")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_marked_layer(module, head_bias=self.config.classifier_bias_init)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> AudioVisualClassifierOutput:
        """pixel_values [B, T, C, H, W], input_features [B, time, mel] -> logits [B, num_labels]."""
        check_inputs(self.config, pixel_values, input_features, modality_mask)
        streams = []
        if pixel_values is not None:
            tokens = self.video(pixel_values.flatten(0, 1)).last_hidden_state
            streams.append(tokens.mean(dim=1).unflatten(0, pixel_values.shape[:2]).mean(dim=1))
        if input_features is not None:
            rows = self.audio(spectrogram_planes(self.config.audio_config, input_features)[:, 0])
            streams.append(self.to_video(rows.mean(dim=1)))
        logits = self._head(sum(streams) / len(streams))
        return AudioVisualClassifierOutput(
            loss=self._stream_loss({"clip": logits, "video": None, "audio": None}, labels, None, None), logits=logits
        )


__all__ = ["NestedForAudioVisualClassification"]
