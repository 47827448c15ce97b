"""
Audio-visual fusion models for Hugging Face transformers.

Importing this package registers its architectures with the Auto classes; its other names load when first used.
"""

from importlib import import_module

from .auto import AutoModelForAudioVisualClassification, register

__version__ = "0.1.0"

# Public name -> module that defines it, loaded on first use: importing the package stays as cheap as importing AutoModel.
_LAZY = {
    "AVMAEConfig": "models.configuration_avmae",
    "AVMAEForAudioVisualClassification": "models.modeling_avmae",
    "AVMAEForPreTraining": "models.modeling_avmae",
    "AVMAEModel": "models.modeling_avmae",
    "AVMAEProcessor": "models.processing_avmae",
    "MBTConfig": "models.configuration_mbt",
    "MBTForAudioVisualClassification": "models.modeling_mbt",
    "MBTModel": "models.modeling_mbt",
    "MBTProcessor": "models.processing_mbt",
    "AVFusionFeatureExtractor": "models.feature_extraction_avfusion",
    "AVFusionVideoProcessor": "models.video_processing_avfusion",
    "MediaError": "models.media_avfusion",
    "BENCHMARKS": "data.benchmarks",
    "load_benchmark": "data.benchmarks",
    "load_folder": "data.folders",
    "AVPreTrainer": "training.pretraining",
    "AVTrainer": "training.trainer",
    "AVTrainingArguments": "training.arguments",
    "mean_average_precision": "evaluation.metrics",
    "multi_head_accuracies": "evaluation.metrics",
    "top_k_accuracy": "evaluation.metrics",
    "predict_views": "evaluation.views",
}

__all__ = ["AutoModelForAudioVisualClassification", *_LAZY]


def __getattr__(name: str):
    if name in ("data", "hub"):  # hf_avfusion.data.BENCHMARKS works without a second import
        return import_module(f".{name}", __name__)
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register()
del register
