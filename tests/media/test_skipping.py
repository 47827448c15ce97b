"""Pictures that nobody asked for are left undecoded where nothing refers to them; those asked for stay the same bits."""

import random

import pytest
import torch
from rendering import read_numbers, render_clip, uneven_times

from hf_avfusion.media.reader import read_clip
from hf_avfusion.media.tracks import Pictures, Skipping


@pytest.fixture
def offered(monkeypatch):
    """Counts the pictures that come out of the decoder."""
    counts = []
    offer = Pictures.offer

    def counted(self, *args, **options):
        counts.append(1)
        return offer(self, *args, **options)

    monkeypatch.setattr(Pictures, "offer", counted)
    return counts


def both_ways(data, times, monkeypatch, offered):
    """Frames and stamps with and without skipping, and how many pictures each decoded."""
    results = []
    for everything in (False, True):
        with monkeypatch.context() as patch:
            if everything:
                patch.setattr(Skipping, "wanted", lambda self, stamp: True)
            offered.clear()
            clip = read_clip(data, frame_times=times, audio_window=(0.0, 1.0))
            results.append((clip, len(offered)))
    (skipped, few), (whole, all_of_them) = results
    assert torch.equal(skipped.frames, whole.frames)
    assert torch.equal(skipped.frame_times, whole.frame_times)
    assert torch.equal(skipped.waveform, whole.waveform)
    return skipped, few, all_of_them


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("mpegts", "libx264"), ("mp4", "libx265")]
)
def test_the_same_pictures(container, codec, monkeypatch, offered):
    data = render_clip(num_frames=120, b_frames=3, gop=30, container=container, video_codec=codec)
    draw = random.Random(0)
    times = [[n * 0.6 for n in range(8)], [4.75], [3.2, 3.24, 3.28]]
    times += [
        sorted((draw.randint(-3, 122) + draw.uniform(0.2, 0.8)) / 25 for _ in range(draw.randint(1, 9)))
        for _ in range(6)
    ]
    least = 1.0
    for asked in times:
        clip, few, everything = both_ways(data, asked, monkeypatch, offered)
        least = min(least, few / everything)
        expected = [min(max(int(time * 25 + 1e-3), 0), 119) for time in asked]
        if container != "mpegts":  # whose sound starts before its pictures
            assert read_numbers(clip.frames) == expected
    if codec == "libx264":
        assert least < 0.6  # three of four pictures are B-frames that nothing refers to, or one of them does


def test_variable_frame_rate(monkeypatch, offered):
    draw = random.Random(1)
    stamps = uneven_times(100, seed=1)
    data = render_clip(frame_times=stamps, b_frames=3, gop=40, seconds=stamps[-1])
    for _ in range(8):
        asked = sorted(draw.uniform(0, stamps[-1]) for _ in range(7))
        clip, few, everything = both_ways(data, asked, monkeypatch, offered)
        assert read_numbers(clip.frames) == [
            max(n for n, stamp in enumerate(stamps) if stamp <= time) for time in asked
        ]
        assert few <= everything


def test_without_b_frames_everything_is_decoded(monkeypatch, offered):
    data = render_clip(num_frames=60, b_frames=0)
    _, few, everything = both_ways(data, [0.5, 1.5], monkeypatch, offered)
    assert few == everything
