"""`evaluate` module: accuracy of each head and of all heads together (verb, noun and action)."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.classification import multi_head_accuracies
from hf_avfusion.metrics.evaluate_modules.info import WHOLE, module_info, whole_numbers


class MultiHeadAccuracy(evaluate.Metric):
    """`top1_verb`, ..., `top1_joint`, ... (`classification.multi_head_accuracies`).

    Args:
        class_splits: head name to number of classes, in the order of the model's heads.
        k: values of k.
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def __init__(self, *, class_splits: dict[str, int], k: tuple[int, ...] = (1, 5), **kwargs: Any):
        self.class_splits = dict(class_splits)
        self.k = tuple(k)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Accuracy of each head and of all heads together (verb, noun and action).",
            "predictions: float [clips, sum of head sizes], logits; references: integer [clips, heads].",
            {
                "predictions": datasets.List(datasets.Value("float32")),
                "references": datasets.List(WHOLE),
            },
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        labels = whole_numbers(references, "references")
        return multi_head_accuracies(predictions, labels, self.class_splits, self.k)
