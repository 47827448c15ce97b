"""Renders small media files with PyAV for tests: every picture carries its own frame number, every sound its own time.

`render_clip` is the one renderer; its arguments are the quirks (rotation, variable frame rate, late audio, several
tracks, no duration in the header, ...). The functions under it break a rendered file in the ways that files get broken.
"""

import io
import os
import random
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

RATES_OF_OPUS = (8000, 12000, 16000, 24000, 48000)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
CELLS = 4  # a picture is a grid of 4 x 4 cells: 4 corners tell the orientation, the other 12 are the bits of its number
CORNERS = {(0, 0): (255, 255, 255), (0, 3): (255, 0, 0), (3, 0): (0, 0, 255), (3, 3): (0, 0, 0)}
BITS = [(row, column) for row in range(CELLS) for column in range(CELLS) if (row, column) not in CORNERS]


def numbered_picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """Picture number `index` (< 4096), uint8 [height, width, 3]; corners white, red / blue, black; size = (width,
    height).
    """
    width, height = size
    if min(size) < 2 * CELLS:  # too small for cells: the whole picture is one grey level
        return np.full((height, width, 3), 16 + 8 * (index % 28), dtype=np.uint8)
    cells = np.zeros((CELLS, CELLS, 3), dtype=np.uint8)
    for place, colour in CORNERS.items():
        cells[place] = colour
    for bit, place in enumerate(BITS):
        cells[place] = 255 if index >> bit & 1 else 0
    rows = np.arange(height) * CELLS // height
    columns = np.arange(width) * CELLS // width
    return cells[rows][:, columns]


def _cell_colours(frame: torch.Tensor) -> np.ndarray:
    picture = frame.to(torch.float32).permute(1, 2, 0).numpy()
    height, width, _ = picture.shape
    rows = [int((row + 0.5) * height / CELLS) for row in range(CELLS)]
    columns = [int((column + 0.5) * width / CELLS) for column in range(CELLS)]
    return picture[rows][:, columns]


def read_number(frame: torch.Tensor) -> int:
    """The number that `numbered_picture` wrote, read from a decoded upright frame [3, height, width]."""
    colours = _cell_colours(frame)
    return sum(1 << bit for bit, place in enumerate(BITS) if colours[place].mean() > 127)


def read_numbers(frames: torch.Tensor) -> list[int]:
    """`read_number` of every frame of [frames, 3, height, width]."""
    return [read_number(frame) for frame in frames]


def read_rotation(frame: torch.Tensor) -> int:
    """By how many degrees counter-clockwise a frame [3, height, width] stands rotated: 0, 90, 180 or 270."""
    colours = _cell_colours(frame)
    names = {(True, True, True): "white", (True, False, False): "red", (False, False, True): "blue"}
    ring = [names.get(tuple(colours[place] > 127), "black") for place in ((0, 0), (0, 3), (3, 3), (3, 0))]
    upright = ["white", "red", "black", "blue"]
    for quarter in range(4):
        # Turned counter-clockwise by one quarter, the top right corner comes to the top left.
        if ring == upright[quarter:] + upright[:quarter]:
            return 90 * quarter
    raise AssertionError(f"corners are {ring}: not a numbered picture")


def sound(kind: str, samples: int, sampling_rate: int, channels: int = 1) -> np.ndarray:
    """A waveform float32 [channels, samples] in [-1, 1].

    kind: "chirp" rises from 100 Hz by 300 Hz per second; "sine" is 440 Hz; "clicks" has one full-scale sample every
    0.1 s; "ramp" counts samples in 16 bit steps (value = (n mod 65536 - 32768) / 32768), so that lossless codecs give
    the index of every sample back; "silence"; "antiphase" is the chirp with every second channel negated, so that the
    mean of the channels is silent.
    """
    count = np.arange(samples, dtype=np.int64)
    time = count / sampling_rate
    if kind in ("chirp", "antiphase"):
        wave = 0.5 * np.sin(2 * np.pi * (100 * time + 150 * time**2))
    elif kind == "sine":
        wave = 0.5 * np.sin(2 * np.pi * 440 * time)
    elif kind == "clicks":
        wave = np.where(count % round(0.1 * sampling_rate) == 0, 0.99, 0.0)
    elif kind == "ramp":
        wave = (count % 65536 - 32768) / 32768
    elif kind == "silence":
        wave = np.zeros(samples)
    else:
        raise ValueError(f"unknown kind of sound {kind!r}")
    signs = [-1.0 if kind == "antiphase" and channel % 2 else 1.0 for channel in range(channels)]
    return np.stack([sign * wave for sign in signs]).astype(np.float32)


class _Pipe:
    """A file object that can only be written, as a live stream: the muxer cannot go back to fill in the duration."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)


def uneven_times(number: int, seed: int) -> list[float]:
    """Presentation times in s of a variable frame rate, from 0 on, 10 ms to 0.3 s apart."""
    draw, times = random.Random(seed), [0.0]
    while len(times) < number:
        times.append(round(times[-1] + draw.choice([0.01, 0.02, 0.04, 0.3]), 3))
    return times


def render_clip(
    path: str | os.PathLike | None = None,
    *,
    num_frames: int = 50,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (64, 64),
    audio: str | np.ndarray | None = "chirp",
    seconds: float | None = None,
    sampling_rate: int = 16000,
    channels: int = 1,
    container: str = "mp4",
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    frame_times: Sequence[float] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    rotation: int = 0,
    video_start: float = 0.0,
    audio_start: float = 0.0,
    audio_gap: tuple[float, float] | None = None,
    video_tracks: int = 1,
    audio_tracks: int = 1,
    live: bool = False,
    options: dict[str, str] | None = None,
) -> bytes | Path:
    """Renders one file and gives its bytes, or its path when `path` is given.

    Args:
        path: where to write; None gives bytes. The container is `container` in either case, whatever the name ends
            with.
        num_frames, fps: pictures and their rate; 0 pictures give a file without a video track.
        size: (width, height) as encoded. Second and later video tracks are twice as large.
        audio: a kind of `sound`, a waveform [channels, samples], or None for no audio track.
        seconds: length of the sound; default num_frames / fps.
        frame_times: presentation times in s, one per picture, for a variable frame rate (num_frames is then their
            count).
        pictures: uint8 [height, width, 3] each, in place of numbered pictures.
        rotation: degrees counter-clockwise by which a player turns the encoded pictures (display matrix).
        video_start, audio_start: time in s of the first picture and of the first sample.
        audio_gap: (place, length) in s of a stretch in which no sound was stored, so that the rest sounds later.
        video_tracks, audio_tracks: how many of each; audio track k > 0 has twice the rate of the one before, for
            telling them apart.
        live: written to a pipe that cannot seek, so that the header holds no duration.
        options: options of the muxer, such as {"movflags": "frag_keyframe"}.
    """
    if pictures is not None:
        num_frames = len(pictures)
    if frame_times is not None:
        num_frames = len(frame_times)
    rate = Fraction(fps).limit_denominator(100_000)
    clock = Fraction(1, 90_000) if frame_times is not None or video_start else 1 / rate
    times = frame_times if frame_times is not None else [video_start + float(i / rate) for i in range(num_frames)]
    if seconds is None:
        seconds = float(num_frames / rate) if num_frames else 2.0

    target = _Pipe() if live else io.BytesIO() if path is None else str(path)
    output = av.open(target, mode="w", format=container, options=options or {})
    jobs = []  # (time, function that encodes and muxes) of every picture and piece of sound, to be run in order of time
    streams = []
    with output:
        for track in range(video_tracks if num_frames else 0):
            width, height = size[0] * (track + 1), size[1] * (track + 1)
            stream = output.add_stream(video_codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = clock
            stream.gop_size, stream.max_b_frames = gop, b_frames
            if video_codec == "libx264":
                stream.options = {"qp": "12", "preset": "ultrafast", "sc_threshold": "0"}
            elif video_codec in ("libvpx", "libvpx-vp9"):
                stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "10"}
            if rotation:
                stream.set_display_rotation(rotation)
            stream.codec_context.thread_count = 1
            streams.append(stream)
            for index, time in enumerate(times):
                jobs.append((time, _picture_job(output, stream, index, time, clock, (width, height), pictures)))
        for track in range(audio_tracks if audio is not None else 0):
            rate_of_track = sampling_rate * 2**track
            wave = (
                audio
                if isinstance(audio, np.ndarray)
                else sound(audio, round(seconds * rate_of_track), rate_of_track, channels)
            )
            stream = output.add_stream(audio_codec, rate=rate_of_track)
            stream.layout = LAYOUTS[wave.shape[0]]
            if audio_codec == "vorbis":
                stream.options = {"strict": "experimental"}
            streams.append(stream)
            step = 1024
            for start in range(0, wave.shape[1], step):
                piece = wave[:, start : start + step]
                time = audio_start + start / rate_of_track
                if audio_gap is not None and time >= audio_gap[0]:
                    time += audio_gap[1]
                job = _sound_job(output, stream, piece, rate_of_track, round(time * rate_of_track))
                jobs.append((time, job))
        for _, job in sorted(jobs, key=lambda entry: entry[0]):
            job()
        for stream in streams:
            output.mux(stream.encode(None))
    if live:
        data = b"".join(target.parts)
        if path is None:
            return data
        Path(path).write_bytes(data)
    return Path(path) if path is not None else target.getvalue()


def _picture_job(output, stream, index, time, clock, size, pictures):
    def job() -> None:
        array = numbered_picture(index, size) if pictures is None else pictures[index]
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.pts, frame.time_base = round(Fraction(time) / clock), clock
        output.mux(stream.encode(frame))

    return job


def _sound_job(output, stream, piece, rate, position):
    def job() -> None:
        layout = LAYOUTS[piece.shape[0]]
        if stream.codec_context.format.name in ("s16", "s16p"):
            packed = np.round(piece.T * 32768).clip(-32768, 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        else:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
        output.mux(stream.encode(frame))

    return job


def cover_art(*, seconds: float = 1.0, sampling_rate: int = 44100) -> bytes:
    """A sound file (m4a) with a cover picture: a track that looks like video of one frame and that players show
    beside the sound.
    """
    target = io.BytesIO()
    with av.open(target, mode="w", format="mp4") as output:
        picture = output.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        stream = output.add_stream("aac", rate=sampling_rate)
        stream.layout = "mono"
        frame = av.VideoFrame.from_ndarray(numbered_picture(7, (64, 64)), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        packets = picture.encode(frame) + picture.encode(None)
        output.mux(packets)
        wave = sound("chirp", round(seconds * sampling_rate), sampling_rate)
        for start in range(0, wave.shape[1], 1024):
            _sound_job(output, stream, wave[:, start : start + 1024], sampling_rate, start)()
        output.mux(stream.encode(None))
    return target.getvalue()


def truncated(data: bytes, share: float) -> bytes:
    """The first `share` of a file. Of a file with its index (moov) at the end nothing can be opened, of a `faststart`
    file the start can.
    """
    return data[: int(len(data) * share)]


def faststart(**arguments) -> bytes:
    """`render_clip` to mp4 with the index in front, for which the muxer needs a real file."""
    with tempfile.TemporaryDirectory() as folder:
        return render_clip(Path(folder) / "clip.mp4", options={"movflags": "faststart"}, **arguments).read_bytes()


def bit_flipped(data: bytes, *, first: float = 0.5, last: float = 1.0, every: int = 97) -> bytes:
    """Inverts every `every`-th byte between the shares `first` and `last` of a file."""
    broken = bytearray(data)
    for place in range(int(len(data) * first), int(len(data) * last), every):
        broken[place] ^= 0xFF
    return bytes(broken)
