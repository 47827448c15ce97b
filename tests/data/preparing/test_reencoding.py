"""Re-encoded clips: frames and audio keep their times, and equal input gives equal bytes."""

import io
import time

import av
import numpy as np
import pytest
import torch
from rendering import bit_flipped, faststart, read_numbers, read_rotation, render_clip, truncated

from hf_avfusion.data.preparing.reencoding import check_clip, even_size, reencode
from hf_avfusion.data.preparing.settings import ClipSettings
from hf_avfusion.evaluation.costs import PeakMemory
from hf_avfusion.media.reader import MediaError, probe, read_clip

TRIM = ClipSettings(trim=True)


def clicks_of(waveform, rate):
    """Returns the times in s of the clicks in a mono waveform."""
    loud = torch.nonzero(waveform.abs() > 0.4 * waveform.abs().max())[:, 0].tolist()
    return [place / rate for k, place in enumerate(loud) if k == 0 or place - loud[k - 1] > rate // 50]


@pytest.fixture(scope="module")
def clip():
    """A clip of 8 s, with 25 numbered frames and 10 clicks per second."""
    return render_clip(num_frames=200, fps=25, size=(160, 96), audio="clicks", sampling_rate=16000, channels=2)


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_trimmed_clip_keeps_video_and_audio_in_sync(clip, start):
    stored = reencode(clip, start, start + 4.0, TRIM)
    assert (stored.suffix, stored.start, stored.end, stored.notes) == (".mp4", 0.0, 4.0, ())
    info = probe(stored.data)
    assert info.duration == pytest.approx(4.0, abs=1e-3)
    assert (info.video_start, info.audio_start) == (0.0, 0.0)
    assert (info.width, info.height, info.fps, info.sampling_rate, info.channels) == (160, 96, 25.0, 16000, 2)
    read = read_clip(stored.data, frame_times=[k / 25 for k in range(100)], audio_window=(0.0, 9.0))
    assert read_numbers(read.frames) == [round(start * 25) + k for k in range(100)]
    assert read.waveform.shape == (2, 64000)
    np.testing.assert_allclose(clicks_of(read.waveform[1], 16000), np.arange(40) / 10, atol=1 / 16000)


def test_trim_between_frames_starts_with_the_visible_frame(clip):
    stored = reencode(clip, 1.03, 2.03, TRIM)
    assert read_numbers(read_clip(stored.data, frame_times=[k / 25 for k in range(25)]).frames) == list(range(25, 50))
    heard = read_clip(stored.data, audio_window=(0.0, 2.0)).waveform[0]
    np.testing.assert_allclose(clicks_of(heard, 16000), 0.07 + np.arange(10) / 10, atol=1 / 16000)


def test_short_side_and_fps(clip):
    stored = reencode(clip, 2.0, 6.0, ClipSettings(trim=True, short_side=48, fps=12.5))
    info = probe(stored.data)
    assert (info.width, info.height, info.fps) == (80, 48, 12.5)
    assert read_numbers(read_clip(stored.data, frame_times=[k / 12.5 for k in range(50)]).frames) == list(
        range(50, 150, 2)
    )
    whole = reencode(clip, 2.0, 6.0, ClipSettings(short_side=48))  # resized, not trimmed: start and end do not change
    assert (whole.start, whole.end) == (2.0, 6.0)
    assert probe(whole.data).duration == pytest.approx(8.0, abs=1e-3)
    assert probe(reencode(clip, None, None, ClipSettings(short_side=480)).data).height == 96  # never enlarged


@pytest.mark.parametrize(("size", "side", "expected"), [((161, 121), None, (160, 120)), ((340, 192), 96, (170, 96)),
                                                        ((1, 1), None, (2, 2)), ((192, 340), 128, (128, 226))])  # fmt: skip
def test_sides_are_even(size, side, expected):
    assert even_size(*size, side) == expected


def test_equal_input_gives_equal_bytes(clip):
    """x264's default rate control depends on the CPU's fast paths and sometimes gives other bytes."""
    settings = ClipSettings(trim=True, short_side=64, fps=10)
    assert len({reencode(clip, 1.0, 4.0, settings).data for _ in range(12)}) == 1


def test_a_late_track_stays_late():
    late = render_clip(num_frames=100, fps=25, audio="clicks", seconds=2.0, audio_start=1.5)
    read = read_clip(reencode(late, 1.0, 3.0, TRIM).data, frame_times=[0.0], audio_window=(0.0, 2.0))
    assert 0.3 < read.info.audio_start <= 0.5  # AAC encoders insert a block of silence before late audio
    assert clicks_of(read.waveform[0], 16000)[0] + read.audio_start == pytest.approx(0.5, abs=1e-3)
    assert read_numbers(read.frames) == [25]
    assert read.info.video_start == 0.0
    info = probe(reencode(render_clip(num_frames=50, fps=25, seconds=4.0, video_start=1.0), 0.0, 3.0, TRIM).data)
    assert info.video_start == pytest.approx(1.0, abs=1e-3)
    assert info.audio_start == 0.0


def test_variable_rate_and_rotation():
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 2.0, 2.4, 2.8]
    stored = reencode(
        render_clip(frame_times=times, fps=25, seconds=3.0, rotation=90), None, None, ClipSettings(fps=20)
    )
    asked = [0.05, 0.15, 0.5, 0.95, 1.05, 1.5, 2.2, 2.5]
    frames = read_clip(stored.data, frame_times=asked).frames
    assert [read_rotation(frame) for frame in frames] == [90] * 8  # as a player displays it
    assert probe(stored.data).rotation == 0
    turned = torch.rot90(frames, -1, dims=(2, 3))
    assert read_numbers(turned) == [0, 1, 2, 2, 3, 4, 5, 6]


def test_video_only_and_audio_only():
    silent = reencode(render_clip(num_frames=50, fps=25, audio=None), 0.5, 1.5, TRIM)
    assert not probe(silent.data).has_audio
    ramp = render_clip(num_frames=0, audio="ramp", container="wav", audio_codec="pcm_s16le", sampling_rate=22050)
    sound = reencode(ramp, 0.5, 1.5, TRIM)
    assert (sound.suffix, sound.start, sound.end) == (".flac", 0.0, 1.0)
    exact = read_clip(ramp, audio_window=(0.5, 1.5)).waveform
    assert torch.equal(read_clip(sound.data, audio_window=(0.0, 9.0)).waveform, exact)
    short = reencode(render_clip(num_frames=25, fps=25, seconds=3.0), 2.0, 3.0, TRIM)
    assert short.notes == ("its video track has nothing in the clip",)
    odd = reencode(render_clip(num_frames=25, audio_codec="flac", container="matroska", sampling_rate=37800), None, None,
                   ClipSettings(fps=25))  # fmt: skip
    assert probe(odd.data).sampling_rate == 44100
    assert "resampled from 37800 to 44100 Hz" in odd.notes[0]


def test_audio_at_an_odd_rate_takes_little_time_and_memory():
    """torchaudio's filter from 44,056 Hz to 44,100 Hz has 120 million values."""
    options = {"audio": "sine", "audio_codec": "flac", "container": "matroska", "sampling_rate": 44056, "channels": 2}
    data = render_clip(num_frames=25, **options)
    with PeakMemory(
        "cpu", PeakMemory.now("cpu")
    ) as peak:  # collects garbage first, which takes seconds after many tests
        start = time.process_time()
        clip = reencode(data, None, None, ClipSettings(fps=25))
        elapsed = time.process_time() - start
    assert elapsed < 5
    assert peak.mib is None or peak.mib < 100
    assert "resampled from 44056 to 44100 Hz" in clip.notes[0]
    sound = read_clip(clip.data, audio_window=(0.0, 1.0)).waveform
    assert sound.shape == (2, 44100)
    assert np.abs(np.fft.rfft(sound[1].numpy())).argmax() == 440  # 1 s: bins of 1 Hz


def test_early_end_gives_a_note_and_a_missing_part_raises(clip):
    stored = reencode(clip, 5.0, 15.0, TRIM)
    assert stored.end == pytest.approx(3.0)
    assert stored.notes == ("the file ends at 8.00 s, the annotated clip at 15.00 s",)
    assert check_clip(clip, 5.0, 15.0) == stored.notes
    assert check_clip(clip, 5.0, 8.4) == ()
    for work in (check_clip, lambda *place: reencode(*place, TRIM)):
        with pytest.raises(MediaError, match=r"9.0 to 19.0 s of a file that is 8.000 s long"):
            work(clip, 9.0, 19.0)


@pytest.mark.parametrize("damage", ["junk", "empty", "truncated", "flipped"])
def test_damage_is_found_anywhere_in_a_file(damage):
    whole = faststart(num_frames=100, fps=25, audio="chirp")
    broken = {"junk": b"no video at all", "empty": b"", "truncated": truncated(whole, 0.6),
              "flipped": bit_flipped(whole, first=0.5, every=7)}[damage]  # fmt: skip
    with pytest.raises(MediaError):
        check_clip(broken, None, None)
    with pytest.raises(MediaError):
        reencode(broken, None, None, ClipSettings(fps=25))


def test_settings_out_of_range_raise():
    for wrong, message in (
        ({"short_side": 8}, "at least 16"),
        ({"fps": 0}, "fps must lie"),
        ({"crf": 50}, "crf must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipSettings(**wrong)
    assert not TRIM.encodes(None, None)
    assert TRIM.encodes(0.0, None)
    assert not ClipSettings().encodes(1.0, 2.0)


def test_real_clips_of_every_kind(shared):
    """Every readable file can be re-encoded, with the same tracks and length."""
    for path in sorted((shared / "clips").glob("d*.*")):
        try:
            info = probe(path)
            check_clip(path, None, None)
        except MediaError:
            continue
        if max(info.width or 0, info.height or 0) > 700:
            continue  # large files take too long
        stored = probe(reencode(path, None, min(info.duration, 1.0), ClipSettings(trim=True, short_side=64)).data)
        assert (stored.has_video, stored.has_audio) == (info.has_video, info.has_audio), path
        # only the last frame's duration may exceed the trimmed length
        assert stored.duration == pytest.approx(min(info.duration, 1.0), abs=1.1 / (info.fps or 25)), path


def test_result_is_an_ordinary_mp4(clip):
    with av.open(io.BytesIO(reencode(clip, 0.0, 5.0, TRIM).data)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        keys = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.is_keyframe]
        assert keys[0] == 0.0
        assert max(b - a for a, b in zip(keys, [*keys[1:], 5.0])) <= 2.0  # so that seeking is fast
