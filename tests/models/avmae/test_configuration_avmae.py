"""AV-MAE configs: released sizes, parameter counts, contradictory fields."""

from pathlib import Path

import pytest
import torch
from tiny_avmae import QUIET, STRATEGIES, TINY

from hf_avfusion import AVMAEConfig, AVMAEForPreTraining


def block(width: int, mlp: int) -> int:
    return 4 * width * (width + 1) + 2 * width * mlp + mlp + width + 4 * width  # attention, MLP, two norms


def expected_parameters(config: AVMAEConfig) -> int:
    """Counted by hand from the original's parameters."""
    d, e, values = config.hidden_size, config.decoder_hidden_size, {"video": 2 * 16 * 16 * 3, "audio": 256}
    total = sum(values.values()) * d + 2 * d  # patch projections
    layers, s = config.num_hidden_layers, config.num_fusion_layers
    stacks = {
        "early": [layers],
        "shared": [layers],
        "separate": [layers] * 2,
        "mid_fusion": [layers - (s or 0)] * 2 + [s],
    }
    for depth in stacks[config.encoder_strategy]:
        total += depth * block(d, config.intermediate_size) + 2 * d
    decoders = 2 if config.decoder_strategy == "separate" else 1
    total += decoders * (config.decoder_num_hidden_layers * block(e, config.decoder_intermediate_size) + 2 * e)
    total += 2 * (d * e + e) + 2 * e  # projections, mask tokens
    return total + sum(e * n + n for n in values.values())


@QUIET
@pytest.mark.parametrize(("encoder", "decoder"), STRATEGIES)
def test_parameter_counts_of_every_strategy(encoder, decoder):
    config = AVMAEConfig.base(encoder_strategy=encoder, decoder_strategy=decoder)
    with torch.device("meta"):
        model = AVMAEForPreTraining(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected_parameters(config)


def test_the_released_sizes():
    """Spec sections 1, 2, 5 and 11: tokens, visible tokens, values of a patch, sizes."""
    vggsound = AVMAEConfig.large()
    assert (vggsound.num_tokens("video"), vggsound.num_visible_tokens("video")) == (1568, 157)
    assert (vggsound.num_tokens("audio"), vggsound.num_visible_tokens("audio")) == (400, 200)
    audioset = AVMAEConfig.large(
        encoder_strategy="mid_fusion", audio_mask_ratio=0.7, spectrogram_length=1000, drop_remainder=True
    )
    assert (audioset.num_tokens("audio"), audioset.num_visible_tokens("audio"), audioset.num_fusion_layers) == (
        496,
        149,
        2,
    )
    assert (vggsound.num_target_values("video"), vggsound.num_target_values("audio")) == (1536, 256)
    assert AVMAEConfig.large(num_frames=32).num_tokens("video") == 3136
    sizes = [
        (c.hidden_size, c.num_attention_heads, c.intermediate_size, c.num_hidden_layers)
        for c in (AVMAEConfig.small(), AVMAEConfig.base(), AVMAEConfig.large(), AVMAEConfig.huge())
    ]
    assert sizes == [(384, 6, 1536, 12), (768, 12, 3072, 12), (1024, 16, 4096, 24), (1280, 16, 5120, 32)]
    assert AVMAEConfig().to_diff_dict() == AVMAEConfig.base().to_diff_dict()
    large = AVMAEConfig.large()
    assert (large.decoder_hidden_size, large.decoder_num_attention_heads, large.decoder_intermediate_size) == (
        512,
        8,
        2048,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_strategy": "late"}, "`encoder_strategy` must be one of"),
        ({"decoder_strategy": "none"}, "`decoder_strategy` must be one of"),
        ({"modalities": ("video", "text")}, "`modalities` must name one or both"),
        ({"modalities": ("video", "video")}, "`modalities` must name one or both"),
        ({"video_mask_ratio": 1.0}, r"`video_mask_ratio` must lie in \[0, 1\)"),
        ({"hidden_size": 100}, "multiple of `num_attention_heads`"),
        ({"decoder_hidden_size": 100}, "multiple of `decoder_num_attention_heads`"),
        ({"hidden_size": 9, "num_attention_heads": 3}, "even `hidden_size`"),
        ({"num_fusion_layers": 2}, 'needs `encoder_strategy="mid_fusion"`'),
        ({"encoder_strategy": "mid_fusion", "num_fusion_layers": 13}, "`num_fusion_layers` must lie between"),
        ({"image_size": 100}, "`image_size` 100 is not a multiple of 16.*nearest that fit are 96 and 112"),
        ({"num_frames": 15, "drop_remainder": True}, "`num_frames` 15 is not a multiple of 2.*14 and 16"),
        ({"spectrogram_length": 8}, "smaller than one patch"),
        (
            {"spectrogram_length": 1000},
            "`spectrogram_length` 1000 is not a multiple of 16.*992 and 1008.*drop_remainder=True",
        ),
        ({"readout": "token"}, "for a single modality"),
        ({"readout": "token", "modalities": ("audio",), "num_segments": 10}, "needs a pooled `readout`"),
        ({"target_standardization": "pixel"}, "`target_standardization` must be one of"),
        ({"problem_type": "multi_head_classification"}, "must be set together"),
        ({"drop_path_rate": 1.5}, "`drop_path_rate` must lie in"),
        ({"num_segments": 0}, "`num_segments` must be at least 1"),
    ],
)
def test_contradictory_configs_name_their_fields(fields, message):
    with pytest.raises(Exception, match=message):
        AVMAEConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "modality_inpainting", "modalities": ("audio",)}, "`modalities` must name both"),
        ({"objective": "modality_inpainting", "video_mask_ratio": 0.1}, "Raise `video_mask_ratio`"),
        ({"readout": "token", "modalities": ("audio",)}, "no CLS token"),
    ],
)
def test_pretraining_refuses_some_valid_configs(fields, message):
    config = AVMAEConfig(**{**TINY, **fields})
    with pytest.raises(ValueError, match=message):
        AVMAEForPreTraining(config)


def test_the_strategy_pair_forbidden_in_the_original_warns():
    with pytest.warns(UserWarning, match="two autoencoders that share nothing") as caught:
        AVMAEForPreTraining(AVMAEConfig(**TINY, decoder_strategy="separate"))
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]  # once, at the caller's line
