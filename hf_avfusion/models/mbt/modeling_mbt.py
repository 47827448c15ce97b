"""
MBT, the Multimodal Bottleneck Transformer of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., NeurIPS 2021).

Equal to the scenic project `mbt` in every fusion variant and readout (recorded cases in tests/goldens/mbt). Where that code does
not run (pooled readouts together with bottlenecks), equal to its repaired form. With fixed positions and a readout per stream it
is the MBT that the project `av_mae` fine-tunes (recorded cases in tests/goldens/avmae). Not in the originals' code: the
asymmetric bottleneck updates of supplementary A.1, and missing modalities, see `MBTModel.forward`.
"""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..shared.bounded_model import BoundedPreTrainedModel
from ..shared.layers_vit import (
    SpectrogramPatchEmbeddings,
    VideoPatchEmbeddings,
    ViTBlock,
    add_position_table,
    init_marked_layer,
    init_position_table,
    with_init,
)
from ..shared.start_methods import StartMethod
from ..shared.two_streams import (
    REDUCTIONS,
    AudioVisualClassifierOutput,
    AudioVisualModelOutput,
    StreamClassifier,
    average_streams,
    check_frames,
    check_inputs,
    has_modality,
    modality_presence,
    record_both_streams,
    spectrogram_planes,
    zero_missing,
)
from .configuration_mbt import MBTConfig
from .initialization_mbt import (
    load_vit,
    mbt_config_fields_from_avmae,
    mbt_state_from_avmae,
    mbt_state_from_vit,
    pre_logits_from_vit,
)

# Output of a layer: video tokens, audio tokens, `extra`, and the attention weights of each stream.
LayerOutput = tuple[
    torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None
]


class MBTEmbeddings(nn.Module):
    """Shared parts of both embeddings: an optional CLS token in front, positions for all tokens, a modality token."""

    def __init__(self, config: MBTConfig, num_patches: int):
        super().__init__()
        with_cls = config.readout == "token"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if with_cls else None
        self.modality_token = (
            nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_modality_tokens else None
        )
        add_position_table(self, config.position_embeddings, num_patches + with_cls, config.hidden_size)

    def add_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, n, d] -> [B, n (+1), d]."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + self.position_embeddings
        return tokens if self.modality_token is None else tokens + self.modality_token


class MBTVideoEmbeddings(MBTEmbeddings):
    """pixel_values [B, T, C, H, W] -> video tokens [B, n_v, d]."""

    def __init__(self, config: MBTConfig):
        super().__init__(config, config.num_patches("video"))
        self.config = config
        self.frame_indices = config.sampled_frame_indices
        self.patch_embeddings = VideoPatchEmbeddings(
            config.num_channels, config.hidden_size, config.tubelet_size, config.patch_hw
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_frames(self.config, pixel_values)
        if self.frame_indices is not None:
            pixel_values = pixel_values[:, self.frame_indices]
            if self.config.image_hw[0] % self.config.patch_hw[0]:
                # As in the original, patches straddle frames if the height is not a multiple of the patch height.
                pixel_values = pixel_values.transpose(1, 2).flatten(2, 3).unsqueeze(1)
        return self.add_positions(self.patch_embeddings(pixel_values))


class MBTAudioEmbeddings(MBTEmbeddings):
    """input_features [B, time, mel] (or [B, C, time, mel]) -> spectrogram tokens [B, n_a, d]."""

    def __init__(self, config: MBTConfig):
        super().__init__(config, config.num_patches("audio"))
        self.config = config
        self.patch_embeddings = SpectrogramPatchEmbeddings(
            config.num_audio_channels, config.hidden_size, config.patch_hw
        )

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.add_positions(self.patch_embeddings(spectrogram_planes(self.config, input_features)))


class MBTLayer(GradientCheckpointingLayer):
    """
    One layer of both streams, with their fusion.

    `forward(video, audio, extra)` takes tokens [B, n_v, d] and [B, n_a, d] (either may be None) and returns the same, with
    `extra` and the attention weights of each stream. `extra` is passed from layer to layer next to the tokens: the bottleneck
    [B, b, d], or for a shared encoder with full self-attention the joint sequence, built once.
    """

    def __init__(self, config: MBTConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.fuses = layer_index >= config.fusion_layer and len(config.modalities) == 2
        # The rate grows linearly from 0 at the first layer to the full rate at the last.
        rate = config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1)
        if config.share_encoder:
            self.shared = ViTBlock(config, rate)
        else:
            for modality in config.modalities:
                setattr(self, modality, ViTBlock(config, rate))

    def block(self, modality: str) -> ViTBlock:
        """The transformer block of this stream."""
        return self.shared if self.config.share_encoder else getattr(self, modality)

    def forward(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        extra: torch.Tensor | None = None,
        presence: torch.Tensor | None = None,
        **kwargs,
    ) -> LayerOutput:
        config = self.config
        without_bottlenecks = config.fusion == "bottleneck" and not (self.training or config.test_with_bottlenecks)
        if not self.fuses or without_bottlenecks:
            return self._forward_separately(video, audio, extra, **kwargs)
        if config.fusion == "bottleneck":
            return self._forward_bottleneck(video, audio, extra, presence, **kwargs)
        if video is None or audio is None:
            return self._forward_separately(video, audio, extra, **kwargs)
        fuse = self._self_attention_shared if config.share_encoder else self._self_attention_separate
        fused = fuse(video, audio, extra, **kwargs)
        if presence is None:
            return fused
        # If a modality is missing, the other attends to itself alone. Both results are computed and one is selected per sample:
        # complete samples stay bit-identical and no attention mask is needed.
        separate = self._forward_separately(video, audio, None, **kwargs)
        complete = presence.all(dim=1)[:, None, None]
        video, audio = (torch.where(complete, both, one) for both, one in zip(fused[:2], separate[:2]))
        joint = None if fused[2] is None else self._join(video, audio)
        return (video, audio, joint, *fused[3:])

    def _forward_separately(
        self, video: torch.Tensor | None, audio: torch.Tensor | None, extra: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        video, video_weights = (None, None) if video is None else self.block("video")(video, **kwargs)
        audio, audio_weights = (None, None) if audio is None else self.block("audio")(audio, **kwargs)
        return video, audio, extra, video_weights, audio_weights

    def _forward_bottleneck(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        bottleneck: torch.Tensor,
        presence: torch.Tensor | None,
        **kwargs,
    ) -> LayerOutput:
        order = ("audio", "video") if self.config.bottleneck_update == "audio_first" else ("video", "audio")
        chained = self.config.bottleneck_update != "symmetric"
        tokens, weights, updates = {"video": video, "audio": audio}, {}, {}
        for modality in order:
            stream = tokens[modality]
            if stream is None:
                continue
            # Tokens first, bottleneck last. Only the concatenation copies: both halves of the result are views.
            joint, weights[modality] = self.block(modality)(torch.cat([stream, bottleneck], dim=1), **kwargs)
            tokens[modality], update = joint[:, : stream.shape[1]], joint[:, stream.shape[1] :]
            if chained:
                bottleneck = (
                    update if presence is None else torch.where(has_modality(presence, modality), update, bottleneck)
                )
            else:
                updates[modality] = update
        if not chained:
            bottleneck = average_streams(updates.get("video"), updates.get("audio"), presence)
        return tokens["video"], tokens["audio"], bottleneck, weights.get("video"), weights.get("audio")

    def _self_attention_separate(
        self, video: torch.Tensor, audio: torch.Tensor, extra: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        # Each stream's block runs over [other, own] and keeps its own rows. The original also computes the other rows and drops
        # them. Here they are only keys and values, which gives the same result.
        new_video, video_weights = self.block("video")(video, audio, **kwargs)
        new_audio, audio_weights = self.block("audio")(audio, video, **kwargs)
        return new_video, new_audio, extra, video_weights, audio_weights

    def _self_attention_shared(
        self, video: torch.Tensor, audio: torch.Tensor, joint: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        joint, weights = self.shared(self._join(video, audio) if joint is None else joint, **kwargs)
        first = video.shape[1] if self.config.modalities[0] == "video" else audio.shape[1]
        parts = dict(zip(self.config.modalities, (joint[:, :first], joint[:, first:])))
        return parts["video"], parts["audio"], joint, weights, None

    def _join(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        tokens = {"video": video, "audio": audio}
        return torch.cat([tokens[modality] for modality in self.config.modalities], dim=1)


class MBTPreTrainedModel(BoundedPreTrainedModel):
    """Weight initialisation and the class attributes that transformers needs."""

    config: MBTConfig
    base_model_prefix = "mbt"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MBTVideoEmbeddings", "MBTAudioEmbeddings", "MBTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(MBTLayer, index=0),
        "attentions": OutputRecorder(MBTLayer, index=3),
        "audio_hidden_states": [OutputRecorder(MBTAudioEmbeddings), OutputRecorder(MBTLayer, index=1)],
        "audio_attentions": OutputRecorder(MBTLayer, index=4),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights as in the original."""
        super()._init_weights(module)
        init_marked_layer(module, head_bias=self.config.classifier_bias_init)
        if isinstance(module, MBTEmbeddings):
            init_position_table(module, self.config.initializer_range)
            for token in (module.cls_token, module.modality_token):
                if token is not None:
                    init.zeros_(token)
        elif isinstance(module, MBTModel) and module.bottleneck is not None:
            init.normal_(module.bottleneck, std=self.config.initializer_range)


class MBTModel(MBTPreTrainedModel):
    """The two streams and their fusion, without a head."""

    def __init__(self, config: MBTConfig):
        super().__init__(config)
        self.video_embeddings = MBTVideoEmbeddings(config) if "video" in config.modalities else None
        self.audio_embeddings = MBTAudioEmbeddings(config) if "audio" in config.modalities else None
        # Bottleneck rows have no positions. Created only if used: an unused parameter would stall DDP.
        self.bottleneck = (
            nn.Parameter(torch.zeros(1, config.num_bottleneck_rows, config.hidden_size))
            if config.uses_bottleneck
            else None
        )
        self.layers = nn.ModuleList([MBTLayer(config, index) for index in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @record_both_streams
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioVisualModelOutput:
        r"""
        Args:
            pixel_values (float [B, num_frames, num_channels, height, width], *optional*): Frames, values in [-1, 1].
            input_features (float [B, spectrogram_length, num_mel_bins], *optional*): Log-mel spectrogram.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where a sample lacks the modality and its
                row holds filler. Omit it if every sample has every given modality.

        A missing modality (its argument not given, or masked) takes no part in fusion: the bottleneck keeps the update of the
        other modality, full self-attention is over that modality alone, and readouts use its tokens only. So results do not
        depend on batch mates, and samples with both modalities are bit-identical to those of an unmasked batch. The original
        has no such mechanism. To drop a stream altogether, load the model with `modalities=("audio",)`.

        Raises:
            ValueError: On missing or unknown modalities and wrong shapes.
        """
        check_inputs(self.config, pixel_values, input_features, modality_mask)
        if modality_mask is not None:
            pixel_values = zero_missing(pixel_values, modality_mask[:, 0].bool())
            input_features = zero_missing(input_features, modality_mask[:, 1].bool())
        presence = modality_presence(pixel_values, input_features, modality_mask)
        video = None if pixel_values is None else self.video_embeddings(pixel_values)
        audio = None if input_features is None else self.audio_embeddings(input_features)
        extra = None
        if self.bottleneck is not None:
            batch = video.shape[0] if audio is None else audio.shape[0]
            extra = self.bottleneck.expand(batch, -1, -1)
        for layer in self.layers:
            video, audio, extra, _, _ = layer(video, audio, extra, presence, **kwargs)
        video = None if video is None else self.layernorm(video)
        audio = None if audio is None else self.layernorm(audio)
        streams = {"video": video, "audio": audio}
        present = [streams[modality] for modality in self.config.modalities if streams[modality] is not None]
        return AudioVisualModelOutput(
            last_hidden_state=present[0] if len(present) == 1 else torch.cat(present, dim=1),
            video_hidden_state=video,
            audio_hidden_state=audio,
        )

    @classmethod
    def from_vit(cls, vit: PreTrainedModel | str, config: MBTConfig | None = None, **kwargs) -> "MBTModel":
        """A new model initialised from an image ViT; see [`MBTForAudioVisualClassification.from_vit`]."""
        return _from_vit(cls, vit, config, **kwargs)

    @classmethod
    def from_avmae(cls, avmae: PreTrainedModel | str, config: MBTConfig | None = None, **kwargs) -> "MBTModel":
        """A new model initialised from a pretrained AV-MAE; see [`MBTForAudioVisualClassification.from_avmae`]."""
        return _from_avmae(cls, avmae, config, **kwargs)


class MBTForAudioVisualClassification(StreamClassifier, MBTPreTrainedModel):
    """MBT with one linear head, shared by the streams, over the readout of the config."""

    # The loss is a mean over clips: the Trainer, not the model, accounts for gradient accumulation.
    accepts_loss_kwargs = False
    start_methods = {
        "from_vit": StartMethod("an image ViT, by Hub id or folder"),
        "from_avmae": StartMethod("a pretrained AV-MAE, by Hub id or folder", own_processor=True),
    }

    def __init__(self, config: MBTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mbt = MBTModel(config)
        width = config.hidden_size
        self.pre_logits = None
        if config.representation_size is not None:
            self.pre_logits = with_init(nn.Linear(width, config.representation_size), "lecun")
            width = config.representation_size
        self.classifier = with_init(nn.Linear(width, config.num_labels), "head")
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioVisualClassifierOutput:
        r"""
        Args:
            pixel_values, input_features, modality_mask: See [`MBTModel.forward`].
            labels: Integer [B] (single label), float [B, C] (multi-hot, or mixed probabilities), or integer [B, heads]
                for `config.class_splits`; see `config.problem_type`.
            audio_labels: Labels of the audio stream if they differ from `labels`, as after mixup per modality; needs a readout
                with logits per stream and training mode. Keyword only.

        In training, with a readout that has logits per stream, the loss is the mean of the losses of the streams' logits, with
        label smoothing. In evaluation it is the loss of the averaged logits, without smoothing.
        """
        # Not in the signature: the Trainer computes no evaluation loss until a batch holds every named "label" argument.
        audio_labels = kwargs.pop("audio_labels", None)
        outputs = self.mbt(pixel_values, input_features, modality_mask, return_dict=True, **kwargs)
        video, audio = outputs.video_hidden_state, outputs.audio_hidden_state
        presence = modality_presence(pixel_values, input_features, modality_mask)
        video_logits = audio_logits = None
        if self.config.has_stream_logits:
            video_logits = None if video is None else self._head(self._pool_stream(video))
            audio_logits = None if audio is None else self._head(self._pool_stream(audio))
            logits = average_streams(video_logits, audio_logits, presence)
        else:
            logits = self._head(self._pool(outputs.last_hidden_state, video, audio, presence))
        by_stream = {"clip": logits, "video": video_logits, "audio": audio_logits}
        loss = self._stream_loss(by_stream, labels, audio_labels, presence)
        return AudioVisualClassifierOutput(
            loss=loss,
            logits=logits,
            video_logits=video_logits,
            audio_logits=audio_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            audio_attentions=outputs.audio_attentions,
        )

    def _pool_stream(self, tokens: torch.Tensor) -> torch.Tensor:
        readout = self.config.readout
        return tokens[:, 0] if readout == "token" else REDUCTIONS[readout.removeprefix("stream_")](tokens, dim=1)

    def _pool(
        self,
        tokens: torch.Tensor,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        presence: torch.Tensor | None,
    ) -> torch.Tensor:
        # Over all tokens of all streams, so the longer stream has more weight; not the mean of the streams' means.
        reduce = REDUCTIONS[self.config.readout]
        pooled = reduce(tokens, dim=1)
        if presence is None:
            return pooled
        has_video, has_audio = presence[:, :1], presence[:, 1:]
        alone = torch.where(has_video, reduce(video, dim=1), reduce(audio, dim=1))
        return torch.where(has_video & has_audio, pooled, alone)

    @classmethod
    def from_vit(
        cls, vit: PreTrainedModel | str, config: MBTConfig | None = None, **kwargs
    ) -> "MBTForAudioVisualClassification":
        """
        A new model whose streams are initialised from an image ViT, by the original's rules.

        Every encoder block is copied to both streams, and the final norm is copied. The patch kernel is copied to the
        spectrogram's and, inflated, to the tubelets'. Positions are resampled (align-corners bilinear) and tiled over time. The
        bottleneck is initialised from the downsampled position grid. The CLS token is copied to the video stream (or to the
        only stream). With a video stream, the audio CLS token is newly initialised. The head is always newly initialised. The
        ViT's pooler becomes the dense layer before the head if `representation_size` is its width. The ViT's activation and
        LayerNorm epsilon are replaced by the config's (tanh GELU, 1e-6: those of the JAX ViT).

        Args:
            vit: A transformers `ViTModel` or `ViTFor...`, or the Hub id or folder of one.
            config: The model to build; by default MBT-Base with the ViT's width, layers, heads, MLP, patch and image size.
            tubelet_initializer: `"central_frame"` (published), `"average_frame"` or `"average_arp_frame"`.
            position_resize: `"resize_tile"` (published), `"tile"` or `"resize"`.
            **config_overrides: Fields of the default config, such as `num_labels` or `num_frames`.

        Raises:
            ValueError: If shapes do not match or a tensor of the ViT has no target; the message names them.
        """
        return _from_vit(cls, vit, config, **kwargs)

    @classmethod
    def from_avmae(
        cls, avmae: PreTrainedModel | str, config: MBTConfig | None = None, **config_overrides
    ) -> "MBTForAudioVisualClassification":
        """
        A new model whose streams are initialised from a pretrained AV-MAE, as the paper fine-tunes it.

            model = MBTForAudioVisualClassification.from_avmae("folder", num_labels=309, num_frames=32, fusion_layer=8)

        Layers of one modality are copied to its stream, shared layers to both streams. The final norm is that of the joint or
        shared layers; after separate encoders it is newly initialised. Bottleneck and head are newly initialised. The original's
        mapping loses the spectrogram's patch projection because of a misspelt name; here it is copied.

        Args:
            avmae: An `AVMAEModel` or `AVMAEFor...`, or the Hub id or folder of one.
            config: The model to build; by default the AV-MAE's sizes, inputs and modalities, with logits from the mean of each
                stream's tokens.
            **config_overrides: Fields of the default config, such as `num_labels`, `num_frames` (published: 32),
                `fusion_layer` (published for Large: 16 on VGGSound, 18 on AudioSet), `modalities` (`("audio",)` fine-tunes on
                audio alone), `drop_path_rate` and `label_smoothing` (published: 0.3 both).

        Raises:
            ValueError: If tensors and config do not match; the message names them.
        """
        return _from_avmae(cls, avmae, config, **config_overrides)


def _from_avmae(
    cls: type[MBTPreTrainedModel], avmae: PreTrainedModel | str, config: MBTConfig | None = None, **config_overrides
) -> MBTPreTrainedModel:
    if not isinstance(avmae, PreTrainedModel):
        avmae = AutoModel.from_pretrained(avmae)
    if avmae.config.model_type != "avmae":
        raise ValueError(
            f"`avmae` must be an `AVMAEModel`, an `AVMAEFor...` or a folder of one, got {type(avmae).__name__}."
        )
    if config is None:
        config = cls.config_class(**{**mbt_config_fields_from_avmae(avmae.config), **config_overrides})
    elif config_overrides:
        raise ValueError(
            f"Give either `config` or single fields, not both; got `config` and {sorted(config_overrides)}."
        )
    model = cls(config)
    base = getattr(model, model.base_model_prefix, model)
    state = mbt_state_from_avmae(avmae.base_model.state_dict(), avmae.config, config)
    shapes = {name: tuple(value.shape) for name, value in base.state_dict().items()}
    odd = [f"{name} {tuple(value.shape)}" for name, value in state.items() if shapes.get(name) != tuple(value.shape)]
    if odd:
        raise ValueError(
            f"The AV-MAE's tensors {', '.join(odd)} do not fit this config. Change the config fields that set their shapes."
        )
    missing = set(base.load_state_dict(state, strict=False).missing_keys)
    fresh = {
        "bottleneck",
        "layernorm.weight",
        "layernorm.bias",
        "video_embeddings.cls_token",
        "audio_embeddings.cls_token",
    }
    fresh |= {f"{modality}_embeddings.modality_token" for modality in config.modalities}
    if missing - fresh:
        raise ValueError(
            f"The AV-MAE has no tensors for {sorted(missing - fresh)}. Change the config so that its parts match the AV-MAE's."
        )
    return model


def _from_vit(
    cls: type[MBTPreTrainedModel],
    vit: PreTrainedModel | str,
    config: MBTConfig | None = None,
    tubelet_initializer: str = "central_frame",
    position_resize: str = "resize_tile",
    **config_overrides,
) -> MBTPreTrainedModel:
    if not isinstance(vit, PreTrainedModel):
        representation_size = (config_overrides if config is None else vars(config)).get("representation_size")
        vit = load_vit(vit, with_pooler=representation_size is not None)
    if config is None:
        fields = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "image_size",
            "patch_size",
        )
        absent = [name for name in fields if not hasattr(vit.config, name)]
        if absent:
            raise ValueError(
                f"`vit` must be a `ViTModel` or `ViTFor...`, got {type(vit).__name__}, whose config lacks {absent}."
            )
        config = cls.config_class(**{**{name: getattr(vit.config, name) for name in fields}, **config_overrides})
    elif config_overrides:
        raise ValueError(
            f"Give either `config` or single fields, not both; got `config` and {sorted(config_overrides)}."
        )
    model = cls(config)
    base = getattr(model, model.base_model_prefix, model)
    vit_state = vit.base_model.state_dict()
    state = mbt_state_from_vit(vit_state, config, tubelet_initializer, position_resize)
    missing, unexpected = base.load_state_dict(state, strict=False)
    fresh = {name for name in missing if not name.endswith("audio_embeddings.cls_token")}
    if fresh or unexpected:
        raise ValueError(
            f"The ViT has no tensors for {sorted(fresh)}, and the model has no parameters for {sorted(unexpected)}. Change the "
            "config so that both match."
        )
    if base is not model:
        model.load_state_dict(pre_logits_from_vit(vit_state, config), strict=False)
    return model


__all__ = ["MBTForAudioVisualClassification", "MBTModel", "MBTPreTrainedModel"]
