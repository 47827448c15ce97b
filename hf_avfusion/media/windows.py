"""Window policy: which part of a clip a model sees, for training draws, evaluation views and short clips.

The defaults are the published MBT pipeline (google-research/scenic, projects/mbt). It treats clips as 25 frames and 100
spectrogram rows per second and takes 32 frames at stride 2 (2.56 s) and 8 s of audio. Starts on these two grids are random,
centred or evenly spread. Windows that run past the end wrap to the start of the clip.

A policy with `num_segments` is that of LAVISH (GenjiB/LAVISH): frames and short pieces of audio spread over the whole clip.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch

from .limits import MAX_SECONDS, check_sizes
from .reader import Backend, Clip, ClipReader, ClipRequest, MediaError, MediaInfo, MediaSource, OnDecodeError
from .tracks import ReduceFrames

Mode = Literal["train", "eval"]

MAX_REPEATS = 64  # of a track that wraps in a window; a shorter one is read once and repeated after decoding


@dataclass(frozen=True)
class WindowPolicy:
    """Which window of a clip is read. `to_dict` and `from_dict` convert it to plain values and back.

    num_frames: frames per window.
    frame_rate: sampled frames per second (published: every second one of 25, so 12.5). Not used when `span` is given.
    span: seconds over which the frames are spread evenly, num_frames / span per second (the span t of the paper: 8
        frames over 8 s).
    audio_seconds: length of the audio window in s.
    synchronous: in training, whether both tracks share one random start (False: each draws its own).
    shared_start: how a start is shared. "proportion": the same fraction of each track, whatever their lengths (as
        published). "seconds": the same time on the clip's clock, in evaluation too. Windows of equal length then stay in
        sync even where a track starts late or ends early.
    short: what happens after the end of a track. "wrap": continue at its start, as often as needed (as published; the
        published pipeline wraps spectrogram rows, here samples wrap, so two rows at the seam differ). "hold": the last
        frame repeats and the audio ends with its track, so that the feature extractor pads it.
    video_grid, audio_grid: positions per second on which windows start (25 frames and 100 rows as published); None
        for no grid.
    num_segments: number of segments, each a window of its own: `num_frames` frames and `segment_seconds` of audio. All
        segments together are the one view of a clip, the same in training and evaluation (`segment_frames`,
        `segment_ranges`). The fields above other than `num_frames` then have no effect and keep their defaults. None: no
        segments.
    segment_seconds: length of the audio of a segment in s.
    segment_margin: seconds at the end of the clip that no segment reaches (published: 0.1). A clip that is not longer than
        segment_seconds + segment_margin is heard whole in every segment.
    segment_frame: place of a segment's frame in its part of the clip, from 0 (its start) to below 1 (0.5: its middle). Masks belong
        to frames at such places: AVSBench's are at 15 / 16. None: the frames of all segments lie evenly from the first to the last
        frame of the clip (LAVISH on AVE).
    """

    num_frames: int = 32
    frame_rate: float = 12.5
    span: float | None = None
    audio_seconds: float = 8.0
    synchronous: bool = True
    shared_start: Literal["proportion", "seconds"] = "proportion"
    short: Literal["wrap", "hold"] = "wrap"
    video_grid: float | None = 25.0
    audio_grid: float | None = 100.0
    num_segments: int | None = None
    segment_seconds: float = 1.0
    segment_margin: float = 0.1
    segment_frame: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_frames, int) or self.num_frames < 1:
            raise ValueError(f"num_frames must be a positive integer, got {self.num_frames!r}")
        if self.num_segments is not None and (
            isinstance(self.num_segments, bool) or not isinstance(self.num_segments, int) or self.num_segments < 1
        ):
            raise ValueError(f"num_segments must be a positive integer or None, got {self.num_segments!r}")
        check_sizes({"num_frames": self.num_frames, "num_segments": self.num_segments})
        for name in ("frame_rate", "span", "audio_seconds", "video_grid", "audio_grid", "segment_seconds"):
            value = getattr(self, name)
            optional = name in ("span", "video_grid", "audio_grid")
            if not (optional and value is None) and not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number{' or None' if optional else ''}, got {value!r}")
        margin = self.segment_margin
        if not (_is_number(margin) and math.isfinite(margin) and margin >= 0):
            raise ValueError(f"segment_margin must be a number of at least 0, got {margin!r}")
        place = self.segment_frame
        if place is not None and not (_is_number(place) and 0 <= place < 1 and self.num_frames == 1):
            raise ValueError(
                f"segment_frame must be a number from 0 to below 1 or None, and segments must have one frame, got {place!r} with "
                f"num_frames={self.num_frames}"
            )
        for name in ("audio_seconds", "segment_seconds", "segment_margin"):
            if getattr(self, name) > MAX_SECONDS:
                raise ValueError(
                    f"{name}={getattr(self, name)} exceeds the supported maximum of {MAX_SECONDS:,} (one day)"
                )
        if self.shared_start not in ("proportion", "seconds"):
            raise ValueError(f"shared_start must be 'proportion' or 'seconds', got {self.shared_start!r}")
        if self.short not in ("wrap", "hold"):
            raise ValueError(f"short must be 'wrap' or 'hold', got {self.short!r}")
        self._refuse_idle_fields()

    def _refuse_idle_fields(self) -> None:
        """Raises ValueError for fields that have another value than their default, but no effect."""
        with_segments = self.num_segments is not None
        for entry in fields(self):
            of_segments = entry.name.startswith("segment_")
            if entry.name in ("num_frames", "num_segments") or of_segments is with_segments:
                continue
            if (value := getattr(self, entry.name)) != entry.default:
                reason = (
                    f"with num_segments={self.num_segments}, which spreads frames and audio over the whole clip: leave it "
                    "out, or pass num_segments=None"
                    if with_segments
                    else f"without num_segments: pass num_segments, or {entry.name}={entry.default!r}"
                )
                raise ValueError(f"{entry.name}={value!r} has no effect {reason}")

    @property
    def longest_audio(self) -> float:
        """The most seconds of audio that one window has."""
        return self.audio_seconds if self.num_segments is None else self.segment_seconds + self.segment_margin

    def seconds_of(self, num_frames: int) -> float:
        """The seconds that this many frames of a window stand for; with segments, those of the audio of all segments."""
        return num_frames * self.stride if self.num_segments is None else self.num_segments * self.segment_seconds

    @property
    def wraps(self) -> bool:
        """Whether windows continue at the start of a track after its end."""
        return self.short == "wrap" and self.num_segments is None

    @property
    def segments(self) -> str | None:
        """Its segments in words, such as "10 segments of 1 s"; None without segments."""
        if self.num_segments is None:
            return None
        return f"{self.num_segments} segments of {self.segment_seconds:g} s"

    @property
    def stride(self) -> float:
        """Seconds from one frame to the next."""
        return 1 / self.frame_rate if self.span is None else self.span / self.num_frames

    def describe(self) -> dict[str, str]:
        """What it takes of a clip, in the words of a model card: "frames", "audio", and what happens to "short clips"."""
        if self.num_segments is None:
            rate = f"{self.frame_rate:g} per second" if self.span is None else f"spread over {self.span:g} s"
            return {
                "frames": f"{self.num_frames} RGB frames, {rate}",
                "audio": f"{self.audio_seconds:g} s of audio",
                "short clips": "wrap to their start" if self.wraps else "repeat the last frame",
            }
        place = " from the first to the last of the clip"
        if self.segment_frame is not None:
            place = f", one at {100 * self.segment_frame:g} % of each segment"
        return {
            "frames": f"{self.num_frames * self.num_segments} RGB frames{place}",
            "audio": f"{self.num_segments} segments of {self.segment_seconds:g} s of audio, spread from the start of the clip to "
            f"{self.segment_margin:g} s before its end",
            "short clips": "are heard whole in every segment",
        }

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain values, for processor_config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WindowPolicy":
        """The policy with these fields. Missing fields keep their defaults, unknown ones raise ValueError."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown fields of a window policy: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        return cls(**values)


@dataclass(frozen=True)
class Window:
    """One window. Times are in s on the clip's clock, None for a missing track.

    frame_times: times of the frames, after wrapping or holding. audio_pieces: the audio after wrapping, as pieces to
    concatenate in order. A track that would wrap more than MAX_REPEATS times is there once, from the start of the window on.
    video_window, audio_window: [start, end) before wrapping, so an end may lie after that of the track. Of a segment: the part
    of the track that its label names, such as the fourth of ten equal parts. Its frames and its audio lie in that part or near.
    """

    frame_times: tuple[float, ...] | None
    audio_window: tuple[float, float] | None
    audio_pieces: tuple[tuple[float, float], ...] | None
    video_window: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Track:
    """One track on its grid: its start (s), its length and that of the window (in steps), and the length of a step (s)."""

    start: float
    length: float
    window: float
    reach: float  # steps from the first to the last position of the window
    step: float
    on_grid: bool

    @classmethod
    def of(cls, start: float, duration: float, window: float, reach: float, grid: float | None) -> "_Track":
        if grid is None:
            return cls(start, max(duration, 1e-3), window, reach, 1.0, False)
        # A duration that does not fit the grid (5.02 s at 25 per second) is rounded, as extraction at that rate does. The
        # shortest track has one step.
        return cls(
            start,
            max(round(duration * grid), 1),
            _exact_steps(window * grid),
            _exact_steps(reach * grid),
            1 / grid,
            True,
        )

    def floor(self, position: float) -> float:
        return math.floor(position) if self.on_grid else position

    @property
    def last_start(self) -> float:
        """The latest start at which a window still overlaps the track."""
        return self.floor(max(self.length - (1.0 if self.on_grid else 1e-3), 0.0))

    def random_start(self, generator: torch.Generator | None) -> float:
        """Uniform over [0, max(length - reach, 1 step)): whole steps on a grid (mbt.md section 9: [0, max(len - 31 * 2,
        1))).
        """
        room = max(self.length - self.reach, 1.0 if self.on_grid else 0.0)
        return self.floor(torch.rand((), dtype=torch.float64, generator=generator).item() * room)

    def centred_start(self) -> float:
        return max(0.0, self.floor((self.length - self.window) / 2))

    def view_start(self, view: int, views: int) -> float:
        """Start of one of `views` evenly spread windows: trunc(linspace(0, max(0, length - window), views))."""
        room = max(0.0, self.length - self.window)
        return self.floor(room * view / (views - 1)) if views > 1 else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _exact_steps(steps: float) -> float:
    """Steps without the rounding error of seconds times rate, so that floor() of exact values is right."""
    return round(steps, 6)


def sample_windows(
    policy: WindowPolicy,
    info: MediaInfo,
    *,
    mode: Mode = "eval",
    num_views: int = 1,
    generator: torch.Generator | None = None,
) -> list[Window]:
    """The windows of a clip under a policy.

    Args:
        policy: the policy.
        info: starts and durations of the tracks; a missing track gives None.
        mode: "train" draws random starts. "eval" takes the centred window, or with several views windows whose starts are
            spread evenly from the first to the last possible position (published: validation and test).
        num_views: number of windows; 1 for a policy with segments.
        generator: source of the draws; None uses torch's global one.

    Returns:
        num_views Windows, or num_segments of them. Frame times lie inside the extent of the video track, audio pieces inside
        that of the audio track.
    """
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    if not isinstance(num_views, int) or num_views < 1:
        raise ValueError(f"num_views must be a positive integer, got {num_views!r}")
    if policy.num_segments is not None:
        if num_views > 1:
            raise ValueError(
                f"num_views={num_views}: the {policy.num_segments} segments (num_segments) are spread over the whole clip, so it "
                "has one view: pass num_views=1, or a processor with num_segments=None"
            )
        return _segment_windows(policy, info)
    video = audio = None
    if info.has_video:
        stride, count = policy.stride, policy.num_frames
        video = _Track.of(
            info.video_start, info.video_duration, count * stride, (count - 1) * stride, policy.video_grid
        )
    if info.has_audio:
        # The last position of an audio window is its last row, one step before its end.
        step = 1 / policy.audio_grid if policy.audio_grid else 0.0
        length = policy.audio_seconds
        audio = _Track.of(info.audio_start, info.audio_duration, length, length - step, policy.audio_grid)
    windows = []
    for view in range(num_views):
        video_start, audio_start = _window_starts(policy, video, audio, mode, view, num_views, generator)
        window = pieces = None
        if audio is not None:
            begin = audio.start + audio_start * audio.step
            window = (begin, begin + policy.audio_seconds)
            pieces = _audio_pieces(policy, window, info)
        times = frames_window = None
        if video is not None:
            times = tuple(_frame_times(policy, video, video_start))
            frames_window = (times[0], times[0] + policy.num_frames * policy.stride)
        windows.append(Window(times, window, pieces, frames_window))
    return windows


def _window_starts(
    policy: WindowPolicy,
    video: _Track | None,
    audio: _Track | None,
    mode: Mode,
    view: int,
    views: int,
    generator: torch.Generator | None,
) -> tuple[float, float]:
    """Start of a window in steps into the video and the audio track; 0 for a missing track."""

    def start_of(track: _Track | None) -> float:
        if track is None:
            return 0.0
        if mode == "train":
            return track.random_start(generator)
        return track.view_start(view, views) if views > 1 else track.centred_start()

    video_start = start_of(video)
    if video is None or audio is None:
        return video_start, start_of(audio)
    if policy.synchronous and policy.shared_start == "seconds":
        audio_start = (video.start + video_start * video.step - audio.start) / audio.step
        audio_start = round(audio_start) if audio.on_grid else audio_start
        return video_start, min(max(audio_start, 0.0), audio.last_start)
    if policy.synchronous and mode == "train":
        audio_start = video_start / video.length * audio.length  # mbt.md section 9: round(o / len_rgb * len_spec)
        audio_start = float(round(audio_start)) if audio.on_grid else audio_start
        # Rounding up may give the end of the track: wrapping restarts there, but holding would find no samples.
        return video_start, audio_start if policy.short == "wrap" else min(audio_start, audio.last_start)
    return video_start, start_of(audio)


def _frame_times(policy: WindowPolicy, video: _Track, start: float) -> list[float]:
    stride = policy.stride / video.step
    stride = _exact_steps(stride) if video.on_grid else stride
    last = video.length - (1.0 if video.on_grid else 1e-9)
    times = []
    for index in range(policy.num_frames):
        position = start + index * stride
        position = position % video.length if policy.short == "wrap" else min(position, last)
        # k / grid instead of k * (1 / grid): bit-equal to the timestamps of a clip at that rate
        times.append(video.start + (position / policy.video_grid if policy.video_grid else position))
    return times


def _audio_pieces(
    policy: WindowPolicy, window: tuple[float, float], info: MediaInfo
) -> tuple[tuple[float, float], ...]:
    """An audio window as pieces inside the track, to the sample: wrapped, or cut at the end of the track."""
    rate = info.sampling_rate or 1_000_000
    first, length = round(info.audio_start * rate), max(round(info.audio_duration * rate), 1)
    position, left = round(window[0] * rate) - first, round((window[1] - window[0]) * rate)
    if policy.short == "hold":
        left = min(left, max(length - position, 0))
    elif left > MAX_REPEATS * length:
        left = length  # `_fill_to_length` repeats it: one sample at 48,000 Hz would give 384,000 pieces
    pieces = []
    position %= length
    while left > 0:
        take = min(left, length - position)
        pieces.append(((first + position) / rate, (first + position + take) / rate))
        position, left = 0, left - take
    return tuple(pieces)


def segment_frames(policy: WindowPolicy, total: int) -> list[list[int]]:
    """The frames of each segment of a clip of `total` frames, counted from 0.

    All frames together lie evenly from the first to the last frame of the clip. As published, the k-th of n frames is number
    int(linspace(1, total, n)[k]), counted from 1 (GenjiB/LAVISH, AVE and AVQA data loaders). One frame alone is the first. With
    `segment_frame`, each segment has the frame at that place of it.

    Returns:
        num_segments lists of num_frames numbers in [0, total).
    """
    if policy.segment_frame is not None:
        length = total / policy.num_segments
        places = (int((number + policy.segment_frame) * length) for number in range(policy.num_segments))
        return [[min(place, total - 1)] for place in places]
    numbers = np.linspace(1, total, policy.num_segments * policy.num_frames).astype(int) - 1
    return numbers.reshape(policy.num_segments, policy.num_frames).tolist()


def segment_ranges(policy: WindowPolicy, total: int, rate: int) -> list[tuple[int, int]]:
    """The samples [first, last) of each segment of a waveform of `total` samples at `rate` Hz.

    As published, segment i of n starts at int(linspace(0, total - (segment_seconds + segment_margin) * rate, n)[i]), and a
    waveform that is not longer than segment_seconds + segment_margin is used whole in every segment (GenjiB/LAVISH, data
    loaders). One segment alone starts at 0.

    Returns:
        num_segments pairs, in order. They overlap if the clip is short.
    """
    room = total - _exact_steps((policy.segment_seconds + policy.segment_margin) * rate)
    if room <= 0:
        return [(0, total)] * policy.num_segments
    length = max(int(_exact_steps(policy.segment_seconds * rate)), 1)
    starts = np.linspace(0, room, policy.num_segments).astype(int).tolist()
    return [(start, start + length) for start in starts]


def _segment_windows(policy: WindowPolicy, info: MediaInfo) -> list[Window]:
    """The segments of a clip in order. Frames are counted by the track's average rate (25 per second if it states none)."""
    count = policy.num_segments
    times: list[tuple[float, ...] | None] = [None] * count
    pieces: list[tuple[tuple[float, float], ...] | None] = [None] * count
    if info.has_video:
        fps = info.fps or 25.0
        total = max(round(info.video_duration * fps), 1)
        # The middle of a frame's time: rounding, and an average rate that is slightly off, then choose the same frame. The last
        # frame is the one shown at the end, also if frames are not equally long; the reader rounds times by up to 0.5 ms.
        end = max(info.video_duration - 1e-3, info.video_duration / 2)
        times = [
            tuple(info.video_start + (end if number == total - 1 else (number + 0.5) / fps) for number in numbers)
            for numbers in segment_frames(policy, total)
        ]
    if info.has_audio:
        rate = info.sampling_rate or 1_000_000
        first, total = round(info.audio_start * rate), max(round(info.audio_duration * rate), 1)
        pieces = [
            (((first + start) / rate, (first + stop) / rate),) for start, stop in segment_ranges(policy, total, rate)
        ]
    video = _equal_parts(info.video_start, info.video_duration, count) if info.has_video else [None] * count
    audio = _equal_parts(info.audio_start, info.audio_duration, count) if info.has_audio else [None] * count
    return [Window(*values) for values in zip(times, audio, pieces, video)]


def _equal_parts(start: float, duration: float, count: int) -> list[tuple[float, float]]:
    return [(start + index * duration / count, start + (index + 1) * duration / count) for index in range(count)]


def load_window(
    source: MediaSource,
    policy: WindowPolicy,
    *,
    mode: Mode = "eval",
    num_views: int = 1,
    generator: torch.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: Backend = "pyav",
    on_decode_error: OnDecodeError = "raise",
    tracks: Sequence[Literal["video", "audio"]] = ("video", "audio"),
    name: str | None = None,
    threads: int = 1,
    reduce: ReduceFrames | None = None,
) -> list[Clip]:
    """Decodes the windows of a media file: one open, and one forward pass for all views that lie close together.

    Args:
        source: path, URL, bytes or binary file object.
        policy, mode, num_views, generator: see sample_windows.
        start, end: s on the clock of the file; the part of it that is the clip (a benchmark's segment of a longer
            video). Default: all of it.
        backend, on_decode_error, name, threads: see ClipReader.
        tracks: the tracks to decode; ("video",) decodes no audio.
        reduce: makes frames smaller as they are decoded, see `ClipReader.read`.

    Returns:
        num_views Clips, or one per segment. `frames` has num_frames frames. If the policy wraps, `waveform` has audio_seconds of
        audio. A track that is missing from the file, or between `start` and `end`, is None. If damage was kept
        (on_decode_error="keep"), the decoded part is wrapped, or its last frame held, to the full length, and `Clip.warnings`
        reports it.

    Raises:
        MediaError: see ClipReader.
    """
    if unknown := set(tracks) - {"video", "audio"}:
        raise ValueError(f"tracks must hold only 'video' and 'audio', got {sorted(unknown)}")
    with ClipReader(source, backend=backend, on_decode_error=on_decode_error, name=name, threads=threads) as reader:
        info = segment_of(reader.info, start, end)
        info = replace(
            info, has_video=info.has_video and "video" in tracks, has_audio=info.has_audio and "audio" in tracks
        )
        windows = sample_windows(policy, info, mode=mode, num_views=num_views, generator=generator)
        clips = reader.read([ClipRequest(window.frame_times, window.audio_pieces) for window in windows], reduce)
    for clip, window in zip(clips, windows):
        _fill_to_length(clip, policy)
        clip.video_window = None if clip.frames is None else window.video_window
        clip.audio_window = None if clip.waveform is None else window.audio_window
    return clips


def segment_of(info: MediaInfo, start: float | None, end: float | None) -> MediaInfo:
    """`info` with its tracks cut to [start, end) s. A track that does not overlap it counts as missing.

    Raises MediaError if the file has nothing in [start, end).
    """
    if start is None and end is None:
        return info
    begin, stop = start if start is not None else 0.0, end if end is not None else math.inf
    if not begin < stop:
        raise MediaError(info.name, f"the clip ends at {stop} s, not after its start at {begin} s; pass start < end")
    if begin >= info.duration or stop <= 0:
        raise MediaError(
            info.name,
            f"the clip is {begin} to {stop} s of a file that is {info.duration:.3f} s long; pass times inside the file",
        )
    changes: dict[str, Any] = {"duration": min(stop, info.duration) - begin}
    for track in ("video", "audio"):
        if getattr(info, f"has_{track}"):
            first = getattr(info, f"{track}_start")
            last = min(first + getattr(info, f"{track}_duration"), stop)
            first = max(first, begin)
            present = last > first
            changes |= {
                f"has_{track}": present,
                f"{track}_start": first if present else None,
                f"{track}_duration": last - first if present else None,
            }
    return replace(info, **changes)


def _fill_to_length(clip: Clip, policy: WindowPolicy) -> None:
    """Extends frames and waveform that damage or rounding left short to the length of the window, by the policy's rule."""
    if clip.frames is not None and 0 < len(clip.frames) < policy.num_frames:
        wanted = torch.arange(policy.num_frames)
        count = len(clip.frames)
        places = wanted % count if policy.wraps else wanted.clamp(max=count - 1)
        clip.frames, clip.frame_times = clip.frames[places], clip.frame_times[places]
        clip.warnings.append(f"only {count} of {policy.num_frames} frames could be decoded; the others repeat these")
    elif clip.frames is not None and len(clip.frames) == 0:
        clip.frames = clip.frame_times = None
        clip.warnings.append("no frame of the window could be decoded; the video track counts as missing")
    if clip.waveform is None:
        return
    count, wanted = clip.waveform.shape[1], round(policy.audio_seconds * clip.sampling_rate)
    if count == 0:
        clip.waveform = clip.sampling_rate = clip.audio_start = None
        clip.warnings.append("no audio of the window could be decoded; the audio track counts as missing")
    elif policy.wraps and count < wanted:
        clip.waveform = clip.waveform.repeat(1, -(-wanted // count))[:, :wanted]
