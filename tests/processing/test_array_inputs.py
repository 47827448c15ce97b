"""Frames, pictures, waveforms and rows of datasets passed in place of files: converted rightly, or refused."""

import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from rendering import render_clip

from hf_avfusion.models.mbt.configuration_mbt import MBTConfig
from hf_avfusion.models.mbt.processing_mbt import MBTProcessor
from hf_avfusion.processing.feature_extraction_avfusion import AVFusionFeatureExtractor
from hf_avfusion.processing.video_processing_avfusion import AVFusionVideoProcessor

SIDE = {"height": 16, "width": 16}
EXTRACTOR = AVFusionFeatureExtractor(spectrogram_length=50)
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
WAVEFORM = np.sin(np.arange(8000) * 0.3).astype(np.float32)


@pytest.fixture
def processor() -> MBTProcessor:
    extractor = AVFusionFeatureExtractor(spectrogram_length=50)
    return MBTProcessor(AVFusionVideoProcessor(size=SIDE, crop_size=SIDE), extractor, num_frames=4, span=0.4)


@pytest.fixture
def logged(caplog, monkeypatch):
    """Messages that transformers' loggers emit, each once in a test."""
    monkeypatch.setattr(logging.getLogger("hf_avfusion"), "propagate", True)
    caplog.set_level(logging.WARNING)
    for kind in (AVFusionVideoProcessor, AVFusionFeatureExtractor):
        type(logging.getLogger(kind.__module__)).warning_once.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records]


def pixels(frames, **options) -> torch.Tensor:
    return AVFusionVideoProcessor(size=SIDE, crop_size=SIDE, **options)(frames, return_tensors="pt").pixel_values


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "RGBX"])
def test_pictures_of_other_modes_are_converted_as_pil_does(mode, processor):
    pictures = [Image.fromarray(picture).convert(mode) for picture in PICTURES]
    expected = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    for given in (pictures, [pictures], tuple(pictures)):
        assert torch.equal(pixels(given), pixels(expected))
    assert torch.equal(processor(videos=pictures, return_tensors="pt").pixel_values, pixels(expected))
    mixed = [pictures, None]
    batch = processor(videos=mixed, audio=[WAVEFORM] * 2, sampling_rate=16000, return_tensors="pt")
    assert torch.equal(batch.pixel_values[:1], pixels(expected))


def test_masked_arrays_are_refused(processor):
    masked, sound = np.ma.masked_greater(PICTURES, 100), np.ma.masked_greater(WAVEFORM, 0.5)
    for videos in (masked, list(masked), [masked, None]):
        with pytest.raises(
            ValueError, match=r"videos.* is a masked array, .* fill it first, such as array.filled\(0\)"
        ):
            processor(videos=videos)
    with pytest.raises(ValueError, match=r"videos\[0\] is a masked array"):
        pixels(masked)
    for audio in (sound, [sound], {"array": sound, "sampling_rate": 16000}):
        with pytest.raises(ValueError, match=r"audio.* is a masked array"):
            processor(audio=audio, **({} if isinstance(audio, dict) else {"sampling_rate": 16000}))
        with pytest.raises(ValueError, match=r"audio.* is a masked array"):
            EXTRACTOR(audio, sampling_rate=16000)


@pytest.mark.parametrize(
    "videos", [PICTURES.tolist(), [PICTURES.tolist()], (PICTURES / 255).tolist(), [1, 2], list(PICTURES[0, 0, 0])]
)
def test_lists_of_numbers_are_no_frames(videos, processor):
    for call in (processor, pixels):
        with pytest.raises(
            ValueError, match=r"is a list of numbers: pass frames as numpy or torch arrays, such as np.array"
        ):
            call(videos)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_with_values_beyond_8_bits_are_refused(mode, processor):
    values = np.arange(400).reshape(20, 20)
    picture = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    assert picture.mode == mode
    for call in (pixels, lambda frames: processor(videos=frames)):
        with pytest.raises(ValueError, match=rf"videos\[1\] is a picture of mode {mode}, .*scale it to 8 bits"):
            call([Image.fromarray(PICTURES[0, :, :20]), picture])


def test_pictures_without_a_right_conversion_are_refused():
    half = Image.fromarray(PICTURES[0]).convert("RGBA")
    half.putalpha(Image.new("L", half.size, 128))
    with pytest.raises(ValueError, match=r"videos\[0\] .*transparent pixels.*alpha_composite"):
        pixels([half])
    palette = Image.fromarray(PICTURES[0]).convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    with pytest.raises(ValueError, match="mode P with transparent pixels"):
        pixels([palette])
    with pytest.raises(ValueError, match=r"videos\[0\] is a picture of mode La: .*convert it to RGB first"):
        pixels([Image.new("La", (20, 20), (0, 255))])
    with pytest.raises(ValueError, match="mode L, and do_convert_rgb is False"):
        pixels([Image.fromarray(PICTURES[0]).convert("L")], do_convert_rgb=False)


def test_pictures_anywhere_in_a_list_are_converted(processor):
    """Also behind clips without a video, and beside clips passed as arrays."""
    pictures = [Image.fromarray(picture).convert("HSV") for picture in PICTURES]
    expected = pixels(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))[0]
    audio = {"audio": [WAVEFORM] * 3, "sampling_rate": 16000}
    assert torch.equal(processor(videos=[None, None, pictures], return_tensors="pt", **audio).pixel_values[2], expected)
    assert torch.equal(processor(videos=[PICTURES, PICTURES, pictures], return_tensors="pt").pixel_values[2], expected)
    mixed = [*PICTURES[:2], pictures[2]]  # frames of one video
    assert torch.equal(pixels(mixed)[0, 2], expected[2])
    assert torch.equal(processor(videos=mixed, return_tensors="pt").pixel_values[0, 2], expected[2])


# --------------------------------------------------------------------------------------------------------------- frames


def test_frames_of_several_dtypes_in_a_list_are_refused(processor):
    for other in (PICTURES[1] > 127, PICTURES[1] / 255):
        for call in (pixels, lambda frames: processor(videos=frames)):
            with pytest.raises(ValueError, match=r"videos\[1\] holds bool values|frames of the dtypes float64, uint8"):
                call([PICTURES[0], other, PICTURES[2]])


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint16", ">u2", "int32", "uint32", "int64"])
def test_frames_of_unknown_scale_are_refused(dtype, processor):
    frames = PICTURES.astype(dtype)
    tensor = torch.from_numpy(frames.astype(np.dtype(dtype).newbyteorder("=")))
    for given in (frames, tensor, [frames], list(frames)):
        with pytest.raises(
            ValueError, match=r"videos\[0\] holds .* values, but frames are uint8 \(0 to 255\) or floats"
        ):
            pixels(given)
    with pytest.raises(ValueError, match="frames are uint8"):
        processor(videos=[frames])


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "float16"])
def test_floats_of_any_width_and_byte_order_give_the_same(dtype):
    found, expected = pixels(PICTURES.astype(dtype)).float(), pixels(PICTURES.astype(np.float32))
    # float16 frames are resized in float16; measured: 5e-4.
    torch.testing.assert_close(found, expected, atol=1e-3 if dtype == "float16" else 0, rtol=0)


def test_frames_in_reverse_order_are_read():
    assert torch.equal(pixels(PICTURES[::-1]), pixels(PICTURES[::-1].copy()))
    assert torch.equal(pixels(PICTURES[:, :, ::-1]), pixels(PICTURES[:, :, ::-1].copy()))


def test_frames_on_another_scale_give_a_warning(logged):
    pixels(PICTURES.astype(np.float32))
    assert logged() == []
    pixels(PICTURES.astype(np.float32) * 257)
    pixels(PICTURES, do_rescale=False)
    texts = logged()
    assert len(texts) == 2
    assert "floats below 0 or above 255, but are divided by 255: scale them first" in texts[0]
    assert "normalised without being divided by 255" in texts[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std=.* other than 0"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean=.* must be finite numbers"),
        ({"image_std": float("inf")}, "image_std=inf"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0 must be finite numbers other than 0"),
        ({"image_std": [0.5, 0.5]}, "one for each of the 3 colours"),
    ],
)
def test_statistics_that_give_no_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AVFusionVideoProcessor(**fields)
    with pytest.raises(ValueError, match=message):
        AVFusionVideoProcessor()(PICTURES, **fields)


# ---------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("dtype", [">f4", ">f8", "float16", "float64"])
def test_waveforms_of_any_width_and_byte_order_give_the_same(dtype):
    expected = EXTRACTOR(WAVEFORM.astype(np.dtype(dtype).newbyteorder("=")).astype(np.float32), sampling_rate=16000)
    found = EXTRACTOR(WAVEFORM.astype(dtype), sampling_rate=16000)
    assert np.array_equal(found.input_features[0], expected.input_features[0])


def test_a_waveform_in_reverse_order_is_read():
    found, expected = (EXTRACTOR(wave, sampling_rate=16000) for wave in (WAVEFORM[::-1], WAVEFORM[::-1].copy()))
    assert np.array_equal(found.input_features[0], expected.input_features[0])


def test_floats_on_the_scale_of_16_bits_give_one_warning(logged, tmp_path):
    EXTRACTOR(WAVEFORM * 2, sampling_rate=16000)
    assert logged() == []
    for loudness in (32767, 20000):  # other files of the same data set
        EXTRACTOR([WAVEFORM, np.round(WAVEFORM * loudness)], sampling_rate=16000)
    assert len(logged()) == 1
    assert "audio holds floats beyond 16, but a waveform lies in [-1, 1]: divide" in logged()[0]


def test_samples_beyond_all_scales_are_refused(processor):
    wave = WAVEFORM.copy()
    wave[100] = 1e20
    with pytest.raises(ValueError, match=r"audio\[0\] holds a sample of 1e\+20"):
        processor(audio={"array": wave, "sampling_rate": 16000})


@pytest.mark.parametrize("rate", [True, "16000", 0, 16000.5, 800_000])
def test_wrong_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"sampling_rate=.*whole numbers from 1 to 768,000 Hz"):
        EXTRACTOR(WAVEFORM, sampling_rate=rate, do_resample=True)


def test_resampling_is_bounded_before_it_begins():
    with pytest.raises(ValueError, match="300,000 samples at 1 Hz, 4,800,000,000 at 16000 Hz"):
        EXTRACTOR(np.zeros(300_000, np.float32), sampling_rate=1, do_resample=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"std": 1e-300}, "std \\* divisor within 1e-6 to 1e6"),
        ({"power": 1e9}, "power=1000000000.0 must be at most 8"),
        ({"log_offset": 1e300}, "log_offset=1e\\+300 at most 1e6"),
        ({"num_mel_bins": 2}, "at least 3 bins"),
        ({"window_periodic": "no"}, "must be True or False"),
        ({"sampling_rate": 1, "fmax": None}, "at least 100 Hz"),
    ],
)
def test_front_ends_beyond_all_use_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AVFusionFeatureExtractor(**fields)


@pytest.mark.parametrize("fields", [{"crop_size": {"height": 0, "width": 4}}, {"size": {"height": -1, "width": 4}}])
def test_sides_below_one_pixel_are_refused(fields):
    with pytest.raises(ValueError, match="must be at least 1 pixel"):
        AVFusionVideoProcessor(**fields)


def test_misspelt_fields_are_refused(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for name, right in (
        ("num_frmes", "num_frames"),
        ("channel_mx", "channel_mix"),
        ("crop_sise", "crop_size"),
        ("windw", "window"),
    ):
        with pytest.raises(TypeError, match=f"has no field {name}; did you mean {right}"):
            MBTProcessor.from_pretrained(tmp_path, **{name: 8})
    with pytest.raises(TypeError, match="AVFusionFeatureExtractor has no field hop_lenght; did you mean hop_length"):
        AVFusionFeatureExtractor(hop_lenght=80)
    with pytest.raises(TypeError, match="has no field crop_sise; did you mean crop_size"):
        AVFusionVideoProcessor(crop_sise=8)
    with pytest.raises(TypeError, match="MBTConfig has no field fusion_layr; did you mean fusion_layer"):
        MBTConfig(fusion_layr=3)
    assert MBTProcessor.from_pretrained(tmp_path, local_files_only=True, num_frames=2).window["num_frames"] == 2


@pytest.mark.parametrize("fields", [{"log_floor": float("nan")}, {"fmax": float("inf")}, {"fmin": float("nan")}])
def test_front_ends_that_give_no_numbers_are_refused(fields):
    with pytest.raises(ValueError, match="must be a finite number"):
        AVFusionFeatureExtractor(**fields)


def test_a_row_of_audio_means_its_array(processor, tmp_path):
    """datasets' `Audio` keeps the path of the file beside the decoded samples, which a user may have changed since."""
    path = str(
        render_clip(
            tmp_path / "other.wav", num_frames=0, audio="clicks", seconds=2.0, container="wav", audio_codec="pcm_s16le"
        )
    )
    row = {"array": WAVEFORM, "path": path, "sampling_rate": 16000}
    expected = EXTRACTOR(WAVEFORM, sampling_rate=16000, return_tensors="pt").input_features
    for given in (row, [row], {**row, "path": None}, {**row, "array": WAVEFORM.tolist()}):
        assert torch.equal(processor(audio=given, return_tensors="pt").input_features, expected)
        assert torch.equal(EXTRACTOR(given, return_tensors="pt").input_features, expected)
    assert torch.equal(processor(audio=row, sampling_rate=16000, return_tensors="pt").input_features, expected)
    both = processor(audio=[row, WAVEFORM], sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(both, expected.repeat(2, 1, 1))


def test_rates_of_rows_are_checked(processor):
    row = {"array": WAVEFORM, "sampling_rate": 8000}
    with pytest.raises(ValueError, match=r"sampling_rate=8000 Hz, but these features need 16000 Hz.*do_resample=True"):
        processor(audio=row)
    with pytest.raises(
        ValueError, match=r"audio\[0\] has sampling_rate 8000 in its row, but sampling_rate=16000 was passed"
    ):
        processor(audio=[row], sampling_rate=16000)
    with pytest.raises(
        TypeError, match=r"audio is a dict with the keys samples, rate: pass `array` and `sampling_rate`"
    ):
        EXTRACTOR({"samples": WAVEFORM, "rate": 16000})
    with pytest.raises(TypeError, match="the keys array, start"):
        EXTRACTOR({"array": WAVEFORM, "start": 1.0})
    resampled = EXTRACTOR(WAVEFORM, sampling_rate=8000, do_resample=True, return_tensors="pt").input_features
    rows = [row, {"array": WAVEFORM, "sampling_rate": 16000}]
    found = processor(audio=rows, do_resample=True, return_tensors="pt").input_features
    assert torch.equal(found[0], resampled[0])
    assert torch.equal(found[1:], EXTRACTOR(WAVEFORM, sampling_rate=16000, return_tensors="pt").input_features)


def test_columns_that_datasets_decoded_are_read_as_their_files(processor, torchcodec, tmp_path):
    video = str(render_clip(tmp_path / "clip.mp4", num_frames=30))
    audio = str(render_clip(tmp_path / "clip.wav", num_frames=0, seconds=2.0, container="wav", audio_codec="pcm_s16le"))
    rows = datasets.Dataset.from_dict({"video": [video], "audio": [audio]})
    rows = rows.cast_column("video", datasets.Video()).cast_column("audio", datasets.Audio())
    row = rows[0]
    expected = processor(videos=video, return_tensors="pt")
    found = processor(videos=row["video"], return_tensors="pt")
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert torch.equal(found.input_features, expected.input_features)
    of_file = processor(audio=audio, return_tensors="pt").input_features
    assert torch.equal(processor(audio=row["audio"], return_tensors="pt").input_features, of_file)
    assert torch.equal(processor(audio=[row["audio"]], return_tensors="pt").input_features, of_file)
    (clip,) = processor.load_clip(row["video"])
    assert clip.frames is not None
    assert clip.waveform is not None
