"""Sorts the inputs of a call into files and arrays, and converts or refuses pictures, arrays and rows of `datasets`."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import make_batched_videos

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL clips their values to 255 in a conversion to RGB


def encoded(value: Any) -> Any:
    """The file {"bytes", "path"} of a clip that `datasets` decoded with torchcodec, which keeps it; any other value as it is."""
    return getattr(value, "_hf_encoded", value)


def checked_frames(videos: Any, convert: bool = True, name: str = "videos") -> Any:
    """The same nested lists, with every PIL picture in mode RGB, and the frames of a list checked one by one.

    Args:
        videos: pictures or arrays, in lists of any depth.
        convert: whether pictures of other modes are converted (`do_convert_rgb`), as `PIL.Image.convert("RGB")` does.
        name: the name of `videos` in messages.

    Raises:
        ValueError: a picture of a mode that has no right conversion, with transparent pixels, or not in RGB without `convert`;
            integers other than uint8 and booleans, whose scale is unknown; frames of a list of several dtypes, which numpy would
            convert to one; a masked array; a list of numbers.
    """
    if isinstance(videos, (list, tuple)):
        if videos and isinstance(videos[0], (int, float, np.number)):
            raise ValueError(
                f"{name} is a list of numbers: pass frames as numpy or torch arrays, such as np.array(frames, dtype=np.uint8)"
            )
        items = [checked_frames(each, convert, f"{name}[{index}]") for index, each in enumerate(videos)]
        arrays = [each for each in items if isinstance(each, (np.ndarray, torch.Tensor))]
        dtypes = {str(each.dtype).removeprefix("torch.") for each in arrays if each.ndim < 4}
        dtypes |= {"uint8" for each in items if isinstance(each, Image.Image)}
        if len(dtypes) > 1:
            raise ValueError(
                f"{name} holds frames of the dtypes {', '.join(sorted(dtypes))}: pass all of a video in one dtype"
            )
        if any(each.ndim > 3 for each in arrays):  # some videos as arrays, others as lists of frames
            return [
                np.stack([np.asarray(frame) for frame in each]) if isinstance(each, list) else each for each in items
            ]
        return items
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return _frames_of(videos, "videos[0]" if name == "videos" else name)
    if not isinstance(videos, Image.Image) or videos.mode == "RGB":
        return videos
    if not convert:
        raise ValueError(
            f"{name} is a picture of mode {videos.mode}, and do_convert_rgb is False: convert it to RGB first"
        )
    if videos.mode in _DEEP_MODES:
        raise ValueError(
            f"{name} is a picture of mode {videos.mode}, with values beyond 255: scale it to 8 bits first, such as "
            "Image.fromarray((np.asarray(picture) / 257).astype(np.uint8)) for 16 bits"
        )
    try:
        transparent = videos.has_transparency_data and videos.convert("RGBA").getextrema()[3][0] < 255
        picture = videos.convert("RGB")
    except ValueError as error:  # La (premultiplied), and LAB before Pillow 13
        raise ValueError(f"{name} is a picture of mode {videos.mode}: {error}; convert it to RGB first") from error
    if transparent:
        raise ValueError(
            f"{name} is a picture of mode {videos.mode} with transparent pixels: put it on a background first, such as "
            "Image.alpha_composite(background, picture).convert('RGB')"
        )
    return picture


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order and without negative strides; torch reads no others."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.copy() if min(array.strides, default=0) < 0 else array


def _frames_of(video: np.ndarray | torch.Tensor, name: str) -> np.ndarray | torch.Tensor:
    """Frames, of any shape, as uint8 or float values that torch reads. `name` is theirs in messages.

    Raises:
        ValueError: integers other than uint8, or booleans, whose scale is unknown; a masked array.
    """
    _check_unmasked(video, name)
    if isinstance(video, np.ndarray):
        right = video.dtype.newbyteorder("=") in (np.uint8, np.float16, np.float32, np.float64)
    else:
        right = video.dtype == torch.uint8 or video.is_floating_point()
    if not right:
        raise ValueError(
            f"{name} holds {video.dtype} values, but frames are uint8 (0 to 255) or floats: convert values of 0 to 255 with "
            "frames.astype('uint8'), scale those of 16 bits with (frames / 257).astype('uint8'), and masks with "
            "mask.astype('uint8') * 255"
        )
    return native(video) if isinstance(video, np.ndarray) else video


def _check_unmasked(array: Any, name: str) -> None:
    """Raises ValueError for a masked array: torch would read the values under the mask."""
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, but masks are not supported: fill it first, such as array.filled(0)"
        )


def waveforms_of(audio: Any, sampling_rate: int | None = None) -> list[tuple[Any, int | None, str]]:
    """One or several waveforms as [(samples, rate in Hz or None, name for messages)].

    Args:
        audio: samples (numpy, torch, list of floats), a row of datasets' `Audio`, or a list of these.
        sampling_rate: the rate of waveforms that are not rows, Hz.

    Raises:
        TypeError: a row with other keys than `array`, `sampling_rate`, `path` and `bytes`.
        ValueError: no waveforms, a masked array, or a row of another rate than `sampling_rate`.
    """
    if isinstance(audio, dict):
        return [_row(audio, sampling_rate, "audio")]
    if isinstance(audio, (list, tuple)):
        if len(audio) == 0:
            raise ValueError("audio is an empty list: pass at least one waveform")
        if not isinstance(audio[0], (int, float, np.floating, np.integer)):
            return [_row(item, sampling_rate, f"audio[{index}]") for index, item in enumerate(audio)]
    elif not isinstance(audio, np.ndarray) and not torch.is_tensor(audio):
        raise ValueError(
            f"audio is a {type(audio).__name__}: pass numpy or torch waveforms, lists of floats, rows of datasets' Audio, or a "
            "list of these"
        )
    _check_unmasked(audio, "audio")
    return [(audio, sampling_rate, "audio")]


def _row(item: Any, given: int | None, name: str) -> tuple[Any, int | None, str]:
    if not isinstance(item, dict):
        _check_unmasked(item, name)
        return item, given, name
    unknown = sorted(set(item) - {"array", "sampling_rate", "path", "bytes"}, key=str)
    if "array" not in item or unknown:
        raise TypeError(
            f"{name} is a dict with the keys {', '.join(map(str, item))}: pass `array` and `sampling_rate`, as in a row of datasets"
        )
    own = item.get("sampling_rate")
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"{name} has sampling_rate {own} in its row, but sampling_rate={given} was passed: leave that out"
        )
    _check_unmasked(item["array"], name)
    return item["array"], given if own is None else own, name


def is_media(value: Any) -> bool:
    """Whether a value is a media file: a path, an address, bytes, a file object, or a dict with `bytes` or `path`."""
    value = encoded(value)
    if isinstance(value, dict):
        return "array" not in value and ("bytes" in value or "path" in value)  # datasets' `Audio` keeps the path
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


def clip_bounds(count: int, **given: Any) -> list[dict[str, float]]:
    """`start` and `end` of each of `count` clips, without those that are None."""
    bounds: list[dict[str, float]] = [{} for _ in range(count)]
    for name, value in given.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value] * count
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries for {count} clips: pass one number, or one per clip")
        for clip, seconds in zip(bounds, values):
            if seconds is None:
                continue
            number = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
            if not number or not math.isfinite(seconds) or seconds < 0:
                raise ValueError(f"{name} must be a number of seconds from 0 on or None, got {seconds!r}")
            clip[name] = float(seconds)
    return bounds


def check_options_of_files(options: Mapping[str, Any], given: str) -> None:
    """Raises ValueError for options of arrays: of files, the layout is known, and the window selects the frames."""
    for name in ("input_data_format", "do_sample_frames"):
        if options.get(name):
            raise ValueError(f"{name}={options[name]!r} applies to arrays only, but {given}: leave it out")


def _all_media(values: Sequence[Any], name: str) -> bool:
    """Whether the entries of a list are media files. Raises ValueError for a mixture of files and arrays."""
    media = [is_media(value) for value in values if value is not None]
    if not media:
        raise ValueError(f"{name} is empty or holds only None: pass at least one clip")
    if any(media) and not all(media):
        raise ValueError(f"{name} mixes files and arrays: pass all as files or all as arrays")
    return media[0]


_VIDEOS = "pass a media file, frames (numpy, torch, a list of frames), or a list of these"


def as_videos(videos: Any) -> list[Any]:
    """A list with one entry per clip: a media file, an array [T, ...], or None."""
    if is_media(videos):
        return [videos]
    if isinstance(videos, (list, tuple)):
        if _all_media(videos, "videos"):
            return list(videos)
        if any(video is None for video in videos):
            return [None if video is None else _one_video(video, i) for i, video in enumerate(videos)]
    elif not torch.is_tensor(videos) and not isinstance(videos, np.ndarray):
        raise ValueError(f"videos is a {type(videos).__name__}: {_VIDEOS}")
    elif videos.ndim not in (4, 5):
        raise ValueError(
            f"videos has shape {tuple(videos.shape)}: pass one video as [T, H, W, C] or [T, C, H, W], or a batch with a "
            "leading batch axis"
        )
    return make_batched_videos(videos)


def _one_video(video: Any, index: int) -> Any:
    batch = make_batched_videos(video)
    if len(batch) != 1:
        raise ValueError(f"videos[{index}] holds {len(batch)} videos: pass one video or None per entry")
    return batch[0]


def as_audio(audio: Any) -> list[Any]:
    """A list with one entry per clip: a media file, a waveform, or None."""
    if is_media(audio):
        return [audio]
    if not isinstance(audio, (list, tuple)):
        return [audio]
    if len(audio) and isinstance(audio[0], (int, float, np.floating, np.integer)):
        return [audio]
    _all_media(audio, "audio")
    return list(audio)


__all__ = [
    "as_audio",
    "as_videos",
    "check_options_of_files",
    "checked_frames",
    "clip_bounds",
    "encoded",
    "is_media",
    "native",
    "waveforms_of",
]
