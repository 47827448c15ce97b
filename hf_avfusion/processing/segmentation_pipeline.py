"""pipeline("audio-visual-segmentation"): masks of what sounds in films of any length, and films with these masks drawn on them."""

import math
import os
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import logging

from ..media.film import write_mp4
from ..media.limits import check_bytes
from ..media.modalities import MODALITIES, MODEL_INPUTS
from ..media.reader import ClipReader, ClipRequest
from ..media.sources import MediaError, check_row_path
from ..media.windows import segment_of
from .array_inputs import encoded, is_media
from .mask_overlay import draw_mask, outline_of
from .pipeline_inputs import Clips, as_many, check_loading, clip_arguments

logger = logging.get_logger(__name__)

NAME = "audio-visual-segmentation"
OPTIONS = ("output", "window_seconds", "batch_size", "progress")
MIN_REST = 0.05  # s; a shorter rest at the end of a film belongs to the window before it


class AudioVisualSegmentationPipeline(Pipeline):
    """Finds the pixels of what sounds, in films of any length.

        segment = pipeline("audio-visual-segmentation", model="org/lavish-avsbench-s4")
        segment("clip.mp4")                                  # [{"start": 0.0, "end": 1.0, "mask": ..., "score": ...}, ...]
        segment("clip.mp4", output="overlay.mp4")            # also writes the film with the masks, and with its sound
        segment({"path": "film.mkv", "start": 60, "end": 90}, batch_size=4)

    A film is read in windows one after the other, each as long as the clips of the training. The model divides a window into
    segments (AVSBench-S4: 5 of 1 s) and gives a mask for each. The last window ends with the film: where it overlaps the one
    before, that one counts. A film shorter than a window is divided into the same number of segments.

    A clip is one of those of `pipeline("audio-visual-classification")`: a media file (a path, a URL, bytes, a binary file object, a
    dict with `bytes` and `path`), with `start` and `end` in a dict; or a dict with arrays, frames `video` (one per segment) and a
    waveform `audio` with `sampling_rate`. A film without sound is answered from its frames alone.

    Args of a call, and of `pipeline(...)` for all calls:
        output (path, *optional*): MP4 file to write, for one clip: its frames with the mask of their time tinted and outlined, and
            its sound. It is written at once, when it is complete (H.264 and AAC).
        window_seconds (float, *optional*): length of a window; default: the processor's segments times their seconds.
        batch_size (int, defaults to 1): windows per forward pass.
        progress (bool, *optional*): show a progress bar for a list of clips.

    Returns:
        For each clip a list of segments in temporal order, each `{"start": float, "end": float, "mask": tensor, "score": float or
        None}`, with times in s from the start of the clip. The mask is bool [height, width], of the size of the film's frames
        (upright). The score is the mean probability of the pixels in the mask, None for an empty mask.

    Raises:
        ValueError: an invalid value of an argument, or masks that take too much memory together.
        TypeError: an unknown argument, or a clip of an unsupported type.
        MediaError: a file that cannot be read or has no video; the message names it.
    """

    _load_processor = True
    _load_image_processor = _load_video_processor = _load_feature_extractor = _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        check_loading(kwargs)
        super().__init__(model, *args, **kwargs)
        if self.processor.window["num_segments"] is None:
            raise ValueError(
                "the processor of this checkpoint has no segments (num_segments), so it cannot give masks of them"
            )

    def _sanitize_parameters(
        self, output: Any = None, window_seconds: float | None = None, progress: bool | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"the {self.task or NAME} pipeline has no arguments {', '.join(unknown)}; pass one of: {', '.join(OPTIONS)}"
            )
        if window_seconds is not None:
            number = isinstance(window_seconds, (int, float)) and not isinstance(window_seconds, bool)
            if not number or not math.isfinite(window_seconds) or window_seconds <= 0:
                raise ValueError(f"window_seconds must be a positive number of seconds, got {window_seconds!r}")
        if output is not None:
            check_output(output)
        given = {"window_seconds": window_seconds, "output": output}
        preprocess = {name: value for name, value in given.items() if value is not None}
        return preprocess, {}, {}

    def __call__(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        check_loading({"batch_size": batch_size})
        if num_workers:
            raise ValueError(f"num_workers={num_workers}: one process decodes the windows of a film: leave it out")
        if batch_size is not None:
            self._batch_size = batch_size
        many = [] if isinstance(inputs, (list, tuple)) and not inputs else as_many(inputs)
        if many is None:
            return super().__call__(inputs, **kwargs)
        if (kwargs.get("output") or self._preprocess_params.get("output")) is not None:
            raise ValueError(
                "output is the film of one clip, but several clips were passed: call the pipeline for each"
            )
        answers = (Pipeline.__call__(self, clip, **kwargs) for clip in many)
        if not isinstance(many, Clips) and many != []:
            return answers
        hidden = not progress if progress is not None else (None if len(many) > 1 else True)
        return list(logging.tqdm(answers, total=len(many), desc="clips", unit="clip", disable=hidden))

    # ------------------------------------------------------------------------------------------------------- the three steps

    def preprocess(self, clip: Any, window_seconds: float | None = None, output: Any = None) -> dict[str, Any]:
        """The windows of a clip, start and end in s on the clock of its file, and the size of its frames; decodes one frame.

        A film that cannot be written to `output` is refused here, before the masks are computed.
        """
        arguments = clip_arguments(clip)
        start, end = arguments.pop("start", None), arguments.pop("end", None)
        video = arguments["videos"][0] if isinstance(arguments["videos"], list) else arguments["videos"]
        if video is None:
            raise ValueError("a clip for segmentation needs frames or a media file as its `video`: masks are of frames")
        if not is_media(video):
            if start is not None or end is not None:
                raise ValueError(
                    "`start` and `end` are bounds in a file, but frames were passed as an array: leave them out"
                )
            if output is not None:
                raise ValueError("output is a film of a file, but this clip was passed as arrays: leave output out")
            return {"arguments": arguments, "windows": None}
        source, name = _source_of(video)
        if output is not None:
            _check_film(source, arguments, output)
        with ClipReader(source, name=name) as reader:
            info = segment_of(reader.info, start, end)
            if not info.has_video:
                raise MediaError(info.name, "has no video, of which masks are")
            reader.read([ClipRequest([info.video_start])])  # the size is exact once a frame has been decoded
            size = reader.info.height, reader.info.width
        window = self.processor.window
        length = window_seconds or window["num_segments"] * window["segment_seconds"]
        windows = windows_of(info.video_start, info.video_start + info.video_duration, length)
        count = len(windows) * window["num_segments"]
        check_bytes(
            count * size[0] * size[1],
            f"the masks of {count} segments of {size[1]} x {size[0]} pixels",
            "Pass parts of the film, {'path': ..., 'start': ..., 'end': ...}, or a longer window_seconds.",
        )
        return {
            "arguments": arguments,
            "windows": windows,
            "size": size,
            "bounds": (start, end),
            "begin": start or 0.0,
            "film": (source, name),
            "output": output,
        }

    def _forward(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Adds `logits`, float32 [windows, segments, height, width] on the CPU, at the size of the model's masks."""
        windows, arguments, logits = plan["windows"], plan["arguments"], []
        if windows is None:
            return {**plan, "logits": self._logits(arguments)}
        batch = self._batch_size or 1
        for first in range(0, len(windows), batch):
            part = windows[first : first + batch]
            files = {
                name: [arguments[name][0] if isinstance(arguments[name], list) else arguments[name]] * len(part)
                for name in ("videos", "audio")
                if arguments.get(name) is not None
            }
            bounds = {"start": [begin for begin, _ in part], "end": [end for _, end in part]}
            logits.append(self._logits({**arguments, **files, **bounds}))
        return {**plan, "logits": torch.cat(logits)}

    def _logits(self, arguments: dict[str, Any]) -> torch.Tensor:
        inputs = self.processor(**arguments, return_tensors="pt")
        used = getattr(self.model.config, "modalities", MODALITIES)
        names = [MODEL_INPUTS[modality] for modality in MODALITIES if modality in used]
        given = {name: inputs[name].to(self.device, self.model.dtype) for name in names if name in inputs}
        if "modality_mask" in inputs:
            given["modality_mask"] = inputs["modality_mask"].to(self.device)
        with torch.no_grad():
            return self.model(**given).logits.float().cpu()

    def postprocess(self, plan: dict[str, Any]) -> list[dict[str, Any]]:
        """The segments of a clip, and its film in `output`."""
        logits, windows = plan["logits"], plan["windows"]
        if windows is None:
            return self._answer_arrays(plan)
        segments, begin = [], plan["begin"]
        for (start, end), covered, each in zip(windows, (windows[0][0], *(stop for _, stop in windows)), logits):
            edges = np.linspace(start, end, len(each) + 1).tolist()
            kept = [index for index, stop in enumerate(edges[1:]) if stop > covered + 1e-6]
            masks = self.processor.post_process_masks(each[None, kept], [plan["size"]])[0]
            for index, mask in zip(kept, masks):
                times = {"start": max(edges[index], covered) - begin, "end": edges[index + 1] - begin}
                segments.append({**times, "mask": mask, "score": _score(each[index])})
        if plan["output"] is not None:
            self._write(plan, segments)
        return segments

    def _answer_arrays(self, plan: dict[str, Any]) -> list[dict[str, Any]]:
        (logits,), video = plan["logits"], plan["arguments"]["videos"]
        frames = np.asarray(video[0] if isinstance(video, list) else video)
        height, width = frames.shape[-3:-1] if frames.shape[-1] in (1, 3) else frames.shape[-2:]
        (masks,) = self.processor.post_process_masks(logits[None], [(height, width)])
        seconds = self.processor.window["segment_seconds"]
        return [
            {"start": index * seconds, "end": (index + 1) * seconds, "mask": mask, "score": _score(each)}
            for index, (mask, each) in enumerate(zip(masks, logits))
        ]

    def _write(self, plan: dict[str, Any], segments: list[dict[str, Any]]) -> None:
        source, name = plan["film"]
        overlay = _Overlay(segments, plan["begin"])
        output = Path(plan["output"])
        partial = output.with_name(f"{output.name}.partial")
        start, end = plan["bounds"]
        with ClipReader(source, name=name) as reader:
            info = segment_of(reader.info, start, end)
            notes = write_mp4(str(partial), reader, info, plan["begin"], draw=overlay)
        os.replace(partial, output)
        for note in notes:
            logger.warning(f"{info.name}: {note}")


class _Overlay:
    """Draws the mask of a frame's time on the frame."""

    def __init__(self, segments: list[dict[str, Any]], begin: float):
        self.segments, self.begin = segments, begin
        self.ends = [each["end"] for each in segments]
        self.current, self.shape = -1, None
        self.mask = self.outline = None

    def __call__(self, frame: np.ndarray, time: float) -> np.ndarray:
        number = min(bisect_right(self.ends, time - self.begin), len(self.segments) - 1)
        if (number, frame.shape) != (self.current, self.shape):
            self.current, self.shape = number, frame.shape
            mask = self.segments[number]["mask"]
            if mask.shape != frame.shape[:2]:  # the film's sizes are even
                resized = torch.nn.functional.interpolate(
                    mask[None, None].float(), frame.shape[:2], mode="nearest-exact"
                )
                mask = resized[0, 0] > 0
            self.mask = mask.numpy()
            self.outline = outline_of(self.mask)
        return draw_mask(frame, self.mask, self.outline)


def windows_of(start: float, stop: float, length: float) -> list[tuple[float, float]]:
    """Windows of `length` s from `start` on, the last of which ends at `stop`. One window, from start to stop, if it is shorter."""
    if stop - start <= length + MIN_REST:
        return [(start, stop)]
    count = math.ceil((stop - start - MIN_REST) / length)
    starts = [start + number * length for number in range(count - 1)]
    return [*pairwise([*starts, starts[-1] + length]), (stop - length, stop)]


def _check_film(source: Any, arguments: dict[str, Any], output: Any) -> None:
    """Raises ValueError if the film of a clip cannot be written to `output`."""
    if arguments.get("audio") is not None:
        raise ValueError("output is written with the film's own sound: leave either output or the clip's `audio` out")
    local = isinstance(source, (str, os.PathLike)) and os.path.exists(source) and os.path.exists(output)
    if local and os.path.samefile(source, output):
        raise ValueError(f"output={str(output)!r} is the clip itself, which would be lost: choose another file")


def check_output(output: Any) -> None:
    """Raises ValueError if a film cannot be written to `output`."""
    if not isinstance(output, (str, os.PathLike)):
        raise ValueError(f"output must be the path of a film to write, got a {type(output).__name__}")
    path = Path(output)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"output must end in .mp4, got {str(output)!r}: films are written as MP4")
    if path.is_dir():
        raise ValueError(f"output={str(output)!r} is a folder; give a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"output={str(output)!r}: its folder does not exist; create it")


def _source_of(video: Any) -> tuple[Any, str | None]:
    """What a media file is opened from, and its name for messages."""
    video = encoded(video)
    if not isinstance(video, dict):
        return video, None
    if video.get("bytes") is not None:
        return video["bytes"], video.get("path")
    if video.get("path") is None:
        raise MediaError("a clip", "has neither bytes nor a path")
    check_row_path(video["path"], allow_urls=False)
    return video["path"], None


def _score(logits: torch.Tensor) -> float | None:
    inside = logits[logits > 0]
    return inside.sigmoid().mean().item() if len(inside) else None


__all__ = ["AudioVisualSegmentationPipeline"]
