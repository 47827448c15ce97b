"""One clip as it goes into a shard: its bytes as they are, or cut to its annotated part, made smaller and encoded anew."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ...media.reader import ClipReader, MediaError, MediaInfo, MediaSource
from ...media.windows import segment_of

if TYPE_CHECKING:
    import torch

# What AAC can hold; sound at another rate is resampled to the next higher one of these (Hz).
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
AAC_BITS = (3, 64_000)  # bits per second and channel: so many per sample, at most so many
GOP_SECONDS = 2.0  # between key pictures: a window in the middle of a clip is reached soon
DEFAULT_FPS = 25.0  # for a file that tells no rate
CHECK_STEP = 1.0  # s; pictures asked for when a file is only checked (all between them are decoded too)
SHORTER = 0.5  # s by which a clip may end before its annotation without a note


@dataclass(frozen=True)
class ClipSettings:
    """What becomes of a clip on its way into a shard.

    Args:
        trim: cut to the annotated [start, end); where the file is the clip there is nothing to cut.
        short_side: pixels of the shorter side; larger pictures are made smaller, smaller ones stay.
        fps: frames per second; None keeps the file's (average) rate.
        crf: x264's constant rate factor, 0 (lossless) to 40.
        check: what happens to clips that are stored as they are: True decodes all of them once, so that a broken one
            is found now; False copies them unseen.

    A clip is encoded anew if it is cut, or if `short_side` or `fps` is set; otherwise its bytes stay as they are.
    """

    trim: bool = False
    short_side: int | None = None
    fps: float | None = None
    crf: int = 20
    check: bool = True

    def __post_init__(self):
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"short_side must be at least 16 pixels, got {self.short_side}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps must lie in 0 (excluded) to 1000, got {self.fps}")
        if not 0 <= self.crf <= 40:
            raise ValueError(f"crf must lie in 0 (lossless) to 40, got {self.crf}")

    def encodes(self, start: float | None, end: float | None) -> bool:
        """Whether a clip with this annotated part (None: the whole file) is encoded anew."""
        cut = self.trim and (start is not None or end is not None)
        return cut or self.short_side is not None or self.fps is not None


@dataclass(frozen=True)
class StoredClip:
    """Bytes of a media file with its suffix; start and end of the clip in it (s; None: all); what is worth knowing."""

    data: bytes
    suffix: str
    start: float | None
    end: float | None
    notes: tuple[str, ...] = ()


def reencode(
    source: MediaSource, start: float | None, end: float | None, settings: ClipSettings, name: str | None = None
) -> StoredClip:
    """A clip as MP4 (H.264, AAC), or as FLAC (16 bit) where the file has no pictures; both tracks on one clock.

    Pictures come at a constant rate from the start of the clip on: each is the one shown at its time in the source, so
    that a track of variable rate keeps its timing, and late or missing parts of a track stay late or missing. Sound
    keeps its rate and channels and is cut to the sample. Sides are rounded to even numbers; pixels that are not square
    stay as they are stored. Equal input gives equal bytes.

    Args:
        source: path, URL, bytes or binary file object.
        start, end: the annotated part in s (None: from the beginning, to the end). With `settings.trim` the file is cut
            to it and the result runs from 0 to its length; without, the whole file is encoded and they stay.

    Raises:
        MediaError: the source cannot be decoded, or lies outside of [start, end).
    """
    with ClipReader(source, name=name) as reader:
        part = segment_of(reader.info, start, end)  # whatever is kept, the annotated part must be there
        notes = _too_short(reader.info, end)
        cut = settings.trim and (start is not None or end is not None)
        info, begin = (part, start or 0.0) if cut else (reader.info, 0.0)
        if not info.has_video and not info.has_audio:
            raise MediaError(info.name, f"has neither pictures nor sound from {start} to {end} s")
        if info.has_video:
            data, warnings = _mp4(reader, info, begin, settings)
        else:
            data, warnings = _flac(reader, info)
        for track in ("video", "audio"):
            if getattr(reader.info, f"has_{track}") and not getattr(info, f"has_{track}"):
                warnings.append(f"its {track} track has no part in the clip")
    inside = (0.0, info.duration) if cut else (start, end)
    return StoredClip(data, ".mp4" if info.has_video else ".flac", *inside, (*notes, *warnings))


def check_clip(source: MediaSource, start: float | None, end: float | None, name: str | None = None) -> tuple[str, ...]:
    """Decodes all of a clip and keeps nothing; returns what is worth knowing.

    Raises:
        MediaError: the source cannot be decoded, or lies outside of [start, end).
    """
    with ClipReader(source, name=name) as reader:
        info = segment_of(reader.info, start, end)
        times, window = [], None
        if info.has_video:
            last = info.video_start + info.video_duration
            times = [
                info.video_start + n * CHECK_STEP for n in range(max(math.ceil(info.video_duration / CHECK_STEP), 1))
            ]
            if info.fps and last - 1 / info.fps > times[-1]:
                times.append(last - 1 / info.fps)
        if info.has_audio:
            window = info.audio_start, info.audio_start + info.audio_duration
        clip = reader.stream(times, window)
        return (*_too_short(reader.info, end), *clip.warnings)


def _too_short(info: MediaInfo, end: float | None) -> tuple[str, ...]:
    if end is None or info.duration >= end - SHORTER:
        return ()
    return (f"the file ends at {info.duration:.2f} s, the annotated clip at {end:.2f} s",)


def even_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) with the shorter side at most `short_side`, in even numbers, as H.264 with 4:2:0 needs them."""
    scale = 1.0 if short_side is None else min(short_side / min(height, width), 1.0)
    return tuple(max(round(side * scale / 2) * 2, 2) for side in (height, width))


def _mp4(reader: ClipReader, info: MediaInfo, begin: float, settings: ClipSettings) -> tuple[bytes, list[str]]:
    """The tracks of `info` with the time `begin` as their zero, and the reader's warnings."""
    import av

    rate = Fraction(settings.fps or info.fps or DEFAULT_FPS).limit_denominator(1001)
    first = math.ceil((info.video_start - begin) * rate - 1e-6)
    last = max(math.ceil((info.video_start + info.video_duration - begin) * rate - 1e-6), first + 1)
    if first > 0 and not (info.has_audio and info.audio_start <= begin):
        first = 0  # one track must start with the clip, or the clock of the new file would start later
    times = [begin + float(number / rate) for number in range(first, last)]
    window = (info.audio_start, info.audio_start + info.audio_duration) if info.has_audio else None

    buffer = io.BytesIO()
    # bitexact leaves versions out of the file; without a limit on the delay the tracks lie beside each other although
    # all pictures come before the sound.
    options = {"fflags": "+bitexact", "max_interleave_delta": "0"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=rate)
        # fastdecode: whoever trains reads a clip many times, and decoding is what a stream waits for.
        gop = max(round(GOP_SECONDS * float(rate)), 1)
        # cpu-independent: without it x264's rate control (mbtree) gives other bits now and then, even on one machine.
        video.options = {
            "preset": "veryfast",
            "tune": "fastdecode",
            "crf": str(settings.crf),
            "bf": "0",
            "g": str(gop),
            "x264-params": "cpu-independent=1",
        }
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.time_base = 1 / rate
        video.codec_context.flags |= int(av.codec.context.Flags.bitexact)
        audio = None
        if info.has_audio:  # declared before the first picture is written, since that writes the header
            if info.channels not in AAC_LAYOUTS:
                raise MediaError(info.name, f"its sound has {info.channels} channels, which AAC here cannot hold")
            sampling_rate = _aac_rate(info.sampling_rate)
            audio = container.add_stream("aac", rate=sampling_rate, layout=AAC_LAYOUTS[info.channels])
            audio.options = {"aac_coder": "fast"}
            audio.bit_rate = info.channels * min(AAC_BITS[0] * sampling_rate, AAC_BITS[1])
            audio.codec_context.flags |= int(av.codec.context.Flags.bitexact)

        number = first

        def show(picture: np.ndarray) -> None:
            nonlocal number
            if number == first:
                video.height, video.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(video.encode(frame))
            number += 1

        clip = reader.stream(times, window, show, fit=_fit(settings.short_side))
        container.mux(video.encode())
        notes = list(clip.warnings)
        if audio is not None:
            waveform, at = clip.waveform, clip.audio_start
            if waveform.shape[1] == 0:
                raise MediaError(info.name, "no sound of the clip could be decoded")
            if sampling_rate != info.sampling_rate:
                waveform = _resample(waveform, info.sampling_rate, sampling_rate)
                notes.append(f"its sound was resampled from {info.sampling_rate} to {sampling_rate} Hz for AAC")
            sound = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(waveform.numpy()), format="fltp", layout=AAC_LAYOUTS[info.channels]
            )
            sound.sample_rate, sound.time_base = sampling_rate, Fraction(1, sampling_rate)
            sound.pts = round((at - begin) * sampling_rate)
            container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return buffer.getvalue(), notes


def _flac(reader: ClipReader, info: MediaInfo) -> tuple[bytes, list[str]]:
    import av

    clip = reader.stream((), (info.audio_start, info.audio_start + info.audio_duration))
    if clip.waveform.shape[1] == 0:
        raise MediaError(info.name, "no sound of the clip could be decoded")
    if info.channels not in AAC_LAYOUTS:
        raise MediaError(info.name, f"its sound has {info.channels} channels, which FLAC cannot hold")
    layout, buffer = AAC_LAYOUTS[info.channels], io.BytesIO()
    with av.open(buffer, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=info.sampling_rate, layout=layout)
        stream.codec_context.format = "s16"
        stream.codec_context.flags |= int(av.codec.context.Flags.bitexact)
        packed = np.round(clip.waveform.numpy().T * 32768).clip(-32768, 32767).astype(np.int16).reshape(1, -1)
        sound = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        sound.sample_rate, sound.time_base, sound.pts = info.sampling_rate, Fraction(1, info.sampling_rate), 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return buffer.getvalue(), list(clip.warnings)


def _fit(short_side: int | None) -> Callable[[int, int], tuple[int, int]]:
    return lambda height, width: even_size(height, width, short_side)


def _aac_rate(rate: int) -> int:
    return next((known for known in AAC_RATES if known >= rate), AAC_RATES[-1])


def _resample(waveform: torch.Tensor, old: int, new: int) -> torch.Tensor:
    from torchaudio.functional import resample

    return resample(waveform, old, new)
