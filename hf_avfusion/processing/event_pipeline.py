"""pipeline("audio-visual-event-localization"): the events of a clip with their start and end."""

from itertools import groupby
from typing import Any

from .pipelines import AudioVisualClassificationPipeline


class AudioVisualEventLocalizationPipeline(AudioVisualClassificationPipeline):
    """Finds what happens when in clips: successive segments of one class are one event.

        localize = pipeline("audio-visual-event-localization", model="org/lavish-ave")
        localize("clip.mp4")                # [{"label": "Church bell", "start": 2.0, "end": 7.0, "score": 0.93}, ...]
        localize("clip.mp4", background=None)                                         # also the time without an event
        localize(["a.mp4", "b.mp4"], batch_size=2, return_modalities=True)

    For models that give a class for each of `num_segments` parts of a clip, of any architecture. Clips are as in
    `AudioVisualClassificationPipeline`, which gives the classes of each segment.

    Args of a call, and of `pipeline(...)` for all calls:
        background (str or list[str], *optional*, defaults to "background"): labels of time without an event, whose spans are left
            out; None: all spans are returned.
        return_modalities, batch_size, num_workers, progress: as in `AudioVisualClassificationPipeline`.

    Returns:
        For each clip a list of `{"label": str, "start": float, "end": float, "score": float}` in temporal order, with times in s
        from the start of the clip. The score is the mean probability of the label over the span. A model with several heads
        (`class_splits`) returns `{head: list}`. With `return_modalities`, a dict with the keys "both", "video" and "audio" holds
        one such result for each.

    Raises:
        ValueError: an invalid value of an argument, or a model without segments.
        TypeError, MediaError: as in `AudioVisualClassificationPipeline`.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        if getattr(model.config, "num_segments", None) is None:
            raise ValueError(
                f"{type(model).__name__} gives one answer for a clip (num_segments is None), not events: use "
                'pipeline("audio-visual-classification")'
            )
        super().__init__(model, *args, **kwargs)

    def _sanitize_parameters(
        self,
        background: str | list[str] | None = "default",
        return_modalities: bool | None = None,
        progress: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            known = "background, return_modalities, batch_size, num_workers, progress"
            name = self.task or type(self).__name__
            raise TypeError(f"the {name} pipeline has no arguments {', '.join(unknown)}; pass one of: {known}")
        preprocess, forward, postprocess = super()._sanitize_parameters(return_modalities=return_modalities)
        if background != "default":
            postprocess["background"] = background
        return preprocess, forward, postprocess

    def postprocess(
        self,
        outputs: dict[str, Any],
        background: str | list[str] | None = "background",
        return_modalities: bool = False,
    ) -> Any:
        """Logits of one clip to events."""
        left_out = {background} if isinstance(background, str) else set(background or ())
        answers = super().postprocess(outputs, top_k=1, return_modalities=return_modalities)
        if not return_modalities:
            return spans_of(answers, left_out)
        return {name: None if answer is None else spans_of(answer, left_out) for name, answer in answers.items()}


def spans_of(segments: list[dict[str, Any]], left_out: set[str] = frozenset()) -> Any:
    """Joins successive segments with the same best label.

    Args:
        segments: `{"start", "end", "labels"}` of each, as `answers.answer_clip` gives them.
        left_out: labels whose spans are not returned.
    """
    if segments and isinstance(segments[0]["labels"], dict):
        heads = segments[0]["labels"]
        return {
            head: spans_of([{**each, "labels": each["labels"][head]} for each in segments], left_out) for head in heads
        }
    spans = []
    for label, group in groupby(segments, key=lambda each: each["labels"][0]["label"]):
        parts = list(group)
        scores = [part["labels"][0]["score"] for part in parts]
        times = {"start": parts[0]["start"], "end": parts[-1]["end"]}
        spans.append({"label": label, **times, "score": sum(scores) / len(scores)})
    return [span for span in spans if span["label"] not in left_out]


__all__ = ["AudioVisualEventLocalizationPipeline"]
