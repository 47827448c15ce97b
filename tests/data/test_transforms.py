"""Labels of a clip's parts: read second by second, and refused where the window shows another part of the clip."""

import pytest
from rendering import render_clip

from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.models.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.models.processing_avmae import AVMAEProcessor
from hf_avfusion.models.video_processing_avfusion import AVFusionVideoProcessor

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


def test_a_class_for_each_part(row):
    sample = ClipTransform(make_processor(), ("events",), num_segments=2, num_labels=4)(row)
    assert sample["labels"].tolist() == [3, 0]
    assert sample["pixel_values"].shape == (4, 3, 16, 16)
    # A track that is not read may have any window.
    audio = ClipTransform(make_processor(span=1.0), ("events",), num_segments=2, modalities=("audio",))(row)
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
def test_labels_of_other_parts_are_refused(row, column, segments, window, changes, message):
    transform = ClipTransform(make_processor(**window), (column,), num_segments=segments)
    with pytest.raises(ValueError, match=message):
        transform({**row, **changes})
