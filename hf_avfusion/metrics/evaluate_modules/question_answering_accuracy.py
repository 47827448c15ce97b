"""`evaluate` module: accuracy of answers per type of question (MUSIC-AVQA)."""

from typing import Any

import datasets
import evaluate

from hf_avfusion.metrics.evaluate_modules.info import WHOLE, module_info, whole_numbers
from hf_avfusion.metrics.question_answering import question_answering_accuracy


class QuestionAnsweringAccuracy(evaluate.Metric):
    """`overall`, `Audio`, `Audio/Counting`, ... (`question_answering.question_answering_accuracy`).

    Args:
        **kwargs: as for any `evaluate.Metric` (cache_dir, num_process, ...).
    """

    def _info(self) -> evaluate.MetricInfo:
        return module_info(
            "Accuracy of answers per type of question (MUSIC-AVQA).",
            "predictions: float [questions, answers], logits or probabilities; references: integer [questions]; "
            "question_types: one per question, the official JSON text or a name.",
            {
                "predictions": datasets.List(datasets.Value("float32")),
                "references": WHOLE,
                "question_types": datasets.Value("string"),
            },
        )

    def _compute(self, predictions: Any, references: Any, question_types: Any) -> dict[str, Any]:
        answers = whole_numbers(references, "references")
        return question_answering_accuracy(predictions, answers, list(question_types))
