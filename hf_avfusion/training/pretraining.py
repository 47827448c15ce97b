"""The Trainer for pretraining without labels; it logs each part of the loss, averaged over clips and processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput

from .trainer import AVTrainer

_SUFFIX = "_loss"


class AVPreTrainer(AVTrainer):
    """An `AVTrainer` for pretraining heads such as `AVMAEForPreTraining`.

    - It logs every scalar of the output named `<part>_loss` as `loss_<part>` (`eval_loss_<part>` in evaluation). The value is the
      mean over clips, of all steps since the last log, all accumulated batches and all processes. The output's
      `<part>_loss_mask` [B, ...] selects the clips that count, such as those that have the modality; without it all count. The
      sums are read from the device only for logging.
    - Batches need no labels. Evaluation computes the loss but no other metrics.

    Args:
        data_collator: collator of training (`data.masking`), and of evaluation unless `eval_data_collator` is given.
        All other arguments are those of `AVTrainer`.
    """

    def __init__(self, *args: Any, eval_data_collator: Callable | None = None, **kwargs: Any):
        super().__init__(*args, eval_data_collator=eval_data_collator, **kwargs)
        if eval_data_collator is None:
            self.eval_data_collator = self.data_collator
        self.label_names = []
        self.compute_metrics = None
        self._sums: dict[str, torch.Tensor] = {}  # part -> float64 [2]: sum of loss x clips, clips

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        # A padding batch only keeps this process in step with the others; its clips do not count.
        is_padding = self._loss_weight == 0.0 or (self._evaluated is not None and not self._evaluated.own_rows)
        if isinstance(outputs, ModelOutput) and not is_padding:
            self._add_losses(outputs, len(next(iter(inputs.values()))))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {f"loss_{part}": value for part, value in self._pop_means().items()}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        training_sums, self._sums = self._sums, {}
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            output.metrics.update(
                {f"{metric_key_prefix}_loss_{part}": mean for part, mean in self._pop_means().items()}
            )
        finally:
            self._sums = training_sums
        return output

    def metric_names(self) -> set[str] | None:
        wanted = (self.args.metric_for_best_model or "").removeprefix("eval_")
        # Only outputs of the model name the parts of the loss.
        return super().metric_names() | ({wanted} if wanted.startswith("loss_") else set())

    @torch.no_grad()
    def _add_losses(self, outputs: ModelOutput, rows: int) -> None:
        for name, value in outputs.items():
            if not name.endswith(_SUFFIX) or name == _SUFFIX:
                continue
            part, value = name.removesuffix(_SUFFIX), value.detach().double().mean()
            scored = outputs.get(f"{name}_mask")
            clips = value.new_tensor(rows) if scored is None else scored.flatten(1).any(dim=1).sum().double()
            added = torch.stack([value * clips, clips])
            self._sums[part] = self._sums[part] + added if part in self._sums else added

    def _pop_means(self) -> dict[str, float]:
        """Means since the last call, by part; every process must call this."""
        sums = {part: values.tolist() for part, values in self._sums.items()}
        self._sums = {}
        means = {}
        gathered = self.ranks.all_gather(sums)
        for part in dict.fromkeys(part for sums in gathered for part in sums):
            total, clips = (sum(values) for values in zip(*(sums[part] for sums in gathered if part in sums)))
            if clips:
                means[part] = total / clips
        return means
