"""Draws one clip with a model's attention: frames above, spectrogram below, relevance overlaid on both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MAX_FRAMES = 8
MIN_COLUMNS = 5  # so that a few frames are not enlarged further
WIDTH = 13.6  # inches, of which the colour bar takes 1.2
SPECTROGRAM_HEIGHT = 2.9
HEAT = "inferno"


def draw_attention(
    path: str | os.PathLike,
    *,
    frames: Tensor | None = None,
    video_map: Tensor | None = None,
    times: Sequence[float] | None = None,
    spectrogram: Tensor | None = None,
    audio_map: Tensor | None = None,
    hop: float = 0.01,
    audio_start: float = 0.0,
    patch_size: tuple[int, int] | None = None,
    title: str = "",
    dpi: int = 110,
) -> None:
    """Write one PNG with the given modalities.

    Shows up to 8 evenly spaced frames (first and last included) above the same frames with the relevance of their patches (next
    to each other if there are few). Below is the log-mel spectrogram with its relevance. Small marks over the spectrogram show
    the times of the frames. Relevance is a multiple of the mean over that modality's patches: 1 is average, and the colour bar
    shows the range. Each modality has its own scale, and its heading states its share of all patch relevance.

    Args:
        path: file to write; its folder must exist.
        frames: uint8 [T, 3, H, W], cropped as for the model.
        video_map: float [t, h, w], relevance of tubelets of T / t frames each.
        times: T times in s, printed below the frames.
        spectrogram: float [time, mel], log-mel (any normalisation).
        audio_map: float [time_patches, mel_patches].
        hop: seconds per spectrogram frame.
        audio_start: time in s of the first spectrogram frame.
        patch_size: pixels (and spectrogram frames, bands) per patch; needed if patches leave a remainder uncovered. By default
            the maps cover the whole frame or spectrogram.
        title: heading, one or more lines.
        dpi: dots per inch of the file.

    Raises:
        ValueError: neither modality is given, or a map or the frames have another shape.
    """
    _check(frames, video_map, times, spectrogram, audio_map)
    # Imported here, because importing the package must not need matplotlib. No pyplot: it would change the caller's
    # global state.
    from matplotlib.figure import Figure

    heights = []
    if frames is not None:
        chosen = evenly_spaced(len(frames), MAX_FRAMES)
        rows, columns = _layout(len(chosen), video_map is not None)
        column = (WIDTH - 1.2) / columns
        heights.append(rows * (column * frames.shape[-2] / frames.shape[-1] + 0.1) + 0.55)
    if spectrogram is not None:
        heights.append(SPECTROGRAM_HEIGHT)
    heading = 0.27 * (title.count("\n") + 1) + 0.1 if title else 0.0
    figure = Figure(figsize=(WIDTH, sum(heights) + heading), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    share = {}
    if video_map is not None and audio_map is not None:
        total = float(video_map.sum() + audio_map.sum())
        share = {"video": float(video_map.sum()) / total, "audio": float(audio_map.sum()) / total}

    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if frames is not None:
        _draw_frames(parts[0], frames, video_map, times, chosen, patch_size, _heading("video", share))
    if spectrogram is not None:
        marks = [times[index] for index in chosen] if frames is not None and times is not None else []
        _draw_spectrogram(
            parts[-1], spectrogram, audio_map, hop, audio_start, marks, patch_size, _heading("audio", share)
        )
    figure.savefig(os.fspath(path), dpi=dpi, format="png")


def _check(frames, video_map, times, spectrogram, audio_map) -> None:
    if frames is None and spectrogram is None:
        raise ValueError("There is nothing to draw. Give `frames`, `spectrogram` or both.")
    if frames is not None and (frames.dim() != 4 or frames.shape[1] != 3 or str(frames.dtype) != "torch.uint8"):
        raise ValueError(f"`frames` must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}.")
    if times is not None and (frames is None or len(times) != len(frames)):
        raise ValueError(
            f"`times` must hold one value per frame, got {len(times)} values for {0 if frames is None else len(frames)} frames."
        )
    if spectrogram is not None and spectrogram.dim() != 2:
        raise ValueError(f"`spectrogram` must be [time, mel], got {tuple(spectrogram.shape)}.")
    if video_map is not None and (frames is None or video_map.dim() != 3 or len(frames) % len(video_map)):
        raise ValueError(
            "`video_map` must be [t, h, w], with `frames` [T, 3, H, W] and T a multiple of t, got "
            f"{tuple(video_map.shape)} and {None if frames is None else tuple(frames.shape)}."
        )
    if audio_map is not None and (spectrogram is None or audio_map.dim() != 2):
        raise ValueError(
            f"`audio_map` must be [time, mel] patches, with `spectrogram`, got {tuple(audio_map.shape)} and "
            f"{None if spectrogram is None else tuple(spectrogram.shape)}."
        )


def _heading(modality: str, share: dict[str, float]) -> str:
    return f"{modality}: {share[modality]:.0%} of the patches' relevance" if share else modality


def evenly_spaced(count: int, at_most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(int)).tolist()


def _layout(frames: int, overlaid: bool) -> tuple[int, int]:
    """Rows and columns of the frames: with relevance two rows, or, for few frames, each frame next to its overlay."""
    if overlaid and 2 * frames <= MAX_FRAMES:
        return 1, max(2 * frames, MIN_COLUMNS)
    return 1 + overlaid, max(frames, MIN_COLUMNS)


def _draw_frames(
    part: Figure | SubFigure,
    frames: Tensor,
    video_map: Tensor | None,
    times: Sequence[float] | None,
    chosen: list[int],
    patch_size: tuple[int, int] | None,
    heading: str,
) -> None:
    rows, columns = _layout(len(chosen), video_map is not None)
    axes = part.subplots(rows, columns, squeeze=False)
    part.suptitle(heading, fontsize=11, x=0.01, ha="left")
    relative = None if video_map is None else (video_map / video_map.mean()).numpy()
    scale = None if relative is None else _colour_scale(relative)
    for axis in axes.flat:
        axis.set_visible(False)
    for position, index in enumerate(chosen):
        plain = axes[0, position if rows == 2 or relative is None else 2 * position]
        overlay = None if relative is None else axes[1, position] if rows == 2 else axes[0, 2 * position + 1]
        for axis in (plain, overlay):
            if axis is not None:
                axis.set_visible(True)
                axis.set_xticks([])
                axis.set_yticks([])
        frame = frames[index].permute(1, 2, 0).numpy()
        plain.imshow(frame, interpolation=interpolation_of(frame))
        if relative is not None:
            # Grey and dimmed below the overlay, so that a coloured object is not mistaken for relevance.
            grey = (frame @ np.array([0.299, 0.587, 0.114])) / 255
            overlay.imshow(0.15 + 0.7 * grey, cmap="gray", vmin=0, vmax=1, interpolation=interpolation_of(frame))
            tubelet = index * len(relative) // len(frames)
            covered = _covered_size(relative.shape[1:], frame.shape[:2], patch_size)
            _draw_overlay(overlay, relative[tubelet], (-0.5, covered[1] - 0.5, covered[0] - 0.5, -0.5), scale)
            overlay.set_xlim(-0.5, frame.shape[1] - 0.5)
            overlay.set_ylim(frame.shape[0] - 0.5, -0.5)
        if times is not None:
            for axis in {plain, overlay} - {None} if rows == 1 else {overlay}:
                axis.set_xlabel(f"{times[index]:.2f} s", fontsize=10)
    if scale is not None:
        _colour_bar(part, axes.ravel().tolist(), scale)


def _draw_spectrogram(
    part: Figure | SubFigure,
    spectrogram: Tensor,
    audio_map: Tensor | None,
    hop: float,
    audio_start: float,
    marks: Sequence[float],
    patch_size: tuple[int, int] | None,
    heading: str,
) -> None:
    axis = part.subplots()
    length, bands = spectrogram.shape
    end = audio_start + length * hop
    image = spectrogram.float().numpy().T
    # Percentiles: a few silent or clicking frames must not reduce the contrast.
    low, high = np.percentile(image, [1, 99.5])
    axis.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(audio_start, end, 0, bands),
    )
    if audio_map is not None:
        relative = (audio_map / audio_map.mean()).numpy()
        scale = _colour_scale(relative)
        covered = _covered_size(relative.shape, (length, bands), patch_size)
        _draw_overlay(
            axis, relative.T, (audio_start, audio_start + covered[0] * hop, 0, covered[1]), scale, origin="lower"
        )
        _colour_bar(part, [axis], scale)
    axis.set_xlim(audio_start, end)
    axis.set_ylim(0, bands)
    axis.set_xlabel("time (s)", fontsize=10)
    axis.set_ylabel("mel band", fontsize=10)
    axis.set_title(heading, fontsize=11, loc="left", pad=10 if len(marks) else 6)
    inside = [mark for mark in marks if audio_start <= mark <= end]
    axis.plot(
        inside,
        [1.025] * len(inside),
        "v",
        color="black",
        markersize=5,
        clip_on=False,
        transform=axis.get_xaxis_transform(),
    )


def _covered_size(grid: Sequence[int], size: Sequence[int], patch_size: tuple[int, int] | None) -> tuple[int, int]:
    """The size of the area that patches cover; the model never sees the remainder."""
    if patch_size is None:
        return size[0], size[1]
    return grid[0] * patch_size[0], grid[1] * patch_size[1]


def interpolation_of(frame: np.ndarray) -> str:
    # Pixels of tiny frames are drawn as squares; larger frames are smoothed when shrunk.
    return "nearest" if max(frame.shape[:2]) <= 128 else "antialiased"


def _colour_scale(relative: np.ndarray):
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = float(relative.min()), float(relative.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    return ScalarMappable(Normalize(low, high), colormaps[HEAT])


def _overlay_colours(scale, values: np.ndarray) -> np.ndarray:
    """RGBA of relevance values. Low relevance is nearly transparent, so that the frame below remains visible."""
    colours = scale.to_rgba(values)
    colours[..., 3] = 0.05 + 0.7 * np.clip(scale.norm(values), 0, 1)
    return colours


def _draw_overlay(axis: Axes, values: np.ndarray, extent: tuple[float, ...], scale, origin: str = "upper") -> None:
    axis.imshow(
        _overlay_colours(scale, values), extent=extent, origin=origin, interpolation="nearest", aspect=axis.get_aspect()
    )


def _colour_bar(part: Figure | SubFigure, axes: list[Axes], scale) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    # The bar shows the colours as they appear in the figure: over a dim grey, with the same transparency.
    colours = _overlay_colours(scale, np.linspace(*scale.get_clim(), 256))
    seen = colours[:, 3:] * colours[:, :3] + (1 - colours[:, 3:]) * 0.25
    bar = part.colorbar(ScalarMappable(scale.norm, ListedColormap(seen)), ax=axes, fraction=0.03, pad=0.01, aspect=18)
    bar.set_label("relevance\n(× mean patch)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
