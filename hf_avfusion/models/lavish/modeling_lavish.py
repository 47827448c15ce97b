"""
LAVISH of "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (Lin et al., CVPR 2023): one backbone of
transformers, meant to be frozen, through which frames and spectrograms go side by side, with adapters between them.

Equal to the authors' code (recorded cases in tests/goldens/lavish). Not in that code: missing modalities, the directions of
fusion, and the backbones DINOv2, VideoMAE and ResNet.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..shared.bounded_model import BoundedPreTrainedModel, require_grads
from ..shared.layers_vit import init_marked_layer, with_init
from ..shared.loaded_weights import load_whole
from ..shared.start_methods import StartMethod
from ..shared.two_streams import (
    AudioVisualClassifierOutput,
    AudioVisualModelOutput,
    StreamClassifier,
    check_frames,
    check_inputs,
    has_modality,
    modality_presence,
    record_both_streams,
    zero_missing,
)
from .backbone_models_lavish import make_backbone, without_unused_parts
from .backbones_lavish import Grid, Step, steps_of
from .configuration_lavish import LavishTwoStreamConfig
from .layers_lavish import CrossModalSlot, GroupedLinear, LavishAdapter
from .losses_lavish import localization_loss
from .question_answering_lavish import init_question_answering_layer
from .segmentation_lavish import init_segmentation_layer
from .vggish_lavish import PUBLISHED, LavishVGGish, check_vggish_features

FROM_BACKBONE = StartMethod(
    "a ViT, Swin-V2, VideoMAE, DINOv2 or ResNet, by Hub id or folder", sub_config="backbone_config"
)
RunPart = Callable[..., Step]
BlockOutput = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


@dataclass
class LavishModelOutput(AudioVisualModelOutput):
    """
    Output of the base model. B batch, S segments, D `hidden_size`, n / m tokens of a segment per stream. Without segments (a
    VideoMAE) there is no axis S.

    Args:
        last_hidden_state (float [B, S, n + m, D]): Normalised tokens of both streams, in the order of `config.modalities`.
        video_hidden_state, audio_hidden_state (float [B, S, n, D], [B, S, m, D]): The same per stream; absent without it.
        pooler_output (float [B, S, D], or [B, S, 2 D] with two streams): The features of both streams, in the published order,
            then `vggish_feature_size` features of VGGish if the model has it. The features of a missing modality are zero.
        stage_states (tuple of float [B, S, n_i, D_i]): Video tokens at the end of each stage of the backbone, before it is
            downsampled; normalised after the last. Only if asked for.
    """

    pooler_output: torch.FloatTensor | None = None
    stage_states: tuple[torch.FloatTensor, ...] | None = None


class LavishEmbeddings(nn.Module):
    """Frames or spectrograms -> the tokens [N, n, d] before the first block, by the backbone's own layers. No parameters."""

    def __init__(self, config: LavishTwoStreamConfig, modality: str):
        super().__init__()
        self.config, self.modality, self.steps = config, modality, config.backbone_steps

    def forward(self, values: torch.Tensor, embed: Callable[..., torch.Tensor]) -> torch.Tensor:
        """
        Frames [B, T, C, H, W]; spectrograms [B, S, time, mel], or [B, time, mel] without segments. `embed` is that of
        [`BackboneSteps`] for the backbone.
        """
        config = self.config
        if self.modality == "video":
            check_frames(config, values)
            values = values if self.steps.takes_clips else values.flatten(0, 1)
            return embed(values, None)
        segments = () if config.num_segments is None else (config.num_segments,)
        expected = (*segments, *config.spectrogram_hw)
        if tuple(values.shape[1:]) != expected:
            axes = "[batch, segments, time, mel]" if segments else "[batch, time, mel]"
            raise ValueError(
                f"`input_features` must be {axes} = [B, {', '.join(map(str, expected))}] for this model, got "
                f"{tuple(values.shape)}. Prepare audio with the model's own processor, or load the model with a matching "
                "`num_segments`, `spectrogram_length` and `num_mel_bins`."
            )
        values = values.reshape(-1, 1, *config.spectrogram_hw).expand(-1, config.num_channels, -1, -1)
        return embed(values, config.audio_positions)


class BackboneStep(GradientCheckpointingLayer):
    """
    One part of a layer of the backbone. No parameters.

    It is what gradient checkpointing recomputes. The adapters stay outside, since a second pass would update their BatchNorm
    twice.
    """

    def __init__(self, part: str):
        super().__init__()
        self.part = part

    def forward(self, tokens: torch.Tensor, run: RunPart, grid: Grid, **kwargs) -> Step:
        """tokens [N, n, d] -> tokens and attention weights."""
        return run(self.part, tokens, grid, **kwargs)


class LavishBlock(nn.Module):
    """
    A layer of the backbone for both streams, with a slot for adapters beside each of its parts (figure 2 of the paper).

    The layer itself belongs to the backbone, so that its weights keep transformers' names. `run` runs one of its parts. It is a
    function and not the layer, since hooks of accelerate move modules among the arguments to another device.
    """

    def __init__(self, config: LavishTwoStreamConfig, index: int):
        super().__init__()
        self.steps = config.backbone_steps
        for part in self.steps.parts:
            options = config.adapter_options if f"blocks.{index}.fusion_{part}" in config.adapter_slots else None
            setattr(self, part, BackboneStep(part))
            setattr(self, f"fusion_{part}", CrossModalSlot(self.steps.widths[index], config.modalities, options))

    def forward(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        run: RunPart,
        grids: dict[str, Grid],
        presence: torch.Tensor | None = None,
        **kwargs,
    ) -> BlockOutput:
        """Tokens [N, n, d] of both streams -> the same, and the attention weights of each."""
        maps = {"video": None, "audio": None}
        for part in self.steps.parts:
            step, slot = getattr(self, part), getattr(self, f"fusion_{part}")
            before = None if self.steps.slot_reads_output else slot(audio, video, presence)
            if video is not None:
                video, weights = step(video, run, grids["video"], **kwargs)
                maps["video"] = maps["video"] if weights is None else weights
            if audio is not None:
                audio, weights = step(audio, run, grids["audio"], **kwargs)
                maps["audio"] = maps["audio"] if weights is None else weights
            from_video, from_audio = slot(audio, video, presence) if before is None else before
            audio = audio if from_video is None else audio + from_video
            video = video if from_audio is None else video + from_audio
        return video, audio, maps["video"], maps["audio"]


class LavishPreTrainedModel(BoundedPreTrainedModel):
    """Weight initialisation and the class attributes that transformers needs."""

    config: LavishTwoStreamConfig
    base_model_prefix = "lavish"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(LavishBlock, index=0),
        "attentions": OutputRecorder(LavishBlock, index=2),
        "audio_hidden_states": [
            OutputRecorder(LavishEmbeddings, layer_name="audio_embeddings"),
            OutputRecorder(LavishBlock, index=1),
        ],
        "audio_attentions": OutputRecorder(LavishBlock, index=3),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises adapters and heads. The backbone has rules of its own."""
        if isinstance(module, (LavishAdapter, GroupedLinear)):
            module.reset_parameters()
        elif hasattr(module, "init_scheme"):
            init_marked_layer(module, head_bias=self.config.classifier_bias_init)
            init_segmentation_layer(module)
            init_question_answering_layer(module)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but freezes the backbone again, since loading makes every parameter trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).base_model.freeze()
        return loaded

    def enable_input_require_grads(self) -> None:
        """As in transformers, but for the tokens of each stream. Those of the backbone alone may be a tuple."""
        hooks = [module.register_forward_hook(require_grads) for module in self.input_embeddings()]
        self._require_grads_hooks, self._require_grads_hook = hooks, hooks[0]

    def input_embeddings(self) -> list[nn.Module]:
        """The modules that make the first tokens of each stream, video first."""
        streams = (self.base_model.video_embeddings, self.base_model.audio_embeddings)
        return [stream for stream in streams if stream is not None]

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel | str, **fields) -> "LavishPreTrainedModel":
        """
        A new model around a pretrained backbone of transformers. Only a head is random.

            backbone = "microsoft/swinv2-large-patch4-window12-192-22k"
            model = LavishForAudioVisualClassification.from_backbone(backbone, num_labels=29)

        Args:
            backbone: A model of transformers of type ViT, Swin-V2, VideoMAE, DINOv2 or ResNet, with or without a head, or the Hub
                id or folder of one. Its head is dropped.
            **fields: Fields of [`LavishTwoStreamConfig`], such as `num_labels`, `num_segments` or `spectrogram_length`.

        Raises:
            ValueError: If the backbone is of another type or lacks weights; the message names them.
        """
        if not isinstance(backbone, PreTrainedModel):
            config = AutoConfig.from_pretrained(backbone)
            steps_of(config)  # another type is refused before its weights are read
            if norms_pooled_features(config) and "VideoMAEForVideoClassification" in (config.architectures or ()):
                backbone = load_whole(AutoModelForVideoClassification, backbone)
            else:
                backbone = load_whole(AutoModel, backbone, **_WITHOUT_POOLER.get(config.model_type, {}))
        steps_of(backbone.config)
        if "backbone_config" in fields:
            raise ValueError(
                "`backbone_config` is that of the backbone. Omit it, or build the model from a config alone."
            )
        norm = getattr(backbone, "fc_norm", None)
        model = cls(cls.config_class(backbone_config=backbone.config, **fields))
        base = model.base_model
        base.backbone.load_state_dict(without_unused_parts(base.backbone, backbone.base_model.state_dict()))
        if norm is not None and base.fc_norm is not None:
            base.fc_norm.load_state_dict(norm.state_dict())
        return model


class LavishTwoStreamModel(LavishPreTrainedModel):
    """Both streams through one backbone, block by block, with slots for adapters."""

    def __init__(self, config: LavishTwoStreamConfig):
        super().__init__(config)
        self.steps = config.backbone_steps
        self.video_embeddings, self.audio_embeddings = (
            LavishEmbeddings(config, modality) if modality in config.modalities else None
            for modality in ("video", "audio")
        )
        self.blocks = nn.ModuleList([LavishBlock(config, index) for index in range(config.num_hidden_layers)])
        # After the blocks: transformers takes the first checkpointing layer for one that runs, but the backbone's own do not.
        self.backbone = make_backbone(config.backbone_config)
        self.fc_norm = nn.LayerNorm(config.hidden_size) if norms_pooled_features(config.backbone_config) else None
        self.vggish = LavishVGGish(config) if config.vggish else None
        self.post_init()
        self.freeze()

    def freeze(self) -> None:
        """Freezes the backbone and VGGish, unless `freeze_backbone` is off. VGGish with post-processing is always frozen."""
        for part in (self.backbone, self.fc_norm, self.vggish):
            if part is not None and self.config.freeze_backbone:
                part.requires_grad_(False)
        if self.config.vggish_postprocess:
            self.vggish.requires_grad_(False)

    def train(self, mode: bool = True) -> "LavishTwoStreamModel":
        """As in PyTorch. The backbone stays in evaluation mode without `use_stochastic_depth`, and if it is a ResNet."""
        super().train(mode)
        if self.steps.has_batch_norm or not self.config.use_stochastic_depth:
            self.backbone.eval()
        return self

    @merge_with_config_defaults
    @record_both_streams
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        output_stage_states: bool = False,
        vggish_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LavishModelOutput:
        r"""
        Args:
            pixel_values (float [B, num_frames, num_channels, height, width], *optional*): Frames, one per segment (a clip for
                VideoMAE), normalised as for the backbone.
            input_features (float [B, num_segments, spectrogram_length, num_mel_bins], *optional*): A log-mel spectrogram per
                segment; [B, spectrogram_length, num_mel_bins] without segments.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where a sample lacks the modality and its row
                holds filler. Omit it if every sample has every given modality.
            output_stage_states: Whether to return the video tokens of each stage.
            vggish_features (float [B, num_segments, 96, 64], *optional*): With `config.vggish`, beside `input_features`: the
                log-mel example of each segment for VGGish.

        If a modality is missing (its argument not given, or masked), the adapters of the other stream do not read it, its
        filler counts in no BatchNorm, and its feature is zero. The original has no such mechanism.

        Raises:
            ValueError: On missing or unknown modalities and wrong shapes.
        """
        config = self.config
        check_inputs(config, pixel_values, input_features, modality_mask)
        check_vggish_features(config, input_features, vggish_features)
        if modality_mask is not None:
            pixel_values = zero_missing(pixel_values, modality_mask[:, 0].bool())
            input_features, vggish_features = (
                zero_missing(values, modality_mask[:, 1].bool()) for values in (input_features, vggish_features)
            )
        presence = modality_presence(pixel_values, input_features, modality_mask)
        rows = None if presence is None else presence.repeat_interleave(config.num_segments or 1, dim=0)
        video = None if pixel_values is None else self._embed(self.video_embeddings, pixel_values)
        audio = None if input_features is None else self._embed(self.audio_embeddings, input_features)
        grids = {"video": self.steps.grids(config.image_hw), "audio": self.steps.grids(config.spectrogram_hw)}
        ends, stages = self.steps.stage_ends, []
        for index, (block, layer) in enumerate(zip(self.blocks, self.steps.layers(self.backbone))):
            sizes = {modality: each[index] for modality, each in grids.items()}
            video, audio, _, _ = block(video, audio, partial(self.steps.step, layer), sizes, rows, **kwargs)
            if output_stage_states and index in ends and video is not None:
                stages.append(video)
            video, audio = (
                None if tokens is None else self.steps.downsample(self.backbone, index, tokens, sizes[modality])
                for modality, tokens in (("video", video), ("audio", audio))
            )
        video, audio = (None if tokens is None else self.steps.norm(self.backbone, tokens) for tokens in (video, audio))
        features = {
            "video": None if video is None else self._feature(video),
            "audio": None if audio is None else self._feature(audio),
        }
        pooled = self._join_features(features, rows)
        if self.vggish is not None:
            pooled = torch.cat([pooled, self._vggish_feature(vggish_features, pooled, rows)], dim=1)
        streams = {"video": video, "audio": audio}
        present = [streams[modality] for modality in config.modalities if streams[modality] is not None]
        return LavishModelOutput(
            last_hidden_state=self._by_segment(torch.cat(present, dim=1)),
            video_hidden_state=None if video is None else self._by_segment(video),
            audio_hidden_state=None if audio is None else self._by_segment(audio),
            pooler_output=self._by_segment(pooled),
            stage_states=tuple(map(self._by_segment, [*stages[:-1], video])) if stages else None,
        )

    def _embed(self, embeddings: LavishEmbeddings, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.steps.projection(self.backbone).weight.dtype)
        return embeddings(values, partial(self.steps.embed, self.backbone))

    def _feature(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised tokens [N, n, D] -> [N, D]."""
        feature = self.steps.pool(tokens)
        return feature if self.fc_norm is None else self.fc_norm(feature)

    def _join_features(self, features: dict[str, torch.Tensor | None], rows: torch.Tensor | None) -> torch.Tensor:
        """Features [N, D] of both streams -> [N, D or 2 D]; zeros for a missing modality (CHOICE). `rows`: bool [N, 2]."""
        some = next(feature for feature in features.values() if feature is not None)
        joined = []
        for modality in ("audio", "video") if self.steps.audio_first else ("video", "audio"):
            feature = features[modality]
            if modality not in self.config.modalities:
                continue
            if feature is not None and rows is not None:
                feature = torch.where(has_modality(rows, modality)[:, 0], feature, 0.0)
            joined.append(torch.zeros_like(some) if feature is None else feature)
        return torch.cat(joined, dim=1)

    def _vggish_feature(
        self, vggish_features: torch.Tensor | None, pooled: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Examples [B, S, 96, 64] -> features [B * S, vggish_feature_size]; zeros without sound, as for the streams."""
        if vggish_features is None:
            return pooled.new_zeros(pooled.shape[0], self.config.vggish_feature_size)
        feature = self.vggish(vggish_features).to(pooled.dtype)
        return feature if rows is None else torch.where(has_modality(rows, "audio")[:, 0], feature, 0.0)

    def _by_segment(self, values: torch.Tensor) -> torch.Tensor:
        """[B * S, ...] -> [B, S, ...]; unchanged without segments."""
        segments = self.config.num_segments
        return values if segments is None else values.unflatten(0, (-1, segments))

    @torch.no_grad()
    def encode_frozen(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Frames [B, num_frames, C, H, W] through the backbone alone, without adapters and gradients.

        Returns:
            Normalised tokens [B, S, n, D], or [B, n, D] without segments.
        """
        check_inputs(self.config, pixel_values, None, None)
        tokens, grids = self._embed(self.video_embeddings, pixel_values), self.steps.grids(self.config.image_hw)
        for index, layer in enumerate(self.steps.layers(self.backbone)):
            for part in self.steps.parts:
                tokens, _ = self.steps.step(layer, part, tokens, grids[index])
            tokens = self.steps.downsample(self.backbone, index, tokens, grids[index])
        return self._by_segment(self.steps.norm(self.backbone, tokens))


class LavishForAudioVisualClassification(StreamClassifier, LavishPreTrainedModel):
    """LAVISH with the head of AVE (a label per segment), or of a recogniser if `num_segments` is None."""

    # The loss is a mean over clips: the Trainer, not the model, accounts for gradient accumulation.
    accepts_loss_kwargs = False
    start_methods = {
        "from_backbone": FROM_BACKBONE,
        "from_vggish": StartMethod(f"{PUBLISHED} (a file)", part="load_vggish", switch="vggish", file=True),
    }

    def __init__(self, config: LavishTwoStreamConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.lavish = LavishTwoStreamModel(config)
        width = len(config.modalities) * config.hidden_size + config.vggish * config.vggish_feature_size
        self.pre_classifier = None
        if config.classifier_hidden_size is not None:
            self.pre_classifier = with_init(nn.Linear(width, config.classifier_hidden_size), "torch_default")
            width = config.classifier_hidden_size
        self.classifier = with_init(nn.Linear(width, config.num_labels), "torch_head")
        self.post_init()

    @classmethod
    def from_vggish(
        cls, vggish: str | os.PathLike, backbone: Any = None, *, pca: Any = None, **fields
    ) -> "LavishForAudioVisualClassification":
        """
        A new model with VGGish (`vggish=True`, one linear layer as head) and its published weights.

        Args:
            vggish: File of the published state dict, `vggish-10086976.pth`. It is read as data; no code in it runs.
            backbone: As for [`LavishForAudioVisualClassification.from_backbone`]; by default its weights are random.
            pca: The PCA parameters, for `vggish_postprocess=True`; see [`LavishForAudioVisualClassification.load_vggish`].
            **fields: Further fields of [`LavishTwoStreamConfig`].

        Raises:
            ValueError: If the file does not fit; the message names it and the tensor.
        """
        fields = {"vggish": True, "classifier_hidden_size": None, **fields}
        model = cls(cls.config_class(**fields)) if backbone is None else cls.from_backbone(backbone, **fields)
        model.load_vggish(vggish, pca)
        return model

    def load_vggish(
        self, vggish: str | os.PathLike, pca: str | os.PathLike | Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """
        Give VGGish the published weights.

        Args:
            vggish: As for `from_vggish`. It may also hold the PCA parameters, as `pproc.*`.
            pca: Their own file, or `pca_eigen_vectors` and `pca_means` as tensors or arrays.

        Raises:
            ValueError: If the model has no VGGish, or the files do not fit; the message names them.
        """
        if self.lavish.vggish is None:
            raise ValueError(f"{vggish}: this model has no VGGish. Set `vggish=True` in its config.")
        self.lavish.vggish.load_published(vggish, pca)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        vggish_features: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioVisualClassifierOutput:
        r"""
        Args:
            pixel_values, input_features, modality_mask, vggish_features: See [`LavishTwoStreamModel.forward`].
            labels: With segments, integer [B, S], or float [B, S, C] (multi-hot); without, [B] or [B, C]; see
                `config.problem_type`.
        """
        outputs = self.lavish(
            pixel_values, input_features, modality_mask, vggish_features=vggish_features, return_dict=True, **kwargs
        )
        logits = self._head(outputs.pooler_output)
        loss = None
        if labels is not None and self.config.localization_loss != "cross_entropy":
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = localization_loss(logits, labels, self.config.localization_loss, smoothing)
        elif labels is not None:
            loss = self._loss(logits, labels).mean()
        return AudioVisualClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            audio_attentions=outputs.audio_attentions,
        )

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        """Features [..., width] -> logits. As published, no activation stands between the two layers."""
        return self.classifier(features if self.pre_classifier is None else self.pre_classifier(features))


# Arguments of transformers' models that do not load pooling layers, which checkpoints may lack.
_WITHOUT_POOLER = {"vit": {"add_pooling_layer": False}, "swinv2": {"add_pooling_layer": False}}


def norms_pooled_features(config: PreTrainedConfig) -> bool:
    """Whether a backbone for classification has its last norm after pooling, in its head: a VideoMAE with mean pooling."""
    return config.model_type == "videomae" and config.use_mean_pooling


__all__ = [
    "LavishForAudioVisualClassification",
    "LavishModelOutput",
    "LavishPreTrainedModel",
    "LavishTwoStreamModel",
]
