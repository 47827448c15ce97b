"""Names of the mask decoder in LAVISH's AVSBench checkpoints, and ours; a part of the table of the LAVISH converter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .flax import Rule, same, shape_of

NUM_STAGES = 4
# First components of the decoder's names in the original.
_DECODER = re.compile(r"(x[1-4]_linear|audio_linear|conv[1-4]|path[1-4]|output_conv|tpavi_b[1-4])\.")
_TPAVI = {
    "theta": "query",
    "phi": "key",
    "g": "value",
    "W_z.0": "output",
    "W_z.1": "batch_norm",
    "norm_layer": "layer_norm",
    "align_channel": "audio_projection",
}
_CONVOLUTIONS_3D = ("theta", "phi", "g", "W_z.0")
_HEAD = {"output_conv.0": "conv1", "output_conv.2": "conv2", "output_conv.4": "conv3"}


def frame_pointwise(array: np.ndarray) -> np.ndarray:
    """Kernel of a 1 x 1 x 1 Conv3d (out, in, 1, 1, 1) -> Conv2d (out, in, 1, 1); biases stay as they are."""
    return array[:, :, 0] if array.ndim == 5 else array


def is_decoder_name(name: str) -> bool:
    """Whether a tensor of the original belongs to the mask decoder."""
    return _DECODER.match(name) is not None


def decoder_rules(
    tpavi_stages: Iterable[int] = (), video_audio: bool = True, prefix: str = ""
) -> dict[str, tuple[str, Rule]]:
    """
    Name in the original -> (our name, layout) for every parameter and buffer of `LavishMaskDecoder`.

    Args:
        tpavi_stages: Stages with TPAVI, counted from 0.
        video_audio: Whether they have video-audio attention.
        prefix: In front of our names, such as `"decoder."`.
    """
    rules: dict[str, tuple[str, Rule]] = {}

    def layer(source: str, target: str, layout: Rule = same, buffers: bool = False) -> None:
        for leaf in ("weight", "bias", *(("running_mean", "running_var", "num_batches_tracked") if buffers else ())):
            rules[f"{source}.{leaf}"] = (f"{prefix}{target}.{leaf}", layout)

    for stage in range(NUM_STAGES):
        layer(f"x{stage + 1}_linear", f"projections.{stage}")
        for index in range(4):
            layer(f"conv{stage + 1}.conv2d_list.{index}", f"dilated_convs.{stage}.convs.{index}")
        for unit, ours in (("resConfUnit1", "lateral"), ("resConfUnit2", "residual")):
            if ours == "lateral" and stage == NUM_STAGES - 1:
                continue
            for conv in ("conv1", "conv2"):
                layer(f"path{stage + 1}.{unit}.{conv}", f"fusions.{stage}.{ours}.{conv}")
    for source, target in _HEAD.items():
        layer(source, f"mask_head.{target}")
    stages = sorted(tpavi_stages)
    if stages and video_audio:
        layer("audio_linear", "audio_projection")
    for stage in stages:
        for source, target in _TPAVI.items():
            if source == "align_channel" and not video_audio:
                continue
            layout = frame_pointwise if source in _CONVOLUTIONS_3D else same
            layer(f"tpavi_b{stage + 1}.{source}", f"tpavi.{stage}.{target}", layout, buffers=source == "W_z.1")
    return rules


def dropped_decoder_names(tpavi_stages: Iterable[int] = (), video_audio: bool = True) -> set[str]:
    """Tensors of the decoder in the original that no output depends on, so that ours has no counterpart of them."""
    stages = sorted(tpavi_stages)
    layers = [f"path{NUM_STAGES}.resConfUnit1.{conv}" for conv in ("conv1", "conv2")]
    if not (stages and video_audio):
        layers += ["audio_linear", *(f"tpavi_b{stage + 1}.align_channel" for stage in stages)]
    return {f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias")}


def infer_decoder(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """
    Arguments of `LavishMaskDecoder` that the tensors of the original show.

    They do not show the sizes of tokens and masks, and which attention TPAVI uses (`video_audio`, `video_video`): both have the
    same parameters.

    Args:
        params: Tensors under their original names; those of other parts are not read.

    Raises:
        ConversionError: A tensor of the decoder is missing or has a wrong number of axes.
    """
    projections = [shape_of(params, f"x{stage + 1}_linear.weight", 2) for stage in range(NUM_STAGES)]
    audio_feature_width, audio_width = shape_of(params, "audio_linear.weight", 2)
    wide, channels = shape_of(params, "output_conv.0.weight", 4)[:2]
    return {
        "stage_widths": tuple(shape[1] for shape in projections),
        "map_widths": tuple(shape[0] for shape in projections),
        "channels": channels,
        "head_widths": (wide, shape_of(params, "output_conv.2.weight", 4)[0]),
        "tpavi_stages": tuple(
            stage for stage in range(NUM_STAGES) if any(name.startswith(f"tpavi_b{stage + 1}.") for name in params)
        ),
        "audio_width": audio_width,
        "audio_feature_width": audio_feature_width,
    }


def infer_head_fields(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """
    Fields of a config that the decoder's tensors show; `num_segments` is that of AVSBench-S4.

    Raises:
        ConversionError: See `infer_decoder`.
    """
    found = infer_decoder(params)
    return {
        "num_segments": 5,
        "decoder_map_widths": found["map_widths"],
        "decoder_width": found["channels"],
        "decoder_head_widths": found["head_widths"],
        "tpavi_stages": found["tpavi_stages"],
        "tpavi_audio_width": found["audio_feature_width"],
    }
