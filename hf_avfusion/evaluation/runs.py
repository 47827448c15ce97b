"""A checkpoint on a benchmark: both loaded, checked to fit each other, and scored under one condition after another."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.benchmarks import BENCHMARKS, coverage, evaluation_split, load_benchmark
from ..data.folders import find_evaluation_split, load_folder
from ..data.heads import head_fields
from ..data.streaming import ClipStream
from .metrics import (
    average_precision_per_class,
    event_localization_accuracy,
    multi_head_accuracies,
    multi_label_metrics,
    top_k_accuracies,
)
from .views import GIVEN, PROTOCOLS, ViewPredictions, ViewProtocol, choose_protocol, predict_given, view_transform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..data.records import Benchmark
    from ..models.processing_avfusion import AVFusionProcessor
    from ..training.ranks import Ranks

# Benchmarks whose official task is not to name the class of a clip, and what a model needs for them.
OTHER_TASKS = {
    "event localization": "a class for every second",
    "segmentation": "a mask for every frame",
    "question answering": "an answer to a question",
}
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


@dataclass
class EvaluationSet:
    """The clips that checkpoints are scored on.

    Args:
        name, title, split, source, variant: of the benchmark; a folder's path is its name.
        rows: of `load_benchmark` or `load_folder`; num_rows: how many, None if not known beforehand.
        columns: label columns, one per head; names: the classes of each, in the order of the rows' numbers.
        multi_label: several classes per clip.
        metric: what is officially reported; "" for a folder.
        coverage: clips that are there (`present`), that should be (`expected`), that are annotated but not there
            (`vanished`); None where that is not known. Clips of a Hub repository are counted when they are read.
        num_segments: where the one column holds a class for each of so many equal parts of a clip (event localisation).
    """

    name: str
    title: str
    split: str
    source: str | None
    variant: str | None
    rows: Any
    num_rows: int | None
    columns: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    multi_label: bool
    metric: str = ""
    coverage: dict[str, int | None] = field(default_factory=dict)
    num_segments: int | None = None

    @property
    def partition(self) -> str | None:
        """The fold or split of several whose scores are averaged; None where the benchmark has one division only."""
        return BENCHMARKS[self.name].partition(self.variant) if self.name in BENCHMARKS else None

    def describe(self) -> dict[str, Any]:
        """All but the rows, for a report."""
        kept = (
            "name",
            "title",
            "split",
            "source",
            "variant",
            "partition",
            "columns",
            "metric",
            "coverage",
            "num_segments",
        )
        return {key: list(value) if isinstance(value := getattr(self, key), tuple) else value for key in kept}


def load_checkpoint(name: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, AVFusionProcessor]:
    """Model (in evaluation mode) and processor of a checkpoint folder or Hub repository.

    Raises:
        ValueError: nothing there, an architecture without a head for clips, no processor beside the weights, or weights
            that do not fill the model (a base model has no head to score).
    """
    from transformers import AutoConfig, AutoProcessor

    from ..auto import AutoModelForAudioVisualClassification
    from ..models.processing_avfusion import AVFusionProcessor

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
    known = AutoModelForAudioVisualClassification._model_mapping
    if type(config) not in known:
        raise ValueError(
            f"{name} is a {config.model_type}, which has no head for audio-visual classification; there are: "
            f"{', '.join(each.model_type for each in known)}"
        )
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise _without_processor(name) from error
    if not isinstance(processor, AVFusionProcessor):
        raise _without_processor(name)
    model, report = AutoModelForAudioVisualClassification.from_pretrained(name, output_loading_info=True)
    problems = {kind: sorted(map(str, tensors)) for kind, tensors in report.items() if tensors}
    if problems:
        raise ValueError(f"{name} does not hold the weights of a {type(model).__name__}: {problems}")
    return model.eval().to(device), processor


def _without_processor(name: str) -> ValueError:
    return ValueError(
        f"{name} has no processor (processor_config.json), so how its inputs were made is not known: save the one it was "
        "trained with there, processor.save_pretrained(folder); AVTrainer does so given processing_class"
    )


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split, before a model says which of their labels it is scored by.

    record: of the benchmark's variant, None of a folder; the rest as in `EvaluationSet`.
    """

    name: str
    title: str
    split: str
    source: str | None
    variant: str | None
    rows: Any
    num_rows: int | None
    coverage: dict[str, int | None]
    record: Benchmark | None = None


def load_rows(
    data: str, split: str | None = None, *, source: str | None = None, variant: str | None = None
) -> SplitRows:
    """The rows of a split of a benchmark by name, or of a folder of videos or its CSV file; videos undecoded.

    Args:
        data: a key of `BENCHMARKS`, or a path; source, variant: of a benchmark.
        split: None is the one that scores a model: `evaluation_split` of a benchmark, `find_evaluation_split` of a folder.

    Raises:
        ValueError: an unknown split or variant, `source` or `variant` beside a folder, and what loading refuses.
        FileNotFoundError: nothing of that name.
    """
    if data in BENCHMARKS:
        record = BENCHMARKS[data].variant(variant)
        split = evaluation_split(record, split)
        where = {"source": source, "variant": variant}
        rows = load_benchmark(data, split, **where)
        found, number = {"present": None, "expected": record.splits[split], "vanished": None}, None
        if source is not None and Path(source).is_dir():
            covered = coverage(data, split, **where)
            number = covered.present
            vanished = None if covered.annotated is None else len(covered.vanished)
            found = {"present": number, "expected": covered.expected, "vanished": vanished}
        return SplitRows(data, record.title, split, source, variant, rows, number, found, record)
    if not Path(data).exists():
        raise FileNotFoundError(f"{data} is neither a benchmark ({', '.join(BENCHMARKS)}) nor a folder or CSV file")
    if source is not None or variant is not None:
        raise ValueError(
            "source= (--source) and variant= (--variant) belong to a benchmark, but "
            f"{data} is a folder or file of your own"
        )
    split = split or find_evaluation_split(data)
    rows = load_folder(data, split)
    found = {"present": len(rows), "expected": None, "vanished": None}
    return SplitRows(data, Path(data).resolve().name, split, None, None, rows, len(rows), found)


def label_rows(rows: SplitRows, config: PreTrainedConfig, label_columns: Sequence[str] | None = None) -> EvaluationSet:
    """The rows as a model would be scored on them.

    Args:
        config: of the model.
        label_columns: one per head of the model, in the heads' order. By default the columns that are called as the
            heads are; the benchmark's column with a class for each part of a clip, for a model with
            `config.num_segments`; or the usual label.

    Raises:
        ValueError: a benchmark of another task (without `label_columns` that name a class of the clip), or a number or
            kind of columns that is not that of the heads.
    """
    record, segments = rows.record, getattr(config, "num_segments", None)
    kinds = record.columns if record is not None else {}
    localises = record is not None and record.task == "event localization" and segments is not None
    if record is not None and record.task in OTHER_TASKS and not localises and label_columns is None:
        of_clip = [column for column in record.label_columns if kinds[column] == "class"]
        raise ValueError(
            f"{record.title} is a benchmark of {record.task}: it needs {OTHER_TASKS[record.task]}, and this model gives one "
            f"answer per clip. To score the class of the clip give label_columns= (--label_columns) {' or '.join(of_clip)}"
        )
    heads = list(config.class_splits or []) if getattr(config, "class_splits", None) else []
    usual = record.label_columns if record is not None else ("label",)
    if label_columns is None:
        known = [name for name in heads if name in rows.rows.features]
        if heads and known != heads:
            remedy = f"give label_columns= (--label_columns), one per head in their order, of: {', '.join(usual)}"
            if len(usual) < len(heads):
                remedy = f"its labels are {', '.join(usual)} alone, and scoring takes one for each head"
            raise ValueError(
                f"the model has the heads {', '.join(heads)}, and {rows.title} no columns of these names: {remedy}"
            )
        of_parts = [column for column, kind in kinds.items() if kind == "classes"] if segments is not None else []
        label_columns = heads or of_parts[:1] or usual[:1]
    if len(label_columns) != max(len(heads), 1):
        raise ValueError(
            f"label_columns (--label_columns) {', '.join(label_columns)} are {len(label_columns)}, but the model has "
            f"{max(len(heads), 1)} head{'s' if len(heads) > 1 else ''}{': ' + ', '.join(heads) if heads else ''}"
        )
    if segments is not None and getattr(rows.rows.features.get(label_columns[0]), "names", None):
        raise ValueError(
            f"the model gives a class for each of {segments} parts of a clip (event localisation), but {label_columns[0]} of "
            f"{rows.title} holds one for the whole clip: give label_columns= (--label_columns) a column of lists of classes"
        )
    fields = head_fields(rows.rows.features, label_columns, segments)
    names, start = {}, 0
    for column in label_columns:
        size = (fields["class_splits"] or {column: len(fields["id2label"])})[column]
        names[column] = tuple(fields["id2label"][start + index] for index in range(size))
        start += size
    return EvaluationSet(
        rows.name, rows.title, rows.split, rows.source, rows.variant, rows.rows, rows.num_rows, tuple(label_columns),
        names, fields["problem_type"] == "multi_label_classification", record.metric if record is not None else "",
        rows.coverage, segments,
    )  # fmt: skip


def load_evaluation_set(
    data: str,
    split: str | None = None,
    *,
    source: str | None = None,
    variant: str | None = None,
    label_columns: Sequence[str] | None = None,
    config: PreTrainedConfig,
) -> EvaluationSet:
    """`load_rows` and `label_rows` in one; arguments and errors are theirs."""
    return label_rows(load_rows(data, split, source=source, variant=variant), config, label_columns)


@dataclass(frozen=True)
class Heads:
    """The heads of a model over the classes of an evaluation set.

    classes: head -> the model's class names; numbers: for each column of the set, its class numbers as the model's.
    """

    classes: dict[str, tuple[str, ...]]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def fitted(cls, config: PreTrainedConfig, clips: EvaluationSet) -> Heads:
        """Classes are matched by their names, so their numbers may differ.

        Raises:
            ValueError: a class of the clips that the model does not know, a model of other classes than the benchmark's,
                one label per clip on one side and several on the other, or another number of parts of a clip.
        """
        segments = getattr(config, "num_segments", None)
        if segments != clips.num_segments:
            kinds = [
                f"a class for each of {n} parts of a clip" if n else "one answer per clip"
                for n in (segments, clips.num_segments)
            ]
            raise ValueError(f"the model gives {kinds[0]}, but the clips' labels are read as {kinds[1]}")
        sizes = dict(config.class_splits) if getattr(config, "class_splits", None) else {"label": config.num_labels}
        multi_label = config.problem_type == "multi_label_classification"
        if multi_label != clips.multi_label:
            kinds = ("one class", "any number of classes")
            raise ValueError(
                f"the model was trained to give {kinds[multi_label]} per clip (problem_type={config.problem_type}), but the "
                f"column {clips.columns[0]} of {clips.title} holds {kinds[clips.multi_label]}"
            )
        classes, numbers, start = {}, [], 0
        for (head, size), column in zip(sizes.items(), clips.columns):
            own = tuple(str(config.id2label[start + index]) for index in range(size))
            start += size
            theirs = clips.names[column]
            unknown = [name for name in theirs if name not in own]
            # The folder of a user may hold some of the classes; a benchmark of other classes is another benchmark.
            spare = [name for name in own if name not in theirs] if clips.name in BENCHMARKS else []
            if unknown or spare or len(set(own)) < len(own):
                raise ValueError(_other_classes(head, column, clips, own, unknown, spare))
            classes[head] = own
            numbers.append(tuple(own.index(name) for name in theirs))
        return cls(classes, tuple(numbers))

    def own_labels(self, labels: torch.Tensor, multi_label: bool) -> np.ndarray:
        """The set's labels with the model's class numbers: long [clips], [clips, heads] or [clips, segments], or multi-hot
        [clips, classes].
        """
        if multi_label:
            own = torch.zeros(len(labels), len(next(iter(self.classes.values()))), dtype=labels.dtype)
            own[:, list(self.numbers[0])] = labels
            return own.numpy()
        if len(self.numbers) == 1:  # one head, perhaps for several parts of a clip
            return torch.tensor(self.numbers[0])[labels].numpy()
        columns = labels.unbind(dim=1)
        return torch.stack([torch.tensor(table)[column] for table, column in zip(self.numbers, columns)], dim=1).numpy()


def _other_classes(head, column, clips, own, unknown, spare) -> str:
    text = f"the classes of the model's head {head} are not those of the column {column} of {clips.title}: "
    if all(name == f"LABEL_{index}" for index, name in enumerate(own)):
        return (
            text + f"its id2label holds no names ({own[0]}, ...), so they cannot be matched; set id2label in its config"
        )
    if len(set(own)) < len(own):
        return text + "its id2label gives two classes one name, so they cannot be matched"
    parts = []
    if unknown:
        parts.append(f"the model does not know {_some(unknown)}")
    if spare:
        parts.append(f"{clips.title} does not have {_some(spare)}")
    known = f"; variants of the benchmark: {', '.join(v)}" if (v := _variants(clips.name)) else ""
    return text + "; ".join(parts) + known


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _variants(name: str) -> Iterable[str]:
    return BENCHMARKS[name].variants if name in BENCHMARKS else ()


def protocol_for(config: PreTrainedConfig, data: str, **numbers: Any) -> ViewProtocol:
    """The published protocol of an architecture (on this benchmark, where its paper says so) with some of its numbers
    replaced (`choose_protocol`). A model for event localisation sees each clip whole, once.

    Raises:
        ValueError: what `choose_protocol` refuses, several views for event localisation, or the maximum over views for
            a model that gives one class per clip.
    """
    if getattr(config, "num_segments", None) is not None:
        protocol = choose_protocol(**numbers) or ViewProtocol(1, 1, "mean_logits", "each clip whole")
        if protocol.total > 1:
            raise ValueError(
                f"{protocol.num_views} views (--views) x {protocol.num_crops} crops (--crops) of a model for event "
                "localisation: its labels are of parts of the whole clip, so it sees each clip whole, once; leave them out"
            )
        return protocol
    name = next((key for key in (f"{config.model_type}/{data}", config.model_type) if key in PROTOCOLS), None)
    protocol = choose_protocol(name, **numbers) or ViewProtocol(1, 1, "mean_logits", "no published protocol")
    if protocol.aggregation == "max_logits" and config.problem_type != "multi_label_classification":
        raise ValueError(
            "aggregation (--aggregation) max_logits is for models of several labels per clip; the views of this one, which "
            "gives one class, are averaged: mean_logits or mean_probabilities"
        )
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
    Heads.fitted(config, clips)
    settings, passes = settings_of(config, processor), []
    for condition in conditions:
        if clips.num_segments is not None and condition != Condition():
            raise ValueError(
                "spans (--spans) and drawn windows (--sampling) are not for a model of event localisation: its labels are of "
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
            clips.columns,
            mode="eval" if condition.sampling == "spread" else "train",
            num_labels=sum(map(len, clips.names.values())),
            num_segments=clips.num_segments,
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
    heads = Heads.fitted(config, clips)
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
        )
        results += [
            {**evaluation, **_scores(predictions[evaluation["given"]], heads, clips)}
            for evaluation in each.evaluations
            if evaluation["given"] in predictions
        ]
    return results


def _has_length(rows: Any) -> bool:
    return hasattr(rows, "__len__")


def _scores(predictions: ViewPredictions, heads: Heads, clips: EvaluationSet) -> dict[str, Any]:
    multi_label = clips.multi_label
    labels = heads.own_labels(predictions.labels, multi_label)
    logits = predictions.logits.numpy()
    sizes = {head: len(names) for head, names in heads.classes.items()}
    if clips.num_segments is not None:
        metrics = {"accuracy": event_localization_accuracy(logits, labels)}  # named as the Trainer names it
        labels = labels.reshape(-1)
    elif multi_label:
        metrics = multi_label_metrics(logits, labels)
    elif len(sizes) > 1:
        metrics = multi_head_accuracies(logits, labels, sizes)
        if list(sizes) == ["verb", "noun"]:  # together they are called the action
            metrics = {name.replace("_joint", "_action"): value for name, value in metrics.items()}
    else:
        metrics = top_k_accuracies(logits, labels)
    per_class = {}
    rows = predictions.logits.flatten(0, -2)  # [clips, classes], or [parts of all clips, classes]
    for number, (head, scores) in enumerate(zip(sizes, rows.split(list(sizes.values()), dim=1))):
        if multi_label:
            targets = labels
        else:
            # Comparable between clips, as a single logit is not.
            scores = scores.log_softmax(dim=1)
            targets = np.eye(sizes[head], dtype=np.int64)[labels.reshape(len(labels), -1)[:, number]]
        per_class[head] = {
            "average_precision": average_precision_per_class(scores.numpy(), targets).tolist(),
            "positives": targets.sum(axis=0).astype(int).tolist(),
        }
    counts = {"clips": len(logits), "skipped": predictions.skipped, "lacking": predictions.lacking}
    return {**counts, "metrics": metrics, "per_class": per_class}


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
