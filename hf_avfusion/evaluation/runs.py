"""Evaluates a checkpoint on a benchmark: loads it, checks that the clips match it, and scores it under each condition."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.benchmarks.loading import BENCHMARKS
from ..data.streaming.clip_stream import ClipStream
from ..media.modalities import MODALITIES
from ..models.shared.loaded_weights import check_whole
from ..tasks import task_of_config
from .adapter_checkpoints import adapter_config, base_of, load_adapter
from .clips import EvaluationSet, ModelClasses
from .views import (
    MODALITY_SETS,
    PROTOCOLS,
    ViewPredictions,
    ViewProtocol,
    check_views,
    choose_protocol,
    predict_modalities,
    view_transform,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..media.windows import WindowPolicy
    from ..processing.processing_avfusion import AVFusionProcessor
    from ..tasks import Task

# spread: the protocol's windows at equal distances over the clip. sync, async: random windows as in training; video and audio
# share one position (sync) or have a position each (async) (MBT supplementary A.4).
SAMPLINGS = ("spread", "sync", "async")

# Config fields that change the model or its inputs.
SETTINGS = (
    "model_type", "fusion", "fusion_layer", "share_encoder", "num_hidden_layers", "hidden_size", "modalities",
    "encoder_strategy", "num_fusion_layers", "num_bottleneck_tokens", "bottleneck_update", "test_with_bottlenecks", "readout",
    "num_attention_heads", "intermediate_size", "position_embeddings", "use_modality_tokens", "representation_size",
    "image_size", "patch_size", "tubelet_size", "num_frames", "num_sampled_frames", "num_mel_bins", "spectrogram_length",
)  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """How an evaluation chooses its windows.

    Args:
        span: seconds that the frames of a window cover; None is the span of the checkpoint's processor. The audio is always
            as long as the model's spectrogram.
        sampling: one of `SAMPLINGS`.
    """

    span: float | None = None
    sampling: str = "spread"

    def __post_init__(self) -> None:
        if self.span is not None and not 0 < self.span < float("inf"):
            raise ValueError(f"a span (--spans) must be a positive number of seconds, got {self.span}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling (--sampling) must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")


def load_checkpoint(name: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, AVFusionProcessor]:
    """Loads the model (in evaluation mode) and the processor of a checkpoint folder or Hub repository.

    A checkpoint may hold only an adapter, see `adapter_checkpoints`. The model is then the base model with the adapter in it.

    Raises:
        ValueError: no such checkpoint, an architecture without a head for clips, no saved processor, or missing weights
            (a base model has no head).
    """
    from transformers import AutoConfig, AutoProcessor

    from ..processing.processing_avfusion import AVFusionProcessor

    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name} is not a checkpoint: pass a folder or the id of a Hub repository (owner/name)")
    adapter = adapter_config(name)
    base = name if adapter is None else base_of(name)
    if adapter is None and Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        within = sorted(str(path.parent) for path in Path(name).glob("*/config.json"))
        raise ValueError(
            f"{name} is not a checkpoint: it holds no config.json"
            + (f"; pass one of its sub-folders with a config.json: {' '.join(within)}" if within else "")
        )
    try:
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is not a checkpoint: pass a folder with config.json or a Hub repository ({error})"
        ) from error
    task = task_of_config(config)
    known = task.auto_class._model_mapping
    if type(config) not in known:
        raise ValueError(
            f"{name} is a {config.model_type}, which has no head for {task.title}: pass a checkpoint of one of "
            f"{', '.join(each.model_type for each in known)}"
        )
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _missing_processor(name) from error
    if not isinstance(processor, AVFusionProcessor):
        raise _missing_processor(name)
    model, report = task.auto_class.from_pretrained(base, output_loading_info=True)
    check_whole(model, base, report)
    problems = {kind: sorted(map(str, tensors)) for kind, tensors in report.items() if tensors}
    if problems:
        raise ValueError(f"{name} does not hold the weights of a {type(model).__name__}: {problems}")
    if adapter is not None:
        model = load_adapter(name, model).get_base_model()
        # Reports tell models with different adapters apart.
        model.config.adapter_settings = {f"adapter_{field}": adapter.get(field) for field in _of_adapters(adapter)}
    return model.eval().to(device), processor


def _of_adapters(adapter: Mapping[str, Any]) -> list[str]:
    """The fields of an adapter's config that distinguish models: plain values that do not name a file."""
    left_out = ("base_model_name_or_path", "inference_mode", "peft_version", "revision", "auto_mapping", "task_type")
    plain = (str, int, float, bool)
    return sorted(name for name, value in adapter.items() if name not in left_out and isinstance(value, plain))


def _missing_processor(name: str) -> ValueError:
    return ValueError(
        f"{name} has no processor (processor_config.json), so its preprocessing is not known: save the processor of the "
        "training there with processor.save_pretrained(folder), or pass it to AVTrainer as processing_class"
    )


def protocol_for(config: PreTrainedConfig, data: str, **numbers: Any) -> ViewProtocol:
    """Returns the published protocol of an architecture, with `numbers` replaced (`choose_protocol`).

    The protocol is that for the benchmark `data`, if the paper states one. The only view of a model for event localisation
    is the whole clip.

    Raises:
        ValueError: values that `choose_protocol` refuses, several views for event localisation, or the maximum over views
            for a model that predicts one class per clip.
    """
    task = task_of_config(config)
    name = next((key for key in (f"{config.model_type}/{data}", config.model_type) if key in PROTOCOLS), None)
    if task.whole_clip:
        name = None
    source = "the whole clip" if task.whole_clip else "no published protocol"
    protocol = choose_protocol(name, **numbers) or ViewProtocol(1, 1, "mean_logits", source)
    check_views(protocol, task, config, ("--views", "--crops", "--aggregation"), labels_decide=False)
    return protocol


def check_modalities(
    modalities: Sequence[str] | None, config: PreTrainedConfig | None = None, data: str = ""
) -> tuple[str, ...]:
    """Returns the requested keys of `MODALITY_SETS` without duplicates.

    Args:
        modalities: requested keys; None requests all keys that the model and the benchmark support.
        config: config of the model; None checks only the names of the keys.
        data: name of the benchmark.

    Raises:
        ValueError: no key, an unknown key, a modality that the model has no stream for, or video on an audio-only benchmark.
    """
    wanted = tuple(dict.fromkeys(MODALITY_SETS if modalities is None else modalities))
    unknown = [name for name in wanted if name not in MODALITY_SETS]
    if unknown or not wanted:
        raise ValueError(
            f"modalities (--modalities) must be some of {', '.join(MODALITY_SETS)} (both, audio, video), got "
            f"{', '.join(unknown) or 'none'}"
        )
    reasons = {name: None if config is None else _unsupported_reason(name, config, data) for name in wanted}
    possible = tuple(name for name, reason in reasons.items() if reason is None)
    if possible == wanted or (modalities is None and possible):
        return possible
    name, reason = next((name, reason) for name, reason in reasons.items() if reason is not None)
    raise ValueError(f"modalities (--modalities) {name}: {reason}")


def _unsupported_reason(name: str, config: PreTrainedConfig, data: str) -> str | None:
    missing = set(MODALITY_SETS[name]) - set(getattr(config, "modalities", MODALITIES))
    if missing:
        return f"the model has no {' and no '.join(sorted(missing))} stream"
    task = task_of_config(config)
    needed = set(task.needed_modalities) - set(MODALITY_SETS[name])
    if needed:
        return f"a model for {task.title} needs {' and '.join(sorted(needed))}"
    if name != "a" and data in BENCHMARKS and not BENCHMARKS[data].has_video:
        return f"{BENCHMARKS[data].title} has no video: pass a (audio)"
    return None


def settings_of(config: PreTrainedConfig, processor: AVFusionProcessor) -> dict[str, Any]:
    """Returns the settings that identify a model in a report. Runs with equal settings are averaged.

    Of the training, only the windows are included: runs with different seeds, learning rates or dropout are averaged.
    """
    window = processor.window_policy
    settings = {
        name: list(value) if isinstance(value := getattr(config, name, None), tuple) else value for name in SETTINGS
    }
    if isinstance(settings["modalities"], (list, tuple)):
        settings["modalities"] = sorted(settings["modalities"])
    settings["trained_span"] = _span_of(window)
    settings["trained_synchronous"] = window.synchronous
    if window.segments is not None:
        settings["trained_segments"] = window.segments
    return {**settings, **getattr(config, "report_settings", {}), **getattr(config, "adapter_settings", {})}


def _span_of(window: WindowPolicy) -> float | None:
    """The seconds that the frames of a window cover; None for segments, whose frames are those of the whole clip."""
    return None if window.segments is not None else round(window.stride * window.num_frames, 6)


@dataclass(frozen=True)
class Pass:
    """One pass over the clips: its samples, their views, and its evaluations, without scores."""

    samples: ClipStream
    protocol: ViewProtocol
    evaluations: list[dict[str, Any]]


def plan_passes(
    name: str,
    config: PreTrainedConfig,
    processor: AVFusionProcessor,
    clips: EvaluationSet,
    *,
    given: Sequence[str] = ("av", "a", "v"),
    conditions: Sequence[Condition] = (Condition(),),
    protocol: ViewProtocol,
    seed: int = 0,
) -> list[Pass]:
    """Plans the passes of `evaluate_checkpoint`, one for each condition.

    Raises:
        ValueError: unsupported modalities, several crops with a processor that does not support them, or a condition other
            than the default for a model that labels segments of the whole clip.
    """
    given = check_modalities(given, config)
    settings, passes = settings_of(config, processor), []
    for condition in conditions:
        whole = clips.task.whole_clip or processor.window_policy.segments is not None
        if whole and condition != Condition():
            raise ValueError(
                f"spans (--spans) and random windows (--sampling) are not supported for {clips.task.title}: the model sees the "
                "whole clip, so its window is the whole clip; leave them out"
            )
        wanted = ("av",) if condition.sampling != "spread" and "av" in given else given
        window = {**processor.window, "synchronous": condition.sampling != "async"}
        if condition.span is not None:
            window["span"] = condition.span
        sampler = copy.deepcopy(processor)
        sampler.window = (
            window if condition.sampling != "spread" else {**window, "synchronous": settings["trained_synchronous"]}
        )
        transform = view_transform(
            sampler,
            protocol,
            clips.task.read_labels(clips.columns, clips.fields),
            transform_class=clips.task.transform_class,
            mode="eval" if condition.sampling == "spread" else "train",
            modalities=tuple(sorted({modality for each in given for modality in MODALITY_SETS[each]})),
            allow_urls=clips.allow_urls,
        )
        about = {
            "checkpoint": name,
            "revision": getattr(config, "_commit_hash", None),
            "settings": settings,
            "partition": clips.partition,
        }
        how = {
            "span": _span_of(sampler.window_policy),
            "sampling": condition.sampling,
            "views": protocol.num_views,
            "crops": protocol.num_crops,
            "aggregation": protocol.aggregation,
            "seed": seed,
        }
        number = None if hasattr(clips.rows, "__len__") else clips.num_rows
        samples = ClipStream(clips.rows, transform, seed=seed, num_rows=number)
        passes.append(Pass(samples, protocol, [{**about, "given": each, **how} for each in wanted]))
    return passes


def evaluate_checkpoint(
    name: str,
    model: PreTrainedModel,
    processor: AVFusionProcessor,
    clips: EvaluationSet,
    *,
    given: Sequence[str] = ("av", "a", "v"),
    conditions: Sequence[Condition] = (Condition(),),
    protocol: ViewProtocol,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Scores a checkpoint under every condition with each of the modality sets.

    Args:
        name: name of the checkpoint in the report.
        given: keys of `MODALITY_SETS`. For random windows only "av" is used, if it is requested: synchronous and
            asynchronous windows do not differ for one modality.
        seed: seed of random windows (`Condition.sampling`). With the same seed a clip gets the same windows.
        options: `batch_size`, `views_per_step`, `num_workers`, `progress`, `ranks` of `predict_modalities`.

    Returns:
        `[{"checkpoint", "settings", "partition", "given", "span", "sampling", "views", "crops", "aggregation", "seed", "clips",
        "skipped", "lacking", "metrics": {...}, "per_class": {head: {"average_precision", "positives"}}}, ...]`, with one
        dictionary for each condition and modality set. "lacking" counts the clips without the requested modality. If no
        clip has a modality, its entry is absent and a warning is logged. For event localisation, average precision and
        positives are computed over segments.
    """
    classes = ModelClasses.matched(model.config, clips)
    passes = plan_passes(
        name, model.config, processor, clips, given=given, conditions=conditions, protocol=protocol, seed=seed
    )
    return [result for each in passes for result in evaluate_pass(model, each, classes, clips.task, **options)]


def evaluate_pass(
    model: PreTrainedModel, planned: Pass, classes: ModelClasses, task: Task, **options: Any
) -> list[dict[str, Any]]:
    """Scores a checkpoint in one pass; arguments and result as in `evaluate_checkpoint`."""
    predictions = predict_modalities(
        model,
        planned.samples,
        [evaluation["given"] for evaluation in planned.evaluations],
        aggregation=planned.protocol.aggregation,
        reduce=True,
        **options,
    )
    return [
        {**evaluation, **_scores(predictions[evaluation["given"]], classes, task, model.config)}
        for evaluation in planned.evaluations
        if evaluation["given"] in predictions
    ]


def _scores(
    predictions: ViewPredictions, classes: ModelClasses, task: Task, config: PreTrainedConfig
) -> dict[str, Any]:
    logits, labels = predictions.logits, classes.to_model_labels(predictions.labels)
    metrics = task.report_names(task.metrics(logits, labels, config, **predictions.metric_inputs), config)
    counts = {"clips": len(logits), "skipped": predictions.skipped, "lacking": predictions.missing_modality}
    return {**counts, "metrics": metrics, "per_class": task.per_class(logits, labels, classes.names, config)}


def conditions_of(
    spans: Sequence[float] = (), samplings: Sequence[str] = (), processor: AVFusionProcessor | None = None
) -> list[Condition]:
    """Returns the default condition, then one condition for each span and each sampling, without duplicates.

    The span of the processor itself is the default condition.
    """
    own = None
    if processor is not None:
        own = _span_of(processor.window_policy)
    conditions = [Condition(), *(Condition(span=span) for span in spans), *(Condition(sampling=s) for s in samplings)]
    conditions = [replace(each, span=None) if each.span == own else each for each in conditions]
    return list(dict.fromkeys(conditions))
