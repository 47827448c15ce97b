"""The Trainer's arguments plus the published options that it lacks: optimisers, layer-wise learning rate decay, warm-up in epochs
with a cosine schedule, and evaluation over several views of a clip.
"""

from dataclasses import dataclass, field
from typing import get_args

from transformers import TrainingArguments

from ..evaluation.views import PROTOCOLS, Aggregation, ViewProtocol, choose_protocol
from .option_checks import check_options, checked_rates

OPTIMIZERS = ("trainer", "momentum_sgd", "adam_decoupled", "adam")
SCHEDULES = ("trainer", "warmup_cosine", "step")


@dataclass
class AVTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with audio-visual defaults and the published optimisers and schedule as options.

    The defaults train with AdamW (`optim`) and the Trainer's `lr_scheduler_type`. MBT's released AudioSet recipe is

        AVTrainingArguments(optimizer="momentum_sgd", learning_rate=0.5, schedule="warmup_cosine", warmup_epochs=2.5,
                            num_train_epochs=50, per_device_train_batch_size=64, dataloader_drop_last=True)

    with `max_grad_norm=1.0`, which is the Trainer's default. 64 is the batch size over all devices. `training.recipes`
    holds all published values.

    To evaluate over several views, build the evaluation set with `evaluation.views.view_transform(processor,
    args.eval_views, ...)`; `AVTrainer` joins each clip's views.

    Two defaults differ from transformers: `remove_unused_columns` is off, because the collator needs columns that are not
    arguments of `forward`, and `label_names` is `["labels"]`. `label_smoothing_factor` raises an error, because the Trainer's
    label smoother supports neither several heads nor labels per modality. Set `label_smoothing` in the model's
    configuration instead. `option_checks` lists the other options that are refused, since they would have no effect.
    """

    optimizer: str = field(
        default="trainer",
        metadata={
            "help": "`trainer`: the optimizer of --optim (default: AdamW). `momentum_sgd`: the published optimizer of MBT, "
            "with --momentum 0.9 and no weight decay. `adam_decoupled`: the published optimizer of AV-MAE pretraining, Adam "
            "with --adam_beta1, --adam_beta2 and --adam_epsilon; --weight_decay shrinks kernels after its update. `adam`: the "
            "published optimizer of LAVISH, Adam without weight decay.",
            "choices": list(OPTIMIZERS),
        },
    )
    momentum: float = field(default=0.9, metadata={"help": "Momentum of `--optimizer momentum_sgd`."})
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise learning rate decay, for any optimizer: the learning rate of each layer is this factor times that "
            "of the layer above it (AV-MAE is fine-tuned with 0.75)."
        },
    )
    learning_rates: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON of learning rates by name: a regular expression that is searched in the names of parameters -> rate, "
            "such as '{\"classifier\": 4e-6}'. The first that is found counts; --learning_rate is that of all others."
        },
    )
    schedule: str = field(
        default="trainer",
        metadata={
            "help": "`trainer`: the schedule of --lr_scheduler_type. `warmup_cosine`: the published schedule of MBT, a linear "
            "warm-up times a cosine that reaches 0 at the last update. `step`: the rates are multiplied by --decay_factor every "
            "--decay_epochs epochs.",
            "choices": list(SCHEDULES),
        },
    )
    warmup_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Warm-up of `--schedule warmup_cosine` in epochs, which may be a fraction (published: 2.5 of 50 epochs). "
            "Default: --warmup_steps."
        },
    )
    decay_epochs: float | None = field(
        default=None, metadata={"help": "Epochs between the steps of `--schedule step` (LAVISH: 3 or 8)."}
    )
    decay_factor: float | None = field(
        default=None, metadata={"help": "Factor of each step of `--schedule step` (LAVISH: 0.35 or 0.1)."}
    )
    eval_protocol: str | None = field(
        default=None,
        metadata={
            "help": "Published evaluation protocol: number of windows and crops per clip, and how to join their scores.",
            "choices": list(PROTOCOLS),
        },
    )
    eval_num_views: int | None = field(
        default=None, metadata={"help": "Windows per clip in evaluation; the MBT paper uses 4."}
    )
    eval_num_crops: int | None = field(
        default=None, metadata={"help": "Spatial crops per window in evaluation: 1 or 3."}
    )
    eval_aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How to join the scores of a clip's views; default: the protocol's, or the mean of the logits.",
            "choices": list(get_args(Aggregation)),
        },
    )
    eval_views_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Views per forward pass in evaluation. Default: per_device_eval_batch_size, so that several views need no "
            "more memory than one."
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Must be off, because the collator needs columns that are not arguments of the model's forward."
        },
    )

    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"],
        metadata={
            "help": "Labels that a batch must hold to be evaluated. The Trainer's default would also require the optional "
            "labels of the model's forward."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}.")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}.")
        if self.optimizer == "momentum_sgd" and self.weight_decay != 0.0:
            raise ValueError(
                f"weight_decay={self.weight_decay} has no effect with optimizer='momentum_sgd', which was published without "
                "weight decay; set it to 0, or use optimizer='trainer' with --optim sgd and --optim_args."
            )
        if self.optimizer == "adam" and self.weight_decay != 0.0:
            raise ValueError(
                f"weight_decay={self.weight_decay} has no effect with optimizer='adam', which was published without weight decay; "
                "set it to 0, or use optimizer='trainer'."
            )
        self.learning_rates = checked_rates(self.learning_rates)
        if self.learning_rates and self.layer_decay is not None:
            raise ValueError(
                f"learning_rates={self.learning_rates} and layer_decay={self.layer_decay} both set the rates of parameters: leave "
                "one of the two out."
            )
        for name in ("decay_epochs", "decay_factor"):
            value, is_step = getattr(self, name), self.schedule == "step"
            if (value is not None) != is_step:
                raise ValueError(
                    f"{name}={value}: {'needed' if is_step else 'allowed only'} with schedule='step'; give schedule='step', "
                    "decay_epochs and decay_factor together."
                )
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}.")
        if self.warmup_epochs is not None and self.schedule != "warmup_cosine":
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} is allowed only with schedule='warmup_cosine'; use warmup_steps with the "
                "Trainer's schedules."
            )
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {self.warmup_epochs}.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove columns that the collator needs; leave it False.")
        if self.label_smoothing_factor != 0.0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: set `label_smoothing` in the model's "
                "configuration instead; it covers several heads, several labels and logits per modality."
            )
        self.eval_views  # noqa: B018  (raises for contradicting values now, not after training)
        if self.eval_views_per_step is not None and self.eval_views_per_step < 1:
            raise ValueError(f"eval_views_per_step must be at least 1, got {self.eval_views_per_step}.")
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_options(self)

    @property
    def eval_views(self) -> ViewProtocol | None:
        """The views that `eval_protocol`, `eval_num_views`, `eval_num_crops` and `eval_aggregation` select; None if all of
        them are None.
        """
        return choose_protocol(
            self.eval_protocol,
            num_views=self.eval_num_views,
            num_crops=self.eval_num_crops,
            aggregation=self.eval_aggregation,
        )
