"""`evaluate` module: share of seconds whose predicted class is the label (AVE)."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.classification import event_localization_accuracy
from hf_avfusion.metrics.evaluate_modules.info import WHOLE, module_info, whole_numbers


class EventLocalizationAccuracy(evaluate.Metric):
    """`accuracy` over all seconds of all clips, including background (`classification.event_localization_accuracy`).

    Args:
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Share of seconds whose predicted class is the label (AVE).",
            "predictions: float [clips, seconds, classes], logits or probabilities; references: integer [clips, seconds].",
            {
                "predictions": datasets.List(datasets.List(datasets.Value("float32"))),
                "references": datasets.List(WHOLE),
            },
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return {"accuracy": event_localization_accuracy(predictions, whole_numbers(references, "references"))}
