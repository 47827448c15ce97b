"""Rows with questions to samples and batches: word indices, types of questions, and negative frames for the match loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..models.shared.losses_classification import IGNORED_LABEL
from ..tasks.question_answering import QuestionLabels
from .collating import AVCollator
from .transforms import ClipTransform

_NEGATIVE_SEED = 0x6E656761  # makes the draws of negatives differ from the collator's other draws


class QuestionTransform(ClipTransform):
    """A `ClipTransform` for rows with a column `question`: a question, or a list of several about the clip.

    A sample also holds `input_ids`, long [L] or [questions, L]; `labels`, long [] or [questions]; `question_types` of the same
    shape, if the labels have types; and `video_id`, which tells clips of different videos apart. That is the path of the video,
    or else the `clip_id`.

    Args:
        processor: one with a vocabulary (`encode_questions`).
        labels: `QuestionLabels`, or the name of the column of answers.
        options: of `ClipTransform`.
    """

    def __init__(self, processor: Any, labels: QuestionLabels | Sequence[str] | str = ("answer",), **options: Any):
        if not isinstance(labels, QuestionLabels):
            labels = QuestionLabels(labels)
        super().__init__(processor, labels, **options)
        if not getattr(processor, "vocab", None):
            raise ValueError(
                f"the {type(processor).__name__} has no vocabulary, so it takes no questions: pass one with vocab=, the words of "
                "the training questions"
            )

    def __call__(self, row: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Decodes and prepares one row.

        Raises:
            MediaError: see `ClipTransform`.
            ValueError: the labels are wrong, or a question is empty, too long or has an unknown word; the message names the clip.
        """
        if "question" not in row:
            raise ValueError(f"clip {row['clip_id']} has no column 'question'; its columns are: {', '.join(row)}")
        try:  # wrong questions fail before the clip is decoded
            words = torch.from_numpy(self.processor.encode_questions(row["question"]))
        except (ValueError, TypeError) as error:
            raise ValueError(f"clip {row['clip_id']}: {error}") from error
        types = self.labels.question_types(row)
        for column, values in ((self.labels.columns[0], self.labels(row)), ("question_type", types)):
            if values is not None and values.shape != words.shape[:-1]:
                raise ValueError(
                    f"clip {row['clip_id']}: {column!r} must hold a value for each question, got {values.tolist()} for "
                    f"{row['question']!r}"
                )
        sample = {**super().__call__(row, generator), "input_ids": words}
        if types is not None:
            sample["question_types"] = types
        sample["video_id"] = row["video"].get("path") or row["clip_id"]
        return sample


class QuestionCollator(AVCollator):
    """An `AVCollator` that adds `input_ids`, long [B, L] or [B, Q, L], and `question_types`, long [B] or [B, Q].

    Clips with fewer questions than others of the batch are padded: their other rows hold the padding word, label -100 and type -1.

    With negatives it also adds `negative_pixel_values` [B, T, C, H, W]: each frame is a random frame of another video, as
    published. The other videos are those of the batch (CHOICE: a stream has no others at hand). They are drawn from the seeds of
    the rows, as mixup is, so that a resumed run draws the same. `negative_mask`, bool [B], is False for clips without another video
    in the batch, if there are any. A batch without any negative has neither.

    Args:
        negatives: add negatives, for training with the match loss.
        options: of `AVCollator`. Mixup is an error, since questions cannot be mixed.
    """

    RECIPE_FIELDS = (*AVCollator.RECIPE_FIELDS, "negatives")

    def __init__(self, *, negatives: bool = False, **options: Any):
        super().__init__(**options)
        if self.mixup_alpha:
            raise ValueError(f"got mixup_alpha={self.mixup_alpha}, but questions cannot be mixed; set it to 0")
        self.negatives = negatives

    @classmethod
    def for_model(cls, config: Any, **options: Any) -> QuestionCollator:
        """As that of `AVCollator`. A model of one modality has no match loss, so it gets no negatives."""
        if len(getattr(config, "modalities", None) or ("video", "audio")) < 2:
            options["negatives"] = False
        return super().for_model(config, **options)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = [name for name in ("input_ids", "labels", "question_types") if samples and name in samples[0]]
        if "input_ids" not in names:
            raise ValueError(
                "the samples have no `input_ids`; make them with QuestionTransform, from rows with questions"
            )
        fillers = {"input_ids": 0, "labels": IGNORED_LABEL, "question_types": -1}
        padded = {
            name: _pad([sample[name] for sample in samples], fillers[name], name == "input_ids") for name in names
        }
        made = [{**sample, **dict(zip(names, values))} for sample, *values in zip(samples, *padded.values())]
        batch = super().__call__(made)
        batch |= {name: torch.stack([sample[name] for sample in made]) for name in names if name != "labels"}
        if self.negatives and "pixel_values" in batch and "input_features" in batch:
            batch |= self._draw_negatives(samples, batch)
        return batch

    def _draw_negatives(
        self, samples: Sequence[dict[str, Any]], batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        generator = self._generator(samples)
        if generator is not self.generator:
            generator.manual_seed(generator.initial_seed() ^ _NEGATIVE_SEED)
        pixels, mask = batch["pixel_values"], batch.get("modality_mask")
        with_video = [mask is None or bool(mask[number, 0]) for number in range(len(samples))]
        videos = [sample.get("video_id", number) for number, sample in enumerate(samples)]
        frames, negatives = pixels.shape[1], torch.zeros_like(pixels)
        found = torch.zeros(len(samples), dtype=torch.bool)
        for number, video in enumerate(videos):
            others = torch.tensor([n for n, other in enumerate(videos) if other != video and with_video[n]])
            if len(others):
                found[number] = True
                clips = others[torch.randint(len(others), (frames,), generator=generator)]
                negatives[number] = pixels[clips, torch.randint(frames, (frames,), generator=generator)]
        if not found.any():
            return {}
        return {"negative_pixel_values": negatives, **({} if found.all() else {"negative_mask": found})}


def _pad(values: Sequence[Any], filler: int, has_length: bool) -> list[torch.Tensor]:
    """Tensors of one question each, or of the same number of questions. `has_length`: with an axis of words."""
    values = [torch.as_tensor(each) for each in values]
    if all(each.dim() == has_length for each in values):
        return values
    values = [each if each.dim() > has_length else each[None] for each in values]
    most = max(map(len, values))
    return [torch.cat([each, each.new_full((most - len(each), *each.shape[1:]), filler)]) for each in values]
