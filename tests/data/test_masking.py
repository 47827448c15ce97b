"""Masks of pretraining depend on the clip and the epoch, not on the batch."""

import pytest
import torch

from hf_avfusion.data.masking import MaskingCollator
from hf_avfusion.data.streaming.clip_stream import ClipStream
from hf_avfusion.models.avmae.configuration_avmae import AVMAEConfig

CONFIG = AVMAEConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, decoder_hidden_size=16,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16, image_size=16, patch_size=4,
    num_frames=4, num_mel_bins=16, spectrogram_length=18, drop_remainder=True, video_mask_ratio=0.75,
    audio_mask_ratio=0.5,
)  # fmt: skip


def sample(number, video=True, audio=True, seeded=True):
    made = {"clip_id": str(number), "has_video": video, "has_audio": audio, "labels": torch.tensor(1)}
    if video:
        made["pixel_values"] = torch.full((4, 3, 16, 16), float(number))
    if audio:
        made["input_features"] = torch.full((18, 16), float(number))
    return made | ({"seed": 1000 + number} if seeded else {})


def test_a_clip_has_the_same_mask_in_every_batch():
    collate = MaskingCollator(CONFIG)
    four = collate([sample(n) for n in range(4)])
    assert set(four) == {"pixel_values", "input_features", "video_visible", "audio_visible"}  # and no labels
    assert four["video_visible"].shape == (4, 8)
    assert four["audio_visible"].shape == (4, 8)
    for modality, tokens in (("video", 32), ("audio", 16)):
        visible = four[f"{modality}_visible"]
        assert all(len(set(row.tolist())) == 8 and max(row) < tokens for row in visible)
        assert len({tuple(row.tolist()) for row in visible}) == 4
        other = MaskingCollator(CONFIG, seed=5)([sample(3), sample(1)])[f"{modality}_visible"]
        assert torch.equal(other, visible[[3, 1]])


def test_tube_masks_and_single_modalities():
    tube = MaskingCollator(AVMAEConfig(**{**CONFIG.to_dict(), "video_masking": "tube"}))([sample(0)])["video_visible"]
    assert torch.equal(tube[0, 4:], tube[0, :4] + 16)
    audio = MaskingCollator(AVMAEConfig(**{**CONFIG.to_dict(), "modalities": ("audio",)}))([sample(0, video=False)])
    assert set(audio) == {"input_features", "audio_visible"}


def test_missing_modalities():
    collate = MaskingCollator(CONFIG)
    some = collate([sample(0), sample(1, video=False)])
    assert some["modality_mask"].tolist() == [[True, True], [False, True]]
    assert some["video_visible"].shape == (2, 8)
    assert set(collate([sample(0, video=False)])) == {"input_features", "audio_visible"}


def test_without_seeds_the_collator_uses_its_own_generator():
    first, second = (MaskingCollator(CONFIG, seed=seed)([sample(0, seeded=False)]) for seed in (1, 1))
    assert torch.equal(first["video_visible"], second["video_visible"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    MaskingCollator(CONFIG)([sample(0), sample(1, seeded=False)])
    assert torch.equal(before, torch.get_rng_state())


def test_mixup_raises():
    with pytest.raises(ValueError, match="no labels to mix"):
        MaskingCollator(CONFIG, mixup_alpha=0.5)


def test_a_stream_has_reproducible_masks_that_differ_between_epochs():
    rows = [{"clip_id": str(n), "video": {}, "start": None, "end": None} for n in range(3)]
    stream = ClipStream(rows, lambda row, generator: sample(int(row["clip_id"]), seeded=False), seed=7)

    def masks(epoch):
        stream.set_epoch(epoch)
        return MaskingCollator(CONFIG)(list(stream))["video_visible"]

    assert not torch.equal(masks(0), masks(1))
    assert torch.equal(masks(1), masks(1))
