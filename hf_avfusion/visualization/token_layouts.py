"""Where the patches of each modality are among the tokens of a model, and how much its readout weights each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of a model for the modalities that it is given.

    Args:
        grids: modality -> its patches: video (t, h, w) with t tubelets, audio (time, mel). In the order in which the model
            joins the modalities to one sequence.
        readout: modality -> float [num_cls + patches], the weight of each token in the prediction. Weights of different
            modalities are comparable; their sum is any number.
        num_cls: tokens in front of the patches of each modality.
        frames: indices of the frames that the video patches cover, t times the tubelet size; None without video.
        num_bottlenecks: rows of the bottleneck.
        bottleneck_update: as in `MBTConfig`.
    """

    grids: dict[str, torch.Size]
    readout: dict[str, Tensor]
    num_cls: int
    frames: Sequence[int] | None
    num_bottlenecks: int = 0
    bottleneck_update: str = "symmetric"


def token_layout(model: PreTrainedModel, modalities: Sequence[str] | None = None) -> TokenLayout:
    """The layout of a model's tokens, by its class.

    Args:
        model: one of the classes in `LAYOUTS`, or of a class derived from them.
        modalities: those that the model is given; by default all that it takes.

    Raises:
        ValueError: there is no layout for models of this class, or its video patches straddle frames (MBT with
            `num_sampled_frames` and an image height that is not a multiple of the patch height).
    """
    names = _known_classes(model)
    if not names:
        raise ValueError(
            f"Attention maps are defined for models that see every patch of a clip ({', '.join(LAYOUTS)}), got a "
            f"{type(model).__name__}. Use one of these."
        )
    given = model.config.modalities if modalities is None else modalities
    return LAYOUTS[names[0]](model, [name for name in model.config.modalities if name in given])


def has_token_layout(model: PreTrainedModel) -> bool:
    """Whether there are attention maps for models of this class."""
    return bool(_known_classes(model))


def _known_classes(model: PreTrainedModel) -> list[str]:
    return [each.__name__ for each in type(model).__mro__ if each.__name__ in LAYOUTS]


def _mbt_layout(model: PreTrainedModel, modalities: Sequence[str]) -> TokenLayout:
    config, grids = model.config, {}
    (height, width), (patch_height, patch_width) = config.image_hw, config.patch_hw
    frames = None
    for name in modalities:
        if name == "audio":
            grids[name] = torch.Size((config.spectrogram_length // patch_height, config.num_mel_bins // patch_width))
            continue
        frames = config.sampled_frame_indices
        if frames is not None and height % patch_height:
            raise ValueError(
                f"With `num_sampled_frames` and a frame height of {height}, which is not a multiple of the patch height "
                f"{patch_height}, patches straddle frames as in the original and have no map. Use another frame height."
            )
        if frames is None:
            frames = range(config.num_frames // config.tubelet_size * config.tubelet_size)
        grids[name] = torch.Size((len(frames) // config.tubelet_size, height // patch_height, width // patch_width))
    num_cls = int(config.readout == "token")
    readout = {}
    for name, grid in grids.items():
        readout[name] = _cls_weights(grid) if num_cls else torch.ones(grid.numel())
        if config.readout.startswith("stream_"):  # streams have equal weight, whatever their numbers of tokens
            readout[name] /= grid.numel()
    num_bottlenecks = config.num_bottleneck_rows if config.uses_bottleneck else 0
    return TokenLayout(grids, readout, num_cls, frames, num_bottlenecks, config.bottleneck_update)


def _avmae_layout(model: PreTrainedModel, modalities: Sequence[str]) -> TokenLayout:
    config = model.config
    grids = {name: torch.Size(config.video_grid if name == "video" else config.audio_grid) for name in modalities}
    num_cls = int(config.readout == "token")
    segments = getattr(model, "segments", None)
    readout = {}
    for name, grid in grids.items():
        if num_cls:
            readout[name] = _cls_weights(grid)
        elif segments is None:  # each modality is pooled separately, and their logits are averaged
            readout[name] = torch.full((grid.numel(),), 1 / grid.numel())
        else:  # the mean over segments of the weights with which each pools the steps
            steps = segments[name].overlaps().mean(dim=0)
            readout[name] = steps.repeat_interleave(grid[1:].numel()) / grid[1:].numel()
    return TokenLayout(grids, readout, num_cls, range(config.num_frames) if "video" in grids else None)


def _cls_weights(grid: torch.Size) -> Tensor:
    return torch.eye(1, 1 + grid.numel())[0]


# Class of a model -> its layout. A masked autoencoder has none: it sees a random part of the patches, in random order.
LAYOUTS: dict[str, Callable[[PreTrainedModel, Sequence[str]], TokenLayout]] = {
    "MBTModel": _mbt_layout,
    "MBTForAudioVisualClassification": _mbt_layout,
    "AVMAEModel": _avmae_layout,
    "AVMAEForAudioVisualClassification": _avmae_layout,
}
