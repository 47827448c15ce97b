"""Every real clip of ../shared/clips agrees with its manifest, or raises a MediaError that names file and cause."""

import csv
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from hf_avfusion.media.mono import to_mono
from hf_avfusion.media.reader import ClipReader, ClipRequest, MediaError, probe, read_clip
from hf_avfusion.media.windows import WindowPolicy, load_window

CLIPS = Path(__file__).resolve().parents[3] / "shared" / "clips"
ROWS = {}
if (CLIPS / "manifest.csv").is_file():
    with (CLIPS / "manifest.csv").open(newline="", encoding="utf-8") as manifest:
        ROWS = {row["file"]: row for row in csv.DictReader(manifest)}

# Damaged files that can be opened are read up to the damage. q13 is not marked as broken, but its packets are (28 of 50 decode).
DAMAGED = {"x02_truncated_moov_ok.mp4", "x03_bitflips.mp4", "q13_corrupted_upstream.mp4"}
UNREADABLE = {"x01_truncated_no_moov.mp4", "x04_empty.mp4", "x05_text_named.mp4"}
# Cut by stream copy: reference frames at the cut are missing, so up to two positions before the last show the previous frame.
CUT_BY_COPY = ("d01", "d03", "d05", "d09", "d13", "d14")
ROTATED = {"q06_rot180_vfr_phone.mp4": 180, "q15_rot90_3frames.mov": 270, "d01_rot90.mp4": 90}

pytestmark = pytest.mark.usefixtures("shared")


def names(*, constant_rate: bool = False) -> list[str]:
    """The readable clips, or only those with a constant frame rate. Without the folder: one name, so that a test is skipped."""
    readable = [name for name in ROWS if name not in DAMAGED | UNREADABLE]
    if constant_rate:
        readable = [name for name in readable if ROWS[name]["fps"] and name[:3] not in ("q06", "d02", "q01")]
    return readable or ["none"]


def every_frame(info) -> list[float]:
    """Times at which a clip of constant frame rate shows its frames, in their middles."""
    return [info.video_start + (index + 0.5) / info.fps for index in range(round(info.video_duration * info.fps))]


def test_the_lists_here_cover_the_manifest():
    assert DAMAGED | UNREADABLE | set(ROTATED) <= set(ROWS)
    assert {name for name in ROWS if name.startswith("x")} <= DAMAGED | UNREADABLE


@pytest.mark.parametrize("name", names())
def test_a_clip_agrees_with_its_manifest(name):
    row, info = ROWS[name], probe(CLIPS / name)
    if row["duration_s"] and name != "q05_two_video_two_audio.mp4":  # there subtitles last longer than both tracks
        assert info.duration == pytest.approx(float(row["duration_s"]), abs=0.06)
    assert info.has_video == bool(row["video_codec"])
    assert info.has_audio == bool(row["audio_codec"])
    assert info.rotation == ROTATED.get(name, 0)
    clip = read_clip(CLIPS / name, frame_times=[0.0], audio_window=(0.0, info.duration))
    if info.has_video and name != "q05_two_video_two_audio.mp4":  # the manifest states the smaller of its two tracks
        width, height = map(int, row["size"].split("x"))
        if info.rotation % 180:
            width, height = height, width
        assert (info.width, info.height) == (width, height)
        assert clip.frames.shape == (1, 3, height, width)
        if name not in ("q06_rot180_vfr_phone.mp4", "d02_vfr.mp4"):  # their average rate depends on the counting method
            assert info.fps == pytest.approx(float(Fraction(row["fps"])), rel=0.02)
    if info.has_audio:
        rate = 16000 if name == "q05_two_video_two_audio.mp4" else int(row["audio_rate"])
        assert (info.sampling_rate, info.channels) == (rate, int(row["audio_channels"]))
        expected = round(info.audio_duration * rate)
        assert clip.waveform.shape[0] == info.channels
        assert expected - 0.02 * rate <= clip.waveform.shape[1] <= expected


@pytest.mark.parametrize("name", names(constant_rate=True))
def test_a_constant_frame_rate_gives_duration_times_rate_frames(name):
    info = probe(CLIPS / name)
    times = every_frame(info)
    if info.width * info.height > 500_000:  # 720p: a second of it
        times = times[: round(info.fps)]
    clip = read_clip(CLIPS / name, frame_times=times)
    assert len(clip.frames) == len(times)
    missing = 2 if name.startswith(CUT_BY_COPY) else 0
    assert len(clip.frame_times.unique()) >= len(times) - missing  # a different frame at every time
    late = torch.tensor(times, dtype=torch.float64) - clip.frame_times
    assert late.min() > -1e-3
    assert late.max() <= (1 + missing) / info.fps
    assert clip.warnings == []


def test_variable_frame_rates_keep_their_timestamps():
    clip = read_clip(CLIPS / "d02_vfr.mp4", frame_times=[index / 48 for index in range(288)])
    stamps = clip.frame_times.unique()
    assert len(stamps) == 105
    assert len((stamps.diff() * 24).round().unique()) > 1  # steps of one and of more frames
    phone = read_clip(CLIPS / "q06_rot180_vfr_phone.mp4", frame_times=[index / 10 for index in range(24)])
    assert phone.info.rotation == 180
    assert "gap" in read_clip(CLIPS / "q06_rot180_vfr_phone.mp4", audio_window=(0, 1)).warnings[0]


def test_particular_facts():
    late = read_clip(CLIPS / "d09_audio_starts_late.mp4", audio_window=(0.0, 2.0))
    assert late.audio_start == pytest.approx(
        0.676, abs=0.001
    )  # the manifest's 0.7 less the codec's run-up of 1024 samples
    assert late.waveform.shape[1] == pytest.approx((2.0 - 0.676) * 44100, abs=2)
    both = probe(CLIPS / "q05_two_video_two_audio.mp4")
    assert (both.width, both.height, both.sampling_rate) == (480, 270, 16000)
    assert probe(CLIPS / "q04_no_duration_vp9_opus.webm").duration == pytest.approx(4.94, abs=0.1)
    silent = read_clip(CLIPS / "q10_yuv444_mp3_silent16k.mp4", audio_window=(0, 5)).waveform
    assert silent.abs().max() == 0
    waveform = read_clip(CLIPS / "d13_antiphase_stereo.mp4", audio_window=(0, 4)).waveform
    with pytest.warns(UserWarning, match="cancel"):
        assert to_mono(waveform).abs().max() < 0.15 * to_mono(waveform, "left").abs().max()


@pytest.mark.parametrize("name", sorted(UNREADABLE))
def test_unreadable_files_raise(name):
    for read in (probe, lambda path: load_window(path, WindowPolicy())):
        with pytest.raises(MediaError) as caught:
            read(CLIPS / name)
        assert name in str(caught.value)
        assert caught.value.cause


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damage_raises_or_is_reported(name):
    info = probe(CLIPS / name)
    times = every_frame(info)
    window = (0.0, info.duration) if info.has_audio else None
    with pytest.raises(MediaError, match=f"{name}.*damaged: decoding returned"):
        read_clip(CLIPS / name, frame_times=times, audio_window=window)
    clip = read_clip(CLIPS / name, frame_times=times, audio_window=window, on_decode_error="keep")
    assert 20 < len(clip.frames) < len(times)
    assert clip.warnings
    assert read_clip(CLIPS / name, frame_times=times[:20]).warnings == []


@pytest.mark.parametrize("name", names())
def test_both_backends_return_the_same_frames(name, torchcodec):
    policy = WindowPolicy(num_frames=6, frame_rate=5.0, audio_seconds=1.0)
    clips = [load_window(CLIPS / name, policy, backend=backend)[0] for backend in ("pyav", "torchcodec")]
    assert clips[0].info == clips[1].info
    for part in ("frames", "waveform"):
        one, other = (getattr(clip, part) for clip in clips)
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)


def test_both_backends_return_the_same_audio_from_a_reused_reader(torchcodec):
    # AAC decoders fill bands with noise that depends on where they started and on earlier reads.
    turns = [([5.0], [(5.0, 6.0)]), ([0.0, 0.2], None), ([5.0], [(4.5, 8.0)])]
    given = []
    for backend in ("pyav", "torchcodec"):
        with ClipReader(CLIPS / "c07_pomeranian.mp4", backend=backend) as reader:
            given.append([reader.read([ClipRequest(*turn)])[0] for turn in turns])
    for one, other in zip(*given, strict=True):
        assert torch.equal(one.frames, other.frames)
        assert (one.waveform is None) == (other.waveform is None)
        assert one.waveform is None or torch.equal(one.waveform, other.waveform)


@pytest.mark.parametrize(("source", "name"), [("q18_1x1.mp4", "-dash.mp4"), ("d14_awkward_name.mp4", "a spacé.mp4")])
def test_awkward_names(tmp_path, monkeypatch, source, name):
    (tmp_path / name).write_bytes((CLIPS / source).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert torch.equal(read_clip(name, frame_times=[0.0]).frames, read_clip(CLIPS / source, frame_times=[0.0]).frames)
