"""
MBT, the Multimodal Bottleneck Transformer of "Attention Bottlenecks for Multimodal Fusion" (Nagrani et al., NeurIPS 2021).

Equal to the scenic project `mbt` in every fusion variant and readout (recorded cases in tests/goldens/mbt), and to its repaired
form where that code cannot run (pooled readouts together with bottlenecks). Not in the original: the asymmetric bottleneck
updates of supplementary A.1 in code, and the handling of missing modalities, see `MBTModel.forward`.
"""

from dataclasses import dataclass
from functools import wraps

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_mbt import MBTConfig
from .initialization_mbt import load_vit, mbt_state_from_vit, pre_logits_from_vit
from .layers_vit import SpectrogramPatchEmbeddings, VideoPatchEmbeddings, ViTBlock, init_marked_layer, with_init
from .losses_classification import classification_loss, infer_problem_type

# What a layer hands on: video tokens, audio tokens, `extra`, and the attention weights of each stream.
LayerOutput = tuple[
    torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None
]


@dataclass
class MBTModelOutput(ModelOutput):
    """
    Output of [`MBTModel`]. B batch, d `hidden_size`, n_v / n_a tokens per stream (CLS first with the `"token"` readout).

    Args:
        last_hidden_state (float [B, n_v + n_a, d]): Normalised tokens, streams in the order of `config.modalities`.
        video_hidden_state (float [B, n_v, d]): Normalised video tokens; absent without video.
        audio_hidden_state (float [B, n_a, d]): Normalised spectrogram tokens; absent without audio.
        hidden_states (tuple of `num_hidden_layers + 1` [B, n_v, d]): Video stream before and after each layer, not normalised.
        attentions (tuple of [B, heads, queries, keys]): Video stream; eager attention only. In bottleneck layers both
            count the bottleneck rows (last), in full self-attention layers the keys are [other stream, own tokens].
        audio_hidden_states, audio_attentions: The same of the spectrogram stream. A shared encoder with full
            self-attention has one attention map for both, found in `attentions`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    video_hidden_state: torch.FloatTensor | None = None
    audio_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AudioVisualClassifierOutput(ModelOutput):
    """
    Output of a head for audio-visual classification. B batch, C `num_labels`.

    Args:
        loss (float scalar): Mean over the batch; given `labels`.
        logits (float [B, C]): Scores before softmax or sigmoid.
        video_logits, audio_logits (float [B, C]): Scores of each stream alone (`"token"` readout); `logits` is their mean
            over the modalities present. Rows of a missing modality are meaningless.
        hidden_states, attentions, audio_hidden_states, audio_attentions: See the base model's output.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    video_logits: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


class MBTEmbeddings(nn.Module):
    """What both streams' embeddings share: an optional CLS token in front and a learned position table over all of it."""

    def __init__(self, config: MBTConfig, num_patches: int):
        super().__init__()
        with_cls = config.readout == "token"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if with_cls else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_patches + with_cls, config.hidden_size))

    def add_positions(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, n, d] -> [B, n (+1), d]."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.position_embeddings


class MBTVideoEmbeddings(MBTEmbeddings):
    """pixel_values [B, T, C, H, W] -> video tokens [B, n_v, d]."""

    def __init__(self, config: MBTConfig):
        rows, columns = config.video_patch_grid
        super().__init__(config, rows * columns)
        self.config = config
        self.frame_indices = config.sampled_frame_indices
        self.patch_embeddings = VideoPatchEmbeddings(
            config.num_channels, config.hidden_size, config.tubelet_size, config.patch_hw
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        config = self.config
        expected = (config.num_frames, config.num_channels, *config.image_hw)
        if pixel_values.dim() != 5 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"`pixel_values` must be [batch, num_frames, channels, height, width] = [B, {', '.join(map(str, expected))}] "
                f"for this model, got {tuple(pixel_values.shape)}. Prepare clips with the model's own processor, or load "
                "the model with matching `num_frames` and `image_size` (MBTModel.from_vit resizes positions)."
            )
        if self.frame_indices is not None:
            pixel_values = pixel_values[:, self.frame_indices]
            if config.image_hw[0] % config.patch_hw[0]:
                # Patches straddle frames where the height is no multiple of the patch: part of the original's numbers.
                pixel_values = pixel_values.transpose(1, 2).flatten(2, 3).unsqueeze(1)
        return self.add_positions(self.patch_embeddings(pixel_values))


class MBTAudioEmbeddings(MBTEmbeddings):
    """input_features [B, time, mel] (or [B, C, time, mel]) -> spectrogram tokens [B, n_a, d]."""

    def __init__(self, config: MBTConfig):
        patch_height, patch_width = config.patch_hw
        super().__init__(config, (config.spectrogram_length // patch_height) * (config.num_mel_bins // patch_width))
        self.config = config
        self.patch_embeddings = SpectrogramPatchEmbeddings(
            config.num_audio_channels, config.hidden_size, config.patch_hw
        )

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        config = self.config
        shape = tuple(input_features.shape)
        expected = (config.spectrogram_length, config.num_mel_bins)
        fits = shape[1:] == expected or shape[1:] == (config.num_audio_channels, *expected)
        if not fits:
            raise ValueError(
                "`input_features` must be [batch, time, mel] = "
                f"[B, {expected[0]}, {expected[1]}] for this model (or one such plane for each of the "
                f"{config.num_audio_channels} channels), got {shape}. Prepare audio with the model's own processor, or load "
                "the model with a matching `spectrogram_length` and `num_mel_bins`."
            )
        return self.add_positions(self.patch_embeddings(input_features))


class MBTLayer(GradientCheckpointingLayer):
    """
    One layer of both streams with its exchange (spec section 5).

    `forward(video, audio, extra)` takes tokens [B, n_v, d] and [B, n_a, d] (either may be None) and returns the same, with
    `extra` and the attention weights of each stream. `extra` is what travels between layers beside the tokens: the
    bottleneck [B, b, d], or for a shared encoder with full self-attention the joint sequence, built once.
    """

    def __init__(self, config: MBTConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.exchanges = layer_index >= config.fusion_layer and len(config.modalities) == 2
        # Growing linearly from 0 at the first layer to the full rate at the last.
        rate = config.drop_path_rate * layer_index / max(config.num_hidden_layers - 1, 1)
        if config.share_encoder:
            self.shared = ViTBlock(config, rate)
        else:
            for modality in config.modalities:
                setattr(self, modality, ViTBlock(config, rate))

    def block(self, modality: str) -> ViTBlock:
        """The transformer block that this stream uses."""
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
        if not self.exchanges or without_bottlenecks:
            return self._alone(video, audio, extra, **kwargs)
        if config.fusion == "bottleneck":
            return self._through_bottleneck(video, audio, extra, presence, **kwargs)
        if video is None or audio is None:
            return self._alone(video, audio, extra, **kwargs)
        fuse = self._joint_shared if config.share_encoder else self._joint_separate
        fused = fuse(video, audio, extra, **kwargs)
        if presence is None:
            return fused
        # Where a modality is missing the other attends to itself alone. Both results are computed and selected, which
        # leaves complete samples untouched bit for bit and needs no attention mask.
        alone = self._alone(video, audio, None, **kwargs)
        complete = presence.all(dim=1)[:, None, None]
        video, audio = (torch.where(complete, both, one) for both, one in zip(fused[:2], alone[:2]))
        joint = None if fused[2] is None else self._join(video, audio)
        return (video, audio, joint, *fused[3:])

    def _alone(
        self, video: torch.Tensor | None, audio: torch.Tensor | None, extra: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        video, video_weights = (None, None) if video is None else self.block("video")(video, **kwargs)
        audio, audio_weights = (None, None) if audio is None else self.block("audio")(audio, **kwargs)
        return video, audio, extra, video_weights, audio_weights

    def _through_bottleneck(
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
            # Tokens first, bottleneck last; the concatenation is the only copy, both halves of the result are views.
            joint, weights[modality] = self.block(modality)(torch.cat([stream, bottleneck], dim=1), **kwargs)
            tokens[modality], update = joint[:, : stream.shape[1]], joint[:, stream.shape[1] :]
            if chained:
                bottleneck = update if presence is None else torch.where(_has(presence, modality), update, bottleneck)
            else:
                updates[modality] = update
        if not chained:
            bottleneck = _average(updates.get("video"), updates.get("audio"), presence)
        return tokens["video"], tokens["audio"], bottleneck, weights.get("video"), weights.get("audio")

    def _joint_separate(
        self, video: torch.Tensor, audio: torch.Tensor, extra: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        # Each stream's block runs over [others, own] and keeps its own rows. The original also computes the others' rows
        # and drops them; here they only serve as keys and values, which changes no result.
        new_video, video_weights = self.block("video")(video, audio, **kwargs)
        new_audio, audio_weights = self.block("audio")(audio, video, **kwargs)
        return new_video, new_audio, extra, video_weights, audio_weights

    def _joint_shared(
        self, video: torch.Tensor, audio: torch.Tensor, joint: torch.Tensor | None, **kwargs
    ) -> LayerOutput:
        joint, weights = self.shared(self._join(video, audio) if joint is None else joint, **kwargs)
        first = video.shape[1] if self.config.modalities[0] == "video" else audio.shape[1]
        parts = dict(zip(self.config.modalities, (joint[:, :first], joint[:, first:])))
        return parts["video"], parts["audio"], joint, weights, None

    def _join(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        tokens = {"video": video, "audio": audio}
        return torch.cat([tokens[modality] for modality in self.config.modalities], dim=1)


def _has(presence: torch.Tensor, modality: str) -> torch.Tensor:
    """presence bool [B, 2] (video, audio) -> [B, 1, 1] of one modality."""
    return presence[:, 0 if modality == "video" else 1][:, None, None]


def _average(video: torch.Tensor | None, audio: torch.Tensor | None, presence: torch.Tensor | None) -> torch.Tensor:
    """Mean over the modalities present, sample by sample; the plain mean where both are."""
    if video is None or audio is None:
        return audio if video is None else video
    mean = (video + audio) / 2
    if presence is None:
        return mean
    shape = (-1, *[1] * (mean.dim() - 1))
    has_video, has_audio = presence[:, 0].view(shape), presence[:, 1].view(shape)
    return torch.where(has_video & has_audio, mean, torch.where(has_video, video, audio))


class MBTPreTrainedModel(PreTrainedModel):
    """Initialisation of weights and what transformers needs to know of every MBT class."""

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

    def get_input_embeddings(self) -> nn.Module:
        """The video patch projection, or the spectrogram's in an audio-only model."""
        base = getattr(self, self.base_model_prefix, self)
        embeddings = base.video_embeddings if base.video_embeddings is not None else base.audio_embeddings
        return embeddings.patch_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights as in the original (spec section 8)."""
        super()._init_weights(module)
        init_marked_layer(module, head_bias=self.config.classifier_bias_init)
        if isinstance(module, MBTEmbeddings):
            init.normal_(module.position_embeddings, std=self.config.initializer_range)
            if module.cls_token is not None:
                init.zeros_(module.cls_token)
        elif isinstance(module, MBTModel) and module.bottleneck is not None:
            init.normal_(module.bottleneck, std=self.config.initializer_range)


def _record_both_streams(forward):
    """Let `output_hidden_states` and `output_attentions` switch the audio stream's recording as well."""

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        return_dict = kwargs.pop("return_dict", None)
        for name in ("hidden_states", "attentions"):
            wanted = kwargs.get(f"output_{name}")
            wanted = getattr(self.config, f"output_{name}", False) if wanted is None else wanted
            kwargs[f"output_audio_{name}"] = wanted is not None and wanted is not False
        output = forward(self, *args, return_dict=True, **kwargs)
        absent = [
            prefix
            for stream, prefix in (("video", ""), ("audio", "audio_"))
            if output.get(f"{stream}_hidden_state") is None
        ]
        if absent:
            empty = {f"{prefix}{kind}" for prefix in absent for kind in ("hidden_states", "attentions")}
            output = MBTModelOutput(**{name: value for name, value in output.items() if name not in empty})
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return output if return_dict else output.to_tuple()

    return wrapper


class MBTModel(MBTPreTrainedModel):
    """The two streams and their fusion, without a head."""

    def __init__(self, config: MBTConfig):
        super().__init__(config)
        self.video_embeddings = MBTVideoEmbeddings(config) if "video" in config.modalities else None
        self.audio_embeddings = MBTAudioEmbeddings(config) if "audio" in config.modalities else None
        # No positions on bottleneck rows. Only built where it takes part: an unused parameter would stall DDP.
        self.bottleneck = (
            nn.Parameter(torch.zeros(1, config.num_bottleneck_rows, config.hidden_size))
            if config.uses_bottleneck
            else None
        )
        self.layers = nn.ModuleList([MBTLayer(config, index) for index in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @_record_both_streams
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MBTModelOutput:
        r"""
        Args:
            pixel_values (float [B, num_frames, num_channels, height, width], *optional*): Frames, values in [-1, 1].
            input_features (float [B, spectrogram_length, num_mel_bins], *optional*): Log-mel spectrogram.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where that track of that sample is
                missing and its row holds filler. Leave it out when every sample has every given modality.

        A missing modality (its argument not given, or masked) exchanges nothing: the bottleneck keeps the update of the
        modality that is there, full self-attention sees that modality alone, and readouts use its tokens only. So a
        sample's result does not depend on its batch mates, and samples with both tracks are untouched bit for bit. The
        original has no such mechanism; to drop a stream altogether load the model with `modalities=("audio",)`.

        Raises:
            ValueError: On missing or unknown modalities and wrong shapes.
        """
        self._check_inputs(pixel_values, input_features, modality_mask)
        presence = modality_mask
        if presence is not None:
            presence = presence.bool()
            # Filler may be anything, NaN too, which would reach weight gradients even where the output is not used.
            pixel_values = _blank_missing(pixel_values, presence[:, 0])
            input_features = _blank_missing(input_features, presence[:, 1])
            if pixel_values is None or input_features is None:
                presence = None
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
        return MBTModelOutput(
            last_hidden_state=present[0] if len(present) == 1 else torch.cat(present, dim=1),
            video_hidden_state=video,
            audio_hidden_state=audio,
        )

    def _check_inputs(
        self,
        pixel_values: torch.Tensor | None,
        input_features: torch.Tensor | None,
        modality_mask: torch.Tensor | None,
    ) -> None:
        given = {"video": pixel_values, "audio": input_features}
        if pixel_values is None and input_features is None:
            raise ValueError("Give `pixel_values` (video), `input_features` (audio) or both; got neither.")
        for modality, name in (("video", "pixel_values"), ("audio", "input_features")):
            if given[modality] is not None and modality not in self.config.modalities:
                raise ValueError(
                    f"`{name}` was given, but this model has no {modality} stream (config.modalities = "
                    f"{tuple(self.config.modalities)}). Leave it out, or load a model with that stream."
                )
        if pixel_values is not None and input_features is not None and pixel_values.shape[0] != input_features.shape[0]:
            raise ValueError(
                f"`pixel_values` holds {pixel_values.shape[0]} samples, `input_features` {input_features.shape[0]}; "
                "both must describe the same clips."
            )
        if modality_mask is None:
            return
        batch = (input_features if pixel_values is None else pixel_values).shape[0]
        if tuple(modality_mask.shape) != (batch, 2):
            raise ValueError(
                f"`modality_mask` must be bool [batch, 2] = [{batch}, 2] (columns video, audio), got "
                f"{tuple(modality_mask.shape)}."
            )
        # Reading values waits for a GPU and breaks a graph; there the processor's and the collator's check must do.
        if modality_mask.device.type == "cpu" and not torch.compiler.is_compiling():
            usable = modality_mask.bool() & torch.tensor([pixel_values is not None, input_features is not None])
            empty = (~usable.any(dim=1)).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"Samples {empty} have neither video nor audio by `modality_mask`; leave them out.")

    @classmethod
    def from_vit(cls, vit: PreTrainedModel | str, config: MBTConfig | None = None, **kwargs) -> "MBTModel":
        """A new model whose streams start from an image ViT; see [`MBTForAudioVisualClassification.from_vit`]."""
        return _from_vit(cls, vit, config, **kwargs)


def _blank_missing(values: torch.Tensor | None, present: torch.Tensor) -> torch.Tensor | None:
    if values is None:
        return None
    return torch.where(present.view(-1, *[1] * (values.dim() - 1)), values, 0.0)


class MBTForAudioVisualClassification(MBTPreTrainedModel):
    """MBT with one linear head, shared by the streams, over the readout of the config."""

    # The loss is a mean over clips: the Trainer, not the model, accounts for gradient accumulation.
    accepts_loss_kwargs = False

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
            audio_labels: Labels of the audio stream where they differ from `labels`, as after mixup per modality;
                needs the `"token"` readout and training mode. By keyword only.

        In training with the `"token"` readout the loss is the mean of the streams' own losses, with label smoothing;
        in evaluation it is the plain loss of the averaged logits (spec sections 6 and 10).
        """
        # Not in the signature: the Trainer computes no evaluation loss until a batch holds every named "label" argument.
        audio_labels = kwargs.pop("audio_labels", None)
        outputs = self.mbt(pixel_values, input_features, modality_mask, **kwargs)
        video, audio = outputs.video_hidden_state, outputs.audio_hidden_state
        presence = (
            modality_mask.bool() if modality_mask is not None and None not in (pixel_values, input_features) else None
        )
        if self.config.readout == "token":
            video_logits = None if video is None else self._head(video[:, 0])
            audio_logits = None if audio is None else self._head(audio[:, 0])
            logits = _average(video_logits, audio_logits, presence)
        else:
            video_logits = audio_logits = None
            logits = self._head(self._pool(outputs.last_hidden_state, video, audio, presence))

        loss = None
        if audio_labels is not None and (self.config.readout != "token" or not self.training):
            raise ValueError('`audio_labels` needs `readout="token"` and a model in training mode.')
        if labels is not None:
            per_stream = self.training and self.config.readout == "token"
            if per_stream:
                audio_labels = labels if audio_labels is None else audio_labels
                video_loss = None if video is None else self._loss(video_logits, labels)
                audio_loss = None if audio is None else self._loss(audio_logits, audio_labels)
                loss = _average(video_loss, audio_loss, presence).mean()
            else:
                loss = self._loss(logits, labels).mean()
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

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        if self.pre_logits is not None:
            features = torch.tanh(self.pre_logits(features))
        return self.classifier(features)

    def _pool(
        self,
        tokens: torch.Tensor,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        presence: torch.Tensor | None,
    ) -> torch.Tensor:
        # Over all tokens of all streams together, so the longer stream weighs more; not the mean of the streams' means.
        reduce = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}[self.config.readout]
        pooled = reduce(tokens, dim=1)
        if presence is None:
            return pooled
        has_video, has_audio = presence[:, :1], presence[:, 1:]
        alone = torch.where(has_video, reduce(video, dim=1), reduce(audio, dim=1))
        return torch.where(has_video & has_audio, pooled, alone)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        config = self.config
        problem_type = infer_problem_type(config.problem_type, config.num_labels, labels)
        smoothing = config.label_smoothing if self.training else 0.0
        return classification_loss(logits, labels, problem_type, smoothing, config.class_splits)

    @classmethod
    def from_vit(
        cls, vit: PreTrainedModel | str, config: MBTConfig | None = None, **kwargs
    ) -> "MBTForAudioVisualClassification":
        """
        A new model whose streams start from an image ViT, by the original's rules (spec section 8).

        Every encoder block is copied to both streams, the final norm is copied, the patch kernel becomes the spectrogram's
        and, inflated, the tubelets', positions are resampled (align-corners bilinear) and tiled over time, the
        bottleneck starts from the shrunken position grid, the CLS is copied to the video stream (or to the only stream);
        beside a video stream the audio CLS stays fresh, and so does the head. The ViT's pooler becomes the dense layer
        before the head where `representation_size` asks for one of its width.
        The ViT's activation and LayerNorm epsilon are replaced by the config's (tanh GELU, 1e-6: those of the JAX ViT).

        Args:
            vit: A transformers `ViTModel` or `ViTFor...`, or the Hub id or folder of one.
            config: The model to build; by default MBT-Base with the ViT's width, layers, heads, MLP, patch and image size.
            tubelet_initializer: `"central_frame"` (published), `"average_frame"` or `"average_arp_frame"`.
            position_resize: `"resize_tile"` (published), `"tile"` or `"resize"`.
            **config_overrides: Fields of the default config, such as `num_labels` or `num_frames`.

        Raises:
            ValueError: If shapes cannot be matched or a tensor of the ViT has no place; the message names them.
        """
        return _from_vit(cls, vit, config, **kwargs)


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
                f"{type(vit).__name__} is no ViT: its config lacks {absent}. Give a `ViTModel` or `ViTFor...`."
            )
        config = cls.config_class(**{**{name: getattr(vit.config, name) for name in fields}, **config_overrides})
    elif config_overrides:
        raise ValueError(f"Give either `config` or single fields, not both; got config and {sorted(config_overrides)}.")
    model = cls(config)
    base = getattr(model, model.base_model_prefix, model)
    vit_state = vit.base_model.state_dict()
    state = mbt_state_from_vit(vit_state, config, tubelet_initializer, position_resize)
    missing, unexpected = base.load_state_dict(state, strict=False)
    fresh = {name for name in missing if not name.endswith("audio_embeddings.cls_token")}
    if fresh or unexpected:
        raise ValueError(f"ViT initialisation left {sorted(fresh)} unset and could not place {sorted(unexpected)}.")
    if base is not model:
        model.load_state_dict(pre_logits_from_vit(vit_state, config), strict=False)
    return model


__all__ = ["MBTForAudioVisualClassification", "MBTModel", "MBTPreTrainedModel"]
