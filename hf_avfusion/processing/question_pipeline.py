"""pipeline("audio-visual-question-answering"): answers to one or several questions about a media file."""

from typing import Any

import torch

from ..media.modalities import MODEL_INPUTS
from .answers import answer_questions
from .pipelines import AudioVisualClassificationPipeline


class AudioVisualQuestionAnsweringPipeline(AudioVisualClassificationPipeline):
    """Answers questions about clips.

        answer = pipeline("audio-visual-question-answering", model="org/lavish-music-avqa")
        answer("clip.mp4", text="How many instruments are sounding?", top_k=3)     # [{"answer": ..., "score": ...}, ...]
        answer("clip.mp4", text=["Where is the piano?", "Is it loud?"])            # a list of such lists, one for each question
        answer(["a.mp4", "b.mp4"], text="Where is the piano?")                     # the same question about each clip
        answer({"video": "clip.mp4", "text": "Where is the piano?"})               # a clip with a question of its own
        answer([{"video": "a.mp4", "text": "Where is the piano?"}, {"video": "b.mp4", "question": "Is it loud?"}])

    Several questions about a clip cost one pass of the streams. Clips are as in `AudioVisualClassificationPipeline`. A clip passed
    as a dict may hold its questions as `text` or `question`: a question, or a list. A row of a benchmark, which has a `clip_id`,
    has them as `question`. Other unknown keys are refused.

    Args of a call, and of `pipeline(...)` for all calls:
        text (str or list[str], *optional*): questions about every clip without questions of its own.
        top_k (int | None, defaults to 5): answers to each question, best first; None returns all.
        batch_size, num_workers, progress: as in `AudioVisualClassificationPipeline`.

    Returns:
        For each clip a list of `{"answer": str, "score": float}`, or for a list of questions a list of such lists.

    Raises:
        ValueError: an invalid value of an argument, a clip without a question, a question in both places, or one that is empty, too
            long or has an unknown word.
        TypeError: an unknown argument, a clip or question of an unsupported type, or a dict with unknown keys.
        MediaError: a file that cannot be read; the message names it.
    """

    clip_keys = ("text", "question")

    def _sanitize_parameters(
        self,
        text: str | list[str] | None = None,
        top_k: int | str | None = "default",
        progress: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            name = self.task or type(self).__name__
            known = "text, top_k, batch_size, num_workers, progress"
            raise TypeError(f"the {name} pipeline has no arguments {', '.join(unknown)}; pass one of: {known}")
        if text is not None:
            self.processor.encode_questions(_as_list(text))  # wrong questions fail before a clip is decoded
        _, _, postprocess = super()._sanitize_parameters(top_k=top_k, progress=progress)
        return {} if text is None else {"text": text}, {}, postprocess

    def preprocess(self, clip: Any, text: Any = None) -> dict[str, Any]:
        """One clip to its inputs, with `input_ids` [1, questions, length]. `windows` also holds whether `text` is a list."""
        keys = self.clip_keys if not isinstance(clip, dict) or "clip_id" not in clip else ("question",)
        own = {key: clip[key] for key in keys if clip.get(key) is not None} if isinstance(clip, dict) else {}
        if len(own) > 1 or (own and text is not None):
            places = [f"the clip's {key!r}" for key in own] + ["the argument text"] * (text is not None)
            raise ValueError(f"a clip has questions in {' and '.join(places)}: give them in one place")
        text = next(iter(own.values()), text)
        if text is None:
            raise ValueError("a clip has no question: pass text=, or a dict with `video` and `text`")
        words = torch.from_numpy(self.processor.encode_questions(_as_list(text)))
        sample = super().preprocess(clip)
        return {**sample, "windows": {"several": not isinstance(text, str)}, "input_ids": words}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates clips; those with fewer questions are padded, and `windows` holds their number."""
        words = [sample["input_ids"] for sample in samples]
        most = max(map(len, words))
        padded = [torch.cat([each, each.new_zeros(most - len(each), each.shape[1])]) for each in words]
        for sample, each in zip(samples, words):
            sample["windows"]["questions"] = len(each)
        return {**AudioVisualClassificationPipeline.collate(samples), "input_ids": torch.stack(padded)}

    def _forward(self, batch: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        """Logits [B, 1 view, questions, answers]; those of padding are undefined."""
        floating = {name: batch[name].to(self.model.dtype) for name in MODEL_INPUTS.values() if name in batch}
        others = {name: batch[name] for name in ("modality_mask", "input_ids") if name in batch}
        logits = self.model(**floating, **others).logits.float()
        return {"logits": {"both": logits[:, None]}, "windows": batch["windows"]}

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = 5) -> Any:
        """Logits [1, 1 view, questions, answers] of one clip to answers and scores."""
        (about,) = outputs["windows"]
        logits = outputs["logits"]["both"][0][:, : about["questions"]]
        answers = [
            [{"answer": each["label"], "score": each["score"]} for each in best]
            for best in answer_questions(self.model.config, logits, top_k=top_k)
        ]
        return answers if about["several"] else answers[0]


def _as_list(text: Any) -> list[Any]:
    if not isinstance(text, (str, list, tuple)):
        raise TypeError(f"text must be a question or a list of questions, got {type(text).__name__}")
    return [text] if isinstance(text, str) else list(text)


__all__ = ["AudioVisualQuestionAnsweringPipeline"]
