"""Pictures, arrays and rows of `datasets` that are passed instead of files: converted to what torch reads, or refused."""

from typing import Any

import numpy as np
import torch
from PIL import Image

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL clips their values to 255 in a conversion to RGB


def encoded(value: Any) -> Any:
    """The file {"bytes", "path"} of a clip that `datasets` decoded with torchcodec, which keeps it; any other value as it is."""
    return getattr(value, "_hf_encoded", value)


def rgb_pictures(videos: Any, convert: bool = True, name: str = "videos") -> Any:
    """The same nested lists, with every PIL picture in mode RGB, and the frames of a list checked one by one.

    Args:
        videos: pictures or arrays, in lists of any depth.
        convert: whether pictures of other modes are converted (`do_convert_rgb`), as `PIL.Image.convert("RGB")` does.
        name: the name of `videos` in messages.

    Raises:
        ValueError: a picture of a mode that has no right conversion, with transparent pixels, or not in RGB without `convert`;
            frames of a list that `frames_of` refuses, or of several dtypes, which numpy would convert to one.
    """
    if isinstance(videos, (list, tuple)):
        items = [rgb_pictures(each, convert, f"{name}[{index}]") for index, each in enumerate(videos)]
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
        return frames_of(videos, "videos[0]" if name == "videos" else name)
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


def frames_of(video: Any, name: str) -> Any:
    """Frames as uint8 or float values that torch reads.

    Args:
        video: numpy or torch, of any shape. Other values stay as they are.
        name: its name in messages.

    Raises:
        ValueError: integers other than uint8, or booleans, whose scale is unknown.
    """
    if isinstance(video, np.ndarray):
        right = video.dtype.newbyteorder("=") in (np.uint8, np.float16, np.float32, np.float64)
    elif torch.is_tensor(video):
        right = video.dtype == torch.uint8 or video.is_floating_point()
    else:
        return video
    if not right:
        raise ValueError(
            f"{name} holds {video.dtype} values, but frames are uint8 (0 to 255) or floats: convert values of 0 to 255 with "
            "frames.astype('uint8'), scale those of 16 bits with (frames / 257).astype('uint8'), and masks with "
            "mask.astype('uint8') * 255"
        )
    return native(video) if isinstance(video, np.ndarray) else video


def waveforms_of(audio: Any, sampling_rate: int | None = None) -> list[tuple[Any, int | None, str]]:
    """One or several waveforms as [(samples, rate in Hz or None, name for messages)].

    Args:
        audio: samples (numpy, torch, list of floats), a row of datasets' `Audio`, or a list of these.
        sampling_rate: the rate of waveforms that are no rows, Hz.

    Raises:
        TypeError: a row with other keys than `array`, `sampling_rate`, `path` and `bytes`.
        ValueError: no waveforms, or a row of another rate than `sampling_rate`.
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
    return [(audio, sampling_rate, "audio")]


def _row(item: Any, given: int | None, name: str) -> tuple[Any, int | None, str]:
    if not isinstance(item, dict):
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
    return item["array"], given if own is None else own, name


__all__ = ["encoded", "frames_of", "native", "rgb_pictures", "waveforms_of"]
