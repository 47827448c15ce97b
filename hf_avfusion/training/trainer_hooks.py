"""
What `AVTrainer` changes inside transformers' Trainer: private and undocumented methods, one replaced function, and events of one
callback.

Another version of transformers may rename them without notice, so they stand in this file alone. They were read in transformers
5.23.0. `tests/training/test_trainer_hooks.py` compares the tables below with the installed Trainer.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import TrainOutput, has_length

from ..data.streaming.clip_loader import ClipLoader
from ..data.streaming.ranks import Ranks, loss_weights
from ..files import write_text

# Overridden methods, each with what it does that no public method or callback can do.
OVERRIDDEN = {
    "set_initial_training_values": "Drops an incomplete last update; with `max_steps` it leaves the number of epochs open.",
    "_init_training_state": "Restores a stream's position. The Trainer derives it from the steps, as if no clip were skipped.",
    "_run_epoch": "Sets the epoch of a stream. No callback knows its number and the batches already taken, or can skip an epoch.",
    "get_batch_samples": "Gives all processes the same number of batches, and ends an epoch everywhere at once.",
    "_save_rng_state": "Saves a stream's position as a process's last file; `on_save` comes after the file that ends a checkpoint.",
    "_load_from_checkpoint": "Loads with `from_pretrained`. The Trainer ignores tensors whose names the model lacks.",
    "_load_best_model": "Loads in the same way at the end of training.",
    "_finalize_training": "Averages the losses since the last log over processes. The Trainer adds those of one process.",
}
# Functions of transformers.trainer replaced during `_run_epoch`.
REPLACED = {"skip_first_batches": "It reads and decodes batches again that a `ClipLoader` has skipped already."}
# Events that the Trainer's `JITCheckpointCallback` leaves out. Within an update the stream is ahead of the weights, so that a
# checkpoint could not be resumed exactly. The callback then saves at the next event that it keeps.
LEFT_OUT = {
    "on_step_begin": "The batches of the update are read already.",
    "on_pre_optimizer_step": "The gradients of the update are complete, but not applied.",
}
# Private names that AVTrainer calls, reads or sets.
USED = ("_train_batch_size", "_created_lr_scheduler", "_get_num_items_in_batch", "_save")


class TrainerHooks(Trainer):
    """The overridden methods. `AVTrainer` sets the attributes that it declares."""

    ranks: Ranks
    _stream: ClipLoader | None  # of the training set
    _counts: list[int]  # of clips (`COUNTED`), over all processes
    _counts_earlier: list[int]  # the part that is in no process's stream state
    _loss_weights: deque[float]  # of the batches of the current update
    _steps_per_epoch: int | None  # None for a stream without length
    _batches_per_epoch: int | None
    _batches_taken: int  # in the current epoch
    _epoch_ended: bool

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: DataLoader
    ) -> tuple[int, int, int, int, int, int | None, int]:
        if has_length(dataloader) and len(dataloader) == 0 and args.dataloader_drop_last:
            clips = getattr(dataloader.dataset, "num_rows", "few")
            raise ValueError(
                f"The training set has {clips} clips, less than one batch ({args.world_size} x --per_device_train_batch_size"
                f" {args.train_batch_size}), and --dataloader_drop_last drops incomplete batches, so there would be no training"
                " step: make --per_device_train_batch_size (or a recipe's --global_batch_size) smaller, or give"
                " --dataloader_drop_last false."
            )
        values = super().set_initial_training_values(args, dataloader)
        epochs, updates, *samples, batches, max_steps = values
        rest = batches % args.gradient_accumulation_steps
        if self._stream is not None and has_length(dataloader) and args.dataloader_drop_last and rest and updates > 1:
            # Drop the last, incomplete update, as without accumulation. The Trainer drops only incomplete batches.
            updates, batches = updates - 1, batches - rest
            max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
        # Used for a warm-up in epochs and for the end of an epoch; unknown for a stream without length.
        self._steps_per_epoch, self._batches_per_epoch = (updates, batches) if has_length(dataloader) else (None, None)
        if self._stream is not None and args.max_steps > 0:
            epochs = sys.maxsize  # `max_steps` ends the run; skipped clips shorten epochs, so their number is unknown
        return epochs, updates, *samples, batches, max_steps

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        epoch_and_batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self._stream is None or resume_from_checkpoint is None or self.args.ignore_data_skip:
            return epoch_and_batches
        return self._restore_stream(resume_from_checkpoint)

    def _restore_stream(self, checkpoint: str) -> tuple[int, int]:
        """Restores the stream's position from a checkpoint; returns the epoch and the number of its batches already taken."""
        state = _read_stream_state(checkpoint, 0)
        world_size, steps = state["stream"]["layout"]["world_size"], state["gradient_accumulation_steps"]
        if not state["epoch_ended"]:
            for name, before, now in (
                ("number of processes", world_size, self.args.world_size),
                ("gradient_accumulation_steps", steps, self.args.gradient_accumulation_steps),
            ):
                if before != now:
                    raise ValueError(
                        f"{checkpoint} is from the middle of an epoch, whose clips are divided by the {name}:"
                        f" it was {before} and is {now}. Resume with {before}, or from a checkpoint at the end of an epoch."
                    )
        self._counts = state["counts"]
        epoch = state["stream"]["epoch"]
        if state["epoch_ended"]:
            self._counts_earlier = state["counts"]
            return epoch + 1, 0
        state = _read_stream_state(checkpoint, self.args.process_index)
        self._counts_earlier = state["counts_earlier"]
        self._stream.load_state_dict(state["stream"])
        return epoch, state["batches_taken"]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Set the epoch on the dataset itself: a DataLoader that Accelerate did not wrap does not forward it, nor does the one
        # that skips batches after resuming.
        dataset = getattr(kwargs["train_dataloader"], "dataset", None)
        if isinstance(dataset, IterableDataset) and hasattr(dataset, "set_epoch"):
            dataset.set_epoch(kwargs["epoch"])
        if 0 < self.args.max_steps <= self.state.global_step:  # a finished run was resumed
            self.control.should_training_stop = True
            return None
        if self._stream is None:
            if kwargs["resume_from_checkpoint"] and self._steps_per_epoch is None and not self.args.ignore_data_skip:
                raise ValueError(
                    "A stream of unknown length can't be resumed, since its epoch and position are unknown. Use a ClipStream,"
                    " or set ignore_data_skip to read the data from the start."
                )
            return super()._run_epoch(*args, **kwargs)
        resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        self._batches_taken = kwargs["steps_trained_in_current_epoch"] if resumed else 0
        self._epoch_ended = False
        with _no_batch_skipping():
            return super()._run_epoch(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """As the Trainer's; for a `ClipStream`, all processes get the same number of batches, `num_batches` or none."""
        self._loss_weights.clear()
        if self._stream is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._epoch_ended:
            return [], None
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        items = None
        if self.compute_loss_func is not None:  # it divides a sum by this number
            items = sum(batch["labels"].ne(-100).sum().item() for batch in batches if "labels" in batch)
        own = (list(self._stream.counts.values()), items)
        batches, rows, gathered = self.ranks.pad_batches(batches, num_batches, own)
        self._counts = [sum(counts) for counts in zip(self._counts_earlier, *(counts for counts, _ in gathered))]
        if not batches:
            self._epoch_ended = True
            if not self._batches_taken:  # the Trainer would stop and save an untrained model
                raise RuntimeError(
                    f"Epoch {self._stream.dataset.epoch} has no batch to train on: the training set is empty, or too many of its"
                    f" clips could not be decoded ({self._counts[0]} so far; the log above names them). Check the clips."
                )
            return [], None
        self._batches_taken += num_batches
        if self.compute_loss_func is None:
            self._loss_weights.extend(loss_weights(rows, self.args.process_index))
            return batches, None
        self._loss_weights.extend(float(own > 0) for own in rows[self.args.process_index])
        if self.args.average_tokens_across_devices:
            items = sum(rank_items for _, rank_items in gathered)
        return batches, torch.tensor(items, device=device)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # called in every process
        if self._stream is None:
            return
        ended = self._epoch_ended or (
            self._batches_per_epoch is not None and self._batches_taken >= self._batches_per_epoch
        )
        state = {
            "batches_taken": self._batches_taken,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "epoch_ended": ended,
            "counts": self._counts,  # over all processes
            "counts_earlier": self._counts_earlier,  # the part that is in no process's stream state
            "stream": self._stream.state_dict(),
        }
        path = Path(output_dir) / f"stream_state_{self.args.process_index}.json"
        write_text(path, json.dumps(state, indent=1))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded, report = type(model).from_pretrained(
            resume_from_checkpoint, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        problems = {name: sorted(map(str, tensors)) for name, tensors in report.items() if tensors}
        if problems:
            raise ValueError(
                f"The checkpoint {resume_from_checkpoint} does not hold this model's weights: {problems}. Resume with the model"
                " of the earlier run."
            )
        model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(self.model, PreTrainedModel):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_after_updates_only(self) -> None:
        """Leaves out the events of `LEFT_OUT`, for checkpoints that SIGTERM asks for (`enable_jit_checkpoint`)."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, JITCheckpointCallback):
                for event in LEFT_OUT:
                    setattr(callback, event, getattr(TrainerCallback(), event))

    def _finalize_training(self, trial, num_train_samples, start_time) -> TrainOutput:
        losses = self.ranks.all_gather(self._tr_loss.item())
        self._tr_loss = self._tr_loss.new_tensor(sum(losses) / len(losses))
        return super()._finalize_training(trial, num_train_samples, start_time)


def _read_stream_state(checkpoint: str, rank: int) -> dict[str, Any]:
    path = Path(checkpoint) / f"stream_state_{rank}.json"
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {path.name}, which holds the position of its stream. Resume from a checkpoint that has it, or"
            " set ignore_data_skip to read the data from the start."
        )
    return json.loads(path.read_text())


@contextmanager
def _no_batch_skipping() -> Iterator[None]:
    """Disables the Trainer's skipping of batches when it resumes within an epoch, which would read and decode them again.

    A `ClipLoader` restores its own position.
    """
    skip = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = lambda dataloader, num_batches=0: dataloader
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skip
