"""Training augmentations of the original implementations. Every random number comes from the given generator.

Sources: the data pipelines of MBT and AV-MAE (scenic), and lingvo 0.11's spectrum augmenter, which both use. Frames are
augmented per clip before the processor, spectrograms per batch after the processor's normalisation.
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
    """Scale jitter, crop, flip, colour jitter and grayscale, drawn once per clip and applied to all its frames.

    The defaults and the order are those of MBT's AudioSet recipe: resize the short side, scale height and width by
    independent factors, crop, flip, then (in floats, without rounding) colour jitter and grayscale.

    Args:
        crop: side of the square crop in pixels.
        shortest_edge: short side before the jitter, in pixels. `shortest_edge * scale[0]` must be at least `crop`.
        scale: range of the two factors, or None for no jitter.
        flip: probability of a horizontal flip.
        color: probability of the colour jitter (brightness, saturation, contrast and hue together).
        brightness: largest shift, on a scale of 0..1.
        saturation, contrast: ranges of the factors.
        hue: largest rotation, in turns.
        grayscale: probability of conversion to grayscale.
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
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be a probability in 0..1, got {getattr(self, name)}")
        smallest = self.shortest_edge * (self.scale[0] if self.scale else 1.0)
        if int(smallest) < self.crop:
            raise ValueError(
                f"a crop of {self.crop} does not fit a short side of {self.shortest_edge} scaled by"
                f" {self.scale[0] if self.scale else 1.0}; increase shortest_edge or the lower end of scale"
            )

    @classmethod
    def for_processor(cls, video_processor: Any, **overrides: Any) -> FrameAugmentation:
        """Makes the recipe with the crop and short side of a video processor; `overrides` replace single fields.

        The jitter could shrink the short side below the crop, for example if the processor only resizes. Then the short
        side is increased to the smallest possible value.
        """
        crop = video_processor.crop_size if video_processor.do_center_crop else video_processor.size
        sides = {crop.height, crop.width}
        if len(sides) != 1 or None in sides:
            raise ValueError(
                f"the processor's frames must be square, got {crop}; pass crop and shortest_edge to FrameAugmentation"
            )
        overrides.setdefault("crop", sides.pop())
        scale = overrides.get("scale", cls.scale)
        needed = math.ceil(overrides["crop"] / (scale[0] if scale else 1.0))
        overrides.setdefault("shortest_edge", max(video_processor.size.shortest_edge or 0, needed))
        return cls(**overrides)

    def __call__(self, frames: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """uint8 [T, 3, height, width] -> float32 [T, 3, crop, crop] on the scale 0..255."""
        return self.with_masks(frames, None, generator)[0]

    def with_masks(
        self, frames: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As a call, and moves masks of the same field of view with the frames, by the same draws.

        Args:
            masks: uint8 [n, h, w], of any size, or None.

        Returns:
            Frames, and masks uint8 [n, crop, crop], whose pixels are the nearest ones of the given masks.
        """
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[1] != 3:
            raise ValueError(f"frames must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}")
        frames = self.reduce(frames)
        if self.scale is not None:
            # TF casts the products to int32, which rounds down.
            size = tuple(int(side * _uniform(*self.scale, generator)) for side in frames.shape[-2:])
            frames = _resize(frames, size)
        top, left = (torch.randint(side - self.crop + 1, (), generator=generator).item() for side in frames.shape[-2:])
        if masks is not None:
            masks = F.interpolate(masks[None], size=frames.shape[-2:], mode="nearest-exact")[0]
            masks = masks[..., top : top + self.crop, left : left + self.crop]
        frames = frames[..., top : top + self.crop, left : left + self.crop]
        if _uniform(0, 1, generator) < self.flip:
            frames, masks = frames.flip(-1), None if masks is None else masks.flip(-1)
        frames = frames.float()
        if _uniform(0, 1, generator) < self.color:
            frames = 255 * self._color(frames / 255, generator)
        if _uniform(0, 1, generator) < self.grayscale:
            weights = torch.tensor([0.2989, 0.5870, 0.1140]).view(3, 1, 1)  # the weights of tf.image
            frames = (frames * weights).sum(-3, keepdim=True).expand_as(frames)
        return frames.contiguous(), None if masks is None else masks.contiguous()

    def reduce(self, frames: torch.Tensor) -> torch.Tensor:
        """The first step alone, which draws nothing: uint8 [T, 3, H, W] to `shortest_edge`. Frames of that size are returned."""
        height, width = frames.shape[-2:]
        short, long = min(height, width), max(height, width)
        if short == self.shortest_edge:
            return frames
        other = int(self.shortest_edge * long / short)
        return _resize(frames, (self.shortest_edge, other) if height <= width else (other, self.shortest_edge))

    def _color(self, frames: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        frames = frames + _uniform(-self.brightness, self.brightness, generator)
        frames = adjust_saturation(frames, _uniform(*self.saturation, generator))
        mean = frames.mean(dim=(-2, -1), keepdim=True)  # per frame and channel, like tf.image.adjust_contrast
        frames = (frames - mean) * _uniform(*self.contrast, generator) + mean
        frames = adjust_hue(frames, _uniform(-self.hue, self.hue, generator))
        return frames.clamp(0.0, 1.0)  # only at the end, so that values may exceed the range in between


def _resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes bilinearly without antialiasing and truncates (not rounds) to uint8, like tf.image.resize and a cast."""
    return F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False).to(torch.uint8)


def adjust_saturation(frames: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiplies the HSV saturation of [..., 3, H, W] by `factor`, limited to 1; keeps hue and value."""
    value = frames.amax(-3, keepdim=True)
    saturation = torch.where(value > 0, 1 - frames.amin(-3, keepdim=True) / value.clamp(min=1e-12), 0.0)
    change = torch.where(saturation > 0, (saturation * factor).clamp(0, 1) / saturation.clamp(min=1e-12), 0.0)
    return value - (value - frames) * change


def adjust_hue(frames: torch.Tensor, turns: float) -> torch.Tensor:
    """Rotates the HSV hue of [..., 3, H, W] by `turns`; keeps saturation and value."""
    red, green, blue = frames.unbind(-3)
    value, index = frames.max(-3)
    spread = value - frames.amin(-3)
    safe = torch.where(spread > 0, spread, 1.0)
    sector = torch.where(
        index == 0, (green - blue) / safe, torch.where(index == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    # HSV to RGB: a channel's value depends on the distance of the hue to 5, 3 and 1 on the circle of six sectors.
    shifted = torch.stack([(sector + 6 * turns + offset) % 6 for offset in (5, 3, 1)], dim=-3)
    drop = torch.minimum(shifted, 4 - shifted).clamp(0, 1)
    return value.unsqueeze(-3) - spread.unsqueeze(-3) * drop


def random_time_shift(features: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Rolls each spectrogram of [B, time, mel] along time by a uniform number of rows in [0, time), like AV-MAE."""
    batch, length, _ = features.shape
    shift = torch.randint(length, (batch, 1), generator=generator)
    rows = (torch.arange(length) - shift) % length
    return features.gather(1, rows.to(features.device).unsqueeze(-1).expand_as(features))


@dataclass(frozen=True)
class SpecAugment:
    """Time warp, time masks and frequency masks on normalised spectrograms, with the semantics of lingvo 0.11.

    The defaults are MBT's published settings. **They apply only the frequency mask**: with a `max_ratio` of 0, lingvo returns
    before it masks or warps. Set `time_mask_max_ratio=1.0` to apply the time masks, too. Masked values become 0, which is the
    mean of the data set after normalisation.

    Args:
        freq_mask_max_bins, freq_mask_count: a mask's width is floor(max_bins * u), u in [0, 1), at most all bins.
        time_mask_max_frames, time_mask_count: a mask's width is floor(max_frames * u), at most `time_mask_max_ratio` of the
            length (but one frame is always allowed).
        time_mask_max_ratio: <= 0 disables time masks.
        time_warp_max_frames: the anchor moves by a uniform integer in [-max_frames, max_frames], at most
            `time_warp_max_ratio` of the length.
        time_warp_max_ratio: <= 0 disables the warp.
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
        """float [B, time, mel] -> a new tensor of the same shape; each spectrogram has its own masks."""
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
        # Like lingvo, draw from the whole range, then clamp; if the ratio limits the range, its ends are more likely.
        shift = torch.randint(-reach, reach + 1, (batch, 1), generator=generator).clamp(-most, most)
        origin = (torch.rand(batch, 1, generator=generator) * (length - 2)).floor() + 1
        target = (origin + shift).clamp(1, length - 1)
        # Row i shows the input at a piecewise linear position, which maps 0 -> 0, target -> origin, length -> length.
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
    """Returns for each row the union of shape[1] random spans within 0..size, bool [shape[0], size]."""
    length = (longest * torch.rand(shape, generator=generator)).long().clamp(max=max(int(max_ratio * size), 1))
    start = (torch.rand(shape, generator=generator) * (size - length + 1)).long()
    places = torch.arange(size)
    return ((places >= start.unsqueeze(2)) & (places < (start + length).unsqueeze(2))).any(dim=1)


def draw_mixup(alpha: float, generator: torch.Generator | None = None) -> float:
    """Draws lambda ~ Beta(alpha, alpha)."""
    if alpha <= 0:
        raise ValueError(f"mixup alpha must be positive, got {alpha}")
    # torch's Beta takes no generator, so numpy's is used, seeded from ours.
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def mix(values: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Computes weight * values + (1 - weight) * reversed batch; the partner of item i is item B - 1 - i (scenic's mixup).

    Args:
        values: float [B, ...].
        weight: lambda, one number or one per item [B] (equal for the two items of a pair).
    """
    if isinstance(weight, torch.Tensor):
        weight = weight.to(values).view(-1, *[1] * (values.dim() - 1))
    return weight * values + (1 - weight) * values.flip(0)
