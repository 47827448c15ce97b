"""Finding the checkpoint to resume from: complete ones, incomplete ones and folders that are not checkpoints."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_avfusion.training.checkpoints import check_no_checkpoints, check_weights, find_checkpoint

STATE = json.dumps({"epoch": 1.0, "global_step": 3, "max_steps": 9})


@pytest.fixture
def run(tmp_path):
    """Checkpoints 4 and 12 are complete; 12 is from two processes. In 20 the last file is cut off, in 100 the stream state of one
    process is missing, and 200 has only weights.
    """
    for number, files in {
        4: {"trainer_state.json": STATE},
        12: {"trainer_state.json": STATE, "stream_state_0.json": _stream(2), "stream_state_1.json": _stream(2)},
        20: {"trainer_state.json": STATE[:20], "stream_state_0.json": _stream(1)},
        100: {"trainer_state.json": STATE, "stream_state_0.json": _stream(2)},
        200: {"model.safetensors": ""},
    }.items():
        (tmp_path / f"checkpoint-{number}").mkdir()
        for name, text in files.items():
            (tmp_path / f"checkpoint-{number}" / name).write_text(text)
    (tmp_path / "trainer_state.json").write_text(STATE)  # a finished run has it
    return tmp_path


def _stream(world_size):
    return json.dumps({"stream": {"layout": {"world_size": world_size}}})


@pytest.mark.parametrize("wanted", [None, False, "false"])
def test_no_checkpoint_is_wanted(run, wanted):
    assert find_checkpoint(wanted, str(run)) is None


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_last_complete_checkpoint(run, wanted):
    assert find_checkpoint(wanted, str(run)) == str(run / "checkpoint-12")
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*checkpoint-4 to resume from"):
        find_checkpoint(wanted, str(run / "checkpoint-4"))


def test_checkpoint_by_folder(run):
    assert find_checkpoint(str(run / "checkpoint-4"), None) == str(run / "checkpoint-4")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("checkpoint-5", "is not a folder"),
        ("checkpoint-20", r"trainer_state\.json is missing or damaged: the run was stopped"),
        ("checkpoint-100", r"stream_state_1\.json is missing or damaged: the run was stopped"),
        ("checkpoint-200", r"trainer_state\.json is missing or damaged"),
        ("", "is the folder of a run, not one of its checkpoints"),
    ],
)
def test_incomplete_checkpoint_raises_and_complete_ones_are_listed(run, name, reason):
    with pytest.raises(ValueError, match=f"{reason}.* Complete ones are: .*checkpoint-4, .*checkpoint-12\\.$"):
        find_checkpoint(str(run / name), str(run))


class Tied(torch.nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.one = torch.nn.Linear(2, size, bias=False)
        self.other = torch.nn.Linear(2, size, bias=False)
        self.other.weight = self.one.weight


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"one.weight": (3, 2)}, None),  # tied weights are saved under one name
        ({"one.weight": (4, 2)}, r"1 differ, such as one.weight \(checkpoint: \(4, 2\), model: \(3, 2\)\)"),
        ({"two.weight": (3, 2)}, r"3 differ, such as one.weight \(checkpoint: missing, model: \(3, 2\)\)"),
    ],
)
def test_weights_by_name_and_shape(tmp_path, saved, message):
    save_file({name: torch.zeros(shape) for name, shape in saved.items()}, tmp_path / "model.safetensors")
    if message is None:
        check_weights(Tied(), str(tmp_path))
        return
    with pytest.raises(ValueError, match=f"holds another model's weights: {message}"):
        check_weights(Tied(), str(tmp_path))


def test_weights_in_other_formats_are_not_checked(tmp_path):
    check_weights(Tied(), str(tmp_path))


def test_new_run_in_folder_with_checkpoints_raises(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds checkpoints of an earlier run .checkpoint-4, checkpoint-12, checkpoint-20"
    ):
        check_no_checkpoints(str(run))
    check_no_checkpoints(str(tmp_path / "new"))
