"""A small architecture for the common tests, unlike MBT and AV-MAE: segments and clips right after the batch axis, frames
that are not square, sizes in a nested config per modality, one stream or two, and a head with random initial weights. Its processor
loads two windows of each view.
"""

from math import prod

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hf_avfusion import AutoModelForAudioVisualClassification
from hf_avfusion.models.shared.bounded_model import BoundedPreTrainedModel
from hf_avfusion.models.shared.configuration_shared import ClassifierConfig
from hf_avfusion.models.shared.layers_vit import ViTBlock
from hf_avfusion.models.shared.two_streams import (
    AudioVisualClassifierOutput,
    AudioVisualModelOutput,
    StreamClassifier,
    average_streams,
    check_inputs,
    modality_presence,
    record_both_streams,
    zero_missing,
)
from hf_avfusion.processing.processing_avfusion import AVFusionProcessor

AXES = {
    "pixel_values": ("clips", "frames", "channels", "height", "width"),
    "input_features": ("segments", "time", "mel"),
}


@strict
class SegmentNetStreamConfig(PreTrainedConfig):
    model_type = "segment_net_stream"

    hidden_size: int = 16
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    intermediate_size: int = 24
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-6
    num_clips: int = 3
    num_frames: int = 2
    num_channels: int = 3
    image_size: tuple[int, int] | list[int] = (4, 6)
    num_segments: int = 5
    spectrogram_length: int = 7
    num_mel_bins: int = 4


@strict
class SegmentNetConfig(ClassifierConfig):
    model_type = "segment_net"
    sub_configs_defaults = {"video_config": SegmentNetStreamConfig, "audio_config": SegmentNetStreamConfig}

    video_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    modalities: tuple[str, ...] | list[str] = ("video", "audio")
    readout: str = "stream_mean"

    @property
    def input_axes(self) -> dict[str, tuple[str, ...]]:
        return AXES


class SegmentNetProcessor(AVFusionProcessor):
    """A view is two windows, which follow each other in the clip."""

    input_axes = AXES
    windows_per_view = 2

    def load_clip(self, source, *, num_views=1, **options):
        return super().load_clip(source, num_views=num_views * self.windows_per_view, **options)


class SegmentNetLayer(GradientCheckpointingLayer, ViTBlock):
    pass


class SegmentNetStream(nn.Module):
    """One token per clip or segment: values [B, n, ...] -> [B, n, d]."""

    def __init__(self, config: SegmentNetStreamConfig, shape: tuple[int, ...], message: str):
        super().__init__()
        self.shape, self.message = shape, message
        self.embed = nn.Linear(prod(shape[1:]), config.hidden_size)
        self.layers = nn.ModuleList(SegmentNetLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, values: torch.Tensor, **kwargs) -> torch.Tensor:
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(f"{self.message} must be [B, {self.shape}], got {tuple(values.shape)}.")
        tokens = self.embed(values.flatten(2).to(self.embed.weight.dtype))
        for layer in self.layers:
            tokens, _ = layer(tokens, **kwargs)
        return tokens


class SegmentNetPreTrainedModel(BoundedPreTrainedModel):
    config: SegmentNetConfig
    base_model_prefix = "net"
    main_input_name = "input_features"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SegmentNetLayer, index=0, layer_name="video"),
        "attentions": OutputRecorder(SegmentNetLayer, index=1, layer_name="video"),
        "audio_hidden_states": [
            OutputRecorder(nn.Linear, layer_name="audio.embed"),
            OutputRecorder(SegmentNetLayer, index=0, layer_name="audio"),
        ],
        "audio_attentions": OutputRecorder(SegmentNetLayer, index=1, layer_name="audio"),
    }

    def input_embeddings(self) -> list[nn.Module]:
        return [each.embed for each in (self.base_model.video, self.base_model.audio) if each is not None]


class SegmentNetModel(SegmentNetPreTrainedModel):
    def __init__(self, config: SegmentNetConfig):
        super().__init__(config)
        video, audio = config.video_config, config.audio_config
        self.video = self.audio = None
        if "video" in config.modalities:
            shape = (video.num_clips, video.num_frames, video.num_channels, *video.image_size)
            self.video = SegmentNetStream(video, shape, "`pixel_values` (`num_frames`, `image_size`)")
        if "audio" in config.modalities:
            shape = (audio.num_segments, audio.spectrogram_length, audio.num_mel_bins)
            self.audio = SegmentNetStream(audio, shape, "`input_features` (`spectrogram_length`, `num_mel_bins`)")
        self.post_init()

    @merge_with_config_defaults
    @record_both_streams
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values=None, input_features=None, modality_mask=None, **kwargs) -> AudioVisualModelOutput:
        check_inputs(self.config, pixel_values, input_features, modality_mask)
        if modality_mask is not None:
            pixel_values = zero_missing(pixel_values, modality_mask[:, 0].bool())
            input_features = zero_missing(input_features, modality_mask[:, 1].bool())
        video = None if pixel_values is None else self.video(pixel_values, **kwargs)
        audio = None if input_features is None else self.audio(input_features, **kwargs)
        present = [tokens for tokens in (video, audio) if tokens is not None]
        return AudioVisualModelOutput(
            last_hidden_state=torch.cat(present, dim=1), video_hidden_state=video, audio_hidden_state=audio
        )


class SegmentNetForAudioVisualClassification(StreamClassifier, SegmentNetPreTrainedModel):
    def __init__(self, config: SegmentNetConfig):
        super().__init__(config)
        self.net, self.pre_logits = SegmentNetModel(config), None
        self.classifier = nn.Linear(config.audio_config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values=None, input_features=None, modality_mask=None, labels=None, **kwargs):
        outputs = self.net(pixel_values, input_features, modality_mask, return_dict=True, **kwargs)
        presence = modality_presence(pixel_values, input_features, modality_mask)
        streams = (outputs.video_hidden_state, outputs.audio_hidden_state)
        video, audio = (None if tokens is None else self._head(tokens.mean(dim=1)) for tokens in streams)
        logits = average_streams(video, audio, presence)
        loss = self._stream_loss({"clip": logits, "video": video, "audio": audio}, labels, None, presence)
        recorded = {name: value for name, value in outputs.items() if name.endswith(("hidden_states", "attentions"))}
        return AudioVisualClassifierOutput(loss=loss, logits=logits, video_logits=video, audio_logits=audio, **recorded)


AutoConfig.register(SegmentNetConfig.model_type, SegmentNetConfig, exist_ok=True)
AutoModel.register(SegmentNetConfig, SegmentNetModel, exist_ok=True)
AutoModelForAudioVisualClassification.register(SegmentNetConfig, SegmentNetForAudioVisualClassification, exist_ok=True)
