"""The adapter of LAVISH (Lin et al., CVPR 2023, section 3.2), and the places of a two-stream model that hold adapters."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .options_lavish import AdapterOptions


class GroupedLinear(nn.Module):
    """
    A dense layer without bias whose inputs and outputs are split into groups: a grouped 1x1 convolution on tokens.

    `weight` is [outputs, inputs / groups], initialised as a convolution of PyTorch.
    """

    def __init__(self, in_features: int, out_features: int, groups: int):
        super().__init__()
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(inputs of a group), PyTorch's rule for convolutions."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, groups={self.groups}"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        if self.groups == 1:
            return nn.functional.linear(hidden_states, self.weight)
        parts = zip(hidden_states.chunk(self.groups, dim=-1), self.weight.chunk(self.groups))
        return torch.cat([nn.functional.linear(part, weight) for part, weight in parts], dim=-1)


class PresenceBatchNorm(nn.BatchNorm1d):
    """
    Batch normalisation of [rows, C, n] whose statistics in training leave out the rows that are not present.

    Without `present` it is `nn.BatchNorm1d`. If no row is present, the running statistics stay as they are. BatchNorm1d on
    [rows, C, n] is used instead of BatchNorm2d, whose gradients are wrong on CPU for some layouts of maps of width 1.
    """

    def forward(self, values: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """values float [rows, C, n], present bool [rows] or None -> the normalised values, same shape."""
        if present is None or not self.training:
            return super().forward(values)
        present = present[:, None, None]
        inputs = torch.where(present, values, 0.0)
        inputs = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
        count = present.sum() * values.shape[2]
        total = count.clamp(min=1)
        mean = inputs.sum(dim=(0, 2)) / total
        centred = torch.where(present, inputs - mean[:, None], 0.0)
        variance = centred.square().sum(dim=(0, 2)) / total
        with torch.no_grad():
            share = torch.where(count > 0, self.momentum, 0.0).to(self.running_mean.dtype)
            unbiased = variance * total / (total - 1).clamp(min=1)
            # Through `.data`, as an earlier nn.BatchNorm1d pass saved these buffers, though its backward does not read them.
            self.running_mean.data.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.data.lerp_(unbiased.to(self.running_var.dtype), share)
            self.num_batches_tracked.add_(count > 0)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None] + self.bias[:, None]).to(values.dtype)


class TokenBatchNorm(PresenceBatchNorm):
    """The same for tokens [N, n, C]."""

    def forward(self, hidden_states: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        """hidden_states [N, n, C], present bool [N] or None -> the normalised tokens."""
        if present is None or not self.training:
            return nn.BatchNorm1d.forward(self, hidden_states.flatten(0, 1)).view_as(hidden_states)
        return super().forward(hidden_states.transpose(1, 2), present).transpose(1, 2)


class LavishAdapter(nn.Module):
    """
    The residual that one stream gets in one half of a block. It can read the other stream through latent tokens.

    Args:
        width: Channels of the tokens.
        modality: The stream of which it is, `"video"` or `"audio"`.
        options: See [`AdapterOptions`].
        reads_other: Whether it reads the other stream; by default as the options say.
    """

    def __init__(self, width: int, modality: str, options: AdapterOptions, reads_other: bool | None = None):
        super().__init__()
        options.check([width])
        self.options = options
        hidden = width // options.reduction
        self.latents = self.fusion_gate = None
        if options.reads_other(modality) if reads_other is None else reads_other:
            self.latents = nn.Parameter(torch.zeros(options.num_tokens, width))
            self.fusion_gate = nn.Parameter(torch.zeros(1))
        self.norm_in = nn.LayerNorm(width) if options.ln_before else None
        self.down = GroupedLinear(width, hidden, options.groups)
        self.bn_down = TokenBatchNorm(hidden) if options.use_bn else None
        self.up = GroupedLinear(hidden, width, options.groups)
        self.bn_up = TokenBatchNorm(width) if options.use_bn else None
        self.norm_out = nn.LayerNorm(width) if options.ln_post else None
        has_gate = options.gate_audio if modality == "audio" else options.gate_video
        self.gate = nn.Parameter(torch.zeros(1)) if has_gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the parameters that belong to no module in it: latents as the options say, gates 0."""
        if self.latents is not None:
            if self.options.token_init == "uniform":
                init.uniform_(self.latents)
            else:
                init.zeros_(self.latents)
            init.zeros_(self.fusion_gate)
        if self.gate is not None:
            init.zeros_(self.gate)

    def forward(
        self,
        own: torch.Tensor,
        other: torch.Tensor | None,
        own_present: torch.Tensor | None = None,
        other_present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            own: Tokens of its stream, [N, n, width].
            other: Tokens of the other stream, [N, m, width], or None if no sample has it.
            own_present, other_present: bool [N]: which samples have the modality; by default all.

        Returns:
            The residual, [N, n, width], in the dtype of `own`; computed in that of the adapter.
        """
        options, dtype = self.options, self.down.weight.dtype
        hidden = own.to(dtype)
        if self.latents is not None and other is not None:
            read = self._read(hidden, other.to(dtype))
            hidden = read if other_present is None else torch.where(other_present[:, None, None], read, hidden)
        if self.norm_in is not None and (self.latents is None or options.ln_before_with_fusion):
            hidden = self.norm_in(hidden)
        hidden = self.down(hidden)
        hidden = hidden if self.bn_down is None else self.bn_down(hidden, own_present)
        if self.latents is not None or options.unimodal_activation == "relu":
            hidden = nn.functional.relu(hidden)
        hidden = self.up(hidden)
        hidden = hidden if self.bn_up is None else self.bn_up(hidden, own_present)
        if options.gate_before_post_norm and self.gate is not None:
            hidden = self.gate * hidden
        hidden = hidden if self.norm_out is None else self.norm_out(hidden)
        if not options.gate_before_post_norm and self.gate is not None:
            hidden = self.gate * hidden
        return hidden.to(own.dtype)

    def _read(self, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The latents read the other stream, and the tokens read the latents (equations 3 to 5).

        No projections, no scaling: with hundreds of channels the soft-maxes are nearly one-hot, so they are in float32.
        """
        with maybe_autocast(own.device.type, enabled=False):
            tokens, context, latents = own.float(), other.float(), self.latents.float()
            scores = torch.matmul(latents, context.transpose(1, 2))  # [N, T, m]
            latents = latents + torch.matmul(scores.softmax(dim=-1), context)
            scores = torch.matmul(tokens, latents.transpose(1, 2))  # [N, n, T]
            read = torch.matmul(scores.softmax(dim=-1), latents)
        return own + self.fusion_gate * read.to(own.dtype)


def residuals(
    adapters: tuple[LavishAdapter | None, LavishAdapter | None],
    audio: torch.Tensor | None,
    video: torch.Tensor | None,
    presence: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    What a pair of adapters adds to both streams.

    Args:
        adapters: (audio, video); None for a stream that the model lacks.
        audio, video: Tokens [N, n, width], or None if no sample has the modality.
        presence: bool [N, 2] (video, audio); by default every sample has every given modality.

    Returns:
        (audio, video) residuals, in the shape of the tokens.
    """
    with_video, with_audio = (None, None) if presence is None else presence.unbind(dim=1)
    return (
        None if audio is None else adapters[0](audio, video, with_audio, with_video),
        None if video is None else adapters[1](video, audio, with_video, with_audio),
    )


def make_adapters(
    width: int, modalities: Iterable[str], options: AdapterOptions
) -> tuple[LavishAdapter | None, LavishAdapter | None]:
    """The adapters (audio, video) of one slot. In a model of one stream they read no other."""
    modalities = tuple(modalities)
    reads_other = None if len(modalities) == 2 else False
    audio, video = (
        LavishAdapter(width, modality, options, reads_other) if modality in modalities else None
        for modality in ("audio", "video")
    )
    return audio, video


class CrossModalSlot(nn.Module):
    """
    A place in a block of both streams where their tokens meet: the target of fusion adapters. Without adapters it adds nothing.

    With `options`, it has adapters `audio` and `video` of its own. peft's method LAVISH wraps an empty slot instead.
    """

    def __init__(self, width: int, modalities: Iterable[str], options: AdapterOptions | None = None):
        super().__init__()
        self.width, self.modalities = width, tuple(modalities)
        self.audio, self.video = (None, None) if options is None else make_adapters(width, modalities, options)

    def extra_repr(self) -> str:
        return f"width={self.width}"

    def forward(
        self,
        audio: torch.Tensor | None,
        video: torch.Tensor | None,
        presence: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Tokens of both streams [N, n, width] -> what is added to each, or None."""
        if self.audio is None and self.video is None:
            return None, None
        return residuals((self.audio, self.video), audio, video, presence)


__all__ = [
    "CrossModalSlot",
    "GroupedLinear",
    "LavishAdapter",
    "PresenceBatchNorm",
    "TokenBatchNorm",
    "make_adapters",
    "residuals",
]
