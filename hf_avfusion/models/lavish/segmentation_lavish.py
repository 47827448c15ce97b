"""
Mask decoder of LAVISH for AVSBench-S4: video tokens of four stages -> a mask of the sounding object for each second.

From "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (Lin et al., CVPR 2023), section 4.2, whose code takes the
decoder and TPAVI, the temporal pixel-wise audio-visual interaction, from AVSBench ("Audio-Visual Segmentation", Zhou et al., ECCV
2022, section 4). Equal to that code (recorded cases of the kinds `avs_decoder` and `avs`) with these differences:

- TPAVI has no softmax, so its product is re-associated: theta^T (phi g) instead of (theta^T phi) g. Memory is linear in the number
  of positions. In half precision, the product is computed in float32.
- Parameters that no output depends on are absent: `path4.resConfUnit1`, and without video-audio attention the audio projections.
- Clips without audio or without frames are allowed, see `LavishMaskDecoder.forward`. The original has no such mechanism.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from ..shared.layers_vit import with_init
from .layers_lavish import PresenceBatchNorm
from .options_lavish import NUM_STAGES, check_tpavi

DILATIONS = (3, 6, 12, 18)  # of the four convolutions of a stage, and their padding
MAP_REDUCTIONS = (4, 8, 16, 32)  # a stage's map is smaller than the mask by these factors
DILATED_STD = 0.01


class LavishMaskDecoderOutput(NamedTuple):
    """
    Output of `LavishMaskDecoder`. B clips, S seconds, C channels.

    Args:
        logits (float [B, S, H, W]): Scores of the mask before the sigmoid.
        feature_maps (4 tensors, float [B * S, C, h_i, w_i]): relu(C_i) of each stage, after TPAVI where the stage has it. The
            original returns them rectified because an in-place ReLU overwrites them.
        audio_features (4 entries, float [B, S, C] or None): U, the projected audio feature of each stage with video-audio
            attention. None for the other stages. Zeros for clips without audio.
        paired (bool [B] or None): Clips with frames and audio. None if all clips have both.
    """

    logits: torch.Tensor
    feature_maps: tuple[torch.Tensor, ...]
    audio_features: tuple[torch.Tensor | None, ...]
    paired: torch.Tensor | None


class LavishTPAVI(nn.Module):
    """
    Temporal pixel-wise audio-visual interaction: every position of a clip's maps attends to all positions of all its seconds.

    With x the maps and N the positions of a clip: z = LayerNorm(x + BatchNorm(output(y))), y = f g(x),
    f = theta(x)^T phi(k) / N, without softmax. k is x for video-video attention, and for video-audio attention the projected
    audio feature U of each second, at all its positions. Both use the same weights. If both are on, the results are averaged, and
    the BatchNorm updates its running statistics twice in a forward pass, first for video-video.

    Args:
        channels: width C of the maps. Queries, keys and values have half of it.
        audio_width: width of the audio feature, or None without video-audio attention.
        video_video: whether the maps attend to themselves.
    """

    def __init__(self, channels: int, audio_width: int | None, video_video: bool):
        super().__init__()
        width = max(channels // 2, 1)
        self.video_video = video_video
        self.query = with_init(nn.Conv2d(channels, width, 1), "torch_default")  # theta
        self.key = with_init(nn.Conv2d(channels, width, 1), "torch_default")  # phi
        self.value = with_init(nn.Conv2d(channels, width, 1), "torch_default")  # g
        self.output = with_init(nn.Conv2d(width, channels, 1), "torch_default")  # W_z
        self.batch_norm = with_init(PresenceBatchNorm(channels), "zero_norm")
        self.layer_norm = nn.LayerNorm(channels)
        self.audio_projection = None
        if audio_width is not None:
            self.audio_projection = with_init(nn.Linear(audio_width, channels), "torch_default")
        # Starts as LayerNorm(x).
        nn.init.zeros_(self.batch_norm.weight)
        nn.init.zeros_(self.batch_norm.bias)

    def forward(
        self,
        maps: torch.Tensor,
        num_segments: int,
        audio: torch.Tensor | None = None,
        video_present: torch.Tensor | None = None,
        paired: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            maps (float [B * S, C, h, w]): Maps of S seconds of each clip.
            num_segments: S.
            audio (float [B, S, audio_width]): Needed with video-audio attention.
            video_present (bool [B]): Clips with frames; None if all have them.
            paired (bool [B]): Clips with frames and audio; None if all have both.

        Returns:
            The new maps, same shape, and U [B, S, C] or None without video-audio attention.
        """
        results, audio_feature = [], None
        query, value = self.query(maps).flatten(2), self.value(maps).flatten(2)
        if self.video_video:
            key = self.key(maps).flatten(2)
            results.append(self._update(maps, attend(query, key, value, num_segments), num_segments, video_present))
        if self.audio_projection is not None:
            audio_feature = self.audio_projection(audio)
            if paired is not None:
                audio_feature = torch.where(paired[:, None, None], audio_feature, 0.0)
            # The key is the same at all positions of a second.
            key = self.key(audio_feature.flatten(0, 1)[:, :, None, None]).flatten(2)
            results.append(self._update(maps, attend(query, key, value, num_segments), num_segments, paired))
        return (results[0] if len(results) == 1 else (results[0] + results[1]) / 2), audio_feature

    def _update(
        self, maps: torch.Tensor, attended: torch.Tensor, num_segments: int, present: torch.Tensor | None
    ) -> torch.Tensor:
        """maps [B * S, C, h, w], attended [B * S, width, h * w], present bool [B] -> z, shape of the maps."""
        rows = None if present is None else present.repeat_interleave(num_segments)
        branch = self.output(attended.unflatten(2, maps.shape[2:])).flatten(2)
        branch = self.batch_norm(branch, rows)
        if rows is not None:
            branch = torch.where(rows[:, None, None], branch, 0.0)
        normalised = self.layer_norm((branch + maps.flatten(2)).transpose(1, 2))
        return normalised.transpose(1, 2).unflatten(2, maps.shape[2:])


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_segments: int) -> torch.Tensor:
    """
    Dot-product attention over all seconds of a clip without softmax: y_i = sum_j (query_i . key_j) value_j / N, N = S * n.

    Args:
        query, value: float [B * S, width, n].
        key: float [B * S, width, n], or [B * S, width, 1] if it is the same at all positions of a second.
        num_segments: S.

    Returns:
        [B * S, width, n] in the dtype of `query`.
    """
    dtype, positions = query.dtype, query.shape[2] * num_segments
    with maybe_autocast(query.device.type, enabled=False):
        if dtype in (torch.float16, torch.bfloat16):  # the sum over all positions exceeds the range of float16
            query, key, value = query.float(), key.float(), value.float()
        key = key.to(query.dtype)
        if key.shape[2] != value.shape[2]:
            value = value.sum(dim=2, keepdim=True)
        context = (key @ value.transpose(1, 2)).unflatten(0, (-1, num_segments)).sum(dim=1) / positions
        attended = context.transpose(1, 2).unsqueeze(1) @ query.unflatten(0, (-1, num_segments))
        return attended.flatten(0, 1).to(dtype)


class LavishDilatedConvolutions(nn.Module):
    """Sum of four 3 x 3 convolutions with dilations 3, 6, 12 and 18: [rows, in, h, w] -> [rows, channels, h, w]."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            with_init(nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation), "dilated")
            for dilation in DILATIONS
        )
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=DILATED_STD)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        total = self.convs[0](maps)
        for conv in self.convs[1:]:
            total = total + conv(maps)
        return total


class LavishResidualUnit(nn.Module):
    """
    conv2(relu(conv1(relu(x)))) + relu(x).

    The skip connection carries relu(x), not x, since an in-place ReLU of the original overwrites x.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = with_init(nn.Conv2d(channels, channels, 3, padding=1), "torch_default")
        self.conv2 = with_init(nn.Conv2d(channels, channels, 3, padding=1), "torch_default")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.relu(maps)
        return self.conv2(nn.functional.relu(self.conv1(maps))) + maps


class LavishFeatureFusion(nn.Module):
    """
    Adds a stage's map to the coarser result and doubles the size: `path1` to `path4` of the original.

    Args:
        channels: width C of the maps.
        coarsest: whether this is the block of the last stage, which has no coarser result.
    """

    def __init__(self, channels: int, coarsest: bool):
        super().__init__()
        self.lateral = None if coarsest else LavishResidualUnit(channels)
        self.residual = LavishResidualUnit(channels)

    def forward(self, feature_map: torch.Tensor, coarser: torch.Tensor | None = None) -> torch.Tensor:
        """feature_map, coarser: float [rows, C, h, w] -> [rows, C, 2h, 2w]."""
        if self.lateral is not None:
            feature_map = coarser + self.lateral(feature_map)
        fused = self.residual(feature_map)
        return nn.functional.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)


class LavishMaskHead(nn.Module):
    """Three convolutions, with a doubling of the size after the first: [rows, C, h, w] -> logits [rows, 1, 2h, 2w]."""

    def __init__(self, channels: int, widths: Sequence[int]):
        super().__init__()
        wide, narrow = widths
        self.conv1 = with_init(nn.Conv2d(channels, wide, 3, padding=1), "torch_default")
        self.conv2 = with_init(nn.Conv2d(wide, narrow, 3, padding=1), "torch_default")
        self.conv3 = with_init(nn.Conv2d(narrow, 1, 1), "torch_default")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.interpolate(self.conv1(maps), scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv3(nn.functional.relu(self.conv2(maps)))


class LavishMaskDecoder(nn.Module):
    """
    Decoder from the final video tokens of four stages to mask logits.

    Each stage's tokens are projected, resized (bicubic) to 1/4, 1/8, 1/16 and 1/32 of the mask and convolved to C_i. TPAVI
    changes C_i at the stages listed. Then the maps are added from the last stage to the first, and a head gives the logits.

    Args:
        stage_widths: width D_i of the tokens of each of the 4 stages; published: 192, 384, 768, 1536.
        stage_grids: (rows, columns) of the tokens of each stage, row by row and without CLS; published: 48 x 48 to 6 x 6.
        mask_size: (height, width) of the mask in pixels, multiples of 32.
        map_widths: widths after the projection.
        channels: width of the maps.
        head_widths: widths between the head's convolutions.
        tpavi_stages: stages with TPAVI, counted from 0. Published default: none.
        video_audio: whether the maps of `tpavi_stages` attend to the audio feature.
        video_video: whether they attend to themselves. Both flags hold for all `tpavi_stages`.
        audio_width: width of the audio feature; needed with video-audio attention.
        audio_feature_width: width to which the audio feature is projected before TPAVI.

    Raises:
        ValueError: On numbers of stages other than 4, mask sizes that are not multiples of 32, unknown or repeated TPAVI stages,
            TPAVI stages without attention, and video-audio attention without `audio_width`.
    """

    def __init__(
        self,
        stage_widths: Sequence[int],
        stage_grids: Sequence[tuple[int, int]],
        mask_size: tuple[int, int] = (224, 224),
        map_widths: Sequence[int] = (64, 128, 320, 512),
        channels: int = 256,
        head_widths: Sequence[int] = (128, 32),
        tpavi_stages: Sequence[int] = (),
        video_audio: bool = True,
        video_video: bool = False,
        audio_width: int | None = None,
        audio_feature_width: int = 128,
    ):
        super().__init__()
        check_tpavi(tpavi_stages, video_audio, video_video)
        for name, values in (
            ("stage_widths", stage_widths),
            ("stage_grids", stage_grids),
            ("map_widths", map_widths),
        ):
            if len(values) != NUM_STAGES:
                raise ValueError(f"`{name}` must have {NUM_STAGES} entries, one for each stage, got {list(values)}.")
        if any(size < 1 or size % MAP_REDUCTIONS[-1] for size in mask_size):
            raise ValueError(
                f"`mask_size` must be a multiple of {MAP_REDUCTIONS[-1]} in height and width, got {tuple(mask_size)}."
            )
        self.uses_audio = bool(tpavi_stages) and video_audio
        if self.uses_audio and audio_width is None:
            raise ValueError(
                f"TPAVI video-audio attention at stages {list(tpavi_stages)} needs `audio_width`, got None. Give the width of the "
                "audio feature."
            )
        self.grids = [tuple(grid) for grid in stage_grids]
        self.map_sizes = [tuple(size // factor for size in mask_size) for factor in MAP_REDUCTIONS]
        self.audio_width, self.channels = audio_width, channels
        self.projections = nn.ModuleList(
            with_init(nn.Linear(width, map_width), "torch_default")
            for width, map_width in zip(stage_widths, map_widths)
        )
        self.dilated_convs = nn.ModuleList(LavishDilatedConvolutions(width, channels) for width in map_widths)
        self.audio_projection = None
        if self.uses_audio:
            self.audio_projection = with_init(nn.Linear(audio_width, audio_feature_width), "torch_default")
        tpavi_audio_width = audio_feature_width if self.uses_audio else None
        self.tpavi = nn.ModuleDict(
            {str(stage): LavishTPAVI(channels, tpavi_audio_width, video_video) for stage in sorted(tpavi_stages)}
        )
        self.fusions = nn.ModuleList(
            LavishFeatureFusion(channels, coarsest=stage == NUM_STAGES - 1) for stage in range(NUM_STAGES)
        )
        self.mask_head = LavishMaskHead(channels, head_widths)

    def forward(
        self,
        video_tokens: Sequence[torch.Tensor],
        num_segments: int,
        audio: torch.Tensor | None = None,
        video_present: torch.Tensor | None = None,
        audio_present: torch.Tensor | None = None,
    ) -> LavishMaskDecoderOutput:
        """
        Args:
            video_tokens (4 tensors, float [B * S, rows * columns, D_i]): Video tokens at the end of each stage, before its
                downsampling; of the last stage after the final norm. The seconds of a clip follow each other.
            num_segments: S, seconds of a clip. Published: 5.
            audio (float [B, S, audio_width], *optional*): Audio feature of each second; published: the mean of the final audio
                tokens. Only read with video-audio attention.
            video_present (bool [B], *optional*): False where a clip has no frames and its tokens are filler. Its logits are
                meaningless. Omit it if all clips have frames.
            audio_present (bool [B], *optional*): False where a clip has no audio. Omit it if all clips have audio.

        Clips without audio (all, if `audio` is not given) skip the video-audio attention: z = LayerNorm(x), which is what TPAVI
        starts from. Clips without audio or frames take no part in the statistics of BatchNorm. So results do not depend on
        batch mates in evaluation.

        Raises:
            ValueError: On wrong shapes; the message names the argument.
        """
        clips = self._check(video_tokens, num_segments, audio)
        paired = video_present
        if self.uses_audio:
            if audio is None:
                audio = video_tokens[0].new_zeros(clips, num_segments, self.audio_width)
                audio_present = torch.zeros(clips, dtype=torch.bool, device=audio.device)
            if audio_present is not None:
                audio = torch.where(audio_present[:, None, None], audio, 0.0)
                paired = audio_present if video_present is None else video_present & audio_present
            audio = self.audio_projection(audio)
        feature_maps, audio_features = [], []
        for stage, tokens in enumerate(video_tokens):
            maps = self.projections[stage](tokens).transpose(1, 2).unflatten(2, self.grids[stage])
            maps = nn.functional.interpolate(maps, size=self.map_sizes[stage], mode="bicubic", align_corners=False)
            maps, feature = self.dilated_convs[stage](maps), None
            if str(stage) in self.tpavi:
                maps, feature = self.tpavi[str(stage)](maps, num_segments, audio, video_present, paired)
            feature_maps.append(nn.functional.relu(maps))
            audio_features.append(feature)
        fused = self.fusions[-1](feature_maps[-1])
        for stage in reversed(range(NUM_STAGES - 1)):
            fused = self.fusions[stage](feature_maps[stage], fused)
        logits = self.mask_head(fused).squeeze(1).unflatten(0, (-1, num_segments))
        return LavishMaskDecoderOutput(logits, tuple(feature_maps), tuple(audio_features), paired)

    def _check(self, video_tokens: Sequence[torch.Tensor], num_segments: int, audio: torch.Tensor | None) -> int:
        """Check shapes; returns B."""
        if len(video_tokens) != NUM_STAGES:
            raise ValueError(f"`video_tokens` must hold the tokens of {NUM_STAGES} stages, got {len(video_tokens)}.")
        rows = video_tokens[0].shape[0]
        for stage, tokens in enumerate(video_tokens):
            height, width = self.grids[stage]
            expected = (rows, height * width, self.projections[stage].in_features)
            if tuple(tokens.shape) != expected:
                raise ValueError(
                    f"`video_tokens` of stage {stage} must be [clips * seconds, {height} * {width}, width] = {expected}, got "
                    f"{tuple(tokens.shape)}."
                )
        if rows % num_segments:
            raise ValueError(f"`video_tokens` hold {rows} seconds, which are not clips of {num_segments} seconds each.")
        clips = rows // num_segments
        if self.uses_audio and audio is not None and audio.shape != (clips, num_segments, self.audio_width):
            raise ValueError(
                f"`audio` must be [clips, seconds, width] = {(clips, num_segments, self.audio_width)}, got "
                f"{tuple(audio.shape)}."
            )
        return clips


def init_segmentation_layer(module: nn.Module) -> None:
    """
    Initialise a layer of the decoder as published; a model's `_init_weights` calls it for every module.

    Dilated convolutions: kernel N(0, 0.01), TPAVI's BatchNorm: scale and shift 0. The other layers are marked for
    `layers_vit.init_marked_layer`, as torch initialises them. Modules without these marks do not change.
    """
    scheme = getattr(module, "init_scheme", None)
    if scheme == "zero_norm":
        for values in (module.weight, module.bias, module.running_mean, module.num_batches_tracked):
            init.zeros_(values)
        init.ones_(module.running_var)
    elif scheme == "dilated":
        init.normal_(module.weight, std=DILATED_STD)
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)
