"""
The words of questions: a vocabulary of whole words that turns questions into indices, as MUSIC-AVQA does.

Source: Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios" (CVPR 2022), whose data loader LAVISH uses.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from ..media.limits import check_sizes

PADDING = "<pad>"  # index 0
QUESTION_MARKS = ("?", "？")  # the second is the full-width one of some rows of MUSIC-AVQA
MAX_QUESTION_LENGTH = 14  # words of MUSIC-AVQA's longest question


def split_question(question: str) -> list[str]:
    """
    The words of a question: split at blanks, without a question mark at the end. Case is kept.

    Raises:
        TypeError: If the question is not a text.
        ValueError: If it has no words.
    """
    if not isinstance(question, str):
        raise TypeError(
            f"A question must be a text such as 'How many instruments are sounding?', got {type(question).__name__}."
        )
    text = question.strip()
    # The original drops the last character whatever it is; all questions of MUSIC-AVQA end in a question mark.
    words = (text[:-1] if text.endswith(QUESTION_MARKS) else text).split()
    if not words:
        raise ValueError(f"The question {question!r} has no words. Give a question such as 'Where is the piano?'.")
    return words


class QuestionWords:
    """
    Turns questions into word indices of one length.

        words = QuestionWords.from_questions(training_questions)
        words("How many instruments are sounding?")     # int64 [max_question_length]
        words(["Where is the piano?", "Is it loud?"])   # int64 [2, max_question_length]

    Args:
        vocab: the words in the order of their indices, plain and JSON-serialisable; the first is `"<pad>"`.
        max_question_length: length in words to which questions are padded, at the end, with index 0. A model reads the
            padding, so it is the length of its training.

    Raises:
        ValueError: If the vocabulary is not a list of different words with the padding first, or the length is below 1.
    """

    def __init__(self, vocab: Sequence[str], max_question_length: int = MAX_QUESTION_LENGTH):
        if isinstance(vocab, str) or not isinstance(vocab, Sequence):
            raise ValueError(f"`vocab` must be a list of words, got {type(vocab).__name__}. Give the words in order.")
        self.vocab = list(vocab)
        check_sizes({"vocab": len(self.vocab), "max_question_length": max_question_length})
        if not self.vocab or self.vocab[0] != PADDING:
            raise ValueError(f"`vocab` must start with the padding {PADDING!r}, got {self.vocab[:1]}. Put it first.")
        wrong = [word for word in self.vocab if not isinstance(word, str) or not word or word.split() != [word]]
        if wrong:
            raise ValueError(f"`vocab` must hold words without blanks, got {wrong[0]!r}. Split or remove it.")
        self._index = {word: index for index, word in enumerate(self.vocab)}
        if len(self._index) != len(self.vocab):
            twice = next(word for index, word in enumerate(self.vocab) if self._index[word] != index)
            raise ValueError(f"`vocab` holds the word {twice!r} twice. Keep one.")
        if isinstance(max_question_length, bool) or not isinstance(max_question_length, int) or max_question_length < 1:
            raise ValueError(
                f"`max_question_length` must be a whole number of words, at least 1, got {max_question_length!r}. Set it to the "
                "length that the model was trained with."
            )
        self.max_question_length = max_question_length

    @classmethod
    def from_questions(cls, questions: Iterable[str], max_question_length: int | None = None) -> "QuestionWords":
        """
        The vocabulary of training questions, in the order of first appearance.

        Args:
            questions: filled questions, of the training split alone.
            max_question_length: by default the length of the longest of them.

        Raises:
            ValueError: If there are no questions, or one is empty, holds the padding or is longer than `max_question_length`.
        """
        vocab, longest = {PADDING: None}, 0
        for question in questions:
            words = split_question(question)
            if PADDING in words:
                raise ValueError(f"The question {question!r} holds {PADDING!r}, which stands for padding. Remove it.")
            _check_length(question, words, max_question_length)
            longest = max(longest, len(words))
            vocab |= dict.fromkeys(words)
        if not longest:
            raise ValueError(
                "A vocabulary needs at least one question, got none. Give the questions of the training split."
            )
        return cls(list(vocab), longest if max_question_length is None else max_question_length)

    def __len__(self) -> int:
        """Number of words with the padding: `vocab_size` of a model."""
        return len(self.vocab)

    def __call__(self, questions: str | Sequence[str]) -> np.ndarray:
        """
        Word indices of a question, int64 [max_question_length], or of several [Q, max_question_length].

        Raises:
            TypeError: If a question is not a text.
            ValueError: If there are none, or one is empty, too long or has an unknown word.
        """
        if isinstance(questions, str):
            return np.array(self.encode(questions), dtype=np.int64)
        encoded = [self.encode(question) for question in questions]
        if not encoded:
            raise ValueError("Give at least one question, got an empty list.")
        return np.array(encoded, dtype=np.int64)

    def encode(self, question: str) -> list[int]:
        """Word indices of one question, padded with 0 to `max_question_length`. Raises as a call does."""
        words = split_question(question)
        for word in words:
            if word == PADDING or word not in self._index:
                raise ValueError(
                    f"The question {question!r} holds the word {word!r}, which is not among the {len(self) - 1} words that the "
                    f"model knows (case counts).{self._suggest(word)} Use the words of the training questions."
                )
        _check_length(question, words, self.max_question_length)
        return [self._index[word] for word in words] + [0] * (self.max_question_length - len(words))

    def decode(self, indices: Iterable[int]) -> str:
        """The words of indices, without padding and question mark. Raises ValueError for an index that no word has."""
        indices = [int(index) for index in indices]
        unknown = [index for index in indices if not 0 <= index < len(self)]
        if unknown:
            raise ValueError(
                f"There is no word {unknown[0]}; indices are 0 to {len(self) - 1}. Use this vocabulary's own."
            )
        return " ".join(self.vocab[index] for index in indices if index)

    def to_dict(self) -> dict[str, Any]:
        """The fields that a processor saves, plain JSON; `QuestionWords(**fields)` builds it again."""
        return {"vocab": list(self.vocab), "max_question_length": self.max_question_length}

    def __repr__(self) -> str:
        return f"QuestionWords({len(self)} words, max_question_length={self.max_question_length})"

    def _suggest(self, word: str) -> str:
        known = self.vocab[1:]
        same = [each for each in known if each.casefold() == word.casefold()]
        close = same[:1] or get_close_matches(word, known, n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def _check_length(question: str, words: list[str], allowed: int | None) -> None:
    if allowed is not None and len(words) > allowed:
        raise ValueError(
            f"The question {question!r} has {len(words)} words, but at most {allowed} are allowed (max_question_length). Shorten "
            "it; nothing is cut."
        )


__all__ = ["MAX_QUESTION_LENGTH", "PADDING", "QuestionWords", "split_question"]
