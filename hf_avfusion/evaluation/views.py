"""Evaluation over several views of each clip, as published: windows spread in time, crops in space, scores aggregated.

    transform = view_transform(processor, PROTOCOLS["mbt"], "label")
    predictions = predict_views(model, ClipStream(rows, transform))
    top_k_accuracies(predictions.logits, predictions.labels)

Whatever the aggregation, its result stands where the logits of a single view would: softmax (of each head) or sigmoid
turns it into probabilities, and every metric takes it as it is.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..data.collating import MODALITIES as TRACKS
from ..data.collating import AVCollator
from ..data.streaming.clip_loader import ClipLoader
from ..data.streaming.clip_stream import ClipStream
from ..data.transforms import ClipTransform
from ..tasks import TASKS, Task, task_of
from ..tasks.joining import Aggregation, check_aggregation_name
from ..tasks.task import RowLabels

if TYPE_CHECKING:
    from ..data.streaming.ranks import Ranks
    from ..processing.processing_avfusion import AVFusionProcessor

logger = logging.getLogger(__name__)

# Axes of one view of a clip.
INPUTS = {"pixel_values": ("frame", "channel", "height", "width"), "input_features": ("time", "mel")}

# What a model is given: both tracks of a clip, its sound alone, its pictures alone.
GIVEN = {"av": ("pixel_values", "input_features"), "a": ("input_features",), "v": ("pixel_values",)}


@dataclass(frozen=True)
class ViewProtocol:
    """Views of a published evaluation: `num_views` windows in time, `num_crops` crops in space of each."""

    num_views: int
    num_crops: int
    aggregation: Aggregation
    source: str

    def __post_init__(self) -> None:
        if self.num_views < 1 or self.num_crops not in (1, 3):
            raise ValueError(
                f"a protocol has at least one view and 1 or 3 crops, got {self.num_views} and {self.num_crops}."
            )
        check_aggregation_name(self.aggregation)

    @property
    def total(self) -> int:
        """Views of a clip, all its crops counted."""
        return self.num_views * self.num_crops


# Key: architecture, or architecture and benchmark where its paper says so.
PROTOCOLS: dict[str, ViewProtocol] = {
    "mbt": ViewProtocol(4, 1, "mean_logits", "scenic projects/mbt, num_test_clips=4"),
    "avmae": ViewProtocol(4, 1, "mean_logits", "scenic projects/av_mae, num_test_clips=4"),
    "mmt": ViewProtocol(
        5, 1, "mean_probabilities", "MMT supplementary (5 views); crop and soft-max from SlowFast's code"
    ),
    "avbert/ucf101": ViewProtocol(10, 3, "mean_probabilities", "AVBERT: 30 views, sum of soft-max scores"),
    "avbert/esc50": ViewProtocol(10, 1, "mean_probabilities", "AVBERT: ten clips of 2 s, sum of soft-max scores"),
    # The paper names the crops and the maximum over "sequences", not how many sequences of 30 s a video gives.
    "avbert/charades": ViewProtocol(1, 3, "max_logits", "AVBERT: three crops, maximum; windows in time not stated"),
}


def choose_protocol(
    name: str | None = None,
    *,
    num_views: int | None = None,
    num_crops: int | None = None,
    aggregation: Aggregation | None = None,
) -> ViewProtocol | None:
    """The protocol of a name in `PROTOCOLS` with these of its numbers replaced; None where nothing is asked for.

    Without a name: `num_views` windows (1), `num_crops` crops (1), logits averaged.

    Raises:
        ValueError: a name that is not in `PROTOCOLS`, or numbers that `ViewProtocol` refuses.
    """
    if name is not None and name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}.")
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
) -> None:
    """Checks that a model can be scored by these views, before any work.

    Args:
        flags: what sets views, crops and aggregation, for the messages.

    Raises:
        ValueError: several views for a task whose labels are of parts of the whole clip, or an aggregation that the task does
            not have, such as the maximum over views for a model with one class per clip.
    """
    if protocol is None:
        return
    if task.join_views is None and protocol.total > 1:
        raise ValueError(
            f"{protocol.num_views} views ({flags[0]}) x {protocol.num_crops} crops ({flags[1]}): a model for {task.title} takes "
            "one view of each clip; set both to 1 or leave them out."
        )
    if task.whole_clip and protocol.total > 1:
        raise ValueError(
            f"{protocol.num_views} views ({flags[0]}) x {protocol.num_crops} crops ({flags[1]}) of a model for {task.title}: its "
            "labels are of parts of the whole clip, so it sees each clip whole, once; set both to 1 or leave them out."
        )
    try:
        task.check_aggregation(protocol.aggregation, config)
    except ValueError as error:
        raise ValueError(f"{flags[2]}: {error}.") from error


def view_transform(
    processor: "AVFusionProcessor",
    protocol: ViewProtocol | None,
    labels: RowLabels | Sequence[str] | str = ("label",),
    **options: Any,
) -> "ClipTransform | CropViews":
    """The `ClipTransform` whose samples have the views of a protocol, with `CropViews` around it for several crops.

    Args:
        processor: for several crops a copy of it resizes without cropping; the crops have the size of its own crop.
        protocol: None is the single view in the middle of the clip.
        labels, options: of `ClipTransform`.

    Raises:
        ValueError: several crops, and a processor whose pictures leave no room for them.
    """
    if protocol is None or protocol.num_crops == 1:
        views = 1 if protocol is None else protocol.num_views
        return ClipTransform(processor, labels, num_views=views, **options)
    side, size = processor.video_processor.crop_size, processor.video_processor.size
    if side["height"] != side["width"] or not size.get("shortest_edge"):
        raise ValueError(
            f"num_crops={protocol.num_crops} needs a processor that resizes the short side (size={{'shortest_edge': n}}) and "
            f"crops a square; this one has size={dict(size)} and crop_size={dict(side)}. Use num_crops=1 (evaluate.py: --crops 1)."
        )
    processor = copy.deepcopy(processor)
    processor.video_processor.do_center_crop = False
    transform = ClipTransform(processor, labels, num_views=protocol.num_views, **options)
    return CropViews(transform, side["height"], protocol.num_crops)


class ViewPredictions(NamedTuple):
    """One row per clip, in the order of the rows, whatever the number of workers and processes, where all clips decode;
    behind one that does not, the order may differ, and `clip_ids` tells it.
    """

    # float32 [clips, classes] or [clips, segments, classes], on the CPU; see the module's first lines
    logits: torch.Tensor
    # as collated: long [clips], [clips, heads] or [clips, segments], or float [clips, classes]
    labels: torch.Tensor | None
    clip_ids: list[Any]
    skipped: int  # clips that the stream left out because they did not decode
    lacking: int = 0  # clips that decode, but have nothing of what the model was to be given


def spatial_crops(frames: torch.Tensor, size: int, num_crops: int = 3) -> torch.Tensor:
    """Square crops spread along the longer side, centred on the other one.

    Three crops begin at 0, ceil((length - size) / 2) and length - size; one crop is the middle one (SlowFast's and
    AVBERT's test crops). With the short side resized to `size` they take in the whole picture, up to a ratio of 3.

    Args:
        frames: `[..., H, W]`, any dtype.
        size: side of the crops in pixels, at most the short side.
        num_crops: 1 or 3.

    Returns:
        `[num_crops, ..., size, size]`: left to right, or top to bottom where the picture is higher than wide.

    Raises:
        ValueError: another number of crops, or frames smaller than the crop.
    """
    height, width = frames.shape[-2:]
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}.")
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"A crop of {size} does not fit frames of {height}x{width}: resize their short side to {size}."
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
    """A `ClipTransform` whose every window becomes `num_crops` views, one per spatial crop; the sound is the same in each.

    The views of a sample are ordered by window, then by crop: 10 windows give 30 views with three crops.

    Args:
        transform: a `ClipTransform` whose processor resizes but does not crop (`do_center_crop=False`).
        size, num_crops: as in `spatial_crops`.

    Raises:
        ValueError: a processor that crops by itself: what is left of its pictures has no other crops.
    """

    def __init__(self, transform: Callable[..., dict[str, Any]], size: int, num_crops: int = 3):
        video_processor = getattr(getattr(transform, "processor", None), "video_processor", None)
        if getattr(video_processor, "do_center_crop", False):
            raise ValueError(
                "The processor crops the centre already: set processor.video_processor.do_center_crop=False."
            )
        self.transform = transform
        self.size = size
        self.num_crops = num_crops

    @property
    def num_views(self) -> int:
        """Views of a sample: windows times crops."""
        return getattr(self.transform, "num_views", 1) * self.num_crops

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        sample = self.transform(row, generator)
        if "pixel_values" in sample:
            pixels = _with_views(sample["pixel_values"], INPUTS["pixel_values"], axis=0)
            crops = spatial_crops(pixels, self.size, self.num_crops)  # [crops, windows, T, C, size, size]
            sample["pixel_values"] = crops.transpose(0, 1).flatten(0, 1)
        if "input_features" in sample:
            features = _with_views(sample["input_features"], INPUTS["input_features"], axis=0)
            sample["input_features"] = features.repeat_interleave(self.num_crops, dim=0)
        return sample


@torch.no_grad()
def view_logits(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    views_per_step: int = 16,
    passes: int | None = None,
) -> torch.Tensor:
    """Logits of every view of a collated batch, `views_per_step` views at a time, so that the model's memory is bounded.

    Args:
        model: gives `.logits`; taken as it is (call `model.eval()` before).
        batch: what `AVCollator` makes of samples with views: `pixel_values` `[B, views, T, C, H, W]`, `input_features`
            `[B, views, time, mel]`, either or both, `modality_mask` `[B, 2]`; without the axis of views a single view
            is meant. Chunks go to the model's device and floating-point type.
        views_per_step: rows of one forward pass.
        passes: at least this many forward passes, the last one repeated, for models whose processes must take equally
            many (sharded weights) with batches that differ.

    Returns:
        float32 `[B, views, classes]` on the CPU.

    Raises:
        ValueError: no modality in the batch, or different numbers of views.
    """
    if views_per_step < 1:
        raise ValueError(f"views_per_step must be at least 1, got {views_per_step}.")
    inputs = {
        name: _with_views(batch[name], view, axis=1) for name, view in INPUTS.items() if batch.get(name) is not None
    }
    shapes = {tuple(tensor.shape[:2]) for tensor in inputs.values()}
    if len(shapes) != 1:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items()) or "neither"
        raise ValueError(f"Expected pixel_values and input_features with the same clips and views, got {found}.")
    clips, views = shapes.pop()
    rows = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
    if batch.get("modality_mask") is not None:
        rows["modality_mask"] = batch["modality_mask"].repeat_interleave(views, dim=0)

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
    batch_size: int = 4,
    views_per_step: int = 16,
    num_workers: int = 0,
    collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]] | None = None,
    progress: bool = False,
    ranks: "Ranks | None" = None,
) -> ViewPredictions:
    """Runs a model over every view of every clip and aggregates each clip's logits.

    Of the inputs only `batch_size` clips (and what the workers prefetch) are held at once, of the views only
    `views_per_step` are on the model's device; what grows with the clips is one row of logits each.

    Args:
        model: gives `.logits`; put into evaluation mode for the time, then back. Its task joins the views.
        samples: a `ClipStream`, or anything a DataLoader takes, of samples of `view_transform`, `ClipTransform` or
            `CropViews`.
        aggregation: "mean_logits", "mean_probabilities" or "max_logits".
        batch_size: clips per batch of the loader.
        views_per_step: see `view_logits`.
        num_workers: processes that decode.
        collator: default `AVCollator()`.
        progress: show a bar of clips.
        ranks: several processes share the clips, `Ranks(rank, world_size)` in each: every clip is decoded and scored by
            one of them, and all of them return all predictions. Each process holds the whole model.

    Raises:
        ValueError: no clips, another iterable dataset than a `ClipStream` in several processes, or as `view_logits` and
            `aggregate_views`.
    """
    predictions = predict_given(
        model, samples, ("av",), aggregation=aggregation, batch_size=batch_size, views_per_step=views_per_step,
        num_workers=num_workers, collator=collator, progress=progress, ranks=ranks,
    )  # fmt: skip
    return predictions["av"]


def predict_given(
    model: torch.nn.Module,
    samples: Dataset | Sequence[dict[str, Any]],
    given: Sequence[str] = ("av", "a", "v"),
    *,
    aggregation: Aggregation = "mean_logits",
    batch_size: int = 4,
    views_per_step: int = 16,
    num_workers: int = 0,
    collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]] | None = None,
    progress: bool = False,
    ranks: "Ranks | None" = None,
    reduce: bool = False,
) -> dict[str, ViewPredictions]:
    """`predict_views` of one model that is given both tracks ("av"), the sound alone ("a") or the pictures alone ("v"),
    each clip decoded once for all of them.

    What is not given is absent, as for a clip without that track. A clip that lacks the only track given is left out
    there and counted in `lacking`; "av" takes every clip with what it has. A track that no clip has is left out of the
    result with a warning, where the others have something to show.

    A model of event localisation takes one view per clip; its logits are `[clips, segments, classes]`.

    Args:
        given: keys of `GIVEN`.
        reduce: keep what the task's `reduce` makes of logits and labels, where it has one: what its metrics need, clip by clip.
        the rest, and the errors, as in `predict_views`; additionally a ValueError for an unknown key, where no clip has
            anything of what is given, or for several views of a task that sees each clip whole.
    """
    from tqdm import tqdm

    check_aggregation_name(aggregation)
    if unknown := [name for name in given if name not in GIVEN] or not given:
        raise ValueError(f"modalities are {', '.join(GIVEN)} (both, audio, video), got {unknown if given else 'none'}.")
    config = getattr(model, "config", None)
    task = task_of(model) or TASKS["classification"]
    rank, world_size = (ranks.rank, ranks.world_size) if ranks is not None else (0, 1)
    loader = _loader(
        samples, batch_size, num_workers, _WithIds(collator if collator is not None else AVCollator()), rank, world_size
    )
    collected = {name: _Collected() for name in given}
    before = getattr(samples, "skipped", 0)
    number = getattr(samples, "num_rows", None)
    training = model.training
    model.eval()
    try:
        with tqdm(unit=" clips", disable=not progress, total=number and -(-number // world_size)) as bar:
            for step, (ids, batch) in enumerate(loader):
                for name in given:
                    part, rows = _given_only(batch, name, len(ids))
                    collected[name].lacking += len(ids) - len(rows)
                    if not len(rows):
                        continue
                    of_views = view_logits(model, part, views_per_step=views_per_step)
                    labels = part.get("labels")
                    logits = task.join_views(of_views, labels, aggregation, config)
                    if reduce and task.reduce is not None:
                        logits, labels = task.reduce(logits, labels, config)
                    places = [(step, row, rank) for row in rows]
                    collected[name].add(places, logits, labels, [ids[row] for row in rows])
                bar.update(len(ids))
    finally:
        model.train(training)
    skipped = loader.skipped if isinstance(loader, ClipLoader) else getattr(samples, "skipped", 0) - before
    of_ranks = [(collected, skipped)] if ranks is None else ranks.all_gather((collected, skipped))
    skipped = sum(number for _, number in of_ranks)
    results, reasons = {}, []
    for name in given:
        try:
            results[name] = _Collected.joined([parts[name] for parts, _ in of_ranks], name, skipped)
        except ValueError as error:
            reasons.append(error)
    if not results:
        raise reasons[0]
    for reason in reasons:  # what the others have come to is not thrown away for it
        logger.warning("%s It has no scores.", reason)
    return results


def _loader(samples: Any, batch_size: int, num_workers: int, collator: Callable, rank: int, world_size: int) -> Any:
    """This process's batches: row number n of the clips is row n // world_size of process n % world_size."""
    if isinstance(samples, ClipStream):
        return ClipLoader(samples, batch_size, collator, rank=rank, world_size=world_size, num_workers=num_workers)
    if world_size > 1:
        if isinstance(samples, IterableDataset) or not hasattr(samples, "__len__"):
            raise ValueError(
                f"{type(samples).__name__} cannot be divided among {world_size} processes: give a ClipStream, or samples with "
                "a length and random access."
            )
        samples = Subset(samples, range(rank, len(samples), world_size))
    return DataLoader(samples, batch_size=batch_size, num_workers=num_workers, collate_fn=collator)


def _given_only(batch: Mapping[str, torch.Tensor], given: str, clips: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The batch as a model sees it that is given one modality alone, and which of its rows that leaves."""
    if given == "av":
        return dict(batch), list(range(clips))
    (name,) = GIVEN[given]
    if batch.get(name) is None:
        return {}, []
    mask = batch.get("modality_mask")
    column = [track for track, _ in TRACKS].index(name)
    keep = torch.ones(clips, dtype=torch.bool) if mask is None else mask[:, column].bool()
    part = {key: batch[key][keep] for key in (name, "labels") if batch.get(key) is not None}
    return part, keep.nonzero().flatten().tolist()


class _Collected:
    """What one process has predicted so far, with the place of every row in the order of all processes' rows."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int, int]] = []  # step, row of the batch, process
        self.logits: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.clip_ids: list[Any] = []
        self.lacking = 0

    def add(self, places: list, logits: torch.Tensor, labels: torch.Tensor | None, clip_ids: list[Any]) -> None:
        self.places += places
        self.logits.append(logits)
        if labels is not None:
            self.labels.append(labels.cpu())
        self.clip_ids += clip_ids

    @staticmethod
    def joined(parts: "list[_Collected]", given: str, skipped: int) -> ViewPredictions:
        """The rows of all processes, in order."""
        places = [place for part in parts for place in part.places]
        lacking = sum(part.lacking for part in parts)
        if not places:
            what = {"av": "", "a": " with sound", "v": " with pictures"}[given]
            lack = f", {lacking} lack that track" if lacking else ""
            raise ValueError(f"There are no clips{what} to evaluate ({skipped} did not decode{lack}).")
        order = sorted(range(len(places)), key=places.__getitem__)
        logits = torch.cat([logits for part in parts for logits in part.logits])[order]
        labels = [labels for part in parts for labels in part.labels]
        clip_ids = [clip for part in parts for clip in part.clip_ids]
        return ViewPredictions(
            logits, torch.cat(labels)[order] if labels else None, [clip_ids[i] for i in order], skipped, lacking
        )


class _WithIds:
    """A collator that hands on the samples' clip_id beside the batch; a class, so that it can travel to workers."""

    def __init__(self, collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, samples: Iterable[dict[str, Any]]) -> tuple[list[Any], Mapping[str, torch.Tensor]]:
        samples = list(samples)
        return [sample.get("clip_id") for sample in samples], self.collator(samples)


def _with_views(tensor: torch.Tensor, view: tuple[str, ...], axis: int) -> torch.Tensor:
    """`tensor` with an axis of views at `axis`, of length 1 where it holds one view, whose axes are `view`, per clip."""
    return tensor.unsqueeze(axis) if tensor.dim() == len(view) + axis else tensor
