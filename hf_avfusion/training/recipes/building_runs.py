"""Builds a trainer from a parsed command line, trains and evaluates; shared by the training scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import print as rich_print
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy, SchedulerType

from ...data.benchmarks.reading import read_once
from ...data.benchmarks.splits import SplitRows, load_rows, load_validation
from ...data.streaming.balancing import LabelBalance
from ...data.streaming.clip_stream import ClipStream
from ...evaluation.views import view_transform
from ...tasks import Task, task_of, without_adapter
from ..arguments import AVTrainingArguments
from ..trainer import AVTrainer
from .adapting import add_adapter
from .building import build_collator, build_frame_augmentation, build_fresh, load_checkpoint, reading_options
from .command_line import USER_ERRORS, exit_with_error
from .data_summary import describe_data
from .options import DataOptions
from .record import keep_record
from .run import Run


@dataclass
class RunData:
    """The undecoded rows of a run.

    `evaluated` is None with `--eval_split none`, `validation` if no evaluation during training decides anything.
    """

    trained: SplitRows
    evaluated: SplitRows | None
    validation: SplitRows | None = None

    @classmethod
    def load(cls, options: DataOptions, args: AVTrainingArguments | None = None, *, labels: bool = True) -> RunData:
        """Loads the splits and sets `options.eval_split`. The evaluation split is first, since its name is wrong more often.

        Args:
            args: if they choose a checkpoint or the learning rate by evaluation, this is done on validation rows, never on the
                split that is reported.

        Raises:
            ValueError, FileNotFoundError: as `load_rows` and `load_validation`.
        """
        read = read_once()
        where = {"source": options.source, "variant": options.variant, "labels": labels, "read": read}
        where["allow_urls"] = options.allow_urls
        evaluated = None
        if (options.eval_split or "").lower() != "none":
            evaluated = load_rows(options.data, options.eval_split, flag="--eval_split", **where)
        trained = load_rows(options.data, options.train_split, flag="--train_split", **where)
        options.eval_split = evaluated.split if evaluated is not None else None
        validation = None
        if args is not None and evaluation_decides(args):
            trained, validation = load_validation(trained, options.eval_split, labels=labels, read=read)
        return cls(trained, evaluated, validation)


def evaluation_decides(args: AVTrainingArguments) -> bool:
    """Whether evaluations during training choose a checkpoint or change the learning rate."""
    by_metric = args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    return args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST or by_metric


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
        processor, model = build_fresh(run.recipe, fields, task.auto_class, task.processor_fields(data.trained))
    else:
        processor, model = load_checkpoint(run, fields, task.auto_class, task.processor_fields(data.trained))
    for part in (data.trained, data.validation, data.evaluated):
        if part is not None:
            task.check_rows(processor, part)
    if task_of(model) is not task:
        segments = getattr(model.config, "num_segments", None)
        raise ValueError(
            f"{run.checkpoint or run.recipe.architecture} is a model for {task_of(model).title} (num_segments={segments}), but the "
            f"labels are for {task.title}: give labels and --num_segments that fit each other."
        )
    model = add_adapter(model, processor, run, args)
    augmentation = build_frame_augmentation(run.recipe, processor)
    read = reading_options(task.read_labels(columns, fields), model.config, allow_urls=options.allow_urls)

    def stream(split: SplitRows, transform: Callable, **shuffling: Any) -> ClipStream:
        return ClipStream(
            split.rows,
            transform,
            num_rows=split.num_rows,
            seed=args.seed if args.data_seed is None else args.data_seed,
            on_error=options.on_decode_failure,
            **shuffling,
        )

    def evaluated(split: SplitRows | None) -> ClipStream | None:
        if split is None:
            return None
        return stream(split, view_transform(processor, args.eval_views, transform_class=task.transform_class, **read))

    collating = {"modality_dropout": modality_dropout} if modality_dropout else {}
    trainer = trainer_class(
        model,
        args,
        build_collator(run.recipe, model.config, seed=args.seed, task=task, **collating),
        train_dataset=stream(
            data.trained,
            task.transform_class(processor, mode="train", augmentation=augmentation, **read),
            shuffle_buffer=options.shuffle_buffer,
            balance=LabelBalance.of(data.trained.rows, columns[0]) if balance else None,
        ),
        eval_dataset=evaluated(data.evaluated),
        validation_dataset=evaluated(data.validation),
        processing_class=processor,
        callbacks=callbacks(processor) if callbacks is not None else None,
    )
    args.resume_from_checkpoint = trainer.check_start(args.resume_from_checkpoint)
    keep_record(run, trainer, augmentation)
    if trainer.is_world_process_zero():
        classes = task.class_names(data.trained.rows.features, columns) if columns else {}
        best_by = args.metric_for_best_model if data.validation is not None else None
        print(*describe_data(data, classes, model.config.modalities, best_by), sep="\n")
    return trainer


def describe_model(model: Any) -> str:
    """A model's class and number of parameters, and how many of them are trained if not all."""
    model = without_adapter(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{type(model).__name__}: {count:,} parameters" + (
        f", {trained:,} of them trained" if trained < count else ""
    )


def train_and_evaluate(trainer: AVTrainer, split: str | None) -> int:
    """Trains, saves the model with its processor, evaluates on the split unless it is None, and saves the metrics.

    Returns:
        Number of clips that were skipped because they could not be decoded, in every epoch and over all processes, as in the
        metrics.
    """
    trained = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.save_model()
    trainer.save_state()
    if split is None:
        return trained["skipped_clips"]
    metrics = trainer.evaluate()
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return trained["skipped_clips"] + metrics["eval_skipped_clips"]


def run_script(prepare: Callable[[], tuple[DataOptions, AVTrainer]], try_next: str) -> int:
    """The course of every training script: prepares, trains, evaluates, and prints where the model is.

    Args:
        prepare: loads and checks everything that training needs. Its errors that a user can mend are printed in one line.
        try_next: a command to try with the model; `{folder}` stands for its folder.

    Returns:
        The exit status.
    """
    try:
        options, trainer = prepare()
    except USER_ERRORS as error:
        return exit_with_error(error)
    skipped = train_and_evaluate(trainer, options.eval_split)
    if skipped:
        rich_print(
            f"[yellow]skipped {skipped} clips that could not be decoded (counted in every epoch); see the log above[/]"
        )
    folder = trainer.args.output_dir
    rich_print(f"saved in {folder}; try: {try_next.format(folder=folder)}")
    return 0
