"""The Trainer's arguments plus the published choices it does not know: optimisers, layer-wise decay, warm-up in epochs with
a cosine, evaluation over several views of a clip.
"""

from dataclasses import dataclass, field
from typing import get_args

from transformers import TrainingArguments

from ..evaluation.views import PROTOCOLS, Aggregation, ViewProtocol, choose_protocol

OPTIMIZERS = ("trainer", "momentum_sgd", "adam_decoupled")
SCHEDULES = ("trainer", "warmup_cosine")


@dataclass
class AVTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with audio-visual defaults and the published optimiser and schedule as options.

    Nothing changes unless asked for: the defaults train with AdamW (`optim`) and the Trainer's `lr_scheduler_type`.
    MBT's released AudioSet recipe is

        AVTrainingArguments(optimizer="momentum_sgd", learning_rate=0.5, schedule="warmup_cosine", warmup_epochs=2.5,
                            num_train_epochs=50, per_device_train_batch_size=64, dataloader_drop_last=True)

    with `max_grad_norm=1.0`, the Trainer's own default, and 64 the batch over all devices. `training.recipes` holds the
    published values.

    Evaluation over several views: build the evaluation set with `evaluation.views.view_transform(processor,
    args.eval_views, ...)`; `AVTrainer` joins each clip's views.

    Differences of default: `remove_unused_columns` is off, because the collator needs columns that no `forward` names;
    `label_names` is `["labels"]`.
    Refused: `label_smoothing_factor`, because the Trainer's smoother knows neither several heads nor labels per
        modality;
    smoothing is a field of the model's configuration (`label_smoothing`).
    """

    optimizer: str = field(
        default="trainer",
        metadata={
            "help": "`trainer`: what --optim names (AdamW by default). `momentum_sgd`: as MBT was published, with "
            "--momentum 0.9 and no weight decay. `adam_decoupled`: as AV-MAE was pretrained, Adam of --adam_beta1, "
            "--adam_beta2, --adam_epsilon, after whose update --weight_decay shrinks kernels.",
            "choices": list(OPTIMIZERS),
        },
    )
    momentum: float = field(default=0.9, metadata={"help": "Momentum of `--optimizer momentum_sgd`."})
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise decay of the learning rate, with any optimizer: each layer learns at this factor of the rate of "
            "the one above it (AV-MAE is fine-tuned with 0.75)."
        },
    )
    schedule: str = field(
        default="trainer",
        metadata={
            "help": "`trainer`: what --lr_scheduler_type names. `warmup_cosine`: as MBT was published, a linear "
            "warm-up times a cosine that reaches 0 at the last update.",
            "choices": list(SCHEDULES),
        },
    )
    warmup_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Warm-up of `--schedule warmup_cosine` in epochs, fractions allowed (published: 2.5 of 50 epochs). "
            "Without it --warmup_steps counts."
        },
    )
    eval_protocol: str | None = field(
        default=None,
        metadata={
            "help": "Evaluate over the views of a published evaluation: windows, crops and how scores are joined.",
            "choices": list(PROTOCOLS),
        },
    )
    eval_num_views: int | None = field(
        default=None, metadata={"help": "Windows in time per clip in evaluation; MBT was published with 4."}
    )
    eval_num_crops: int | None = field(
        default=None, metadata={"help": "Crops in space of each window in evaluation: 1 or 3."}
    )
    eval_aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How the scores of a clip's views are joined; without a protocol their logits are averaged.",
            "choices": list(get_args(Aggregation)),
        },
    )
    eval_views_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Views of one forward pass in evaluation. By default per_device_eval_batch_size, so that a model needs no "
            "more memory than with single views."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Off: the collator needs columns that the model's forward does not name."}
    )

    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"],
        metadata={
            "help": "What a batch must hold to be scored. By itself the Trainer would wait for every optional label too, "
            "those that the model's forward names."
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
                f"weight_decay={self.weight_decay} has no meaning with optimizer='momentum_sgd', which was published "
                "without; set it to 0, or use optimizer='trainer' with --optim sgd and --optim_args."
            )
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}.")
        if self.warmup_epochs is not None and self.schedule != "warmup_cosine":
            raise ValueError(
                "warmup_epochs belongs to schedule='warmup_cosine'; with the Trainer's schedules give warmup_steps."
            )
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {self.warmup_epochs}.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would take columns away before the collator sees them; leave it False."
            )
        if self.label_smoothing_factor != 0.0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: set `label_smoothing` in the model's "
                "configuration instead; it covers several heads, several labels and logits per modality."
            )
        self.eval_views  # noqa: B018  (a contradiction is told now, not after the training)
        if self.eval_views_per_step is not None and self.eval_views_per_step < 1:
            raise ValueError(f"eval_views_per_step must be at least 1, got {self.eval_views_per_step}.")

    @property
    def eval_views(self) -> ViewProtocol | None:
        """The views that `eval_protocol`, `eval_num_views`, `eval_num_crops` and `eval_aggregation` ask for; None if none
        of them is given.
        """
        return choose_protocol(
            self.eval_protocol,
            num_views=self.eval_num_views,
            num_crops=self.eval_num_crops,
            aggregation=self.eval_aggregation,
        )
