"""
Losses of LAVISH: masks (AVSBench-S4), audio-visual matching of masks, and event localisation (AVE).

From the code of "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (Lin et al., CVPR 2023) and, for masks, of
AVSBench ("Audio-Visual Segmentation", Zhou et al., ECCV 2022, section 4.3). All are computed in float32 with autocast off.

The published code applies `nn.BCELoss` to probabilities. In float32 a probability rounds to exactly 0 or 1, and BCELoss limits each
logarithm to -100. So it is not the same function as the stable form, which is an option of each loss:

- Masks: above a logit of about 16.6, a wrong background pixel costs 100 and has no gradient. On object pixels the gradient fades
  below a logit of about -27.6, and the cost reaches 100 from about -105.
- Events: once the top probability rounds to 1 (a gap above about 17.3), the gradient of a wrong row explodes, then vanishes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from ..shared.losses_classification import IGNORED_LABEL, classification_loss
from .options_lavish import LOCALIZATION_LOSSES, MASK_LOSSES, MASK_POOLINGS, check_matching_stages

NO_MASK = 255  # value of all pixels of a second without a mask
MATCHING_EPSILON = 1e-6


def mask_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str = "bce_of_probabilities") -> torch.Tensor:
    """
    Binary cross-entropy of masks, averaged over pixels and then over the seconds that have a mask.

    Args:
        logits: float [B, S, H, W].
        labels: [B, S, H, W] of 0 and 1 (integer, bool or float). 255 in all pixels of a second without a mask, which does not
            count. Published: the first second of each clip has one.
        kind: `"bce_of_probabilities"` (published: BCELoss of the sigmoid) or `"bce_with_logits"` (stable).

    Returns:
        float32 scalar; 0 if no second has a mask.

    Raises:
        ValueError: On an unknown `kind`, other shapes, and on CPU other values in `labels` or seconds that mix 255 with 0 and 1.
    """
    _check_choice("kind", kind, MASK_LOSSES)
    _check_masks(logits, labels)
    with maybe_autocast(logits.device.type, enabled=False):
        counted = labels != NO_MASK
        targets = torch.where(counted, labels, 0).to(logits.device, torch.float32)
        if kind == "bce_with_logits":
            losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        else:
            losses = nn.functional.binary_cross_entropy(logits.float().sigmoid(), targets, reduction="none")
        pixels = counted.sum(dim=(2, 3))
        seconds = torch.where(counted, losses, 0.0).sum(dim=(2, 3)) / pixels.clamp(min=1)
        return seconds.sum() / (pixels > 0).sum().clamp(min=1)


def _check_masks(logits: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` must be masks of the logits' shape [clips, seconds, height, width] = {tuple(logits.shape)}, got "
            f"{tuple(labels.shape)}."
        )
    # Reading values synchronises with the GPU and breaks a graph. There the checks of the collator must suffice.
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    empty = labels == NO_MASK
    unknown = ~(empty | (labels == 0) | (labels == 1))
    if unknown.any():
        raise ValueError(
            f"`labels` must hold 0, 1, and {NO_MASK} for a second without a mask, got {labels[unknown][0].item()}."
        )
    mixed = (empty.any(dim=(2, 3)) & ~empty.all(dim=(2, 3))).nonzero().tolist()
    if mixed:
        raise ValueError(
            f"`labels` mix {NO_MASK} with 0 or 1 in clip {mixed[0][0]}, second {mixed[0][1]}. {NO_MASK} marks a whole second "
            "without a mask; masks must hold 0 and 1."
        )


def matching_loss(
    logits: torch.Tensor,
    feature_maps: Sequence[torch.Tensor],
    audio_features: Sequence[torch.Tensor | None],
    stages: Sequence[int],
    pooling: str = "avg",
    paired: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Audio-visual matching of masks, averaged over all seconds, then over stages: see `matching_losses`.

    Args:
        logits, feature_maps, audio_features, stages, pooling: See `matching_losses`.
        paired (bool [B], *optional*): Clips with frames and audio. The others do not count. None if all have both.

    Returns:
        float32 scalar; 0 if no clip has both.

    Raises:
        ValueError: See `matching_losses`.
    """
    losses = matching_losses(logits, feature_maps, audio_features, stages, pooling)
    if paired is None:
        return losses.mean()
    counted = paired.to(losses.device)[None, :, None]
    total = torch.where(counted, losses, 0.0).sum()
    return total / (counted.sum() * losses.shape[0] * losses.shape[2]).clamp(min=1)


def matching_losses(
    logits: torch.Tensor,
    feature_maps: Sequence[torch.Tensor],
    audio_features: Sequence[torch.Tensor | None],
    stages: Sequence[int],
    pooling: str = "avg",
) -> torch.Tensor:
    """
    Matching loss of each second: -log(relu(cos(m, U)) + 1e-6), with m the mean of a stage's map over the predicted mask.

    The mask is pooled to the size of the map and takes part where it is above 0.5. It has no gradient. A second with an empty
    mask has m = 0.

    Args:
        logits: float [B, S, H, W].
        feature_maps: 4 maps, float [B * S, C, h_i, w_i].
        audio_features: 4 entries, U float [B, S, C], or None for a stage without TPAVI video-audio attention.
        stages: Stages that take part, counted from 0.
        pooling: `"avg"` or `"max"`.

    Returns:
        float32 [stages, B, S].

    Raises:
        ValueError: On an unknown `pooling`, and on stages without TPAVI video-audio attention.
    """
    _check_choice("pooling", pooling, MASK_POOLINGS)
    check_matching_stages(stages, [stage for stage, feature in enumerate(audio_features) if feature is not None])
    with maybe_autocast(logits.device.type, enabled=False):
        losses = []
        for stage in stages:
            maps = feature_maps[stage].float()
            mask = pooled_masks(logits, maps.shape[2:], pooling).flatten(0, 1).unsqueeze(1).float()
            masked_mean = (maps * mask).sum(dim=(2, 3)) / (mask.sum(dim=(2, 3)) + MATCHING_EPSILON)
            visual = nn.functional.normalize(masked_mean, dim=-1)
            audio = nn.functional.normalize(audio_features[stage].float().flatten(0, 1), dim=-1)
            similarity = (visual * audio).sum(dim=-1)
            losses.append(-(nn.functional.relu(similarity) + MATCHING_EPSILON).log())
        return torch.stack(losses).unflatten(1, logits.shape[:2])


def pooled_masks(logits: torch.Tensor, size: Sequence[int], pooling: str) -> torch.Tensor:
    """Predicted masks at the size of a map: logits [B, S, H, W] -> bool [B, S, *size], pooled sigmoid above 0.5."""
    probabilities = logits.detach().float().sigmoid()
    pool = nn.functional.adaptive_avg_pool2d if pooling == "avg" else nn.functional.adaptive_max_pool2d
    return pool(probabilities, tuple(size)) > 0.5


def localization_loss(
    logits: torch.Tensor, labels: torch.Tensor, kind: str = "cross_entropy", label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    Loss of event localisation: a class for each second, such as AVE's 28 events and background.

    The two BCE forms compare the softmax with the one-hot label, as a mean over all B * S * C entries.

    Args:
        logits: float [B, S, C].
        labels: class indices, long [B, S], of which -100 does not count, or class probabilities, float [B, S, C].
        kind: `"cross_entropy"`, `"bce_of_probabilities"` (published: BCELoss of the softmax; its gradient explodes on saturated
            wrong rows) or `"bce_of_log_probabilities"` (the same function, computed from log-probabilities, so stable).
        label_smoothing: s in `y <- y (1 - s) + s / C`.

    Returns:
        float32 scalar; 0 if no label counts.

    Raises:
        ValueError: On an unknown `kind`, and if the shape of `labels` does not fit.
    """
    _check_choice("kind", kind, LOCALIZATION_LOSSES)
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:-1]):
        raise ValueError(
            f"`labels` must be class indices [clips, seconds] = {tuple(logits.shape[:-1])} or probabilities "
            f"{tuple(logits.shape)}, got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    with maybe_autocast(logits.device.type, enabled=False):
        logits, labels = logits.float().flatten(0, 1), labels.flatten(0, 1)
        if kind == "cross_entropy":
            return classification_loss(logits, labels, "single_label_classification", label_smoothing).mean()
        counted = (labels != IGNORED_LABEL).all(dim=1) if soft else labels != IGNORED_LABEL
        targets = torch.where(counted[:, None] if soft else counted, labels, 0)
        targets = targets.float() if soft else nn.functional.one_hot(targets.long(), logits.shape[-1]).float()
        targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        if kind == "bce_of_probabilities":
            losses = nn.functional.binary_cross_entropy(logits.softmax(dim=-1), targets, reduction="none")
        else:
            losses = -(targets * logits.log_softmax(dim=-1) + (1 - targets) * log_complements(logits))
        rows = torch.where(counted, losses.mean(dim=-1), 0.0)
        return rows.sum() / counted.sum().clamp(min=1)


def log_complements(logits: torch.Tensor) -> torch.Tensor:
    """log(1 - softmax(logits)) over the last axis, without cancellation where a probability rounds to 1."""
    log_probabilities = logits.log_softmax(dim=-1)
    top = nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).bool()
    # Probabilities below the top are at most 1/2. The top's complement is the sum of the others.
    below = torch.log1p(-log_probabilities.masked_fill(top, float("-inf")).exp())
    others = log_probabilities.masked_fill(top, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.where(top, others, below)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
