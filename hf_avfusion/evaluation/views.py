"""Evaluation over several views of each clip, as published: windows spread in time, crops in space, scores aggregated.

    transform = ClipTransform(processor, "label", num_views=4)
    predictions = predict_views(model, ClipStream(rows, transform))
    top_k_accuracies(predictions.logits, predictions.labels)

Whatever the aggregation, its result stands where the logits of a single view would: softmax (of each head) or sigmoid
turns it into probabilities, and every metric takes it as it is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.collating import AVCollator

Aggregation = Literal["mean_logits", "mean_probabilities", "max_logits"]

# Axes of one view of a clip.
INPUTS = {"pixel_values": ("frame", "channel", "height", "width"), "input_features": ("time", "mel")}


@dataclass(frozen=True)
class ViewProtocol:
    """Views of a published evaluation: `num_views` windows in time, `num_crops` crops in space of each."""

    num_views: int
    num_crops: int
    aggregation: Aggregation
    source: str


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


class ViewPredictions(NamedTuple):
    """One row per clip, in the order in which the clips came (with several workers not that of the rows)."""

    logits: torch.Tensor  # float32 [clips, classes], on the CPU; see the module's first lines
    labels: torch.Tensor | None  # as collated: long [clips] or [clips, heads], or float [clips, classes]
    clip_ids: list[Any]
    skipped: int  # clips that the stream left out because they did not decode


def mean_logits(logits: torch.Tensor) -> torch.Tensor:
    """Mean over views, before any softmax or sigmoid (MBT and AV-MAE, 4 views). `[clips, views, classes]` -> `[clips, classes]`"""
    return logits.mean(dim=1)


def mean_probabilities(
    logits: torch.Tensor, *, multi_label: bool = False, class_splits: Mapping[str, int] | None = None
) -> torch.Tensor:
    """Logits of the mean of the views' probabilities (MMT, 5 views; UCF101, 10 x 3 views).

    Published as the sum of the views' soft-max scores, which orders classes alike.

    Args:
        logits: float `[clips, views, classes]`.
        multi_label: probabilities are sigmoids of each class, not a softmax over classes.
        class_splits: sizes of heads, each with a softmax of its own; the classes are the heads concatenated.

    Returns:
        `[clips, classes]`: log of the mean softmax, or the log-odds of the mean sigmoid; computed from logarithms, so
        that probabilities near 0 and 1 keep their order.

    Raises:
        ValueError: heads that do not add up to the classes, or heads and `multi_label` together.
    """
    if class_splits is not None:
        if multi_label:
            raise ValueError("class_splits are heads with a softmax each: leave out multi_label.")
        if sum(class_splits.values()) != logits.shape[-1]:
            raise ValueError(
                f"Heads {dict(class_splits)} do not add up to the {logits.shape[-1]} classes of the logits."
            )
        heads = logits.split(list(class_splits.values()), dim=-1)
        return torch.cat([mean_probabilities(head) for head in heads], dim=-1)
    views = math.log(logits.shape[1])
    if multi_label:
        log_yes = torch.nn.functional.logsigmoid(logits).logsumexp(dim=1) - views
        log_no = torch.nn.functional.logsigmoid(-logits).logsumexp(dim=1) - views
        return log_yes - log_no
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - views


def max_logits(logits: torch.Tensor) -> torch.Tensor:
    """Best view of each class (Charades). `[clips, views, classes]` -> `[clips, classes]`

    For classes with a sigmoid each this is the maximum of the probabilities too; for a softmax it is not.
    """
    return logits.amax(dim=1)


def aggregate_views(
    logits: torch.Tensor,
    aggregation: Aggregation = "mean_logits",
    *,
    multi_label: bool = False,
    class_splits: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """`mean_logits`, `mean_probabilities` or `max_logits` by name. float `[clips, views, classes]` -> `[clips, classes]`

    Raises:
        ValueError: an unknown name, another shape, no views, or the maximum over views of anything but multi-label
            scores.
    """
    if logits.dim() != 3 or logits.shape[1] == 0:
        raise ValueError(f"Expected logits [clips, views, classes] with at least one view, got {tuple(logits.shape)}.")
    if aggregation == "mean_logits":
        return mean_logits(logits)
    if aggregation == "mean_probabilities":
        return mean_probabilities(logits, multi_label=multi_label, class_splits=class_splits)
    if aggregation == "max_logits":
        if not multi_label:
            raise ValueError(
                "aggregation='max_logits' is for multi-label scores (sigmoids); views of single-label clips are averaged."
            )
        return max_logits(logits)
    raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}, got {aggregation!r}.")


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
def view_logits(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], *, views_per_step: int = 16) -> torch.Tensor:
    """Logits of every view of a collated batch, `views_per_step` views at a time, so that the model's memory is bounded.

    Args:
        model: gives `.logits`; taken as it is (call `model.eval()` before).
        batch: what `AVCollator` makes of samples with views: `pixel_values` `[B, views, T, C, H, W]`, `input_features`
            `[B, views, time, mel]`, either or both, `modality_mask` `[B, 2]`; without the axis of views a single view
            is meant. Chunks go to the model's device and floating-point type.
        views_per_step: rows of one forward pass.

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
) -> ViewPredictions:
    """Runs a model over every view of every clip and aggregates each clip's logits.

    Of the inputs only `batch_size` clips (and what the workers prefetch) are held at once, of the views only
    `views_per_step` are on the model's device; what grows with the clips is one row of logits each.

    Args:
        model: gives `.logits`; put into evaluation mode for the time, then back. Whether scores are sigmoids or heads
            with a softmax each is read from its `config.problem_type` (or float labels) and `config.class_splits`.
        samples: a `ClipStream`, or anything a DataLoader takes, of samples of `ClipTransform(..., num_views=n)` or
            `CropViews`.
        aggregation: "mean_logits", "mean_probabilities" or "max_logits".
        batch_size: clips per batch of the loader.
        views_per_step: see `view_logits`.
        num_workers: processes that decode.
        collator: default `AVCollator()`.
        progress: show a bar of clips.

    Raises:
        ValueError: no clips, or as `view_logits` and `aggregate_views`.
    """
    from tqdm import tqdm

    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}, got {aggregation!r}.")
    config = getattr(model, "config", None)
    multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
    class_splits = getattr(config, "class_splits", None)
    loader = DataLoader(
        samples,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_WithIds(collator if collator is not None else AVCollator()),
    )
    skipped = getattr(samples, "skipped", 0)
    logits, labels, clip_ids = [], [], []
    training = model.training
    model.eval()
    try:
        with tqdm(unit=" clips", disable=not progress, total=getattr(samples, "num_rows", None)) as bar:
            for ids, batch in loader:
                of_views = view_logits(model, batch, views_per_step=views_per_step)
                target = batch.get("labels")
                if target is not None:
                    labels.append(target.cpu())
                    # Without a problem_type, labels tell, as they tell the model which loss to take.
                    multi_label = multi_label or (target.is_floating_point() and target.dim() == 2)
                logits.append(
                    aggregate_views(of_views, aggregation, multi_label=multi_label, class_splits=class_splits)
                )
                clip_ids.extend(ids)
                bar.update(len(ids))
    finally:
        model.train(training)
    skipped = getattr(samples, "skipped", 0) - skipped
    if not logits:
        raise ValueError(f"There are no clips to evaluate ({skipped} did not decode).")
    return ViewPredictions(torch.cat(logits), torch.cat(labels) if labels else None, clip_ids, skipped)


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
