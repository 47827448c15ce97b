"""AVMAEProcessor: the published settings, and loading through the Auto class."""

import pytest
import torch
from rendering import render_clip
from transformers import AutoProcessor

from hf_avfusion import AVMAEConfig, AVMAEForPreTraining, AVMAEProcessor


def test_defaults_are_those_of_pretraining_on_vggsound():
    processor = AVMAEProcessor()
    window, extractor = processor.window_policy, processor.feature_extractor
    assert (window.num_frames, window.stride, window.audio_seconds) == (16, pytest.approx(4 / 25), 8.0)
    assert (extractor.spectrogram_length, extractor.mean, extractor.std) == (800, 0.0, 1.0)
    config = AVMAEConfig()
    assert (config.num_frames, config.spectrogram_length, config.num_mel_bins) == (16, 800, extractor.num_mel_bins)
    assert AVMAEProcessor(audio_seconds=10.0).feature_extractor.spectrogram_length == 1000
    finetuning = AVMAEProcessor(num_frames=32, frame_rate=12.5)
    assert (finetuning.window_policy.num_frames, finetuning.window_policy.stride) == (32, pytest.approx(2 / 25))


def test_a_file_can_be_processed_for_the_model(tmp_path):
    AVMAEProcessor(audio_seconds=1.0).save_pretrained(tmp_path)
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    sound = {"spectrogram_length": 100, "drop_remainder": True}  # 6 rows of patches use 96
    model = AVMAEForPreTraining(AVMAEConfig(**sizes, decoder_num_hidden_layers=1, **sound)).eval()
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is AVMAEProcessor
    clip = render_clip(num_frames=75, size=(64, 64), seconds=3.0, audio_codec="flac", container="matroska")
    inputs = processor(videos=clip, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 16, 3, 224, 224)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).loss)
