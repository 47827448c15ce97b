"""ClipStream on real clips: rows stay undecoded until one worker decodes each once; no clip is lost silently."""

import logging
import os

import pytest
import torch
from rendering import render_clip, truncated
from torch.utils.data import DataLoader

from hf_avfusion.data.augmentation import FrameAugmentation, SpecAugment
from hf_avfusion.data.benchmarks.folders import load_folder
from hf_avfusion.data.benchmarks.loading import load_benchmark
from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.streaming.clip_stream import MAX_CONSECUTIVE_FAILURES, ClipStream
from hf_avfusion.data.synthetic.sounding_shapes import render
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media.reader import MediaError
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor
from hf_avfusion.tasks.classification import ClassLabels

HEADS = ("shape", "sound", "label")


def processor(**window):
    return MBTProcessor(
        video_processor=AVFusionVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        feature_extractor=AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=16, spectrogram_length=96),
        **{"num_frames": 3, "span": 0.96, "audio_seconds": 0.96, **window},
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    render(folder, num_train=24, num_validation=0, num_test=6, num_proc=1, rows_per_shard=6, progress=False)
    return folder


def stream(shapes, split="train", mode="train", streaming=True, augmentation=None, **options):
    transform = ClipTransform(processor(), HEADS, mode=mode, augmentation=augmentation)
    return ClipStream(load_benchmark("sounding_shapes", split, streaming, shapes), transform, **options)


def by_id(samples):
    return {sample["clip_id"]: sample for sample in samples}


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]


def test_sample(shapes):
    row = next(iter(load_benchmark("sounding_shapes", "test", source=shapes)))
    sample = next(iter(stream(shapes, "test", "eval")))
    assert sample["clip_id"] == "test-000000"
    assert sample["pixel_values"].shape == (3, 3, 32, 32)
    assert sample["input_features"].shape == (96, 16)
    assert sample["labels"].tolist() == [row["shape"], row["sound"], row["label"]]
    assert sample["has_video"]
    assert sample["has_audio"]
    expected = processor()(videos=row["video"]["bytes"], return_tensors="pt")
    assert torch.equal(sample["pixel_values"], expected["pixel_values"][0])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_only_divide_the_rows(shapes, streaming, workers):
    options = {
        "streaming": streaming, "shuffle_buffer": 8, "seed": 5,
        "augmentation": FrameAugmentation(crop=32, shortest_edge=36),
    }  # fmt: skip
    alone = by_id(stream(shapes, **options))
    assert len(alone) == 24
    loader = DataLoader(stream(shapes, **options), batch_size=None, num_workers=workers)
    together = list(loader)
    assert len(together) == 24  # each exactly once
    for name, sample in by_id(together).items():
        same(sample, alone[name])


@pytest.mark.parametrize("streaming", [True, False])
def test_epochs_differ_and_repeat(shapes, streaming):
    made = stream(shapes, streaming=streaming, shuffle_buffer=24, seed=1)

    def epoch(number):
        made.set_epoch(number)
        return list(made)

    first, second, again = epoch(0), epoch(1), epoch(0)
    order = [sample["clip_id"] for sample in first]
    assert order != sorted(order)
    assert order != [sample["clip_id"] for sample in second]
    assert sorted(order) == sorted(sample["clip_id"] for sample in second)
    for one, other in zip(first, again):
        same(one, other)
    one, other = by_id(first), by_id(second)
    assert any(not torch.equal(one[name]["input_features"], other[name]["input_features"]) for name in one)
    unshuffled = stream(shapes, streaming=streaming)
    assert [sample["clip_id"] for sample in unshuffled] == sorted(order)


def test_epoch_reaches_persistent_workers(shapes):
    made = stream(shapes, streaming=False, shuffle_buffer=24)
    loader = DataLoader(made, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for number in (0, 1, 0):
        made.set_epoch(number)
        orders.append([sample["clip_id"] for sample in loader])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_batches_do_not_depend_on_earlier_draws(shapes):
    collator = AVCollator(spec_augment=SpecAugment(freq_mask_max_bins=8), modality_dropout=0.5)
    first = list(DataLoader(stream(shapes, shuffle_buffer=8), batch_size=6, collate_fn=collator))
    second = list(DataLoader(stream(shapes, shuffle_buffer=8), batch_size=6, collate_fn=collator))
    for one, other in zip(first, second):
        same(one, other)


def rows_at(stream, epoch, positions):
    return [draw.row() for draw in stream.draws_at(epoch, positions)]


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_at_positions(shapes, streaming):
    made = stream(shapes, streaming=streaming)
    rows = list(load_benchmark("sounding_shapes", "train", streaming, shapes))
    assert rows_at(made, 0, range(24)) == rows
    assert rows_at(made, 0, [2, 3, 17, 30]) == [rows[2], rows[3], rows[17]]
    shuffled = stream(shapes, streaming=streaming, shuffle_buffer=8)
    orders = [[row["clip_id"] for row in rows_at(shuffled, epoch, range(24))] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [row["clip_id"] for row in rows]
    assert [row["clip_id"] for row in rows_at(shuffled, 1, [5, 23])] == [orders[1][5], orders[1][23]]


def test_rows_with_random_access_are_read_when_they_are_needed(shapes, monkeypatch):
    made, read = stream(shapes, streaming=False, shuffle_buffer=8), []
    whole = type(made.rows).__getitem__
    monkeypatch.setattr(type(made.rows), "__getitem__", lambda self, which: read.append(which) or whole(self, which))
    draws = list(made.draws_at(0, range(0, 24, 2)))
    assert not read
    rows = [draw.row() for draw in draws]
    order = made.order.indices((made.seed, 0))
    assert read == [order[place] for place in range(0, 24, 2)]
    assert rows == [whole(made.rows, index) for index in read]
    assert draws[5].row() == rows[5]  # a second read works, too
    assert [draw.row() for draw in made.draws_at(0, torch.arange(0, 30, 2))] == rows


def test_more_rows_than_num_rows_are_logged(shapes, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(rows_at(stream(shapes, num_rows=20), 0, range(30))) == 24
    assert "num_rows=20, but there are more rows" in caplog.text


def test_length(shapes):
    assert len(stream(shapes, streaming=False)) == 24
    assert len(stream(shapes, num_rows=24)) == 24
    with pytest.raises(TypeError, match="num_rows"):
        len(stream(shapes))
    with pytest.raises(ValueError, match=r"num_rows=7 for 24 rows"):
        stream(shapes, streaming=False, num_rows=7)


# ---- clips that do not decode


@pytest.fixture(scope="module")
def rows():
    good = render_clip(num_frames=25, size=(32, 32))
    clips = {
        "good-0": good,
        "broken-0": truncated(good, 0.5),
        "good-1": good,
        "broken-1": b"this is no video",
        "silent": render_clip(num_frames=25, size=(32, 32), audio=None),
        "unseen": render_clip(num_frames=0, seconds=1.0),
    }
    return [
        {"clip_id": name, "video": {"bytes": data, "path": None}, "start": None, "end": None, "label": 1}
        for name, data in clips.items()
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_rows_are_logged_and_counted(rows, workers, caplog):
    made = ClipStream(rows, ClipTransform(processor(), mode="eval"))
    with caplog.at_level(logging.WARNING):
        ids = {sample["clip_id"] for sample in DataLoader(made, batch_size=None, num_workers=workers)}
    assert ids == {"good-0", "good-1", "silent", "unseen"}
    assert made.skipped == 2
    if workers == 0:  # workers log in their own processes
        assert "skipped clip broken-0" in caplog.text
        assert "skipped clip broken-1" in caplog.text


def test_on_error_stop_raises_at_the_first_undecodable_row(rows):
    made = ClipStream(rows, ClipTransform(processor(), mode="eval"), on_error="stop")
    with pytest.raises(MediaError, match="clip broken-0: "):
        list(made)


def test_many_consecutive_failures_raise(rows):
    broken = [row for row in rows if row["clip_id"].startswith("broken")] * MAX_CONSECUTIVE_FAILURES
    with pytest.raises(RuntimeError, match=f"{MAX_CONSECUTIVE_FAILURES} clips in a row"):
        list(ClipStream(broken, ClipTransform(processor(), mode="eval")))


def test_other_errors_are_never_skipped(rows):
    with pytest.raises(ValueError, match=r"clip good-0 has no column 'labels'"):
        list(ClipStream(rows, ClipTransform(processor(), "labels", mode="eval")))


# ---- transforms


def test_missing_modalities_and_chosen_modalities(rows):
    samples = by_id(ClipStream(rows, ClipTransform(processor(), mode="eval")))
    assert (samples["silent"]["has_audio"], "input_features" in samples["silent"]) == (False, False)
    assert (samples["unseen"]["has_video"], "pixel_values" in samples["unseen"]) == (False, False)
    batch = AVCollator()([samples["good-0"], samples["silent"], samples["unseen"]])
    assert batch["modality_mask"].tolist() == [[True, True], [True, False], [False, True]]
    heard = ClipStream(rows, ClipTransform(processor(), mode="eval", modalities=("audio",)))
    ids = {sample["clip_id"]: set(sample) & {"pixel_values", "input_features"} for sample in heard}
    assert ids == {name: {"input_features"} for name in ("good-0", "good-1", "unseen")}
    assert heard.skipped == 3  # also the clip without audio


def test_views(shapes):
    row = next(iter(load_benchmark("sounding_shapes", "test", source=shapes)))
    sample = ClipTransform(processor(span=0.48), HEADS, num_views=4)(row)
    assert sample["pixel_values"].shape == (4, 3, 3, 32, 32)
    assert sample["input_features"].shape == (4, 96, 16)
    assert not torch.equal(sample["pixel_values"][0], sample["pixel_values"][3])


def test_segment_of_a_longer_file():
    """Frames are numbered; any random window contains only frames between start and end."""
    from rendering import read_number

    data = render_clip(num_frames=100, size=(64, 64))
    row = {"clip_id": "x", "video": {"bytes": data, "path": None}, "start": 2.0, "end": 3.0, "label": 0}
    large = processor()
    large.video_processor.size = {"height": 64, "width": 64}
    large.video_processor.do_center_crop = False
    transform = ClipTransform(large, mode="train")
    for seed in range(5):
        pixels = transform(row, torch.Generator().manual_seed(seed))["pixel_values"]
        numbers = [read_number(((frame + 1) * 127.5).round().to(torch.uint8)) for frame in pixels]
        assert all(50 <= number < 75 for number in numbers)


def test_augmented_frames_are_normalised_but_not_cropped_again(shapes):
    row = next(iter(load_benchmark("sounding_shapes", "test", source=shapes)))
    plain = FrameAugmentation(crop=64, shortest_edge=64, scale=None, flip=0.0, color=0.0, grayscale=0.0)
    whole = processor()
    sample = ClipTransform(whole, HEADS, mode="train", augmentation=plain)(row, torch.Generator().manual_seed(3))
    clip = whole.load_clip(row["video"], mode="train", generator=torch.Generator().manual_seed(3), start=0.0, end=2.0)
    assert torch.allclose(sample["pixel_values"], clip[0].frames / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="augmentation is allowed only with mode='train'"):
        ClipTransform(whole, HEADS, augmentation=plain)


def test_labels(rows):
    row = {**rows[0], "several": [0, 2], "none": -1}
    assert ClipTransform(processor(), ())(row).keys() == {
        "clip_id", "has_video", "has_audio", "pixel_values", "input_features",
    }  # fmt: skip
    assert ClipTransform(processor(), "label")(row)["labels"].tolist() == 1
    assert ClipTransform(processor(), ClassLabels("several", 4))(row)["labels"].tolist() == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="pass num_labels"):
        ClipTransform(processor(), "several")(row)
    with pytest.raises(ValueError, match=r"classes \[2\] lie outside 0..1"):
        ClipTransform(processor(), ClassLabels("several", 2))(row)
    with pytest.raises(ValueError, match=r"labels must be class numbers, got \{'none': -1\}"):
        ClipTransform(processor(), "none")(row)


def test_folder_of_files_streams_like_a_benchmark(tmp_path):
    for name in ("left", "right"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            render_clip(tmp_path / name / f"{number}.mp4", num_frames=25, size=(32, 32))
    made = ClipStream(load_folder(tmp_path), ClipTransform(processor(), mode="train"), shuffle_buffer=1)
    batch = next(iter(DataLoader(made, batch_size=4, collate_fn=AVCollator())))
    assert batch["pixel_values"].shape == (4, 3, 3, 32, 32)
    assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1]
    os.remove(tmp_path / load_folder(tmp_path)[0]["clip_id"])  # after reading the folder, before streaming
    left = list(made)
    assert (len(left), made.skipped) == (len(made) - 1, 1)


def test_invalid_arguments_raise(rows):
    with pytest.raises(ValueError, match="on_error"):
        ClipStream(rows, print, on_error="ignore")
    with pytest.raises(TypeError, match="generator"):
        ClipStream((row for row in rows), print)
    with pytest.raises(ValueError, match="modalities"):
        ClipTransform(processor(), modalities=("text",))
    with pytest.raises(ValueError, match="mode"):
        ClipTransform(processor(), mode="test")
