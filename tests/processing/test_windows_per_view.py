"""Models that take several windows of a clip at once: a call, a pipeline and the data workers give the same tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rendering import render_clip
from segment_net import SegmentNetConfig, SegmentNetForAudioVisualClassification, SegmentNetProcessor
from transformers import pipeline
from travellers import FRAMES, MELS, ROWS, SIDE, processor

from hf_avfusion.data.collating import AVCollator
from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.evaluation.views import view_logits
from hf_avfusion.media.modalities import CLIP_AXES
from hf_avfusion.media.reader import MediaError

INPUTS = ("pixel_values", "input_features")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two clips; the second has no audio."""
    folder = tmp_path_factory.mktemp("clips")
    return [str(render_clip(folder / f"{audio}.mp4", seconds=2.0, audio=audio)) for audio in ("chirp", None)]


@pytest.fixture(scope="module")
def model():
    sizes = {"num_clips": 2, "num_segments": 2, "num_frames": FRAMES, "image_size": (SIDE, SIDE)}
    sizes |= {"spectrogram_length": ROWS, "num_mel_bins": MELS}
    torch.manual_seed(0)
    config = SegmentNetConfig(video_config=sizes, audio_config=sizes, id2label=dict(enumerate("abc")))
    return SegmentNetForAudioVisualClassification(config).eval()


@pytest.mark.parametrize("views", [1, 3])
def test_call_pipeline_and_data_workers_give_the_same_tensors(clips, model, views):
    prepare = processor(SegmentNetProcessor)
    called = prepare(videos=clips, num_views=views, return_tensors="pt")
    assert called["pixel_values"].shape == (2 * views, 2, FRAMES, 3, SIDE, SIDE)
    assert called["input_features"].shape == (2 * views, 2, ROWS, MELS)
    assert called["modality_mask"].tolist() == [[True, True]] * views + [[True, False]] * views
    assert not called["input_features"][views:].any()

    transform = ClipTransform(prepare, labels=(), num_views=views)
    batch = AVCollator()([transform({"clip_id": clip, "video": clip}) for clip in clips])
    for name in INPUTS:
        stacked = batch[name].flatten(0, 1) if views > 1 else batch[name]
        assert torch.equal(stacked, called[name])

    classify = pipeline("audio-visual-classification", model=model, processor=prepare, device="cpu", top_k=None)
    prepared = [classify.preprocess(clip, views=views) for clip in clips]
    for index, inputs in enumerate(prepared):
        for name in INPUTS[: 2 - index]:  # the second clip has no audio
            assert torch.equal(inputs[name], called[name][index * views : (index + 1) * views])
    with torch.no_grad():
        expected = model(**called).logits.unflatten(0, (2, views))
    assert torch.allclose(view_logits(model, batch, views=views), expected, atol=1e-6)
    for options in ({}, {"batch_size": 2}):
        for answer, logits in zip(classify(clips, views=views, **options), expected.mean(1).softmax(-1)):
            found = {entry["label"]: entry["score"] for entry in answer}
            assert found == pytest.approx(dict(zip("abc", logits.tolist())), abs=1e-6)


def test_the_windows_are_those_that_the_processor_loads(clips):
    prepare = processor(SegmentNetProcessor)
    loaded = prepare.load_clip(clips[0], num_views=2)
    called = prepare(videos=clips[0], num_views=2, return_windows=True, return_tensors="pt")
    one = processor().process_clips(loaded, return_tensors="pt")
    for name in INPUTS:
        assert torch.equal(called[name].flatten(0, 1), one[name])
    # From the first window of a view to the end of its second; four windows of 0.32 s are spread over 2 s.
    assert called["windows"].shape == (2, 2, 2)
    assert called["windows"][:, 1].flatten().tolist() == pytest.approx([0.0, 0.88, 1.12, 2.0])
    assert called["windows"].dtype == torch.float64
    lists = prepare(videos=clips[0], num_views=2)
    for name in INPUTS:
        assert len(lists[name]) == 2
        assert np.array_equal(np.stack([np.asarray(row) for row in lists[name]]), called[name].numpy())


def test_an_input_without_an_axis_of_windows_joins_them(clips):
    """As for the frames of a model that takes the sound of each second beside all frames."""

    class Joined(SegmentNetProcessor):
        input_axes = {**SegmentNetProcessor.input_axes, "pixel_values": CLIP_AXES["pixel_values"]}

    called = processor(SegmentNetProcessor)(videos=clips, return_tensors="pt")
    for tensors in ("pt", None):
        joined = processor(Joined)(videos=clips, return_tensors=tensors)
        assert torch.equal(torch.stack(list(joined["pixel_values"])), called["pixel_values"].flatten(1, 2))
    sample = ClipTransform(processor(Joined), labels=())({"clip_id": "a", "video": clips[0]})
    assert torch.equal(sample["pixel_values"], called["pixel_values"][0].flatten(0, 1))
    assert torch.equal(sample["input_features"], called["input_features"][0])


def test_windows_of_one_window_processors_are_rows(clips):
    called = processor()(videos=clips, return_windows=True, return_tensors="pt")
    assert called["windows"][0].tolist() == [pytest.approx([0.84, 1.16])] * 2
    assert called["windows"][1, 0].tolist() == pytest.approx([0.84, 1.16])
    assert called["windows"][1, 1].isnan().all()
    sound = processor()(audio=[np.zeros(16000)], sampling_rate=16000, return_windows=True)
    assert sound["windows"][0][1] == pytest.approx([0.0, 0.32])
    assert "windows" not in processor()(videos=clips)


def test_what_is_no_whole_view_is_refused(clips):
    class Unstated(SegmentNetProcessor):
        windows_per_view = 1

        def load_clip(self, *arguments, num_views=1, **options):
            return super().load_clip(*arguments, num_views=2 * num_views, **options)

    class Damaged(SegmentNetProcessor):
        def load_clip(self, *arguments, **options):
            first, *others = super().load_clip(*arguments, **options)
            return [replace(first, waveform=None), *others]

    row = {"clip_id": "a", "video": clips[0]}
    for act in (
        lambda kind: processor(kind)(videos=clips[0]),
        lambda kind: ClipTransform(processor(kind), labels=())(row),
    ):
        with pytest.raises(ValueError, match=r"got 2 windows, but Unstated takes 1 views x 1 \(windows_per_view\)"):
            act(Unstated)
        with pytest.raises(MediaError, match=r"has no audio in 1 of the 2 windows of a view"):
            act(Damaged)
    prepare = processor(SegmentNetProcessor)
    with pytest.raises(ValueError, match="got 1 windows, but SegmentNetProcessor takes a multiple of 2"):
        prepare.process_clips(prepare.load_clip(clips[0])[:1])
    with pytest.raises(ValueError, match="holds arrays, but this processor loads 2 windows a clip"):
        prepare(audio=np.zeros(16000), sampling_rate=16000)
