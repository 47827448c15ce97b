"""The video processor of all architectures: frames to normalised pixels, by default as in MBT, ViViT and AV-MAE.

The originals (scenic, through TensorFlow) resize frames bilinearly with half-pixel centres and no antialiasing, and truncate
the result to uint8. torchvision antialiases and rounds. The defaults `antialias=False, truncate=True` follow the original's
arithmetic and compute only the pixels inside the centre crop, so they cost no more than torchvision. Truncating torchvision's
float result would be wrong: it computes a * (1 - w) + b * w, which changes a flat 77 to 76.99999.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType, logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput

from .array_inputs import checked_frames
from .bilinear_resizing import resize_window
from .spelling import check_spelling

logger = logging.get_logger(__name__)

# Fields of the steps that `reducer` and `normalizer` apply.
_REDUCTION = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "antialias",
    "truncate",
    "resize_as_float",
)
_NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class AVFusionVideoProcessorKwargs(VideosKwargs, total=False):
    """`VideosKwargs` and: antialias (bool): smooth before shrinking; truncate (bool): truncate resized uint8 values, as in the
    originals, instead of rounding them (bilinear without antialiasing only); resize_as_float (bool): resize uint8 values as
    float32 and keep fractions and the overshoot of bicubic, as originals do that divide by 255 before they resize (LAVISH)."""

    antialias: bool | None
    truncate: bool | None
    resize_as_float: bool | None


class AVFusionVideoProcessor(BaseVideoProcessor):
    """Resizes, crops and normalises videos. The defaults are those of MBT: short side 256, centre crop 224, x * 2/255 - 1.

    Takes the inputs of transformers' video processors: one video or a list of videos, each uint8 or float [T, H, W, C] or
    [T, C, H, W] (numpy, torch) or a list of frames (PIL, numpy). Returns `pixel_values`, float32 [B, T, C, H, W]. All given
    frames are used: the processor selects the frames of a file.

    Computes (x - 127.5) / 127.5 instead of the originals' x * 2/255 - 1; they differ by at most 6e-8 for uint8 values.

    PIL pictures of other modes are converted to RGB (`do_convert_rgb`).

    Frames are stretched to another aspect if `size` has `height` and `width` and `do_center_crop` is False. With `resample=3`
    (bicubic), `antialias=False`, `truncate=False` and `resize_as_float=True` the pixels are those of torchvision's
    `resize(frames / 255, interpolation=BICUBIC, antialias=False)`, up to rounding.

    Raises ValueError for videos that are empty, hold NaN or infinite values, integers other than uint8 or transparent pixels, or
    are smaller than the crop; for `num_frames` and `fps` without `do_sample_frames`; for `image_mean`, `image_std` and
    `rescale_factor` that are not finite, or a deviation of 0; and for `truncate` together with `resize_as_float`, antialiasing or
    another interpolation than bilinear.
    """

    resample = PILImageResampling.BILINEAR
    antialias = False
    truncate = True
    resize_as_float = False
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    model_input_names = ["pixel_values"]
    valid_kwargs = AVFusionVideoProcessorKwargs

    def __init__(self, **kwargs: Unpack[AVFusionVideoProcessorKwargs]):
        check_spelling(type(self).__name__, kwargs, self.valid_kwargs.__annotations__)
        super().__init__(**kwargs)
        _check_sampling(kwargs, self.do_sample_frames)
        _check_statistics(self.image_mean, self.image_std, self.rescale_factor)
        _check_lengths(size=self.size, crop_size=self.crop_size)
        if not isinstance(self.resize_as_float, bool):
            raise ValueError(f"resize_as_float must be True or False, got {self.resize_as_float!r}")
        if self.resize_as_float and self.truncate:
            raise ValueError(
                "truncate=True and resize_as_float=True exclude each other: pass truncate=False to keep fractions"
            )

    def preprocess(self, videos: VideoInput, **kwargs: Unpack[AVFusionVideoProcessorKwargs]) -> BatchFeature:
        """Converts videos to `pixel_values`, float32 [B, T, C, H, W] (a list without return_tensors). kwargs override fields."""
        sampled = kwargs.get("do_sample_frames")
        _check_sampling(kwargs, self.do_sample_frames if sampled is None else sampled)
        given = kwargs.get("do_convert_rgb")
        videos = checked_frames(videos, self.do_convert_rgb if given is None else given)
        arrays = [videos] if torch.is_tensor(videos) or isinstance(videos, np.ndarray) else videos
        for array in arrays if isinstance(arrays, (list, tuple)) else ():
            if (torch.is_tensor(array) or isinstance(array, np.ndarray)) and not _is_video(
                array, videos is array, kwargs
            ):
                raise ValueError(
                    f"videos holds an array of shape {tuple(array.shape)}; a video must be [T, H, W, C] or [T, C, H, W] with 1 or "
                    "3 colour channels, and a batch has one more axis"
                )
        return super().preprocess(videos, **kwargs)

    def reducer(self, **kwargs: Unpack[AVFusionVideoProcessorKwargs]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The resize and crop of `preprocess` alone, for frames that are reduced as they are decoded.

        Returns a function of uint8 frames [n, 3, H, W] in channels-first order. `preprocess` with do_resize=False and
        do_center_crop=False then gives the same `pixel_values`, to the bit. `kwargs` override fields, as in `preprocess`.
        """
        steps = self._fields(_REDUCTION, kwargs)
        return lambda frames: self._reduce(frames, "the clip", **steps)

    def normalizer(self, **kwargs: Unpack[AVFusionVideoProcessorKwargs]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The steps of `preprocess` after resizing and cropping, for frames that a `reducer` or an augmentation has reduced.

        Returns a function of frames [T, 3, H, W] in channels-first order, which gives float32 of the same shape, as `preprocess`
        with do_resize=False and do_center_crop=False does, to the bit. `kwargs` override fields, as in `preprocess`.
        """
        steps, device = self._fields(_NORMALIZATION, kwargs), kwargs.get("device")
        resized = self.resize_as_float if kwargs.get("resize_as_float") is None else kwargs["resize_as_float"]

        def normalize(frames: torch.Tensor) -> torch.Tensor:
            _check_finite(frames, "the clip")
            self._check_scale(frames, steps["do_rescale"], steps["do_normalize"], resized)
            return self.rescale_and_normalize(frames if device is None else frames.to(device), **steps)

        return normalize

    def _fields(self, names: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        """The given fields, or the processor's own, as `preprocess` passes them on."""
        fields = {name: getattr(self, name) if given.get(name) is None else given[name] for name in names}
        fields = self._standardize_kwargs(**fields, default_to_square=self.default_to_square)
        self._validate_preprocess_kwargs(**fields)
        _check_statistics(fields["image_mean"], fields["image_std"], fields.get("rescale_factor"))
        return {name: fields[name] for name in names}

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> Any:
        """As in transformers, but warns once. Only code without the processor calls this, such as transformers' own pipeline."""
        logger.warning_once(
            "the video processor alone reads the frames of a file and ignores its audio: for both use the model's processor, or "
            'pipeline("audio-visual-classification")'
        )
        return super().fetch_videos(video_url_or_urls, sample_indices_fn=sample_indices_fn)

    def _prepare_input_videos(self, videos: list, **kwargs: Any) -> list[torch.Tensor]:
        for index, video in enumerate(videos):
            _check_pixels(video, f"videos[{index}]")
        videos = super()._prepare_input_videos(videos=videos, **kwargs)
        for index, video in enumerate(videos):
            _check_finite(video, f"videos[{index}]")
        return videos

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        antialias: bool,
        truncate: bool,
        resize_as_float: bool,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        # The base class stacks all videos of one shape before every step. Here each video (a batch of frames) is resized and
        # cropped separately, and only the small uint8 results are stacked: one copy per video.
        _check_statistics(image_mean, image_std, rescale_factor)
        cropped = []
        for index, video in enumerate(videos):
            name = f"videos[{index}]"
            self._check_scale(video, do_rescale, do_normalize, resize_as_float and not do_resize)
            steps = (do_resize, size, resample, do_center_crop, crop_size, antialias, truncate, resize_as_float)
            cropped.append(self._reduce(video, name, *steps))

        def normalize(pixels: torch.Tensor) -> torch.Tensor:
            return self.rescale_and_normalize(pixels, do_rescale, rescale_factor, do_normalize, image_mean, image_std)

        same_shape = len({(video.shape, video.dtype) for video in cropped}) == 1
        if same_shape:
            pixels: Any = normalize(cropped[0].unsqueeze(0))
            if len(cropped) > 1:  # fills the result, so that nothing else grows with the number of videos
                first, pixels = pixels, pixels.new_empty(len(cropped), *pixels.shape[1:])
                pixels[:1] = first
                for index, video in enumerate(cropped[1:], 1):
                    pixels[index] = normalize(video)
            pixels = pixels if return_tensors is not None else list(pixels)
        else:
            pixels = [normalize(video) for video in cropped]
            shapes = sorted({tuple(video.shape) for video in pixels})
            if return_tensors is not None and len(shapes) > 1:
                raise ValueError(
                    f"videos of shapes {', '.join(map(str, shapes))} (T, C, H, W after cropping) cannot be stacked: give all "
                    "videos the same number of frames and pass a crop_size, or pass return_tensors=None"
                )
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _reduce(
        self,
        video: torch.Tensor,
        name: str,
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        antialias: bool,
        truncate: bool,
        resize_as_float: bool,
    ) -> torch.Tensor:
        """[..., H, W] after resizing and cropping. With `truncate`, only the pixels inside the crop are computed."""
        target = self._target_size(video, size) if do_resize else tuple(video.shape[-2:])
        window = self._crop_window(target, crop_size, name) if do_center_crop else (0, 0, *target)
        return self._resize_window(video, target, window, resample, antialias, truncate, resize_as_float)

    def _check_scale(self, frames: torch.Tensor, do_rescale: bool, do_normalize: bool, resized: bool = False) -> None:
        """Warns, once for each kind, of frames whose values are probably not on the scale that the steps expect.

        `resized`: the frames may be uint8 frames that were resized as floats, so that black ones and overshoots are right.
        """
        if resized:
            return
        if not frames.is_floating_point():
            if do_normalize and not do_rescale:
                logger.warning_once(
                    "frames hold uint8 values and are normalised without being divided by 255: leave do_rescale=False out"
                )
            return
        if not do_rescale:
            return
        low, high = (value.item() for value in torch.aminmax(frames))
        if high <= 1:
            logger.warning_once("frames hold floats in [0, 1] but are divided by 255: pass uint8 or do_rescale=False")
        elif low < 0 or high > 255:
            logger.warning_once("frames hold floats below 0 or above 255, but are divided by 255: scale them first")

    def resize_frames(self, frames: torch.Tensor, size: int | dict[str, int] | tuple[int, int]) -> torch.Tensor:
        """Resizes [..., H, W] with this processor's rules, without other steps; for augmentation between decoding and processing.

        Args:
            frames: uint8 or float.
            size: the short side in pixels, {"shortest_edge": ...}, or (height, width).
        """
        if not isinstance(size, dict):
            size = {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}
        target = self._target_size(frames, SizeDict(**size))
        steps = self.resample, self.antialias, self.truncate, self.resize_as_float
        return self._resize_window(frames, target, (0, 0, *target), *steps)

    def _target_size(self, video: torch.Tensor, size: SizeDict) -> tuple[int, int]:
        height, width = video.shape[-2:]
        if size.height and size.width:
            return size.height, size.width
        if size.shortest_edge and not size.longest_edge:
            edge = size.shortest_edge
            return (edge, edge * width // height) if height <= width else (edge * height // width, edge)
        raise ValueError(f"size={dict(size)} must have 'shortest_edge', or 'height' and 'width'")

    def _crop_window(self, size: tuple[int, int], crop_size: SizeDict, name: str) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the centre crop of `size` (height, width)."""
        height, width = crop_size.height, crop_size.width
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"crop_size {height}x{width} is larger than {name} of {size[0]}x{size[1]} (height x width after resizing): "
                "pass a larger size or a smaller crop_size"
            )
        return (size[0] - height) // 2, (size[1] - width) // 2, height, width

    def _resize_window(
        self,
        video: torch.Tensor,
        target: tuple[int, int],
        window: tuple[int, int, int, int],
        resample: Any,
        antialias: bool,
        truncate: bool,
        resize_as_float: bool,
    ) -> torch.Tensor:
        """The part `window` (top, left, height, width) of `video` [..., H, W] after resizing to `target` (height, width)."""
        top, left, height, width = window
        video = video.float() if resize_as_float else video
        if tuple(video.shape[-2:]) == target:
            return video[..., top : top + height, left : left + width]
        bilinear = resample is None or resample in (PILImageResampling.BILINEAR, "bilinear")
        if truncate and (not bilinear or antialias or resize_as_float):
            raise ValueError(
                f"truncate=True needs resample=bilinear and antialias=False, got resample={resample!r} and "
                f"antialias={antialias}{', resize_as_float=True' if resize_as_float else ''}: pass truncate=False"
            )
        if truncate:
            return resize_window(video, target, window)
        resized = self.resize(
            video, SizeDict(height=target[0], width=target[1]), resample=resample, antialias=antialias
        )
        return resized[..., top : top + height, left : left + width]


def _check_statistics(mean: Any, std: Any, factor: Any) -> None:
    """Raises ValueError for numbers that would make every pixel NaN or infinite. None leaves a step out."""
    for name, value in (("image_mean", mean), ("image_std", std), ("rescale_factor", factor)):
        numbers = [] if value is None else [value] if isinstance(value, (int, float)) else list(value)
        if not all(math.isfinite(number) for number in numbers) or (name != "image_mean" and 0 in numbers):
            raise ValueError(f"{name}={value} must be finite numbers{'' if name == 'image_mean' else ' other than 0'}")
        if len(numbers) not in (0, 1, 3):
            raise ValueError(f"{name}={value} must be one number, or one for each of the 3 colours")


def _check_sampling(given: Mapping[str, Any], sampled: bool | None) -> None:
    """Raises ValueError for a number or rate of frames where all given frames are used."""
    for name, field in (("num_frames", "num_frames"), ("fps", "frame_rate")):
        if given.get(name) is not None and not sampled:
            raise ValueError(
                f"{name}={given[name]} changes nothing: the video processor uses all frames that it gets. The processor selects the"
                f" frames of a file: pass {field}= to the processor (MBTProcessor({field}=...)) or {name}= to its call, or select"
                " frames before the call (frames[::2])"
            )


def _check_lengths(**sizes: Any) -> None:
    """Raises ValueError for a side of `size` or `crop_size` below 1 pixel."""
    for name, size in sizes.items():
        for side, pixels in dict(size or {}).items():
            if pixels is not None and pixels < 1:
                raise ValueError(f"{name}={dict(size)}: {side} must be at least 1 pixel")


def _check_pixels(video: Any, name: str) -> None:
    if 0 in video.shape:
        raise ValueError(f"{name} is empty, shape {tuple(video.shape)}: pass at least one frame with pixels")


def _check_finite(video: torch.Tensor, name: str) -> None:
    if video.is_floating_point() and not video.isfinite().all():
        wrong = int((~video.isfinite()).sum())
        raise ValueError(f"{name} has {wrong} NaN or infinite values of {video.numel()}: clean or drop it")


def _is_video(array: np.ndarray | torch.Tensor, alone: bool, kwargs: dict[str, Any]) -> bool:
    """Whether an array is a video, or a batch of videos (`alone`), or one frame (in a list)."""
    axes = (4, 5) if alone else (3, 4)
    if array.ndim not in axes:
        return False
    frame = array.shape[-3:]
    return kwargs.get("input_data_format") is not None or not {1, 3}.isdisjoint((frame[0], frame[-1]))


def cropped_frames(height: int, width: int) -> dict[str, Any]:
    """Fields of a video processor for crops of this size, pixels. The short side before the crop has the published ratio."""
    short = round(min(height, width) * 256 / 224)
    return {"size": {"shortest_edge": short}, "crop_size": {"height": height, "width": width}}


__all__ = ["AVFusionVideoProcessor", "AVFusionVideoProcessorKwargs"]
