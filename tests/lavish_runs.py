"""Tiny LAVISH runs of the training scripts in this process, on rendered clips, for several test files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_lavish import BACKBONES
from transformers import AutoModel

from hf_avfusion.data.synthetic.sounding_shapes import render

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PLAIN = [
    "--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy", "no",
    "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4", "--learning_rate", "1e-2", "--logging_steps", "1",
]  # fmt: skip
# Event localisation on 2 s, the tiny backbones of 32 pixels, spectrograms of one second.
EVENTS = ["--label_columns", "events", "--num_segments", "2"]
SOUND = ["--set", "audio.num_mel_bins=32", "audio.hop_length=500", "audio.spectrogram_length=32"]


def render_shards(folder: Path, num_train: int, num_validation: int = 0) -> Path:
    """A folder with tiny clips of 2 s, 4 of them for testing."""
    render(
        folder, num_train=num_train, num_validation=num_validation, num_test=4, num_proc=1, progress=False, rows_per_shard=8,
        width=32, height=32, duration=2, num_classes=2,
    )  # fmt: skip
    return folder


def save_backbone(name: str, folder: Path) -> Path:
    """A folder with a tiny backbone of transformers that has random weights."""
    torch.manual_seed(0)
    AutoModel.from_config(BACKBONES[name][0]).save_pretrained(folder)
    return folder


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module there
        spec.loader.exec_module(module)
    return module


def finetune(script, *arguments) -> int:
    """Calls the `main` of a script with this command line and returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, arguments)])
        return script.main()


def losses(folder: Path) -> list[float]:
    """The training losses that a run has logged."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def adapter_command(shards: Path, backbone: Path, output: Path, *more) -> list:
    """A run with LAVISH adapters on event labels."""
    adapter = '{"num_tokens": 2, "reduction": 4, "groups": 1}'
    command = [
        "--data",
        "sounding_shapes",
        "--source",
        shards,
        "--output_dir",
        output,
        "--model",
        "lavish",
        *EVENTS,
        *PLAIN,
    ]
    command += ["--from_backbone", backbone, *SOUND, "--adapter", "lavish", "--adapter_config", adapter]
    return [*command, *more]
