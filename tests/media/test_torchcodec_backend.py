"""torchcodec and PyAV return bit-identical frames; PyAV decodes the files that torchcodec would decode wrongly or slowly."""

import io
import random

import av
import numpy as np
import pytest
import torch
from rendering import faststart, read_numbers, render_clip, truncated, uneven_times

from hf_avfusion.media import torchcodec_backend
from hf_avfusion.media.reader import ClipReader, ClipRequest, MediaError, read_clip

SHORT = torchcodec_backend.MIN_SECONDS  # before the fixture sets it to 0
pytestmark = pytest.mark.usefixtures("torchcodec")


@pytest.fixture
def decoder_calls(monkeypatch) -> list:
    """One item per decoder of torchcodec that the test has made."""
    import torchcodec.decoders

    calls, decoder = [], torchcodec.decoders.VideoDecoder
    monkeypatch.setattr(torchcodec.decoders, "VideoDecoder", lambda *a, **kw: calls.append(a) or decoder(*a, **kw))
    return calls


def assert_backends_agree(data, times, window=None) -> torch.Tensor:
    """Compares everything that both backends return and returns the frames."""
    one, other = (
        read_clip(data, frame_times=times, audio_window=window, backend=name) for name in ("pyav", "torchcodec")
    )
    assert torch.equal(one.frames, other.frames)
    torch.testing.assert_close(one.frame_times, other.frame_times, atol=1e-9, rtol=0)
    assert one.info == other.info
    assert one.warnings == other.warnings
    if window is not None:
        assert torch.equal(one.waveform, other.waveform)
        assert one.audio_start == other.audio_start
    return other.frames


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"b_frames": 2, "num_frames": 100},
        {"frame_times": [0.0, 0.04, 0.2, 0.5, 0.9, 0.96]},
        {"rotation": 90, "size": (64, 32)},
        {"size": (161, 121), "pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
        {"audio_start": 0.7},
        {"video_tracks": 2},
        {"video_start": 0.6, "container": "matroska"},
        {"container": "webm", "video_codec": "libvpx-vp9", "audio_codec": "libopus", "sampling_rate": 48000},
        {"container": "avi", "video_codec": "mpeg4", "b_frames": 2, "audio_codec": "pcm_s16le"},
        {"container": "mpegts", "b_frames": 3},
        {"container": "mpegts", "video_codec": "libx265", "b_frames": 3, "gop": 300},
        {"container": "mpegts", "video_codec": "mpeg2video", "audio_codec": "mp2", "sampling_rate": 48000},
        {"container": "flv", "b_frames": 2, "sampling_rate": 44100},
        {"container": "mpeg", "video_codec": "mpeg1video", "audio_codec": "mp2", "sampling_rate": 44100},
        {"fps": 60},
    ],
    ids=lambda arguments: "-".join(arguments) or "plain",
)
def test_both_backends_return_the_same(arguments):
    data = render_clip(**arguments)
    times = [index * 0.037 - 0.1 for index in range(70)]
    one, other = (
        read_clip(data, frame_times=times, audio_window=(0.3, 1.1), backend=name) for name in ("pyav", "torchcodec")
    )
    assert torch.equal(one.frames, other.frames)
    torch.testing.assert_close(one.frame_times, other.frame_times, atol=1e-6, rtol=0)
    assert torch.equal(one.waveform, other.waveform)
    assert one.info == other.info


def test_both_backends_handle_damage_alike():
    times, half = [index / 5 for index in range(50)], truncated(faststart(num_frames=250), 0.5)
    with pytest.raises(MediaError, match=r"half\.mp4"):
        read_clip(half, frame_times=times, backend="torchcodec", name="half.mp4")
    clips = [
        read_clip(half, frame_times=times, backend=name, on_decode_error="keep") for name in ("pyav", "torchcodec")
    ]
    assert torch.equal(clips[0].frames, clips[1].frames)
    assert clips[1].warnings


def test_both_backends_share_a_file_object(tmp_path):
    path = render_clip(tmp_path / "a b.mp4", num_frames=200, size=(128, 128))
    times = [index / 5 for index in range(35)]
    expected = read_clip(path, frame_times=times, audio_window=(0, 7))
    with path.open("rb") as opened:
        for source in (opened, io.BytesIO(path.read_bytes()), f"file://{path}", path):
            clip = read_clip(source, frame_times=times, audio_window=(0, 7), backend="torchcodec")
            assert torch.equal(clip.frames, expected.frames)
            assert torch.equal(clip.waveform, expected.waveform)


def test_random_times():
    """Clips with several keyframes, windows at any place, and frames that are requested once or more."""
    clips = [render_clip(num_frames=120, b_frames=b_frames, gop=gop) for b_frames, gop in ((0, 20), (2, 45), (0, 250))]
    draw = random.Random(3)
    for number in range(45):
        first, last = sorted(draw.sample(range(119), 2))
        numbers = sorted(draw.choices(range(first, last + 1), k=draw.randint(2, 9)))
        times = [(n + draw.uniform(0.05, 0.95)) / 25 for n in numbers]
        start = draw.choice([times[0], max(times[0] - 2, 0)])
        frames = assert_backends_agree(clips[number % 3], sorted(times), (start, start + draw.uniform(0.1, 2.0)))
        assert read_numbers(frames) == numbers


def test_variable_frame_rates():
    draw = random.Random(1)
    stamps = uneven_times(100, seed=1)
    data = render_clip(frame_times=stamps, gop=40, seconds=stamps[-1])
    for _ in range(8):
        times = sorted(draw.uniform(0, stamps[-1]) for _ in range(7))
        expected = [max(n for n, stamp in enumerate(stamps) if stamp <= time) for time in times]
        assert read_numbers(assert_backends_agree(data, times)) == expected


def test_a_file_truncated_within_the_window_is_refused(tmp_path):
    options = {"movflags": "faststart"}
    path = render_clip(tmp_path / "clip.mp4", num_frames=200, size=(128, 128), options=options)
    cut = path.read_bytes()[: path.stat().st_size * 6 // 10]
    with pytest.raises(MediaError, match=r"damaged|ends early"):
        read_clip(cut, frame_times=[0.5, 3.0, 7.0], audio_window=(0, 7), backend="torchcodec")
    kept = [
        read_clip(cut, frame_times=[0.5, 3.0, 7.0], backend=name, on_decode_error="keep")
        for name in ("pyav", "torchcodec")
    ]
    assert torch.equal(kept[0].frames, kept[1].frames)
    assert len(kept[1].frames) < 3
    assert kept[1].warnings


def test_readers_are_reusable_and_file_objects_are_shared(tmp_path):
    path = render_clip(tmp_path / "clip.mp4", num_frames=150, gop=40)
    windows = [([0.1, 0.9, 1.7], (0.0, 2.0)), ([3.0, 3.5, 4.4], (3.0, 4.5)), ([0.3, 2.1, 4.0], (0.5, 4.0))]
    with path.open("rb") as opened:
        for source in (path, path.read_bytes(), opened):
            with ClipReader(source, backend="torchcodec") as reader, ClipReader(path) as by_pyav:
                for times, window in [*windows, *windows]:
                    for pieces in ([window], None):
                        request = ClipRequest(times, pieces)
                        clip, expected = reader.read([request])[0], by_pyav.read([request])[0]
                        assert torch.equal(clip.frames, expected.frames)
                        assert pieces is None or torch.equal(clip.waveform, expected.waveform)
                requests = [ClipRequest(times, [window]) for times, window in windows]
                for clip, expected in zip(reader.read(requests), by_pyav.read(requests), strict=True):
                    assert torch.equal(clip.frames, expected.frames)
                    assert torch.equal(clip.waveform, expected.waveform)


@pytest.mark.parametrize(
    "params",
    [
        "open-gop=1:keyint=20:bframes=3:b-adapt=0:scenecut=0",  # B-frames after a keyframe reference frames before it
        "tff=1:keyint=30:bframes=3:b-adapt=0",  # interlaced
        "slices=4:keyint=40:bframes=2:b-adapt=0:b-pyramid=strict:ref=5",
        "intra-refresh=1:keyint=20:bframes=2:b-adapt=0",  # keyframes that start a gradual recovery
        "intra-refresh=1:keyint=20:bframes=0",
        "keyint=50:bframes=5:b-adapt=0:b-pyramid=none:weightp=2",
    ],
)
def test_streams_of_other_encoders(params):
    """Compared with the whole file decoded from its start. PyAV is right; cases that torchcodec gets wrong are left to PyAV."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as output:
        track = output.add_stream("libx264", rate=25, options={"x264-params": params})
        track.width = track.height = 64
        for number in range(100):
            pixels = np.full((64, 64, 3), 40, dtype=np.uint8)
            pixels[:, : 8 + number // 2] = 200
            pixels[number // 2, :] = 40 + number
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            output.mux(track.encode(frame))
        output.mux(track.encode())
    data = target.getvalue()
    with av.open(io.BytesIO(data)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for first in range(0, 90, 3):
        numbers = (first, first + 2, first + 9)
        for backend in ("pyav", "torchcodec"):
            frames = read_clip(data, frame_times=[number / 25 for number in numbers], backend=backend).frames
            for frame, number in zip(frames, numbers, strict=True):
                assert (frame.permute(1, 2, 0).numpy() == whole[number]).all(), (backend, number)


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        ({}, True),
        ({"gop": 10}, True),
        ({"b_frames": 2}, False),  # PyAV skips frames
        ({"container": "mpegts"}, False),
        ({"pix_fmt": "yuv420p10le"}, False),
    ],
)
def test_which_files_torchcodec_decodes(arguments, used, decoder_calls):
    read_clip(render_clip(num_frames=40, **arguments), frame_times=[0.1, 1.2], backend="torchcodec")
    assert bool(decoder_calls) is used


@pytest.mark.parametrize(("num_frames", "used"), [(40, False), (150, True)])
def test_torchcodec_decodes_no_short_videos(num_frames, used, decoder_calls, monkeypatch):
    monkeypatch.setattr(torchcodec_backend, "MIN_SECONDS", SHORT)
    read_clip(render_clip(num_frames=num_frames, size=(32, 32)), frame_times=[0.1, 1.2], backend="torchcodec")
    assert bool(decoder_calls) is used
