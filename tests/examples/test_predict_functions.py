"""The parts of examples/predict.py that need no model: which clips are found, and what a line of output holds."""

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


def test_clips_of_files_and_folders_come_once_and_without_hidden_ones(predict, tmp_path):
    for name in ("b/two.MP4", "a/one.mkv", "a/._one.mkv", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    one, two = tmp_path / "a" / "one.mkv", tmp_path / "b" / "two.MP4"
    assert predict.find_clips([str(two), str(tmp_path)]) == [two, one]
    assert predict.find_clips(["gone.mp4"]) == [Path("gone.mp4")]  # told later, with the others that can't be read


def test_lines_of_output(predict):
    line = predict.as_line(Path("a.mp4"), {"label": [("dog", 0.75)]}, None)
    assert line == {"clip": "a.mp4", "predictions": {"label": [{"label": "dog", "score": 0.75}]}}
    assert predict.as_line(Path("b.mp4"), None, "is empty") == {"clip": "b.mp4", "skipped": "is empty"}
