"""MBTProcessor on rendered media and on arrays: both tracks of one window, missing tracks, views, two-step use, errors, saving."""

import io
import json

import numpy as np
import pytest
import torch
from equality import assert_rounding, assert_same_bits
from rendering import numbered_picture, read_numbers, render_clip, sound
from transformers import AutoProcessor

from hf_avfusion import MBTProcessor
from hf_avfusion.media.reader import MediaError
from hf_avfusion.media.windows import WindowPolicy
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor

RATE = 16000


def small(**changes) -> MBTProcessor:
    """4 frames at 5 per second and 1 s of audio, frames of 32 x 32."""
    return MBTProcessor(
        video_processor=AVFusionVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        feature_extractor=AVFusionFeatureExtractor(num_mel_bins=32, spectrogram_length=100),
        **{"num_frames": 4, "frame_rate": 5.0, "audio_seconds": 1.0, **changes},
    )


@pytest.fixture(scope="module")
def clip() -> bytes:
    """3 s, 25 fps, numbered frames, a chirp at 16 kHz."""
    return render_clip(num_frames=75, size=(64, 64), seconds=3.0, audio_codec="flac", container="matroska")


@pytest.fixture(scope="module")
def silent_clip() -> bytes:
    return render_clip(num_frames=75, size=(64, 64), audio=None)


@pytest.fixture(scope="module")
def audio_file() -> bytes:
    return render_clip(num_frames=0, seconds=3.0, audio_codec="flac", container="matroska")


def numbers(pixel_values: torch.Tensor) -> list[int]:
    return read_numbers(((pixel_values + 1) * 127.5).round())


class TestFiles:
    def test_both_tracks_of_the_same_window(self, clip):
        inputs = small()(videos=clip, return_tensors="pt")
        assert set(inputs) == {"pixel_values", "input_features"}
        assert inputs.pixel_values.shape == (1, 4, 3, 32, 32)
        assert inputs.input_features.shape == (1, 100, 32)
        assert inputs.pixel_values.dtype == inputs.input_features.dtype == torch.float32
        # The centred windows: 20 of 75 frames start at 27, 16000 of 48000 samples at 16000.
        assert numbers(inputs.pixel_values[0]) == [27, 32, 37, 42]
        wave = torch.from_numpy(sound("chirp", 3 * RATE, RATE)[0, RATE : 2 * RATE])
        expected = small().feature_extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
        assert (inputs.input_features - expected).abs().max() < 0.05  # FLAC keeps 16 bits

    def test_every_kind_of_source(self, clip, tmp_path):
        path = tmp_path / "clip.mkv"
        path.write_bytes(clip)
        processor = small()
        expected = processor(videos=clip, return_tensors="pt")
        row = {"bytes": clip, "path": "clip.mkv"}
        for source in (
            path,
            str(path),
            path.as_uri(),
            io.BytesIO(clip),
            [clip],
            row,
            {"bytes": None, "path": str(path)},
            [row],
        ):
            inputs = processor(videos=source, return_tensors="pt")
            assert torch.equal(inputs.pixel_values, expected.pixel_values)
            assert_rounding(inputs.input_features, expected.input_features)

    def test_the_audio_track_can_be_skipped(self, clip):
        assert set(small()(videos=clip, use_audio_in_video=False, return_tensors="pt")) == {"pixel_values"}

    def test_audio_of_a_video_file(self, clip):
        processor = small()
        inputs = processor(audio=clip, return_tensors="pt")
        assert set(inputs) == {"input_features"}
        assert_rounding(inputs.input_features, processor(videos=clip, return_tensors="pt").input_features)

    def test_frames_and_audio_in_two_files(self, silent_clip, audio_file):
        processor = small(synchronous=True)
        inputs = processor(videos=silent_clip, audio=audio_file, return_tensors="pt")
        assert set(inputs) == {"pixel_values", "input_features"}
        drawn = processor(
            videos=[silent_clip] * 2,
            audio=[audio_file] * 2,
            mode="train",
            generator=torch.Generator().manual_seed(3),
            return_tensors="pt",
        )
        again = processor(
            videos=[silent_clip] * 2,
            audio=[audio_file] * 2,
            mode="train",
            generator=torch.Generator().manual_seed(3),
            return_tensors="pt",
        )
        assert torch.equal(drawn.pixel_values, again.pixel_values)
        assert torch.equal(drawn.input_features, again.input_features)
        assert not torch.equal(drawn.pixel_values[0], drawn.pixel_values[1])

    def test_an_audio_array_replaces_the_audio_of_a_file(self, clip):
        wave = torch.randn(RATE, generator=torch.Generator().manual_seed(0)) * 0.1
        inputs = small()(videos=clip, audio=wave, sampling_rate=RATE, return_tensors="pt")
        alone = small()(audio=wave, sampling_rate=RATE, return_tensors="pt")
        assert_rounding(inputs.input_features, alone.input_features)

    def test_another_rate_and_channels_are_resampled_and_mixed(self):
        stereo = render_clip(
            num_frames=25, sampling_rate=44100, channels=2, seconds=1.0, audio_codec="flac", container="matroska"
        )
        mono = render_clip(num_frames=25, sampling_rate=RATE, seconds=1.0, audio_codec="flac", container="matroska")
        a, b = (small()(videos=v, return_tensors="pt").input_features[0, 5:-5] for v in (stereo, mono))
        assert torch.equal(a.argmax(dim=1), b.argmax(dim=1))

    def test_channel_mix_is_an_option(self, caplog):
        opposite = render_clip(
            num_frames=25, audio="antiphase", channels=2, seconds=1.0, audio_codec="flac", container="matroska"
        )
        mean = small()(videos={"bytes": opposite, "path": "opposite.mkv"}, return_tensors="pt").input_features
        assert "opposite.mkv: its channels cancel" in caplog.text
        assert "channel_mix='left'" in caplog.text
        left = small(channel_mix="left")(videos=opposite, return_tensors="pt").input_features
        assert left.max() > mean.max() + 1

    def test_a_short_clip_wraps_around(self):
        short = render_clip(num_frames=10, seconds=0.4, audio_codec="flac", container="matroska", size=(64, 64))
        inputs = small()(videos=short, return_tensors="pt")
        assert numbers(inputs.pixel_values[0]) == [0, 5, 0, 5]
        wave = torch.from_numpy(sound("chirp", round(0.4 * RATE), RATE)[0])
        expected = small().feature_extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
        assert (inputs.input_features - expected).abs().max() < 0.05  # the same as when the array is given

    def test_num_frames_and_fps_of_one_call(self, clip):
        inputs = small()(videos=clip, num_frames=3, fps=25, return_tensors="pt")
        assert numbers(inputs.pixel_values[0]) == [36, 37, 38]
        spread = small(span=2.0)(videos=clip, num_frames=3, fps=25, return_tensors="pt")
        assert torch.equal(spread.pixel_values, inputs.pixel_values)

    def test_other_fields_of_one_call(self, clip):
        inputs = small()(videos=clip, crop_size={"height": 16, "width": 24}, return_tensors="np")
        assert inputs["pixel_values"].shape == (1, 4, 3, 16, 24)
        assert isinstance(inputs["input_features"], np.ndarray)


class TestViews:
    def test_views_of_one_file_are_adjacent(self, clip, silent_clip):
        processor = small()
        inputs = processor(videos=[clip, silent_clip], num_views=3, return_tensors="pt")
        assert inputs.pixel_values.shape[:2] == (6, 4)
        # 20 of 75 frames: starts trunc(linspace(0, 55, 3))
        assert [numbers(view)[0] for view in inputs.pixel_values] == [0, 27, 55] * 2
        assert inputs.modality_mask.tolist() == [[True, True]] * 3 + [[True, False]] * 3
        alone = processor(videos=clip, num_views=3, return_tensors="pt")
        assert_rounding(inputs.input_features[:3], alone.input_features)

    def test_training_draws_from_the_generator(self, clip):
        processor = small()

        def draw(seed):
            return processor(
                videos=clip, mode="train", generator=torch.Generator().manual_seed(seed), return_tensors="pt"
            )

        assert torch.equal(draw(0).pixel_values, draw(0).pixel_values)
        assert torch.equal(draw(0).input_features, draw(0).input_features)
        assert len({numbers(draw(seed).pixel_values[0])[0] for seed in range(8)}) > 3


class TestMissingTracks:
    def test_mask_zeros_and_one_warning(self, clip, silent_clip, caplog):
        processor = small()
        inputs = processor(videos=[clip, silent_clip, clip], return_tensors="pt")
        processor(videos=[clip, silent_clip], return_tensors="pt")
        assert inputs.modality_mask.dtype == torch.bool
        assert inputs.modality_mask.tolist() == [[True, True], [True, False], [True, True]]
        assert (inputs.input_features[1] == 0).all()
        alone = processor(videos=clip, return_tensors="pt")
        assert_rounding(inputs.input_features[2], alone.input_features[0])
        assert torch.equal(inputs.pixel_values[2], alone.pixel_values[0])
        assert sum("has no audio track" in record.message for record in caplog.records) == 1

    def test_a_modality_that_no_clip_has_is_absent(self, silent_clip, audio_file):
        assert set(small()(videos=[silent_clip, silent_clip], return_tensors="pt")) == {"pixel_values"}
        assert set(small()(videos=audio_file, return_tensors="pt")) == {"input_features"}

    def test_either_track_may_be_missing(self, silent_clip, audio_file):
        inputs = small()(videos=[silent_clip, audio_file], return_tensors="pt")
        assert inputs.modality_mask.tolist() == [[True, False], [False, True]]
        assert (inputs.pixel_values[1] == 0).all()

    def test_none_marks_missing_arrays(self):
        video, wave = np.zeros((4, 32, 32, 3), np.uint8), np.zeros(RATE, np.float32)
        inputs = small()(videos=[video, None], audio=[None, wave], sampling_rate=RATE, return_tensors="pt")
        assert inputs.modality_mask.tolist() == [[True, False], [False, True]]
        lists = small()(videos=[video, None], audio=[wave, wave], sampling_rate=RATE)
        assert lists["modality_mask"] == [[True, True], [False, True]]
        assert lists["pixel_values"][1].shape == (4, 3, 32, 32)


class TestArrays:
    VIDEO = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    WAVE = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1

    def test_both(self):
        inputs = small()(videos=self.VIDEO, audio=self.WAVE, sampling_rate=RATE, return_tensors="pt")
        assert inputs.pixel_values.shape == (1, 4, 3, 32, 32)
        assert inputs.input_features.shape == (1, 100, 32)
        assert "modality_mask" not in inputs

    def test_layouts_lists_and_batches(self):
        processor = small()
        expected = processor(videos=self.VIDEO, return_tensors="pt").pixel_values
        first = torch.from_numpy(self.VIDEO).permute(0, 3, 1, 2)
        for same in (
            first,
            first.numpy(),
            list(self.VIDEO),
            [self.VIDEO],
            [first],
            self.VIDEO[None],
            [list(self.VIDEO)],
        ):
            assert torch.equal(processor(videos=same, return_tensors="pt").pixel_values, expected)
        batch = processor(videos=[self.VIDEO] * 3, audio=[self.WAVE] * 3, sampling_rate=RATE, return_tensors="pt")
        assert batch.pixel_values.shape[0] == batch.input_features.shape[0] == 3
        features = processor(audio=self.WAVE, sampling_rate=RATE, return_tensors="pt").input_features
        for same in (self.WAVE.tolist(), [self.WAVE], torch.from_numpy(self.WAVE), [self.WAVE.tolist()]):
            assert_rounding(processor(audio=same, sampling_rate=RATE, return_tensors="pt").input_features, features)

    def test_resampling_if_enabled(self):
        processor = small()
        inputs = processor(audio=self.WAVE, sampling_rate=8000, do_resample=True, return_tensors="pt")
        assert inputs.input_features.shape == (1, 100, 32)
        same = processor(audio=self.WAVE, sampling_rate=np.int64(8000), do_resample=True, return_tensors="pt")
        assert_rounding(same.input_features, inputs.input_features)

    def test_frames_are_sampled_if_enabled(self):
        inputs = small()(
            videos=np.concatenate([self.VIDEO] * 3), do_sample_frames=True, num_frames=4, return_tensors="pt"
        )
        assert inputs.pixel_values.shape[1] == 4


class TestErrors:
    VIDEO, WAVE = TestArrays.VIDEO, TestArrays.WAVE

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, ValueError, r"neither videos nor audio"),
            ({"videos": []}, ValueError, r"videos is empty"),
            ({"audio": []}, ValueError, r"audio is empty"),
            ({"audio": WAVE, "sampling_rate": 44100}, ValueError, r"sampling_rate=44100 Hz.*do_resample=True"),
            ({"audio": WAVE * np.nan, "sampling_rate": RATE}, ValueError, r"16000 NaN or infinite"),
            ({"audio": WAVE[:0], "sampling_rate": RATE}, ValueError, r"audio(\[0\])? is empty"),
            ({"audio": np.zeros((2, 100), np.float32), "sampling_rate": RATE}, ValueError, r"shape \(2, 100\).*mono"),
            ({"audio": np.zeros(100, np.int16), "sampling_rate": RATE}, ValueError, r"integers"),
            ({"videos": VIDEO[0]}, ValueError, r"shape \(40, 48, 3\)"),
            ({"videos": VIDEO[:0]}, ValueError, r"videos\[0\] is empty"),
            ({"videos": VIDEO * np.float32("nan")}, ValueError, r"videos\[0\] has .* NaN"),
            ({"videos": 3}, ValueError, r"videos is a int"),
            ({"videos": [VIDEO] * 2, "audio": [WAVE] * 3}, ValueError, r"2 videos, but 3 audio entries"),
            ({"videos": [VIDEO, b"file"]}, ValueError, r"videos mixes files and arrays"),
            ({"videos": VIDEO, "num_view": 4}, TypeError, r"unknown keyword argument num_view=4; known: .*num_views"),
            ({"videos": VIDEO, "text": "a dog"}, TypeError, r"unknown keyword argument text"),
            ({"videos": VIDEO, "videos_kwargs": {"sise": 4}}, TypeError, r"videos_kwargs has unknown entries sise"),
            ({"audio": WAVE, "padding": True}, TypeError, r"unknown keyword argument padding"),
            ({"videos": VIDEO, "num_views": 4}, ValueError, r"num_views=4 applies to media files only"),
            ({"videos": VIDEO, "mode": "train"}, ValueError, r"mode='train' applies to media files only"),
            ({"videos": VIDEO, "num_frames": 2}, ValueError, r"num_frames applies to media files only"),
            ({"videos": VIDEO, "videos_kwargs": {"fps": 2}}, ValueError, r"fps applies to media files only"),
            ({"videos": [1, 2]}, ValueError, "videos is a list of numbers: pass frames"),
            ({"videos": VIDEO, "images": VIDEO}, TypeError, r"unknown keyword argument images=.{1,60}; known"),
            (
                {"videos": [VIDEO, None], "audio": [WAVE, None], "sampling_rate": RATE},
                ValueError,
                r"clip 1 has neither video nor audio",
            ),
            (
                {"audio": WAVE, "sampling_rate": 0, "do_resample": True},
                ValueError,
                r"sampling_rate=0 Hz: rates must be whole numbers",
            ),
            ({"videos": {"bytes": None, "path": None}}, MediaError, r"neither bytes nor a path"),
            ({"videos": b"file", "generator": 0}, TypeError, r"generator=0: pass torch\.Generator"),
            ({"videos": b"file", "num_views": 0}, ValueError, r"num_views must be a positive integer, got 0"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            small()(**arguments, return_tensors="pt")

    def test_files(self, clip, silent_clip, tmp_path):
        with pytest.raises(MediaError, match=r"nowhere\.mp4"):
            small()(videos=str(tmp_path / "nowhere.mp4"))
        with pytest.raises(MediaError, match=r"broken\.mp4"):
            small()(videos={"bytes": b"no media", "path": "broken.mp4"})
        with pytest.raises(ValueError, match=r"sampling_rate=16000 is that of waveforms"):
            small()(videos=clip, sampling_rate=RATE)
        with pytest.raises(ValueError, match=r"num_views=2 needs media files"):
            small()(videos=clip, audio=self.WAVE, sampling_rate=RATE, num_views=2)
        silent = {"bytes": silent_clip, "path": "silent.mp4"}
        with pytest.raises(MediaError, match=r"silent\.mp4: has no readable audio track: leave the clip out"):
            small()(audio=silent)
        with pytest.raises(MediaError, match=r"silent\.mp4: has no readable audio"):
            small()(audio=[clip, silent])
        with pytest.raises(ValueError, match=r"mode must be 'train' or 'eval'"):
            small()(videos=clip, mode="test")

    def test_construction(self):
        with pytest.raises(TypeError, match=r"num_frame"):
            MBTProcessor(num_frame=4)
        with pytest.raises(ValueError, match=r"unknown fields of a window policy: frames"):
            MBTProcessor(window={"frames": 4})
        with pytest.raises(ValueError, match=r"audio_seconds=2\.0, but spectrogram_length=800.*holds 8 s"):
            MBTProcessor(feature_extractor=AVFusionFeatureExtractor(), audio_seconds=2.0)
        with pytest.raises(ValueError, match=r"channel_mix must be one of mean, left, max_energy, got 'right'"):
            MBTProcessor(channel_mix="right")
        with pytest.raises(TypeError, match=r"feature_extractor"):
            MBTProcessor(feature_extractor="mbt")


class TestTwoSteps:
    """The steps of training: decode, augment, process. Every constant comes from the processor."""

    def test_equals_one_step(self, clip, silent_clip):
        processor = small()
        clips = [c for source in (clip, silent_clip) for c in processor.load_clip(source, num_views=2)]
        assert clips[0].frames.dtype == torch.uint8
        assert clips[0].frames.shape == (4, 3, 64, 64)
        assert (clips[0].waveform.shape, clips[0].sampling_rate) == ((1, RATE), RATE)
        two = processor.process_clips(clips, return_tensors="pt")
        one = processor(videos=[clip, silent_clip], num_views=2, return_tensors="pt")
        assert_same_bits(two, one)  # one path from a window to tensors

    def test_augmented_frames_are_not_resized_again(self, clip):
        processor = small()
        (decoded,) = processor.load_clip(clip)
        resized = processor.video_processor.resize_frames(decoded.frames, 40)
        decoded.frames = resized[..., 3:35, 5:37].flip(-1)
        inputs = processor.process_clips([decoded], return_tensors="pt", do_resize=False, do_center_crop=False)
        assert torch.allclose(inputs.pixel_values[0], decoded.frames.float() * 2 / 255 - 1, atol=1e-6)
        decoded.frames = decoded.frames / 255
        floats = processor.process_clips(
            [decoded], return_tensors="pt", do_resize=False, do_center_crop=False, do_rescale=False
        )
        assert torch.allclose(floats.pixel_values, inputs.pixel_values, atol=1e-6)

    def test_part_of_a_file_and_one_track(self, clip):
        (part,) = small().load_clip(clip, start=1.0, end=1.8, tracks=("video",))
        assert part.waveform is None
        assert read_numbers(part.frames) == [25, 30, 35, 40]


class TestConfig:
    def test_published_defaults(self):
        processor = MBTProcessor()
        assert processor.window_policy == WindowPolicy()
        assert processor.model_input_names == ["pixel_values", "input_features"]
        pictures = [numbered_picture(i, (96, 72)) for i in range(64)]
        inputs = processor(videos=render_clip(pictures=pictures, seconds=2.56), return_tensors="pt")
        assert inputs.pixel_values.shape == (1, 32, 3, 224, 224)
        assert inputs.input_features.shape == (1, 800, 128)

    def test_front_end_follows_the_window(self):
        processor = MBTProcessor(num_frames=8, span=2.0, audio_seconds=2.0)
        assert processor.feature_extractor.spectrogram_length == 200
        assert processor.window_policy.stride == 0.25

    def test_saved_and_loaded(self, tmp_path, clip):
        processor = small(span=0.8, channel_mix="left")
        processor.save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
        saved = json.loads((tmp_path / "processor_config.json").read_text())
        assert saved["window"]["span"] == 0.8
        assert saved["channel_mix"] == "left"
        assert saved["feature_extractor"]["num_mel_bins"] == 32
        again = AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is MBTProcessor
        assert again.to_dict() == processor.to_dict()
        one, two = processor(videos=clip, return_tensors="pt"), again(videos=clip, return_tensors="pt")
        assert_same_bits(two, one)
        changed = AutoProcessor.from_pretrained(tmp_path, num_frames=2, short="hold", do_normalize=False)
        assert (changed.window_policy.num_frames, changed.window_policy.short) == (2, "hold")
        assert (changed.video_processor.num_frames, changed.video_processor.do_normalize) == (None, False)
        with pytest.raises(ValueError, match=r"audio_seconds=3\.0, but spectrogram_length=100"):
            AutoProcessor.from_pretrained(tmp_path, audio_seconds=3.0)
        longer = AutoProcessor.from_pretrained(tmp_path, audio_seconds=3.0, spectrogram_length=300)
        assert longer.feature_extractor.seconds == longer.window_policy.audio_seconds == 3.0
        one = AutoProcessor.from_pretrained(tmp_path, window={"num_frames": 3})
        assert one.window == {**processor.window, "num_frames": 3}  # the other fields stay as saved

    def test_trainer_finds_its_special_tokens(self):
        # transformers' Trainer aligns special tokens of any processor; without these it fails in train().
        assert MBTProcessor.tokenizer.eos_token_id is None
        assert MBTProcessor.tokenizer.init_kwargs == {}
        assert "tokenizer" not in MBTProcessor().to_dict()


def test_window_follows_the_feature_extractor_unless_given():
    extractor = AVFusionFeatureExtractor(num_mel_bins=32, spectrogram_length=100)
    assert MBTProcessor(feature_extractor=extractor).window_policy.audio_seconds == 1.0
    assert MBTProcessor().window_policy.audio_seconds == 8.0
    with pytest.raises(ValueError, match=r"audio_seconds=2\.0"):
        MBTProcessor(feature_extractor=extractor, audio_seconds=2.0)
