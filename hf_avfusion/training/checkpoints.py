"""Finds the checkpoint to resume a run from and checks that it is complete and holds the model's weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from transformers.trainer_callback import TrainerState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_checkpoint(wanted: str | bool | None, output_dir: str | None) -> str | None:
    """The folder of the checkpoint that `resume_from_checkpoint` selects, or None.

    Args:
        wanted: a folder; True (or "true" from a command line) selects the last complete checkpoint in `output_dir`; None, False
            or "false" selects none.
        output_dir: folder of the run.

    Raises:
        ValueError: the checkpoint does not exist or is incomplete; the message lists the complete ones.
    """
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true" and not Path(str(wanted)).is_dir():
        complete = _complete_checkpoints(Path(output_dir or "."))
        if not complete:
            raise ValueError(
                f"There is no complete checkpoint in {output_dir} to resume from: leave --resume_from_checkpoint out."
            )
        return str(complete[-1])
    folder = Path(wanted)
    if not folder.is_dir():
        reason = "is not a folder"
    elif _checkpoint_folders(folder):  # the folder of a finished run also holds a trainer_state.json
        reason = "is the folder of a run, not one of its checkpoints"
    elif (missing := missing_file(folder)) is None:
        return str(folder)
    else:
        reason = (
            f"is incomplete, its {missing} is missing or damaged: the run was stopped while writing it, or it is not a"
            " checkpoint"
        )
    complete = _complete_checkpoints(folder) or _complete_checkpoints(folder.parent)
    remedy = "There is no complete one next to it."
    if complete:
        remedy = f"Complete ones are: {', '.join(map(str, complete))}."
    raise ValueError(f"The checkpoint to resume from, {folder}, {reason}. {remedy}")


def check_weights(model: PreTrainedModel, checkpoint: str) -> None:
    """Checks by names and shapes that a checkpoint holds this model's weights.

    Checkpoints without `model.safetensors` (FSDP, DeepSpeed, several files) are not checked.

    Raises:
        ValueError: the checkpoint holds weights of another model; the message names one.
    """
    path = Path(checkpoint) / "model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as opened:
        theirs = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    state = model.state_dict()
    saved = {weight.data_ptr() for name, weight in state.items() if name in theirs}
    # Tied weights are saved under only one of their names.
    ours = {
        name: tuple(weight.shape) for name, weight in state.items() if name in theirs or weight.data_ptr() not in saved
    }
    wrong = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"The checkpoint {checkpoint} holds another model's weights: {len(wrong)} differ, such as {name} (checkpoint:"
            f" {theirs.get(name, 'missing')}, model: {ours.get(name, 'missing')}). Resume with the model of the earlier run."
        )


# Fields of parameter groups that choose an implementation of the optimiser, or that the schedule changes.
_NOT_COMPARED = {"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize"}


def check_optimizer(optimizer: torch.optim.Optimizer, checkpoint: str) -> None:
    """Checks that a checkpoint holds the state of this optimiser, with the same values in each parameter group.

    Resuming restores all values of the groups from the checkpoint, so that other values of the run would have no effect.

    Raises:
        ValueError: the checkpoint has no optimiser state, or that of another optimiser, or other values; the message names them.
    """
    remedy = f"or start a new run from its weights (--model {checkpoint})."
    path = Path(checkpoint) / "optimizer.pt"
    if not path.is_file():
        raise ValueError(
            f"The checkpoint {checkpoint} has no optimizer.pt, since --save_only_model leaves it out: resume from a checkpoint"
            f" that has it, {remedy}"
        )
    theirs = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["param_groups"]
    ours = optimizer.param_groups
    fields, own = ({name for group in groups for name in group} - _NOT_COMPARED for groups in (theirs, ours))
    if fields != own:
        raise ValueError(
            f"The checkpoint {checkpoint} is from a run with another optimiser: {_names(fields - own)} of its parameters are"
            f" unknown to this run's {type(optimizer).__name__}, which has {_names(own - fields)} instead. Resume with the"
            f" optimiser of the earlier run, {remedy}"
        )
    sizes, own_sizes = ([len(group["params"]) for group in groups] for groups in (theirs, ours))
    if sizes != own_sizes:
        raise ValueError(
            f"The checkpoint {checkpoint} is from a run with other parameter groups: {sizes} tensors in each, but this run has"
            f" {own_sizes}. Resume with the layer_decay, the frozen layers and the optimiser of the earlier run, {remedy}"
        )
    changed = {}
    for saved, group in zip(theirs, ours):
        before, now = ({name: each[name] for name in each.keys() - _NOT_COMPARED} for each in (saved, group))
        if "initial_lr" in saved:
            before["learning_rate"], now["learning_rate"] = saved["initial_lr"], group.get("initial_lr", group["lr"])
        changed |= {name: (before[name], now[name]) for name in before if _value(before[name]) != _value(now[name])}
    if changed:
        listed = ", ".join(f"{name} was {was} and is {now}" for name, (was, now) in sorted(changed.items()))
        raise ValueError(
            f"The checkpoint {checkpoint} restores its optimiser with its values, but this run asks for others: {listed}. Resume"
            f" with the values of the earlier run, {remedy}"
        )


def _names(fields: set[str]) -> str:
    return ", ".join(sorted(fields)) or "none"


def _value(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def check_no_checkpoints(output_dir: str) -> None:
    """Checks that the folder of a new run holds no checkpoints, from which the new run could later be resumed by mistake.

    Raises:
        ValueError: the folder holds checkpoints.
    """
    if found := _checkpoint_folders(Path(output_dir)):
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run ({', '.join(path.name for path in found)}): resume from the last"
            " complete one with --resume_from_checkpoint true, give another --output_dir, or remove them."
        )


def missing_file(folder: Path) -> str | None:
    """The name of a missing or damaged file of a checkpoint; None if the checkpoint is complete.

    It checks the file that each process writes last: the main process writes the Trainer's state, each other process the state
    of its stream.
    """
    name = "trainer_state.json"
    try:
        TrainerState.load_from_json(str(folder / name))
        name = "stream_state_0.json"
        if (folder / name).exists():  # only runs on a stream have it
            processes = json.loads((folder / name).read_text())["stream"]["layout"]["world_size"]
            for name in (f"stream_state_{rank}.json" for rank in range(1, processes)):
                (folder / name).stat()
    except (OSError, ValueError, TypeError, KeyError):
        return name
    return None


def _checkpoint_folders(folder: Path) -> list[Path]:
    """All checkpoint folders in a folder, complete or not, ordered by step."""
    found = [
        (int(match[1]), path) for path in folder.glob("*/") if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found)]


def _complete_checkpoints(folder: Path) -> list[Path]:
    return [path for path in _checkpoint_folders(folder) if missing_file(path) is None]
