"""Presentation times of frames in containers that state decoding times only (AVI, ASF)."""

from heapq import heappop, heappush
from typing import Any

B_FRAMES = (3, 7)  # of FFmpeg's AVPictureType: B, BI


class DisplayOrder:
    """Assigns decoding times to frames: the earliest time to the first frame that is shown, and so on.

    FFmpeg's guesses are misordered or late around B-frames. After a seek, the decoder drops frames whose reference lies before it.
    Their times are dropped too: a frame other than a B-frame comes after all frames that were decoded before it.
    """

    def __init__(self) -> None:
        self._stamps: list[int] = []  # heap of the decoding times that no frame has yet
        self._missing: set[int] = set()  # decoding times of the packets whose frames have not come
        self._expected: int | None = None  # decoding time of the next packet

    def note_packet(self, packet: Any) -> None:
        """Notes the next packet before it is decoded. Its frame is recognised by the presentation time that this sets."""
        # FFmpeg knows no decoding time for some packets after a seek.
        stamp = packet.dts if packet.dts is not None else self._expected
        packet.pts = stamp
        if packet.size and stamp is not None:
            heappush(self._stamps, stamp)
            self._missing.add(stamp)
            self._expected = stamp + packet.duration if packet.duration else None

    def next_stamp(self, frame: Any) -> int | None:
        """The presentation time of the next decoded frame; None: it follows the one before."""
        self._missing.discard(frame.pts)
        if frame.pts is not None and frame.pict_type not in B_FRAMES:
            for stamp in [stamp for stamp in self._missing if stamp < frame.pts]:
                self._missing.remove(stamp)
                if self._stamps:
                    heappop(self._stamps)
        return heappop(self._stamps) if self._stamps else None
