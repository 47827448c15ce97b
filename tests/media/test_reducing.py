"""Frames that are resized and cropped as they are decoded: the same results to the bit, and few frames at source size."""

import pytest
import torch
from rendering import render_clip

from hf_avfusion import MBTProcessor
from hf_avfusion.data.augmentation import FrameAugmentation
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media import tracks
from hf_avfusion.media.reader import ClipReader, ClipRequest, MediaError, read_clip

SETTINGS = [
    {},
    {"antialias": True, "truncate": False},
    {"truncate": False},
    {"resample": 3, "truncate": False},
    {"resample": 3, "antialias": True, "truncate": False},
    {"do_center_crop": False, "size": {"height": 40, "width": 72}},
    {"do_resize": False, "crop_size": {"height": 24, "width": 40}},
    {"do_resize": False, "do_center_crop": False},
    {"size": {"height": 48, "width": 64}},
    {"do_rescale": False, "do_normalize": False},
    {"do_normalize": False},
]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return render_clip(seconds=4.0, size=(90, 70))


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(tracks, "GROUP_BYTES", 3 * 3 * 90 * 70)  # three frames


def processor(**video: object) -> MBTProcessor:
    made = MBTProcessor(num_frames=8, span=2.0, audio_seconds=1.0)
    for name, value in {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, **video}.items():
        setattr(made.video_processor, name, value)
    return made


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", ["pyav", "torchcodec"])
def test_a_call_equals_processing_whole_frames(clip, settings, backend, request):
    if backend == "torchcodec":
        request.getfixturevalue("torchcodec")
    made = processor()
    options = {"num_views": 3, "backend": backend}
    given = made(videos=[clip], return_tensors="pt", **options, **settings)
    whole = made.process_clips(made.load_clip(clip, **options), return_tensors="pt", **settings)
    assert len(given["pixel_values"]) == 3
    assert torch.equal(given["pixel_values"], whole["pixel_values"])
    assert torch.equal(given["input_features"], whole["input_features"])


def test_windows_that_share_frames_reduce_them_once(clip):
    made = processor(crop_size={"height": 40, "width": 40})
    seen = []

    def reduce(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return frames[..., ::2, ::2]

    times = [[0.0, 0.04, 0.5, 1.0, 1.5], [0.5, 1.0, 1.5, 2.0, 0.0]]
    with ClipReader(clip) as reader:
        small = reader.read([ClipRequest(frame_times=each) for each in times], reduce)
        whole = reader.read([ClipRequest(frame_times=each) for each in times])
    assert seen == [3, 3]
    for one, other in zip(small, whole):
        assert torch.equal(one.frames, other.frames[..., ::2, ::2])
        assert torch.equal(one.frame_times, other.frame_times)
    assert made.load_clip(clip)[0].frames.shape[-2:] == (70, 90)


@pytest.mark.parametrize("size", [(90, 70), (70, 90)])
def test_training_equals_augmenting_whole_frames(size, monkeypatch):
    made, row = processor(), {"video": render_clip(seconds=4.0, size=size), "clip_id": "a", "label": 1}
    transform = ClipTransform(
        made, mode="train", augmentation=FrameAugmentation(crop=40, shortest_edge=48), num_views=2
    )
    given = transform(row, torch.Generator().manual_seed(3))
    monkeypatch.delattr(FrameAugmentation, "reduce")
    monkeypatch.setattr(FrameAugmentation, "__call__", _augment_whole_frames)
    whole = transform(row, torch.Generator().manual_seed(3))
    assert torch.equal(given["pixel_values"], whole["pixel_values"])


_CALL, _REDUCE = FrameAugmentation.__call__, FrameAugmentation.reduce


def _augment_whole_frames(self: FrameAugmentation, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    assert frames.shape[-2:] in ((70, 90), (90, 70))
    object.__setattr__(self, "reduce", lambda frames: frames)
    return _CALL(self, _REDUCE(self, frames), generator)


def test_evaluation_equals_processing_whole_frames(clip):
    made = processor()
    given = ClipTransform(made, num_views=2)({"video": clip, "clip_id": "a", "label": 1})
    whole = made.process_clips(made.load_clip(clip, num_views=2), return_tensors="pt")
    assert torch.equal(given["pixel_values"], whole["pixel_values"])


@pytest.mark.parametrize("backend", ["pyav", "auto"])
def test_frames_beyond_the_bound_are_refused_before_they_are_decoded(clip, backend, monkeypatch):
    monkeypatch.setattr(tracks, "MAX_PICTURE_PIXELS", 90 * 70 - 1)
    with pytest.raises(MediaError, match="its frames have 90x70 pixels; at most 6,299 are decoded"):
        read_clip(clip, frame_times=[0.0], backend=backend)
    with ClipReader(clip) as reader, pytest.raises(MediaError, match="90x70 pixels"):
        reader.stream([0.0])
    assert read_clip(clip, audio_window=(0, 1)).waveform.shape[1]
