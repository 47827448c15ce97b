"""Parts of AV-MAE: embeddings of visible tokens, layer stacks for every fusion strategy, decoder, batch standardisation."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..shared.layers_vit import (
    SpectrogramPatchEmbeddings,
    VideoPatchEmbeddings,
    ViTBlock,
    add_position_table,
    refill_buffer,
    with_init,
)
from ..shared.two_streams import check_frames, spectrogram_planes
from .configuration_avmae import AVMAEConfig

Streams = tuple[torch.Tensor | None, torch.Tensor | None]


class AVMAEEmbeddings(nn.Module):
    """
    Embeds the patches of one modality, with positions and, if configured, a modality token and a CLS token.

    `forward(values, visible)` projects only the tokens `visible` [B, k] (default: all), in that order.
    """

    def __init__(self, config: AVMAEConfig, modality: str):
        super().__init__()
        self.config = config
        width = config.hidden_size
        add_position_table(self, config.position_embeddings, config.num_tokens(modality), width)
        self.modality_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_modality_tokens else None
        # The CLS token has no position, as in MAE.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.readout == "token" else None

    def embed(self, values: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """[B, ...] -> [B, n, d]: the CLS token, if any, then k visible tokens or all of them."""
        tokens = self.patch_embeddings(values, visible)
        positions = self.position_embeddings
        if visible is not None:
            positions = nn.functional.embedding(visible, positions[0])
        tokens = tokens + positions  # under autocast the sum, and thus the residual stream, is float32
        if self.modality_token is not None:
            tokens = tokens + self.modality_token
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens


class AVMAEVideoEmbeddings(AVMAEEmbeddings):
    """pixel_values [B, T, C, H, W] -> video tokens [B, n, d], ordered frame group, row, column."""

    def __init__(self, config: AVMAEConfig):
        super().__init__(config, "video")
        self.patch_embeddings = VideoPatchEmbeddings(
            config.num_channels, config.hidden_size, config.tubelet_size, config.patch_hw
        )

    def forward(self, pixel_values: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        check_frames(self.config, pixel_values)
        return self.embed(pixel_values, visible)


class AVMAEAudioEmbeddings(AVMAEEmbeddings):
    """input_features [B, time, mel] (or [B, C, time, mel]) -> spectrogram tokens [B, n, d], time-major."""

    def __init__(self, config: AVMAEConfig):
        super().__init__(config, "audio")
        self.patch_embeddings = SpectrogramPatchEmbeddings(
            config.num_audio_channels, config.hidden_size, config.patch_hw
        )

    def forward(self, input_features: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        return self.embed(spectrogram_planes(self.config, input_features), visible)


class AVMAELayer(GradientCheckpointingLayer):
    """
    One layer of both streams.

    `forward(video, audio, presence)` takes tokens [B, n_v, d] and [B, n_a, d] (either may be None) and returns both with
    their attention weights. A `joint` layer runs one block over the sequence [video, audio]. A `shared` layer runs one block
    over each stream. Any other layer has a block per stream.
    """

    def __init__(self, config, shared: bool, joint: bool, drop_path_rate: float):
        super().__init__()
        self.joint = joint
        if shared or joint:
            self.shared = ViTBlock(config, drop_path_rate)
        else:
            self.shared = None
            for modality in config.modalities:
                setattr(self, modality, ViTBlock(config, drop_path_rate))

    def block(self, modality: str) -> ViTBlock:
        """The transformer block of this stream."""
        return getattr(self, modality) if self.shared is None else self.shared

    def forward(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        presence: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        if not self.joint or video is None or audio is None:
            return self._forward_separately(video, audio, **kwargs)
        joint, weights = self.shared(torch.cat([video, audio], dim=1), **kwargs)
        streams = joint.split([video.shape[1], audio.shape[1]], dim=1)
        if presence is not None:
            # If a modality is missing, the other attends to itself alone. Both results are computed and one is selected per
            # sample: complete samples stay bit-identical and no attention mask is needed.
            separate = self._forward_separately(video, audio, **kwargs)[:2]
            complete = presence.all(dim=1)[:, None, None]
            streams = [torch.where(complete, fused, single) for fused, single in zip(streams, separate)]
        return streams[0], streams[1], weights, None

    def _forward_separately(self, video: torch.Tensor | None, audio: torch.Tensor | None, **kwargs):
        video, video_weights = (None, None) if video is None else self.block("video")(video, **kwargs)
        audio, audio_weights = (None, None) if audio is None else self.block("audio")(audio, **kwargs)
        return video, audio, video_weights, audio_weights


class AVMAETransformer(nn.Module):
    """
    The layers and final norms of a fusion strategy, for encoder and decoder.

    Args:
        config: Sizes of the blocks, `num_hidden_layers`, `drop_path_rate`, `final_norm` and `modalities`.
        strategy: `"joint"` (all layers over both modalities), `"shared"`, `"separate"` or `"mid_fusion"`.
        num_joint_layers: The last layers of mid-fusion, which are joint.
    """

    def __init__(self, config, strategy: str, num_joint_layers: int = 0):
        super().__init__()
        total = config.num_hidden_layers
        joint = {"joint": total, "mid_fusion": num_joint_layers}.get(strategy, 0)
        self.fusion_layer = total - joint
        self.layers = nn.ModuleList()
        for length, is_joint in ((total - joint, False), (joint, True)):
            # Stochastic depth grows over each stack: in mid-fusion the joint stack starts at 0 again.
            rates = [config.drop_path_rate * index / max(length - 1, 1) for index in range(length)]
            self.layers.extend(AVMAELayer(config, strategy == "shared", is_joint, rate) for rate in rates)

        def norm(exists: bool) -> nn.LayerNorm | None:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if exists and config.final_norm else None

        # In mid-fusion, the norm of each stream lies in the middle of the network, before the joint layers.
        has_stream_norms = strategy in ("separate", "mid_fusion")
        self.video_layernorm = norm(has_stream_norms and "video" in config.modalities)
        self.audio_layernorm = norm(has_stream_norms and "audio" in config.modalities)
        self.layernorm = norm(strategy != "separate")

    def forward(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        presence: torch.Tensor | None = None,
        **kwargs,
    ) -> Streams:
        """tokens [B, n_v, d], [B, n_a, d] (either may be None) -> the same, normalised; presence bool [B, 2]."""
        for index, layer in enumerate(self.layers):
            if index == self.fusion_layer:
                video, audio = self._norm(video, self.video_layernorm), self._norm(audio, self.audio_layernorm)
            video, audio, _, _ = layer(video, audio, presence, **kwargs)
        if self.fusion_layer == len(self.layers):
            video, audio = self._norm(video, self.video_layernorm), self._norm(audio, self.audio_layernorm)
        return self._norm(video, self.layernorm), self._norm(audio, self.layernorm)

    @staticmethod
    def _norm(tokens: torch.Tensor | None, norm: nn.LayerNorm | None) -> torch.Tensor | None:
        return tokens if tokens is None or norm is None else norm(tokens)


class DecoderConfigView:
    """The config for decoder blocks: `decoder_*` fields under the encoder's names, all others unchanged."""

    _DECODER_FIELDS = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "drop_path_rate",
    )

    def __init__(self, config: AVMAEConfig):
        self.config = config

    def __getattr__(self, name: str):
        if name == "config" or name.startswith("__"):  # requested while the object is copied
            raise AttributeError(name)
        return getattr(self.config, f"decoder_{name}" if name in self._DECODER_FIELDS else name)


class AVMAEDecoderStream(nn.Module):
    """The decoder parts of one modality: input projection, mask token, positions, modality token, output projection."""

    def __init__(self, config: AVMAEConfig, modality: str):
        super().__init__()
        width = config.decoder_hidden_size
        self.num_tokens = config.num_tokens(modality)
        self.projection = with_init(nn.Linear(config.hidden_size, width, bias=config.decoder_projection_bias), "xavier")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.modality_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_modality_tokens else None
        add_position_table(self, config.decoder_position_embeddings, self.num_tokens, width)
        self.prediction = with_init(nn.Linear(width, config.num_target_values(modality)), "zero")

    def forward(self, projected: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """
        Fills projected tokens [B, k, E] up with mask tokens, and adds positions: [B, N, E].

        Visible tokens of this modality are placed at `visible` [B, k]. Without it, in inpainting, the tokens are those of the
        other modality, which come first.
        """
        mask = self.mask_token.to(projected.dtype)
        if visible is None:
            masked = mask.expand(projected.shape[0], self.num_tokens - projected.shape[1], -1)
            tokens = torch.cat([projected, masked], dim=1)
        else:
            tokens = mask.expand(projected.shape[0], self.num_tokens, -1)
            tokens = tokens.scatter(1, visible.unsqueeze(-1).expand_as(projected), projected)
        tokens = tokens + self.position_embeddings
        return tokens if self.modality_token is None else tokens + self.modality_token


class AVMAEDecoder(nn.Module):
    """
    Predicts patches at every position from the visible tokens.

    `forward(video, audio, video_visible, audio_visible, presence)` takes the encoder's output [B, k, d] of each modality and
    the positions [B, k] of its tokens, and returns predictions [B, N, values] for each.
    """

    def __init__(self, config: AVMAEConfig):
        super().__init__()
        self.inpainting = config.objective == "modality_inpainting"
        self.video = AVMAEDecoderStream(config, "video") if "video" in config.modalities else None
        self.audio = AVMAEDecoderStream(config, "audio") if "audio" in config.modalities else None
        strategy = "joint" if config.decoder_strategy == "concatenated" else config.decoder_strategy
        self.transformer = AVMAETransformer(DecoderConfigView(config), strategy)

    def forward(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        video_visible: torch.Tensor | None,
        audio_visible: torch.Tensor | None,
        presence: torch.Tensor | None = None,
        **kwargs,
    ) -> Streams:
        video = None if video is None else self.video.projection(video)
        audio = None if audio is None else self.audio.projection(audio)
        if self.inpainting:
            video, audio = self.video(audio), self.audio(video)
        else:
            video = None if video is None else self.video(video, video_visible)
            audio = None if audio is None else self.audio(audio, audio_visible)
        video, audio = self.transformer(video, audio, presence, **kwargs)
        video = None if video is None else self.video.prediction(video)
        return video, None if audio is None else self.audio.prediction(audio)


class SegmentPooling(nn.Module):
    """
    Pools tokens [B, n, d] to one feature for each of `num_segments` equal segments of the clip, [B, segments, d].

    Video and spectrogram tokens are time-major, and their steps seldom end where a second ends (8 frame groups or 62 rows of
    patches in 10 s). Each step is weighted by the share of the segment that it covers. The last step extends to the end.
    """

    def __init__(self, config: AVMAEConfig, modality: str):
        super().__init__()
        self.readout, self.num_segments = config.readout, config.num_segments
        if modality == "video":
            self.steps, self.step_length, self.length = config.video_grid[0], config.tubelet_size, config.num_frames
        else:
            self.steps, self.step_length = config.audio_grid[0], config.patch_hw[0]
            self.length = config.spectrogram_length
        self.register_buffer("shares", self.overlaps().to(torch.get_default_device()), persistent=False)
        self.register_load_state_dict_post_hook(_compute_shares)

    def overlaps(self) -> torch.Tensor:
        """float32 [segments, steps]: the share of each segment that each step covers; rows sum to 1."""
        ends = torch.arange(1, self.steps + 1, dtype=torch.float64, device="cpu") * self.step_length
        starts = ends - self.step_length
        ends[-1] = self.length
        part = self.length / self.num_segments
        begins = (torch.arange(self.num_segments, dtype=torch.float64, device="cpu") * part)[:, None]
        covered = torch.minimum(ends, begins + part) - torch.maximum(starts, begins)
        return (covered.clamp(min=0) / part).float()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens, shares = tokens.unflatten(1, (self.steps, -1)), self.shares.to(tokens.dtype)
        if self.readout == "max":
            steps = tokens.amax(dim=2)[:, None]
            return steps.masked_fill(~(shares > 0)[None, :, :, None], float("-inf")).amax(dim=2)
        steps = tokens.mean(dim=2) if self.readout == "mean" else tokens.sum(dim=2)
        return torch.einsum("st,btd->bsd", shares, steps)


def _compute_shares(module: SegmentPooling, _) -> None:
    refill_buffer(module, "shares", module.overlaps())


class BatchStandardization(nn.Module):
    """
    Batch normalisation without scale and bias, before the head of a linear probe: features [..., d] -> [..., d].

    As in Flax, running statistics have momentum 0.9 and use the **biased** variance (PyTorch's BatchNorm1d uses the unbiased
    one); epsilon 1e-6. Rows that are not `present` [B] are excluded from the statistics.
    """

    def __init__(self, width: int, momentum: float = 0.9, eps: float = 1e-6):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, features: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            values = features.detach().float()
            weights = values.new_ones(values.shape[:1]) if present is None else present.float()
            weights = weights.view(-1, *[1] * (values.dim() - 1)).expand(*values.shape[:-1], 1).flatten(0, -2)
            values, total = values.flatten(0, -2), weights.sum()
            share = weights / total.clamp(min=1)
            mean = (values * share).sum(dim=0)
            variance = ((values - mean).square() * share).sum(dim=0)
            keep = torch.where(total > 0, self.momentum, 1.0)  # no row present: statistics stay as they are
            self.running_mean.copy_(keep * self.running_mean + (1 - keep) * mean)
            self.running_var.copy_(keep * self.running_var + (1 - keep) * variance)
        return (features - mean.to(features.dtype)) * (variance + self.eps).rsqrt().to(features.dtype)
