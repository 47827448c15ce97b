"""Re-encodes one clip for a shard (trims it to its annotated part, resizes it, changes its frame rate), or only checks it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from ...media.film import AAC_LAYOUTS, even_size, write_mp4
from ...media.reader import ClipReader, MediaError, MediaInfo, MediaSource
from ...media.windows import segment_of
from .settings import ClipSettings

CHECK_STEP = (
    1.0  # s between the requested frames when a file is only checked (all frames between them are decoded, too)
)
END_TOLERANCE = 0.5  # s; a clip that ends earlier than this before its annotated end gets a note


@dataclass(frozen=True)
class StoredClip:
    """A media file's bytes and suffix, the clip's start and end in it (s; None: the whole file), and notes."""

    data: bytes
    suffix: str
    start: float | None
    end: float | None
    notes: tuple[str, ...] = ()


def reencode(
    source: MediaSource, start: float | None, end: float | None, settings: ClipSettings, name: str | None = None
) -> StoredClip:
    """Re-encodes a clip to MP4 (H.264, AAC), or to FLAC (16 bit) if the file has no video.

    The new frames have a constant rate from the start of the clip on. Each shows what the source shows at its time, so a
    video of variable rate keeps its timing, and a video or audio track that starts late or has gaps still does. The audio
    keeps its sampling rate and channels and is cut to the sample. Height and width are rounded to even numbers;
    non-square pixels are kept. Equal input gives equal bytes.

    Args:
        source: path, URL, bytes or binary file object.
        start, end: the annotated part in seconds (None: from the beginning, to the end). With `settings.trim`, the file is
            trimmed to it, and the result runs from 0 to its length. Otherwise the whole file is re-encoded, and `start`
            and `end` do not change.
        settings: the changes.
        name: name of the source in messages.

    Raises:
        MediaError: the source cannot be decoded, or has nothing in [start, end).
    """
    with ClipReader(source, name=name) as reader:
        part = segment_of(reader.info, start, end)  # raises if the file lacks the annotated part, also without trim
        notes = _note_early_end(reader.info, end)
        trimmed = settings.trim and (start is not None or end is not None)
        info, begin = (part, start or 0.0) if trimmed else (reader.info, 0.0)
        if not info.has_video and not info.has_audio:
            raise MediaError(info.name, f"has neither video nor audio from {start} to {end} s")
        if info.has_video:
            data, warnings = _mp4(reader, info, begin, settings)
        else:
            data, warnings = _flac(reader, info)
        for track in ("video", "audio"):
            if getattr(reader.info, f"has_{track}") and not getattr(info, f"has_{track}"):
                warnings.append(f"its {track} track has nothing in the clip")
    inside = (0.0, info.duration) if trimmed else (start, end)
    return StoredClip(data, ".mp4" if info.has_video else ".flac", *inside, (*notes, *warnings))


def check_clip(source: MediaSource, start: float | None, end: float | None, name: str | None = None) -> tuple[str, ...]:
    """Decodes a whole clip without keeping anything; returns notes, such as the reader's warnings.

    Raises:
        MediaError: the source cannot be decoded, or has nothing in [start, end).
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
        return (*_note_early_end(reader.info, end), *clip.warnings)


def _note_early_end(info: MediaInfo, end: float | None) -> tuple[str, ...]:
    if end is None or info.duration >= end - END_TOLERANCE:
        return ()
    return (f"the file ends at {info.duration:.2f} s, the annotated clip at {end:.2f} s",)


def _mp4(reader: ClipReader, info: MediaInfo, begin: float, settings: ClipSettings) -> tuple[bytes, list[str]]:
    """Encodes the tracks of `info` to MP4, with `begin` as time 0; returns the bytes and notes."""
    buffer = io.BytesIO()
    fit = partial(even_size, short_side=settings.short_side)
    notes = write_mp4(buffer, reader, info, begin, rate=settings.fps, crf=settings.crf, fit=fit)
    return buffer.getvalue(), notes


def _flac(reader: ClipReader, info: MediaInfo) -> tuple[bytes, list[str]]:
    import av

    clip = reader.stream((), (info.audio_start, info.audio_start + info.audio_duration))
    if clip.waveform.shape[1] == 0:
        raise MediaError(info.name, "no audio of the clip could be decoded")
    if info.channels not in AAC_LAYOUTS:
        raise MediaError(
            info.name, f"its audio has {info.channels} channels; FLAC allows {', '.join(map(str, AAC_LAYOUTS))}"
        )
    layout, buffer = AAC_LAYOUTS[info.channels], io.BytesIO()
    with av.open(buffer, "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=info.sampling_rate, layout=layout)
        stream.codec_context.format = "s16"
        stream.codec_context.flags |= int(av.codec.context.Flags.bitexact)
        packed = np.round(clip.waveform.numpy().T * 32768).clip(-32768, 32767).astype(np.int16).reshape(1, -1)
        samples = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        samples.sample_rate, samples.time_base, samples.pts = info.sampling_rate, Fraction(1, info.sampling_rate), 0
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    return buffer.getvalue(), list(clip.warnings)
