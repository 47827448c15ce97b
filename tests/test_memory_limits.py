"""Sizes in saved files are bounded by the memory that a call or a build would take, and the bound can be raised."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from rendering import render_clip

from hf_avfusion import AVMAEConfig, AVMAEProcessor, MBTConfig, MBTForAudioVisualClassification, MBTProcessor
from hf_avfusion.media.limits import MAX_BYTES, max_bytes
from hf_avfusion.media.reader import MediaError, read_clip
from hf_avfusion.processing.feature_extraction_avfusion import PRESETS, AVFusionFeatureExtractor

FRONT_ENDS = [
    {"padding": "waveform", "spectrogram_length": 2**20, "hop_length": 2**20},
    {"sampling_rate": 1048573},
    {"hop_length": 1, "n_fft": 2**20},
    {"n_fft": 2**20},  # fits into memory, but a clip would take minutes
    {"num_mel_bins": 2**20},
]
WINDOWS = [{"num_frames": 2**20}, {"audio_seconds": 86_400.0}]
CONFIGS = [{"num_frames": 2**20}, {"num_audio_channels": 2**20}, {"num_labels": 2**16 + 1}]


def refused():
    return pytest.raises(Exception, match=r"exceeds? the supported maximum|from 1 to 768,000 Hz")


@pytest.mark.parametrize("fields", FRONT_ENDS, ids=str)
@pytest.mark.parametrize("kind", [MBTProcessor, AVMAEProcessor])
def test_saved_front_ends(fields, kind, tmp_path):
    with refused():
        AVFusionFeatureExtractor(**fields)
    kind().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["feature_extractor"] |= fields
    path.write_text(json.dumps(saved))
    with refused():
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_extractor": 5}, "`feature_extractor` must be an object"),
        ({"video_processor": []}, "`video_processor` must be an object"),
        ({"feature_extractor": {"feature_extractor_type": 5}}, "`feature_extractor` must be an object"),
        ({"channel_mix": ["mean"]}, "channel_mix must be one of"),
    ],
)
def test_saved_parts_of_another_type(fields, message, tmp_path):
    MBTProcessor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ValueError, match=message):
        MBTProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", WINDOWS, ids=str)
def test_saved_windows(fields, tmp_path):
    MBTProcessor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["window"] |= fields
    saved["feature_extractor"] |= {"padding": "none", "spectrogram_length": None}
    path.write_text(json.dumps(saved))
    with refused():
        MBTProcessor.from_pretrained(tmp_path)


def test_a_saved_crop(tmp_path):
    MBTProcessor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["video_processor"]["crop_size"] = {"height": 2**14, "width": 2**14}
    path.write_text(json.dumps(saved))
    with refused():
        MBTProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
@pytest.mark.parametrize("config", [MBTConfig, AVMAEConfig])
def test_saved_configs(config, fields, tmp_path):
    with refused():
        config(**fields)
    saved = {**config().to_dict(), **fields}
    if "num_labels" in fields:
        saved["id2label"] = {index: str(index) for index in range(saved.pop("num_labels"))}
        saved["label2id"] = {}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with refused():
        config.from_pretrained(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_published_front_ends_and_an_hour_of_sound_are_inside(preset):
    extractor = AVFusionFeatureExtractor.from_preset(preset)
    assert extractor.bytes_of(16_000 * 10) < MAX_BYTES / 100
    assert extractor.bytes_of(16_000 * 3600) < MAX_BYTES
    MBTProcessor(num_frames=32, span=600.0, audio_seconds=600.0)


def test_calls_are_bounded_by_what_they_would_take(monkeypatch):
    clip = render_clip(seconds=1.0)
    made = MBTProcessor()
    with pytest.raises(ValueError, match="num_views=1000000, num_frames=32 and size="):
        made(videos=clip, num_views=10**6)
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", "100000")
    with pytest.raises(ValueError, match="16,000 samples in frames of n_fft=512 at hop_length=160"):
        made.feature_extractor(torch.zeros(16_000), sampling_rate=16_000)
    with pytest.raises(MediaError, match=r"50 frames of 64x64 and 16,000 samples of 1 channels together give"):
        read_clip(clip, frame_times=[index / 25 for index in range(50)], audio_window=(0, 1))
    assert len(read_clip(clip, frame_times=[0.0], audio_window=(0, 1)).frames) == 1


def test_the_bound_can_be_raised_and_lowered(monkeypatch):
    sizes = {"num_frames": 2, "image_size": 32, "spectrogram_length": 32, "hidden_size": 512, "num_attention_heads": 2}
    config = MBTConfig(**sizes)
    assert max_bytes() == MAX_BYTES
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", "20000000")  # more than a clip of the defaults takes
    with pytest.raises(
        ValueError, match=r"MBTConfig together give .* bytes, .* set the environment variable HF_AVFUSION_MAX"
    ):
        MBTForAudioVisualClassification(config)
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", "100000")
    with pytest.raises(
        StrictDataclassClassValidationError, match="`num_frames`, `num_channels`, `image_size` together give"
    ):
        MBTConfig()
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", str(2**40))
    MBTConfig(num_frames=1024, image_size=256)
    monkeypatch.setenv("HF_AVFUSION_MAX_BYTES", "4 GiB")
    with pytest.raises(
        (ValueError, StrictDataclassClassValidationError),
        match="HF_AVFUSION_MAX_BYTES='4 GiB' must be a whole number of bytes",
    ):
        MBTConfig()
