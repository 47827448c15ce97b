"""Configuration of LAVISH (Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners", CVPR 2023)."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...media.limits import check_bytes, check_num_tokens
from ...media.modalities import CLIP_AXES
from ..shared.configuration_shared import ClassifierConfig, as_pair, check_remainders
from ..shared.vggish import CHANNELS, EXAMPLE_SHAPE
from .backbones_lavish import BackboneSteps, steps_of
from .options_lavish import (
    LOCALIZATION_LOSSES,
    MASK_LOSSES,
    MASK_POOLINGS,
    NUM_STAGES,
    AdapterOptions,
    check_matching_stages,
    check_tpavi,
)

POSITIONS = ("1d", "2d")
IMAGE_SIZE = (224, 224)  # of frames for a backbone that takes any size, pixels


def _vit(width: int, layers: int, heads: int) -> dict[str, Any]:
    """A ViT of the original, for 224 pixels and patches of 16. timm's LayerNorm has this epsilon."""
    return {
        "backbone_config": {
            "model_type": "vit",
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "layer_norm_eps": 1e-6,
        }
    }


# Swin-V2-Large at 192 pixels, the backbone of the paper's main results (pretrained on ImageNet-21k).
_SWIN_LARGE = {
    "model_type": "swinv2",
    "image_size": 192,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
    "drop_path_rate": 0.1,
}

# Sizes of new models, by their backbones: the first four are ViTs.
_SIZES = {
    "tiny": _vit(192, 12, 3),
    "small": _vit(384, 12, 6),
    "base": _vit(768, 12, 12),
    "large": _vit(1024, 24, 16),
    "swin_base": {"backbone_config": {**_SWIN_LARGE, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}},
    "swin_large": {"backbone_config": _SWIN_LARGE},
    "resnet152": {"backbone_config": {"model_type": "resnet", "depths": [3, 8, 36, 3]}},
    "videomae_base": {"backbone_config": {"model_type": "videomae", "image_size": 224, "num_frames": 16}},
}


@strict
class LavishTwoStreamConfig(ClassifierConfig):
    r"""
    Configuration of [`LavishTwoStreamModel`] and its heads: one backbone of transformers that both streams go through, with
    places for adapters between its half steps. The defaults are the published event localiser for AVE: Swin-V2-Large, ten
    segments of one second, without adapters, which peft adds.

    Args:
        backbone_config (config or dict, defaults to Swin-V2-Large at 192 pixels): A config of transformers, of type `vit`,
            `swinv2`, `videomae`, `dinov2` or `resnet`.
        image_size (`int` or pair, *optional*): Height and width of frames, pixels; by default the backbone's, and 224 for a
            ResNet, which takes any size.
        num_segments (`int`, *optional*, defaults to 10): Segments of a clip (seconds in AVE): one frame and one spectrogram
            each. No layer mixes segments. `None` for a clip without segments, which VideoMAE needs.
        num_frames (`int`, *optional*): Frames per clip; by default one per segment, or the frames of a VideoMAE.
        spectrogram_length (`int`, defaults to 192): Spectrogram frames of a segment, or of a clip without segments.
        num_mel_bins (`int`, defaults to 192): Mel bands of the spectrogram.
        drop_remainder (`bool`, defaults to `False`): Whether sizes that are not multiples of the patch are allowed. The rest is
            then not used, as in the original: of 102 spectrogram frames, 6 rows of patches use 96.
        modalities (pair or single of `"video"`, `"audio"`, defaults to both): The streams. With one, adapters read no other.
        audio_positions (`str`, defaults to `"1d"`): How the backbone's positions are resampled for a spectrogram: `"1d"`, over
            the whole table with the CLS row, as published, or `"2d"`, over the grid of patches. A Swin or ResNet has none.
        use_stochastic_depth (`bool`, defaults to `True`): Whether the backbone's stochastic depth and dropout act in training,
            as published although the backbone is frozen.
        freeze_backbone (`bool`, defaults to `True`): Whether the backbone is frozen, as published: no gradient reaches its
            weights. `False` trains it too.
        adapter (`dict`, *optional*): Options of adapters that are part of the model, see
            [`~hf_avfusion.models.lavish.options_lavish.AdapterOptions`], and `slots`, the names of the slots that have them (by
            default all). `None`: no adapters of its own. `hf_avfusion.adapters.build_in` makes a model with it.
        classifier_hidden_size (`int`, *optional*, defaults to 512): Width between the two linear layers of the head, which have
            no activation between them. `None`: one linear layer.
        vggish (`bool`, defaults to `False`): Whether the classifier also reads VGGish's features of each segment, beside those of
            the streams, with one linear layer (supplementary table 3). The model then takes `vggish_features` too.
            `freeze_backbone` freezes VGGish as well.
        vggish_postprocess (`bool`, defaults to `False`): Whether these features are whitened and rounded to 8 bit, as those of
            AudioSet. VGGish is then always frozen, since rounding has no gradient.
        vggish_channels (six `int`, defaults to `(64, 128, 256, 256, 512, 512)`), vggish_hidden_size (`int`, defaults to 4096),
            vggish_feature_size (`int`, defaults to 128): Widths of VGGish's convolutions, of its dense layers, and the number of
            its features.
        localization_loss (`str`, defaults to `"cross_entropy"`): With segments: `"cross_entropy"`; `"bce_of_probabilities"`, the
            published binary cross-entropy of the soft-max, whose gradient explodes on wrong rows with saturated logits; or
            `"bce_of_log_probabilities"`, its stable form.
        label_smoothing, class_splits, classifier_bias_init: See [`MBTConfig`].
        mask_size (`int` or pair, defaults to 224): Height and width of masks, multiples of 32 (this and the next:
            [`LavishForSegmentation`]).
        decoder_map_widths (four `int`, defaults to `(64, 128, 320, 512)`): Widths after the projection of each stage.
        decoder_width (`int`, defaults to 256): Width of the decoder's maps.
        decoder_head_widths (two `int`, defaults to `(128, 32)`): Widths between its last convolutions.
        tpavi_stages (`list[int]`, defaults to none): Stages, from 0, whose maps attend to the audio or to themselves (TPAVI).
        tpavi_video_audio, tpavi_video_video (`bool`, defaults to `True`, `False`): To what they attend.
        tpavi_audio_width (`int`, defaults to 128): Width of the audio feature for TPAVI.
        mask_loss (`str`, defaults to `"bce_with_logits"`): Or `"bce_of_probabilities"`, as published, which has no gradient
            where a wrong background pixel is certain.
        matching_loss_weight (`float`, defaults to 0): Weight of the audio-visual matching loss. Published: off.
        matching_stages (`list[int]`, defaults to none): Its stages, which need TPAVI with audio.
        mask_pooling (`str`, defaults to `"avg"`): How predicted masks are pooled for it, `"avg"` or `"max"`.
        vocab_size (`int`, defaults to 93): Words of the questions, with the padding (this and the next:
            [`LavishForQuestionAnswering`]).
        question_hidden_size (`int`, defaults to 512): Width of the head's features.
        question_word_size, question_feedforward_size (`int`, *optional*): Widths of the word embeddings and of the feed-forward
            layers; by default `question_hidden_size`.
        question_num_attention_heads (`int`, defaults to 4): Heads with which a question attends to the segments.
        question_dropout (`float`, defaults to 0.1): Dropout in these layers.
        match_hidden_sizes (`list[int]`, *optional*): Widths of the match head; by default 1, 1/2 and 1/4 of
            `question_hidden_size`.
        match_loss_weight (`float`, defaults to 0.5): Weight of the match loss.
        question_types (`list[str]`, *optional*): Names of the types of questions in the order of their numbers in the training
            data, for scores by type. " / " stands between levels, as in `"Audio-Visual / Counting"`.

    Raises:
        ValueError: If fields contradict each other; the message names them.
    """

    model_type = "lavish"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="swinv2")}
    keys_to_ignore_at_inference = [
        "video_logits",
        "audio_logits",
        "hidden_states",
        "attentions",
        "audio_hidden_states",
        "audio_attentions",
    ]
    _counts = (
        "num_segments",
        "num_frames",
        "classifier_hidden_size",
        "vggish_hidden_size",
        "vggish_feature_size",
        "decoder_width",
        "tpavi_audio_width",
        "vocab_size",
        "question_hidden_size",
        "question_word_size",
        "question_feedforward_size",
        "question_num_attention_heads",
    )
    _bounded = (
        "image_size",
        "spectrogram_length",
        "num_mel_bins",
        "vggish_channels",
        "mask_size",
        "decoder_map_widths",
        "decoder_head_widths",
        "match_hidden_sizes",
    )
    _rates = ("label_smoothing", "question_dropout")
    _sizes = _SIZES
    _choices = {
        "audio_positions": POSITIONS,
        "localization_loss": LOCALIZATION_LOSSES,
        "mask_loss": MASK_LOSSES,
        "mask_pooling": MASK_POOLINGS,
    }

    backbone_config: dict | PreTrainedConfig | None = None
    image_size: int | list[int] | tuple[int, ...] | None = None
    num_segments: int | None = 10
    num_frames: int | None = None
    spectrogram_length: int = 192
    num_mel_bins: int = 192
    drop_remainder: bool | None = False
    modalities: list[str] | tuple[str, ...] = ("video", "audio")
    audio_positions: str = "1d"
    use_stochastic_depth: bool = True
    freeze_backbone: bool = True
    adapter: dict | None = None
    classifier_hidden_size: int | None = 512
    vggish: bool = False
    vggish_postprocess: bool = False
    vggish_channels: list[int] | tuple[int, ...] = CHANNELS
    vggish_hidden_size: int = 4096
    vggish_feature_size: int = 128
    localization_loss: str = "cross_entropy"
    mask_size: int | list[int] | tuple[int, ...] = 224
    decoder_map_widths: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    decoder_width: int = 256
    decoder_head_widths: list[int] | tuple[int, ...] = (128, 32)
    tpavi_stages: list[int] | tuple[int, ...] = ()
    tpavi_video_audio: bool = True
    tpavi_video_video: bool = False
    tpavi_audio_width: int = 128
    mask_loss: str = "bce_with_logits"
    matching_loss_weight: float | int = 0.0
    matching_stages: list[int] | tuple[int, ...] = ()
    mask_pooling: str = "avg"
    vocab_size: int = 93
    question_hidden_size: int = 512
    question_word_size: int | None = None
    question_feedforward_size: int | None = None
    question_num_attention_heads: int = 4
    question_dropout: float | int = 0.1
    match_hidden_sizes: list[int] | tuple[int, ...] | None = None
    match_loss_weight: float | int = 0.5
    question_types: list[str] | tuple[str, ...] | None = None

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = dict(_SWIN_LARGE)
        super().__post_init__(**kwargs)
        steps = self.backbone_steps
        if self.image_size is None:
            self.image_size = list(steps.image_size or IMAGE_SIZE)
        if self.num_frames is None:
            self.num_frames = self.backbone_config.num_frames if steps.takes_clips else self.num_segments or 1

    def validate_architecture(self) -> None:
        """Cross-field checks at construction. Raises ValueError naming the fields."""
        steps = self.backbone_steps
        super().validate_architecture()
        if steps.image_size not in (None, self.image_hw):
            raise ValueError(
                f"`image_size` {self.image_hw} differs from that of `backbone_config`, {steps.image_size}, for which the "
                f"backbone is made. Omit `image_size`, or set both."
            )
        self._check_frames(steps)
        if "audio" in self.modalities:
            self._check_spectrogram(steps)
        self._check_vggish()
        check_remainders(self, self._cut_sizes(steps))
        for modality, size in (("video", self.image_hw), ("audio", self.spectrogram_hw)):
            rows, columns = steps.grids(size)[0]
            if modality in self.modalities:
                check_num_tokens(modality, rows * columns * self.num_frames)
        options = self.adapter_options
        if options is not None:
            options.check(steps.widths)
            unknown = sorted(set(self.adapter_slots) - set(self.slot_names))
            if unknown:
                raise ValueError(
                    f"`adapter` names the slot {unknown[0]!r}, but the slots of this model are {self.slot_names[0]} to "
                    f"{self.slot_names[-1]}."
                )
        plain = self.problem_type in (None, "single_label_classification")
        if self.localization_loss != "cross_entropy" and not (plain and self.num_segments):
            raise ValueError(
                f"`localization_loss={self.localization_loss!r}` is for segments with one label each, got "
                f"num_segments={self.num_segments}, problem_type={self.problem_type!r}. Set it to 'cross_entropy'."
            )

    @classmethod
    def tiny(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on ViT-Tiny: width 192, 12 layers, 3 heads."""
        return cls._of_size("tiny", overrides)

    @classmethod
    def small(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on ViT-Small: width 384, 12 layers, 6 heads."""
        return cls._of_size("small", overrides)

    @classmethod
    def base(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on ViT-Base: width 768, 12 layers, 12 heads."""
        return cls._of_size("base", overrides)

    @classmethod
    def large(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on ViT-Large: width 1024, 24 layers, 16 heads."""
        return cls._of_size("large", overrides)

    @classmethod
    def swin_base(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on Swin-V2-Base at 192 pixels."""
        return cls._of_size("swin_base", overrides)

    @classmethod
    def swin_large(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on Swin-V2-Large at 192 pixels, the backbone of the paper's main results."""
        return cls._of_size("swin_large", overrides)

    @classmethod
    def resnet152(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on ResNet-152, of the comparison in supplementary section 2."""
        return cls._of_size("resnet152", overrides)

    @classmethod
    def videomae_base(cls, **overrides) -> "LavishTwoStreamConfig":
        """LAVISH on VideoMAE-Base, for clips without segments."""
        return cls._of_size("videomae_base", {"num_segments": None, **overrides})

    @classmethod
    def front_end(cls, size: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes of the backbone, and the published front end for its kind."""
        backbone = cls._fields_of_size(size, given)["backbone_config"]
        if isinstance(backbone, Mapping):
            backbone = AutoConfig.for_model(**backbone)
        steps = steps_of(backbone)
        height, width = steps.image_size or IMAGE_SIZE
        demands = {"image_size": (height, width), "audio_preset": "lavish_ave_vit"}
        if steps.takes_clips:
            demands |= {"num_frames": backbone.num_frames, "num_segments": None}
        if steps.same_sizes:
            sizes = {"spectrogram_length": height, "num_mel_bins": width}
            demands |= {"audio_preset": "lavish_ave_swin", **sizes}
        if given.get("vggish"):
            demands["processor"] = {"vggish": True}
        return demands

    def refuse_vggish(self, model: str) -> None:
        """Raises ValueError if `vggish` is set for a model whose head does not read VGGish's features."""
        if self.vggish:
            raise ValueError(
                f"`vggish` is an option of LavishForAudioVisualClassification, but this is a {model}. Set it to False."
            )

    def check_segmentation(self) -> None:
        """Raises ValueError if a model for segmentation cannot be built; the message names the fields."""
        self.refuse_vggish("LavishForSegmentation")
        steps = self.backbone_steps
        if self.num_segments is None or "video" not in self.modalities:
            raise ValueError(
                f"Segmentation needs `num_segments` and the modality video, got num_segments={self.num_segments}, "
                f"modalities={tuple(self.modalities)}."
            )
        if len(steps.stage_ends) != NUM_STAGES:
            raise ValueError(
                f"Segmentation needs a backbone with {NUM_STAGES} stages, such as a swinv2, got one of type "
                f"{self.backbone_config.model_type!r} with {len(steps.stage_ends)}."
            )
        rows, columns = self.mask_hw
        widest = max(
            self.decoder_width // 4, *self.decoder_head_widths
        )  # the decoder's maps have half of the mask's size
        check_bytes(
            4 * self.num_segments * widest * rows * columns,
            "`num_segments`, `mask_size`, `decoder_width`, `decoder_head_widths`",
        )
        check_tpavi(self.tpavi_stages, self.tpavi_video_audio, self.tpavi_video_video)
        if self.tpavi_stages and self.tpavi_video_audio and "audio" not in self.modalities:
            raise ValueError("`tpavi_video_audio` needs the modality audio. Set it to False, or add the modality.")
        if self.matching_loss_weight:
            check_matching_stages(self.matching_stages, self.tpavi_stages if self.tpavi_video_audio else ())

    def _check_frames(self, steps: BackboneSteps) -> None:
        kind = self.backbone_config.model_type
        if steps.takes_clips:
            if self.num_segments is not None:
                raise ValueError(
                    f"`num_segments` must be None with the backbone {kind}, which takes a whole clip, got {self.num_segments}."
                )
            expected, source = self.backbone_config.num_frames, "`backbone_config.num_frames`"
        else:
            expected, source = self.num_segments or 1, f"one frame per segment with the backbone {kind}"
        if self.num_frames != expected:
            raise ValueError(
                f"`num_frames` must be {expected} ({source}), got {self.num_frames}. Omit it to have that."
            )

    def _check_spectrogram(self, steps: BackboneSteps) -> None:
        size, kind = self.spectrogram_hw, self.backbone_config.model_type
        check_bytes(
            4 * (self.num_segments or 1) * size[0] * size[1] * self.num_channels,
            "`num_segments`, `spectrogram_length`, `num_mel_bins`",
        )
        if steps.same_sizes and size != self.image_hw:
            raise ValueError(
                f"With the backbone {kind}, `spectrogram_length` x `num_mel_bins` must be the `image_size` {self.image_hw}, got "
                f"{size}."
            )
        if min(side // step for side, step in zip(size, steps.patch_size)) < 1:
            raise ValueError(
                f"A spectrogram of `spectrogram_length` x `num_mel_bins` = {size[0]} x {size[1]} is smaller than one patch of "
                f"`backbone_config.patch_size` {steps.patch_size}. Increase it."
            )

    def _check_vggish(self) -> None:
        if len(self.vggish_channels) != len(CHANNELS):
            raise ValueError(
                f"`vggish_channels` must be the widths of {len(CHANNELS)} convolutions, got {tuple(self.vggish_channels)}."
            )
        if not self.vggish:
            if self.vggish_postprocess:
                raise ValueError("`vggish_postprocess` needs `vggish`. Set both, or neither.")
            return
        if self.num_segments is None or "audio" not in self.modalities:
            raise ValueError(
                f"`vggish` needs `num_segments` and the modality audio, since it hears each segment, got num_segments="
                f"{self.num_segments}, modalities={tuple(self.modalities)}."
            )
        if self.classifier_hidden_size is not None:
            raise ValueError(
                f"`vggish` has a head of one linear layer, got classifier_hidden_size={self.classifier_hidden_size}. Set "
                "`classifier_hidden_size` to None."
            )
        rows, mels = EXAMPLE_SHAPE
        check_bytes(
            4 * self.num_segments * max(self.vggish_channels) * rows * mels, "`num_segments`, `vggish_channels`"
        )

    def _cut_sizes(self, steps: BackboneSteps) -> list[tuple[str, int, int]]:
        """Field, size and patch of each axis that is cut into patches."""
        if steps.same_sizes:  # these pad the last patch
            return []
        (height, width), names = steps.patch_size, ("spectrogram_length", "num_mel_bins")
        sizes = [("image_size", self.image_hw[0], height), ("image_size", self.image_hw[1], width)]
        sizes = sizes if "video" in self.modalities else []
        if "audio" in self.modalities:
            sizes += [(name, size, step) for name, size, step in zip(names, self.spectrogram_hw, (height, width))]
        return sizes

    @property
    def backbone_steps(self) -> BackboneSteps:
        """How the backbone runs."""
        return steps_of(self.backbone_config)

    @property
    def spectrogram_hw(self) -> tuple[int, int]:
        """Rows (time) and columns (mel bands) of one spectrogram."""
        return self.spectrogram_length, self.num_mel_bins

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch, pixels (spectrogram: frames and mel bands)."""
        return self.backbone_steps.patch_size

    @property
    def mask_hw(self) -> tuple[int, int]:
        """Height and width of a mask, pixels."""
        return as_pair("mask_size", self.mask_size)

    @property
    def num_channels(self) -> int:
        """Channels of a frame. A spectrogram is repeated for each, as published."""
        return self.backbone_config.num_channels

    @property
    def hidden_size(self) -> int:
        """Channels of the final tokens of each stream."""
        return self.backbone_steps.widths[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return len(self.backbone_steps.widths)

    @property
    def slot_names(self) -> list[str]:
        """Names of the places for adapters in the base model."""
        parts = self.backbone_steps.parts
        return [f"blocks.{index}.fusion_{part}" for index in range(self.num_hidden_layers) for part in parts]

    @property
    def report_settings(self) -> dict[str, Any]:
        """The kind of the backbone, whether it was trained, and the options of the adapters."""
        options = {} if self.adapter is None else {f"adapter_{name}": value for name, value in self.adapter.items()}
        own = {"backbone": self.backbone_config.model_type, "freeze_backbone": self.freeze_backbone}
        own |= {"vggish": True} if self.vggish else {}
        return {**own, "audio_positions": self.audio_positions, **options}

    @property
    def adapter_options(self) -> AdapterOptions | None:
        """The options of the adapters that are part of the model."""
        if self.adapter is None:
            return None
        return AdapterOptions.from_mapping({name: value for name, value in self.adapter.items() if name != "slots"})

    @property
    def adapter_slots(self) -> list[str]:
        """The slots with adapters that are part of the model."""
        if self.adapter is None:
            return []
        slots = self.adapter.get("slots")
        return self.slot_names if slots is None else list(slots)

    @property
    def input_axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of each input, after the batch axis."""
        segments = () if self.num_segments is None else ("segments",)
        axes = {"pixel_values": CLIP_AXES["pixel_values"], "input_features": (*segments, *CLIP_AXES["input_features"])}
        return axes | ({"vggish_features": axes["input_features"]} if self.vggish else {})


__all__ = ["LavishTwoStreamConfig"]
