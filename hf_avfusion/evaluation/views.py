"""Published evaluation protocols with several views per clip: temporal windows, spatial crops, and aggregated scores.

    transform = view_transform(processor, PROTOCOLS["mbt"], "label")
    predictions = predict_views(model, ClipStream(rows, transform))
    top_k_accuracies(predictions.logits, predictions.labels)

The result of every aggregation can be used like the logits of a single view: softmax (of each head) or sigmoid turns it
into probabilities, and every metric accepts it.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..data.streaming.clip_loader import ClipLoader
from ..data.streaming.clip_stream import ClipStream
from ..data.transforms import ClipTransform
from ..media.modalities import INPUT_MODALITIES, MODALITIES, MODEL_INPUTS
from ..models.shared.losses_classification import IGNORED_LABEL
from ..processing.joining import Aggregation, check_aggregation_name
from ..tasks import DEFAULT_TASK, Task, task_of
from ..tasks.task import RowLabels
from .view_checks import input_shapes, stated_views, surplus_axes

if TYPE_CHECKING:
    from ..data.streaming.ranks import Ranks
    from ..processing.processing_avfusion import AVFusionProcessor

logger = logging.getLogger(__name__)


# The modalities that a model can be evaluated with: both, audio only, video only.
MODALITY_SETS = {"av": ("video", "audio"), "a": ("audio",), "v": ("video",)}


@dataclass(frozen=True)
class ViewProtocol:
    """Views of an evaluation: `num_views` temporal windows, and `num_crops` spatial crops of each window."""

    num_views: int
    num_crops: int
    aggregation: Aggregation
    source: str

    def __post_init__(self) -> None:
        if self.num_views < 1 or self.num_crops not in (1, 3):
            raise ValueError(
                f"got num_views={self.num_views} and num_crops={self.num_crops}: pass at least 1 view, and 1 or 3 crops."
            )
        check_aggregation_name(self.aggregation)

    @property
    def total(self) -> int:
        """Number of views of a clip: windows times crops."""
        return self.num_views * self.num_crops


# Key: architecture, or architecture and benchmark if the paper has a protocol for the benchmark.
PROTOCOLS: dict[str, ViewProtocol] = {
    "mbt": ViewProtocol(4, 1, "mean_logits", "scenic projects/mbt, num_test_clips=4"),
    "avmae": ViewProtocol(4, 1, "mean_logits", "scenic projects/av_mae, num_test_clips=4"),
    "mmt": ViewProtocol(
        5, 1, "mean_probabilities", "MMT supplementary (5 views); crop and soft-max from SlowFast's code"
    ),
    "lavish": ViewProtocol(1, 1, "mean_logits", "GenjiB/LAVISH: the segments of the whole clip"),
    # Not described; these are VideoMAE's views for videos of this length (CHOICE).
    "lavish/ucf101": ViewProtocol(5, 3, "mean_probabilities", "VideoMAE: 5 windows of 3 crops"),
    "avbert/ucf101": ViewProtocol(10, 3, "mean_probabilities", "AVBERT: 30 views, sum of soft-max scores"),
    "avbert/esc50": ViewProtocol(10, 1, "mean_probabilities", "AVBERT: ten clips of 2 s, sum of soft-max scores"),
    # The paper states the crops and the maximum over "sequences", but not the number of 30 s sequences per video.
    "avbert/charades": ViewProtocol(1, 3, "max_logits", "AVBERT: three crops, maximum; number of windows not stated"),
}


def choose_protocol(
    name: str | None = None,
    *,
    num_views: int | None = None,
    num_crops: int | None = None,
    aggregation: Aggregation | None = None,
) -> ViewProtocol | None:
    """Returns a protocol of `PROTOCOLS` with the other arguments replaced, or None if all arguments are None.

    Without a name, the defaults are one window, one crop and the mean of the logits.

    Raises:
        ValueError: a name that is not in `PROTOCOLS`, or values that `ViewProtocol` refuses.
    """
    if name is not None and name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}: pass one of {', '.join(PROTOCOLS)}.")
    given = {"num_views": num_views, "num_crops": num_crops, "aggregation": aggregation}
    given = {field: value for field, value in given.items() if value is not None}
    if name is None and not given:
        return None
    return replace(PROTOCOLS[name] if name is not None else ViewProtocol(1, 1, "mean_logits", "chosen"), **given)


def check_views(
    protocol: ViewProtocol | None,
    task: Task,
    config: Any,
    flags: Sequence[str] = ("num_views", "num_crops", "aggregation"),
    labels_decide: bool = True,
) -> None:
    """Checks that a model can be scored with a protocol.

    Args:
        flags: names of the arguments for views, crops and aggregation, for error messages.
        labels_decide: a configuration without a problem type passes, since the kind of the labels decides later.

    Raises:
        ValueError: several views for a task with labels for segments of the whole clip, or an aggregation that the task does
            not support, such as the maximum over views for a model with one class per clip.
    """
    if protocol is None:
        return
    given, remedy = f"{protocol.num_views} views ({flags[0]})", "set it to 1 or leave it out"
    if protocol.num_crops > 1:
        given, remedy = f"{given} x {protocol.num_crops} crops ({flags[1]})", "set both to 1 or leave them out"
    if task.join_views is None and protocol.total > 1:
        raise ValueError(f"{given}: a model for {task.title} takes one view of each clip; {remedy}.")
    if task.whole_clip and protocol.total > 1:
        raise ValueError(f"got {given} for a model for {task.title}: it sees the whole clip in one view; {remedy}.")
    try:
        task.check_aggregation(protocol.aggregation, config, labels_decide)
    except ValueError as error:
        raise ValueError(f"{flags[2]}: {error}.") from error


def view_transform(
    processor: "AVFusionProcessor",
    protocol: ViewProtocol | None,
    labels: RowLabels | Sequence[str] | str = ("label",),
    *,
    transform_class: type[ClipTransform] = ClipTransform,
    **options: Any,
) -> "ClipTransform | CropViews":
    """Makes the `ClipTransform` for the views of a protocol, wrapped in `CropViews` for several crops.

    Args:
        processor: of the model. For several crops, a copy resizes without cropping; the crops have the size of its crop.
        protocol: None means one view in the middle of the clip.
        transform_class: a class derived from `ClipTransform` for a task that names one (`Task.transform`).
        labels, options: arguments of `ClipTransform`.

    Raises:
        ValueError: several crops with a processor whose resized frames are not larger than its crop.
    """
    if protocol is None or protocol.num_crops == 1:
        views = 1 if protocol is None else protocol.num_views
        return transform_class(processor, labels, num_views=views, **options)
    side, size = processor.video_processor.crop_size, processor.video_processor.size
    if side["height"] != side["width"] or not size.get("shortest_edge"):
        raise ValueError(
            f"num_crops={protocol.num_crops} needs a processor that resizes the short side (size={{'shortest_edge': n}}) and "
            f"crops a square, got size={dict(size)} and crop_size={dict(side)}. Use num_crops=1 (evaluate.py: --crops 1)."
        )
    processor = copy.deepcopy(processor)
    processor.video_processor.do_center_crop = False
    transform = transform_class(processor, labels, num_views=protocol.num_views, **options)
    return CropViews(transform, side["height"], protocol.num_crops)


class ViewPredictions(NamedTuple):
    """Predictions, one row per clip.

    If all clips can be decoded, the rows are in the order of the dataset for any number of workers and processes. After a
    clip that cannot be decoded the order may differ; `clip_ids` always names the clip of each row.
    """

    # float32 [clips, classes] or [clips, segments, classes], on the CPU
    logits: torch.Tensor
    # as collated: long [clips], [clips, heads] or [clips, segments], or float [clips, classes]
    labels: torch.Tensor | None
    clip_ids: list[Any]
    skipped: int  # clips that could not be decoded
    missing_modality: int = 0  # decoded clips without the requested modality
    metric_inputs: Mapping[str, torch.Tensor] = {}  # [clips, ...], those of `Task.metric_inputs` that the clips have


def spatial_crops(frames: torch.Tensor, size: int, num_crops: int = 3) -> torch.Tensor:
    """Square crops at equal distances along the longer side, centred on the shorter side.

    Three crops start at 0, ceil((length - size) / 2) and length - size. One crop is the middle one (the test crops of
    SlowFast and AVBERT). If the short side is resized to `size`, three crops cover frames with an aspect ratio of up to 3.

    Args:
        frames: `[..., H, W]`, any dtype.
        size: side of the crops in pixels, at most the short side.
        num_crops: 1 or 3.

    Returns:
        `[num_crops, ..., size, size]`: left to right, or top to bottom if the frames are higher than wide.

    Raises:
        ValueError: `num_crops` is not 1 or 3, or the frames are smaller than the crop.
    """
    height, width = frames.shape[-2:]
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}.")
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"a crop of {size} does not fit into frames of {height}x{width}: resize their short side to at least {size}."
        )
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    offsets = [(top, left)]
    if num_crops == 3:
        if height > width:
            offsets = [(0, left), (top, left), (height - size, left)]
        else:
            offsets = [(top, 0), (top, left), (top, width - size)]
    return torch.stack([frames[..., y : y + size, x : x + size] for y, x in offsets])


class CropViews:
    """Wraps a `ClipTransform` to make `num_crops` views of each window, one per spatial crop, with the same audio.

    The views of a sample are ordered by window, then by crop. 10 windows with three crops give 30 views. A single view has no axis.

    Args:
        transform: a `ClipTransform` whose processor resizes but does not crop (`do_center_crop=False`).
        size, num_crops: see `spatial_crops`.

    Raises:
        ValueError: the processor crops the frames itself.
    """

    def __init__(self, transform: Callable[..., dict[str, Any]], size: int, num_crops: int = 3):
        video_processor = getattr(getattr(transform, "processor", None), "video_processor", None)
        if getattr(video_processor, "do_center_crop", False):
            raise ValueError(
                "the processor already crops the centre: set processor.video_processor.do_center_crop=False."
            )
        self.transform = transform
        self.size = size
        self.num_crops = num_crops

    @property
    def num_views(self) -> int:
        """Number of views of a sample: windows times crops."""
        return getattr(self.transform, "num_views", 1) * self.num_crops

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        sample = self.transform(row, generator)
        if self.num_views == 1:
            if "pixel_values" in sample:
                sample["pixel_values"] = spatial_crops(sample["pixel_values"], self.size, 1)[0]
            return sample
        has_views = getattr(self.transform, "num_views", 1) > 1
        if "pixel_values" in sample:
            pixels = sample["pixel_values"] if has_views else sample["pixel_values"].unsqueeze(0)
            crops = spatial_crops(pixels, self.size, self.num_crops)  # [crops, windows, T, C, size, size]
            sample["pixel_values"] = crops.transpose(0, 1).flatten(0, 1)
        for name in (name for name, modality in INPUT_MODALITIES.items() if modality == "audio" and name in sample):
            features = sample[name] if has_views else sample[name].unsqueeze(0)
            sample[name] = features.repeat_interleave(self.num_crops, dim=0)
        return sample


@torch.no_grad()
def view_logits(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    views: int = 1,
    views_per_step: int = 16,
    passes: int | None = None,
) -> torch.Tensor:
    """Computes the logits of every view of a collated batch, `views_per_step` views at a time to bound the memory.

    Args:
        model: returns `.logits`. Call `model.eval()` before.
        batch: output of a collator for samples with views: `pixel_values` `[B, views, T, C, H, W]`, `input_features`
            `[B, views, time, mel]`, or both. Inputs of one view have no axis of views. Other tensors, such as `modality_mask`
            `[B, 2]`, hold for all views of a clip; `labels` are not used. Chunks are moved to the model's device and
            floating-point type.
        views: views of each clip, as the transform of the samples makes them (`num_views`). The shapes of the inputs do not
            decide it, since models take inputs with other axes too, such as MBT's three planes of a spectrogram.
        views_per_step: rows of one forward pass.
        passes: minimum number of forward passes; the last one is repeated. Models with sharded weights need the same
            number of passes in all processes.

    Returns:
        float32 `[B, views, classes]` on the CPU.

    Raises:
        ValueError: no modality in the batch, different numbers of clips, or another number of views.
    """
    if views_per_step < 1:
        raise ValueError(f"views_per_step must be at least 1, got {views_per_step}.")
    inputs = {name: batch[name] for name in INPUT_MODALITIES if batch.get(name) is not None}
    found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items()) or "neither"
    if len({len(tensor) for tensor in inputs.values()}) != 1:
        raise ValueError(f"expected pixel_values and input_features of the same clips, got {found}.")
    if views > 1 and any(tensor.dim() < 2 or tensor.shape[1] != views for tensor in inputs.values()):
        raise ValueError(
            f"Expected {views} views per clip in evaluation, [batch, {views}, ...], got {found}: build the evaluation set with "
            "hf_avfusion.evaluation.views.view_transform(processor, args.eval_views, ...)."
        )
    clips = len(next(iter(inputs.values())))
    rows = {name: tensor.flatten(0, 1) if views > 1 else tensor for name, tensor in inputs.items()}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and name not in (*rows, "labels"):
            rows[name] = value.repeat_interleave(views, dim=0)

    weight = next(model.parameters())
    logits = []
    for start in range(0, clips * views, views_per_step):
        chunk = {name: tensor[start : start + views_per_step].to(weight.device) for name, tensor in rows.items()}
        chunk = {name: value.to(weight.dtype) if value.is_floating_point() else value for name, value in chunk.items()}
        logits.append(model(**chunk).logits.float().cpu())
    for _ in range((passes or 0) - len(logits)):
        model(**chunk)
    return torch.cat(logits).unflatten(0, (clips, views))


def predict_views(
    model: torch.nn.Module,
    samples: Dataset | Sequence[dict[str, Any]],
    *,
    aggregation: Aggregation = "mean_logits",
    num_views: int | None = None,
    batch_size: int = 4,
    views_per_step: int = 16,
    num_workers: int = 0,
    collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]] | None = None,
    progress: bool = False,
    ranks: "Ranks | None" = None,
) -> ViewPredictions:
    """Runs a model on every view of every clip and aggregates the logits of each clip.

    Memory holds `batch_size` clips and those that the workers prefetch. The model's device holds `views_per_step` views.
    Only the logits, one row per clip, grow with the number of clips.

    Args:
        model: returns `.logits`. It is in evaluation mode during the call. Its task aggregates the views.
        samples: a `ClipStream`, or any dataset of a DataLoader, with samples of `view_transform`, `ClipTransform` or
            `CropViews`.
        aggregation: "mean_logits", "mean_probabilities" or "max_logits".
        num_views: views of each sample, windows times crops. Default: that of the dataset or its `transform` if
            they state one, otherwise 1.
        batch_size: clips per batch of the loader.
        views_per_step: see `view_logits`.
        num_workers: decoding processes.
        collator: default: that of the model's task.
        progress: show a progress bar.
        ranks: `Ranks(rank, world_size)` divides the clips among several processes. One process decodes and scores each
            clip, and all processes return all predictions. Each process holds the whole model.

    Raises:
        ValueError: no clips; several processes with an iterable dataset that is no `ClipStream`; or see `view_logits` and
            `aggregate_views`.
    """
    predictions = predict_modalities(
        model, samples, ("av",), aggregation=aggregation, num_views=num_views, batch_size=batch_size,
        views_per_step=views_per_step, num_workers=num_workers, collator=collator, progress=progress, ranks=ranks,
    )  # fmt: skip
    return predictions["av"]


def predict_modalities(
    model: torch.nn.Module,
    samples: Dataset | Sequence[dict[str, Any]],
    modalities: Sequence[str] = ("av", "a", "v"),
    *,
    aggregation: Aggregation = "mean_logits",
    num_views: int | None = None,
    batch_size: int = 4,
    views_per_step: int = 16,
    num_workers: int = 0,
    collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]] | None = None,
    progress: bool = False,
    ranks: "Ranks | None" = None,
    reduce: bool = False,
) -> dict[str, ViewPredictions]:
    """`predict_views` with both modalities ("av"), audio only ("a") and video only ("v"); each clip is decoded once.

    The other modality is absent, as for a clip without that track. "a" and "v" leave out clips without the requested
    modality and count them in `missing_modality`. "av" uses every clip. If no clip has a requested modality, its key is
    absent from the result and a warning is logged, provided that another key has predictions.

    A model for event localisation needs one view per clip; its logits are `[clips, segments, classes]`.

    Args:
        modalities: keys of `MODALITY_SETS`.
        reduce: apply the task's `reduce`, if it has one, to logits and labels: it keeps what the metrics need of each clip.
        others: see `predict_views`.

    Raises:
        ValueError: an unknown key, no clip with any of the requested modalities, several views for a task that needs
            the whole clip, or see `predict_views`.
    """
    from tqdm import tqdm

    check_aggregation_name(aggregation)
    if unknown := [name for name in modalities if name not in MODALITY_SETS] or not modalities:
        got = unknown if modalities else "none"
        raise ValueError(f"modalities must be some of {', '.join(MODALITY_SETS)} (both, audio, video), got {got}.")
    config = getattr(model, "config", None)
    task = task_of(model) or DEFAULT_TASK
    rank, world_size = (ranks.rank, ranks.world_size) if ranks is not None else (0, 1)
    collator = task.collator_class.for_model(config) if collator is None else collator
    loader = _loader(samples, batch_size, num_workers, _WithIds(collator), rank, world_size)
    if num_views is None:
        num_views = stated_views(samples) or 1
    collected = {name: _Collected() for name in modalities}
    before = getattr(samples, "skipped", 0)
    number = getattr(samples, "num_rows", None)
    training = model.training
    model.eval()
    try:
        with tqdm(unit=" clips", disable=not progress, total=number and -(-number // world_size)) as bar:
            for step, (ids, batch) in enumerate(loader):
                for name in modalities:
                    part, rows = _select_modalities(batch, name, len(ids))
                    collected[name].missing_modality += len(ids) - len(rows)
                    if not len(rows):
                        continue
                    if num_views == 1 and (surplus := surplus_axes(input_shapes(part), config)):
                        raise ValueError(
                            f"the samples have an axis more than one view of a clip, {surplus}: pass num_views=, the views of each."
                        )
                    scored = {name: part.pop(name) for name in task.metric_inputs if name in part}
                    logits_of_views = view_logits(model, part, views=num_views, views_per_step=views_per_step)
                    labels = part.get("labels")
                    logits = task.join_views(logits_of_views, labels, aggregation, config)
                    if reduce and task.reduce is not None:
                        logits, labels = task.reduce(logits, labels, config)
                    places = [(step, row, rank) for row in rows]
                    collected[name].add(places, logits, labels, [ids[row] for row in rows], scored)
                bar.update(len(ids))
    finally:
        model.train(training)
    skipped = loader.skipped if isinstance(loader, ClipLoader) else getattr(samples, "skipped", 0) - before
    gathered = [(collected, skipped)] if ranks is None else ranks.all_gather((collected, skipped))
    skipped = sum(number for _, number in gathered)
    results, reasons = {}, []
    for name in modalities:
        try:
            results[name] = _Collected.joined([parts[name] for parts, _ in gathered], name, skipped)
        except ValueError as error:
            reasons.append(error)
    if not results:
        raise reasons[0]
    for reason in reasons:  # the predictions with the other modalities are still returned
        logger.warning("%s These scores are left out.", reason)
    return results


def _loader(samples: Any, batch_size: int, num_workers: int, collator: Callable, rank: int, world_size: int) -> Any:
    """The batches of this process: clip n is row n // world_size of process n % world_size."""
    if isinstance(samples, ClipStream):
        return ClipLoader(samples, batch_size, collator, rank=rank, world_size=world_size, num_workers=num_workers)
    if world_size > 1:
        if isinstance(samples, IterableDataset) or not hasattr(samples, "__len__"):
            raise ValueError(
                f"{type(samples).__name__} cannot be divided among {world_size} processes: pass a ClipStream, or samples with "
                "a length and random access."
            )
        samples = Subset(samples, range(rank, len(samples), world_size))
    return DataLoader(samples, batch_size=batch_size, num_workers=num_workers, collate_fn=collator)


def _select_modalities(
    batch: Mapping[str, torch.Tensor], key: str, clips: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The part of a batch without the modalities that are not in `MODALITY_SETS[key]`, and the indices of its rows in the batch."""
    if key == "av":
        return dict(batch), list(range(clips))
    (modality,) = MODALITY_SETS[key]
    if batch.get(MODEL_INPUTS[modality]) is None:
        return {}, []
    mask = batch.get("modality_mask")
    column = MODALITIES.index(modality)
    keep = torch.ones(clips, dtype=torch.bool) if mask is None else mask[:, column].bool()
    absent = {"modality_mask", *(name for name, other in INPUT_MODALITIES.items() if other != modality)}
    part = {key: value[keep] for key, value in batch.items() if isinstance(value, torch.Tensor) and key not in absent}
    return part, keep.nonzero().flatten().tolist()


def join_batches(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All rows of tensors [B, ...]. Batches with fewer questions a clip are padded along the second axis with -100."""
    width = max((each.shape[1] for each in tensors if each.dim() > 1), default=0)
    return torch.cat(
        [
            each
            if each.dim() < 2 or each.shape[1] == width
            else pad(each, (0, 0) * (each.dim() - 2) + (0, width - each.shape[1]), value=IGNORED_LABEL)
            for each in tensors
        ]
    )


class _Collected:
    """Predictions of one process, with sort keys that order the rows of all processes."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int, int]] = []  # sort key of a row: step, row of the batch, process
        self.logits: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.clip_ids: list[Any] = []
        self.scored: dict[str, list[torch.Tensor]] = {}
        self.missing_modality = 0

    def add(
        self,
        places: list,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        clip_ids: list[Any],
        scored: Mapping[str, torch.Tensor],
    ) -> None:
        self.places += places
        for name, values in scored.items():
            self.scored.setdefault(name, []).append(values.cpu())
        self.logits.append(logits)
        if labels is not None:
            self.labels.append(labels.cpu())
        self.clip_ids += clip_ids

    @staticmethod
    def joined(parts: "list[_Collected]", key: str, skipped: int) -> ViewPredictions:
        """The rows of all processes, in order."""
        places = [place for part in parts for place in part.places]
        missing = sum(part.missing_modality for part in parts)
        if not places:
            which = {"av": "", "a": " with audio", "v": " with video"}[key]
            without = f", {missing} do not have this modality" if missing else ""
            raise ValueError(f"There are no clips{which} to evaluate ({skipped} could not be decoded{without}).")
        order = sorted(range(len(places)), key=places.__getitem__)
        logits = join_batches([logits for part in parts for logits in part.logits])[order]
        labels = [labels for part in parts for labels in part.labels]
        labels = join_batches(labels)[order] if labels else None
        clip_ids = [clip for part in parts for clip in part.clip_ids]
        names = dict.fromkeys(name for part in parts for name in part.scored)
        scored = {name: join_batches([each for part in parts for each in part.scored.get(name, ())]) for name in names}
        scored = {name: values[order] for name, values in scored.items()}
        return ViewPredictions(logits, labels, [clip_ids[i] for i in order], skipped, missing, scored)


class _WithIds:
    """A collator that returns the clip ids together with the batch. A class can be pickled for worker processes."""

    def __init__(self, collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, samples: Iterable[dict[str, Any]]) -> tuple[list[Any], Mapping[str, torch.Tensor]]:
        samples = list(samples)
        return [sample.get("clip_id") for sample in samples], self.collator(samples)
