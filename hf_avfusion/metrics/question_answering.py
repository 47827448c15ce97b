"""Question answering: accuracy over all questions and per type of question (MUSIC-AVQA)."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .checks import IGNORED_LABEL, check_scores_and_labels, rank_of_label


def question_answering_accuracy(
    scores: ArrayLike, answers: ArrayLike, question_types: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Computes MUSIC-AVQA's table: accuracy over all questions, per modality, and per type of question.

    Each number is the share of right answers among the questions of its group. As in MUSIC-AVQA's own evaluation,
    `overall` is the accuracy over all questions, not the mean of the groups.

    Args:
        scores: float `[questions, answers]`, logits or probabilities.
        answers: integer `[questions]`, index of the right answer, or -100 for a question that does not count.
        question_types: one per question: a pair such as `("Audio-Visual", "Counting")`, its JSON text as in the official
            files (`'["Audio-Visual", "Counting"]'`), or a plain name for questions of one level.

    Returns:
        `{"overall": ..., "Audio-Visual": ..., "Audio-Visual/Counting": ..., ...}`: first `overall`, then the groups that
        have a question, sorted by name.

    Raises:
        ValueError: wrong shapes, no questions, answers out of range, scores that are NaN, a wrong number of types, or an
            invalid type.
    """
    counted = np.asarray(answers) != IGNORED_LABEL
    scores, answers = check_scores_and_labels(scores, answers)
    if len(question_types) != len(counted):
        raise ValueError(f"Expected a type for each of {len(counted)} questions, got {len(question_types)}.")
    question_types = [question_type for question_type, counts in zip(question_types, counted) if counts]
    right = rank_of_label(scores, answers) == 0
    groups: dict[str, list[bool]] = {}
    for question_type, hit in zip(question_types, right):
        levels = _question_levels(question_type)
        for depth in range(1, len(levels) + 1):
            groups.setdefault("/".join(levels[:depth]), []).append(hit)
    return {"overall": float(right.mean()), **{name: float(np.mean(groups[name])) for name in sorted(groups)}}


def _question_levels(question_type: str | Sequence[str]) -> tuple[str, ...]:
    """Parses a question type: returns `("Audio", "Counting")` for a pair or its JSON text, `(name,)` for a plain name."""
    levels = question_type
    if isinstance(question_type, str):
        levels = (question_type,)
        if question_type.lstrip().startswith("["):
            try:
                levels = json.loads(question_type)
            except json.JSONDecodeError as error:
                raise ValueError(f"Question type {question_type!r} is not a JSON list: {error}.") from error
    if not levels or not all(isinstance(level, str) and level for level in levels):
        raise ValueError(
            f'A question type is a name, a pair of names or the JSON text of one, such as \'["Audio", "Counting"]\'; '
            f"got {question_type!r}."
        )
    return tuple(levels)
