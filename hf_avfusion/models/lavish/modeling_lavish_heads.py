"""LAVISH for AVSBench-S4 (masks of what sounds) and for MUSIC-AVQA (questions about a clip)."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from ..shared.start_methods import StartMethod
from ..shared.two_streams import refuse_unknown_inputs
from .configuration_lavish import LavishTwoStreamConfig
from .grounding_lavish import grounding_state, read_grounding
from .losses_lavish import NO_MASK, mask_loss, matching_loss
from .modeling_lavish import FROM_BACKBONE, LavishPreTrainedModel, LavishTwoStreamModel
from .question_answering_lavish import LavishQuestionAnsweringHead, question_answering_loss
from .segmentation_lavish import LavishMaskDecoder

logger = logging.get_logger(__name__)


@dataclass
class LavishSegmentationOutput(ModelOutput):
    """
    Output of [`LavishForSegmentation`]. B clips, S segments, mask size H x W.

    Args:
        loss (float scalar): Mask loss, plus the weighted matching loss; given `labels`.
        logits (float [B, S, H, W]): Score of each pixel to belong to what sounds; above 0 is mask.
        hidden_states, attentions, audio_hidden_states, audio_attentions: See the base model's output.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LavishQuestionAnsweringOutput(ModelOutput):
    """
    Output of [`LavishForQuestionAnswering`]. B clips, Q questions about each, S segments, N video tokens, C `num_labels`.

    Args:
        loss (float scalar): Cross-entropy of the answers, plus the weighted match loss with negatives; given `labels`.
        logits (float [B, C], or [B, Q, C] for `input_ids` [B, Q, L]): Scores of the answers before softmax.
        match_logits, negative_match_logits (float [B, S, 2]): Whether sound and frame belong together.
        grounding_weights (float [B, S, N]): Share of each video token in the feature of its frame.
        hidden_states, attentions, audio_hidden_states, audio_attentions: See the base model's output.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    match_logits: torch.FloatTensor | None = None
    negative_match_logits: torch.FloatTensor | None = None
    grounding_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    audio_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    audio_attentions: tuple[torch.FloatTensor, ...] | None = None


QUESTION_INPUTS = (
    "pixel_values",
    "input_features",
    "modality_mask",
    "input_ids",
    "negative_pixel_values",
    "negative_mask",
)
RECORDED = ("hidden_states", "attentions", "audio_hidden_states", "audio_attentions")


class LavishForSegmentation(LavishPreTrainedModel):
    """
    LAVISH with the decoder of AVSBench: a mask per segment.

    Raises:
        ValueError: Without segments or video, or with a backbone that has not four stages of grids of tokens.
    """

    accepts_loss_kwargs = False
    start_methods = {"from_backbone": FROM_BACKBONE}

    def __init__(self, config: LavishTwoStreamConfig):
        super().__init__(config)
        config.check_segmentation()
        self.lavish = LavishTwoStreamModel(config)
        steps = config.backbone_steps
        self.decoder = LavishMaskDecoder(
            [steps.widths[end] for end in steps.stage_ends],
            steps.stage_grids(config.image_hw),
            mask_size=config.mask_hw,
            map_widths=config.decoder_map_widths,
            channels=config.decoder_width,
            head_widths=config.decoder_head_widths,
            tpavi_stages=config.tpavi_stages,
            video_audio=config.tpavi_video_audio,
            video_video=config.tpavi_video_video,
            audio_width=config.hidden_size,
            audio_feature_width=config.tpavi_audio_width,
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LavishSegmentationOutput:
        r"""
        Args:
            pixel_values, input_features, modality_mask: See [`LavishTwoStreamModel.forward`]. Frames are needed: a clip that
                `modality_mask` says has none gets logits without meaning. Frames of `config.mask_size` are resized to
                `config.image_size` (bicubic), as published.
            labels (integer [B, S, H, W], *optional*): 1 where what sounds is seen, else 0; 255 in all pixels of a segment without
                a mask, which does not count. S4 trains on the first segment.
        """
        config = self.config
        if pixel_values is not None and pixel_values.shape[-2:] == config.mask_hw != config.image_hw:
            pixel_values = self._to_image_size(pixel_values)
        outputs = self.lavish(
            pixel_values, input_features, modality_mask, return_dict=True, output_stage_states=True, **kwargs
        )
        if pixel_values is None:
            raise ValueError("`pixel_values` are needed: masks are of frames. Give the frames of every clip.")
        with_video = with_audio = None
        if modality_mask is not None:
            with_video, with_audio = modality_mask.bool().unbind(dim=1)
        audio = None if outputs.audio_hidden_state is None else outputs.audio_hidden_state.mean(dim=2)
        stages = [stage.flatten(0, 1) for stage in outputs.stage_states]
        decoded = self.decoder(stages, config.num_segments, audio, with_video, None if audio is None else with_audio)
        loss = None
        if labels is not None:
            if with_video is not None:
                labels = torch.where(with_video[:, None, None, None], labels, NO_MASK)
            loss = mask_loss(decoded.logits, labels, config.mask_loss)
            if config.matching_loss_weight:
                stages = config.matching_stages
                matching = matching_loss(
                    decoded.logits,
                    decoded.feature_maps,
                    decoded.audio_features,
                    stages,
                    config.mask_pooling,
                    decoded.paired,
                )
                loss = loss + config.matching_loss_weight * matching
        return LavishSegmentationOutput(
            loss=loss, logits=decoded.logits, **{name: outputs.get(name) for name in RECORDED}
        )

    def _to_image_size(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Frames [..., C, H, W] resized as published: bicubic, not antialiased, after normalisation."""
        *rest, channels, height, width = pixel_values.shape
        flat = pixel_values.reshape(-1, channels, height, width)
        resized = nn.functional.interpolate(flat, size=self.config.image_hw, mode="bicubic", align_corners=False)
        return resized.reshape(*rest, channels, *self.config.image_hw)


class LavishForQuestionAnswering(LavishPreTrainedModel):
    """LAVISH with the question-answering head of MUSIC-AVQA. It needs segments; their order does not count for it."""

    accepts_loss_kwargs = False
    start_methods = {
        "from_backbone": FROM_BACKBONE,
        "from_grounding": StartMethod("MUSIC-AVQA's grounding checkpoint (a file)", part="load_grounding", file=True),
    }

    def __init__(self, config: LavishTwoStreamConfig):
        super().__init__(config)
        if config.num_segments is None:
            raise ValueError("Question answering needs segments: set `num_segments`.")
        config.refuse_vggish("LavishForQuestionAnswering")
        self.num_labels = config.num_labels
        self.lavish = LavishTwoStreamModel(config)
        self.head = LavishQuestionAnsweringHead(
            config.hidden_size,
            config.num_labels,
            vocab_size=config.vocab_size,
            hidden_width=config.question_hidden_size,
            word_width=config.question_word_size,
            num_heads=config.question_num_attention_heads,
            match_widths=None if config.match_hidden_sizes is None else tuple(config.match_hidden_sizes),
            feedforward_width=config.question_feedforward_size,
            dropout=config.question_dropout,
            modalities=tuple(config.modalities),
        )
        self.post_init()

    @classmethod
    def from_grounding(
        cls, grounding: str | os.PathLike, backbone: Any = None, **fields
    ) -> "LavishForQuestionAnswering":
        """
        A new model whose grounding and match layers have the weights of MUSIC-AVQA's grounding checkpoint, as published.

        Args:
            grounding: The checkpoint file of its trainer. It is read as data; no code in it runs.
            backbone: As for [`LavishForQuestionAnswering.from_backbone`]; by default its weights are random.
            **fields: Fields of [`LavishTwoStreamConfig`].

        Raises:
            ValueError: If the file is no such checkpoint; the message names it and every tensor that does not fit.
        """
        params = read_grounding(grounding)  # a wrong file fails before a model is built
        model = cls(cls.config_class(**fields)) if backbone is None else cls.from_backbone(backbone, **fields)
        model._start_grounding(grounding, params)
        return model

    def load_grounding(self, grounding: str | os.PathLike) -> None:
        """Give the grounding and match layers the weights of MUSIC-AVQA's checkpoint. Raises as `from_grounding`."""
        self._start_grounding(grounding, read_grounding(grounding))

    def _start_grounding(self, grounding: str | os.PathLike, params: dict[str, torch.Tensor]) -> None:
        try:
            state = grounding_state(params, self.head)
        except ValueError as error:
            raise ValueError(f"{grounding}: {error}") from error
        self.head.load_state_dict(state, strict=False)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        negative_pixel_values: torch.Tensor | None = None,
        negative_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LavishQuestionAnsweringOutput:
        r"""
        Args:
            pixel_values, input_features, modality_mask: See [`LavishTwoStreamModel.forward`].
            input_ids (integer [B, L], or [B, Q, L] for several questions about each clip): Words of the questions.
            negative_pixel_values (float, shape of `pixel_values`, *optional*): Frames of other videos, for the match loss. They
                go through the backbone without adapters and gradients, as published.
            negative_mask (bool [B], *optional*): False where a clip has no negative and its row holds filler.
            labels (integer [B] or [B, Q], *optional*): Indices of the answers.
        """
        refuse_unknown_inputs(kwargs, QUESTION_INPUTS)
        if input_ids is None and (pixel_values is not None or input_features is not None):
            raise ValueError(
                "`input_ids` are needed: the words of a question about each clip. Prepare clips with the model's own processor, "
                "processor(videos=..., text=...)."
            )
        outputs = self.lavish(pixel_values, input_features, modality_mask, return_dict=True, **kwargs)
        negative = None
        if negative_pixel_values is not None:
            negative = self.lavish.encode_frozen(negative_pixel_values)
        answered = self.head(
            outputs.video_hidden_state,
            outputs.audio_hidden_state,
            input_ids,
            negative,
            modality_mask
            if outputs.video_hidden_state is not None and outputs.audio_hidden_state is not None
            else None,
            negative_mask,
        )
        loss = None
        if labels is not None:
            losses = question_answering_loss(answered, labels, self.config.match_loss_weight)
            loss = losses.loss
            if self.training and losses.match is None and not torch.compiler.is_compiling():
                logger.warning_once(
                    "This batch has no `negative_pixel_values`, so it trains without the match loss (this is said once)."
                )
        return LavishQuestionAnsweringOutput(
            loss=loss,
            logits=answered.logits,
            match_logits=answered.match_logits,
            negative_match_logits=answered.negative_match_logits,
            grounding_weights=answered.grounding_weights,
            **{name: outputs.get(name) for name in RECORDED},
        )


__all__ = [
    "LavishForQuestionAnswering",
    "LavishForSegmentation",
    "LavishQuestionAnsweringOutput",
    "LavishSegmentationOutput",
]
