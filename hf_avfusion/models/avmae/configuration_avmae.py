"""Configuration of AV-MAE, the Audiovisual Masked Autoencoders (Georgescu et al., ICCV 2023)."""

import warnings

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...media.limits import check_num_parameters, check_sizes
from ..shared.configuration_shared import as_pair, check_class_splits, take_class_splits

MODALITIES = ("video", "audio")
ENCODER_STRATEGIES = ("early", "shared", "separate", "mid_fusion")
DECODER_STRATEGIES = ("shared", "separate", "concatenated")
OBJECTIVES = ("joint_reconstruction", "modality_inpainting")
MASKINGS = ("random", "tube")
POSITIONS = ("sinusoidal", "learned")
TARGET_STANDARDIZATIONS = (None, "patch", "patch_channels")
READOUTS = ("mean", "max", "sum", "token")
PROBLEM_TYPES = (
    None,
    "single_label_classification",
    "multi_label_classification",
    "multi_head_classification",
    "regression",
)

_COUNTS = (
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
_RATES = (
    "drop_path_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "decoder_drop_path_rate",
    "decoder_hidden_dropout_prob",
    "decoder_attention_probs_dropout_prob",
    "label_smoothing",
)

# Encoder sizes of the project; decoders as released for Base and Large (supplementary A14). None was published for the
# others: Small takes half of its encoder's width as Base does, Huge the Large decoder.
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
class AVMAEConfig(PreTrainedConfig):
    r"""
    Configuration of [`AVMAEModel`], [`AVMAEForPreTraining`] and [`AVMAEForAudioVisualClassification`]. The defaults are a
    Base model pretrained as on VGGSound: separate encoders, a shared decoder, 16 frames in tubelets of two and 8 s of
    spectrogram, 0.9 of the video and 0.5 of the audio masked. The released AudioSet model is
    `AVMAEConfig.large(encoder_strategy="mid_fusion", audio_mask_ratio=0.7, spectrogram_length=1000)`.

    Args:
        hidden_size (`int`, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, defaults to 12): Encoder layers that a token passes, joint ones included.
        num_attention_heads (`int`, defaults to 12): Attention heads; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): Width of the MLP.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of the MLP. The original uses the tanh GELU.
        hidden_dropout_prob (`float`, defaults to 0.0): Dropout after attention and in the MLP.
        attention_probs_dropout_prob (`float`, defaults to 0.0): Dropout of attention probabilities.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth of the last layer of a stack, growing linearly from 0 at
            its first (the joint stack of mid-fusion starts at 0 again). Published fine-tuning takes 0.3. As in the original a
            kept branch is **not** rescaled.
        initializer_range (`float`, defaults to 0.02): Standard deviation of learned positions.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size (`int` or pair, defaults to 224): Height and width of frames, pixels; multiples of the patch.
        patch_size (`int` or pair, defaults to 16): Patch height and width. The same pair cuts the spectrogram (height along
            time, width along mel).
        tubelet_size (`int`, defaults to 2): Frames per video token.
        num_frames (`int`, defaults to 16): Frames the model is given; a multiple of `tubelet_size`. Published fine-tuning
            takes 32: sinusoidal positions fit any number.
        num_channels (`int`, defaults to 3): Channels of a frame.
        num_audio_channels (`int`, defaults to 1): Input channels of the spectrogram patch projection.
        num_mel_bins (`int`, defaults to 128): Mel bands of the spectrogram.
        spectrogram_length (`int`, defaults to 800): Spectrogram frames (10 ms hop: 8 s). What is left over by the patches is
            not seen: 1000 frames are 62 rows of patches.
        modalities (pair or single of `"video"`, `"audio"`, defaults to `("video", "audio")`): The modalities the model
            takes. Video always comes first, in whatever order they are named.
        encoder_strategy (`str`, defaults to `"separate"`): `"early"` (one stack over both modalities' tokens together),
            `"shared"` (one stack applied to each modality alone), `"separate"` (a stack each), `"mid_fusion"` (a stack each,
            then `num_fusion_layers` joint layers).
        num_fusion_layers (`int`, *optional*): Joint layers of mid-fusion, of the `num_hidden_layers`; 2 unless given.
        decoder_strategy (`str`, defaults to `"shared"`): `"shared"` (one stack applied to each modality alone), `"separate"`
            (a stack each) or `"concatenated"` (one stack over both together). Separate encoders with separate decoders are
            two masked autoencoders that share nothing; the original forbids the pair, here it draws a warning.
        objective (`str`, defaults to `"joint_reconstruction"`): or `"modality_inpainting"`, which reconstructs each modality
            from the other's visible tokens.
        video_mask_ratio (`float`, defaults to 0.9): Share of video tokens hidden from the encoder; the count is truncated.
        audio_mask_ratio (`float`, defaults to 0.5): The same of the spectrogram.
        video_masking (`str`, defaults to `"random"`): `"random"` or `"tube"` (the same places in every frame group).
        use_modality_tokens (`bool`, defaults to `False`): A learned vector per modality, added to its tokens, in the encoder
            and another in the decoder.
        position_embeddings (`str`, defaults to `"sinusoidal"`): `"sinusoidal"` (fixed, over the flattened token index) or
            `"learned"`, of the encoder.
        decoder_position_embeddings (`str`, defaults to `"sinusoidal"`): The same of the decoder.
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
            and variance 1) or `"patch_channels"` (each colour channel of a video patch; spectrograms stay raw).
        central_frame_target (`bool`, defaults to `False`): Reconstruct only frame `tubelet_size // 2` of each tubelet.
        loss_on_visible_tokens (`bool`, defaults to `False`): Count all tokens in the loss, not only the masked ones.
        average_over_features (`bool`, defaults to `True`): Divide a patch's squared error by its number of values; else sum.
        video_loss_weight (`float`, defaults to 0.5): Weight of the video's loss in the total.
        audio_loss_weight (`float`, defaults to 0.5): Weight of the spectrogram's loss in the total.
        readout (`str`, defaults to `"mean"`): Of the classifier: `"mean"`, `"max"` or `"sum"` over each modality's tokens, or
            `"token"`, a CLS token put before the tokens, which the original knows for single-modality models only.
        pooled_norm (`bool`, defaults to `False`): A LayerNorm after pooling, as the original's single-modality classifier
            has it (which leaves out `final_norm` then).
        representation_size (`int`, *optional*): Width of a dense + tanh layer before the head.
        freeze_encoder (`bool`, defaults to `False`): Linear probing: no gradient reaches the encoder, and features pass a
            batch normalisation without scale and bias before the head.
        num_segments (`int`, *optional*): If set, the classifier gives logits for each of this many equal parts of the clip,
            such as the 10 seconds of AVE (event localisation), not for the clip.
        classifier_bias_init (`float`, defaults to 0.0): Initial bias of the head.
        label_smoothing (`float`, defaults to 0.0): Label smoothing in training; published fine-tuning uses 0.3.
        class_splits (`dict[str, int]`, *optional*): Several softmax heads in one logits vector, as in [`MBTConfig`].

    Choices of ours where the original shows none (fine-tuning both modalities with the model's own encoder, supplementary
    A.5, is not in its code): each modality's tokens are pooled alone, one linear head is shared by both, the clip's logits
    are the mean over the modalities present, and in training each modality's logits have their own loss: all as its MBT has it.

    Raises:
        ValueError: If fields contradict each other; the message names them.
    """

    model_type = "avmae"
    # So that a Trainer's predictions are the logits alone, and pretraining keeps no pixels.
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
    classifier_bias_init: float | int = 0.0
    label_smoothing: float | int = 0.0
    class_splits: dict[str, int] | list[list[str | int]] | None = None  # pairs in saved files, see to_dict

    def __post_init__(self, **kwargs):
        if set(self.modalities) <= set(MODALITIES) and len(set(self.modalities)) == len(self.modalities):
            self.modalities = tuple(modality for modality in MODALITIES if modality in self.modalities)
        if self.num_fusion_layers is None and self.encoder_strategy == "mid_fusion":
            self.num_fusion_layers = 2
        take_class_splits(self, kwargs)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Cross-field checks, run at construction. Raises ValueError naming the fields."""
        inputs = ("image_size", "patch_size", "num_mel_bins", "spectrogram_length")
        check_sizes({name: getattr(self, name) for name in (*_COUNTS, *inputs)})
        modalities = tuple(self.modalities)
        if not modalities or len(set(modalities)) != len(modalities) or not set(modalities) <= set(MODALITIES):
            raise ValueError(
                f"`modalities` must name each of {MODALITIES} at most once and at least one, got {modalities}."
            )
        for name, allowed in (
            ("encoder_strategy", ENCODER_STRATEGIES),
            ("decoder_strategy", DECODER_STRATEGIES),
            ("objective", OBJECTIVES),
            ("video_masking", MASKINGS),
            ("position_embeddings", POSITIONS),
            ("decoder_position_embeddings", POSITIONS),
            ("target_standardization", TARGET_STANDARDIZATIONS),
            ("readout", READOUTS),
            ("problem_type", PROBLEM_TYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}."
                )
        for name in _COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in _RATES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        for modality in MODALITIES:
            if not 0 <= getattr(self, f"{modality}_mask_ratio") < 1:
                raise ValueError(
                    f"`{modality}_mask_ratio` must lie in [0, 1), got {getattr(self, f'{modality}_mask_ratio')}."
                )
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if width % heads:
                raise ValueError(
                    f"`{prefix}hidden_size` ({width}) must be a multiple of `{prefix}num_attention_heads` ({heads})."
                )
            if width % 2 and getattr(self, f"{prefix}position_embeddings") == "sinusoidal":
                raise ValueError(f"Sinusoidal positions need an even `{prefix}hidden_size`, got {width}.")
        if self.encoder_strategy == "mid_fusion":
            if not 1 <= self.num_fusion_layers <= self.num_hidden_layers:
                raise ValueError(
                    f"`num_fusion_layers` must lie between 1 and `num_hidden_layers` = {self.num_hidden_layers}, got "
                    f"{self.num_fusion_layers}."
                )
        elif self.num_fusion_layers is not None:
            raise ValueError(
                f'`num_fusion_layers` ({self.num_fusion_layers}) belongs to `encoder_strategy="mid_fusion"`, got '
                f"{self.encoder_strategy!r}. Leave it out."
            )
        self._validate_inputs()
        self._validate_head()
        check_num_parameters(
            self._num_parameters(),
            "`hidden_size`, `num_hidden_layers`, `intermediate_size`, their `decoder_` likes, `image_size`, `patch_size`, "
            "`num_frames`, `spectrogram_length`, `num_mel_bins` and `num_labels`",
        )

    def _num_parameters(self) -> int:
        """Numbers in the layers, embeddings, position tables and heads; norms and biases left out."""
        total = 0
        streams = len(self.modalities)
        for prefix in ("", "decoder_"):
            width, layers = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_hidden_layers")
            own = streams if getattr(self, f"{prefix or 'encoder_'}strategy") in ("separate", "mid_fusion") else 1
            total += own * layers * width * (4 * width + 2 * getattr(self, f"{prefix}intermediate_size"))
            total += sum(width * (self.num_tokens(name) + self.num_target_values(name)) for name in self.modalities)
        return total + self.hidden_size * ((self.representation_size or 0) + self.num_labels)

    def _validate_inputs(self):
        height, width = self.image_hw
        patch_height, patch_width = self.patch_hw
        if "video" in self.modalities and (
            height % patch_height or width % patch_width or self.num_frames % self.tubelet_size
        ):
            raise ValueError(
                "Frames must be cut into patches without remainder: `image_size` "
                f"{(height, width)} by `patch_size` {self.patch_hw}, `num_frames` {self.num_frames} by `tubelet_size` "
                f"{self.tubelet_size}."
            )
        if "audio" in self.modalities and (self.spectrogram_length < patch_height or self.num_mel_bins < patch_width):
            raise ValueError(
                f"A spectrogram of `spectrogram_length` x `num_mel_bins` = {self.spectrogram_length} x "
                f"{self.num_mel_bins} holds no patch of `patch_size` {self.patch_hw}."
            )

    def check_pretraining(self) -> None:
        """
        What only pretraining asks of a config; [`AVMAEForPreTraining`] calls it. Not part of the validation at construction,
        since one modality of a pretrained pair is fine-tuned by `from_pretrained(folder, modalities=("audio",))`.

        Raises:
            ValueError: For a CLS token, and for inpainting with one modality or more visible tokens than places.
        """
        if self.readout == "token":
            raise ValueError('`readout="token"` is for classification; the masked autoencoder has no CLS token.')
        if self.objective == "modality_inpainting":
            if len(self.modalities) != 2:
                raise ValueError(
                    '`objective="modality_inpainting"` reconstructs each modality from the other, so `modalities` must name '
                    f"both, got {tuple(self.modalities)}."
                )
            for target, source in (("video", "audio"), ("audio", "video")):
                visible, places = self.num_visible_tokens(source), self.num_tokens(target)
                if visible >= places:
                    raise ValueError(
                        f"Inpainting puts the {visible} visible {source} tokens among the {places} {target} tokens, which "
                        f"must be more. Raise `{source}_mask_ratio` ({getattr(self, f'{source}_mask_ratio')})."
                    )
        if self.encoder_strategy == self.decoder_strategy == "separate" and len(self.modalities) == 2:
            warnings.warn(
                '`encoder_strategy="separate"` with `decoder_strategy="separate"` pretrains two autoencoders that share '
                "nothing; the original forbids it.",
                stacklevel=3,
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
        check_class_splits(self)

    def to_dict(self) -> dict:
        """As transformers', with `class_splits` as pairs: saved JSON sorts the keys of a map, and their order is the heads'."""
        output = super().to_dict()
        if output.get("class_splits"):
            output["class_splits"] = [[name, size] for name, size in self.class_splits.items()]
        return output

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of a frame, pixels."""
        return as_pair("image_size", self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch, pixels (spectrogram: frames and mel bands)."""
        return as_pair("patch_size", self.patch_size)

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
        Tokens of a modality that the encoder sees in pretraining: what `int(ratio * tokens)` masked ones leave.

        The product is truncated (0.9 of 1568 hides 1411); tube masking counts within one frame group.
        """
        ratio, tokens = getattr(self, f"{modality}_mask_ratio"), self.num_tokens(modality)
        if modality == "video" and self.video_masking == "tube":
            steps = self.video_grid[0]
            return tokens - steps * int(ratio * (tokens // steps))
        return tokens - int(ratio * tokens)

    def num_target_values(self, modality: str) -> int:
        """Values that a patch's prediction has: 1536 for a 2 x 16 x 16 tubelet of colour, 256 for a spectrogram patch."""
        patch_height, patch_width = self.patch_hw
        if modality == "audio":
            return patch_height * patch_width * self.num_audio_channels
        frames = 1 if self.central_frame_target else self.tubelet_size
        return frames * patch_height * patch_width * self.num_channels

    @classmethod
    def small(cls, **overrides) -> "AVMAEConfig":
        """Encoder of width 384, 12 layers, 6 heads; the decoder (not published) has half that width."""
        return cls(**{**_SIZES["small"], **overrides})

    @classmethod
    def base(cls, **overrides) -> "AVMAEConfig":
        """The paper's Base: width 768, 12 layers, 12 heads, decoder 384 (the defaults)."""
        return cls(**{**_SIZES["base"], **overrides})

    @classmethod
    def large(cls, **overrides) -> "AVMAEConfig":
        """The released Large: width 1024, 24 layers, 16 heads, decoder 512."""
        return cls(**{**_SIZES["large"], **overrides})

    @classmethod
    def huge(cls, **overrides) -> "AVMAEConfig":
        """Width 1280, 32 layers, 16 heads, with the Large decoder (not published)."""
        return cls(**{**_SIZES["huge"], **overrides})


__all__ = ["AVMAEConfig"]
