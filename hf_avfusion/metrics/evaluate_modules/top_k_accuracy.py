"""`evaluate` module: share of clips whose label is among the k highest scores."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.classification import top_k_accuracies
from hf_avfusion.metrics.evaluate_modules.info import WHOLE, module_info, whole_numbers


class TopKAccuracy(evaluate.Metric):
    """`top1`, `top5`, ... of single-label scores (`classification.top_k_accuracies`).

    Args:
        k: values of k; 5 is left out for five classes or fewer.
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def __init__(self, *, k: tuple[int, ...] = (1, 5), **kwargs: Any):
        self.k = tuple(k)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Share of clips whose label is among the k highest scores.",
            "predictions: float [clips, classes], logits or probabilities; references: integer [clips].",
            {"predictions": datasets.List(datasets.Value("float32")), "references": WHOLE},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return top_k_accuracies(predictions, whole_numbers(references, "references"), self.k)
