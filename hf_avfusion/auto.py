"""
Registers every architecture with the Auto classes when it is imported, and defines those for which transformers has no class:
`AutoModelForAudioVisualClassification`, `AutoModelForAudioVisualSegmentation` and `AutoModelForAudioVisualQuestionAnswering`.

`lazy_registration.register_when_used` imports it once transformers' Auto classes are imported.

It imports the configs only. Models and processors are imported when they are used (`lazy_registration`).
"""

from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping, auto_class_update
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .lazy_registration import ModelOnDemand, is_importing, load_reference, when_imported
from .models.avmae.configuration_avmae import AVMAEConfig
from .models.lavish.configuration_lavish import LavishTwoStreamConfig
from .models.mbt.configuration_mbt import MBTConfig

AUDIO_VISUAL_CLASSIFICATION_MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForAudioVisualClassification(_BaseAutoModelClass):
    """Loads any model with a head for audio-visual classification, by the `model_type` of its checkpoint."""

    _model_mapping = AUDIO_VISUAL_CLASSIFICATION_MAPPING


AutoModelForAudioVisualClassification = auto_class_update(
    AutoModelForAudioVisualClassification, head_doc="audio-visual classification"
)


class AutoModelForAudioVisualSegmentation(_BaseAutoModelClass):
    """Loads any model that gives a mask of what sounds for each segment of a clip, by the `model_type` of its checkpoint."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


AutoModelForAudioVisualSegmentation = auto_class_update(
    AutoModelForAudioVisualSegmentation, head_doc="audio-visual segmentation"
)


class AutoModelForAudioVisualQuestionAnswering(_BaseAutoModelClass):
    """Loads any model that answers questions about a clip, by the `model_type` of its checkpoint."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


AutoModelForAudioVisualQuestionAnswering = auto_class_update(
    AutoModelForAudioVisualQuestionAnswering, head_doc="audio-visual question answering"
)

# The Auto classes that transformers lacks, so that an exported checkpoint cannot name them.
OWN_AUTO_CLASSES = (
    AutoModelForAudioVisualClassification,
    AutoModelForAudioVisualSegmentation,
    AutoModelForAudioVisualQuestionAnswering,
)

# One row per architecture: config, processor, models by Auto class. Processors and models are given as "module:Class". Heads that
# take only sound belong under AutoModelForAudioClassification.
ARCHITECTURES: tuple[tuple[type, str, dict[type, str]], ...] = (
    (
        MBTConfig,
        "models.mbt.processing_mbt:MBTProcessor",
        {
            AutoModel: "models.mbt.modeling_mbt:MBTModel",
            AutoModelForVideoClassification: "models.mbt.modeling_mbt:MBTForAudioVisualClassification",
            AutoModelForAudioVisualClassification: "models.mbt.modeling_mbt:MBTForAudioVisualClassification",
        },
    ),
    (
        AVMAEConfig,
        "models.avmae.processing_avmae:AVMAEProcessor",
        {
            AutoModel: "models.avmae.modeling_avmae:AVMAEModel",
            AutoModelForPreTraining: "models.avmae.modeling_avmae:AVMAEForPreTraining",
            AutoModelForVideoClassification: "models.avmae.modeling_avmae:AVMAEForAudioVisualClassification",
            AutoModelForAudioVisualClassification: "models.avmae.modeling_avmae:AVMAEForAudioVisualClassification",
        },
    ),
    (
        LavishTwoStreamConfig,
        "models.lavish.processing_lavish:LavishProcessor",
        {
            AutoModel: "models.lavish.modeling_lavish:LavishTwoStreamModel",
            AutoModelForVideoClassification: "models.lavish.modeling_lavish:LavishForAudioVisualClassification",
            AutoModelForAudioVisualClassification: "models.lavish.modeling_lavish:LavishForAudioVisualClassification",
            AutoModelForSemanticSegmentation: "models.lavish.modeling_lavish_heads:LavishForSegmentation",
            AutoModelForAudioVisualSegmentation: "models.lavish.modeling_lavish_heads:LavishForSegmentation",
            AutoModelForVisualQuestionAnswering: "models.lavish.modeling_lavish_heads:LavishForQuestionAnswering",
            AutoModelForAudioVisualQuestionAnswering: "models.lavish.modeling_lavish_heads:LavishForQuestionAnswering",
        },
    ),
)


@dataclass(frozen=True)
class PipelineEntry:
    """A pipeline: its name for `transformers.pipeline`, its class ("module:Class"), its Auto class, an example of a call for model
    cards, and its kind of input.
    """

    name: str
    reference: str
    auto_class: type
    call: str
    type: str = "multimodal"


AUDIO_VISUAL_CLASSIFICATION = PipelineEntry(
    "audio-visual-classification",
    "processing.pipelines:AudioVisualClassificationPipeline",
    AutoModelForAudioVisualClassification,
    'classify("clip.mp4", top_k=5)',
)
AUDIO_VISUAL_EVENT_LOCALIZATION = PipelineEntry(
    "audio-visual-event-localization",
    "processing.event_pipeline:AudioVisualEventLocalizationPipeline",
    AutoModelForAudioVisualClassification,
    'localize("clip.mp4")',
)
AUDIO_VISUAL_QUESTION_ANSWERING = PipelineEntry(
    "audio-visual-question-answering",
    "processing.question_pipeline:AudioVisualQuestionAnsweringPipeline",
    AutoModelForAudioVisualQuestionAnswering,
    'ask("clip.mp4", text="How many instruments are sounding in the video?")',
)
AUDIO_VISUAL_SEGMENTATION = PipelineEntry(
    "audio-visual-segmentation",
    "processing.segmentation_pipeline:AudioVisualSegmentationPipeline",
    AutoModelForAudioVisualSegmentation,
    'segment("clip.mp4", output="overlay.mp4")',
)
# One entry per pipeline. The tasks refer to these entries.
PIPELINES: tuple[PipelineEntry, ...] = (
    AUDIO_VISUAL_CLASSIFICATION,
    AUDIO_VISUAL_EVENT_LOCALIZATION,
    AUDIO_VISUAL_QUESTION_ANSWERING,
    AUDIO_VISUAL_SEGMENTATION,
)


def _register_processors() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    for config, processor, _ in ARCHITECTURES:
        AutoProcessor.register(config, load_reference(processor), exist_ok=True)


def _register_video_processor() -> None:
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    from .processing.video_processing_avfusion import AVFusionVideoProcessor

    _forget_code(AVFusionVideoProcessor)
    for config, *_ in ARCHITECTURES:
        AutoVideoProcessor.register(config, AVFusionVideoProcessor, exist_ok=True)


def _register_feature_extractor() -> None:
    from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

    from .processing.feature_extraction_avfusion import AVFusionFeatureExtractor

    _forget_code(AVFusionFeatureExtractor)
    for config, *_ in ARCHITECTURES:
        AutoFeatureExtractor.register(config, AVFusionFeatureExtractor, exist_ok=True)


def _register_pipelines() -> None:
    modules = {entry: f"{__package__}.{entry.reference.partition(':')[0]}" for entry in PIPELINES}
    # Pipelines are made of each other, so none is imported while another is. The end of that import calls this again.
    if importing := next(filter(is_importing, modules.values()), None):
        when_imported(importing, _register_pipelines)
        return
    for entry, module in modules.items():
        import_module(module)
        _register_pipeline(entry)


def _register_pipeline(entry: PipelineEntry) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    PIPELINE_REGISTRY.register_pipeline(entry.name, load_reference(entry.reference), entry.auto_class, type=entry.type)


def _forget_code(loaded: type) -> None:
    """Makes `from_dict` of a class drop the maps to exported code (hub.export), since this package's classes replace it.

    Otherwise `pipeline` would require trust_remote_code, and a later save would refer to Python files that it does not hold.
    """
    inherited = loaded.from_dict.__func__

    def from_dict(cls, saved: dict[str, Any], **kwargs: Any):
        dropped = ("auto_map", "custom_pipelines")
        return inherited(cls, {name: value for name, value in saved.items() if name not in dropped}, **kwargs)

    loaded.from_dict = classmethod(from_dict)


def register() -> None:
    """Registers every architecture with the Auto classes."""
    for config, _, models in ARCHITECTURES:
        _forget_code(config)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, ModelOnDemand(auto_class, config, model), exist_ok=True)
    when_imported("transformers.models.auto.processing_auto", _register_processors)
    when_imported("transformers.models.auto.video_processing_auto", _register_video_processor)
    when_imported("transformers.models.auto.feature_extraction_auto", _register_feature_extractor)
    when_imported("transformers.pipelines", _register_pipelines)


register()
