"""The video processor: the published resize, crop and scaling against explicit formulas, batches, options, errors."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_avfusion.processing import video_processing_avfusion
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pixels(processor: AVFusionVideoProcessor, videos, **kwargs) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **kwargs).pixel_values


def resized_by_hand(channel: np.ndarray, height: int, width: int) -> np.ndarray:
    """One uint8 channel [H, W], bilinear with half-pixel centres, pixel by pixel in double precision."""
    result = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = (row + 0.5) * channel.shape[0] / height - 0.5
            x = (column + 0.5) * channel.shape[1] / width - 0.5
            top, left = math.floor(y), math.floor(x)
            value = 0.0
            for i, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    inside = channel[min(max(i, 0), channel.shape[0] - 1), min(max(j, 0), channel.shape[1] - 1)]
                    value += weight_y * weight_x * float(inside)
            result[row, column] = value
    return result


@pytest.mark.parametrize(("name", "field"), [("num_frames", "num_frames"), ("fps", "frame_rate")])
def test_sampling_without_effect_is_refused(name, field):
    message = rf"{name}=3 changes nothing: .* pass {field}= to the processor \(MBTProcessor\({field}=...\)\) or {name}= to its call"
    with pytest.raises(ValueError, match=message):
        AVFusionVideoProcessor(**{name: 3})
    with pytest.raises(ValueError, match=message):
        AVFusionVideoProcessor()(noise(4, 3, 256, 256), **{name: 3})


def test_sampling_of_arrays_that_is_asked_for():
    video = noise(4, 3, 256, 256)
    expected = pixels(AVFusionVideoProcessor(), video[::2])
    assert pixels(AVFusionVideoProcessor(), video, do_sample_frames=True, num_frames=2).shape == expected.shape
    assert pixels(AVFusionVideoProcessor(do_sample_frames=True, num_frames=2), video).shape == expected.shape


@pytest.mark.parametrize(("height", "width"), [(30, 44), (44, 30), (9, 17), (100, 61)])
def test_resize_is_as_published(height, width):
    video = noise(2, 3, height, width)
    processor = AVFusionVideoProcessor(
        size={"shortest_edge": 20}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    result = pixels(processor, video)[0]
    short = (20, 20 * width // height) if height <= width else (20 * height // width, 20)
    assert tuple(result.shape[-2:]) == short
    assert torch.equal(processor.resize_frames(video, 20), result)
    for frame in range(2):
        for channel in range(3):
            exact = resized_by_hand(video[frame, channel].numpy(), *short)
            # Truncated. float32, as in the original, may give a value just below an integer.
            assert (result[frame, channel].numpy() <= exact + 1e-4).all()
            assert (result[frame, channel].numpy() > exact - 1 - 1e-4).all()


def test_flat_areas_keep_their_value():
    """Truncation after an interpolation error of 1e-6 would darken them by one level."""
    processor = AVFusionVideoProcessor()
    for level in range(0, 256, 7):
        video = torch.full((1, 3, 300, 411), level, dtype=torch.uint8)
        assert (processor.resize_frames(video, 256) == level).all(), level


def test_crop_is_the_centre_of_the_whole_resized_frame():
    video = noise(3, 3, 37, 61)
    processor = AVFusionVideoProcessor(size={"shortest_edge": 25}, crop_size={"height": 20, "width": 16})
    whole = processor.resize_frames(video, 25)
    assert tuple(whole.shape[-2:]) == (25, 41)
    result = pixels(processor, video)[0]
    assert torch.equal(result, pixels(processor, whole[..., 2:22, 12:28], do_resize=False, do_center_crop=False)[0])


def test_values_are_x_times_2_over_255_minus_1():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = pixels(AVFusionVideoProcessor(), every, do_resize=False, do_center_crop=False)[0]
    assert result.dtype == torch.float32
    assert (result.double() - (every.double() * 2 / 255 - 1)).abs().max() < 6e-8
    assert (result.min(), result.max()) == (-1.0, 1.0)


def test_default_shape_of_a_landscape_and_a_portrait_video():
    for size in ((270, 480), (480, 270)):
        assert pixels(AVFusionVideoProcessor(), noise(2, 3, *size)).shape == (1, 2, 3, 224, 224)


def test_frames_of_the_right_size_are_not_resized():
    video = noise(2, 3, 24, 30)
    processor = AVFusionVideoProcessor(
        size={"shortest_edge": 24}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    assert torch.equal(pixels(processor, video)[0], video)


@pytest.mark.parametrize(
    "fields", [{}, {"do_normalize": False}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}]
)
def test_reducer_and_normalizer_are_the_steps_of_a_call(fields):
    video, processor = noise(3, 3, 30, 44), AVFusionVideoProcessor(**SMALL)
    steps = processor.normalizer(**fields)(processor.reducer(**fields)(video))
    assert torch.equal(steps, pixels(processor, video, **fields)[0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        processor.normalizer()(torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(ValueError, match=r"image_std=0\.0 must be finite numbers other than 0"):
        processor.normalizer(image_std=0.0)


SMALL = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}


def test_all_kinds_of_input_give_the_same():
    video = noise(4, 3, 24, 32)
    processor = AVFusionVideoProcessor(**SMALL)
    expected = pixels(processor, video)
    last = video.permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(frame) for frame in last]
    for same in (video.numpy(), last, list(last), images, [video], [last], [images], video[None], list(video)):
        assert torch.equal(pixels(processor, same), expected)
    as_lists = processor(video).pixel_values
    assert isinstance(as_lists, list)
    assert torch.equal(as_lists[0], expected[0])
    assert processor(video, return_tensors="np").pixel_values.shape == (1, 4, 3, 16, 16)


def test_a_batch_of_different_sizes_equals_one_by_one():
    videos = [noise(4, 3, 24, 32), noise(4, 3, 50, 21, seed=1), noise(4, 3, 24, 32, seed=2)]
    processor = AVFusionVideoProcessor(**SMALL)
    assert torch.equal(pixels(processor, videos), torch.cat([pixels(processor, video) for video in videos]))


def test_floats_stay_floats():
    video = noise(2, 3, 24, 32)
    processor = AVFusionVideoProcessor(**SMALL)
    unit = pixels(processor, video.float() / 255, do_rescale=False)
    # No truncation of float frames: they are up to one level brighter.
    assert (unit - pixels(processor, video)).min() >= -1e-6
    assert (unit - pixels(processor, video)).max() <= 2 / 255 + 1e-6


def test_torchvision_resize_is_an_option():
    from torchvision.transforms.v2.functional import resize

    video = noise(2, 3, 40, 60)
    processor = AVFusionVideoProcessor(truncate=False, antialias=True, do_rescale=False, do_normalize=False, **SMALL)
    assert torch.equal(pixels(processor, video)[0], resize(video, [20, 30], antialias=True)[..., 2:18, 7:23])
    with pytest.raises(ValueError, match=r"truncate=True needs resample=bilinear.*truncate=False"):
        pixels(AVFusionVideoProcessor(antialias=True, **SMALL), video)
    with pytest.raises(ValueError, match=r"truncate=True needs"):
        pixels(AVFusionVideoProcessor(resample=3, **SMALL), video)


def test_the_input_is_not_modified():
    video = noise(2, 3, 24, 32)
    floats = video.float()
    before = video.clone()
    pixels(AVFusionVideoProcessor(**SMALL), [video])
    pixels(AVFusionVideoProcessor(**SMALL), [floats])
    pixels(AVFusionVideoProcessor(), video, do_resize=False, do_center_crop=False)
    pixels(AVFusionVideoProcessor(), floats, do_resize=False, do_center_crop=False)
    assert torch.equal(video, before)
    assert torch.equal(floats, before.float())


class TestErrors:
    @pytest.mark.parametrize(
        ("videos", "message"),
        [
            (np.zeros((0, 24, 32, 3), np.uint8), r"videos\[0\] is empty, shape \(0, 24, 32, 3\)"),
            (np.full((2, 24, 32, 3), np.nan, np.float32), r"videos\[0\] has 4608 NaN or infinite values of 4608"),
            (np.zeros((24, 32), np.uint8), r"videos holds an array of shape \(24, 32\)"),
            (np.zeros((24, 32, 3), np.uint8), r"shape \(24, 32, 3\); a video must be \[T, H, W, C\]"),
            (np.zeros((2, 24, 32, 5), np.uint8), r"shape \(2, 24, 32, 5\); .* 1 or 3 colour channels"),
            ([torch.zeros(2, 24, 32, 5)], r"shape \(2, 24, 32, 5\)"),
        ],
    )
    def test_videos(self, videos, message):
        with pytest.raises(ValueError, match=message):
            pixels(AVFusionVideoProcessor(**SMALL), videos)

    def test_smaller_than_the_crop(self):
        processor = AVFusionVideoProcessor(size={"shortest_edge": 20}, crop_size={"height": 30, "width": 16})
        with pytest.raises(ValueError, match=r"crop_size 30x16 is larger than videos\[0\] of 20x26"):
            pixels(processor, noise(2, 3, 24, 32))

    def test_unequal_numbers_of_frames(self):
        with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\), \(4, 3, 16, 16\).*cannot be stacked"):
            pixels(AVFusionVideoProcessor(**SMALL), [noise(2, 3, 24, 32), noise(4, 3, 24, 32)])

    def test_unsupported_size(self):
        with pytest.raises(ValueError, match=r"must have 'shortest_edge'"):
            pixels(AVFusionVideoProcessor(size={"shortest_edge": 20, "longest_edge": 30}), noise(2, 3, 24, 32))


@pytest.mark.parametrize("later", [{"size": 22}, {"size": (18, 21)}, {"crop_size": 12}])
def test_fields_set_later_are_used(later):
    processor, video = AVFusionVideoProcessor(**SMALL), noise(2, 3, 40, 60)
    for name, value in later.items():
        setattr(processor, name, value)
    assert torch.equal(pixels(processor, [video]), pixels(AVFusionVideoProcessor(**{**SMALL, **later}), [video]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"crop_size": None}, "`crop_size` must be specified"), ({"resample": None}, "`resample` must be specified")],
)
def test_missing_fields(fields, message):
    processor = AVFusionVideoProcessor(**SMALL)
    for name, value in fields.items():
        setattr(processor, name, value)
    with pytest.raises(ValueError, match=message):
        pixels(processor, [noise(2, 3, 40, 60)])


def test_saved_and_loaded(tmp_path):
    processor = AVFusionVideoProcessor(antialias=True, truncate=False, **SMALL)
    processor.save_pretrained(tmp_path)
    again = AVFusionVideoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert (again.antialias, again.truncate) == (True, False)
    assert torch.equal(pixels(again, noise(2, 3, 40, 60)), pixels(processor, noise(2, 3, 40, 60)))


STRETCHED = {
    "size": {"height": 24, "width": 24},
    "do_center_crop": False,
    "resample": 3,
    "antialias": False,
    "truncate": False,
    "resize_as_float": True,
}


@pytest.mark.parametrize(("height", "width"), [(50, 70), (16, 20), (24, 24), (9, 100)])
def test_bicubic_frames_are_those_of_float_images(height, width):
    """As torchvision's `resize(frames / 255, interpolation=BICUBIC, antialias=False)`: no rounding, no clamping (LAVISH)."""
    processor = AVFusionVideoProcessor(**STRETCHED, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    video = noise(3, 3, height, width)
    resized = torch.nn.functional.interpolate(video / 255, size=(24, 24), mode="bicubic", align_corners=False)
    assert resized.max() > 1 or height == 24  # overshoots stay
    scaled = pixels(processor, video, do_normalize=False)[0]
    assert torch.allclose(scaled, resized, rtol=0, atol=1e-5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    assert torch.allclose(pixels(processor, video)[0], (resized - mean) / std, rtol=0, atol=1e-5)
    assert torch.allclose(processor.resize_frames(video, (24, 24)) / 255, resized, rtol=0, atol=1e-5)
    reduced = processor.reducer()(video)
    assert reduced.dtype == torch.float32
    assert torch.equal(processor.normalizer()(reduced), pixels(processor, video)[0])
    assert torch.equal(pixels(processor, reduced, do_resize=False)[0], pixels(processor, video)[0])


def test_frames_resized_as_floats_give_no_warning_about_their_scale(monkeypatch):
    warned = []
    monkeypatch.setattr(video_processing_avfusion.logger, "warning_once", warned.append)
    processor = AVFusionVideoProcessor(**STRETCHED)
    for video in (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), noise(1, 3, 40, 40)):
        processor.normalizer()(processor.reducer()(video))
    assert not warned
    pixels(processor, noise(1, 3, 40, 40) / 255)
    assert "are divided by 255" in warned[0]


def test_resizing_as_floats_is_saved_and_checked(tmp_path):
    processor = AVFusionVideoProcessor(**STRETCHED)
    processor.save_pretrained(tmp_path)
    assert AVFusionVideoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    with pytest.raises(ValueError, match="truncate=True and resize_as_float=True exclude each other"):
        AVFusionVideoProcessor(resize_as_float=True)
    with pytest.raises(ValueError, match="resize_as_float must be True or False, got 1"):
        AVFusionVideoProcessor(resize_as_float=1, truncate=False)
    with pytest.raises(ValueError, match="resize_as_float=True: pass truncate=False"):
        pixels(AVFusionVideoProcessor(), noise(1, 3, 300, 300), resize_as_float=True)
