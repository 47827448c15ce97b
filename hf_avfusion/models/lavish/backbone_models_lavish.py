"""
The backbones of LAVISH: transformers' own models, without pooling layers, whose embeddings also take spectrograms.

They record no hidden states and attentions of their own, since each of their layers runs once per stream.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetModel,
    Swinv2Model,
    VideoMAEModel,
    ViTModel,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Encoder
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ..shared.configuration_shared import as_pair
from ..shared.layers_vit import refill_buffer
from .backbones_lavish import resample_positions


class _StreamEmbeddings:
    """Mixin for the embeddings of a ViT: with `positions`, they take a spectrogram, whose grid of patches may be another."""

    def forward(
        self, pixel_values: torch.Tensor, *args: Any, positions: str | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """[N, C, H, W] -> tokens [N, n, d], CLS first. `positions`: None for frames, or how positions are resampled."""
        if positions is None:
            return super().forward(pixel_values, *args, **kwargs)
        kernel = as_pair("patch_size", self.patch_embeddings.patch_size)
        own = tuple(side // step for side, step in zip(self.patch_embeddings.image_size, kernel))
        wanted = tuple(side // step for side, step in zip(pixel_values.shape[-2:], kernel))
        tokens = torch.cat(
            [self.cls_token.expand(pixel_values.shape[0], -1, -1), self.patch_embeddings(pixel_values)], dim=1
        )
        return self.dropout(tokens + resample_positions(self.position_embeddings, own, wanted, positions))


class ViTStreamEmbeddings(_StreamEmbeddings, ViTEmbeddings):
    """Of a ViT."""


class Dinov2StreamEmbeddings(_StreamEmbeddings, Dinov2Embeddings):
    """Of DINOv2."""


class StreamViTModel(ViTModel):
    """A ViT for both streams."""

    _can_record_outputs = {}

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = ViTStreamEmbeddings(config)
        self.post_init()


class StreamDinov2Encoder(Dinov2Encoder):
    """The layers of DINOv2."""

    _can_record_outputs = {}


class StreamDinov2Model(Dinov2Model):
    """DINOv2 for both streams, without a mask token."""

    _can_record_outputs = {}

    def __init__(self, config: PreTrainedConfig):
        config.use_mask_token = False  # it would be a parameter that nothing uses
        super().__init__(config)
        self.embeddings, self.encoder = Dinov2StreamEmbeddings(config), StreamDinov2Encoder(config)
        self.post_init()


class StreamSwinv2Model(Swinv2Model):
    """Swin-V2 for both streams."""

    _can_record_outputs = {}

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config, add_pooling_layer=False)
        for module in self.modules():
            if isinstance(module, Swinv2SelfAttention):
                module.register_load_state_dict_post_hook(_compute_coordinates)


def _compute_coordinates(module: Swinv2SelfAttention, _) -> None:
    """Fills the tables of relative positions, which a state dict does not hold, after it was loaded."""
    with torch.device("cpu"):
        table, index = module.create_coords_table_and_index()
    refill_buffer(module, "relative_coords_table", table)
    refill_buffer(module, "relative_position_index", index)


class StreamVideoMAEModel(VideoMAEModel):
    """VideoMAE for both streams."""

    _can_record_outputs = {}


class StreamResNetModel(ResNetModel):
    """A ResNet for both streams."""

    _can_record_outputs = {}


BACKBONE_MODELS: dict[str, type[PreTrainedModel]] = {
    "vit": StreamViTModel,
    "dinov2": StreamDinov2Model,
    "swinv2": StreamSwinv2Model,
    "videomae": StreamVideoMAEModel,
    "resnet": StreamResNetModel,
}


def make_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """The backbone of a config, with random weights. Raises ValueError if transformers cannot build it."""
    model_class = BACKBONE_MODELS[config.model_type]
    if not model_class._supports_sdpa:  # its attention has one implementation, whatever is asked for the others
        config._attn_implementation = "eager"
    try:
        return model_class(config)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"`backbone_config` gives no {config.model_type}: {type(error).__name__}: {error}. The config file may be corrupt."
        ) from error


def without_unused_parts(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a backbone's state dict that this module has. Pooling layers and mask tokens are not used."""
    wanted = module.state_dict()
    unused = ("pooler.", "embeddings.mask_token")
    dropped = [name for name in state if name not in wanted and not name.startswith(unused)]
    missing = [name for name in wanted if name not in state]
    if dropped or missing:
        raise ValueError(f"The backbone has no tensors for {missing}, and the model has no parameters for {dropped}.")
    return {name: state[name] for name in wanted}


__all__ = ["BACKBONE_MODELS", "make_backbone", "without_unused_parts"]
