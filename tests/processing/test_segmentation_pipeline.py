"""pipeline("audio-visual-segmentation"): masks at the size of the file, windows over films of any length, and overlay films."""

import av
import numpy as np
import pytest
import torch
from rendering import read_numbers, render_clip
from transformers import pipeline
from travellers import lavish_segmentation_processor, traveller

from hf_avfusion.media.reader import ClipReader, ClipRequest
from hf_avfusion.media.sources import MediaError
from hf_avfusion.processing.mask_overlay import COLOR, draw_mask, outline_of
from hf_avfusion.processing.segmentation_pipeline import windows_of


@pytest.fixture(scope="module")
def segment():
    model, processor = traveller("lavish-segmentation")
    return pipeline("audio-visual-segmentation", model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> str:
    """2 s of 48 x 32 pixels, stored lying on its side."""
    return str(render_clip(tmp_path_factory.mktemp("films") / "film.mp4", num_frames=50, size=(48, 32), rotation=90))


def test_a_mask_for_each_segment_at_the_size_of_the_file(segment, film):
    answer = segment(film, batch_size=2)
    model, processor = segment.model, segment.processor
    assert answer[0]["start"] == 0
    assert answer[-1]["end"] == pytest.approx(2.0)
    assert [each["end"] for each in answer[:-1]] == [each["start"] for each in answer[1:]]
    assert {tuple(each["mask"].shape) for each in answer} == {(48, 32)}  # upright
    assert {each["mask"].dtype for each in answer} == {torch.bool}
    inputs = processor(videos=film, start=0.6, end=1.2, return_tensors="pt")  # the second window of 2 segments of 0.3 s
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = processor.post_process_masks(logits, [(48, 32)])[0]
    inside = [each for each in answer if 0.59 < each["start"] < 1.19]
    assert all(torch.equal(each["mask"], mask) for each, mask in zip(inside, expected, strict=True))
    probabilities = logits[0].sigmoid()
    for each, one in zip(inside, probabilities):
        assert each["score"] == pytest.approx(one[one > 0.5].mean().item(), abs=1e-5)


def test_windows_cover_a_film_once():
    assert windows_of(1.0, 3.5, 5.0) == [(1.0, 3.5)]
    assert windows_of(0.0, 5.04, 5.0) == [(0.0, 5.04)]
    assert windows_of(0.0, 12.0, 5.0) == [(0.0, 5.0), (5.0, 10.0), (7.0, 12.0)]
    assert windows_of(0.0, 10.0, 5.0) == [(0.0, 5.0), (5.0, 10.0)]


def test_the_last_window_counts_after_the_one_before(segment, film):
    answer = segment({"path": film, "start": 0.5, "end": 1.5}, window_seconds=0.8)
    edges = [(round(each["start"], 3), round(each["end"], 3)) for each in answer]
    assert edges == [(0.0, 0.4), (0.4, 0.8), (0.8, 1.0)]  # of the last window, 0.2 to 1.0 s, the second segment


def test_the_overlay_film_has_the_masks_and_the_sound(segment, film, tmp_path):
    output = tmp_path / "overlay.mp4"
    answer = segment(film, output=output)
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.mp4"]
    with av.open(str(output)) as container:
        codecs = {stream.type: stream.codec_context.name for stream in container.streams}
    assert codecs == {"video": "h264", "audio": "aac"}
    times = [each["start"] + 0.02 for each in answer]
    with ClipReader(film) as source, ClipReader(output) as drawn:
        (plain,) = source.read([ClipRequest(times, [(0.0, 2.0)])])
        (overlaid,) = drawn.read([ClipRequest(times, [(0.0, 2.0)])])
    assert overlaid.frames.shape == plain.frames.shape
    assert drawn.info.duration == pytest.approx(source.info.duration, abs=0.05)
    for each, before, after in zip(answer, plain.frames, overlaid.frames):
        frame, mask = before.permute(1, 2, 0).numpy(), each["mask"].numpy()
        shown = after.permute(1, 2, 0).numpy().astype(int)
        right, without = (np.abs(shown - one).mean() for one in (draw_mask(frame, mask), frame))
        assert right < 12  # compressed, colours at half the size
        if 0.1 < mask.mean() < 0.9:
            assert right < 0.7 * without
    low = min(plain.waveform.shape[1], overlaid.waveform.shape[1])
    found = np.corrcoef(plain.waveform[0, :low], overlaid.waveform[0, :low])[0, 1]
    assert found > 0.95
    silent = segment(render_clip(num_frames=20, size=(32, 32), audio=None), output=output)
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert silent[-1]["end"] == pytest.approx(0.8)


def test_frames_of_an_overlay_keep_their_times(segment, tmp_path):
    model, processor = traveller("lavish-segmentation")
    with torch.no_grad():
        model.decoder.mask_head.conv3.bias.fill_(-1e6)  # nothing sounds, so nothing is drawn
    nothing = pipeline("audio-visual-segmentation", model=model, processor=processor, device="cpu")
    source = render_clip(num_frames=40, size=(64, 64))
    answer = nothing({"bytes": source, "start": 0.4, "end": 1.2}, output=tmp_path / "part.mp4")
    assert {each["score"] for each in answer} == {None}
    with ClipReader(tmp_path / "part.mp4") as reader:
        (clip,) = reader.read([ClipRequest([0.02, 0.42, 0.78])])
    assert read_numbers(clip.frames) == [10, 20, 29]


def test_several_clips_and_arrays(segment, film):
    answers = segment([film, film])
    assert len(answers) == 2
    assert torch.equal(answers[0][0]["mask"], answers[1][0]["mask"])
    assert [len(each) for each in segment(path for path in [film])] == [len(answers[0])]
    assert segment([]) == []
    frames = np.random.default_rng(0).integers(0, 255, (2, 24, 40, 3), dtype=np.uint8)
    wave = np.random.default_rng(1).normal(size=9600).astype(np.float32) * 0.1
    answer = segment({"video": frames, "audio": wave, "sampling_rate": 16000})
    assert [each["mask"].shape for each in answer] == [(24, 40), (24, 40)]


def test_a_film_that_cannot_be_written_is_refused_before_masks_are_computed(segment, film, tmp_path, monkeypatch):
    monkeypatch.setattr(segment.model, "forward", lambda **_: pytest.fail("masks were computed"))
    frames, wave = np.zeros((2, 24, 40, 3), dtype=np.uint8), np.zeros(9600, dtype=np.float32)
    for clip, output, message in (
        (film, film, "is the clip itself"),
        ({"path": film, "audio": wave, "sampling_rate": 16000}, tmp_path / "film.mp4", "the film's own sound"),
        ({"video": frames}, tmp_path / "film.mp4", "passed as arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(clip, output=output)


def test_what_is_refused(segment, film, tmp_path):
    for options, message in (
        ({"output": "film.avi"}, "must end in .mp4"),
        ({"output": tmp_path / "none" / "film.mp4"}, "its folder does not exist"),
        ({"output": film}, "is the clip itself"),
        ({"window_seconds": 0}, "must be a positive number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_workers": 2}, "num_workers=2"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(film, **options)
    with pytest.raises(TypeError, match="has no arguments top_k; pass one of: output, window_seconds"):
        segment(film, top_k=2)
    with pytest.raises(ValueError, match="output is the film of one clip"):
        segment([film, film], output=tmp_path / "film.mp4")
    with pytest.raises(MediaError, match="has no video"):
        segment(render_clip(num_frames=0))
    with pytest.raises(ValueError, match="masks are of frames"):
        segment({"audio": np.zeros(16000, np.float32), "sampling_rate": 16000})
    assert not list(tmp_path.iterdir())


def test_masks_are_bounded_before_they_are_made(segment, film, monkeypatch):
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", "100000")
    monkeypatch.setattr(segment.model, "forward", lambda **inputs: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="Pass parts of the film"):
        segment(film, window_seconds=0.01)


def test_an_overlay_is_a_tint_with_an_outline():
    frame, mask = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    drawn = draw_mask(frame, mask)
    assert (drawn[mask] == np.round((100 + np.array(COLOR)) / 2)).all()
    outline = outline_of(mask)
    assert outline.sum() == 7 * 7 - 25
    assert (drawn[outline] == COLOR).all()
    assert (drawn[~mask & ~outline] == 100).all()
    assert not outline_of(np.zeros((4, 4), bool)).any()
    assert not outline_of(np.ones((4, 4), bool)).any()


def test_post_processing_resizes_logits():
    processor = lavish_segmentation_processor()
    logits = torch.randn(2, 3, 8, 8)
    masks = processor.post_process_masks(logits, [(16, 8), (5, 7)])
    assert [tuple(each.shape) for each in masks] == [(3, 16, 8), (3, 5, 7)]
    resized = torch.nn.functional.interpolate(logits[:1], (16, 8), mode="bilinear")[0]
    assert torch.equal(masks[0], resized > 0)
    assert torch.equal(processor.post_process_masks(logits)[1], logits[1] > 0)
    with pytest.raises(ValueError, match="holds 1 sizes for 2 clips"):
        processor.post_process_masks(logits, [(4, 4)])
    processor.video_processor.do_center_crop, processor.video_processor.crop_size = True, {"height": 8, "width": 8}
    with pytest.raises(ValueError, match="masks do not cover the frames"):
        processor.post_process_masks(logits, [(4, 4), (4, 4)])
