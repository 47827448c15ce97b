"""
AV-MAE, the masked autoencoders of "Audiovisual Masked Autoencoders" (Georgescu et al., ICCV 2023).

Equal to the scenic project `av_mae` in every encoder and decoder strategy, joint reconstruction, inpainting and target options,
and to its single-modality classifier (recorded cases in tests/goldens/avmae). Its audio-visual fine-tuning uses MBT:
`MBTForAudioVisualClassification.from_avmae`. Not in the original: learned positions in both encoder and decoder, tube masks for
a multimodal model, separate encoders with separate decoders, clips with a missing modality, classification of both modalities
with AV-MAE's own encoder (supplementary A.5 names it, no code shows it) and event localisation. The option to shuffle inpainted
tokens (off in every released configuration) is not supported.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..shared.bounded_model import BoundedPreTrainedModel
from ..shared.layers_vit import init_marked_layer, init_position_table, with_init
from ..shared.two_streams import (
    REDUCTIONS,
    AudioVisualClassifierOutput,
    AudioVisualModelOutput,
    StreamClassifier,
    average_streams,
    check_inputs,
    check_tensors,
    modality_presence,
    record_both_streams,
    spectrogram_planes,
    zero_missing,
)
from .configuration_avmae import AVMAEConfig
from .layers_avmae import (
    AVMAEAudioEmbeddings,
    AVMAEDecoder,
    AVMAEDecoderStream,
    AVMAEEmbeddings,
    AVMAELayer,
    AVMAETransformer,
    AVMAEVideoEmbeddings,
    BatchStandardization,
    SegmentPooling,
)
from .patches_avmae import (
    draw_visible_tokens,
    patch_loss,
    patch_statistics,
    patches_to_frames,
    patches_to_spectrogram,
    spectrogram_patches,
    video_patches,
)


@dataclass
class AVMAEForPreTrainingOutput(ModelOutput):
    """
    Output of [`AVMAEForPreTraining`]. B batch, N tokens of a modality, k visible tokens, d `hidden_size`. Fields of a modality
    that was not given are absent. Rows of a modality that is missing in `modality_mask` are meaningless.

    Args:
        loss (float scalar): `video_loss_weight * video_loss + audio_loss_weight * audio_loss`.
        video_loss, audio_loss (float scalar): Loss of each modality, unweighted.
        video_predictions (float [B, N, values]): Predicted patch vectors at every position, ordered frame, row, column,
            channel; standardised if `target_standardization` is set. [`AVMAEForPreTraining.reconstruct`] converts them to frames.
        audio_predictions (float [B, N, values]): The same for the spectrogram, ordered time, mel.
        video_mask, audio_mask (float [B, N]): 1 where the token was masked, else 0.
        video_loss_mask, audio_loss_mask (float [B, N]): 1 where the prediction contributes to the loss, else 0.
        video_hidden_state, audio_hidden_state (float [B, k, d]): Encoder output of the visible tokens.
        hidden_states, attentions, audio_hidden_states, audio_attentions: Those of the encoder; see the base model's output.
    """

    loss: torch.FloatTensor | None = None
    video_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    video_predictions: torch.FloatTensor | None = None
    audio_predictions: torch.FloatTensor | None = None
    video_mask: torch.FloatTensor | None = None
    audio_mask: torch.FloatTensor | None = None
    video_loss_mask: torch.FloatTensor | None = None
    audio_loss_mask: torch.FloatTensor | None = None
    video_hidden_state: torch.FloatTensor | None = None
    audio_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


class AVMAEPreTrainedModel(BoundedPreTrainedModel):
    """Weight initialisation and the class attributes that transformers needs."""

    config: AVMAEConfig
    base_model_prefix = "avmae"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = ["AVMAEVideoEmbeddings", "AVMAEAudioEmbeddings", "AVMAELayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(AVMAELayer, index=0),
        "attentions": OutputRecorder(AVMAELayer, index=2),
        "audio_hidden_states": [OutputRecorder(AVMAEAudioEmbeddings), OutputRecorder(AVMAELayer, index=1)],
        "audio_attentions": OutputRecorder(AVMAELayer, index=3),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights as in the original."""
        super()._init_weights(module)
        init_marked_layer(module, head_bias=self.config.classifier_bias_init)
        if isinstance(module, (AVMAEEmbeddings, AVMAEDecoderStream)):
            init_position_table(module, self.config.initializer_range)
            for name in ("modality_token", "cls_token", "mask_token"):
                if getattr(module, name, None) is not None:
                    init.zeros_(getattr(module, name))
        elif isinstance(module, BatchStandardization):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, SegmentPooling):
            init.copy_(module.shares, module.overlaps())


class AVMAEModel(AVMAEPreTrainedModel):
    """The encoder: features of all tokens or of the visible tokens of both modalities."""

    def __init__(self, config: AVMAEConfig):
        super().__init__(config)
        self.video_embeddings = AVMAEVideoEmbeddings(config) if "video" in config.modalities else None
        self.audio_embeddings = AVMAEAudioEmbeddings(config) if "audio" in config.modalities else None
        strategy = "joint" if config.encoder_strategy == "early" else config.encoder_strategy
        self.encoder = AVMAETransformer(config, strategy, config.num_fusion_layers or 0)
        self.post_init()

    @merge_with_config_defaults
    @record_both_streams
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        video_visible: torch.Tensor | None = None,
        audio_visible: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioVisualModelOutput:
        r"""
        Args:
            pixel_values (float [B, num_frames, num_channels, height, width], *optional*): Frames, values in [-1, 1].
            input_features (float [B, spectrogram_length, num_mel_bins], *optional*): Log-mel spectrogram.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where a sample lacks the modality and its
                row holds filler. Omit it if every sample has every given modality.
            video_visible, audio_visible (long [B, k], *optional*): Indices of the tokens to encode, in order; the others never
                enter the encoder. By default all tokens, in their own order.

        If a sample lacks a modality, its joint layers process the other modality alone. So results do not depend on batch
        mates, and samples with both modalities are bit-identical to those of an unmasked batch.

        Raises:
            ValueError: On missing or unknown modalities and wrong shapes.
        """
        check_inputs(self.config, pixel_values, input_features, modality_mask)
        if modality_mask is not None:
            pixel_values = zero_missing(pixel_values, modality_mask[:, 0].bool())
            input_features = zero_missing(input_features, modality_mask[:, 1].bool())
        presence = modality_presence(pixel_values, input_features, modality_mask)
        video = None if pixel_values is None else self.video_embeddings(pixel_values, video_visible)
        audio = None if input_features is None else self.audio_embeddings(input_features, audio_visible)
        video, audio = self.encoder(video, audio, presence, **kwargs)
        present = [tokens for tokens in (video, audio) if tokens is not None]
        return AudioVisualModelOutput(
            last_hidden_state=present[0] if len(present) == 1 else torch.cat(present, dim=1),
            video_hidden_state=video,
            audio_hidden_state=audio,
        )


class AVMAEForPreTraining(AVMAEPreTrainedModel):
    """
    The masked autoencoder: masks most patches of both modalities and predicts their values.

        model = AVMAEForPreTraining(AVMAEConfig.base())
        output = model(pixel_values, input_features)                   # random masks; train on output.loss
        masks = model.draw_masks(batch, generator=torch.Generator().manual_seed(0))
        output = model(pixel_values, input_features, **masks)          # the same masks again
        frames, spectrogram = model.reconstruct(output, pixel_values, input_features)   # for a figure

    `model.avmae` is the encoder. `AVMAEForAudioVisualClassification.from_pretrained(folder)` and
    `MBTForAudioVisualClassification.from_avmae(folder)` start from a saved checkpoint. As in the original, evaluation masks
    too. Here evaluation masks are the same each time, so that two evaluations can be compared.
    """

    # The loss is a mean over the batch's masked patches: the Trainer, not the model, accounts for gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: AVMAEConfig):
        super().__init__(config)
        config.check_pretraining()
        self.avmae = AVMAEModel(config)
        self.decoder = AVMAEDecoder(config)
        self.post_init()

    def draw_masks(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        fixed: bool = False,
    ) -> dict[str, torch.Tensor]:
        """
        Random masks for a batch, with the config's ratios: `{"video_visible", "audio_visible"}`, each long [B, k]: the indices of
        the visible tokens in the (random) order in which the encoder processes them. Pass them to `forward`.

        Args:
            generator: By default PyTorch's global generator of the device. A CPU generator gives the same masks everywhere.
            device: Device of the result; by default the model's.
            fixed: Pseudo-random masks that are the same in every call, run and on every device, as in evaluation.
        """
        device = self.device if device is None else device
        return draw_visible_tokens(self.config, batch_size, generator, device, fixed)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        video_visible: torch.Tensor | None = None,
        audio_visible: torch.Tensor | None = None,
        sample_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AVMAEForPreTrainingOutput:
        r"""
        Args:
            pixel_values (float [B, num_frames, num_channels, height, width], *optional*): Frames, values in [-1, 1].
            input_features (float [B, spectrogram_length, num_mel_bins], *optional*): Log-mel spectrogram.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where a sample lacks the modality.
                Such a sample pretrains on its other modality (inpainting needs both and excludes the sample from the loss).
            video_mask, audio_mask (bool [B, N], *optional*): True (or 1) where a token is masked, equally many in every row. The
                visible tokens keep their order. By default random; in evaluation always the same.
            video_visible, audio_visible (long [B, k], *optional*): The same as the indices of the visible tokens in the order in
                which the encoder processes them, as returned by [`draw_masks`].
            sample_mask (bool [B], *optional*): False for padding rows, which do not contribute to the loss.
            return_loss (`bool`, defaults to `True`): Whether to compute the losses.

        Raises:
            ValueError: On missing or unknown modalities, wrong shapes, masks with different numbers of masked tokens, or
                inpainting with one modality.
        """
        config = self.config
        check_inputs(config, pixel_values, input_features, modality_mask)
        check_tensors(
            video_mask=video_mask, audio_mask=audio_mask, video_visible=video_visible, audio_visible=audio_visible
        )
        check_tensors(sample_mask=sample_mask)
        given = {"video": pixel_values, "audio": input_features}
        if config.objective == "modality_inpainting" and None in (pixel_values, input_features):
            absent = "pixel_values" if pixel_values is None else "input_features"
            raise ValueError(
                f"Inpainting reconstructs each modality from the other, but `{absent}` was not given. Give both inputs."
            )
        if modality_mask is not None:
            given = {name: zero_missing(given[name], modality_mask[:, i].bool()) for i, name in enumerate(given)}
        values = input_features if pixel_values is None else pixel_values
        batch = values.shape[0]
        visible = {
            "video": self._explicit_visible("video", batch, video_visible, video_mask),
            "audio": self._explicit_visible("audio", batch, audio_visible, audio_mask),
        }
        if any(given[modality] is not None and visible[modality] is None for modality in given):
            drawn = self.draw_masks(batch, device=values.device, fixed=not self.training)
            visible = {m: drawn.get(f"{m}_visible") if visible[m] is None else visible[m] for m in given}
        if config.objective == "modality_inpainting":
            for modality, other in (("video", "audio"), ("audio", "video")):
                if visible[other].shape[1] >= config.num_tokens(modality):
                    raise ValueError(
                        f"`{other}_visible` leaves {visible[other].shape[1]} tokens visible, so none of the "
                        f"{config.num_tokens(modality)} {modality} tokens would be inpainted. Mask more {other} tokens."
                    )

        encoded = self.avmae(
            given["video"],
            given["audio"],
            modality_mask,
            video_visible=visible["video"],
            audio_visible=visible["audio"],
            return_dict=True,
            **kwargs,
        )
        presence = modality_presence(pixel_values, input_features, modality_mask)
        predictions = dict(
            zip(
                given,
                self.decoder(
                    encoded.video_hidden_state,
                    encoded.audio_hidden_state,
                    visible["video"],
                    visible["audio"],
                    presence,
                    **{name: value for name, value in kwargs.items() if not name.startswith("output_")},
                ),
            )
        )
        masks, loss_masks, losses, total = {}, {}, {}, None
        for modality, values in given.items():
            if values is None:
                continue
            masks[modality] = self._token_mask(modality, visible[modality])
            loss_masks[modality] = weights = self._loss_mask(modality, masks[modality], visible, modality_mask)
            if not return_loss:
                continue
            if sample_mask is not None:
                weights = weights * sample_mask.to(weights)[:, None]
            targets = self.targets(modality, values)
            losses[modality] = patch_loss(predictions[modality], targets, weights, config.average_over_features)
            weighted = getattr(config, f"{modality}_loss_weight") * losses[modality]
            total = weighted if total is None else total + weighted
        return AVMAEForPreTrainingOutput(
            loss=total,
            video_loss=losses.get("video"),
            audio_loss=losses.get("audio"),
            video_predictions=predictions["video"],
            audio_predictions=predictions["audio"],
            video_mask=masks.get("video"),
            audio_mask=masks.get("audio"),
            video_loss_mask=loss_masks.get("video"),
            audio_loss_mask=loss_masks.get("audio"),
            video_hidden_state=encoded.video_hidden_state,
            audio_hidden_state=encoded.audio_hidden_state,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            audio_hidden_states=encoded.audio_hidden_states,
            audio_attentions=encoded.audio_attentions,
        )

    def targets(self, modality: str, values: torch.Tensor) -> torch.Tensor:
        """Prediction targets: patch vectors [B, N, values] of `pixel_values` or `input_features`."""
        patches = self._patches(modality, values.float())
        mean, deviation = patch_statistics(patches, self._standardization(modality), self.config.num_channels)
        return (patches - mean) / deviation

    @torch.no_grad()
    def reconstruct(
        self,
        output: AVMAEForPreTrainingOutput,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        keep_visible: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Convert predictions to frames and a spectrogram.

        Args:
            output: The output of a forward pass with these inputs.
            pixel_values, input_features: The full inputs; needed for visible patches and to undo standardisation.
            keep_visible: Show the original at visible patches (in inpainting: at patches without a prediction). False shows the
                prediction everywhere.

        Returns:
            Frames [B, T, C, H, W] (T / tubelet_size frames with `central_frame_target`) and the spectrogram [B, time, mel],
            cropped to whole patches; None for an absent modality. Float32, in the units of the inputs.
        """
        config, made = self.config, {}
        for modality, values in (("video", pixel_values), ("audio", input_features)):
            predictions = getattr(output, f"{modality}_predictions")
            if predictions is None:
                continue
            if values is None:
                name = "pixel_values" if modality == "video" else "input_features"
                raise ValueError(
                    f"`output` holds {modality} predictions, so `{name}` is needed. Give the model's inputs."
                )
            patches = self._patches(modality, values.float())
            mean, deviation = patch_statistics(patches, self._standardization(modality), config.num_channels)
            shown = predictions.float() * deviation + mean
            if keep_visible:
                inpainting = config.objective == "modality_inpainting"
                predicted = getattr(output, f"{modality}_loss_mask" if inpainting else f"{modality}_mask")
                shown = torch.where(predicted[..., None].bool(), shown, patches)
            if modality == "video":
                made[modality] = patches_to_frames(shown, config.video_grid, config.patch_hw, config.num_channels)
            else:
                made[modality] = patches_to_spectrogram(
                    shown, config.audio_grid, config.patch_hw, config.num_audio_channels
                )
        return made.get("video"), made.get("audio")

    def _patches(self, modality: str, values: torch.Tensor) -> torch.Tensor:
        config = self.config
        if modality == "video":
            return video_patches(values, config.tubelet_size, config.patch_hw, config.central_frame_target)
        planes = spectrogram_planes(config, values).expand(-1, config.num_audio_channels, -1, -1)
        return spectrogram_patches(planes, config.patch_hw)

    def _standardization(self, modality: str) -> str | None:
        standardization = self.config.target_standardization
        return None if modality == "audio" and standardization == "patch_channels" else standardization

    def _explicit_visible(
        self, modality: str, batch: int, visible: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Indices [B, k] of the visible tokens given by the caller, or None if masks are to be drawn."""
        tokens = self.config.num_tokens(modality)
        if visible is not None:
            if mask is not None:
                raise ValueError(f"Give `{modality}_mask` or `{modality}_visible`, not both.")
            if visible.dim() != 2 or visible.shape[0] != batch or not 0 < visible.shape[1] <= tokens:
                raise ValueError(
                    f"`{modality}_visible` must be long [batch, k] = [{batch}, k] with k of 1 to {tokens}, got "
                    f"{tuple(visible.shape)}."
                )
            return visible.long()
        if mask is None:
            return None
        if tuple(mask.shape) != (batch, tokens):
            raise ValueError(
                f"`{modality}_mask` must be bool [batch, tokens] = [{batch}, {tokens}], got {tuple(mask.shape)}."
            )
        mask = mask.bool()
        counts = mask.sum(dim=1).tolist()
        if len(set(counts)) > 1 or counts[0] >= tokens:
            raise ValueError(
                f"`{modality}_mask` must mask equally many tokens in every row and leave some of the {tokens}, got {counts}."
            )
        return mask.int().argsort(dim=1, stable=True)[:, : tokens - counts[0]]

    def _token_mask(self, modality: str, visible: torch.Tensor) -> torch.Tensor:
        tokens = self.config.num_tokens(modality)
        return torch.ones(visible.shape[0], tokens, device=visible.device).scatter(1, visible, 0.0)

    def _loss_mask(
        self,
        modality: str,
        token_mask: torch.Tensor,
        visible: dict[str, torch.Tensor | None],
        modality_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """float [B, N]: 1 where predictions contribute to the loss."""
        config, loss_mask = self.config, token_mask
        if config.objective == "modality_inpainting":
            # The first positions hold the other modality's tokens, whatever this modality's mask is.
            other = visible["audio" if modality == "video" else "video"].shape[1]
            loss_mask = (
                (torch.arange(token_mask.shape[1], device=token_mask.device) >= other)
                .to(token_mask)
                .expand_as(token_mask)
            )
        if config.loss_on_visible_tokens:
            loss_mask = torch.ones_like(token_mask)
        if modality_mask is None:
            return loss_mask
        present = modality_mask.bool()
        has_target = (
            present.all(dim=1) if config.objective == "modality_inpainting" else present[:, int(modality == "audio")]
        )
        return loss_mask * has_target[:, None]


class AVMAEForAudioVisualClassification(StreamClassifier, AVMAEPreTrainedModel):
    """
    A pretrained encoder without masks and one linear head, shared by the modalities (supplementary A.5).

    Each modality's tokens are pooled (`config.readout`) and give logits, which are averaged over the modalities present. With
    one modality and `pooled_norm` this is the original's single-modality classifier. `freeze_encoder` makes it a linear probe.
    `num_segments` makes it an event localiser: pooling is then over each segment of the clip, and a token in two segments is
    weighted by its share of each. Labels are those of the window, which should then be the whole clip: for AVE's 10 seconds
    `AVMAEProcessor(span=10.0, audio_seconds=10.0)`.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: AVMAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.avmae = AVMAEModel(config)
        width = config.hidden_size
        self.pooled_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pooled_norm else None
        self.pre_logits = None
        if config.representation_size is not None:
            self.pre_logits = with_init(nn.Linear(width, config.representation_size), "lecun")
            width = config.representation_size
        self.segments = None
        if config.num_segments is not None:
            self.segments = nn.ModuleDict(
                {modality: SegmentPooling(config, modality) for modality in config.modalities}
            )
        # One per modality: the head is shared, the feature statistics are not.
        self.probe_norms = None
        if config.freeze_encoder:
            self.probe_norms = nn.ModuleDict({modality: BatchStandardization(width) for modality in config.modalities})
        self.classifier = with_init(nn.Linear(width, config.num_labels), "head")
        self.post_init()
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but freezes a linear probe again, since loading makes every parameter trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self) -> None:
        if self.config.freeze_encoder:
            self.requires_grad_(False)
            self.classifier.requires_grad_(True)

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
            pixel_values, input_features, modality_mask: See [`AVMAEModel.forward`].
            labels: Integer [B] (single label), float [B, C] (multi-hot, or mixed probabilities), or integer [B, heads]
                for `config.class_splits`. With `num_segments` the segment axis comes second, such as integer [B, 10].
            audio_labels: Labels of the audio stream if they differ from `labels`, as after mixup per modality; in training mode.
                Keyword only.

        In training the loss is the mean of the losses of each modality's logits, with label smoothing. In evaluation it is the
        loss of the averaged logits, without smoothing.
        """
        # Not in the signature: the Trainer computes no evaluation loss until a batch holds every named "label" argument.
        audio_labels = kwargs.pop("audio_labels", None)
        outputs = self.avmae(pixel_values, input_features, modality_mask, return_dict=True, **kwargs)
        presence = modality_presence(pixel_values, input_features, modality_mask)
        logits = {}
        for index, modality in enumerate(("video", "audio")):
            tokens = getattr(outputs, f"{modality}_hidden_state")
            present = None if presence is None else presence[:, index]
            logits[modality] = None if tokens is None else self._stream_logits(modality, tokens, present)
        logits["clip"] = average_streams(logits["video"], logits["audio"], presence)
        return AudioVisualClassifierOutput(
            loss=self._stream_loss(logits, labels, audio_labels, presence),
            logits=logits["clip"],
            video_logits=logits["video"],
            audio_logits=logits["audio"],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            audio_attentions=outputs.audio_attentions,
        )

    def _stream_logits(self, modality: str, tokens: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """tokens [B, n, d] -> logits [B, C], or [B, segments, C] in event localisation; present bool [B]."""
        readout = self.config.readout
        if self.segments is not None:
            features = self.segments[modality](tokens)
        elif readout == "token":
            features = tokens[:, 0]
        else:
            features = REDUCTIONS[readout](tokens, dim=1)
        if self.pooled_layernorm is not None:
            features = self.pooled_layernorm(features)
        if self.pre_logits is not None:
            features = torch.tanh(self.pre_logits(features))
        if self.probe_norms is not None:
            features = self.probe_norms[modality](features.detach(), present)
        return self.classifier(features)


__all__ = ["AVMAEForAudioVisualClassification", "AVMAEForPreTraining", "AVMAEModel", "AVMAEPreTrainedModel"]
