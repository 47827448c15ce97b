"""Reconstructions of a masked autoencoder: original, masked and reconstructed frames and spectrogram of a clip.

After figure A2 of "Audiovisual Masked Autoencoders" (Georgescu et al., ICCV 2023, supplementary).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from ..files import atomic_path
from ..media.modalities import MODALITIES, MODEL_INPUTS
from ..media.reader import MediaError
from .drawing import MAX_FRAMES, evenly_spaced, interpolation_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from ..media.reader import Clip, MediaSource
    from ..models.avmae.modeling_avmae import AVMAEForPreTraining

ROWS = ("original", "masked", "reconstruction")
WIDTH = 13.6  # inches
MARGIN = 0.55  # inches, for the row names
SPECTROGRAM_HEIGHT = 1.15  # inches, for each of the three
MASK_GREY = 0.6  # grey level of a masked patch
MAX_TRIES = 20  # clips that do not decode before the callback raises


@dataclass(frozen=True)
class Reconstruction:
    """One clip: the original, the masks and the reconstruction; None for a modality that was not given.

    frames, predicted_frames: float32 [T, 3, H, W], 0 to 1. hidden_pixels: bool [T, H, W], True where masked. frame_times: T times
    in s, or None. spectrogram, predicted_spectrogram: float32 [time, mel], in the units of the processor, cropped to whole patches.
    hidden_cells: bool [time, mel]. losses: {"video": ..., "audio": ...}, as in training. note: explanation of the figure.
    """

    frames: Tensor | None
    hidden_pixels: Tensor | None
    predicted_frames: Tensor | None
    frame_times: list[float] | None
    spectrogram: Tensor | None
    hidden_cells: Tensor | None
    predicted_spectrogram: Tensor | None
    losses: dict[str, float]
    note: str


@torch.no_grad()
def reconstruct(
    model: AVMAEForPreTraining,
    processor: ProcessorMixin,
    clip: Clip,
    *,
    seed: int = 0,
    masks: Mapping[str, Tensor] | None = None,
    keep_visible: bool = True,
) -> Reconstruction:
    """Masks a clip, reconstructs it with the model, and undoes the standardisation of targets.

    Args:
        model: in any mode; it runs in evaluation mode, and its mode is restored. Global random state is not used.
        processor: the model's own.
        clip: from `processor.load_clip`. A modality that the clip or the model lacks is skipped.
        seed: seed of random masks with the model's ratios. masks: explicit masks instead: `video_visible`, `audio_visible`,
            `video_mask` or `audio_mask` with one row, as in the model's `forward`.
        keep_visible: show the original at visible patches, so that only masked patches are predictions. False shows the prediction
            everywhere (visible patches are not trained, unless `loss_on_visible_tokens`).

    With `target_standardization` the model predicts patches of mean 0 and variance 1. The mean and deviation of each *original*
    patch are applied, which shows brightness and loudness that the model did not predict; the note states this. In modality
    inpainting, each modality is predicted from the other's visible tokens. The original is then shown at the patches without a
    loss, not at those that the encoder processed.

    Raises:
        ValueError: the clip has no modality of the model, or only one in inpainting.
    """
    config = model.config
    features = processor.process_clips([clip], return_tensors="pt")
    inputs = {m: features[MODEL_INPUTS[m]] for m in config.modalities if MODEL_INPUTS[m] in features}
    if not inputs:
        raise ValueError(
            f"The clip must have one of the model's modalities ({', '.join(config.modalities)}), but has none. Give another clip."
        )
    if masks is None:
        drawn = model.draw_masks(1, torch.Generator().manual_seed(seed), "cpu")
        masks = {f"{modality}_visible": drawn[f"{modality}_visible"] for modality in inputs}
    given = {MODEL_INPUTS[modality]: value.to(model.device, model.dtype) for modality, value in inputs.items()}
    training = model.training
    model.eval()
    try:
        output = model(**given, **{name: value.to(model.device) for name, value in masks.items()})
        shown = dict(zip(MODALITIES, model.reconstruct(output, **given, keep_visible=keep_visible)))
    finally:
        model.train(training)
    losses = {m: float(getattr(output, f"{m}_loss")) for m in inputs}
    ph, pw = config.patch_hw
    frames = hidden_pixels = predicted = times = None
    if "video" in inputs:
        frames, predicted = inputs["video"][0].float(), shown["video"][0].float().cpu()
        times = None if clip.frame_times is None else torch.as_tensor(clip.frame_times)
        hidden_pixels = output.video_mask[0].bool().cpu().view(config.video_grid)
        hidden_pixels = hidden_pixels.repeat_interleave(ph, dim=1).repeat_interleave(pw, dim=2)
        if config.central_frame_target:
            middle = slice(config.tubelet_size // 2, None, config.tubelet_size)
            frames, times = frames[middle], None if times is None else times[middle]
        else:
            hidden_pixels = hidden_pixels.repeat_interleave(config.tubelet_size, dim=0)
        frames, predicted = (_as_pixels(each, processor.video_processor) for each in (frames, predicted))
        times = None if times is None else times.tolist()
    spectrogram = hidden_cells = predicted_audio = None
    if "audio" in inputs:
        predicted_audio = shown["audio"][0].float().cpu()
        if config.num_audio_channels > 1:  # equal channels
            predicted_audio = predicted_audio.mean(dim=0)
        spectrogram = inputs["audio"][0][: predicted_audio.shape[0], : predicted_audio.shape[1]]
        hidden_cells = output.audio_mask[0].bool().cpu().view(config.audio_grid)
        hidden_cells = hidden_cells.repeat_interleave(ph, dim=0).repeat_interleave(pw, dim=1)
    note = _note(config, keep_visible)
    return Reconstruction(
        frames, hidden_pixels, predicted, times, spectrogram, hidden_cells, predicted_audio, losses, note
    )  # fmt: skip


def draw_reconstruction(
    path: str | os.PathLike,
    reconstruction: Reconstruction,
    *,
    hop: float = 0.01,
    audio_start: float = 0.0,
    title: str = "",
    dpi: int = 110,
) -> None:
    """Writes one PNG atomically: three rows of up to 8 evenly spaced frames, and below or next to them three spectrograms.

    Args:
        path: file to write; its folder must exist.
        hop: seconds per spectrogram frame. audio_start: time in s of the first.
        title: heading, with the reconstruction's note below it.
        dpi: dots per inch.

    Masked patches are grey. The three spectrograms have one scale, that of the original.
    """
    # No pyplot: it would change the caller's global state.
    from matplotlib.figure import Figure

    made = reconstruction
    chosen = [] if made.frames is None else evenly_spaced(len(made.frames), MAX_FRAMES)
    # Few frames are drawn next to the spectrograms, row by row; many frames above them.
    side_by_side = 0 < len(chosen) <= MAX_FRAMES // 2 and made.spectrogram is not None
    columns = max(len(chosen), MAX_FRAMES // 2)
    width = WIDTH / 2 if side_by_side else WIDTH
    sizes = []
    if chosen:
        side = (width - MARGIN) / columns * made.frames.shape[-2] / made.frames.shape[-1]
        sizes.append(3 * (side + 0.08) + 0.3)
    if made.spectrogram is not None:
        sizes.append(3 * SPECTROGRAM_HEIGHT + 0.5)
    lines = [text for text in (title, made.note) if text]
    height = (max(sizes) if side_by_side else sum(sizes)) + 0.26 * len(lines) + 0.1
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=11)
    if side_by_side:
        parts = figure.subfigures(1, 2, squeeze=False)[0]
    else:
        parts = figure.subfigures(len(sizes), 1, height_ratios=sizes, squeeze=False)[:, 0]
    if chosen:
        _draw_frames(parts[0], made, chosen, columns)
    if made.spectrogram is not None:
        _draw_spectrograms(parts[-1], made, hop, audio_start)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def draw_file_reconstruction(
    model: AVMAEForPreTraining,
    processor: ProcessorMixin,
    source: MediaSource,
    path: str | os.PathLike,
    *,
    reading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Reconstruction:
    """Reads a media file, reconstructs its window and draws it, with the file's name as title.

    Args:
        source: path, URL, bytes, binary file object, or a dict with `bytes` and `path`.
        path: file to write as PNG.
        reading: arguments of `processor.load_clip`, such as start=, end=, backend=, or tracks=("audio",), which skips the video.
        options: arguments of [`reconstruct`].

    Raises:
        MediaError: the file cannot be read. ValueError: as [`reconstruct`].
    """
    (clip,) = processor.load_clip(source, **{"tracks": tuple(model.config.modalities), **(reading or {})})
    made = reconstruct(model, processor, clip, **options)
    _draw_clip(path, made, processor, clip, Path(clip.info.name).name)
    return made


def check_not_sharded(args: TrainingArguments) -> None:
    """Checks that one process of the training has the whole model, which drawing needs.

    Raises:
        ValueError: FSDP or DeepSpeed's ZeRO-3 shards the model.
    """
    if args.fsdp or (args.deepspeed and args.hf_deepspeed_config.is_zero3()):
        raise ValueError(
            "Reconstructions need the whole model in one process, but FSDP and DeepSpeed's ZeRO-3 shard it: disable them"
            " (--picture_steps 0) and draw them from a checkpoint after training."
        )


class ReconstructionCallback(TrainerCallback):
    """Draws the same clip with the same mask every few steps, so that the progress of a training can be compared.

    The first process writes `<output_dir>/reconstructions/step-000100.png`. Training is bit-identical with and without the
    callback: masks have their own generator.

    Args:
        processor: the model's.
        clips: media sources, or rows of a benchmark (`video`, `start`, `end`); the first one that decodes is drawn.
        every: steps between figures.
        seed: of the mask.
        allow_urls: fetch rows whose path is an address, as in `ClipTransform`.
        options: arguments of [`reconstruct`].

    Raises:
        ValueError: when training begins, if none of the first 20 clips decodes or the model is sharded (FSDP, ZeRO-3), so that
            one process cannot run it.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        clips: Iterable[Any],
        every: int,
        *,
        seed: int = 0,
        allow_urls: bool = False,
        **options: Any,
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}; to draw none, omit the callback")
        self.processor, self.clips, self.every, self.options = processor, clips, every, {"seed": seed, **options}
        self.allow_urls = allow_urls
        self._clip: Clip | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        check_not_sharded(args)
        if state.is_world_process_zero:
            self._clip = self._first_decodable(tuple(model.config.modalities))
            (Path(args.output_dir) / "reconstructions").mkdir(parents=True, exist_ok=True)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self._clip is None or state.global_step % self.every:
            return
        made = reconstruct(model, self.processor, self._clip, **self.options)
        name = Path(self._clip.info.name).name
        losses = "  ".join(f"{modality} loss {value:.4f}" for modality, value in made.losses.items())
        path = Path(args.output_dir) / "reconstructions" / f"step-{state.global_step:06d}.png"
        _draw_clip(path, made, self.processor, self._clip, f"step {state.global_step:,}   {name}   {losses}")

    def _first_decodable(self, tracks: tuple[str, ...]) -> Clip:
        failed = []
        for source in islice(self.clips, MAX_TRIES):
            in_row = isinstance(source, Mapping) and "video" in source
            row = source if in_row else {"video": source}
            allow_urls = self.allow_urls or (False if in_row else None)
            times = {name: row[name] for name in ("start", "end") if row.get(name) is not None}
            try:
                return self.processor.load_clip(row["video"], tracks=tracks, allow_urls=allow_urls, **times)[0]
            except (MediaError, FileNotFoundError) as error:
                failed.append(str(error))
        raise ValueError(
            f"No clip can be drawn: {'; '.join(failed[:3]) or 'none was given'}. Give other clips, or omit the callback."
        )


def _draw_clip(path, made: Reconstruction, processor: ProcessorMixin, clip: Clip, title: str) -> None:
    extractor = processor.feature_extractor
    hop = extractor.hop_length / extractor.sampling_rate
    draw_reconstruction(path, made, hop=hop, audio_start=clip.audio_start or 0.0, title=title)


def _note(config: Any, keep_visible: bool) -> str:
    inpainting = config.objective == "modality_inpainting"
    parts = ["each modality from the other's visible patches" if inpainting else ""]
    if not keep_visible:
        parts.append("prediction shown everywhere")
    elif inpainting:
        parts.append("original shown at patches without a loss")
    else:
        parts.append("original shown at visible patches")
    standardized = {"patch": "patches", "patch_channels": "frames' patches, per colour,"}.get(
        config.target_standardization
    )
    if standardized:
        parts.append(f"predicted {standardized} are standardised: shown with the mean and deviation of the original")
    return "; ".join(part for part in parts if part)


def _as_pixels(frames: Tensor, video_processor: Any) -> Tensor:
    """Undoes the processor's normalisation: [T, C, H, W] -> 0 to 1."""
    if video_processor.do_normalize:
        mean, deviation = video_processor.image_mean, video_processor.image_std
        frames = frames * torch.tensor(deviation).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    frames = frames / (255 * (video_processor.rescale_factor if video_processor.do_rescale else 1.0))
    return frames.clamp(0, 1)


def _draw_frames(part, made: Reconstruction, chosen: list[int], columns: int) -> None:
    axes = part.subplots(3, columns, squeeze=False)
    masked = torch.where(made.hidden_pixels[:, None], MASK_GREY, made.frames)
    for row, (name, frames) in enumerate(zip(ROWS, (made.frames, masked, made.predicted_frames))):
        for column in range(columns):
            axis = axes[row, column]
            if column >= len(chosen):
                axis.set_visible(False)
                continue
            index = chosen[column]
            image = frames[index].permute(1, 2, 0).expand(-1, -1, 3).numpy()
            axis.imshow(image, interpolation=interpolation_of(image), vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name, fontsize=11)
            if row == 2 and made.frame_times is not None:
                axis.set_xlabel(f"{made.frame_times[index]:.2f} s", fontsize=10)


def _draw_spectrograms(part, made: Reconstruction, hop: float, start: float) -> None:
    from matplotlib import colormaps

    axes = part.subplots(3, 1, sharex=True)
    length, bands = made.spectrogram.shape
    original = made.spectrogram.float().numpy()
    low, high = np.percentile(original, [1, 99.5])  # silent or clicking frames must not reduce the contrast
    colours = colormaps["magma"].with_extremes(bad=str(MASK_GREY))
    masked = np.ma.masked_where(made.hidden_cells.numpy(), original)
    for axis, name, values in zip(axes, ROWS, (original, masked, made.predicted_spectrogram.numpy())):
        image = axis.imshow(
            values.T,
            cmap=colours,
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(start, start + length * hop, 0, bands),
        )
        axis.set_ylabel(name, fontsize=11)
        axis.set_yticks([0, bands])
    axes[-1].set_xlabel("time (s); vertical: mel band", fontsize=10)
    bar = part.colorbar(image, ax=axes.tolist(), fraction=0.02, pad=0.01, aspect=30)
    bar.set_label("log-mel, as input to the model", fontsize=9)
    bar.ax.tick_params(labelsize=8)
