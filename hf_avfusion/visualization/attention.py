"""Attention of a two-stream model: joint attention rollout over both modalities, and a figure of it for one clip.

Rollout: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928), section 3: attention is averaged
over heads, half of it is replaced by the identity for the residual branch, and the layers are multiplied. Showing it from the
CLS token over frames and spectrogram follows the attention maps of Nagrani et al. 2021 (arXiv:2107.00135). Rollout ignores
values, MLPs and classes: it shows where information may come from, not how it is used. `token_layouts` says which models have
maps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..media.modalities import MODALITIES
from ..processing.answers import classify, head_slices, name_segments
from .drawing import draw_attention
from .token_layouts import TokenLayout, token_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from ..media.reader import Clip, MediaSource

TITLE_LENGTH = 100  # characters on one line of a figure's title


@dataclass(frozen=True)
class ModalityMaps:
    """Relevance of every patch. Per sample, the patches of both modalities and `rest` sum to 1.

    video: float32 [B, t, h, w] (t tubelets, h x w patches); None without a video stream or video input.
    audio: float32 [B, time_patches, mel_patches]; None likewise. A modality that is missing in `modality_mask` has zeros.
    rest: float32 [B], the relevance of tokens that are not patches (CLS, and the learned bottleneck).
    """

    video: Tensor | None
    audio: Tensor | None
    rest: Tensor


def propagate_back(
    relevance: Mapping[str, Tensor],
    bottleneck: Tensor | None,
    attentions: Mapping[str, Sequence[Tensor]],
    *,
    update: str = "symmetric",
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Propagate relevance from the last layer's outputs back to the first layer's inputs.

    This is the rollout product over the joint space [streams' tokens, bottleneck rows], evaluated from the left: a few rows times
    the matrix of one layer. So the joint matrix is never built, and K rows cost O(K n^2) per layer instead of O(n^3). Starting
    from the rows of an identity gives the whole rollout matrix.

    Args:
        relevance: per stream float [B, K, n_m], the K starting rows restricted to that stream's tokens, in the order of
            the config's `modalities` (which matters only for a shared sequence).
        bottleneck: float [B, K, b], the starting rows restricted to the bottleneck; None without bottleneck rows.
        attentions: per stream one tensor per layer, head-averaged [B, queries, keys], rows summing to 1. The number of keys gives
            the kind of layer. n_m: unimodal. n_m + b: with bottleneck rows, which are last. Sum of all n_m: full self-attention
            over the other stream's tokens followed by its own, or, if only the first stream has a map, over one shared sequence.
        update: how the streams' bottleneck copies become the next one: "symmetric" (mean), "video_first" or
            "audio_first" (the second stream reads what the first wrote).

    Returns:
        relevance and bottleneck, in the same form, over the first layer's inputs.

    Raises:
        ValueError: a layer has another number of keys.
    """
    relevance = dict(relevance)
    names = list(relevance)
    sizes = {name: relevance[name].shape[-1] for name in names}
    num_bottlenecks = 0 if bottleneck is None else bottleneck.shape[-1]
    for layer in reversed(range(max(len(attentions[name]) for name in names))):
        maps = {name: attentions[name][layer] for name in names if layer < len(attentions[name])}
        keys = {name: maps[name].shape[-1] for name in maps}
        if keys == sizes:
            relevance = {name: _rollout_step(relevance[name], maps[name]) for name in names}
        elif num_bottlenecks and keys == {name: sizes[name] + num_bottlenecks for name in names}:
            relevance, bottleneck = _propagate_through_bottleneck(relevance, bottleneck, maps, update)
        elif len(maps) == 1 < len(names) and set(keys.values()) == {sum(sizes.values())}:
            joint = _rollout_step(torch.cat([relevance[name] for name in names], dim=-1), next(iter(maps.values())))
            relevance = dict(zip(names, joint.split([sizes[name] for name in names], dim=-1)))
        elif len(names) == 2 and keys == dict.fromkeys(names, sum(sizes.values())):
            relevance = _propagate_through_self_attention(relevance, maps)
        else:
            raise ValueError(
                f"layer {layer} attends over {keys} tokens, but the streams hold {sizes} and the bottleneck {num_bottlenecks}. "
                "Supported are unimodal layers, bottleneck fusion with the bottleneck last, and full self-attention."
            )
    return relevance, bottleneck


def _propagate_through_bottleneck(
    relevance: dict[str, Tensor], bottleneck: Tensor, maps: dict[str, Tensor], update: str
) -> tuple[dict[str, Tensor], Tensor]:
    num_bottlenecks = bottleneck.shape[-1]
    result = {}
    if update == "symmetric":
        # The next bottleneck is the mean of the streams' copies, and all streams read the same old one (MBT eq. 8, 9).
        old = torch.zeros_like(bottleneck)
        for name, rows in relevance.items():
            joint = _rollout_step(torch.cat([rows, bottleneck / len(relevance)], dim=-1), maps[name])
            result[name], read = joint.split([rows.shape[-1], num_bottlenecks], dim=-1)
            old = old + read
        return {name: result[name] for name in relevance}, old
    # Chained: going back, the stream that writes last comes first.
    backwards = ("audio", "video") if update == "video_first" else ("video", "audio")
    for name in (name for name in backwards if name in relevance):
        joint = _rollout_step(torch.cat([relevance[name], bottleneck], dim=-1), maps[name])
        result[name], bottleneck = joint.split([relevance[name].shape[-1], num_bottlenecks], dim=-1)
    return {name: result[name] for name in relevance}, bottleneck


def _propagate_through_self_attention(relevance: dict[str, Tensor], maps: dict[str, Tensor]) -> dict[str, Tensor]:
    # Queries are a stream's own tokens, keys are [other, own]; the residual branch belongs to the own tokens.
    result = {name: 0.5 * rows for name, rows in relevance.items()}
    first, second = relevance
    for name, other in ((first, second), (second, first)):
        attended = 0.5 * relevance[name] @ maps[name].to(relevance[name].dtype)
        to_other, to_own = attended.split([relevance[other].shape[-1], relevance[name].shape[-1]], dim=-1)
        result[other] = result[other] + to_other
        result[name] = result[name] + to_own
    return result


def _rollout_step(rows: Tensor, attention: Tensor) -> Tensor:
    # Abnar & Zuidema, section 3: A <- 0.5 A + 0.5 I; the residual branch has the same weight as the attention.
    return 0.5 * rows + 0.5 * rows @ attention.to(rows.dtype)


@contextmanager
def eager_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and eager attention (which alone returns attention weights), both restored afterwards."""
    before = model.config._attn_implementation
    training = {module: module.training for module in model.modules()}
    try:
        model.set_attn_implementation("eager")
        model.eval()
        yield
    finally:
        model.set_attn_implementation(before)
        for module, mode in training.items():
            module.training = mode


def attention_rollout(
    model: PreTrainedModel, inputs: Mapping[str, Tensor | None], *, relevance_of: str = "prediction"
) -> ModalityMaps:
    """Relevance of every patch by joint attention rollout over both streams.

    Args:
        model: an MBT or AV-MAE for classification or event localisation, or its base model (the classes in
            `token_layouts.LAYOUTS`), with any fusion, encoder strategy, update and readout.
        inputs: the processor's output: pixel_values [B, T, C, H, W], input_features [B, time, mel], modality_mask bool [B, 2].
        relevance_of: the starting point. "prediction": the tokens as weighted by the readout: the mean over the present streams'
            CLS tokens, over all patch tokens of the present streams if the head pools them together (for "max" and "sum" this mean
            approximates the pooling), or over each stream's patch tokens and then over the streams (AV-MAE, and "stream_mean" and
            similar of MBT). In event localisation it is the mean over the segments, so the maps are of the whole clip. "video" or
            "audio": that stream's readout alone.

    Returns:
        ModalityMaps on the CPU. The model's attention implementation and training mode are restored.

    Raises:
        ValueError: the model has no maps (see `token_layout`), the inputs contain none of its streams, or `relevance_of` names a
            stream that the model or a sample lacks.
    """
    given = {"video": inputs.get("pixel_values"), "audio": inputs.get("input_features")}
    grids = token_layout(model, [name for name in MODALITIES if given[name] is not None]).grids
    if not grids:
        raise ValueError(
            f"The inputs must contain a stream of this model ({', '.join(model.config.modalities)}), got {sorted(inputs)}."
        )
    batch = len(given[next(iter(grids))])
    present = torch.tensor([name in grids for name in MODALITIES]).expand(batch, -1)
    if inputs.get("modality_mask") is not None:
        present = present & inputs["modality_mask"].cpu().bool()
    if relevance_of != "prediction" and (
        relevance_of not in MODALITIES or not present[:, MODALITIES.index(relevance_of)].all()
    ):
        raise ValueError(
            f'`relevance_of` must be "prediction" or a stream that the model and all samples have, got {relevance_of!r} with the '
            f"streams {list(grids)} and modality_mask {present.tolist()} (video, audio)."
        )
    maps = {name: torch.zeros(batch, *grid) for name, grid in grids.items()}
    rest = torch.zeros(batch)
    # A missing modality is omitted instead of masked: models give the same result, and every returned attention map is used.
    for pattern in present.unique(dim=0):
        index = (present == pattern).all(dim=1).nonzero().flatten()
        streams = [name for name in model.config.modalities if pattern[MODALITIES.index(name)]]
        with eager_evaluation(model), _heads_averaged(model), torch.no_grad():
            outputs = model(
                pixel_values=given["video"][index] if "video" in streams else None,
                input_features=given["audio"][index] if "audio" in streams else None,
                output_attentions=True,
            )
        weights = {"video": outputs.attentions, "audio": outputs.audio_attentions}
        attentions = {name: [layer.float().mean(dim=1) for layer in weights[name] or ()] for name in streams}
        patches, rest[index] = _patch_relevance(token_layout(model, streams), attentions, relevance_of)
        for name in streams:
            maps[name][index] = patches[name]
    return ModalityMaps(maps.get("video"), maps.get("audio"), rest)


def _patch_relevance(
    layout: TokenLayout, attentions: Mapping[str, Sequence[Tensor]], relevance_of: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Head-averaged attentions of one forward pass -> maps [B, *grid] of each stream, and the rest [B]."""
    recorded = next(layers[0] for layers in attentions.values() if len(layers))
    batch, device = len(recorded), recorded.device
    start = {
        name: weights.to(device) * (relevance_of in ("prediction", name)) for name, weights in layout.readout.items()
    }
    total = sum(weights.sum() for weights in start.values())
    start = {name: (weights / total).expand(batch, 1, -1) for name, weights in start.items()}
    bottleneck = torch.zeros(batch, 1, layout.num_bottlenecks, device=device) if layout.num_bottlenecks else None
    relevance, _ = propagate_back(start, bottleneck, attentions, update=layout.bottleneck_update)
    patches = {name: relevance[name][:, 0, layout.num_cls :].cpu() for name in layout.grids}
    rest = 1 - sum(values.sum(dim=-1) for values in patches.values())
    return {name: values.unflatten(-1, layout.grids[name]) for name, values in patches.items()}, rest


@contextmanager
def _heads_averaged(model: PreTrainedModel) -> Iterator[None]:
    """Keep only the mean over heads of each layer's maps: else MBT-Base at 32 frames would hold 5.7 GB per clip."""

    # A model names the classes of its layers, and the positions of the attention weights in what they return.
    recorders = [model.base_model._can_record_outputs[name] for name in ("attentions", "audio_attentions")]

    def average(module: nn.Module, args: tuple, output: tuple) -> tuple:
        positions = {recorder.index for recorder in recorders if isinstance(module, recorder.target_class)}
        return tuple(
            value.mean(dim=1, keepdim=True) if position in positions and value is not None else value
            for position, value in enumerate(output)
        )

    layers = tuple(recorder.target_class for recorder in recorders)
    # Prepended, so that it runs before the recorder's hooks, which keep the output.
    handles = [
        module.register_forward_hook(average, prepend=True)
        for module in model.base_model.modules()
        if isinstance(module, layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def explain(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    source: MediaSource,
    *,
    path: str | os.PathLike | None = None,
    head: str | None = None,
    top_k: int = 3,
    relevance_of: str = "prediction",
    **reading: Any,
) -> dict[str, Any]:
    """Predict one media file and draw its attention rollout.

    Args:
        model: an `MBTForAudioVisualClassification` or `AVMAEForAudioVisualClassification`.
        processor: the model's.
        source: path, URL, bytes, binary file object, or a dict with `bytes` and `path`.
        path: file to write as PNG; None writes none.
        head: for a model with `class_splits`, the one head to return; None returns all. Relevance is the same for every head,
            since rollout ignores classes.
        top_k: labels returned per head; the figure shows the best one.
        relevance_of: see `attention_rollout`.
        reading: further arguments of `processor.load_clip` (backend=, policy=, on_decode_error=).

    Returns:
        dict with `predictions` {head name: [{"label", "score"}, best first]} (the name is "label" without
        `class_splits`, and "part 1", "part 2", ... for the segments of event localisation; scores are softmax
        probabilities, sigmoid ones for multi-label models), `maps` (ModalityMaps, B = 1), `clip` (the decoded Clip) and
        `path`.

    Raises:
        ValueError: `head` is not a head of the model, or the model has no maps (see `token_layout`). MediaError: the file
            cannot be read.
    """
    heads = list(head_slices(model.config))
    if head is not None and head not in heads:
        raise ValueError(f"`head` must be one of {', '.join(map(repr, heads))}, got {head!r}.")
    tracks = tuple(name for name in MODALITIES if name in model.config.modalities)
    (clip,) = processor.load_clip(source, tracks=tracks, **reading)
    features = processor.process_clips([clip], return_tensors="pt")
    # With one clip, a missing modality is absent from the features.
    inputs = {name: features[name].to(model.device) for name in ("pixel_values", "input_features") if name in features}
    with eager_evaluation(model), torch.no_grad():
        logits = model(**inputs).logits.float().cpu()
    answer = classify if getattr(model.config, "num_segments", None) is None else name_segments
    wanted = heads if head is None else [head]
    predictions = answer(model.config, logits, heads=wanted, top_k=top_k)
    maps = attention_rollout(model, inputs, relevance_of=relevance_of)
    if path is not None:
        _draw_clip(model, processor, clip, inputs, maps, predictions, path)
    return {"predictions": predictions, "maps": maps, "clip": clip, "path": path}


def _draw_clip(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    clip: Clip,
    inputs: Mapping[str, Tensor],
    maps: ModalityMaps,
    predictions: Mapping[str, list[dict[str, Any]]],
    path: str | os.PathLike,
) -> None:
    frames = times = spectrogram = None
    if maps.video is not None:
        # The same crop as for the model, as pixels.
        crop = processor.video_processor([clip.frames], do_rescale=False, do_normalize=False, return_tensors="pt")
        frames, times = crop["pixel_values"][0], clip.frame_times
        kept = torch.as_tensor(token_layout(model, ["video"]).frames)  # a remainder of frames is not used
        frames, times = frames[kept], times[kept].tolist()
    if maps.audio is not None:
        spectrogram = inputs["input_features"][0].cpu()
    extractor = processor.feature_extractor
    parts = []
    for name, best in predictions.items():
        text = f"{best[0]['label']} {best[0]['score']:.0%}"
        parts.append(text if name == "label" else f"{name}: {text}")
    draw_attention(
        path,
        frames=frames,
        video_map=None if maps.video is None else maps.video[0],
        times=times,
        spectrogram=spectrogram,
        audio_map=None if maps.audio is None else maps.audio[0],
        hop=extractor.hop_length / extractor.sampling_rate,
        audio_start=clip.audio_start or 0.0,
        patch_size=model.config.patch_hw,
        title=_lines(parts),
    )


def _lines(parts: Sequence[str]) -> str:
    """The parts of a title, on lines of about `TITLE_LENGTH` characters."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) <= TITLE_LENGTH:
            lines[-1] += f"     {part}"
        else:
            lines.append(part)
    return "\n".join(lines)
