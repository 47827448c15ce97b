"""Collects decoded frames while a file is read: video frames by presentation time, audio cut to the sample."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .limits import MAX_PICTURE_PIXELS
from .sources import MediaError

# Samples that are buffered before they are converted, so that a long piece is not held twice.
BLOCK_SAMPLES = 1 << 16

# Frames at source size that are held before they are reduced: 2 of 1920x1080, 24 of 640x360. Reducing one by one takes longer.
GROUP_BYTES = 1 << 24

# s; a timestamp jump above this is a gap or an overlap, below it is rounding (WebM with Vorbis or Opus: up to 11 ms)
AUDIO_GAP = 0.025

# Full scale is 1. Samples on the scale of 24-bit integers are still finite as power spectra; beyond, they are noise or damage.
MAX_SAMPLE = 2.0**24


# The display matrix of a track, if any, and by how many degrees counter-clockwise it turns the stored frames.
Orientation = tuple[np.ndarray | None, int]


class SeekOvershotError(Exception):
    """The seek landed after the requested place; the pass is repeated from an earlier one."""


def _display_matrix(frame: Any) -> np.ndarray | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
    return None


def orientation_of(frame: Any) -> Orientation:
    """How a frame is turned for display."""
    return _display_matrix(frame), round(frame.rotation / 90) * 90 % 360


def _upright(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotates and mirrors [height, width, 3] by the quarter turn nearest to a display matrix (x' = a x + c y,
    y' = b x + d y).
    """
    a, b, c, d = (int(matrix[place]) for place in ((0, 0), (0, 1), (1, 0), (1, 1)))
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        frame, across, down = frame.transpose(1, 0, 2), c, b
    return frame[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


ReduceFrames = Callable[[torch.Tensor], torch.Tensor]


def check_picture_size(name: str, width: int, height: int) -> None:
    """Raises MediaError for frames of more than MAX_PICTURE_PIXELS."""
    if width * height > MAX_PICTURE_PIXELS:
        raise MediaError(
            name,
            f"its frames have {width}x{height} pixels; at most {MAX_PICTURE_PIXELS:,} are decoded (8K video): scale the video"
            " down first, with another program",
        )


class FrameCollector:
    """Collects the frame shown at each requested time, from decoded frames that are added in order of their times.

    Holds converted frames for requested times only, and one decoded frame. `times` is sorted, without repetitions, in s.

    reduce: maps frames, uint8 [n, 3, height, width], to smaller ones, each by itself. It runs while the file is decoded, so at
        most GROUP_BYTES of frames are held at source size.
    """

    def __init__(
        self,
        times: Sequence[float],
        *,
        tolerance: float,
        name: str,
        orientation: Orientation | None = None,
        reduce: ReduceFrames | None = None,
    ):
        from av.video.reformatter import VideoReformatter

        # A computed time (k / fps) may lie a rounding error before the timestamp of its frame. Half a tick never reaches
        # the next frame.
        self.tolerance = tolerance
        self.times = list(times)
        self._name = name
        self._reformatter = VideoReformatter()  # reused: creating one per frame costs more than converting small frames
        self._reduce = reduce
        self._group: np.ndarray | None = None  # frames at source size that are not reduced yet
        self._num_waiting = 0  # of them
        self._frames: torch.Tensor | None = None  # one place per requested time; several times can share a frame
        self._num_frames = 0  # stored in it
        self.size: tuple[int, int] | None = None  # height, width
        self.orientation = orientation  # None: that of the first frame added, which holds for all
        self._slot_of: list[int] = []  # per served time: the index of its frame
        self._stamps: list[float] = []  # per stored frame: its time
        self.count = 0
        self.begin_pass(float("inf"))

    def begin_pass(self, end: float) -> None:
        """Starts a pass that serves the requested times up to `end`, except those served before."""
        self._num_due = bisect_right(self.times, end)
        self._previous: tuple[Any, float] | None = None
        self.end: float | None = None  # time up to which this pass has decoded

    def requests_any_in(self, start: float, end: float) -> bool:
        """Whether a time in [start, end] is requested."""
        return bisect_right(self.times, end) > bisect_left(self.times, start)

    @property
    def rotation(self) -> int:
        """By how many degrees counter-clockwise the stored frames are turned."""
        return self.orientation[1] if self.orientation is not None else 0

    @property
    def complete(self) -> bool:
        """Whether every time of this pass has its frame."""
        return len(self._slot_of) >= self._num_due

    @property
    def last_requested(self) -> float:
        """The last requested time of this pass."""
        return self.times[self._num_due - 1]

    def add(self, frame: Any, time: float | None, length: float, *, after_seek: bool) -> None:
        """Adds the next decoded frame, shown from `time` for `length` s. A frame without a time follows the previous one."""
        if self.orientation is None:
            self.orientation = orientation_of(frame)
        if time is None:
            time = self.end if self.end is not None else 0.0
        if self._previous is not None and time < self._previous[1]:
            return  # damaged timestamps that go backwards: the frames shown at those times have been chosen
        while not self.complete and self.times[len(self._slot_of)] + self.tolerance < time:
            if self._previous is None and after_seek:
                raise SeekOvershotError
            self._serve(*(self._previous or (frame, time)))
        self.count += 1
        self._previous = (frame, time)
        self.end = time + length
        while not self.complete and self.times[len(self._slot_of)] - self.tolerance <= time:
            self._serve(frame, time)

    def hold_last(self, until: float | None = None) -> None:
        """Repeats the last frame for the remaining times of the pass, or for those before `until`."""
        while self._previous is not None and not self.complete:
            if until is not None and self.times[len(self._slot_of)] >= until:
                return
            self._serve(*self._previous)

    def _serve(self, frame: Any, time: float) -> None:
        if not self._stamps or self._stamps[-1] != time:
            self._store(frame, time)
        self._slot_of.append(len(self._stamps) - 1)

    def _store(self, frame: Any, time: float) -> None:
        # threads=1: more threads only add cost at these frame sizes.
        if self.size is None:
            check_picture_size(self._name, frame.width, frame.height)
        array = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = self.orientation[0]
        if matrix is not None:
            array = np.ascontiguousarray(_upright(array, matrix))
        size = array.shape[:2]
        if self.size is None:
            self.size = size
        elif self.size != size:
            raise _size_change_error(self._name, self.size, size, time)
        if self._group is None:
            self._group = np.empty((self.group_size(*size), 3, *size), dtype=np.uint8)
        self._group[self._num_waiting] = array.transpose(2, 0, 1)
        self._num_waiting += 1
        self._stamps.append(time)
        if self._num_waiting == len(self._group):
            self._finish_group()

    def group_size(self, height: int, width: int) -> int:
        """How many frames of a size are converted before they are reduced; without `reduce`, all."""
        return (
            len(self.times)
            if self._reduce is None
            else min(len(self.times), max(GROUP_BYTES // (3 * height * width), 1))
        )

    def _finish_group(self) -> None:
        frames = torch.from_numpy(self._group[: self._num_waiting])
        self._num_waiting = 0
        if self._reduce is None:
            self._group = None  # it holds all frames
        self._keep(frames)

    def _keep(self, frames: torch.Tensor) -> None:
        if self._reduce is None and self._frames is None:
            self._frames = frames
            return
        reduced = frames if self._reduce is None else self._reduce(frames)
        if self._frames is None:
            self._frames = reduced.new_empty(len(self.times), *reduced.shape[1:])
        self._frames[self._num_frames : self._num_frames + len(reduced)] = reduced
        self._num_frames += len(reduced)

    def extend(self, frames: torch.Tensor, stamps: list[float], rotation: int) -> None:
        """Adds the frames of the next requested times, uint8 [n, 3, height, width], from a decoder that chose them."""
        self.size, self.orientation = tuple(frames.shape[2:]), (None, rotation)
        self._slot_of += range(len(self._stamps), len(self._stamps) + len(stamps))
        self._stamps += stamps
        self._keep(frames)

    def select(self, times: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames uint8 [T, 3, height, width] and timestamps float64 [T] of `times`. T is smaller where the end is damaged."""
        slot_at = dict(zip(self.times, self._slot_of))
        slots = [slot_at[float(time)] for time in times if float(time) in slot_at]
        stamps = torch.tensor([self._stamps[slot] for slot in slots], dtype=torch.float64)
        if self._num_waiting:
            self._finish_group()
        if self._frames is None:
            return torch.empty(0, 3, 0, 0, dtype=torch.uint8), stamps
        frames = self._frames
        if slots == list(range(len(frames))):
            return frames, stamps
        return frames[slots], stamps


class FrameStreamer(FrameCollector):
    """Passes the frame of every requested time to a callback, in order, and keeps none: for clips of any length.

    show: takes a frame, uint8 [height, width, 3], upright. None: frames are decoded, not converted.
    fit: maps the stored (height, width) to the (height, width) that frames are scaled to (bicubic) before they are rotated.
    """

    def __init__(
        self,
        times: Sequence[float],
        *,
        tolerance: float,
        name: str,
        orientation: Orientation | None = None,
        show: Callable[[np.ndarray], None] | None = None,
        fit: Callable[[int, int], tuple[int, int]] | None = None,
    ):
        self._callback, self._fit = show, fit
        self._stored_size: tuple[int, int] | None = None
        self._frame: np.ndarray | None = None
        super().__init__(times, tolerance=tolerance, name=name, orientation=orientation)

    def _serve(self, frame: Any, time: float) -> None:
        if not self._stamps or self._stamps[-1] != time:
            self._convert(frame, time)
            self._stamps = [time]
        if self._callback is not None:
            self._callback(self._frame)
        self._slot_of.append(0)

    def _convert(self, frame: Any, time: float) -> None:
        stored = frame.height, frame.width
        if self._stored_size is None:
            check_picture_size(self._name, frame.width, frame.height)
            self._stored_size = stored
            self.size = stored[::-1] if self.rotation % 180 else stored
        elif self._stored_size != stored:
            raise _size_change_error(self._name, self._stored_size, stored, time)
        if self._callback is None:
            return
        height, width = stored if self._fit is None else self._fit(*stored)
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        array = scaled.to_ndarray()
        matrix = self.orientation[0]
        self._frame = array if matrix is None else np.ascontiguousarray(_upright(array, matrix))


def _size_change_error(name: str, old: tuple[int, int], new: tuple[int, int], time: float) -> MediaError:
    return MediaError(
        name,
        f"the frame size changes from {old[1]}x{old[0]} to {new[1]}x{new[0]} at {time:.3f} s; a window must have one frame"
        " size, so read the parts before and after the change separately",
    )


def float_channels(frame: Any) -> Sequence[np.ndarray]:
    """A decoded audio frame as float32 [samples] in [-1, 1) per channel. Integers are divided by their range, as in FFmpeg."""
    channels = frame.layout.nb_channels
    if frame.format.name == "fltp":  # the format of nearly all decoders: to_ndarray without its copies
        return [np.frombuffer(plane, dtype=np.float32, count=frame.samples) for plane in frame.planes]
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, channels).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / np.float32(2 ** (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32, copy=False)


class AudioPiece:
    """One piece of audio: the samples [first, last) on the clip's clock, as far as the track has them."""

    def __init__(self, first: int, last: int, channels: int):
        self.first, self.last, self._channels = first, last, channels
        self._data: np.ndarray | None = None
        self.start = self._stop = first

    def write(self, position: int, data: Sequence[np.ndarray]) -> None:
        """Copies the requested part of samples, [n] per channel, that start at `position`. Gaps between writes are silent."""
        start, stop = max(self.first, position), min(self.last, position + len(data[0]))
        if start >= stop:
            return
        if self._data is None:
            self._data = np.empty((self._channels, self.last - self.first), dtype=np.float32)
            self.start = self._stop = start
        self._data[:, self._stop - self.first : start - self.first] = 0  # a gap, if any
        for channel, samples in zip(self._data, data):
            channel[start - self.first : stop - self.first] = samples[start - position : stop - position]
        self._stop = max(self._stop, stop)

    @property
    def stop(self) -> int:
        """The end of what has been written."""
        return self._stop

    def cut_at_nonsense(self) -> str | None:
        """Cuts the piece before its first sample that is not a finite number up to MAX_SAMPLE, and describes that sample."""
        if self._data is None:
            return None
        data = self._data[:, self.start - self.first : self._stop - self.first]
        if not data.size or (data.max() <= MAX_SAMPLE and data.min() >= -MAX_SAMPLE):  # NaN fails both
            return None
        wrong = ~(np.abs(data) <= MAX_SAMPLE)
        place = int(wrong.any(axis=0).argmax())
        value = data[int(wrong[:, place].argmax()), place]
        self._stop = self.start + place
        return f"a sample is {value:g}; samples must be finite numbers up to {MAX_SAMPLE:g} (full scale is 1)"

    def samples(self) -> np.ndarray:
        """float32 [channels, samples] from `start` on."""
        if self._data is None:
            return np.zeros((self._channels, 0), dtype=np.float32)
        return np.ascontiguousarray(self._data[:, self.start - self.first : self._stop - self.first])


class AudioCollector:
    """Places decoded audio frames on the clip's clock and copies them to the requested pieces.

    Positions are counted in samples from the first frame on. Timestamps correct the count only where they jump by more than
    AUDIO_GAP, since many containers round them. `exact`: the timestamps of this container count samples.
    """

    def __init__(
        self,
        pieces: Sequence[AudioPiece],
        *,
        rate: int,
        channels: int,
        after_seek: bool,
        name: str,
        exact: bool = False,
    ):
        self._exact = exact
        self.pieces, self._rate, self._channels, self._after_seek, self._name = pieces, rate, channels, after_seek, name
        self._position: int | None = None
        self._first = min(piece.first for piece in pieces)
        self._last = max(piece.last for piece in pieces)
        self._gap = AUDIO_GAP * rate
        # Contiguous frames, the first of which is placed at `_start` without its first `_skip` samples. FFmpeg concatenates
        # them: converting frame by frame takes longer than decoding.
        self._fifo: Any = None
        self._start = self._skip = 0
        self._next: int | None = None  # the timestamp of a frame that follows without a gap
        self._doubtful: Any = (
            None  # a frame off the count of samples: the next one shows whether its time stamp is right
        )
        self.warnings: list[str] = []
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether all requested samples have been read."""
        return self._position is not None and self._position >= self._last

    @property
    def last_requested(self) -> float:
        """End of the request in s."""
        return self._last / self._rate

    @property
    def end(self) -> float | None:
        """Time in s up to which audio has been decoded."""
        return None if self._position is None else self._position / self._rate

    def append(self, frame: Any) -> bool:
        """Adds the next decoded frame if it is contiguous with the previous one, as nearly all are. Else call `add`."""
        if self._fifo is None or frame.pts is None or frame.pts != self._next:
            return False
        frame.pts = None
        try:
            self._fifo.write(frame)
        except ValueError:  # more than the timestamp has changed
            return False
        samples = frame.samples
        self._position += samples
        self._next += samples
        if self._fifo.samples >= BLOCK_SAMPLES:
            self.flush()
        return True

    def add(self, frame: Any, time: float | None) -> None:
        """Adds the next decoded frame, whose first sample is played at `time`. `flush` copies it to the pieces."""
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if rate != self._rate or channels != self._channels:
            raise MediaError(
                self._name,
                f"the audio changes from {self._rate} Hz, {self._channels} channels to {rate} Hz, {channels} channels; "
                "a window must have one format, so read the parts before and after the change separately",
            )
        stamp = round(time * rate) if time is not None else None
        if self._doubtful is not None:
            doubtful, self._doubtful = self._doubtful, None
            # A lone time stamp that the next one does not continue is wrong (MPEG program streams state few).
            counted = self._position + doubtful[0].samples
            lone = stamp is None or abs(stamp - counted) <= self._gap
            self._place(doubtful[0], self._position if lone else doubtful[1])
        if stamp is not None and self._position is not None and abs(stamp - self._position) > self._gap:
            self._doubtful = frame, stamp
        else:
            self._place(frame, stamp)

    def _place(self, frame: Any, stamp: int | None) -> None:
        rate = self._rate
        stamp = stamp if stamp is not None else self._position or 0
        skip = 0
        if self._position is None:
            self._position = stamp
            if self._after_seek and self._position > self._first:
                raise SeekOvershotError
        elif abs(stamp - self._position) > self._gap:
            start, stop = sorted((self._position, stamp))
            if any(piece.first < stop and start < piece.last for piece in self.pieces):
                kind = (
                    "a gap, filled with silence"
                    if stamp > self._position
                    else "an overlap, whose repetition is dropped"
                )
                self.warnings.append(f"the audio track has {kind}: {start / rate:.3f} to {stop / rate:.3f} s")
            skip = max(self._position - stamp, 0)
            self._position = max(self._position, stamp)
            self.flush()
        length = frame.samples - skip
        if length <= 0:
            return
        position, self._position = self._position, self._position + length
        for piece in self.pieces:
            if piece.first < self._position and position < piece.last:
                self._next = frame.pts + frame.samples if self._exact and frame.pts is not None else None
                self._buffer(frame, position, skip)
                return
        self.flush()

    def _buffer(self, frame: Any, position: int, skip: int) -> None:
        frame.pts = None  # AudioFifo would check timestamps, which `add` has done
        if self._fifo is not None:
            try:
                self._fifo.write(frame)
            except ValueError:  # the channel layout or the sample format has changed
                self.flush()
        if self._fifo is None:
            from av.audio.fifo import AudioFifo

            self._fifo, self._start, self._skip = AudioFifo(), position, skip
            self._fifo.write(frame)
        if self._fifo.samples >= BLOCK_SAMPLES:
            self.flush()

    def finish(self) -> None:
        """Ends the pass: copies what is buffered, and looks for samples that are not finite numbers up to MAX_SAMPLE (`error`)."""
        if self._doubtful is not None and not self.done:
            frame, stamp = self._doubtful
            self._doubtful = None
            self._place(frame, stamp)
        self.flush()
        for piece in self.pieces:
            cause = piece.cut_at_nonsense()
            if cause is not None and self.error is None:
                self.error = ValueError(cause)
                self._position = piece.stop

    def flush(self) -> None:
        """Copies the buffered samples to the pieces."""
        if self._fifo is None:
            return
        data = [samples[self._skip :] for samples in float_channels(self._fifo.read())]
        self._fifo = None
        for piece in self.pieces:
            piece.write(self._start, data)
