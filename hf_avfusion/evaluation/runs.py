"""A checkpoint on a benchmark: both loaded, checked to fit each other, and scored under one condition after another."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.benchmarks.loading import BENCHMARKS
from ..data.streaming.clip_stream import ClipStream
from ..tasks import task_of_config
from .clips import EvaluationSet, ModelClasses
from .views import (
    GIVEN,
    PROTOCOLS,
    ViewPredictions,
    ViewProtocol,
    check_views,
    choose_protocol,
    predict_given,
    view_transform,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..data.streaming.ranks import Ranks
    from ..processing.processing_avfusion import AVFusionProcessor
    from ..tasks import Task

# spread: the protocol's windows, evenly over the clip. sync, async: windows drawn by chance as in training, at one place of
# the clip for both tracks, or at a place of its own for each (MBT supplementary A.4).
SAMPLINGS = ("spread", "sync", "async")
TRACKS = {"pixel_values": "video", "input_features": "audio"}

# Fields of configurations that make another model of the same inputs, or take other inputs.
SETTINGS = (
    "model_type", "fusion", "fusion_layer", "share_encoder", "num_hidden_layers", "hidden_size", "modalities",
    "encoder_strategy", "num_fusion_layers", "num_bottleneck_tokens", "bottleneck_update", "test_with_bottlenecks", "readout",
    "num_attention_heads", "intermediate_size", "position_embeddings", "use_modality_tokens", "representation_size",
    "image_size", "patch_size", "tubelet_size", "num_frames", "num_sampled_frames", "num_mel_bins", "spectrogram_length",
)  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """How the windows of an evaluation are taken: `span`, the seconds over which the frames are spread (None: as the
    checkpoint's processor has it; the sound is always as long as the model's spectrogram), and one of `SAMPLINGS`.
    """

    span: float | None = None
    sampling: str = "spread"

    def __post_init__(self) -> None:
        if self.span is not None and not 0 < self.span < float("inf"):
            raise ValueError(f"a span (--spans) is a positive number of seconds, got {self.span}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling (--sampling) is one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")


def load_checkpoint(name: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, AVFusionProcessor]:
    """Model (in evaluation mode) and processor of a checkpoint folder or Hub repository.

    Raises:
        ValueError: nothing there, an architecture without a head for clips, no processor beside the weights, or weights
            that do not fill the model (a base model has no head to score).
    """
    from transformers import AutoConfig, AutoProcessor

    from ..processing.processing_avfusion import AVFusionProcessor

    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name} is no checkpoint: neither a folder nor the id of a Hub repository (owner/name)")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        within = sorted(str(path.parent) for path in Path(name).glob("*/config.json"))
        raise ValueError(
            f"{name} is no checkpoint: it holds no config.json"
            + (f"; give the folders in it that do: {' '.join(within)}" if within else "")
        )
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is no checkpoint: a folder with config.json, or a Hub repository ({error})"
        ) from error
    task = task_of_config(config)
    known = task.auto_class._model_mapping
    if type(config) not in known:
        raise ValueError(
            f"{name} is a {config.model_type}, which has no head for {task.title}; there are: "
            f"{', '.join(each.model_type for each in known)}"
        )
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _without_processor(name) from error
    if not isinstance(processor, AVFusionProcessor):
        raise _without_processor(name)
    model, report = task.auto_class.from_pretrained(name, output_loading_info=True)
    problems = {kind: sorted(map(str, tensors)) for kind, tensors in report.items() if tensors}
    if problems:
        raise ValueError(f"{name} does not hold the weights of a {type(model).__name__}: {problems}")
    return model.eval().to(device), processor


def _without_processor(name: str) -> ValueError:
    return ValueError(
        f"{name} has no processor (processor_config.json), so how its inputs were made is not known: save the one it was "
        "trained with there, processor.save_pretrained(folder); AVTrainer does so given processing_class"
    )


def protocol_for(config: PreTrainedConfig, data: str, **numbers: Any) -> ViewProtocol:
    """The published protocol of an architecture (on this benchmark, where its paper says so) with some of its numbers
    replaced (`choose_protocol`). A model for event localisation sees each clip whole, once.

    Raises:
        ValueError: what `choose_protocol` refuses, several views for event localisation, or the maximum over views for
            a model that gives one class per clip.
    """
    task = task_of_config(config)
    name = next((key for key in (f"{config.model_type}/{data}", config.model_type) if key in PROTOCOLS), None)
    if task.whole_clip:
        name = None
    chosen = "each clip whole" if task.whole_clip else "no published protocol"
    protocol = choose_protocol(name, **numbers) or ViewProtocol(1, 1, "mean_logits", chosen)
    check_views(protocol, task, config, ("--views", "--crops", "--aggregation"))
    return protocol


def check_given(given: Sequence[str] | None, config: PreTrainedConfig | None = None, data: str = "") -> tuple[str, ...]:
    """The keys of `GIVEN` that were asked for, once each; None asks for all that the model and the benchmark (`data`) have
    the streams and tracks for. Without a `config` the names alone are checked.

    Raises:
        ValueError: none, an unknown one, one that needs a stream the model does not have, or pictures of a benchmark
            that has none.
    """
    wanted = tuple(dict.fromkeys(GIVEN if given is None else given))
    unknown = [name for name in wanted if name not in GIVEN]
    if unknown or not wanted:
        raise ValueError(
            f"modalities (--modalities) are {', '.join(GIVEN)} (both, audio, video), got {', '.join(unknown) or 'none'}"
        )
    reasons = {name: None if config is None else _cannot_be_given(name, config, data) for name in wanted}
    possible = tuple(name for name, reason in reasons.items() if reason is None)
    if possible == wanted or (given is None and possible):
        return possible
    name, reason = next((name, reason) for name, reason in reasons.items() if reason is not None)
    raise ValueError(f"modalities (--modalities) {name}: {reason}")


def _cannot_be_given(name: str, config: PreTrainedConfig, data: str) -> str | None:
    streams = tuple(getattr(config, "modalities", ("video", "audio")))
    if lacking := {TRACKS[each] for each in GIVEN[name]} - set(streams):
        return f"the model has no {' and no '.join(sorted(lacking))} stream"
    if name != "a" and data in BENCHMARKS and BENCHMARKS[data].task == "audio classification":
        return f"{BENCHMARKS[data].title} has no pictures, only a can be given"
    return None


def settings_of(config: PreTrainedConfig, processor: AVFusionProcessor) -> dict[str, Any]:
    """What tells runs apart in a report; runs that agree in all of it are averaged. Nothing of the training but the windows:
    runs may differ in seed, learning rate or dropout.
    """
    window = processor.window_policy
    settings = {
        name: list(value) if isinstance(value := getattr(config, name, None), tuple) else value for name in SETTINGS
    }
    if isinstance(settings["modalities"], (list, tuple)):
        settings["modalities"] = sorted(settings["modalities"])
    settings["trained_span"] = round(window.stride * window.num_frames, 6)
    settings["trained_synchronous"] = window.synchronous
    return settings


@dataclass(frozen=True)
class Pass:
    """One pass over the clips: what makes their samples, and the evaluations that come of it, without their scores."""

    transform: Callable[..., dict[str, Any]]
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
    """What `evaluate_checkpoint` does with the same arguments, a pass for each condition.

    Raises:
        ValueError: classes or modalities that do not fit, crops that the processor leaves no room for, or another
            condition than the plain one for a model whose labels are of parts of the whole clip.
    """
    given = check_given(given, config)
    settings, passes = settings_of(config, processor), []
    for condition in conditions:
        if clips.task.whole_clip and condition != Condition():
            raise ValueError(
                f"spans (--spans) and drawn windows (--sampling) are not for a model of {clips.task.title}: its labels are of "
                "parts of the whole clip, so its window is the whole clip; leave them out"
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
            mode="eval" if condition.sampling == "spread" else "train",
            modalities=tuple(sorted({TRACKS[name] for each in given for name in GIVEN[each]})),
        )
        about = {
            "checkpoint": name,
            "revision": getattr(config, "_commit_hash", None),
            "settings": settings,
            "partition": clips.partition,
        }
        how = {
            "span": round(sampler.window_policy.stride * sampler.window_policy.num_frames, 6),
            "sampling": condition.sampling,
            "views": protocol.num_views,
            "crops": protocol.num_crops,
            "aggregation": protocol.aggregation,
            "seed": seed,
        }
        passes.append(Pass(transform, [{**about, "given": each, **how} for each in wanted]))
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
    batch_size: int = 4,
    views_per_step: int = 16,
    num_workers: int = 0,
    progress: bool = False,
    ranks: Ranks | None = None,
) -> list[dict[str, Any]]:
    """Scores a checkpoint under every condition, given each of the modalities; one plain dictionary for each of both.

    Args:
        name: of the checkpoint, for the report.
        given: where windows are drawn, "av" alone counts if it is among them: one track has nothing to be synchronous to.
        seed: of windows drawn by chance (`Condition.sampling`); the same clip gets the same windows for one seed.
        the rest: as in `predict_given`.

    Returns:
        `[{"checkpoint", "settings", "partition", "given", "span", "sampling", "views", "crops", "aggregation", "seed", "clips",
        "skipped", "lacking", "metrics": {...}, "per_class": {head: {"average_precision", "positives"}}}, ...]`; nothing
        for a track that no clip has, which a warning tells (`predict_given`). In event localisation average precision
        and positives are of the clips' parts.
    """
    config, results = model.config, []
    classes = ModelClasses.matched(config, clips)
    planned = plan_passes(
        name, config, processor, clips, given=given, conditions=conditions, protocol=protocol, seed=seed
    )
    for each in planned:
        number = None if _has_length(clips.rows) else clips.num_rows
        predictions = predict_given(
            model,
            ClipStream(clips.rows, each.transform, seed=seed, num_rows=number),
            [evaluation["given"] for evaluation in each.evaluations],
            aggregation=protocol.aggregation,
            batch_size=batch_size,
            views_per_step=views_per_step,
            num_workers=num_workers,
            progress=progress,
            ranks=ranks,
            reduce=True,
        )
        results += [
            {**evaluation, **_scores(predictions[evaluation["given"]], classes, clips.task, config)}
            for evaluation in each.evaluations
            if evaluation["given"] in predictions
        ]
    return results


def _has_length(rows: Any) -> bool:
    return hasattr(rows, "__len__")


def _scores(
    predictions: ViewPredictions, classes: ModelClasses, task: Task, config: PreTrainedConfig
) -> dict[str, Any]:
    logits, labels = predictions.logits, classes.to_model_labels(predictions.labels)
    metrics = task.metrics(logits, labels, config)
    if list(classes.names) == ["verb", "noun"]:  # together they are called the action
        metrics = {name.replace("_joint", "_action"): value for name, value in metrics.items()}
    counts = {"clips": len(logits), "skipped": predictions.skipped, "lacking": predictions.lacking}
    return {**counts, "metrics": metrics, "per_class": task.per_class(logits, labels, classes.names, config)}


def conditions_of(
    spans: Sequence[float] = (), samplings: Sequence[str] = (), processor: AVFusionProcessor | None = None
) -> list[Condition]:
    """The plain evaluation first, then one condition for each span and each sampling, none of them twice.

    A span that the processor has anyway is the plain evaluation.
    """
    own = None
    if processor is not None:
        own = round(processor.window_policy.stride * processor.window_policy.num_frames, 6)
    conditions = [Condition(), *(Condition(span=span) for span in spans), *(Condition(sampling=s) for s in samplings)]
    conditions = [replace(each, span=None) if each.span == own else each for each in conditions]
    return list(dict.fromkeys(conditions))
