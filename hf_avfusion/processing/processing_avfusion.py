"""Base class of all processors: turns files, arrays or decoded clips into `pixel_values` and `input_features`."""

import inspect
import math
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import TensorType, logging

from ..media.limits import check_bytes, check_sizes
from ..media.modalities import CLIP_AXES, MODALITIES, WINDOW_AXES
from ..media.mono import TO_MONO, to_mono
from ..media.reader import Clip, MediaError, MediaSource
from ..media.resampling import resample
from ..media.sources import check_row_path
from ..media.windows import WindowPolicy, load_window
from .array_inputs import as_audio, as_videos, check_options_of_files, checked_frames, clip_bounds, encoded, is_media
from .feature_extraction_avfusion import AVFusionAudioKwargs, AVFusionFeatureExtractor
from .saved_processors import check_parts
from .segment_arrays import split_frames, split_waveforms
from .spelling import check_spelling, refuse_unknown
from .video_processing_avfusion import AVFusionVideoProcessor, AVFusionVideoProcessorKwargs, cropped_frames
from .window_rows import empty_clip_error, fill_missing_rows, join_windows

logger = logging.get_logger(__name__)

# Processor -> tracks whose absence it has reported. Not an attribute, since `datasets.map` hashes the processor for its cache.
_WARNED_TRACKS: "weakref.WeakKeyDictionary[AVFusionProcessor, set[str]]" = weakref.WeakKeyDictionary()


# Arguments of transformers' video processors that change nothing of what this one returns.
_WITHOUT_EFFECT = {"data_format", "do_pad", "return_metadata", "video_metadata"}

# Fields of the parts, which `from_pretrained` passes on.
_PART_FIELDS = {
    *AVFusionVideoProcessor.valid_kwargs.__annotations__,
    *inspect.signature(AVFusionFeatureExtractor).parameters,
}


class _NoTokens:
    """Stand-in for a tokenizer: transformers' Trainer reads these attributes of every processor that it saves."""

    init_kwargs: ClassVar[dict[str, Any]] = {}
    eos_token_id = bos_token_id = pad_token_id = None


class AVFusionProcessorKwargs(ProcessingKwargs, total=False):
    """
    Keyword arguments of a call for media files.

    use_audio_in_video (bool): read the audio track of a video file from the same window; default True.
    mode (str): "eval" (centred window, or `num_views` windows spread over the clip) or "train" (a random window).
    num_views (int): views per file; default 1.
    backend (str), on_decode_error (str): as in `media.reader.read_clip`.
    return_windows (bool): also return the times of the windows; default False.
    """

    videos_kwargs: AVFusionVideoProcessorKwargs
    audio_kwargs: AVFusionAudioKwargs
    use_audio_in_video: bool | None
    mode: str | None
    num_views: int | None
    backend: str | None
    on_decode_error: str | None
    return_windows: bool | None


class AVFusionProcessor(ProcessorMixin):
    """Base class of the processors. A subclass sets `default_window` and `audio_preset` to the published values.

    A model may take several windows of a clip at once, such as a sequence of short clips or the sound of each second. Its
    processor states how many windows one view has, `windows_per_view`, states the axes of one view, `input_axes`, as the model's
    configuration does, and overrides `load_clip`, which returns the windows of each view one after the other. In an input whose
    first axis is one of `WINDOW_AXES`, the windows lie along that axis. In another, they are joined along its first axis.

    Args:
        video_processor (AVFusionVideoProcessor, *optional*): default: one with default settings.
        feature_extractor (AVFusionFeatureExtractor, *optional*): default: one from `audio_preset`, as long as the window.
        window (WindowPolicy | dict): selects the frames and the audio of a file. A dict may hold only some of the fields.
            Fields of WindowPolicy can also be passed by name: `num_frames=8, span=8.0`. `audio_seconds` defaults to the
            length of the spectrogram of the `feature_extractor`, if one is passed.
        channel_mix (str): how the audio channels of a file are mixed to mono: "mean" or another of `media.mono.TO_MONO`.

    All arguments are saved in `processor_config.json`.
    """

    valid_processor_kwargs = AVFusionProcessorKwargs
    tokenizer = _NoTokens()
    default_window = WindowPolicy()
    audio_preset = "mbt"
    input_axes: Mapping[str, tuple[str, ...]] = CLIP_AXES
    windows_per_view = 1
    takes_segments = False  # whether the window may have `num_segments`
    frames_of_size = staticmethod(cropped_frames)  # (height, width) -> fields of a video processor for such frames
    # arguments of `process_clips` for frames that were resized and cropped as they were decoded
    reduced_frames: ClassVar[dict[str, Any]] = {"do_resize": False, "do_center_crop": False}

    # defaults of `__call__`
    use_audio_in_video = True
    mode = "eval"
    num_views = 1
    return_windows = False

    def __init__(self, video_processor=None, feature_extractor=None, window=None, channel_mix="mean", **kwargs):
        names = {field.name for field in fields(WindowPolicy)}
        single = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        given = window.to_dict() if isinstance(window, WindowPolicy) else dict(window or {})
        given = {**given, **single}
        segments = given.get("num_segments", self.default_window.num_segments)
        if segments is None and getattr(feature_extractor, "seconds", None) is not None:
            given.setdefault("audio_seconds", feature_extractor.seconds)
        if not isinstance(channel_mix, str) or channel_mix not in TO_MONO:
            raise ValueError(f"channel_mix must be one of {', '.join(TO_MONO)}, got {channel_mix!r}")
        policy = WindowPolicy.from_dict({**self.default_window.to_dict(), **given})
        if segments is not None and not self.takes_segments:
            raise ValueError(
                f"num_segments={segments}: {type(self).__name__} gives one window of a clip, not segments: leave it out"
            )
        if video_processor is None:
            video_processor = AVFusionVideoProcessor()
        if feature_extractor is None:
            feature_extractor = AVFusionFeatureExtractor.from_preset(self.audio_preset)
            rows = round(policy.audio_seconds * feature_extractor.sampling_rate / feature_extractor.hop_length)
            feature_extractor = AVFusionFeatureExtractor.from_preset(self.audio_preset, spectrogram_length=rows)
        super().__init__(video_processor, feature_extractor, **kwargs)
        self.window = policy.to_dict()
        self.channel_mix = channel_mix
        self._check_lengths()
        self._check_bytes(policy, windows=self.windows_per_view)

    def _check_bytes(self, policy: WindowPolicy, views: int = 1, windows: int = 1) -> None:
        """Raises ValueError if the windows of one clip, with their intermediates, take too much memory."""
        counted, views = f"num_views={views}{f' x {windows} windows' if windows > 1 else ''}", views * windows
        for name in ("size", "crop_size"):
            size = dict(getattr(self.video_processor, name) or {})
            check_sizes({f"{name}.{side}": value for side, value in size.items()})
            sides = [value for value in size.values() if value] or [1]
            count = 5 * 3 * views * policy.num_frames * sides[0] * sides[-1]  # uint8, and float32 when normalised
            check_bytes(count, f"{counted}, num_frames={policy.num_frames} and {name}={size} of the video processor")
        extractor = self.feature_extractor
        if not hasattr(extractor, "bytes_of"):  # one of another package
            return
        samples = math.ceil(policy.longest_audio * extractor.sampling_rate)
        length = "audio_seconds" if policy.num_segments is None else "segment_seconds"
        check_bytes(
            extractor.bytes_of(samples) + 4 * samples * (views - 1),
            f"{counted}, {length}={getattr(policy, length)} and n_fft={extractor.n_fft}, hop_length="
            f"{extractor.hop_length}, num_mel_bins={extractor.num_mel_bins} of the feature extractor",
        )

    def _check_lengths(self) -> None:
        """Raises if the window is shorter or longer than the spectrogram: every clip would be wrapped or cut."""
        extractor, wanted = self.feature_extractor, self.window_policy.audio_seconds
        if getattr(extractor, "padding", None) != "wrap" or extractor.seconds is None:
            return
        if abs(extractor.seconds - wanted) > extractor.hop_length / extractor.sampling_rate:
            fitting = round(wanted * extractor.sampling_rate / extractor.hop_length)
            raise ValueError(
                f"the window has audio_seconds={wanted}, but spectrogram_length={extractor.spectrogram_length} of the feature "
                f"extractor holds {extractor.seconds:g} s: make them equal, e.g. pass spectrogram_length={fitting} (in "
                "from_pretrained together with audio_seconds)"
            )

    @property
    def window_policy(self) -> WindowPolicy:
        return _policy(**self.window)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any):
        """Like the method of transformers. Fields of the window can be replaced by name, `from_pretrained(folder,
        num_frames=8)`, or by a dict, `window={"num_frames": 8}`. The other fields keep their saved values.
        """
        known = {*(field.name for field in fields(WindowPolicy)), "window", "channel_mix", *_PART_FIELDS}
        check_spelling(cls.__name__, kwargs, known)
        # The inherited method would pass num_frames to the video processor and drop the other fields.
        window = kwargs.pop("window", None)
        single = window.to_dict() if isinstance(window, WindowPolicy) else dict(window or {})
        single |= {field.name: kwargs.pop(field.name) for field in fields(WindowPolicy) if field.name in kwargs}
        if single:
            # Merge here, since __init__ compares the whole window with the spectrogram's length.
            saved, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
            kwargs["window"] = {**saved.get("window", {}), **single}
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs: Any):
        kwargs.pop("window", None)  # the video processor and the feature extractor have no such field
        check_parts(pretrained_model_name_or_path, processor_dict)
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    # ------------------------------------------------------------------------------------------------------- the call

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        generator: torch.Generator | None = None,
        *,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares one clip or a batch of clips.

        Args:
            videos: one or a list of: a media file (path, URL, bytes, binary file object, or a dict with `bytes` and `path`
                as in datasets, or a video that datasets decoded), from which a window of frames and audio is read; or selected
                frames, uint8 or float, [T, H, W, C] or [T, C, H, W] (numpy, torch, list of frames or PIL pictures). None in a
                list: that clip has no video.
            audio: one or a list of: a mono waveform, float [samples], with `sampling_rate=`; a row of datasets' `Audio` (a dict
                with `array` and `sampling_rate`); or a media file (also an audio that datasets decoded with torchcodec), from
                which the audio track of the window is read. None in a list: that clip has no audio. If `videos` holds files
                as well, `audio` replaces their own audio tracks.
            generator: random generator of the windows (mode="train").
            start, end: bounds of the clip in the file in s, one number for all files or one (or None) per file; default: the
                whole file. They apply to files only.
            kwargs: `sampling_rate` (Hz of waveforms passed as arrays), `do_resample`, `return_tensors` ("pt", "np", None
                for lists), those of `AVFusionProcessorKwargs`, and fields of the video processor. For files, `num_frames`
                and `fps` replace the window's num_frames and frame_rate (or span).

        Returns:
            BatchFeature with `pixel_values`, float32 [B, T, C, H, W], and `input_features`, float32 [B, time, mel]. If no
            clip has a modality, its key is absent. If some clips lack a modality, their rows hold zeros, and
            `modality_mask`, bool [B, 2] with columns (video, audio), is False there. With num_views=n, B is n times the
            number of files; the n views of a file are adjacent, in temporal order. A processor with several windows per view
            has an axis of windows after B, or more frames (`input_axes`). A processor whose window has `num_segments` spreads
            them over the whole clip, and cuts a waveform that is passed as an array in the same way.
            With return_windows=True also `windows`, float64 [B, 2, 2]: start and end of the (video, audio) of each row in s
            from the start of the clip, NaN for a missing modality. A window that runs past the end of the clip, where it
            wraps or holds, ends after it. Arrays start at 0 and count as long as the processor's window, or as the waveform if the
            processor cuts it into segments.

        Raises:
            TypeError: an unknown keyword argument.
            ValueError: no input, unequal numbers of videos and waveforms, a clip with neither modality, or an input that
                the video processor or the feature extractor refuses (wrong sampling rate, NaN, empty, wrong shape).
            MediaError: a file that cannot be read, that has none of the requested tracks, or that has one in only some of
                the windows of a view.
        """
        self._refuse_unknown(kwargs)
        if videos is None and audio is None:
            raise ValueError("got neither videos nor audio: pass at least one of them")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator={generator!r}: pass torch.Generator().manual_seed(...)")
        if isinstance(kwargs.get("sampling_rate"), np.integer):  # transformers takes Python's int alone
            kwargs["sampling_rate"] = int(kwargs["sampling_rate"])
        given = set(kwargs)
        merged = self._merge_kwargs(tokenizer_init_kwargs={}, **kwargs)
        video_kwargs, audio_kwargs = merged["videos_kwargs"], merged["audio_kwargs"]
        audio_kwargs.pop("device", None)  # a flat device= applies to frames only; spectrograms are computed on the CPU
        tensors = {kw.pop("return_tensors", None) for kw in (video_kwargs, audio_kwargs)} - {None}
        return_tensors = tensors.pop() if tensors else None

        if videos is not None:
            given_rgb = video_kwargs.get("do_convert_rgb")
            videos = as_videos(
                checked_frames(videos, self.video_processor.do_convert_rgb if given_rgb is None else given_rgb)
            )
        audio = None if audio is None else as_audio(audio)
        if videos is not None and audio is not None and len(videos) != len(audio):
            raise ValueError(
                f"{len(videos)} videos, but {len(audio)} audio entries: pass one per clip (None where a clip has none)"
            )
        video_files = videos is not None and any(is_media(v) for v in videos)
        audio_files = audio is not None and any(is_media(a) for a in audio)
        for name in ("mode", "num_views", "backend", "on_decode_error"):
            if name in given and merged[name] is not None and not (video_files or audio_files):
                raise ValueError(
                    f"{name}={merged[name]!r} applies to media files only, but arrays were passed: leave it out"
                )
        count = len(videos if videos is not None else audio)
        arrays = (videos is not None and not video_files) or (audio is not None and not audio_files)
        bounds = clip_bounds(count, start=start, end=end)
        if any(bounds) and arrays:
            raise ValueError(
                f"start={start!r}, end={end!r} are the bounds of a clip in a media file, but videos or audio holds arrays: leave "
                "them out, and cut the arrays before the call"
            )
        views = merged["num_views"] if merged["num_views"] is not None else 1
        if views < 1:
            raise ValueError(f"num_views must be a positive integer, got {views!r}")
        windows, policy = self.windows_per_view, self.window_policy
        if windows != 1 and arrays and policy.num_segments is None:
            raise ValueError(
                f"videos or audio holds arrays, but this processor loads {windows} windows a clip from a media file: pass files"
            )
        if views != 1 and arrays:
            raise ValueError(
                f"num_views={views} needs media files, but videos or audio holds arrays: pass files, or num_views=1"
            )
        if audio_kwargs.get("sampling_rate") is not None and (audio is None or audio_files):
            raise ValueError(
                f"sampling_rate={audio_kwargs['sampling_rate']} is that of waveforms passed as audio=, but there are none: "
                "leave it out, the rate of a file is read from the file"
            )

        frames: list[Any] = [None] * count * views * windows
        waveforms: list[Any] = [None] * count * views * windows
        spans = torch.full((count * views, len(MODALITIES), 2), math.nan, dtype=torch.float64)
        if video_files or audio_files:
            num_frames, fps = video_kwargs.pop("num_frames", None), video_kwargs.pop("fps", None)
            if num_frames is not None:
                policy = replace(policy, num_frames=num_frames)
            if fps is not None and policy.num_segments is not None:
                raise ValueError(
                    f"fps={fps} has no effect with num_segments={policy.num_segments}, which spreads the frames over the clip: "
                    "leave it out"
                )
            if fps is not None:
                policy = replace(policy, frame_rate=fps, span=None)
            self._check_bytes(policy, views, windows)
            reading = {name: merged[name] for name in ("backend", "on_decode_error") if merged.get(name) is not None}
            reading.update(policy=policy, mode=merged["mode"] or "eval", num_views=views)
        elif not video_kwargs.get("do_sample_frames"):
            for name in ("num_frames", "fps"):
                if name in given or name in kwargs.get("videos_kwargs", {}):
                    raise ValueError(
                        f"{name} applies to media files only, but videos holds arrays, which are used whole: leave it out, or "
                        "select frames before the call (frames[::2])"
                    )
        if video_files:
            check_options_of_files(video_kwargs, "videos holds media files")
            video_kwargs.pop("do_sample_frames", None)
            reduce = self.video_processor.reducer(**video_kwargs)
        elif videos is not None:
            videos = split_frames(policy, videos)
        lengths: list[float | None] = [None] * count  # of waveforms that are cut into segments, s
        if policy.num_segments is not None and audio is not None and not audio_files:
            options = {name: audio_kwargs.pop(name, None) for name in ("sampling_rate", "do_resample")}
            audio, lengths = split_waveforms(policy, audio, self.feature_extractor, **options)
        use_track = merged["use_audio_in_video"] is not False
        for index in range(count):
            rows = slice(index * views * windows, (index + 1) * views * windows)
            span, begin = spans[index * views : (index + 1) * views], bounds[index].get("start", 0.0)
            video = videos[index] if videos is not None else None
            clip_audio = audio[index] if audio is not None else None
            state = generator.get_state() if generator is not None else None
            clips: list[Clip] = []
            if video is not None and video_files:
                wanted = MODALITIES if use_track and audio is None else MODALITIES[:1]
                clips = self.load_clip(
                    video, tracks=wanted, generator=generator, reduce=reduce, **reading, **bounds[index]
                )
                self.check_windows(clips, views)
                frames[rows] = [clip.frames for clip in clips]
                waveforms[rows] = [self._mono(clip) for clip in clips]
                span[:, 0], span[:, 1] = (self._spans(clips, modality, begin) for modality in MODALITIES)
                self._warn_damage(clips, wanted)
            elif video is not None:
                frames[rows] = video
                seconds = lengths[index] or policy.seconds_of(len(video[0]))
                span[:, 0] = torch.tensor([0.0, seconds], dtype=torch.float64)
            if clip_audio is not None and audio_files:
                if video_files and state is not None:
                    generator.set_state(state)  # draws the same position in the audio file as in the video file
                options = {**reading, **bounds[index]}
                clips = self.load_clip(clip_audio, tracks=MODALITIES[1:], generator=generator, **options)
                self.check_windows(clips, views)
                waveforms[rows] = [self._mono(clip) for clip in clips]
                span[:, 1] = self._spans(clips, "audio", begin)
                self._warn_damage(clips, MODALITIES[1:])
            elif clip_audio is not None:
                waveforms[rows] = clip_audio if policy.num_segments is not None else [clip_audio]
                span[:, 1] = torch.tensor([0.0, lengths[index] or policy.audio_seconds], dtype=torch.float64)
            if any(view is None and waveform is None for view, waveform in zip(frames[rows], waveforms[rows])):
                raise empty_clip_error(index, clips, video=video is not None, audio=clip_audio is not None or use_track)
        clips = []  # frees frames that `_features` has processed
        # `_mono` has resampled the audio of files to this rate, `split_waveforms` waveforms.
        if audio is None or audio_files or policy.num_segments is not None:
            audio_kwargs["sampling_rate"] = self.feature_extractor.sampling_rate
        if video_files:
            video_kwargs.update(self.reduced_frames, input_data_format="channels_first")
        extra = {"windows": spans if return_tensors is not None else spans.tolist()} if merged["return_windows"] else {}
        return self._features(frames, waveforms, return_tensors, video_kwargs, audio_kwargs, extra)

    # ------------------------------------------------------------------------------------------ the two steps of a call

    def load_clip(
        self,
        source: MediaSource | dict[str, Any],
        *,
        mode: str = "eval",
        num_views: int = 1,
        generator: torch.Generator | None = None,
        tracks: Sequence[str] = MODALITIES,
        policy: WindowPolicy | None = None,
        allow_urls: bool | None = None,
        **reading: Any,
    ) -> list[Clip]:
        """Decodes the windows of one file: uint8 frames at their original size, waveforms at their original rate.

        Args:
            source: path, URL, bytes, binary file object, or a dict with `bytes` and `path`.
            mode: "eval" or "train".
            num_views: number of views.
            generator: random generator of the windows (mode="train").
            tracks: ("video", "audio") or one of them.
            policy: replaces the processor's window.
            allow_urls: whether an address (URL) is fetched. Default: one that is passed itself is, one in a dict is refused.
            reading: start=, end= (s, bounds of the clip in the file), backend=, on_decode_error=, name=, threads=, reduce= of
                `media.windows.load_window`. With `reduce=processor.video_processor.reducer()`, frames are resized and cropped
                as they are decoded; then pass `**processor.reduced_frames` to `process_clips`.

        Returns:
            One `Clip` per view, or `windows_per_view` of them, view by view. `clip.frames` and `clip.waveform` may be augmented
            before `process_clips`.
        """
        source = encoded(source)
        if isinstance(source, dict):
            if unknown := sorted(set(source) - {"bytes", "path"}, key=str):
                raise TypeError(
                    f"a media file passed as a dict has `bytes` and `path`, but this has {', '.join(map(str, unknown))} too: leave "
                    "them out; `start` and `end` are arguments of the call"
                )
            reading.setdefault("name", source.get("path"))
            source = source["bytes"] if source.get("bytes") is not None else source.get("path")
            allow_urls = bool(allow_urls)
        if allow_urls is not None and isinstance(source, (str, os.PathLike)):
            check_row_path(source, allow_urls)
        if source is None:
            raise MediaError(reading.get("name") or "a clip", "has neither bytes nor a path")
        return load_window(
            source,
            policy or self.window_policy,
            mode=mode,
            num_views=num_views,
            generator=generator,
            tracks=tuple(tracks),
            **reading,
        )

    def process_clips(
        self, clips: Sequence[Clip], return_tensors: str | TensorType | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Turns decoded (and possibly augmented) clips into what `__call__` returns, one row per view.

        `kwargs` are fields of the video processor that apply to files. Pass do_resize=False, do_center_crop=False or
        do_rescale=False if the augmentation has resized, cropped or scaled the frames to [0, 1]. Waveforms are mixed to mono, and
        resampled (`media.resampling`) if their rate is not that of the feature extractor.
        """
        self._refuse_unknown(kwargs)
        if not kwargs.keys() <= self.video_processor.valid_kwargs.__annotations__.keys():
            kwargs = self._merge_kwargs(tokenizer_init_kwargs={}, **kwargs)["videos_kwargs"]
        check_options_of_files(kwargs, "these are clips of files, with frames [T, C, H, W]")
        self.check_windows(clips)
        video_kwargs = {**kwargs, "input_data_format": "channels_first"}
        audio_kwargs = {"sampling_rate": self.feature_extractor.sampling_rate}
        frames = [clip.frames for clip in clips]
        return self._features(frames, [self._mono(clip) for clip in clips], return_tensors, video_kwargs, audio_kwargs)

    def check_windows(self, clips: Sequence[Clip], views: int | None = None) -> None:
        """Checks that clips are the windows of whole views.

        Args:
            clips: as `load_clip` returns them.
            views: their number of views; None for any number.

        Raises:
            ValueError: another number of clips than `windows_per_view` for each view.
            MediaError: a view that has a modality in only some of its windows.
        """
        windows = self.windows_per_view
        if len(clips) % windows or (views is not None and len(clips) != views * windows):
            wanted = "a multiple of " if views is None else f"{views} views x "
            raise ValueError(
                f"got {len(clips)} windows, but {type(self).__name__} takes {wanted}{windows} (windows_per_view): make load_clip "
                "return that many for each view, one view after the other"
            )
        for view in (clips[start : start + windows] for start in range(0, len(clips), windows)):
            for modality, field in zip(MODALITIES, ("frames", "waveform")):
                missing = sum(getattr(clip, field) is None for clip in view)
                if 0 < missing < windows:
                    raise MediaError(
                        view[0].info.name,
                        f"has no {modality} in {missing} of the {windows} windows of a view: leave the clip out",
                    )

    # ------------------------------------------------------------------------------------------------------------- parts

    def _features(
        self,
        frames: list[Any],
        waveforms: list[Any],
        return_tensors: str | TensorType | None,
        video_kwargs: dict[str, Any],
        audio_kwargs: dict[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> BatchFeature:
        present = [[item is not None for item in items] for items in (frames, waveforms)]
        if not any(present[0]) and not any(present[1]):
            raise ValueError("no clip has frames or a waveform: pass at least one clip that has one of them")
        part_tensors = None if return_tensors is None else "pt"
        data: dict[str, Any] = {}
        if any(present[0]):
            videos = [item for item in frames if item is not None]
            frames.clear()
            data["pixel_values"] = fill_missing_rows(self._pixels(videos, part_tensors, video_kwargs), present[0])
        if any(present[1]):
            given = [item for item in waveforms if item is not None]
            for name, rows in self._audio_inputs(given, part_tensors, audio_kwargs).items():
                data[name] = fill_missing_rows(rows, present[1])
        axes = {name: self.input_axes[name][0] in WINDOW_AXES for name in data}
        data = {name: join_windows(rows, self.windows_per_view, axes[name]) for name, rows in data.items()}
        if any(any(row) and not all(row) for row in present):
            mask = list(map(list, zip(*present)))[:: self.windows_per_view]  # equal in all windows of a view
            data["modality_mask"] = mask if return_tensors is None else torch.tensor(mask)
        return BatchFeature({**data, **(extra or {})}, tensor_type=return_tensors)

    def _audio_inputs(
        self, waveforms: list[Any], part_tensors: str | None, audio_kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The inputs that carry the audio, one row per waveform."""
        rows = self.feature_extractor(waveforms, return_tensors=part_tensors, **audio_kwargs)
        return {"input_features": rows["input_features"]}

    def _spans(self, clips: Sequence[Clip], modality: str, begin: float) -> torch.Tensor:
        """Start and end of each view in s, counted from `begin`: float64 [views, 2], NaN without this modality."""
        nothing = (math.nan, math.nan)
        found = [getattr(clip, f"{modality}_window") or nothing for clip in clips]
        times = torch.tensor(found, dtype=torch.float64).unflatten(0, (-1, self.windows_per_view))
        return torch.stack([times[..., 0].amin(1), times[..., 1].amax(1)], dim=1) - begin

    def _pixels(self, videos: list[Any], part_tensors: str | None, video_kwargs: dict[str, Any]) -> Any:
        """`pixel_values` of videos. Reduced ones are freed one by one, so that they and the result are not held together."""
        reduced = self.reduced_frames.items() <= video_kwargs.items()
        if not (reduced and part_tensors and len({video.shape for video in videos}) == 1):
            return self.video_processor(videos, return_tensors=part_tensors, **video_kwargs)["pixel_values"]
        normalize = self.video_processor.normalizer(**video_kwargs)
        if len(videos) == 1:
            return normalize(videos[0])[None]
        pixels = None
        for row in range(len(videos)):
            one, videos[row] = normalize(videos[row]), None
            pixels = one.new_empty(len(videos), *one.shape) if pixels is None else pixels
            pixels[row] = one
        return pixels

    def _mono(self, clip: Clip) -> torch.Tensor | None:
        """Mono waveform of a clip, float32 [samples] at the feature extractor's rate."""
        if clip.waveform is None:
            return None
        with warnings.catch_warnings(record=True) as cancelled:
            warnings.simplefilter("always", UserWarning)
            waveform = to_mono(clip.waveform, self.channel_mix)
        if cancelled:  # replaces the warning of `to_mono` by one with the file's name and the processor's argument
            logger.warning_once(
                f"{clip.info.name}: its channels cancel each other (opposite phase), so their mean is nearly silent: use a "
                "processor with channel_mix='left' or 'max_energy'"
            )
        return resample(waveform, clip.sampling_rate, self.feature_extractor.sampling_rate)

    def _warn_damage(self, clips: Sequence[Clip], wanted: Sequence[str]) -> None:
        """Logs a file's decoding warnings, and once per processor that a track is missing."""
        for text in dict.fromkeys(text for clip in clips for text in clip.warnings):
            logger.warning(f"{clips[0].info.name}: {text}")
        for track in wanted:
            missing = any((clip.frames if track == "video" else clip.waveform) is None for clip in clips)
            warned = _WARNED_TRACKS.setdefault(self, set())
            if missing and track not in warned:
                warned.add(track)
                logger.warning(
                    f"{clips[0].info.name} has no {track} track: this modality is absent, or masked by modality_mask in a batch "
                    "with clips that have it (this warning is shown once)"
                )

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        """Raises TypeError for an unknown argument of a call."""
        if not kwargs:
            return
        nested = {
            "videos_kwargs": set(self.video_processor.valid_kwargs.__annotations__) - _WITHOUT_EFFECT
            | {"return_tensors"},
            "audio_kwargs": {"sampling_rate", "do_resample", "return_tensors"},
            "text_kwargs": set(),
            "images_kwargs": set(),
        }
        own = set(AVFusionProcessorKwargs.__annotations__) - set(ProcessingKwargs.__annotations__)
        flat = own | nested["videos_kwargs"] | nested["audio_kwargs"]
        refuse_unknown(kwargs, flat, {**nested, "common_kwargs": flat})


@lru_cache(maxsize=16, typed=True)
def _policy(**fields: Any) -> WindowPolicy:
    return WindowPolicy.from_dict(fields)  # cached: the check of the fields is slow for every clip


__all__ = ["AVFusionProcessor", "AVFusionProcessorKwargs"]
