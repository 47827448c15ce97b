"""`evaluate` module: Adjusted Rand index and homogeneity of clusters against labels."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.evaluation.evaluate_modules.info import module_info
from hf_avfusion.evaluation.metrics import clustering_scores


class Clustering(evaluate.Metric):
    """`ari` and `homogeneity` (`metrics.clustering_scores`).

    Args:
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Adjusted Rand index and homogeneity of clusters against labels.",
            "predictions: integer [clips], the clusters; references: integer [clips], the classes.",
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return clustering_scores(references, predictions)._asdict()
