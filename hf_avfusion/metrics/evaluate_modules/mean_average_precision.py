"""`evaluate` module: Macro mAP, ROC area and d-prime of multi-label scores."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.classification import average_precision_per_class, multi_label_metrics
from hf_avfusion.metrics.evaluate_modules.info import module_info


class MeanAveragePrecision(evaluate.Metric):
    """`map`, `auc`, `d_prime`, `classes_without_positives` (`classification.multi_label_metrics`).

    Args:
        per_class: also return `average_precision`, a list with NaN for classes without positives.
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def __init__(self, *, per_class: bool = False, **kwargs: Any):
        self.per_class = per_class
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Macro mAP, ROC area and d-prime of multi-label scores.",
            "predictions: float [clips, classes], logits or probabilities; references: [clips, classes] of 0 and 1.",
            {
                "predictions": datasets.List(datasets.Value("float32")),
                # float: an integer column would silently truncate a mixed label of 0.5 to 0
                "references": datasets.List(datasets.Value("float32")),
            },
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        results: dict[str, Any] = multi_label_metrics(predictions, references)
        if self.per_class:
            results["average_precision"] = average_precision_per_class(predictions, references).tolist()
        return results
