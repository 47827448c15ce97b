"""Window policy: the published numbers, properties that hold for every clip and policy, and windows of real media."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import faststart, read_numbers, render_clip, truncated

from hf_avfusion.media.reader import MediaError, MediaInfo
from hf_avfusion.media.windows import MAX_REPEATS, Window, WindowPolicy, load_window, sample_windows, segment_of


def info(video: float | None = 10.0, audio: float | None = 10.0, *, video_start=0.0, audio_start=0.0) -> MediaInfo:
    """MediaInfo of a clip with tracks of these lengths in s."""
    ends = [start + length for start, length in ((video_start, video), (audio_start, audio)) if length is not None]
    return MediaInfo(
        name="clip",
        has_video=video is not None,
        has_audio=audio is not None,
        duration=max(ends),
        video_start=None if video is None else video_start,
        video_duration=video,
        audio_start=None if audio is None else audio_start,
        audio_duration=audio,
        fps=25.0,
        sampling_rate=16000,
        channels=1,
    )


def frame_numbers(window: Window, rate: float = 25.0) -> list[int]:
    """Frame times as frame numbers of a clip of `rate` per second."""
    return [round(time * rate) for time in window.frame_times]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------- the published numbers (MBT)


def test_published_validation_window_is_centred():
    # mbt.md section 9: start = max(0, floor((len - n * stride) / 2)); 250 frames: (250 - 64) / 2 = 93; rows: (1000 - 800) / 2
    (window,) = sample_windows(WindowPolicy(), info())
    assert frame_numbers(window) == list(range(93, 93 + 64, 2))
    assert window.frame_times[0] == 93 / 25
    assert window.audio_window == (1.0, 9.0)
    assert window.audio_pieces == ((1.0, 9.0),)


def test_published_test_views_are_spread_evenly():
    # trunc(linspace(0, len - n * stride, 4)): 250 frames: 0, 62, 124, 186; 1000 rows: 0, 66, 133, 200
    windows = sample_windows(WindowPolicy(), info(), num_views=4)
    assert [frame_numbers(window)[0] for window in windows] == [0, 62, 124, 186]
    assert [window.audio_window[0] for window in windows] == pytest.approx([0.0, 0.66, 1.33, 2.0])


def test_published_training_starts():
    # o uniform over 0 .. len - 62 - 1 whole frames; the rows start at round(o / len_rgb * len_spec)
    starts = set()
    for window in sample_windows(WindowPolicy(), info(), mode="train", num_views=4000, generator=generator()):
        start = window.frame_times[0] * 25
        assert start == pytest.approx(round(start), abs=1e-9)
        assert window.audio_window[0] * 100 == pytest.approx(round(round(start) / 250 * 1000))
        starts.add(round(start))
    assert starts == set(range(250 - 62))


def test_a_proportional_start_is_the_same_fraction_of_both_tracks():
    windows = sample_windows(
        WindowPolicy(), info(video=10.0, audio=20.0), mode="train", num_views=50, generator=generator()
    )
    for window in windows:
        assert window.audio_window[0] == pytest.approx(2 * window.frame_times[0], abs=0.005)


def test_windows_past_the_end_wrap():
    # 1 s: 25 frames, 32 at stride 2 wrap more than twice; 8 s of audio are the second eight times
    (window,) = sample_windows(WindowPolicy(), info(1.0, 1.0))
    assert frame_numbers(window) == [(2 * index) % 25 for index in range(32)]
    assert window.audio_pieces == ((0.0, 1.0),) * 8
    windows = sample_windows(WindowPolicy(), info(), mode="train", num_views=200, generator=generator())
    late = next(window for window in windows if window.audio_window[0] > 5)
    start = late.audio_window[0]
    assert late.audio_pieces == ((start, 10.0), (0.0, pytest.approx(start - 2.0)))


def test_hold_repeats_the_last_frame_and_leaves_the_audio_short():
    (window,) = sample_windows(WindowPolicy(short="hold"), info(1.0, 1.0))
    assert frame_numbers(window) == [min(2 * index, 24) for index in range(32)]
    assert window.audio_pieces == ((0.0, 1.0),)


def test_span_spreads_the_frames():
    # The paper's setting: 8 frames over t = 8 s, stride 25 t / 8 = 25 frames
    policy = WindowPolicy(num_frames=8, span=8.0)
    (window,) = sample_windows(policy, info())
    assert frame_numbers(window) == [25 + 25 * index for index in range(8)]
    assert policy.stride == 1.0
    (short,) = sample_windows(WindowPolicy(num_frames=8, span=2.0, audio_seconds=2.0), info())
    assert [time - short.frame_times[0] for time in short.frame_times] == pytest.approx([0.25 * k for k in range(8)])


def test_asynchronous_windows_draw_independent_starts():
    policy = WindowPolicy(num_frames=8, synchronous=False, audio_seconds=2.0)
    windows = sample_windows(policy, info(), mode="train", num_views=300, generator=generator())
    video_starts = torch.tensor([window.frame_times[0] for window in windows])
    audio_starts = torch.tensor([window.audio_window[0] for window in windows])
    assert torch.corrcoef(torch.stack([video_starts, audio_starts]))[0, 1].abs() < 0.2
    assert audio_starts.max() > 7.5


def test_a_start_shared_in_seconds_keeps_late_audio_in_sync():
    policy = WindowPolicy(num_frames=8, span=2.0, audio_seconds=2.0, shared_start="seconds")
    clip = info(video=5.0, audio=4.3, audio_start=0.7)
    for mode, views in (("train", 40), ("eval", 1), ("eval", 4)):
        for window in sample_windows(policy, clip, mode=mode, num_views=views, generator=generator()):
            expected = max(window.frame_times[0], 0.7)  # before the audio track starts: its start
            assert window.audio_window[0] == pytest.approx(expected, abs=0.006)


def test_a_missing_track_is_none():
    silent = sample_windows(WindowPolicy(), info(audio=None), mode="train", generator=generator())[0]
    assert (silent.audio_window, silent.audio_pieces) == (None, None)
    assert len(silent.frame_times) == 32
    unseen = sample_windows(WindowPolicy(), info(video=None))[0]
    assert unseen.frame_times is None
    assert unseen.audio_window == (1.0, 9.0)


# ------------------------------------------------------------------------------------------------------- properties


lengths = st.floats(0.01, 700, allow_nan=False)
starts = st.floats(0, 2, allow_nan=False)
policies = st.builds(
    WindowPolicy,
    num_frames=st.integers(1, 40),
    frame_rate=st.floats(0.1, 60),
    span=st.none() | st.floats(0.1, 20),
    audio_seconds=st.floats(0.1, 12),
    synchronous=st.booleans(),
    shared_start=st.sampled_from(["proportion", "seconds"]),
    short=st.sampled_from(["wrap", "hold"]),
    video_grid=st.sampled_from([25.0, 30000 / 1001, None]),
    audio_grid=st.sampled_from([100.0, None]),
)


def test_hold_starts_at_the_last_step_of_a_short_track_at_the_latest():
    policy = WindowPolicy(num_frames=1, frame_rate=1.0, audio_seconds=1.0, shared_start="proportion", short="hold",
                          video_grid=25.0, audio_grid=100.0, synchronous=True)  # fmt: skip
    clip = info(1.0, 0.0156)  # two steps of audio, of which 24/25 rounds to two
    starts = {
        sample_windows(policy, clip, mode="train", generator=generator(seed))[0].audio_window[0] for seed in range(200)
    }
    assert starts == {0.0, 0.01}


@settings(max_examples=150, deadline=None)
@given(policies, lengths, lengths, starts, starts, st.sampled_from(["train", "eval"]), st.integers(1, 5), st.integers())
def test_windows_lie_inside_their_tracks(policy, video, audio, video_start, audio_start, mode, views, seed):
    clip = info(video, audio, video_start=video_start, audio_start=audio_start)
    seed %= 2**63
    windows = sample_windows(policy, clip, mode=mode, num_views=views, generator=generator(seed))
    assert len(windows) == views
    half = 0.5 / policy.video_grid if policy.video_grid else 0.0
    extent = max(video, 2 * half, 1e-3)
    for window in windows:
        assert len(window.frame_times) == policy.num_frames
        for time in window.frame_times:  # inside the track, whose end the grid rounds by half a step at most
            assert video_start - 1e-9 <= time < video_start + extent + half + 1e-6
        steps = [later - earlier for earlier, later in itertools.pairwise(window.frame_times)]
        if policy.short == "hold":
            assert all(step >= -1e-9 for step in steps)
            assert all(step <= policy.stride + 1e-5 for step in steps)
        elif video > policy.num_frames * policy.stride + 2 * half and mode == "eval":
            assert steps == pytest.approx([policy.stride] * len(steps), abs=1e-5)  # fits: no seam
        total = 0.0
        for begin, end in window.audio_pieces:
            assert audio_start - 1e-4 <= begin < end <= audio_start + max(audio, 1e-4) + 1e-4
            total += end - begin
        samples = max(round(audio * clip.sampling_rate), 1)
        if policy.short == "wrap" and round(policy.audio_seconds * clip.sampling_rate) > MAX_REPEATS * samples:
            assert total == pytest.approx(samples / clip.sampling_rate)  # too short to wrap: there once
        elif policy.short == "wrap":
            assert total == pytest.approx(policy.audio_seconds, abs=1e-4)
        else:
            assert 0 < total <= policy.audio_seconds + 1e-4
            assert len(window.audio_pieces) == 1
        assert window.audio_window[1] - window.audio_window[0] == pytest.approx(policy.audio_seconds)
    assert sample_windows(policy, clip, mode=mode, num_views=views, generator=generator(seed)) == windows


@settings(max_examples=60, deadline=None)
@given(policies, st.floats(0.5, 700), st.integers(2, 8))
def test_views_are_ordered_from_the_first_to_the_last_position(policy, length, views):
    windows = sample_windows(policy, info(length, length), num_views=views)
    begins = [window.frame_times[0] for window in windows]
    assert begins == sorted(begins)
    assert begins[0] == 0.0
    step = 1 / policy.video_grid if policy.video_grid else 0.0
    reach = max(0.0, length - policy.num_frames * policy.stride)
    assert begins[-1] == pytest.approx(reach, abs=1.6 * step + 1e-6)
    gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
    assert max(gaps) - min(gaps) <= step + 1e-6


@settings(max_examples=60, deadline=None)
@given(policies)
def test_a_policy_is_unchanged_by_a_json_round_trip(policy):
    assert WindowPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_draws_come_from_the_generator():
    draws = [
        sample_windows(WindowPolicy(), info(), mode="train", num_views=5, generator=generator(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    torch.manual_seed(3)
    first = sample_windows(WindowPolicy(), info(), mode="train", num_views=5)
    torch.manual_seed(3)
    assert sample_windows(WindowPolicy(), info(), mode="train", num_views=5) == first


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", 0),
        ("num_frames", 1.5),
        ("frame_rate", -1.0),
        ("span", 0.0),
        ("audio_seconds", math.nan),
        ("audio_seconds", None),
        ("video_grid", "25"),
        ("short", "pad"),
        ("shared_start", "frames"),
    ],
)
def test_wrong_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        WindowPolicy(**{field: value})


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"unknown fields.*stride"):
        WindowPolicy.from_dict({"stride": 2})
    with pytest.raises(ValueError, match="mode"):
        sample_windows(WindowPolicy(), info(), mode="test")
    with pytest.raises(ValueError, match="num_views"):
        sample_windows(WindowPolicy(), info(), num_views=0)
    with pytest.raises(ValueError, match="tracks"):
        load_window(b"", WindowPolicy(), tracks=("rgb",))


# ------------------------------------------------------------------------------------------------------- real media


def ramp(seconds: float, **arguments) -> bytes:
    """Numbered frames and audio whose samples hold their index."""
    frames = round(25 * seconds)
    return render_clip(num_frames=frames, container="mov", audio="ramp", audio_codec="pcm_s16le", **arguments)


def sample_indices(clip) -> torch.Tensor:
    """Sample indices (modulo 65536) of a waveform of kind "ramp"."""
    return (clip.waveform[0] * 32768 + 32768).round().long()


def test_frames_and_audio_of_the_same_window():
    (clip,) = load_window(ramp(4), WindowPolicy(num_frames=8, span=2.0, audio_seconds=2.0))
    assert read_numbers(clip.frames) == [int(25 + 6.25 * index) for index in range(8)]
    assert torch.equal(sample_indices(clip), torch.arange(16000, 48000))
    assert clip.audio_start == 1.0
    assert clip.warnings == []


@pytest.mark.parametrize("backend", ["pyav", "auto"])
def test_views_of_one_clip(backend):
    clips = load_window(ramp(4), WindowPolicy(num_frames=4, audio_seconds=1.0), num_views=3, backend=backend)
    # 100 frames, window of 8: starts 0, 46, 92; 400 rows, window of 100: starts 0, 150, 300
    assert [read_numbers(clip.frames) for clip in clips] == [[s, s + 2, s + 4, s + 6] for s in (0, 46, 92)]
    for clip, start in zip(clips, (0.0, 1.5, 3.0)):
        assert torch.equal(sample_indices(clip), torch.arange(round(start * 16000), round(start * 16000) + 16000))


def test_a_short_clip_wraps_to_the_sample():
    (clip,) = load_window(ramp(1), WindowPolicy(num_frames=32, audio_seconds=2.5))
    assert read_numbers(clip.frames) == [(2 * index) % 25 for index in range(32)]
    assert torch.equal(sample_indices(clip), torch.arange(40000) % 16000)


def test_a_short_clip_holds():
    (clip,) = load_window(ramp(1), WindowPolicy(num_frames=32, audio_seconds=2.5, short="hold"))
    assert read_numbers(clip.frames) == [min(2 * index, 24) for index in range(32)]
    assert torch.equal(sample_indices(clip), torch.arange(16000))


def test_a_segment_of_a_longer_file():
    policy = WindowPolicy(num_frames=4, audio_seconds=1.5)
    (clip,) = load_window(ramp(6), policy, start=3.0, end=4.0)
    # 25 frames from 75 on, window of 8: centred at 8; 16000 samples from 48000 on, which wrap
    assert read_numbers(clip.frames) == [83, 85, 87, 89]
    assert torch.equal(sample_indices(clip), (48000 + torch.arange(24000) % 16000) % 65536)
    with pytest.raises(MediaError, match=r"8.0 to 9.0 s of a file that is 6.000 s"):
        load_window(ramp(6), policy, start=8.0, end=9.0)
    with pytest.raises(MediaError, match="not after"):
        load_window(ramp(6), policy, start=2.0, end=2.0)
    without_audio = segment_of(info(video=10.0, audio=2.0), 5.0, 6.0)
    assert (without_audio.has_video, without_audio.has_audio) == (True, False)
    assert (without_audio.video_start, without_audio.video_duration) == (5.0, 1.0)


def test_missing_and_unrequested_tracks_are_none():
    policy = WindowPolicy(num_frames=4, audio_seconds=1.0)
    (silent,) = load_window(render_clip(audio=None), policy)
    assert silent.waveform is None
    assert silent.frames.shape[0] == 4
    (unseen,) = load_window(render_clip(num_frames=0), policy)
    assert unseen.frames is None
    assert unseen.waveform.shape == (1, 16000)
    (video,) = load_window(render_clip(), policy, tracks=("video",))
    assert video.waveform is None
    assert video.frames.shape[0] == 4


def test_kept_damage_is_filled_by_the_policy_and_reported():
    data = truncated(faststart(num_frames=250), 0.5)
    policy = WindowPolicy(num_frames=20, span=10.0, audio_seconds=10.0)
    with pytest.raises(MediaError, match="damaged"):
        load_window(data, policy)
    for short in ("wrap", "hold"):
        policy = WindowPolicy(num_frames=20, span=10.0, audio_seconds=10.0, short=short)
        (clip,) = load_window(data, policy, on_decode_error="keep")
        numbers = read_numbers(clip.frames)
        good = len(set(numbers))
        assert 5 < good < 15
        assert numbers[:good] == [int(12.5 * index) for index in range(good)]
        assert numbers[good] == (0 if short == "wrap" else numbers[good - 1])
        assert any(f"only {good} of 20 frames" in text for text in clip.warnings)
        assert (clip.waveform.shape[1] == 160000) == (short == "wrap")
