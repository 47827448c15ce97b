"""Which checkpoint a run goes on from: whole ones, those that a kill left behind, and what is none."""

import json

import pytest

from hf_avfusion.training.checkpoints import find_checkpoint

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
