"""Writes a clip of an open media file to MP4 (H.264 and AAC), with frames that may be drawn on, and with its sound."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .reader import ClipReader, MediaError, MediaInfo
from .resampling import resample

# Sampling rates of AAC (Hz); audio at another rate is resampled to the next higher one.
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
AAC_BITS = (3, 64_000)  # bits per sample, and the largest number of bits per second, both per channel
GOP_SECONDS = 2.0  # between key frames, so that seeking into the middle of a clip is fast
DEFAULT_FPS = 25.0  # for a file without a frame rate


def even_size(height: int, width: int, short_side: int | None = None) -> tuple[int, int]:
    """Returns (height, width), both even for H.264 with 4:2:0, with the shorter side at most `short_side`."""
    scale = 1.0 if short_side is None else min(short_side / min(height, width), 1.0)
    return tuple(max(round(side * scale / 2) * 2, 2) for side in (height, width))


def write_mp4(
    target: Any,
    reader: ClipReader,
    info: MediaInfo,
    begin: float,
    *,
    rate: float | None = None,
    crf: int = 18,
    fit: Callable[[int, int], tuple[int, int]] = even_size,
    draw: Callable[[np.ndarray, float], np.ndarray] | None = None,
) -> list[str]:
    """Encodes the tracks of `info` to MP4, with `begin` as time 0.

    Frames have a constant rate. Each shows what the source shows at its time. The audio keeps its channels and, where AAC has it,
    its sampling rate. Equal input gives equal bytes.

    Args:
        target: a path or a binary file object that can seek.
        reader: the open file.
        info: the part of the file to write, as `windows.segment_of` gives it.
        begin: s on the clock of the file.
        rate: frames per second; default: those of the file.
        crf: quality of H.264, 0 (best) to 51.
        fit: maps the stored (height, width) to the even size of the new frames.
        draw: takes a frame, uint8 [height, width, 3], and its time in s on the clock of the file; gives the frame to write.

    Returns:
        Notes on damage and changes, such as the reader's warnings.

    Raises:
        MediaError: the source cannot be decoded, or its audio has a number of channels that AAC does not allow.
    """
    import av

    rate = Fraction(rate or info.fps or DEFAULT_FPS).limit_denominator(1001)
    first = math.ceil((info.video_start - begin) * rate - 1e-6)
    last = max(math.ceil((info.video_start + info.video_duration - begin) * rate - 1e-6), first + 1)
    if first > 0 and not (info.has_audio and info.audio_start <= begin):
        first = 0  # one track must start at time 0, or the times of the new file would shift
    times = [begin + float(number / rate) for number in range(first, last)]
    window = (info.audio_start, info.audio_start + info.audio_duration) if info.has_audio else None

    # bitexact writes no library versions into the file. Without a limit on the delay, video and audio are interleaved in the
    # file although all frames are encoded before the audio.
    options = {"fflags": "+bitexact", "max_interleave_delta": "0"}
    with av.open(target, "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=rate)
        # fastdecode: training decodes a clip many times, and decoding limits the speed of a stream.
        gop = max(round(GOP_SECONDS * float(rate)), 1)
        # cpu-independent: otherwise x264's rate control (mbtree) sometimes gives other bytes, even on one machine.
        video.options = {
            "preset": "veryfast",
            "tune": "fastdecode",
            "crf": str(crf),
            "bf": "0",
            "g": str(gop),
            "x264-params": "cpu-independent=1",
        }
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.time_base = 1 / rate
        video.codec_context.flags |= int(av.codec.context.Flags.bitexact)
        audio = None
        if info.has_audio:  # added before the first frame is written, since that writes the header
            if info.channels not in AAC_LAYOUTS:
                raise MediaError(
                    info.name, f"its audio has {info.channels} channels; AAC allows {', '.join(map(str, AAC_LAYOUTS))}"
                )
            sampling_rate = next((rate for rate in AAC_RATES if rate >= info.sampling_rate), AAC_RATES[-1])
            audio = container.add_stream("aac", rate=sampling_rate, layout=AAC_LAYOUTS[info.channels])
            audio.options = {"aac_coder": "fast"}
            audio.bit_rate = info.channels * min(AAC_BITS[0] * sampling_rate, AAC_BITS[1])
            audio.codec_context.flags |= int(av.codec.context.Flags.bitexact)

        number = first

        def write(pixels: np.ndarray) -> None:
            nonlocal number
            if draw is not None:
                pixels = draw(pixels, times[number - first])
            if number == first:
                video.height, video.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(video.encode(frame))
            number += 1

        clip = reader.stream(times, window, write, fit=fit)
        container.mux(video.encode())
        notes = list(clip.warnings)
        if audio is not None:
            waveform, at = clip.waveform, clip.audio_start
            if waveform.shape[1] == 0:
                raise MediaError(info.name, "no audio of the clip could be decoded")
            if sampling_rate != info.sampling_rate:
                channels = [resample(channel, info.sampling_rate, sampling_rate) for channel in waveform]
                waveform = torch.stack(channels)
                notes.append(f"its audio was resampled from {info.sampling_rate} to {sampling_rate} Hz for AAC")
            samples = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(waveform.numpy()), format="fltp", layout=AAC_LAYOUTS[info.channels]
            )
            samples.sample_rate, samples.time_base = sampling_rate, Fraction(1, sampling_rate)
            samples.pts = round((at - begin) * sampling_rate)
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return notes


__all__ = ["even_size", "write_mp4"]
