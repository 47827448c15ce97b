"""Training augmentations as the originals published them; every random number comes from the generator that is passed in.

Sources: the data pipelines of MBT and AV-MAE (scenic), and lingvo 0.11's spectrum augmenter that both call. Frames are
augmented clip by clip, before the processor; spectrograms batch by batch, after its normalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


@dataclass(frozen=True)
class FrameAugmentation:
    """Scale jitter, crop, flip, colour and grayscale, drawn once per clip and the same for all its frames.

    The defaults are MBT's AudioSet recipe. In its order: resize the short side, stretch height and width by
    independent factors, crop, flip, then (in floats, not rounded again) colour and grayscale.

    Args:
        crop: side of the square crop in pixels.
        shortest_edge: short side before the jitter, in pixels. `shortest_edge * scale[0]` must not fall below `crop`.
        scale: range of the two factors, or None for no jitter.
        flip: probability of a horizontal flip.
        color: probability of brightness, saturation, contrast and hue together.
        brightness: largest shift, on a scale of 0..1.
        saturation, contrast: ranges of factors.
        hue: largest rotation, in turns.
        grayscale: probability.
    """

    crop: int = 224
    shortest_edge: int = 256
    scale: tuple[float, float] | None = (0.9, 1.33)
    flip: float = 0.5
    color: float = 0.8
    brightness: float = 32 / 255
    saturation: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.6, 1.4)
    hue: float = 0.2
    grayscale: float = 0.1

    def __post_init__(self):
        for name in ("flip", "color", "grayscale"):
            _check_probability(name, getattr(self, name))
        smallest = self.shortest_edge * (self.scale[0] if self.scale else 1.0)
        if int(smallest) < self.crop:
            raise ValueError(
                f"a crop of {self.crop} does not fit a short side of {self.shortest_edge} scaled by"
                f" {self.scale[0] if self.scale else 1.0}; raise shortest_edge or the lower end of scale"
            )

    @classmethod
    def for_processor(cls, video_processor: Any, **overrides: Any) -> FrameAugmentation:
        """The recipe at the crop and short side of a video processor; `overrides` replace single fields.

        A short side that the jitter could shrink below the crop (a processor that only resizes has none to spare) is
        raised to the smallest that it cannot.
        """
        crop = video_processor.crop_size if video_processor.do_center_crop else video_processor.size
        sides = {crop.height, crop.width}
        if len(sides) != 1 or None in sides:
            raise ValueError(
                f"the processor's frames are not square ({crop}); give FrameAugmentation crop and shortest_edge"
            )
        overrides.setdefault("crop", sides.pop())
        scale = overrides.get("scale", cls.scale)
        needed = math.ceil(overrides["crop"] / (scale[0] if scale else 1.0))
        overrides.setdefault("shortest_edge", max(video_processor.size.shortest_edge or 0, needed))
        return cls(**overrides)

    def __call__(self, frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """uint8 [T, 3, height, width] -> float32 [T, 3, crop, crop] on the scale 0..255."""
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1] != 3:
            raise ValueError(f"frames must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}")
        height, width = frames.shape[-2:]
        short, long = min(height, width), max(height, width)
        if short != self.shortest_edge:
            other = int(self.shortest_edge * long / short)
            size = (self.shortest_edge, other) if height <= width else (other, self.shortest_edge)
            frames = _resize(frames, size)
        if self.scale is not None:
            # TF casts the products to int32, and so rounds down.
            size = tuple(int(side * _uniform(*self.scale, generator)) for side in frames.shape[-2:])
            frames = _resize(frames, size)
        top, left = (torch.randint(side - self.crop + 1, (), generator=generator).item() for side in frames.shape[-2:])
        frames = frames[..., top : top + self.crop, left : left + self.crop]
        if _uniform(0, 1, generator) < self.flip:
            frames = frames.flip(-1)
        frames = frames.float()
        if _uniform(0, 1, generator) < self.color:
            frames = 255 * self._color(frames / 255, generator)
        if _uniform(0, 1, generator) < self.grayscale:
            weights = torch.tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)  # the weights of tf.image
            frames = (frames * weights).sum(-3, keepdim=True).expand_as(frames)
        return frames.contiguous()

    def _color(self, frames: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        frames = frames + _uniform(-self.brightness, self.brightness, generator)
        frames = adjust_saturation(frames, _uniform(*self.saturation, generator))
        mean = frames.mean(dim=(-2, -1), keepdim=True)  # per frame and channel, as tf.image.adjust_contrast
        frames = (frames - mean) * _uniform(*self.contrast, generator) + mean
        frames = adjust_hue(frames, _uniform(-self.hue, self.hue, generator))
        return frames.clamp(0.0, 1.0)  # only now, so that earlier steps may overshoot


def _resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear without antialiasing, cut (not rounded) to uint8, as tf.image.resize and a cast do."""
    return F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False).to(torch.uint8)


def adjust_saturation(frames: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies HSV saturation of [..., 3, H, W] by `factor`, capped at 1, keeping hue and value."""
    value = frames.amax(-3, keepdim=True)
    saturation = torch.where(value > 0, 1 - frames.amin(-3, keepdim=True) / value.clamp(min=1e-12), 0.0)
    change = torch.where(saturation > 0, (saturation * factor).clamp(0, 1) / saturation.clamp(min=1e-12), 0.0)
    return value - (value - frames) * change


def adjust_hue(frames: torch.Tensor, turns: float) -> torch.Tensor:
    """Rotates the HSV hue of [..., 3, H, W] by `turns`, keeping saturation and value."""
    red, green, blue = frames.unbind(-3)
    value, index = frames.max(-3)
    spread = value - frames.amin(-3)
    safe = torch.where(spread > 0, spread, 1.0)
    sector = torch.where(
        index == 0, (green - blue) / safe, torch.where(index == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    # Channel n of (red, green, blue) peaks where its distance to 5, 3, 1 on the circle of six sectors says so.
    shifted = torch.stack([(sector + 6 * turns + offset) % 6 for offset in (5, 3, 1)], dim=-3)
    drop = torch.minimum(shifted, 4 - shifted).clamp(0, 1)
    return value.unsqueeze(-3) - spread.unsqueeze(-3) * drop


def random_time_shift(features: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Rolls each spectrogram of [B, time, mel] along time by a uniform number of rows in [0, time), wrapping (AV-MAE)."""
    batch, length, _ = features.shape
    shift = torch.randint(length, (batch, 1), generator=generator)
    rows = (torch.arange(length) - shift) % length
    return features.gather(1, rows.to(features.device).unsqueeze(-1).expand_as(features))


@dataclass(frozen=True)
class SpecAugment:
    """Time warp, time masks and frequency masks on normalised spectrograms, with the semantics of lingvo 0.11.

    The defaults are the settings that MBT ships. With them **only the frequency mask acts**: a `max_ratio` of 0 makes
    lingvo return before it masks or warps. For what the settings seem to say, give `time_mask_max_ratio=1.0`.
    Masked values become 0, which after normalisation is the mean of the data set.

    Args:
        freq_mask_max_bins, freq_mask_count: width of a mask is floor(max_bins * u), u in [0, 1), at most all bins.
        time_mask_max_frames, time_mask_count: width is floor(max_frames * u), at most `time_mask_max_ratio` of the
            length (but one frame is always allowed).
        time_mask_max_ratio: <= 0 turns time masks off.
        time_warp_max_frames: the anchor moves by a uniform integer in [-max_frames, max_frames], at most
            `time_warp_max_ratio` of the length.
        time_warp_max_ratio: <= 0 turns the warp off.
    """

    freq_mask_max_bins: int = 48
    freq_mask_count: int = 1
    time_mask_max_frames: int = 48
    time_mask_count: int = 4
    time_mask_max_ratio: float = 0.0
    time_warp_max_frames: int = 1
    time_warp_max_ratio: float = 0.0

    def __post_init__(self):
        names = ("freq_mask_max_bins", "freq_mask_count", "time_mask_max_frames", "time_mask_count")
        for name in (*names, "time_warp_max_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def __call__(self, features: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """float [B, time, mel] -> the same shape, a new tensor; every spectrogram has masks of its own."""
        if features.dim() != 3:
            raise ValueError(f"features must be [B, time, mel], got {tuple(features.shape)}")
        batch, length, bins = features.shape
        features = features.clone()
        if self.time_warp_max_frames > 0 and self.time_warp_max_ratio > 0 and length > 2:
            features = self._warp(features, generator)
        if self.time_mask_max_frames > 0 and self.time_mask_count > 0 and self.time_mask_max_ratio > 0:
            masked = _random_spans(
                (batch, self.time_mask_count), length, self.time_mask_max_frames, self.time_mask_max_ratio, generator
            )
            features.masked_fill_(masked.to(features.device).unsqueeze(2), 0.0)
        if self.freq_mask_max_bins > 0 and self.freq_mask_count > 0:
            masked = _random_spans((batch, self.freq_mask_count), bins, self.freq_mask_max_bins, 1.0, generator)
            features.masked_fill_(masked.to(features.device).unsqueeze(1), 0.0)
        return features

    def _warp(self, features: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        batch, length, _ = features.shape
        most = min(self.time_warp_max_frames, int(self.time_warp_max_ratio * length))
        reach = self.time_warp_max_frames
        # Drawn from the whole range, then cut: the ends are more likely when the ratio bounds. So does lingvo.
        shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator).clamp(-most, most)
        origin = (torch.rand(batch, 1, generator=generator) * (length - 2)).floor() + 1
        target = (origin + shift).clamp(1, length - 1)
        # Row i shows the piecewise linear place that maps 0 -> 0, target -> origin, length -> length.
        rows = torch.arange(length, dtype=torch.float32).expand(batch, length)
        late = origin + (length - origin) / (length - target) * (rows - target)
        place = torch.where(rows < target, rows * origin / target, late).clamp(max=length - 1)
        low = place.floor()
        part = (place - low).to(features).unsqueeze(2)
        low = low.long()
        index = [
            rows.to(features.device).unsqueeze(2).expand_as(features) for rows in (low, (low + 1).clamp(max=length - 1))
        ]
        return features.gather(1, index[0]) * (1 - part) + features.gather(1, index[1]) * part


def _random_spans(
    shape: tuple[int, int], size: int, longest: int, max_ratio: float, generator: torch.Generator | None
) -> torch.Tensor:
    """bool [shape[0], size]: the union of shape[1] random spans within 0..size, per row."""
    length = (longest * torch.rand(shape, generator=generator)).long().clamp(max=max(int(max_ratio * size), 1))
    start = (torch.rand(shape, generator=generator) * (size - length + 1)).long()
    places = torch.arange(size)
    return ((places >= start.unsqueeze(2)) & (places < (start + length).unsqueeze(2))).any(dim=1)


def draw_mixup(alpha: float, generator: torch.Generator | None = None) -> float:
    """lambda ~ Beta(alpha, alpha)."""
    if alpha <= 0:
        raise ValueError(f"mixup alpha must be positive, got {alpha}")
    # torch's own Beta takes no generator; numpy's is seeded from ours.
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mix(values: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """weight * values + (1 - weight) * reversed batch: the partner of item i is item B - 1 - i (scenic's mixup).

    Args:
        values: float [B, ...].
        weight: lambda, one number or one per item [B] (equal for the two items of a pair).
    """
    if isinstance(weight, torch.Tensor):
        weight = weight.to(values).view(-1, *[1] * (values.dim() - 1))
    return weight * values + (1 - weight) * values.flip(0)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a probability in 0..1, got {value}")
