"""Refuses options of transformers' Trainer that would fail or have no effect with audio-visual clips."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..arguments import did_you_mean
from ..data.streaming.clip_stream import ClipStream
from ..files import parse_json

if TYPE_CHECKING:
    from .arguments import AVTrainingArguments
    from .trainer import AVTrainer

# Options that no run can use: only transformers' default is allowed.
REFUSED = {
    "batch_eval_metrics": "metrics are computed from the scores of all clips, and only these are kept: leave it False.",
    "use_cache": "the models generate no text, so they have no cache: leave it False.",
    "use_liger_kernel": "liger-kernel has no kernels for these models: leave it False.",
    "liger_kernel_config": "liger-kernel has no kernels for these models: leave it out.",
    "include_num_input_tokens_seen": "it counts the tokens of a text, but clips have none: leave it at 'no'.",
    "length_column_name": "it groups texts by length, but all clips of a model have the same: leave it out.",
}
# Options that choose the order and the batches of the data. A ClipStream has its own, so only the defaults are allowed.
REFUSED_WITH_STREAMS = {
    "train_sampling_strategy": "a stream has its own order: leave it at 'random'; ClipStream(shuffle_buffer=0) keeps the order of"
    " the rows (--shuffle_buffer 0).",
    "dataloader_in_order": "a stream can be resumed only if its batches keep their order: leave it True.",
}
_PUBLISHED = "it belongs to optimizer='trainer', but optimizer is {optimizer!r}: leave one of the two out."
_OPTIMISER_OPTIONS = ("optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")


def _default(name: str) -> Any:
    [found] = [field for field in fields(TrainingArguments) if field.name == name]
    return found.default if found.default is not MISSING else found.default_factory()


def checked_rates(rates: dict | str | None) -> dict[str, float] | None:
    """The learning rates by pattern of `AVTrainingArguments.learning_rates`, which may be JSON text.

    Raises:
        ValueError: no JSON object, a pattern that is no regular expression, or a rate that is no number of at least 0.
    """
    if isinstance(rates, str):
        try:
            rates = parse_json(rates)
        except ValueError as error:
            raise ValueError(f"learning_rates={rates!r} is not JSON: {error}") from error
    if rates is None:
        return None
    if not isinstance(rates, dict):
        raise ValueError(f'learning_rates={rates!r} must be an object such as {{"classifier": 4e-6}}.')
    for pattern, rate in rates.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"learning_rates: {pattern!r} is not a regular expression: {error}") from error
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
            raise ValueError(f"learning_rates: the rate of {pattern!r} must be a number of at least 0, got {rate!r}.")
    return rates


def check_options(args: AVTrainingArguments) -> None:
    """Checks the options that contradict each other or the task, before there is a model.

    Raises:
        ValueError: an option would have no effect, or evaluation would fail with it.
    """

    def refuse(name: str, reason: str, default: Any = MISSING) -> None:
        if (value := getattr(args, name)) != (_default(name) if default is MISSING else default):
            raise ValueError(f"{name}={value!r}: {reason.format(optimizer=args.optimizer)}")

    for name, reason in REFUSED.items():
        refuse(name, reason)
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r}: it groups texts by length, but all clips of a model have"
            " the same: choose 'random' or 'sequential'."
        )
    if wrong := sorted(set(args.include_for_metrics) - {"loss"}):
        raise ValueError(
            f"include_for_metrics={wrong}: only 'loss' is allowed, since the inputs of all clips would fill the memory, and a"
            " clip may lack one of them. Leave it out."
        )
    if args.optimizer != "trainer":
        for name in ("optim", "optim_args", "optim_target_modules"):
            refuse(name, _PUBLISHED)
    if args.optimizer == "momentum_sgd":
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            refuse(name, "optimizer='momentum_sgd' has no such value: leave one of the two out.")
    else:
        refuse("momentum", "it belongs to optimizer='momentum_sgd', but optimizer is {optimizer!r}: leave it out.", 0.9)
    if args.schedule != "trainer":
        for name in ("lr_scheduler_type", "lr_scheduler_kwargs"):
            refuse(
                name, f"it belongs to schedule='trainer', but schedule is {args.schedule!r}: leave one of the two out."
            )
    if args.schedule == "step":
        refuse("warmup_steps", "schedule='step' has no warm-up: leave one of the two out.")
    if args.warmup_epochs is not None:
        refuse(
            "warmup_steps", f"warmup_epochs={args.warmup_epochs} sets the warm-up already: leave one of the two out."
        )


def check_trainer(trainer: AVTrainer, own_metrics: bool) -> None:
    """Checks the options that have no effect with the data and the optimiser of a trainer.

    Args:
        own_metrics: whether the caller passed `compute_metrics`.

    Raises:
        ValueError: an option would have no effect. NotImplementedError: parallelism that a ClipStream does not support.
        ImportError, ValueError: transformers' errors for an optimiser that is not installed or lacks an option.
    """
    args = trainer.args
    if not own_metrics and args.label_names != ["labels"]:
        raise ValueError(
            f"label_names={args.label_names}: batches hold their labels as 'labels' only, and those without one of these are not"
            " evaluated: leave it out, or pass compute_metrics and a collator that makes them."
        )
    if args.include_for_metrics and not own_metrics:
        raise ValueError(
            f"include_for_metrics={args.include_for_metrics}: the metrics of the task do not use it: leave it out, or pass"
            " compute_metrics."
        )
    if args.optimizer == "trainer" and trainer.optimizer is None and trainer.optimizer_cls_and_kwargs is None:
        made = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
        for name in _OPTIMISER_OPTIONS:
            if getattr(args, name) == _default(name):
                continue
            without = copy.copy(args)
            setattr(without, name, _default(name))
            try:
                has_effect = trainer.get_optimizer_cls_and_kwargs(without, trainer.model) != made
            except ValueError:  # the optimiser requires it
                has_effect = True
            if not has_effect:
                raise ValueError(
                    f"{name}={getattr(args, name)!r}: optim={args.optim.value!r} does not use it: leave it out, or choose another"
                    " optim."
                )
    evaluated = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    if isinstance(trainer.train_dataset, ClipStream):
        _check_stream(args, trainer.train_dataset)
    if any(isinstance(dataset, ClipStream) for dataset in (trainer.train_dataset, *evaluated)):
        _check_reading(trainer)


def check_best_metric(trainer: AVTrainer) -> None:
    """Checks that evaluations during training have the metric that selects the best checkpoint, and that its best value is known.

    Raises:
        ValueError: they have not, and the message lists all metrics; or the highest value of an error would be chosen.
    """
    wanted, names = trainer.args.metric_for_best_model, trainer.metric_names()
    if wanted is None or names is None:
        return
    sets = trainer.eval_dataset if trainer.validation_dataset is None else trainer.validation_dataset
    if isinstance(sets, dict):
        names = {f"{key}_{name}" for key in sets for name in names}
    if wanted.removeprefix("eval_") not in names:
        raise ValueError(
            f"metric_for_best_model={wanted!r}: an evaluation of this model has no such metric"
            f"{did_you_mean(wanted.removeprefix('eval_'), sorted(names))}; its metrics are {', '.join(sorted(names))}."
        )
    name = wanted.removeprefix("eval_")
    for key in sets if isinstance(sets, dict) else ():
        name = name.removeprefix(f"{key}_")
    if trainer.task.show_metric(name).lowest_is_best and trainer.args.greater_is_better:
        raise ValueError(
            f"metric_for_best_model={wanted!r} with greater_is_better=True (transformers' default) would choose the largest error:"
            " set greater_is_better=False (--greater_is_better false)."
        )


def _check_stream(args: AVTrainingArguments, stream: ClipStream) -> None:
    for name, reason in REFUSED_WITH_STREAMS.items():
        if getattr(args, name) != _default(name):
            raise ValueError(f"{name}={getattr(args, name)!r}: {reason}")
    if args.data_seed is not None and args.data_seed != stream.seed:
        raise ValueError(
            f"data_seed={args.data_seed}: the order of a stream has its own seed, which is {stream.seed}: leave data_seed out,"
            f" or make the training set with ClipStream(seed={args.data_seed})."
        )


def _check_reading(trainer: AVTrainer) -> None:
    default, given = AcceleratorConfig().to_dict(), trainer.args.accelerator_config.to_dict()
    names = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")
    if changed := {name: given[name] for name in names if given[name] != default[name]}:
        raise ValueError(
            f"accelerator_config={changed}: a ClipStream is read without accelerate, which would decode every clip in one"
            " process: leave these values out."
        )
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise NotImplementedError(
            "A ClipStream gives every process different clips, but with tensor, context or sequence parallelism some"
            " processes need the same clips: use data parallelism (DDP, FSDP, DeepSpeed ZeRO)."
        )
