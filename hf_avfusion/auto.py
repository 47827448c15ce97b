"""
Registration of every architecture with transformers' Auto classes, and the Auto class that transformers has no name for.

Importing model classes costs as much again as importing `AutoModel` (torchvision, torch._dynamo), so only configs are loaded here:
models are registered by a stand-in that becomes the real class when an Auto class reaches for it, processors when transformers'
own processor modules, which are as heavy, are imported.
"""

import importlib.abc
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping, auto_class_update
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .models.avmae.configuration_avmae import AVMAEConfig
from .models.mbt.configuration_mbt import MBTConfig

AUDIO_VISUAL_CLASSIFICATION_MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForAudioVisualClassification(_BaseAutoModelClass):
    """Any model with a head for audio-visual classification, by the `model_type` of its checkpoint."""

    _model_mapping = AUDIO_VISUAL_CLASSIFICATION_MAPPING


AutoModelForAudioVisualClassification = auto_class_update(
    AutoModelForAudioVisualClassification, head_doc="audio-visual classification"
)

# One row per architecture: config, processor, models by Auto class. Everything but the config is "module:Class".
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
)


def load_reference(reference: str) -> type:
    """The class of a reference of `ARCHITECTURES`, such as "models.mbt.modeling_mbt:MBTModel"."""
    module, name = reference.split(":")
    return getattr(import_module(f".{module}", __package__), name)


class _ModelOnDemand:
    """Stands for a model class until an attribute of it is needed; then the real class takes its place in the registry."""

    def __init__(self, auto_class: type, config_class: type, reference: str):
        self.auto_class, self.config_class, self.reference = auto_class, config_class, reference

    def __getattr__(self, name: str) -> Any:
        real = load_reference(self.reference)
        self.auto_class.register(self.config_class, real, exist_ok=True)
        return getattr(real, name)


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Runs a function right after a module that is not imported yet has been."""

    def __init__(self, module: str, then: Callable[[], None]):
        self.module, self.then = module, then

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        module.__spec__.loader = module.__loader__ = self.loader
        self.then()


def _when_imported(module: str, then: Callable[[], None]) -> None:
    if module in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(module, then))


def _register_processors() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    for config, processor, _ in ARCHITECTURES:
        AutoProcessor.register(config, load_reference(processor), exist_ok=True)


def _register_video_processors() -> None:
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    video_processor = load_reference("processing.video_processing_avfusion:AVFusionVideoProcessor")
    _forget_code(video_processor)
    for config, *_ in ARCHITECTURES:
        AutoVideoProcessor.register(config, video_processor_class=video_processor, exist_ok=True)


def _register_feature_extractors() -> None:
    from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

    feature_extractor = load_reference("processing.feature_extraction_avfusion:AVFusionFeatureExtractor")
    _forget_code(feature_extractor)
    for config, *_ in ARCHITECTURES:
        AutoFeatureExtractor.register(config, feature_extractor, exist_ok=True)


def _register_pipeline() -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    from .processing.pipelines import TASK, AudioVisualClassificationPipeline

    PIPELINE_REGISTRY.register_pipeline(
        TASK, AudioVisualClassificationPipeline, AutoModelForAudioVisualClassification, type="multimodal"
    )


def _forget_code(loaded: type) -> None:
    """A checkpoint that came with code (hub.export) is loaded by the package's classes. What its files say about the code is
    left out then: `pipeline` would insist on running it, and a folder that is saved without it would point to files not there.
    """
    inherited = loaded.from_dict.__func__

    def from_dict(cls, saved: dict[str, Any], **kwargs: Any):
        about_code = ("auto_map", "custom_pipelines")
        return inherited(cls, {name: value for name, value in saved.items() if name not in about_code}, **kwargs)

    loaded.from_dict = classmethod(from_dict)


def register() -> None:
    """Make every architecture known to the Auto classes."""
    for config, _, models in ARCHITECTURES:
        _forget_code(config)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, model in models.items():
            auto_class.register(config, _ModelOnDemand(auto_class, config, model), exist_ok=True)
    auto = "transformers.models.auto"
    _when_imported(f"{auto}.processing_auto", _register_processors)
    _when_imported(f"{auto}.video_processing_auto", _register_video_processors)
    _when_imported(f"{auto}.feature_extraction_auto", _register_feature_extractors)
    _when_imported("transformers.pipelines", _register_pipeline)
