"""Pictures by torchcodec: whether it decodes here as PyAV does, and files short of the pictures that nobody asked for.

torchcodec decodes every picture up to the last one asked for. Of H.264 with B-frames, about half are referred to by no
other, so those that were not asked for are left out of a copy in memory, packet by packet, before torchcodec sees it.
The pictures that are left come out the same, bit for bit. What torchcodec would give wrongly is left to PyAV: see
`torchcodec_agrees` and `OnlyRecovers`.
"""

import functools
import io
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .container import WITHOUT_INDEX
from .tracks import Skipping

# Pixels of the pictures left out, under which decoding them costs less than writing the copy.
SPARED_FROM = 1_000_000
# s between the first and the last asked time, over which the copy would fill too much memory.
SHORTENED_UP_TO = 60.0

# Kinds of units of H.264 (table 7-1); those that carry no picture another one needs: also delimiters and filler.
SLICE, IDR, SUPPLEMENTAL = 1, 5, 6
WITHOUT_PICTURE = (SUPPLEMENTAL, 9, 12)
RECOVERY_POINT = 6  # a kind of supplemental information (D.1)


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


class OnlyRecovers(Exception):
    """A key picture of H.264 from which those that follow only recover, strip by strip (intra refresh). Decoders give none
    before they have recovered; torchcodec 0.17, which begins with it, gives what there is.
    """


class ShortFile:
    """The packets of one track of H.264 that a decoder needs for the pictures that were asked for, in a file in memory.

    `read` takes packets in the order of the file until all is known, `write` makes the file, `decode` gives the pictures;
    each gives False or None where the track is not as plain as it has to be, and must be decoded from the whole file.

    Args:
        video: the track.
        needed: knows which pictures are shown at the asked times.
        pays: whether leaving pictures out can pay at all (`may_pay`): their packets are kept then.
    """

    def __init__(self, video: Any, needed: Skipping, pays: bool):
        self._video, self._needed, self._pays = video, needed, pays
        self._size = video.codec_context.width * video.codec_context.height
        self._packets: list[Any] = []

    def read(self, packets: Iterator[Any], others: list[Any]) -> bool:
        """Reads on until no picture shown at an asked time can follow; packets of other tracks go to `others`.

        Raises:
            OnlyRecovers: torchcodec would not give the pictures that were asked for.
        """
        index, first, last, after = self._video.index, self._needed.times[0], self._needed.times[-1], 0
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
                if not is_whole(packet):
                    raise OnlyRecovers
                if stamp <= first:
                    self._packets.clear()
            if self._pays:
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

        kept: list[Any] = []
        wanted = 0  # how many of them up to the last picture that was asked for: no later one is needed for it
        for packet in self._packets:
            if self._needed.wanted(packet.pts):
                kept.append(packet)
                wanted = len(kept)
            elif is_referred_to(packet):
                kept.append(packet)
        del kept[wanted:]
        if (len(self._packets) - len(kept)) * self._size < SPARED_FROM:
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


def may_pay(video: Any, seconds: float, fps: float | None) -> bool:
    """Whether a copy of a stretch of so many s, at about `fps` pictures a second, can cost less than what it leaves out."""
    codec = video.codec_context
    pixels = seconds * (fps or 25.0) * codec.width * codec.height
    return codec.has_b_frames > 0 and seconds <= SHORTENED_UP_TO and pixels >= 2 * SPARED_FROM


def one_key(container: Any, video: Any, tick: float) -> bool:
    """Whether the index says that only the first picture is a key one, up to this place of the track's clock."""
    entries = video.index_entries
    known = "mp4" in container.format.name.split(",") and len(entries) == video.frames
    return known and entries.search_timestamp(int(tick), backward=True) <= 0


def states_lengths(video: Any) -> bool:
    """Whether the track's units begin with their length in four bytes (as mp4 and Matroska keep H.264)."""
    head = video.codec_context.extradata or b""
    return len(head) > 6 and head[0] == 1 and head[4] & 3 == 3


def _units(packet: Any) -> list[memoryview] | None:
    """The units of a packet, none of them empty; None if their lengths do not add up."""
    data, place, units = memoryview(packet), 0, []
    while place + 4 < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "big")
        if end == place + 4:
            return None
        units.append(data[place + 4 : end])
        place = end
    return units if place == len(data) else None


def is_referred_to(packet: Any) -> bool:
    """Whether another picture may need the one of this packet: H.264's nal_ref_idc (7.4.1) of all its slices."""
    units = _units(packet)
    if units is None:
        return True
    return any(
        (kind := unit[0] & 31) not in WITHOUT_PICTURE and (kind != SLICE or bool(unit[0] & 0x60)) for unit in units
    )


def is_whole(packet: Any) -> bool:
    """Whether decoding can begin with this key picture: an IDR picture, or one whose recovery point (D.2.8) is itself."""
    for unit in _units(packet) or ():
        kind = unit[0] & 31
        if kind == IDR:
            return True
        place = 1
        while kind == SUPPLEMENTAL and place + 2 < len(unit):
            numbers = [0, 0]  # type and size of a message, each a sum of bytes up to one below 255 (7.3.2.3.1)
            for which in range(2):
                while place < len(unit) - 1 and unit[place] == 255:
                    numbers[which], place = numbers[which] + 255, place + 1
                numbers[which], place = numbers[which] + unit[place], place + 1
            if numbers[0] == RECOVERY_POINT and place < len(unit):
                return unit[place] >= 0x80  # the first bit alone is the number 0 (9.1)
            place += numbers[1]
    return False
