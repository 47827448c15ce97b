"""Windows of a policy with segments (LAVISH): the published formulas, parts of files, short clips, and real media."""

import numpy as np
import pytest
import torch
from rendering import read_numbers, render_clip
from test_windows import info

from hf_avfusion.media.windows import (
    WindowPolicy,
    load_window,
    sample_windows,
    segment_frames,
    segment_ranges,
)

AVE = WindowPolicy(num_frames=1, num_segments=10)


@pytest.mark.parametrize("total", [1, 2, 7, 10, 80, 239, 240, 250, 301, 1799])
@pytest.mark.parametrize(("segments", "each"), [(10, 1), (5, 1), (4, 3), (2, 1)])
def test_frames_are_those_of_the_published_formula(total, segments, each):
    """Round-down(1 + i / (n - 1) * (F - 1)), counted from 1 (lavish.md, section 3 and A.8), in whole numbers."""
    count = segments * each
    expected = [i * (total - 1) // (count - 1) for i in range(count)]
    found = segment_frames(WindowPolicy(num_frames=each, num_segments=segments), total)
    assert [len(frames) for frames in found] == [each] * segments
    flat = [number for frames in found for number in frames]
    # numpy's linspace, which the original calls, may round a whole number down to the one before it.
    assert all(wanted - 1 <= number <= wanted for wanted, number in zip(expected, flat))
    assert sum(wanted != number for wanted, number in zip(expected, flat)) <= count // 5
    assert (flat[0], flat[-1]) == (0, total - 1)


def test_ten_seconds_at_16_khz_start_where_published():
    """lavish.md A.8: 0, 0.989 s, ..., 8.9 s; the last 0.1 s is never heard."""
    ranges = segment_ranges(AVE, 160_000, 16_000)
    assert [first for first, _ in ranges] == [int(i / 9 * (160_000 - 17_600)) for i in range(10)]
    assert {last - first for first, last in ranges} == {16_000}
    assert [ranges[1][0], ranges[9][1]] == [15_822, 158_400]


@pytest.mark.parametrize(("seconds", "room"), [(1.0, 17_600), (1.95, 32_800)])
@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("total", [32_801, 48_000, 123_457, 160_000, 960_001])
def test_audio_pieces_are_those_of_the_published_code(seconds, room, count, total):
    ranges = segment_ranges(WindowPolicy(num_segments=count, segment_seconds=seconds), total, 16_000)
    assert [first for first, _ in ranges] == [int(start) for start in np.linspace(0, total - room, count)]
    assert {last - first for first, last in ranges} == {int(seconds * 16_000)}


@pytest.mark.parametrize(("total", "whole"), [(1, True), (16_000, True), (17_600, True), (17_601, False)])
def test_a_clip_up_to_the_margin_is_heard_whole(total, whole):
    ranges = segment_ranges(AVE, total, 16_000)
    assert (ranges == [(0, total)] * 10) is whole


def test_one_segment_is_the_first_frame_and_the_first_second():
    policy = WindowPolicy(num_frames=1, num_segments=1)
    assert segment_frames(policy, 250) == [[0]]
    assert segment_ranges(policy, 160_000, 16_000) == [(0, 16_000)]
    (window,) = sample_windows(policy, info())
    assert window.audio_pieces == ((0.0, 1.0),)
    assert window.audio_window == window.video_window == (0.0, 10.0)


def test_training_and_evaluation_take_the_same_and_nothing_is_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample_windows(AVE, info(), mode="train", generator=generator) == sample_windows(AVE, info())
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("video", "audio"), [(10.0, None), (None, 10.0), (10.0, 4.0), (0.04, 0.01)])
def test_times_lie_in_the_tracks_and_a_missing_track_is_absent(video, audio):
    tracks = info(video, audio, video_start=0.5, audio_start=0.25)
    windows = sample_windows(AVE, tracks)
    assert len(windows) == 10
    for index, window in enumerate(windows):
        assert (window.frame_times is None) is (window.video_window is None) is (video is None)
        assert (window.audio_pieces is None) is (window.audio_window is None) is (audio is None)
        if video is not None:
            assert all(0.5 <= time < 0.5 + video for time in window.frame_times)
            assert window.video_window == pytest.approx((0.5 + index * video / 10, 0.5 + (index + 1) * video / 10))
            if video > 1:  # a single frame is that of all parts
                assert window.video_window[0] <= window.frame_times[0] < window.video_window[1]
        if audio is not None:
            ((first, last),) = window.audio_pieces
            assert 0.25 <= first < last <= 0.25 + audio + 1e-9
            assert window.audio_window == pytest.approx((0.25 + index * audio / 10, 0.25 + (index + 1) * audio / 10))


def heard(clip) -> list[int]:
    """First sample of a clip of the sound "ramp", and the number of samples."""
    wave = clip.waveform[0]
    assert torch.equal(wave[1:] - wave[:-1], torch.full_like(wave[1:], 1 / 32768))
    return [round(float(wave[0]) * 32768) + 32768, len(wave)]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """90 numbered frames at 30 per second, and 3 s of a counting sound at 16 kHz."""
    path = tmp_path_factory.mktemp("clips") / "ramp.mkv"
    options = {"audio": "ramp", "sampling_rate": 16000, "container": "matroska", "audio_codec": "pcm_s16le"}
    return str(render_clip(path, seconds=3.0, num_frames=90, fps=30, **options))


def test_frames_and_audio_of_a_file(file):
    clips = load_window(file, AVE, mode="train")
    numbers = [read_numbers(clip.frames)[0] for clip in clips]
    assert numbers == [int(1 + i / 9 * 89) - 1 for i in range(10)]
    assert [heard(clip) for clip in clips] == [[int(i / 9 * (48_000 - 17_600)), 16_000] for i in range(10)]
    assert [clip.frames.shape[0] for clip in clips] == [1] * 10


def test_start_and_end_are_the_clip(file):
    clips = load_window(file, AVE, start=0.5, end=2.5)
    assert [read_numbers(clip.frames)[0] for clip in clips] == [15 + int(i / 9 * 59) for i in range(10)]
    assert [heard(clip) for clip in clips] == [[8_000 + int(i / 9 * (32_000 - 17_600)), 16_000] for i in range(10)]
    short = load_window(file, AVE, start=1.0, end=2.0)
    assert [heard(clip) for clip in short] == [[16_000, 16_000]] * 10
    assert [clip.audio_window for clip in short][3] == pytest.approx((1.3, 1.4))


def test_tracks_that_are_not_read_or_not_there(file):
    assert all(clip.waveform is None for clip in load_window(file, AVE, tracks=("video",)))
    assert all(clip.frames is None for clip in load_window(file, AVE, tracks=("audio",)))
    assert all(clip.waveform is None for clip in load_window(render_clip(seconds=1.0, audio=None), AVE))


def test_the_file_is_opened_and_decoded_once(file, monkeypatch):
    from hf_avfusion.media.reader import ClipReader

    calls = []
    original = ClipReader._decode_pass
    monkeypatch.setattr(ClipReader, "_decode_pass", lambda self, *args: calls.append(1) or original(self, *args))
    load_window(file, AVE)
    assert len(calls) == 1


def test_several_views_are_refused(file):
    with pytest.raises(
        ValueError, match=r"num_views=2: the 10 segments .* pass num_views=1, or a processor with num_seg"
    ):
        load_window(file, AVE, num_views=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_segments": 0}, "num_segments must be a positive integer or None, got 0"),
        ({"num_segments": True}, "num_segments must be a positive integer or None, got True"),
        ({"num_segments": 2.0}, "num_segments must be a positive integer or None, got 2.0"),
        ({"num_segments": 2**21}, "`num_segments`=2097152 exceeds the supported maximum"),
        ({"num_segments": 2, "segment_seconds": 0}, "segment_seconds must be a positive number, got 0"),
        ({"num_segments": 2, "segment_seconds": 1e9}, "segment_seconds=1000000000.0 exceeds the supported maximum"),
        ({"num_segments": 2, "segment_margin": -0.1}, "segment_margin must be a number of at least 0, got -0.1"),
        ({"num_segments": 2, "segment_margin": float("inf")}, "segment_margin must be a number of at least 0, got inf"),
        ({"num_segments": 2, "span": 8.0}, "span=8.0 has no effect with num_segments=2"),
        ({"num_segments": 2, "audio_seconds": 1.0}, "audio_seconds=1.0 has no effect with num_segments=2"),
        ({"num_segments": 2, "synchronous": False}, "synchronous=False has no effect with num_segments=2"),
        (
            {"segment_seconds": 2.0},
            r"segment_seconds=2.0 has no effect without num_segments: pass num_segments, or seg",
        ),
    ],
)
def test_wrong_fields_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        WindowPolicy(**values)


def test_policies_saved_before_segments_existed_load_unchanged():
    saved = {
        "num_frames": 32, "frame_rate": 12.5, "span": None, "audio_seconds": 8.0, "synchronous": True,
        "shared_start": "proportion", "short": "wrap", "video_grid": 25.0, "audio_grid": 100.0,
    }  # fmt: skip
    assert WindowPolicy.from_dict(saved) == WindowPolicy()
    assert WindowPolicy.from_dict(AVE.to_dict()) == AVE
