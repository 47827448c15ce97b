"""NAL units of H.264 and HEVC packets, and the SEI messages in them. Only what decides how a file is read."""

import re
from collections.abc import Iterator
from typing import Any

# NAL unit types of H.264 (table 7-1), SEI of HEVC (table 7-1), and SEI payload types (D.1)
IDR, SEI, HEVC_SEI = 5, 6, 39
RECOVERY_POINT, DISPLAY_ORIENTATION = 6, 47


def nal_units(data: Any) -> list[memoryview]:
    """The NAL units of a packet, after lengths of four bytes or start codes; [] if it has neither.

    Lengths come first: those of 256 to 511 bytes look like a start code.
    """
    data, place, units = memoryview(data), 0, []
    while place + 4 < len(data):
        start = place + 4
        place = start + int.from_bytes(data[place:start], "big")
        units.append(data[start:place])
    if place == len(data) and all(map(len, units)):
        return units
    edges = [match.span() for match in re.finditer(b"\0\0\1", data)]
    stops = [start for start, _ in edges[1:]] + [len(data)]
    return [data[start:stop] for (_, start), stop in zip(edges, stops) if stop > start]


def sei_messages(unit: memoryview, header: int) -> Iterator[tuple[int, int]]:
    """Payload type and first byte of every message of an SEI unit with so many bytes of header."""
    place = header
    while place + 2 < len(unit):
        numbers = [0, 0]  # type and size, each a sum of bytes up to one below 255 (7.3.2.3.1)
        for which in range(2):
            while place < len(unit) - 1 and unit[place] == 255:
                numbers[which], place = numbers[which] + 255, place + 1
            if place < len(unit):
                numbers[which], place = numbers[which] + unit[place], place + 1
        yield numbers[0], place
        place += numbers[1]


def states_orientation(data: Any, codec: str) -> bool:
    """Whether a packet of "h264" or "hevc" states how its picture is turned."""
    for unit in nal_units(data):
        is_sei = unit[0] & 31 == SEI if codec == "h264" else unit[0] >> 1 & 63 == HEVC_SEI
        header = 1 if codec == "h264" else 2
        if is_sei and any(kind == DISPLAY_ORIENTATION for kind, _ in sei_messages(unit, header)):
            return True
    return False
