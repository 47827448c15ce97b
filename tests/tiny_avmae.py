"""A tiny AV-MAE whose predictions are not all zero, with inputs and masks of its size."""

import pytest
import torch

from hf_avfusion import AVMAEConfig, AVMAEForPreTraining

TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "num_frames": 4,
    "num_mel_bins": 16,
    "spectrogram_length": 24,
    "video_mask_ratio": 0.75,
    "num_labels": 5,
}
STRATEGIES = [
    (encoder, decoder)
    for encoder in ("early", "shared", "separate", "mid_fusion")
    for decoder in ("shared", "separate", "concatenated")
]
QUIET = pytest.mark.filterwarnings("ignore:.*two autoencoders that share")


def tiny(cls=AVMAEForPreTraining, **changes):
    torch.manual_seed(0)
    model = cls(AVMAEConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():  # heads and mask tokens start at zero, which would make predictions prove nothing
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs(size: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(size, 4, 3, 16, 16, generator=generator) * 2 - 1,
        "input_features": torch.randn(size, 24, 16, generator=generator),
    }


def masks(model, size: int = 2, seed: int = 2) -> dict[str, torch.Tensor]:
    return model.draw_masks(size, generator=torch.Generator().manual_seed(seed))
