"""Which checkpoint a run goes on from: whole ones, those that a kill left behind, and what is none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_avfusion.training.checkpoints import check_weights, find_checkpoint, refuse_others

STATE = json.dumps({"epoch": 1.0, "global_step": 3, "max_steps": 9})


@pytest.fixture
def run(tmp_path):
    """Checkpoints 4 and 12 are whole, the second of two processes; 20 was stopped before the end of its last file, 100 before
    one process had written where its stream was, 200 before anything but the weights.
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
    (tmp_path / "trainer_state.json").write_text(STATE)  # as at the end of a run
    return tmp_path


def _stream(world_size):
    return json.dumps({"stream": {"layout": {"world_size": world_size}}})


@pytest.mark.parametrize("wanted", [None, False, "false"])
def test_none(run, wanted):
    assert find_checkpoint(wanted, str(run)) is None


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_the_last_whole_one(run, wanted):
    assert find_checkpoint(wanted, str(run)) == str(run / "checkpoint-12")
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*checkpoint-4 to resume from"):
        find_checkpoint(wanted, str(run / "checkpoint-4"))


def test_by_its_folder(run):
    assert find_checkpoint(str(run / "checkpoint-4"), None) == str(run / "checkpoint-4")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("checkpoint-5", "is no folder"),
        ("checkpoint-20", r"lacks trainer_state\.json: the run was stopped"),
        ("checkpoint-100", r"lacks stream_state_1\.json: the run was stopped"),
        ("checkpoint-200", r"lacks trainer_state\.json"),
        ("", "is the folder of a run, not one of its checkpoints"),
    ],
)
def test_one_that_is_not_whole_is_refused_and_the_others_are_named(run, name, reason):
    with pytest.raises(ValueError, match=f"{reason}.* Whole ones are: .*checkpoint-4, .*checkpoint-12\\.$"):
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
        ({"one.weight": (3, 2)}, None),  # of tied weights one name
        ({"one.weight": (4, 2)}, r"1 differ, such as one.weight, there \(4, 2\), here \(3, 2\)"),
        ({"two.weight": (3, 2)}, r"3 differ, such as one.weight, there missing, here \(3, 2\)"),
    ],
)
def test_weights_by_name_and_shape(tmp_path, saved, message):
    save_file({name: torch.zeros(shape) for name, shape in saved.items()}, tmp_path / "model.safetensors")
    if message is None:
        check_weights(Tied(), str(tmp_path))
        return
    with pytest.raises(ValueError, match=f"holds another model's weights: {message}"):
        check_weights(Tied(), str(tmp_path))


def test_weights_in_another_form_are_left_to_who_reads_them(tmp_path):
    check_weights(Tied(), str(tmp_path))


def test_nothing_begins_beside_checkpoints(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds checkpoints of an earlier run .checkpoint-4, checkpoint-12, checkpoint-20"
    ):
        refuse_others(str(run))
    refuse_others(str(tmp_path / "new"))
