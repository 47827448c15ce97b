"""Files that were joined end to end: transport and program streams, chained Ogg, Matroska, MP3, AC-3.

FFmpeg gives the packets of such parts one after the other. Where the time stamps begin again, each part is moved to the end of
the one before it, by the same time for all tracks, so that they stay in sync.
"""

import io
from typing import Any, BinaryIO

# s; decoding times that go back by more than this mark a new part. Damaged files and wrong muxers go back by less.
RESTART = 0.5
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_W64_HEADER = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
_MXF_HEADER = bytes.fromhex("060e2b34020501010d0102010102")  # the key of the partition that begins a file
# How tags begin that stand at the start or the end of MP3, AC-3 and other files of sound frames.
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
# How files of formats begin that do not state where they end.
_SIGNATURES = {"flac": b"fLaC\0\0\0\x22", "gif": b"\0;GIF8", "nut": b"nut/multimedia container\0", "tta": b"TTA1\1\0"}


class JoinedParts:
    """Counts the parts of a file while its packets are read from the start."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}
        self._part: dict[int, int] = {}

    def part_of(self, packet: Any) -> int:
        """The part that the next packet of the file belongs to."""
        index, stamp = packet.stream.index, packet.dts if packet.dts is not None else packet.pts
        if stamp is not None:
            time = float(stamp * packet.time_base)
            if time < self._last.get(index, time) - RESTART:
                self._part[index] = self._part.get(index, 0) + 1
            self._last[index] = time
        return self._part.get(index, 0)


def part_offsets(starts: list[dict[int, float]], ends: list[dict[int, float]]) -> list[float]:
    """By how many s each part is moved, from start and end of every track in every part: the least without an overlap."""
    offsets = [0.0]
    for start, end in zip(starts[1:], ends):
        offsets.append(offsets[-1] + max((end[index] - start[index] for index in start), default=0.0))
    return offsets


def shift(packet: Any, offset: float) -> None:
    """Moves the time stamps of a packet by `offset` s."""
    ticks = round(offset / packet.time_base)
    if packet.pts is not None:
        packet.pts += ticks
    if packet.dts is not None:
        packet.dts += ticks


def holds_tag(packet: Any) -> bool:
    """Whether a packet that cannot be decoded holds a tag, as at the joint of two MP3 files. FFmpeg leaves it out."""
    data = bytes(packet)
    return any(tag in data for tag in _TAGS)


def next_file_at(file: BinaryIO, container: str) -> int | None:
    """Where a second media file begins after the end of the first, in bytes; None: nothing follows, or the format is not known.

    Args:
        file: a file that can seek.
        container: FFmpeg's name, such as "mov,mp4,m4a,3gp,3g2,mj2".

    Only headers are read: of Ogg pages, RIFF, AIFF, Wave64 and CAF chunks, MP4 boxes, FLV tags, WavPack blocks, the Matroska
    segment, ASF objects and MXF packets. Files of `_SIGNATURES` are searched whole; they are mostly small.
    """
    size, kind = file.seek(0, io.SEEK_END), container.split(",")[0]
    if kind in _SIGNATURES:
        return _next_signature(file, size, _SIGNATURES[kind])
    return _FINDERS[kind](file, size) if kind in _FINDERS else None


def _read(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _after_tag(file: BinaryIO, place: int) -> int:
    """The end of the ID3v2 tag at a place, or the place itself."""
    head = _read(file, place, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return place
    size = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    return place + 10 + size + (10 if head[5] & 16 else 0)  # a footer


def _next_ogg(file: BinaryIO, size: int) -> int | None:
    place, began = 0, False  # a page that begins a track, after pages that hold data
    while place + 27 <= size:
        head = _read(file, place, 27 + 255)
        if head[:4] != b"OggS":
            return None
        begins = bool(head[5] & 2)
        if begins and began:
            return place
        began = began or not begins
        place += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return None


def _next_riff(file: BinaryIO, size: int) -> int | None:
    place, name, kind = 0, _read(file, 0, 4), _read(file, 8, 4)
    while place + 12 <= size:
        head = _read(file, place, 12)
        if head[:3] == b"ID3":
            place = _after_tag(file, place)
            continue
        if head[:4] != name:
            return None
        if place and head[8:] == kind:  # "AVIX" continues the same file
            return place
        length = int.from_bytes(head[4:8], "big" if name == b"FORM" else "little")  # FORM: AIFF
        place += 8 + length + length % 2
    return None


def _next_w64(file: BinaryIO, size: int) -> int | None:
    place = 40  # after the identity, the size of the file and "wave"
    while place + 24 <= size:
        head = _read(file, place, 24)
        if head[:16] == _W64_HEADER:
            return place
        length = int.from_bytes(head[16:], "little")
        if length < 24:
            return None
        place += length + -length % 8
    return None


def _next_caf(file: BinaryIO, size: int) -> int | None:
    place = 8
    while place + 12 <= size:
        head = _read(file, place, 12)
        if head[:8] == b"caff\0\1\0\0":
            return place
        length = int.from_bytes(head[4:], "big")
        if length >= 1 << 63:  # not known: the data end with the file
            return None
        place += 12 + length
    return None


def _next_mp4(file: BinaryIO, size: int) -> int | None:
    place, seen = 0, set()
    while place + 8 <= size:
        head = _read(file, place, 16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"ftyp" and b"moov" in seen:
            return place
        seen.add(kind)
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return None
        place += length
    return None


def _next_flv(file: BinaryIO, size: int) -> int | None:
    place = int.from_bytes(_read(file, 5, 4), "big") + 4
    while place + 11 <= size:
        head = _read(file, place, 4)
        if head[:3] == b"FLV":
            return place
        place += 11 + int.from_bytes(head[1:], "big") + 4
    return None


def _next_matroska(file: BinaryIO, size: int) -> int | None:
    place = 0
    for identity in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML header, segment
        head = _read(file, place, 12)
        if head[:4] != identity or not head[4]:
            return None
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:  # not known: a live stream
            return None
        place += 4 + width + length
    return place if _read(file, place, 4) == b"\x1a\x45\xdf\xa3" else None


def _next_au(file: BinaryIO, size: int) -> int | None:
    head = _read(file, 0, 12)
    place = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:], "big")  # 2^32 - 1: the length is not known
    return place if place + 24 <= size and _read(file, place, 4) == b".snd" else None


def _next_wavpack(file: BinaryIO, size: int) -> int | None:
    place, last = 0, -1
    while place + 32 <= size:
        head = _read(file, place, 32)
        if head[:8] == b"APETAGEX":  # tags after the last block
            place += 32 + int.from_bytes(head[12:16], "little")
            continue
        first = int.from_bytes(head[16:20], "little")  # number of the block's first sample
        if head[:4] != b"wvpk":
            return None
        if first < last:
            return place
        place, last = place + 8 + int.from_bytes(head[4:8], "little"), first
    return None


def _next_asf(file: BinaryIO, size: int) -> int | None:
    place = 0
    while place + 24 <= size:
        head = _read(file, place, 24)
        if place and head[:16] == _ASF_HEADER:
            return place
        length = int.from_bytes(head[16:], "little")
        if length < 24:  # not known: a live stream
            return None
        place += length
    return None


def _next_mxf(file: BinaryIO, size: int) -> int | None:
    place = 0
    while place + 17 <= size:
        head = _read(file, place, 25)
        if head[:4] != _MXF_HEADER[:4]:
            return None
        if place and head[:14] == _MXF_HEADER:
            return place
        width = head[16] & 127 if head[16] & 128 else 0
        place += 17 + width + (int.from_bytes(head[17 : 17 + width], "big") if width else head[16])
    return None


def _next_signature(file: BinaryIO, size: int, signature: bytes) -> int | None:
    step = 1 << 20
    for start in range(_after_tag(file, 0) + 1, size, step):
        found = _read(file, start, step + len(signature) - 1).find(signature)
        if found >= 0:
            return start + found
    return None


_FINDERS = {
    "ogg": _next_ogg, "avi": _next_riff, "wav": _next_riff, "aiff": _next_riff, "w64": _next_w64, "caf": _next_caf,
    "mov": _next_mp4, "mp4": _next_mp4,
    "matroska": _next_matroska, "flv": _next_flv, "au": _next_au, "wv": _next_wavpack, "asf": _next_asf, "mxf": _next_mxf,
}  # fmt: skip
