"""The Trainer of models that learn without labels: each part of their loss is logged, averaged over clips and processes."""

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

    - Every scalar of the output called `<part>_loss` is logged as `loss_<part>` (`eval_loss_<part>` in evaluation): the mean
      over all clips, of all steps since the last log, of accumulated batches and of all processes, for which the part was
      scored; `<part>_loss_mask` [B, ...] says which those are, such as clips that have the modality. Without such a mask all
      count. The sums are read from the device only when they are logged.
    - Batches need no labels, and evaluation has a loss but no further metrics.

    Args:
        data_collator: of training and, unless `eval_data_collator` is given, of evaluation too (`data.masking`).
        Everything else as for `AVTrainer`.
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
        # A batch that only keeps this process in step with the others holds no clips of its own.
        filled_in = self._loss_weight == 0.0 or (self._evaluated is not None and not self._evaluated.own_rows)
        if isinstance(outputs, ModelOutput) and not filled_in:
            self._add(outputs, len(next(iter(inputs.values()))))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {f"loss_{part}": value for part, value in self._take().items()}
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        of_training, self._sums = self._sums, {}
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            output.metrics.update({f"{metric_key_prefix}_loss_{part}": mean for part, mean in self._take().items()})
        finally:
            self._sums = of_training
        return output

    @torch.no_grad()
    def _add(self, outputs: ModelOutput, rows: int) -> None:
        for name, value in outputs.items():
            if not name.endswith(_SUFFIX) or name == _SUFFIX:
                continue
            part, value = name.removesuffix(_SUFFIX), value.detach().double().mean()
            scored = outputs.get(f"{name}_mask")
            clips = value.new_tensor(rows) if scored is None else scored.flatten(1).any(dim=1).sum().double()
            added = torch.stack([value * clips, clips])
            self._sums[part] = self._sums[part] + added if part in self._sums else added

    def _take(self) -> dict[str, float]:
        """Means since the last call, by part; every process must call."""
        own = {part: sums.tolist() for part, sums in self._sums.items()}
        self._sums = {}
        means = {}
        of_ranks = self.ranks.all_gather(own)
        for part in dict.fromkeys(part for sums in of_ranks for part in sums):
            total, clips = (sum(values) for values in zip(*(sums[part] for sums in of_ranks if part in sums)))
            if clips:
                means[part] = total / clips
        return means
