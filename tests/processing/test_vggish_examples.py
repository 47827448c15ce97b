"""VGGish's front end: the published formulas in numpy, how a waveform is cut into examples, errors."""

import math

import numpy as np
import pytest
import torch

from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.vggish_examples import cut_examples, vggish_examples

RATE = 16000


def noise(samples: int, channels: int | None = None, seed: int = 0) -> torch.Tensor:
    shape = (samples,) if channels is None else (channels, samples)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def by_hand(samples: np.ndarray) -> np.ndarray:
    """All log-mel rows in float64, with explicit sums: DFT, triangles in mel, log."""
    frames = np.zeros((1 + (len(samples) - 400) // 160, 512))
    for i in range(len(frames)):
        frames[i, :400] = samples[160 * i : 160 * i + 400] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
    magnitude = np.abs(frames @ np.exp(-2j * np.pi * np.outer(np.arange(512), np.arange(257)) / 512))

    def mel_of(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges, bins = np.linspace(mel_of(125), mel_of(7500), 66), mel_of(np.arange(257) * RATE / 512)
    bank = np.zeros((257, 64))
    for m in range(64):
        left, centre, right = edges[m : m + 3]
        bank[:, m] = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    bank[0] = 0
    return np.log(magnitude @ bank + 0.01)


SECONDS = np.arange(32000) / RATE
SIGNALS = {
    "noise": noise(32000).numpy(),
    "chirp": np.sin(2 * np.pi * (20 * SECONDS + 2000 * SECONDS**2)),
    "tone": 0.9 * np.sin(2 * np.pi * 1000 * SECONDS),  # loud in one bin, and quiet in the others
    "silence": np.zeros(32000),
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_equals_the_explicit_formula(signal):
    waveform = SIGNALS[signal].astype(np.float32)
    expected = by_hand(waveform.astype(np.float64))[:192].reshape(2, 96, 64)
    examples = vggish_examples(torch.from_numpy(waveform), RATE)
    assert examples.dtype == torch.float32
    np.testing.assert_allclose(examples.numpy(), expected, rtol=0, atol=1e-6)


def test_float32_is_close_where_nothing_is_much_louder_than_the_rest():
    """`double_precision` rounds less and changes nothing else."""
    single = AVFusionFeatureExtractor.from_preset("vggish", double_precision=False)
    difference = vggish_examples(noise(RATE), RATE) - vggish_examples(noise(RATE), RATE, single)
    assert 0 < difference.abs().max() < 1e-4
    tone = torch.from_numpy(SIGNALS["tone"]).float()
    assert (vggish_examples(tone, RATE) - vggish_examples(tone, RATE, single)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("samples", "count"), [(400, 0), (15599, 0), (15600, 1), (RATE, 1), (30959, 1), (30960, 2), (5 * RATE, 5)]
)
def test_whole_examples_only(samples, count):
    """95 hops and a frame make an example; each further one takes 96 hops."""
    assert vggish_examples(noise(samples), RATE).shape == (count, 96, 64)


def test_examples_follow_each_other_without_overlap():
    waveform = noise(3 * RATE)
    examples = vggish_examples(waveform, RATE)
    for index, example in enumerate(examples):
        (alone,) = vggish_examples(waveform[96 * 160 * index :][:15600], RATE)
        assert torch.equal(alone, example)
    rows = torch.arange(200.0)[:, None].expand(200, 3)
    assert cut_examples(rows)[:, :, 0].flatten().tolist() == list(range(192))


def test_channels_are_averaged():
    stereo = noise(RATE, channels=2)
    assert torch.equal(vggish_examples(stereo, RATE), vggish_examples(stereo.mean(dim=0), RATE))
    assert torch.equal(vggish_examples(stereo[:1], RATE), vggish_examples(stereo[0], RATE))


def test_other_rates_are_refused_or_resampled():
    tone = torch.sin(2 * math.pi * 440 * torch.arange(44100) / 44100)
    with pytest.raises(ValueError, match="sampling_rate=44100 Hz, but these features need 16000 Hz"):
        vggish_examples(tone, 44100)
    resampled = vggish_examples(tone, 44100, do_resample=True)[0, 5:-5]
    expected = vggish_examples(torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE), RATE)[0, 5:-5]
    assert torch.equal(resampled.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.rand(399), "audio has 399 samples, but framing 'snip' needs at least one frame of 400"),
        (torch.full((RATE,), float("nan")), "16000 NaN or infinite values"),
        (torch.ones(2, RATE, dtype=torch.int16), "a waveform is mono"),
        (torch.ones(RATE, dtype=torch.int16), "integers"),
        (torch.rand(2, 2, RATE), "a waveform is mono"),
    ],
)
def test_errors(waveform, message):
    with pytest.raises(ValueError, match=message):
        vggish_examples(waveform, RATE)


def test_a_front_end_of_fixed_length_is_refused():
    front_end = AVFusionFeatureExtractor.from_preset("vggish", spectrogram_length=96)
    with pytest.raises(ValueError, match="spectrogram_length=96, but examples are cut from all rows"):
        vggish_examples(noise(RATE), RATE, front_end)
