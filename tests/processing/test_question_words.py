"""Questions to word indices: splitting as published, padding, and errors that name the word."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_avfusion.data.benchmarks.annotations import music_avqa
from hf_avfusion.data.benchmarks.loading import get_record
from hf_avfusion.data.benchmarks.records import read_labels
from hf_avfusion.processing.question_words import PADDING, QuestionWords, split_question

ANNOTATIONS = Path(__file__).parents[1] / "data" / "benchmarks" / "annotations"


@pytest.fixture
def words() -> QuestionWords:
    return QuestionWords(read_labels("music_avqa_words"))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where is the piano?", ["Where", "is", "the", "piano"]),
        ("  Where is the piano? \n", ["Where", "is", "the", "piano"]),
        ("Where is the piano？", ["Where", "is", "the", "piano"]),
        ("Where is the piano ?", ["Where", "is", "the", "piano"]),
        ("Where is the piano", ["Where", "is", "the", "piano"]),
        ("Where  is\tthe piano??", ["Where", "is", "the", "piano?"]),
    ],
)
def test_splits_at_blanks_and_drops_a_question_mark(question, expected):
    assert split_question(question) == expected


@pytest.mark.parametrize("question", ["", "  ", "?", " ？ "])
def test_an_empty_question_raises(words, question):
    with pytest.raises(ValueError, match="has no words"):
        words(question)


def test_pads_at_the_end_with_index_0(words):
    encoded = words("Is the piano louder than the flute?")
    assert encoded.dtype == np.int64
    assert encoded.shape == (14,)
    assert encoded[:7].tolist() == [
        words.vocab.index(word) for word in split_question("Is the piano louder than the flute")
    ]
    assert not encoded[7:].any()
    assert words.decode(encoded) == "Is the piano louder than the flute"
    several = words(["Where is the cello?", "Is the piano louder than the flute?"])
    assert several.shape == (2, 14)
    assert several[1].tolist() == encoded.tolist()


def test_official_questions_have_known_words(words):
    record = get_record("music_avqa")
    questions = [row.values["question"] for row in music_avqa(ANNOTATIONS / "avqa-val.json", record, "validation")]
    assert len(questions) == 5
    for question in questions:
        assert words.decode(words(question)) == question[:-1]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("How mny instruments are sounding?", "the word 'mny'.*92 words.*Did you mean 'many'"),
        ("where is the piano?", "the word 'where'.*Did you mean 'Where'"),
        ("Where is the zzzzzz?", "the word 'zzzzzz'"),
        ("Where is <pad>?", "the word '<pad>'"),
    ],
)
def test_an_unknown_word_is_named(words, question, message):
    with pytest.raises(ValueError, match=message) as raised:
        words(["Where is the piano?", question])
    assert ("Did you mean" in str(raised.value)) == ("Did you mean" in message)


def test_a_long_question_raises_and_is_not_cut(words):
    question = " ".join(["the"] * 15) + "?"
    with pytest.raises(ValueError, match=r"has 15 words, but at most 14 are allowed \(max_question_length\)"):
        words(question)
    assert QuestionWords(words.vocab, max_question_length=15)(question).all()


def test_vocabulary_of_training_questions_in_order_of_first_appearance():
    words = QuestionWords.from_questions(["Where is the drum?", "Is the drum louder than the flute?"])
    assert words.vocab == [PADDING, "Where", "is", "the", "drum", "Is", "louder", "than", "flute"]
    assert words.max_question_length == 7
    assert len(words) == 9
    assert QuestionWords.from_questions(["Where is the drum?"], max_question_length=14).max_question_length == 14
    with pytest.raises(ValueError, match="got none"):
        QuestionWords.from_questions([])
    with pytest.raises(ValueError, match="at most 3"):
        QuestionWords.from_questions(["Where is the drum?"], max_question_length=3)
    with pytest.raises(ValueError, match="stands for padding"):
        QuestionWords.from_questions(["Where is <pad>?"])


def test_fields_are_plain_json(words):
    fields = json.loads(json.dumps(words.to_dict()))
    assert list(fields) == ["vocab", "max_question_length"]
    assert QuestionWords(**fields).to_dict() == words.to_dict()


@pytest.mark.parametrize(
    ("vocab", "length", "message"),
    [
        ("words", 14, "must be a list"),
        ([], 14, "must start with"),
        (["How", PADDING], 14, "must start with"),
        ([PADDING, "two words"], 14, "'two words'"),
        ([PADDING, ""], 14, "without blanks"),
        ([PADDING, ["a"]], 14, "without blanks"),
        ([PADDING, "a", "b", "a"], 14, "'a' twice"),
        ([PADDING, "a"], 0, "at least 1"),
        ([PADDING, "a"], True, "at least 1"),
        ([PADDING, "a"], "14", "at least 1"),
        ([PADDING, "a"], 2**40, "exceeds the supported maximum"),
    ],
)
def test_a_wrong_vocabulary_raises(vocab, length, message):
    with pytest.raises(ValueError, match=message):
        QuestionWords(vocab, length)


def test_other_wrong_input_raises(words):
    with pytest.raises(TypeError, match="must be a text"):
        words([3])
    with pytest.raises(ValueError, match="at least one question"):
        words([])
    with pytest.raises(ValueError, match="no word 93"):
        words.decode([1, 93])
