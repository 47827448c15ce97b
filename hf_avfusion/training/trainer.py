"""transformers' Trainer for audio-visual clips: streams, metrics, the published optimisers, strict resuming."""

import json
import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate.utils import find_batch_size
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, has_length

from ..data.collating import AVCollator
from ..data.streaming.clip_loader import COUNTED, ClipLoader
from ..data.streaming.clip_stream import ClipStream
from ..data.streaming.ranks import PaddedBatches, Ranks, loss_weights
from ..evaluation.views import ViewProtocol, check_views, view_logits
from ..files import write_text
from ..tasks import TASKS, task_of
from .arguments import AVTrainingArguments
from .checkpoints import check_weights, find_checkpoint
from .layerwise_decay import kernel_names, layer_ids, layerwise_groups
from .optimization import AdamDecoupled, momentum_sgd, warmup_cosine_factor, warmup_cosine_schedule

logger = logging.getLogger(__name__)

GATHER = "stage3_gather_16bit_weights_on_model_save"  # DeepSpeed's setting, without which ZeRO-3 saves no model


class AVTrainer(Trainer):
    """`transformers.Trainer` with audio-visual defaults. What it adds:

    - collating: `data_collator` serves training (augmentation, mixup, modality dropout), `eval_data_collator`
      evaluation; the default of both is a plain `AVCollator()`.
    - streams: a `ClipStream` is read by a `ClipLoader`, which Accelerate does not wrap. Accelerate's default would
      decode every clip on rank 0; here each process and worker decodes its own rows, each once. Processes take the same
      number of steps: one that has run out of clips before the others goes along without weight, and a step's loss is the
      mean over all of its clips. Other torch `IterableDataset`s are read in one process by a plain DataLoader, in
      several by Accelerate's.
    - `dataloader_drop_last` leaves out what makes no whole update at the end of a stream's epoch, so an update that is
      accumulated of small batches is the one of a single large batch, and epochs have as many of them.
    - resuming: every checkpoint holds each process's `ClipLoader.state_dict` (`stream_state_<rank>.json`); training goes on
      with the very next clip, and nothing already seen is decoded again. A checkpoint from the middle of an epoch needs the
      same number of processes and workers, the same batch size and stream; anything else is a ValueError.
    - clips that do not decode are counted in the logs of training (`skipped_clips`, over all processes and epochs; of
      interleaved or balanced streams also `repeated_clips` and `left_out_clips`, see `ClipLoader.counts`) and in the
      metrics of evaluation (`eval_skipped_clips`, beside `eval_clips`, those that were scored). An evaluation of which no
      clip decodes is a ValueError, in the middle of training an error in the log. An epoch with many of them has fewer
      steps; with `max_steps` the next epoch then begins earlier.
    - metrics of the model's task (`tasks.task_of`), on the model's `logits` only; large answers such as masks are reduced
      batch by batch to what the metrics need (`Task.reduce`). The evaluation loss is the mean over clips (the Trainer's own
      weighs a smaller last batch like a full one).
    - several views per clip in evaluation and prediction, where the arguments ask for them (`eval_num_views`,
      `eval_protocol`, ...) or the transform of the evaluated `ClipStream` makes them (`num_views`): they pass through the
      model `eval_views_per_step` at a time, each clip's logits are joined as the protocol says and count once, and
      `eval_views` in the metrics says how many there were. The loss is that of the joined logits against the clip's
      labels, the model's own loss in evaluation, so it belongs to the same scores as the metrics; it is not the mean of
      the views' losses.
    - the published optimisers and schedule (`AVTrainingArguments.optimizer`, `.layer_decay`, `.schedule`, `.warmup_epochs`).
    - checkpoints: `processing_class` is saved with each; weights are loaded through `from_pretrained` and every
      tensor must match. The Trainer's own loading ignores what it can't name, and checkpoints of models with a Hub
      backbone are written under other names than the module's.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks, ...: as for `transformers.Trainer`.
            `processing_class` is the model's processor.
        eval_data_collator: collator of evaluation and prediction.
        compute_metrics: replaces the metrics of the task.
    """

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module | None = None,
        args: AVTrainingArguments | None = None,
        data_collator: Callable | None = None,
        *,
        eval_data_collator: Callable | None = None,
        compute_metrics: Callable | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = AVTrainingArguments()
        if not isinstance(args, AVTrainingArguments):
            raise TypeError(f"args must be AVTrainingArguments, got {type(args).__name__}.")
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)  # which `parse_with_recipe` had put aside
        super().__init__(
            model,
            args,
            data_collator if data_collator is not None else AVCollator(),
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics or _only_logits,
            **kwargs,
        )
        if self.args.fsdp and not self.is_fsdp_enabled and not self.is_fsdp_xla_enabled:
            raise ValueError(
                "--fsdp was asked for, but accelerate shards on several accelerators only, and would train unsharded here:"
                " leave it out, or start on GPUs with torchrun."
            )
        self.eval_data_collator = eval_data_collator if eval_data_collator is not None else AVCollator()
        self.task = task_of(self.model) or TASKS["classification"]
        if (
            compute_metrics is None
            and getattr(self.model, "config", None) is not None
            and self.task.metrics is not None
        ):
            self.compute_metrics = self._task_metrics
        self._reduces = False  # whether the evaluation under way keeps what `Task.reduce` makes of logits and labels
        # The model's loss is a mean over clips. Were it told `num_items_in_batch`, that would be the number of label
        # *entries*, classes or heads times clips. So batches of a gradient accumulation count alike instead.
        self.model_accepts_loss_kwargs = False
        self.ranks = Ranks(self.args.process_index, self.args.world_size)
        self._stream: ClipLoader | None = None  # of the training set
        self._evaluated: PaddedBatches | None = None
        self._views: ViewProtocol | None = None  # of the evaluation under way
        sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for dataset in sets:
            self._views_of(dataset)  # one that does not fit is told now, not after an epoch
        self._loss_weights: deque[float] = deque()
        self._loss_weight = 1.0

    # ---- the beginning ----

    def check_start(self, resume_from_checkpoint: str | bool | None = None) -> str | None:
        """Tells before any work is lost what would stop the training of a `ClipStream` at its beginning, or leave it without a
        step; `train` asks it too.

        Args:
            resume_from_checkpoint: as of `train`; True or "true": the last whole checkpoint in `output_dir`.

        Returns:
            The checkpoint's folder; None without one.

        Raises:
            ValueError: the checkpoint is not there, not whole, of another model, or divided otherwise than this run; there are
                fewer clips than `dataloader_drop_last` drops; the warm-up is longer than the run; DeepSpeed's ZeRO-3 would not
                save the model.
        """
        if (
            self.args.deepspeed
            and is_deepspeed_zero3_enabled()
            and not self.args.hf_deepspeed_config.get_value(f"zero_optimization.{GATHER}")
        ):
            raise ValueError(
                f'--deepspeed {self.args.deepspeed}: ZeRO-3 would not save the trained model; set "{GATHER}": true in its'
                ' "zero_optimization".'
            )
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        whole = isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if checkpoint is not None and whole:
            check_weights(self.model, checkpoint)
        if isinstance(self.train_dataset, ClipStream):
            max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            if self.lr_scheduler is None and self.args.schedule == "warmup_cosine":
                warmup_cosine_factor(0, self._warmup_steps(max_steps), max_steps)
            if checkpoint is not None and not self.args.ignore_data_skip:
                self._go_on(checkpoint)
            self._stream = None
        return checkpoint

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As the Trainer's; of `resume_from_checkpoint=True` the last checkpoint that was written to its end counts."""
        return super().train(self.check_start(resume_from_checkpoint), *args, **kwargs)

    # ---- data ----

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        collator = self.data_collator if is_training else self.eval_data_collator
        # Several processes and a stream that cannot be split: Accelerate has rank 0 read it for all.
        foreign = isinstance(dataset, IterableDataset) and not isinstance(dataset, ClipStream)
        if not isinstance(dataset, IterableDataset) or (foreign and self.args.world_size > 1):
            training_collator, self.data_collator = self.data_collator, collator
            try:
                return super()._get_dataloader(
                    dataset, description, batch_size, sampler_fn, is_training, dataloader_key
                )
            finally:
                self.data_collator = training_collator
        workers = self.args.dataloader_num_workers
        options = {
            "num_workers": workers,
            "drop_last": is_training and self.args.dataloader_drop_last,
            "pin_memory": self.args.dataloader_pin_memory and torch.accelerator.is_available(),
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0 and is_training,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers > 0 else None,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers > 0 else None,
        }
        if foreign:
            return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, **options)
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise NotImplementedError(
                "Streams are divided among all processes, but with tensor, context or sequence parallelism some of them need"
                " the same clips: use data parallelism (DDP, FSDP, DeepSpeed ZeRO)."
            )
        return ClipLoader(
            dataset, batch_size, collator, rank=self.args.process_index, world_size=self.args.world_size, **options
        )

    def get_train_dataloader(self):
        dataloader = super().get_train_dataloader()
        self._stream = dataloader if isinstance(dataloader, ClipLoader) else None
        self._counts = self._counts_earlier = [0] * len(COUNTED)
        return dataloader

    def set_initial_training_values(self, args, dataloader):
        if has_length(dataloader) and len(dataloader) == 0 and args.dataloader_drop_last:
            clips = getattr(dataloader.dataset, "num_rows", "few")
            raise ValueError(
                f"The training set has {clips} clips, less than one batch ({args.world_size} x --per_device_train_batch_size"
                f" {args.train_batch_size}), and --dataloader_drop_last leaves out what makes no whole one, so nothing would be"
                " trained: make the batch smaller (of a recipe: --global_batch_size, or this flag, which accumulates the rest),"
                " or give --dataloader_drop_last false."
            )
        values = super().set_initial_training_values(args, dataloader)
        epochs, updates, *samples, batches, max_steps = values
        left = batches % args.gradient_accumulation_steps
        if self._stream is not None and has_length(dataloader) and args.dataloader_drop_last and left and updates > 1:
            # Dropped is what makes no whole update, as if nothing were accumulated; the Trainer's own goes by batches.
            updates, batches = updates - 1, batches - left
            max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
        # Updates and batches per epoch, for a warm-up given in epochs and for where it ends; unknown for a stream without length.
        self._steps_per_epoch, self._batches_per_epoch = (updates, batches) if has_length(dataloader) else (None, None)
        if self._stream is not None and args.max_steps > 0:
            epochs = sys.maxsize  # as many as it takes: clips that do not decode shorten them
        return epochs, updates, *samples, batches, max_steps

    def _run_epoch(self, *args, **kwargs):
        # Told to the dataset itself: a DataLoader that Accelerate did not wrap, and the one that skips batches after
        # a resume, do not pass it on.
        dataset = getattr(kwargs["train_dataloader"], "dataset", None)
        if isinstance(dataset, IterableDataset) and hasattr(dataset, "set_epoch"):
            dataset.set_epoch(kwargs["epoch"])
        if 0 < self.args.max_steps <= self.state.global_step:  # a finished run that was taken up again
            self.control.should_training_stop = True
            return None
        if self._stream is None:
            if kwargs["resume_from_checkpoint"] and self._steps_per_epoch is None and not self.args.ignore_data_skip:
                raise ValueError(
                    "A stream of unknown length can't be resumed: which epoch it was in, and where, is not known. Use a"
                    " ClipStream, or set ignore_data_skip to start the data anew."
                )
            return super()._run_epoch(*args, **kwargs)
        resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        self._batches_taken = kwargs["steps_trained_in_current_epoch"] if resumed else 0
        self._epoch_ended = False
        with _nothing_skipped():
            return super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As the Trainer's; from a `ClipStream`, all processes get equally many batches, `num_batches` or none."""
        self._loss_weights.clear()
        if self._stream is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._epoch_ended:
            return [], None
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        items = None
        if self.compute_loss_func is not None:  # it divides a sum by this
            items = sum(batch["labels"].ne(-100).sum().item() for batch in batches if "labels" in batch)
        batches, rows, told = self.ranks.pad_batches(batches, num_batches, (list(self._stream.counts.values()), items))
        self._counts = [sum(counts) for counts in zip(self._counts_earlier, *(counts for counts, _ in told))]
        if not batches:
            self._epoch_ended = True
            if not self._batches_taken:  # the Trainer would end here, and save a model that nothing was taught
                raise RuntimeError(
                    f"Epoch {self._stream.dataset.epoch} has no batch to train on: the training set is empty, or too many of its"
                    f" clips do not decode ({self._counts[0]} did not up to now; the log above names them)."
                )
            return [], None
        self._batches_taken += num_batches
        if self.compute_loss_func is None:
            self._loss_weights.extend(loss_weights(rows, self.args.process_index))
            return batches, None
        self._loss_weights.extend(float(own > 0) for own in rows[self.args.process_index])
        if self.args.average_tokens_across_devices:
            items = sum(of_rank for _, of_rank in told)
        return batches, torch.tensor(items, device=device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._loss_weight = self._loss_weights.popleft() if self._loss_weights else 1.0
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._loss_weight = 1.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._loss_weight == 1.0:
            return computed
        if return_outputs:
            return computed[0] * self._loss_weight, computed[1]
        return computed * self._loss_weight

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._stream is not None and ("loss" in logs or "train_loss" in logs):
            counts = {f"{name}_clips": count for name, count in zip(COUNTED, self._counts)}
            logs |= {"skipped_clips": counts["skipped_clips"]} if self._stream.dataset.has_each_row_once else counts
        super().log(logs, start_time)

    # ---- optimiser ----

    def parameter_groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser: those that decay and those that don't; with `layer_decay` one of each per layer.

        What decays: with `adam_decoupled` the kernels (as published), else what the Trainer takes (no biases and norms).
        """
        args = self.args
        published = args.optimizer == "adam_decoupled"
        decaying = kernel_names(model) if published else set(self.get_decay_parameter_names(model))
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if args.layer_decay is not None:
            # Ids of all names: a frozen layer is a layer still.
            ids = layer_ids(name for name, _ in model.named_parameters())
            return layerwise_groups(
                trained, ids, args.learning_rate, args.layer_decay, decaying=decaying, weight_decay=args.weight_decay
            )
        groups = {True: [], False: []}
        for name, parameter in trained.items():
            groups[name in decaying].append(parameter)
        return [
            {"params": groups[True], "weight_decay": self.args.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]

    def _prepare_for_training(self, *args, **kwargs):
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and plugin.fsdp_version == 2 and plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = _classes_to_shard(self.model)
        return super()._prepare_for_training(*args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            model = self.model if model is None else model
            groups = self.parameter_groups(model)
            if self.args.optimizer == "momentum_sgd":
                self.optimizer = momentum_sgd(groups, self.args.learning_rate, self.args.momentum)
            elif self.args.optimizer == "adam_decoupled":
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                self.optimizer = AdamDecoupled(groups, self.args.learning_rate, betas, self.args.adam_epsilon)
            else:
                optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
                # Some of the Trainer's optimisers bring parameter groups of their own; those stay.
                if self.args.layer_decay is not None and {"params", "model", "optimizer_dict"} & set(kwargs):
                    raise ValueError(
                        f"--optim {self.args.optim} makes its own parameter groups, so that layer_decay would do nothing: leave "
                        "one of them out."
                    )
                self.optimizer_cls_and_kwargs = optimizer_class, {"params": groups, **kwargs}
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None and self.args.schedule == "warmup_cosine":
            warmup_steps = self._warmup_steps(num_training_steps)
            self.lr_scheduler = warmup_cosine_schedule(
                self.optimizer if optimizer is None else optimizer, warmup_steps, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _warmup_steps(self, num_training_steps: int) -> float:
        if self.args.warmup_epochs is None:
            return float(self.args.get_warmup_steps(num_training_steps))
        if self._steps_per_epoch is None:
            raise ValueError(
                "warmup_epochs needs a training set with a length; this stream has none, give warmup_steps."
            )
        return self.args.warmup_epochs * self._steps_per_epoch

    # ---- evaluation ----

    def evaluation_loop(
        self, dataloader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        self._loss_sum, self._loss_clips, self._clips = 0.0, 0, 0
        # `predict` returns whole answers.
        self._reduces = (
            self.task.reduce is not None and self.compute_metrics == self._task_metrics and description != "Prediction"
        )
        self._evaluated = None
        self._views = self._views_of(getattr(dataloader, "dataset", None))
        stream = dataloader if isinstance(dataloader, ClipLoader) else None
        if stream is not None and self.args.world_size > 1:
            dataloader = self._evaluated = PaddedBatches(stream, self.ranks)
            self.gather_function = dataloader.gather
        try:
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        finally:
            self._evaluated, self.gather_function = None, self.accelerator.gather_for_metrics
        if self._views is not None:
            output.metrics[f"{metric_key_prefix}_views"] = self._views.total
        skipped = stream.skipped if stream is not None else 0
        of_ranks = self.ranks.all_gather((self._loss_sum, self._loss_clips, self._clips, skipped))
        loss_sum, loss_clips, clips, skipped = (sum(values) for values in zip(*of_ranks))
        if loss_clips:
            output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / loss_clips
        if stream is not None and not clips:
            text = f"No clip of the evaluation set was scored: {skipped} did not decode (the log above names them)."
            if not self.is_in_train:
                raise ValueError(text)
            logger.error(text)  # what was trained up to now is worth more
        if stream is not None:
            output.metrics[f"{metric_key_prefix}_clips"] = clips
            output.metrics[f"{metric_key_prefix}_skipped_clips"] = skipped
            output = output._replace(num_samples=clips)
        return output

    def _views_of(self, dataset: Any) -> ViewProtocol | None:
        """The views of an evaluation set; None where its clips have one."""
        wanted = self.args.eval_views
        made = getattr(dataset.transform, "num_views", None) if isinstance(dataset, ClipStream) else None
        if wanted is None:
            wanted = ViewProtocol(made or 1, 1, "mean_logits", "the transform of the evaluation set")
        elif made is not None and made != wanted.total:
            raise ValueError(
                f"The arguments ask for {wanted.total} views per clip in evaluation, but the evaluation set's transform makes "
                f"{made}: build it with hf_avfusion.evaluation.views.view_transform(processor, args.eval_views, ...)."
            )
        flags = ("--eval_num_views", "--eval_num_crops", "--eval_aggregation")
        check_views(wanted, self.task, getattr(self.model, "config", None), flags)
        return wanted if wanted.total > 1 else None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self._views is not None:
            loss, logits, labels = self._predict_views(model, inputs)
            if prediction_loss_only:
                logits = labels = None
        else:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        if self._reduces and logits is not None and labels is not None:
            logits, labels = self.task.reduce(_only_logits(logits, labels), labels, self.model.config)
        clips = self._evaluated.own_rows if self._evaluated is not None else find_batch_size(inputs)
        self._clips += clips
        if loss is not None and clips:
            self._loss_sum += loss.item() * clips
            self._loss_clips += clips
        return loss, logits, labels

    def _predict_views(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Loss, logits [B, classes] and labels of a batch with views; the inputs stay where they are, their parts go to
        the model's device in turn.
        """
        views, config = self._views, getattr(self.model, "config", None)
        at_once, passes = self.args.eval_views_per_step or self.args.per_device_eval_batch_size, None
        if self._evaluated is not None:  # sharded weights: every process must take as many forward passes
            passes = -(-self._evaluated.most_rows * views.total // at_once)
        with self.compute_loss_context_manager():
            of_views = view_logits(model, inputs, views_per_step=at_once, passes=passes)
        if of_views.shape[1] != views.total:
            raise ValueError(
                f"Expected {views.total} views per clip in evaluation, but a batch holds {of_views.shape[1]}: build the "
                "evaluation set with hf_avfusion.evaluation.views.view_transform(processor, args.eval_views, ...)."
            )
        labels = inputs.get(self.label_names[0]) if self.label_names else None
        labels = labels.to(self.args.device) if labels is not None else None
        logits = self.task.join_views(of_views, labels, views.aggregation, config).to(self.args.device)
        if labels is None:
            return None, logits, None
        if self.compute_loss_func is not None:
            items = self._get_num_items_in_batch([inputs], self.args.device)
            return self.compute_loss_func({"logits": logits}, labels, num_items_in_batch=items).mean(), logits, labels
        return self.task.loss(logits, labels, config).mean(), logits, labels

    def _task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        logits = torch.as_tensor(logits[0] if isinstance(logits, tuple) else logits)
        labels, config = torch.as_tensor(labels), self.model.config
        if self.task.reduce is not None and not self._reduces:
            logits, labels = self.task.reduce(logits, labels, config)
        return self.task.metrics(logits, labels, config)

    # ---- checkpoints ----

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # part of what makes a checkpoint resumable, in every process; so is this
        if self._stream is None:
            return
        ended = self._epoch_ended or (
            self._batches_per_epoch is not None and self._batches_taken >= self._batches_per_epoch
        )
        state = {
            "batches_taken": self._batches_taken,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "epoch_ended": ended,
            "counts": self._counts,  # of all processes
            "counts_earlier": self._counts_earlier,  # those that no process's stream counts
            "stream": self._stream.state_dict(),
        }
        path = Path(output_dir) / f"stream_state_{self.args.process_index}.json"
        write_text(path, json.dumps(state, indent=1))

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        epoch_and_batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self._stream is None or resume_from_checkpoint is None or self.args.ignore_data_skip:
            return epoch_and_batches
        # Counted by the Trainer from the number of steps, which clips that do not decode make smaller; so read instead.
        return self._go_on(resume_from_checkpoint)

    def _go_on(self, checkpoint: str) -> tuple[int, int]:
        """Sets the stream to where it was in a checkpoint; the epoch, and its batches that were taken."""
        state = _read_stream_state(checkpoint, 0)
        world_size, steps = state["stream"]["layout"]["world_size"], state["gradient_accumulation_steps"]
        if not state["epoch_ended"]:
            for name, theirs, ours in (
                ("number of processes", world_size, self.args.world_size),
                ("gradient_accumulation_steps", steps, self.args.gradient_accumulation_steps),
            ):
                if theirs != ours:
                    raise ValueError(
                        f"{checkpoint} lies in the middle of an epoch, whose clips are divided by the {name}:"
                        f" it was {theirs} and is {ours}. Resume with {theirs}, or from a checkpoint at the end of an epoch."
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; with FSDP's SHARDED_STATE_DICT it writes whole weights too, where the Trainer's writes none.
        Checkpoints stay sharded.
        """
        super().save_model(output_dir, _internal_call)
        if not self.is_fsdp_enabled or _internal_call:
            return
        if "SHARDED_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            weights = self.accelerator.get_state_dict(self.model)  # every process must take part
            if self.args.should_save:
                self._save(output_dir, state_dict=weights)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded, report = type(model).from_pretrained(
            resume_from_checkpoint, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        problems = {name: sorted(map(str, tensors)) for name, tensors in report.items() if tensors}
        if problems:
            raise ValueError(f"The checkpoint {resume_from_checkpoint} does not hold this model's weights: {problems}.")
        model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(self.model, PreTrainedModel):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _only_logits(predictions: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
    """Keeps what is scored; a model's further outputs (logits per modality, hidden states) would pile up over an
    evaluation.
    """
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _classes_to_shard(model: torch.nn.Module) -> list[str]:
    """The model's `_no_split_modules` without those that hold its input embeddings: accelerate 1.15 shards these by
    themselves afterwards, which fails where the module around them was sharded already (ViTs).
    """
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    around = {
        type(module).__name__ for module in model.modules() if any(part is embeddings for part in module.modules())
    }
    return [name for name in getattr(model, "_no_split_modules", None) or [] if name not in around]


def _read_stream_state(checkpoint: str, rank: int) -> dict[str, Any]:
    path = Path(checkpoint) / f"stream_state_{rank}.json"
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no {path.name}, which says where its stream was. Resume from a checkpoint that has one, or"
            " set ignore_data_skip to start the data anew."
        )
    return json.loads(path.read_text())


@contextmanager
def _nothing_skipped() -> Iterator[None]:
    """The Trainer resumes within an epoch by reading, and so decoding, what was seen. A `ClipLoader` starts at its place."""
    skip = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = lambda dataloader, num_batches=0: dataloader
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = skip
