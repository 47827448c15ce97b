"""Accuracy per type of question, against a hand-worked case and on the official question types."""

import json

import numpy as np
import pytest

from hf_avfusion.metrics.question_answering import question_answering_accuracy


def test_question_answering_by_hand():
    types = [
        '["Audio", "Counting"]',
        '["Audio", "Comparative"]',
        ("Audio-Visual", "Counting"),
        ["Audio-Visual", "Counting"],
        '["Audio-Visual","Counting"]',
        '["Visual", "Location"]',
    ]
    predicted, answers = [0, 1, 2, 2, 0, 1], [0, 2, 2, 1, 0, 1]  # the second and the fourth are wrong
    results = question_answering_accuracy(np.eye(3)[predicted], answers, types)
    assert results == {
        "overall": pytest.approx(4 / 6),
        "Audio": 0.5,
        "Audio/Comparative": 0.0,
        "Audio/Counting": 1.0,
        "Audio-Visual": pytest.approx(2 / 3),  # "Audio" does not include "Audio-Visual"
        "Audio-Visual/Counting": pytest.approx(2 / 3),
        "Visual": 1.0,
        "Visual/Location": 1.0,
    }
    assert next(iter(results)) == "overall"
    assert question_answering_accuracy(np.eye(3)[predicted], answers, ["count"] * 6) == {
        "overall": pytest.approx(4 / 6),
        "count": pytest.approx(4 / 6),
    }


def test_official_question_types_are_read(shared):
    rows = json.loads((shared / "benchmarks" / "annotations" / "music_avqa_val.json").read_text())
    types = [row["type"] for row in rows]
    results = question_answering_accuracy(np.ones((len(rows), 1)), np.zeros(len(rows), int), types)
    counts = json.loads((shared / "benchmarks" / "music_avqa.json").read_text())["question_types"]["val"]
    kinds = {name.replace(" / ", "/") for name in counts}
    assert set(results) == {"overall", "Audio", "Visual", "Audio-Visual", *kinds}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: question_answering_accuracy(np.zeros((2, 3)), [0, 1], ["count"]), "each of 2 questions, got 1"),
        (lambda: question_answering_accuracy(np.zeros((1, 3)), [0], ['["Audio", "Count']), "not a JSON list"),
        (lambda: question_answering_accuracy(np.zeros((1, 3)), [0], [("Audio", None)]), "pair of names"),
    ],
)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_questions_without_an_answer_do_not_count():
    scores = np.eye(3)[[0, 1, 2, 0]]
    types = ["Audio", "Audio", "Visual", "Visual"]
    found = question_answering_accuracy(scores, [0, -100, 1, 0], types)
    assert found == question_answering_accuracy(scores[[0, 2, 3]], [0, 1, 0], ["Audio", "Visual", "Visual"])
