"""Configuration of AV-MAE, the Audiovisual Masked Autoencoders (Georgescu et al., ICCV 2023)."""

import warnings

from huggingface_hub.dataclasses import strict

from ...media.limits import check_num_tokens
from ...media.modalities import MODALITIES
from ..shared.configuration_shared import (
    ClassifierConfig,
    check_heads,
    check_multiples,
    check_remainders,
    check_spectrogram,
)

ENCODER_STRATEGIES = ("early", "shared", "separate", "mid_fusion")
DECODER_STRATEGIES = ("shared", "separate", "concatenated")
OBJECTIVES = ("joint_reconstruction", "modality_inpainting")
MASKINGS = ("random", "tube")
POSITIONS = ("sinusoidal", "learned")
TARGET_STANDARDIZATIONS = (None, "patch", "patch_channels")
READOUTS = ("mean", "max", "sum", "token")

# Encoder sizes of the project; decoders as released for Base and Large (supplementary A14). For the other sizes none was
# published: the Small decoder has half the encoder's width, as in Base, and Huge uses the Large decoder.
_SMALL_DECODER = {
    "decoder_hidden_size": 192,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 768,
}
_BASE_DECODER = {
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 1536,
}
_LARGE_DECODER = {
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 8,
    "decoder_intermediate_size": 2048,
}
_ENCODER = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
_SIZES = {
    "small": dict(zip(_ENCODER, (384, 6, 1536, 12))) | _SMALL_DECODER,
    "base": dict(zip(_ENCODER, (768, 12, 3072, 12))) | _BASE_DECODER,
    "large": dict(zip(_ENCODER, (1024, 16, 4096, 24))) | _LARGE_DECODER,
    "huge": dict(zip(_ENCODER, (1280, 16, 5120, 32))) | _LARGE_DECODER,
}


@strict
class AVMAEConfig(ClassifierConfig):
    r"""
    Configuration of [`AVMAEModel`], [`AVMAEForPreTraining`] and [`AVMAEForAudioVisualClassification`]. The defaults are a
    Base model pretrained as on VGGSound: separate encoders, a shared decoder, 16 frames in tubelets of two, 8 s of
    spectrogram, and 0.9 of the video and 0.5 of the audio tokens masked. The released AudioSet model is
    `AVMAEConfig.large(encoder_strategy="mid_fusion", audio_mask_ratio=0.7, spectrogram_length=1000, drop_remainder=True)`.

    Args:
        hidden_size (`int`, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, defaults to 12): Encoder layers applied to a token, joint ones included.
        num_attention_heads (`int`, defaults to 12): Attention heads; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): Width of the MLP.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of the MLP. The original uses the tanh GELU.
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after attention and in the MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout of attention probabilities.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last layer of a stack, growing linearly from 0 at
            its first (the joint stack of mid-fusion starts at 0 again). Published fine-tuning uses 0.3. As in the original, a
            kept branch is **not** rescaled.
        initializer_range (`float`, defaults to 0.02): Standard deviation of learned positions.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or pair, defaults to 224): Height and width of frames, pixels; multiples of the patch.
        patch_size (`int` or pair, defaults to 16): Patch height and width. The same pair cuts the spectrogram (height along
            time, width along mel).
        tubelet_size (`int`, defaults to 2): Frames per video token.
        num_frames (`int`, defaults to 16): Frames per clip; a multiple of `tubelet_size`. Published fine-tuning uses 32:
            sinusoidal positions fit any number.
        num_channels (`int`, defaults to 3): Channels of a frame.
        num_audio_channels (`int`, defaults to 1): Input channels of the spectrogram patch projection.
        num_mel_bins (`int`, defaults to 128): Mel bands of the spectrogram.
        spectrogram_length (`int`, defaults to 800): Spectrogram frames (10 ms hop: 8 s).
        drop_remainder (`bool`, defaults to `False`): Whether the spectrogram's sizes may be no multiples of the patch. The rest
            is then not used, as in the original: of 1000 frames, 62 rows of patches use 992. Configs saved before this field
            existed load as `True` if they need it.
        modalities (pair or single of `"video"`, `"audio"`, defaults to `("video", "audio")`): The modalities the model
            takes. Video always comes first, whatever their order here.
        encoder_strategy (`str`, defaults to `"separate"`): `"early"` (one stack over both modalities' tokens together),
            `"shared"` (one stack applied to each modality separately), `"separate"` (one stack per modality), `"mid_fusion"`
            (one stack per modality, then `num_fusion_layers` joint layers).
        num_fusion_layers (`int`, *optional*): Number of joint layers in mid-fusion, out of `num_hidden_layers`; default 2.
        decoder_strategy (`str`, defaults to `"shared"`): `"shared"` (one stack applied to each modality separately),
            `"separate"` (one stack per modality) or `"concatenated"` (one stack over both together). Separate encoders with
            separate decoders are two masked autoencoders that share nothing; the original forbids this, here it warns.
        objective (`str`, defaults to `"joint_reconstruction"`): or `"modality_inpainting"`, which reconstructs each modality
            from the other's visible tokens.
        video_mask_ratio (`float`, defaults to 0.9): Share of video tokens that are masked; the count is truncated.
        audio_mask_ratio (`float`, defaults to 0.5): The same for the spectrogram.
        video_masking (`str`, defaults to `"random"`): `"random"` or `"tube"` (the same positions in every frame group).
        use_modality_tokens (`bool`, defaults to `False`): A learned vector per modality, added to its tokens; encoder and
            decoder have one each.
        position_embeddings (`str`, defaults to `"sinusoidal"`): Positions of the encoder: `"sinusoidal"` (fixed, over the
            flattened token index) or `"learned"`.
        decoder_position_embeddings (`str`, defaults to `"sinusoidal"`): The same for the decoder.
        final_norm (`bool`, defaults to `True`): LayerNorm after the last layer of every stack, encoder's and decoder's.
        decoder_hidden_size (`int`, defaults to 384): Width of the decoder.
        decoder_num_hidden_layers (`int`, defaults to 4): Layers of the decoder.
        decoder_num_attention_heads (`int`, defaults to 6): Attention heads of the decoder.
        decoder_intermediate_size (`int`, defaults to 1536): Width of the decoder's MLP.
        decoder_hidden_dropout_prob (`float`, defaults to 0.0): Dropout of the decoder.
        decoder_attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout of the decoder's attention probabilities.
        decoder_drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the decoder.
        decoder_projection_bias (`bool`, defaults to `True`): Bias of the projections from encoder to decoder width.
        target_standardization (`str`, *optional*): `None` (raw values, as released), `"patch"` (each patch vector to mean 0
            and variance 1) or `"patch_channels"` (each colour channel of a video patch; spectrograms remain raw).
        central_frame_target (`bool`, defaults to `False`): Reconstruct only frame `tubelet_size // 2` of each tubelet.
        loss_on_visible_tokens (`bool`, defaults to `False`): Compute the loss over all tokens, not only the masked ones.
        average_over_features (`bool`, defaults to `True`): Divide a patch's squared error by its number of values.
        video_loss_weight (`float`, defaults to 0.5): Weight of the video's loss in the total.
        audio_loss_weight (`float`, defaults to 0.5): Weight of the spectrogram's loss in the total.
        readout (`str`, defaults to `"mean"`): Readout of the classifier: `"mean"`, `"max"` or `"sum"` over each modality's
            tokens, or `"token"`, a CLS token prepended to the tokens (in the original for single-modality models only).
        pooled_norm (`bool`, defaults to `False`): A LayerNorm after pooling, as in the original's single-modality classifier
            (which then has no `final_norm`).
        representation_size (`int`, *optional*): Width of a dense + tanh layer before the head.
        freeze_encoder (`bool`, defaults to `False`): Linear probing: no gradient reaches the encoder, and features pass a
            batch normalisation without scale and bias before the head.
        num_segments (`int`, *optional*): If set, the classifier gives logits for each of this many equal segments of the clip,
            such as the 10 seconds of AVE (event localisation), instead of for the clip.
        classifier_bias_init (`float`, defaults to 0.0): Initial bias of the head.
        label_smoothing (`float`, defaults to 0.0): Label smoothing in training; published fine-tuning uses 0.3.
        class_splits (`dict[str, int]`, *optional*): Several softmax heads in one logits vector, as in [`MBTConfig`].

    The original has no code for fine-tuning both modalities with AV-MAE's own encoder (supplementary A.5). This model follows the
    project's MBT: each modality's tokens are pooled separately, one linear head is shared by both, the clip's logits are the mean
    over the modalities present, and in training each modality's logits have their own loss.

    Raises:
        ValueError: If fields contradict each other; the message names them.
    """

    model_type = "avmae"
    # Then a Trainer's predictions are only the logits, and pretraining keeps no pixels.
    keys_to_ignore_at_inference = [
        "video_logits",
        "audio_logits",
        "video_loss",
        "audio_loss",
        "video_predictions",
        "audio_predictions",
        "video_mask",
        "audio_mask",
        "video_loss_mask",
        "audio_loss_mask",
        "video_hidden_state",
        "audio_hidden_state",
        "hidden_states",
        "attentions",
        "audio_hidden_states",
        "audio_attentions",
    ]
    _counts = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "decoder_hidden_size",
        "decoder_num_hidden_layers",
        "decoder_num_attention_heads",
        "decoder_intermediate_size",
        "tubelet_size",
        "num_frames",
        "num_channels",
        "num_audio_channels",
        "representation_size",
        "num_segments",
    )
    _rates = (
        "drop_path_rate",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "decoder_drop_path_rate",
        "decoder_hidden_dropout_prob",
        "decoder_attention_probs_dropout_prob",
        "label_smoothing",
    )
    _bounded = ("image_size", "patch_size", "num_mel_bins", "spectrogram_length")
    _choices = {
        "encoder_strategy": ENCODER_STRATEGIES,
        "decoder_strategy": DECODER_STRATEGIES,
        "objective": OBJECTIVES,
        "video_masking": MASKINGS,
        "position_embeddings": POSITIONS,
        "decoder_position_embeddings": POSITIONS,
        "target_standardization": TARGET_STANDARDIZATIONS,
        "readout": READOUTS,
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
    num_frames: int = 16
    num_channels: int = 3
    num_audio_channels: int = 1
    num_mel_bins: int = 128
    spectrogram_length: int = 800
    drop_remainder: bool | None = False
    modalities: list[str] | tuple[str, ...] = ("video", "audio")
    encoder_strategy: str = "separate"
    num_fusion_layers: int | None = None
    decoder_strategy: str = "shared"
    objective: str = "joint_reconstruction"
    video_mask_ratio: float | int = 0.9
    audio_mask_ratio: float | int = 0.5
    video_masking: str = "random"
    use_modality_tokens: bool = False
    position_embeddings: str = "sinusoidal"
    decoder_position_embeddings: str = "sinusoidal"
    final_norm: bool = True
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    decoder_intermediate_size: int = 1536
    decoder_hidden_dropout_prob: float | int = 0.0
    decoder_attention_probs_dropout_prob: float | int = 0.0
    decoder_drop_path_rate: float | int = 0.0
    decoder_projection_bias: bool = True
    target_standardization: str | None = None
    central_frame_target: bool = False
    loss_on_visible_tokens: bool = False
    average_over_features: bool = True
    video_loss_weight: float | int = 0.5
    audio_loss_weight: float | int = 0.5
    readout: str = "mean"
    pooled_norm: bool = False
    representation_size: int | None = None
    freeze_encoder: bool = False
    num_segments: int | None = None

    def __post_init__(self, **kwargs):
        if set(self.modalities) <= set(MODALITIES) and len(set(self.modalities)) == len(self.modalities):
            self.modalities = tuple(modality for modality in MODALITIES if modality in self.modalities)
        if self.num_fusion_layers is None and self.encoder_strategy == "mid_fusion":
            self.num_fusion_layers = 2
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Cross-field checks at construction. Raises ValueError naming the fields."""
        super().validate_architecture()
        for modality in MODALITIES:
            if not 0 <= getattr(self, f"{modality}_mask_ratio") < 1:
                raise ValueError(
                    f"`{modality}_mask_ratio` must lie in [0, 1), got {getattr(self, f'{modality}_mask_ratio')}."
                )
        for prefix in ("", "decoder_"):
            check_heads(self, prefix)
        if self.encoder_strategy == "mid_fusion":
            if self.num_fusion_layers is None or not 1 <= self.num_fusion_layers <= self.num_hidden_layers:
                raise ValueError(
                    f"`num_fusion_layers` must lie between 1 and `num_hidden_layers` = {self.num_hidden_layers}, got "
                    f"{self.num_fusion_layers}."
                )
        elif self.num_fusion_layers is not None:
            raise ValueError(
                f'`num_fusion_layers` ({self.num_fusion_layers}) needs `encoder_strategy="mid_fusion"`, got '
                f"{self.encoder_strategy!r}. Omit it, or change the strategy."
            )
        self._validate_inputs()
        self._validate_head()
        for modality in self.modalities:
            check_num_tokens(modality, self.num_tokens(modality))

    def _validate_inputs(self):
        height, width = self.image_hw
        patch_height, patch_width = self.patch_hw
        if "video" in self.modalities:  # always, since the decoder's targets are whole patches
            check_multiples(
                [
                    ("image_size", height, patch_height),
                    ("image_size", width, patch_width),
                    ("num_frames", self.num_frames, self.tubelet_size),
                ]
            )
        check_spectrogram(self)
        audio = [
            ("spectrogram_length", self.spectrogram_length, patch_height),
            ("num_mel_bins", self.num_mel_bins, patch_width),
        ]
        check_remainders(self, audio if "audio" in self.modalities else [])

    def check_pretraining(self) -> None:
        """
        Checks for pretraining; [`AVMAEForPreTraining`] calls it. They are not part of the validation at construction, since
        `from_pretrained(folder, modalities=("audio",))` fine-tunes one modality of a pretrained pair.

        Raises:
            ValueError: For a CLS token, for inpainting with one modality, or with more visible tokens than positions.
        """
        if self.readout == "token":
            raise ValueError(
                '`readout="token"` is for classification, but the masked autoencoder has no CLS token. Use a pooled readout such '
                'as `readout="mean"`.'
            )
        if self.objective == "modality_inpainting":
            if len(self.modalities) != 2:
                raise ValueError(
                    '`objective="modality_inpainting"` reconstructs each modality from the other, so `modalities` must name '
                    f"both, got {tuple(self.modalities)}."
                )
            for target, source in (("video", "audio"), ("audio", "video")):
                visible, positions = self.num_visible_tokens(source), self.num_tokens(target)
                if visible >= positions:
                    raise ValueError(
                        f"Inpainting places {visible} visible {source} tokens among {positions} {target} positions, which must be "
                        f"more. Raise `{source}_mask_ratio` ({getattr(self, f'{source}_mask_ratio')})."
                    )
        if self.encoder_strategy == self.decoder_strategy == "separate" and len(self.modalities) == 2:
            warnings.warn(
                '`encoder_strategy="separate"` with `decoder_strategy="separate"` pretrains two autoencoders that share '
                "nothing; the original forbids it.",
                stacklevel=4,  # the line that builds the model; `BoundedPreTrainedModel` adds a call
            )

    def _validate_head(self):
        if self.readout == "token" and len(self.modalities) != 1:
            raise ValueError(
                f'`readout="token"` is for a single modality, got `modalities` {tuple(self.modalities)}; use `"mean"`.'
            )
        if self.readout == "token" and self.num_segments is not None:
            raise ValueError(
                f'`num_segments` ({self.num_segments}) needs a pooled `readout` such as `"mean"`, got `"token"`.'
            )

    @property
    def video_grid(self) -> tuple[int, int, int]:
        """Video tokens along time, height and width."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        return self.num_frames // self.tubelet_size, height // patch_height, width // patch_width

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Spectrogram tokens along time and mel."""
        patch_height, patch_width = self.patch_hw
        return self.spectrogram_length // patch_height, self.num_mel_bins // patch_width

    def num_tokens(self, modality: str) -> int:
        """Tokens of a modality before masking."""
        grid = self.video_grid if modality == "video" else (*self.audio_grid, 1)
        return grid[0] * grid[1] * grid[2]

    def num_visible_tokens(self, modality: str) -> int:
        """
        Tokens of a modality that pretraining leaves visible: all but `int(ratio * tokens)`.

        The product is truncated (0.9 of 1568 masks 1411). Tube masking counts within one frame group.
        """
        ratio, tokens = getattr(self, f"{modality}_mask_ratio"), self.num_tokens(modality)
        if modality == "video" and self.video_masking == "tube":
            steps = self.video_grid[0]
            return tokens - steps * int(ratio * (tokens // steps))
        return tokens - int(ratio * tokens)

    def num_target_values(self, modality: str) -> int:
        """Values per patch prediction: 1536 for a 2 x 16 x 16 colour tubelet, 256 for a spectrogram patch."""
        patch_height, patch_width = self.patch_hw
        if modality == "audio":
            return patch_height * patch_width * self.num_audio_channels
        frames = 1 if self.central_frame_target else self.tubelet_size
        return frames * patch_height * patch_width * self.num_channels

    @classmethod
    def small(cls, **overrides) -> "AVMAEConfig":
        """Encoder of width 384, 12 layers, 6 heads; the decoder (not published) has half that width."""
        return cls._of_size("small", overrides)

    @classmethod
    def base(cls, **overrides) -> "AVMAEConfig":
        """The paper's Base: width 768, 12 layers, 12 heads, decoder 384 (the defaults)."""
        return cls._of_size("base", overrides)

    @classmethod
    def large(cls, **overrides) -> "AVMAEConfig":
        """The released Large: width 1024, 24 layers, 16 heads, decoder 512."""
        return cls._of_size("large", overrides)

    @classmethod
    def huge(cls, **overrides) -> "AVMAEConfig":
        """Width 1280, 32 layers, 16 heads, with the Large decoder (not published)."""
        return cls._of_size("huge", overrides)


__all__ = ["AVMAEConfig"]
