"""What becomes of decoded frames while a file is read: pictures chosen by presentation time, sound cut to the sample."""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .media_sources_avfusion import MediaError

# Samples of sound that are gathered before they are converted, so that a long piece is not held twice.
RUN = 1 << 16

# s; timestamps off by more are a gap or an overlap, by less are rounding (WebM with Vorbis or Opus: up to 11 ms)
SOUND_GAP = 0.025


class SeekMissed(Exception):
    """The container went to a place behind the one asked for; the pass is repeated from an earlier one."""


def _display_matrix(frame: Any) -> np.ndarray | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
    return None


def _upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turns and mirrors [height, width, 3] by the quarter turn nearest to a display matrix (x' = a x + c y, y' = b x
    + d y).
    """
    a, b, c, d = (int(matrix[place]) for place in ((0, 0), (0, 1), (1, 0), (1, 1)))
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


class Pictures:
    """Collects, from frames offered in the order of their times, the one shown at each asked time.

    Holds converted pictures only for asked times, and one decoded frame besides. `times` is sorted, without
    repetitions, in s.
    """

    def __init__(self, times: Sequence[float], *, tolerance: float, name: str):
        from av.video.reformatter import VideoReformatter

        # A time that was computed (k / fps) may lie a rounding step before the stamp of its frame; half a tick never
        # reaches the next one.
        self.tolerance = tolerance
        self.times = list(times)
        self._name = name
        self._reformatter = (
            VideoReformatter()
        )  # kept: setting it up anew for every frame costs more than converting small ones
        self._buffer: np.ndarray | torch.Tensor | None = None
        self.size: tuple[int, int] | None = None  # height, width
        self.rotation = 0
        self._matrix: np.ndarray | None = None
        self._slot_of: list[int] = []  # per asked time that has been served: its picture
        self._stamps: list[float] = []  # per picture: its time
        self.count = 0
        self.begin(float("inf"))

    def begin(self, end: float) -> None:
        """Starts a pass that serves the asked times up to `end`, those that have been served apart."""
        self._limit = bisect_right(self.times, end)
        self._previous: tuple[Any, float] | None = None
        self.end: float | None = None  # time up to which this pass has decoded

    def asked_in(self, start: float, end: float) -> bool:
        """Whether a time of [start, end] was asked for."""
        return bisect_right(self.times, end) > bisect_left(self.times, start)

    @property
    def reached(self) -> bool:
        """Whether every time of this pass has its picture."""
        return len(self._slot_of) >= self._limit

    @property
    def last_asked(self) -> float:
        """The last asked time of this pass."""
        return self.times[self._limit - 1]

    def offer(self, frame: Any, time: float | None, length: float, *, sought: bool) -> None:
        """Takes the next decoded frame, shown from `time` for `length` s; one without a time follows the one before."""
        if time is None:
            time = self.end if self.end is not None else 0.0
        if self._previous is not None and time < self._previous[1]:
            return  # damaged timestamps that go back: what would have been shown already is past
        while not self.reached and self.times[len(self._slot_of)] + self.tolerance < time:
            if self._previous is None and sought:
                raise SeekMissed
            self._show(*(self._previous or (frame, time)))
        self.count += 1
        self._previous = (frame, time)
        self.end = time + length
        while not self.reached and self.times[len(self._slot_of)] - self.tolerance <= time:
            self._show(frame, time)

    def finish(self, until: float | None = None) -> None:
        """Lets the last frame stand for the remaining asked times of the pass, or for those before `until`."""
        while self._previous is not None and not self.reached:
            if until is not None and self.times[len(self._slot_of)] >= until:
                return
            self._show(*self._previous)

    def _show(self, frame: Any, time: float) -> None:
        if not self._stamps or self._stamps[-1] != time:
            self._keep(frame, time)
        self._slot_of.append(len(self._stamps) - 1)

    def _keep(self, frame: Any, time: float) -> None:
        # The first kept frame tells how the track is turned; threads=1: more of them only cost on frames of these
        # sizes.
        if self.size is None:
            self._matrix = _display_matrix(frame)
            self.rotation = round(frame.rotation / 90) * 90 % 360
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if self._matrix is not None:
            picture = np.ascontiguousarray(_upright(picture, self._matrix))
        size = picture.shape[:2]
        if self.size is None:
            self.size = size
        elif self.size != size:
            raise _size_changes(self._name, self.size, size, time)
        if self._buffer is None:
            self._buffer = np.empty((len(self.times), 3, *size), dtype=np.uint8)
        self._buffer[len(self._stamps)] = picture.transpose(2, 0, 1)
        self._stamps.append(time)

    def take(self, pictures: torch.Tensor, stamps: list[float], rotation: int) -> None:
        """Takes the pictures of all asked times, uint8 [len(times), 3, height, width], from a decoder that chose them
        itself.
        """
        self._buffer, self._stamps, self._slot_of = pictures, stamps, list(range(len(stamps)))
        self.size, self.rotation = tuple(pictures.shape[2:]), rotation

    def select(self, asked: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures uint8 [T, 3, height, width] and stamps float64 [T] of the asked times; T is smaller where the end
        was damaged.
        """
        place = dict(zip(self.times, self._slot_of))
        slots = [place[float(time)] for time in asked if float(time) in place]
        stamps = torch.tensor([self._stamps[slot] for slot in slots], dtype=torch.float64)
        if self._buffer is None:
            return torch.empty(0, 3, 0, 0, dtype=torch.uint8), stamps
        pictures = torch.as_tensor(self._buffer)
        if slots == list(range(len(pictures))):
            return pictures, stamps
        return pictures[slots], stamps


class Skipping:
    """Leaves pictures undecoded that nobody asked for and that no other picture refers to (half of them, with B-frames).

    Which picture is shown at a time is known from the packets alone: they are read ahead as far as any standard lets
    pictures be reordered. The pictures that were asked for come out the same, bit for bit.
    """

    AHEAD = 32  # packets; H.264 and HEVC reorder over at most 16 pictures

    def __init__(self, video: Any, times: Sequence[float], zero: float, tolerance: float):
        self._codec = video.codec_context
        # Elsewhere nothing is gained: other decoders skip nothing, or tell too late.
        self.possible = self._codec.name in ("h264", "hevc") and self._codec.has_b_frames > 0
        self._numerator, self._denominator = video.time_base.as_integer_ratio()
        self._index = video.index
        # In ticks: asked times, each as far ahead as a picture may start and still be the one that is shown.
        self.times = [(time + tolerance + zero) * self._denominator / self._numerator for time in times]
        self._stamps: list[int] = []  # of the pictures read so far, sorted
        self._blind = False  # stamps are missing: everything is decoded

    def ahead(self, packets: Iterator[Any]) -> Iterator[Any]:
        """The packets in their order, each after the next `AHEAD` of the video track have been looked at."""
        waiting: deque[Any] = deque()
        pictures = 0
        try:
            for packet in packets:
                waiting.append(packet)
                if packet.stream.index == self._index:
                    self.look_at(packet)
                    pictures += 1
                while pictures > self.AHEAD:
                    first = waiting.popleft()
                    pictures -= first.stream.index == self._index
                    yield first
            yield from waiting
        finally:
            self._codec.skip_frame = "DEFAULT"

    def look_at(self, packet: Any) -> None:
        """Takes note of the time of the next packet of the video track."""
        if packet.pts is not None:
            insort(self._stamps, packet.pts)
        elif packet.size:
            self._blind = True

    def prepare(self, packet: Any) -> None:
        """Tells the decoder whether the picture of this packet may be left out."""
        self._codec.skip_frame = "DEFAULT" if self.wanted(packet.pts) else "NONREF"

    def wanted(self, stamp: int | None) -> bool:
        """Whether the picture of this time stamp is shown at an asked time, as far as packets have been looked at."""
        if self._blind or stamp is None:
            return True
        place = bisect_right(self._stamps, stamp)
        if place == len(self._stamps):
            return True  # the last that is known
        # Shown from `stamp` until the next one starts; the first picture also stands for all times before it. A tick on
        # both sides, against rounding.
        start = -math.inf if place <= 1 else stamp - 1
        first = bisect_left(self.times, start)
        return first < len(self.times) and self.times[first] <= self._stamps[place] + 1


class PassedPictures(Pictures):
    """Hands the picture of every asked time on, in the order of the times, and holds none: for clips of any length.

    show: takes a picture, uint8 [height, width, 3], upright; None: pictures are decoded, not converted.
    fit: (height, width) as stored -> (height, width) that pictures are scaled to (bicubic) before they are turned.
    """

    def __init__(
        self,
        times: Sequence[float],
        *,
        tolerance: float,
        name: str,
        show: Callable[[np.ndarray], None] | None = None,
        fit: Callable[[int, int], tuple[int, int]] | None = None,
    ):
        self._hand_on, self._fit = show, fit
        self._stored: tuple[int, int] | None = None
        self._picture: np.ndarray | None = None
        super().__init__(times, tolerance=tolerance, name=name)

    def _show(self, frame: Any, time: float) -> None:
        if not self._stamps or self._stamps[-1] != time:
            self._convert(frame, time)
            self._stamps = [time]
        if self._hand_on is not None:
            self._hand_on(self._picture)
        self._slot_of.append(0)

    def _convert(self, frame: Any, time: float) -> None:
        stored = frame.height, frame.width
        if self._stored is None:
            self._stored = stored
            self._matrix = _display_matrix(frame)
            self.rotation = round(frame.rotation / 90) * 90 % 360
            self.size = stored[::-1] if self.rotation % 180 else stored
        elif self._stored != stored:
            raise _size_changes(self._name, self._stored, stored, time)
        if self._hand_on is None:
            return
        height, width = stored if self._fit is None else self._fit(*stored)
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        picture = scaled.to_ndarray()
        self._picture = picture if self._matrix is None else np.ascontiguousarray(_upright(picture, self._matrix))


def _size_changes(name: str, old: tuple[int, int], new: tuple[int, int], time: float) -> MediaError:
    return MediaError(
        name,
        f"the size of its pictures changes from {old[1]}x{old[0]} to {new[1]}x{new[0]} at {time:.3f} s; read the parts"
        " before and after by themselves",
    )


def as_float(frame: Any) -> Sequence[np.ndarray]:
    """A decoded frame of sound -> per channel float32 [samples] in [-1, 1); integers are divided by their range, as
    FFmpeg does.
    """
    channels = frame.layout.nb_channels
    if frame.format.name == "fltp":  # what nearly all decoders give: to_ndarray, without its copies
        return [np.frombuffer(plane, dtype=np.float32, count=frame.samples) for plane in frame.planes]
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, channels).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / np.float32(2 ** (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32, copy=False)


class Sound:
    """One piece of sound: the samples [first, last) of the clock of the clip, as far as the track has them."""

    def __init__(self, first: int, last: int, channels: int):
        self.first, self.last, self._channels = first, last, channels
        self._data: np.ndarray | None = None
        self.begin = self._stop = first

    def put(self, position: int, data: Sequence[np.ndarray]) -> None:
        """Takes what it wants of samples, [n] per channel, that start at `position`; places between two such runs stay
        silent.
        """
        start, stop = max(self.first, position), min(self.last, position + len(data[0]))
        if start >= stop:
            return
        if self._data is None:
            self._data = np.empty((self._channels, self.last - self.first), dtype=np.float32)
            self.begin = self._stop = start
        self._data[:, self._stop - self.first : start - self.first] = 0  # a gap; empty where there is none
        for channel, samples in zip(self._data, data):
            channel[start - self.first : stop - self.first] = samples[start - position : stop - position]
        self._stop = max(self._stop, stop)

    def samples(self) -> np.ndarray:
        """float32 [channels, samples] from `begin` on."""
        if self._data is None:
            return np.zeros((self._channels, 0), dtype=np.float32)
        return np.ascontiguousarray(self._data[:, self.begin - self.first : self._stop - self.first])


class SoundLine:
    """Puts decoded frames of sound on the clock of the clip and hands them to the pieces that want them.

    Positions are counted in samples from the first frame on; its timestamps correct the count only where they jump by
    more than SOUND_GAP, since those of many containers are rounded. `exact`: in this one they count samples.
    """

    def __init__(
        self, sounds: Sequence[Sound], *, rate: int, channels: int, sought: bool, name: str, exact: bool = False
    ):
        self._exact = exact
        self.sounds, self._rate, self._channels, self._sought, self._name = sounds, rate, channels, sought, name
        self._position: int | None = None
        self._first = min(sound.first for sound in sounds)
        self._last = max(sound.last for sound in sounds)
        self._gap = SOUND_GAP * rate
        # Frames without a break between them, from the one at `_start` on, of which `_skip` samples are left out.
        # FFmpeg puts them together: converting frame by frame takes longer than decoding them.
        self._run: Any = None
        self._start = self._skip = 0
        self._next: int | None = None  # the time stamp of the frame that follows it without a break
        self.warnings: list[str] = []

    @property
    def done(self) -> bool:
        """Whether all that was asked for is there."""
        return self._position is not None and self._position >= self._last

    @property
    def last_asked(self) -> float:
        """End in s of what was asked for."""
        return self._last / self._rate

    @property
    def end(self) -> float | None:
        """Time in s up to which sound was decoded."""
        return None if self._position is None else self._position / self._rate

    def follow(self, frame: Any) -> bool:
        """Takes the next decoded frame if it goes on where the one before ended, as nearly all do; if not, `offer` has to."""
        if self._run is None or frame.pts is None or frame.pts != self._next:
            return False
        frame.pts = None
        try:
            self._run.write(frame)
        except ValueError:  # something else than its time has changed
            return False
        samples = frame.samples
        self._position += samples
        self._next += samples
        if self._run.samples >= RUN:
            self.flush()
        return True

    def offer(self, frame: Any, time: float | None) -> None:
        """Takes the next decoded frame, whose first sample sounds at `time`. The pieces have it after `flush`."""
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if rate != self._rate or channels != self._channels:
            raise MediaError(
                self._name,
                f"its sound changes from {self._rate} Hz, {self._channels} channels to {rate} Hz, {channels} channels",
            )
        stamp = round(time * rate) if time is not None else self._position or 0
        skip = 0
        if self._position is None:
            self._position = stamp
            if self._sought and self._position > self._first:
                raise SeekMissed
        elif abs(stamp - self._position) > self._gap:
            start, stop = sorted((self._position, stamp))
            if any(sound.first < stop and start < sound.last for sound in self.sounds):
                what = (
                    "a gap, filled with silence"
                    if stamp > self._position
                    else "an overlap, whose second reading is left out"
                )
                self.warnings.append(f"the audio track has {what}: {start / rate:.3f} to {stop / rate:.3f} s")
            skip = max(self._position - stamp, 0)
            self._position = max(self._position, stamp)
            self.flush()
        length = frame.samples - skip
        if length <= 0:
            return
        position, self._position = self._position, self._position + length
        for sound in self.sounds:
            if sound.first < self._position and position < sound.last:
                self._next = frame.pts + frame.samples if self._exact and frame.pts is not None else None
                self._gather(frame, position, skip)
                return
        self.flush()

    def _gather(self, frame: Any, position: int, skip: int) -> None:
        frame.pts = None  # or it checks them, and here they have been
        if self._run is not None:
            try:
                self._run.write(frame)
            except ValueError:  # the layout or the format of the samples has changed
                self.flush()
        if self._run is None:
            from av.audio.fifo import AudioFifo

            self._run, self._start, self._skip = AudioFifo(), position, skip
            self._run.write(frame)
        if self._run.samples >= RUN:
            self.flush()

    def flush(self) -> None:
        """Hands what was gathered to the pieces."""
        if self._run is None:
            return
        run = self._run.read()
        data = [samples[self._skip :] for samples in as_float(run)]
        self._run = None
        for sound in self.sounds:
            sound.put(self._start, data)
