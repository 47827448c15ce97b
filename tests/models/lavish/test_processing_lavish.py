"""The LAVISH processor: published values, one preparation for files, arrays and data workers, missing tracks, saving."""

import json

import numpy as np
import pytest
import torch
from rendering import read_numbers, render_clip
from torch.nn.functional import interpolate
from transformers import AutoProcessor, pipeline
from travellers import traveller

from hf_avfusion.data.transforms import ClipTransform
from hf_avfusion.media.modalities import WINDOW_AXES
from hf_avfusion.media.windows import WindowPolicy, load_window
from hf_avfusion.model_card import CardDetails, build_card
from hf_avfusion.models.lavish.configuration_lavish import LavishTwoStreamConfig
from hf_avfusion.models.lavish.processing_lavish import PRESETS, LavishProcessor, frame_processor
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.tasks.event_localization import SegmentLabels

RATE = 16_000


def tiny(**fields) -> LavishProcessor:
    """3 segments of 0.3 s: frames of 16 x 16, spectrograms of 32 x 16."""
    audio = AVFusionFeatureExtractor.from_preset("lavish_ave_vit", num_mel_bins=16, spectrogram_length=32)
    fields = {"num_segments": 3, "segment_seconds": 0.3, "segment_margin": 0.05, **fields}
    return LavishProcessor(frame_processor(16), audio, **fields)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two clips of 2 s; the second has no audio."""
    folder = tmp_path_factory.mktemp("clips")
    options = {"container": "matroska", "audio_codec": "pcm_s16le", "sampling_rate": RATE}
    sound = render_clip(folder / "chirp.mkv", seconds=2.0, audio="chirp", size=(96, 64), **options)
    return [str(sound), str(render_clip(folder / "silent.mp4", seconds=2.0, audio=None, size=(96, 64)))]


# ---------------------------------------------------------------------------------------------------------- published values


@pytest.mark.parametrize(
    ("name", "segments", "seconds", "side", "rows", "mels", "mean"),
    [
        ("lavish_ave_swin", 10, 1.0, 192, 192, 192, -4.984795570373535),
        ("lavish_ave_vit", 10, 1.0, 224, 102, 128, -4.1426),
        ("lavish_avs", 5, 1.0, 224, 192, 192, -5.210531711578369),
        ("lavish_avqa", 10, 1.95, 192, 192, 192, -5.385333061218262),
    ],
)
def test_presets_hold_the_published_values(name, segments, seconds, side, rows, mels, mean, clips):
    """lavish.md, section 3: the table, and the video below it."""
    processor = LavishProcessor.from_preset(name)
    window = processor.window_policy
    assert (window.num_segments, window.segment_seconds, window.segment_margin) == (segments, seconds, 0.1)
    extractor, frames = processor.feature_extractor, processor.video_processor
    assert (extractor.spectrogram_length, extractor.num_mel_bins, extractor.mean) == (rows, mels, mean)
    assert processor.channel_mix == "left"
    assert (frames.size.height, frames.size.width) == (side, side)
    inputs = processor(videos=clips[0], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, segments, 3, side, side)
    assert inputs["input_features"].shape == (1, segments, rows, mels)
    if name == "lavish_ave_swin":
        assert LavishProcessor().to_dict() == processor.to_dict()


def test_presets_take_overrides_and_refuse_other_names():
    assert set(PRESETS) == {"lavish_ave_swin", "lavish_ave_vit", "lavish_avs", "lavish_avqa"}
    processor = LavishProcessor.from_preset("lavish_avqa", num_segments=4, channel_mix="mean")
    assert processor.window_policy == WindowPolicy(num_frames=1, num_segments=4, segment_seconds=1.95)
    assert processor.channel_mix == "mean"
    assert LavishProcessor.from_preset("lavish_avs", window={"segment_seconds": 1.95}).window["segment_seconds"] == 1.95
    with pytest.raises(ValueError, match=r"name must be a preset, one of lavish_ave_swin, .* got 'lavish'"):
        LavishProcessor.from_preset("lavish")


def test_frames_are_stretched_as_published(clips):
    """image / 255, bicubic to a square without antialiasing, ImageNet mean and deviation."""
    processor = LavishProcessor()
    raw = torch.cat([clip.frames for clip in load_window(clips[0], processor.window_policy)])
    assert raw.shape[-2] != raw.shape[-1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (interpolate(raw / 255, size=(192, 192), mode="bicubic", align_corners=False) - mean) / std
    found = processor(videos=clips[0], return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("segments", [1, 3, None])
def test_axes_are_those_of_the_config(segments):
    backbone = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"spectrogram_length": 32, "num_mel_bins": 16}
    config = LavishTwoStreamConfig(
        backbone_config={**backbone, "image_size": 16, "patch_size": 8}, num_segments=segments, **sizes
    )
    without = {"segment_seconds": 1.0, "segment_margin": 0.1} if segments is None else {}
    processor = tiny(num_segments=segments, **without)
    assert dict(processor.input_axes) == config.input_axes
    assert processor.windows_per_view == (segments or 1)
    inputs = processor(videos=render_clip(seconds=2.0), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, segments or 1, 3, 16, 16)
    assert inputs["input_features"].shape == (1, *([segments] if segments else []), 32, 16)
    assert (processor.input_axes["input_features"][0] in WINDOW_AXES) is (segments is not None)


# ------------------------------------------------------------------------------------------------------- the ways of a clip


def test_a_file_and_its_arrays_give_the_same(clips):
    processor = tiny()
    file = processor(videos=clips[0], return_tensors="pt", return_windows=True)
    loaded = processor.load_clip(clips[0])
    frames = torch.cat([clip.frames for clip in loaded])
    whole = load_window(clips[0], WindowPolicy(audio_seconds=2.0, short="hold"))[0].waveform[0].numpy()
    assert len(whole) == 2 * RATE
    given = {"sampling_rate": RATE, "return_tensors": "pt", "return_windows": True}
    arrays = processor(videos=frames, audio=whole, **given)
    for name in ("pixel_values", "input_features"):
        assert torch.equal(arrays[name], file[name])
    assert torch.allclose(arrays["windows"], file["windows"], atol=1e-6)
    assert file["windows"][0].tolist() == [[0.0, pytest.approx(2.0)]] * 2
    for videos in (frames.permute(0, 2, 3, 1).numpy(), [frames.numpy()], list(frames.permute(0, 2, 3, 1).numpy())):
        assert torch.equal(processor(videos=videos, return_tensors="pt")["pixel_values"], file["pixel_values"])
    for audio in ([whole], whole.tolist(), {"array": whole, "sampling_rate": RATE}):
        rate = {} if isinstance(audio, dict) else {"sampling_rate": RATE}
        sound = processor(audio=[audio] if isinstance(audio, dict) else audio, return_tensors="pt", **rate)
        assert torch.equal(sound["input_features"], file["input_features"])
    sample = ClipTransform(processor, labels=())({"clip_id": "a", "video": clips[0]})
    for name in ("pixel_values", "input_features"):
        assert torch.equal(sample[name], file[name][0])
    lists = processor(videos=clips[0])
    assert np.array_equal(np.stack(lists["input_features"]), file["input_features"].numpy())
    mixed = processor(videos=clips, audio=[whole, whole], sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(mixed["input_features"][1], file["input_features"][0])


def test_training_reads_what_evaluation_reads(clips):
    processor, generator = tiny(), torch.Generator().manual_seed(3)
    trained = processor(videos=clips[0], mode="train", generator=generator, return_tensors="pt")
    evaluated = processor(videos=clips[0], return_tensors="pt")
    assert torch.equal(trained["pixel_values"], evaluated["pixel_values"])
    assert torch.equal(trained["input_features"], evaluated["input_features"])


def test_start_and_end_are_the_clip(clips):
    numbers = [read_numbers(clip.frames)[0] for clip in tiny().load_clip(clips[0], start=0.4, end=1.2)]
    assert numbers == [10, 19, 29]  # of the frames 10 to 29, at 25 per second
    inputs = tiny()(videos=clips[0], start=0.4, end=1.2, return_windows=True, return_tensors="pt")
    assert inputs["windows"][0].flatten().tolist() == pytest.approx([0.0, 0.8, 0.0, 0.8])


def test_waveforms_are_resampled_before_they_are_cut():
    wave = np.sin(np.arange(2 * 48_000) / 20).astype(np.float32)
    cut = tiny()(audio=wave, sampling_rate=48_000, do_resample=True, return_tensors="pt")["input_features"]
    assert cut.shape == (1, 3, 32, 16)
    with pytest.raises(ValueError, match=r"sampling_rate=48000 Hz, but these features need 16000 Hz"):
        tiny()(audio=wave, sampling_rate=48_000)


def test_a_short_clip_is_heard_whole_in_each_segment():
    wave = np.random.default_rng(0).normal(size=int(0.34 * RATE)).astype(np.float32) * 0.1
    features = tiny()(audio=wave, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    assert torch.equal(features[0], features[1])
    extractor = tiny().feature_extractor
    assert torch.equal(features[0], extractor(wave, RATE, return_tensors="pt")["input_features"][0])


def test_rows_without_a_track_are_masked(clips):
    processor = tiny()
    both = processor(videos=clips, return_tensors="pt", return_windows=True)
    assert both["modality_mask"].tolist() == [[True, True], [True, False]]
    assert not both["input_features"][1].any()
    assert both["windows"][1, 1].isnan().all()
    one = [processor(videos=clip, return_tensors="pt") for clip in clips]
    assert torch.equal(both["pixel_values"], torch.cat([each["pixel_values"] for each in one]))
    assert "input_features" not in one[1]
    frames, wave = np.zeros((3, 20, 30, 3), np.uint8), np.ones(RATE, np.float32) / 8
    mixed = processor(videos=[frames, None], audio=[None, wave], sampling_rate=RATE, return_tensors="pt")
    assert mixed["modality_mask"].tolist() == [[True, False], [False, True]]
    assert mixed["pixel_values"].shape == (2, 3, 3, 16, 16)
    assert not mixed["pixel_values"][1].any()
    assert not mixed["input_features"][0].any()


def test_several_frames_of_each_segment_are_joined(clips):
    inputs = tiny(num_frames=2)(videos=clips[0], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 6, 3, 16, 16)
    assert torch.equal(
        tiny()(videos=clips[0], num_frames=2, return_tensors="pt")["pixel_values"], inputs["pixel_values"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"videos": np.zeros((4, 20, 20, 3), np.uint8)},
            r"videos\[0\] has 4 frames, but this processor takes 3: num_frames=1",
        ),
        (
            {"videos": render_clip(), "num_views": 2},
            r"num_views=2: the 3 segments \(num_segments\) are spread over the whole",
        ),
        ({"videos": render_clip(), "fps": 12.5}, "fps=12.5 has no effect with num_segments=3"),
        ({"audio": np.zeros((2, 16000), np.float32), "sampling_rate": RATE}, "a waveform is mono"),
        ({"videos": render_clip(), "sampling_rate": RATE}, "is that of waveforms passed as audio="),
    ],
)
def test_wrong_calls_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**arguments)


def test_segments_are_for_processors_that_give_them():
    with pytest.raises(ValueError, match="num_segments=3: MBTProcessor gives one window of a clip, not segments"):
        MBTProcessor(num_segments=3)
    with pytest.raises(ValueError, match="together give"):
        LavishProcessor(num_segments=2**20)


# ------------------------------------------------------------------------------------------------------------------- saving


def test_all_settings_are_saved(tmp_path, clips):
    processor = tiny(num_frames=2)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["window"]["num_segments"] == 3
    assert saved["window"]["segment_margin"] == 0.05
    assert saved["video_processor"]["resize_as_float"] is True
    loaded = LavishProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    found, expected = (each(videos=clips[0], return_tensors="pt") for each in (loaded, processor))
    for name in ("pixel_values", "input_features"):
        assert torch.equal(found[name], expected[name])
    assert LavishProcessor.from_pretrained(tmp_path, num_segments=5).windows_per_view == 5


def test_the_auto_class_finds_it(tmp_path):
    tiny().save_pretrained(tmp_path)
    LavishTwoStreamConfig().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LavishProcessor
    assert loaded.to_dict() == tiny().to_dict()


# --------------------------------------------------------------------------------------------------------- what it is part of


def test_event_localisation_takes_labels_of_as_many_segments(clips):
    labels = [SegmentLabels("events", number) for number in (3, 4)]
    row = {"clip_id": "a", "video": clips[0], "events": [0, 1, 0]}
    sample = ClipTransform(tiny(), labels=labels[0])(row)
    assert sample["labels"].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"labels of 4 segments, but the processor cuts clips into num_segments=3"):
        ClipTransform(tiny(), labels=labels[1])({**row, "events": [0, 1, 0, 1]})


def test_the_pipeline_names_equal_parts_of_the_clip(clips):
    model, processor = traveller("lavish-built-in")
    classify = pipeline("audio-visual-classification", model=model, processor=processor, device="cpu", top_k=1)
    frames = np.zeros((2, 20, 20, 3), np.uint8)
    wave = np.zeros(3 * RATE, np.float32)
    for clip, seconds in (
        (clips[0], 2.0),
        (clips[1], 2.0),
        ({"video": frames, "audio": wave, "sampling_rate": RATE}, 3.0),
    ):
        answer = classify(clip)
        times = [time for segment in answer for time in (segment["start"], segment["end"])]
        assert times == pytest.approx([0.0, seconds / 2, seconds / 2, seconds], abs=1e-3)
    batched = classify([*clips, {"path": clips[0], "start": 0.5, "end": 1.5}], batch_size=3)
    for clip, answer in zip(clips, batched):  # the second clip has no audio
        for one, other in zip(classify(clip), answer, strict=True):
            assert one["labels"][0]["label"] == other["labels"][0]["label"]
            assert one["labels"][0]["score"] == pytest.approx(other["labels"][0]["score"], abs=1e-5)
    assert batched[2][1]["end"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="num_segments"):
        classify(clips[0], views=2)


def test_a_card_states_the_segments():
    card = str(build_card(*traveller("lavish"), CardDetails(), "org/lavish"))
    assert "2 RGB frames from the first to the last of the clip; resized to 16 x 16" in card
    assert "2 segments of 0.3 s of audio, spread from the start of the clip to 0.1 s before its end" in card
    assert "| short clips | are heard whole in every segment |" in card


# ------------------------------------------------------------------------------------------------------------------ questions

WORDS = ["<pad>", "Where", "is", "the", "piano", "Is", "it", "loud"]


def test_questions_become_word_indices_of_each_clip(clips):
    processor = tiny(vocab=WORDS, max_question_length=5)
    assert processor.model_input_names == ["pixel_values", "input_features", "input_ids"]
    where, loud = [1, 2, 3, 4, 0], [5, 6, 7, 0, 0]
    for text, expected in (
        ("Where is the piano?", [where, where]),
        (["Where is the piano?", "Is it loud?"], [where, loud]),
        ([["Is it loud?", "Where is the piano?"], ["Is it loud?", "Is it loud?"]], [[loud, where], [loud, loud]]),
    ):
        inputs = processor(videos=clips, text=text, return_tensors="pt")
        assert inputs["input_ids"].dtype == torch.int64
        assert inputs["input_ids"].tolist() == expected
    alone = processor(videos=clips[0], text=["Where is the piano?", "Is it loud?", "Is it loud?"])
    assert alone["input_ids"] == [[where, loud, loud]]
    del inputs["input_ids"]
    plain = processor(videos=clips, return_tensors="pt")
    assert inputs.keys() == plain.keys()
    assert all(torch.equal(inputs[name], plain[name]) for name in plain)


def test_the_vocabulary_is_saved_with_the_processor(tmp_path):
    processor = tiny(vocab=WORDS, max_question_length=5)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.vocab, loaded.max_question_length) == (WORDS, 5)
    longer = AutoProcessor.from_pretrained(tmp_path, max_question_length=6)
    assert longer.encode_questions("Is it loud?").tolist() == [5, 6, 7, 0, 0, 0]
    assert tiny(vocab=WORDS).max_question_length == 14


def test_wrong_questions_are_refused_by_name(clips):
    processor = tiny(vocab=WORDS, max_question_length=5)
    for text, message in (
        ("Where is the Piano?", r"the word 'Piano'.*Did you mean 'piano'\?"),
        ("Is the piano loud is it?", r"has 6 words, but at most 5 are allowed \(max_question_length\)"),
        (["Is it loud?", "?"], "'\\?' has no words"),
        (["Is it loud?"] * 3, "text holds 3 questions for 2 clips"),
        ([["Is it loud?"], ["Is it loud?", "Is it loud?"]], "text holds lists of 1, 2 questions"),
        ([], "at least one question"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(videos=clips, text=text)
    with pytest.raises(ValueError, match="has no vocabulary, so it takes no questions"):
        tiny()(videos=clips, text="Is it loud?")
    with pytest.raises(ValueError, match="max_question_length=5 is for questions"):
        tiny(max_question_length=5)
    with pytest.raises(TypeError, match="unknown keyword argument text"):
        MBTProcessor()(videos=clips, text="Is it loud?")
