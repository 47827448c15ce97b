"""Mixing to mono, and the warning where channels cancel."""

import warnings

import pytest
import torch
from rendering import render_clip, sound

from hf_avfusion.media.mono import to_mono
from hf_avfusion.media.reader import read_clip


def test_mono_by_mean_and_its_alternatives():
    stereo = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert to_mono(stereo).tolist() == [2.0, -1.0]
    assert to_mono(stereo, "left").tolist() == [1.0, 2.0]
    assert to_mono(stereo, "max_energy").tolist() == [3.0, -4.0]
    with pytest.raises(ValueError, match="max_energy"):
        to_mono(stereo, "right")
    with pytest.raises(ValueError, match=r"\[channels, samples\]"):
        to_mono(stereo[0])


def test_channels_in_opposite_phase_warn_with_the_remedy():
    waveform = read_clip(render_clip(audio="antiphase", channels=2), audio_window=(0, 2)).waveform
    with pytest.warns(UserWarning, match="how='left'"):
        mean = to_mono(waveform)
    assert mean.abs().max() < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_mono(waveform, "left").abs().max() > 0.4
        to_mono(torch.zeros(2, 100))  # silence is not cancellation
        to_mono(torch.from_numpy(sound("chirp", 1000, 16000, channels=2)))
