"""examples/push_to_hub.py as a user runs it: what would be pushed, then pushed, from the folder of a training run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForVideoClassification
from travellers import traveller

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """As training leaves it: the model, its processor, what it measured, and checkpoints."""
    folder = tmp_path / "run"
    for part in traveller("mbt"):
        part.save_pretrained(folder)
        part.save_pretrained(folder / "checkpoint-5")
    (folder / "test_results.json").write_text(json.dumps({"eval_top1": 0.25, "eval_clips": 8, "eval_runtime": 3.0}))
    (folder / "recipe.json").write_text(json.dumps({"learning rate": 0.1}))
    return folder


def push(local_hub, tmp_path, *arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, **local_hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, str(ROOT / "examples" / "push_to_hub.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_dry_run_shows_the_files_and_the_card_and_asks_nothing_of_the_hub(local_hub, run_folder, tmp_path):
    before = sorted(run_folder.rglob("*"))
    done = push(local_hub, tmp_path, run_folder, "org/mine", "--dry_run", "--dataset", "Shapes", "--license", "mit")
    assert done.returncode == 0, done.stderr
    for part in (
        "model.safetensors",
        "modeling_mbt.py",
        "# mine",
        "| Shapes | test | both tracks |",
        "| learning rate | 0.1 |",
    ):
        assert part in done.stdout
    assert "nothing was pushed" in done.stdout
    assert not local_hub.requests
    assert sorted(run_folder.rglob("*")) == before


@pytest.mark.slow
def test_pushing_a_run(local_hub, run_folder, tmp_path):
    done = push(local_hub, tmp_path, run_folder, "org/mine", "--dataset", "Shapes", "--title", "Mine", "--private")
    assert done.returncode == 0, done.stderr
    assert f"pushed: {local_hub.url}/org/mine/commit/" in done.stdout.replace("\n", "")
    files = local_hub.files("org/mine")
    assert {"model.safetensors", "modeling_mbt.py", "README.md"} <= set(files)
    assert not any(name.startswith("checkpoint-5") or name.endswith("_results.json") for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 0.25
    assert AutoModelForVideoClassification.from_pretrained("org/mine").config.num_labels == 5


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(local_hub, run_folder, tmp_path):
    done = push(local_hub, tmp_path, run_folder, "org/../mine")
    assert done.returncode == 1
    assert "'org/../mine' is no name of a Hub repository" in done.stderr
    assert "Traceback" not in done.stderr
