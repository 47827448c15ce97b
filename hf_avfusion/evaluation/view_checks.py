"""Checks of datasets that are evaluated with several views per clip, before any model runs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..data.streaming.clip_stream import ClipStream
from ..media.modalities import INPUT_MODALITIES


def stated_views(dataset: Any) -> int | None:
    """The views that a dataset or its `transform` states (`num_views`); None where neither does."""
    stated = getattr(dataset, "num_views", None)
    return getattr(getattr(dataset, "transform", None), "num_views", None) if stated is None else stated


def check_sample_views(
    dataset: Any, views: int, collator: Callable[[list[Any]], Mapping[str, torch.Tensor]], config: Any
) -> None:
    """Checks that a dataset that does not state its views has those that are asked for, before any model runs.

    It collates the first sample of a dataset, also of a stream that can be read again.

    Raises:
        ValueError: a `ClipStream` whose transform does not state its views, or a first sample with another number of views.
    """
    remedy = (
        "build the evaluation set with hf_avfusion.evaluation.views.view_transform(processor, args.eval_views, ...)"
    )
    asked = f"The arguments ask for {views} views per clip in evaluation, but"
    if isinstance(dataset, ClipStream):
        if views > 1:
            raise ValueError(
                f"{asked} the evaluation set's transform does not state how many it makes (num_views): {remedy}, or set"
                f" num_views={views} on your own transform if its samples have that many views."
            )
        return
    sample = _first_sample(dataset)
    if sample is None:
        return
    shapes = input_shapes(collator([sample]))
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if views > 1 and any(shape[:1] != (views,) for shape in shapes.values()):
        raise ValueError(
            f"{asked} the first sample of the evaluation set has {found} instead of [{views}, ...]: {remedy}."
        )
    if views == 1 and (surplus := surplus_axes(shapes, config)):
        raise ValueError(
            f"The first sample of the evaluation set has {found}, with an axis more than one view of a clip: {surplus}. Set"
            f" eval_num_views (--eval_num_views) to its number of views, or remove that axis."
        )


def _first_sample(dataset: Any) -> Any:
    """The first sample; None of a dataset without samples, or of a stream that can be read only once."""
    if isinstance(dataset, IterableDataset):
        samples = iter(dataset)
        return None if iter(dataset) is samples else next(samples, None)
    if isinstance(dataset, Mapping) or not hasattr(dataset, "__getitem__") or not len(dataset):
        return None
    return dataset[0]


def input_shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a batch's inputs, without the batch axis."""
    inputs = {name: batch.get(name) for name in INPUT_MODALITIES} if isinstance(batch, Mapping) else {}
    return {name: tuple(values.shape[1:]) for name, values in inputs.items() if hasattr(values, "shape")}


def surplus_axes(shapes: Mapping[str, tuple[int, ...]], config: Any) -> str:
    """The axes of one view of each input that has more than these; "" if none has."""
    axes = dict(getattr(config, "input_axes", None) or {})
    if getattr(config, "num_audio_channels", 1) > 1 and "input_features" in axes:  # planes of a spectrogram
        axes["input_features"] = ("channels", *axes["input_features"])
    surplus = {name: axes[name] for name, shape in shapes.items() if len(shape) > len(axes.get(name, shape))}
    return ", ".join(f"{name} [{', '.join(names)}]" for name, names in surplus.items())
