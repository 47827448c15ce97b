"""Resamples waveforms between any two rates, with memory and time that do not depend on how the rates divide.

torchaudio's filter bank has about (old x new) / gcd^2 values: 441 x 160 from 44,100 Hz to 16,000 Hz, but 44,101 x 16,000 (12 GB)
from 44,101 Hz. Where it is larger than MAX_TAPS or MAX_KERNEL_VALUES, the filter of `scipy.signal.resample_poly` (a sinc of 10 zero
crossings with a Kaiser window) is tabulated at PHASES positions per zero crossing and interpolated linearly between them. The
positions of the samples stay exact. The result differs from scipy's by less than 2e-5 of the largest sample.
"""

import math
import numbers
from functools import lru_cache

import torch

MAX_RATE = 768_000  # Hz; the highest rate of audio interfaces
MAX_TAPS, MAX_KERNEL_VALUES = 1024, 2**20  # of torchaudio's bank; from 44,100 Hz to 16,000 Hz it has 475 and 76,000
ZERO_CROSSINGS, KAISER_BETA = 10, 5.0  # scipy's defaults
PHASES = 256  # per zero crossing; linear interpolation is then exact to pi^2 / 24 / 256^2 = 6e-6
BLOCK_VALUES = 2**20  # weights that are held at once, 4 MB


def check_rate(rate: float, name: str) -> None:
    """Raises ValueError for a sampling rate (Hz) that is not a whole number from 1 to MAX_RATE."""
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not number or rate != rate or not 1 <= rate <= MAX_RATE or rate != int(rate):
        raise ValueError(
            f"{name}={rate!r} Hz: rates must be whole numbers from 1 to {MAX_RATE:,} Hz. Is the rate right?"
        )


def resample(waveform: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Waveform, float32 [samples], at `old` Hz -> [ceil(samples * new / old)] at `new` Hz.

    Equal to `torchaudio.functional.resample` to the bit where its filter bank is small: for all usual rates.

    Raises:
        ValueError: a rate is not a whole number from 1 to MAX_RATE.
    """
    check_rate(old, "sampling_rate")
    check_rate(new, "sampling_rate of the features")
    if old == new:
        return waveform
    common = math.gcd(int(old), int(new))
    old, new = int(old) // common, int(new) // common
    taps = old + 2 * math.ceil(6 * old / (min(old, new) * 0.99))  # torchaudio's 6 zero crossings and roll-off of 0.99
    if taps <= MAX_TAPS and new * taps <= MAX_KERNEL_VALUES:
        return _filter_bank(old, new)(waveform)
    return _interpolate(waveform, old, new)


@lru_cache(maxsize=8)
def _filter_bank(old: int, new: int) -> torch.nn.Module:
    from torchaudio.transforms import Resample

    return Resample(old, new, dtype=torch.float32)  # the precision of the function, so results are bit-identical


@lru_cache(maxsize=8)
def _table(old: int, new: int) -> torch.Tensor:
    """Weights, float32 [2 * width + 1, phases + 1], of the samples around an output that lies phase / phases after one of them."""
    base = min(old, new) / old  # zero crossings per sample
    width, phases = math.ceil(ZERO_CROSSINGS / base), math.ceil(PHASES * base)
    shift = torch.arange(phases + 1, dtype=torch.float64) / phases
    t = (torch.arange(-width, width + 1, dtype=torch.float64)[:, None] - shift) * base
    t.clamp_(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    inside = t.abs() < ZERO_CROSSINGS
    weights = torch.sinc(t) * torch.i0(KAISER_BETA * (1 - (t / ZERO_CROSSINGS) ** 2).sqrt()) * inside
    return (weights / weights.sum(0).mean()).float()  # a constant keeps its value


def _interpolate(waveform: torch.Tensor, old: int, new: int) -> torch.Tensor:
    table = _table(old, new)
    width = table.shape[0] // 2
    taps, phases = table.shape[0], table.shape[1] - 1
    count = -(-len(waveform) * new // old)
    windows = torch.nn.functional.pad(waveform, (width, width)).unfold(0, taps, 1)
    result = waveform.new_empty(count)
    block = max(BLOCK_VALUES // (taps + phases), 1)
    for first in range(0, count, block):
        place = torch.arange(first, min(first + block, count)) * old
        sample, rest = place // new, place % new * phases
        phase, share = rest // new, (rest % new).float() / new
        used, row = torch.unique_consecutive(sample, return_inverse=True)
        # One product for all phases is faster than weights of its own for each output.
        values = windows[used] @ table
        result[first : first + block] = torch.lerp(values[row, phase], values[row, phase + 1], share)
    return result


__all__ = ["MAX_RATE", "check_rate", "resample"]
