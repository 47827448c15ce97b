"""`evaluate` module: adjusted Rand index and homogeneity of clusters against labels."""

from typing import Any

import evaluate

from hf_avfusion.metrics.clustering import clustering_scores
from hf_avfusion.metrics.evaluate_modules.info import WHOLE, module_info, whole_numbers


class Clustering(evaluate.Metric):
    """`ari` and `homogeneity` (`clustering.clustering_scores`).

    Args:
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Adjusted Rand index and homogeneity of clusters against labels.",
            "predictions: integer [clips], the clusters; references: integer [clips], the classes.",
            {"predictions": WHOLE, "references": WHOLE},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        labels, clusters = whole_numbers(references, "references"), whole_numbers(predictions, "predictions")
        return clustering_scores(labels, clusters)._asdict()
