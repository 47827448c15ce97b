"""Frames that are neither requested nor referenced are not decoded; the requested frames stay bit-identical."""

import random

import pytest
import torch
from rendering import read_numbers, render_clip, uneven_times

from hf_avfusion.media.frame_skipper import FrameSkipper
from hf_avfusion.media.reader import read_clip
from hf_avfusion.media.tracks import FrameCollector


@pytest.fixture
def decoded(monkeypatch):
    """One entry per frame that the decoder returned."""
    counts = []
    add = FrameCollector.add

    def counted(self, *args, **options):
        counts.append(1)
        return add(self, *args, **options)

    monkeypatch.setattr(FrameCollector, "add", counted)
    return counts


def read_both_ways(data, times, monkeypatch, decoded):
    """The clip, which is the same with and without skipping, and how many frames each way decoded."""
    results = []
    for decode_all in (False, True):
        with monkeypatch.context() as patch:
            if decode_all:
                patch.setattr(FrameSkipper, "shown", lambda self, stamp: True)
            decoded.clear()
            clip = read_clip(data, frame_times=times, audio_window=(0.0, 1.0))
            results.append((clip, len(decoded)))
    (skipped, few), (whole, all_of_them) = results
    assert torch.equal(skipped.frames, whole.frames)
    assert torch.equal(skipped.frame_times, whole.frame_times)
    assert torch.equal(skipped.waveform, whole.waveform)
    return skipped, few, all_of_them


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("mpegts", "libx264"), ("mp4", "libx265")]
)
def test_skipping_returns_the_same_frames(container, codec, monkeypatch, decoded):
    data = render_clip(num_frames=120, b_frames=3, gop=30, container=container, video_codec=codec)
    draw = random.Random(0)
    times = [[n * 0.6 for n in range(8)], [4.75], [3.2, 3.24, 3.28]]
    times += [
        sorted((draw.randint(-3, 122) + draw.uniform(0.2, 0.8)) / 25 for _ in range(draw.randint(1, 9)))
        for _ in range(6)
    ]
    least = 1.0
    for requested in times:
        clip, few, full = read_both_ways(data, requested, monkeypatch, decoded)
        least = min(least, few / full)
        expected = [min(max(int(time * 25 + 1e-3), 0), 119) for time in requested]
        if container != "mpegts":  # its audio starts before its video
            assert read_numbers(clip.frames) == expected
    if codec == "libx264":
        assert least < 0.6  # of four frames three are B-frames, at most one of which is a reference


def test_variable_frame_rate(monkeypatch, decoded):
    draw = random.Random(1)
    stamps = uneven_times(100, seed=1)
    data = render_clip(frame_times=stamps, b_frames=3, gop=40, seconds=stamps[-1])
    for _ in range(8):
        requested = sorted(draw.uniform(0, stamps[-1]) for _ in range(7))
        clip, few, full = read_both_ways(data, requested, monkeypatch, decoded)
        assert read_numbers(clip.frames) == [
            max(n for n, stamp in enumerate(stamps) if stamp <= time) for time in requested
        ]
        assert few <= full


def test_without_b_frames_everything_is_decoded(monkeypatch, decoded):
    data = render_clip(num_frames=60, b_frames=0)
    _, few, full = read_both_ways(data, [0.5, 1.5], monkeypatch, decoded)
    assert few == full
