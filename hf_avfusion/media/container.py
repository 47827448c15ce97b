"""An open media file: the tracks that are read, the facts in its header, and the clip's clock."""

import errno
import math
from dataclasses import dataclass
from typing import Any, Self

from .sources import MediaError, MediaSource, OpenSource, one_line

# The formats that are opened, by the names of FFmpeg's demuxers. Other formats name further files or addresses to open
# (playlists, SDP, concatenations, DASH), or are single pictures, subtitles and devices.
FORMATS = (
    # video, or video and audio
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpeg", "mpegts", "ogg", "flv", "live_flv", "asf",
    "nut", "mxf", "rm", "dv", "ivf", "gif", "webp_pipe", "yuv4mpegpipe",
    # audio
    "wav", "w64", "flac", "mp3", "aac", "loas", "ac3", "eac3", "dts", "aiff", "au", "caf", "amr", "wv", "ape", "tta",
    # video without a container
    "h264", "hevc", "mpegvideo", "m4v", "mjpeg", "vc1", "av1", "obu",
)  # fmt: skip

# Containers without an index state a duration that is guessed from bit rates, so their packets are scanned instead.
UNINDEXED_FORMATS = {"mpeg", "mpegts", "mp3", "aac", "ac3", "h264", "hevc", "m4v", "mpegvideo", "vc1", "mjpeg"}


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a clip that need no full decode. Times are in s on the clip's clock, None where a track is missing.

    `width`, `height`: size of the returned frames in pixels, after rotation (a sample aspect ratio is not applied).
    `rotation`: how far the stored frame is turned counter-clockwise for display: 0, 90, 180 or 270 degrees. All three are
    exact only after a frame has been decoded.
    """

    name: str
    has_video: bool
    has_audio: bool
    duration: float
    video_start: float | None = None
    video_duration: float | None = None
    audio_start: float | None = None
    audio_duration: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int = 0
    sampling_rate: int | None = None
    channels: int | None = None


class OpenMedia:
    """A media file with at most one video and one audio track. `info` holds what its header states.

    Raises:
        MediaError: the source does not exist, is empty, is not a media file, or has neither a video nor an audio track.
    """

    def __init__(self, source: MediaSource, name: str | None, threads: int):
        self.threads = threads
        self._container = None
        self._source = OpenSource(source, name)
        try:
            self._open()
            self.info = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the clip, and the source if it was opened here."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._source.close()

    def _open(self) -> None:
        import av

        if self._container is not None:
            self._container.close()
        try:
            # FFmpeg checks the formats after probing, before the demuxer reads anything.
            options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": self._source.protocol}
            self._container = av.open(self._source.open(), format=self._source.known_format, options=options)
        except Exception as error:  # FFmpegError, or an error of a file object or its network library
            cause = getattr(error, "strerror", None) or one_line(error)
            if getattr(error, "errno", None) == errno.EINVAL:
                cause = "its format is not read; MP4, WebM, AVI, MPEG, WAV, FLAC, MP3, Ogg and others are: convert it"
            raise MediaError(self._source.name, f"cannot be opened as a media file: {cause}") from error
        streams = self._container.streams
        attached = av.stream.Disposition.attached_pic
        videos = [stream for stream in streams.video if not stream.disposition & attached]
        best = streams.best("video")
        self._video = best if best in videos else (videos[0] if videos else None)
        self._audio = streams.best("audio")
        for stream in (self._video, self._audio):
            if stream is not None and stream.codec_context is None:
                raise MediaError(
                    self._source.name,
                    f"there is no decoder for its {stream.type} track; convert the file or leave it out",
                )
        if self._video is not None:
            self._video.codec_context.thread_count = self.threads
            self._video.codec_context.thread_type = "AUTO" if self.threads != 1 else "NONE"
        if self._audio is not None and not self._audio.codec_context.sample_rate:
            self._audio = None  # a track that was declared but never written
        if self._video is None and self._audio is None:
            raise MediaError(self._source.name, "has neither a video nor an audio track")
        self._at_start = True
        self._by_dts = self._container.format.name == "avi"
        self._clocks: dict[type, tuple[int, int]] = {}

    def _read_header(self) -> MediaInfo:
        video, audio = self._video, self._audio
        tracks = [track for track in (video, audio) if track is not None]
        extents = {track.index: _stated_extent(track) for track in tracks}
        guessed = not UNINDEXED_FORMATS.isdisjoint(self._container.format.name.split(","))
        # The end that the header states of each track; None: the last packet marks the end.
        self._stated_end = {index: None if guessed else extent[1] for index, extent in extents.items()}
        if guessed or any(end is None for _, end in extents.values()):
            extents = self._scan(tracks, extents)
        zero = min(start for start, _ in extents.values())
        self._zero = zero
        end = max(end for _, end in extents.values())
        video, audio = self._video, self._audio  # the scan reopened the file
        video_extent = extents[video.index] if video is not None else None
        audio_extent = extents[audio.index] if audio is not None else None
        rate = (video.average_rate or video.guessed_rate) if video is not None else None
        return MediaInfo(
            name=self._source.name,
            has_video=video is not None,
            has_audio=audio is not None,
            duration=end - zero,
            video_start=video_extent[0] - zero if video_extent else None,
            video_duration=video_extent[1] - video_extent[0] if video_extent else None,
            audio_start=audio_extent[0] - zero if audio_extent else None,
            audio_duration=audio_extent[1] - audio_extent[0] if audio_extent else None,
            fps=float(rate) if rate else None,
            width=video.codec_context.width if video is not None else None,
            height=video.codec_context.height if video is not None else None,
            sampling_rate=audio.codec_context.sample_rate if audio is not None else None,
            channels=audio.codec_context.channels if audio is not None else None,
        )

    def _scan(self, tracks: list, stated: dict[int, tuple[float, float | None]]) -> dict[int, tuple[float, float]]:
        """Start and end in s of every track, from the timestamps of its packets. Nothing is decoded."""
        ends: dict[int, float] = {}
        lengths: dict[int, float] = {}
        try:
            for packet in self._container.demux(tracks):
                if packet.pts is None and packet.dts is None:
                    continue
                index, clock = packet.stream.index, packet.time_base
                time = float((packet.pts if packet.pts is not None else packet.dts) * clock)
                length = float(packet.duration * clock) if packet.duration else 0.0
                if time + length > ends.get(index, -math.inf):
                    ends[index] = time + length
                    lengths[index] = length
        except Exception as error:
            if not ends:
                raise MediaError(self._source.name, f"cannot be read: {one_line(error)}") from error
        if not ends:
            raise MediaError(self._source.name, "its tracks hold no packets")
        extents = {}
        for track in tracks:
            start, stated_end = stated[track.index]
            end = ends.get(track.index, start)
            if track.type == "video" and not lengths.get(track.index) and track.average_rate:
                end += 1 / float(track.average_rate)  # the last frame is shown as long as the others
            trusted = stated_end is not None and self._stated_end[track.index] is not None
            extents[track.index] = (start, stated_end if trusted else max(end, start))
        self._open()
        return extents

    def _time_of(self, frame: Any) -> float | None:
        # AVI stores no presentation times. FFmpeg's guesses are misordered around B-frames; decoding times are in order.
        stamp = frame.dts if self._by_dts and frame.dts is not None else frame.pts
        if stamp is None:
            return None
        # One rounding, as with Fraction, whose arithmetic would dominate the cost of this function.
        numerator, denominator = self._clock(frame)
        return stamp * numerator / denominator - self._zero

    def _clock(self, frame: Any) -> tuple[int, int]:
        kind = type(frame)  # all frames of a track have one time base
        if kind not in self._clocks:
            self._clocks[kind] = frame.time_base.as_integer_ratio()
        return self._clocks[kind]

    def _length_of(self, frame: Any) -> float:
        if frame.duration:
            numerator, denominator = self._clock(frame)
            return frame.duration * numerator / denominator
        return 1 / self.info.fps if self.info.fps else 0.0


def _stated_extent(track: Any) -> tuple[float, float | None]:
    """Start and end in s that the header states of a track. Its end may be missing."""
    numerator, denominator = track.time_base.as_integer_ratio()
    start = track.start_time * numerator / denominator if track.start_time is not None else 0.0
    if track.duration:
        return start, start + track.duration * numerator / denominator
    text = track.metadata.get("DURATION", "")  # Matroska's tag: hours:minutes:seconds, counted from zero
    try:
        hours, minutes, seconds = text.split(":")
        return start, max(start, 3600 * int(hours) + 60 * int(minutes) + float(seconds))
    except ValueError:
        return start, None
