"""Configuration of MBT, the Multimodal Bottleneck Transformer (Nagrani et al., NeurIPS 2021)."""

import math

import numpy as np
from huggingface_hub.dataclasses import strict

from ...media.limits import check_num_tokens
from ..shared.configuration_shared import ClassifierConfig, check_heads, check_remainders, check_spectrogram

FUSIONS = ("bottleneck", "self_attention")
BOTTLENECK_UPDATES = ("symmetric", "video_first", "audio_first")
READOUTS = ("token", "mean", "max", "sum", "stream_mean", "stream_max", "stream_sum")
POSITIONS = ("learned", "sinusoidal")

# Widths of the ViT backbones that the paper names. Fusion starts after two thirds of the layers, as in MBT-Base (8 of 12).
_SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


@strict
class MBTConfig(ClassifierConfig):
    r"""
    Configuration of [`MBTModel`] and [`MBTForAudioVisualClassification`]. The defaults are MBT-Base as released
    (`mbtb32`: 32 frames in tubelets of two, 8 s of spectrogram, four bottleneck tokens from layer 8) with the CLS
    readout of the paper, which is also the only readout the released code can run together with bottlenecks.

    Args:
        hidden_size (`int`, defaults to 768): Width of both streams.
        num_hidden_layers (`int`, defaults to 12): Transformer layers per stream.
        num_attention_heads (`int`, defaults to 12): Attention heads; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): Width of the MLP.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of the MLP. The original uses the tanh GELU.
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after attention and in the MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout of attention probabilities.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last layer, growing linearly from 0 at the
            first. Published recipes train with 0.3. As in the original, a kept branch is **not** rescaled.
        initializer_range (`float`, defaults to 0.02): Standard deviation of position and bottleneck tokens.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or pair, defaults to 224): Height and width of frames, pixels.
        patch_size (`int` or pair, defaults to 16): Patch height and width. The same pair cuts the spectrogram
            (height along time, width along mel).
        tubelet_size (`int`, defaults to 2): Frames per video token.
        num_frames (`int`, defaults to 32): Frames per clip.
        num_sampled_frames (`int`, *optional*): If set, the model selects this many of the `num_frames` frames by the
            original's `temporal_sampling` rule and embeds each separately; `tubelet_size` must then be 1.
        num_channels (`int`, defaults to 3): Channels of a frame.
        num_audio_channels (`int`, defaults to 3): Input channels of the spectrogram patch projection. A mono
            spectrogram is shared by all of them, as in the original.
        num_mel_bins (`int`, defaults to 128): Mel bands of the spectrogram.
        spectrogram_length (`int`, defaults to 800): Spectrogram frames (10 ms hop: 8 s).
        drop_remainder (`bool`, defaults to `False`): Whether sizes that are not multiples of the patch are allowed. The rest is
            then not used, as in the original: of 1000 spectrogram frames, 62 rows of patches use 992. Configs saved before this
            field existed load as `True` if they need it.
        modalities (pair or single of `"video"`, `"audio"`, defaults to `("audio", "video")`): The streams, in the order
            in which their tokens are concatenated in `last_hidden_state` and for pooling.
        fusion (`str`, defaults to `"bottleneck"`): `"bottleneck"` or `"self_attention"` (full attention over both
            streams' tokens).
        fusion_layer (`int`, *optional*): First layer with fusion: 0 is early fusion, `num_hidden_layers` late fusion (no
            exchange between the streams). `None` means two thirds of the layers (8 of 12).
        num_bottleneck_tokens (`int`, defaults to 4): Bottleneck tokens. With the `"token"` readout there is one more row, as
            in the original.
        bottleneck_update (`str`, defaults to `"symmetric"`): `"symmetric"` averages the streams' updates;
            `"video_first"` and `"audio_first"` chain them (supplementary A.1).
        test_with_bottlenecks (`bool`, defaults to `True`): If `False`, evaluation runs all layers without fusion.
        share_encoder (`bool`, defaults to `False`): One set of transformer layers for both streams.
        readout (`str`, defaults to `"token"`): `"token"` (a CLS token and logits per stream, averaged), `"mean"`,
            `"max"`, `"sum"` over all tokens of all streams together, or `"stream_mean"`, `"stream_max"`, `"stream_sum"`
            over each stream's tokens (logits per stream, averaged: the MBT that AV-MAE fine-tunes).
        position_embeddings (`str`, defaults to `"learned"`): `"learned"`, or `"sinusoidal"` (fixed, over the flattened
            token index; also AV-MAE's).
        use_modality_tokens (`bool`, defaults to `False`): A learned vector per modality, added to its tokens (AV-MAE).
        representation_size (`int`, *optional*): Width of a dense + tanh layer before the head.
        classifier_bias_init (`float`, defaults to 0.0): Initial bias of the head.
        label_smoothing (`float`, defaults to 0.0): Label smoothing in training; published recipes use 0.3. For the
            multi-label loss targets are smoothed in the same way (`y (1 - s) + s / C`).
        class_splits (`dict[str, int]`, *optional*): Several softmax heads in one logits vector, as verb and noun of
            Epic-Kitchens: name of the head -> number of classes. Implies `problem_type="multi_head_classification"`.

    Raises:
        ValueError: If fields contradict each other; the message names them.
    """

    model_type = "mbt"
    # Then a Trainer's predictions are only the logits.
    keys_to_ignore_at_inference = [
        "video_logits",
        "audio_logits",
        "hidden_states",
        "attentions",
        "audio_hidden_states",
        "audio_attentions",
    ]
    _counts = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "tubelet_size",
        "num_frames",
        "num_channels",
        "num_audio_channels",
        "representation_size",
    )
    _bounded = (
        "image_size",
        "patch_size",
        "num_sampled_frames",
        "num_mel_bins",
        "spectrogram_length",
        "num_bottleneck_tokens",
    )
    _rates = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "label_smoothing")
    _choices = {
        "fusion": FUSIONS,
        "bottleneck_update": BOTTLENECK_UPDATES,
        "readout": READOUTS,
        "position_embeddings": POSITIONS,
    }
    _sizes = _SIZES

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    tubelet_size: int = 2
    num_frames: int = 32
    num_sampled_frames: int | None = None
    num_channels: int = 3
    num_audio_channels: int = 3
    num_mel_bins: int = 128
    spectrogram_length: int = 800
    drop_remainder: bool | None = False
    modalities: list[str] | tuple[str, ...] = ("audio", "video")
    fusion: str = "bottleneck"
    fusion_layer: int | None = None
    num_bottleneck_tokens: int = 4
    bottleneck_update: str = "symmetric"
    test_with_bottlenecks: bool = True
    share_encoder: bool = False
    readout: str = "token"
    position_embeddings: str = "learned"
    use_modality_tokens: bool = False
    representation_size: int | None = None

    def __post_init__(self, **kwargs):
        if self.fusion_layer is None:
            self.fusion_layer = 2 * self.num_hidden_layers // 3
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Cross-field checks at construction. Raises ValueError naming the fields."""
        super().validate_architecture()
        height, width = self.image_hw
        patch_height, patch_width = self.patch_hw
        check_heads(self)
        modalities = self.modalities
        if self.fusion_layer is None or not 0 <= self.fusion_layer <= self.num_hidden_layers:
            raise ValueError(
                f"`fusion_layer` must lie between 0 (early) and `num_hidden_layers` = {self.num_hidden_layers} (late), "
                f"got {self.fusion_layer}."
            )
        if self.fusion == "bottleneck" and self.num_bottleneck_tokens < 1:
            raise ValueError(
                f'`num_bottleneck_tokens` must be at least 1 with `fusion="bottleneck"`, got '
                f"{self.num_bottleneck_tokens}. To disable fusion, set `fusion_layer=num_hidden_layers`."
            )
        if "video" in modalities:
            if height < patch_height or width < patch_width:
                raise ValueError(
                    f"`image_size` {(height, width)} is smaller than `patch_size` {self.patch_hw}. Increase it, or reduce "
                    "`patch_size`."
                )
            if self.num_sampled_frames is None and self.num_frames < self.tubelet_size:
                raise ValueError(
                    f"`num_frames` ({self.num_frames}) is smaller than `tubelet_size` ({self.tubelet_size}). Increase it, "
                    "or reduce `tubelet_size`."
                )
            if self.num_sampled_frames is not None and (self.num_sampled_frames < 1 or self.tubelet_size != 1):
                raise ValueError(
                    "`num_sampled_frames` must be at least 1 and needs `tubelet_size=1` (sampled frames are embedded "
                    f"one by one), got num_sampled_frames={self.num_sampled_frames}, tubelet_size={self.tubelet_size}."
                )
        check_spectrogram(self)
        check_remainders(self, self._cut_sizes())
        for modality in modalities:
            check_num_tokens(modality, self.num_patches(modality))

    def _cut_sizes(self) -> list[tuple[str, int, int]]:
        """Field, size and patch of each axis that is cut into patches."""
        (height, width), (patch_height, patch_width), sizes = self.image_hw, self.patch_hw, []
        if "video" in self.modalities:
            indices = self.sampled_frame_indices
            # Sampled frames are stacked along the height, see `video_patch_grid`.
            if indices is None or len(indices) * height % patch_height:
                sizes.append(("image_size", height, patch_height))
            sizes.append(("image_size", width, patch_width))
            sizes += [("num_frames", self.num_frames, self.tubelet_size)] if indices is None else []
        if "audio" in self.modalities:
            sizes += [("spectrogram_length", self.spectrogram_length, patch_height)]
            sizes += [("num_mel_bins", self.num_mel_bins, patch_width)]
        return sizes

    @property
    def sampled_frame_indices(self) -> list[int] | None:
        """Indices of the frames that the model selects, or None if it uses all (`num_sampled_frames` not set)."""
        if self.num_sampled_frames is None:
            return None
        return temporal_sampling_indices(self.num_frames, self.num_sampled_frames)

    @property
    def video_patch_grid(self) -> tuple[int, int]:
        """Rows (all time steps stacked) and columns of video patches."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        indices = self.sampled_frame_indices
        if indices is None:
            rows = (self.num_frames // self.tubelet_size) * (height // patch_height)
        else:
            # The original stacks sampled frames along the height before cutting patches.
            rows = len(indices) * height // patch_height
        return rows, width // patch_width

    def num_patches(self, modality: str) -> int:
        """Patches of a modality in one clip."""
        patch_height, patch_width = self.patch_hw
        if modality == "audio":
            return (self.spectrogram_length // patch_height) * (self.num_mel_bins // patch_width)
        rows, columns = self.video_patch_grid
        return rows * columns

    @property
    def uses_bottleneck(self) -> bool:
        """Whether the model uses bottleneck tokens (two streams with bottleneck fusion)."""
        return self.fusion == "bottleneck" and len(self.modalities) == 2 and self.fusion_layer < self.num_hidden_layers

    @property
    def has_stream_logits(self) -> bool:
        """Whether each stream has its own logits, which are averaged."""
        return self.readout == "token" or self.readout.startswith("stream_")

    @property
    def num_bottleneck_rows(self) -> int:
        """Rows of the bottleneck parameter: one more than `num_bottleneck_tokens` with the `"token"` readout."""
        return self.num_bottleneck_tokens + (self.readout == "token")

    @classmethod
    def small(cls, **overrides) -> "MBTConfig":
        """MBT on ViT-Small: width 384, 12 layers, 6 heads."""
        return cls._of_size("small", overrides)

    @classmethod
    def base(cls, **overrides) -> "MBTConfig":
        """MBT on ViT-Base (the published model, and the defaults)."""
        return cls._of_size("base", overrides)

    @classmethod
    def large(cls, **overrides) -> "MBTConfig":
        """MBT on ViT-Large: width 1024, 24 layers, 16 heads, fusion from layer 16."""
        return cls._of_size("large", overrides)


def temporal_sampling_indices(num_frames: int, num_sampled_frames: int) -> list[int]:
    """
    Frame indices of the original's `temporal_sampling`, bit-equal to its float32 arithmetic.

    Indices are rounded half to even. Some pairs such as (8, 2) give one frame more than requested (recorded in the golden
    `temporal_sampling_indices`).
    """
    if num_sampled_frames >= num_frames:
        return list(range(num_frames))
    step = num_frames / (num_sampled_frames + 1)
    count = math.ceil((num_frames - step) / step)
    raw = np.arange(count, dtype=np.float32) * np.float32(step) + np.float32(step)
    return [min(int(index), num_frames - 1) for index in np.round(raw)]


__all__ = ["MBTConfig"]
