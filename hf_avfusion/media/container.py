"""An open media file: the tracks that are read, the facts in its header, and the clip's clock."""

import errno
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from .joined import JoinedParts, next_file_at, part_offsets
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
UNINDEXED_FORMATS = {
    "mpeg", "mpegts", "mp3", "aac", "loas", "ac3", "eac3", "dts", "amr", "w64", "caf",
    "h264", "hevc", "m4v", "mpegvideo", "vc1", "mjpeg",
}  # fmt: skip

# Sound frames without a container: after a seek, FFmpeg guesses their time stamps from bit rates. They are decoded from the start.
GUESSED_TIME_FORMATS = {"aac", "loas", "ac3", "eac3", "dts", "amr"}

# Containers that state decoding times only. Frames get them in the order in which they are shown.
DECODING_ORDER_FORMATS = {"avi", "asf"}

LEAST_REST = 0.5  # s; less that cannot be read at the end of a file is padding


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
        self._empty: set[int] = set()  # tracks that hold no packet
        self._offsets = [0.0]  # by how many s the parts of a joined file are moved
        self._notes: list[str] = []  # warnings about the whole file
        self._can_seek = True
        self._frame_length = 0.0  # s; that of the last frame, where packets were scanned
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
            self._container = av.open(
                self._source.open(),
                mode="r",
                format=self._source.known_format,
                options=options,
                metadata_errors="replace",
            )
        except Exception as error:  # FFmpegError, or an error of a file object or its network library
            cause = getattr(error, "strerror", None) or one_line(error)
            if getattr(error, "errno", None) == errno.EINVAL:
                cause = "its format is not read; MP4, WebM, AVI, MPEG, WAV, FLAC, MP3, Ogg and others are: convert it"
            raise MediaError(self._source.name, f"cannot be opened as a media file: {cause}") from error
        self._video, self._audio = self._choose_tracks()
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
            cause = "its tracks hold no packets" if self._empty else "has neither a video nor an audio track"
            raise MediaError(self._source.name, cause)
        if self._video is not None and not self._video.codec_context.width and self._is_animated_webp():
            raise MediaError(
                self._source.name, "is an animated WebP, which this FFmpeg does not decode; convert it to MP4 or GIF"
            )
        self._at_start = True
        self._by_dts = self._container.format.name in DECODING_ORDER_FORMATS
        self._clocks: dict[type, tuple[int, int]] = {}

    def _is_animated_webp(self) -> bool:
        with self._source.peek() as file:
            if file is None or self._container.format.name != "webp_pipe":
                return False
            file.seek(0)
            head = file.read(21)
        return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)

    def _choose_tracks(self) -> tuple[Any, Any]:
        """The best video and audio track that hold something. Of several programmes, both belong to the same one."""
        import av

        streams, attached = self._container.streams, av.stream.Disposition.attached_pic
        videos = [s for s in streams.video if not s.disposition & attached and s.index not in self._empty]
        best = streams.best("video")
        video = best if best in videos else (videos[0] if videos else None)
        audios = [s for s in streams.audio if s.index not in self._empty]
        # FFmpeg falls back to the other programmes if that of the video has no audio.
        related = [s for s in audios if video is None or streams.best("video", related=s) in (best, None)]
        audio = streams.best("audio", related=video)
        return video, audio if audio in related else (related[0] if related else None)

    def _read_header(self) -> MediaInfo:
        formats = self._container.format.name.split(",")
        joined = self._find_next_file()
        while True:
            tracks = [track for track in (self._video, self._audio) if track is not None]
            extents = {track.index: _stated_extent(track, formats) for track in tracks}
            guessed = joined or not UNINDEXED_FORMATS.isdisjoint(formats)
            # Of a track without an index or a count, FFmpeg may have filled in the times of the whole file.
            vague = {
                t.index for t in tracks if guessed or (len(tracks) == 2 and not (t.frames or len(t.index_entries)))
            }
            # The end that the header states of each track; None: the last packet marks the end.
            self._stated_end = {index: None if index in vague else end for index, (_, end) in extents.items()}
            if None not in self._stated_end.values():
                break
            scanned = self._scan(tracks, joined)
            empty = extents.keys() - scanned.keys()  # the scan reopened the file: `tracks` are those of before
            if "matroska" in formats:  # a track with a duration of its own was cut off, it is not empty
                empty = {index for index in empty if not (extents[index][1] or 0.0) > extents[index][0]}
            if not empty:
                for index, (start, end) in scanned.items():
                    stated = extents[index][0]
                    start = stated if index not in vague else max(start, stated) if guessed else start
                    extents[index] = start, self._stated_end[index] or end
                break
            self._empty |= empty
            self._open()
        zero = min(start for start, _ in extents.values())
        self._zero = zero
        end = max(end for _, end in extents.values())
        video, audio = self._video, self._audio
        video_extent = extents[video.index] if video is not None else None
        audio_extent = extents[audio.index] if audio is not None else None
        rate = _frame_rate(video, self._frame_length) if video is not None else None
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

    def _find_next_file(self) -> bool:
        """Whether the file consists of parts that FFmpeg reads one after the other. A second file that is not read is noted."""
        container = self._container.format.name
        with self._source.peek() as file:
            place = next_file_at(file, container) if file is not None else None
        if place is None:
            return False
        if container in ("ogg", "matroska,webm"):
            return True
        self._notes.append(
            f"another file begins at byte {place}, after the end of this one, and is not read: two files were joined; "
            "split them, or join them with ffmpeg's concat demuxer"
        )
        return False

    def _scan(self, tracks: list, joined: bool) -> dict[int, tuple[float, float]]:
        """Start and end in s of every track that holds packets, from their time stamps. Nothing is decoded."""
        parts, untimed = JoinedParts(), {track.index: 0.0 for track in tracks}
        starts: list[dict[int, float]] = []
        ends: list[dict[int, float]] = []
        lengths: dict[int, float] = {}
        joints: list[int] = []  # first byte of every part
        last_byte: dict[int, int] = {}
        failure: Exception | None = None
        try:
            for packet in self._demux(tracks):
                if not packet.size:
                    continue
                index, clock = packet.stream.index, packet.time_base
                length = float(packet.duration * clock) if packet.duration else 0.0
                stamp = packet.dts if self._by_dts or packet.pts is None else packet.pts
                if stamp is None:
                    untimed[index] += length
                    continue
                part = parts.part_of(packet)
                if len(starts) == part:
                    starts.append({})
                    ends.append({})
                    joints.append(packet.pos or 0)
                last_byte[index] = packet.pos or last_byte.get(index, 0)
                time = float(stamp * clock)
                starts[part][index] = min(time, starts[part].get(index, time))
                if time + length > ends[part].get(index, -math.inf):
                    ends[part][index] = time + length
                    lengths[index] = length
        except Exception as error:
            if not ends:
                raise MediaError(self._source.name, f"cannot be read: {one_line(error)}") from error
            failure = error
        # A track may end with a part, but not begin with a later one: nothing shows when its first time is.
        whole = all(
            last_byte[index] < joint for part, joint in zip(starts, joints) for index in last_byte if index not in part
        )
        if (joined and len(starts) < 2) or not whole:
            raise MediaError(
                self._source.name,
                "consists of files that were joined end to end, of which not all tracks can be read; "
                "split it, or join its parts with ffmpeg's concat demuxer",
            )
        self._offsets = part_offsets(starts, ends) if starts else [0.0]
        scanned = {}
        for track in tracks:
            index = track.index
            if track.type == "video":
                self._frame_length = lengths.get(index, 0.0)
            if starts and index in starts[0]:
                end = max(end[index] + offset for end, offset in zip(ends, self._offsets) if index in end)
                if track.type == "video" and not lengths.get(index) and track.average_rate:
                    end += 1 / float(track.average_rate)  # the last frame is shown as long as the others
                scanned[index] = starts[0][index], max(end, starts[0][index])
            elif untimed[index]:
                scanned[index] = 0.0, untimed[index]  # an elementary stream: its frames follow each other
                self._can_seek = False
        if len(starts) > 1 and self._audio is None and self._container.streams.audio:
            self._notes.append(
                "the audio track begins with a later part of the file and is not read (joined recordings)"
            )
        formats = self._container.format.name.split(",")
        self._can_seek = self._can_seek and len(self._offsets) == 1 and GUESSED_TIME_FORMATS.isdisjoint(formats)
        self._open()
        if failure is not None:
            self._note_rest(max(end for part in ends for end in part.values()), max(last_byte.values()), failure)
        return scanned

    def _note_rest(self, end: float, last_byte: int, error: Exception) -> None:
        """Notes that reading ended with an error at `end` s, unless the rest of the file is shorter than LEAST_REST s."""
        with self._source.peek() as file:
            rest = file.seek(0, io.SEEK_END) - last_byte if file is not None else 0
        if not self._notes and rest * end > LEAST_REST * last_byte:  # a second file is noted already
            cause = getattr(error, "strerror", None) or one_line(error)
            self._notes.append(f"the file can be read only up to {end:.3f} s, and {rest} bytes are left: {cause}")

    def _demux(self, tracks: list) -> Iterator[Any]:
        """All packets of the tracks. Tracks that begin in the middle of the file are not read, which is noted."""
        while True:
            try:
                yield from self._container.demux(tracks)
                return
            except IndexError:  # of PyAV, for a packet of a track that was not known when the file was opened
                note = "other tracks begin in the middle of the file and are not read (joined recordings?)"
                if note not in self._notes:
                    self._notes.append(note)

    def _time_of(self, frame: Any) -> float | None:
        stamp = frame.pts
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


def _frame_rate(video: Any, frame_length: float) -> Any:
    """Frames per second, or None. frame_length: s; 0 if not known."""
    average, guessed = video.average_rate, video.guessed_rate
    if average is None and frame_length:
        return 1 / frame_length  # of a single picture, FFmpeg guesses the rate of its fields
    # FFmpeg takes a tick of the clock for the length of a frame where it knows none (raw DV).
    return guessed if not average or (guessed and average * video.time_base == 1) else average


def _stated_extent(track: Any, formats: list[str]) -> tuple[float, float | None]:
    """Start and end in s that the header states of a track. Its end may be missing."""
    numerator, denominator = track.time_base.as_integer_ratio()
    start = track.start_time * numerator / denominator if track.start_time is not None else 0.0
    if track.duration and "matroska" not in formats:  # there FFmpeg fills in the duration of the file
        return start, start + track.duration * numerator / denominator
    text = track.metadata.get("DURATION", "")  # Matroska's tag: hours:minutes:seconds, counted from zero
    try:
        hours, minutes, seconds = text.split(":")
        return start, max(start, 3600 * int(hours) + 60 * int(minutes) + float(seconds))
    except ValueError:
        return start, None
