"""transformers' Trainer for audio-visual clips: streams, metrics, the published optimisers, exact resuming."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from ..data.collating import AVCollator, LabelChecks
from ..data.streaming.clip_loader import COUNTED, ClipLoader
from ..data.streaming.clip_stream import ClipStream
from ..data.streaming.ranks import PaddedBatches, Ranks
from ..evaluation.adapter_checkpoints import check_adapter_weights
from ..evaluation.view_checks import check_sample_views, stated_views
from ..evaluation.views import ViewProtocol, check_views, join_batches, view_logits
from ..models.shared.losses_classification import IGNORED_LABEL
from ..tasks import DEFAULT_TASK, task_of
from .arguments import AVTrainingArguments
from .checkpoints import check_optimizer, check_weights, find_checkpoint
from .layerwise_decay import kernel_names, layer_ids, layerwise_groups
from .optimization import AdamDecoupled, groups_by_rate, momentum_sgd, warmup_cosine_factor, warmup_cosine_schedule
from .option_checks import check_best_metric, check_trainer
from .trainer_hooks import TrainerHooks

logger = logging.getLogger(__name__)

GATHER = "stage3_gather_16bit_weights_on_model_save"  # DeepSpeed setting; ZeRO-3 saves no model without it


class AVTrainer(TrainerHooks):
    """`transformers.Trainer` for audio-visual clips. It adds:

    - Collators: `data_collator` is for training (augmentation, mixup, modality dropout), `eval_data_collator` for evaluation. The
      default of both is the collator of the model's task without augmentation (`Task.collator`). Labels are checked against the
      model's classes for every collator, before a batch goes to a device.
    - Streams: a `ClipLoader` reads a `ClipStream`, and Accelerate does not wrap it. Accelerate's default would decode every clip
      on rank 0; here each process and worker decodes only its own rows, each once. All processes take the same number of steps.
      A process that runs out of clips contributes batches with zero weight, and the loss of a step is the mean over all its
      clips. Other torch `IterableDataset`s are read by a plain DataLoader in one process, and by Accelerate's in several.
    - `dataloader_drop_last` drops clips at the end of a stream's epoch that do not fill a whole update. An update accumulated
      from small batches therefore equals that of one large batch, and epochs have the same number of updates.
    - Resuming: every checkpoint holds the `ClipLoader.state_dict` of each process (`stream_state_<rank>.json`). Training resumes
      with the next clip and decodes no clip again. A checkpoint from the middle of an epoch requires the same number of
      processes and workers, the same batch size and the same stream; otherwise `train` raises a ValueError.
    - Undecodable clips are counted. Training logs have `skipped_clips` over all processes and epochs, and for interleaved or
      balanced streams also `repeated_clips` and `left_out_clips` (see `ClipLoader.counts`). Evaluation metrics have
      `eval_skipped_clips`, and `eval_clips` for the evaluated ones. An evaluation without a decodable clip raises a ValueError;
      during training it only logs an error. Skipped clips shorten an epoch; with `max_steps` the next epoch starts earlier.
    - Metrics of the model's task (`tasks.task_of`), computed on the model's `logits` only. Large outputs such as masks are reduced
      after each batch to the values that the metrics need (`Task.reduce`). The evaluation loss is the mean over clips, while the
      Trainer's own gives a smaller last batch the weight of a full one. Clips whose labels are -100 count in neither.
    - Several views per clip in evaluation and prediction, if the arguments (`eval_num_views`, `eval_protocol`, ...) or the
      evaluated dataset or its transform (`num_views`) ask for them. The model gets `eval_views_per_step` views at a time.
      Each clip's logits are joined by the protocol and count once, and `eval_views` in the metrics is the number of views. The
      loss is the model's evaluation loss of the joined logits, so that it matches the metrics. It is not the mean of the views'
      losses.
    - The published optimisers and schedule (`AVTrainingArguments.optimizer`, `.layer_decay`, `.learning_rates`, `.schedule`,
      `.warmup_epochs`, `.decay_epochs`).
    - Checkpoints: each holds the `processing_class`. Weights are loaded with `from_pretrained`, and every tensor must match. The
      Trainer's own loading ignores unknown names, and checkpoints of models with a Hub backbone use other names than the module.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, callbacks, ...: as for `transformers.Trainer`.
            `processing_class` is the model's processor.
        eval_data_collator: collator of evaluation and prediction.
        validation_dataset: evaluated during training in place of `eval_dataset`, so that a best checkpoint is never chosen on the
            clips that are reported.
        compute_metrics: replaces the metrics of the task.
    """

    def __init__(
        self,
        model: PreTrainedModel | torch.nn.Module | None = None,
        args: AVTrainingArguments | None = None,
        data_collator: Callable | None = None,
        *,
        eval_data_collator: Callable | None = None,
        validation_dataset: Dataset | None = None,
        compute_metrics: Callable | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        **kwargs: Any,
    ):
        if args is None:
            args = AVTrainingArguments()
        if not isinstance(args, AVTrainingArguments):
            raise TypeError(f"args must be AVTrainingArguments, got {type(args).__name__}.")
        if args.deepspeed:
            set_hf_deepspeed_config(args.hf_deepspeed_config)  # `parse_with_recipe` had unset it
        self.validation_dataset = validation_dataset
        if kwargs.get("eval_dataset") is None:
            kwargs["eval_dataset"] = validation_dataset
        super().__init__(
            model,
            args,
            data_collator,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics or _only_logits,
            **kwargs,
        )
        if self.args.fsdp and not self.is_fsdp_enabled and not self.is_fsdp_xla_enabled:
            raise ValueError(
                "--fsdp needs several accelerators, since accelerate would train without sharding here: leave it out, or start"
                " on several GPUs with torchrun."
            )
        check_trainer(self, own_metrics=compute_metrics is not None)
        self.task = task_of(self.model) or DEFAULT_TASK
        self._task_collator = plain = self.task.collator_class.for_model(getattr(self.model, "config", None))
        self.data_collator = plain if data_collator is None else data_collator
        self.eval_data_collator = plain if eval_data_collator is None else eval_data_collator
        if (
            compute_metrics is None
            and getattr(self.model, "config", None) is not None
            and self.task.metrics is not None
        ):
            self.compute_metrics = self._task_metrics
        self._reduces = False  # whether the current evaluation applies `Task.reduce` to logits and labels
        # The model's loss is a mean over clips, but the Trainer's `num_items_in_batch` counts label *entries* (clips times
        # heads or classes). Without it, all batches of a gradient accumulation have the same weight.
        self.model_accepts_loss_kwargs = False
        self.ranks = Ranks(self.args.process_index, self.args.world_size)
        self._stream: ClipLoader | None = None  # of the training set
        self._evaluated: PaddedBatches | None = None
        self._views: ViewProtocol | None = None  # of the current evaluation
        sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for dataset in (*sets, validation_dataset):
            self._views_of(dataset, before_training=True)  # raises for a wrong dataset now, not after an epoch
        self._loss_weights: deque[float] = deque()
        self._loss_weight = 1.0
        self._save_after_updates_only()

    # ---- start ----

    def check_start(self, resume_from_checkpoint: str | bool | None = None) -> str | None:
        """Checks that training can start, before any work is done; `train` calls it too.

        Args:
            resume_from_checkpoint: as for `train`; True or "true" selects the last complete checkpoint in `output_dir`.

        Returns:
            The checkpoint's folder, or None.

        Raises:
            ValueError: the checkpoint does not exist, is incomplete, is of another model or optimiser, or divides its clips
                differently from this run; `dataloader_drop_last` would drop all clips; the warm-up is longer than the run;
                no evaluation has `metric_for_best_model`; a pattern of `learning_rates` matches no
                parameter; DeepSpeed's ZeRO-3 would not save the model.
        """
        check_best_metric(self)
        if self.args.learning_rates:
            self.parameter_groups(self.model)
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
        if checkpoint is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            if isinstance(self.model, PreTrainedModel):
                check_weights(self.model, checkpoint)
            elif hasattr(self.model, "peft_config"):
                check_adapter_weights(self.model, checkpoint)
            check_optimizer(self.create_optimizer(), checkpoint)
        if isinstance(self.train_dataset, ClipStream):
            max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            if self.lr_scheduler is None and self.args.schedule == "warmup_cosine":
                warmup_cosine_factor(0, self._warmup_steps(max_steps), max_steps)
            if self.lr_scheduler is None and self.args.schedule == "step":
                self._decay_steps()
            if checkpoint is not None and not self.args.ignore_data_skip:
                self._restore_stream(checkpoint)
            self._stream = None
        return checkpoint

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As the Trainer's; `resume_from_checkpoint=True` selects the last complete checkpoint."""
        checkpoint = self.check_start(resume_from_checkpoint)
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and plugin.fsdp_version == 2 and plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = _classes_to_shard(self.model)
        return super().train(checkpoint, *args, **kwargs)

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        if self._is_read_here(dataset):
            dataloader = self._stream_loader(dataset, self._train_batch_size, self.data_collator, is_training=True)
        else:
            dataloader = self._loader_of_trainer(self.data_collator, super().get_train_dataloader)
        self._stream = dataloader if isinstance(dataloader, ClipLoader) else None
        self._counts = self._counts_earlier = [0] * len(COUNTED)
        return dataloader

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        return self._evaluation_loader(dataset, partial(super().get_eval_dataloader, eval_dataset))

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        return self._evaluation_loader(test_dataset, partial(super().get_test_dataloader, test_dataset))

    def _evaluation_loader(self, dataset: Dataset, make_loader: Callable[[], DataLoader]) -> DataLoader:
        if self._is_read_here(dataset):
            return self._stream_loader(dataset, self.args.eval_batch_size, self.eval_data_collator, is_training=False)
        return self._loader_of_trainer(self.eval_data_collator, make_loader)

    def _loader_of_trainer(self, collator: Callable, make_loader: Callable[[], DataLoader]) -> DataLoader:
        """The Trainer's own loader, with a collator."""
        training_collator, self.data_collator = self.data_collator, self._with_label_checks(collator)
        try:
            return make_loader()
        finally:
            self.data_collator = training_collator

    def _with_label_checks(self, collator: Callable) -> Callable:
        """A collator whose labels are checked before the batch goes to a device."""
        checks = isinstance(collator, AVCollator) and collator.num_labels is not None
        return collator if checks else LabelChecks(collator, self._task_collator)

    def _is_read_here(self, dataset: Any) -> bool:
        """Whether `_stream_loader` makes the loader of a dataset, and not the Trainer.

        With several processes, streams other than a ClipStream cannot be split: Accelerate's loader reads them on rank 0 for all.
        """
        return isinstance(dataset, ClipStream) or (isinstance(dataset, IterableDataset) and self.args.world_size == 1)

    def _stream_loader(
        self, dataset: IterableDataset, batch_size: int, collator: Callable, is_training: bool
    ) -> DataLoader:
        workers, collator = self.args.dataloader_num_workers, self._with_label_checks(collator)
        options = {
            "num_workers": workers,
            "drop_last": is_training and self.args.dataloader_drop_last,
            "pin_memory": self.args.dataloader_pin_memory and torch.accelerator.is_available(),
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0 and is_training,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers > 0 else None,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers > 0 else None,
        }
        if not isinstance(dataset, ClipStream):
            return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, **options)
        return ClipLoader(
            dataset, batch_size, collator, rank=self.args.process_index, world_size=self.args.world_size, **options
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._loss_weight = self._loss_weights.popleft() if self._loss_weights else 1.0
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._loss_weight = 1.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name not in self.task.metric_inputs}
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
        """Parameter groups of the optimiser: with and without weight decay, and with `layer_decay` both for every layer.

        With `adam_decoupled` the kernels decay (as published), else the Trainer's choice (all but biases and norms).
        """
        args = self.args
        published = args.optimizer == "adam_decoupled"
        decaying = kernel_names(model) if published else set(self.get_decay_parameter_names(model))
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if args.layer_decay is not None:
            # Ids need the names of all layers, including frozen ones.
            ids = layer_ids(name for name, _ in model.named_parameters())
            return layerwise_groups(
                trained, ids, args.learning_rate, args.layer_decay, decaying=decaying, weight_decay=args.weight_decay
            )
        if args.learning_rates:
            return groups_by_rate(trained, args.learning_rates, args.learning_rate, decaying, args.weight_decay)
        groups = {True: [], False: []}
        for name, parameter in trained.items():
            groups[name in decaying].append(parameter)
        return [
            {"params": groups[True], "weight_decay": self.args.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            model = self.model if model is None else model
            groups = self.parameter_groups(model)
            if self.args.optimizer == "momentum_sgd":
                self.optimizer = momentum_sgd(groups, self.args.learning_rate, self.args.momentum)
            elif self.args.optimizer in ("adam_decoupled", "adam"):
                betas = (self.args.adam_beta1, self.args.adam_beta2)
                kind = torch.optim.Adam if self.args.optimizer == "adam" else AdamDecoupled
                self.optimizer = kind(groups, self.args.learning_rate, betas, self.args.adam_epsilon)
            else:
                optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
                # Some of the Trainer's optimisers define their own parameter groups, which are kept.
                own = {"params", "model", "optimizer_dict"} & set(kwargs)
                for name in ("layer_decay", "learning_rates") if own else ():
                    if getattr(self.args, name) is not None:
                        raise ValueError(
                            f"--optim {self.args.optim} makes its own parameter groups, so that {name} would have no effect: "
                            "leave one of the two out."
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
        if self.lr_scheduler is None and self.args.schedule == "step":
            self.lr_scheduler = StepLR(
                self.optimizer if optimizer is None else optimizer, self._decay_steps(), gamma=self.args.decay_factor
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _warmup_steps(self, num_training_steps: int) -> float:
        if self.args.warmup_epochs is None:
            return float(self.args.get_warmup_steps(num_training_steps))
        if self._steps_per_epoch is None:
            raise ValueError(
                "warmup_epochs needs a training set with a length, but this stream has none: give warmup_steps instead."
            )
        return self.args.warmup_epochs * self._steps_per_epoch

    def _decay_steps(self) -> int:
        """Updates between the steps of `schedule="step"`."""
        if self._steps_per_epoch is None:
            raise ValueError(
                "schedule='step' needs a training set with a length, but this stream has none: choose another schedule."
            )
        return max(1, round(self.args.decay_epochs * self._steps_per_epoch))

    # ---- evaluation ----

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; during training the default is `validation_dataset`, if there is one."""
        if eval_dataset is None and self.is_in_train:
            eval_dataset = self.validation_dataset
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(
        self, dataloader, description: str, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        self._loss_sum, self._loss_clips, self._clips = 0.0, 0, 0
        # `predict` returns full outputs, so it does not reduce them.
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
        gathered = self.ranks.all_gather((self._loss_sum, self._loss_clips, self._clips, skipped))
        loss_sum, loss_clips, clips, skipped = (sum(values) for values in zip(*gathered))
        if loss_clips:
            output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / loss_clips
        if stream is not None and not clips:
            text = f"No clip of the evaluation set was evaluated: {skipped} could not be decoded (the log above names them)."
            if not self.is_in_train:
                raise ValueError(text)
            logger.error(text)  # an exception would lose the training so far
        if stream is not None:
            output.metrics[f"{metric_key_prefix}_clips"] = clips
            output.metrics[f"{metric_key_prefix}_skipped_clips"] = skipped
            output = output._replace(num_samples=clips)
        return output

    def metric_names(self) -> set[str] | None:
        """Names of the metrics of one evaluation set, without "eval_"; None if they are known only after an evaluation."""
        names = {"loss", "clips", "skipped_clips", "views", "runtime", "samples_per_second", "steps_per_second"}
        if self.compute_metrics is None or self.args.prediction_loss_only:
            return names
        config = getattr(self.model, "config", None)
        known = self.task.metric_names(config) if self.compute_metrics == self._task_metrics else None
        return known and names | known

    def _views_of(self, dataset: Any, before_training: bool = False) -> ViewProtocol | None:
        """The views of an evaluation set; None if its clips have a single view.

        Args:
            before_training: read the first sample also where a single view is expected. Later, the first batch raises as early.

        Raises:
            ValueError: the set cannot give these views, or the model cannot be scored with them.
        """
        protocol = self.args.eval_views
        num_views = stated_views(dataset)
        if protocol is None:
            protocol = ViewProtocol(num_views or 1, 1, "mean_logits", "the transform of the evaluation set")
        elif num_views is not None and num_views != protocol.total:
            raise ValueError(
                f"The arguments ask for {protocol.total} views per clip in evaluation, but the evaluation set's transform makes "
                f"{num_views}: build it with hf_avfusion.evaluation.views.view_transform(processor, args.eval_views, ...)."
            )
        flags = ("--eval_num_views", "--eval_num_crops", "--eval_aggregation")
        check_views(protocol, self.task, getattr(self.model, "config", None), flags)
        if num_views is None and (protocol.total > 1 or before_training):
            check_sample_views(dataset, protocol.total, self.eval_data_collator, getattr(self.model, "config", None))
        return protocol if protocol.total > 1 else None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        scored = {name: inputs[name] for name in self.task.metric_inputs if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in scored}
        if self._views is not None:
            loss, logits, labels = self._predict_views(model, inputs)
            if prediction_loss_only:
                logits = labels = None
        else:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        if self._reduces and logits is not None and labels is not None:
            logits, labels = self.task.reduce(_only_logits(logits, labels), labels, self.model.config)
        if scored and labels is not None:
            labels = (labels, {name: value.to(labels.device) for name, value in scored.items()})
        clips = self._evaluated.own_rows if self._evaluated is not None else find_batch_size(inputs)
        self._clips += clips
        if loss is not None and clips:
            given = inputs.get("labels")
            if given is not None:  # the model's loss is the mean over the clips that have a label
                clips = int((given != IGNORED_LABEL).reshape(len(given), -1).any(dim=1).sum())
            self._loss_sum += loss.item() * clips
            self._loss_clips += clips
        return loss, logits, labels

    def _predict_views(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Loss, logits [B, classes] and labels of a batch with views.

        The inputs stay on their device; only the views of each forward pass are moved to the model's device.
        """
        views, config = self._views, getattr(self.model, "config", None)
        views_per_step, passes = self.args.eval_views_per_step or self.args.per_device_eval_batch_size, None
        if (
            self._evaluated is not None
        ):  # with sharded weights, all processes must make the same number of forward passes
            passes = -(-self._evaluated.most_rows * views.total // views_per_step)
        with self.compute_loss_context_manager():
            logits_per_view = view_logits(
                model, inputs, views=views.total, views_per_step=views_per_step, passes=passes
            )
        labels = inputs.get(self.label_names[0]) if self.label_names else None
        labels = labels.to(self.args.device) if labels is not None else None
        logits = self.task.join_views(logits_per_view, labels, views.aggregation, config).to(self.args.device)
        if labels is None:
            return None, logits, None
        if self.compute_loss_func is not None:
            items = self._get_num_items_in_batch([inputs], self.args.device)
            return self.compute_loss_func({"logits": logits}, labels, num_items_in_batch=items).mean(), logits, labels
        return self.task.loss(logits, labels, config).mean(), logits, labels

    def _task_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        if not self.args.eval_do_concat_batches:  # lists of batches
            logits = _join_arrays([_only_logits(batch, None) for batch in logits])
            labels = _join_arrays(labels)
        labels, scored = labels if isinstance(labels, tuple) else (labels, {})
        logits = torch.as_tensor(logits[0] if isinstance(logits, tuple) else logits)
        labels, config = torch.as_tensor(labels), self.model.config
        if self.task.reduce is not None and not self._reduces:
            logits, labels = self.task.reduce(logits, labels, config)
        return self.task.metrics(
            logits, labels, config, **{name: torch.as_tensor(each) for name, each in scored.items()}
        )

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; with FSDP's SHARDED_STATE_DICT it also writes the full weights, which the Trainer does not.
        Checkpoints stay sharded.
        """
        super().save_model(output_dir, _internal_call)
        if not self.is_fsdp_enabled or _internal_call:
            return
        if "SHARDED_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            weights = self.accelerator.get_state_dict(self.model)  # every process must take part
            if self.args.should_save:
                self._save(output_dir, state_dict=weights)


def _only_logits(predictions: torch.Tensor | tuple, labels: torch.Tensor | None) -> torch.Tensor:
    """Keeps only the logits; other outputs (logits per modality, hidden states) would fill the memory during evaluation."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _join_arrays(batches: list[Any]) -> Any:
    """Arrays of batches to tensors of all rows, also in tuples and dictionaries."""
    if isinstance(batches[0], tuple):
        return tuple(map(_join_arrays, map(list, zip(*batches))))
    if isinstance(batches[0], dict):
        return {name: _join_arrays([batch[name] for batch in batches]) for name in batches[0]}
    return join_batches([torch.as_tensor(batch) for batch in batches])


def _classes_to_shard(model: torch.nn.Module) -> list[str]:
    """The model's `_no_split_modules` without those that contain its input embeddings.

    accelerate 1.15 shards input embeddings separately at the end, which fails if the module that contains them is already
    sharded (ViTs).
    """
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    parents = {
        type(module).__name__ for module in model.modules() if any(part is embeddings for part in module.modules())
    }
    return [name for name in getattr(model, "_no_split_modules", None) or [] if name not in parents]
