"""ClipTransform: labels of a clip's segments, errors for windows that do not match them, and batches prepared at once."""

from dataclasses import replace

import pytest
import torch
from rendering import render_clip

from hf_avfusion.data.augmentation import FrameAugmentation, SpecAugment
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media.modalities import CLIP_AXES
from hf_avfusion.models.avmae.processing_avmae import AVMAEProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks.event_localization import SegmentLabels

SIDE = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def row():
    video = {"bytes": render_clip(num_frames=50, seconds=2.0), "path": "clip.mp4"}
    return {"clip_id": "clip", "video": video, "start": 0.0, "end": 2.0, "label": 1, "events": [3, 0]}


def make_processor(span=2.0, seconds=2.0):
    extractor = AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=16, spectrogram_length=round(100 * seconds))
    return AVMAEProcessor(
        AVFusionVideoProcessor(size=SIDE, crop_size=SIDE), extractor, num_frames=4, span=span, audio_seconds=seconds
    )


def test_segment_labels(row):
    sample = ClipTransform(make_processor(), SegmentLabels("events", 2))(row)
    assert sample["labels"].tolist() == [3, 0]
    assert sample["pixel_values"].shape == (4, 3, 16, 16)
    # A modality that is not read may have any window.
    audio = ClipTransform(make_processor(span=1.0), SegmentLabels("events", 2), modalities=("audio",))(row)
    assert set(audio) >= {"input_features", "labels"}


@pytest.mark.parametrize(
    ("column", "segments", "window", "changes", "message"),
    [
        ("events", 3, {}, {}, r"a class for each of 3 segments, got \[3, 0\]"),
        ("label", 2, {}, {}, "a class for each of 2 segments"),
        ("events", 2, {"span": 1.0}, {}, "takes 1 s of video: give the processor span=2"),
        ("events", 2, {"seconds": 8.0}, {}, "takes 8 s of audio: give the processor audio_seconds=2"),
        ("events", 2, {"span": 4.0}, {"start": None, "end": None}, "is 2 s long"),
    ],
)
def test_wrong_segment_labels_or_windows_raise(row, column, segments, window, changes, message):
    transform = ClipTransform(make_processor(**window), SegmentLabels(column, segments))
    with pytest.raises(ValueError, match=message):
        transform({**row, **changes})


@pytest.fixture(scope="module")
def rows():
    """Clips 0 to 2 have the same format, clip 3 has another size and sampling rate, and clip 4 has no audio."""
    clips = [
        render_clip(num_frames=50),
        render_clip(num_frames=30),
        render_clip(num_frames=40),
        render_clip(num_frames=50, size=(48, 32), sampling_rate=44100, channels=2),
        render_clip(num_frames=50, audio=None),
    ]
    videos = [{"bytes": clip, "path": None} for clip in clips]
    return [
        {"clip_id": f"clip-{number}", "video": video, "start": None, "end": None, "label": number}
        for number, video in enumerate(videos)
    ]


def process_directly(transform, row):
    """The tensors of a sample as the processor makes them, without `ClipTransform`."""
    clips = transform.processor.load_clip(row["video"], num_views=transform.num_views, tracks=transform.modalities)
    tensors = transform.processor.process_clips(clips, return_tensors="pt")
    return {name: values[0] if transform.num_views == 1 else values for name, values in tensors.items()}


@pytest.mark.parametrize("number", [0, 3, 4])
@pytest.mark.parametrize("options", [{}, {"num_views": 2}, {"modalities": ("video",)}])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do_normalize": False, "image_mean": None, "image_std": None},
        {"do_rescale": False},
        {"do_normalize": False, "do_rescale": False},
    ],
)
def test_a_sample_equals_the_processor(rows, number, options, fields):
    processor = make_processor()
    for name, value in fields.items():
        setattr(processor.video_processor, name, value)
    transform = ClipTransform(processor, **options)
    sample = transform(rows[number])
    for name, values in process_directly(transform, rows[number]).items():
        assert torch.equal(sample[name], values)
        assert sample[name].dtype == values.dtype


def test_augmentations_of_a_batch_do_not_change_its_samples(rows):
    samples = [ClipTransform(make_processor())(row) for row in rows[:3]]
    before = [sample["input_features"].clone() for sample in samples]
    batch = AVCollator(spec_augment=SpecAugment(), time_shift=True)(samples)
    assert not torch.equal(batch["input_features"], torch.stack(before))
    assert all(torch.equal(sample["input_features"], values) for sample, values in zip(samples, before))


def test_different_sizes_raise_with_the_names_of_the_clips(rows):
    processor = make_processor()
    processor.video_processor.do_center_crop = False
    processor.video_processor.size = {"shortest_edge": 16}
    transform = ClipTransform(processor)
    samples = [transform(rows[number]) for number in (0, 3)]
    assert [tuple(sample["pixel_values"].shape[2:]) for sample in samples] == [(16, 16), (16, 24)]
    with pytest.raises(ValueError, match=r"one shape.*clip-0, clip-3"):
        AVCollator()(samples)


def test_augmented_frames_are_only_normalised(rows):
    augmentation = FrameAugmentation(crop=16, shortest_edge=20)
    transform = ClipTransform(make_processor(), mode="train", augmentation=augmentation)
    for number in range(3):
        sample = transform(rows[number], torch.Generator().manual_seed(number))
        generator = torch.Generator().manual_seed(number)
        clips = transform.processor.load_clip(rows[number]["video"], mode="train", generator=generator)
        frames = augmentation(clips[0].frames, generator)
        assert torch.equal(sample["pixel_values"], (frames - 127.5) / 127.5)


@pytest.mark.parametrize("num_views", [1, 2])
def test_windows_of_one_view_share_the_augmentation_and_an_axis(rows, num_views):
    class Twice(AVMAEProcessor):
        """Loads each window twice, as an architecture with two clips per view."""

        input_axes = {name: ("clips", *axes) for name, axes in CLIP_AXES.items()}
        windows_per_view = 2

        def load_clip(self, *arguments, **options):
            return [replace(clip) for clip in super().load_clip(*arguments, **options) for _ in range(2)]

    processor = make_processor()
    processor.__class__ = Twice
    augmentation = FrameAugmentation(crop=16, shortest_edge=20)
    transform = ClipTransform(processor, mode="train", augmentation=augmentation, num_views=num_views)
    sample = transform(rows[0], torch.Generator().manual_seed(0))
    views = [num_views] if num_views > 1 else []
    assert sample["pixel_values"].shape == (*views, 2, 4, 3, 16, 16)
    assert sample["input_features"].shape == (*views, 2, 200, 16)
    windows = sample["pixel_values"].reshape(num_views, 2, -1)
    assert torch.equal(windows[:, 0], windows[:, 1])
    assert num_views == 1 or not torch.equal(windows[0], windows[1])
