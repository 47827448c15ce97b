"""Pictures by torchcodec: whether it decodes here as PyAV does, and files short of the pictures that nobody asked for.

torchcodec decodes every picture up to the last one asked for. Of H.264 with B-frames, about half are referred to by no
other, so those that were not asked for are left out of a copy in memory, packet by packet, before torchcodec sees it.
The pictures that are left come out the same, bit for bit.
"""

import functools
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .media_container_avfusion import WITHOUT_INDEX
from .media_tracks_avfusion import Skipping

# Pixels of the pictures left out, under which decoding them costs less than writing the copy.
SPARED_FROM = 1_000_000
# s between the first and the last asked time, over which the copy would fill too much memory.
SHORTENED_UP_TO = 60.0

# Units of H.264 that carry no picture another one needs: supplemental information, delimiters, filler.
WITHOUT_PICTURE = (6, 9, 12)


@functools.cache
def torchcodec_works() -> bool:
    """Whether torchcodec decodes here; found by decoding, since without FFmpeg's libraries it imports and fails later."""
    import av

    target = io.BytesIO()
    picture = np.arange(3 * 32 * 32, dtype=np.uint8).reshape(32, 32, 3)
    with av.open(target, mode="w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = target.getvalue()
    try:
        from torchcodec.decoders import VideoDecoder

        decoded = VideoDecoder(data, seek_mode="exact")[1]
    except Exception:  # ImportError, OSError, RuntimeError: it has many ways not to work, and all mean the same
        return False
    with av.open(io.BytesIO(data)) as container:
        shown = list(container.decode(video=0))[1].to_ndarray(format="rgb24")
    return bool((decoded.permute(1, 2, 0).numpy() == shown).all())


def torchcodec_agrees(container: Any, video: Any) -> bool:
    """Whether torchcodec gives the same pictures as PyAV; where not, PyAV's are given with any backend.

    torchcodec 0.17 misorders the B-frames of AVI, which stores no presentation times, and gives other pictures than those
    asked for of containers without an index (MPEG transport streams with B-frames, program streams); more than 8 bits are
    turned into RGB differently by different versions of FFmpeg.
    """
    if (
        video is None
        or not WITHOUT_INDEX.isdisjoint(container.format.name.split(","))
        or container.format.name == "avi"
    ):
        return False
    picture = video.codec_context.format
    return picture is not None and all(component.bits <= 8 for component in picture.components)


def may_shorten(video: Any, times: Sequence[float], fps: float | None) -> bool:
    """Whether leaving pictures out can pay: H.264 with B-frames, in units that state their length in four bytes (as mp4
    and Matroska keep them), with enough pixels before the last of `times` (s).
    """
    codec = video.codec_context
    if codec.name != "h264" or not codec.has_b_frames or times[-1] - times[0] > SHORTENED_UP_TO:
        return False
    if (times[-1] - times[0]) * (fps or 25.0) * codec.width * codec.height < 2 * SPARED_FROM:
        return False
    head = codec.extradata or b""
    return len(head) > 6 and head[0] == 1 and head[4] & 3 == 3


class ShortFile:
    """The packets of one video track that a decoder needs for the pictures that were asked for, in a file in memory.

    `read` takes packets in the order of the file until all is known, `write` makes the file, `decode` gives the pictures;
    each says None or False where the track is not as plain as it has to be, and must then be decoded whole.
    """

    def __init__(self, video: Any, needed: Skipping):
        self._video, self._needed = video, needed
        self._packets: list[Any] = []

    def read(self, packets: Iterator[Any], others: list[Any]) -> bool:
        """Reads on until no picture shown at an asked time can follow; packets of other tracks go to `others`."""
        index, last, after = self._video.index, self._needed.times[-1], 0
        for packet in packets:
            if packet.stream.index != index:
                others.append(packet)
                continue
            if not packet.size:
                break  # the end of the track
            stamp = packet.pts
            if stamp is None or packet.is_corrupt or packet.is_discard or packet.has_sidedata("new_extradata"):
                return False
            if packet.is_keyframe and stamp <= self._needed.times[0]:
                self._packets.clear()
            self._packets.append(packet)
            self._needed.look_at(packet)
            after += stamp > last
            if after > Skipping.AHEAD:
                break
        # Where the last picture of all is asked for, a file that is cut looks the same as one that ends.
        return bool(after and self._packets and self._packets[0].is_keyframe)

    def write(self) -> bytes | None:
        """The file; None where less is left out than writing costs."""
        import av

        kept, wanted = (
            [],
            0,
        )  # `wanted` of them up to the last picture that was asked for: no later one is needed for it
        for packet in self._packets:
            if self._needed.wanted(packet.pts):
                kept.append(packet)
                wanted = len(kept)
            elif is_referred_to(packet):
                kept.append(packet)
        del kept[wanted:]
        codec = self._video.codec_context
        if (len(self._packets) - len(kept)) * codec.width * codec.height < SPARED_FROM:
            return None
        self.stamps = sorted({packet.pts for packet in kept})
        if len(self.stamps) < len(kept):
            return None
        # Matroska states no times of decoding: in the order of the file, each as late as the last that must precede its
        # picture allows.
        ahead = max(stamp - packet.pts for stamp, packet in zip(self.stamps, kept))
        target = io.BytesIO()
        with av.open(target, mode="w", format="mp4") as output:
            track = output.add_stream_from_template(self._video, opaque=True)
            for packet, stamp in zip(kept, self.stamps):
                packet.stream, packet.dts = track, stamp - ahead
                output.mux_one(packet)
        return target.getvalue()

    def decode(self, data: bytes, threads: int) -> tuple[torch.Tensor, list[int], int] | None:
        """Of the file: pictures uint8 [times, 3, height, width], their stamps in ticks of the track, and how many degrees
        they were turned by; None where the file does not hold the pictures that were put into it.
        """
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=threads)
        if len(decoder) != len(self.stamps):
            return None
        places = [max(bisect_right(self.stamps, time) - 1, 0) for time in self._needed.times]
        batch = decoder.get_frames_at(places)
        stamps = [self.stamps[place] for place in places]
        tick = float(self._video.time_base)
        shown = batch.pts_seconds.tolist()
        if any(abs(time - shown[0] - (stamp - stamps[0]) * tick) > tick / 2 for time, stamp in zip(shown, stamps)):
            return None
        return batch.data, stamps, decoder.metadata.rotation or 0


def is_referred_to(packet: Any) -> bool:
    """Whether another picture may need the one of this packet: H.264's nal_ref_idc (7.4.1) of all its slices."""
    data, place = memoryview(packet), 0
    while place + 4 < len(data):
        kind = data[place + 4] & 31
        if kind == 1:
            if data[place + 4] & 0x60:
                return True
        elif kind not in WITHOUT_PICTURE:
            return True
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    return place != len(data)  # lengths that do not add up: better kept
