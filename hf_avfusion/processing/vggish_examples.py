"""Waveforms to the log-mel examples of VGGish: pieces of 0.96 s (harritaylor/torchvggish f3f9096, vggish_input.py)."""

from functools import lru_cache

import torch

from ..media.mono import to_mono
from .feature_extraction_avfusion import AVFusionFeatureExtractor

EXAMPLE_ROWS = 96  # of 10 ms; an example starts where the one before it ends


@lru_cache(maxsize=1)
def vggish_front_end() -> AVFusionFeatureExtractor:
    """The published front end, the preset "vggish"."""
    return AVFusionFeatureExtractor.from_preset("vggish")


def seconds_of_examples(count: int) -> float:
    """The shortest sound that has this many examples, s: 0.975 for one, 1.935 for two."""
    front_end = vggish_front_end()
    samples = (count * EXAMPLE_ROWS - 1) * front_end.hop_length + front_end.win_length
    return samples / front_end.sampling_rate


def vggish_examples(
    waveform: torch.Tensor,
    sampling_rate: int,
    feature_extractor: AVFusionFeatureExtractor | None = None,
    do_resample: bool | None = None,
) -> torch.Tensor:
    """The examples of one waveform, as many as it has whole ones. Rows after the last whole example are dropped, as published.

    An example reads 15,600 samples, 0.975 s at 16 kHz: 1 s gives one example and 5 s give five.

    Args:
        waveform: floats in [-1, 1], [samples] or [channels, samples]; channels are averaged.
        sampling_rate: of the waveform in Hz.
        feature_extractor: the front end, by default the preset "vggish". It returns all rows (`spectrogram_length=None`).
        do_resample: resample a waveform of another rate than the front end's; default: as the front end's field says.

    Returns:
        float32 [n, 96, 64] (time, mel); n is 0 if the waveform is shorter than one example.

    Raises:
        ValueError: what the front end refuses: another sampling rate, NaN or infinite values, integers, fewer samples than one
            frame (400). Also a front end of fixed length.
    """
    if feature_extractor is None:
        feature_extractor = vggish_front_end()
    if feature_extractor.spectrogram_length is not None:
        raise ValueError(
            f"feature_extractor has spectrogram_length={feature_extractor.spectrogram_length}, but examples are cut from all "
            'rows: pass AVFusionFeatureExtractor.from_preset("vggish"), or set spectrogram_length=None'
        )
    if waveform.ndim == 2 and waveform.is_floating_point():  # the front end refuses integers
        waveform = to_mono(waveform)
    features = feature_extractor(
        waveform, sampling_rate=sampling_rate, do_resample=do_resample, return_tensors="pt"
    ).input_features[0]
    return cut_examples(features)


def cut_examples(features: torch.Tensor) -> torch.Tensor:
    """Log-mel [time, mel] -> examples [time // 96, 96, mel], a view. Rows after the last whole example are dropped."""
    count = features.shape[0] // EXAMPLE_ROWS
    return features[: count * EXAMPLE_ROWS].unflatten(0, (count, EXAMPLE_ROWS))


__all__ = ["EXAMPLE_ROWS", "cut_examples", "seconds_of_examples", "vggish_examples", "vggish_front_end"]
