"""One tiny checkpoint per architecture for the tests of what travels: export, push, load elsewhere. A new one adds one line."""

from collections.abc import Callable

import torch
from tiny_lavish import VGGISH
from transformers import PreTrainedModel, ProcessorMixin

from hf_avfusion import (
    AVFusionFeatureExtractor,
    AVFusionVideoProcessor,
    AVMAEConfig,
    AVMAEForAudioVisualClassification,
    AVMAEForPreTraining,
    AVMAEProcessor,
    LavishForAudioVisualClassification,
    LavishForQuestionAnswering,
    LavishForSegmentation,
    LavishProcessor,
    LavishTwoStreamConfig,
    MBTConfig,
    MBTForAudioVisualClassification,
    MBTProcessor,
)
from hf_avfusion.models.lavish.processing_lavish import frame_processor

SIDE, ROWS, MELS, FRAMES = 16, 32, 16, 4
LABELS = ("a dog", "a | bar", "{{ curly }}", "`tick`", "rain")


def processor(kind: type = MBTProcessor) -> ProcessorMixin:
    """4 frames of 16 x 16 pixels over 0.32 s, and as long a spectrogram, 32 x 16."""
    side = {"height": SIDE, "width": SIDE}
    audio = AVFusionFeatureExtractor.from_preset("mbt", num_mel_bins=MELS, spectrogram_length=ROWS)
    video = AVFusionVideoProcessor(size=side, crop_size=side)
    return kind(video, audio, num_frames=FRAMES, span=0.32, audio_seconds=0.32)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
INPUTS = {"image_size": SIDE, "patch_size": 8, "num_frames": FRAMES, "num_mel_bins": MELS, "spectrogram_length": ROWS}


def label_fields(fields: dict) -> dict:
    if "class_splits" in fields:
        return fields
    return {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}, **fields}


def mbt(kind: type = MBTForAudioVisualClassification, **fields) -> PreTrainedModel:
    return kind(MBTConfig(**SIZES, **INPUTS, fusion_layer=1, **label_fields(fields)))


def avmae(kind: type = AVMAEForAudioVisualClassification, **fields) -> PreTrainedModel:
    decoder = {f"decoder_{name}": value for name, value in SIZES.items()}
    return kind(AVMAEConfig(**SIZES, **decoder, **INPUTS, **label_fields(fields)))


def lavish_processor(**fields) -> ProcessorMixin:
    """2 segments of a frame of 16 x 16 pixels, and of 0.3 s of sound as a spectrogram, 32 x 16."""
    audio = AVFusionFeatureExtractor.from_preset("lavish_ave_vit", num_mel_bins=MELS, spectrogram_length=ROWS)
    return LavishProcessor(frame_processor(SIDE), audio, num_segments=2, segment_seconds=0.3, **fields)


def lavish(kind: type = LavishForAudioVisualClassification, **fields) -> PreTrainedModel:
    backbone = {"model_type": "vit", **SIZES, "image_size": SIDE, "patch_size": 8}
    sizes = {"num_segments": 2, "spectrogram_length": ROWS, "num_mel_bins": MELS, "classifier_hidden_size": 8}
    config = LavishTwoStreamConfig(backbone_config=backbone, **{**sizes, **label_fields(fields)})
    return kind(config)


def lavish_vggish() -> PreTrainedModel:
    return lavish(**VGGISH)


def lavish_vggish_processor() -> ProcessorMixin:
    """As `lavish_processor`, with 1 s of sound in each segment, at 33 rows a second."""
    audio = AVFusionFeatureExtractor.from_preset(
        "lavish_ave_vit", num_mel_bins=MELS, spectrogram_length=ROWS, hop_length=485
    )
    return LavishProcessor(frame_processor(SIDE), audio, num_segments=2, vggish=True)


WORDS = ("<pad>", "What", "can", "be", "heard")


def lavish_questions() -> PreTrainedModel:
    return lavish(LavishForQuestionAnswering, vocab_size=len(WORDS), question_hidden_size=16)


def lavish_segmentation() -> PreTrainedModel:
    backbone = {"model_type": "swinv2", "image_size": 32, "patch_size": 4, "embed_dim": 8, "window_size": 4}
    stages = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    decoder = {"decoder_map_widths": [4, 4, 4, 4], "decoder_width": 8, "decoder_head_widths": [6, 4], "mask_size": 64}
    sizes = {"num_segments": 2, "spectrogram_length": 32, "num_mel_bins": 32}
    tpavi = {"tpavi_stages": [0, 3], "tpavi_audio_width": 8}
    adapter = {"num_tokens": 2, "reduction": 4}
    config = LavishTwoStreamConfig(backbone_config={**backbone, **stages}, adapter=adapter, **sizes, **decoder, **tpavi)
    return LavishForSegmentation(config)


def lavish_segmentation_processor() -> ProcessorMixin:
    """2 segments of a frame of 32 x 32 pixels, and of 0.3 s of sound as a spectrogram, 32 x 32."""
    audio = AVFusionFeatureExtractor.from_preset("lavish_avs", num_mel_bins=32, spectrogram_length=32)
    return LavishProcessor(frame_processor(32), audio, num_segments=2, segment_seconds=0.3, segment_frame=0.5)


# Name -> what makes the model and its processor. The model is saved from, and compared under, its own Auto class.
TRAVELLERS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], ProcessorMixin]]] = {
    "mbt": (mbt, processor),
    "avmae": (avmae, lambda: processor(AVMAEProcessor)),
    "avmae-pretraining": (lambda: avmae(AVMAEForPreTraining), lambda: processor(AVMAEProcessor)),
    "lavish": (lavish, lavish_processor),
    "lavish-questions": (lavish_questions, lambda: lavish_processor(vocab=list(WORDS), max_question_length=5)),
    "lavish-segmentation": (lavish_segmentation, lavish_segmentation_processor),
    "lavish-vggish": (lavish_vggish, lavish_vggish_processor),
    "lavish-built-in": (lambda: lavish(adapter={"num_tokens": 2, "reduction": 4}), lavish_processor),
}


def traveller(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, in evaluation mode, with weights that make its outputs differ from clip to clip, and its processor."""
    make_model, make_processor = TRAVELLERS[name]
    torch.manual_seed(0)
    model = make_model().eval()
    with torch.no_grad():  # published heads start at zero, which would make equal logits prove nothing
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, make_processor()
