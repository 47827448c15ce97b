"""Resampling between any two rates: equal to torchaudio for usual rates, bounded for the others, refused beyond the limit."""

import struct
import time

import pytest
import torch
from scipy.signal import resample_poly
from torchaudio.functional import resample as reference

from hf_avfusion import MBTProcessor
from hf_avfusion.evaluation.costs import PeakMemory
from hf_avfusion.media.reader import MediaError, read_clip
from hf_avfusion.media.resampling import MAX_RATE, resample
from hf_avfusion.media.windows import WindowPolicy, load_window

NEW = 16_000


def tones(rate: int, seconds: float = 1.0) -> torch.Tensor:
    """Tones below 0.6 of the smaller of the two Nyquist frequencies, faded in and out, since filters differ at edges."""
    count = round(rate * seconds)
    time_ = torch.arange(count, dtype=torch.float64) / rate
    top = 0.6 * min(rate, NEW) / 2
    wave = sum(torch.sin(2 * torch.pi * top * part * time_ + part) for part in (0.1, 0.37, 0.7, 1.0)) / 4
    return (wave * torch.hann_window(count, dtype=torch.float64)).float()


def wav(rate: int, samples: int) -> bytes:
    data = b"\1\0" * samples
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, (rate * 2) % 2**32,
                       2, 16, b"data", len(data))  # fmt: skip
    return head + data


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000, 192000])
def test_usual_rates_equal_torchaudio_to_the_bit(rate):
    waveform = torch.randn(rate // 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample(waveform, rate, NEW), reference(waveform, rate, NEW))


@pytest.mark.parametrize("rate", [1009, 5513, 11127, 22255, 44056, 44101, 192007, 767999])
def test_other_rates_equal_polyphase_filtering_in_band_in_little_time_and_memory(rate):
    waveform = tones(rate)
    expected = torch.from_numpy(resample_poly(waveform.double().numpy(), NEW, rate)).float()
    resample(waveform, rate, NEW)  # makes the weights
    with PeakMemory(
        "cpu", PeakMemory.now("cpu")
    ) as peak:  # collects garbage first, which takes seconds after many tests
        start = time.process_time()
        result = resample(waveform, rate, NEW)
        elapsed = time.process_time() - start
    assert elapsed < 1
    assert peak.mib is None or peak.mib < 32  # measured: at most 11
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 2e-5  # measured: at most 5.2e-6


@pytest.mark.parametrize("rate", [6001, 44101, 767999])
def test_noise_at_other_rates_equals_polyphase_filtering(rate):
    """At all frequencies and at the edges, where another filter differs most."""
    waveform = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(resample_poly(waveform.double().numpy(), NEW, rate)).float()
    assert (resample(waveform, rate, NEW) - expected).abs().max() < 2e-5 * waveform.abs().max()


@pytest.mark.parametrize("rate", [0, -1, MAX_RATE + 1, 2**31 - 1, 44100.5, float("nan"), float("inf")])
def test_rates_out_of_range_are_refused_for_arrays(rate):
    with pytest.raises(ValueError, match=r"sampling_rate=.* Hz"):
        resample(torch.zeros(10), rate, NEW)
    with pytest.raises(ValueError, match=r"sampling_rate=.* Hz"):
        MBTProcessor().feature_extractor(torch.zeros(10), sampling_rate=rate, do_resample=True)


def test_a_file_that_states_an_absurd_rate_is_refused_at_once():
    start = time.process_time()
    for read in (MBTProcessor(), lambda audio: read_clip(audio, audio_window=(0, 1))):
        with pytest.raises(MediaError, match=r"2147483647 Hz: rates must be whole numbers from 1 to 768,000 Hz"):
            read(audio=wav(2**31 - 1, 1))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("samples", [1, 7, 1000, 7000])
def test_a_short_track_wraps_to_the_same_waveform_however_often(samples, monkeypatch):
    policy = WindowPolicy(audio_seconds=2.0, audio_grid=None)
    generator = torch.Generator()
    (few,) = load_window(wav(48_000, samples), policy, mode="train", generator=generator.manual_seed(1))
    monkeypatch.setattr("hf_avfusion.media.windows.MAX_REPEATS", 10**9)
    (many,) = load_window(wav(48_000, samples), policy, mode="train", generator=generator.manual_seed(1))
    assert few.waveform.shape == (1, 96_000)
    assert torch.equal(few.waveform, many.waveform)
    assert (few.audio_start, few.warnings) == (many.audio_start, many.warnings)
