"""Reading media: frames by presentation time, audio to the sample, unusual containers and damaged files."""

import functools
import io
import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rendering import bit_flipped, cover_art, faststart, read_numbers, read_rotation, render_clip, truncated

from hf_avfusion.media import reader, tracks
from hf_avfusion.media.reader import (
    ClipReader,
    ClipRequest,
    MediaError,
    probe,
    read_clip,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@functools.cache
def plain() -> bytes:
    """50 numbered frames at 25 per second and 2 s of audio at 16 kHz."""
    return render_clip()


@functools.cache
def exact(seconds: int = 8) -> bytes:
    """A clip whose samples hold their own index: PCM in a container whose clock counts samples."""
    return render_clip(num_frames=25 * seconds, container="mov", audio="ramp", audio_codec="pcm_s16le")


@functools.cache
def long_clip(arguments: tuple, fragmented: bool) -> bytes:
    """30 s with one keyframe per second."""
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else None
    return render_clip(num_frames=750, gop=25, options=options, **dict(arguments))


def indices(waveform: torch.Tensor) -> list[int]:
    """Sample indices (modulo 65536) of a waveform [1, samples] of kind "ramp"."""
    return (waveform[0] * 32768 + 32768).round().long().tolist()


class CountingContainer:
    """An open container that counts its seeks."""

    def __init__(self, container, counts: dict[str, int]):
        self._container, self._counts = container, counts

    def __getattr__(self, name: str):
        return getattr(self._container, name)

    def seek(self, *arguments, **options):
        self._counts["seeks"] += 1
        return self._container.seek(*arguments, **options)


@pytest.fixture
def counts(monkeypatch) -> dict[str, int]:
    """Counts of opened containers, seeks and decoded frames."""
    numbers = {"opens": 0, "seeks": 0, "decoded": 0}
    open_container, add = av.open, tracks.FrameCollector.add

    def counting_open(*arguments, mode: str = "r", **options):
        if mode != "r":
            return open_container(*arguments, mode=mode, **options)
        numbers["opens"] += 1
        return CountingContainer(open_container(*arguments, **options), numbers)

    def counting_add(self, *arguments, **options):
        numbers["decoded"] += 1
        return add(self, *arguments, **options)

    monkeypatch.setattr(av, "open", counting_open)
    monkeypatch.setattr(tracks.FrameCollector, "add", counting_add)
    return numbers


# ----------------------------------------------------------------------------------------------------------- frames


def test_frames_shown_at_each_time_are_returned_in_request_order():
    clip = read_clip(plain(), frame_times=[1.0, 0.03, 0.04, 0.0799, 1.0, 1.99])
    assert read_numbers(clip.frames) == [25, 0, 1, 1, 25, 49]
    assert clip.frame_times.tolist() == [1.0, 0.0, 0.04, 0.04, 1.0, 1.96]
    assert clip.frames.dtype == torch.uint8
    assert clip.frames.shape == (6, 3, 64, 64)
    assert clip.waveform is None
    assert clip.sampling_rate is None


def test_times_outside_the_clip_return_its_first_and_last_frame():
    assert read_numbers(read_clip(plain(), frame_times=[-1.0, 2.0, 7.0]).frames) == [0, 49, 49]


def test_times_with_rounding_errors_return_their_frame():
    times = [sum([0.04] * index) for index in range(50)]  # 0.04 + 0.04 + ... differs from the timestamps by up to 1e-15
    assert any(time < index / 25 for index, time in enumerate(times))
    assert read_numbers(read_clip(plain(), frame_times=times).frames) == list(range(50))


def test_frames_of_a_clip_with_b_frames_are_in_presentation_order():
    data = faststart(b_frames=2)
    assert read_numbers(read_clip(data, frame_times=[index / 25 for index in range(50)]).frames) == list(range(50))


def test_variable_frame_rate_follows_timestamps():
    stamps = [0.0, 0.04, 0.2, 0.5, 0.9, 0.96]
    clip = read_clip(render_clip(frame_times=stamps, audio=None), frame_times=[0.0, 0.1, 0.21, 0.49, 0.51, 0.95, 0.97])
    assert read_numbers(clip.frames) == [0, 1, 2, 2, 3, 4, 5]
    torch.testing.assert_close(clip.frame_times[-1].item(), 0.96)


@pytest.mark.parametrize("start", [0.0, 3.0, 5.96])
def test_a_window_after_a_seek_equals_the_same_window_read_from_the_start(start):
    times = [start + index / 25 for index in range(10)]
    data = render_clip(num_frames=200, b_frames=2, gop=25, sampling_rate=44100)
    window = read_clip(data, frame_times=times, audio_window=(start, start + 0.4))
    whole = read_clip(data, frame_times=[index / 25 for index in range(200)], audio_window=(0, 8))
    first = round(start * 25)
    assert torch.equal(window.frames, whole.frames[first : first + 10])
    samples = slice(round(start * 44100), round(start * 44100) + round(0.4 * 44100))
    torch.testing.assert_close(window.waveform, whole.waveform[:, samples], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "exact_audio"),
    [
        ({"container": "matroska", "b_frames": 2, "live": True}, True),
        ({"container": "webm", "video_codec": "libvpx-vp9", "audio_codec": "libopus", "sampling_rate": 48000}, False),
        ({"container": "mpegts", "b_frames": 2, "sampling_rate": 48000}, True),
        ({"container": "mpeg", "video_codec": "mpeg1video", "audio_codec": "mp2", "sampling_rate": 48000}, True),
        ({"container": "avi", "video_codec": "mpeg4", "audio_codec": "pcm_s16le"}, True),
        ({"container": "flv", "sampling_rate": 44100}, False),
        ({"options": {"movflags": "frag_keyframe+empty_moov"}, "b_frames": 2}, False),
    ],
    ids=lambda value: value.get("container", "fragmented") if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("start", [2.0, 7.48, 29.7])
def test_seeking_in_every_container(arguments, exact_audio, start):
    data = long_clip(
        tuple((key, value) for key, value in arguments.items() if key != "options"), "options" in arguments
    )
    times = [start + index / 25 for index in range(5)]
    after_a_seek = read_clip(data, frame_times=times, audio_window=(start, start + 0.2))
    with ClipReader(data) as reader:
        reader._container = CountingContainer(reader._container, counts := {"seeks": 0})
        pieces = [(0.0, start + 0.2)]
        (whole,) = reader.read(
            [ClipRequest(frame_times=[0.0, *(index / 5 for index in range(150)), *times], audio_pieces=pieces)]
        )
    assert counts["seeks"] == 0
    assert torch.equal(after_a_seek.frames, whole.frames[-5:])
    if exact_audio:
        count = after_a_seek.waveform.shape[1]
        assert count == round(0.2 * whole.sampling_rate)
        torch.testing.assert_close(after_a_seek.waveform, whole.waveform[:, -count:], atol=1e-4, rtol=0)


def test_one_open_one_seek_and_only_requested_frames_converted(counts):
    converted = []  # `reduce` gets every converted frame

    def reduce(frames):
        converted.extend(frames)
        return frames

    data = render_clip(num_frames=1000, gop=25)
    with ClipReader(data) as reader:
        (clip,) = reader.read([ClipRequest(frame_times=[30.0, 30.5, 31.0], audio_pieces=[(30.0, 31.0)])], reduce)
    assert read_numbers(clip.frames) == [750, 762, 775]
    assert (counts["opens"], counts["seeks"], len(converted)) == (1, 1, 3)
    assert counts["decoded"] <= 26 + 2 * 25  # the window, and the frames from the keyframe before it


def test_seeks_between_windows_far_apart_and_decodes_between_near_ones(counts):
    data = render_clip(num_frames=1000, gop=25, audio=None)
    with ClipReader(data) as reader:
        clips = reader.read([ClipRequest(frame_times=[start, start + 1.0]) for start in (4.0, 5.5, 30.0)])
    assert [read_numbers(clip.frames) for clip in clips] == [[100, 125], [137, 162], [750, 775]]
    assert counts["seeks"] == 2
    assert counts["decoded"] < 250


def test_a_reader_can_be_read_again():
    with ClipReader(plain()) as reader:
        for time, number in ((1.5, 37), (0.0, 0), (1.5, 37)):
            assert read_numbers(reader.read([ClipRequest(frame_times=[time])])[0].frames) == [number]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("time", [0.5, 3.5])  # read from the start, and after a seek
def test_frames_can_be_read_after_audio_alone(container, time):
    data, audio = render_clip(num_frames=100, container=container), ClipRequest(audio_pieces=[(time, time + 0.2)])
    with ClipReader(data) as fresh:
        both = fresh.read([ClipRequest(frame_times=[time], audio_pieces=audio.audio_pieces)])[0]
    with ClipReader(data) as reader:
        for _ in range(2):
            alone = reader.read([audio])[0]
            assert alone.frames is None
            assert alone.waveform.shape == both.waveform.shape
            assert torch.equal(reader.read([ClipRequest(frame_times=[time])])[0].frames, both.frames)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied(rotation):
    data = render_clip(num_frames=3, size=(64, 32), rotation=rotation)
    clip = read_clip(data, frame_times=[0.0])
    assert read_rotation(clip.frames[0]) == rotation
    assert clip.info.rotation == rotation
    expected = (64, 32) if rotation % 180 else (32, 64)
    assert clip.frames.shape[2:] == expected
    info = probe(data)
    assert (info.height, info.width, info.rotation) == (*expected, rotation)


# ------------------------------------------------------------------------------------------------------------ audio


@pytest.mark.parametrize("window", [(0.0, 0.5), (0.25, 0.3), (0.0001, 0.9999), (3.1, 6.2), (7.5, 8.0), (5.0, 5.0)])
def test_audio_is_cut_to_the_sample(window):
    clip = read_clip(exact(), audio_window=window)
    first, count = round(window[0] * 16000), round((window[1] - window[0]) * 16000)
    assert indices(clip.waveform) == [index % 65536 for index in range(first, first + count)]
    assert clip.audio_start == pytest.approx(window[0], abs=0.5 / 16000)
    assert clip.waveform.dtype == torch.float32
    assert clip.frames is None


def test_audio_outside_the_track_is_not_filled():
    clip = read_clip(exact(2), audio_window=(-1.0, 5.0))
    assert indices(clip.waveform) == list(range(32000))
    assert clip.audio_start == 0.0
    assert read_clip(exact(2), audio_window=(3.0, 5.0)).waveform.shape == (1, 0)


def test_audio_that_starts_late_keeps_its_time():
    data = render_clip(container="mov", audio="ramp", audio_codec="pcm_s16le", audio_start=0.7)
    info = probe(data)
    assert (info.video_start, info.audio_start) == (0.0, pytest.approx(0.7))
    clip = read_clip(data, frame_times=[0.8], audio_window=(0.0, 0.8))
    assert read_numbers(clip.frames) == [20]
    assert clip.audio_start == pytest.approx(0.7)
    assert indices(clip.waveform) == list(range(1600))


def test_frames_that_start_late_keep_their_times():
    data = render_clip(container="matroska", video_start=0.6, audio="ramp", audio_codec="pcm_s16le")
    clip = read_clip(data, frame_times=[0.0, 0.7], audio_window=(0.6, 0.7))
    assert (clip.info.audio_start, clip.info.video_start) == (0.0, pytest.approx(0.6))
    assert read_numbers(clip.frames) == [0, 2]
    assert indices(clip.waveform) == list(range(9600, 11200))


def test_an_audio_gap_is_filled_with_silence_and_reported():
    wave = np.full((1, 32000), 0.25, dtype=np.float32)
    data = render_clip(container="matroska", audio=wave, audio_codec="pcm_s16le", audio_gap=(1.024, 0.5))
    clip = read_clip(data, audio_window=(0.0, 2.4))
    silent = clip.waveform[0] == 0
    assert silent.nonzero().flatten().tolist() == list(range(16384, 16384 + 8000))
    assert len(clip.warnings) == 1
    assert "gap" in clip.warnings[0]
    assert read_clip(data, audio_window=(0.0, 1.0)).warnings == []


@pytest.mark.parametrize(
    ("codec", "container", "rate", "channels"),
    [
        ("aac", "mp4", 8000, 1),
        ("aac", "mp4", 44100, 2),
        ("aac", "mp4", 48000, 6),
        ("pcm_u8", "mov", 11025, 1),
        ("pcm_s16le", "avi", 22050, 1),
        ("flac", "matroska", 96000, 2),
        ("libmp3lame", "mp4", 16000, 1),
        ("mp2", "mpeg", 44100, 2),
        ("libopus", "webm", 48000, 2),
    ],
)
def test_any_codec_rate_and_layout(codec, container, rate, channels):
    video = {"mpeg": "mpeg1video", "webm": "libvpx-vp9", "avi": "mpeg4"}.get(container, "libx264")
    data = render_clip(
        container=container, audio_codec=codec, sampling_rate=rate, channels=channels, video_codec=video, audio="sine"
    )
    clip = read_clip(data, frame_times=[0.0, 1.0], audio_window=(0.5, 1.5))
    assert clip.sampling_rate == clip.info.sampling_rate == rate
    assert clip.info.channels == channels
    assert clip.waveform.shape == (channels, rate)
    spectrum = torch.fft.rfft(clip.waveform[0]).abs()  # 1 s: bins of 1 Hz
    assert abs(spectrum.argmax().item() - 440) <= 1
    assert clip.waveform[0].square().mean().sqrt().item() == pytest.approx(0.5 / 2**0.5, abs=0.02)
    assert read_numbers(clip.frames)[1] in (24, 25, 26)  # MPEG-1 video starts some ms after its audio


# ----------------------------------------------------------------------------------------------------------- quirks


def test_the_best_of_several_tracks_is_read():
    clip = read_clip(render_clip(video_tracks=2, audio_tracks=2), frame_times=[1.0], audio_window=(0, 1))
    with av.open(io.BytesIO(render_clip(video_tracks=2, audio_tracks=2))) as container:
        best = container.streams.best("video"), container.streams.best("audio")
        expected = (best[0].width, best[1].sample_rate)
    assert (clip.info.width, clip.info.sampling_rate) == expected
    assert clip.frames.shape[3] == expected[0]
    assert clip.waveform.shape == (1, expected[1])


def test_missing_tracks_are_none():
    silent = read_clip(render_clip(audio=None), frame_times=[0.5], audio_window=(0, 1))
    assert (silent.waveform, silent.sampling_rate, silent.audio_start) == (None, None, None)
    assert not silent.info.has_audio
    unseen = read_clip(render_clip(num_frames=0), frame_times=[0.5], audio_window=(0, 1))
    assert (unseen.frames, unseen.frame_times) == (None, None)
    assert unseen.waveform.shape == (1, 16000)
    assert not unseen.info.has_video


def test_cover_art_is_not_a_video_track():
    clip = read_clip(cover_art(), frame_times=[0.0], audio_window=(0, 0.5))
    assert clip.frames is None
    assert clip.waveform.shape == (1, 22050)


@pytest.mark.parametrize(
    "arguments",
    [
        {"container": "webm", "video_codec": "libvpx-vp9", "audio_codec": "libopus", "sampling_rate": 48000},
        {"container": "matroska"},
    ],
    ids=["webm", "matroska"],
)
def test_a_live_stream_without_a_duration(arguments):
    data = render_clip(live=True, **arguments)
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    clip = read_clip(data, frame_times=[0.0, 1.0, 1.96], audio_window=(0, 1))
    assert read_numbers(clip.frames) == [0, 25, 49]
    assert clip.info.duration == pytest.approx(2.0, abs=0.07)
    assert clip.info.video_duration == pytest.approx(2.0, abs=0.02)
    assert clip.info.audio_duration == pytest.approx(2.0, abs=0.07)


def test_duration_of_an_mpeg_program_stream_comes_from_its_packets():
    info = probe(render_clip(container="mpeg", video_codec="mpeg1video", audio_codec="mp2", sampling_rate=44100))
    assert info.video_duration == pytest.approx(2.0, abs=0.05)
    assert min(info.video_start, info.audio_start) == 0.0


def test_avi_frames_are_in_order():
    data = render_clip(container="avi", video_codec="mpeg4", b_frames=2, audio_codec="pcm_s16le")
    assert read_numbers(read_clip(data, frame_times=[index / 25 for index in range(50)]).frames) == list(range(50))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"size": (161, 121), "pix_fmt": "yuv444p"}, (121, 161)),
        ({"size": (64, 48), "pix_fmt": "yuv420p10le"}, (48, 64)),
        ({"size": (64, 64), "video_codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "mov"}, (64, 64)),
        ({"video_codec": "libvpx-vp9", "container": "webm", "pix_fmt": "yuva420p", "audio": None}, (64, 64)),
        ({"video_codec": "libx265", "size": (128, 96)}, (96, 128)),
        ({"fps": 60}, (64, 64)),
        ({"fps": 1, "num_frames": 5}, (64, 64)),
    ],
    ids=["odd", "10-bit", "mjpeg", "alpha", "hevc", "60fps", "1fps"],
)
def test_any_pixel_format(arguments, size):
    data = render_clip(**{"num_frames": 30, **arguments})
    fps, count = arguments.get("fps", 25), arguments.get("num_frames", 30)
    clip = read_clip(data, frame_times=[(index + 0.5) / fps for index in range(count)])
    assert clip.frames.shape == (count, 3, *size)
    assert read_numbers(clip.frames) == list(range(count))


def test_one_pixel_and_two_frames():
    pixel = read_clip(
        render_clip(size=(1, 1), pix_fmt="yuv444p", audio=None, fps=1, num_frames=5), frame_times=[0.0, 4.0]
    )
    assert pixel.frames.shape == (2, 3, 1, 1)
    assert pixel.frames[1].float().mean() > pixel.frames[0].float().mean() + 20
    short = read_clip(render_clip(num_frames=2, fps=30, audio=None), frame_times=[0.0, 1 / 30, 0.07])
    assert read_numbers(short.frames) == [0, 1, 1]


def test_last_frame_is_held_when_audio_is_longer():
    data = render_clip(num_frames=25, seconds=4)
    clip = read_clip(data, frame_times=[0.5, 3.5], audio_window=(3, 4))
    assert read_numbers(clip.frames) == [12, 24]
    assert clip.waveform.shape == (1, 16000)
    assert clip.info.duration == pytest.approx(4.0)


# ----------------------------------------------------------------------------------------------------------- damage


def test_wrong_arguments():
    with pytest.raises(ValueError, match="frame_times, audio_window or both"):
        read_clip(plain())
    with pytest.raises(ValueError, match="finite"):
        read_clip(plain(), frame_times=[float("nan")])
    with pytest.raises(ValueError, match="ends before"):
        read_clip(plain(), audio_window=(1.0, 0.5))
    with pytest.raises(ValueError, match="'pyav'"):
        read_clip(plain(), frame_times=[0.0], backend="opencv")
    with pytest.raises(ValueError, match="'keep'"):
        read_clip(plain(), frame_times=[0.0], on_decode_error="skip")


@functools.cache
def cut_short() -> bytes:
    """The index of 250 frames and 10 s of audio, with the first half of their data."""
    return truncated(faststart(num_frames=250), 0.5)


def test_a_truncated_file_is_damage_although_no_decoder_reports_it():
    times = [index / 5 for index in range(50)]
    with pytest.raises(
        MediaError, match=r"half\.mp4: the video track .* decoding returned .* frames up to .*truncated"
    ):
        read_clip(cut_short(), frame_times=times, name="half.mp4")
    with pytest.raises(MediaError, match=r"half\.mp4: the audio track .* audio up to .*(truncated|Invalid)"):
        read_clip(cut_short(), audio_window=(0, 10), name="half.mp4")
    with pytest.raises(MediaError, match="truncated"):  # the seek target lies after the end of the data
        read_clip(cut_short(), frame_times=[9.0])
    whole_part = read_clip(cut_short(), frame_times=[0.0, 1.0], audio_window=(0, 2))
    assert read_numbers(whole_part.frames) == [0, 25]
    assert whole_part.warnings == []


def test_the_part_before_the_damage_can_be_kept():
    times = [index / 5 for index in range(50)]
    clip = read_clip(cut_short(), frame_times=times, audio_window=(0, 10), on_decode_error="keep")
    count = len(clip.frames)
    assert 10 < count < 40
    assert read_numbers(clip.frames) == [5 * index for index in range(count)]
    assert len(clip.frame_times) == count
    assert 0.2 < clip.waveform.shape[1] / 160000 < 0.8
    assert [text.split()[1] for text in clip.warnings] == ["video", "audio"]


def test_flipped_bytes():
    data = bit_flipped(faststart(num_frames=100, size=(128, 128)), first=0.6, every=31)
    times = [index / 25 for index in range(100)]
    with pytest.raises(MediaError, match=r"flipped\.mp4: the (video|audio) track .* is damaged"):
        read_clip(data, frame_times=times, audio_window=(0, 4), name="flipped.mp4")
    kept = read_clip(data, frame_times=times, audio_window=(0, 4), on_decode_error="keep")
    assert read_numbers(kept.frames[:40]) == list(range(40))
    assert kept.warnings
    assert read_numbers(read_clip(data, frame_times=times[:25]).frames) == list(range(25))


def test_a_file_object_that_fails_while_it_is_read():
    class Failing(io.BytesIO):
        healthy = True

        def read(self, size=-1):
            if not self.healthy:
                raise OSError("the disk went away")
            return super().read(size)

    source = Failing(faststart(num_frames=400, size=(256, 256)))
    with ClipReader(source, name="network.mp4") as reader:
        source.healthy = False
        with pytest.raises(MediaError, match=r"network\.mp4.*(disk went away|ends early|no frame)"):
            reader.read([ClipRequest(frame_times=[index / 25 for index in range(400)])])


def test_media_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(MediaError("clip.mp4", "is empty")))
    assert (str(error), error.source, error.cause) == ("clip.mp4: is empty", "clip.mp4", "is empty")
    assert str(MediaError("only a message, as DataLoader makes it")) == "only a message, as DataLoader makes it"


# ------------------------------------------------------------------------------------------------- backends and cost


def test_auto_uses_pyav_if_torchcodec_does_not_work(monkeypatch):
    monkeypatch.setattr(reader, "torchcodec_works", lambda: False)
    assert read_numbers(read_clip(plain(), frame_times=[1.0], backend="auto").frames) == [25]
    with pytest.raises(MediaError, match="use 'pyav'"):
        read_clip(plain(), frame_times=[1.0], backend="torchcodec")


MEMORY_PROBE = """
import resource, sys
from hf_avfusion.media.reader import read_clip
assert "av" not in sys.modules and "torchcodec" not in sys.modules, "importing the module must not import a decoder"
times = [3.0 * index for index in range(13)]
read_clip(sys.argv[1], frame_times=times[:2], audio_window=(0, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clip = read_clip(sys.argv[1], frame_times=times, audio_window=(10, 12))
assert clip.frames.shape == (13, 3, 240, 320) and clip.waveform.shape[1] == 32000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in other units elsewhere")
def test_memory_is_proportional_to_the_requested_frames(tmp_path):
    path = render_clip(tmp_path / "long.mp4", num_frames=1000, size=(320, 240), gop=250)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    grown = float(run.stdout)
    assert grown < 30, f"{grown:.0f} MiB for 13 frames (3 MiB); all 1000 decoded frames would be 110 MiB, in RGB 220"


# ---- streaming, for clips that do not fit into memory


@pytest.mark.parametrize(
    ("quirks", "window"),
    [
        ({}, (0.3, 1.7)),
        ({"rotation": 270, "size": (96, 64)}, (0.0, 2.0)),
        ({"num_frames": 250, "container": "avi", "video_codec": "mpeg4", "b_frames": 2, "audio_codec": "mp3"}, (4.0, 6.0)),
        ({"frame_times": [0.0, 0.1, 0.9, 1.0, 1.6], "seconds": 2.0}, (0.0, 2.0)),
        ({"num_frames": 300, "container": "mpegts"}, (9.0, 11.0)),
    ],
)  # fmt: skip
def test_stream_returns_the_same_as_read(quirks, window):
    data = render_clip(**quirks)
    times = np.arange(window[0], window[1], 0.07).tolist()
    read = read_clip(data, frame_times=times, audio_window=window)
    frames = []
    with ClipReader(data) as reader:
        clip = reader.stream(times, window, frames.append)
        reader.stream(times, window)  # again, without a callback
    assert clip.frames is None
    assert torch.equal(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), read.frames)
    assert torch.equal(clip.waveform, read.waveform)
    assert (clip.audio_start, clip.sampling_rate, clip.warnings) == (
        read.audio_start,
        read.sampling_rate,
        read.warnings,
    )


def test_stream_scales_and_rotates_frames():
    data = render_clip(rotation=90, size=(96, 64))
    frames, sizes = [], []
    with ClipReader(data) as reader:
        reader.stream([0.0, 0.5], None, frames.append, fit=lambda *size: sizes.append(size) or (32, 48))
    assert set(sizes) == {(64, 96)}  # as stored
    assert [frame.shape for frame in frames] == [(48, 32, 3)] * 2
    assert read_rotation(torch.from_numpy(frames[0]).permute(2, 0, 1)) == 90


def test_stream_finds_damage():
    broken = truncated(faststart(num_frames=100, audio="chirp"), 0.5)
    with ClipReader(broken) as reader, pytest.raises(MediaError, match=r"the video track .* is damaged"):
        reader.stream([0.0, 1.0, 2.0, 3.0, 3.9])
    with ClipReader(render_clip(num_frames=0)) as reader:  # no video track, so no frames
        assert reader.stream([0.0], (0.0, 1.0)).waveform.shape == (1, 16000)
