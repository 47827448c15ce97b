"""Decoded audio frames of any length, format and timestamp are placed on the clip's clock, every sample once."""

import math

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import render_clip

from hf_avfusion.media.reader import MediaError, read_clip
from hf_avfusion.media.sources import OpenSource
from hf_avfusion.media.tracks import AUDIO_GAP, BLOCK_SAMPLES, AudioCollector, AudioPiece

RATE = 8000
GAP = round(AUDIO_GAP * RATE)


def frame_of(values, layout="mono", kind="fltp"):
    """values: int [samples]; every channel holds them, in steps of 2**-15."""
    channels = {"mono": 1, "stereo": 2}[layout]
    wave = np.repeat(values[None], channels, axis=0)
    if kind == "fltp":
        frame = av.AudioFrame.from_ndarray((wave / 32768).astype(np.float32), format=kind, layout=layout)
    else:
        frame = av.AudioFrame.from_ndarray(wave.T.reshape(1, -1).astype(np.int16), format=kind, layout=layout)
    frame.sample_rate = RATE
    return frame


def collect(frames, pieces, layout="mono", exact=False):
    channels = {"mono": 1, "stereo": 2}[layout]
    audio_pieces = [AudioPiece(first, last, channels) for first, last in pieces]
    collector = AudioCollector(audio_pieces, rate=RATE, channels=channels, after_seek=False, name="a clip", exact=exact)
    for frame, stamp in frames:
        if collector.done:
            break
        frame.pts = stamp
        if not collector.append(frame):
            collector.add(frame, stamp / RATE)
    collector.finish()
    return [piece.samples() for piece in audio_pieces], collector.warnings


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 700), st.sampled_from([0, 0, 0, GAP // 2, -GAP // 2, GAP + 50, -GAP - 50, 3 * GAP])),
        min_size=1, max_size=12,
    ),
    kinds=st.lists(st.sampled_from(["fltp", "s16"]), min_size=1, max_size=3),
    pieces=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2500)), min_size=1, max_size=3),
    layout=st.sampled_from(["mono", "stereo"]),
    exact=st.booleans(),
)  # fmt: skip
def test_samples_are_placed_by_their_timestamps(steps, kinds, pieces, layout, exact):
    """Compared with a sample-by-sample reference: jumps below AUDIO_GAP are rounding, above it gaps or overlaps, unless the
    next timestamp does not confirm them.
    """
    pieces = [(first, first + length) for first, length in pieces]
    frames, places, place, number = [], [], 0, 1
    for index, (length, jump) in enumerate(steps):
        place = max(place + jump, 0)
        values = np.arange(number, number + length)
        number += length
        frames.append((frame_of(values, layout, kinds[index % len(kinds)]), place))
        places.append((place, values))
        place += length
    clock, end, gap = {}, places[0][0], AUDIO_GAP * RATE
    for (place, values), (following, _) in zip(places, [*places[1:], (math.inf, None)]):
        jumps = abs(place - end) > gap and abs(following - (end + len(values))) > gap
        start = place if jumps else end
        for offset, value in enumerate(values):
            if start + offset >= end:
                clock[start + offset] = value
        end = max(end, start + len(values))
    found, _ = collect(frames, pieces, layout, exact)
    last = max(piece[1] for piece in pieces)
    for (first, stop), samples in zip(pieces, found):
        # Samples after the last requested one are not read.
        inside = [at for at in clock if first <= at < stop and at < last]
        expected = np.zeros(max(inside) + 1 - min(inside) if inside else 0)
        for at in inside:
            expected[at - min(inside)] = clock[at]
        for channel in samples * 32768:
            np.testing.assert_array_equal(channel, expected)


def test_a_long_piece_is_converted_in_blocks():
    values = np.arange(3 * BLOCK_SAMPLES + 77) % 65536 - 32768
    frames = [(frame_of(values[start : start + 1024]), start) for start in range(0, len(values), 1024)]
    for exact in (False, True):
        (samples,), warnings = collect(frames, [(0, len(values))], exact=exact)
        np.testing.assert_array_equal(samples[0] * 32768, values)
        assert warnings == []


def test_a_lone_wrong_timestamp_neither_adds_silence_nor_drops_sound():
    stamps = [0, 400, 1200, 1200, 1600, 1700, 2400]  # of frames of 400: the third is late, the sixth early
    frames = [(frame_of(np.arange(400) + 400 * number), stamp) for number, stamp in enumerate(stamps)]
    (samples,), warnings = collect(frames, [(0, 2800)])
    np.testing.assert_array_equal(samples[0] * 32768, np.arange(2800))
    assert warnings == []


def test_a_changed_number_of_channels_is_an_error():
    with pytest.raises(MediaError, match="8000 Hz, 1 channels to 8000 Hz, 2 channels"):
        collect([(frame_of(np.arange(5)), 0), (frame_of(np.arange(5), "stereo"), 5)], [(0, 10)])


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts"])
def test_a_container_recognised_by_its_first_bytes_reads_the_same(tmp_path, container):
    data = render_clip(tmp_path / "clip", container=container, num_frames=10).read_bytes()
    assert OpenSource(data, None).known_format == ("mp4" if container == "mp4" else None)
    of_bytes, of_path = (
        read_clip(source, frame_times=[0.2], audio_window=(0, 0.3)) for source in (data, tmp_path / "clip")
    )
    assert torch.equal(of_bytes.frames, of_path.frames)
    assert torch.equal(of_bytes.waveform, of_path.waveform)
    with pytest.raises(MediaError, match="cannot be opened"):
        read_clip(data[:40] + bytes(200), frame_times=[0.0])
