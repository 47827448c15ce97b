"""
Registers every architecture with the Auto classes, and defines `AutoModelForAudioVisualClassification`.

Importing the model classes takes as long as importing `AutoModel` (torchvision, torch._dynamo), so this module imports only the
configs. A model is registered as a stand-in, which an Auto class replaces by the real class at its first use. Processors are
registered when transformers' own processor modules, which are slow to import as well, are imported.
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
    """Loads any model with a head for audio-visual classification, by the `model_type` of its checkpoint."""

    _model_mapping = AUDIO_VISUAL_CLASSIFICATION_MAPPING


AutoModelForAudioVisualClassification = auto_class_update(
    AutoModelForAudioVisualClassification, head_doc="audio-visual classification"
)

# One row per architecture: config, processor, models by Auto class. Processors and models are given as "module:Class".
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
    """Stand-in for a model class. The first access to an attribute imports the class and registers it instead."""

    def __init__(self, auto_class: type, config_class: type, reference: str):
        self.auto_class, self.config_class, self.reference = auto_class, config_class, reference

    def __getattr__(self, name: str) -> Any:
        real = load_reference(self.reference)
        self.auto_class.register(self.config_class, real, exist_ok=True)
        return getattr(real, name)


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that calls a function after the first import of a module."""

    def __init__(self, module: str, callback: Callable[[], None]):
        self.module, self.callback = module, callback

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
        self.callback()


def _when_imported(module: str, callback: Callable[[], None]) -> None:
    if module in sys.modules:
        callback()
    else:
        sys.meta_path.insert(0, _AfterImport(module, callback))


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
            auto_class.register(config, _ModelOnDemand(auto_class, config, model), exist_ok=True)
    auto = "transformers.models.auto"
    _when_imported(f"{auto}.processing_auto", _register_processors)
    _when_imported(f"{auto}.video_processing_auto", _register_video_processors)
    _when_imported(f"{auto}.feature_extraction_auto", _register_feature_extractors)
    _when_imported("transformers.pipelines", _register_pipeline)
