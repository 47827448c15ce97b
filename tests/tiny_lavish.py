"""Tiny two-stream models, one per backbone, for the tests of models and adapters."""

from typing import Any

import torch
from transformers import Dinov2Config, PreTrainedConfig, ResNetConfig, Swinv2Config, VideoMAEConfig, ViTConfig

from hf_avfusion.media.modalities import INPUT_MODALITIES
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.modeling_lavish import LavishForAudioVisualClassification
from hf_avfusion.models.shared.vggish import EXAMPLE_SHAPE

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
SPREAD = 0.5  # of initial weights: with less, tokens are so alike that latents and queries change next to nothing
SEGMENTS = {"num_segments": 2, "spectrogram_length": 24, "num_mel_bins": 40}

# Name -> config of the backbone, fields of the two-stream config.
BACKBONES: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    "vit": (
        ViTConfig(**VIT, intermediate_size=48, layer_norm_eps=1e-6),
        {**SEGMENTS, "spectrogram_length": 26, "drop_remainder": True},
    ),
    "swinv2": (
        Swinv2Config(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[2, 1],
            num_heads=[2, 4],
            window_size=4,
            drop_path_rate=0.0,
            initializer_range=SPREAD,
        ),
        {**SEGMENTS, "spectrogram_length": 32, "num_mel_bins": 32},
    ),
    "dinov2": (Dinov2Config(**VIT, mlp_ratio=2), {**SEGMENTS, "audio_positions": "2d"}),
    "videomae": (
        VideoMAEConfig(**VIT, intermediate_size=48, num_frames=4, initializer_range=SPREAD),
        {**SEGMENTS, "num_segments": None},
    ),
    "resnet": (
        ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
        {**SEGMENTS, "image_size": 32, "spectrogram_length": 33},
    ),
}
ADAPTER = {"num_tokens": 2, "reduction": 4}
# VGGish beside the streams: sizes of the published layout, and the head that it needs.
VGGISH = {
    "vggish": True,
    "vggish_channels": (2, 3, 4, 4, 5, 6),
    "vggish_hidden_size": 7,
    "vggish_feature_size": 8,
    "classifier_hidden_size": None,
}


def tiny_config(backbone: str = "vit", **fields: Any) -> LavishTwoStreamConfig:
    config, own = BACKBONES[backbone]
    config = type(config)(**config.to_dict())
    sizes = {"backbone_config": config, "num_labels": 5, "classifier_hidden_size": 6}
    return LavishTwoStreamConfig(**{**sizes, **own, **fields})


def tiny_segmentation(**fields: Any) -> LavishTwoStreamConfig:
    """Four stages of Swin-V2, masks of 32 x 32, and TPAVI, so that every parameter of both streams has a gradient."""
    backbone = Swinv2Config(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
        initializer_range=SPREAD,
    )
    decoder = {
        "mask_size": 32,
        "decoder_map_widths": [8, 8, 8, 8],
        "decoder_width": 40,
        "decoder_head_widths": [16, 16],
    }
    tpavi = {"tpavi_stages": [0, 1, 2, 3], "tpavi_audio_width": 16}
    adapter = {"num_tokens": 2, "reduction": 4, "use_bn": False}
    sizes = {"num_segments": 2, "spectrogram_length": 64, "num_mel_bins": 64}
    return LavishTwoStreamConfig(
        **{"backbone_config": backbone, "adapter": adapter, **sizes, **decoder, **tpavi, **fields}
    )


def tiny_questions(backbone: str = "vit", **fields: Any) -> LavishTwoStreamConfig:
    """A head for questions of 7 words, on two segments."""
    adapter = {**ADAPTER, "use_bn": False} if backbone == "swinv2" else ADAPTER
    sizes = {"vocab_size": 7, "question_hidden_size": 64, "num_labels": 24, "question_dropout": 0.0}
    return tiny_config(backbone, adapter=adapter, **{**sizes, **fields})


def tiny_model(
    backbone: str = "vit", kind: type = LavishForAudioVisualClassification, perturbed: bool = True, **fields: Any
) -> LavishForAudioVisualClassification:
    """In evaluation mode. `perturbed`: with gates and BatchNorm that are not at their initial values."""
    torch.manual_seed(0)
    model = kind(tiny_config(backbone, **fields)).eval()
    if perturbed:
        perturb(model)
    return model


@torch.no_grad()
def perturb(model: torch.nn.Module, names: tuple[str, ...] = ("",)) -> None:
    """Adds noise to the parameters, and moves the statistics of BatchNorm, whose names contain one of `names`."""
    for name, parameter in model.named_parameters():
        if any(each in name for each in names):
            parameter.add_(0.2 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if any(each in name for each in names) and name.endswith(("running_mean", "running_var")):
            buffer.add_(0.2 * torch.rand_like(buffer))


def tiny_inputs(model: torch.nn.Module, batch: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shapes = {"pixel_values": (config.num_frames, 3, *config.image_hw), "input_features": config.spectrogram_hw}
    if config.num_segments is not None:
        shapes["input_features"] = (config.num_segments, *config.spectrogram_hw)
    if config.vggish:
        shapes["vggish_features"] = (config.num_segments, *EXAMPLE_SHAPE)
    return {
        name: torch.randn(batch, *shape, generator=generator)
        for name, shape in shapes.items()
        if INPUT_MODALITIES[name] in config.modalities
    }
