"""examples/push_to_hub.py as a user runs it: a dry run and a push from the folder of a training run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForVideoClassification
from travellers import traveller

from hf_avfusion import hub

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "push_to_hub.py"


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """The folder of a finished run: model, processor, results and checkpoints."""
    folder = tmp_path / "run"
    for part in traveller("mbt"):
        part.save_pretrained(folder)
        part.save_pretrained(folder / "checkpoint-5")
    (folder / "test_results.json").write_text(json.dumps({"eval_top1": 0.25, "eval_clips": 8, "eval_runtime": 3.0}))
    (folder / "recipe.json").write_text(json.dumps({"learning rate": 0.1}))
    return folder


def run(monkeypatch, *arguments) -> int:
    """Calls the script's `main` in this process."""
    spec = importlib.util.spec_from_file_location("push_to_hub", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "push_to_hub", script)  # dataclasses look up their annotations there
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    return script.main()


def test_dry_run_prints_files_and_card_without_hub_requests(local_hub, run_folder, monkeypatch, capsys):
    before = sorted(run_folder.rglob("*"))
    assert run(monkeypatch, run_folder, "org/mine", "--dry_run", "--dataset", "Shapes", "--license", "mit") == 0
    shown = capsys.readouterr().out
    for part in (
        "model.safetensors",
        "modeling_mbt.py",
        "# mine",
        "| Shapes | test | both modalities |",
        "| learning rate | 0.1 |",
    ):
        assert part in shown
    assert "nothing was pushed" in shown
    assert not local_hub.requests
    assert sorted(run_folder.rglob("*")) == before


def test_results_of_several_models_need_a_name(local_hub, run_folder, tmp_path, monkeypatch, capsys):
    about = {"given": "av", "views": 4, "seed": 0, "clips": 8, "skipped": 0}
    evaluations = [{"checkpoint": name, **about, "metrics": {"top1": top1}} for name, top1 in (("a", 0.5), ("b", 0.75))]
    benchmark = {"name": "shapes", "title": "Shapes", "split": "test"}
    (tmp_path / "results.json").write_text(json.dumps({"benchmark": benchmark, "evaluations": evaluations}))
    options = (run_folder, "org/mine", "--dry_run", "--results", tmp_path / "results.json")
    assert run(monkeypatch, *options) == 1
    assert "pass one of these names" in capsys.readouterr().err.replace("\n", " ")
    assert run(monkeypatch, *options, "--results_checkpoint", "b") == 0
    assert "| top1 | 0.75 |" in capsys.readouterr().out


def test_adapter_is_pushed(local_hub, tmp_path, monkeypatch):
    model, processor = traveller("mbt")
    hub.push(model, processor, "org/base")
    base = AutoModelForVideoClassification.from_pretrained("org/base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    assert run(monkeypatch, tmp_path / "run", "org/adapter") == 0
    assert "adapter_model.safetensors" in local_hub.files("org/adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: ("gone", "org/mine"), "gone is not a folder"),
        (lambda folder: (folder, "org/../mine"), "'org/../mine' is not a valid repository id"),
    ],
)
def test_wrong_arguments_print_an_error(local_hub, run_folder, monkeypatch, capsys, change, message):
    assert run(monkeypatch, *change(run_folder)) == 1
    assert message in capsys.readouterr().err
    assert not local_hub.requests


@pytest.mark.slow
def test_push_in_a_separate_process(local_hub, run_folder, tmp_path):
    environment = {**os.environ, **local_hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    options = ["--dataset", "Shapes", "--title", "Mine", "--private"]
    command = [sys.executable, str(SCRIPT), str(run_folder), "org/mine", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert f"pushed: {local_hub.url}/org/mine/commit/" in done.stdout
    files = local_hub.files("org/mine")
    assert {"model.safetensors", "modeling_mbt.py", "README.md"} <= set(files)
    assert not any(name.startswith("checkpoint-5") or name.endswith("_results.json") for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 0.25
    assert AutoModelForVideoClassification.from_pretrained("org/mine").config.num_labels == 5
