"""Initialises MBT from an image ViT or from a pretrained AV-MAE: the mapping of tensors and how they are reshaped."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_mbt import MBTConfig

TUBELET_INITIALIZERS = ("central_frame", "average_frame", "average_arp_frame")
POSITION_RESIZES = ("resize_tile", "tile", "resize")

_POSITIONS = "embeddings.position_embeddings"
_CLS = "embeddings.cls_token"
_KERNEL = "embeddings.patch_embeddings.projection.weight"
_KERNEL_BIAS = "embeddings.patch_embeddings.projection.bias"
_PROJECTIONS = tuple(f".attention.{name}_proj.weight" for name in "qkv")
# Parts of a ViT that the base model lacks: the pooler (the head's pre-logits, see below) and the token of masked image modelling.
_DROPPED = ("pooler.", "embeddings.mask_token")
_KNOWN = (_POSITIONS, _CLS, _KERNEL, _KERNEL_BIAS, "layernorm.", "layers.")


def mbt_state_from_vit(
    vit_state: Mapping[str, torch.Tensor],
    config: MBTConfig,
    tubelet_initializer: str = "central_frame",
    position_resize: str = "resize_tile",
) -> dict[str, torch.Tensor]:
    """
    The tensors of an [`MBTModel`] that are initialised from an image ViT.

    Args:
        vit_state: State dict of a transformers `ViTModel` (also without CLS token, for a pooled source).
        config: Config of the MBT.
        tubelet_initializer: How a 2-D patch kernel becomes a tubelet kernel: `"central_frame"` (zeros except for frame
            `tubelet_size // 2`), `"average_frame"` (divided by the number of frames), `"average_arp_frame"` (approximate rank
            pooling).
        position_resize: `"resize_tile"` resamples one frame's grid and repeats it over time, `"tile"` repeats the source
            grid, `"resize"` resamples one grid for all tokens. The spectrogram's positions are resampled to its one grid,
            with `"tile"` repeated where that fills it exactly.

    Returns:
        State dict of the base model. With a video stream, the audio CLS token is not included, as in the original.

    Raises:
        ValueError: If a tensor does not fit or has no target; the message names it and the remedy.
    """
    if tubelet_initializer not in TUBELET_INITIALIZERS:
        raise ValueError(f"`tubelet_initializer` must be one of {TUBELET_INITIALIZERS}, got {tubelet_initializer!r}.")
    if position_resize not in POSITION_RESIZES:
        raise ValueError(f"`position_resize` must be one of {POSITION_RESIZES}, got {position_resize!r}.")
    left = {name: value for name, value in vit_state.items() if not name.startswith(_DROPPED)}
    unknown = sorted(name for name in left if not name.startswith(_KNOWN))
    absent = [name for name in (_KERNEL, _KERNEL_BIAS, _POSITIONS) if name not in left]
    if unknown or absent:
        problem = f"its tensors {unknown} do not exist in MBT" if unknown else f"it lacks {absent}"
        raise ValueError(f"The source is not a plain ViT: {problem}. Give a transformers `ViTModel` or `ViTFor...`.")
    source_cls = left.pop(_CLS, None)
    if source_cls is None and config.readout == "token":
        raise ValueError(
            'The ViT has no CLS token, so it cannot fill an MBT with `readout="token"`; use a pooled readout such as '
            '`readout="mean"`.'
        )
    kernel, kernel_bias, positions = left.pop(_KERNEL), left.pop(_KERNEL_BIAS), left.pop(_POSITIONS)
    _check_kernel(kernel, config)
    target: dict[str, torch.Tensor] = {}

    def resize_positions(name: str, tokens: int, grid: tuple[int, int] | int, mode: str) -> torch.Tensor:
        try:
            return _resize_positions(positions, source_cls is not None, config.readout == "token", tokens, grid, mode)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    if "audio" in config.modalities:
        patch_height, patch_width = config.patch_hw
        grid = (config.spectrogram_length // patch_height, config.num_mel_bins // patch_width)
        # The RGB input channels are unchanged: the mono spectrogram is fed to all three.
        target["audio_embeddings.patch_embeddings.projection.weight"] = kernel.mean(2) if kernel.dim() == 5 else kernel
        target["audio_embeddings.patch_embeddings.projection.bias"] = kernel_bias
        tokens, source_tokens = grid[0] * grid[1], positions.shape[1] - (source_cls is not None)
        # Repeating a square grid seldom fills a spectrogram; the original then has too few positions.
        mode = "tile" if position_resize == "tile" and tokens % source_tokens == 0 else "resize"
        target["audio_embeddings.position_embeddings"] = resize_positions("Spectrogram", tokens, grid, mode)
    if "video" in config.modalities:
        rows, columns = config.video_patch_grid
        grid = rows * columns if position_resize == "resize" else _frame_grid(config)
        target["video_embeddings.patch_embeddings.projection.weight"] = _inflate(
            kernel, config.tubelet_size, tubelet_initializer
        )
        target["video_embeddings.patch_embeddings.projection.bias"] = kernel_bias
        target["video_embeddings.position_embeddings"] = resize_positions(
            "Frames", rows * columns, grid, position_resize
        )
    if config.readout == "token":
        # An audio-only model has its CLS under the plain name, where the original's copy finds it.
        first = "video" if "video" in config.modalities else "audio"
        target[f"{first}_embeddings.cls_token"] = source_cls
    if config.uses_bottleneck:
        count = config.num_bottleneck_tokens
        target["bottleneck"] = resize_positions("`num_bottleneck_tokens`", count, count, "resize")

    for name in [name for name in left if name.startswith("layernorm.")]:
        target[name] = left.pop(name)
    streams = ("shared",) if config.share_encoder else tuple(config.modalities)
    for name in [name for name in left if name.startswith("layers.")]:
        _, index, rest = name.split(".", 2)
        if int(index) >= config.num_hidden_layers:
            raise ValueError(
                f"The ViT has layer {index}, but `num_hidden_layers` is {config.num_hidden_layers}. Both must have the same depth."
            )
        for stream in streams:
            target[f"layers.{index}.{stream}.{rest}"] = left[name]
        left.pop(name)
    # A ViT without query, key and value biases equals one whose biases are zero.
    for name, weight in [item for item in target.items() if item[0].endswith(_PROJECTIONS)]:
        target.setdefault(name.removesuffix("weight") + "bias", weight.new_zeros(weight.shape[0]))
    return {name: value.clone() for name, value in target.items()}


def _check_kernel(kernel: torch.Tensor, config: MBTConfig) -> None:
    if tuple(kernel.shape[-2:]) != config.patch_hw:
        raise ValueError(
            f"The ViT's patches are {tuple(kernel.shape[-2:])}, but `patch_size` is {config.patch_hw}. They must agree."
        )
    for name in ("num_channels", "num_audio_channels"):
        modality = "video" if name == "num_channels" else "audio"
        if modality in config.modalities and getattr(config, name) != kernel.shape[1]:
            raise ValueError(
                f"The ViT's patch kernel has {kernel.shape[1]} input channels, but `{name}` is "
                f"{getattr(config, name)}. They must agree."
            )
    if kernel.shape[0] != config.hidden_size:
        raise ValueError(
            f"The ViT's width is {kernel.shape[0]}, but `hidden_size` is {config.hidden_size}. They must agree."
        )


def _frame_grid(config: MBTConfig) -> tuple[int, int] | int:
    """
    The grid that one frame's positions are resampled to: a token count (laid out near-square), or rows and columns.

    The original always divides the tokens by the requested number of frames and uses the near-square grid. It fails if that is
    uneven; the frame's own grid is used here.
    """
    rows, columns = config.video_patch_grid
    frames = config.num_sampled_frames or config.num_frames // config.tubelet_size
    per_frame = rows * columns // frames
    height, width = _near_square(per_frame)
    if per_frame and height * width == per_frame and rows * columns % per_frame == 0:
        return per_frame
    return config.image_hw[0] // config.patch_hw[0], columns


def _near_square(count: int) -> tuple[int, int]:
    """The original's grid for `count` tokens: int(sqrt(count)) rows."""
    rows = math.isqrt(count)
    return rows, count // max(rows, 1)


def pre_logits_from_vit(vit_state: Mapping[str, torch.Tensor], config: MBTConfig) -> dict[str, torch.Tensor]:
    """The head's dense + tanh layer from the ViT's pooler, if their shapes are equal; else empty (newly initialised)."""
    weight, bias = vit_state.get("pooler.dense.weight"), vit_state.get("pooler.dense.bias")
    if weight is None or tuple(weight.shape) != (config.representation_size, config.hidden_size):
        return {}
    return {"pre_logits.weight": weight.clone(), "pre_logits.bias": bias.clone()}


def mbt_config_fields_from_avmae(source: PreTrainedConfig) -> dict:
    """MBTConfig fields taken from a pretrained `AVMAEConfig`, as in the project's fine-tuning."""
    same = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "layer_norm_eps",
        "image_size",
        "patch_size",
        "tubelet_size",
        "num_frames",
        "num_channels",
        "num_audio_channels",
        "num_mel_bins",
        "spectrogram_length",
        "drop_remainder",
        "modalities",
        "position_embeddings",
        "use_modality_tokens",
    )
    return {**{name: getattr(source, name) for name in same}, "readout": "stream_mean"}


def mbt_state_from_avmae(
    avmae_state: Mapping[str, torch.Tensor], source: PreTrainedConfig, config: MBTConfig
) -> dict[str, torch.Tensor]:
    """
    The tensors of an [`MBTModel`] that are initialised from a pretrained AV-MAE encoder.

    Layers of one modality are copied to its stream, shared layers to both streams, each at its own depth. The final norm is that
    of the joint (or shared) layers. The norms of each modality, in the middle of the network or at its end, are dropped, so
    after separate encoders MBT's norm is newly initialised. Bottleneck and head are always newly initialised.

    Args:
        avmae_state: State dict of an `AVMAEModel`.
        source: Its config.
        config: Config of the MBT; modalities that it lacks are skipped.

    Raises:
        ValueError: If a tensor does not fit or has no target; the message names it and the remedy.
    """
    absent = sorted(set(config.modalities) - set(source.modalities))
    if absent:
        raise ValueError(
            f"The AV-MAE was pretrained on {tuple(source.modalities)} and has no tensors for {absent}. Remove them from "
            "`modalities`."
        )
    if source.num_hidden_layers != config.num_hidden_layers:
        raise ValueError(
            f"The AV-MAE has {source.num_hidden_layers} layers, but `num_hidden_layers` is {config.num_hidden_layers}. Both must "
            "have the same depth."
        )
    if config.share_encoder and any(f".{modality}." in name for name in avmae_state for modality in config.modalities):
        raise ValueError("Layers of separate encoders do not fit an MBT with `share_encoder=True`. Set it to False.")
    target: dict[str, torch.Tensor] = {}
    for name, value in avmae_state.items():
        owner, _, rest = name.partition(".")
        if owner == "encoder":
            kind, _, inner = rest.partition(".")
            if kind == "layernorm":
                target[rest] = value
            elif kind == "layers":
                index, block, parameter = inner.split(".", 2)
                streams = ("shared",) if config.share_encoder else tuple(config.modalities)
                for stream in streams if block == "shared" else [block] if block in config.modalities else []:
                    target[f"layers.{index}.{stream}.{parameter}"] = value
            continue
        modality = owner.removesuffix("_embeddings")
        if modality not in config.modalities or rest == "cls_token":
            continue
        if rest == "modality_token" and not config.use_modality_tokens:
            continue
        if rest == "position_embeddings" and config.position_embeddings != "learned":
            raise ValueError('The AV-MAE has learned positions. Set `position_embeddings="learned"` for the MBT too.')
        channels = config.num_audio_channels
        if owner == "audio_embeddings" and rest.endswith("projection.weight") and value.shape[1] == 1 < channels:
            value = value.repeat(1, channels, 1, 1)  # not divided by the number of channels, as in the original
        target[name] = value
    return {name: value.clone() for name, value in target.items()}


def load_vit(name: str, with_pooler: bool) -> PreTrainedModel:
    """A transformers `ViTModel` from a Hub id or folder; `with_pooler` keeps the checkpoint's pooler, if any."""
    from transformers import ViTModel

    vit, report = ViTModel.from_pretrained(name, add_pooling_layer=with_pooler, output_loading_info=True)
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        vit.pooler = None
    return vit


def _inflate(kernel: torch.Tensor, frames: int, method: str) -> torch.Tensor:
    """2-D patch kernel (d, C, h, w) -> tubelet kernel (d, C, frames, h, w)."""
    if kernel.dim() == 5:
        if kernel.shape[2] != frames:
            raise ValueError(
                f"The source's tubelets have {kernel.shape[2]} frames, but `tubelet_size` is {frames}. They must agree."
            )
        return kernel
    if frames == 1:
        return kernel.unsqueeze(2)
    if method == "central_frame":
        weights = [float(i == frames // 2) for i in range(frames)]
    elif method == "average_frame":
        weights = [1.0 / frames] * frames
    else:
        harmonic = [sum(1.0 / i for i in range(1, n + 1)) for n in range(frames + 1)]
        weights = [
            (2 * (frames - i + 1) - (frames + 1) * (harmonic[frames] - harmonic[i - 1])) / frames
            for i in range(1, frames + 1)
        ]
    return kernel.unsqueeze(2) * torch.tensor(weights, dtype=kernel.dtype).view(1, 1, -1, 1, 1)


def _resize_positions(
    positions: torch.Tensor,
    source_has_cls: bool,
    target_has_cls: bool,
    tokens: int,
    grid: tuple[int, int] | int,
    mode: str,
) -> torch.Tensor:
    """
    Source positions [1, (1 +) g*g, d] -> target [1, (1 +) tokens, d].

    `grid` is the grid that the source is resampled to: rows and columns, or a count that is laid out near-square.
    """
    if positions.shape[1] == tokens + target_has_cls:
        # As in the original, an equal number is copied unchanged, even if only one side has a CLS token.
        return positions
    cls, patches = (positions[:, :1], positions[:, 1:]) if source_has_cls else (None, positions)
    count = patches.shape[1]
    if mode != "tile" and grid != count:
        height, width = grid if isinstance(grid, tuple) else _near_square(grid)
        if isinstance(grid, int) and height * width != grid:
            raise ValueError(
                f"{grid} does not fill the {height} x {width} grid that ViT initialisation resamples positions to; use a "
                "number that does, such as 1, 2, 3, 4, 6, 8, 9, 12 or 16."
            )
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(
                f"the ViT's {count} positions are not a square grid and cannot be resampled; use a ViT with square images."
            )
        plane = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # As scipy.ndimage.zoom(order=1), which maps corners to corners, and a single output to index 0.
        plane = nn.functional.interpolate(plane.float(), size=(height, width), mode="bilinear", align_corners=True)
        patches = plane.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    repeats = tokens // patches.shape[1] if mode != "resize" else 1
    if patches.shape[1] * repeats != tokens:
        raise ValueError(
            f"{patches.shape[1]} positions cannot be repeated to {tokens} tokens (`position_resize` {mode!r}); use a "
            'frame size that is a multiple of the patch size and `position_resize="resize_tile"`.'
        )
    patches = patches.repeat(1, repeats, 1)
    return torch.cat([cls, patches], dim=1) if target_has_cls else patches
