"""Reads the frames and audio of time windows from a media file (path, bytes, file object, URL) in one forward pass.

All times are in seconds on the clip's clock. Its zero is the start of the track that starts first. Frames are chosen by
presentation time (the frame shown at the requested time), never by the counts that containers state. If a file has several
tracks of a kind, the one that FFmpeg ranks best is read (marked as default, then more data), as torchcodec does. Cover art
is not a video track.

PyAV is the decoder. torchcodec can decode the frames (`backend="torchcodec"`, or `"auto"`: where a test decode works) of files
that it decodes as PyAV does and no slower (`torchcodec_backend`).
Audio is always read through PyAV, since it keeps the gaps in a track's timestamps.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from transformers.utils import logging

from .container import MediaInfo, OpenMedia
from .display_order import DisplayOrder
from .frame_skipper import FrameSkipper, can_skip_frames
from .joined import JoinedParts, holds_tag, shift
from .limits import check_bytes
from .nal_units import states_orientation
from .resampling import check_rate
from .sources import MediaError, MediaSource, one_line
from .torchcodec_backend import has_single_keyframe, is_clean_start, suits_torchcodec, torchcodec_works
from .tracks import (
    AudioCollector,
    AudioPiece,
    FrameCollector,
    FrameStreamer,
    Orientation,
    ReduceFrames,
    SeekOvershotError,
    check_picture_size,
    orientation_of,
)

Collector = TypeVar("Collector", bound=FrameCollector)

logger = logging.get_logger(__name__)

Backend = Literal["auto", "pyav", "torchcodec"]
OnDecodeError = Literal["raise", "keep"]

# Seeking, in s. A window that starts before NO_SEEK_BEFORE is reached by decoding from the start, which also makes its audio
# more exact. For other windows the seek target is SEEK_MARGIN before the window: room for B-frames and for codecs that need
# preroll (Opus: 80 ms). With audio it is another AUDIO_PREROLL samples earlier, for codecs whose blocks overlap (AAC: 1024
# samples per block). A seek that lands too late is repeated SEEK_RETRY_MARGIN earlier, then from the start. Windows further
# apart than ONE_PASS_GAP are reached by another seek instead of decoding everything between them.
NO_SEEK_BEFORE = 1.0
SEEK_MARGIN = 0.25
AUDIO_PREROLL = 3 * 1024
SEEK_RETRY_MARGIN = 10.0
ONE_PASS_GAP = 5.0
END_TOLERANCE = 0.25  # s; a track that ends earlier than its header says by more than this is truncated


@dataclass
class Clip:
    """Decoded frames and audio of one time window.

    frames: uint8 [T, 3, height, width] RGB, upright, or None. frame_times: float64 [T], the presentation times in s of the
    returned frames (T is smaller than requested only with on_decode_error="keep"). waveform: float32 [channels, samples]
    at its own `sampling_rate` in Hz, or None. audio_start: time in s of sample 0. warnings: damaged, missing or filled
    parts. video_window, audio_window: the window that was asked for, [start, end) in s on the clock of the file, as in
    `media.windows.Window`; None for a missing track, and for clips that were read without a window policy.
    """

    frames: torch.Tensor | None
    frame_times: torch.Tensor | None
    waveform: torch.Tensor | None
    sampling_rate: int | None
    audio_start: float | None
    info: MediaInfo
    warnings: list[str] = field(default_factory=list)
    video_window: tuple[float, float] | None = None
    audio_window: tuple[float, float] | None = None


@dataclass(frozen=True)
class ClipRequest:
    """What to read: the frames shown at `frame_times` (s), and audio pieces [start, end) (s), which are concatenated."""

    frame_times: Sequence[float] | None = None
    audio_pieces: Sequence[tuple[float, float]] | None = None


class ClipReader(OpenMedia):
    """An open clip, for a `with` statement. `info` is known at once, `read` returns windows. See `read_clip` for one window.

    Args:
        source: path, URL (anything fsspec opens), bytes, or binary file object (read from its start; stays open).
        backend: "pyav", "torchcodec" (frames only; raises MediaError where it does not work) or "auto".
        on_decode_error: "raise" raises a MediaError if a requested part cannot be decoded; "keep" returns the part before
            the damage and reports it in `Clip.warnings`.
        name: the printable name of the source in errors.
        threads: decoding threads; 1 is right inside data workers.

    Raises:
        MediaError: the source does not exist, is empty, is not a media file, or has neither a video nor an audio track.
    """

    def __init__(
        self,
        source: MediaSource,
        *,
        backend: Backend = "pyav",
        on_decode_error: OnDecodeError = "raise",
        name: str | None = None,
        threads: int = 1,
    ):
        if backend not in ("auto", "pyav", "torchcodec"):
            raise ValueError(f"backend must be 'auto', 'pyav' or 'torchcodec', not {backend!r}")
        if on_decode_error not in ("raise", "keep"):
            raise ValueError(f"on_decode_error must be 'raise' or 'keep', not {on_decode_error!r}")
        self.on_decode_error = on_decode_error
        self._orientation: Orientation | None = None  # of all frames, known once one has been decoded
        super().__init__(source, name, threads)
        if backend == "torchcodec" and not torchcodec_works():
            self.close()
            raise MediaError(
                self._source.name, "backend='torchcodec' does not decode here (is FFmpeg installed?); use 'pyav'"
            )
        self._by_torchcodec = (
            backend != "pyav"
            and self._can_seek
            and suits_torchcodec(self._container, self._video)
            and torchcodec_works()
        )
        self._may_fall_back = backend == "auto" or on_decode_error == "keep"

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, requests: Sequence[ClipRequest], reduce: ReduceFrames | None = None) -> list[Clip]:
        """One Clip per request, decoded in one forward pass. Requests that lie far apart are reached by another seek.

        Times before the first frame return the first frame, times after the last frame return the last. An audio piece is
        cut to the sample: round(length * rate) samples from round(start * rate) on, limited to the extent of the track.
        Gaps in the timestamps are filled with silence and reported in `warnings`. Results of a missing track are None.
        After a seek, audio is as exact as the timestamps of the container (WebM and Matroska: half a ms, with Vorbis up
        to 11 ms), and the noise with which AAC fills bands differs.

        Args:
            reduce: maps frames, uint8 [n, 3, height, width], to smaller ones, such as `AVFusionVideoProcessor.reducer`. It runs
                while the file is decoded, so few frames are held at source size.

        Raises:
            MediaError: frames have more than `limits.MAX_PICTURE_PIXELS`, a requested part cannot be decoded (see
                `on_decode_error`), or the frame size, the sampling rate or the number of channels changes within it.
        """
        for request in requests:
            times = [*(request.frame_times or ()), *(edge for piece in request.audio_pieces or () for edge in piece)]
            if not all(math.isfinite(time) for time in times):
                raise ValueError(f"times must be finite numbers of seconds, got {times}")
        self._warnings: list[str] = list(self._notes)
        has_video, has_audio = self._video is not None, self._audio is not None
        times = sorted({float(t) for r in requests for t in r.frame_times or ()}) if has_video else []
        cuts = [self._sample_ranges(request.audio_pieces or ()) if has_audio else [] for request in requests]
        # A short clip that wraps requests the same piece several times: it is decoded once.
        pieces_by_range = {place: AudioPiece(*place, self.info.channels) for ranges in cuts for place in ranges}
        self._check_bytes(0 if reduce is not None else len(times), pieces_by_range)
        if times:
            check_picture_size(self._source.name, self.info.width or 0, self.info.height or 0)
        collector = self._collector(FrameCollector, times, reduce=reduce)
        if self._by_torchcodec and times:
            try:
                if self._torchcodec_agrees(collector):
                    self._read_by_torchcodec(collector)
            except (MediaError, RuntimeError, ValueError, IndexError) as error:
                if not self._may_fall_back:
                    if isinstance(error, MediaError):
                        raise
                    raise MediaError(self._source.name, f"torchcodec cannot decode it: {one_line(error)}") from error
                collector = self._collector(FrameCollector, times, reduce=reduce)
                self._warnings = list(self._notes)  # PyAV reaches the same damage and reports it
            if self._source.shared:
                self._open()  # torchcodec has moved the file object's position
        self._read_clusters(collector, list(pieces_by_range.values()))
        self._orientation = collector.orientation
        if collector.size is not None:
            height, width = collector.size
            if (width, height, collector.rotation) != (self.info.width, self.info.height, self.info.rotation):
                self.info = replace(self.info, width=width, height=height, rotation=collector.rotation)
        return self._assemble(requests, collector, pieces_by_range, cuts)

    def stream(
        self,
        frame_times: Sequence[float] = (),
        audio_window: tuple[float, float] | None = None,
        show: Callable[[np.ndarray], None] | None = None,
        fit: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> Clip:
        """Like `read`, but passes each frame to a callback instead of keeping it: for clips of any length.

        Args:
            frame_times: s, ascending, without repetitions; the frame shown at each time is passed to `show`.
            audio_window: [start, end) in s.
            show: takes uint8 [height, width, 3], upright. None: frames are decoded and discarded, which finds damage.
            fit: maps the stored (height, width) to the size that frames are scaled to. Default: the stored size.

        Returns:
            A Clip with audio and warnings; its `frames` are None.

        Raises:
            MediaError: as `read`.
        """
        self._warnings = list(self._notes)
        request = ClipRequest(audio_pieces=None if audio_window is None else [audio_window])
        cuts = [self._sample_ranges(request.audio_pieces or ()) if self._audio is not None else []]
        pieces_by_range = {place: AudioPiece(*place, self.info.channels) for place in cuts[0]}
        times = list(frame_times) if self._video is not None else []
        collector = self._collector(FrameStreamer, times, show=show, fit=fit)
        self._read_clusters(collector, list(pieces_by_range.values()))
        self._orientation = collector.orientation
        return self._assemble([request], collector, pieces_by_range, cuts)[0]

    def _check_bytes(self, num_frames: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Raises MediaError if frames at source size, and samples, take too much memory."""
        info = self.info
        frames = 3 * num_frames * (info.width or 0) * (info.height or 0)
        samples = sum(last - first for first, last in ranges)
        parts = f"{num_frames} frames of {info.width}x{info.height} and {samples:,} samples of {info.channels} channels"
        try:
            check_bytes(frames + 4 * samples * (info.channels or 0), parts, "Read it in shorter windows.")
        except ValueError as error:
            raise MediaError(self._source.name, str(error)) from error

    def _collector(self, kind: type[Collector], times: Sequence[float], **options: Any) -> Collector:
        tick = float(self._video.time_base) if self._video is not None else 0.0
        options |= {"name": self._source.name, "orientation": self._orientation}
        return kind(times, tolerance=min(tick / 2, 5e-4), **options)

    def _sample_ranges(self, pieces: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        """Pieces in s -> sample indices [first, last) on the clip's clock. Their lengths sum to the rounded total length."""
        rate, ranges, total = self.info.sampling_rate, [], 0.0
        try:
            check_rate(rate, "its sampling rate")
        except ValueError as error:
            raise MediaError(self._source.name, str(error)) from error
        track = round(self.info.audio_start * rate), round((self.info.audio_start + self.info.audio_duration) * rate)
        for start, end in pieces:
            if end < start:
                raise ValueError(f"the audio window [{start}, {end}) ends before it starts; pass start <= end")
            before = round(total * rate)
            total += end - start
            first = round(start * rate)
            last = first + round(total * rate) - before
            first = min(max(first, track[0]), track[1])
            ranges.append((first, min(max(last, first), track[1])))
        return ranges

    def _read_clusters(self, collector: FrameCollector, pieces: list[AudioPiece]) -> None:
        rate = self.info.sampling_rate
        spans = [(time, time) for time in collector.times]
        spans += [(piece.first / rate, piece.last / rate) for piece in pieces if piece.first < piece.last]
        clusters: list[list[float]] = []
        for start, end in sorted(spans):
            if clusters and start - clusters[-1][1] <= ONE_PASS_GAP:
                clusters[-1][1] = max(clusters[-1][1], end)
            else:
                clusters.append([start, end])
        for start, end in clusters:
            # MPEG streams have no index: only decoding shows where a seek landed.
            for back in (0.0, SEEK_RETRY_MARGIN, math.inf):
                try:
                    self._decode_pass(collector, pieces, max(start - back, 0.0), start, end)
                    break
                except SeekOvershotError:
                    continue

    def _decode_pass(
        self, collector: FrameCollector, pieces: list[AudioPiece], place: float, start: float, end: float
    ) -> None:
        """Decodes forward from before `place` until everything requested from `start` to `end` has been read."""
        import av
        from av.stream import Discard

        rate = self.info.sampling_rate
        wanted = [p for p in pieces if p.first < p.last and start * rate - 1 <= p.first and p.last <= end * rate + 1]
        collector.begin_pass(end)
        with_video, with_audio = not collector.complete, bool(wanted)
        if not with_video and not with_audio:
            return
        margin = SEEK_MARGIN + (AUDIO_PREROLL / rate if with_audio else 0.0)
        after_seek = place - margin > NO_SEEK_BEFORE and self._can_seek
        if with_video and after_seek and collector.orientation is None:
            collector.orientation = self._stated_by_first_frame()
        # If frames are requested in the window, the seek follows the video track even if torchcodec has read them, so that
        # audio is decoded from the same place: AAC decoders fill bands with noise that depends on where they started.
        lead = self._video if collector.requests_any_in(start, end) else self._audio
        if not self._at_start and not after_seek:
            self._open()
        self._at_start = False
        video = self._video if with_video else None
        audio = self._audio if with_audio else None
        tracks = [track for track in (video, audio) if track is not None]
        if self._video is not None:  # skip reading video packets that are not decoded, unless a seek needs them
            self._video.discard = Discard.default if with_video or after_seek else Discard.all
        if after_seek:
            try:
                stamp = int((place - margin + self._zero) / lead.time_base)
                self._container.seek(stamp, stream=lead, backward=True)
            except av.FFmpegError as error:
                raise SeekOvershotError from error
        audio_collector = None
        if with_audio:
            audio_collector = AudioCollector(
                wanted, rate=rate, channels=self.info.channels, after_seek=after_seek, name=self._source.name,
                exact=not self._by_dts and audio.time_base.as_integer_ratio() == (1, rate),
            )  # fmt: skip
        before_keyframe = after_seek  # frames before the first keyframe after a seek lack their references
        error_of: dict[int, Exception] = {}
        skipper = None
        if with_video and self.threads == 1 and not self._by_dts and can_skip_frames(video.codec_context):
            skipper = FrameSkipper(video, collector.times, self._zero, collector.tolerance)
        packets = self._packets(tracks, error_of)
        video_index = video.index if with_video else None
        order = DisplayOrder() if self._by_dts and with_video else None
        video_done, audio_done = not with_video, not with_audio
        for packet in packets if skipper is None else skipper.look_ahead(packets):
            index = packet.stream.index
            if index in error_of:
                continue
            try:
                if index == video_index:
                    before_keyframe = before_keyframe and not packet.is_keyframe
                    if not before_keyframe and not collector.complete:
                        if skipper is not None:
                            skipper.set_skip(packet)
                        if order is not None:
                            order.note_packet(packet)
                        for frame in packet.decode():
                            if order is not None:
                                frame.pts = order.next_stamp(frame)
                            collector.add(frame, self._time_of(frame), self._length_of(frame), after_seek=after_seek)
                        video_done = collector.complete
                elif not audio_done:
                    for frame in packet.decode():
                        if not audio_collector.append(frame):
                            audio_collector.add(frame, self._time_of(frame))
                    audio_done = audio_collector.done
            except av.FFmpegError as error:
                track = collector if index == video_index else audio_collector
                if track is audio_collector and holds_tag(packet):
                    continue
                if not after_seek or track.end is not None:  # the first packet after a seek may be incomplete
                    error_of[index] = error
                    video_done |= track is collector
                    audio_done |= track is audio_collector
            if video_done and audio_done:
                break
        if with_video and not collector.complete:
            self._finish_video(collector, error_of.get(video.index), after_seek)
        if with_audio:
            audio_collector.finish()
            error = error_of.get(audio.index) or audio_collector.error
            if error is not None or not audio_collector.done:
                self._finish_audio(audio_collector, error, after_seek)
            self._warnings += audio_collector.warnings

    def _stated_by_first_frame(self) -> Orientation | None:
        """The orientation that the first frame of the file states in its data (SEI), and later ones need not repeat."""
        import av
        from av.stream import Discard

        codec = self._video.codec_context.name
        if codec not in ("h264", "hevc"):
            return None
        if not self._at_start:
            self._open()
        self._at_start, self._video.discard, found = False, Discard.default, False
        try:
            for packet in self._packets([self._video], {}):
                if packet.size and not found and not states_orientation(packet, codec):
                    return None
                found = True
                for frame in packet.decode():
                    self._open()
                    return orientation_of(frame)
        except av.FFmpegError:
            self._open()
        return None

    def _packets(self, tracks: list, error_of: dict[int, Exception]) -> Iterator[Any]:
        try:
            if len(self._offsets) == 1:
                yield from self._demux(tracks)
                return
            parts = JoinedParts()
            for packet in self._demux(tracks):
                shift(packet, self._offsets[parts.part_of(packet)])
                yield packet
        except Exception as error:  # the container is damaged or the file object failed: every track ends here
            for track in tracks:
                error_of.setdefault(track.index, error)

    # ------------------------------------------------------------------------------------------------- ends and errors

    def _finish_video(self, collector: FrameCollector, error: Exception | None, after_seek: bool) -> None:
        """Handles a video track that ended, or was damaged, before every requested time had its frame."""
        end, stated = collector.end, self._stated_end[self._video.index]
        if end is None and error is None:
            if after_seek:
                raise SeekOvershotError  # the seek target lies after the last packet
            error = ValueError("no frame could be decoded")
        if error is None:
            tolerated = max(END_TOLERANCE, 2 / self.info.fps if self.info.fps else 0.0)
            if stated is None or stated - self._zero - end <= tolerated:
                collector.hold_last()  # the real end of the track: the last frame stays on screen
                return
        if end is not None:
            collector.hold_last(until=end)
        if not collector.complete:
            decoded = f"{collector.count} frames up to {end:.3f} s" if end is not None else "nothing"
            self._report_damage("video", decoded, collector.last_requested, error)

    def _finish_audio(self, audio_collector: AudioCollector, error: Exception | None, after_seek: bool) -> None:
        """Handles an audio track that ended, or was damaged, before the end of the request."""
        end, stated = audio_collector.end, self._stated_end[self._audio.index]
        if end is None and error is None:
            if after_seek:
                raise SeekOvershotError
            error = ValueError("no audio could be decoded")
        if error is None and (stated is None or audio_collector.last_requested - end <= END_TOLERANCE):
            return  # the real end of the track: requests lie inside the extent that the header states
        whole = self.info.audio_start + self.info.audio_duration
        if end is not None and stated is None and whole - end <= END_TOLERANCE:
            # The last packet of a file of sound frames, cut off or followed by other bytes. FFmpeg leaves it out.
            self._warnings.append(f"the audio track ends at {end:.3f} s, followed by bytes that cannot be decoded")
            return
        decoded = f"audio up to {end:.3f} s" if end is not None else "nothing"
        self._report_damage("audio", decoded, audio_collector.last_requested, error)

    def _report_damage(self, track: str, decoded: str, requested: float, error: Exception | None) -> None:
        start, length = getattr(self.info, f"{track}_start"), getattr(self.info, f"{track}_duration")
        cause = (
            "the file ends early (truncated?)" if error is None else getattr(error, "strerror", None) or one_line(error)
        )
        is_new = (
            type(error).__name__ == "PatchWelcomeError"
        )  # intact, but FFmpeg does not know this feature of the codec
        text = (
            f"the {track} track ({start:.3f} to {start + length:.3f} s) "
            f"{'cannot be decoded by this FFmpeg' if is_new else 'is damaged'}: decoding returned {decoded}, but "
            f"{requested:.3f} s was requested: {cause}"
        )
        if self.on_decode_error == "raise":
            remedy = "pass on_decode_error='keep' to keep the part before the damage"
            raise MediaError(self._source.name, f"{text}; {remedy}") from error
        self._warnings.append(text)

    # ------------------------------------------------------------------------------------------------------- results

    def _assemble(
        self,
        requests: Sequence[ClipRequest],
        collector: FrameCollector,
        pieces_by_range: dict[tuple[int, int], AudioPiece],
        cuts: list[list[tuple[int, int]]],
    ) -> list[Clip]:
        clips = []
        for request, ranges in zip(requests, cuts):
            frames = times = waveform = audio_start = None
            if request.frame_times is not None and self._video is not None:
                frames, times = collector.select(request.frame_times)
            if request.audio_pieces is not None and self._audio is not None:
                pieces = [pieces_by_range[place] for place in ranges]
                parts = {place: pieces_by_range[place].samples() for place in set(ranges)}
                if pieces:
                    whole = [parts[place] for place in ranges]
                    waveform = torch.from_numpy(whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1))
                    audio_start = pieces[0].start / self.info.sampling_rate
                else:
                    waveform = torch.zeros(self.info.channels, 0)
            rate = self.info.sampling_rate if waveform is not None else None
            clips.append(Clip(frames, times, waveform, rate, audio_start, self.info, list(self._warnings)))
        return clips

    def _torchcodec_agrees(self, collector: FrameCollector) -> bool:
        """Whether torchcodec can start at every keyframe up to the last requested time (see `is_clean_start`), and the first frame
        does not state an orientation, which torchcodec ignores.
        """
        video, codec = self._video, self._video.codec_context.name
        if codec not in ("h264", "hevc"):
            return True
        end = (collector.times[-1] + collector.tolerance + self._zero) / float(video.time_base)
        if has_single_keyframe(self._container, video, end):
            with self._source.peek() as file:
                if file is not None:
                    entry = video.index_entries[0]
                    file.seek(entry.pos)
                    return not states_orientation(file.read(entry.size), codec)
        if not self._at_start:
            self._open()
        self._at_start, video, first = False, self._video, True
        error_of: dict[int, Exception] = {}  # damage is reported when frames are decoded
        for packet in self._packets([video], error_of):
            if packet.pts is not None and packet.pts > end:
                break
            if not packet.size:
                continue
            if first and states_orientation(packet, codec):
                return False
            first = False
            if codec == "hevc":
                break
            if packet.is_keyframe and not is_clean_start(packet):
                return False
        return True

    def _read_by_torchcodec(self, collector: FrameCollector) -> None:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(
            self._source.for_torchcodec(),
            stream_index=self._video.index,
            seek_mode="exact",
            num_ffmpeg_threads=self.threads,
        )
        facts = decoder.metadata
        begin, end = facts.begin_stream_seconds_from_content, facts.end_stream_seconds_from_content
        stated = self._stated_end[self._video.index]
        if (
            stated is not None
            and stated - end > max(END_TOLERANCE, 2 / (self.info.fps or 8))
            and collector.times[-1] + self._zero >= end
        ):
            self._report_damage(
                "video",
                f"{facts.num_frames_from_content} frames up to {end - self._zero:.3f} s",
                collector.times[-1],
                None,
            )
            raise ValueError("truncated")  # PyAV reads the part before the damage and reports it
        last = math.nextafter(end, -math.inf)
        times = [min(max(time + self._zero + collector.tolerance, begin), last) for time in collector.times]
        step = collector.group_size(facts.height, facts.width)
        for first in range(0, len(times), step):
            batch = decoder.get_frames_played_at(times[first : first + step])
            stamps = [time - self._zero for time in batch.pts_seconds.tolist()]
            collector.extend(batch.data, stamps, rotation=round((facts.rotation or 0) / 90) * 90 % 360)


def read_clip(
    source: MediaSource,
    *,
    frame_times: Sequence[float] | None = None,
    audio_window: tuple[float, float] | None = None,
    backend: Backend = "pyav",
    on_decode_error: OnDecodeError = "raise",
    name: str | None = None,
    threads: int = 1,
) -> Clip:
    """Frames and audio of one time window: one open, at most one seek, one forward pass over both tracks.

    Args:
        source: path, URL, bytes or binary file object.
        frame_times: seconds, in any order, repetitions allowed; returns the frame shown at each time. None: no frames are
            decoded.
        audio_window: [start, end) in s. Returns the part of it inside the audio track, which starts at `Clip.audio_start`.
            None: no audio is decoded.
        backend, on_decode_error, name, threads: see ClipReader.

    Returns:
        A Clip. Parts that were not requested, or whose track is missing, are None.

    Raises:
        MediaError: see ClipReader and its `read`.
        ValueError: neither frames nor audio are requested, or times are not finite.
    """
    if frame_times is None and audio_window is None:
        raise ValueError("read_clip needs frame_times, audio_window or both")
    with ClipReader(source, backend=backend, on_decode_error=on_decode_error, name=name, threads=threads) as reader:
        pieces = None if audio_window is None else [audio_window]
        return reader.read([ClipRequest(frame_times=frame_times, audio_pieces=pieces)])[0]


def probe(source: MediaSource, name: str | None = None) -> MediaInfo:
    """MediaInfo of a source. Its first frame is decoded, because only frames state their rotation. Raises MediaError."""
    with ClipReader(source, name=name) as reader:
        if reader.info.has_video:
            reader.read([ClipRequest(frame_times=[0.0])])
        return reader.info
