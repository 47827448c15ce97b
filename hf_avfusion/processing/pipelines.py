"""pipeline("audio-visual-classification"): labels and scores of media files, from both modalities or from each alone."""

import os
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Pipeline
from transformers.utils import logging

from ..media.modalities import INPUT_MODALITIES, MODALITIES, MODEL_INPUTS
from ..media.sources import MediaError
from .answers import AGGREGATIONS, FUNCTIONS, answer_clip, check_segment_views
from .pipeline_inputs import Clips, as_many, check_loading, clip_arguments

logger = logging.get_logger(__name__)


class AudioVisualClassificationPipeline(Pipeline):
    """Classifies clips by their frames and their audio.

        classify = pipeline("audio-visual-classification", model="org/mbt-vggsound")
        classify("clip.mp4", top_k=3)                                        # [{"label": ..., "score": ...}, ...]
        classify(["a.mp4", "b.mp4"], batch_size=2, views=4)                  # a list of such lists
        classify("clip.mp4", return_modalities=True)                         # {"both": [...], "video": [...], "audio": [...]}
        for answer in classify(path for path in paths): ...                  # a generator gives one answer at a time

    A clip is one of
        - a media file: a path, a URL, bytes, a binary file object, a dict with `bytes` and `path` as in datasets, or a video or
          audio that datasets decoded with torchcodec;
        - a row of datasets' `Audio`: a dict with `array` and `sampling_rate`, without a video;
        - a dict with `video` (or `videos`) and/or `audio`. Each is a media file or an array: frames uint8 [T, H, W, C], a
          waveform float [samples] with `sampling_rate`. If both are files, the audio track is that of `audio`.
    A dict with files may have `start` and `end`, the bounds of the clip in the files in s. Other keys are refused, except the
    label columns of a benchmark's row, which has a `clip_id`.
    A list or a column of a `datasets.Dataset` returns a list and shows a progress bar. A generator, a column of a streamed
    dataset or a torch `Dataset` returns an iterator.

    Args of a call, and of `pipeline(...)` for all calls:
        top_k (int | None, defaults to 5): labels per clip (and head), best first; None returns all.
        views (int, defaults to 1): windows per file. Scores are averaged over them. An event localiser takes one.
        aggregation (str, defaults to "mean_logits"): "mean_logits" or "mean_probabilities": what to average over views.
        return_modalities (bool, defaults to False): return scores from both modalities and from each alone. A score is None
            if the clip lacks the modality or the model lacks its stream.
        function_to_apply (str, *optional*): "softmax" (of each head), "sigmoid" or "none"; the default follows the model's
            `problem_type`.
        batch_size (int, defaults to 1): clips per forward pass.
        num_workers (int, defaults to 0): decoding processes.
        progress (bool, *optional*): show a progress bar for a list; default: only for several clips and in a terminal.

    Returns:
        For each clip a list of `{"label": str, "score": float}`. A model with several heads (`class_splits`) returns
        `{head: list}`. An event localiser (`num_segments`) returns a list of segments in temporal order, each
        `{"start": float, "end": float, "labels": list}` with times in s from the start of the clip (of an array: from its
        start). They divide the window that the processor reads. It lies in the middle of the clip, so a processor with a
        window as long as the clip labels all of it. The window is that of the audio if the model and the clip have audio.
        A window that is longer than the clip ends after it. With `return_modalities`, a dict with the keys "both", "video" and
        "audio" holds one such result for each.

    Raises:
        ValueError: an invalid value of an argument, or several views for an event localiser.
        TypeError: an unknown argument, a clip of an unsupported type, or a dict with unknown keys.
        MediaError: a file that cannot be read; the message names it.
    `pipeline(...)` raises ValueError for a checkpoint without the weights of the head.
    """

    _load_processor = True
    _load_image_processor = _load_video_processor = _load_feature_extractor = _load_tokenizer = False
    clip_keys: tuple[str, ...] = ()  # keys of a clip passed as a dict that `preprocess` of a derived class reads

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        if hasattr(model, "check_weights"):
            model.check_weights()  # a pretraining checkpoint would answer from a random head
        check_loading(kwargs)
        super().__init__(model, *args, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | str | None = "default",
        views: int | None = None,
        aggregation: str | None = None,
        return_modalities: bool | None = None,
        function_to_apply: str | None = None,
        progress: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            known = "top_k, views, aggregation, return_modalities, function_to_apply, batch_size, num_workers, progress"
            name = self.task or type(self).__name__
            raise TypeError(f"the {name} pipeline has no arguments {', '.join(unknown)}; pass one of: {known}")
        for name, value in (
            ("top_k", 1 if top_k in (None, "default") else top_k),
            ("views", 1 if views is None else views),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        check_segment_views(self.model.config, views or 1, "views")
        for name, value, allowed in (
            ("aggregation", aggregation, AGGREGATIONS),
            ("function_to_apply", function_to_apply, FUNCTIONS),
        ):
            if value is not None and value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        preprocess = {} if views is None else {"views": views}
        forward = {} if return_modalities is None else {"return_modalities": return_modalities}
        given = {"aggregation": aggregation, "function_to_apply": function_to_apply}
        postprocess = {name: value for name, value in given.items() if value is not None} | forward
        if top_k != "default":
            postprocess["top_k"] = top_k
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, *, progress: bool | None = None, **kwargs: Any) -> Any:
        check_loading(kwargs)  # transformers ignores them for a single clip
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        many = as_many(inputs)
        if many is None:
            return super().__call__(inputs, **kwargs)
        if not isinstance(many, Clips):
            return super().__call__(many, **kwargs)
        answers = super().__call__(many, **kwargs)
        hidden = not progress if progress is not None else (None if len(many) > 1 else True)
        return list(logging.tqdm(answers, total=len(many), desc="clips", unit="clip", disable=hidden))

    # ------------------------------------------------------------------------------------------------------- one clip

    def preprocess(self, clip: Any, views: int = 1) -> dict[str, Any]:
        """One clip to `pixel_values` [views, T, C, H, W] and `input_features` [views, time, mel], either or both, and `windows`:
        start and end of the window of each modality that is there, s.
        """
        # Frames and waveforms have one view, and the processor refuses num_views for them.
        options = {"num_views": views} if views > 1 else {}
        inputs = self.processor(
            **clip_arguments(clip, self.clip_keys), **options, return_tensors="pt", return_windows=True
        )
        config = self.model.config
        modalities = [modality for modality in MODALITIES if modality in getattr(config, "modalities", MODALITIES)]
        used = {name: inputs[name] for name, each in INPUT_MODALITIES.items() if each in modalities and name in inputs}
        if not used:
            name = clip if isinstance(clip, (str, os.PathLike)) else "a clip"
            raise MediaError(str(name), f"has no {' and no '.join(modalities)}, which this model needs: leave it out")
        first = dict(zip(MODALITIES, inputs["windows"][0].tolist()))
        windows = {modality: first[modality] for modality in modalities if MODEL_INPUTS[modality] in used}
        return {**used, "windows": windows}

    # ------------------------------------------------------------------------------------------------------- a batch

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates clips [views, ...] to a batch [clips x views, ...]. Rows of a missing modality hold zeros and are masked."""
        present = [{modality: name in sample for modality, name in MODEL_INPUTS.items()} for sample in samples]
        views = next(len(samples[0][name]) for name in MODEL_INPUTS.values() if name in samples[0])
        batch: dict[str, Any] = {"views": views, "windows": [sample["windows"] for sample in samples]}
        for name in INPUT_MODALITIES:
            rows = [sample.get(name) for sample in samples]
            given = next((row for row in rows if row is not None), None)
            if given is not None:
                batch[name] = torch.cat([torch.zeros_like(given) if row is None else row for row in rows])
        if any(not all(row.values()) for row in present) and all(name in batch for name in MODEL_INPUTS.values()):
            mask = torch.tensor([list(row.values()) for row in present])
            batch["modality_mask"] = mask.repeat_interleave(views, dim=0)
        return batch

    def _forward(self, batch: dict[str, Any], return_modalities: bool = False) -> dict[str, Any]:
        """Logits [B, views, ...] from both modalities, and from each alone. Logits from a missing modality are undefined."""
        views, windows = batch.pop("views"), batch.pop("windows")
        floating = {name: batch[name].to(self.model.dtype) for name in INPUT_MODALITIES if name in batch}
        mask = {"modality_mask": batch["modality_mask"]} if "modality_mask" in batch else {}
        logits = {"both": self.model(**floating, **mask).logits}
        for modality in MODALITIES if return_modalities else ():
            given = {name: values for name, values in floating.items() if INPUT_MODALITIES[name] == modality}
            if given:
                # With only one modality in the batch, "both" already holds its logits.
                logits[modality] = self.model(**given).logits if len(given) < len(floating) else logits["both"]
        return {"logits": {k: v.float().unflatten(0, (-1, views)) for k, v in logits.items()}, "windows": windows}

    def postprocess(
        self,
        outputs: dict[str, Any],
        top_k: int | None = 5,
        aggregation: str = "mean_logits",
        function_to_apply: str | None = None,
        return_modalities: bool = False,
    ) -> Any:
        """Logits [1, views, classes] (or [1, views, segments, classes]) of one clip to labels and scores."""
        windows = outputs["windows"][0]
        windows = {**windows, "both": windows.get("audio", windows.get("video"))}
        options = {"top_k": top_k, "aggregation": aggregation, "function": function_to_apply}
        answers: dict[str, Any] = dict.fromkeys(MODEL_INPUTS)
        for name, logits in outputs["logits"].items():
            if name in windows:
                answers[name] = answer_clip(self.model.config, logits[0], windows[name], **options)
        return {"both": answers.pop("both"), **answers} if return_modalities else answers["both"]

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        if "views" not in model_inputs:  # a single clip, which no loader has collated
            model_inputs = self.collate([model_inputs])
        return super().forward(model_inputs, **forward_params)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yields one answer at a time. The inherited method cannot batch clips with a missing modality or several views."""
        if isinstance(inputs, Sized):
            clips = _Prepared(inputs, self.preprocess, preprocess_params)
        else:
            clips = _PreparedStream(inputs, self.preprocess, preprocess_params)
            if num_workers > 1:
                logger.warning(f"num_workers={num_workers}: one process reads an iterator of clips, so 1 is used")
                num_workers = 1
        loader = DataLoader(clips, batch_size=batch_size, num_workers=num_workers, collate_fn=self.collate)
        for batch in loader:
            outputs = self.forward(batch, **forward_params)
            for index, windows in enumerate(outputs["windows"]):
                logits = {name: value[index : index + 1] for name, value in outputs["logits"].items()}
                yield self.postprocess({"logits": logits, "windows": [windows]}, **postprocess_params)


class _Prepared(Dataset):
    def __init__(self, clips: Any, prepare: Any, options: dict[str, Any]):
        self.clips, self.prepare, self.options = clips, prepare, options

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.prepare(self.clips[index], **self.options)


class _PreparedStream(IterableDataset):
    def __init__(self, clips: Iterable[Any], prepare: Any, options: dict[str, Any]):
        self.clips, self.prepare, self.options = clips, prepare, options

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.prepare(clip, **self.options) for clip in self.clips)


__all__ = ["AudioVisualClassificationPipeline"]
