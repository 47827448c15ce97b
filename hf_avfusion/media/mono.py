"""Mixes several audio channels to mono."""

import warnings
from collections.abc import Callable

import torch

ANTIPHASE = 1e-3  # to_mono warns if the mean of the channels keeps less than this share of the energy


def _antiphase_share(waveform: torch.Tensor, mean: torch.Tensor) -> float:
    flat = waveform.reshape(-1)
    energy = torch.dot(flat, flat).item() / flat.numel()
    return 1.0 if energy < 1e-10 else torch.dot(mean, mean).item() / mean.numel() / energy


def _loudest(waveform: torch.Tensor) -> torch.Tensor:
    return waveform[waveform.square().sum(dim=1).argmax()]


TO_MONO: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda waveform: waveform.mean(dim=0),
    "left": lambda waveform: waveform[0],
    "max_energy": _loudest,
}


def to_mono(waveform: torch.Tensor, how: str = "mean") -> torch.Tensor:
    """Waveform [channels, samples] -> [samples].

    how: "mean" of all channels, as in the originals; "left", the first channel; "max_energy", the loudest channel. The mean
        of channels in opposite phase is silent: a UserWarning reports it and names the other two.
    """
    if waveform.ndim != 2 or waveform.shape[0] == 0:
        raise ValueError(f"to_mono takes a waveform [channels, samples], got shape {tuple(waveform.shape)}")
    if how not in TO_MONO:
        raise ValueError(f"how must be one of {', '.join(map(repr, TO_MONO))}, got {how!r}")
    if waveform.shape[0] == 1:
        return waveform[0]
    mono = TO_MONO[how](waveform)
    if how == "mean" and waveform.shape[1] and _antiphase_share(waveform, mono) < ANTIPHASE:
        warnings.warn(
            "the channels cancel: their mean is nearly silent although they are not (opposite phase); "
            "use to_mono(waveform, how='left') or how='max_energy'",
            stacklevel=2,
        )
    return mono
