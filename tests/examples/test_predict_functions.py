"""The functions of examples/predict.py that need no model: lines of the output file."""

import importlib.util
from pathlib import Path

import pytest

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
