"""Draws the events of one clip over time: its frames, its spectrogram, and a bar for each event below them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..media.modalities import MODALITIES
from ..media.reader import MediaSource
from ..processing.event_pipeline import AudioVisualEventLocalizationPipeline
from .charts import COLOURS
from .drawing import evenly_spaced, interpolation_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel, ProcessorMixin

    Event = Mapping[str, Any]

MAX_FRAMES = 10
MAX_FRAME_HEIGHT = 2.4  # inches
WIDTH, SPECTROGRAM_HEIGHT, LANE_HEIGHT = 13.6, 1.9, 0.33  # inches
BOX = {"bbox": {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2}, "fontsize": 9}
PLOT_WIDTH = 11.8  # inches of `WIDTH` between the names of labels and the right edge, about


def draw_timeline(
    path: str | os.PathLike,
    events: Sequence[Event],
    window: tuple[float, float],
    *,
    truth: Sequence[Event] | None = None,
    frames: Tensor | None = None,
    times: Sequence[float] | None = None,
    spectrogram: Tensor | None = None,
    heard: Sequence[tuple[float, float]] | None = None,
    background: str = "background",
    title: str = "",
    dpi: int = 110,
) -> None:
    """Writes one PNG. Frames and spectrogram stand at their time, above a lane for each label that occurs.

    Args:
        path: file to write; its folder must exist.
        events: `label`, `start`, `end` (s) and `score` of each, as the pipeline "audio-visual-event-localization" gives them.
        window: start and end of the clip, s.
        truth: the right events (`label`, `start`, `end`), drawn as an outline around the predicted ones.
        frames: uint8 [T, 3, H, W], evenly spaced over the window. At most 10 of them are drawn.
        times: time of each frame, s, written on it.
        spectrogram: [time, mel] of the window, or [segments, time, mel] of its parts; any normalisation.
        heard: start and end of the sound of each part, s; default: equal parts of the window.
        background: a label whose events are grey.
        title: heading.
        dpi: dots per inch of the file.

    Raises:
        ValueError: no event, or a window, frames, times or spectrogram of another form.
    """
    start, end = window
    if (not events and not truth) or not end > start:
        raise ValueError(
            f"There is nothing to draw. Give at least one event, and a window of some length, got {window}."
        )
    if frames is not None and (frames.dim() != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8):
        raise ValueError(f"`frames` must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}.")
    if times is not None and (frames is None or len(times) != len(frames)):
        raise ValueError(
            f"`times` must hold one value per frame, got {len(times)} for {0 if frames is None else len(frames)}."
        )
    if spectrogram is not None and spectrogram.dim() not in (2, 3):
        raise ValueError(f"`spectrogram` must be [time, mel] or [segments, time, mel], got {tuple(spectrogram.shape)}.")
    from matplotlib.figure import Figure  # importing the package must not need matplotlib

    labels = list(
        dict.fromkeys(event["label"] for event in sorted([*(truth or ()), *events], key=lambda each: each["start"]))
    )
    heights = [LANE_HEIGHT * len(labels) + 0.25]
    if spectrogram is not None:
        heights.insert(0, SPECTROGRAM_HEIGHT)
    if frames is not None:
        chosen = evenly_spaced(len(frames), MAX_FRAMES)
        slot, shape = PLOT_WIDTH / len(chosen), frames.shape[-2] / frames.shape[-1]
        heights.insert(0, min(slot * shape, MAX_FRAME_HEIGHT))
        share = min(MAX_FRAME_HEIGHT / (slot * shape), 1.0)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights, sharex=True, squeeze=False)[:, 0])
    axes[0].set_title(title, fontsize=13, fontweight="bold", loc="left")
    if frames is not None:
        images = [frames[index].permute(1, 2, 0).numpy() for index in chosen]
        slots = [_middle(part, share) for part in _equal_parts(window, len(images))]
        _draw_slots(axes[0], images, slots)
        axes[0].set_yticks([])
        for index, (left, _) in zip(chosen, slots) if times is not None else ():
            axes[0].annotate(
                f"{times[index]:.2f} s", (left, 0), (3, 3), textcoords="offset points", color="white", **BOX
            )
    if spectrogram is not None:
        parts = spectrogram.float().reshape(-1, *spectrogram.shape[-2:]).numpy()
        low, high = np.percentile(parts, [1, 99.5])  # a few silent or clicking rows must not reduce the contrast
        style = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6), "origin": "lower"}
        heard = _equal_parts(window, len(parts)) if heard is None else heard
        _draw_slots(axes[-2], [part.T for part in parts], heard, **style)
        axes[-2].set_ylabel("mel band", fontsize=10)
    _draw_lanes(axes[-1], labels, events, truth, background)
    axes[-1].set_xlim(start, end)
    axes[-1].set_xlabel("time (s)", fontsize=10)
    figure.savefig(os.fspath(path), dpi=dpi, format="png")


def _equal_parts(window: tuple[float, float], count: int) -> list[tuple[float, float]]:
    return list(pairwise(np.linspace(*window, count + 1).tolist()))


def _middle(part: tuple[float, float], share: float) -> tuple[float, float]:
    """The middle of a time span, shortened to this share."""
    cut = (1 - share) * (part[1] - part[0]) / 2
    return part[0] + cut, part[1] - cut


def _draw_slots(axis: Axes, images: Sequence[np.ndarray], slots: Sequence[tuple[float, float]], **style: Any) -> None:
    """Images at their times."""
    height = len(images[0])
    for image, (left, right) in zip(images, slots):
        extent = (left, right, 0, height)
        axis.imshow(image, aspect="auto", extent=extent, interpolation=interpolation_of(image), **style)
    axis.vlines([left for left, _ in slots[1:]], 0, height, color="white", linewidth=0.8)
    axis.set_ylim(0, height)


def _draw_lanes(
    axis: Axes, labels: Sequence[str], events: Sequence[Event], truth: Sequence[Event] | None, background: str
) -> None:
    colours = dict(zip((label for label in labels if label != background), cycle(COLOURS)))
    for event in events:
        lane, length = labels.index(event["label"]), event["end"] - event["start"]
        colour, middle = colours.get(event["label"]), event["start"] + length / 2
        axis.barh(lane, length, 0.7, event["start"], color=colour or "0.75")
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": "white" if colour else "black"}
        axis.text(middle, lane, f"{event['score']:.0%}", clip_on=True, **style)
    for event in truth or ():
        length = event["end"] - event["start"]
        axis.barh(
            labels.index(event["label"]), length, 0.9, event["start"], fill=False, edgecolor="black", linewidth=1.6
        )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="x", color="0.85")
    axis.set_axisbelow(True)


def explain_events(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    source: MediaSource,
    *,
    path: str | os.PathLike,
    truth: Sequence[Event] | None = None,
    title: str = "",
) -> list[dict[str, Any]]:
    """Finds the events of one file and draws them.

    Args:
        model: an event localiser (`num_segments` in its configuration) with one head, of any architecture.
        processor: the model's.
        source: as in `explain`.
        path, truth, title: as in `draw_timeline`.

    Returns:
        The events, those without an event (the label "background") included.

    Raises:
        ValueError: not an event localiser, or one of several heads. MediaError: the file cannot be read.
    """
    if getattr(model.config, "class_splits", None):
        raise ValueError(f"A timeline shows one head, but this model has {', '.join(model.config.class_splits)}.")
    localize = AudioVisualEventLocalizationPipeline(model=model, processor=processor)
    tracks = tuple(name for name in MODALITIES if name in model.config.modalities)
    clips = processor.load_clip(source, tracks=tracks)
    events = localize(source, background=None)
    frames = times = spectrogram = heard = None
    if clips[0].frames is not None:
        shown = [clip.frames for clip in clips]
        shown = processor.video_processor(shown, do_rescale=False, do_normalize=False, return_tensors="pt")
        frames = shown["pixel_values"].flatten(0, 1).round().clamp(0, 255).to(torch.uint8)
        times = torch.cat([clip.frame_times for clip in clips]).tolist()
    if clips[0].waveform is not None:
        spectrogram = processor.process_clips(clips, return_tensors="pt")["input_features"][0]
        extractor = processor.feature_extractor
        seconds = spectrogram.shape[-2] * extractor.hop_length / extractor.sampling_rate
        heard = [(clip.audio_start, clip.audio_start + seconds) for clip in clips]
    window = (events[0]["start"], events[-1]["end"])
    draw_timeline(
        path, events, window, truth=truth, frames=frames, times=times, spectrogram=spectrogram, heard=heard, title=title
    )
    return events


__all__ = ["draw_timeline", "explain_events"]
