"""
How a backbone of transformers runs in half steps, so that adapters can act between them: one small class per backbone.

The classes hold no parameters. The backbone is transformers' own model, with its own names of weights; its parts are called one
by one. Without adapters the result is that of the model's own forward, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..shared.configuration_shared import as_pair

if TYPE_CHECKING:  # the config imports this file, and importing models would take seconds
    from transformers import PreTrainedModel

Grid = tuple[int, int]  # rows and columns of tokens
Step = tuple[torch.Tensor, torch.Tensor | None]  # new tokens, attention weights


class BackboneSteps:
    """Base of the classes below. `config` is transformers' config of the backbone."""

    parts: ClassVar[tuple[str, ...]] = ("attn", "mlp")  # the parts of a block; each has a slot
    slot_reads_output: ClassVar[bool] = False  # whether a slot reads the output of its part, not the input
    takes_clips: ClassVar[bool] = False  # whether it takes clips, not single frames
    same_sizes: ClassVar[bool] = False  # whether spectrograms must have the size of the frames
    has_batch_norm: ClassVar[bool] = False  # whether it has running statistics, which stay as they are in training
    audio_first: ClassVar[bool] = False  # order of both streams' features, as published

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @property
    def image_size(self) -> Grid | None:
        """Height and width of the frames, pixels; None for a backbone that takes any."""
        return as_pair("image_size", self.config.image_size)

    @property
    def patch_size(self) -> Grid:
        """Height and width of a patch, pixels."""
        return as_pair("patch_size", self.config.patch_size)

    @property
    def widths(self) -> list[int]:
        """Channels of the tokens in each block."""
        return [self.config.hidden_size] * self.config.num_hidden_layers

    @property
    def stage_ends(self) -> list[int]:
        """The last block of each stage."""
        return [len(self.widths) - 1]

    def grids(self, size: Grid) -> list[Grid]:
        """The grid of the tokens, without a CLS token, before each block. `size`: height and width of the input, pixels."""
        rows, columns = (side // step for side, step in zip(size, self.patch_size))
        return [(rows, columns)] * len(self.widths)

    def stage_grids(self, size: Grid) -> list[Grid]:
        """The grid of the tokens at the end of each stage."""
        grids = self.grids(size)
        return [grids[end] for end in self.stage_ends]

    def projection(self, model: PreTrainedModel) -> nn.Module:
        """The first convolution."""
        return model.embeddings.patch_embeddings.projection

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The layers of the model, one per block."""
        return model.encoder.layer

    def embed(self, model: PreTrainedModel, values: torch.Tensor, positions: str | None) -> torch.Tensor:
        """
        The tokens [N, n, d] before the first block.

        Args:
            values: Frames or spectrograms [N, C, H, W]; clips [N, T, C, H, W] for a backbone that takes them.
            positions: None for frames. For spectrograms it says how positions are resampled, `"1d"` or `"2d"`.
        """
        raise NotImplementedError

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        """One part of a layer, with its own residual connection."""
        raise NotImplementedError

    def downsample(self, model: PreTrainedModel, block: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The tokens before the next block. `grid` is that of the tokens given."""
        return tokens

    def norm(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        return model.layernorm(tokens)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """The feature [N, d] of normalised tokens."""
        return tokens.mean(dim=1)


class ViTSteps(BackboneSteps):
    """An image ViT with a CLS token and learned positions (the paper's ViT variant)."""

    audio_first = True

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return model.layers

    def embed(self, model: PreTrainedModel, values: torch.Tensor, positions: str | None) -> torch.Tensor:
        return model.embeddings(values, positions=positions)

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        if part == "attn":
            attended, weights = layer.attention(layer.layernorm_before(tokens), None, **kwargs)
            return layer.dropout(attended) + tokens, weights
        return layer.dropout(layer.mlp(layer.layernorm_after(tokens))) + tokens, None

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0]


class Dinov2Steps(ViTSteps):
    """DINOv2: a ViT with layer scale and stochastic depth."""

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return model.encoder.layer

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        if part == "attn":
            attended, weights = layer.attention(layer.norm1(tokens), attention_mask=None, **kwargs)
            return layer.drop_path(layer.layer_scale1(attended)) + tokens, weights
        return layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(tokens)))) + tokens, None


class Swinv2Steps(BackboneSteps):
    """Swin Transformer V2 (the paper's Swin variant): spectrograms have the size of the frames."""

    same_sizes = True

    @property
    def widths(self) -> list[int]:
        return _per_block(
            [self.config.embed_dim * 2**stage for stage in range(len(self.config.depths))], self.config.depths
        )

    @property
    def stage_ends(self) -> list[int]:
        return _last_blocks(self.config.depths)

    def grids(self, size: Grid) -> list[Grid]:
        grids = [
            tuple(-(-side // step) for side, step in zip(size, self.patch_size))
        ]  # transformers pads the last patch
        for _ in self.config.depths[1:]:
            grids.append(tuple((side + 1) // 2 for side in grids[-1]))
        return _per_block(grids, self.config.depths)

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return [layer for stage in model.encoder.layers for layer in stage.blocks]

    def embed(self, model: PreTrainedModel, values: torch.Tensor, positions: str | None) -> torch.Tensor:
        return model.embeddings(values)[0]

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        if part == "mlp":
            return tokens + layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(tokens)))), None
        # The attention half of Swinv2Layer.forward, which is no module of its own: windows, shift and mask around `attention`.
        count, _, width = tokens.shape
        size, shift = layer.window_size, layer.shift_size
        image, _ = layer.maybe_pad(tokens.view(count, *grid, width), *grid)
        rows, columns = image.shape[1:3]
        if shift > 0:
            image = torch.roll(image, shifts=(-shift, -shift), dims=(1, 2))
        windows = image.view(count, rows // size, size, columns // size, size, width).transpose(2, 3)
        mask = layer.get_attn_mask(rows, columns, dtype=tokens.dtype, device=tokens.device)
        windows, weights = layer.attention(windows.reshape(-1, size * size, width), mask, output_attentions=True)
        image = windows.view(count, rows // size, columns // size, size, size, width).transpose(2, 3)
        image = image.reshape(count, rows, columns, width)
        if shift > 0:
            image = torch.roll(image, shifts=(shift, shift), dims=(1, 2))
        attended = image[:, : grid[0], : grid[1]].reshape(count, -1, width)
        return tokens + layer.drop_path(layer.layernorm_before(attended)), weights

    def downsample(self, model: PreTrainedModel, block: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        ends = self.stage_ends
        if block not in ends[:-1]:
            return tokens
        return model.encoder.layers[ends.index(block)].downsample(tokens, grid)


class VideoMAESteps(BackboneSteps):
    """VideoMAE: tubelets of a whole clip with fixed positions. The paper has no details of this variant; all is our CHOICE."""

    takes_clips = True
    audio_first = True

    def embed(self, model: PreTrainedModel, values: torch.Tensor, positions: str | None) -> torch.Tensor:
        embeddings = model.embeddings
        if positions is None:
            return embeddings(values, None)
        # A spectrogram has one time step: it is repeated over the frames of a tubelet.
        clip = values.unsqueeze(2).expand(-1, -1, self.config.tubelet_size, -1, -1)
        tokens = embeddings.patch_embeddings.projection(clip).flatten(2).transpose(1, 2)
        own, wanted = self.grids(self.image_size)[0], self.grids(tuple(values.shape[-2:]))[0]
        table = embeddings.position_embeddings.to(tokens)
        if positions == "2d":  # those of the first time step
            table = table[:, : own[0] * own[1]]
        return tokens + resample_positions(table, own, wanted, positions)

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        if part == "attn":
            normed = layer.layernorm_before(tokens)
            attended, weights = layer.attention.attention(normed)
            return layer.attention.output(attended, normed) + tokens, weights
        return layer.output(layer.intermediate(layer.layernorm_after(tokens)), tokens), None

    def norm(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        return tokens if model.layernorm is None else model.layernorm(tokens)


class ResNetSteps(BackboneSteps):
    """
    ResNet, which supplementary section 2 compares without details; all is our CHOICE.

    A slot follows each residual block. Its tokens are the positions of the block's output, and its residuals are added to that
    output, after the block's last ReLU.
    """

    parts = ("block",)
    slot_reads_output = True
    has_batch_norm = True

    @property
    def image_size(self) -> Grid | None:
        return None

    @property
    def patch_size(self) -> Grid:
        return 1, 1

    @property
    def widths(self) -> list[int]:
        return _per_block(self.config.hidden_sizes, self.config.depths)

    @property
    def stage_ends(self) -> list[int]:
        return _last_blocks(self.config.depths)

    def stage_grids(self, size: Grid) -> list[Grid]:
        grids = [tuple(-(-side // 4) for side in size)]  # the stem halves twice
        for stage in range(len(self.config.depths)):
            halves = stage > 0 or self.config.downsample_in_first_stage
            grids.append(tuple((side + 1) // 2 for side in grids[-1]) if halves else grids[-1])
        return grids[1:]

    def grids(self, size: Grid) -> list[Grid]:
        before, grids = tuple(-(-side // 4) for side in size), []
        for grid, depth in zip(self.stage_grids(size), self.config.depths):
            grids += [before, *[grid] * (depth - 1)]  # the first block of a stage changes the grid
            before = grid
        return grids

    def projection(self, model: PreTrainedModel) -> nn.Module:
        return model.embedder.embedder.convolution

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return [layer for stage in model.encoder.stages for layer in stage.layers]

    def embed(self, model: PreTrainedModel, values: torch.Tensor, positions: str | None) -> torch.Tensor:
        return model.embedder(values).flatten(2).transpose(1, 2)

    def step(self, layer: nn.Module, part: str, tokens: torch.Tensor, grid: Grid, **kwargs) -> Step:
        image = tokens.transpose(1, 2).unflatten(2, grid)
        return layer(image).flatten(2).transpose(1, 2), None

    def norm(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


# transformers' model_type -> how it runs.
BACKBONES: dict[str, type[BackboneSteps]] = {
    "vit": ViTSteps,
    "dinov2": Dinov2Steps,
    "swinv2": Swinv2Steps,
    "videomae": VideoMAESteps,
    "resnet": ResNetSteps,
}


def steps_of(config: PreTrainedConfig) -> BackboneSteps:
    """How a backbone of this config runs. Raises ValueError for a type that is not in `BACKBONES`."""
    kind = getattr(config, "model_type", None)
    if kind not in BACKBONES:
        raise ValueError(f"`backbone_config` must be of one of the types {', '.join(BACKBONES)}, got {kind!r}.")
    return BACKBONES[config.model_type](config)


def resample_positions(table: torch.Tensor, own: Grid, wanted: Grid, how: str) -> torch.Tensor:
    """
    The position table [1, n, d] of a grid `own` for a grid `wanted`. A CLS token comes first where n says that there is one.

    `"1d"` resamples the whole table along the tokens, CLS row included, linearly, unless the number of tokens is the same (the
    original's ViT). `"2d"` resamples the grid bilinearly and keeps the CLS row.
    """
    has_cls = table.shape[1] % (own[0] * own[1])
    count = wanted[0] * wanted[1] + has_cls
    if how == "1d":
        if count == table.shape[1]:
            return table
        resampled = nn.functional.interpolate(
            table.float().transpose(1, 2), size=count, mode="linear", align_corners=False
        )
        return resampled.transpose(1, 2).to(table.dtype)
    if own == wanted:
        return table
    image = table[:, has_cls:].float().transpose(1, 2).unflatten(2, own)
    image = nn.functional.interpolate(image, size=wanted, mode="bilinear", align_corners=False)
    return torch.cat([table[:, :has_cls], image.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _per_block(values: Sequence, depths: Sequence[int]) -> list:
    """A value per stage -> a value per block."""
    return [value for value, depth in zip(values, depths) for _ in range(depth)]


def _last_blocks(depths: Sequence[int]) -> list[int]:
    return [sum(depths[: stage + 1]) - 1 for stage in range(len(depths))]


__all__ = ["BACKBONES", "BackboneSteps", "resample_positions", "steps_of"]
