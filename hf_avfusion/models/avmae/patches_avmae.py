"""Patches of a masked autoencoder: random masks, cutting, standardising, loss and reassembly."""

import torch

from .configuration_avmae import AVMAEConfig

EPSILON = 1e-6  # added to the variance inside the root, as jax.nn.standardize does


def draw_visible_tokens(
    config: AVMAEConfig,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    fixed: bool = False,
) -> dict[str, torch.Tensor]:
    """
    Random masks with the config's ratios: `{"video_visible", "audio_visible"}`, each long [B, k]: the indices of the visible
    tokens in the (random) order in which the encoder processes them. Only the config's modalities have a mask.

    Args:
        generator: By default PyTorch's global generator of the device. A CPU generator gives the same masks everywhere.
        device: Device of the result; by default the CPU.
        fixed: Pseudo-random masks that are the same in every call, run and on every device.
    """
    device, drawn = "cpu" if device is None else device, {}
    for salt, modality in enumerate(config.modalities):
        visible, tokens = config.num_visible_tokens(modality), config.num_tokens(modality)
        tube = modality == "video" and config.video_masking == "tube"
        steps = config.video_grid[0] if tube else 1
        positions = tokens // steps
        if fixed:
            noise = fixed_noise(batch_size, positions, salt << 40, device)
        else:
            source = device if generator is None else generator.device
            noise = torch.rand(batch_size, positions, generator=generator, device=source).to(device)
        chosen = noise.argsort(dim=1)[:, positions - visible // steps :]
        if tube:  # the same positions in every frame group; visible tokens keep their order
            start = torch.arange(0, tokens, positions, device=device)[None, :, None]
            chosen = (chosen.sort(dim=1).values[:, None, :] + start).flatten(1)
        drawn[f"{modality}_visible"] = chosen
    return drawn


def fixed_noise(rows: int, columns: int, salt: int, device: torch.device | str) -> torch.Tensor:
    """Pseudo-random int64 [rows, columns] (a SplitMix64-like mix), the same in every run and on every device."""
    # ^ adds here, since the salt has no bit that a position has. torch.compile would fold + and * into one index beyond 64 bits.
    value = torch.arange(rows * columns, device=device).view(rows, columns) ^ salt
    for multiplier in (-7046029254386353131, -4658895280553007687, -7723592293110705685):
        value = value * multiplier
        value = value ^ (value >> 29)
    return value


def video_patches(
    pixel_values: torch.Tensor, tubelet_size: int, patch_hw: tuple[int, int], central_frame: bool = False
) -> torch.Tensor:
    """
    Frames [B, T, C, H, W] -> patch vectors [B, t*h*w, values], each ordered frame, row, column, channel.

    `central_frame` keeps only frame `tubelet_size // 2` of each tubelet. T, H and W must be divisible by the patch.
    """
    batch, frames, channels, height, width = pixel_values.shape
    ph, pw = patch_hw
    t, h, w = frames // tubelet_size, height // ph, width // pw
    patches = pixel_values.reshape(batch, t, tubelet_size, channels, h, ph, w, pw).permute(0, 1, 4, 6, 2, 5, 7, 3)
    if central_frame:
        patches = patches[:, :, :, :, tubelet_size // 2 : tubelet_size // 2 + 1]
    return patches.reshape(batch, t * h * w, -1)


def patches_to_frames(
    patches: torch.Tensor, grid: tuple[int, int, int], patch_hw: tuple[int, int], num_channels: int
) -> torch.Tensor:
    """
    The inverse of [`video_patches`]: [B, t*h*w, values] -> frames [B, t * frames per patch, C, H, W].

    Patches of central frames give one frame per tubelet.
    """
    (t, h, w), (ph, pw) = grid, patch_hw
    pixels = patches.reshape(patches.shape[0], t, h, w, -1, ph, pw, num_channels).permute(0, 1, 4, 7, 2, 5, 3, 6)
    return pixels.reshape(patches.shape[0], -1, num_channels, h * ph, w * pw)


def spectrogram_patches(input_features: torch.Tensor, patch_hw: tuple[int, int]) -> torch.Tensor:
    """
    Spectrogram [B, C, time, mel] -> patch vectors [B, t*f, values], ordered time, mel, channel.

    Remainders of time and mel are dropped, as in the embedding.
    """
    batch, channels, time, mel = input_features.shape
    ph, pw = patch_hw
    t, f = time // ph, mel // pw
    patches = input_features[:, :, : t * ph, : f * pw].reshape(batch, channels, t, ph, f, pw)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, t * f, -1)


def patches_to_spectrogram(
    patches: torch.Tensor, grid: tuple[int, int], patch_hw: tuple[int, int], num_channels: int = 1
) -> torch.Tensor:
    """The inverse of [`spectrogram_patches`]: [B, t*f, values] -> [B, t * ph, f * pw], or with a channel axis after B."""
    (t, f), (ph, pw) = grid, patch_hw
    planes = patches.reshape(patches.shape[0], t, f, ph, pw, num_channels).permute(0, 5, 1, 3, 2, 4)
    planes = planes.reshape(patches.shape[0], num_channels, t * ph, f * pw)
    return planes.squeeze(1) if num_channels == 1 else planes


def patch_statistics(
    patches: torch.Tensor, standardization: str | None, num_channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and standard deviation of patch vectors [B, N, values], in a shape that broadcasts over them.

    `"patch"`: over the whole vector; `"patch_channels"`: over each of its interleaved channels; None: 0 and 1. The standard
    deviation is sqrt(biased variance + 1e-6).
    """
    if standardization is None:
        return patches.new_zeros(1), patches.new_ones(1)
    if standardization == "patch":
        variance, mean = torch.var_mean(patches, dim=-1, correction=0, keepdim=True)
        return mean, (variance + EPSILON).sqrt()
    pixels = patches.unflatten(-1, (-1, num_channels))
    variance, mean = torch.var_mean(pixels, dim=-2, correction=0, keepdim=True)
    deviation = (variance + EPSILON).sqrt()
    return mean.expand_as(pixels).flatten(-2), deviation.expand_as(pixels).flatten(-2)


def patch_loss(
    predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, average_over_features: bool = True
) -> torch.Tensor:
    """
    Squared error of patches, averaged over the weighted patches of the whole batch: a float32 scalar.

    Args:
        predictions, targets: [B, N, values], computed in float32.
        weights: [B, N]; 1 where a patch counts.
        average_over_features: divide by the number of values per patch; else their errors are summed.
    """
    errors = (predictions.float() - targets.float()).square().sum(dim=-1)
    weights = weights.to(errors.dtype)
    loss = (errors * weights).sum() / (weights.sum() + 1e-8)
    return loss / predictions.shape[-1] if average_over_features else loss
