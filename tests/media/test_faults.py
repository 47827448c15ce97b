"""Files that ordinary people have: odd tags, empty tracks, joined recordings, missing time stamps, several programmes."""

import csv
import io
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rendering import _sound_job, numbered_picture, read_numbers, read_rotation, render_clip, sound
from travellers import processor

from hf_avfusion.data.preparing.reencoding import ClipSettings, reencode
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media import torchcodec_backend
from hf_avfusion.media.nal_units import nal_units, states_orientation
from hf_avfusion.media.reader import ClipReader, ClipRequest, MediaError, probe, read_clip

TESTS = Path(__file__).resolve().parents[1]
FAULTS = TESTS.parents[1] / "shared" / "faults"
CODECS = {
    "matroska": ("libx264", "aac", 44100), "webm": ("libvpx", "libopus", 48000), "flv": ("libx264", "aac", 44100),
    "nut": ("libx264", "aac", 44100), "asf": ("libx264", "aac", 44100), "avi": ("libx264", "libmp3lame", 44100),
    "mpegts": ("libx264", "aac", 44100), "fragmented": ("libx264", "aac", 44100),
}  # fmt: skip


def declared(container: str, empty: str) -> bytes:
    """50 frames and 2 s of audio, of which one track is declared and gets no packet."""
    video_codec, audio_codec, rate = CODECS[container]
    target, fragmented = io.BytesIO(), container == "fragmented"
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    with av.open(target, "w", format="mp4" if fragmented else container, options=options) as output:
        video = output.add_stream(video_codec, rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = output.add_stream(audio_codec, rate=rate)
        audio.layout = "mono"
        if empty == "audio":
            for index in range(50):
                frame = av.VideoFrame.from_ndarray(numbered_picture(index, (64, 64)), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
        else:
            wave = sound("chirp", 2 * rate, rate)
            for start in range(0, 2 * rate, 1024):
                _sound_job(output, audio, wave[:, start : start + 1024], rate, start)()
            output.mux(audio.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("container", CODECS)
@pytest.mark.parametrize("empty", ["audio", "video"])
def test_a_declared_track_without_packets_is_missing(container, empty):
    data = declared(container, empty)
    info = probe(data)
    assert (info.has_video, info.has_audio) == (empty == "audio", empty == "video")
    clip = read_clip(data, frame_times=[(info.video_start or 0) + 1.0], audio_window=(0.0, 1.0))
    assert clip.warnings == []
    if empty == "audio":
        assert clip.waveform is None
        assert read_numbers(clip.frames) == [25]
    else:
        assert clip.frames is None
        assert clip.waveform.shape[1] == CODECS[container][2]


def test_tags_that_are_not_utf8_are_ignored():
    data = render_clip(audio="ramp", audio_codec="pcm_s16le", container="mov")
    assert data.count(b"VideoHandler") == 1
    latin = data.replace(b"VideoHandler", b"Vid\xe9oHandler")
    assert torch.equal(read_clip(latin, frame_times=[1.0]).frames, read_clip(data, frame_times=[1.0]).frames)


@pytest.mark.parametrize("mode", ["w+b", "r+b", "a+b"])
def test_a_file_object_that_can_be_written_is_read(tmp_path, mode):
    with open(tmp_path / "upload", mode) if mode != "r+b" else tempfile.SpooledTemporaryFile() as file:
        file.write(render_clip(num_frames=10))
        assert read_numbers(read_clip(file, frame_times=[0.2]).frames) == [5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e20])
@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_samples_that_are_no_sound_are_damage(value, codec):
    wave = sound("sine", 32000, 16000)
    wave[0, 8000] = value
    target = io.BytesIO()
    with av.open(target, "w", format="wav") as output:
        stream = output.add_stream(codec, rate=16000)
        stream.layout = "mono"
        kind = "flt" if codec == "pcm_f32le" else "dbl"
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32 if kind == "flt" else np.float64), kind, "mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = target.getvalue()
    with pytest.raises(MediaError, match=r"odd\.wav: .*up to 0\.500 s.*a sample is .*finite"):
        read_clip(data, audio_window=(0, 2), name="odd.wav")
    kept = read_clip(data, audio_window=(0, 2), on_decode_error="keep")
    assert kept.waveform.shape == (1, 8000)
    assert len(kept.warnings) == 1
    assert read_clip(data, audio_window=(0.6, 2)).waveform.isfinite().all()  # the part that is sound


@pytest.mark.parametrize(
    "arguments",
    [
        {"container": "mpegts"},
        {"container": "mpeg", "video_codec": "mpeg2video", "audio_codec": "mp2", "sampling_rate": 48000},
        {"container": "matroska"},
        {"container": "webm", "video_codec": "libvpx", "audio_codec": "libopus", "sampling_rate": 48000},
    ],
    ids=lambda value: value["container"],
)
def test_joined_recordings_follow_each_other(arguments):
    one = render_clip(**arguments)
    start, length = probe(one).video_start, probe(one).duration
    info = probe(one + one)
    assert info.duration == pytest.approx(2 * length, abs=0.1)
    with ClipReader(one + one) as reader:
        times = [start + index / 25 + 0.01 for index in range(100)]
        numbers = read_numbers(reader.read([ClipRequest(frame_times=times)])[0].frames)
        late = reader.read([ClipRequest(frame_times=[times[-1]], audio_pieces=[(3.0, 3.9)])])[0]
    assert numbers[:50] == list(range(50))
    restart = numbers.index(0, 50)
    assert restart <= 53
    assert numbers[restart:] == list(range(100 - restart))
    assert read_numbers(late.frames) == [numbers[-1]]
    assert late.waveform.square().mean() > 0.05


@pytest.mark.parametrize("codec", ["vorbis", "libopus", "flac"])
def test_chained_ogg_is_read_whole(codec):
    rate = 48000 if codec == "libopus" else 16000
    one = render_clip(num_frames=0, container="ogg", audio_codec=codec, sampling_rate=rate, channels=2)
    clip = read_clip(one + one, audio_window=(0.0, 9.0))
    assert clip.info.duration == pytest.approx(4.0, abs=0.1)
    first = read_clip(one, audio_window=(0.5, 1.5)).waveform
    begin = round((clip.info.duration / 2 + 0.5) * rate)
    candidates = [clip.waveform[:, begin + shift : begin + shift + rate] for shift in range(-rate // 25, rate // 25)]
    assert min((first - part).abs().mean().item() for part in candidates) < 0.02
    other = render_clip(num_frames=0, container="ogg", audio_codec="flac" if codec != "flac" else "vorbis", channels=2)
    with pytest.raises(MediaError, match="joined end to end"):
        probe(one + other)


SOUND = {"num_frames": 0, "seconds": 2.0}
ENDING = {
    "mp4": {}, "mov": {}, "avi": {"audio_codec": "pcm_s16le"}, "flv": {}, "nut": {}, "asf": {},
    "mxf": {"video_codec": "mpeg2video", "audio_codec": "pcm_s16le", "sampling_rate": 48000},
    "gif": {"video_codec": "gif", "pix_fmt": "rgb8", "audio": None},
    "wav": {"audio_codec": "pcm_s16le", **SOUND}, "aiff": {"audio_codec": "pcm_s16be", **SOUND},
    "au": {"audio_codec": "pcm_s16be", **SOUND}, "flac": {"audio_codec": "flac", **SOUND},
    "wv": {"audio_codec": "wavpack", **SOUND}, "tta": {"audio_codec": "tta", **SOUND},
    "w64": {"audio_codec": "pcm_s16le", **SOUND}, "caf": {"audio_codec": "pcm_s16be", **SOUND},
}  # fmt: skip


@pytest.mark.parametrize("container", ENDING)
def test_a_second_file_that_is_not_read_is_reported(container):
    one = render_clip(container=container, **{"sampling_rate": 44100, **ENDING[container]})
    request = {"frame_times": [0.5]} if container == "gif" else {"audio_window": (0.1, 1.0)}
    assert read_clip(one, **request).warnings == []
    (warning,) = read_clip(one + one, **request).warnings
    place = len(one) - 2 if container == "gif" else len(one)  # the signature includes the end of the first file
    assert f"byte {place}," in warning
    assert read_clip(one + bytes(100), **request).warnings == []


# Tags that stand at the start and the end of MP3 files: ID3v2, APE and ID3v1.
ID3 = b"ID3\4\0\0\0\0\x20\0" + bytes(4096)
APE = b"APETAGEX" + b"\xd0\7\0\0" + (32).to_bytes(4, "little") + bytes(7) + b"\x80" + bytes(8)
TAGS = {"nothing": b"", "ID3v2": ID3, "APE": APE, "ID3v1": b"TAG" + bytes(125), "all": APE + b"TAG" + bytes(125) + ID3}
FRAMES = {"mp3": "libmp3lame", "adts": "aac", "ac3": "ac3", "eac3": "eac3", "latm": "aac"}  # of sound


def frames_of_sound(container: str, seconds: float) -> bytes:
    wave = sound("chirp", int(seconds * 44100), 44100)
    return render_clip(
        num_frames=0, container=container, audio_codec=FRAMES[container], audio=wave, sampling_rate=44100
    )


@pytest.mark.parametrize(
    ("container", "tag"),
    [("mp3", tag) for tag in TAGS] + [(container, "all") for container in FRAMES if container != "mp3"],
)
def test_joined_frames_of_sound_are_read_whole(container, tag):
    first, second = frames_of_sound(container, 2.0), frames_of_sound(container, 3.0)
    data = first + TAGS[tag] + second
    info = probe(data)
    assert info.audio_duration == pytest.approx(5.0, abs=0.15)
    clip = read_clip(data, audio_window=(0.0, info.duration))
    assert all("a gap, filled with silence" in text for text in clip.warnings)
    assert len(clip.warnings) <= 1
    assert clip.waveform.shape[1] / 44100 == pytest.approx(info.audio_duration, abs=0.03)
    alone = read_clip(second, audio_window=(1.0, 1.1)).waveform
    offset = round((info.audio_duration - probe(second).audio_duration + 1.0) * 44100)
    found = [clip.waveform[:, offset + shift : offset + shift + 4410] for shift in range(-2400, 2400)]
    assert min((alone - part).abs().mean().item() for part in found) < 0.01


@pytest.mark.parametrize("tag", ["nothing", "ID3v2"])
@pytest.mark.parametrize("container", FRAMES)
def test_windows_of_frames_of_sound_are_those_of_the_whole(container, tag):
    data = frames_of_sound(container, 6.0) + TAGS[tag] + frames_of_sound(container, 6.0)
    whole = read_clip(data, audio_window=(0.0, 12.0)).waveform
    for start in (4.0, 9.0, 11.0):  # AC-3 by FFmpeg's seeking: more than 10 ms beside
        window = read_clip(data, audio_window=(start, start + 0.5)).waveform
        place = round(start * 44100)
        assert (window - whole[:, place : place + window.shape[1]]).abs().mean() < 1e-3


@pytest.mark.parametrize("rest", [ID3, bytes(50_000), b"RIFF" + bytes(range(256)) * 200], ids=["tag", "zeros", "other"])
def test_bytes_after_the_last_frame_of_sound_do_not_damage_it(rest):
    data = frames_of_sound("mp3", 2.0)
    clip = read_clip(data + rest, audio_window=(0.0, 9.0))
    assert clip.waveform.shape[1] / 44100 == pytest.approx(2.0, abs=0.03)
    assert [text for text in clip.warnings if "followed by bytes that cannot be decoded" not in text] == []
    assert rest[:3] == b"ID3" or clip.warnings


def test_a_last_frame_that_was_cut_off_is_left_out_with_a_warning():
    data = frames_of_sound("adts", 2.0)[:-100]
    clip = read_clip(data, audio_window=(0.0, 9.0))
    assert clip.waveform.shape[1] / 44100 == pytest.approx(2.0, abs=0.03)
    assert "ends at" in clip.warnings[0]


def test_a_file_that_ffmpeg_stops_reading_says_how_much_is_left():
    (warning,) = read_clip(frames_of_sound("adts", 2.0) + frames_of_sound("mp3", 2.0), audio_window=(0, 9)).warnings
    assert "can be read only up to 2." in warning


def test_parts_of_another_rate_are_refused():
    wave = sound("chirp", 96000, 48000)
    other = render_clip(num_frames=0, container="mp3", audio_codec="libmp3lame", audio=wave, sampling_rate=48000)
    with pytest.raises(MediaError, match="changes from 44100 Hz, 1 channels to 48000 Hz"):
        read_clip(frames_of_sound("mp3", 2.0) + other, audio_window=(0, 9))


def test_a_flac_file_that_begins_with_a_tag_is_one_file():
    flac = render_clip(num_frames=0, container="flac", audio_codec="flac", seconds=2.0)
    assert read_clip(ID3 + flac, audio_window=(0, 1)).warnings == []
    (warning,) = read_clip(ID3 + flac + flac, audio_window=(0, 1)).warnings
    assert f"byte {len(ID3 + flac)}," in warning


def test_a_second_wav_file_after_a_tag_is_reported():
    one = render_clip(num_frames=0, container="wav", audio_codec="pcm_s16le", seconds=2.0)
    (warning,) = read_clip(one + ID3 + one, audio_window=(0, 1)).warnings
    assert f"byte {len(one + ID3)}," in warning


@pytest.mark.parametrize(
    ("container", "codec"), [("h264", "libx264"), ("hevc", "libx265"), ("m4v", "mpeg4"), ("mpeg2video", "mpeg2video")]
)
def test_elementary_streams_are_read_at_their_rate(container, codec):
    data = render_clip(num_frames=100, container=container, video_codec=codec, b_frames=2, audio=None)
    info = probe(data)
    assert info.fps == 25
    assert info.duration == pytest.approx(4.0, abs=0.05)
    clip = read_clip(data, frame_times=[info.video_start + time for time in (0.0, 2.5, 3.0)])
    assert read_numbers(clip.frames) == [0, 62, 75]


@pytest.mark.parametrize("container", ["avi", "asf"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_without_presentation_times_are_in_time(container, codec):
    data = render_clip(num_frames=200, container=container, video_codec=codec, b_frames=2, audio=None)
    start = probe(data).video_start
    numbers = range(200)
    times = [start + number / 25 for number in numbers]
    assert read_numbers(read_clip(data, frame_times=times).frames) == list(numbers)
    for number in (60, 61, 101, 150, 199):  # each after a seek
        assert read_numbers(read_clip(data, frame_times=[start + number / 25]).frames) == [number]


def test_one_picture_of_raw_dv_has_its_rate():
    data = render_clip(num_frames=1, container="dv", video_codec="dvvideo", size=(720, 576), audio=None)
    assert probe(data).fps == 25
    with av.open(io.BytesIO(reencode(data, None, None, ClipSettings(short_side=64)).data)) as container:
        assert len(list(container.decode(video=0))) == 1


def turned_by_sei(**arguments) -> bytes:
    """A clip whose first packet alone states that its pictures are turned by 90 degrees."""
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(render_clip(audio=None, **arguments))) as source,
        av.open(target, "w", format="mp4") as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        turn = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is None:
                continue
            for written in turn.filter(packet) if number == 0 else [packet]:
                written.stream = stream
                output.mux(written)
    return target.getvalue()


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("backend", ["pyav", "auto"])
def test_the_first_picture_states_the_orientation_of_all(b_frames, backend):
    data = turned_by_sei(num_frames=150, b_frames=b_frames, size=(96, 64))
    whole = read_clip(data, frame_times=[0.0, 5.0], backend=backend)
    assert whole.frames.shape == (2, 3, 96, 64)
    turned = read_rotation(whole.frames[0])
    assert turned in (90, 270)
    for time in (0.5, 1.5, 5.0):
        clip = read_clip(data, frame_times=[time], backend=backend)
        assert read_rotation(clip.frames[0]) == turned
        assert clip.info.rotation == whole.info.rotation
    with ClipReader(data) as reader:
        for time in (5.0, 0.0, 3.0):
            assert read_rotation(reader.read([ClipRequest(frame_times=[time])])[0].frames[0]) == turned


@pytest.mark.parametrize("size", [3, 255, 256, 511, 70000])
def test_nal_units_after_lengths_and_after_start_codes(size):
    units = [b"\x06\x2f" + bytes([size % 251 + 2]) * size, b"\x65\x88\x80"]
    prefixed = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    for data in (prefixed, b"\0\0\0\1" + units[0] + b"\0\0\1" + units[1]):
        assert [bytes(unit) for unit in nal_units(data)] == units
        assert states_orientation(data, "h264")


def test_an_animated_webp_is_not_called_damaged():
    data = render_clip(num_frames=5, container="webp", video_codec="libwebp_anim", audio=None)
    with pytest.raises(MediaError, match="animated WebP, which this FFmpeg does not decode; convert"):
        read_clip(data, frame_times=[0.0])


# ------------------------------------------------------------------------------------------------------------ real files


def fault_names() -> list[str]:
    if not FAULTS.is_dir():
        return []
    with open(FAULTS / "manifest.csv", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def striped_number(frame: torch.Tensor) -> int:
    """The number that a frame shows as eight stripes, from the lowest bit on."""
    grey = frame.float().mean(dim=0)
    height, width = grey.shape
    row = grey[height // 2] if width >= height else grey[:, width // 2].flip(0)
    return sum(int(row[int((bit + 0.5) * len(row) / 8)] > 127) << bit for bit in range(8))


def pitch(waveform: torch.Tensor, rate: int) -> float:
    """The strongest frequency in Hz of the first 0.1 s."""
    part = waveform[0, : rate // 10]
    return torch.fft.rfft(part * torch.hann_window(len(part)), n=rate).abs().argmax().item()


NUMBERED = {"two_programmes.ts", "dvd_ac3.mpg", "declared_empty_audio.webm", "declared_empty_audio.mkv",
            "no_time_stamps.h264", "joined.ts", "b_frames.avi"}  # fmt: skip
WITH_PITCH = {"two_programmes.ts", "dvd_ac3.mpg", "b_frames.avi"}
REFUSED = {"chained.ogg": "joined end to end", "animated.webp": "animated WebP", "float_nan.wav": "a sample is nan",
           "float_1e20.wav": r"a sample is 1e\+20"}  # fmt: skip
MISSING_AUDIO = {"declared_empty_audio.webm", "declared_empty_audio.mkv"}
BEYOND = {"rate_2147483647.wav": "sampling rate=2147483647 Hz", "flat_8192.mp4": "8192"}
BIG = ("rate_", "flat_")


@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"{FAULTS} is absent")
@pytest.mark.parametrize("kind", ["path", "bytes", "file", "torchcodec"])
@pytest.mark.parametrize("name", [name for name in fault_names() if not name.startswith(BIG)])
def test_every_faulty_file_behaves_as_its_manifest_says(name, kind, monkeypatch):
    monkeypatch.setattr(torchcodec_backend, "MIN_SECONDS", 0.0)  # the files are short
    path, backend = FAULTS / name, "auto" if kind == "torchcodec" else "pyav"
    source = {"bytes": path.read_bytes, "file": lambda: io.BytesIO(path.read_bytes())}.get(kind, lambda: path)()
    if name in REFUSED:
        with pytest.raises(MediaError, match=REFUSED[name]) as caught:
            read_clip(source, frame_times=[0.0], audio_window=(0.0, 2.0), name=name, backend=backend)
        assert caught.value.source == name
        return
    info = probe(source, name)
    times = [(info.video_start or 0.0) + time / 2 for time in range(int(info.duration * 2))] or [0.0]
    clip = read_clip(source, frame_times=times, audio_window=(0.0, info.duration), backend=backend)
    assert clip.warnings == []
    assert info.has_audio == (clip.waveform is not None)
    if name in NUMBERED:
        assert [striped_number(frame) for frame in clip.frames] == [int(12.5 * index) for index in range(len(times))]
    if name in WITH_PITCH:
        at = round(times[2] * clip.sampling_rate)
        assert pitch(clip.waveform[:, at:], clip.sampling_rate) == pytest.approx(1200, abs=5)
    if name in MISSING_AUDIO:
        assert not info.has_audio
    if name == "two_programmes.ts":
        assert (info.width, info.height, info.sampling_rate, info.channels) == (96, 64, 16000, 1)
    if name == "joined.ts":
        assert info.video_duration == pytest.approx(8.0)
    if name == "one_picture.dv":
        assert info.fps == 25
    if name == "turned_by_sei.mp4":
        for time in times:  # whichever picture is read first
            assert read_clip(source, frame_times=[time], backend=backend).frames.shape[2:] == (96, 64)
    if name.startswith("tags_latin1"):
        assert pitch(clip.waveform, clip.sampling_rate) == pytest.approx(440, abs=5)


@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"{FAULTS} is absent")
@pytest.mark.parametrize("kind", ["path", "bytes"])
@pytest.mark.parametrize("name", fault_names())
def test_every_faulty_file_as_a_row_of_a_stream(name, kind):
    """It gives a sample, or it is skipped and counted."""
    path = FAULTS / name
    video = {"bytes": path.read_bytes(), "path": name} if kind == "bytes" else {"bytes": None, "path": str(path)}
    row = {"clip_id": name, "video": video, "start": None, "end": None, "label": 0}
    stream = ClipStream([row], ClipTransform(processor()), on_error="skip")
    samples = [sample for sample in stream if sample is not None]
    if message := {**REFUSED, **BEYOND}.get(name):
        assert samples == []
        with pytest.raises(MediaError, match=message):
            ClipTransform(processor())(row)
        return
    (sample,) = samples
    has_video, has_audio = sample["has_video"], sample["has_audio"]
    assert has_video == ("pixel_values" in sample)
    assert has_audio == ("input_features" in sample) == (name not in MISSING_AUDIO and probe(path).has_audio)
    assert all(sample[key].isfinite().all() for key in ("pixel_values", "input_features") if key in sample)


@pytest.mark.slow
@pytest.mark.skipif(not FAULTS.is_dir(), reason=f"{FAULTS} is absent")
def test_big_rates_and_pictures_take_little_memory():
    """In a process of its own, whose peak of memory is theirs alone. The faults took 3 GB and more."""
    code = (
        "import resource, sys, torch\n"
        "from travellers import processor\n"
        "prepare, peak = processor(), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "prepare(audio=torch.zeros(32000).numpy(), sampling_rate=16000)\n"
        "before = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: prepare(videos=path)\n"
        "    except ValueError as error: print(path.rpartition('/')[2], type(error).__name__)\n"
        "print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    files = [str(FAULTS / name) for name in fault_names() if name.startswith(BIG)]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], env=environment, capture_output=True, text=True, check=True
    )
    *refused, memory = done.stdout.split("\n")[:-1]
    assert sorted(refused) == sorted(f"{name} MediaError" for name in BEYOND)
    assert int(memory) < 245  # MiB; measured: 162. One picture of 8192 x 8192 would take another 192.
