"""The functions of examples/predict.py that need no weights: lines of the output file, and views of an event localiser."""

import importlib.util
import sys
from pathlib import Path

import pytest
from rendering import render_clip
from travellers import avmae, processor

from hf_avfusion import AVMAEProcessor

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "predict.py"


@pytest.fixture(scope="module")
def predict():
    spec = importlib.util.spec_from_file_location("predict_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_of_output(predict):
    line = predict.as_line(Path("a.mp4"), {"label": [{"label": "dog", "score": 0.75}]}, None)
    assert line == {"clip": "a.mp4", "predictions": {"label": [{"label": "dog", "score": 0.75}]}}
    assert predict.as_line(Path("b.mp4"), None, "is empty") == {"clip": "b.mp4", "skipped": "is empty"}


def test_several_views_of_an_event_localiser_are_refused_before_the_first_clip(predict, tmp_path, monkeypatch, capsys):
    avmae(num_segments=4, readout="mean").save_pretrained(tmp_path / "run")
    processor(AVMAEProcessor).save_pretrained(tmp_path / "run")
    render_clip(tmp_path / "clip.mp4", seconds=1.0)
    command = ["predict.py", "--model", tmp_path / "run", tmp_path / "clip.mp4", "--num_views", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    monkeypatch.setattr(predict, "load_any", None)  # not even the weights are loaded
    capsys.readouterr()
    assert predict.main() == 1
    answer = capsys.readouterr()
    assert answer.err.startswith("error: got 3 views (--num_views) for a model for audio-visual event localisation")
    assert answer.err.endswith("set it to 1 or leave it out.\n")
    assert answer.err.count("\n") == 1
    assert answer.out == ""
