"""Reads frames and sound of time windows from a media file (path, bytes, file object, URL) in one forward pass.

All times are seconds on the clock of the clip, whose zero is the earlier of the starts of its two tracks. Frames are
chosen by presentation time (the frame shown at the asked time), never by the counts that containers state. Of several
tracks of a kind the one that FFmpeg ranks best is read (marked as default, then more data), as torchcodec does; cover
pictures are no video.

PyAV is the decoder; torchcodec can decode the pictures (`backend="torchcodec"`, or `"auto"`: where it demonstrably
works). Sound is always read through PyAV, since it keeps the gaps that a track's timestamps state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from transformers.utils import logging

from .container import MediaInfo, OpenMedia
from .sources import MediaError, MediaSource, one_line
from .torchcodec_backend import (
    OnlyRecovers,
    ShortFile,
    may_pay,
    one_key,
    states_lengths,
    torchcodec_agrees,
    torchcodec_works,
)
from .tracks import PassedPictures, Pictures, SeekMissed, Skipping, Sound, SoundLine

logger = logging.get_logger(__name__)

Backend = Literal["auto", "pyav", "torchcodec"]
OnDecodeError = Literal["raise", "keep"]

# Seeking, in s. A window that starts before NO_SEEK_BEFORE is reached by decoding from the start, which is also exacter
# for sound. Others are sought SEEK_MARGIN before their start: room for B-frames and for codecs (Opus: 80 ms) that need a
# run-up, with SOUND_RUN_UP samples more for those whose blocks overlap (AAC: 1024 per block). A seek that ends behind its
# place is repeated SEEK_AGAIN earlier, then from the start. Windows further apart than ONE_PASS_GAP are reached by another
# seek instead of decoding what lies between.
NO_SEEK_BEFORE = 1.0
SEEK_MARGIN = 0.25
SOUND_RUN_UP = 3 * 1024
SEEK_AGAIN = 10.0
ONE_PASS_GAP = 5.0
END_MISSING = 0.25  # s; a track that ends earlier than its header says by more than this is a truncated file


@dataclass
class Clip:
    """Decoded frames and sound of one time window.

    frames: uint8 [T, 3, height, width] RGB, upright, or None. frame_times: float64 [T], the presentation times in s
    of the frames really shown (T is smaller than asked only under on_decode_error="keep"). waveform: float32
    [channels, samples] at its own `sampling_rate` in Hz, or None. audio_start: time in s of sample 0. warnings: what
    was damaged, missing or filled.
    """

    frames: torch.Tensor | None
    frame_times: torch.Tensor | None
    waveform: torch.Tensor | None
    sampling_rate: int | None
    audio_start: float | None
    info: MediaInfo
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClipRequest:
    """What to read: the frames shown at `frame_times` (s), and pieces of sound [start, end) (s) put end to end."""

    frame_times: Sequence[float] | None = None
    audio_pieces: Sequence[tuple[float, float]] | None = None


class ClipReader(OpenMedia):
    """An open clip, for a `with` statement: `info` is known at once, `read` gives windows. See `read_clip` for just one.

    Args:
        source: path, URL (anything fsspec opens), bytes, or binary file object (read from its start; stays open).
        backend: "pyav", "torchcodec" (pictures only; raises MediaError where it does not work) or "auto".
        on_decode_error: "raise" a MediaError when a part that was asked for cannot be decoded, or "keep" what comes
            before it and say so in `Clip.warnings`.
        name: the printable name of the source in errors.
        threads: decoding threads; 1 is right inside data workers.

    Raises:
        MediaError: the source does not exist, is empty, is no media file, or holds neither a video nor an audio track.
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
        super().__init__(source, name, threads)
        if backend == "torchcodec" and not torchcodec_works():
            self.close()
            raise MediaError(
                self._source.name, "backend='torchcodec' does not decode here (is FFmpeg installed?); use 'pyav'"
            )
        self._by_torchcodec = (
            backend != "pyav" and torchcodec_agrees(self._container, self._video) and torchcodec_works()
        )
        self._may_fall_back = backend == "auto" or on_decode_error == "keep"

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, requests: Sequence[ClipRequest]) -> list[Clip]:
        """One Clip per request, decoded in one forward pass; only what lies far apart is reached by another seek.

        At times before the first frame the first frame is given, after the last one the last. A piece of sound is cut
        to the sample, round(length * rate) of them from round(start * rate) on, and to the extent of the track; where
        its timestamps leave a gap, silence is put and told in `warnings`. What is asked of a track that the clip has
        not is None. After a seek, sound is as exact as the time stamps of the container (WebM and Matroska: half a ms,
        with Vorbis up to 11 ms), and the noise with which AAC fills bands is another one.

        Raises:
            MediaError: a part that was asked for cannot be decoded (see `on_decode_error`), or the size of the
                pictures, the sampling rate or the number of channels changes within it.
        """
        for request in requests:
            times = [*(request.frame_times or ()), *(edge for piece in request.audio_pieces or () for edge in piece)]
            if not all(math.isfinite(time) for time in times):
                raise ValueError(f"times must be finite numbers of seconds, got {times}")
        self._warnings: list[str] = []
        has_video, has_audio = self._video is not None, self._audio is not None
        times = sorted({float(t) for r in requests for t in r.frame_times or ()}) if has_video else []
        cuts = [self._sample_ranges(request.audio_pieces or ()) if has_audio else [] for request in requests]
        # A short clip that wraps asks for the same piece again and again: it is decoded once.
        sounds = {place: Sound(*place, self.info.channels) for ranges in cuts for place in ranges}
        tick = float(self._video.time_base) if has_video else 0.0
        pictures = Pictures(times, tolerance=min(tick / 2, 5e-4), name=self._source.name)
        if self._by_torchcodec and times:
            try:
                self._read_by_torchcodec(pictures, with_sound=bool(sounds))
            except (MediaError, RuntimeError, ValueError, IndexError) as error:
                if not self._may_fall_back:
                    if isinstance(error, MediaError):
                        raise
                    raise MediaError(self._source.name, f"torchcodec cannot decode it: {one_line(error)}") from error
                pictures = Pictures(times, tolerance=pictures.tolerance, name=self._source.name)
                self._warnings.clear()  # PyAV will come to the same place and say so itself
        self._read_clusters(pictures, list(sounds.values()))
        if pictures.size is not None:
            height, width = pictures.size
            if (width, height, pictures.rotation) != (self.info.width, self.info.height, self.info.rotation):
                self.info = replace(self.info, width=width, height=height, rotation=pictures.rotation)
        return self._assemble(requests, pictures, sounds, cuts)

    def pass_on(
        self,
        frame_times: Sequence[float] = (),
        audio_window: tuple[float, float] | None = None,
        show: Callable[[np.ndarray], None] | None = None,
        fit: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> Clip:
        """Reads as `read` does, but hands every picture on as it comes, so that a long clip is never held whole.

        Args:
            frame_times: s, ascending, without repetitions; for each the frame shown then goes to `show`.
            audio_window: [start, end) in s of the sound.
            show: takes uint8 [height, width, 3], upright; None: pictures are decoded and go nowhere, which finds damage.
            fit: (height, width) as stored -> the size that pictures are scaled to; default: as they are.

        Returns:
            The clip's sound and warnings; its `frames` are None.

        Raises:
            MediaError: as `read`.
        """
        self._warnings = []
        request = ClipRequest(audio_pieces=None if audio_window is None else [audio_window])
        cuts = [self._sample_ranges(request.audio_pieces or ()) if self._audio is not None else []]
        sounds = {place: Sound(*place, self.info.channels) for place in cuts[0]}
        tick = float(self._video.time_base) if self._video is not None else 0.0
        times = list(frame_times) if self._video is not None else []
        name = self._source.name
        pictures = PassedPictures(times, tolerance=min(tick / 2, 5e-4), name=name, show=show, fit=fit)
        self._read_clusters(pictures, list(sounds.values()))
        return self._assemble([request], pictures, sounds, cuts)[0]

    def _sample_ranges(self, pieces: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
        """Pieces in s -> sample indices [first, last) on the clock of the clip, whose lengths sum to the rounded
        total length.
        """
        rate, ranges, total = self.info.sampling_rate, [], 0.0
        track = round(self.info.audio_start * rate), round((self.info.audio_start + self.info.audio_duration) * rate)
        for start, end in pieces:
            if end < start:
                raise ValueError(f"a window of sound ends before it starts: [{start}, {end})")
            before = round(total * rate)
            total += end - start
            first = round(start * rate)
            last = first + round(total * rate) - before
            first = min(max(first, track[0]), track[1])
            ranges.append((first, min(max(last, first), track[1])))
        return ranges

    def _read_clusters(self, pictures: Pictures, sounds: list[Sound]) -> None:
        rate = self.info.sampling_rate
        spans = [(time, time) for time in pictures.times]
        spans += [(sound.first / rate, sound.last / rate) for sound in sounds if sound.first < sound.last]
        clusters: list[list[float]] = []
        for start, end in sorted(spans):
            if clusters and start - clusters[-1][1] <= ONE_PASS_GAP:
                clusters[-1][1] = max(clusters[-1][1], end)
            else:
                clusters.append([start, end])
        for start, end in clusters:
            for back in (
                0.0,
                SEEK_AGAIN,
                math.inf,
            ):  # MPEG streams have no index: where a seek ends is seen by decoding
                try:
                    self._pass(pictures, sounds, max(start - back, 0.0), start, end)
                    break
                except SeekMissed:
                    continue

    def _pass(self, pictures: Pictures, sounds: list[Sound], place: float, start: float, end: float) -> None:
        """Decodes forward from before `place` until everything asked for from `start` to `end` is there."""
        import av
        from av.stream import Discard

        rate = self.info.sampling_rate
        wanted = [s for s in sounds if s.first < s.last and start * rate - 1 <= s.first and s.last <= end * rate + 1]
        pictures.begin(end)
        with_video, with_audio = not pictures.reached, bool(wanted)
        if not with_video and not with_audio:
            return
        margin = SEEK_MARGIN + (SOUND_RUN_UP / rate if with_audio else 0.0)
        sought = place - margin > NO_SEEK_BEFORE
        # With pictures in the window the seek follows them even if torchcodec has read them, so that sound is decoded from
        # the same place: decoders of AAC fill bands with noise that depends on where they started.
        lead = self._video if pictures.asked_in(start, end) else self._audio
        coming = None if sought or with_video else self._coming
        self._coming = None
        if not self._fresh and not sought and coming is None:
            self._open()
        self._fresh = False
        video = self._video if with_video else None
        audio = self._audio if with_audio else None
        tracks = [track for track in (video, audio) if track is not None]
        if self._video is not None:  # pictures that nobody decodes are not even read, where no seek has to find them
            self._video.discard = Discard.default if with_video or sought else Discard.all
        if sought:
            try:
                stamp = int((place - margin + self._zero) / lead.time_base)
                self._container.seek(stamp, stream=lead, backward=True)
            except av.FFmpegError as error:
                raise SeekMissed from error
        line = None
        if with_audio:
            line = SoundLine(
                wanted, rate=rate, channels=self.info.channels, sought=sought, name=self._source.name,
                exact=not self._by_dts and audio.time_base.as_integer_ratio() == (1, rate),
            )  # fmt: skip
        before_key = sought  # pictures before the first key picture after a seek lack what they refer to
        error_of: dict[int, Exception] = {}
        skipping = Skipping(video, pictures.times, self._zero, pictures.tolerance) if with_video else None
        if skipping is not None and (self._by_dts or self.threads != 1 or not skipping.possible):
            skipping = None
        packets = self._packets(tracks, error_of, coming)
        picture_index = video.index if with_video else None
        picture_over, sound_over = not with_video, not with_audio
        for packet in packets if skipping is None else skipping.ahead(packets):
            index = packet.stream.index
            if index in error_of:
                continue
            try:
                if index == picture_index:
                    before_key = before_key and not packet.is_keyframe
                    if not before_key and not pictures.reached:
                        if skipping is not None:
                            skipping.prepare(packet)
                        for frame in packet.decode():
                            pictures.offer(frame, self._time_of(frame), self._length_of(frame), sought=sought)
                        picture_over = pictures.reached
                elif not sound_over:
                    for frame in packet.decode():
                        if not line.follow(frame):
                            line.offer(frame, self._time_of(frame))
                    sound_over = line.done
            except av.FFmpegError as error:
                track = pictures if index == picture_index else line
                if not sought or track.end is not None:  # after a seek the first packet may be half of one
                    error_of[index] = error
                    picture_over |= track is pictures
                    sound_over |= track is line
            if picture_over and sound_over:
                break
        if with_video and not pictures.reached:
            self._end_of_pictures(pictures, error_of.get(video.index), sought)
        if with_audio:
            line.flush()
            if not line.done:
                self._end_of_sound(line, error_of.get(audio.index), sought)
            self._warnings += line.warnings

    def _packets(
        self, tracks: list, error_of: dict[int, Exception], coming: Iterator[Any] | None = None
    ) -> Iterator[Any]:
        try:
            yield from self._container.demux(tracks) if coming is None else coming
        except Exception as error:  # the container itself is damaged, or the file object failed: no track goes on
            for track in tracks:
                error_of.setdefault(track.index, error)

    # ------------------------------------------------------------------------------------------------- ends and errors

    def _end_of_pictures(self, pictures: Pictures, error: Exception | None, sought: bool) -> None:
        """The track came to its end, or to damage, before every asked time had its picture."""
        end, stated = pictures.end, self._stated_end[self._video.index]
        if end is None and error is None:
            if sought:
                raise SeekMissed  # sought behind the last packet that is there
            error = ValueError("no picture could be decoded")
        if error is None:
            tolerated = max(END_MISSING, 2 / self.info.fps if self.info.fps else 0.0)
            if stated is None or stated - self._zero - end <= tolerated:
                pictures.finish()  # a true end: the last frame stays on the screen
                return
        if end is not None:
            pictures.finish(until=end)
        if not pictures.reached:
            given = f"{pictures.count} frames up to {end:.3f} s" if end is not None else "nothing"
            self._trouble("video", given, pictures.last_asked, error)

    def _end_of_sound(self, line: SoundLine, error: Exception | None, sought: bool) -> None:
        """The track came to its end, or to damage, before the end of what was asked for."""
        end, stated = line.end, self._stated_end[self._audio.index]
        if end is None and error is None:
            if sought:
                raise SeekMissed
            error = ValueError("no sound could be decoded")
        if error is None and (stated is None or line.last_asked - end <= END_MISSING):
            return  # a true end; asked times lie inside the extent that the header states
        self._trouble("audio", f"sound up to {end:.3f} s" if end is not None else "nothing", line.last_asked, error)

    def _trouble(self, track: str, given: str, asked: float, error: Exception | None) -> None:
        start, length = getattr(self.info, f"{track}_start"), getattr(self.info, f"{track}_duration")
        cause = (
            "the file ends early (truncated?)" if error is None else getattr(error, "strerror", None) or one_line(error)
        )
        text = (
            f"the {track} track ({start:.3f} to {start + length:.3f} s) is damaged: decoding gave {given} "
            f"where it was asked for up to {asked:.3f} s: {cause}"
        )
        if self.on_decode_error == "raise":
            remedy = "on_decode_error='keep' keeps what comes before the damage"
            raise MediaError(self._source.name, f"{text}; {remedy}") from error
        self._warnings.append(text)

    # ------------------------------------------------------------------------------------------------------- results

    def _assemble(
        self,
        requests: Sequence[ClipRequest],
        pictures: Pictures,
        sounds: dict[tuple[int, int], Sound],
        cuts: list[list[tuple[int, int]]],
    ) -> list[Clip]:
        clips = []
        for request, ranges in zip(requests, cuts):
            frames = times = waveform = audio_start = None
            if request.frame_times is not None and self._video is not None:
                frames, times = pictures.select(request.frame_times)
            if request.audio_pieces is not None and self._audio is not None:
                pieces = [sounds[place] for place in ranges]
                parts = {place: sounds[place].samples() for place in set(ranges)}
                if pieces:
                    whole = [parts[place] for place in ranges]
                    waveform = torch.from_numpy(whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1))
                    audio_start = pieces[0].begin / self.info.sampling_rate
                else:
                    waveform = torch.zeros(self.info.channels, 0)
            rate = self.info.sampling_rate if waveform is not None else None
            clips.append(Clip(frames, times, waveform, rate, audio_start, self.info, list(self._warnings)))
        return clips

    def _read_by_torchcodec(self, pictures: Pictures, with_sound: bool) -> None:
        """Has torchcodec decode the pictures, where that can be and pays from a copy without those that nobody needs; leaves
        them to PyAV where torchcodec would not give the right ones.
        """
        if self._video.codec_context.name == "h264":
            if not states_lengths(self._video):
                return
            first, last = pictures.times[0], pictures.times[-1]
            sought = first - SEEK_MARGIN > NO_SEEK_BEFORE
            if not self._fresh and not sought:
                self._open()
            pays = may_pay(self._video, last - first, self.info.fps)
            end = (last + pictures.tolerance + self._zero) / float(self._video.time_base)
            if pays or not one_key(self._container, self._video, end):
                needed = Skipping(self._video, pictures.times, self._zero, pictures.tolerance)
                try:
                    if self._read_short_file(ShortFile(self._video, needed, pays), pictures, sought, with_sound):
                        return
                except OnlyRecovers:
                    return
        self._read_whole_file(pictures)

    def _read_short_file(self, short: ShortFile, pictures: Pictures, sought: bool, with_sound: bool) -> bool:
        """Looks at the packets, the file's first or those from a seek on, and decodes a copy; False: the whole file is due."""
        self._fresh = False
        video, audio, others = self._video, self._audio, []
        try:
            if sought:
                place = pictures.times[0] - SEEK_MARGIN + self._zero
                self._container.seek(int(place / video.time_base), stream=video, backward=True)
            in_passing = with_sound and not sought
            packets = self._container.demux([video, audio] if in_passing else [video])
            known = short.read(packets, others)
            if in_passing:  # the sound of what has been read is not read again
                self._coming = (packet for packet in chain(others, packets) if packet.stream.index == audio.index)
            data = short.write() if known else None
            decoded = None if data is None else short.decode(data, self.threads)
        except OnlyRecovers:
            raise
        except Exception as error:  # FFmpegError, and what a file object or torchcodec raises
            logger.debug(f"{self._source.name}: is decoded whole, since a short copy failed: {one_line(error)}")
            return False  # what is wrong with the file shows when it is read whole
        if decoded is None:
            return False
        frames, stamps, rotation = decoded
        numerator, denominator = video.time_base.as_integer_ratio()
        times = [stamp * numerator / denominator - self._zero for stamp in stamps]
        pictures.take(frames, times, rotation=round(rotation / 90) * 90 % 360)
        return True

    def _read_whole_file(self, pictures: Pictures) -> None:
        from torchcodec.decoders import VideoDecoder

        if self._source.shared:
            self._fresh, self._coming = False, None  # torchcodec moves the place in the file object
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
            and stated - end > max(END_MISSING, 2 / (self.info.fps or 8))
            and pictures.times[-1] + self._zero >= end
        ):
            self._trouble(
                "video",
                f"{facts.num_frames_from_content} frames up to {end - self._zero:.3f} s",
                pictures.times[-1],
                None,
            )
            raise ValueError("truncated")  # what comes before is read, and warned of, by PyAV
        last = math.nextafter(end, -math.inf)
        asked = [min(max(time + self._zero + pictures.tolerance, begin), last) for time in pictures.times]
        batch = decoder.get_frames_played_at(asked)
        stamps = [time - self._zero for time in batch.pts_seconds.tolist()]
        pictures.take(batch.data, stamps, rotation=round((facts.rotation or 0) / 90) * 90 % 360)


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
    """Frames and sound of one time window: one open, at most one seek, one forward pass over both tracks.

    Args:
        source: path, URL, bytes or binary file object.
        frame_times: seconds, in any order, repetitions allowed; for each the frame that is shown then. None: no
            frames are decoded.
        audio_window: [start, end) in s; the part of it that lies inside the audio track is given, `Clip.audio_start`
            says from where.
            None: no sound is decoded.
        backend, on_decode_error, name, threads: see ClipReader.

    Returns:
        A Clip; what was not asked for, or what the file has no track of, is None.

    Raises:
        MediaError: see ClipReader and its `read`.
        ValueError: neither frames nor sound asked for, or times that are not finite.
    """
    if frame_times is None and audio_window is None:
        raise ValueError("read_clip needs frame_times, audio_window or both")
    with ClipReader(source, backend=backend, on_decode_error=on_decode_error, name=name, threads=threads) as reader:
        pieces = None if audio_window is None else [audio_window]
        return reader.read([ClipRequest(frame_times=frame_times, audio_pieces=pieces)])[0]


def probe(source: MediaSource, name: str | None = None) -> MediaInfo:
    """MediaInfo of a source; its first frame is decoded, because only frames tell how they are turned. Raises
    MediaError.
    """
    with ClipReader(source, name=name) as reader:
        if reader.info.has_video:
            reader.read([ClipRequest(frame_times=[0.0])])
        return reader.info
