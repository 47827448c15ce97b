"""Which files torchcodec decodes as PyAV does, and no slower. PyAV decodes the others, for every backend.

`benchmarks/speed_code.py --only backends` compares both, for 8 frames of H.264 with sound. torchcodec is faster where keyframes
are closer than the requested frames, which it reaches by seeking. It is slower for videos with B-frames, of which PyAV skips
many (`frame_skipper`), and for short videos, since PyAV opens every file too, for its facts and its sound.
"""

import functools
import io
from typing import Any

import numpy as np

from .frame_skipper import can_skip_frames
from .nal_units import IDR, RECOVERY_POINT, SEI, nal_units, sei_messages

MIN_SECONDS = 4.0  # PyAV decodes shorter videos in less time than torchcodec needs to open them and decode
# Containers with an index, each with a signature at the start of the file. FFmpeg's libraries under torchcodec may be older than
# PyAV's, and take no list of formats. A file with such a signature is never read as a playlist.
INDEXED_FORMATS = {"mp4", "matroska", "ogg", "flv", "asf", "nut"}


@functools.cache
def torchcodec_works() -> bool:
    """Whether torchcodec decodes here. Tested by decoding, since without FFmpeg's libraries it imports but fails later."""
    import av

    target = io.BytesIO()
    pixels = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(32, 32, 3)
    with av.open(target, mode="w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = target.getvalue()
    try:
        from torchcodec.decoders import VideoDecoder

        decoded = VideoDecoder(data, seek_mode="exact")[1]
    except Exception:  # ImportError, OSError, RuntimeError: all mean that torchcodec is not usable
        return False
    with av.open(io.BytesIO(data)) as container:
        shown = list(container.decode(video=0))[1].to_ndarray(format="rgb24")
    return bool((decoded.permute(1, 2, 0).numpy() == shown).all())


def suits_torchcodec(container: Any, video: Any) -> bool:
    """Whether torchcodec returns the same frames as PyAV from this kind of file, at least as fast.

    torchcodec 0.17 misorders the B-frames of AVI, which stores no presentation times. From containers without an index (MPEG
    transport streams with B-frames, program streams) it returns other frames than requested. FFmpeg versions differ in how
    they convert more than 8 bits to RGB. H.264 must have length prefixes, by which `is_clean_start` reads its keyframes.
    """
    if video is None or INDEXED_FORMATS.isdisjoint(container.format.name.split(",")):
        return False
    if container.duration is not None and container.duration < MIN_SECONDS * 1_000_000:  # microseconds
        return False
    if can_skip_frames(video.codec_context):
        return False
    pixel_format = video.codec_context.format
    if pixel_format is None or any(component.bits > 8 for component in pixel_format.components):
        return False
    return video.codec_context.name != "h264" or has_length_prefixes(video)


def has_single_keyframe(container: Any, video: Any, tick: float) -> bool:
    """Whether the index states that up to `tick`, on the track's clock, only the first frame is a keyframe."""
    entries = video.index_entries
    known = "mp4" in container.format.name.split(",") and len(entries) == video.frames
    return known and entries.search_timestamp(int(tick), backward=True) <= 0


def has_length_prefixes(video: Any) -> bool:
    """Whether the track's NAL units start with their length in four bytes (as in mp4 and Matroska)."""
    head = video.codec_context.extradata or b""
    return len(head) > 6 and head[0] == 1 and head[4] & 3 == 3


def is_clean_start(packet: Any) -> bool:
    """Whether decoding can start at this H.264 keyframe: an IDR frame, or one whose recovery point (D.2.8) is itself.

    Others start a gradual recovery, strip by strip (intra refresh). Decoders return no frames until recovery is complete;
    torchcodec 0.17 returns the incomplete ones.
    """
    for unit in nal_units(packet):
        kind = unit[0] & 31
        if kind == IDR:
            return True
        for message, place in sei_messages(unit, header=1) if kind == SEI else ():
            if message == RECOVERY_POINT and place < len(unit):
                return unit[place] >= 0x80  # a first bit of 1 encodes recovery_frame_cnt = 0 (9.1)
    return False
