"""Which checkpoint a run goes on from: one that was written to its end, or none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from transformers.trainer_callback import TrainerState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_checkpoint(wanted: str | bool | None, output_dir: str | None) -> str | None:
    """The folder of the checkpoint that `resume_from_checkpoint` means; None for none.

    Args:
        wanted: a folder; True, or "true" as a command line gives it, for the last whole checkpoint in `output_dir`.
        output_dir: of the run.

    Raises:
        ValueError: there is no such checkpoint, or the run was stopped while it was written; the message says which are whole.
    """
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true" and not Path(str(wanted)).is_dir():
        whole = _whole(Path(output_dir or "."))
        if not whole:
            raise ValueError(f"There is no whole checkpoint in {output_dir} to resume from: start without one.")
        return str(whole[-1])
    folder = Path(wanted)
    if not folder.is_dir():
        reason = "is no folder"
    elif _numbered(folder):  # at its end it has a Trainer's state too
        reason = "is the folder of a run, not one of its checkpoints"
    elif (missing := missing_file(folder)) is None:
        return str(folder)
    else:
        reason = f"is not whole, it lacks {missing}: the run was stopped while writing it, or it is no checkpoint"
    whole = _whole(folder) or _whole(folder.parent)
    remedy = f"Whole ones are: {', '.join(map(str, whole))}." if whole else "There is no whole one beside it."
    raise ValueError(f"The checkpoint to resume from, {folder}, {reason}. {remedy}")


def check_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Whether a checkpoint holds this model's weights, from names and shapes alone.

    Raises:
        ValueError: it holds another model's; the message names one weight. A checkpoint without `model.safetensors` (FSDP's,
            DeepSpeed's, several files) is not looked at.
    """
    path = Path(checkpoint) / "model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as opened:
        theirs = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    state = model.state_dict()
    kept = {weight.data_ptr() for name, weight in state.items() if name in theirs}
    # Of weights that are tied one name is saved.
    ours = {
        name: tuple(weight.shape) for name, weight in state.items() if name in theirs or weight.data_ptr() not in kept
    }
    wrong = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"The checkpoint {checkpoint} holds another model's weights: {len(wrong)} differ, such as {name}, there"
            f" {theirs.get(name, 'missing')}, here {ours.get(name, 'missing')}. Go on with the model that the run began with."
        )


def refuse_others(output_dir: str) -> None:
    """A run that begins anew beside checkpoints of another could later be taken up from those.

    Raises:
        ValueError: the folder holds checkpoints.
    """
    if found := _numbered(Path(output_dir)):
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run ({', '.join(path.name for path in found)}): go on from the last"
            " whole one with --resume_from_checkpoint true, or give another --output_dir, or remove them."
        )


def missing_file(folder: Path) -> str | None:
    """The name of a file that a checkpoint lacks, or that holds only a part of what it should; None for a whole one.

    The Trainer's state is what its main process writes last, the state of a stream what each other process does.
    """
    name = "trainer_state.json"
    try:
        TrainerState.load_from_json(str(folder / name))
        name = "stream_state_0.json"
        if (folder / name).exists():  # of a run on a stream
            processes = json.loads((folder / name).read_text())["stream"]["layout"]["world_size"]
            for name in (f"stream_state_{rank}.json" for rank in range(1, processes)):
                (folder / name).stat()
    except (OSError, ValueError, TypeError, KeyError):
        return name
    return None


def _numbered(folder: Path) -> list[Path]:
    """Folders named as checkpoints are, whole or not, by their number of steps."""
    found = [
        (int(match[1]), path) for path in folder.glob("*/") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]


def _whole(folder: Path) -> list[Path]:
    return [path for path in _numbered(folder) if missing_file(path) is None]
