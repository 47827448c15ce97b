"""Frame decoding with torchcodec: whether it matches PyAV here, and trimmed copies without frames that are not needed.

torchcodec decodes every frame up to the last requested one. In H.264 with B-frames, no other frame references about half of
them. Such frames, if they are not requested, are left out of a copy in memory, packet by packet, and torchcodec decodes the
copy. The remaining frames are bit-identical. Cases that torchcodec gets wrong are left to PyAV: see `torchcodec_agrees` and
`IntraRefreshError`.
"""

import functools
import io
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .container import UNINDEXED_FORMATS
from .tracks import FrameSkipper

# Pixels in the skipped frames; below this, decoding them costs less than writing the copy.
MIN_SKIPPED_PIXELS = 1_000_000
# s between the first and the last requested time; above this, the copy would take too much memory.
MAX_TRIMMED_SECONDS = 60.0

# NAL unit types of H.264 (table 7-1). DISPOSABLE_UNITS carry no frame that another frame references: SEI, delimiter, filler.
SLICE, IDR, SEI = 1, 5, 6
DISPOSABLE_UNITS = (SEI, 9, 12)
RECOVERY_POINT = 6  # an SEI payload type (D.1)


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


def torchcodec_agrees(container: Any, video: Any) -> bool:
    """Whether torchcodec returns the same frames as PyAV. Where it does not, every backend uses PyAV.

    torchcodec 0.17 misorders the B-frames of AVI, which stores no presentation times. From containers without an index (MPEG
    transport streams with B-frames, program streams) it returns other frames than requested. FFmpeg versions differ in how
    they convert more than 8 bits to RGB.
    """
    if (
        video is None
        or not UNINDEXED_FORMATS.isdisjoint(container.format.name.split(","))
        or container.format.name == "avi"
    ):
        return False
    pixel_format = video.codec_context.format
    return pixel_format is not None and all(component.bits <= 8 for component in pixel_format.components)


class IntraRefreshError(Exception):
    """An H.264 keyframe starts a gradual recovery, strip by strip (intra refresh). Decoders return no frames until recovery is
    complete; torchcodec 0.17 returns the incomplete ones.
    """


class TrimmedFile:
    """An in-memory file with the packets of one H.264 track that a decoder needs for the requested frames.

    `read` takes packets in file order until all needed ones are known, `write` creates the file, `decode` returns the frames.
    Each returns False or None if the track is not supported and the whole file must be decoded.

    Args:
        video: the track.
        skipper: knows which frames are shown at the requested times.
        trim: whether skipping frames can save time (`worth_trimming`); only then are packets kept.
    """

    def __init__(self, video: Any, skipper: FrameSkipper, trim: bool):
        self._video, self._skipper, self._trim = video, skipper, trim
        self._size = video.codec_context.width * video.codec_context.height
        self._packets: list[Any] = []

    def read(self, packets: Iterator[Any], others: list[Any]) -> bool:
        """Reads until no frame shown at a requested time can follow. Packets of other tracks are appended to `others`.

        Raises:
            IntraRefreshError: torchcodec would return incomplete frames.
        """
        index, first, last, num_after = self._video.index, self._skipper.times[0], self._skipper.times[-1], 0
        for packet in packets:
            if packet.stream.index != index:
                others.append(packet)
                continue
            if not packet.size:
                break  # the end of the track
            stamp = packet.pts
            if stamp is None or packet.is_corrupt or packet.is_discard or packet.has_sidedata("new_extradata"):
                return False
            if packet.is_keyframe:
                if not is_clean_start(packet):
                    raise IntraRefreshError
                if stamp <= first:
                    self._packets.clear()
            if self._trim:
                self._packets.append(packet)
                self._skipper.note_packet(packet)
            num_after += stamp > last
            if num_after > FrameSkipper.LOOKAHEAD:
                break
        # If the last frame of the track is requested, a truncated file looks the same as a complete one.
        return bool(num_after and self._packets and self._packets[0].is_keyframe)

    def write(self) -> bytes | None:
        """The file, or None if skipping saves less than writing costs."""
        import av

        kept: list[Any] = []
        wanted = 0  # the packets up to the last requested frame: it needs no later one
        for packet in self._packets:
            if self._skipper.shown(packet.pts):
                kept.append(packet)
                wanted = len(kept)
            elif is_reference(packet):
                kept.append(packet)
        del kept[wanted:]
        if (len(self._packets) - len(kept)) * self._size < MIN_SKIPPED_PIXELS:
            return None
        self.stamps = sorted({packet.pts for packet in kept})
        if len(self.stamps) < len(kept):
            return None
        # Matroska states no decoding times. Packets in file order get the sorted timestamps, all shifted so that none is
        # later than the time of its own frame.
        ahead = max(stamp - packet.pts for stamp, packet in zip(self.stamps, kept))
        target = io.BytesIO()
        with av.open(target, mode="w", format="mp4") as output:
            track = output.add_stream_from_template(self._video, opaque=True)
            for packet, stamp in zip(kept, self.stamps):
                packet.stream, packet.dts = track, stamp - ahead
                output.mux_one(packet)
        return target.getvalue()

    def decode(self, data: bytes, threads: int) -> tuple[torch.Tensor, list[int], int] | None:
        """Frames uint8 [times, 3, height, width] of the file, their timestamps in ticks of the track, and their rotation in
        degrees; None if the file does not hold the frames that were written to it.
        """
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=threads)
        if len(decoder) != len(self.stamps):
            return None
        places = [max(bisect_right(self.stamps, time) - 1, 0) for time in self._skipper.times]
        batch = decoder.get_frames_at(places)
        stamps = [self.stamps[place] for place in places]
        tick = float(self._video.time_base)
        shown = batch.pts_seconds.tolist()
        if any(abs(time - shown[0] - (stamp - stamps[0]) * tick) > tick / 2 for time, stamp in zip(shown, stamps)):
            return None
        return batch.data, stamps, decoder.metadata.rotation or 0


def worth_trimming(video: Any, seconds: float, fps: float | None) -> bool:
    """Whether skipping frames in `seconds` s of video at about `fps` frames per second can save more than the copy costs."""
    codec = video.codec_context
    pixels = seconds * (fps or 25.0) * codec.width * codec.height
    return codec.has_b_frames > 0 and seconds <= MAX_TRIMMED_SECONDS and pixels >= 2 * MIN_SKIPPED_PIXELS


def has_single_keyframe(container: Any, video: Any, tick: float) -> bool:
    """Whether the index states that up to `tick`, on the track's clock, only the first frame is a keyframe."""
    entries = video.index_entries
    known = "mp4" in container.format.name.split(",") and len(entries) == video.frames
    return known and entries.search_timestamp(int(tick), backward=True) <= 0


def has_length_prefixes(video: Any) -> bool:
    """Whether the track's NAL units start with their length in four bytes (as in mp4 and Matroska)."""
    head = video.codec_context.extradata or b""
    return len(head) > 6 and head[0] == 1 and head[4] & 3 == 3


def _nal_units(packet: Any) -> list[memoryview] | None:
    """The NAL units of a packet, none of them empty; None if their lengths do not add up."""
    data, place, units = memoryview(packet), 0, []
    while place + 4 < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "big")
        if end == place + 4:
            return None
        units.append(data[place + 4 : end])
        place = end
    return units if place == len(data) else None


def is_reference(packet: Any) -> bool:
    """Whether another frame may reference the frame of this packet: H.264's nal_ref_idc (7.4.1) of all its slices."""
    units = _nal_units(packet)
    if units is None:
        return True
    return any(
        (kind := unit[0] & 31) not in DISPOSABLE_UNITS and (kind != SLICE or bool(unit[0] & 0x60)) for unit in units
    )


def is_clean_start(packet: Any) -> bool:
    """Whether decoding can start at this keyframe: an IDR frame, or one whose recovery point (D.2.8) is itself."""
    for unit in _nal_units(packet) or ():
        kind = unit[0] & 31
        if kind == IDR:
            return True
        place = 1
        while kind == SEI and place + 2 < len(unit):
            numbers = [0, 0]  # type and size of an SEI message, each a sum of bytes up to one below 255 (7.3.2.3.1)
            for which in range(2):
                while place < len(unit) - 1 and unit[place] == 255:
                    numbers[which], place = numbers[which] + 255, place + 1
                numbers[which], place = numbers[which] + unit[place], place + 1
            if numbers[0] == RECOVERY_POINT and place < len(unit):
                return unit[place] >= 0x80  # a first bit of 1 encodes recovery_frame_cnt = 0 (9.1)
            place += numbers[1]
    return False
