"""Builds a trainer from a parsed command line, trains and evaluates; shared by the training scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, set_seed

from ...data.benchmarks.reading import read_once
from ...data.benchmarks.splits import SplitRows, load_rows
from ...data.streaming.balancing import LabelBalance
from ...data.streaming.clip_stream import ClipStream
from ...data.transforms import ClipTransform
from ...evaluation.views import view_transform
from ...models.shared.configuration_shared import CLIP_AXES
from ...tasks import Task
from ..arguments import AVTrainingArguments
from ..trainer import AVTrainer
from .building import build_collator, build_frame_augmentation, build_fresh, load_checkpoint
from .options import DataOptions
from .record import keep_record
from .run import Run


@dataclass
class RunData:
    """The undecoded rows of a run; `evaluated` is None with `--eval_split none`."""

    trained: SplitRows
    evaluated: SplitRows | None

    @classmethod
    def load(cls, options: DataOptions, labels: bool = True) -> RunData:
        """Loads both splits and sets `options.eval_split`. The evaluation split is first, since its name is wrong more often.

        Raises:
            ValueError, FileNotFoundError: as `load_rows`.
        """
        where = {"source": options.source, "variant": options.variant, "labels": labels, "read": read_once()}
        evaluated = None
        if (options.eval_split or "").lower() != "none":
            evaluated = load_rows(options.data, options.eval_split, flag="--eval_split", **where)
        trained = load_rows(options.data, options.train_split, flag="--train_split", **where)
        options.eval_split = evaluated.split if evaluated is not None else None
        return cls(trained, evaluated)


def build_run(
    task: Task,
    run: Run,
    options: DataOptions,
    args: AVTrainingArguments,
    data: RunData,
    columns: Sequence[str] = (),
    *,
    config: Any = None,
    trainer_class: type[AVTrainer] = AVTrainer,
    callbacks: Callable[[Any], list[TrainerCallback]] | None = None,
    balance: bool = False,
    modality_dropout: float = 0.0,
) -> AVTrainer:
    """Builds and checks the trainer of a run, with model, processor and streams, and writes `recipe.json` into its folder.

    Args:
        task: the task to train.
        columns: label columns; empty for a task without labels.
        config: an object with more fields that the task needs, such as `num_segments`.
        callbacks: a function from the processor to more callbacks for the trainer.
        balance: read clips of rare labels of the first column more often.
        modality_dropout: probability that a training clip loses a modality.

    Raises:
        ValueError, OSError: data, checkpoint, recipe or flags do not fit each other.
    """
    set_seed(args.seed)
    fields = task.config_fields(data.trained.rows.features, columns, config) if columns else {}
    # The processor's windows and sizes decide the model's input sizes. A checkpoint has its own processor.
    if run.checkpoint is None:
        processor, model = build_fresh(run.recipe, fields, task.auto_class)
    else:
        processor, model = load_checkpoint(run, fields, task.auto_class)
    augmentation = build_frame_augmentation(run.recipe, processor)
    # Modalities that the model does not use are not decoded.
    read = {"labels": task.read_labels(columns, fields), "modalities": model.config.modalities}
    read["input_axes"] = getattr(model.config, "input_axes", CLIP_AXES)

    def stream(split: SplitRows, transform: Callable, **shuffling: Any) -> ClipStream:
        return ClipStream(
            split.rows,
            transform,
            num_rows=split.num_rows,
            seed=args.seed,
            on_error=options.on_decode_failure,
            **shuffling,
        )

    collating = {"modality_dropout": modality_dropout} if modality_dropout else {}
    trainer = trainer_class(
        model,
        args,
        build_collator(run.recipe, model.config, seed=args.seed, **collating),
        train_dataset=stream(
            data.trained,
            ClipTransform(processor, mode="train", augmentation=augmentation, **read),
            shuffle_buffer=options.shuffle_buffer,
            balance=LabelBalance.of(data.trained.rows, columns[0]) if balance else None,
        ),
        eval_dataset=stream(data.evaluated, view_transform(processor, args.eval_views, **read))
        if data.evaluated
        else None,
        processing_class=processor,
        callbacks=callbacks(processor) if callbacks is not None else None,
    )
    args.resume_from_checkpoint = trainer.check_start(args.resume_from_checkpoint)
    keep_record(run, trainer, augmentation)
    return trainer


def train_and_evaluate(trainer: AVTrainer, split: str | None) -> int:
    """Trains, saves the model with its processor, evaluates on the split unless it is None, and saves the metrics.

    Returns:
        Number of clips that were skipped because they could not be decoded, counted in every epoch.
    """
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if split is None:
        return trainer.train_dataset.skipped
    metrics = trainer.evaluate()
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return trainer.train_dataset.skipped + trainer.eval_dataset.skipped
