"""The description that each `evaluate` module gives of itself."""

import datasets
import evaluate


def module_info(description: str, inputs_description: str, features: dict) -> evaluate.MetricInfo:
    """`MetricInfo` of a module whose `_compute` is handed numpy arrays.

    By default evaluate hands over nested lists: 5.4 s to read 20,000 x 309 scores and labels back, where arrays take
    0.13 s (one core). Its format "numpy" is refused by the constructor for columns that are not single values; set
    afterwards it works for them as well (evaluate 0.4.6).
    """
    info = evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=inputs_description,
        features=datasets.Features(features),
    )
    info.format = "numpy"
    return info
