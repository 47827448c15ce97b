"""Clips cached in memory: the samples, columns and number of views of the original stream."""

import pytest
import torch
from rendering import render_clip

from hf_avfusion import MBTProcessor
from hf_avfusion.data import LabelBalance
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.data.streaming.in_memory import CachedSamples, cache_clips
from hf_avfusion.evaluation.views import ViewProtocol, view_transform
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor

LABELS = [0, 0, 0, 1]


@pytest.fixture(scope="module")
def rows():
    film = render_clip(num_frames=12)
    rows = [{"clip_id": f"clip{i}", "video": {"bytes": film}, "label": label} for i, label in enumerate(LABELS)]
    return [*rows, {"clip_id": "broken", "video": {"bytes": b"junk"}, "label": 1}]


class Counting:
    """A transform that counts its calls."""

    def __init__(self, transform):
        self.transform, self.calls = transform, 0
        self.num_views = transform.num_views

    def __call__(self, row, generator=None):
        self.calls += 1
        return self.transform(row, generator)


@pytest.fixture
def transform():
    video_processor = AVFusionVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = MBTProcessor(video_processor, window={"num_frames": 2, "audio_seconds": 0.2})
    return Counting(view_transform(processor, ViewProtocol(2, 1, "mean_logits", "test"), "label"))


def test_cached_samples_are_equal_and_not_decoded_again(rows, transform):
    stream = ClipStream(rows, transform, num_rows=len(rows))
    first = list(ClipStream(rows, transform))
    transform.calls, seen = 0, []
    kept = cache_clips(stream, ["label"], lambda clips: (seen.append(clip) or clip for clip in clips))
    assert transform.calls == len(rows)
    assert (len(kept), len(seen), stream.skipped) == (4, 4, 1)
    for epoch in (0, 1):
        kept.set_epoch(epoch)
        for before, after in zip(first, kept, strict=True):
            assert before.keys() == after.keys()
            assert before["clip_id"] == after["clip_id"]
            for name in ("pixel_values", "input_features", "labels"):
                assert torch.equal(before[name], after[name])
            assert (before["seed"] == after["seed"]) == (epoch == 0)  # the collator's draws differ in every epoch
    assert transform.calls == len(rows)


def test_cached_samples_keep_the_number_of_views(rows, transform):
    kept = cache_clips(ClipStream(rows, transform))
    assert kept.transform.num_views == 2
    assert next(iter(kept))["pixel_values"].shape[0] == 2
    assert CachedSamples(lambda row, generator: {}).num_views == 1


def test_cached_clips_can_be_balanced(rows, transform):
    kept = cache_clips(ClipStream(rows, transform), ["label"])
    balance = LabelBalance.of(kept.rows, "label")
    assert (balance.counts, balance.num_rows) == ((3, 1), 4)
    labels = torch.zeros(2)
    stream = ClipStream(kept.rows, kept.transform, shuffle_buffer=8, balance=balance)
    for epoch in range(20):
        stream.set_epoch(epoch)
        for sample in stream:
            assert "copy" not in sample
            labels[sample["labels"]] += 1
    assert labels.sum() == 80
    assert abs(labels[0] - labels[1]) <= 10
