"""
Audio-visual fusion models for Hugging Face transformers.

Importing this package registers its architectures with the Auto classes, once these are imported; its names load when first used.
"""

from importlib import import_module

from .lazy_registration import register_when_used

__version__ = "0.1.0"

# Public name -> module that defines it, loaded on first use: importing the package takes no time.
_LAZY = {
    "AutoModelForAudioVisualClassification": "auto",
    "AutoModelForAudioVisualQuestionAnswering": "auto",
    "AutoModelForAudioVisualSegmentation": "auto",
    "AVMAEConfig": "models.avmae.configuration_avmae",
    "AVMAEForAudioVisualClassification": "models.avmae.modeling_avmae",
    "AVMAEForPreTraining": "models.avmae.modeling_avmae",
    "AVMAEModel": "models.avmae.modeling_avmae",
    "AVMAEProcessor": "models.avmae.processing_avmae",
    "LavishConfig": "adapters.config",
    "LavishForAudioVisualClassification": "models.lavish.modeling_lavish",
    "LavishForQuestionAnswering": "models.lavish.modeling_lavish_heads",
    "LavishForSegmentation": "models.lavish.modeling_lavish_heads",
    "LavishProcessor": "models.lavish.processing_lavish",
    "LavishTwoStreamConfig": "models.lavish.configuration_lavish",
    "LavishTwoStreamModel": "models.lavish.modeling_lavish",
    "MBTConfig": "models.mbt.configuration_mbt",
    "MBTForAudioVisualClassification": "models.mbt.modeling_mbt",
    "MBTModel": "models.mbt.modeling_mbt",
    "MBTProcessor": "models.mbt.processing_mbt",
    "AVFusionFeatureExtractor": "processing.feature_extraction_avfusion",
    "AVFusionVideoProcessor": "processing.video_processing_avfusion",
    "MediaError": "media.reader",
    "BENCHMARKS": "data.benchmarks.records",
    "load_benchmark": "data.benchmarks.loading",
    "load_folder": "data.benchmarks.folders",
    "AVPreTrainer": "training.pretraining",
    "AVTrainer": "training.trainer",
    "AVTrainingArguments": "training.arguments",
    "mean_average_precision": "metrics.classification",
    "multi_head_accuracies": "metrics.classification",
    "top_k_accuracy": "metrics.classification",
    "predict_views": "evaluation.views",
}

__all__ = [*_LAZY]


def __getattr__(name: str):
    if name in ("data", "hub"):  # hf_avfusion.data.BENCHMARKS works without a second import
        return import_module(f".{name}", __name__)
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register_when_used()
del register_when_used
